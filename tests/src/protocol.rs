//! What `cargo xtask` and the runner of live tests (`bin/live.rs`) say to each other. Compiled into both: xtask includes
//! this file by path, because depending on the tests would have it build them before anything else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a virtual machine finds its plan.
pub const GUEST_PLAN: &str = "/plan.json";
/// Modules of the kernel that a virtual machine loads at its start.
pub const GUEST_MODULES: &str = "/modules";
/// Set in virtual machines: tests may do there what would disturb a host, such as setting the clock.
pub const IN_GUEST: &str = "PROBE_TEST_VM";

/// What to run.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Plan {
    /// Tests, each in a process of its own.
    pub suites: Vec<Suite>,
    /// A command instead of tests.
    pub command: Vec<String>,
    /// Environment of all.
    pub env: BTreeMap<String, String>,
    /// A test that takes longer is killed and has failed.
    pub timeout_s: u64,
    /// Whether a test that failed is tried once more. Emulated machines stand still at times, and tests take that for silence;
    /// it is said, and the first failure shown.
    pub second_try: bool,
}

/// One program of tests.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Suite {
    /// Name of its source file.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its tests to run.
    pub tests: Vec<String>,
}

/// What happened, one JSON object a line.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The runner runs.
    Started {
        /// `uname -r`.
        kernel: String,
    },
    /// A test ended.
    Test {
        /// Suite and test: `dns::a_question_sent_again_closes_the_try_before`.
        name: String,
        /// How.
        outcome: Outcome,
        /// How long it took.
        seconds: f64,
        /// What it wrote at its first try, which failed.
        first_failure: Option<String>,
    },
    /// A line that the command wrote.
    Output {
        /// Without its end.
        line: String,
    },
    /// Nothing more comes.
    Ended {
        /// The command's exit code.
        code: Option<i32>,
    },
}

/// How a test ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It passed.
    Passed,
    /// The kernel lacks something, as it may.
    Skipped {
        /// What, and the first kernel that has it.
        reason: String,
    },
    /// It failed.
    Failed {
        /// What it wrote.
        output: String,
    },
}
