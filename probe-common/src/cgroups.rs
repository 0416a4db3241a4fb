//! cgroups: what the programs report of cgroups that are made and removed.

use crate::wire::RecordHeader;

/// [`MadeRecord`].
pub const KIND_MADE: u16 = 1;
/// [`RemovedRecord`].
pub const KIND_REMOVED: u16 = 2;

/// Octets of a path that a record holds, the NUL included: as many as the tracepoint itself has (`TRACE_CGROUP_PATH_LEN` of
/// kernel/cgroup/cgroup-internal.h).
pub const PATH_ROOM: usize = 1024;

/// A cgroup of the v2 hierarchy was made.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug)]
pub struct MadeRecord {
    /// Kind [`KIND_MADE`].
    pub header: RecordHeader,
    /// Its id: the inode number of its directory.
    pub id: u64,
    /// Octets of the path that are there, without the NUL. With `PATH_ROOM - 1` of them it may be cut.
    pub len: u32,
    /// Zero.
    pub _pad: u32,
    /// Path below the root of the hierarchy, whatever cgroup namespace it was made in: begins with `/`, ends with a NUL.
    pub path: [u8; PATH_ROOM],
}
const _: () = assert!(size_of::<MadeRecord>() == 32 + PATH_ROOM);

/// A cgroup of the v2 hierarchy was removed. Its id does not come again.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug)]
pub struct RemovedRecord {
    /// Kind [`KIND_REMOVED`].
    pub header: RecordHeader,
    /// Its id.
    pub id: u64,
}
const _: () = assert!(size_of::<RemovedRecord>() == 24);
