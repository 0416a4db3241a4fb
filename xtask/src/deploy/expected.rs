//! What each case of values under ci/ is for, and so what it has to come to: said here a second time, independently of templates.

use Profile::{Least, Privileged};

/// What a case of values is for.
pub(super) struct Expected {
    pub(super) case: &'static str,
    pub(super) profile: Profile,
    /// Paths of the host that the agent sees, and whether it may write there, beyond /sys/fs/cgroup.
    pub(super) host: &'static [(&'static str, bool)],
    pub(super) host_network: bool,
    /// Which right to the kubelet on the newest Kubernetes; none: no token, no RBAC.
    pub(super) kubelet: Option<&'static str>,
    /// Objects beyond DaemonSet and ConfigMap.
    pub(super) others: &'static [&'static str],
}

#[derive(Clone, Copy)]
pub(super) enum Profile {
    Privileged,
    /// With these capabilities beyond what loading and attaching takes.
    Least(&'static [&'static str]),
}

const TRACEFS: (&str, bool) = ("/sys/kernel/tracing", false);
const BPFFS: (&str, bool) = ("/sys/fs/bpf", true);
const SPOOL: (&str, bool) = ("/var/lib/probe", true);
const PODS: Option<&str> = Some("nodes/pods");
/// What doctor lists as needed: to load, to attach to tracepoints, and to attach to cgroups.
pub(super) const ALWAYS: [&str; 3] = ["BPF", "NET_ADMIN", "PERFMON"];

pub(super) const EXPECTED: [Expected; 12] = [
    Expected {
        case: "minimal",
        profile: Privileged,
        host: &[TRACEFS],
        host_network: false,
        kubelet: PODS,
        others: &["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Pod"],
    },
    Expected {
        case: "collector-mtls",
        profile: Privileged,
        host: &[TRACEFS, SPOOL],
        host_network: false,
        kubelet: PODS,
        others: &["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "NetworkPolicy", "Secret", "Pod"],
    },
    Expected {
        case: "collector-spool-in-pod",
        profile: Least(&[]),
        host: &[TRACEFS],
        host_network: false,
        kubelet: Some("nodes/proxy"),
        others: &["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Pod"],
    },
    Expected {
        case: "every-config-key",
        profile: Privileged,
        host: &[TRACEFS],
        host_network: true,
        kubelet: PODS,
        others: &["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Pod"],
    },
    Expected {
        case: "large-nodes",
        profile: Privileged,
        host: &[TRACEFS],
        host_network: false,
        kubelet: PODS,
        others: &["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Pod"],
    },
    Expected {
        case: "least-privilege",
        profile: Least(&[]),
        host: &[TRACEFS],
        host_network: false,
        kubelet: None,
        others: &["ServiceAccount", "Pod"],
    },
    Expected {
        case: "least-privilege-all-options",
        profile: Least(&["SYS_ADMIN", "SYS_PTRACE", "SYS_RESOURCE"]),
        host: &[TRACEFS, BPFFS],
        host_network: false,
        kubelet: PODS,
        others: &["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "RoleBinding", "Pod"],
    },
    Expected {
        case: "least-privilege-executables",
        profile: Least(&["SYS_PTRACE"]),
        host: &[TRACEFS],
        host_network: false,
        kubelet: PODS,
        others: &["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Pod"],
    },
    Expected {
        case: "least-privilege-program-stats",
        profile: Least(&["SYS_ADMIN"]),
        host: &[TRACEFS],
        host_network: false,
        kubelet: PODS,
        others: &["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Pod"],
    },
    Expected {
        case: "pin-host-network-nat",
        profile: Privileged,
        host: &[TRACEFS, BPFFS],
        host_network: true,
        kubelet: PODS,
        others: &["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Pod"],
    },
    Expected {
        case: "platform-team",
        profile: Privileged,
        host: &[],
        host_network: false,
        kubelet: None,
        others: &[],
    },
    Expected {
        case: "prometheus",
        profile: Privileged,
        host: &[TRACEFS],
        host_network: false,
        kubelet: PODS,
        others: &[
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "NetworkPolicy",
            "PodMonitor",
            "ResourceQuota",
            "Pod",
            "Pod",
            "Service",
        ],
    },
];
