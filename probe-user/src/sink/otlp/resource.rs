//! Whose data it is: the OTLP resource of the host and of each container.
//!
//! A collector's k8sattributes processor matches on resource attributes, and Prometheus derives `job` and
//! `instance` from `service.name` and `service.instance.id` alone. So each owner is a resource of its own,
//! and `service.instance.id` differs between any two of them: a random UUID for the agent's run (the host,
//! and the agent itself), and that UUID with `/` and the container's id for a container.

use std::collections::BTreeMap;
use std::io;

use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;

use super::config::{ConfigError, pairs};
use crate::entity::{Entity, KubeNames};
use crate::event::key;

/// Semantic conventions that the names follow.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.38.0";

const RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
const SERVICE_NAME: &str = "service.name";
const SERVICE_INSTANCE_ID: &str = "service.instance.id";

/// Makes resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// What every resource carries; `service.instance.id` is the host's.
    common: BTreeMap<String, String>,
}

impl Resources {
    /// From the environment, the host's name, and the id of this run (see [`new_instance_id`]).
    ///
    /// `OTEL_RESOURCE_ATTRIBUTES` beats what is found out, `OTEL_SERVICE_NAME` beats both.
    ///
    /// # Errors
    ///
    /// `OTEL_RESOURCE_ATTRIBUTES` is malformed.
    pub fn resolve(
        lookup: &dyn Fn(&str) -> Option<String>,
        host_name: &str,
        instance_id: &str,
    ) -> Result<Self, ConfigError> {
        let lookup = |key: &str| lookup(key).filter(|value| !value.trim().is_empty());
        let mut common: BTreeMap<String, String> = [
            (SERVICE_NAME, "probe"),
            ("service.version", env!("CARGO_PKG_VERSION")),
            (SERVICE_INSTANCE_ID, instance_id),
            ("host.name", host_name),
            ("os.type", "linux"),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
        if let Some(node) = lookup("K8S_NODE_NAME").or_else(|| lookup("NODE_NAME")) {
            common.insert(key::K8S_NODE_NAME.to_owned(), node);
        }
        if let Some(list) = lookup(RESOURCE_ATTRIBUTES) {
            for (pair, decoded) in pairs(&list) {
                let (key, value) = decoded.ok_or_else(|| ConfigError {
                    key: RESOURCE_ATTRIBUTES.to_owned(),
                    value: pair.to_owned(),
                    allowed: "key=value,key=value, with \"%\", \",\" and what is not ASCII percent-encoded"
                        .to_owned(),
                })?;
                common.insert(key, value);
            }
        }
        if let Some(name) = lookup("OTEL_SERVICE_NAME") {
            common.insert(SERVICE_NAME.to_owned(), name);
        }
        Ok(Self { common })
    }

    /// Goes on as another instance, unless the environment has named this one.
    pub fn go_on_as(&mut self, own: &str, before: &str) {
        if let Some(id) = self.common.get_mut(SERVICE_INSTANCE_ID).filter(|id| *id == own) {
            before.clone_into(id);
        }
    }

    /// The name of the node, else of the host: what export phases are spread by.
    #[must_use]
    pub fn node(&self) -> &str {
        let of = |key: &str| self.common.get(key);
        of(key::K8S_NODE_NAME).or_else(|| of("host.name")).map_or("", String::as_str)
    }

    /// The host's attributes, which are the agent's own too.
    pub fn host(&self) -> impl Iterator<Item = (&str, &str)> {
        self.common.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The resource of an owner.
    pub(super) fn of(&self, entity: &Entity) -> Resource {
        let mut attributes: Vec<KeyValue> = self.host().map(|(key, value)| text(key, value)).collect();
        match entity {
            Entity::Host => {}
            Entity::Unit(unit) => {
                extend_instance(&mut attributes, unit);
                set(&mut attributes, text(key::SYSTEMD_UNIT_NAME, unit));
            }
            Entity::Container(identity) => {
                extend_instance(&mut attributes, &identity.container_id);
                set(&mut attributes, text(key::CONTAINER_ID, &identity.container_id));
                if let Some(runtime) = identity.runtime {
                    set(&mut attributes, text(key::CONTAINER_RUNTIME, runtime.name()));
                }
                if let Some(uid) = &identity.pod_uid {
                    set(&mut attributes, text(key::K8S_POD_UID, uid));
                }
                if let Some(names) = identity.names.get() {
                    name(&mut attributes, &names);
                }
            }
        }
        Resource { attributes, ..Resource::default() }
    }
}

/// Makes the instance's id one of this owner's: no two resources have the same.
fn extend_instance(attributes: &mut [KeyValue], owner: &str) {
    for attribute in attributes.iter_mut().filter(|attribute| attribute.key == SERVICE_INSTANCE_ID) {
        if let Some(AnyValue { value: Some(any_value::Value::StringValue(id)) }) = &mut attribute.value {
            id.push('/');
            id.push_str(owner);
        }
    }
}

/// Adds what Kubernetes calls a container.
fn name(attributes: &mut Vec<KeyValue>, names: &KubeNames) {
    names.identity().for_each(|(key, name)| set(attributes, text(key, name)));
    names.groups().for_each(|(key, value)| set(attributes, text(key, value)));
    // What the agent was told of its node has the last word.
    if let Some(node) = &names.node
        && attributes.iter().all(|attribute| attribute.key != key::K8S_NODE_NAME)
    {
        attributes.push(text(key::K8S_NODE_NAME, node));
    }
    if let Some((name, tag)) = &names.image {
        set(attributes, text(key::CONTAINER_IMAGE_NAME, name));
        if let Some(tag) = tag {
            let value = AnyValue { value: Some(any_value::Value::StringValue(tag.to_string())) };
            let tags = any_value::Value::ArrayValue(ArrayValue { values: vec![value] });
            set(attributes, key_value(key::CONTAINER_IMAGE_TAGS, tags));
        }
    }
}

/// Adds an attribute, in place of one of that name: where OTEL_RESOURCE_ATTRIBUTES names the agent's own pod, a container is not
/// that one.
fn set(attributes: &mut Vec<KeyValue>, attribute: KeyValue) {
    match attributes.iter_mut().find(|known| known.key == attribute.key) {
        Some(known) => *known = attribute,
        None => attributes.push(attribute),
    }
}

/// A random UUID, from the kernel.
///
/// # Errors
///
/// /proc is not there.
pub fn new_instance_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    key_value(key, any_value::Value::StringValue(value.to_owned()))
}

pub(super) fn key_value(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::entity::{ContainerIdentity, Names};

    fn resolve(env: &[(&str, &str)]) -> Result<Resources, ConfigError> {
        let lookup = |key: &str| env.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned());
        Resources::resolve(&lookup, "node1", "1234")
    }

    fn host(env: &[(&str, &str)]) -> BTreeMap<String, String> {
        resolve(env).unwrap().common
    }

    #[test]
    fn found_out_then_attributes_then_service_name() {
        let plain = host(&[]);
        for (key, value) in [
            ("service.name", "probe"),
            ("service.instance.id", "1234"),
            ("host.name", "node1"),
            ("os.type", "linux"),
        ] {
            assert_eq!(plain.get(key).map(String::as_str), Some(value));
        }
        assert_eq!(plain.get("k8s.node.name"), None, "absent means unknown");
        let env = [
            ("NODE_NAME", "n"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "host.name=h, team=a%2Cb%20%C3%A9,service.name=x,service.instance.id=7",
            ),
            ("OTEL_SERVICE_NAME", "mine"),
        ];
        let all = host(&env);
        for (key, value) in [
            ("service.name", "mine"),
            ("service.instance.id", "7"),
            ("host.name", "h"),
            ("team", "a,b é"),
            ("k8s.node.name", "n"),
        ] {
            assert_eq!(all.get(key).map(String::as_str), Some(value));
        }
        assert_eq!(resolve(&env).unwrap().node(), "n");
        let error = resolve(&[("OTEL_RESOURCE_ATTRIBUTES", "a=b,c")]).unwrap_err();
        assert_eq!((error.key.as_str(), error.value.as_str()), ("OTEL_RESOURCE_ATTRIBUTES", "c"));
    }

    #[test]
    fn a_container_has_its_own_names_and_not_the_agents() {
        let env = [("NODE_NAME", "n1"), ("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=probe-x,team=infra")];
        let resources = resolve(&env).unwrap();
        let of = |names: Names| {
            let container =
                ContainerIdentity { container_id: "c0ffee".into(), runtime: None, pod_uid: None, names };
            let found = resources.of(&Entity::Container(Arc::new(container))).attributes;
            let mut keys: Vec<String> = found.iter().map(|attribute| attribute.key.clone()).collect();
            keys.sort();
            assert!(keys.windows(2).all(|two| two[0] != two[1]), "twice: {keys:?}");
            found
                .into_iter()
                .map(|attribute| (attribute.key, attribute.value.unwrap()))
                .collect::<BTreeMap<_, _>>()
        };
        let label: (Box<str>, Box<str>) = ("k8s.pod.label.app".into(), "web".into());
        let named = of(Names::from(KubeNames {
            namespace: "shop".into(),
            pod: "web-1".into(),
            container: Some("nginx".into()),
            node: Some("other".into()),
            workload: Some((key::K8S_DEPLOYMENT_NAME, "web".into())),
            image: Some(("registry:5000/web".into(), Some("1.2".into()))),
            labels: [label].into(),
        }));
        for (key, value) in [
            ("container.id", "c0ffee"),
            ("k8s.namespace.name", "shop"),
            ("k8s.pod.name", "web-1"),
            ("k8s.container.name", "nginx"),
            ("k8s.node.name", "n1"),
            ("k8s.deployment.name", "web"),
            ("k8s.pod.label.app", "web"),
            ("container.image.name", "registry:5000/web"),
            ("team", "infra"),
        ] {
            assert_eq!(named.get(key), text(key, value).value.as_ref(), "{key}");
        }
        assert!(named.contains_key("container.image.tags"));
        assert!(!of(Names::default()).contains_key("k8s.namespace.name"), "absent means unknown");
    }

    #[test]
    fn ids_of_runs_differ() {
        assert_ne!(new_instance_id().unwrap(), new_instance_id().unwrap());
        assert_eq!(new_instance_id().unwrap().len(), 36);
    }
}
