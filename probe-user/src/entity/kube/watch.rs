//! When the kubelet is asked: at once, when somebody is met whom it has not told of, and every few minutes for what changes.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::directory::Directory;
use super::kubelet::{AskError, KubeletConfig, Trust, ask};
use super::pods::{LeftOut, PodList};
use crate::event::key;
use crate::series::{attr, metrics};
use crate::telemetry::SelfStats;

/// It is not asked more often.
pub(super) const SOONEST: Duration = Duration::from_secs(5);
/// Unless somebody is met, it is asked so often.
const REGULAR: Duration = Duration::from_secs(180);
/// Containers of a pod begin together, and the kubelet has to see them, too.
const GATHER: Duration = Duration::from_millis(300);
/// The longest wait after failures; the shortest is [`SOONEST`].
const LONGEST: Duration = Duration::from_secs(300);

/// Asks the kubelet until it is dropped.
#[derive(Debug)]
pub struct Asking(JoinHandle<()>);

impl Asking {
    /// Begins. Inside a runtime.
    #[must_use]
    pub fn start(config: KubeletConfig, directory: Arc<Directory>, stats: Arc<SelfStats>) -> Self {
        let mut health = Health::default();
        Self(tokio::spawn(async move {
            if config.trust == Trust::Anything {
                tracing::warn!(
                    "--kubelet-insecure-tls: whoever answers at {} is believed, and gets the token",
                    config.url
                );
            }
            loop {
                let begun = Instant::now();
                let answer = ask(&config).await;
                count(&stats, &answer);
                health.say(&config, &answer);
                match answer {
                    Ok(PodList { pods, left_out: _ }) => {
                        directory.learn(pods, std::time::Instant::now());
                        next(&directory, begun).await;
                    }
                    Err(AskError { .. }) => sleep(back_off(health.failures)).await,
                }
            }
        }))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for a reason to ask again.
async fn next(directory: &Directory, begun: Instant) {
    let latest = begun + around(REGULAR);
    while !directory.is_wanted() {
        match timeout_at(latest, directory.wanted()).await {
            Ok(()) => sleep(GATHER).await,
            Err(_regular) => return,
        }
    }
    sleep_until(begun + SOONEST).await;
}

/// The wait after so many failures in a row: doubled each time, up to a limit, and never the same for all nodes.
fn back_off(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    around(SOONEST.saturating_mul(1 << doublings).min(LONGEST)).clamp(SOONEST, LONGEST)
}

/// A time as long, give or take a fifth.
fn around(time: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    let share = (random >> 11) as f64 / (1u64 << 53) as f64;
    time.mul_f64(0.8 + 0.4 * share)
}

fn count(stats: &SelfStats, answer: &Result<PodList, AskError>) {
    match answer {
        Ok(PodList { pods: _, left_out }) => {
            stats.add(metrics::PROBE_KUBELET_REQUESTS, &[], 1);
            for (reason, count) in left_out.by_reason() {
                stats.set(metrics::PROBE_KUBELET_LEFT_OUT, &[attr(key::ERROR_TYPE, reason)], count);
            }
        }
        Err(AskError { kind, message: _ }) => {
            stats.add(metrics::PROBE_KUBELET_REQUESTS, &[attr(key::ERROR_TYPE, *kind)], 1);
        }
    }
}

/// Says what is wrong once, not each time, and once that it is over.
#[derive(Debug, Default)]
struct Health {
    failures: u32,
    /// What was said last.
    said: Option<&'static str>,
    left_out: bool,
}

impl Health {
    fn say(&mut self, config: &KubeletConfig, answer: &Result<PodList, AskError>) {
        let url = &config.url;
        match answer {
            Ok(PodList { pods, left_out }) => {
                if self.said.take().is_some() {
                    tracing::info!("{url} answers again: pods have names");
                }
                self.failures = 0;
                tracing::debug!(pods = pods.len(), "{url} has answered");
                if *left_out != LeftOut::default() && !self.left_out {
                    self.left_out = true;
                    let LeftOut { names, nodes, twice, limit } = left_out;
                    tracing::warn!(
                        "{url}: left out of its answer, here and from now on (probe.kubelet.left_out): {names} names that Kubernetes does not allow, {nodes} pods of other nodes, {twice} uids or ids that were there already, {limit} pods too many"
                    );
                }
            }
            Err(AskError { kind, message }) => {
                self.failures = self.failures.saturating_add(1);
                if self.said != Some(kind) {
                    self.said = Some(kind);
                    tracing::warn!("pods have no names, or old ones: {url}: {message}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_differ() {
        for (failures, least, most) in
            [(1, 5.0, 6.0), (2, 8.0, 12.0), (4, 32.0, 48.0), (7, 240.0, 300.0), (u32::MAX, 240.0, 300.0)]
        {
            let waits: Vec<f64> = (0..50).map(|_| back_off(failures).as_secs_f64()).collect();
            assert!(waits.iter().all(|wait| (least..=most).contains(wait)), "{failures}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "{failures}: {waits:?}");
        }
    }
}
