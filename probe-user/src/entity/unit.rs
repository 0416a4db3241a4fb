//! Which systemd unit a cgroup is, by its path: a pure function of bytes that strangers choose.
//!
//! The system's manager puts units into slices, and each unit into a cgroup of its name (systemd.resource-control(5)):
//!
//! | path | owner |
//! |---|---|
//! | `/system.slice/nginx.service/worker` | `nginx.service` |
//! | `/user.slice/user-1000.slice/session-7.scope`, `…/user@1000.service/app.slice/x.service` | `user-1000.slice` |
//! | `/system.slice/run-u42.service` (systemd-run) | `system.slice` |
//! | `/system.slice/sshd@3-10.0.0.1:22-10.0.0.9:40312.service` (a unit a connection) | `sshd@.service` |
//!
//! So there are as many owners as there are units that somebody wrote and users that log in, however often.

/// Kinds of units that have processes.
const KINDS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];
/// Slices in slices that are looked into.
const MAX_SLICES: usize = 16;

/// The unit of a cgroup path that is in no container; None where it is in none. Total over any bytes.
pub fn unit_of(path: &[u8]) -> Option<String> {
    let mut slice = None;
    for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).take(MAX_SLICES) {
        let name = std::str::from_utf8(part).ok().filter(|name| name.bytes().all(is_of_a_name))?;
        if let Some(stem) = name.strip_suffix(".slice") {
            // Kubernetes' pods: their containers are owners, and what belongs to none is the node's.
            if stem.contains("kubepods") {
                return None;
            }
            slice = Some(name);
            if slice_of_user(stem) {
                break;
            }
            continue;
        }
        let (stem, kind) = KINDS.iter().find_map(|kind| Some((name.strip_suffix(kind)?, *kind)))?;
        if is_passing(stem) {
            break;
        }
        return match stem.split_once('@') {
            Some((template, instance)) if is_connection(instance) => Some(format!("{template}@{kind}")),
            Some(_) | None => Some(name.to_owned()),
        };
    }
    slice.map(str::to_owned)
}

/// Octets of the names of units (`VALID_CHARS` of systemd's src/basic/unit-name.c, with what templates have).
const fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'-' | b'_' | b'.' | b'\\' | b'@')
}

fn slice_of_user(stem: &str) -> bool {
    stem.strip_prefix("user-").is_some_and(is_number)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a unit has a name only because each must have one: sessions, and what systemd-run starts (`run-u7`, `run-p123-i456`,
/// `run-r` and 32 digits).
fn is_passing(stem: &str) -> bool {
    let numbered = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(number) = stem.strip_prefix("session-") {
        return number.trim_start_matches('c').bytes().all(|byte| byte.is_ascii_digit());
    }
    stem.strip_prefix("run-").is_some_and(|run| match run.split_at_checked(1) {
        Some(("u", number)) => is_number(number),
        Some(("r", number)) => number.len() == 32 && numbered(number),
        Some(("p", number)) => number.split("-i").all(is_number),
        Some(_) | None => false,
    })
}

/// Whether an instance is that of one connection to a socket unit with `Accept=yes`: a number, then its ends, or the peer's pid and
/// uid (`instance_from_socket` of systemd's src/core/socket.c).
fn is_connection(instance: &str) -> bool {
    let mut parts = instance.split('-');
    let begins = parts.next().is_some_and(is_number);
    let rest: Vec<&str> = parts.collect();
    begins && rest.len() >= 2 && (rest.iter().all(|part| is_number(part)) || instance.contains(':'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_of_units() {
        let cases = [
            ("/system.slice/nginx.service", Some("nginx.service")),
            ("/system.slice/nginx.service/worker", Some("nginx.service")),
            ("/system.slice/system-getty.slice/getty@tty1.service", Some("getty@tty1.service")),
            (
                "/system.slice/system-postgresql.slice/postgresql@15-main.service",
                Some("postgresql@15-main.service"),
            ),
            (
                r"/machine.slice/machine-qemu\x2d1\x2ddb.scope/libvirt/emulator",
                Some(r"machine-qemu\x2d1\x2ddb.scope"),
            ),
            ("/system.slice/sshd@3-10.0.0.1:22-10.0.0.9:40312.service", Some("sshd@.service")),
            ("/system.slice/sshd@12-[::1]:22-[::1]:5.service", None),
            ("/system.slice/varlink@4-811-1000.service", Some("varlink@.service")),
            ("/init.scope", Some("init.scope")),
            ("/user.slice/user-1000.slice/session-7.scope", Some("user-1000.slice")),
            ("/user.slice/user-1000.slice/session-c3.scope", Some("user-1000.slice")),
            ("/user.slice/user-0.slice/user@0.service/app.slice/firefox.service", Some("user-0.slice")),
            ("/system.slice/run-u42.service", Some("system.slice")),
            ("/system.slice/run-p1234-i5678.service", Some("system.slice")),
            ("/batch.slice/run-r3f37e9702f3961bba773444f8be29ad8.scope", Some("batch.slice")),
            ("/system.slice/run-queue.service", Some("run-queue.service")),
            ("/system.slice/dev-sda1.swap", Some("dev-sda1.swap")),
            ("/system.slice", Some("system.slice")),
            ("system.slice/cron.service", Some("cron.service")),
            ("/kubepods.slice/kubepods-burstable.slice/x.service", None),
            ("/kubelet.slice/kubelet-kubepods.slice/x.scope", None),
            ("/", None),
            ("", None),
            ("/probe-test-1", None),
            ("/docker/buildx/x.service", None),
            ("/system.slice/a b.service", None),
            ("/system.slice/a\u{1b}[2J.service", None),
            ("/.service", Some(".service")),
        ];
        for (path, unit) in cases {
            assert_eq!(unit_of(path.as_bytes()).as_deref(), unit, "{path}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_for_a_unit_is_a_name_of_one(
            path in prop::collection::vec(prop_oneof![
                Just(b"/".to_vec()), Just(b"user-1.slice".to_vec()), Just(b"a@1-2-3.service".to_vec()),
                Just(b"run-u".to_vec()), Just(b".slice".to_vec()), Just(b".scope".to_vec()), Just("é".into()),
                prop::collection::vec(any::<u8>(), 0..20),
            ], 0..12),
        ) {
            if let Some(unit) = unit_of(&path.concat()) {
                prop_assert!(unit.bytes().all(is_of_a_name) && !unit.is_empty());
            }
        }
    }
}
