//! Tests that are tried again where the kernel itself says that it did not run the programs.
#![expect(clippy::print_stdout, reason = "why a test was tried again is what a reader wants to see")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use crate::blind::BlindSpot;

/// Runs of programs that the kernel skipped in this attempt, by its own count: a softirq that comes in while the same
/// program runs on the CPU. `probe` reports them as lost.
static SKIPPED: AtomicU64 = AtomicU64::new(0);

/// Makes tests of functions of the same names, in a module `live`, each [`as_far_as_programs_ran`].
#[macro_export]
macro_rules! live {
    ($($test:ident)+) => {
        mod live {
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    $crate::attempts::as_far_as_programs_ran(stringify!($test), super::$test)
                }
            )+
        }
    };
}

/// Notes runs that the kernel skipped.
pub fn skipped(runs: u64) {
    SKIPPED.fetch_add(runs, Ordering::Relaxed);
}

/// Tries a test again where the kernel itself says that it did not run the programs: those runs are no fault of theirs,
/// and without them no sum can be exact. Anything else fails at once.
///
/// # Errors
///
/// The test's.
pub fn as_far_as_programs_ran(name: &str, test: fn() -> Result<()>) -> Result<()> {
    const ATTEMPTS: u32 = 5;
    for attempt in 1.. {
        SKIPPED.store(0, Ordering::Relaxed);
        // Without ftrace nothing is excused.
        let blind_spot = BlindSpot::watch();
        let result = catch_unwind(AssertUnwindSafe(test));
        if let Ok(Ok(())) = result {
            break;
        }
        let hidden = blind_spot.as_ref().map_or(0, |blind_spot| blind_spot.hits().unwrap_or(0));
        let skipped = SKIPPED.load(Ordering::Relaxed);
        if attempt == ATTEMPTS || (hidden == 0 && skipped == 0) {
            return result.unwrap_or_else(|panic| resume_unwind(panic));
        }
        println!(
            "{name}: once more, for the kernel hid {hidden} hits and skipped {skipped} runs: {result:?}"
        );
    }
    Ok(())
}
