//! Clocks: the kernel stamps with CLOCK_MONOTONIC, people read the wall clock.
//!
//! Durations are differences of kernel stamps and never touch the wall clock; only the time of an event goes
//! through here.

use rustix::time::{ClockId, clock_gettime};

/// Brackets taken for one measurement: the tightest counts.
const TRIES: usize = 5;

/// Offsets between the clocks, measured now and again: the wall clock is set and slewed, and
/// CLOCK_BOOTTIME runs on through a suspend where CLOCK_MONOTONIC stands still.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// CLOCK_REALTIME less CLOCK_MONOTONIC, nanoseconds.
    wall: i64,
    /// CLOCK_BOOTTIME less CLOCK_MONOTONIC, nanoseconds.
    boot: i64,
}

impl Clock {
    /// Measures the offsets.
    pub fn new() -> Self {
        Self { wall: offset(ClockId::Realtime), boot: offset(ClockId::Boottime) }
    }

    /// Measures the offsets again; some microseconds of work. Times that were converted stay as they were.
    pub fn refresh(&mut self) {
        *self = Self::new();
    }

    /// Wall clock of a kernel stamp (CLOCK_MONOTONIC, `bpf_ktime_get_ns`), in nanoseconds since 1970, UTC.
    pub fn wall(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns.saturating_add_signed(self.wall)
    }

    /// Wall clock of a stamp of CLOCK_BOOTTIME, such as the time at which a task began, in nanoseconds since
    /// 1970, UTC.
    pub fn wall_of_boot(&self, boottime_ns: u64) -> u64 {
        self.wall(boottime_ns.saturating_add_signed(self.boot.saturating_neg()))
    }

    /// CLOCK_BOOTTIME of a kernel stamp, nanoseconds.
    pub fn boot(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns.saturating_add_signed(self.boot)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// Nanoseconds of a tick of the kernel's, by which CLOCK_MONOTONIC_COARSE goes on at a time.
pub fn tick_ns() -> u32 {
    let tick = rustix::time::clock_getres(ClockId::MonotonicCoarse);
    u32::try_from(tick.tv_nsec).unwrap_or(10_000_000)
}

/// CLOCK_MONOTONIC now, nanoseconds: comparable with kernel stamps.
pub fn monotonic_ns() -> u64 {
    u64::try_from(now(ClockId::Monotonic)).unwrap_or(0)
}

/// CLOCK_REALTIME now, nanoseconds since 1970.
pub fn unix_now_ns() -> u64 {
    u64::try_from(now(ClockId::Realtime)).unwrap_or(0)
}

fn now(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// The other clock less CLOCK_MONOTONIC: read between two readings of the latter, of several tries the one
/// that took the shortest, so that an interruption in between does not count.
fn offset(clock: ClockId) -> i64 {
    let mut best = (i64::MAX, 0);
    for _ in 0..TRIES {
        let before = now(ClockId::Monotonic);
        let other = now(clock);
        let took = now(ClockId::Monotonic).saturating_sub(before);
        let middle = before.saturating_add(took / 2);
        best = best.min((took, other.saturating_sub(middle)));
    }
    best.1
}

/// RFC 3339, UTC, always nine digits of nanoseconds: `2026-01-02T03:04:05.000000006Z`.
pub fn rfc3339(unix_ns: u64) -> String {
    // u64 nanoseconds end in the year 2554, well within what jiff can say.
    let time = jiff::Timestamp::from_nanosecond(unix_ns.into()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{time:.9}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_with_nine_digits() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (1, "1970-01-01T00:00:00.000000001Z"),
            (1_767_323_045_120_000_000, "2026-01-02T03:04:05.120000000Z"),
            (951_782_399_999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ];
        for (ns, expected) in cases {
            assert_eq!(rfc3339(ns), expected);
        }
    }

    #[test]
    fn a_kernel_stamp_of_now_is_the_wall_clock_of_now() {
        let mut clock = Clock::new();
        clock.refresh();
        let wall = clock.wall(monotonic_ns());
        let system = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let apart = (system.as_nanos() as u64).abs_diff(wall);
        assert!(apart < 1_000_000_000, "{apart} ns apart");
        let boot = clock.boot(monotonic_ns());
        assert!(boot.abs_diff(now(ClockId::Boottime) as u64) < 1_000_000_000);
        assert!(clock.wall_of_boot(boot).abs_diff(wall) < 1_000_000_000);
    }

    #[test]
    fn no_stamp_overflows() {
        let clock = Clock { wall: i64::MAX, boot: i64::MIN };
        assert_eq!(clock.wall(u64::MAX), u64::MAX);
        assert_eq!(clock.boot(0), 0);
        let _ = clock.wall_of_boot(u64::MAX);
    }
}
