//! The header of every ring-buffer record.

/// Version of all record layouts. Bumped with any change of any record: the objects are built into the same
/// binary as the decoder, so a difference means a program that another version left behind.
pub const WIRE_VERSION: u16 = 4;

/// Starts every record.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeader {
    /// Which record follows: a `KIND_*` constant of the signal's module.
    pub kind: u16,
    /// [`WIRE_VERSION`].
    pub version: u16,
    /// Length of the whole record in bytes, header included.
    pub len: u32,
    /// Nanoseconds since boot without suspend, CLOCK_MONOTONIC (`bpf_ktime_get_ns`).
    pub time_ns: u64,
}
const _: () = assert!(size_of::<RecordHeader>() == 16);

impl RecordHeader {
    /// The header of a `T` of the given kind.
    #[must_use]
    pub const fn of<T>(kind: u16, time_ns: u64) -> Self {
        Self { kind, version: WIRE_VERSION, len: size_of::<T>() as u32, time_ns }
    }
}

/// The process that owns a socket, as seen by the hook that ran inside that process.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Nanoseconds since boot, CLOCK_BOOTTIME, at which the process began: with the pid, its name for good.
    pub start_ns: u64,
    /// Process id (thread group) in the initial pid namespace; 0: the owner is not known.
    pub tgid: u32,
    /// Zero.
    pub _pad: u32,
    /// Name of the process's leading thread, NUL-padded.
    pub comm: [u8; 16],
}
const _: () = assert!(size_of::<Owner>() == 32);

impl Owner {
    /// Nobody is known to own it.
    pub const UNKNOWN: Self = Self { start_ns: 0, tgid: 0, _pad: 0, comm: [0; 16] };
}

/// An IP address: IPv4 in the first four bytes (the rest zero), IPv6 in all sixteen; network byte order.
pub type Address = [u8; 16];

/// [`Address`] holds IPv4.
pub const FAMILY_IPV4: u8 = 4;
/// [`Address`] holds IPv6.
pub const FAMILY_IPV6: u8 = 6;
