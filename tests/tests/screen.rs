//! The screens as a person sees them. That of `probe tcp`: its lines beside the events of another probe, its summary beside the
//! kernel's counters, and what it says about them. That of `probe dns`: beside what the server saw.
#![expect(clippy::print_stdout, reason = "a screen is there to be looked at")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::UdpSocket;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_common::testdrop::{DATA, SYN};
use probe_tests::dns_server::{A, DnsServer, NXDOMAIN, Script, Served, query};
use probe_tests::drop::{RuleExt as _, lose};
use probe_tests::live;
use probe_tests::netns::Netns;
use probe_tests::probe::{
    DEADLINE, Line, attached_links, command, expected_links, handles_interrupt, patient, poll,
};
use rustix::process::{Pid, Signal, kill_process};

#[expect(dead_code, reason = "what tests of events need besides")]
#[path = "tcp/scene.rs"]
mod scene;

use scene::{Connection, FULL, Outcome, Scene, at};

/// How long the kernel's verifier may take.
const START: Duration = Duration::from_secs(120);
/// What a line of IPv4 fits into.
const COLUMNS: usize = 120;

live! {
    losses_resets_and_refusals
    nobody_answers
    so_many_events_and_no_more
    a_closed_pipe_is_a_quiet_end
    lookups_and_what_they_come_to
    what_still_waits_is_said
}

/// `probe tcp` or `probe dns` without `-o json`.
struct Screen {
    child: Child,
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Screen {
    fn start(scene: &Scene, arguments: &[&str]) -> Result<Self> {
        Self::of("tcp", &[&["--cgroup", scene.cgroup.path()], arguments].concat())
    }

    fn of(subcommand: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = command([subcommand])?;
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let text = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let mut text = shared.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&line);
                text.push('\n');
            }
        });
        let screen = Self { child, text, reader: Some(reader) };
        wait_until_it_watches(&screen.child, subcommand)?;
        Ok(screen)
    }

    /// Waits until so many lines say something.
    fn wait_for(&self, what: &str, count: usize) -> Result<()> {
        poll(&format!("{count} lines with {what}"), DEADLINE, || {
            let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
            Ok((text.lines().filter(|line| line.contains(what)).count() >= count).then_some(()))
        })
    }

    /// Waits for its end, and returns what was on it.
    fn end(mut self) -> Result<String> {
        let status = poll("the end of the screen", DEADLINE, || Ok(self.child.try_wait()?))?;
        let mut stderr = String::new();
        self.child.stderr.take().context("stderr")?.read_to_string(&mut stderr)?;
        ensure!(status.code() == Some(0), "{status}: {stderr}");
        ensure!(stderr.contains("nothing was lost"), "{stderr}");
        self.reader.take().map(JoinHandle::join);
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner).clone();
        println!("{text}");
        Ok(text)
    }

    fn stop(self) -> Result<String> {
        interrupt(&self.child)?;
        self.end()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn wait_until_it_watches(child: &Child, subcommand: &str) -> Result<()> {
    let links = expected_links(subcommand);
    poll("the screen is ready", START, || {
        Ok((attached_links(child.id())? >= links && handles_interrupt(child.id())?).then_some(()))
    })
}

fn interrupt(child: &Child) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("pid")?;
    Ok(kill_process(pid, Signal::INT)?)
}

/// Loses the last of four segments: a tail loss probe follows.
fn lose_a_tail(scene: &mut Scene, connection: &Connection, port: u16) -> Result<()> {
    scene.loss.set(&[lose(DATA).sent_to(port).after(3, 1)])?;
    scene.send(connection, 4)?;
    scene.receive(connection, 4)?;
    Ok(())
}

/// Events of a kind of the scene's own, as the other probe has them so far.
fn wait_for_events(scene: &Scene, what: &str, count: usize, wanted: impl Fn(&Line) -> bool) -> Result<()> {
    scene.probe.wait_for(what, DEADLINE, |lines| {
        let seen = lines.iter().filter(|line| scene.is_ours(line) && wanted(line)).count();
        (seen >= count).then_some(())
    })
}

/// How a line begins after its time, made of the event that another probe saw.
fn beginning(event: &Line) -> Result<String> {
    let text = |key: &str| event.text(key).with_context(|| format!("no {key}: {}", event.0));
    let kind = match event.event() {
        "tcp.retransmit" => match text("network.tcp.retransmit.type")? {
            "syn" => "SYN again".to_owned(),
            "syn_ack" => "SYN-ACK again".to_owned(),
            "slow_start" => "slow start".to_owned(),
            "fast" => "fast retransmit".to_owned(),
            "tail_loss_probe" => "tail loss probe".to_owned(),
            other => other.to_owned(),
        },
        "tcp.reset" if text("network.io.direction")? == "receive" => "reset received".to_owned(),
        "tcp.reset" => "reset sent".to_owned(),
        "tcp.connect" if event.text("error.type") == Some("ECONNREFUSED") => "refused".to_owned(),
        "tcp.connect" => text("error.type")?.to_owned(),
        "tcp.close" => "closed".to_owned(),
        other => other.to_owned(),
    };
    let segments = match event.event() {
        "tcp.close" => event.int("tcp.segments_retransmitted").filter(|segments| *segments != 0),
        _ => event.int("segments"),
    };
    let end = |which: &str| -> Result<String> {
        let port = event.int(&format!("network.{which}.port")).context("no port")?;
        Ok(at(text(&format!("network.{which}.address"))?, u16::try_from(port)?))
    };
    let segments = segments.map(|segments| segments.to_string()).unwrap_or_default();
    Ok(format!("{kind} {segments} {} → {}", end("local")?, end("peer")?))
}

/// The same of a line: its columns are where the heading's are.
fn beginning_of(line: &str, heading: &str) -> Result<String> {
    let column = |from: &str, to: &str| -> Result<String> {
        let place = |name: &str| heading.find(name).with_context(|| format!("no {name}: {heading}"));
        let (from, to) = (place(from)?, place(to)?);
        Ok(line.chars().skip(from).take(to - from).collect::<String>().trim().to_owned())
    };
    // Of a connection that closed, the time it lasted is another probe's own.
    let kind = column("KIND", "SEGS")?;
    let kind = kind.split_once(" (").map_or(&*kind, |(kind, _)| kind);
    let ends = line.chars().skip(heading.find("LOCAL").context("LOCAL")?).collect::<String>();
    let mut ends = ends.split_whitespace();
    let (local, arrow, peer) = (ends.next(), ends.next(), ends.next());
    ensure!(arrow == Some("→"), "{line}");
    // The time is another probe's own too.
    let time: String =
        column("TIME", "KIND")?.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    ensure!(time == "00:00:00.000", "{line}");
    let segments = column("SEGS", "LOCAL")?;
    Ok(format!("{kind} {segments} {} → {}", local.context("local")?, peer.context("peer")?))
}

/// Lines against events: none is missing, none is too much, and each fits.
fn check_lines(text: &str, outcome: &Outcome, cgroup: &str) -> Result<()> {
    let mut lines = text.lines().take_while(|line| !line.is_empty());
    let heading = lines.next().context("no heading")?;
    let lines: Vec<&str> = lines.collect();
    let mut seen = Vec::new();
    for line in &lines {
        ensure!(line.chars().count() <= COLUMNS, "{} columns: {line}", line.chars().count());
        seen.push(beginning_of(line, heading)?);
    }
    let events = outcome.events.iter().filter(|event| event.text("linux.cgroup.path") == Some(cgroup));
    let mut expected = events.map(beginning).collect::<Result<Vec<_>>>()?;
    seen.sort();
    expected.sort();
    ensure!(!expected.is_empty() && seen == expected, "lines:\n{seen:#?}\nevents:\n{expected:#?}");
    Ok(())
}

/// A table's rows: the first word or words, and the number in a column.
fn rows(text: &str, heading: &str, column: &str) -> Result<BTreeMap<String, i64>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("{heading} ")));
    let head = lines.next().with_context(|| format!("no table {heading}: {text}"))?;
    let second = head.split_whitespace().nth(heading.split(' ').count()).context("one column")?;
    let names_end = head.find(second).context(second.to_owned())?;
    let numbers_end = head.find(column).with_context(|| format!("no {column}: {head}"))? + column.len();
    let rows = lines.take_while(|line| !line.is_empty() && !line.starts_with('…')).map(|line| {
        let upto = |end: usize| line.chars().take(end).collect::<String>();
        let number = upto(numbers_end);
        let number = number.split_whitespace().next_back().context("no number")?.parse()?;
        // Numbers are wider than their heading at times, names never.
        Ok((upto(names_end).trim().to_owned(), number))
    });
    rows.collect()
}

/// Table against the kernel: its sums, by kind and by peer.
fn check_sums(text: &str, outcome: &Outcome) -> Result<()> {
    let counter = |name: &str| outcome.counters.get(name);
    let total = counter("TcpRetransSegs")? - counter("TcpExtTCPRetransFail")?;
    ensure!(total > 0, "nothing was sent again");
    ensure!(text.contains(&format!("\n── {total} segment")), "the kernel says {total}: {text}");
    let kinds = rows(text, "KIND", "SEGMENTS")?;
    let kind = |name: &str| kinds.get(name).copied().unwrap_or(0);
    for (what, screen, kernel) in [
        ("all kinds", kinds.values().sum(), total),
        ("fast", kind("fast retransmit"), counter("TcpExtTCPFastRetrans")?),
        ("slow start", kind("slow start"), counter("TcpExtTCPSlowStartRetrans")?),
        ("SYN", kind("SYN again") + kind("SYN-ACK again"), counter("TcpExtTCPSynRetrans")?),
        ("peers", rows(text, "PEER", "SEGMENTS")?.values().sum(), total),
        ("owners", rows(text, "OWNER", "SEGMENTS")?.values().sum(), total),
    ] {
        ensure!(screen == kernel, "{what}: the screen has {screen}, the kernel {kernel}: {text}");
    }
    Ok(())
}

/// What the screen concludes.
fn readings(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("→ ")).collect()
}

fn losses_resets_and_refusals() -> Result<()> {
    const KINDS: &str = "retransmit,reset,failed,close";
    const TAILS: usize = 12;
    let (lossy, other) = ("127.0.0.2", "127.0.0.3");
    let mut scene = Scene::new(KINDS)?;
    let screen = Screen::start(&scene, &["--kind", KINDS])?;
    let closed = scene.server.listen("127.0.0.1", "")?;
    scene.server.tell("unlisten")?;
    let port = scene.server.listen("0.0.0.0", "")?;
    let connection = scene.connect(lossy, port, FULL)?;
    for _ in 0..TAILS {
        lose_a_tail(&mut scene, &connection, port)?;
    }
    let second = scene.connect(other, port, FULL)?;
    scene.loss.set(&[lose(DATA).sent_to(port).after(2, 1)])?;
    scene.send(&second, 10)?;
    scene.receive(&second, 10)?;
    for _ in 0..3 {
        let answer = scene.client.tell(&format!("connect {}", at(lossy, closed)))?;
        ensure!(answer == "error ConnectionRefused", "{answer}");
    }
    scene.client.tell(&format!("reset {}", second.client))?;
    scene.part(&connection)?;
    let (client, server) = (scene.client.pid(), scene.server.pid());
    let cgroup = scene.cgroup.path().to_owned();

    let outcome = scene.finish()?;
    let text = screen.stop()?;
    outcome.require_kernels_sums("losses_resets_and_refusals")?;
    check_lines(&text, &outcome, &cgroup)?;
    check_sums(&text, &outcome)?;
    let owners = rows(&text, "OWNER", "SEGMENTS")?;
    ensure!(owners.keys().eq([&format!("test-client[{client}]")]), "{owners:?}");
    let refused = rows(&text, "CONNECTS TO", "FAILED")?;
    ensure!(refused == BTreeMap::from([(at(lossy, closed), 3)]), "{refused:?}");
    // One connection was reset by the client, three attempts by nobody.
    let resets = rows(&text, "RESETS WITH", "RECEIVED")?;
    ensure!(resets.get(lossy) == Some(&3), "{resets:?}");
    ensure!(text.contains(&format!("test-server[{server}]")), "{text}");
    // What closed connections say of themselves is the kernel's sum too.
    let again = outcome.counters.get("TcpRetransSegs")?;
    ensure!(text.contains(", 4 connections closed in "), "{text}");
    ensure!(text.contains(&format!("\nclosed ones carried ↑28.3KiB ↓28.3KiB; {again} of ")), "{text}");
    let twice = outcome.counters.get("TcpExtTCPDSACKRecvSegs")?;
    ensure!(text.contains(&format!(" sent again, the peers had {twice} of {again} already")), "{text}");
    // What went well is told in octets: 12 × 4 and 10 segments.
    for part in ["closed (", "↑23.4KiB ↓0B", "↑4.88KiB ↓0B", "↑0B ↓23.4KiB"] {
        ensure!(text.contains(part), "no {part}: {text}");
    }
    let [refusal, losses] = readings(&text)[..] else { anyhow::bail!("two readings, not {text}") };
    ensure!(
        refusal.starts_with(&format!("{} refuses connections (3 times)", at(lossy, closed))),
        "{refusal}"
    );
    let begin = format!(
        "12 of 13 segments that connections sent again went to {lossy}, 12 of them tail loss probes: the last"
    );
    ensure!(losses.starts_with(&begin), "{losses}");
    Ok(())
}

fn nobody_answers() -> Result<()> {
    let mut scene = Scene::new("retransmit")?;
    let screen = Screen::start(&scene, &[])?;
    let port = scene.server.listen("127.0.0.4", "")?;
    scene.loss.set(&[lose(SYN).sent_to(port)])?;
    for _ in 0..3 {
        scene.client.tell(&format!("begin {}", at("127.0.0.4", port)))?;
    }
    // Each sends its SYN again after a second, and again after one or two.
    wait_for_events(&scene, "six SYNs", 6, |line| {
        line.text("network.tcp.retransmit.type") == Some("syn")
            && line.int("network.peer.port") == Some(port.into())
    })?;
    let cgroup = scene.cgroup.path().to_owned();
    let outcome = scene.finish()?;
    let text = screen.stop()?;
    check_lines(&text, &outcome, &cgroup)?;
    check_sums(&text, &outcome)?;
    let [reading] = readings(&text)[..] else { anyhow::bail!("one reading, not {text}") };
    for part in
        [&*format!("{} leaves SYNs unanswered (", at("127.0.0.4", port)), "by 3 connections", "host is down"]
    {
        ensure!(reading.contains(part), "no {part}: {reading}");
    }
    Ok(())
}

/// `--count` ends it like everything else does: lines, then what they come to. Too few say nothing.
fn so_many_events_and_no_more() -> Result<()> {
    let mut scene = Scene::new("retransmit")?;
    let screen = Screen::start(&scene, &["--count", "2"])?;
    let port = scene.server.listen("127.0.0.1", "")?;
    let connection = scene.connect("127.0.0.1", port, FULL)?;
    for _ in 0..4 {
        lose_a_tail(&mut scene, &connection, port)?;
    }
    let text = screen.end()?;
    ensure!(text.lines().take_while(|line| !line.is_empty()).count() == 1 + 2, "{text}");
    ensure!(text.contains("\n── 2 segments sent again in 2 events in "), "{text}");
    ensure!(rows(&text, "KIND", "EVENTS")? == BTreeMap::from([("tail loss probe".to_owned(), 2)]), "{text}");
    ensure!(readings(&text).is_empty(), "{text}");
    scene.finish()?.require_kernels_sums("so_many_events_and_no_more")
}

/// `probe tcp | head -2`: quiet, whether a line or only the summary is left to be written.
fn a_closed_pipe_is_a_quiet_end() -> Result<()> {
    for goes_on in [true, false] {
        let mut scene = Scene::new("retransmit")?;
        let mut child = command(["tcp", "--cgroup", scene.cgroup.path()])?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        wait_until_it_watches(&child, "tcp")?;
        let port = scene.server.listen("127.0.0.1", "")?;
        let connection = scene.connect("127.0.0.1", port, FULL)?;
        lose_a_tail(&mut scene, &connection, port)?;
        let mut stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let mut line = String::new();
        for _heading_and_line in 0..2 {
            line.clear();
            stdout.read_line(&mut line)?;
        }
        ensure!(line.contains("tail loss probe"), "{line:?}");
        drop(stdout);
        if !goes_on {
            interrupt(&child)?;
        }
        let status = poll("the end", DEADLINE, || {
            if goes_on {
                lose_a_tail(&mut scene, &connection, port)?;
            }
            Ok(child.try_wait()?)
        });
        if status.is_err() {
            child.kill()?;
        }
        let mut stderr = String::new();
        child.stderr.take().context("stderr")?.read_to_string(&mut stderr)?;
        let status = status.with_context(|| stderr.clone())?;
        ensure!(status.code() == Some(0) && stderr.is_empty(), "{goes_on}: {status}: {stderr}");
        scene.finish()?.require_kernels_sums("a_closed_pipe_is_a_quiet_end")?;
    }
    Ok(())
}

/// The server's own word: so many questions by what they have in common.
fn asked<K: Ord>(server: &DnsServer, by: impl Fn(&Served) -> K) -> BTreeMap<K, i64> {
    let mut counts = BTreeMap::new();
    for question in server.served() {
        *counts.entry(by(&question)).or_default() += 1;
    }
    counts
}

/// Who ends probe while nobody answers is not told that nothing happened.
fn what_still_waits_is_said() -> Result<()> {
    let server = "127.0.0.2:53";
    let netns = Netns::new()?;
    let dns =
        netns.run(|| DnsServer::start(&[server.parse()?], &[("never.screen.test", Script::never())]))??;
    // Of others nothing is to be said.
    let pid = std::process::id().to_string();
    let screen = Screen::of("dns", &["--pid", &pid, "--timeout", "10m"])?;
    let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0"))??;
    socket.send_to(&query(1, "never.screen.test", A), server)?;
    poll("the question", DEADLINE, || Ok((dns.served().len() == 1).then_some(())))?;
    let text = screen.stop()?;
    ensure!(text.contains("── 1 still waiting at the end in "), "{text}");
    Ok(())
}

fn lookups_and_what_they_come_to() -> Result<()> {
    const SILENT: usize = 3;
    let (server, other) = ("127.0.0.2:53", "127.0.0.3:53");
    let scripts = [
        ("none.screen.test", Script::rcode(NXDOMAIN)),
        ("slow.screen.test", Script::after(Duration::from_millis(50))),
        ("silent.screen.test", Script::never()),
    ];
    let netns = Netns::new()?;
    let dns = netns.run(|| DnsServer::start(&[server.parse()?, other.parse()?], &scripts))??;
    let timeout = format!("{}ms", patient(Duration::from_secs(1)).as_millis());
    let screen = Screen::of("dns", &["--name", "*.screen.test", "--timeout", &timeout])?;
    let socket = || -> Result<UdpSocket> {
        let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok(socket)
    };
    let mut id = 0;
    let mut ask = |name: &str, to: &str, waits: bool| -> Result<()> {
        id += 1;
        let socket = socket()?;
        socket.send_to(&query(id, name, A), to)?;
        if waits {
            let mut answer = [0; 512];
            socket.recv(&mut answer).with_context(|| format!("no answer: {name}"))?;
        }
        Ok(())
    };
    for _ in 0..5 {
        ask("www.screen.test", server, true)?;
    }
    for _ in 0..2 {
        ask("none.screen.test", server, true)?;
    }
    for _ in 0..SILENT {
        ask("silent.screen.test", other, false)?;
        // Far enough from each other to be tries.
        ask("slow.screen.test", server, true)?;
    }
    screen.wait_for(" unanswered ", SILENT)?;
    let text = screen.stop()?;

    ensure!(!text.contains('\u{1b}'), "colours in a pipe: {text:?}");
    let total = i64::try_from(dns.served().len())?;
    let mut lines = text.lines().take_while(|line| !line.is_empty());
    let heading = lines.next().context("no heading")?;
    ensure!(heading.starts_with("TIME ") && heading.ends_with("  NAME  DETAILS"), "{heading}");
    let lines: Vec<&str> = lines.collect();
    ensure!(i64::try_from(lines.len())? == total, "the server saw {total}: {text}");
    for line in &lines {
        ensure!(line.chars().count() <= COLUMNS, "{} columns: {line}", line.chars().count());
        // Names stand below their heading.
        let name = line.chars().skip(heading.find("NAME").context("NAME")?).collect::<String>();
        ensure!(name.contains(".screen.test") && !name.starts_with(' '), "{line}");
        ensure!(line.contains(&format!("[{}]", std::process::id())), "{line}");
    }
    let tries =
        |number: usize| lines.iter().filter(|line| line.ends_with(&format!("  try {number}"))).count();
    ensure!((tries(2), tries(3)) == (1, 1), "{text}");

    ensure!(text.contains(&format!("\n── {total} lookups, {SILENT} unanswered (")), "{text}");
    let servers = asked(&dns, |question| question.server.ip().to_string());
    ensure!(rows(&text, "SERVER", "LOOKUPS")? == servers, "the server saw {servers:?}: {text}");
    let silent = BTreeMap::from([("127.0.0.2".to_owned(), 0), ("127.0.0.3".to_owned(), 3)]);
    ensure!(rows(&text, "SERVER", "UNANSWERED")? == silent, "{text}");
    let names = asked(&dns, |question| question.name.clone());
    ensure!(rows(&text, "SLOWEST NAMES", "LOOKUPS")? == names, "the server saw {names:?}: {text}");
    ensure!(rows(&text, "OWNER", "LOOKUPS")?.values().eq([&total]), "{text}");
    for row in [["127.0.0.2", "NOERROR", "8"], ["127.0.0.2", "NXDOMAIN", "2"]] {
        let is_there = text.lines().any(|line| line.split_whitespace().take(3).eq(row));
        ensure!(is_there, "no {row:?}: {text}");
    }
    let [reading] = readings(&text)[..] else { anyhow::bail!("one reading, not {text}") };
    ensure!(reading.starts_with("127.0.0.3 answers nothing (3 lookups unanswered)"), "{reading}");
    Ok(())
}
