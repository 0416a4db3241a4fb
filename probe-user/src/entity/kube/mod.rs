//! What Kubernetes calls a container: names from the kubelet of this node, and nobody else.
//!
//! A task of its own asks ([`Asking`]) and fills a [`Directory`]; who meets a container leaves its [`Names`] with it, an empty
//! place that is filled whenever the kubelet has told. So nothing waits for the kubelet, whoever holds a container sees its
//! names as soon as they are known, and a container that is gone keeps them for as long as somebody holds it.

mod directory;
mod kubelet;
mod pods;
mod watch;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

pub use self::directory::Directory;
pub use self::kubelet::{KubeletConfig, KubeletError, KubeletFlags, TOKEN_FILE, Trust, pods_now};
pub use self::pods::{LeftOut, Pod, PodList, parse};
pub use self::watch::Asking;
use crate::event::key;

/// What Kubernetes calls a container, its pod and whose it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeNames {
    /// Namespace of the pod.
    pub namespace: Box<str>,
    /// Name of the pod.
    pub pod: Box<str>,
    /// Name of the container in its pod; absent for the pod's sandbox, and before the kubelet knows the container.
    pub container: Option<Box<str>>,
    /// The node that the pod is of.
    pub node: Option<Box<str>>,
    /// What made the pod: `k8s.deployment.name` and alike, and its name.
    pub workload: Option<(&'static str, Box<str>)>,
    /// Image of the container as the kubelet names it, and its tag.
    pub image: Option<(Box<str>, Option<Box<str>>)>,
    /// Labels of the pod that were asked for: `k8s.pod.label.<key>` and value.
    pub labels: Arc<[(Box<str>, Box<str>)]>,
}

impl KubeNames {
    /// What tells one container from others: attribute and name.
    pub fn identity(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let container = self.container.as_deref().map(|name| (key::K8S_CONTAINER_NAME, name));
        [(key::K8S_NAMESPACE_NAME, &*self.namespace), (key::K8S_POD_NAME, &*self.pod)]
            .into_iter()
            .chain(container)
    }

    /// What groups containers: attribute and name of what made the pod, and labels.
    pub fn groups(&self) -> impl Iterator<Item = (&str, &str)> {
        let workload = self.workload.as_ref().map(|(key, name)| (*key, &**name));
        workload.into_iter().chain(self.labels.iter().map(|(key, value)| (&**key, &**value)))
    }
}

/// The place for a container's names; empty, or never filled where no kubelet is asked. Cheap to clone.
///
/// It is no part of a container's identity: whatever its names, two are equal.
#[derive(Clone, Debug, Default)]
pub struct Names(Option<Arc<Place>>);

impl Names {
    /// The names, as far as they are known now.
    #[must_use]
    pub fn get(&self) -> Option<Arc<KubeNames>> {
        self.0.as_ref()?.get()
    }

    /// Whether it is too early to do without: the kubelet may know the container in a moment.
    #[must_use]
    pub fn are_awaited(&self, now: Instant) -> bool {
        self.0.as_ref().is_some_and(|place| place.is_awaited(now))
    }
}

impl From<KubeNames> for Names {
    /// Names that are known from the beginning.
    fn from(names: KubeNames) -> Self {
        Self(Some(Arc::new(Place { told: RwLock::new(Some(Arc::new(names))), awaited_until: None })))
    }
}

impl PartialEq for Names {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Names {}

impl std::hash::Hash for Names {
    fn hash<H: std::hash::Hasher>(&self, _state: &mut H) {}
}

#[derive(Debug)]
struct Place {
    told: RwLock<Option<Arc<KubeNames>>>,
    /// None: its path names no pod.
    awaited_until: Option<Instant>,
}

impl Place {
    /// Locked for as long as a pointer is copied.
    fn get(&self) -> Option<Arc<KubeNames>> {
        self.told.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, names: Arc<KubeNames>) {
        *self.told.write().unwrap_or_else(PoisonError::into_inner) = Some(names);
    }

    fn is_complete(&self) -> bool {
        self.get().is_some_and(|names| names.container.is_some())
    }

    fn is_awaited(&self, now: Instant) -> bool {
        self.awaited_until.is_some_and(|until| now < until) && !self.is_complete()
    }
}
