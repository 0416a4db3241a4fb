//! What `probe run` says on stderr: as objects if that is asked for, and no message without end.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use probe_tests::otlp_receiver::{Fault, Receiver};
use probe_tests::probe::{
    Probe, attached_links, command, expected_links, handles_interrupt, poll, require_root,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tonic::Status;

const LONG: Duration = Duration::from_secs(30);
/// How often a message is said in a minute.
const MOST: usize = 10;

/// A key's text.
fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The objects of stderr; every line must be one, with these keys.
fn objects(stderr: &str) -> Result<Vec<Value>> {
    ensure!(stderr.ends_with('\n'), "{stderr}");
    let object = |line: &str| -> Result<Value> {
        let object: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let keys: BTreeSet<&str> =
            object.as_object().context("no object")?.keys().map(String::as_str).collect();
        ensure!(keys == BTreeSet::from(["fields", "level", "message", "target", "time"]), "{line}");
        ensure!(["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&text(&object, "level")), "{line}");
        ensure!(object.get("fields").is_some_and(Value::is_object), "{line}");
        ensure!(text(&object, "time").len() == 30 && !text(&object, "target").is_empty(), "{line}");
        Ok(object)
    };
    stderr.lines().map(object).collect()
}

fn said(objects: &[Value], level: &str, words: &str) -> usize {
    let is_it = |object: &&Value| text(object, "level") == level && text(object, "message").contains(words);
    objects.iter().filter(is_it).count()
}

/// With a collector that is away, one that refuses, and one that takes everything; with all that there is to say.
#[test]
fn there_is_nothing_but_objects_on_stderr() -> Result<()> {
    // An address where nobody listens.
    let address = Receiver::start()?.address();
    let endpoint = format!("http://{address}");
    let probe =
        Probe::start_with(&["run", "--interval", "300ms", "--otlp-endpoint", &endpoint], |command| {
            command.env("RUST_LOG", "debug").env("PROBE_LOG_FORMAT", "json").env("PROBE_RING_KIBS", "1");
        })?;
    let intervals = |count: usize| {
        let before = probe.lines().len();
        probe.wait_for("intervals", LONG, |lines| {
            let new = lines.iter().skip(before).filter(|line| line.event() == "syscall.summary");
            let times: BTreeSet<_> = new.filter_map(|line| line.text("time")).collect();
            (times.len() >= count).then_some(())
        })
    };
    intervals(3)?;
    let receiver = Receiver::start_on(address)?;
    receiver.set_fault(Fault::Refuse(Status::permission_denied("not \"you\"\n\u{9b}31m")));
    receiver.wait_for("a request", LONG, |receiver| (receiver.calls() > 2).then_some(()))?;
    intervals(2)?;
    receiver.set_fault(Fault::None);
    receiver.wait_for("points", LONG, |receiver| (!receiver.points().is_empty()).then_some(()))?;
    let finished = probe.stop()?;
    finished.require_complete()?;

    let objects = objects(&finished.stderr)?;
    for (level, words) in [
        ("WARN", "PROBE_RING_KIBS is no variable of probe's; did you mean PROBE_RING_KIB?"),
        ("INFO", "running"),
        ("WARN", "cannot export"),
        ("WARN", "is refused"),
        ("DEBUG", ""),
        ("INFO", "nothing was lost"),
    ] {
        ensure!(said(&objects, level, words) > 0, "{level} {words:?}: {}", finished.stderr);
    }
    let away = objects.iter().find(|object| text(object, "message").contains("cannot export"));
    let fields = away.and_then(|object| object.get("fields")).context("no such line")?;
    ensure!(text(fields, "endpoint").contains(&address.to_string()), "{fields}");
    ensure!(!text(fields, "error.type").is_empty(), "{fields}");
    ensure!(finished.stderr.is_ascii(), "controls are escaped: {}", finished.stderr);
    Ok(())
}

/// An agent whose stderr is read while it runs; it and its file go when the test does.
struct Agent {
    child: Child,
    stderr: PathBuf,
    config: PathBuf,
}

impl Agent {
    fn start(args: &[&str]) -> Result<Self> {
        require_root()?;
        let name =
            |what: &str| std::env::temp_dir().join(format!("probe-logs-{}-{what}", std::process::id()));
        let (stderr, config) = (name("stderr"), name("config.yaml"));
        std::fs::write(&config, "interval: 300ms\n")?;
        let mut run = command(["run"].iter().chain(args))?;
        run.arg("--config").arg(&config).stdout(Stdio::null()).stderr(File::create(&stderr)?);
        let mut agent = Self { child: run.spawn()?, stderr, config };
        poll("the agent is ready", LONG, || {
            if let Some(status) = agent.child.try_wait()? {
                bail!("it ended at its start, {status}: {}", agent.said());
            }
            let pid = agent.child.id();
            Ok((attached_links(pid)? >= expected_links("run") && handles_interrupt(pid)?).then_some(()))
        })?;
        Ok(agent)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
        let _gone = [std::fs::remove_file(&self.stderr), std::fs::remove_file(&self.config)];
    }
}

/// One that repeats is said ten times, and at the end how often it would have been said.
#[test]
fn a_message_that_repeats_is_counted_instead() -> Result<()> {
    let mut agent = Agent::start(&["--log-format", "json"])?;
    std::fs::write(&agent.config, "interval: never\n")?;
    // Each hang-up has an answer, which is not held back, and then the message.
    let hang_ups = MOST + 5;
    for number in 1..=hang_ups {
        agent.signal(Signal::HUP)?;
        poll("the answer", LONG, || {
            Ok((agent.said().matches("cannot be used").count() >= number).then_some(()))
        })?;
    }
    agent.signal(Signal::INT)?;
    let status = poll("the end of probe", LONG, || Ok(agent.child.try_wait()?))?;
    let stderr = agent.said();
    ensure!(status.success(), "{status}: {stderr}");
    let objects = objects(&stderr)?;
    let (answers, told) =
        (said(&objects, "ERROR", "cannot be used"), said(&objects, "ERROR", "nothing is taken over"));
    ensure!(answers == hang_ups && told == MOST + 1, "{answers} {told}: {stderr}");
    let more = objects.iter().filter_map(|object| {
        let (more, rest) =
            text(object, "message").strip_prefix("said ")?.split_once(" more times in the last ")?;
        rest.contains(": SIGHUP: nothing is taken over").then(|| more.parse::<usize>().ok())?
    });
    let more: Vec<usize> = more.collect();
    // Whether the last was on its way when the end came is not known.
    ensure!(more == [5] || more == [4], "{more:?}: {stderr}");
    Ok(())
}
