//! What leaves the signal: rows of an interval, slow calls, calls that have not returned.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::super::Who;
use super::names;
use super::stacks::Sampled;
use crate::event::{AttrValue, Attributes, key, name};
use crate::series::Histogram;

/// What processes asked the kernel for in an interval.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How long the interval was.
    pub covers: Duration,
    /// In the order asked for.
    pub rows: Vec<Row>,
    /// Calls of the work class that had not returned at its end for longer than their threshold.
    pub in_flight: u64,
    /// Times are of one call in so many; 1: of every one, 0: there are none.
    pub latency_every: u32,
    /// What stacks came to: at the end, where they were wanted.
    pub sampled: Option<Arc<Sampled>>,
}

/// What one process, or all of a container, did with one system call in an interval.
#[derive(Clone, Debug)]
pub struct Row {
    /// End of the interval.
    pub time_unix_ns: u64,
    /// Who. Without a pid: a container's or the host's processes together; or ones that could not be told apart for want of
    /// blocks.
    pub who: Who,
    /// Name, `syscall_N` style where it has none.
    pub syscall: &'static str,
    /// Whether these calls waited by design.
    pub waits: bool,
    /// Calls that returned: exact, however many durations were measured.
    pub calls: u64,
    /// Durations; with `--latency-sample` each that was measured stands for those around it, with `--no-latency` there are none.
    pub durations: Histogram,
    /// The shortest.
    pub min: Option<Duration>,
    /// Time of all calls together in which the thread did not have the CPU: part of the durations' sum.
    pub off_cpu: Option<Duration>,
    /// Calls that failed, by errno's name.
    pub errors: Vec<(Cow<'static, str>, u64)>,
    /// Calls that had begun and not returned at the end of the interval. Those that never lost the CPU inside are not among them.
    pub in_flight: u64,
}

/// How far a figure is off that rests on so many calls, of which one in `every` was measured: the standard error of a time, of a
/// share of them, of a bucket, relative to it. 0: it is exact.
///
/// Each that was measured stands for as many as there were since the last, at random from 1 to `2 * every - 1`: `calls / every`
/// weights, of mean `every` and mean square `every² * 4/3`. (Times that differ much have more: this is what the sampling adds
/// where they are alike.)
#[must_use]
pub fn standard_error(every: u32, calls: u64) -> f64 {
    if every <= 1 { 0.0 } else { (4.0 / 3.0 * f64::from(every) / calls.max(1) as f64).sqrt() }
}

impl Row {
    /// Calls that failed.
    #[must_use]
    pub fn errors_total(&self) -> u64 {
        self.errors.iter().map(|(_, count)| count).sum()
    }
}

impl Attributes for Row {
    fn event_name(&self) -> &'static str {
        name::SYSCALL_SUMMARY
    }
    fn time_unix_ns(&self) -> u64 {
        self.time_unix_ns
    }
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        visitor(key::SYSCALL_NAME, AttrValue::Str(self.syscall));
        visitor(key::SYSCALL_CLASS, AttrValue::Str(names::class(self.waits)));
        visitor(key::COUNT, AttrValue::Int(integer(self.calls)));
        let errors: Vec<(&str, i64)> =
            self.errors.iter().map(|(errno, count)| (errno.as_ref(), integer(*count))).collect();
        visitor(key::ERRORS, AttrValue::Map(&errors));
        if self.in_flight != 0 {
            visitor(key::IN_FLIGHT, AttrValue::Int(integer(self.in_flight)));
        }
        if self.durations.count() != 0 {
            visitor(key::DURATION_SUM, AttrValue::Float(self.durations.sum_seconds()));
        }
        for (key, value) in [
            (key::DURATION_OFF_CPU, self.off_cpu),
            (key::DURATION_MIN, self.min),
            (key::DURATION_P50, self.durations.quantile(0.5)),
            (key::DURATION_P99, self.durations.quantile(0.99)),
            (key::DURATION_MAX, self.durations.max()),
        ] {
            if let Some(value) = value {
                visitor(key, AttrValue::Float(value.as_secs_f64()));
            }
        }
        self.who.visit(visitor);
    }
}

fn integer(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What a call was about, as far as it can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Argument registers, where this kernel's can be read.
    pub args: Option<[u64; 6]>,
    /// The file behind the descriptor, or the path that was given: `/var/log/syslog`, `pipe:[4711]`, `socket:[4712]`.
    pub file: Option<Box<str>>,
    /// Local end of the socket behind the descriptor.
    pub local: Option<SocketAddr>,
    /// Its peer.
    pub peer: Option<SocketAddr>,
}

impl Subject {
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        let Self { args, file, local, peer } = self;
        if let Some(args) = args {
            let args = args.map(|arg| format!("{arg:#x}"));
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            visitor(key::SYSCALL_ARGS, AttrValue::List(&args));
        }
        if let Some(file) = file {
            visitor(key::FILE_PATH, AttrValue::Str(file));
        }
        for (address, port, end) in [
            (key::NETWORK_LOCAL_ADDRESS, key::NETWORK_LOCAL_PORT, local),
            (key::NETWORK_PEER_ADDRESS, key::NETWORK_PEER_PORT, peer),
        ] {
            if let Some(end) = end {
                visitor(address, AttrValue::Str(&end.ip().to_string()));
                visitor(port, AttrValue::Int(i64::from(end.port())));
            }
        }
    }
}

/// A call took longer than its threshold.
#[derive(Clone, Debug)]
pub struct Slow {
    /// When it returned.
    pub time_unix_ns: u64,
    /// Who.
    pub who: Who,
    /// Thread.
    pub tid: u32,
    /// Name.
    pub syscall: &'static str,
    /// How long.
    pub duration: Duration,
    /// How much of that the thread did not have the CPU.
    pub off_cpu: Option<Duration>,
    /// What it was about.
    pub subject: Subject,
    /// Errno's name, where it failed.
    pub error: Option<Cow<'static, str>>,
    /// Where it was made and slept, folded: outermost function first, `;` between them.
    pub stack: Option<Box<str>>,
}

impl Attributes for Slow {
    fn event_name(&self) -> &'static str {
        name::SYSCALL_SLOW
    }
    fn time_unix_ns(&self) -> u64 {
        self.time_unix_ns
    }
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        visitor(key::SYSCALL_NAME, AttrValue::Str(self.syscall));
        visitor(key::DURATION, AttrValue::Float(self.duration.as_secs_f64()));
        if let Some(off_cpu) = self.off_cpu {
            visitor(key::DURATION_OFF_CPU, AttrValue::Float(off_cpu.as_secs_f64()));
        }
        if let Some(error) = &self.error {
            visitor(key::ERROR_TYPE, AttrValue::Str(error));
        }
        if let Some(stack) = &self.stack {
            visitor(key::STACK, AttrValue::Str(stack));
        }
        self.subject.visit(visitor);
        visitor(key::THREAD_ID, AttrValue::Int(i64::from(self.tid)));
        self.who.visit(visitor);
    }
}

/// A call has not returned for longer than its threshold.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// When it was looked at.
    pub time_unix_ns: u64,
    /// Who.
    pub who: Who,
    /// Thread.
    pub tid: u32,
    /// Name.
    pub syscall: &'static str,
    /// How long so far.
    pub duration: Duration,
    /// It began before probe did: it takes longer than that.
    pub is_older: bool,
    /// What it is about.
    pub subject: Subject,
    /// The kernel's function that it waits in, where symbols can be read.
    pub wchan: Option<Box<str>>,
    /// Kernel stack, folded: outermost function first, `;` between them.
    pub stack: Option<Box<str>>,
}

impl Attributes for InFlight {
    fn event_name(&self) -> &'static str {
        name::SYSCALL_IN_FLIGHT
    }
    fn time_unix_ns(&self) -> u64 {
        self.time_unix_ns
    }
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        visitor(key::SYSCALL_NAME, AttrValue::Str(self.syscall));
        visitor(key::DURATION, AttrValue::Float(self.duration.as_secs_f64()));
        if self.is_older {
            visitor(key::DURATION_AT_LEAST, AttrValue::Bool(true));
        }
        for (key, text) in [(key::SYSCALL_WCHAN, &self.wchan), (key::STACK, &self.stack)] {
            if let Some(text) = text {
                visitor(key, AttrValue::Str(text));
            }
        }
        self.subject.visit(visitor);
        visitor(key::THREAD_ID, AttrValue::Int(i64::from(self.tid)));
        self.who.visit(visitor);
    }
}
