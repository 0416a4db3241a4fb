//! Calls that have not returned: which there are, and those that hang.
//!
//! The programs keep every call that lost its CPU in `SLEEPERS`; a look at that tells which are late. Only if there are some that
//! are not known to wait by design are all threads walked over, for arguments, files and stacks.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap as BpfHashMap, MapData};
use hashbrown::{HashMap, HashSet};
use probe_common::syscalls::{InFlight as Raw, OLDER, Rule, SLEPT, Sleeper, SyscallId};
use probe_common::wire::Owner;

use super::paths::Paths;
use super::{InFlight, Subject, names, rules, stacks, subject};
use crate::config::Thresholds;
use crate::entity::Entity;
use crate::event::key;
use crate::kernel::clock;
use crate::load::{Plain, Walk, lookup_batch};
use crate::series::{attr, metrics};
use crate::signals::{Context, Event};
use crate::stacks::KernelSymbols;
use crate::stacks::names::readable;

/// Calls that a look tells of at most; the gauge and the summary count all.
const TOLD: usize = 256;
/// Calls that are remembered from one look to the next.
const REMEMBERED: usize = 16_384;

/// A call by its thread and its beginning.
type CallKey = (u32, u64);

/// Calls that had not returned when it was looked, by process and call.
pub(super) type Unreturned = HashMap<(u32, SyscallId), u64>;

pub(super) struct Watch {
    sleepers: BpfHashMap<MapData, Plain<u32>, Plain<Sleeper>>,
    /// None: this kernel has no such iterator.
    walk: Option<Walk>,
    rules: Vec<Rule>,
    /// Late ones that are known to wait by design: a walk left them out.
    waiting: HashSet<CallKey>,
    /// Late ones that were told of, and how long they had taken by then.
    told: HashMap<CallKey, Duration>,
    /// What the gauge says.
    shown: HashMap<(Entity, &'static str), i64>,
    kept: u64,
    symbols: Arc<KernelSymbols>,
    paths: Paths,
}

/// What a look has found.
#[derive(Default)]
pub(super) struct Look {
    /// Calls that take longer than their threshold.
    pub(super) late: u64,
    pub(super) unreturned: Unreturned,
}

/// A late call, whichever way it was found.
struct Late {
    key: CallKey,
    now_ns: u64,
    owner: Owner,
    cgroup_id: u64,
    id: SyscallId,
    /// It began before the programs were there.
    is_older: bool,
    raw: Option<Box<Raw>>,
}

impl Watch {
    pub(super) fn new(
        sleepers: BpfHashMap<MapData, Plain<u32>, Plain<Sleeper>>,
        walk: Option<Walk>,
        thresholds: &Thresholds,
        symbols: Arc<KernelSymbols>,
    ) -> Self {
        Self {
            sleepers,
            walk,
            rules: rules::all(thresholds).collect(),
            waiting: HashSet::default(),
            told: HashMap::default(),
            shown: HashMap::default(),
            kept: 0,
            symbols,
            paths: Paths::default(),
        }
    }

    /// Other thresholds, from now on.
    pub(super) fn change(&mut self, thresholds: &Thresholds) {
        self.rules = rules::all(thresholds).collect();
    }

    /// Threads with room of their own at the last look: the fill of the map.
    pub(super) const fn sleepers(&self) -> u64 {
        self.kept
    }

    /// Looks at what has not returned, and tells of what hangs: once when it is late, and again whenever it has taken twice as
    /// long.
    pub(super) fn look(&mut self, context: &mut Context<'_>) -> io::Result<Look> {
        let now_ns = clock::monotonic_ns();
        let mut look = Look::default();
        let mut late: HashMap<CallKey, (u32, SyscallId)> = HashMap::default();
        let Self { sleepers, rules, kept, .. } = self;
        *kept = 0;
        lookup_batch(sleepers, |tid: &u32, sleeper: &Sleeper| {
            *kept += 1;
            if sleeper.left_ns == 0 {
                return;
            }
            let id = sleeper.id as SyscallId;
            *look.unreturned.entry((sleeper.tgid, id)).or_default() += 1;
            let elapsed_ns = now_ns.saturating_sub(sleeper.start_ns);
            if rules::may_be_late(rules, id, elapsed_ns) && late.len() < REMEMBERED {
                late.insert((*tid, sleeper.start_ns), (sleeper.tgid, id));
            }
        })?;
        self.waiting.retain(|call| late.contains_key(call));
        self.told.retain(|call, _| late.contains_key(call));
        let found = if late.keys().any(|call| !self.waiting.contains(call)) {
            self.find(&late, now_ns)?
        } else {
            Vec::new()
        };
        look.late = u64::try_from(found.len()).unwrap_or(u64::MAX);
        self.show(&found, context);
        self.tell(found, context);
        Ok(look)
    }

    /// Those of late calls that do not wait by design.
    fn find(&mut self, late: &HashMap<CallKey, (u32, SyscallId)>, now_ns: u64) -> io::Result<Vec<Late>> {
        let Some(walk) = &mut self.walk else {
            // Without a walk nobody knows what a read reads: only those are told that work in any case.
            let calls = late.iter().filter(|(call, (_, id))| {
                let elapsed_ns = now_ns.saturating_sub(call.1);
                rules::is_late_whatever(&self.rules, *id, elapsed_ns)
            });
            return Ok(calls
                .map(|(key, (tgid, id))| {
                    let owner = Owner { tgid: *tgid, ..Owner::UNKNOWN };
                    Late { key: *key, now_ns, owner, cgroup_id: 0, id: *id, is_older: false, raw: None }
                })
                .collect());
        };
        let mut found = Vec::new();
        walk.records(|raw: &Raw| {
            found.push(Late {
                key: (raw.tid, raw.start_ns),
                now_ns: raw.now_ns,
                owner: raw.owner,
                cgroup_id: raw.cgroup_id,
                id: raw.id as SyscallId,
                is_older: raw.id & OLDER != 0,
                raw: Some(Box::new(*raw)),
            });
        })?;
        let hanging: HashSet<CallKey> = found.iter().map(|late| late.key).collect();
        self.waiting = late.keys().filter(|call| !hanging.contains(*call)).copied().collect();
        Ok(found)
    }

    /// Sets the gauge.
    fn show(&mut self, found: &[Late], context: &mut Context<'_>) {
        let mut levels: HashMap<(Entity, &'static str), i64> = HashMap::default();
        for Late { owner, cgroup_id, id, .. } in found {
            let entity = context.owners.entity(*cgroup_id, Some(owner.tgid));
            *levels.entry((entity, names::name(*id))).or_default() += 1;
        }
        for (place, _) in self.shown.drain() {
            // What was shown and is no more, is none.
            levels.entry(place).or_default();
        }
        for ((entity, name), level) in &levels {
            let attrs = [attr(key::SYSCALL_NAME, *name)];
            context.store.set(entity, metrics::SYSCALL_IN_FLIGHT, &attrs, *level);
        }
        levels.retain(|_, level| *level != 0);
        self.shown = levels;
    }

    fn tell(&mut self, mut found: Vec<Late>, context: &mut Context<'_>) {
        if context.events.is_none() {
            return;
        }
        // The longest first: those are told of if there are more than can be.
        found.sort_by_key(|late| late.key.1);
        let mut left = TOLD;
        for late in found {
            let Late { key, now_ns, owner, cgroup_id, id, is_older, raw } = late;
            let duration = Duration::from_nanos(now_ns.saturating_sub(key.1));
            let due = self.told.get(&key).is_none_or(|before| duration >= *before * 2);
            if !due || left == 0 {
                continue;
            }
            left -= 1;
            self.told.insert(key, duration);
            let mut subject =
                raw.as_ref().map(|raw| subject::of(&raw.subject, owner.tgid)).unwrap_or_default();
            if subject.file.is_none() {
                subject.file = self.path(key, owner.tgid, id, &subject);
            }
            let stack = raw.as_ref().map(|raw| self.stack(&raw.stack)).unwrap_or_default();
            let sleeps = raw.as_ref().is_some_and(|raw| raw.id & SLEPT != 0);
            let event = Event::SyscallInFlight(InFlight {
                time_unix_ns: context.clock.wall(now_ns),
                who: context.owners.who(&owner, cgroup_id, 0),
                tid: key.0,
                syscall: names::name(id),
                duration,
                is_older,
                subject,
                wchan: if sleeps { stack.last().map(|function| function.as_str().into()) } else { None },
                stack: (!stack.is_empty()).then(|| stack.join(";").into()),
            });
            if let Some(events) = &mut context.events {
                events(event);
            }
        }
    }

    /// The path that a call was given, if it is still that call once it has been read.
    fn path(&mut self, key: CallKey, tgid: u32, id: SyscallId, subject: &Subject) -> Option<Box<str>> {
        let which = rules::path_argument(&self.rules, id)?;
        let path = self.paths.at(tgid, *subject.args?.get(which)?)?;
        let Plain(now) = self.sleepers.get(&Plain(key.0), 0).ok()?;
        (now.left_ns != 0 && now.start_ns == key.1).then_some(path)
    }

    /// Functions of a kernel stack, outermost first, down to the one that went to sleep. None where symbols cannot be read.
    fn stack(&self, addresses: &[u64]) -> Vec<String> {
        let KernelSymbols::Known(symbols) = self.symbols.as_ref() else { return Vec::new() };
        let addresses = addresses.iter().take_while(|address| **address != 0);
        let mut functions: Vec<String> = addresses
            .map(|address| match symbols.find(address.saturating_sub(1)) {
                Some((_, raw)) => readable(raw),
                None => "[unknown]".to_owned(),
            })
            .collect();
        functions.reverse();
        stacks::down_to_sleep(&mut functions);
        functions
    }
}
