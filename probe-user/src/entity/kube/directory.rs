//! What the kubelet has told, and the containers that it was told for. Bounded: of containers those met last, of what was told
//! what is there now and what was there a few minutes ago.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use lru::LruCache;
use tokio::sync::Notify;

use super::pods::Pod;
use super::{KubeNames, Names, Place};
use crate::entity::ContainerIdentity;

/// Containers whose places are filled; those not met for longest give way, and keep what they have.
const MOST_CONTAINERS: NonZeroUsize = NonZeroUsize::new(8_192).expect("not zero");
/// Names that are kept, by container id and by pod uid each.
const MOST_NAMES: usize = 16_384;
/// How long what the kubelet no longer tells is kept: what is met of a pod that is gone still is its.
const LINGER: Duration = Duration::from_secs(300);
/// How long a new container may do without names before others do without waiting for them: the kubelet is asked at most every
/// [`super::watch::SOONEST`], and knows a container about a second after it began.
const PATIENCE: Duration = Duration::from_secs(10);
/// Answers that may come without a container before it is left to the regular ones: a pod's sandbox is in none.
const TRIES: u8 = 3;

/// Names by container, shared between who meets containers and who asks the kubelet.
#[derive(Debug)]
pub struct Directory {
    inner: Mutex<Inner>,
    /// A container was met that is not known.
    met: Notify,
}

#[derive(Debug)]
struct Inner {
    places: LruCache<Box<str>, Met>,
    by_container: HashMap<Box<str>, Told>,
    by_pod: HashMap<Box<str>, Told>,
}

#[derive(Debug)]
struct Met {
    place: Arc<Place>,
    pod_uid: Option<String>,
    /// Answers in which it was missing.
    tries: u8,
}

impl Met {
    fn is_wanted(&self) -> bool {
        self.pod_uid.is_some() && self.tries < TRIES && !self.place.is_complete()
    }
}

#[derive(Debug)]
struct Told {
    names: Arc<KubeNames>,
    last: Instant,
}

impl Default for Directory {
    fn default() -> Self {
        let (by_container, by_pod) = (HashMap::new(), HashMap::new());
        let inner = Inner { places: LruCache::new(MOST_CONTAINERS), by_container, by_pod };
        Self { inner: Mutex::new(inner), met: Notify::new() }
    }
}

impl Directory {
    /// Gives a container the place where its names are, or will be.
    pub fn meet(&self, container: &mut ContainerIdentity, now: Instant) {
        let ContainerIdentity { container_id, runtime: _, pod_uid, names } = container;
        let mut inner = self.lock();
        if let Some(met) = inner.places.get(container_id.as_str()) {
            *names = Names(Some(Arc::clone(&met.place)));
            return;
        }
        let told = inner.names(container_id, pod_uid.as_deref());
        let awaited_until = pod_uid.is_some().then(|| now + PATIENCE);
        let place = Arc::new(Place { told: RwLock::new(told), awaited_until });
        *names = Names(Some(Arc::clone(&place)));
        let met = Met { place, pod_uid: pod_uid.clone(), tries: 0 };
        if met.is_wanted() {
            self.met.notify_one();
        }
        inner.places.put(container_id.as_str().into(), met);
    }

    /// Takes over what the kubelet has told.
    pub fn learn(&self, pods: Vec<Pod>, now: Instant) {
        let mut inner = self.lock();
        inner.forget(|told| now.saturating_duration_since(told.last) < LINGER);
        for Pod { uids, names, containers } in pods {
            for (id, names) in containers {
                inner.by_container.insert(id, Told { names: Arc::new(names), last: now });
            }
            let names = Arc::new(names);
            for uid in uids {
                inner.by_pod.insert(uid, Told { names: Arc::clone(&names), last: now });
            }
        }
        if inner.by_container.len().max(inner.by_pod.len()) > MOST_NAMES {
            // An answer alone has fewer.
            inner.forget(|told| told.last == now);
        }
        let Inner { places, by_container, by_pod } = &mut *inner;
        for (id, met) in places.iter_mut() {
            if let Some(names) = names(by_container, by_pod, id, met.pod_uid.as_deref()) {
                // What was told of the container itself is not taken back for what is told of its pod.
                if (names.container.is_some() || !met.place.is_complete())
                    && met.place.get().as_ref() != Some(&names)
                {
                    met.place.set(names);
                }
            }
            if !met.place.is_complete() {
                met.tries = met.tries.saturating_add(1);
            }
        }
    }

    /// Whether a container is met whose names the next answer may have.
    pub(super) fn is_wanted(&self) -> bool {
        self.lock().places.iter().any(|(_, met)| met.is_wanted())
    }

    /// Ready when one is met.
    pub(super) async fn wanted(&self) {
        self.met.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn names(&self, container_id: &str, pod_uid: Option<&str>) -> Option<Arc<KubeNames>> {
        names(&self.by_container, &self.by_pod, container_id, pod_uid)
    }

    fn forget(&mut self, keep: impl Fn(&Told) -> bool) {
        self.by_container.retain(|_, told| keep(told));
        self.by_pod.retain(|_, told| keep(told));
    }
}

/// The container's own names, else its pod's.
fn names(
    by_container: &HashMap<Box<str>, Told>,
    by_pod: &HashMap<Box<str>, Told>,
    container_id: &str,
    pod_uid: Option<&str>,
) -> Option<Arc<KubeNames>> {
    let told = by_container.get(container_id).or_else(|| by_pod.get(pod_uid?));
    told.map(|told| Arc::clone(&told.names))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "b3a9c1d2-0e4f-4a5b-8c6d-7e8f9a0b1c2d";

    fn container(id: &str, pod_uid: Option<&str>) -> ContainerIdentity {
        let (container_id, pod_uid) = (id.repeat(64 / id.len()), pod_uid.map(str::to_owned));
        ContainerIdentity { container_id, runtime: None, pod_uid, names: Names::default() }
    }

    fn pod(uid: &str, pod: &str, containers: &[(&str, &str)]) -> Pod {
        let names = KubeNames { namespace: "shop".into(), pod: pod.into(), ..KubeNames::default() };
        let named = |name: &str| KubeNames { container: Some(name.into()), ..names.clone() };
        let containers = containers.iter().map(|(id, name)| (id.repeat(64 / id.len()).into(), named(name)));
        Pod { uids: vec![uid.into()], containers: containers.collect(), names }
    }

    fn known(container: &ContainerIdentity) -> Option<String> {
        let names = container.names.get()?;
        Some(names.identity().map(|(_, name)| name).collect::<Vec<_>>().join("/"))
    }

    #[test]
    fn names_come_late_and_stay() {
        let (directory, now) = (Directory::default(), Instant::now());
        let (mut web, mut sandbox, mut docker) =
            (container("a1", Some(UID)), container("b2", Some(UID)), container("c3", None));
        for container in [&mut web, &mut sandbox, &mut docker] {
            directory.meet(container, now);
            assert_eq!(known(container), None);
        }
        assert!(web.names.are_awaited(now) && !web.names.are_awaited(now + PATIENCE));
        assert!(!docker.names.are_awaited(now), "no pod, no kubelet");
        assert!(directory.is_wanted());
        // The kubelet knows the pod before its container.
        directory.learn(vec![pod(UID, "web-1", &[])], now);
        assert_eq!(known(&web).as_deref(), Some("shop/web-1"));
        assert!(directory.is_wanted() && web.names.are_awaited(now));
        directory.learn(vec![pod(UID, "web-1", &[("a1", "nginx")])], now);
        assert_eq!(known(&web).as_deref(), Some("shop/web-1/nginx"));
        assert_eq!(known(&sandbox).as_deref(), Some("shop/web-1"));
        assert!(!web.names.are_awaited(now));
        // The sandbox is in no answer: after three nobody asks for its sake.
        directory.learn(vec![pod(UID, "web-1", &[("a1", "nginx")])], now);
        assert!(!directory.is_wanted());
        // A pod that is gone.
        directory.learn(Vec::new(), now + LINGER * 2);
        assert_eq!(known(&web).as_deref(), Some("shop/web-1/nginx"));
        assert_eq!(known(&docker), None);
        let mut again = container("a1", Some(UID));
        directory.meet(&mut again, now + LINGER * 2);
        assert_eq!(known(&again).as_deref(), Some("shop/web-1/nginx"), "the same place");
        assert_eq!(again, container("a1", Some(UID)), "names are no identity");
    }

    #[test]
    fn what_is_gone_is_known_for_a_while() {
        let (directory, now) = (Directory::default(), Instant::now());
        directory.learn(vec![pod(UID, "web-1", &[("a1", "nginx")])], now);
        directory.learn(Vec::new(), now + LINGER / 2);
        let mut late = container("a1", Some(UID));
        directory.meet(&mut late, now + LINGER / 2);
        assert_eq!(known(&late).as_deref(), Some("shop/web-1/nginx"));
        directory.learn(Vec::new(), now + LINGER);
        let mut later = container("d4", Some(UID));
        directory.meet(&mut later, now + LINGER);
        assert_eq!(known(&later), None);
    }

    #[test]
    fn nothing_grows_without_end() {
        let (directory, now) = (Directory::default(), Instant::now());
        for round in 0..20 {
            let many = (0..1_000).map(|i| pod(&format!("{round}-{i}"), "p", &[])).collect();
            directory.learn(many, now + Duration::from_secs(round));
        }
        assert!(directory.lock().by_pod.len() <= MOST_NAMES);
        for i in 0..10_000 {
            directory.meet(&mut container(&format!("{i:064x}"), Some(UID)), now);
        }
        assert_eq!(directory.lock().places.len(), MOST_CONTAINERS.get());
    }

    #[test]
    fn a_changed_label_is_taken_over() {
        let (directory, now) = (Directory::default(), Instant::now());
        let mut web = container("a1", Some(UID));
        directory.meet(&mut web, now);
        let mut changed = pod(UID, "web-1", &[("a1", "nginx")]);
        directory.learn(vec![changed.clone()], now);
        let label: (Box<str>, Box<str>) = ("k8s.pod.label.app".into(), "web".into());
        changed.containers[0].1.labels = [label].into();
        directory.learn(vec![changed], now);
        let names = web.names.get().unwrap();
        assert_eq!(names.groups().collect::<Vec<_>>(), [("k8s.pod.label.app", "web")]);
    }
}
