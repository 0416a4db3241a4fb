//! No message floods the log: one that repeats is said so often in a window, and then how often it would have been said.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use tracing::field::{Field, Value, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::Said;

/// How often a message is said in a window: once for each signal and object, and some more.
const MOST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Messages that are told apart; those beyond count as one.
const KEYS: usize = 512;
/// Fields that make another message of it; all others, and the text, may differ each time.
const DISTINGUISHING: [&str; 5] = ["signal", "endpoint", "container", "error.type", "map"];
/// Characters of a message that are repeated when it is told how often it was held back.
const SHOWN: usize = 200;

/// What was said of a message, and what was not.
#[derive(Debug)]
struct Kept<T> {
    began: Instant,
    said: u32,
    /// Held back, since the first of them.
    more: u64,
    since: Instant,
    /// What to show for it.
    like: Option<T>,
}

/// How many were held back, for how long, of what.
type Held<T> = (u64, Duration, T);

/// Counts; knows neither clock nor log.
#[derive(Debug)]
struct Limiter<T> {
    kept: HashMap<u64, Kept<T>, RandomState>,
}

impl<T: Clone> Limiter<T> {
    /// Whether it is to be said. `like` is asked for the last that is said in a window.
    fn is_said(&mut self, key: u64, now: Instant, like: impl FnOnce() -> T) -> bool {
        let key = if self.kept.len() < KEYS || self.kept.contains_key(&key) { key } else { 0 };
        let new = || Kept { began: now, said: 0, more: 0, since: now, like: None };
        let kept = self.kept.entry(key).or_insert_with(new);
        if now.saturating_duration_since(kept.began) >= WINDOW {
            (kept.began, kept.said) = (now, 0);
        }
        if kept.said < MOST {
            kept.said += 1;
            if kept.said == MOST {
                kept.like = Some(like());
            }
            return true;
        }
        if kept.more == 0 {
            kept.since = now;
        }
        kept.more = kept.more.saturating_add(1);
        false
    }

    /// What was held back and is to be told now: all of it if there is no time.
    fn due(&mut self, now: Option<Instant>) -> Vec<Held<T>> {
        let mut held = Vec::new();
        self.kept.retain(|_, kept| {
            let at = now.unwrap_or_else(|| Instant::now().max(kept.since));
            let is_over = |since: Instant| now.is_none() || at.saturating_duration_since(since) >= WINDOW;
            if kept.more != 0 && is_over(kept.since) {
                let age = at.saturating_duration_since(kept.since);
                held.extend(kept.like.clone().map(|like| (kept.more, age, like)));
                kept.more = 0;
            }
            kept.more != 0 || !is_over(kept.began)
        });
        held
    }
}

/// A message: where it comes from, and what it says.
#[derive(Clone, Debug)]
struct Message {
    metadata: &'static Metadata<'static>,
    /// As the crate log has it; `None`: the metadata's.
    target: Option<String>,
    text: String,
}

impl Message {
    /// Says it as if it came from where it comes from, so that filters take it for that.
    fn say(&self, more: u64, age: Duration) {
        let age = humantime::format_duration(Duration::from_secs(age.as_secs().max(1)));
        let text = format!("said {more} more times in the last {age}: {}", self.text);
        let fields = self.metadata.fields();
        let Some(message) = fields.field("message") else { return };
        let text: &dyn Value = &text.as_str();
        match (&self.target, fields.field("log.target")) {
            (Some(target), Some(log)) => {
                let target: &dyn Value = &target.as_str();
                let values = [(&message, Some(text)), (&log, Some(target))];
                Event::dispatch(self.metadata, &fields.value_set(&values));
            }
            _ => Event::dispatch(self.metadata, &fields.value_set(&[(&message, Some(text))])),
        }
    }
}

thread_local! {
    /// This thread tells what was held back: that itself is not.
    static TELLS: Cell<bool> = const { Cell::new(false) };
}

/// The limiter as a part of the log. What asks for `debug` or `trace` asks for all of it.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    limiter: Arc<Mutex<Limiter<Message>>>,
    hasher: RandomState,
}

impl Default for Limit {
    fn default() -> Self {
        let limiter = Limiter { kept: HashMap::default() };
        Self { limiter: Arc::new(Mutex::new(limiter)), hasher: RandomState::default() }
    }
}

impl Limit {
    /// Says how often messages were held back: those for which it is time by `now`, or all.
    pub(super) fn tell(&self, now: Option<Instant>) {
        let held = self.limiter.lock().unwrap_or_else(PoisonError::into_inner).due(now);
        TELLS.set(true);
        for (more, age, message) in held {
            message.say(more, age);
        }
        TELLS.set(false);
    }
}

/// Hashes the fields that make another message of it.
struct Key<H>(H);

impl<H: std::hash::Hasher> Visit for Key<H> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if DISTINGUISHING.contains(&field.name()) {
            self.0.write(field.name().as_bytes());
            self.0.write(format!("{value:?}").as_bytes());
        }
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || TELLS.get() {
            return true;
        }
        let normalized = event.normalized_metadata();
        let target = normalized.as_ref().map(|of_log| of_log.target().to_owned());
        let mut key = Key(self.hasher.build_hasher());
        std::hash::Hash::hash(&(metadata.callsite(), &target), &mut key.0);
        event.record(&mut key);
        let like = || {
            let text = Said::of(event).message.chars().take(SHOWN).collect();
            Message { metadata, target, text }
        };
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.is_said(key.0.finish(), Instant::now(), like)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds, and what happens then.
    enum Step {
        /// So many of a key; so many of them are said.
        Say(u64, u64, u32, u32),
        /// What is told: key, how many, over how many seconds.
        Tell(u64, &'static [(u64, u64, u64)]),
        /// The same at the end.
        End(&'static [(u64, u64)]),
    }
    use Step::{End, Say, Tell};

    #[test]
    fn so_many_are_said_and_the_rest_is_told() {
        for (what, steps) in [
            ("few are said", &[Say(0, 1, 10, 10), Tell(60, &[]), End(&[])][..]),
            (
                "more are held back",
                &[Say(0, 1, 10, 10), Say(1, 1, 5, 0), Tell(59, &[]), Tell(61, &[(1, 5, 60)])],
            ),
            ("told once", &[Say(0, 1, 15, 10), Tell(60, &[(1, 5, 60)]), Tell(120, &[]), End(&[])]),
            ("each message has its own", &[Say(0, 1, 12, 10), Say(0, 2, 12, 10), End(&[(1, 2), (2, 2)])]),
            (
                "a window later it is said again",
                &[Say(0, 1, 15, 10), Tell(60, &[(1, 5, 60)]), Say(60, 1, 12, 10), Tell(120, &[(1, 2, 60)])],
            ),
            (
                "what was held back is told though nobody looked in between",
                &[Say(0, 1, 15, 10), Say(100, 1, 12, 10), Tell(100, &[(1, 7, 100)])],
            ),
            (
                "without end: some and a sum a window",
                &[
                    Say(0, 1, 1_000, 10),
                    Say(30, 1, 1_000, 0),
                    Tell(60, &[(1, 1_990, 60)]),
                    Say(60, 1, 1_000, 10),
                    Tell(119, &[]),
                    Tell(120, &[(1, 990, 60)]),
                ],
            ),
            ("the rest at the end", &[Say(0, 1, 11, 10), End(&[(1, 1)]), End(&[])]),
        ] {
            let start = Instant::now();
            let at = |seconds| start + Duration::from_secs(seconds);
            let mut limiter = Limiter { kept: HashMap::default() };
            for step in steps {
                match *step {
                    Say(now, key, times, want) => {
                        let said = (0..times).filter(|_| limiter.is_said(key, at(now), || key)).count();
                        assert_eq!(said, want as usize, "{what}, after {now} s");
                    }
                    Tell(now, want) => {
                        let held = limiter.due(Some(at(now))).into_iter();
                        let held: Vec<_> = held.map(|(more, age, key)| (key, more, age.as_secs())).collect();
                        assert_eq!(held, want, "{what}, after {now} s");
                    }
                    End(want) => {
                        let mut held: Vec<_> =
                            limiter.due(None).into_iter().map(|(more, _, key)| (key, more)).collect();
                        held.sort_unstable();
                        assert_eq!(held, want, "{what}, at the end");
                        assert!(limiter.kept.is_empty(), "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten() {
        let start = Instant::now();
        let mut limiter = Limiter { kept: HashMap::default() };
        let said = (1..=100_000).filter(|key| limiter.is_said(*key, start, || *key)).count();
        assert_eq!(limiter.kept.len(), KEYS + 1);
        assert_eq!(said, KEYS + MOST as usize);
        let held = limiter.due(Some(start + WINDOW));
        assert_eq!(held.iter().map(|(more, ..)| *more).sum::<u64>(), 100_000 - said as u64);
        assert!(limiter.kept.is_empty());
    }
}
