//! Records out of the rings: waiting for them, checking them.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::task::{Context, Poll};

use aya::maps::{MapData, RingBuf};
use bytemuck::Pod;
use probe_common::wire::{RecordHeader, WIRE_VERSION};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Why a record was not understood. Each is counted as lost where `decode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than a header, or of another length than its kind has.
    #[error("record of {0} bytes")]
    Length(usize),
    /// Written by programs of another version.
    #[error("record of version {0}, not {WIRE_VERSION}")]
    Version(u16),
    /// A kind that the signal does not have.
    #[error("record of unknown kind {0}")]
    Kind(u16),
    /// A value outside what its field may hold.
    #[error("record with an impossible {0}")]
    Value(&'static str),
}

/// Checks and returns the header of a record.
///
/// # Errors
///
/// When it is too short, of another version, or says another length than it has.
pub fn header(bytes: &[u8]) -> Result<RecordHeader, DecodeError> {
    let length = DecodeError::Length(bytes.len());
    let header: RecordHeader =
        bytes.get(..size_of::<RecordHeader>()).map(bytemuck::pod_read_unaligned).ok_or(length)?;
    if header.version != WIRE_VERSION {
        return Err(DecodeError::Version(header.version));
    }
    if header.len as usize != bytes.len() {
        return Err(length);
    }
    Ok(header)
}

/// The whole record as a `T`.
///
/// # Errors
///
/// When it has another length than a `T`.
pub fn record<T: Pod>(bytes: &[u8]) -> Result<T, DecodeError> {
    // The ring rounds lengths up to 8 in its own book-keeping only; records are of exact length.
    if bytes.len() == size_of::<T>() {
        Ok(bytemuck::pod_read_unaligned(bytes))
    } else {
        Err(DecodeError::Length(bytes.len()))
    }
}

/// A ring buffer, and from [`Self::listen`] on its wake-ups under tokio.
pub struct Ring {
    ring: RingBuf<MapData>,
    /// A descriptor of its own, so that waiting and reading do not share one.
    wakes: Option<AsyncFd<OwnedFd>>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring nobody listens to yet.
    #[must_use]
    pub fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring, wakes: None }
    }

    /// Registers it with the current runtime. Before that, [`woken`] never hears of it.
    ///
    /// # Errors
    ///
    /// When epoll refuses it, or there are too many descriptors.
    #[expect(unsafe_code, reason = "tokio leaves the descriptor's life to us")]
    pub fn listen(&mut self) -> io::Result<()> {
        let fd = self.ring.as_fd().try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` stays the same descriptor, and is owned by the `AsyncFd`.
        let wakes = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        self.wakes = Some(wakes);
        Ok(())
    }

    fn poll_woken(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(wakes) = &self.wakes else { return Poll::Pending };
        wakes.poll_read_ready(cx).map_ok(|mut guard| guard.clear_ready())
    }

    /// Hands up to `most` records to `each`, without waiting. Returns how many.
    pub fn drain(&mut self, most: usize, mut each: impl FnMut(&[u8])) -> usize {
        for taken in 0..most {
            match self.ring.next() {
                Some(record) => each(&record),
                None => return taken,
            }
        }
        most
    }
}

/// Waits until the programs wake user space for any of the rings: when the bytes waiting in one cross its watermark.
///
/// # Errors
///
/// What epoll returns.
pub async fn woken(rings: &[&Ring]) -> io::Result<()> {
    poll_fn(|cx| {
        for ring in rings {
            if let Poll::Ready(woken) = ring.poll_woken(cx) {
                return Poll::Ready(woken);
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use probe_common::tcp::{KIND_RETRANSMIT, RetransmitRecord};
    use proptest::prelude::*;

    use super::*;

    fn valid() -> Vec<u8> {
        let mut record: RetransmitRecord = bytemuck::Zeroable::zeroed();
        record.header = RecordHeader::of::<RetransmitRecord>(KIND_RETRANSMIT, 7);
        bytemuck::bytes_of(&record).to_vec()
    }

    #[test]
    fn a_record_of_its_own_length_and_version_is_read() {
        let bytes = valid();
        assert_eq!(header(&bytes).map(|header| header.kind), Ok(KIND_RETRANSMIT));
        assert_eq!(record::<RetransmitRecord>(&bytes).map(|record| record.header.time_ns), Ok(7));
    }

    #[test]
    fn any_cut_is_refused() {
        let bytes = valid();
        for len in 0..bytes.len() {
            assert_eq!(header(&bytes[..len]), Err(DecodeError::Length(len)));
            assert!(record::<RetransmitRecord>(&bytes[..len]).is_err());
        }
    }

    proptest! {
        #[test]
        fn a_header_says_what_its_bytes_say(mut bytes in prop::collection::vec(any::<u8>(), 0..200), lie: bool) {
            if !lie && let Some(head) = bytes.get(..8) {
                let len = bytes.len() as u32;
                let head = [&head[..2], &WIRE_VERSION.to_ne_bytes()[..], &len.to_ne_bytes()[..]].concat();
                bytes[..8].copy_from_slice(&head);
            }
            let word = |at: usize| bytes.get(at..at + 2).map(|word| u16::from_ne_bytes([word[0], word[1]]));
            match header(&bytes) {
                Ok(header) => {
                    prop_assert_eq!((header.version, header.len as usize), (WIRE_VERSION, bytes.len()));
                    prop_assert_eq!(Some(header.kind), word(0));
                }
                Err(DecodeError::Length(len)) => prop_assert!(len == bytes.len() && (lie || len < 16)),
                Err(DecodeError::Version(version)) => prop_assert!(lie && version != WIRE_VERSION && word(2) == Some(version)),
                Err(other) => prop_assert!(false, "{}", other),
            }
            prop_assert_eq!(record::<RetransmitRecord>(&bytes).is_ok(), bytes.len() == size_of::<RetransmitRecord>());
        }
    }

    #[test]
    fn another_version_is_refused() {
        let mut bytes = valid();
        bytes[2] ^= 0xff;
        assert!(matches!(header(&bytes), Err(DecodeError::Version(_))));
    }
}
