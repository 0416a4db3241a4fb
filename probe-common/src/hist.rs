//! Latency buckets: base-2 exponential, four to an octave, aligned to powers of two of a *second*.
//!
//! This is the bucket layout of an OpenTelemetry exponential histogram at scale 2 (data model,
//! "ExponentialHistogram"): bucket `i` holds durations in `(2^(i/4) s, 2^((i+1)/4) s]`. The kernel counts
//! in an array; index 0 of the array is OTLP's bucket [`OTLP_OFFSET`]. (Edges are kept to 1e-7 of the duration.) So nothing is re-bucketed between the
//! kernel and the collector, and a quantile read from a bucket's geometric middle is off by at most 9.1 %.

use core::hint::black_box;

/// Buckets in an array: 28 octaves of four.
pub const BUCKETS: usize = 112;
/// OTLP scale: 2^2 buckets an octave.
pub const SCALE: i32 = 2;
/// log2 of the lower edge of the first bucket, in seconds: 2^-24 s is 59.6 ns.
const LOWEST_EXPONENT: i32 = -24;
/// OTLP index of the array's first bucket. What is shorter still is counted there too.
pub const OTLP_OFFSET: i32 = LOWEST_EXPONENT << SCALE;
/// Upper edge of the last bucket in seconds (2^4). What is longer is counted there too.
pub const LONGEST_SECONDS: f64 = 16.0;

/// One unit below is 2^-36 s, so that a nanosecond is 68.7 of them and the bucket edges are exact to 1e-7.
const UNIT_EXPONENT: i32 = 36;
/// 2^36 / 10^9 in units of 2^-12.
const UNITS_PER_NS_SHL12: u64 = 281_475;
/// Nanoseconds beyond which the product would overflow; 9.7 hours.
const LONGEST_NS: u64 = 1 << 45;
/// 2^16.25, 2^16.5 and 2^16.75, rounded up: the edges inside an octave.
const QUARTERS: [u64; 3] = [77_936, 92_682, 110_218];

/// The bucket of a duration in nanoseconds; always below [`BUCKETS`].
///
/// Mostly without branches: a verifier follows each way through them apart, and a processor guesses half of them wrong.
#[inline(always)]
#[must_use]
pub fn bucket(ns: u64) -> usize {
    let ns = if ns < LONGEST_NS { ns } else { LONGEST_NS };
    // Laundered, or the compiler makes branches again of what follows.
    let units = black_box((ns * UNITS_PER_NS_SHL12) >> 12);
    let lowest = (UNIT_EXPONENT + LOWEST_EXPONENT) as u32;
    let octave = log2(units);
    if octave < lowest {
        return 0;
    }
    // 17 significant bits: the leading one and 16 below it.
    let mantissa = (units << 4).wrapping_shr(octave - 12);
    let [first, second, third] = QUARTERS;
    let quarter = above(mantissa, first - 1) + above(mantissa, second - 1) + above(mantissa, third - 1);
    let index = ((octave - lowest) << SCALE) + quarter;
    if index < BUCKETS as u32 { index as usize } else { BUCKETS - 1 }
}

/// Position of the highest set bit; 0 for 0. BPF has no instruction for it.
#[inline(always)]
fn log2(mut value: u64) -> u32 {
    let mut bits = 0;
    for half in [5, 4, 3, 2, 1, 0] {
        let width = 1 << half;
        let shift = above(value, (1 << width) - 1) << half;
        value = value.wrapping_shr(shift);
        bits += shift;
    }
    bits
}

/// 1 if a number is above a limit, else 0. Both are below 2^63.
#[inline(always)]
fn above(number: u64, limit: u64) -> u32 {
    (limit.wrapping_sub(number) >> 63) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in floating point: OTLP's bucket of a duration.
    fn by_definition(ns: u64) -> i64 {
        extern crate std;
        let index = ((ns as f64 / 1e9).log2() * 4.0).ceil() as i64 - 1;
        (index - i64::from(OTLP_OFFSET)).clamp(0, BUCKETS as i64 - 1)
    }

    #[test]
    fn agrees_with_the_definition_everywhere() {
        let mut ns = 1u64;
        while ns < 40_000_000_000 {
            let (got, want) = (bucket(ns) as i64, by_definition(ns));
            // At an edge, the 1e-7 of the unit may decide; nowhere else.
            let edge = by_definition(ns + ns / 10_000_000) != by_definition(ns - ns / 10_000_000);
            assert!(got == want || (edge && (got - want).abs() == 1), "{ns} ns: {got}, by definition {want}");
            ns += 1 + ns / 997;
        }
    }

    #[test]
    fn edges() {
        for (ns, want) in [
            (0, 0),
            (1, 0),
            (59, 0),
            (70, 0),
            (71, 1),
            (1_953_124, 59), // just below 2^-9 s
            (1_953_126, 60),
            (999_999_000, 95), // just below 1 s
            (1_000_001_000, 96),
            (15_999_999_000, 111),
            (u64::MAX, 111),
        ] {
            assert_eq!(bucket(ns), want, "{ns} ns");
        }
    }
}
