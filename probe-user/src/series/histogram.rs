//! A cumulative latency histogram over the buckets of [`probe_common::hist`].

use std::time::Duration;

use probe_common::hist::{self, BUCKETS};

use crate::handover::HistogramState;

/// Exponents of the bounds of [`Histogram::by_octave`]: from 2^-20 s, about a microsecond, to 2^3 s. The last octave that is counted has
/// no upper bound, and begins above that.
const OCTAVES: std::ops::RangeInclusive<i32> = -20..=3;

/// Counts by bucket, their number, and the sum of what was counted.
///
/// Only the window of buckets between the first and the last that ever counted is kept: a latency spreads
/// over a few octaves, and 100,000 series of 112 counters would be 86 MiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Array index (see [`hist`]) of `counts`' first element. Meaningless while `counts` is empty.
    first: usize,
    counts: Vec<u64>,
    count: u64,
    /// Nanoseconds. A thousand waiting threads add 1,000 s a second, which is 213 days of a `u64`.
    sum_ns: u128,
    /// Nanoseconds: the longest value that came as such. Not the maximum while a bucket above it has counted.
    max_ns: Option<u64>,
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { first: 0, counts: Vec::new(), count: 0, sum_ns: 0, max_ns: None }
    }

    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.bump(hist::bucket(ns), 1);
        self.count = self.count.saturating_add(1);
        self.sum_ns = self.sum_ns.saturating_add(u128::from(ns));
        self.max_ns = self.max_ns.max(Some(ns));
    }

    /// Adds what the kernel counted since the last time: `deltas` by bucket, and their sum in nanoseconds.
    /// `max_ns` is the longest of them, where the kernel kept it.
    pub fn merge_counts(&mut self, deltas: &[u64; BUCKETS], sum_ns: u64, max_ns: Option<u64>) {
        let (Some(first), Some(last)) =
            (deltas.iter().position(|&n| n > 0), deltas.iter().rposition(|&n| n > 0))
        else {
            return;
        };
        self.reach(first);
        self.reach(last);
        let from = self.first;
        for (mine, delta) in self.counts.iter_mut().zip(deltas.iter().skip(from)) {
            *mine = mine.saturating_add(*delta);
            self.count = self.count.saturating_add(*delta);
        }
        self.sum_ns = self.sum_ns.saturating_add(u128::from(sum_ns));
        self.max_ns = self.max_ns.max(max_ns);
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        let Self { first, counts, count, sum_ns, max_ns } = other;
        if let Some(last) = counts.len().checked_sub(1) {
            self.reach(*first);
            self.reach(first + last);
        }
        let from = first.saturating_sub(self.first);
        for (mine, theirs) in self.counts.iter_mut().skip(from).zip(counts) {
            *mine = mine.saturating_add(*theirs);
        }
        self.count = self.count.saturating_add(*count);
        self.sum_ns = self.sum_ns.saturating_add(*sum_ns);
        self.max_ns = self.max_ns.max(*max_ns);
    }

    /// What has been counted since it was as `before`. The longest value of that is not known.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut counts = self.counts.clone();
        // The window only widens.
        let from = before.first.saturating_sub(self.first);
        for (mine, theirs) in counts.iter_mut().skip(from).zip(&before.counts) {
            *mine = mine.saturating_sub(*theirs);
        }
        Self {
            first: self.first,
            counts,
            count: self.count.saturating_sub(before.count),
            sum_ns: self.sum_ns.saturating_sub(before.sum_ns),
            max_ns: None,
        }
    }

    /// The same in few buckets: upper bound in seconds, and count; the last has no upper bound. The same for every histogram.
    ///
    /// Bounds are powers of two of a second (`OCTAVES`), which are bounds of the buckets that are counted: nothing is estimated.
    #[must_use]
    pub fn by_octave(&self) -> Box<[(f64, u64)]> {
        let mut octaves: Vec<(f64, u64)> = OCTAVES.map(|exponent| (f64::from(exponent).exp2(), 0)).collect();
        octaves.push((f64::INFINITY, 0));
        let (first, counts) = self.buckets();
        let indices = i32::try_from(first).unwrap_or(i32::MAX).saturating_add(hist::OTLP_OFFSET)..;
        for (index, count) in indices.zip(counts) {
            // Up to 2^((index + 1) / 4) seconds: rounded up to the next power of two.
            let exponent = index.saturating_add(4).div_euclid(4);
            let at = usize::try_from(exponent - OCTAVES.start()).unwrap_or(0).min(octaves.len() - 1);
            if let Some((_, sum)) = octaves.get_mut(at) {
                *sum = sum.saturating_add(*count);
            }
        }
        octaves.into()
    }

    /// Values counted.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Nanoseconds of all values together.
    #[must_use]
    pub const fn sum_ns(&self) -> u128 {
        self.sum_ns
    }

    /// Seconds of all values together.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// The longest value, unless all that is known of it is its bucket.
    #[must_use]
    pub fn max(&self) -> Option<Duration> {
        let highest = self.counts.iter().rposition(|&n| n > 0).map_or(0, |offset| self.first + offset);
        self.max_ns.filter(|ns| hist::bucket(*ns) >= highest).map(Duration::from_nanos)
    }

    /// The array index of the first bucket that is kept, and the counts from there on, both ends trimmed of
    /// zeros. Add [`hist::OTLP_OFFSET`] to the index for OTLP's.
    #[must_use]
    pub fn buckets(&self) -> (usize, &[u64]) {
        let skip = self.counts.iter().take_while(|&&n| n == 0).count();
        let end = self.counts.iter().rposition(|&n| n > 0).map_or(skip, |last| last + 1);
        (self.first + skip, self.counts.get(skip..end).unwrap_or_default())
    }

    /// The value below which the share `q` (0 to 1) of all values lies: the geometric middle of its bucket,
    /// at most 9.1 % off, and never above the maximum where that is known. `None` when nothing was counted.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = (q.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0);
        let mut below = 0u64;
        let offset = self.counts.iter().position(|&n| {
            below = below.saturating_add(n);
            below as f64 >= rank
        })?;
        let middle = middle_seconds(self.first + offset);
        let value = Duration::from_secs_f64(middle);
        Some(self.max().map_or(value, |max| value.min(max)))
    }

    /// As it is left for the next agent.
    pub(super) fn leave(&self) -> HistogramState {
        let Self { first, counts, count: _, sum_ns, max_ns } = self;
        HistogramState {
            first: u32::try_from(*first).unwrap_or(u32::MAX),
            counts: counts.clone(),
            sum_low: *sum_ns as u64,
            sum_high: (*sum_ns >> u64::BITS) as u64,
            max_ns: *max_ns,
        }
    }

    /// As it was left; `None`: it has buckets that there are not.
    pub(super) fn go_on(state: &HistogramState) -> Option<Self> {
        let HistogramState { first, counts, sum_low, sum_high, max_ns } = state;
        let first = usize::try_from(*first).ok()?;
        let is_within = first.checked_add(counts.len()).is_some_and(|end| end <= BUCKETS);
        is_within.then(|| Self {
            first,
            counts: counts.clone(),
            count: counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count)),
            sum_ns: u128::from(*sum_high) << u64::BITS | u128::from(*sum_low),
            max_ns: *max_ns,
        })
    }

    fn bump(&mut self, bucket: usize, by: u64) {
        self.reach(bucket);
        if let Some(count) = self.counts.get_mut(bucket.saturating_sub(self.first)) {
            *count = count.saturating_add(by);
        }
    }

    /// Widens the window until it holds `bucket`.
    fn reach(&mut self, bucket: usize) {
        let bucket = bucket.min(BUCKETS - 1);
        if self.counts.is_empty() {
            self.first = bucket;
            self.counts.push(0);
        } else if bucket < self.first {
            let missing = self.first - bucket;
            self.counts.splice(0..0, std::iter::repeat_n(0, missing));
            self.first = bucket;
        } else if bucket >= self.first + self.counts.len() {
            self.counts.resize(bucket - self.first + 1, 0);
        }
    }
}

/// Geometric middle of a bucket, in seconds.
fn middle_seconds(bucket: usize) -> f64 {
    let octaves = f64::from(1i32 << hist::SCALE);
    ((f64::from(hist::OTLP_OFFSET) + bucket as f64 + 0.5) / octaves).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_sums_and_trims() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.5), None);
        assert_eq!(histogram.buckets(), (0, &[][..]));
        for ms in [4, 1, 2] {
            histogram.record(Duration::from_millis(ms));
        }
        assert_eq!((histogram.count(), histogram.sum_ns()), (3, 7_000_000));
        assert_eq!(histogram.max(), Some(Duration::from_millis(4)));
        let (first, counts) = histogram.buckets();
        assert_eq!((first, counts), (hist::bucket(1_000_000), &[1, 0, 0, 0, 1, 0, 0, 0, 1][..]));
    }

    #[test]
    fn merging_gives_what_recording_gives() {
        let durations: Vec<_> = (0..2_000u64).map(|i| Duration::from_nanos(i * i * 31 + 40)).collect();
        let mut whole = Histogram::new();
        let mut counts = [0u64; BUCKETS];
        let (mut sum, mut max) = (0, 0);
        for duration in &durations {
            whole.record(*duration);
            let ns = duration.as_nanos() as u64;
            counts[hist::bucket(ns)] += 1;
            sum += ns;
            max = max.max(ns);
        }
        let mut from_kernel = Histogram::new();
        from_kernel.merge_counts(&counts, sum, Some(max));
        assert_eq!(from_kernel, whole);
        from_kernel.merge_counts(&counts, sum, None);
        assert_eq!(
            (from_kernel.count(), from_kernel.max()),
            (4_000, whole.max()),
            "no longer bucket, no longer value"
        );
        let mut longer = [0u64; BUCKETS];
        longer[hist::bucket(max) + 1] = 1;
        from_kernel.merge_counts(&longer, max * 2, None);
        assert_eq!(from_kernel.max(), None, "the longest came without its length");
        from_kernel.merge_counts(&longer, max * 2, Some(max * 2));
        assert_eq!(from_kernel.max(), Some(Duration::from_nanos(max * 2)));
        let before = from_kernel.clone();
        from_kernel.merge_counts(&[0; BUCKETS], 0, None);
        assert_eq!(from_kernel, before);
    }

    #[test]
    fn two_are_what_one_would_have_been() {
        let of = |durations: &[u64]| {
            let mut histogram = Histogram::new();
            durations.iter().for_each(|ns| histogram.record(Duration::from_nanos(*ns)));
            histogram
        };
        for (what, left, right) in [
            ("nothing and nothing", &[][..], &[][..]),
            ("nothing and something", &[], &[700, 90_000]),
            ("something and nothing", &[700, 90_000], &[]),
            ("shorter ones", &[90_000, 1_000_000], &[40, 700]),
            ("longer ones", &[40, 700], &[90_000, 1_000_000]),
            ("around", &[700, 90_000], &[40, 800, 1_000_000]),
            ("within", &[40, 1_000_000], &[700, 90_000]),
            ("the same", &[700], &[700]),
        ] {
            let mut merged = of(left);
            merged.merge(&of(right));
            assert_eq!(merged, of(&[left, right].concat()), "{what}");
        }
        // The longest of those that came without their length is not known.
        let mut longer = Histogram::new();
        let mut counts = [0; BUCKETS];
        counts[hist::bucket(1_000_000)] = 1;
        longer.merge_counts(&counts, 1_000_000, None);
        let mut merged = of(&[700]);
        merged.merge(&longer);
        assert_eq!((merged.count(), merged.max()), (2, None));
    }

    #[test]
    fn octaves_are_powers_of_two_and_nothing_is_lost() {
        let mut histogram = Histogram::new();
        // 2^-20 s is 953.67 ns; bounds are good to a ten-millionth; beyond the last nothing is known but that.
        for ns in [
            1,
            953,
            954,
            1_900,
            1_908,
            499_999_900,
            500_000_100,
            7_999_999_000,
            8_000_001_000,
            60_000_000_000,
        ] {
            histogram.record(Duration::from_nanos(ns));
        }
        let found: Vec<(i32, u64)> = OCTAVES
            .chain([99])
            .zip(histogram.by_octave())
            .filter(|(_, (_, count))| *count != 0)
            .map(|(exponent, (_, count))| (exponent, count))
            .collect();
        assert_eq!(found, [(-20, 2), (-19, 2), (-18, 1), (-1, 1), (0, 1), (3, 1), (99, 2)]);
        let bounds: Vec<f64> = Histogram::new().by_octave().iter().map(|(bound, _)| *bound).collect();
        assert_eq!((bounds[0], bounds[20], bounds[24]), (0.000_000_953_674_316_406_25, 1.0, f64::INFINITY));
    }

    #[test]
    fn what_came_since_is_what_is_missing() {
        let of = |durations: &[u64]| {
            let mut histogram = Histogram::new();
            durations.iter().for_each(|ns| histogram.record(Duration::from_nanos(*ns)));
            histogram
        };
        for (before, more) in [
            (&[][..], &[700, 90_000][..]),
            (&[90_000], &[40, 1_000_000]),
            (&[40, 1_000_000], &[90_000, 90_000]),
        ] {
            let now = of(&[before, more].concat());
            let since = now.since(&of(before));
            assert_eq!(
                (since.buckets(), since.sum_ns()),
                (of(more).buckets(), of(more).sum_ns()),
                "{more:?}"
            );
            assert_eq!((since.count(), since.max()), (more.len() as u64, None));
            assert_eq!((now.since(&now).count(), now.since(&now).buckets().1), (0, &[][..]));
        }
    }

    #[test]
    fn quantiles_are_within_half_a_bucket() {
        let mut histogram = Histogram::new();
        let values: Vec<u64> = (1..=10_000).map(|i| i * 1_000).collect();
        for &ns in &values {
            histogram.record(Duration::from_nanos(ns));
        }
        for q in [0.01, 0.5, 0.9, 0.99] {
            let exact = values[((q * 10_000.0) as usize).max(1) - 1] as f64;
            let got = histogram.quantile(q).unwrap().as_nanos() as f64;
            assert!((got / exact - 1.0).abs() < 0.092, "q {q}: {got} for {exact}");
        }
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_millis(10)), "clamped to the maximum");
        assert!(histogram.quantile(0.0).is_some());
    }

    #[test]
    fn the_shortest_and_the_longest_are_counted() {
        let mut histogram = Histogram::new();
        histogram.record(Duration::ZERO);
        histogram.record(Duration::MAX);
        let (first, counts) = histogram.buckets();
        assert_eq!((first, counts.len(), histogram.count()), (0, BUCKETS, 2));
    }
}
