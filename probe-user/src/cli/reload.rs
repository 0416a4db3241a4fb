//! SIGHUP: the file is read again, and what can change without a restart does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::Level;

use super::Failure;
use super::collector::Route;
use super::layers::Setting;
use super::logging::{Logs, stderr_line};
use super::notify::Manager;
use super::run::Wanted;
use crate::config::Config;

/// Keys that take effect at once. README.md and deploy/config/probe.yaml say it too; a test compares.
pub(super) const AT_ONCE: [&str; 14] = [
    "dns-names",
    "dns-names-max",
    "interval",
    "otlp-certificate",
    "otlp-client-certificate",
    "otlp-client-key",
    "otlp-compression",
    "otlp-endpoint",
    "otlp-events",
    "otlp-headers",
    "otlp-protocol",
    "otlp-timeout",
    "syscall-slower-than",
    "verbose",
];

/// Hang-ups, from the beginning: while everything is being attached, one would be the end.
#[derive(Debug, Default)]
pub(super) struct EarlyHangups(Arc<AtomicBool>);

/// All of them.
pub(super) struct Hangups {
    /// Whether one came before [`Self::later`] heard of them.
    early: Arc<AtomicBool>,
    later: Signal,
}

impl EarlyHangups {
    /// Notes them from now on. Starts no thread: what is given up later must be given up by all.
    pub(super) fn note() -> io::Result<Self> {
        let early = Self::default();
        signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::clone(&early.0))?;
        Ok(early)
    }

    /// Hears of them, now that there is a runtime.
    pub(super) fn hear(self) -> io::Result<Hangups> {
        Ok(Hangups { early: self.0, later: signal(SignalKind::hangup())? })
    }
}

/// What reading again takes.
pub(super) struct Reload {
    /// Those behind `probe run`.
    pub(super) arguments: Arc<[OsString]>,
    pub(super) instance: String,
    /// What everything started with; what needs a restart is measured by it.
    pub(super) started: BTreeMap<String, Setting>,
    /// What is in force.
    pub(super) present: BTreeMap<String, Setting>,
    pub(super) pipeline: mpsc::Sender<Box<Config>>,
    pub(super) collector: mpsc::Sender<Route>,
    pub(super) logs: Logs,
    pub(super) manager: Manager,
}

impl Reload {
    /// Reads again at every hang-up, for as long as there is somebody to tell.
    pub(super) async fn at_every(mut self, Hangups { early, mut later }: Hangups) {
        let mut is_due = early.load(Ordering::Acquire);
        while is_due || later.recv().await.is_some() {
            is_due = false;
            self.manager.reloading();
            let wanted = self.read().await;
            let taken_over = wanted.is_ok();
            match wanted {
                Ok(wanted) => {
                    if self.take_over(wanted).await.is_none() {
                        return;
                    }
                }
                Err(failure) => {
                    stderr_line(Level::ERROR, format_args!("error: {}", failure.message));
                    tracing::error!("SIGHUP: nothing is taken over, what was in force stays in force");
                }
            }
            self.manager.reloaded(taken_over);
        }
    }

    /// On a thread of its own: the file may lie on a file system that hangs.
    async fn read(&self) -> Result<Wanted, Failure> {
        let (arguments, instance) = (Arc::clone(&self.arguments), self.instance.clone());
        let read = move || Wanted::read(&arguments, &|key| std::env::var(key).ok(), &instance);
        tokio::task::spawn_blocking(read).await.map_err(Failure::running)?
    }

    /// `None`: it is over.
    async fn take_over(&mut self, wanted: Wanted) -> Option<()> {
        let Some(path) = &wanted.layers.file else {
            tracing::warn!("SIGHUP: there is no file to read again (--config FILE, or PROBE_CONFIG)");
            return Some(());
        };
        let told = tell(&self.started, &self.present, &wanted.layers.settings);
        stderr_line(Level::INFO, format_args!("SIGHUP: {}: {told}", path.display()));
        self.logs.change(wanted.layers.matches.get_count("verbose"));
        self.present.clone_from(&wanted.layers.settings);
        let route = Route {
            config: wanted.config.otlp.clone(),
            events: wanted.events,
            interval: wanted.config.interval,
        };
        self.collector.send(route).await.ok()?;
        self.pipeline.send(Box::new(wanted.config)).await.ok()
    }
}

/// Which keys change now, and which at the next start. Values are not told: they may be secrets.
fn tell(
    started: &BTreeMap<String, Setting>,
    present: &BTreeMap<String, Setting>,
    wanted: &BTreeMap<String, Setting>,
) -> String {
    let text = |settings: &BTreeMap<String, Setting>, key: &str| {
        settings.get(key).and_then(|setting| setting.text.clone())
    };
    let (mut now, mut later) = (Vec::new(), Vec::new());
    for key in wanted.keys().map(String::as_str) {
        let is_at_once = AT_ONCE.contains(&key);
        if is_at_once && text(present, key) != text(wanted, key) {
            now.push(key);
        } else if !is_at_once && text(started, key) != text(wanted, key) {
            later.push(key);
        }
    }
    let mut told =
        if now.is_empty() { "nothing has changed".to_owned() } else { format!("{} changed", now.join(", ")) };
    match later.as_slice() {
        [] => {}
        [one] => told.push_str(&format!("; {one} takes effect at the next start")),
        several => told.push_str(&format!("; {} take effect at the next start", several.join(", "))),
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::layers::{Origin, keys, run_command};

    fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, Setting> {
        let setting = |text: &str| Setting { text: Some(text.to_owned()), origin: Origin::Default };
        pairs.iter().map(|(key, text)| ((*key).to_owned(), setting(text))).collect()
    }

    #[test]
    fn keys_that_take_effect_at_once_are_keys() {
        let command = run_command();
        for key in AT_ONCE {
            assert!(keys(&command).any(|(known, _)| known == key), "{key}");
        }
        assert!(AT_ONCE.is_sorted());
    }

    #[test]
    fn what_changes_is_told_by_name() {
        let started = [("interval", "10s"), ("nat", "false"), ("ring-kib", "256")];
        for (present, wanted, told) in [
            (started, started, "nothing has changed"),
            (started, [("interval", "1s"), ("nat", "false"), ("ring-kib", "256")], "interval changed"),
            (
                started,
                [("interval", "10s"), ("nat", "false"), ("ring-kib", "512")],
                "nothing has changed; ring-kib takes effect at the next start",
            ),
            (
                // Told again for as long as it is so.
                [("interval", "10s"), ("nat", "false"), ("ring-kib", "512")],
                [("interval", "2s"), ("nat", "true"), ("ring-kib", "512")],
                "interval changed; nat, ring-kib take effect at the next start",
            ),
        ] {
            assert_eq!(tell(&settings(&started), &settings(&present), &settings(&wanted)), told);
        }
    }
}
