//! Values that must not get through, each with what is said of it: by the schema, or by the chart's own words.

use anyhow::Result;

use super::{
    CHART, Deploy, all_of,
    chart::{NAMESPACE, RELEASE},
    policy::memory_floor,
    tools,
};
use crate::{check::Outcome, process::say};

/// What is set beside a repository, and what the message has to say.
type Refused = (&'static str, &'static [&'static str], &'static str);

const REFUSED: [Refused; 38] = [
    ("a key that is none", &["imagee.tag=a"], "additional properties 'imagee' not allowed"),
    (
        "a nested key that is none",
        &["collector.endpiont=http://a:1"],
        "additional properties 'endpiont' not allowed",
    ),
    (
        "a key of probe.yaml that is none",
        &["config.intervall=3s"],
        "additional properties 'intervall' not allowed",
    ),
    (
        "a key that the chart sets",
        &["config.prometheus-listen=0.0.0.0:9464"],
        "additional properties 'prometheus-listen' not allowed",
    ),
    (
        "a secret in the ConfigMap",
        &["config.otlp-headers=key=a"],
        "additional properties 'otlp-headers' not allowed",
    ),
    ("an end of the agent", &["config.duration=3s"], "additional properties 'duration' not allowed"),
    (
        "an unknown profile",
        &["securityProfile=least"],
        "value must be one of 'privileged', 'least-privilege'",
    ),
    ("an empty repository", &["image.repository="], "at '/image/repository': minLength: got 0, want 1"),
    ("a tag in the repository", &["image.repository=a/probe:1"], "at '/image/repository': 'not' failed"),
    ("a repository with a scheme", &["image.repository=https://A/probe"], "at '/image/repository'"),
    (
        "half a digest",
        &["image.digest=sha256:abc"],
        "'sha256:abc' does not match pattern '^(sha256:[0-9a-f]{64})?$'",
    ),
    ("another kind of digest", &["image.digest=md5:d41d8cd98f00b204e9800998ecf8427e"], "at '/image/digest'"),
    (
        "an unknown pull policy",
        &["image.pullPolicy=Sometimes"],
        "value must be one of 'Always', 'IfNotPresent', 'Never'",
    ),
    ("an unknown protocol", &["collector.protocol=http"], "value must be one of 'grpc', 'http/protobuf'"),
    (
        "an endpoint without scheme",
        &["collector.endpoint=otel:4317"],
        "at '/collector/endpoint': 'otel:4317' does not match pattern",
    ),
    ("no interval", &["config.interval=soon"], "at '/config/interval'"),
    ("five ports of DNS", &["config.dns-port={1,2,3,4,5}"], "maxItems: got 5, want 4"),
    (
        "a ring of no power of two",
        &["config.ring-kib=300"],
        "at '/config/ring-kib': value must be one of 4, 8",
    ),
    ("no port", &["metrics.port=0"], "at '/metrics/port': minimum: got 0, want 1"),
    ("memory in bytes", &["resources.requests.memory=134217728"], "at '/resources/requests/memory'"),
    ("no memory limit", &["resources.limits.memory=null"], "missing property 'memory'"),
    ("a surge", &["updateStrategy.maxSurge=1"], "additional properties 'maxSurge' not allowed"),
    ("an update of nobody", &["updateStrategy.maxUnavailable=0"], "at '/updateStrategy/maxUnavailable'"),
    (
        "a grace too short for the last export",
        &["terminationGracePeriodSeconds=5"],
        "minimum: got 5, want 15",
    ),
    (
        "pins elsewhere",
        &["pin.directory=/tmp/probe"],
        "at '/pin/directory': '/tmp/probe' does not match pattern",
    ),
    ("the host's root as spool", &["spool.hostPath=/"], "at '/spool/hostPath': '/' does not match pattern"),
    ("a kind of spool that is none", &["spool.type=pvc"], "value must be one of 'emptyDir', 'hostPath'"),
    (
        "more than the kubelet needs",
        &["kubelet.permission=*"],
        "value must be one of 'auto', 'nodes/pods', 'nodes/proxy'",
    ),
    (
        "a seccomp profile without name",
        &["leastPrivilege.seccompProfile.type=Localhost"],
        "missing property 'localhostProfile'",
    ),
    (
        "no image",
        &["image.repository=null"],
        "image.repository is not set: there is no public image yet. Build it (deploy/container/README.md)",
    ),
    ("a CPU limit", &["resources.limits.cpu=1"], "resources.limits.cpu is set: throttled"),
    (
        "a limit below the request",
        &["resources.limits.memory=120Mi"],
        "resources.limits.memory (120Mi) is below resources.requests.memory (128Mi)",
    ),
    // 4 MiB sockets more than the default, at 187 octets with their share of LISTENERS: 745 MiB.
    (
        "large maps, little memory",
        &["config.tcp-sockets=4194304"],
        "the agent take 852 MiB: raise it to 852Mi at least",
    ),
    ("NAT without the host's network", &["config.nat=true"], "set hostNetwork: true too"),
    (
        "two authorities",
        &["collector.endpoint=https://a", "collector.tls.caSecret=a", "collector.tls.caConfigMap=b"],
        "are both set: keep one of them",
    ),
    ("TLS to nobody", &["collector.tls.clientSecret=a"], "without collector.endpoint"),
    ("a spool for nobody", &["spool.enabled=true"], "spool.enabled is true without collector.endpoint"),
    (
        "pins that AppArmor forbids",
        &["pin.enabled=true", "securityProfile=least-privilege"],
        "Set leastPrivilege.appArmorProfile",
    ),
];

pub(super) fn check(deploy: &Deploy) -> Result<Outcome> {
    let mut faults = Vec::new();
    for (name, set, expected) in REFUSED {
        let set: Vec<String> = set.iter().map(|set| (*set).to_owned()).collect();
        faults.extend(not_refused(deploy, name, &set, Some(expected))?);
    }
    // The chart's floor is that of docs/memory.md, to the MiB.
    let floor = memory_floor(&deploy.root)?;
    let request = |mib: u64| [format!("resources.requests.memory={mib}Mi")];
    let wanted = format!("raise it to {floor}Mi at least");
    faults.extend(not_refused(deploy, "a MiB below the floor", &request(floor - 1), Some(&wanted))?);
    faults.extend(not_refused(deploy, "the floor", &request(floor), None)?);
    all_of(faults)?;
    say(format_args!("{} refused, each with its reason", REFUSED.len() + 1));
    Ok(Outcome::Passed)
}

/// What went otherwise than expected: refused with these words, or not at all.
fn not_refused(
    deploy: &Deploy,
    name: &str,
    set: &[String],
    expected: Option<&str>,
) -> Result<Option<String>> {
    let mut helm = deploy.tools.helm();
    helm.args(["template", RELEASE]).arg(deploy.root.join(CHART)).args(["--namespace", NAMESPACE]);
    helm.args(["--set", "image.repository=registry.example.com/probe"]);
    for set in set {
        helm.args(["--set", set]);
    }
    let (passed, _, error) = tools::outputs(&mut helm)?;
    Ok(match expected {
        None if passed => None,
        None => Some(format!("{name}: refused: {}", error.trim())),
        Some(_) if passed => Some(format!("{name}: not refused")),
        Some(expected) if error.contains(expected) => None,
        Some(expected) => Some(format!("{name}: refused, but not with `{expected}`: {}", error.trim())),
    })
}
