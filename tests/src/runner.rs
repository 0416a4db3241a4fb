//! Runs live tests one after another, each in a process of its own, and says how each ended. The same on a host and in a
//! virtual machine.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::protocol::{Event, Outcome, Plan, Suite};
use crate::require::SKIP_MARK;

/// What a failed test wrote is cut to its end: a virtual machine's serial line is slow.
const OUTPUT_LIMIT: usize = 16 << 10;
/// How long what is left of a killed test may keep its pipes open.
const PIPES: Duration = Duration::from_secs(5);

/// Runs a plan to its end.
///
/// # Errors
///
/// The events cannot be written, or the plan's command does not start.
pub fn run(plan: &Plan, events: &mut dyn Write) -> Result<()> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    tell(events, &Event::Started { kernel })?;
    for suite in &plan.suites {
        for test in &suite.tests {
            let start = Instant::now();
            let run = || {
                run_test(plan, suite, test)
                    .unwrap_or_else(|error| Outcome::Failed { output: format!("{error:#}") })
            };
            let (outcome, first_failure) = match run() {
                Outcome::Failed { output } if plan.second_try => (run(), Some(output)),
                outcome => (outcome, None),
            };
            let name = format!("{}::{test}", suite.name);
            let seconds = start.elapsed().as_secs_f64();
            tell(events, &Event::Test { name, outcome, seconds, first_failure })?;
        }
    }
    let code = match plan.command.split_first() {
        Some((program, args)) => run_command(plan, program, args, events)?,
        None => None,
    };
    tell(events, &Event::Ended { code })
}

fn tell(events: &mut dyn Write, event: &Event) -> Result<()> {
    // In one write: a serial line takes what it gets.
    let line = serde_json::to_string(event)? + "\n";
    events.write_all(line.as_bytes()).and_then(|()| events.flush()).context("cannot tell what happened")
}

fn run_test(plan: &Plan, suite: &Suite, test: &str) -> Result<Outcome> {
    let mut command = Command::new(&suite.program);
    command.args(["--exact", test, "--test-threads=1"]).envs(&plan.env).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", suite.program.display()))?;
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no such pid")?;
    let (sender, receiver) = sync_channel(2);
    for pipe in [child.stdout.take().map(boxed), child.stderr.take().map(boxed)].into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            // The receiver is gone where a pipe outlived its test for too long.
            let _late = sender.send(read_end(pipe));
        });
    }
    drop(sender);

    let timeout = Duration::from_secs(plan.timeout_s);
    let end = Instant::now() + timeout;
    let mut outputs = Vec::new();
    let mut timed_out = false;
    // A test that ends closes its pipes; what it left running may hold them open, and is not waited for long.
    loop {
        let patience = if timed_out { PIPES } else { end.saturating_duration_since(Instant::now()) };
        match receiver.recv_timeout(patience) {
            Ok(output) => outputs.push(output),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if timed_out => break,
            Err(RecvTimeoutError::Timeout) => {
                timed_out = true;
                let _gone = kill_process_group(group, Signal::KILL);
            }
        }
    }
    let status = child.wait()?;
    // What the test left behind must not meet the next one.
    let _none_left = kill_process_group(group, Signal::KILL);
    let output = outputs.join("\n");
    if timed_out {
        return Ok(Outcome::Failed { output: format!("not done within {timeout:?}, killed\n{output}") });
    }
    Ok(judge(status, output))
}

/// How a test ended, by its exit status and what it wrote.
fn judge(status: ExitStatus, output: String) -> Outcome {
    if !status.success() {
        return Outcome::Failed { output: format!("{status}\n{output}") };
    }
    // A name that matches no test is a success to the harness.
    if !output.contains("\ntest result: ok. 1 passed;") {
        return Outcome::Failed { output: format!("the test did not run\n{output}") };
    }
    match output.lines().find_map(|line| line.split_once(SKIP_MARK)) {
        Some((_before, reason)) => Outcome::Skipped { reason: reason.to_owned() },
        None => Outcome::Passed,
    }
}

fn boxed(pipe: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(pipe)
}

/// The end of what comes.
fn read_end(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What a broken pipe leaves is what there is.
    let _broken = pipe.read_to_end(&mut bytes);
    let cut = bytes.len().saturating_sub(OUTPUT_LIMIT);
    String::from_utf8_lossy(bytes.get(cut..).unwrap_or_default()).into_owned()
}

/// Runs the plan's command; both its outputs become events.
fn run_command(plan: &Plan, program: &str, args: &[String], events: &mut dyn Write) -> Result<Option<i32>> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(args).envs(&plan.env).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    // It holds the writing ends of the pipe.
    drop(command);
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        tell(events, &Event::Output { line })?;
    }
    Ok(child.wait()?.code())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_test_is_judged_by_status_and_words() {
        let ended = ExitStatus::from_raw;
        let ok = "\nrunning 1 test\ntest a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        let none = "\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored\n";
        let skipped = format!("\nrunning 1 test\ntest a ... {SKIP_MARK}x: from 6.1 on\nok\n{ok}");
        assert_eq!(judge(ended(0), ok.into()), Outcome::Passed);
        assert_eq!(judge(ended(0), skipped.clone()), Outcome::Skipped { reason: "x: from 6.1 on".into() });
        assert!(matches!(judge(ended(0), none.into()), Outcome::Failed { .. }));
        assert!(matches!(judge(ended(9), skipped), Outcome::Failed { .. }));
    }

    #[test]
    fn a_test_that_hangs_is_killed_and_what_it_wrote_is_kept() {
        let plan = Plan { timeout_s: 1, ..Plan::default() };
        // Stands in for a program of tests; the shell's arguments are the harness's, and it reads none of them.
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hangs");
        let suite = Suite { name: "suite".into(), program, tests: Vec::new() };
        let outcome = run_test(&plan, &suite, "hangs").unwrap();
        let Outcome::Failed { output } = outcome else { panic!("{outcome:?}") };
        assert!(output.contains("not done within 1s") && output.contains("before"), "{output}");
    }

    #[test]
    fn commands_are_heard() {
        let plan = Plan {
            command: ["sh", "-c", "echo one; echo two >&2; exit 3"].map(str::to_owned).into(),
            ..Plan::default()
        };
        let mut events = Vec::new();
        run(&plan, &mut events).unwrap();
        let events = String::from_utf8(events).unwrap();
        for part in [r#""line":"one""#, r#""line":"two""#, r#""code":3"#] {
            assert!(events.contains(part), "{part}: {events}");
        }
    }
}
