//! Owners as the next agent takes them over (`--pin`).

use std::time::Instant;

use super::kube::{KubeNames, Pod};
use super::{ContainerIdentity, Entities, Entity, Names, Runtime};
use crate::event::key;
use crate::handover::{CgroupState, ContainerState, NamesState, OwnerState, PairState};

/// What may have made a pod.
const WORKLOADS: [&str; 4] =
    [key::K8S_DEPLOYMENT_NAME, key::K8S_DAEMONSET_NAME, key::K8S_STATEFULSET_NAME, key::K8S_JOB_NAME];

impl Entity {
    /// As it is left for the next agent, without series.
    #[must_use]
    pub fn leave(&self) -> OwnerState {
        match self {
            Self::Host => OwnerState::default(),
            Self::Unit(unit) => OwnerState { unit: Some(unit.to_string()), ..OwnerState::default() },
            Self::Container(container) => {
                let ContainerIdentity { container_id, runtime, pod_uid, names } = &**container;
                let container = ContainerState {
                    id: container_id.clone(),
                    runtime: runtime.map(|runtime| runtime.name().to_owned()),
                    pod_uid: pod_uid.clone(),
                    names: names.get().map(|names| names.leave()),
                };
                OwnerState { container: Some(container), ..OwnerState::default() }
            }
        }
    }

    fn of_state(state: &OwnerState) -> Self {
        match state {
            OwnerState { container: Some(container), .. } => {
                let runtime = container.runtime.as_deref();
                Self::Container(
                    ContainerIdentity {
                        container_id: container.id.clone(),
                        runtime: Runtime::ALL.into_iter().find(|known| Some(known.name()) == runtime),
                        pod_uid: container.pod_uid.clone(),
                        names: Names::default(),
                    }
                    .into(),
                )
            }
            OwnerState { unit: Some(unit), .. } => Self::Unit(unit.as_str().into()),
            OwnerState { .. } => Self::Host,
        }
    }
}

impl KubeNames {
    fn leave(&self) -> NamesState {
        let Self { namespace, pod, container, node, workload, image, labels } = self;
        let pair = |key: &str, value: &str| PairState { key: key.to_owned(), value: value.to_owned() };
        NamesState {
            namespace: namespace.to_string(),
            pod: pod.to_string(),
            container: container.as_deref().map(str::to_owned),
            node: node.as_deref().map(str::to_owned),
            workload: workload.as_ref().map(|(key, name)| pair(key, name)),
            image: image.as_ref().map(|(image, _)| image.to_string()),
            tag: image.as_ref().and_then(|(_, tag)| tag.as_deref().map(str::to_owned)),
            labels: labels.iter().map(|(key, value)| pair(key, value)).collect(),
        }
    }

    fn of_state(state: &NamesState) -> Self {
        let text = |text: &Option<String>| text.as_deref().map(Into::into);
        let workload = state.workload.as_ref().and_then(|pair| {
            let key = WORKLOADS.into_iter().find(|key| *key == pair.key)?;
            Some((key, pair.value.as_str().into()))
        });
        let labels = state.labels.iter();
        Self {
            namespace: state.namespace.as_str().into(),
            pod: state.pod.as_str().into(),
            container: text(&state.container),
            node: text(&state.node),
            workload,
            image: state.image.as_deref().map(|image| (image.into(), text(&state.tag))),
            labels: labels.map(|pair| (pair.key.as_str().into(), pair.value.as_str().into())).collect(),
        }
    }
}

impl Entities {
    /// Paths of cgroups that are known, for the next agent.
    pub(crate) fn leave_cgroups(&self) -> Vec<CgroupState> {
        let state = |(id, path): (u64, &str)| CgroupState { id, path: path.to_owned() };
        self.tree.iter().flat_map(|tree| tree.paths()).map(state).collect()
    }

    /// Knows what an earlier agent knew of cgroups. Comes before a look at those that there are: the rest is gone.
    pub(crate) fn go_on_cgroups(&mut self, cgroups: &[CgroupState]) {
        let now = Instant::now();
        for CgroupState { id, path } in cgroups {
            self.cgroup_made(*id, path, now);
            self.cgroup_removed(*id, now);
        }
    }

    /// The owners that an earlier agent has left, each with its place for names; what those were is known at once.
    pub fn go_on<'a>(&self, states: &'a [OwnerState]) -> impl Iterator<Item = (Entity, &'a OwnerState)> {
        let now = Instant::now();
        if let Some(kube) = &self.kube {
            let named = states.iter().filter_map(|state| {
                let container = state.container.as_ref()?;
                let names = KubeNames::of_state(container.names.as_ref()?);
                let containers = vec![(container.id.as_str().into(), names.clone())];
                Some(Pod { uids: Vec::new(), names, containers })
            });
            kube.learn(named.collect(), now);
        }
        let kube = self.kube.clone();
        states.iter().map(move |state| {
            let mut entity = Entity::of_state(state);
            if let (Entity::Container(container), Some(kube)) = (&mut entity, &kube) {
                kube.meet(std::sync::Arc::make_mut(container), now);
            }
            (entity, state)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::entity::Directory;
    use crate::kernel::cgroup::TreeLimits;

    #[test]
    fn owners_go_on_with_their_names() {
        let names = KubeNames {
            namespace: "shop".into(),
            pod: "web-1".into(),
            container: Some("nginx".into()),
            node: Some("n1".into()),
            workload: Some((key::K8S_DEPLOYMENT_NAME, "web".into())),
            image: Some(("nginx".into(), Some("1.27".into()))),
            labels: [("k8s.pod.label.app".into(), "web".into())].into(),
        };
        let container = |runtime, names| ContainerIdentity {
            container_id: "ab".repeat(32),
            runtime,
            pod_uid: Some("b3a9c1d2-0e4f-4a5b-8c6d-7e8f9a0b1c2d".to_owned()),
            names,
        };
        let owners = [
            Entity::Host,
            Entity::Unit("nginx.service".into()),
            Entity::Container(Arc::new(container(Some(Runtime::CriO), Names::from(names.clone())))),
            Entity::Container(Arc::new(ContainerIdentity {
                container_id: "cd".repeat(32),
                pod_uid: None,
                ..container(None, Names::default())
            })),
        ];
        let left: Vec<OwnerState> = owners.iter().map(Entity::leave).collect();
        let next =
            Entities::at(None, None, TreeLimits::default()).with_kube(Some(Arc::new(Directory::default())));
        let found: Vec<Entity> = next.go_on(&left).map(|(entity, _)| entity).collect();
        assert_eq!(found, owners);
        let told: Vec<_> = found.iter().map(|entity| entity.container()?.names.get()).collect();
        assert_eq!(told, [None, None, Some(Arc::new(names)), None]);
        let now = Instant::now();
        assert!(!found[2].container().unwrap().names.are_awaited(now), "known at once");
    }
}
