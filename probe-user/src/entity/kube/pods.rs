//! A kubelet's list of pods (`v1.PodList`), read as it arrives: of each pod what names it, nothing else is kept.
//!
//! What is no such list is refused as a whole. What is one, but has things in it that cannot be (a name with an escape
//! sequence in it, a pod of another node, a uid twice), is taken without them, and they are counted.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::KubeNames;
use crate::event::key;

/// Pods that are taken; a kubelet has 110 unless told otherwise.
const MOST_PODS: usize = 2_048;
/// Containers, owners and labels of one pod that are looked at.
const MOST_OF_ONE: usize = 128;
/// Characters of a text that is kept at all; Kubernetes' longest are keys of labels with 317, names of images aside.
const MOST_TEXT: usize = 1_024;
/// Kubernetes' own limits of names (RFC 1123).
const MOST_NAME: usize = 253;
const MOST_LABEL: usize = 63;

/// A pod with its names, by all uids that its cgroup may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its uid; of pods of files also the hash of the file.
    pub uids: Vec<Box<str>>,
    /// What holds for all its containers.
    pub names: KubeNames,
    /// Ids of its containers, with what they are called.
    pub containers: Vec<(Box<str>, KubeNames)>,
}

/// What an answer said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodList {
    /// Those taken.
    pub pods: Vec<Pod>,
    /// Those, or what of them, was not.
    pub left_out: LeftOut,
}

/// Why something of an answer was left out, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Names, uids and ids that Kubernetes does not allow.
    pub names: u64,
    /// Pods of another node.
    pub nodes: u64,
    /// Uids and ids of containers that were there already.
    pub twice: u64,
    /// Pods beyond what is taken.
    pub limit: u64,
}

impl LeftOut {
    /// Each with its `error.type`.
    #[must_use]
    pub const fn by_reason(self) -> [(&'static str, u64); 4] {
        let Self { names, nodes, twice, limit } = self;
        [("name", names), ("node", nodes), ("duplicate", twice), ("limit", limit)]
    }
}

/// Reads a list to its end. `node`: pods that say that they are of another are left out; `labels`: keys of those wanted.
///
/// # Errors
///
/// It is no JSON, no list of pods, or breaks off.
pub fn parse(json: impl Read, node: Option<&str>, labels: &[String]) -> Result<PodList, serde_json::Error> {
    let mut collector =
        Collector { node, labels, list: PodList::default(), uids: BTreeSet::new(), ids: BTreeSet::new() };
    let mut json = serde_json::Deserializer::from_reader(json);
    List(&mut collector).deserialize(&mut json)?;
    json.end()?;
    Ok(collector.list)
}

/// What is made of pods, one by one.
struct Collector<'a> {
    node: Option<&'a str>,
    labels: &'a [String],
    list: PodList,
    uids: BTreeSet<Box<str>>,
    ids: BTreeSet<Box<str>>,
}

impl Collector<'_> {
    fn take(&mut self, pod: RawPod) {
        let RawPod { metadata, spec, status } = pod;
        let left_out = &mut self.list.left_out;
        if let (Some(ours), Some(theirs)) = (self.node, &spec.node_name.0)
            && ours != &**theirs
        {
            left_out.nodes += 1;
            return;
        }
        let (Some(namespace), Some(pod)) =
            (name(metadata.namespace, MOST_LABEL), name(metadata.name, MOST_NAME))
        else {
            left_out.names += 1;
            return;
        };
        // The cgroup of a pod of a file is named after the file's hash, whatever uid its mirror has.
        let RawAnnotations { hash, mirror } = metadata.annotations;
        let mut uids = Vec::new();
        for uid in [metadata.uid, hash, mirror].into_iter().filter_map(|Text(uid)| uid) {
            if !is_uid(&uid) {
                left_out.names += 1;
            } else if uids.contains(&uid) {
                // The same pod says it twice.
            } else if self.uids.insert(uid.clone()) {
                uids.push(uid);
            } else {
                left_out.twice += 1;
            }
        }
        if uids.is_empty() {
            return;
        }
        let names = KubeNames {
            namespace,
            pod,
            container: None,
            node: name(spec.node_name, MOST_NAME),
            workload: workload(metadata.owners.0, &metadata.labels),
            image: None,
            labels: wanted(self.labels, &metadata.labels),
        };
        let mut containers = Vec::new();
        let RawStatus { init, main, ephemeral } = status;
        for RawContainer { name: called, id, image, last_state } in
            init.0.into_iter().chain(main.0).chain(ephemeral.0)
        {
            // One that has not begun has no id; one that began again has the id it had before, too.
            let ids: Vec<Box<str>> = [id, last_state.terminated.id]
                .into_iter()
                .filter_map(|Text(id)| id)
                .filter(|id| !id.is_empty())
                .collect();
            if ids.is_empty() {
                continue;
            }
            let Some(called) = name(called, MOST_LABEL) else {
                left_out.names += 1;
                continue;
            };
            let names = KubeNames { container: Some(called), image: image_of(image), ..names.clone() };
            for id in ids {
                match container_id(&id) {
                    None => left_out.names += 1,
                    Some(id) if self.ids.insert(id.clone()) => containers.push((id, names.clone())),
                    Some(_) => left_out.twice += 1,
                }
            }
        }
        self.list.pods.push(Pod { uids, names, containers });
    }
}

/// Letters, digits, hyphens, dots and underscores; none of which a terminal or a label minds.
fn is_plain(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

fn name(Text(text): Text, most: usize) -> Option<Box<str>> {
    text.filter(|text| is_plain(text, most))
}

fn is_uid(text: &str) -> bool {
    matches!(text.len(), 32 | 36) && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// `containerd://ID`.
fn container_id(text: &str) -> Option<Box<str>> {
    let (_, id) = text.split_once("://")?;
    let fits = (12..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    fits.then(|| id.into())
}

/// The owner that manages the pod, as far as it is one that people know.
fn workload(owners: Vec<RawOwner>, labels: &RawLabels) -> Option<(&'static str, Box<str>)> {
    let RawOwner { kind, name: called, controller: _ } = owners.into_iter().find(|owner| owner.controller)?;
    let called = name(called, MOST_NAME)?;
    match kind.0.as_deref()? {
        // A deployment's replica set is called after it and after the hash of its template.
        "ReplicaSet" => {
            let hash = labels.get("pod-template-hash")?;
            let deployment = called.strip_suffix(hash)?.strip_suffix('-').filter(|name| !name.is_empty())?;
            Some((key::K8S_DEPLOYMENT_NAME, deployment.into()))
        }
        "DaemonSet" => Some((key::K8S_DAEMONSET_NAME, called)),
        "StatefulSet" => Some((key::K8S_STATEFULSET_NAME, called)),
        "Job" => Some((key::K8S_JOB_NAME, called)),
        _ => None,
    }
}

/// The labels that are wanted and there, in the order in which they were asked for.
fn wanted(keys: &[String], labels: &RawLabels) -> Arc<[(Box<str>, Box<str>)]> {
    let value = |key: &String| labels.get(key).filter(|value| is_plain(value, MOST_LABEL));
    keys.iter()
        .filter_map(|key| Some((format!("{}{key}", key::K8S_POD_LABEL).into(), value(key)?.into())))
        .collect()
}

/// Name and tag of an image: `registry:5000/shop/web:1.2@sha256:…`. One that is known by its digest alone has no name.
fn image_of(Text(image): Text) -> Option<(Box<str>, Option<Box<str>>)> {
    let image =
        image.filter(|image| !image.is_empty() && image.bytes().all(|byte| byte.is_ascii_graphic()))?;
    if image.starts_with("sha256:") {
        return None;
    }
    let named = image.split_once('@').map_or(&*image, |(named, _digest)| named);
    // A colon before a slash is a registry's port.
    match named.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
        Some((name, tag)) => Some((name.into(), Some(tag.into()))),
        None => Some((named.into(), None)),
    }
}

/// The whole answer.
struct List<'c, 'a>(&'c mut Collector<'a>);

impl<'de> DeserializeSeed<'de> for List<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for List<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a PodList")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self(collector) = self;
        let mut kind = Text::default();
        while let Some(Text(key)) = map.next_key()? {
            match key.as_deref() {
                Some("kind") => kind = map.next_value()?,
                Some("items") => map.next_value_seed(Items(&mut *collector))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if kind.0.as_deref() == Some("PodList") { Ok(()) } else { Err(A::Error::custom("it is no PodList")) }
    }
}

/// Its pods, each made something of before the next is read.
struct Items<'c, 'a>(&'c mut Collector<'a>);

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        // Go writes an empty list as null.
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of pods")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self(collector) = self;
        for _ in 0..MOST_PODS {
            let Some(pod) = seq.next_element()? else { return Ok(()) };
            collector.take(pod);
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            collector.list.left_out.limit += 1;
        }
        Ok(())
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPod {
    metadata: RawMetadata,
    spec: RawSpec,
    status: RawStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawMetadata {
    name: Text,
    namespace: Text,
    uid: Text,
    #[serde(deserialize_with = "or_null")]
    labels: RawLabels,
    #[serde(deserialize_with = "or_null")]
    annotations: RawAnnotations,
    #[serde(rename = "ownerReferences")]
    owners: Few<RawOwner>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAnnotations {
    #[serde(rename = "kubernetes.io/config.hash")]
    hash: Text,
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawOwner {
    kind: Text,
    name: Text,
    controller: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawSpec {
    #[serde(rename = "nodeName")]
    node_name: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawStatus {
    #[serde(rename = "initContainerStatuses")]
    init: Few<RawContainer>,
    #[serde(rename = "containerStatuses")]
    main: Few<RawContainer>,
    #[serde(rename = "ephemeralContainerStatuses")]
    ephemeral: Few<RawContainer>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawContainer {
    name: Text,
    #[serde(rename = "containerID")]
    id: Text,
    image: Text,
    #[serde(rename = "lastState")]
    last_state: RawState,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawState {
    #[serde(deserialize_with = "or_null")]
    terminated: RawTerminated,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawTerminated {
    #[serde(rename = "containerID")]
    id: Text,
}

fn or_null<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A text of bearable length, if it is there and is one.
#[derive(Debug, Default)]
struct Text(Option<Box<str>>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfText;
        impl Visitor<'_> for OfText {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                // What is longer is kept as something that cannot be a name, and not as nothing.
                Ok(Text(Some(if text.len() <= MOST_TEXT { text.into() } else { "…".into() })))
            }
            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text(None))
            }
        }
        deserializer.deserialize_any(OfText)
    }
}

/// The first elements of a list; the others are read over.
#[derive(Debug)]
struct Few<T>(Vec<T>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfList<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfList<T> {
            type Value = Few<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_unit<E>(self) -> Result<Few<T>, E> {
                Ok(Few::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Few<T>, A::Error> {
                let mut few = Vec::new();
                while few.len() < MOST_OF_ONE {
                    let Some(element) = seq.next_element()? else { return Ok(Few(few)) };
                    few.push(element);
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Few(few))
            }
        }
        deserializer.deserialize_any(OfList(PhantomData))
    }
}

/// Keys and values of labels, the first of them.
#[derive(Debug, Default)]
struct RawLabels(Vec<(Box<str>, Box<str>)>);

impl RawLabels {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| &**known == key).map(|(_, value)| &**value)
    }
}

impl<'de> Deserialize<'de> for RawLabels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfLabels;
        impl<'de> Visitor<'de> for OfLabels {
            type Value = RawLabels;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawLabels, A::Error> {
                let mut labels = Vec::new();
                while labels.len() < MOST_OF_ONE {
                    let Some((Text(key), Text(value))) = map.next_entry()? else {
                        return Ok(RawLabels(labels));
                    };
                    labels.extend(key.zip(value));
                }
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(RawLabels(labels))
            }
        }
        deserializer.deserialize_map(OfLabels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node as kubelets describe it: a deployment, a daemon set, a stateful set, a job that is done, a file.
    const NODE: &str = include_str!("fixtures/pods.json");

    fn id(digits: &str) -> String {
        digits.repeat(64 / digits.len())
    }

    fn list(json: &str) -> PodList {
        parse(json.as_bytes(), Some("node-7"), &["app".to_owned(), "app.kubernetes.io/name".to_owned()])
            .unwrap()
    }

    /// A pod with what stands in it.
    fn pod(metadata: &str, spec: &str, status: &str) -> String {
        format!(r#"{{"metadata":{{{metadata}}},"spec":{{{spec}}},"status":{{{status}}}}}"#)
    }

    fn items(pods: &[String]) -> String {
        format!(r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{}},"items":[{}]}}"#, pods.join(","))
    }

    const WEB: &str = r#""name":"web-1","namespace":"shop","uid":"b3a9c1d2-0e4f-4a5b-8c6d-7e8f9a0b1c2d""#;
    const LATER: &str = r#""name":"web-2","namespace":"shop","uid":"b3a9c1d2-0e4f-4a5b-8c6d-7e8f9a0b1c2e""#;

    #[test]
    fn a_node_as_kubelets_describe_it() {
        let PodList { pods, left_out } = list(NODE);
        assert_eq!(left_out, LeftOut::default());
        let mut found = Vec::new();
        for Pod { uids, names, containers } in &pods {
            assert_eq!(names.node.as_deref(), Some("node-7"));
            let workload =
                names.workload.as_ref().map_or(String::new(), |(key, name)| format!("{key}={name}"));
            found.push((uids.len(), format!("{}/{}", names.namespace, names.pod), workload));
            for (id, of) in containers {
                let image = of
                    .image
                    .as_ref()
                    .map_or(String::new(), |(name, tag)| format!("{name} {}", tag.as_deref().unwrap_or("-")));
                assert_eq!(id.len(), 64);
                found.push((0, format!("{} {}", &id[..4], of.container.as_deref().unwrap_or("-")), image));
                assert_eq!(
                    (&of.namespace, &of.pod, &of.labels),
                    (&names.namespace, &names.pod, &names.labels)
                );
            }
        }
        let want = [
            (1, "shop/web-5d78c9869d-abcde", "k8s.deployment.name=web"),
            (0, "1a1a migrate", "registry.example:5000/shop/migrate 7"),
            (0, "2b2b nginx", "docker.io/library/nginx 1.27"),
            (0, "3c3c nginx", "docker.io/library/nginx 1.27"),
            (0, "4d4d sidecar", ""),
            (0, "5e5e debugger-x7k2p", "busybox -"),
            (1, "kube-system/kube-proxy-9xq2v", "k8s.daemonset.name=kube-proxy"),
            (0, "6f6f kube-proxy", "registry.k8s.io/kube-proxy v1.33.0"),
            (1, "shop/db-0", "k8s.statefulset.name=db"),
            (0, "7a7a postgres", "postgres 17"),
            (1, "shop/report-29384720-zz9cv", "k8s.job.name=report-29384720"),
            (0, "8b8b report", "registry.example:5000/shop/report latest"),
            (1, "kube-system/kube-apiserver-node-7", ""),
            (0, "9c9c kube-apiserver", "registry.k8s.io/kube-apiserver v1.33.0"),
            (2, "kube-system/etcd-node-7", ""),
            (1, "shop/waiting-1", ""),
        ];
        let want: Vec<_> = want.map(|(n, name, more)| (n, name.to_owned(), more.to_owned())).into();
        assert_eq!(found, want);
        let labels = |pod: &Pod| pod.names.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>();
        assert_eq!(labels(&pods[0]), ["k8s.pod.label.app=web", "k8s.pod.label.app.kubernetes.io/name=web"]);
        assert_eq!(labels(&pods[2]), ["k8s.pod.label.app=db"]);
        // The cgroup of a pod of a file is named after the file's hash.
        assert_eq!(*pods[4].uids[0], *"0123456789abcdef0123456789abcdef");
        assert_eq!(*pods[5].uids[1], *"fedcba9876543210fedcba9876543210");
    }

    #[test]
    fn what_is_no_list_is_refused_as_a_whole() {
        let nested = format!(r#"{{"kind":"PodList","x":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(nested.as_bytes(), None, &[]).is_ok(), "what is not needed is read over, however deep");
        let in_pod = items(&[format!(r#"{{"metadata":{}}}"#, r#"{"labels":"#.repeat(100_000))]);
        for json in [
            "",
            "null",
            "[]",
            "<html>log in</html>",
            "{}",
            r#"{"items":[]}"#,
            r#"{"kind":"Status","status":"Failure","message":"Unauthorized"}"#,
            r#"{"kind":"NodeList","items":[]}"#,
            r#"{"kind":"PodList","items":{}}"#,
            r#"{"kind":"PodList","items":[1]}"#,
            r#"{"kind":"PodList","items":[{"metadata":{"name":1}}]}"#,
            r#"{"kind":"PodList","items":[]} and more"#,
            &in_pod,
        ] {
            assert!(parse(json.as_bytes(), None, &[]).is_err(), "{}", &json[..json.len().min(80)]);
        }
        for end in (0..NODE.trim_end().len()).step_by(37) {
            assert!(parse(&NODE.as_bytes()[..end], None, &[]).is_err(), "cut at {end}");
        }
        for empty in [
            r#"{"kind":"PodList","items":null}"#,
            r#"{"items":[],"kind":"PodList"}"#,
            r#"{"kind":"PodList"}"#,
        ] {
            assert_eq!(list(empty), PodList::default());
        }
    }

    #[test]
    fn names_that_cannot_be_are_left_out() {
        let long = "x".repeat(10 << 20);
        let uid = r#""uid":"b3a9c1d2-0e4f-4a5b-8c6d-7e8f9a0b1c2d""#;
        for name in ["", "a/b", r"a\u001b[2J", r"a\nb", "ä", &"x".repeat(254), &long, r"\u202e"] {
            let json = items(&[
                pod(&format!(r#""name":"{name}","namespace":"shop",{uid}"#), "", ""),
                pod(&format!(r#""name":"web","namespace":"{name}",{uid}"#), "", ""),
                pod(LATER, "", ""),
            ]);
            let PodList { pods, left_out } = list(&json);
            assert_eq!(left_out, LeftOut { names: 2, ..LeftOut::default() });
            assert_eq!(pods.len(), 1);
        }
        let odd = [
            pod(r#""name":"web","namespace":"shop","uid":"../../etc""#, "", ""),
            pod(r#""name":"web","namespace":"shop","uid":null"#, "", ""),
            pod(r#""name":null,"namespace":"shop""#, "", ""),
            "{}".to_owned(),
        ];
        let PodList { pods, left_out } = list(&items(&odd));
        assert_eq!((pods.len(), left_out.names), (0, 3));
        let status = format!(
            r#""containerStatuses":[{{"name":"a\u0007","containerID":"containerd://{}"}},{{"name":"b","containerID":"no id"}},
               {{"name":"c","containerID":"docker://xyz"}},{{"name":"d","containerID":""}},{{"name":"e"}}]"#,
            id("ab")
        );
        let metadata = format!(r#"{WEB},"labels":{{"app":"a\u001b"}}"#);
        let PodList { pods, left_out } = list(&items(&[pod(&metadata, "", &status)]));
        assert_eq!((pods[0].containers.len(), left_out.names), (0, 3));
        assert!(pods[0].names.labels.is_empty());
    }

    #[test]
    fn what_is_not_ours_or_there_twice_is_left_out() {
        let status = |digits: &str| {
            format!(r#""containerStatuses":[{{"name":"a","containerID":"cri-o://{}"}}]"#, id(digits))
        };
        let json = items(&[
            pod(WEB, r#""nodeName":"node-7""#, &status("ab")),
            pod(WEB, r#""nodeName":"node-7""#, &status("cd")),
            pod(LATER, r#""nodeName":"node-7""#, &status("ab")),
            pod(LATER, r#""nodeName":"node-8""#, &status("ef")),
        ]);
        let PodList { pods, left_out } = list(&json);
        assert_eq!(left_out, LeftOut { nodes: 1, twice: 2, ..LeftOut::default() });
        let names: Vec<(&str, usize)> =
            pods.iter().map(|pod| (&*pod.names.pod, pod.containers.len())).collect();
        assert_eq!(names, [("web-1", 1), ("web-2", 0)], "the first counts");
        let anywhere = parse(json.as_bytes(), None, &[]).unwrap();
        assert_eq!(anywhere.left_out.nodes, 0, "who does not know its node cannot tell");
        let many: Vec<String> = (0..MOST_PODS + 5)
            .map(|i| pod(&format!(r#""name":"p","namespace":"n","uid":"{i:032x}""#), "", ""))
            .collect();
        let PodList { pods, left_out } = list(&items(&many));
        assert_eq!((pods.len(), left_out.limit), (MOST_PODS, 5));
    }

    #[test]
    fn images_and_owners() {
        let image = |text: &str| {
            let (name, tag) = image_of(Text(Some(text.into())))?;
            Some(format!("{name} {}", tag.as_deref().unwrap_or("-")))
        };
        for (text, want) in [
            ("nginx", Some("nginx -")),
            ("nginx:1.2", Some("nginx 1.2")),
            ("host:5000/a/b", Some("host:5000/a/b -")),
            ("host:5000/a/b:c@sha256:12", Some("host:5000/a/b c")),
            ("sha256:0123", None),
            ("", None),
            ("a b", None),
        ] {
            assert_eq!(image(text).as_deref(), want, "{text}");
        }
        let owned = |kind: &str, name: &str, controller: bool, hash: &str| {
            let owner = RawOwner { kind: Text(Some(kind.into())), name: Text(Some(name.into())), controller };
            workload(vec![owner], &RawLabels(vec![("pod-template-hash".into(), hash.into())]))
        };
        for (kind, name, controller, hash, want) in [
            ("ReplicaSet", "web-5d78", true, "5d78", Some((key::K8S_DEPLOYMENT_NAME, "web"))),
            ("ReplicaSet", "web-5d78", true, "else", None),
            ("ReplicaSet", "-5d78", true, "5d78", None),
            ("DaemonSet", "agent", true, "", Some((key::K8S_DAEMONSET_NAME, "agent"))),
            ("DaemonSet", "agent", false, "", None),
            ("Node", "node-7", true, "", None),
            ("Job", "a b", true, "", None),
        ] {
            let found = owned(kind, name, controller, hash);
            assert_eq!(found.as_ref().map(|(key, name)| (*key, &**name)), want, "{kind} {name}");
        }
    }
}
