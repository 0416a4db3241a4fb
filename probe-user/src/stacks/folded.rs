//! Weights of equal stacks, added up, as the folded text of flamegraph.pl: a line a stack, `comm;frame;frame;… WEIGHT`.
//!
//! A stack is the process's name, its functions from outermost to innermost, the system call as `syscall:NAME`, and the kernel's
//! functions, each with `_[k]` as perf marks them. The call stands between them because that is where it happened: what led to it
//! is below, what the kernel did of it above. Its prefix tells it from the function of libc that has the same name just below, and makes
//! one search (`^syscall:`) in the picture find all of them.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use super::names::cut;
use super::symbolizer::Frame;
use crate::sink::console::escape;

/// Stands for stacks beyond the limits.
const OTHER: &str = "[other stacks]";
/// Sums stay below this, so that whoever adds them up again does not overflow: 292 years of nanoseconds.
const MAX_SUM: u64 = i64::MAX.unsigned_abs();

/// Limits of [`Folded`].
#[derive(Clone, Copy, Debug)]
pub struct FoldedLimits {
    /// Different stacks.
    pub stacks: usize,
    /// Frames of all of them together.
    pub frames: usize,
    /// Different names.
    pub names: usize,
}

impl Default for FoldedLimits {
    fn default() -> Self {
        Self { stacks: 10_000, frames: 1_000_000, names: 65_536 }
    }
}

/// What a stack weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Nanoseconds.
    pub ns: u64,
    /// Calls.
    pub calls: u64,
}

/// Which weight is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Time, in nanoseconds.
    #[default]
    Time,
    /// Calls.
    Calls,
}

impl Weight {
    /// In that unit.
    #[must_use]
    pub fn of(self, unit: Unit) -> u64 {
        match unit {
            Unit::Time => self.ns,
            Unit::Calls => self.calls,
        }
    }

    fn add(&mut self, more: Self) {
        let Self { ns, calls } = self;
        *ns = ns.saturating_add(more.ns);
        *calls = calls.saturating_add(more.calls);
    }
}

/// Sums of weights by stack.
#[derive(Debug, Default)]
pub struct Folded {
    limits: FoldedLimits,
    /// Places in `texts`, by name: of the process and user space, and of the kernel.
    names: [HashMap<Arc<str>, u32>; 2],
    texts: Vec<Box<str>>,
    stacks: HashMap<Box<[u32]>, Weight>,
    frames: usize,
    total: Weight,
    other: Weight,
}

impl Folded {
    /// Nothing yet.
    #[must_use]
    pub fn new(limits: FoldedLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Adds a stack: frames outermost first.
    pub fn add(&mut self, comm: &str, user: &[Frame], syscall: &str, kernel: &[Frame], weight: Weight) {
        let Weight { ns, calls } = weight;
        let weight =
            Weight { ns: ns.min(MAX_SUM - self.total.ns), calls: calls.min(MAX_SUM - self.total.calls) };
        self.total.add(weight);
        let stack = self.places(comm, user, syscall, kernel);
        if let Some(stack) = &stack
            && let Some(sum) = self.stacks.get_mut(stack)
        {
            sum.add(weight);
            return;
        }
        let Self { limits, names: _, texts: _, stacks, frames, total: _, other } = self;
        match stack {
            Some(stack) if stacks.len() < limits.stacks && *frames + stack.len() <= limits.frames => {
                *frames += stack.len();
                stacks.insert(stack, weight);
            }
            _ => other.add(weight),
        }
    }

    /// Places of its names; nothing if it has one that there is no room for.
    fn places(&mut self, comm: &str, user: &[Frame], syscall: &str, kernel: &[Frame]) -> Option<Box<[u32]>> {
        let mut places = Vec::with_capacity(user.len() + kernel.len() + 2);
        places.push(self.place(comm, false)?);
        for frame in user {
            places.push(self.place(&frame.name, false)?);
        }
        places.push(self.place(&format!("syscall:{syscall}"), false)?);
        for frame in kernel {
            places.push(self.place(&frame.name, true)?);
        }
        Some(places.into())
    }

    fn place(&mut self, name: &str, of_kernel: bool) -> Option<u32> {
        let Self { limits, names: [user, kernel], texts, .. } = self;
        let names = if of_kernel { kernel } else { user };
        if let Some(place) = names.get(name) {
            return Some(*place);
        }
        if texts.len() >= limits.names {
            return None;
        }
        let place = u32::try_from(texts.len()).ok()?;
        let text = frame_text(name);
        texts.push(if of_kernel { format!("{text}_[k]").into() } else { text.into() });
        names.insert(name.into(), place);
        Some(place)
    }

    /// Different stacks.
    #[must_use]
    pub fn stacks(&self) -> usize {
        self.stacks.len()
    }

    /// What all together weigh.
    #[must_use]
    pub fn total(&self) -> Weight {
        self.total
    }

    /// What those weigh that are in the row `[other stacks]`, for which there was no room.
    #[must_use]
    pub fn other(&self) -> Weight {
        self.other
    }

    /// Lines with their weights, sorted, `[other stacks]` last; those that weigh nothing are left out.
    #[must_use]
    pub fn lines(&self, unit: Unit) -> Vec<String> {
        let text = |place: &u32| self.texts.get(*place as usize).map_or("", |text| &**text);
        let mut lines: Vec<(String, u64)> = self
            .stacks
            .iter()
            .map(|(stack, weight)| (stack.iter().map(text).collect::<Vec<_>>().join(";"), weight.of(unit)))
            .filter(|(_, weight)| *weight > 0)
            .collect();
        // Different names may be shown alike.
        lines.sort_unstable();
        lines.dedup_by(|(again, more), (stack, sum)| {
            let same = again == stack;
            *sum += if same { *more } else { 0 };
            same
        });
        let other = Some((OTHER.to_owned(), self.other.of(unit))).filter(|(_, weight)| *weight > 0);
        lines.into_iter().chain(other).map(|(stack, weight)| format!("{stack} {weight}")).collect()
    }

    /// Writes the lines.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub fn write(&self, unit: Unit, out: &mut impl Write) -> io::Result<()> {
        self.lines(unit).iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

/// A name as one frame on one line, that an XML file may have in it too: frames end at a semicolon, lines at a line feed.
pub(super) fn frame_text(name: &str) -> String {
    let safe: String = name
        .chars()
        .map(|character| match character {
            ';' => ':',
            // No characters of XML 1.0.
            '\u{fffe}' | '\u{ffff}' => char::REPLACEMENT_CHARACTER,
            _ if character.is_whitespace() => ' ',
            _ => character,
        })
        .collect();
    let safe = cut(&escape(safe.trim()));
    // Whoever calls a function so does not make it one of the kernel.
    match safe.strip_suffix("_[k]") {
        _ if safe.is_empty() => "[no name]".into(),
        Some(name) => format!("{name}_(k)"),
        None => safe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(names: &[&str]) -> Vec<Frame> {
        names.iter().map(|name| Frame { name: (*name).into(), known: true }).collect()
    }

    fn add(folded: &mut Folded, comm: &str, user: &[&str], syscall: &str, kernel: &[&str], ns: u64) {
        folded.add(comm, &frames(user), syscall, &frames(kernel), Weight { ns, calls: 1 });
    }

    #[test]
    fn equal_stacks_are_one_line() {
        let mut folded = Folded::default();
        add(&mut folded, "nginx", &["main", "read"], "read", &["do_syscall_64", "ksys_read"], 30);
        add(&mut folded, "nginx", &["main", "read"], "read", &["do_syscall_64", "ksys_read"], 12);
        add(&mut folded, "nginx", &["main"], "write", &[], 5);
        add(&mut folded, "cat", &[], "read", &["[kernel]"], 0);
        let time =
            ["nginx;main;read;syscall:read;do_syscall_64_[k];ksys_read_[k] 42", "nginx;main;syscall:write 5"];
        assert_eq!(folded.lines(Unit::Time), time);
        let calls = [
            "cat;syscall:read;[kernel]_[k] 1",
            "nginx;main;read;syscall:read;do_syscall_64_[k];ksys_read_[k] 2",
            "nginx;main;syscall:write 1",
        ];
        assert_eq!(folded.lines(Unit::Calls), calls);
        assert_eq!((folded.stacks(), folded.total()), (3, Weight { ns: 47, calls: 4 }));
        let mut text = Vec::new();
        folded.write(Unit::Time, &mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), format!("{}\n{}\n", time[0], time[1]));
    }

    #[test]
    fn what_is_beyond_the_limits_is_one_row() {
        let all = FoldedLimits::default();
        let cases = [
            ("stacks", FoldedLimits { stacks: 2, ..all }),
            ("frames", FoldedLimits { frames: 7, ..all }),
            ("names", FoldedLimits { names: 4, ..all }),
        ];
        for (what, limits) in cases {
            let mut folded = Folded::new(limits);
            for name in ["a", "b", "c", "d", "a", "d"] {
                add(&mut folded, "sh", &[name], "read", &[], 10);
            }
            let lines = folded.lines(Unit::Time);
            assert_eq!(
                lines,
                ["sh;a;syscall:read 20", "sh;b;syscall:read 10", "[other stacks] 30"],
                "{what}"
            );
            assert_eq!(folded.total().ns, 60, "{what}");
            assert_eq!(folded.other(), Weight { ns: 30, calls: 3 }, "{what}");
        }
    }

    #[test]
    fn names_of_strangers_stay_one_frame() {
        let cases = [
            ("plain", "operator new", "operator new"),
            ("separator", "a;b", "a:b"),
            ("lines", "a\nb\r\n", "a b"),
            ("blanks around", "\t a  b ", "a  b"),
            ("escape sequence", "\u{1b}[31m", "\\u{1b}[31m"),
            ("bidirectional", "a\u{202e}b", "a\\u{202e}b"),
            ("no XML", "a\u{ffff}b\0", "a\u{fffd}b\\u{0}"),
            ("the kernel's mark", "evil_[k]", "evil_(k)"),
            ("nothing", " \n", "[no name]"),
            ("a weight", "f 12", "f 12"),
        ];
        for (what, name, want) in cases {
            assert_eq!(frame_text(name), want, "{what}");
        }
        assert!(frame_text(&"\u{1}".repeat(300)).len() <= super::super::names::MAX_SHOWN);
    }

    #[test]
    fn different_names_shown_alike_are_one_line() {
        let mut folded = Folded::default();
        add(&mut folded, "sh", &["a;b"], "read", &[], 1);
        add(&mut folded, "sh", &["a:b"], "read", &[], 2);
        assert_eq!(folded.lines(Unit::Time), ["sh;a:b;syscall:read 3"]);
    }

    #[test]
    fn sums_end_where_numbers_do() {
        let mut folded = Folded::default();
        for comm in ["a", "b", "a"] {
            add(&mut folded, comm, &[], "read", &[], u64::MAX);
        }
        assert_eq!(folded.total(), Weight { ns: MAX_SUM, calls: 3 });
        assert_eq!(folded.lines(Unit::Time), [format!("a;syscall:read {MAX_SUM}")]);
    }
}
