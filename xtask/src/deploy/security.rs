//! Which controls of Kubernetes' Pod Security Standards a pod breaks: what a namespace's level would refuse.

use std::collections::BTreeSet;

use serde_json::Value;

use super::chart::{list, text};

/// Capabilities that anybody may have by the level `baseline`.
const BASELINE_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Kinds of volumes that the level `restricted` knows.
const RESTRICTED_VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// The names of controls that a pod's spec breaks; those of the level `baseline` come with a `!`.
pub(super) fn broken(spec: &Value) -> BTreeSet<&'static str> {
    let mut broken = BTreeSet::new();
    let is = |value: &Value, pointer: &str| value.pointer(pointer) == Some(&Value::Bool(true));
    let mut breaks = |condition: bool, control: &'static str| {
        if condition {
            broken.insert(control);
        }
    };
    breaks(["/hostPID", "/hostIPC", "/hostNetwork"].iter().any(|key| is(spec, key)), "host namespaces!");
    for volume in list(spec, "/volumes") {
        let kinds = volume
            .as_object()
            .into_iter()
            .flatten()
            .map(|(kind, _)| kind.as_str())
            .filter(|kind| *kind != "name");
        for kind in kinds {
            breaks(kind == "hostPath", "host paths!");
            breaks(!RESTRICTED_VOLUMES.contains(&kind), "kinds of volumes");
        }
    }
    for container in
        ["/containers", "/initContainers", "/ephemeralContainers"].iter().flat_map(|key| list(spec, key))
    {
        let of = |key: &str| container.pointer(&format!("/securityContext/{key}"));
        breaks(is(container, "/securityContext/privileged"), "privileged containers!");
        let added =
            of("capabilities/add").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        for capability in added {
            breaks(!BASELINE_CAPABILITIES.contains(&capability), "added capabilities!");
            breaks(capability != "NET_BIND_SERVICE", "capabilities");
        }
        let drops = list(container, "/securityContext/capabilities/drop");
        breaks(!drops.contains(&Value::from("ALL")), "capabilities");
        breaks(list(container, "/ports").iter().any(|port| port.get("hostPort").is_some()), "host ports!");
        let app_armor = text(container, "/securityContext/appArmorProfile/type");
        breaks(app_armor == "Unconfined", "AppArmor!");
        let selinux = text(container, "/securityContext/seLinuxOptions/type");
        breaks(
            !["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"]
                .contains(&selinux),
            "SELinux!",
        );
        let seccomp = text(container, "/securityContext/seccompProfile/type");
        breaks(seccomp == "Unconfined", "seccomp!");
        breaks(!["RuntimeDefault", "Localhost"].contains(&seccomp), "seccomp");
        breaks(of("allowPrivilegeEscalation") != Some(&Value::Bool(false)), "privilege escalation");
        breaks(of("runAsNonRoot") != Some(&Value::Bool(true)), "root");
        breaks(of("runAsUser") == Some(&Value::from(0)), "root");
    }
    broken
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_control_is_seen() {
        let restricted = json!({
            "volumes": [{"name": "a", "emptyDir": {}}],
            "containers": [{"securityContext": {
                "runAsNonRoot": true, "runAsUser": 65534, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}
            }}]
        });
        assert_eq!(broken(&restricted), BTreeSet::new());
        let cases = [
            ("/hostPID", json!(true), vec!["host namespaces!"]),
            (
                "/volumes/0",
                json!({"name": "a", "hostPath": {"path": "/"}}),
                vec!["host paths!", "kinds of volumes"],
            ),
            ("/containers/0/securityContext/privileged", json!(true), vec!["privileged containers!"]),
            (
                "/containers/0/securityContext/capabilities/add",
                json!(["BPF"]),
                vec!["added capabilities!", "capabilities"],
            ),
            ("/containers/0/securityContext/capabilities/add", json!(["CHOWN"]), vec!["capabilities"]),
            ("/containers/0/securityContext/capabilities/drop", json!([]), vec!["capabilities"]),
            ("/containers/0/ports", json!([{"hostPort": 1}]), vec!["host ports!"]),
            (
                "/containers/0/securityContext/appArmorProfile",
                json!({"type": "Unconfined"}),
                vec!["AppArmor!"],
            ),
            ("/containers/0/securityContext/seLinuxOptions", json!({"type": "spc_t"}), vec!["SELinux!"]),
            (
                "/containers/0/securityContext/seccompProfile",
                json!({"type": "Unconfined"}),
                vec!["seccomp", "seccomp!"],
            ),
            ("/containers/0/securityContext/seccompProfile", json!(null), vec!["seccomp"]),
            (
                "/containers/0/securityContext/allowPrivilegeEscalation",
                json!(null),
                vec!["privilege escalation"],
            ),
            ("/containers/0/securityContext/runAsUser", json!(0), vec!["root"]),
            ("/initContainers", json!([{}]), vec!["capabilities", "privilege escalation", "root", "seccomp"]),
        ];
        for (pointer, value, expected) in cases {
            let mut pod = restricted.clone();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            match pod.pointer_mut(parent).unwrap() {
                Value::Object(object) => {
                    object.insert(key.to_owned(), value);
                }
                Value::Array(array) => array[key.parse::<usize>().unwrap()] = value,
                other => panic!("{other}"),
            }
            assert_eq!(broken(&pod).into_iter().collect::<Vec<_>>(), expected, "{pointer}");
        }
    }
}
