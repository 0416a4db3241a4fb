//! Whose it is: as a key of tables, and in as many characters as there is room for.

use std::sync::Arc;

use super::text::{cut, escape, width};
use crate::entity::{ContainerIdentity, Entity};
use crate::signals::Who;

/// Characters of an owner: container id, comm and pid at their longest.
pub(super) const OWNER: usize = 37;
/// An owner is not cut shorter for the sake of what stands beside it: a container's id stays whole.
pub(super) const OWNER_LEAST: usize = 12;
/// Digits of a container's id that are shown, as other tools do.
const CONTAINER_ID: usize = 12;

/// Processes of one name in one container are one owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct OwnerKey {
    pub(super) container: Option<Arc<ContainerIdentity>>,
    pub(super) comm: Option<Arc<str>>,
    /// Only where nothing else is known: the unit's name, else the cgroup's path.
    place: Option<Arc<str>>,
}

impl OwnerKey {
    pub(super) fn of(who: &Who) -> Self {
        let container = match &who.entity {
            Entity::Host | Entity::Unit(_) => None,
            Entity::Container(container) => Some(Arc::clone(container)),
        };
        let unknown = container.is_none() && who.comm.is_none();
        Self { container, comm: who.comm.clone(), place: place_of(who).filter(|_| unknown).cloned() }
    }

    pub(super) fn name(&self, processes: Processes) -> String {
        self.name_within(processes, OWNER)
    }

    /// In at most so many characters.
    pub(super) fn name_within(&self, processes: Processes, most: usize) -> String {
        let Self { container, comm, place } = self;
        let number = match processes {
            Processes::One(pid) => pid.map(|pid| format!("[{pid}]")),
            Processes::Several => Some("[…]".to_owned()),
            Processes::None => None,
        };
        name(container.as_deref(), comm.as_deref(), number.as_deref(), place.as_deref(), most)
    }
}

/// The unit, else the cgroup.
fn place_of(who: &Who) -> Option<&Arc<str>> {
    match &who.entity {
        Entity::Unit(unit) => Some(unit),
        Entity::Host | Entity::Container(_) => who.cgroup.as_ref(),
    }
}

/// The processes of an owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Processes {
    #[default]
    None,
    /// One, whose number may not be known.
    One(Option<u32>),
    Several,
}

impl Processes {
    pub(super) fn add(&mut self, pid: Option<u32>) {
        *self = match self {
            Self::None => Self::One(pid),
            Self::One(known) if *known == pid => return,
            Self::One(_) | Self::Several => Self::Several,
        };
    }
}

/// Who, in at most so many characters: pod or container before process; without either, the unit or the cgroup; `-` where nothing is known.
pub(super) fn owner(who: &Who, most: usize) -> String {
    let Who { pid, comm, executable: _, entity, cgroup: _, netns: _ } = who;
    let pid = pid.map(|pid| format!("[{pid}]"));
    name(entity.container(), comm.as_deref(), pid.as_deref(), place_of(who).map(AsRef::as_ref), most)
}

/// A container as people know it: by its pod, else by the beginning of its id.
fn named(container: &ContainerIdentity) -> String {
    match container.names.get() {
        Some(names) => escape(&format!("{}/{}", names.namespace, names.pod)),
        None => {
            let id = &container.container_id;
            escape(id.get(..CONTAINER_ID).unwrap_or(id))
        }
    }
}

/// Puts an owner's name together. What is cut is the process's name, as long as that is enough.
fn name(
    container: Option<&ContainerIdentity>,
    comm: Option<&str>,
    number: Option<&str>,
    place: Option<&str>,
    most: usize,
) -> String {
    let container = container.map(named);
    let comm = escape(comm.unwrap_or_default());
    let number = number.unwrap_or_default();
    if container.is_none() && comm.is_empty() && number.is_empty() {
        let last = place.and_then(|path| path.rsplit('/').find(|part| !part.is_empty()));
        let before = if place == last { "" } else { "…/" };
        return last.map_or("-".into(), |last| cut(&format!("{before}{}", escape(last)), most).into_owned());
    }
    // A pod's name may take what the process leaves, and at least half of the room.
    let beside = (width(&comm) + width(number) + 1).min(most / 2);
    let room = most.saturating_sub(beside).max(OWNER_LEAST);
    let before = container.map(|place| format!("{} ", cut(&place, room))).unwrap_or_default();
    let left = most.saturating_sub(width(&before));
    // One character and the sign that it was cut, at least; half a number is none.
    let number = if width(number) + 2 <= left { number } else { "" };
    match left.saturating_sub(width(number)) {
        0..2 => cut(before.trim_end(), most).into_owned(),
        left => format!("{before}{}{number}", cut(&comm, left)).trim_end().to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::entity::KubeNames;

    pub(in crate::sink::console) const CONTAINER: &str =
        "/docker/3f37e9702f3961bba773444f8be29ad8c0ffee00c0ffee00c0ffee00c0ffee00";

    pub(in crate::sink::console) fn who(comm: &str, pid: u32, cgroup: &str) -> Who {
        Who {
            pid: (pid != 0).then_some(pid),
            comm: (!comm.is_empty()).then(|| comm.into()),
            executable: None,
            entity: Entity::of_path(cgroup.as_bytes()),
            cgroup: (!cgroup.is_empty()).then(|| cgroup.into()),
            netns: Some(1),
        }
    }

    #[test]
    fn pods_stand_for_their_containers() {
        let mut who = who("nginx", 4711, CONTAINER);
        let key = OwnerKey::of(&who);
        let Entity::Container(container) = &who.entity else { panic!("{who:?}") };
        let names = KubeNames {
            namespace: "shop".into(),
            pod: "web-5d78c9869d-abcde".into(),
            ..KubeNames::default()
        };
        let named = ContainerIdentity { names: names.into(), ..(**container).clone() };
        who.entity = Entity::Container(Arc::new(named));
        for (most, want) in [
            (37, "shop/web-5d78c9869d-abcde nginx[4711]"),
            (30, "shop/web-5d78c986… nginx[4711]"),
            (24, "shop/web-5d… nginx[4711]"),
            (16, "shop/web-5d… ng…"),
            (12, "shop/web-5d…"),
        ] {
            let got = owner(&who, most);
            assert!(width(&got) <= most, "{got} in {most}");
            assert_eq!(got, want, "in {most}");
        }
        assert_eq!(key, OwnerKey::of(&who), "a name that comes late makes no other owner");
    }

    #[test]
    fn owners_in_little_room() {
        let container = who("nginx-ingress-c", 4_194_304, CONTAINER);
        let host = who("nginx-ingress-c", 4_194_304, "/system.slice/nginx.service");
        let nobody = who("", 0, "/system.slice/nginx.service");
        for (who, most, want) in [
            (&container, 37, "3f37e9702f39 nginx-ingress-c[4194304]"),
            (&container, 32, "3f37e9702f39 nginx-ing…[4194304]"),
            (&container, 24, "3f37e9702f39 n…[4194304]"),
            (&container, 16, "3f37e9702f39 ng…"),
            (&container, 12, "3f37e9702f39"),
            (&host, 24, "nginx-ingress-c[4194304]"),
            (&host, 15, "nginx…[4194304]"),
            (&host, 10, "nginx-ing…"),
            (&who("", 7, ""), 20, "[7]"),
            (&who("", 0, CONTAINER), 20, "3f37e9702f39"),
            (&nobody, 20, "nginx.service"),
            (&nobody, 10, "nginx.ser…"),
            (&who("", 0, "/workers/a"), 20, "…/a"),
            (&who("", 0, "/"), 20, "-"),
            (&who("", 0, ""), 20, "-"),
            (&who("a\u{1b}[2Jb", 7, ""), 20, "a\\u{1b}[2Jb[7]"),
            (&who("a\u{1b}[2Jb", 7, ""), 9, "a\\u{1…[7]"),
        ] {
            let got = owner(who, most);
            assert_eq!(got, want, "in {most}");
            assert!(width(&got) <= most, "{got} in {most}");
        }
    }
}
