//! stdout carries data and nothing else; what is said about it goes to stderr.

use std::ffi::OsStr;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use probe_common::loss::Counter;
use tracing::Level;

use super::Failure;
use super::logging::stderr_line;
use crate::config::{Config, Output};
use crate::kernel::clock::rfc3339;
use crate::pipeline::{Flow, Report, SKIPPED, Sink};
use crate::series::Snapshot;
use crate::signals::tcp::Tcp;
use crate::signals::{self, Event, SignalKind as _, Summary};
use crate::sink::{console, json};

/// What of a signal's data goes to stdout as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Events as they come (system calls: a table an interval).
    Live,
    /// A summary an interval.
    Summaries,
}

/// stdout as a sink.
pub(super) struct StdoutSink {
    out: BufWriter<Stdout>,
    form: Output,
    style: Style,
    /// Events still to be written.
    left: Option<u64>,
    heading: Option<String>,
    colours: console::Colours,
    /// What the lines come to.
    account: Option<Account>,
    /// How tables of system calls look.
    shape: console::syscalls::Shape,
    /// Where they are drawn in one place.
    screen: Option<console::syscalls::Screen>,
}

/// What the lines of a live command come to.
enum Account {
    Tcp(Box<console::tcp::Account>),
    Dns(Box<console::dns::Account>),
    Syscalls(Box<console::syscalls::Account>),
}

impl Account {
    fn of(signal: &str, config: &Config) -> Option<Self> {
        match signal {
            "tcp" => Some(Self::Tcp(Box::default())),
            "dns" => {
                let is_selective = !config.dns.rcodes.is_empty() || config.dns.slower_than.is_some();
                Some(Self::Dns(Box::new(console::dns::Account::new(is_selective))))
            }
            "syscalls" => {
                let options = &config.syscalls;
                let account = console::syscalls::Account::new(options.by, options.errors_only);
                Some(Self::Syscalls(Box::new(account)))
            }
            _ => None,
        }
    }

    fn add(&mut self, event: &Event) {
        match self {
            Self::Tcp(account) => account.add(event),
            Self::Dns(account) => account.add(event),
            Self::Syscalls(account) => account.add(event),
        }
    }

    /// An interval has ended.
    fn interval(&mut self, summaries: &[Summary]) {
        for summary in summaries {
            match (&mut *self, summary) {
                (Self::Tcp(account), Summary::Tcp(tcp)) => account.interval(tcp.segments_sent),
                (Self::Dns(account), Summary::Dns(dns)) => account.interval(dns.waiting),
                (Self::Syscalls(account), Summary::Syscalls(calls)) => account.interval(calls),
                (
                    Self::Tcp(_) | Self::Dns(_) | Self::Syscalls(_),
                    Summary::Tcp(_) | Summary::Dns(_) | Summary::Syscalls(_),
                ) => {}
            }
        }
    }

    fn close(&mut self, out: &mut dyn Write, report: &Report) -> io::Result<()> {
        match self {
            Self::Tcp(account) => {
                if segments_are_missing(report) {
                    account.miss_segments();
                }
                console::tcp::closing(out, account, account.age(), missing_events(report, "tcp"))
            }
            Self::Dns(account) => {
                console::dns::closing(out, account, account.age(), missing_events(report, "dns"))
            }
            Self::Syscalls(account) => {
                console::syscalls::closing(out, account, account.age(), missing_events(report, "syscalls"))
            }
        }
    }
}

impl StdoutSink {
    pub(super) fn new(config: &Config, style: Style, signal: Option<&str>) -> Self {
        let signal = signal.filter(|_| config.output == Output::Table);
        let (by, top) = (config.syscalls.by, config.syscalls.top);
        let shape = console::syscalls::Shape { colours: colours(), ..console::syscalls::Shape::new(by, top) };
        let is_screen = signal == Some("syscalls") && draws();
        Self {
            out: BufWriter::with_capacity(64 * 1024, io::stdout()),
            form: config.output,
            style,
            left: config.count,
            heading: signal.and_then(console::heading),
            colours: colours(),
            account: signal.and_then(|signal| Account::of(signal, config)),
            shape,
            screen: is_screen.then(|| console::syscalls::Screen::new(shape)),
        }
    }

    /// Writes what there is to say at the end, once losses are known.
    pub(super) fn close(&mut self, report: &Report) -> io::Result<()> {
        if let Some(screen) = &mut self.screen {
            screen.catch_up(&mut self.out, true)?;
        }
        if let Some(account) = &mut self.account {
            account.close(&mut self.out, report)?;
        }
        self.flush()
    }

    fn syscalls(&mut self, summary: &signals::syscalls::Summary, now_unix_ns: u64) -> io::Result<()> {
        let interval = console::syscalls::Interval::of(summary, now_unix_ns);
        match &mut self.screen {
            Some(screen) => screen.interval(&mut self.out, interval),
            None => {
                interval.lines(&self.shape, None).iter().try_for_each(|line| writeln!(self.out, "{line}"))
            }
        }
    }

    fn write(&mut self, event: &Event) -> io::Result<bool> {
        match (self.form, self.style, event) {
            (Output::Json, _, event) => json::write(&mut self.out, event)?,
            // Losses are no data.
            (Output::Table, _, Event::Loss(loss)) => {
                match &mut self.screen {
                    // On the same terminal it would be drawn over.
                    Some(screen) if io::stderr().is_terminal() => screen.keep(event),
                    Some(_) | None => {
                        let mut line = Vec::new();
                        console::loss(&mut line, loss)?;
                        stderr_line(
                            Level::WARN,
                            format_args!("{}", String::from_utf8_lossy(&line).trim_end()),
                        );
                    }
                }
                return Ok(false);
            }
            (Output::Table, Style::Summaries, _) | (Output::Table, _, Event::SyscallSummary(_)) => {
                return Ok(false);
            }
            (Output::Table, Style::Live, event) => {
                if let Some(heading) = self.heading.take() {
                    writeln!(self.out, "{heading}")?;
                }
                match &mut self.screen {
                    Some(screen) => screen.keep(event),
                    None => console::line(&mut self.out, event, self.colours)?,
                }
                if let Some(account) = &mut self.account {
                    account.add(event);
                }
            }
        }
        Ok(!matches!(event, Event::Loss(_)))
    }
}

impl Sink for StdoutSink {
    fn wants_events(&self) -> bool {
        self.form == Output::Json || self.style == Style::Live
    }

    fn event(&mut self, event: &Event) -> io::Result<Flow> {
        if self.write(event)?
            && let Some(left) = &mut self.left
        {
            *left -= 1;
            if *left == 0 {
                self.flush()?;
                return Ok(Flow::Enough);
            }
        }
        Ok(Flow::More)
    }

    fn interval(&mut self, summaries: &[Summary], snapshot: &Snapshot<'_>) -> io::Result<()> {
        let now_unix_ns = snapshot.time_unix_ns();
        if self.form == Output::Json {
            return Ok(());
        }
        if let Some(account) = &mut self.account {
            account.interval(summaries);
        }
        if self.style == Style::Summaries {
            writeln!(
                self.out,
                "── {} UTC",
                rfc3339(now_unix_ns).get(..19).unwrap_or_default().replace('T', " ")
            )?;
        }
        for summary in summaries {
            match (self.style, summary) {
                (Style::Summaries, summary) => console::summary(&mut self.out, summary)?,
                (Style::Live, Summary::Syscalls(summary)) => self.syscalls(summary, now_unix_ns)?,
                (Style::Live, Summary::Tcp(_) | Summary::Dns(_)) => {}
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(screen) = &mut self.screen {
            screen.catch_up(&mut self.out, false)?;
        }
        self.out.flush()
    }
}

/// Several sinks, one after the other.
pub(super) struct Tee<'a>(pub(super) Vec<&'a mut dyn Sink>);

impl Sink for Tee<'_> {
    fn wants_events(&self) -> bool {
        self.0.iter().any(|sink| sink.wants_events())
    }

    fn event(&mut self, event: &Event) -> io::Result<Flow> {
        for sink in &mut self.0 {
            if sink.wants_events() && sink.event(event)? == Flow::Enough {
                return Ok(Flow::Enough);
            }
        }
        Ok(Flow::More)
    }

    fn interval(&mut self, summaries: &[Summary], snapshot: &Snapshot<'_>) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|sink| sink.interval(summaries, snapshot))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|sink| sink.flush())
    }
}

/// Whether stdout is a terminal.
pub(super) fn on_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether what is on it can be drawn over: a terminal that knows how.
fn draws() -> bool {
    on_terminal() && std::env::var_os("TERM").is_none_or(|term| term != OsStr::new("dumb"))
}

fn colours() -> console::Colours {
    let [no_color, term] = ["NO_COLOR", "TERM"].map(std::env::var_os);
    console::Colours::wanted(on_terminal(), no_color.as_deref(), term.as_deref())
}

/// A closed pipe ends a command quietly; everything else is an error.
pub(super) fn ended(result: io::Result<Report>) -> Result<Option<Report>, Failure> {
    match result {
        Ok(report) => Ok(Some(report)),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
        Err(error) => Err(Failure::running(error)),
    }
}

/// Events of a signal that may be missing. The maps of tcp cost owners and totals, those of dns lookups.
fn missing_events(report: &Report, signal: &str) -> u64 {
    let places = report.losses.iter().filter(|((of, place), _)| *of == signal && !place.starts_with("tcp."));
    places.map(|(_, (count, _remedy))| count).sum()
}

/// Whether connections may have sent segments that no sum has.
fn segments_are_missing(report: &Report) -> bool {
    let places = [Counter::SocketsFull.place(), Counter::SegmentsFull.place(), SKIPPED];
    places.iter().any(|place| report.losses.contains_key(&(Tcp.object().name, place)))
}

/// The last word: what was seen, and what was lost.
pub(super) fn closing_lines(report: &Report) {
    let records: Vec<String> =
        report.records.iter().map(|(signal, count)| format!("{signal} {count}")).collect();
    let records = if records.is_empty() { "none".to_owned() } else { records.join(", ") };
    let lost = if report.losses.is_empty() { "; nothing was lost" } else { "" };
    stderr_line(Level::INFO, format_args!("records: {records}{lost}"));
    let ignored = |counter: Counter| report.ignored.get(counter.place()).copied().unwrap_or(0);
    let (malformed, orphans) = (ignored(Counter::DnsMalformed), ignored(Counter::DnsOrphans));
    if malformed != 0 {
        stderr_line(Level::INFO, format_args!("dns: {malformed} malformed packets"));
    }
    if orphans != 0 {
        stderr_line(
            Level::INFO,
            format_args!("dns: {orphans} answers to no waiting question, late ones included"),
        );
    }
    for ((signal, place), (count, remedy)) in &report.losses {
        stderr_line(Level::WARN, format_args!("lost: {count} of {signal} at {place}: {remedy}"));
    }
}
