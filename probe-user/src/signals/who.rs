//! Whose an event was: the attributes that all events have in common.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use probe_common::wire::Owner;

use crate::entity::{Entities, Entity, PeerNames, ProcessNames, Processes};
use crate::event::{AttrValue, key};
use crate::kernel::conntrack::Conntrack;

/// Whose an event was, as far as it is known.
#[derive(Clone, Debug)]
pub struct Who {
    /// Process id, initial pid namespace.
    pub pid: Option<u32>,
    /// Name of the process's leading thread, as /proc had it last; else as the kernel side noted it.
    pub comm: Option<Arc<str>>,
    /// Base name of the executable.
    pub executable: Option<Arc<str>>,
    /// Container, or the host.
    pub entity: Entity,
    /// cgroup path below the root of v2.
    pub cgroup: Option<Arc<str>>,
    /// Inode number of the network namespace.
    pub netns: Option<u32>,
}

impl Who {
    /// Hands the known attributes to `visitor`.
    pub fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        let Self { pid, comm, executable, entity, cgroup, netns } = self;
        if let Some(pid) = pid {
            visitor(key::PROCESS_PID, AttrValue::Int(i64::from(*pid)));
        }
        if let Some(comm) = comm {
            visitor(key::PROCESS_COMM, AttrValue::Str(comm));
        }
        if let Some(executable) = executable {
            visitor(key::PROCESS_EXECUTABLE_NAME, AttrValue::Str(executable));
        }
        match entity {
            Entity::Host => {}
            Entity::Unit(unit) => visitor(key::SYSTEMD_UNIT_NAME, AttrValue::Str(unit)),
            Entity::Container(container) => {
                visitor(key::CONTAINER_ID, AttrValue::Str(&container.container_id));
                if let Some(uid) = &container.pod_uid {
                    visitor(key::K8S_POD_UID, AttrValue::Str(uid));
                }
                if let Some(names) = container.names.get() {
                    names.identity().for_each(|(key, name)| visitor(key, AttrValue::Str(name)));
                }
            }
        }
        if let Some(cgroup) = cgroup {
            visitor(key::LINUX_CGROUP_PATH, AttrValue::Str(cgroup));
        }
        if let Some(netns) = netns {
            visitor(key::LINUX_NETNS, AttrValue::Int(i64::from(*netns)));
        }
    }
}

/// Says whose things are, and where they go.
#[derive(Debug)]
pub struct Owners {
    entities: Entities,
    processes: Processes,
    conntrack: Option<Conntrack>,
    peers: PeerNames,
}

impl Owners {
    /// With a resolver of cgroups and one of processes.
    #[must_use]
    pub fn new(entities: Entities, processes: Processes) -> Self {
        Self { entities, processes, conntrack: None, peers: PeerNames::default() }
    }

    /// With connection tracking to ask, or none.
    #[must_use]
    pub fn with_conntrack(self, conntrack: Option<Conntrack>) -> Self {
        Self { conntrack, ..self }
    }

    /// Where NAT sends the packets of a connection from `local` to `peer`, if elsewhere and known.
    pub fn destination(&mut self, local: SocketAddr, peer: SocketAddr, netns: u32) -> Option<SocketAddr> {
        self.conntrack.as_mut()?.destination(local, peer, netns, Instant::now())
    }

    /// Which name led to an address.
    pub fn peer_names(&mut self) -> &mut PeerNames {
        &mut self.peers
    }

    /// What it knows of cgroups.
    pub(crate) fn entities(&self) -> &Entities {
        &self.entities
    }

    /// Container or host of a cgroup; `tgid` helps where cgroup v2 does not tell containers apart.
    pub fn entity(&mut self, cgroup_id: u64, tgid: Option<u32>) -> Entity {
        self.entities.entity_of(cgroup_id, tgid)
    }

    /// A cgroup (v2) was made, with this path below the root.
    pub fn cgroup_made(&mut self, id: u64, path: &str) {
        self.entities.cgroup_made(id, path, Instant::now());
    }

    /// A cgroup (v2) was removed.
    pub fn cgroup_removed(&mut self, id: u64) {
        self.entities.cgroup_removed(id, Instant::now());
    }

    /// Whether a cgroup has been removed, as far as that can be told.
    pub fn is_gone(&mut self, cgroup_id: u64) -> bool {
        self.entities.is_gone(cgroup_id)
    }

    /// Everything known about the owner of something.
    pub fn who(&mut self, owner: &Owner, cgroup_id: u64, netns: u32) -> Who {
        let now = Instant::now();
        let pid = (owner.tgid != 0).then_some(owner.tgid);
        let place = self.entities.resolve(cgroup_id, pid, now);
        let noted = comm(&owner.comm);
        let ProcessNames { comm, executable } =
            pid.map(|pid| self.processes.get(pid, owner.start_ns, &noted, now)).unwrap_or_default();
        Who {
            pid,
            // The kernel side may have noted it long ago, when the process was another program. Both names are of one moment.
            comm: comm.or_else(|| pid.map(|_| noted).filter(|noted| !noted.is_empty())),
            executable,
            entity: place.as_ref().map_or(Entity::Host, |place| place.entity.clone()),
            cgroup: place.map(|place| place.cgroup_path),
            netns: (netns != 0).then_some(netns),
        }
    }
}

/// A NUL-padded name from the kernel as text; what is no UTF-8 becomes U+FFFD.
#[must_use]
pub(super) fn comm(bytes: &[u8; 16]) -> Arc<str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into()
}
