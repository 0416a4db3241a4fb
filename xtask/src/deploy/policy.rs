//! What each case has to come to, said a second time, independently of the chart's templates: rights, mounts of the host, memory,
//! probes, updates.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    Deploy, all_of,
    chart::{Case, cases, list, name_of, text},
    expected::{
        ALWAYS, EXPECTED, Expected,
        Profile::{Least, Privileged},
    },
    security::broken,
};
use crate::{check::Outcome, process::say};

pub(super) fn check(deploy: &Deploy) -> Result<Outcome> {
    let floor = memory_floor(&deploy.root)?;
    let cases = cases(deploy)?;
    let mut faults = Vec::new();
    for expected in &EXPECTED {
        if !cases.iter().any(|case| case.name == expected.case) {
            faults.push(format!("{}: there is no such file under ci", expected.case));
        }
    }
    for case in &cases {
        let Some(expected) = EXPECTED.iter().find(|expected| expected.case == case.name) else {
            faults.push(format!("{}: nothing is said of it in xtask/src/deploy/policy.rs", case.name));
            continue;
        };
        let documents = deploy.documents(case, &[])?;
        let mut found = Found { expected, floor, faults: Vec::new() };
        found.look(&documents);
        found.restarts(deploy, case, &documents)?;
        faults.extend(found.faults.into_iter().map(|fault| format!("{}: {fault}", case.name)));
    }
    faults.extend(rights_by_version(deploy, &cases)?);
    all_of(faults)?;
    say(format_args!("{} cases; requests of memory are {floor} MiB at least (docs/memory.md)", cases.len()));
    Ok(Outcome::Passed)
}

/// Kubelets before 1.33 do not know the smaller right.
fn rights_by_version(deploy: &Deploy, cases: &[Case]) -> Result<Option<String>> {
    let case = cases.iter().find(|case| case.name == "minimal").context("no case `minimal`")?;
    let of = |version: &str| -> Result<Value> {
        let documents = deploy.documents(case, &["--kube-version", version])?;
        let role = documents.iter().find(|document| text(document, "/kind") == "ClusterRole");
        Ok(role.and_then(|role| role.pointer("/rules/0/resources")).cloned().unwrap_or_default())
    };
    let found = [of("1.32.9")?, of("1.33.0")?, of("v1.34.1-eks-1")?];
    let wanted = [json!(["nodes/proxy"]), json!(["nodes/pods"]), json!(["nodes/pods"])];
    Ok((found != wanted).then(|| format!("kubelet.permission auto is {found:?} on 1.32, 1.33 and 1.34")))
}

/// MiB of the maps at 64 CPUs and of the agent after an hour, as docs/memory.md has them, rounded up.
pub(super) fn memory_floor(root: &Path) -> Result<u64> {
    let file = root.join("docs/memory.md");
    let page = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let maps = page.lines().find(|line| line.starts_with("| **all**")).and_then(|line| {
        let (_, rest) = line.rsplit_once("about ")?;
        rest.split(' ').next()?.parse::<f64>().ok()
    });
    // `  60 min  58.2  ####…`
    let agent = page.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (_minute, unit, mib) = (words.next()?.parse::<u32>().ok()?, words.next()?, words.next()?);
        (unit == "min").then(|| mib.parse::<f64>().ok())?
    });
    let agent = agent.fold(0.0, f64::max);
    let maps = maps.context("docs/memory.md has no row | **all** … about N MiB")?;
    anyhow::ensure!(agent > 0.0, "docs/memory.md has no lines N min MIB of the agent's memory");
    let mib = (maps + agent).ceil();
    (0..100_000_u32)
        .find(|whole| f64::from(*whole) >= mib)
        .map(u64::from)
        .context("more memory than there is")
}

struct Found<'a> {
    expected: &'a Expected,
    floor: u64,
    faults: Vec<String>,
}

impl Found<'_> {
    fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: impl std::fmt::Display, found: &T, wanted: &T) {
        if found != wanted {
            self.faults.push(format!("{what} is {found:?}, but should be {wanted:?}"));
        }
    }

    fn look(&mut self, documents: &[Value]) {
        let mut kinds: Vec<&str> = documents.iter().map(|document| text(document, "/kind")).collect();
        let mut wanted: Vec<&str> = [&["DaemonSet", "ConfigMap"], self.expected.others].concat();
        kinds.sort_unstable();
        wanted.sort_unstable();
        self.equal("the list of kinds", &kinds, &wanted);
        for document in documents {
            let name = name_of(document);
            match text(document, "/kind") {
                "DaemonSet" => self.daemon_set(document),
                "Pod" if name.ends_with("-test-http") => {
                    let spec = document.pointer("/spec").unwrap_or(&Value::Null);
                    self.equal(
                        format_args!("{name}: what it breaks of `restricted`"),
                        &broken(spec),
                        &BTreeSet::new(),
                    );
                }
                "Pod" => {
                    let spec = document.pointer("/spec").unwrap_or(&Value::Null);
                    self.pod(&name, spec, false);
                    self.equal(
                        format_args!("{name}: token"),
                        &spec.get("automountServiceAccountToken"),
                        &Some(&json!(false)),
                    );
                }
                "ClusterRole" => {
                    let right = self.expected.kubelet.unwrap_or_default();
                    let wanted = json!([{"apiGroups": [""], "resources": [right], "verbs": ["get"]}]);
                    self.equal(&name, &document.get("rules"), &Some(&wanted));
                }
                "NetworkPolicy" => self.network(&name, document),
                "PodMonitor" => {
                    let node = json!(["__meta_kubernetes_pod_node_name"]);
                    let wanted = [
                        json!({"sourceLabels": node, "targetLabel": "node"}),
                        json!({"sourceLabels": node, "targetLabel": "instance"}),
                        json!({"action": "labeldrop", "regex": "pod"}),
                    ];
                    let found = list(document, "/spec/podMetricsEndpoints/0/relabelings");
                    self.equal(
                        format_args!("{name}: labels of a node, not of a pod"),
                        &found.starts_with(&wanted),
                        &true,
                    );
                }
                "ServiceAccount" => {
                    self.equal(&name, &document.get("automountServiceAccountToken"), &Some(&json!(false)));
                }
                _ => {}
            }
        }
    }

    fn daemon_set(&mut self, set: &Value) {
        let null = Value::Null;
        let spec = set.pointer("/spec/template/spec").unwrap_or(&null);
        self.pod("DaemonSet", spec, true);
        let token = json!(self.expected.kubelet.is_some());
        if self.expected.case == "platform-team" {
            // An account of somebody else's, with rights that are theirs to give.
            self.equal("token", &spec.get("automountServiceAccountToken"), &Some(&json!(true)));
            self.equal("update", &set.pointer("/spec/updateStrategy"), &Some(&json!({"type": "OnDelete"})));
        } else {
            self.equal("token", &spec.get("automountServiceAccountToken"), &Some(&token));
            self.equal("update", &text(set, "/spec/updateStrategy/type"), &"RollingUpdate");
            self.equal(
                "surge",
                &set.pointer("/spec/updateStrategy/rollingUpdate/maxSurge"),
                &Some(&json!(0)),
            );
            let unavailable = set.pointer("/spec/updateStrategy/rollingUpdate/maxUnavailable");
            self.equal(
                "maxUnavailable is there",
                &unavailable.is_some_and(|value| *value != json!(0)),
                &true,
            );
            self.equal("tolerations", &spec.get("tolerations"), &Some(&json!([{"operator": "Exists"}])));
            self.equal("priority", &text(spec, "/priorityClassName"), &"system-node-critical");
        }
        let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or_default();
        self.equal("grace for the last export, 15 s at most", &(grace >= 15), &true);
        let container = spec.pointer("/containers/0").unwrap_or(&null);
        let port = container.pointer("/ports/0/containerPort").and_then(Value::as_u64).unwrap_or_default();
        self.equal("name of the port", &text(container, "/ports/0/name"), &"metrics");
        let args: Vec<&str> = list(container, "/args").iter().filter_map(Value::as_str).collect();
        let listen = format!("$(POD_IP):{port}");
        let wanted = ["run", "--config", "/etc/probe/config/probe.yaml", "--prometheus-listen", &listen];
        self.equal("arguments", &args.starts_with(&wanted), &true);
        for (probe, path) in
            [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")]
        {
            // No host: the pod's own address.
            let wanted = json!({"path": path, "port": "metrics"});
            self.equal(probe, &container.pointer(&format!("/{probe}/httpGet")), &Some(&wanted));
        }
        let environment: Vec<(&str, &str)> = list(container, "/env")
            .iter()
            .map(|variable| (text(variable, "/name"), text(variable, "/valueFrom/fieldRef/fieldPath")))
            .collect();
        // The first: later ones may name them.
        let wanted =
            [("POD_IP", "status.podIP"), ("NODE_IP", "status.hostIP"), ("K8S_NODE_NAME", "spec.nodeName")];
        self.equal("environment", &environment.starts_with(&wanted), &true);
    }

    /// What holds of every pod that has the agent's rights.
    fn pod(&mut self, name: &str, spec: &Value, agent: bool) {
        let containers = list(spec, "/containers");
        self.equal(format_args!("{name}: number of containers"), &containers.len(), &1);
        let keys =
            ["initContainers", "ephemeralContainers", "hostIPC", "shareProcessNamespace", "securityContext"];
        for key in keys {
            self.equal(format_args!("{name}: {key}"), &spec.get(key), &None);
        }
        self.equal(format_args!("{name}: hostPID"), &spec.get("hostPID"), &Some(&json!(true)));
        self.equal(
            format_args!("{name}: enableServiceLinks"),
            &spec.get("enableServiceLinks"),
            &Some(&json!(false)),
        );
        let network = (agent && self.expected.host_network).then_some(&Value::Bool(true));
        self.equal(format_args!("{name}: hostNetwork"), &spec.get("hostNetwork"), &network);
        self.host_paths(name, spec, agent);

        let container = containers.first().unwrap_or(&Value::Null);
        let of = |key: &str| container.pointer(&format!("/securityContext/{key}")).cloned();
        let (yes, no, root) = (Some(json!(true)), Some(json!(false)), Some(json!(0)));
        self.equal(format_args!("{name}: read-only root"), &of("readOnlyRootFilesystem"), &yes);
        self.equal(format_args!("{name}: uid"), &of("runAsUser"), &root);
        let mut breaks =
            BTreeSet::from(["capabilities", "host namespaces!", "host paths!", "kinds of volumes", "root"]);
        match self.expected.profile {
            Privileged => {
                self.equal(format_args!("{name}: privileged"), &of("privileged"), &yes);
                self.equal(format_args!("{name}: capabilities"), &of("capabilities"), &None);
                breaks.extend(["privilege escalation", "privileged containers!", "seccomp"]);
            }
            Least(more) => {
                self.equal(format_args!("{name}: privileged"), &of("privileged"), &no);
                self.equal(format_args!("{name}: escalation"), &of("allowPrivilegeEscalation"), &no);
                let mut capabilities = [&ALWAYS, more].concat();
                capabilities.sort_unstable();
                let wanted = json!({"drop": ["ALL"], "add": capabilities});
                self.equal(format_args!("{name}: capabilities"), &of("capabilities"), &Some(wanted));
                breaks.insert("added capabilities!");
                if self.expected.case == "least-privilege-all-options" {
                    breaks.extend(["AppArmor!", "SELinux!"]);
                } else {
                    let wanted = Some(json!({"type": "RuntimeDefault"}));
                    self.equal(format_args!("{name}: seccomp"), &of("seccompProfile"), &wanted);
                }
            }
        }
        self.equal(format_args!("{name}: what it breaks of pod security"), &broken(spec), &breaks);
        self.memory(name, container);
        if self.expected.case == "collector-mtls" || self.expected.case == "least-privilege" {
            let (_, digest) = text(container, "/image").rsplit_once('@').unwrap_or_default();
            self.equal(format_args!("{name}: image by digest"), &digest.starts_with("sha256:"), &true);
        }
    }

    fn host_paths(&mut self, name: &str, spec: &Value, agent: bool) {
        let mut found = BTreeSet::new();
        for volume in list(spec, "/volumes") {
            let Some(path) = volume.pointer("/hostPath/path").and_then(Value::as_str) else { continue };
            let kind = text(volume, "/hostPath/type");
            self.equal(
                format_args!("{name}: type of {path}"),
                &["Directory", "DirectoryOrCreate"].contains(&kind),
                &true,
            );
            let mounts: Vec<&Value> = list(spec, "/containers/0/volumeMounts")
                .iter()
                .filter(|mount| mount.get("name") == volume.get("name"))
                .collect();
            self.equal(format_args!("{name}: mounts of {path}"), &mounts.len(), &1);
            let read_only = mounts.iter().all(|mount| mount.get("readOnly") == Some(&json!(true)));
            found.insert((path, !read_only));
        }
        let mut wanted = BTreeSet::from([("/sys/fs/cgroup", false)]);
        // What the agent alone uses, a test has no need of.
        wanted.extend(self.expected.host.iter().filter(|(_, writable)| agent || !writable));
        self.equal(format_args!("{name}: paths of the host"), &found, &wanted);
    }

    fn memory(&mut self, name: &str, container: &Value) {
        let mib = |pointer: &str| {
            let quantity = text(container, pointer);
            let of = |unit: &str| quantity.strip_suffix(unit).and_then(|number| number.parse::<u64>().ok());
            of("Mi").or_else(|| of("Gi").map(|gib| gib * 1024)).unwrap_or_default()
        };
        let (request, limit) = (mib("/resources/requests/memory"), mib("/resources/limits/memory"));
        self.equal(
            format_args!("{name}: request of {request} MiB is the floor at least"),
            &(request >= self.floor),
            &true,
        );
        self.equal(
            format_args!("{name}: limit of {limit} MiB is above the request"),
            &(limit > request),
            &true,
        );
        self.equal(format_args!("{name}: CPU limit"), &container.pointer("/resources/limits/cpu"), &None);
        self.equal(
            format_args!("{name}: CPU request"),
            &container.pointer("/resources/requests/cpu").is_some(),
            &true,
        );
    }

    fn network(&mut self, name: &str, policy: &Value) {
        let ingress: Vec<Option<&Value>> =
            list(policy, "/spec/ingress").iter().map(|rule| rule.get("ports")).collect();
        self.equal(
            format_args!("{name}: ingress"),
            &ingress,
            &vec![Some(&json!([{"port": "metrics", "protocol": "TCP"}]))],
        );
        let ports: Vec<Option<u64>> = list(policy, "/spec/egress")
            .iter()
            .flat_map(|rule| list(rule, "/ports"))
            .map(|port| port.get("port").and_then(Value::as_u64))
            .collect();
        // DNS over UDP and TCP, the kubelet, and where there is one the collector.
        let mut wanted = vec![Some(53), Some(53), Some(10_250)];
        wanted.extend((self.expected.case == "collector-mtls").then_some(Some(443)));
        self.equal(format_args!("{name}: ports of egress"), &ports, &wanted);
        self.equal(
            format_args!("{name}: types"),
            &policy.pointer("/spec/policyTypes"),
            &Some(&json!(["Ingress", "Egress"])),
        );
    }

    /// Pods begin anew when the configuration is another, and only then.
    fn restarts(&mut self, deploy: &Deploy, case: &Case, documents: &[Value]) -> Result<()> {
        let checksum = |documents: &[Value]| {
            let set = documents.iter().find(|document| text(document, "/kind") == "DaemonSet");
            set.map(|set| text(set, "/spec/template/metadata/annotations/checksum~1config").to_owned())
                .unwrap_or_default()
        };
        let before = checksum(documents);
        let changed = checksum(&deploy.documents(case, &["--set", "config.dns-timeout=4s"])?);
        let same = checksum(&deploy.documents(case, &["--set", "podMonitor.interval=29s"])?);
        self.equal("length of the checksum", &before.len(), &64);
        self.equal("checksum of another configuration differs", &(before != changed), &true);
        self.equal("checksum of the same configuration", &same, &before);
        Ok(())
    }
}
