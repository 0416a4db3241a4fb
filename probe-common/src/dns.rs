//! Records, keys and values of the dns signal. Wire format of messages: RFC 1035, section 4.

use crate::wire::{Address, Owner, RecordHeader};

/// [`LookupRecord`]: an answer came.
pub const KIND_ANSWERED: u16 = 1;
/// [`LookupRecord`]: the same question was sent again before an answer came; this one stays unanswered.
pub const KIND_RESENT: u16 = 2;
/// [`LookupRecord`]: an answer to a question that nobody is known to have asked, or that was given up.
pub const KIND_ORPHAN: u16 = 3;
/// [`MessageRecord`]: a message that gives out something.
pub const KIND_MESSAGE: u16 = 4;

/// Longest name on the wire, the closing zero included (RFC 1035, 2.3.4).
pub const NAME_MAX: usize = 255;
/// Room for a name; a power of two keeps the verifier's bounds simple.
pub const NAME_ROOM: usize = 256;
/// Octets of a message that are looked at for addresses: what every resolver takes over UDP (RFC 1035, 4.2.1). A power of two keeps
/// the verifier's bounds simple.
pub const MESSAGE_ROOM: usize = 512;

/// Which answer belongs to which question.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PendingKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Server as the process addressed it (before NAT).
    pub server: Address,
    /// Port as the process addressed it, host byte order.
    pub port: u16,
    /// Transaction id, host byte order.
    pub id: u16,
    /// Hash of the question: name in lower case, type, class.
    pub question: u32,
}
const _: () = assert!(size_of::<PendingKey>() == 32);

/// A question that waits for its answer.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// When the query left, CLOCK_MONOTONIC nanoseconds.
    pub sent_ns: u64,
    /// cgroup v2 id of the socket; 0: unknown.
    pub cgroup_id: u64,
    /// Process that addressed the server.
    pub owner: Owner,
    /// Inode number of the network namespace; 0: unknown.
    pub netns: u32,
    /// QTYPE.
    pub qtype: u16,
    /// 1: first try.
    pub attempt: u16,
    /// `wire::FAMILY_*` of the packets.
    pub family: u8,
    /// Bytes of `name` in use, the closing zero included.
    pub name_len: u8,
    /// Zero.
    pub _pad: [u8; 6],
    /// Name in wire format.
    pub name: [u8; NAME_ROOM],
}
const _: () = assert!(size_of::<Pending>() == 320);

/// A lookup that came to its end.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupRecord {
    /// Kind [`KIND_ANSWERED`], [`KIND_RESENT`] or [`KIND_ORPHAN`]; time: when the answer came, or the query
    /// that replaced this one.
    pub header: RecordHeader,
    /// What it was found by.
    pub key: PendingKey,
    /// Flags of the answer (RFC 1035, 4.1.1), host byte order: QR, opcode, AA, TC, RD, RA, RCODE.
    pub flags: u16,
    /// ANCOUNT of the answer.
    pub answers: u16,
    /// Zero.
    pub _pad: u32,
    /// The question. For [`KIND_ORPHAN`] only what the answer itself tells: name, type, family.
    pub pending: Pending,
}
const _: () = assert!(size_of::<LookupRecord>() == 376);

/// What a process's connect or send said about a socket.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// The process.
    pub owner: Owner,
    /// Server as the process addressed it last.
    pub server: Address,
    /// Port as the process addressed it last, host byte order.
    pub port: u16,
    /// `wire::FAMILY_*`.
    pub family: u8,
    /// Zero.
    pub _pad: [u8; 5],
}
const _: () = assert!(size_of::<Asker>() == 56);

/// A socket and a server that it addressed without being connected (`ADDRESSED`).
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressedKey {
    /// Socket cookie.
    pub cookie: u64,
    /// The server.
    pub server: Address,
    /// Port, host byte order.
    pub port: u32,
    /// Zero.
    pub _pad: u32,
}
const _: () = assert!(size_of::<AddressedKey>() == 32);

/// A message as it reached a socket, from its header on.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRecord {
    /// Kind [`KIND_MESSAGE`].
    pub header: RecordHeader,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    /// Octets in use.
    pub len: u16,
    /// Zero.
    pub _pad: u16,
    /// The message, or its beginning.
    pub octets: [u8; MESSAGE_ROOM],
}
const _: () = assert!(size_of::<MessageRecord>() == 536);
