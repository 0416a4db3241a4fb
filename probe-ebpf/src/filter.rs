//! The filter of the settings. It is asked as early as each hook knows what it takes to answer.

use probe_common::fields::{CGROUP_ANCESTOR_IDS, CGROUP_ANCESTORS, KernelPointer};
use probe_common::settings::{
    FILTER_CGROUP, FILTER_COMM, FILTER_LOCAL_PORT, FILTER_PEER, FILTER_PEER_PORT, FILTER_TGID, Settings,
};
use probe_common::tcp::Socket;
use probe_common::wire::Owner;

use crate::socket::words;
use crate::{Result, kread};

/// Whether a process passes.
#[inline(always)]
pub fn owner(settings: &Settings, owner: &Owner) -> bool {
    if settings.filters & FILTER_TGID != 0 && owner.tgid != settings.tgid {
        return false;
    }
    settings.filters & FILTER_COMM == 0 || words(&owner.comm) == words(&settings.comm)
}

/// Whether addresses and ports of a connection pass.
#[inline(always)]
pub fn endpoints(settings: &Settings, socket: &Socket) -> bool {
    let filters = settings.filters;
    if filters & FILTER_LOCAL_PORT != 0 && socket.local_port != settings.local_port {
        return false;
    }
    if filters & FILTER_PEER_PORT != 0 && socket.peer_port != settings.peer_port {
        return false;
    }
    if filters & FILTER_PEER != 0 {
        if u32::from(socket.family) != settings.peer_family {
            return false;
        }
        let [peer, network, mask] = [&socket.peer, &settings.peer_network, &settings.peer_mask].map(words);
        return (peer[0] ^ network[0]) & mask[0] == 0 && (peer[1] ^ network[1]) & mask[1] == 0;
    }
    true
}

/// Whether a cgroup (a `struct cgroup *`) is the filter's, or below it.
#[inline(always)]
pub fn cgroup(settings: &Settings, cgroup: KernelPointer) -> Result<bool> {
    if settings.filters & FILTER_CGROUP == 0 {
        return Ok(true);
    }
    let level = kread!(cgroup, CGROUP_LEVEL)? as u32;
    if level < settings.cgroup_level {
        return Ok(false);
    }
    let at = u64::from(settings.cgroup_level) * 8;
    let id = if kread::present(CGROUP_ANCESTORS) {
        let ancestor: u64 = kread::read_at(kread::address(cgroup, CGROUP_ANCESTORS)? + at)?;
        crate::socket::cgroup_id(ancestor)?
    } else {
        kread::read_at(kread::address(cgroup, CGROUP_ANCESTOR_IDS)? + at)?
    };
    Ok(id == settings.cgroup_id)
}
