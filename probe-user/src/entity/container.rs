//! Which container a cgroup is, by its path: a pure function of bytes that strangers choose.
//!
//! Runtimes name cgroups after the container's id, in the manner of the cgroup driver:
//!
//! | driver | path |
//! |---|---|
//! | systemd | `kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope`, `system.slice/docker-<id>.scope` |
//! | cgroupfs | `kubepods/burstable/pod<uid>/<id>`, `docker/<id>` |
//!
//! Containers nest (a Kubernetes node may itself be a container): the innermost counts.

use super::kube::Names;

/// Longer paths are cut; the kernel's limit for a path is the same.
const MAX_PATH: usize = 4096;
/// What hides between the parts of a path.
const MAX_PARTS: usize = 128;

/// What runs a container, as far as its cgroup tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// containerd, by Kubernetes or nerdctl.
    Containerd,
    /// CRI-O.
    CriO,
    /// Docker Engine.
    Docker,
    /// Podman.
    Podman,
}

impl Runtime {
    /// Each of them.
    pub(super) const ALL: [Self; 4] = [Self::Containerd, Self::CriO, Self::Docker, Self::Podman];

    /// Value of `container.runtime.name`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

/// What a cgroup's path says of its container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerIdentity {
    /// Full id: hexadecimal digits.
    pub container_id: String,
    /// What runs it; absent where the path does not tell (Kubernetes with the cgroupfs driver).
    pub runtime: Option<Runtime>,
    /// Uid of its Kubernetes pod, with hyphens.
    pub pod_uid: Option<String>,
    /// What Kubernetes calls it, once that is known; no part of its identity.
    pub names: Names,
}

/// Names of cgroups before the id. Longer ones first where one begins like another.
const PREFIXES: &[(&str, Option<Runtime>)] = &[
    ("cri-containerd-", Some(Runtime::Containerd)),
    ("nerdctl-", Some(Runtime::Containerd)),
    // The monitors of containers are processes of the host.
    ("crio-conmon-", None),
    ("crio-", Some(Runtime::CriO)),
    ("docker-", Some(Runtime::Docker)),
    ("libpod-conmon-", None),
    ("libpod-payload-", Some(Runtime::Podman)),
    ("libpod-", Some(Runtime::Podman)),
];

/// The container of a cgroup path (v1 or v2, as in /proc/PID/cgroup), or None for the host's own: services,
/// sessions, runtimes, monitors. Total over any bytes.
pub fn container_of(path: &[u8]) -> Option<ContainerIdentity> {
    let path = path.get(..MAX_PATH).unwrap_or(path);
    let mut found = None;
    let mut pod_uid: Option<String> = None;
    let mut parent: &[u8] = b"";
    for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).take(MAX_PARTS) {
        // containerd told to use systemd, asked in cgroupfs's manner: <slice>:cri-containerd:<id>
        let mut pieces = part.splitn(3, |&byte| byte == b':');
        let (slice, manager, id) = (pieces.next().unwrap_or(part), pieces.next(), pieces.next());
        let pod_here = pod_of(slice);
        if pod_here.is_some() {
            pod_uid = pod_here;
        }
        let container = match (manager, id) {
            (Some(manager), Some(id)) => {
                let runtime = match manager {
                    b"cri-containerd" => Some(Runtime::Containerd),
                    b"crio" => Some(Runtime::CriO),
                    b"docker" => Some(Runtime::Docker),
                    b"libpod" => Some(Runtime::Podman),
                    _ => None,
                };
                runtime.and_then(|runtime| Some((container_id(id, 12)?, Some(runtime))))
            }
            (Some(_), None) | (None, _) => by_name(part, parent),
        };
        if let Some((container_id, runtime)) = container {
            found = Some(ContainerIdentity {
                container_id,
                runtime,
                pod_uid: pod_uid.clone(),
                names: Names::default(),
            });
        }
        parent = part;
    }
    found
}

fn by_name(part: &[u8], parent: &[u8]) -> Option<(String, Option<Runtime>)> {
    let name = part.strip_suffix(b".scope").unwrap_or(part);
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = name.strip_prefix(prefix.as_bytes()) {
            return runtime.and_then(|runtime| Some((container_id(id, 12)?, Some(runtime))));
        }
    }
    // Nothing but the id: sixty-four digits are no accident.
    let runtime = (parent == b"docker").then_some(Runtime::Docker);
    Some((container_id(part, 64)?, runtime))
}

fn container_id(bytes: &[u8], least: usize) -> Option<String> {
    let fits = (least..=64).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_hexdigit);
    fits.then(|| bytes.iter().map(|&byte| char::from(byte)).collect())
}

/// The pod's uid in the name of a pod's cgroup: `kubepods-burstable-pod<uid>.slice`, `pod<uid>`.
pub(super) fn pod_of(part: &[u8]) -> Option<String> {
    let uid = match part.strip_suffix(b".slice") {
        Some(slice) => {
            // systemd repeats the parents' names; the node's own may come before (kubelet-kubepods-…).
            let is_kubernetes = slice.windows(8).any(|window| window == b"kubepods");
            let at = slice.windows(4).rposition(|window| window == b"-pod").filter(|_| is_kubernetes)?;
            slice.get(at + 4..)?
        }
        None => part.strip_prefix(b"pod")?,
    };
    // systemd allows no hyphen inside a slice's name. Pods of files have 32 digits and no hyphens.
    let hyphen = |byte: u8| matches!(byte, b'-' | b'_');
    let shaped = match uid.len() {
        32 => uid.iter().all(u8::is_ascii_hexdigit),
        36 => uid.iter().enumerate().all(|(index, &byte)| {
            if matches!(index, 8 | 13 | 18 | 23) { hyphen(byte) } else { byte.is_ascii_hexdigit() }
        }),
        _ => false,
    };
    shaped.then(|| uid.iter().map(|&byte| if byte == b'_' { '-' } else { char::from(byte) }).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "3f37e9702f3961bba773444f8be29ad8c0ffee00c0ffee00c0ffee00c0ffee00";
    const ID2: &str = "aaaabbbbccccddddeeeeffff0000111122223333444455556666777788889999";
    const UID: &str = "b3a9c1d2-0e4f-4a5b-8c6d-7e8f9a0b1c2d";
    const UID_: &str = "b3a9c1d2_0e4f_4a5b_8c6d_7e8f9a0b1c2d";
    const FILE_UID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn paths_of_containers() {
        use Runtime::{Containerd, CriO, Docker, Podman};
        let slice = format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice");
        let pod = format!("/kubepods/burstable/pod{UID}");
        let uid = Some(UID);
        let cases: &[(&str, String, Option<Runtime>, Option<&str>)] = &[
            ("containerd, systemd", format!("{slice}/cri-containerd-{ID}.scope"), Some(Containerd), uid),
            (
                "guaranteed",
                format!("/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope"),
                Some(Containerd),
                uid,
            ),
            (
                "besteffort",
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/cri-containerd-{ID}.scope"
                ),
                Some(Containerd),
                uid,
            ),
            (
                "a pod of a file",
                format!("/kubepods.slice/kubepods-pod{FILE_UID}.slice/cri-containerd-{ID}.scope"),
                Some(Containerd),
                Some(FILE_UID),
            ),
            ("containerd, cgroupfs", format!("{pod}/{ID}"), None, uid),
            ("guaranteed, cgroupfs", format!("/kubepods/pod{UID}/{ID}"), None, uid),
            (
                "containerd, mixed drivers",
                format!(
                    "/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}"
                ),
                Some(Containerd),
                uid,
            ),
            (
                "inside the container",
                format!("{slice}/cri-containerd-{ID}.scope/init.scope"),
                Some(Containerd),
                uid,
            ),
            (
                "systemd inside",
                format!("{slice}/cri-containerd-{ID}.scope/system.slice/nginx.service"),
                Some(Containerd),
                uid,
            ),
            ("CRI-O, systemd", format!("{slice}/crio-{ID}.scope"), Some(CriO), uid),
            ("CRI-O with crun", format!("{slice}/crio-{ID}.scope/container"), Some(CriO), uid),
            ("CRI-O, cgroupfs", format!("{pod}/crio-{ID}"), Some(CriO), uid),
            ("Docker in Kubernetes", format!("{slice}/docker-{ID}.scope"), Some(Docker), uid),
            ("Docker, systemd", format!("/system.slice/docker-{ID}.scope"), Some(Docker), None),
            ("Docker, cgroupfs", format!("/docker/{ID}"), Some(Docker), None),
            ("Docker, parent cgroup", format!("/user/docker/{ID}"), Some(Docker), None),
            ("Podman, root", format!("/machine.slice/libpod-{ID}.scope"), Some(Podman), None),
            (
                "Podman, split",
                format!("/machine.slice/libpod-{ID}.scope/libpod-payload-{ID}"),
                Some(Podman),
                None,
            ),
            ("Podman, inside", format!("/machine.slice/libpod-{ID}.scope/container"), Some(Podman), None),
            (
                "Podman, user",
                format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
                Some(Podman),
                None,
            ),
            (
                "Podman, pod",
                format!("/machine.slice/machine-libpod_pod_{ID2}.slice/libpod-{ID}.scope"),
                Some(Podman),
                None,
            ),
            ("Podman, cgroupfs", format!("/libpod_parent/libpod-{ID}"), Some(Podman), None),
            ("nerdctl", format!("/system.slice/nerdctl-{ID}.scope"), Some(Containerd), None),
            ("containerd's namespace", format!("/default/{ID}"), None, None),
            ("ECS", format!("/ecs/0123/{ID}"), None, None),
            (
                "kind, systemd",
                format!(
                    "/docker/{ID2}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope"
                ),
                Some(Containerd),
                uid,
            ),
            ("kind, cgroupfs", format!("/docker/{ID2}/kubelet/kubepods/besteffort/pod{UID}/{ID}"), None, uid),
            (
                "kind, the node's services",
                format!("/docker/{ID}/system.slice/kubelet.service"),
                Some(Docker),
                None,
            ),
            ("Docker in a pod", format!("{pod}/{ID2}/docker/{ID}"), Some(Docker), uid),
            (
                "seen from a namespace",
                format!("/../../kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope"),
                Some(Containerd),
                uid,
            ),
            ("no leading slash", format!("docker/{ID}"), Some(Docker), None),
        ];
        for (name, path, runtime, pod_uid) in cases {
            let expected = ContainerIdentity {
                container_id: ID.into(),
                runtime: *runtime,
                pod_uid: pod_uid.map(str::to_owned),
                names: Names::default(),
            };
            assert_eq!(container_of(path.as_bytes()), Some(expected), "{name}: {path}");
        }
    }

    #[test]
    fn paths_of_the_host() {
        let slice = format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice");
        let not_hex = ID.replace('f', "g");
        let cases: &[(&str, String)] = &[
            ("empty", String::new()),
            ("root", "/".into()),
            ("service", "/system.slice/docker.service".into()),
            ("containerd itself", "/system.slice/containerd.service".into()),
            ("session", "/user.slice/user-1000.slice/session-3.scope".into()),
            (
                "user service",
                "/user.slice/user-1000.slice/user@1000.service/app.slice/firefox.service".into(),
            ),
            ("init", "/init.scope".into()),
            ("kubelet", "/system.slice/kubelet.service".into()),
            ("pod without a container", slice.clone()),
            ("monitor of CRI-O", format!("{slice}/crio-conmon-{ID}.scope")),
            ("monitor of Podman", format!("/machine.slice/libpod-conmon-{ID}.scope")),
            ("parent of Podman", "/libpod_parent/conmon".into()),
            ("thirty-two digits", "/process_api/3f37e9702f3961bba773444f8be29ad8".into()),
            ("sixty-five digits", format!("/docker/{ID}0")),
            ("no digits", format!("/docker/{not_hex}")),
            ("short", "/docker/buildx".into()),
            ("machine", "/machine.slice/machine-fedora.scope".into()),
            ("other manager", format!("/a:systemd:{ID}")),
        ];
        for (name, path) in cases {
            assert_eq!(container_of(path.as_bytes()), None, "{name}: {path}");
        }
    }

    #[test]
    fn names_that_only_look_like_pods() {
        for pod in
            ["podium", "pod", &format!("pod{UID}0"), &format!("app-pod{UID_}.slice"), "kubepods-pod.slice"]
        {
            let found = container_of(format!("/{pod}/docker-{ID}.scope").as_bytes());
            assert_eq!(found.map(|container| container.pod_uid), Some(None), "{pod}");
        }
    }

    proptest! {
        #[test]
        fn the_innermost_container_is_found_wherever_it_hides(
            above in prop::collection::vec("[a-z_@]{1,12}(\\.slice|\\.service)?", 0..6),
            nested in prop::option::of("[0-9a-f]{64}"),
            id in "[0-9a-f]{64}",
            below in prop::collection::vec("[a-z_]{1,12}(\\.scope)?", 0..4),
        ) {
            let nested = nested.map(|outer| format!("docker-{outer}.scope"));
            let parts: Vec<String> = above.into_iter().chain(nested).chain([format!("cri-containerd-{id}.scope")]).chain(below).collect();
            let expected = ContainerIdentity { container_id: id, runtime: Some(Runtime::Containerd), pod_uid: None, names: Names::default() };
            prop_assert_eq!(container_of(format!("/{}", parts.join("/")).as_bytes()), Some(expected));
        }

        #[test]
        fn what_is_taken_for_an_identity_has_the_form_of_one(
            path in prop::collection::vec(prop_oneof![
                Just(b"/".to_vec()), Just(b"docker-".to_vec()), Just(b":crio:".to_vec()), Just(b"kubepods-pod".to_vec()),
                Just(b".slice".to_vec()), Just(b".scope".to_vec()), Just(UID_.into()), Just(UID.into()), Just(ID.into()),
                prop::collection::vec(any::<u8>(), 0..20),
            ], 0..12),
        ) {
            let path = path.concat();
            if let Some(found) = container_of(&path) {
                let id = found.container_id.as_bytes();
                prop_assert!((12..=64).contains(&id.len()) && id.iter().all(u8::is_ascii_hexdigit));
                prop_assert!(path.windows(id.len()).any(|window| window == id));
                prop_assert!(found.runtime.is_some() || id.len() == 64);
                prop_assert!(found.pod_uid.is_none_or(|uid| !uid.contains('_') && matches!(uid.len(), 32 | 36)));
            }
        }
    }

    #[test]
    fn hostile_bytes_are_no_container() {
        let long = "/a".repeat(100_000);
        let cases: &[&[u8]] = &[
            b"\xff\xfe\x00/\x80.scope",
            b"////",
            b"::::::",
            b"/docker-.scope/crio-/libpod-/pod/-pod.slice/:::/cri-containerd-\n.scope",
            long.as_bytes(),
        ];
        for path in cases {
            assert_eq!(container_of(path), None);
        }
        // Every byte of a good path replaced by every value: whatever comes out is well formed.
        let good = format!("/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope").into_bytes();
        for at in 0..good.len() {
            for byte in 0..=u8::MAX {
                let mut path = good.clone();
                path[at] = byte;
                let Some(found) = container_of(&path) else { continue };
                assert!(found.container_id.bytes().all(|byte| byte.is_ascii_hexdigit()));
                assert!(found.pod_uid.is_none_or(|uid| uid.len() == 36 || uid.len() == 32));
            }
        }
    }
}
