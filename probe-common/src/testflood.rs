//! Record of the test-only program `testflood`.

use crate::wire::RecordHeader;

/// [`FloodRecord`].
pub const KIND_FLOOD: u16 = 1;

/// Records of one run of the program at most: the verifier follows each of them.
pub const BURST: u64 = 64;

/// Words that repeat the number of a record, so that a torn one is noticed.
pub const ECHOES: usize = 12;

/// One of many; as long as a slow system call's.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodRecord {
    /// Kind [`KIND_FLOOD`].
    pub header: RecordHeader,
    /// Who made it.
    pub producer: u64,
    /// Number among those that the producer tried to make.
    pub number: u64,
    /// `number`, again and again.
    pub echoes: [u64; ECHOES],
}
const _: () = assert!(size_of::<FloodRecord>() == 128);
