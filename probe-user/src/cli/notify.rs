//! What a service manager is told (sd_notify(3)): datagrams of a few lines, to the socket that the environment names.
//!
//! Written here because it is so little, and because names in the abstract namespace (`@…`), which systemd gives out in containers, are
//! part of it.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::kernel::clock;
use crate::pipeline::Visit;
use crate::sink::prometheus::ANSWER;

/// How long a manager that does not read may hold up who tells it something.
const PATIENCE: Duration = Duration::from_secs(1);
/// Of the time after which a watchdog bites, one in so many: one answer may come late.
const SHARE: u32 = 3;

/// Who wants to know, if anybody does.
#[derive(Clone, Debug, Default)]
pub(super) struct Manager {
    address: Option<SocketAddr>,
    /// After this long without a word it takes the process for hung.
    watchdog: Option<Duration>,
    /// Whether it was told that everything runs.
    is_ready: Arc<AtomicBool>,
}

impl Manager {
    /// The one that the environment names.
    pub(super) fn of_environment() -> Self {
        Self::of(&|key| std::env::var_os(key), std::process::id())
    }

    fn of(lookup: &dyn Fn(&str) -> Option<OsString>, own: u32) -> Self {
        let Some(name) = lookup("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        let address = match address(&name) {
            Ok(address) => address,
            Err(error) => {
                tracing::warn!("NOTIFY_SOCKET={}: {error}; nothing is told", name.display());
                return Self::default();
            }
        };
        let number = |key: &str| lookup(key)?.to_str()?.parse::<u64>().ok();
        // Variables are inherited: the watchdog may be another process's.
        let is_own = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(own));
        let watchdog = number("WATCHDOG_USEC").filter(|&usec| is_own && usec != 0);
        Self { address: Some(address), watchdog: watchdog.map(Duration::from_micros), ..Self::default() }
    }

    /// Says that everything runs once the pipeline answers for the first time; from then on, whenever it answers, that it is alive.
    /// It is the question of /healthz: a loop that hangs answers neither.
    pub(super) fn attend(&self, visitors: mpsc::Sender<Visit>, signals: &[&'static str]) {
        if self.address.is_none() {
            return;
        }
        let (manager, signals) = (self.clone(), signals.join(", "));
        tokio::spawn(async move {
            while !answers(&visitors).await {
                if visitors.is_closed() {
                    return;
                }
            }
            manager.is_ready.store(true, Ordering::Release);
            manager.tell(&format_args!("READY=1\nSTATUS=Running: {signals}"));
            let Some(watchdog) = manager.watchdog else { return };
            let mut due = tokio::time::interval(watchdog / SHARE);
            due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while !visitors.is_closed() {
                due.tick().await;
                if answers(&visitors).await {
                    manager.tell(&"WATCHDOG=1");
                }
            }
        });
    }

    /// The configuration is about to be read again.
    pub(super) fn reloading(&self) {
        if self.is_ready.load(Ordering::Acquire) {
            self.tell(&format_args!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_ns() / 1_000));
        }
    }

    /// It was, or could not be: either way probe runs on.
    pub(super) fn reloaded(&self, taken_over: bool) {
        if self.is_ready.load(Ordering::Acquire) {
            let status = if taken_over {
                "Running, with the configuration as it was last read"
            } else {
                "Running, with the configuration of before: the present one has faults, see the log"
            };
            self.tell(&format_args!("READY=1\nSTATUS={status}"));
        }
    }

    /// The end: what follows is the last export.
    pub(super) fn stopping(&self) {
        self.tell(&"STOPPING=1\nSTATUS=Last export");
    }

    fn tell(&self, lines: &dyn Display) {
        let Some(address) = &self.address else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.send_to_addr(lines.to_string().as_bytes(), address)
        });
        if let Err(error) = sent {
            tracing::warn!("the service manager could not be told (NOTIFY_SOCKET): {error}");
        }
    }
}

/// A path, or `@` and a name in the abstract namespace.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a path that begins with /, or @ and a name, is allowed",
        )),
    }
}

/// Whether the pipeline's loop comes round to a question.
async fn answers(visitors: &mpsc::Sender<Visit>) -> bool {
    let (reply, answer) = oneshot::channel();
    let visit: Visit = Box::new(move |_store| {
        // Whoever asked may have gone.
        let _gone = reply.send(());
    });
    let asked = async { visitors.send(visit).await.is_ok() && answer.await.is_ok() };
    tokio::time::timeout(ANSWER, asked).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(pairs: &[(&str, &str)]) -> Manager {
        let lookup = |key: &str| {
            let found = pairs.iter().find(|(name, _)| *name == key);
            found.map(|(_, value)| OsString::from(value))
        };
        Manager::of(&lookup, 7)
    }

    #[test]
    fn addresses_of_both_kinds_are_told_the_same() {
        let path = std::env::temp_dir().join(format!("probe-notify-{}", std::process::id()));
        let own_name = format!("probe-notify-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = SocketAddr::from_abstract_name(own_name.as_bytes()).unwrap();
        let by_name = UnixDatagram::bind_addr(&by_name).unwrap();
        for (name, socket) in [(path.display().to_string(), &by_path), (format!("@{own_name}"), &by_name)] {
            manager(&[("NOTIFY_SOCKET", &name)]).stopping();
            let mut bytes = [0; 100];
            let length = socket.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"STOPPING=1\nSTATUS=Last export", "{name}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn who_is_told_and_how_often() {
        const SOCKET: (&str, &str) = ("NOTIFY_SOCKET", "/run/none");
        for (pairs, is_told, watchdog) in [
            (&[][..], false, None),
            (&[("NOTIFY_SOCKET", "")], false, None),
            (&[("NOTIFY_SOCKET", "vsock:2:1"), ("WATCHDOG_USEC", "1000000")], false, None),
            (&[SOCKET], true, None),
            (&[SOCKET, ("WATCHDOG_USEC", "1000000")], true, Some(1)),
            (&[SOCKET, ("WATCHDOG_USEC", "0")], true, None),
            (&[SOCKET, ("WATCHDOG_USEC", "soon")], true, None),
            (&[SOCKET, ("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "7")], true, Some(2)),
            // Somebody else's.
            (&[SOCKET, ("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "8")], true, None),
        ] {
            let manager = manager(pairs);
            assert_eq!(manager.address.is_some(), is_told, "{pairs:?}");
            assert_eq!(manager.watchdog, watchdog.map(Duration::from_secs), "{pairs:?}");
        }
    }
}
