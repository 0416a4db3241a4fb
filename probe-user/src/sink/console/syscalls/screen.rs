//! The table in one place: the terminal's first lines, drawn anew each interval, and below it the last calls that were slow or
//! hang. What was on the terminal before is scrolled away, not overwritten; the last table stays when all is over.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use rustix::termios::tcgetwinsize;

use super::{COLUMNS, Interval, Shape, hangs, slow};
use crate::signals::Event;

/// Lines of events that are kept.
const EVENTS: usize = 100;
/// Where a table does not leave more, events have one line in so many.
const EVENTS_SHARE: usize = 3;
/// However many events come, it is not drawn more often.
const PERIOD: Duration = Duration::from_millis(100);
/// Lines of a terminal that does not tell.
const LINES: usize = 24;

/// Home; and what is too long for a line is cut, not wrapped.
const BEGIN: &str = "\u{1b}[?7l\u{1b}[H";
/// Before a line: nothing of the one that was there.
const LINE: &str = "\u{1b}[K";
/// The rest is empty, and lines wrap again.
const END: &str = "\u{1b}[J\u{1b}[?7h";

/// What is drawn.
#[derive(Debug)]
pub struct Screen {
    shape: Shape,
    interval: Option<Interval>,
    /// Newest last.
    events: VecDeque<Event>,
    /// Since it was drawn, events have come.
    is_behind: bool,
    drawn: Option<Instant>,
}

impl Screen {
    /// With nothing on it.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self { shape, interval: None, events: VecDeque::new(), is_behind: false, drawn: None }
    }

    /// Keeps an event, to be shown below the table.
    pub fn keep(&mut self, event: &Event) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event.clone());
        self.is_behind = true;
    }

    /// Draws what an interval brought.
    ///
    /// # Errors
    ///
    /// What `out` returns.
    pub fn interval(&mut self, out: &mut dyn Write, interval: Interval) -> io::Result<()> {
        self.interval = Some(interval);
        self.draw(out, size())
    }

    /// Draws what has come since, unless that was just done; `at_once`: even then.
    ///
    /// # Errors
    ///
    /// What `out` returns.
    pub fn catch_up(&mut self, out: &mut dyn Write, at_once: bool) -> io::Result<()> {
        let is_due = at_once || self.drawn.is_none_or(|drawn| drawn.elapsed() >= PERIOD);
        if self.is_behind && is_due { self.draw(out, size()) } else { Ok(()) }
    }

    fn draw(&mut self, out: &mut dyn Write, (lines, columns): (usize, usize)) -> io::Result<()> {
        // The cursor stays below.
        let lines = lines.saturating_sub(1);
        if self.drawn.is_none() {
            write!(out, "{}", "\n".repeat(lines))?;
        }
        write!(out, "{BEGIN}")?;
        for line in self.frame(lines, columns) {
            writeln!(out, "{LINE}{line}")?;
        }
        write!(out, "{END}")?;
        self.drawn = Some(Instant::now());
        self.is_behind = false;
        Ok(())
    }

    fn frame(&self, most: usize, columns: usize) -> Vec<String> {
        let Self { shape, interval, events, .. } = self;
        // With an empty line before them.
        let kept = match events.len() {
            0 => 0,
            count => count.min(most / EVENTS_SHARE) + 1,
        };
        let shape = Shape { columns, ..*shape };
        let mut frame = interval
            .as_ref()
            .map(|interval| interval.lines(&shape, Some(most - kept.min(most))))
            .unwrap_or_default();
        let room = most.saturating_sub(frame.len() + 1);
        let first = events.len().saturating_sub(room);
        if room != 0 && !events.is_empty() {
            frame.push(String::new());
            frame.extend(events.range(first..).filter_map(|event| text(event, &shape)));
        }
        frame.truncate(most);
        frame
    }
}

fn text(event: &Event, shape: &Shape) -> Option<String> {
    match event {
        Event::SyscallSlow(call) => Some(slow(call, shape.columns, shape.colours)),
        Event::SyscallInFlight(call) => Some(hangs(call, shape.columns, shape.colours)),
        Event::Loss(loss) => {
            let mut line = Vec::new();
            // Writing to memory does not fail.
            super::super::loss(&mut line, loss).ok()?;
            Some(String::from_utf8_lossy(&line).trim_end().to_owned())
        }
        Event::Retransmit(_)
        | Event::Reset(_)
        | Event::Connect(_)
        | Event::Close(_)
        | Event::Lookup(_)
        | Event::SyscallSummary(_) => None,
    }
}

/// Lines and columns of the terminal.
fn size() -> (usize, usize) {
    let size =
        tcgetwinsize(io::stdout()).ok().map(|size| (usize::from(size.ws_row), usize::from(size.ws_col)));
    match size {
        Some((lines @ 1.., columns @ 1..)) => (lines, columns),
        Some((0, _) | (_, 0)) | None => (LINES, COLUMNS),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::colours::Colours;
    use super::super::super::owners::tests::who;
    use super::super::super::text::width;
    use super::super::tests::{NOON, brought, row, was_slow};
    use super::*;
    use crate::config::SyscallBy;
    use crate::signals::syscalls::Slow;

    fn screen(rows: u32, events: u64) -> Screen {
        let shape = Shape { colours: Colours::On, ..Shape::new(SyscallBy::Process, None) };
        let mut screen = Screen::new(shape);
        let rows = (0..rows).map(|pid| row(who("w", pid + 1, "/"), "read", 1, 10)).collect();
        screen.interval = Some(Interval::of(&brought(rows), NOON));
        (0..events).for_each(|ms| screen.keep(&Event::SyscallSlow(was_slow("fsync", ms))));
        screen
    }

    #[test]
    fn a_frame_fits_whatever_comes() {
        for rows in [0, 1, 10, 100] {
            for events in [0, 1, 10, 1_000] {
                for (lines, columns) in [(1, 1), (2, 80), (3, 80), (5, 20), (23, 80), (60, 200)] {
                    let frame = screen(rows, events).frame(lines, columns);
                    assert!(frame.len() <= lines, "{rows} {events} {lines}: {}", frame.join("\n"));
                }
            }
        }
    }

    #[test]
    fn events_have_what_the_table_leaves_and_a_third_at_least() {
        let lines_of = |rows, events, lines| {
            let frame = screen(rows, events).frame(lines, 120);
            let of = |what: &str| frame.iter().filter(|line| line.contains(what)).count();
            (of("w["), of("fsync"))
        };
        assert_eq!(lines_of(100, 0, 23), (20, 0));
        assert_eq!(lines_of(100, 2, 23), (17, 2));
        assert_eq!(lines_of(100, 50, 23), (12, 7));
        assert_eq!(lines_of(5, 50, 23), (5, 15));
        assert_eq!(screen(0, 1_000).events.len(), EVENTS);
        let frame = screen(100, 50).frame(23, 120);
        assert!(
            frame.last().is_some_and(|line| line.contains(" 49.0ms ")),
            "newest last: {}",
            frame.join("\n")
        );
    }

    #[test]
    fn it_is_drawn_over_what_was_drawn() {
        let mut screen = screen(3, 1);
        let mut draw = || {
            let mut out = Vec::new();
            screen.draw(&mut out, (10, 120)).unwrap();
            String::from_utf8(out).unwrap()
        };
        let (first, second) = (draw(), draw());
        // What was there before goes up, and is not lost.
        assert_eq!(first.strip_prefix(&"\n".repeat(9)), Some(&*second));
        let frame = second.strip_prefix(BEGIN).and_then(|frame| frame.strip_suffix(END)).unwrap();
        assert!(frame.lines().all(|line| line.starts_with(LINE)), "{frame:?}");
        assert!(frame.ends_with('\n') && frame.lines().count() <= 9, "{frame:?}");
        // The only other sequences are colours.
        let plain = frame.replace(LINE, "");
        assert!(
            plain.split('\u{1b}').skip(1).all(|rest| rest.starts_with('[') && rest.find('m') < Some(4)),
            "{plain:?}"
        );
        assert!(frame.lines().all(|line| width(line) <= 120 + 30), "{frame}");
    }

    #[test]
    fn strangers_draw_nothing() {
        let mut screen = screen(0, 0);
        let hostile = who("a\u{1b}[2J\r\n", 7, "/");
        screen.keep(&Event::SyscallSlow(Slow { who: hostile, ..was_slow("fsync", 1) }));
        let frame = screen.frame(23, 120);
        assert!(
            frame.iter().all(|line| !line.contains("\u{1b}[2J") && !line.contains(['\r', '\n'])),
            "{frame:?}"
        );
    }
}
