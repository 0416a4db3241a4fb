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
/// [`SegmentRecord`]: a part of a TCP stream.
pub const KIND_SEGMENT: u16 = 5;

/// Longest name on the wire, the closing zero included (RFC 1035, 2.3.4).
pub const NAME_MAX: usize = 255;
/// Room for a name; a power of two keeps the verifier's bounds simple.
pub const NAME_ROOM: usize = 256;
/// Octets of a header (RFC 1035, 4.1.1): there the question begins.
pub const HEADER: usize = 12;
/// Octets of a message that are looked at: what every resolver takes over UDP (RFC 1035, 4.2.1). A power of two keeps the verifier's
/// bounds simple.
pub const MESSAGE_ROOM: usize = 512;
/// Octets of a message that go into the shorter of the two records; a power of two.
pub const SHORT_ROOM: usize = 128;
/// Octets of a TCP segment in one record; a power of two.
pub const SEGMENT_ROOM: usize = 1024;

/// [`Asked::role`]: the socket asks.
pub const ROLE_CLIENT: u8 = 0;
/// [`Asked::role`]: the socket is asked.
pub const ROLE_SERVER: u8 = 1;

/// [`SegmentRecord::flags`]: from who asks to who is asked.
pub const SEGMENT_QUERY: u8 = 1 << 0;
/// [`SegmentRecord::flags`]: the socket is that of who is asked ([`ROLE_SERVER`]).
pub const SEGMENT_SERVER: u8 = 1 << 1;
/// [`SegmentRecord::flags`]: SYN; the stream's first octet has the next sequence number.
pub const SEGMENT_SYN: u8 = 1 << 2;
/// [`SegmentRecord::flags`]: FIN; no octet comes behind this segment's.
pub const SEGMENT_FIN: u8 = 1 << 3;
/// [`SegmentRecord::flags`]: RST.
pub const SEGMENT_RST: u8 = 1 << 4;

/// Which answer belongs to which question.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PendingKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Who is asked, as the process addressed it (before NAT); at the one who is asked, who asks.
    pub peer: Address,
    /// Port of the peer, as above, host byte order; 0: peer and port are not known.
    pub port: u16,
    /// Transaction id, host byte order.
    pub id: u16,
    /// Hash of the question: name in lower case, type, class.
    pub question: u32,
}
const _: () = assert!(size_of::<PendingKey>() == 32);

/// A question, without its name.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// When the query left (at who is asked: came), CLOCK_MONOTONIC nanoseconds.
    pub sent_ns: u64,
    /// cgroup v2 id of the socket; 0: unknown.
    pub cgroup_id: u64,
    /// Process that addressed the server; at the one who is asked, the one that answers.
    pub owner: Owner,
    /// Inode number of the network namespace; 0: unknown.
    pub netns: u32,
    /// QTYPE.
    pub qtype: u16,
    /// How often it was sent under the same key; 1: once.
    pub attempt: u16,
    /// `wire::FAMILY_*` of the packets.
    pub family: u8,
    /// Octets of the name, the closing zero included.
    pub name_len: u8,
    /// `ROLE_*` of the socket.
    pub role: u8,
    /// Zero.
    pub _pad: [u8; 5],
}
const _: () = assert!(size_of::<Asked>() == 64);

/// A question that waits for its answer.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The question.
    pub asked: Asked,
    /// Name in wire format.
    pub name: [u8; NAME_ROOM],
}
const _: () = assert!(size_of::<Pending>() == 320);

/// A lookup over UDP that came to its end, without its message.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupHead {
    /// Kind [`KIND_ANSWERED`], [`KIND_RESENT`] or [`KIND_ORPHAN`]; time: when the answer came, or the query
    /// that replaced this one.
    pub header: RecordHeader,
    /// What it was found by.
    pub key: PendingKey,
    /// The question. For [`KIND_ORPHAN`] only what the answer itself tells.
    pub asked: Asked,
    /// Octets of the whole message.
    pub message_len: u32,
    /// Octets of it in use here.
    pub len: u16,
    /// Zero.
    pub _pad: u16,
}
const _: () = assert!(size_of::<LookupHead>() == 120);

/// A lookup over UDP that came to its end, with the answer or its beginning; for [`KIND_RESENT`] with the query. The message's question
/// is the one that was asked, but for the case of letters.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupRecord {
    /// What it was.
    pub lookup: LookupHead,
    /// The message.
    pub octets: [u8; MESSAGE_ROOM],
}
const _: () = assert!(size_of::<LookupRecord>() == 632);

/// The same for messages that have room in less, as nearly all have: a ring holds twice as many.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortLookupRecord {
    /// What it was.
    pub lookup: LookupHead,
    /// The message.
    pub octets: [u8; SHORT_ROOM],
}
const _: () = assert!(size_of::<ShortLookupRecord>() == 248);

/// A part of what a TCP connection to or from a server carries, as it passed its socket: what is sent again is here again, and what
/// comes has not been looked at by TCP.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRecord {
    /// Kind [`KIND_SEGMENT`]; time: when it passed.
    pub header: RecordHeader,
    /// Socket cookie.
    pub cookie: u64,
    /// cgroup v2 id of the socket; 0: unknown.
    pub cgroup_id: u64,
    /// Process that connected.
    pub owner: Owner,
    /// Who is asked, as the process addressed it (before NAT); at the one who is asked, who asks. Zero where that is not known.
    pub peer: Address,
    /// Port of the peer, as above, host byte order.
    pub port: u16,
    /// `wire::FAMILY_*`.
    pub family: u8,
    /// `SEGMENT_*` bits. FIN and RST are on the last record of a segment.
    pub flags: u8,
    /// Inode number of the network namespace; 0: unknown.
    pub netns: u32,
    /// Sequence number of the first of `octets`; of a SYN, its own.
    pub seq: u32,
    /// Octets that came right behind these, and are in no record: a segment has more than is looked at.
    pub missing: u32,
    /// Octets in use.
    pub len: u16,
    /// Zero.
    pub _pad: [u8; 6],
    /// The octets.
    pub octets: [u8; SEGMENT_ROOM],
}
const _: () = assert!(size_of::<SegmentRecord>() == 1128);

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
