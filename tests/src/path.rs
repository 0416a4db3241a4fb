//! Two network namespaces and a path between them, on which packets take their time, and wait where the test says so.
//!
//! This process carries them from one TUN device to the other: no queueing discipline for that is in the kernel of the reference
//! host. Takes ip (iproute2), and a kernel with TUN devices.
#![expect(unsafe_code, reason = "the ioctl that makes a TUN device, and poll(2), have no safe wrapper here")]

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::netns::Netns;

/// Addresses of the near end and of the far one, by family.
pub const ADDRESSES: [(&str, &str); 2] = [("10.7.0.1", "10.7.0.2"), ("fd07::1", "fd07::2")];

/// On its way from one end to the other. So long that timestamps of TCP, which are milliseconds, tell what was before.
const DELAY: Duration = Duration::from_millis(5);
/// The longest that the thread does not look for what it is told.
const LOOK: Duration = Duration::from_millis(10);
/// Packets under way, or held back, in one direction. More than a test sends: what comes after is lost, and fails it.
const LIMIT: usize = 4_096;
const MTU: usize = 1_500;

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The near end.
    Near,
    /// The far end.
    Far,
}

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hold {
    #[default]
    Nothing,
    Everything,
    /// The next TCP segment with data, and whatever begins with the same sequence number.
    Segment(Option<u32>),
}

/// Two namespaces, joined. The path goes with it.
#[derive(Debug)]
pub struct Path {
    /// One end: [`ADDRESSES`].
    pub near: Netns,
    /// The other.
    pub far: Netns,
    orders: Arc<Orders>,
    carrier: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Orders {
    hold: Mutex<[Hold; 2]>,
    stop: AtomicBool,
}

impl Path {
    /// Makes them.
    ///
    /// # Errors
    ///
    /// Not root, no TUN devices, no ip.
    pub fn new() -> Result<Self> {
        let (near, far) = (Netns::new()?, Netns::new()?);
        let mut devices = Vec::new();
        for (netns, is_near) in [(&near, true), (&far, false)] {
            devices.push(netns.run(device)??);
            netns.call("ip", "link set path up")?;
            for (near, far) in ADDRESSES {
                let address = if is_near { near } else { far };
                let rest = if address.contains(':') { "/64 dev path nodad" } else { "/24 dev path" };
                netns.call("ip", &format!("addr add {address}{rest}"))?;
            }
        }
        let orders = Arc::new(Orders::default());
        let [near_device, far_device] =
            <[File; 2]>::try_from(devices).map_err(|_devices| anyhow::anyhow!("two devices"))?;
        let carrier = {
            let orders = Arc::clone(&orders);
            std::thread::spawn(move || carry(&[near_device, far_device], &orders))
        };
        Ok(Self { near, far, orders, carrier: Some(carrier) })
    }

    /// From now on all packets in a direction wait.
    pub fn hold(&self, to: To) {
        self.set(to, Hold::Everything);
    }

    /// The next segment with data waits, and those that begin where it does: when it is sent again, it comes behind the first.
    pub fn hold_segment(&self, to: To) {
        self.set(to, Hold::Segment(None));
    }

    /// What waits goes on, in the order in which it came.
    pub fn release(&self, to: To) {
        self.set(to, Hold::Nothing);
    }

    fn set(&self, to: To, hold: Hold) {
        let mut holds = self.orders.hold.lock().unwrap_or_else(PoisonError::into_inner);
        let [near, far] = &mut *holds;
        *match to {
            To::Near => near,
            To::Far => far,
        } = hold;
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// It lost packets, or could not go on.
    pub fn end(mut self) -> Result<()> {
        self.orders.stop.store(true, Ordering::Relaxed);
        self.carrier.take().and_then(|thread| thread.join().ok()).context("the carrier panicked")?
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.orders.stop.store(true, Ordering::Relaxed);
    }
}

/// A TUN device `path` in this thread's namespace: what is sent there can be read, and what is written is received there.
fn device() -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("no TUN devices")?;
    // SAFETY: plain old data for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"path") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: an open device, and a request that lives through the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    ensure!(made == 0, "cannot make a TUN device: {}", std::io::Error::last_os_error());
    Ok(file)
}

/// One direction.
#[derive(Default)]
struct Way {
    /// When they are due.
    under_way: VecDeque<(Instant, Vec<u8>)>,
    held: VecDeque<Vec<u8>>,
}

fn carry(devices: &[File; 2], orders: &Orders) -> Result<()> {
    let [near, far] = devices;
    let mut ways = [Way::default(), Way::default()];
    while !orders.stop.load(Ordering::Relaxed) {
        let due = ways.iter().filter_map(|way| way.under_way.front()).map(|(due, _)| *due).min();
        let patience = due.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()).min(LOOK));
        wait(devices, patience)?;
        let mut holds = orders.hold.lock().unwrap_or_else(PoisonError::into_inner);
        for ((way, hold), (from, to)) in ways.iter_mut().zip(&mut *holds).zip([(far, near), (near, far)]) {
            way.go_on(hold, from, to)?;
        }
    }
    Ok(())
}

impl Way {
    fn go_on(&mut self, hold: &mut Hold, mut from: &File, mut to: &File) -> Result<()> {
        let now = Instant::now();
        if *hold == Hold::Nothing {
            self.under_way.extend(self.held.drain(..).map(|packet| (now, packet)));
        }
        let mut packet = [0; MTU];
        loop {
            let packet = match from.read(&mut packet) {
                Ok(len) => packet.get(..len).unwrap_or_default().to_vec(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("cannot read from a TUN device"),
            };
            if waits(hold, &packet) {
                self.held.push_back(packet);
            } else {
                self.under_way.push_back((now + DELAY, packet));
            }
            ensure!(self.held.len() + self.under_way.len() <= LIMIT, "too many packets for the path");
        }
        while let Some((_, packet)) = self.under_way.pop_front_if(|(due, _)| *due <= now) {
            to.write_all(&packet).context("cannot write to a TUN device")?;
        }
        Ok(())
    }
}

fn waits(hold: &mut Hold, packet: &[u8]) -> bool {
    match hold {
        Hold::Nothing => false,
        Hold::Everything => true,
        Hold::Segment(held) => match sequence_of_data(packet) {
            Some(number) => *held.get_or_insert(number) == number,
            None => false,
        },
    }
}

/// Sequence number of a TCP segment that has data.
fn sequence_of_data(packet: &[u8]) -> Option<u32> {
    const TCP: u8 = 6;
    let (protocol, segment) = match packet.first()? >> 4 {
        4 => (*packet.get(9)?, packet.get(usize::from(packet.first()? & 15) * 4..)?),
        6 => (*packet.get(6)?, packet.get(40..)?),
        _ => return None,
    };
    let header = usize::from(segment.get(12)? >> 4) * 4;
    let has_data = protocol == TCP && segment.len() > header;
    has_data.then_some(u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?))
}

/// Until there is a packet, or time is up.
fn wait(devices: &[File; 2], patience: Duration) -> Result<()> {
    let mut polled = devices.each_ref().map(|file| libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    // Rounded up: what is not due yet would be looked for again and again.
    let timeout = i32::try_from(patience.as_micros().div_ceil(1_000))?;
    // SAFETY: as many entries as it is told, which live through the call.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), 2, timeout) };
    let error = std::io::Error::last_os_error();
    ensure!(result >= 0 || error.kind() == ErrorKind::Interrupted, "poll: {error}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(version: u8, sequence: u32, data: usize) -> Vec<u8> {
        let mut packet = if version == 4 { vec![0x45; 20] } else { vec![0x60; 40] };
        packet[if version == 4 { 9 } else { 6 }] = 6;
        let mut tcp = [0; 20];
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        tcp[12] = 5 << 4;
        packet.extend(tcp);
        packet.extend(vec![0; data]);
        packet
    }

    #[test]
    fn a_segment_waits_with_what_begins_where_it_does() {
        for version in [4, 6] {
            let mut hold = Hold::Segment(None);
            for (sequence, data, expected) in
                [(7, 0, false), (7, 100, true), (107, 100, false), (7, 200, true), (8, 1, false)]
            {
                let waits = waits(&mut hold, &segment(version, sequence, data));
                assert_eq!(waits, expected, "IPv{version}, {sequence}, {data}");
            }
        }
        for nothing in [&[][..], &[0x45], &[0x60; 40], &[0; 60]] {
            assert_eq!(sequence_of_data(nothing), None);
        }
    }
}
