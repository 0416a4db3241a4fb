//! What is loaded into the kernel, by anybody, and what is attached to a cgroup.
#![expect(unsafe_code, reason = "BPF_PROG_QUERY has no wrapper for cgroups")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use probe_user::kernel::bpf::Bpf;
use probe_user::kernel::btf::KernelBtf;
use probe_user::signals;

/// `BPF_PROG_QUERY` of `enum bpf_cmd`.
const BPF_PROG_QUERY: libc::c_int = 16;
/// More than `enum bpf_attach_type` has had so far; what the kernel does not know it refuses.
const ATTACH_TYPES: u32 = 64;
/// The kernel keeps so many characters of a name.
const NAME: usize = 15;

/// Programs, maps and links, by id. What goes while we look is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// With their names.
    pub programs: BTreeMap<u32, String>,
    /// With their names.
    pub maps: BTreeMap<u32, String>,
    /// With the ids of their programs.
    pub links: BTreeMap<u32, u32>,
}

impl Objects {
    /// As of now.
    #[must_use]
    pub fn now() -> Self {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        Self {
            programs: aya::programs::loaded_programs()
                .flatten()
                .map(|program| (program.id(), text(program.name())))
                .collect(),
            maps: aya::maps::loaded_maps().flatten().map(|map| (map.id(), text(map.name()))).collect(),
            links: aya::programs::loaded_links()
                .flatten()
                .map(|link| (link.id(), link.program_id()))
                .collect(),
        }
    }

    /// What came since `before` and is probe's by its name, or hangs on what is.
    #[must_use]
    pub fn of_probe_since(mut self, before: &Self, maps: &BTreeSet<String>) -> Self {
        let programs: BTreeSet<&str> = signals::every()
            .map(|kind| kind.object())
            .flat_map(|object| {
                let names = object.programs.iter().flat_map(|program| program.names(true));
                names.chain(object.older.map(|older| older.program)).chain(object.walk)
            })
            .map(|name| name.get(..NAME).unwrap_or(name))
            .collect();
        self.programs
            .retain(|id, name| !before.programs.contains_key(id) && programs.contains(name.as_str()));
        self.maps.retain(|id, name| !before.maps.contains_key(id) && maps.contains(name));
        self.links.retain(|_id, program| self.programs.contains_key(program));
        self
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { programs, maps, links } = self;
        programs.is_empty() && maps.is_empty() && links.is_empty()
    }
}

/// Whether this kernel lets programs at raw tracepoints lose their CPU.
///
/// # Errors
///
/// Its BTF does not read.
pub fn preempts_programs() -> anyhow::Result<bool> {
    Ok(Bpf::of(&KernelBtf::from_host()?).preempts_programs)
}

/// The `query` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    _pad: u32,
}

/// Ids of the programs on a cgroup itself, by attach type.
///
/// # Errors
///
/// More programs than anybody attaches.
pub fn hooks(cgroup: BorrowedFd<'_>) -> io::Result<BTreeMap<u32, Vec<u32>>> {
    let mut hooks = BTreeMap::new();
    for attach_type in 0..ATTACH_TYPES {
        let mut ids = [0u32; 64];
        let mut query = Query {
            target_fd: cgroup.as_raw_fd().cast_unsigned(),
            attach_type,
            prog_ids: ids.as_mut_ptr() as u64,
            prog_cnt: 64,
            ..Query::default()
        };
        // SAFETY: the kernel's structure for this command; its pointer leads to as many ids as it says.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
        if result == 0 {
            let count = usize::try_from(query.prog_cnt).unwrap_or(0);
            hooks.insert(attach_type, ids.iter().copied().take(count).collect());
        } else if io::Error::last_os_error().raw_os_error() == Some(libc::ENOSPC) {
            return Err(io::Error::other("more programs than there is room for"));
        }
    }
    Ok(hooks)
}
