//! dns over TCP (RFC 1035, 4.2.2; RFC 7766), against a server that does as it is told: however a stream is cut, each lookup is told
//! once, with its own name and its own time.

#![expect(clippy::indexing_slicing, reason = "a test fails by panicking, its helpers too")]

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_tests::counters::Counters;
use probe_tests::dns_server::{
    A, AAAA, NXDOMAIN, Script, Served, Stream as Cut, TXT, Transport, framed, query,
};
use probe_tests::dns_world::{
    OTHER_SERVER, SERVER, SERVER_V6, Sent, Stream, World, ask, check_latency, nonsense, pass_stream, seconds,
    serve,
};
use probe_tests::probe::{DEADLINE, Line, Probe, patient, poll};
use probe_tests::workload::Workload;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// An address where nobody listens.
const NOBODY: &str = "127.0.0.9:53";

fn named<'a>(lines: &'a [Line], name: &str, qtype: &str) -> Result<&'a Line> {
    let is_it = |line: &&Line| {
        line.text("dns.question.name") == Some(name) && line.text("dns.question.type") == Some(qtype)
    };
    let found: Vec<&Line> = lines.iter().filter(is_it).collect();
    ensure!(found.len() == 1, "{} lookups of {name} {qtype}: {lines:#?}", found.len());
    Ok(found[0])
}

fn require(line: &Line, outcome: &str) -> Result<()> {
    ensure!(line.text("dns.outcome") == Some(outcome), "not {outcome}: {}", line.0);
    ensure!(line.text("network.transport") == Some("tcp"), "not over TCP: {}", line.0);
    Ok(())
}

#[test]
fn a_lookup_says_who_asked_whom_for_what() -> Result<()> {
    let script = Script { answers: 2, shouts: true, ..Script::default() };
    let world = World::new(&[], &[("www.example.test", script)])?;
    for (server, address) in [(SERVER, "127.0.0.2"), (SERVER_V6, "::1")] {
        let before = world.ours(&world.probe.lines()).len();
        world.stream(server)?.ask(&query(7, "wWw.ExamPle.TEST", AAAA))?;
        let line = world.lookups(before + 1)?.pop().unwrap();
        let comm = std::fs::read_to_string("/proc/self/comm")?;
        for (key, want) in [
            ("dns.question.name", "www.example.test"),
            ("dns.question.type", "AAAA"),
            ("dns.response_code", "NOERROR"),
            ("dns.outcome", "answered"),
            ("network.transport", "tcp"),
            ("server.address", address),
            ("process.comm", comm.trim_end()),
        ] {
            assert_eq!(line.text(key), Some(want), "{key}: {}", line.0);
        }
        for (key, want) in [
            ("server.port", 53),
            ("process.pid", i64::from(std::process::id())),
            ("linux.netns", i64::from(world.netns.inode())),
            ("dns.attempt", 1),
            ("dns.answers", 2),
        ] {
            assert_eq!(line.int(key), Some(want), "{key}: {}", line.0);
        }
        assert_eq!(line.get("dns.truncated"), Some(&false.into()));
        assert_eq!(line.get("dns.fallback"), None);
    }
    world.exactly(2)?;
    Ok(())
}

/// The one that connected, not whoever runs when the answer comes.
#[test]
fn the_owner_is_the_process_that_connected() -> Result<()> {
    let world = World::new(&[], &[("slow.test", Script::after(Duration::from_millis(50)))])?;
    let mut workload = world.netns.run(|| Workload::start(WORKLOAD))??;
    // "asker" in hexadecimal.
    workload.tell("name 61736b6572")?;
    for (id, server) in [(1, SERVER), (2, SERVER_V6)] {
        workload.tell(&format!("ask-tcp {server} {id} slow.test"))?;
    }
    let pid = i64::from(workload.pid());
    workload.end()?;
    for line in world.exactly(2)? {
        require(&line, "answered")?;
        assert_eq!(
            (line.int("process.pid"), line.text("process.comm")),
            (Some(pid), Some("asker")),
            "{}",
            line.0
        );
    }
    Ok(())
}

#[test]
fn questions_one_behind_the_other_are_answered_out_of_order() -> Result<()> {
    const COUNT: u16 = 20;
    const RCODES: [(u8, &str); 3] = [(0, "NOERROR"), (NXDOMAIN, "NXDOMAIN"), (5, "REFUSED")];
    let names: Vec<String> = (0..COUNT).map(|i| format!("n{i}.test")).collect();
    let scripts: Vec<(&str, Script)> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            // The last question is answered first.
            let delay = patient(Duration::from_millis(10 * (u64::from(COUNT) - i as u64)));
            (name.as_str(), Script { delay, rcode: RCODES[i % 3].0, ..Script::default() })
        })
        .collect();
    let world = World::new(&["--timeout", "60s"], &scripts)?;
    for server in [SERVER, SERVER_V6] {
        let before = world.ours(&world.probe.lines()).len();
        let answered = world.server.served().len();
        let mut stream = world.stream(server)?;
        let mut sent: BTreeMap<u16, Sent> = BTreeMap::new();
        for (id, name) in (0..).zip(&names) {
            let qtype = if id % 2 == 0 { A } else { AAAA };
            sent.insert(id, stream.send(&[query(id, name, qtype)])?);
        }
        let mut received = BTreeMap::new();
        let mut order = Vec::new();
        for _ in 0..COUNT {
            let (id, received_ns) = stream.receive_id()?;
            received.insert(id, received_ns);
            order.push(id);
        }
        ensure!(order.first() > order.last(), "the server answered in order: {order:?}");
        world.server.wait_answers(answered + usize::from(COUNT), DEADLINE)?;
        let served: BTreeMap<u16, Served> =
            world.server.served().into_iter().skip(answered).map(|served| (served.id, served)).collect();
        let lines = world.lookups(before + usize::from(COUNT))?;
        for (id, name) in (0..).zip(&names) {
            let line = named(&lines[before..], name, if id % 2 == 0 { "A" } else { "AAAA" })?;
            require(line, "answered")?;
            ensure!(line.text("dns.response_code") == Some(RCODES[usize::from(id) % 3].1), "{}", line.0);
            check_latency(line, sent[&id], received[&id], &served[&id], 0)?;
        }
    }
    world.exactly(2 * usize::from(COUNT))?;
    Ok(())
}

/// How segments cut the streams of questions and of answers.
#[test]
fn segments_may_cut_a_stream_anywhere() -> Result<()> {
    // Octets of the first segment, of each one behind it; how the answer is cut.
    let cases = [
        ("length.apart.test", 2, 1_000, Cut::LengthApart),
        ("half.a.length.test", 1, 1_000, Cut::Cut(1)),
        ("one.by.one.test", 1, 1, Cut::Cut(1)),
        ("in.threes.test", 3, 3, Cut::Cut(3)),
        ("in.the.name.test", 20, 7, Cut::Cut(19)),
        ("as.it.comes.test", 5, 1_000, Cut::Whole),
    ];
    let scripts = cases.map(|(name, _, _, stream)| {
        (name, Script { stream, answers: 3, ..Script::after(Duration::from_millis(20)) })
    });
    let world = World::new(&[], &scripts)?;
    let mut total = 0;
    for server in [SERVER, SERVER_V6] {
        // Each on its own connection, and all on one.
        let mut shared = world.stream(server)?;
        for (name, first, others, cut) in cases {
            for own in [true, false] {
                let mut fresh = world.stream(server)?;
                let stream = if own { &mut fresh } else { &mut shared };
                total += 1;
                let question = query(total, name, A);
                let before = Counters::read(&world.netns)?.get("TcpOutSegs")?;
                let sent = stream.send_cut(&question, first, others)?;
                let (answer, received_ns) = stream.receive()?;
                let segments = Counters::read(&world.netns)?.get("TcpOutSegs")? - before;
                ensure!(answer.get(..2) == question.get(..2), "{name}: an answer to another");
                let least = 1
                    + (question.len() + 2 - first).div_ceil(others)
                    + match cut {
                        Cut::Cut(size) => (answer.len() + 2).div_ceil(size),
                        Cut::LengthApart => 2,
                        _ => 1,
                    };
                ensure!(segments >= least as i64, "{name}: {segments} segments, not {least}");
                world.server.wait_answers(total.into(), DEADLINE)?;
                let line = world.lookups(total.into())?.pop().unwrap();
                require(&line, "answered")?;
                ensure!(line.text("dns.question.name") == Some(name), "{}", line.0);
                ensure!(line.int("dns.answers") == Some(3), "{}", line.0);
                ensure!(line.int("process.pid") == Some(i64::from(std::process::id())), "{}", line.0);
                // The window may keep the last segments back, of either end.
                let served = world.server.one(total)?;
                let (begun_ns, _) = *served.answered_ns.first().context("never answered")?;
                let bounds = seconds(served.received_ns, begun_ns.min(received_ns))
                    ..=seconds(sent.begun_ns, received_ns);
                let duration = line.float("duration").context("no duration")?;
                ensure!(bounds.contains(&duration), "{duration} is not in {bounds:?}: {}", line.0);
            }
        }
    }
    world.exactly(total.into())?;
    Ok(())
}

#[test]
fn a_segment_may_hold_several_messages() -> Result<()> {
    let held = Script { stream: Cut::Held, ..Script::default() };
    let scripts: Vec<(String, Script)> = (0..9).map(|i| (format!("held{i}.test"), held.clone())).collect();
    let mut scripts: Vec<(&str, Script)> =
        scripts.iter().map(|(name, script)| (name.as_str(), script.clone())).collect();
    scripts.push(("last.test", Script::after(Duration::from_millis(30))));
    let world = World::new(&[], &scripts)?;
    for (round, server) in (1..).zip([SERVER, SERVER_V6]) {
        let mut stream = world.stream(server)?;
        let questions: Vec<Vec<u8>> = (0..).zip(&scripts).map(|(id, (name, _))| query(id, name, A)).collect();
        let sent = stream.send(&questions)?;
        let mut received_ns = 0;
        for id in 0..10 {
            let (got, at_ns) = stream.receive_id()?;
            ensure!(got == id, "answer {got} instead of {id}");
            received_ns = at_ns;
        }
        world.server.wait_answers(10 * round, DEADLINE)?;
        let served = world.server.served();
        // All went in one write, and came in one.
        let last = served.last().context("ten")?;
        let lines = world.lookups(10 * round)?;
        for (name, _) in &scripts {
            let line = named(&lines[10 * (round - 1)..], name, "A")?;
            require(line, "answered")?;
            check_latency(line, sent, received_ns, last, 0)?;
        }
    }
    world.exactly(20)?;
    Ok(())
}

/// As long as a message can be: more than is looked at, and in segments that the kernel cuts late. What comes behind it is found all
/// the same.
#[test]
fn the_longest_answer_hides_nothing_behind_it() -> Result<()> {
    let longest = Script { answers: 0, octets: 65_535, ..Script::default() };
    let long = Script { octets: 20_000, ..longest.clone() };
    let behind = Script::after(patient(Duration::from_millis(100)));
    let world = World::new(&[], &[("longest.test", longest), ("long.test", long), ("behind.test", behind)])?;
    for (round, server) in (1..).zip([SERVER, SERVER_V6]) {
        let mut stream = world.stream(server)?;
        let names = ["longest.test", "long.test", "behind.test"];
        let questions: Vec<Vec<u8>> = (0..).zip(names).map(|(id, name)| query(id, name, TXT)).collect();
        let mut sent = Vec::new();
        for question in questions {
            sent.push(stream.send(&[question])?);
            // Nothing of the next is in the same segment.
            if sent.len() < 3 {
                let (message, _) = stream.receive()?;
                ensure!(message.len() == [65_535, 20_000][sent.len() - 1], "{} octets", message.len());
            }
        }
        let (id, received_ns) = stream.receive_id()?;
        ensure!(id == 2, "an answer to {id}");
        world.server.wait_answers(3 * round, DEADLINE)?;
        let lines = world.lookups(3 * round)?;
        for (name, sent) in names.iter().zip(&sent) {
            let line = named(&lines[3 * (round - 1)..], name, "TXT")?;
            require(line, "answered")?;
            ensure!(line.text("dns.response_code") == Some("NOERROR"), "{}", line.0);
            let duration = line.float("duration").context("no duration")?;
            ensure!(duration <= seconds(sent.begun_ns, received_ns), "{duration}: {}", line.0);
        }
        let served = world.server.served().pop().context("three")?;
        check_latency(
            named(&lines[3 * (round - 1)..], "behind.test", "TXT")?,
            sent[2],
            received_ns,
            &served,
            0,
        )?;
    }
    world.exactly(6)?;
    Ok(())
}

/// The same while another question waits on the connection: its answer is found behind the long one.
#[test]
fn an_answer_comes_behind_the_longest() -> Result<()> {
    let longest = Script { answers: 0, octets: 65_535, ..Script::default() };
    let behind = Script::after(patient(Duration::from_millis(300)));
    let world = World::new(&["--timeout", "60s"], &[("longest.test", longest), ("behind.test", behind)])?;
    let mut stream = world.stream(SERVER)?;
    let sent = stream.send(&[query(1, "behind.test", A), query(2, "longest.test", TXT)])?;
    ensure!(stream.receive()?.0.len() == 65_535, "the long one comes first");
    let (id, received_ns) = stream.receive_id()?;
    ensure!(id == 1, "an answer to {id}");
    world.server.wait_answers(2, DEADLINE)?;
    let served = world.server.one(1)?;
    let lines = world.exactly(2)?;
    require(named(&lines, "longest.test", "TXT")?, "answered")?;
    let line = named(&lines, "behind.test", "A")?;
    require(line, "answered")?;
    check_latency(line, sent, received_ns, &served, 0)?;
    Ok(())
}

#[test]
fn silence_is_reported_and_so_is_a_late_answer() -> Result<()> {
    const TIMEOUT: f64 = 0.5;
    let late = patient(Duration::from_millis(1_500));
    let scripts = [("never.test", Script::never()), ("late.test", Script::after(late))];
    let world = World::new(&["--timeout", "500ms"], &scripts)?;
    let mut stream = world.stream(SERVER_V6)?;
    stream.send(&[query(51, "never.test", A)])?;
    let (sent, received_ns) = stream.ask(&query(52, "late.test", AAAA))?;
    world.server.wait_answers(1, DEADLINE)?;
    let served = world.server.one(52)?;
    // The connection still serves.
    stream.ask(&query(53, "fine.test", A))?;
    let lines = world.exactly(4)?;
    let never = named(&lines, "never.test", "A")?;
    require(never, "unanswered")?;
    require(named(&lines, "fine.test", "A")?, "answered")?;
    let of_late: Vec<&Line> =
        lines.iter().filter(|line| line.text("dns.question.name") == Some("late.test")).collect();
    ensure!(of_late.len() == 2, "{lines:#?}");
    require(of_late[0], "unanswered")?;
    for line in [never, of_late[0]] {
        let duration = line.float("duration").context("no duration")?;
        ensure!((TIMEOUT..late.as_secs_f64()).contains(&duration), "{}", line.0);
        for key in ["dns.response_code", "dns.answers", "dns.truncated"] {
            assert_eq!(line.get(key), None, "nothing is known of an answer that did not come: {}", line.0);
        }
    }
    require(of_late[1], "late")?;
    ensure!(of_late[1].text("dns.response_code") == Some("NOERROR"), "{}", of_late[1].0);
    check_latency(of_late[1], sent, received_ns, &served, 0)?;
    Ok(())
}

/// Where nothing is known of how a connection began, what it carries is found all the same.
#[test]
fn connections_that_were_there_before_are_read_too() -> Result<()> {
    let (netns, server) = serve(&[("slow.test", Script::after(Duration::from_millis(30)))])?;
    let mut streams = Vec::new();
    for server in [SERVER, SERVER_V6] {
        let mut stream = Stream::connect(&netns, server)?;
        stream.ask(&query(1, "before.test", A))?;
        streams.push(stream);
    }
    let world = World { netns, server, probe: Probe::start(&["dns"])? };
    let mut exchanges = Vec::new();
    for (at, stream) in streams.iter_mut().enumerate() {
        for (id, name) in [(10, "first.test"), (11, "slow.test")] {
            let id = id + 10 * at as u16;
            exchanges.push((name, id, stream.ask(&query(id, name, A))?));
        }
    }
    world.server.wait_answers(6, DEADLINE)?;
    let served: Vec<Served> =
        exchanges.iter().map(|(_, id, _)| world.server.one(*id)).collect::<Result<_>>()?;
    let lines = world.exactly(4)?;
    for ((line, (name, _, (sent, received_ns))), served) in lines.iter().zip(exchanges).zip(&served) {
        require(line, "answered")?;
        ensure!(line.text("dns.question.name") == Some(name), "{}", line.0);
        check_latency(line, sent, received_ns, served, 0)?;
    }
    let servers: Vec<Option<&str>> = lines.iter().map(|line| line.text("server.address")).collect();
    assert_eq!(servers, ["127.0.0.2", "127.0.0.2", "::1", "::1"].map(Some));
    Ok(())
}

/// Who cannot ask has asked nothing; who has asked and is hung up on has no answer.
#[test]
fn a_connection_may_come_to_nothing() -> Result<()> {
    let close = Script { stream: Cut::Close, ..Script::default() };
    let world = World::new(&["--timeout", "500ms"], &[("close.test", close)])?;
    let refused = world.netns.run(|| TcpStream::connect(NOBODY))?;
    ensure!(refused.is_err(), "somebody listens at {NOBODY}");
    // Made, and never used.
    drop(world.stream(SERVER)?);
    // A part of a question.
    let mut part = world.stream(SERVER)?;
    part.send_cut(&query(1, "part.test", A), 10, 1_000)?;
    part.receive()?;
    let whole = framed(&query(2, "never.whole.test", A));
    let mut half = world.stream(SERVER)?;
    std::io::Write::write_all(&mut half.0, &whole[..whole.len() - 3])?;
    drop(half);
    let mut closed = world.stream(SERVER)?;
    closed.send(&[query(3, "close.test", A)])?;
    closed.closed()?;
    let lines = world.exactly(2)?;
    require(named(&lines, "part.test", "A")?, "answered")?;
    require(named(&lines, "close.test", "A")?, "unanswered")?;
    Ok(())
}

/// The answer does not fit, so it is asked for again over TCP: two lookups that belong together.
#[test]
fn a_cut_answer_is_fetched_over_tcp() -> Result<()> {
    let big = Script { truncated: true, answers: 0, octets: 3_000, ..Script::default() };
    let cut = Script { octets: 0, ..big.clone() };
    let world = World::new(&[], &[("big.test", big), ("cut.test", cut)])?;
    for (round, server) in (1..).zip([SERVER, SERVER_V6]) {
        // As resolvers do: over TCP with another id.
        ask(&world.connected(server)?, None, &query(7, "BIG.test", TXT))?;
        world.stream(server)?.ask(&query(8, "big.test", TXT))?;
        // What is asked over TCP for no such reason.
        ask(&world.connected(server)?, None, &query(9, "fits.test", A))?;
        world.stream(server)?.ask(&query(10, "fits.test", A))?;
        // Nobody came back for that.
        ask(&world.connected(server)?, None, &query(11, "cut.test", TXT))?;
        world.stream(server)?.ask(&query(12, "cut.test", A))?;
        let lines = world.lookups(6 * round)?;
        let seen: Vec<_> = lines[6 * (round - 1)..]
            .iter()
            .map(|line| {
                let is = |key| line.get(key).and_then(serde_json::Value::as_bool).unwrap_or(false);
                (line.text("network.transport").unwrap_or_default(), is("dns.truncated"), is("dns.fallback"))
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("udp", true, false),
                ("tcp", false, true),
                ("udp", false, false),
                ("tcp", false, false),
                ("udp", true, false),
                ("tcp", false, false),
            ],
            "{lines:#?}"
        );
    }
    let finished = world.exactly(12)?;
    ensure!(finished.iter().all(|line| line.int("dns.attempt") == Some(1)), "no retries: {finished:#?}");
    Ok(())
}

/// A stream in which a length lies cannot be read on; every other one can.
#[test]
fn a_length_that_lies_harms_nobody_else() -> Result<()> {
    let lie = |more| Script { stream: Cut::Lie(more), ..Script::default() };
    let scripts = [("short.test", lie(-9)), ("long.test", lie(900)), ("none.test", lie(-100))];
    let (netns, server) = serve(&scripts)?;
    let probe = Probe::start(&["dns", "--timeout", "500ms"])?;
    let world = World { netns, server, probe };
    for server in [SERVER, OTHER_SERVER, SERVER_V6] {
        let mut honest = world.stream(server)?;
        honest.ask(&query(1, "honest.test", A))?;
        for (id, (name, _)) in (10..).zip(&scripts) {
            let mut lying = world.stream(server)?;
            let asked = world.server.served().len();
            lying.send(&[query(id, name, A)])?;
            honest.ask(&query(id, "honest.test", A))?;
            // A question with a length that is too long, and one that is too short.
            for more in [3_i16, -3] {
                let mut octets = framed(&query(id, "lie.test", A));
                let len = u16::from_be_bytes([octets[0], octets[1]]).wrapping_add_signed(more);
                octets.splice(..2, len.to_be_bytes());
                let mut lying = world.stream(server)?;
                std::io::Write::write_all(&mut lying.0, &octets)?;
                honest.ask(&query(id, "honest.test", AAAA))?;
            }
            poll("the question", DEADLINE, || Ok((world.server.served().len() >= asked + 4).then_some(())))?;
            drop(lying);
        }
        honest.ask(&query(2, "honest.test", A))?;
    }
    // Three connections with two questions, and twice as many as there are lies.
    let honest = |lines: &[Line]| {
        let is_it = |line: &&Line| line.text("dns.question.name") == Some("honest.test");
        world.ours(lines).iter().filter(is_it).map(|line| require(line, "answered")).collect::<Vec<_>>()
    };
    let count = 3 * (2 + 3 * 3);
    let all = world.probe.wait_for("the honest", DEADLINE, |lines| {
        let honest = honest(lines);
        (honest.len() >= count).then_some(honest)
    })?;
    all.into_iter().collect::<Result<()>>()?;
    // Of the others: what may be said of them is that nobody answered, or what came.
    let finished = world.probe.stop()?;
    ensure!(finished.code == Some(0), "{}", finished.stderr);
    let losses = finished.lines.iter().filter(|line| line.event() == "probe.loss");
    for loss in losses {
        let place = loss.text("where");
        ensure!(matches!(place, Some("dns.streams" | "dns.malformed")), "{}", loss.0);
    }
    let names: Vec<_> = finished.lines.iter().filter_map(|line| line.text("dns.question.name")).collect();
    let known = ["honest.test", "short.test", "long.test", "none.test", "lie.test"];
    ensure!(names.iter().all(|name| known.contains(name)), "{names:?}");
    ensure!(names.iter().filter(|name| **name == "honest.test").count() == count, "{names:?}");
    Ok(())
}

/// What is no answer does not stand in the way of one.
#[test]
fn nonsense_before_the_answer_does_not_stand_in_its_way() -> Result<()> {
    // Answers at least, and whole headers: of what is neither a stream is given up, until something looks like a message again.
    // All of it in what probe takes of one segment: where a message begins behind that, nobody knows.
    let mut first: Vec<Vec<u8>> =
        nonsense().into_iter().filter(|message| (12..2_000).contains(&message.len())).collect();
    first.iter_mut().for_each(|message| message[2] |= 0x80);
    ensure!(first.iter().map(|message| message.len() + 2).sum::<usize>() < 16 * 1_024);
    let count = first.len();
    let (netns, server) = serve(&[("noisy.test", Script { first, ..Script::default() })])?;
    let world = World { netns, server, probe: Probe::start(&["dns"])? };
    let mut stream = world.stream(SERVER)?;
    stream.send(&[query(81, "noisy.test", A)])?;
    let mut room = Vec::new();
    for at in 0..count {
        let mut length = [0; 2];
        std::io::Read::read_exact(&mut stream.0, &mut length).with_context(|| format!("message {at}"))?;
        room.resize(usize::from(u16::from_be_bytes(length)), 0);
        std::io::Read::read_exact(&mut stream.0, &mut room).with_context(|| format!("message {at}"))?;
    }
    ensure!(stream.receive_id()?.0 == 81, "the answer comes last");
    let line = world.lookups(1)?.pop().unwrap();
    require(&line, "answered")?;
    ensure!(line.int("dns.answers") == Some(1), "{}", line.0);
    Ok(())
}

/// Port 53 over TCP may carry anything: it arrives as it was, and lookups are seen as ever.
#[test]
fn other_traffic_passes_untouched() -> Result<()> {
    let world = World::new(&[], &[])?;
    for address in [NOBODY, "[::1]:8053"] {
        pass_stream(&world.netns, address)?;
    }
    world.stream(SERVER)?.ask(&query(1, "tcp.test", A))?;
    ask(&world.connected(SERVER)?, None, &query(2, "udp.test", A))?;
    world.lookups(2)?;
    let netns = i64::from(world.netns.inode());
    let finished = world.probe.stop()?;
    let names: Vec<_> = probe_tests::dns_world::lookups_of(&finished, netns)
        .iter()
        .filter_map(|line| line.text("dns.question.name").map(str::to_owned))
        .collect();
    assert_eq!(names, ["tcp.test", "udp.test"]);
    for loss in finished.lines.iter().filter(|line| line.event() == "probe.loss") {
        ensure!(matches!(loss.text("where"), Some("dns.streams" | "dns.malformed")), "{}", loss.0);
    }
    Ok(())
}

/// As many events as the server saw questions: none lost, none invented, none under another's name.
#[test]
fn a_thousand_lookups_over_fifty_connections_come_out_as_they_went_in() -> Result<()> {
    const CONNECTIONS: u16 = 50;
    const EACH: u16 = 20;
    let names: Vec<String> = (0..CONNECTIONS * EACH).map(|i| format!("n{i}.many.test")).collect();
    let scripts: Vec<(&str, Script)> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let rcode = if i % 3 == 0 { NXDOMAIN } else { 0 };
            (name.as_str(), Script { rcode, ..Script::after(Duration::from_millis(i as u64 % 11)) })
        })
        .collect();
    // A ring with room for all of it: who comes late on a busy host is not what is tested.
    let world = World::new(&["--timeout", "60s", "--ring-kib", "1024"], &scripts)?;
    let mut streams = Vec::new();
    for at in 0..CONNECTIONS {
        streams.push(world.stream(if at % 2 == 0 { SERVER } else { SERVER_V6 })?);
    }
    for (at, stream) in (0..).zip(&mut streams) {
        // Ids are the same on all connections. Some go in one write, some one by one.
        let questions = (0..EACH).map(|id| query(id, &names[usize::from(at * EACH + id)], A));
        let questions: Vec<Vec<u8>> = questions.collect();
        for part in questions.chunks(1 + usize::from(at) % 7) {
            stream.send(part)?;
        }
    }
    for stream in &mut streams {
        for _ in 0..EACH {
            stream.receive()?;
        }
    }
    let total = usize::from(CONNECTIONS * EACH);
    let served = world.server.served();
    ensure!(served.len() == total, "the server saw {}", served.len());
    ensure!(served.iter().all(|served| served.transport == Transport::Tcp));
    let lines = world.exactly(total)?;
    let mut want = BTreeMap::new();
    for served in &served {
        let number: usize =
            served.name.trim_start_matches('n').split('.').next().context("a name")?.parse()?;
        let rcode = if number.is_multiple_of(3) { "NXDOMAIN" } else { "NOERROR" };
        let server = served.server.ip().to_string();
        *want.entry((served.name.clone(), rcode.to_owned(), server)).or_insert(0) += 1;
    }
    let mut got = BTreeMap::new();
    for line in &lines {
        require(line, "answered")?;
        let text = |key| line.text(key).unwrap_or_default().to_owned();
        *got.entry((text("dns.question.name"), text("dns.response_code"), text("server.address")))
            .or_insert(0) += 1;
    }
    assert_eq!(got, want);
    Ok(())
}
