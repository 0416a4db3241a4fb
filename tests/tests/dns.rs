//! dns against a server that does as it is told: what probe says is compared with what server and client saw.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use probe_tests::dns_server::{A, AAAA, DnsServer, NXDOMAIN, SERVFAIL, Script, Served, query, query_of};
use probe_tests::dns_world::{
    OTHER_SERVER, SERVER, SERVER_V6, World, ask, check_latency, lookups_of, nonsense, pass_stream, receive,
    seconds, send, tolerance,
};
use probe_tests::netns::Netns;
use probe_tests::probe::{DEADLINE, Line, Probe, patient};
use probe_tests::workload::Workload;
use rustix::process::Signal;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
#[test]
fn latencies_are_those_that_the_server_made() -> Result<()> {
    let delays = [("now.test", 0, 20), ("five.test", 5, 20), ("fifty.test", 50, 10), ("slow.test", 200, 4)];
    let scripts = delays.map(|(name, ms, _)| (name, Script::after(Duration::from_millis(ms))));
    let world = World::new(&[], &scripts)?;
    let mut exchanges = BTreeMap::new();
    let mut id = 100;
    for (name, ms, times) in delays {
        for i in 0..times {
            id += 1;
            let socket = world.connected(if i % 2 == 0 { SERVER } else { SERVER_V6 })?;
            exchanges.insert((name, i), (id, ms, ask(&socket, None, &query(id, name, A))?));
        }
    }
    world.server.wait_answers(exchanges.len(), DEADLINE)?;
    let served: BTreeMap<u16, Served> =
        world.server.served().into_iter().map(|served| (served.id, served)).collect();
    // One after the other: events come in the order of the answers.
    let mut lines = world.exactly(exchanges.len())?.into_iter();
    for (name, ms, times) in delays {
        let mut differences = Vec::new();
        for i in 0..times {
            let line = lines.next().unwrap();
            let (id, _ms, (sent, received_ns)) = exchanges[&(name, i)];
            assert_eq!(line.text("dns.question.name"), Some(name));
            assert_eq!(line.text("dns.outcome"), Some("answered"));
            assert!(line.float("duration").unwrap() >= f64::from(ms as u32) / 1e3, "{}", line.0);
            differences.push(check_latency(&line, sent, received_ns, &served[&id], 0)?);
        }
        // The server's thread may be woken late, which is no fault of probe's: the middle one counts.
        differences.sort_by(f64::total_cmp);
        let middle = differences[differences.len() / 2];
        assert!(middle <= tolerance(), "{name}: {middle} s from what the server saw");
    }
    Ok(())
}

#[test]
fn a_lookup_says_who_asked_whom_for_what() -> Result<()> {
    let script = Script { answers: 2, shouts: true, ..Script::default() };
    let world = World::new(&[], &[("www.example.test", script)])?;
    for (server, address) in [(SERVER, "127.0.0.2"), (SERVER_V6, "::1")] {
        let before = world.ours(&world.probe.lines()).len();
        ask(&world.connected(server)?, None, &query(7, "wWw.ExamPle.TEST", AAAA))?;
        let line = world.lookups(before + 1)?.pop().unwrap();
        let comm = std::fs::read_to_string("/proc/self/comm")?;
        let executable = std::env::current_exe()?;
        for (key, want) in [
            ("dns.question.name", "www.example.test"),
            ("dns.question.type", "AAAA"),
            ("dns.response_code", "NOERROR"),
            ("dns.outcome", "answered"),
            ("network.transport", "udp"),
            ("server.address", address),
            ("process.comm", comm.trim_end()),
            ("process.executable.name", executable.file_name().and_then(|name| name.to_str()).unwrap()),
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
    }
    world.exactly(2)?;
    Ok(())
}

/// A question, the script of its answer, and how both are shown.
struct Case<'a> {
    labels: Vec<&'static [u8]>,
    qtype: u16,
    script: Script,
    shown: (&'a str, &'a str, &'a str),
}

fn case<'a>(
    labels: &[&'static [u8]],
    qtype: u16,
    script: Script,
    shown: (&'a str, &'a str, &'a str),
) -> Case<'a> {
    Case { labels: labels.to_vec(), qtype, script, shown }
}

/// Codes, types and names, the usual and the odd.
#[test]
fn answers_are_reported_as_they_are() -> Result<()> {
    let ok = Script::default;
    let truncated = Script { truncated: true, answers: 0, ..ok() };
    let many = Script { answers: 30, ..ok() };
    let longest_text = ["x", "y", "z"].map(|letter| letter.repeat(63)).join(".") + "." + &"a".repeat(61);
    let cases = [
        case(&[b"no", b"test"], A, Script::rcode(NXDOMAIN), ("no.test", "A", "NXDOMAIN")),
        case(&[b"broken", b"test"], AAAA, Script::rcode(SERVFAIL), ("broken.test", "AAAA", "SERVFAIL")),
        case(&[b"odd", b"test"], A, Script::rcode(13), ("odd.test", "A", "RCODE13")),
        case(&[b"big", b"test"], 16, truncated, ("big.test", "TXT", "NOERROR")),
        case(&[b"many", b"test"], A, many, ("many.test", "A", "NOERROR")),
        case(&[b"web", b"test"], 65, ok(), ("web.test", "HTTPS", "NOERROR")),
        case(&[b"new", b"test"], 61_234, ok(), ("new.test", "TYPE61234", "NOERROR")),
        case(&[], 2, ok(), (".", "NS", "NOERROR")),
        case(&[b"_Dmarc", b"a-b"], 16, ok(), ("_dmarc.a-b", "TXT", "NOERROR")),
        case(&[b"a.b", b"test"], A, ok(), (r"a\.b.test", "A", "NOERROR")),
        case(
            &[b"\x1b[31mred\x07", b"\xff\xe2\x80\xae"],
            A,
            ok(),
            (r"\027[31mred\007.\255\226\128\174", "A", "NOERROR"),
        ),
        // 255 octets on the wire: as long as a name can be.
        case(&[&[b'X'; 63], &[b'y'; 63], &[b'z'; 63], &[b'a'; 61]], A, ok(), (&longest_text, "A", "NOERROR")),
    ];
    let name = |case: &Case<'_>| {
        let label = |label: &&[u8]| String::from_utf8_lossy(label).to_ascii_lowercase();
        case.labels.iter().map(label).collect::<Vec<_>>().join(".")
    };
    let names: Vec<String> = cases.iter().map(name).collect();
    let scripts: Vec<(&str, Script)> =
        names.iter().zip(&cases).map(|(name, case)| (name.as_str(), case.script.clone())).collect();
    let world = World::new(&[], &scripts)?;
    let socket = world.connected(SERVER)?;
    for (id, case) in (1..).zip(&cases) {
        ask(&socket, None, &query_of(id, &case.labels, case.qtype))?;
    }
    let lines = world.exactly(cases.len())?;
    for (case, line) in cases.iter().zip(&lines) {
        let keys = ["dns.question.name", "dns.question.type", "dns.response_code"];
        let (name, qtype, rcode) = case.shown;
        assert_eq!(keys.map(|key| line.text(key)), [name, qtype, rcode].map(Some), "{}", line.0);
        assert_eq!(line.get("dns.truncated"), Some(&case.script.truncated.into()), "{}", line.0);
        assert_eq!(line.int("dns.answers"), Some(case.script.answers.into()), "{}", line.0);
    }
    Ok(())
}

/// glibc asks for both address families from one connected socket, with two ids.
#[test]
fn two_questions_of_one_socket_are_told_apart() -> Result<()> {
    let world = World::new(&[], &[("pair.test", Script::after(Duration::from_millis(30)))])?;
    let socket = world.connected(SERVER)?;
    let first = send(&socket, None, &query(11, "pair.test", A))?;
    let second = send(&socket, None, &query(12, "pair.test", AAAA))?;
    let mut received = BTreeMap::new();
    for _ in 0..2 {
        let (id, received_ns) = receive(&socket)?;
        received.insert(id, received_ns);
    }
    // The client may have its answer before the server has written down that it sent it.
    world.server.wait_answers(2, DEADLINE)?;
    let served = [world.server.one(11)?, world.server.one(12)?];
    let lines = world.exactly(2)?;
    for (id, qtype, sent, served) in [(11, "A", first, &served[0]), (12, "AAAA", second, &served[1])] {
        let line = lines.iter().find(|line| line.text("dns.question.type") == Some(qtype)).unwrap();
        check_latency(line, sent, received[&id], served, 0)?;
    }
    Ok(())
}

/// musl asks all servers at once from one socket that is not connected, with the same id; several questions of one id
/// are told apart by what they ask.
#[test]
fn each_server_gets_its_own_answer() -> Result<()> {
    let scripts = [("all.test", Script::after(Duration::from_millis(20)))];
    let world = World::new(&["--timeout", "500ms"], &scripts)?;
    let socket = world.socket("0.0.0.0:0")?;
    for server in [SERVER, OTHER_SERVER] {
        for qtype in [A, AAAA] {
            send(&socket, Some(server), &query(21, "all.test", qtype))?;
        }
    }
    for _ in 0..4 {
        receive(&socket)?;
    }
    let lines = world.exactly(4)?;
    let mut seen = BTreeSet::new();
    for line in &lines {
        assert_eq!(line.text("dns.outcome"), Some("answered"), "{}", line.0);
        assert_eq!((line.int("server.port"), line.int("dns.attempt")), (Some(53), Some(1)), "{}", line.0);
        assert_eq!(line.int("process.pid"), Some(i64::from(std::process::id())), "{}", line.0);
        let duration = line.float("duration").unwrap();
        assert!((0.02..1.0).contains(&duration), "{}", line.0);
        seen.insert((line.text("server.address").unwrap(), line.text("dns.question.type").unwrap()));
    }
    let all = ["127.0.0.2", "127.0.0.3"].map(|server| ["A", "AAAA"].map(|qtype| (server, qtype)));
    assert_eq!(seen, all.into_iter().flatten().collect());
    Ok(())
}

/// An answer belongs to the server that was asked: of two, the silent one stays unanswered, and an answer from a server
/// that nobody asked is none.
#[test]
fn an_answer_from_elsewhere_answers_nothing() -> Result<()> {
    let world = World::new(&["--timeout", "500ms"], &[("quiet.test", Script::never())])?;
    let socket = world.socket("127.0.0.1:0")?;
    let stranger = world.socket("127.0.0.4:53")?;
    send(&socket, Some(SERVER), &query(31, "quiet.test", A))?;
    let mut forged = query(31, "quiet.test", A);
    // QR.
    forged[2] |= 0x80;
    stranger.send_to(&forged, socket.local_addr()?)?;
    receive(&socket).context("the forged answer arrives all the same")?;
    // From a server that was asked, but to another id, another type, another name.
    let server = world.socket("127.0.0.5:53")?;
    send(&socket, Some("127.0.0.5:53"), &query(31, "quiet.test", A))?;
    for mut other in [query(32, "quiet.test", A), query(31, "quiet.test", AAAA), query(31, "quite.test", A)] {
        other[2] |= 0x80;
        server.send_to(&other, socket.local_addr()?)?;
        receive(&socket).context("so does that")?;
    }
    let lines = world.exactly(2)?;
    for (line, server) in lines.iter().zip(["127.0.0.2", "127.0.0.5"]) {
        assert_eq!(line.text("dns.outcome"), Some("unanswered"), "{}", line.0);
        assert_eq!(line.text("server.address"), Some(server), "{}", line.0);
    }
    Ok(())
}

/// An IPv6 socket that talks IPv4.
#[test]
fn mapped_addresses_are_ipv4() -> Result<()> {
    let world = World::new(&[], &[])?;
    let mapped = format!("[::ffff:127.0.0.2]:{}", 53);
    let connected = world.connected(&mapped)?;
    ask(&connected, None, &query(41, "connected.test", A))?;
    let unconnected = world.socket("[::]:0")?;
    ask(&unconnected, Some(&mapped), &query(42, "unconnected.test", A))?;
    let lines = world.exactly(2)?;
    for (line, name) in lines.iter().zip(["connected.test", "unconnected.test"]) {
        assert_eq!(line.text("dns.question.name"), Some(name));
        assert_eq!((line.text("server.address"), line.int("server.port")), (Some("127.0.0.2"), Some(53)));
        assert_eq!(line.int("process.pid"), Some(i64::from(std::process::id())), "{}", line.0);
    }
    Ok(())
}

#[test]
fn silence_is_reported_and_so_is_a_late_answer() -> Result<()> {
    const TIMEOUT: f64 = 0.5;
    const LATE: f64 = 1.2;
    let scripts =
        [("never.test", Script::never()), ("late.test", Script::after(Duration::from_secs_f64(LATE)))];
    let world = World::new(&["--timeout", "500ms"], &scripts)?;
    let socket = world.connected(SERVER_V6)?;
    send(&socket, None, &query(51, "never.test", A))?;
    let (sent, received_ns) = ask(&socket, None, &query(52, "late.test", AAAA))?;
    world.server.wait_answers(1, DEADLINE)?;
    let served = world.server.one(52)?;
    let lines = world.exactly(3)?;
    let mut outcomes = Vec::new();
    for line in &lines {
        let outcome = line.text("dns.outcome").unwrap();
        let name = line.text("dns.question.name").unwrap();
        outcomes.push((name, outcome));
        assert_eq!(line.text("server.address"), Some("::1"), "{}", line.0);
        assert_eq!(line.int("process.pid"), Some(i64::from(std::process::id())), "{}", line.0);
        let duration = line.float("duration").unwrap();
        if outcome == "unanswered" {
            // Given up at the next look after the timeout; and before the answer came.
            assert!((TIMEOUT..LATE).contains(&duration), "{}", line.0);
            for key in ["dns.response_code", "dns.answers", "dns.truncated"] {
                assert_eq!(
                    line.get(key),
                    None,
                    "nothing is known of an answer that did not come: {}",
                    line.0
                );
            }
        } else {
            assert_eq!(line.text("dns.response_code"), Some("NOERROR"), "{}", line.0);
            assert!(duration >= LATE, "{}", line.0);
            check_latency(line, sent, received_ns, &served, 0)?;
        }
    }
    outcomes.sort_unstable();
    assert_eq!(
        outcomes,
        [("late.test", "late"), ("late.test", "unanswered"), ("never.test", "unanswered")],
        "{lines:#?}"
    );
    let late = |outcome| {
        let is = |line: &Line| {
            line.text("dns.question.name") == Some("late.test") && line.text("dns.outcome") == Some(outcome)
        };
        lines.iter().position(is)
    };
    assert!(late("unanswered") < late("late"), "first given up, then answered");
    Ok(())
}

#[test]
fn a_question_sent_again_closes_the_try_before() -> Result<()> {
    let world = World::new(&[], &[("again.test", Script::after(patient(Duration::from_millis(300))))])?;
    let socket = world.connected(SERVER)?;
    let mut tries = Vec::new();
    for _ in 0..3 {
        tries.push(send(&socket, None, &query(61, "again.test", A))?);
        world.probe.wait_for("the try before", DEADLINE, |lines| {
            (world.ours(lines).len() + 1 >= tries.len()).then_some(())
        })?;
    }
    for _ in 0..3 {
        receive(&socket)?;
    }
    // The two answers to the tries given up answer nothing any more.
    world.server.wait_answers(3, DEADLINE)?;
    let served = world.server.served();
    let lines = world.exactly(3)?;
    for (line, (attempt, outcome)) in
        lines.iter().zip([(1, "unanswered"), (2, "unanswered"), (3, "answered")])
    {
        assert_eq!(line.int("dns.attempt"), Some(attempt), "{}", line.0);
        assert_eq!(line.text("dns.outcome"), Some(outcome), "{}", line.0);
    }
    for (line, pair) in lines.iter().zip(tries.windows(2)) {
        // A try lasted until the next.
        let duration = line.float("duration").unwrap();
        let bounds =
            seconds(pair[0].ended_ns, pair[1].begun_ns)..=seconds(pair[0].begun_ns, pair[1].ended_ns);
        assert!(bounds.contains(&duration), "{duration} is not in {bounds:?}");
    }
    // The first answer to come belongs to the last try.
    let first_answer = served.iter().filter_map(|served| served.answered_ns.first()).min().unwrap();
    let duration = lines[2].float("duration").unwrap();
    let bounds =
        seconds(tries[2].ended_ns, first_answer.0)..=seconds(tries[2].begun_ns, first_answer.1) + tolerance();
    assert!(bounds.contains(&duration), "{duration} is not in {bounds:?}");
    Ok(())
}

#[test]
fn an_answer_that_comes_twice_is_one_lookup() -> Result<()> {
    let twice = Script { times: 2, ..Script::default() };
    let world = World::new(&[], &[("twice.test", twice)])?;
    let socket = world.connected(SERVER)?;
    for id in 1..=20 {
        ask(&socket, None, &query(id, "twice.test", A))?;
        receive(&socket)?;
    }
    let lines = world.exactly(20)?;
    assert!(lines.iter().all(|line| line.text("dns.outcome") == Some("answered")), "{lines:#?}");
    Ok(())
}

/// Whatever probe makes of a packet, it arrives as it was.
#[test]
fn malformed_packets_pass_and_are_no_lookups() -> Result<()> {
    let world = World::new(&["--timeout", "250ms"], &[])?;
    for (server, local) in [("127.0.0.9:53", "127.0.0.1:0"), ("[::1]:5353", "[::1]:0")] {
        // The second is no DNS port: there everything is nobody's business, well-formed or not.
        let server = world.socket(server)?;
        let client = world.socket(local)?;
        client.connect(server.local_addr()?)?;
        let mut room = [0; 65_536];
        for (at, packet) in nonsense().iter().enumerate() {
            client.send(packet)?;
            let (len, from) = server.recv_from(&mut room).with_context(|| format!("question {at}"))?;
            assert_eq!(&room[..len], &packet[..], "question {at}");
            let mut answer = packet.clone();
            if let Some(flags) = answer.get_mut(2) {
                *flags |= 0x80;
            }
            server.send_to(&answer, from)?;
            let len = client.recv(&mut room).with_context(|| format!("answer {at}"))?;
            assert_eq!(&room[..len], &answer[..], "answer {at}");
        }
    }
    // A proper lookup is still seen, whatever came before its answer.
    ask(&world.connected(SERVER)?, None, &query(71, "fine.test", A))?;
    let lines = world.exactly(1)?;
    assert_eq!(lines[0].text("dns.question.name"), Some("fine.test"));
    Ok(())
}

#[test]
fn nonsense_before_the_answer_does_not_stand_in_its_way() -> Result<()> {
    let first = nonsense();
    let count = first.len();
    let world = World::new(&[], &[("noisy.test", Script { first, ..Script::default() })])?;
    let socket = world.connected(SERVER)?;
    send(&socket, None, &query(81, "noisy.test", A))?;
    let mut room = [0; 65_536];
    for at in 0..=count {
        socket.recv(&mut room).with_context(|| format!("packet {at} of {count}"))?;
    }
    let lines = world.exactly(1)?;
    assert_eq!(lines[0].text("dns.outcome"), Some("answered"), "{}", lines[0].0);
    assert_eq!(lines[0].int("dns.answers"), Some(1), "{}", lines[0].0);
    Ok(())
}

/// The programs see every packet of the host, and let every one of them pass: UDP of any size on any port, TCP. (Port 53 over
/// TCP: tests/tests/dns_tcp.rs.)
#[test]
fn other_traffic_passes_untouched() -> Result<()> {
    let world = World::new(&[], &[])?;
    for address in ["127.0.0.1", "[::1]"] {
        for port in [1, 53, 123, 5_353, 40_000] {
            // 53 is taken by the server on ::1; another port there.
            let port = if address == "[::1]" && port == 53 { 54 } else { port };
            let server = world.socket(&format!("{address}:{port}"))?;
            let client = world.socket(&format!("{address}:0"))?;
            let mut room = vec![0; 65_536];
            for len in [0, 1, 11, 12, 512, 1_500, 9_000, 65_000] {
                let packet = vec![port as u8; len];
                client.send_to(&packet, server.local_addr()?)?;
                let (got, from) =
                    server.recv_from(&mut room).with_context(|| format!("{address}:{port} {len}"))?;
                assert_eq!(&room[..got], &packet[..]);
                server.send_to(&packet, from)?;
                assert_eq!(client.recv(&mut room)?, len);
            }
        }
        pass_stream(&world.netns, &format!("{address}:8080"))?;
    }
    ask(&world.connected(SERVER)?, None, &query(91, "last.test", A))?;
    world.exactly(1)?;
    Ok(())
}

/// As many events as the server sent answers: none lost, none invented, none under another's name.
#[test]
fn hundreds_of_lookups_come_out_as_they_went_in() -> Result<()> {
    const SOCKETS: u16 = 16;
    const EACH: u16 = 50;
    let names: Vec<String> = (0..SOCKETS * EACH).map(|i| format!("n{i}.Many.test")).collect();
    let lower: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    let scripts: Vec<(&str, Script)> = lower
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let delay = Duration::from_millis(i as u64 % 7);
            (
                name.as_str(),
                Script { delay, rcode: if i % 3 == 0 { NXDOMAIN } else { 0 }, ..Script::default() },
            )
        })
        .collect();
    let world = World::new(&[], &scripts)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SOCKETS)
            .map(|at| {
                let (world, names) = (&world, &names);
                scope.spawn(move || -> Result<()> {
                    let server = if at % 2 == 0 { SERVER } else { SERVER_V6 };
                    let socket = world.connected(server)?;
                    for i in 0..EACH {
                        let i = at * EACH + i;
                        // Ids are the same on all sockets, and so are some questions.
                        ask(&socket, None, &query(i % EACH, &names[usize::from(i)], A))?;
                        ask(&socket, None, &query(i % EACH, "shared.test", AAAA))?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    let total = 2 * usize::from(SOCKETS * EACH);
    world.server.wait_answers(total, DEADLINE)?;
    let served = world.server.served();
    let lines = world.exactly(total)?;
    let mut want = BTreeMap::new();
    for served in &served {
        let rcode =
            scripts.iter().find(|(name, _)| *name == served.name).map_or(0, |(_, script)| script.rcode);
        let rcode = if rcode == 0 { "NOERROR" } else { "NXDOMAIN" };
        *want.entry((served.name.clone(), rcode.to_owned(), served.server.ip().to_string())).or_insert(0) +=
            1;
    }
    let mut got = BTreeMap::new();
    for line in &lines {
        assert_eq!(line.text("dns.outcome"), Some("answered"), "{}", line.0);
        let text = |key| line.text(key).unwrap_or_default().to_owned();
        *got.entry((text("dns.question.name"), text("dns.response_code"), text("server.address")))
            .or_insert(0) += 1;
    }
    assert_eq!(got, want);
    Ok(())
}

/// What does not fit into the ring is counted, to the lookup.
#[test]
fn lost_lookups_are_counted() -> Result<()> {
    const COUNT: u16 = 300;
    let world = World::new(&["--ring-kib", "4"], &[])?;
    let socket = world.connected(SERVER)?;
    world.probe.signal(Signal::STOP)?;
    for id in 1..=COUNT {
        ask(&socket, None, &query(id, "flood.test", A))?;
    }
    world.probe.signal(Signal::CONT)?;
    let loss = |line: &Line| (line.event() == "probe.loss").then(|| line.int("count")).flatten();
    let line = world.probe.line("a loss", |line| loss(line).is_some())?;
    assert!(line.text("remedy").is_some_and(|remedy| remedy.contains("--ring-kib")), "{}", line.0);
    let netns = i64::from(world.netns.inode());
    let finished = world.probe.stop()?;
    let lost: i64 = finished.lines.iter().filter_map(loss).sum();
    let seen = lookups_of(&finished, netns).len() as i64;
    assert_eq!(seen + lost, i64::from(COUNT), "{seen} seen, {lost} lost");
    assert!(seen >= 20, "a ring of 16 KiB holds more than {seen}");
    assert_eq!(finished.code, Some(0));
    assert!(finished.stderr.contains(&format!("lost: {lost} of dns")), "{}", finished.stderr);
    Ok(())
}

/// Questions that find no room to wait are counted; those that did wait are reported.
#[test]
fn questions_without_room_are_counted() -> Result<()> {
    const COUNT: u16 = 100;
    let world =
        World::new(&["--dns-pending", "16", "--timeout", "250ms"], &[("never.test", Script::never())])?;
    let socket = world.connected(SERVER)?;
    world.probe.signal(Signal::STOP)?;
    for id in 1..=COUNT {
        send(&socket, None, &query(id, "never.test", A))?;
    }
    world.probe.signal(Signal::CONT)?;
    let loss = |line: &Line| (line.event() == "probe.loss").then(|| line.int("count")).flatten();
    world.probe.wait_for("all questions", DEADLINE, |lines| {
        let lost: i64 = lines.iter().filter_map(loss).sum();
        let seen = world.ours(lines).len() as i64;
        (seen + lost >= i64::from(COUNT)).then_some(())
    })?;
    let netns = i64::from(world.netns.inode());
    let finished = world.probe.stop()?;
    let losses: Vec<&Line> = finished.lines.iter().filter(|line| loss(line).is_some()).collect();
    let lost: i64 = losses.iter().filter_map(|line| loss(line)).sum();
    let seen = lookups_of(&finished, netns);
    assert_eq!(seen.len() as i64 + lost, i64::from(COUNT));
    assert!(seen.iter().all(|line| line.text("dns.outcome") == Some("unanswered")), "{seen:#?}");
    for line in losses {
        assert_eq!(line.text("where"), Some("dns.pending"), "{}", line.0);
        assert!(line.text("remedy").is_some_and(|remedy| remedy.contains("--dns-pending")), "{}", line.0);
    }
    Ok(())
}

/// The asking process is the one that sent, whoever runs when the answer comes.
#[test]
fn filters_let_through_what_they_say() -> Result<()> {
    let slow = patient(Duration::from_millis(80));
    let slow_ms = format!("{}ms", slow.as_millis());
    let scripts = [
        ("fast.one.test", Script::default()),
        ("slow.two.test", Script::after(slow)),
        ("no.two.test", Script::rcode(NXDOMAIN)),
    ];
    let netns = Netns::new()?;
    let addresses: Vec<SocketAddr> = vec![SERVER.parse()?];
    let _server = netns.run(|| DnsServer::start(&addresses, &scripts))??;
    let mut other = netns.run(|| Workload::start(WORKLOAD))??;
    // "asker" in hexadecimal.
    other.tell("name 61736b6572")?;
    let pid = other.pid().to_string();
    let all = ["fast.one.test A", "slow.two.test A", "slow.two.test AAAA", "no.two.test A", "other.test A"];
    let cases: [(&[&str], &[usize]); 11] = [
        (&[], &[0, 1, 2, 3, 4]),
        (&["--name", "*.two.test"], &[1, 2, 3]),
        (&["--name", "*.TWO.test."], &[1, 2, 3]),
        (&["--name", "f?st.*"], &[0]),
        (&["--type", "AAAA"], &[2]),
        (&["--rcode", "nxdomain"], &[3]),
        (&["--slower-than", &slow_ms], &[1, 2]),
        (&["--pid", &pid], &[4]),
        (&["--comm", "asker"], &[4]),
        (&["--pid", &pid, "--type", "AAAA"], &[]),
        (&["--port", "5353,53"], &[0, 1, 2, 3, 4]),
    ];
    for (arguments, want) in cases {
        let probe = Probe::start(&[&["dns"], arguments].concat())?;
        let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.connect(SERVER)?;
        for (id, (name, qtype)) in
            (1..).zip([(scripts[0].0, A), (scripts[1].0, A), (scripts[1].0, AAAA), (scripts[2].0, A)])
        {
            ask(&socket, None, &query(id, name, qtype))?;
        }
        other.tell(&format!("ask {SERVER} 5 other.test"))?;
        let finished = probe.stop()?;
        finished.require_complete()?;
        let found: Vec<String> = lookups_of(&finished, i64::from(netns.inode()))
            .iter()
            .map(|line| {
                let text = |key| line.text(key).unwrap_or_default();
                if text("dns.question.name") == "other.test" {
                    assert_eq!(line.int("process.pid"), Some(i64::from(other.pid())), "{}", line.0);
                    assert_eq!(line.text("process.comm"), Some("asker"), "{}", line.0);
                }
                format!("{} {}", text("dns.question.name"), text("dns.question.type"))
            })
            .collect();
        let want: Vec<&str> = want.iter().map(|at| all[*at]).collect();
        assert_eq!(found, want, "{arguments:?}");
    }
    other.end()
}

/// Only watched ports are looked at.
#[test]
fn other_ports_can_be_watched() -> Result<()> {
    let netns = Netns::new()?;
    let addresses: Vec<SocketAddr> = vec![
        (Ipv6Addr::LOCALHOST, 5_353).into(),
        (Ipv6Addr::LOCALHOST, 53).into(),
        (Ipv6Addr::LOCALHOST, 54).into(),
    ];
    let server = netns.run(|| DnsServer::start(&addresses, &[]))??;
    let probe = Probe::start(&["dns", "--port", "5353,54"])?;
    let socket = netns.run(|| UdpSocket::bind("[::]:0"))??;
    socket.set_read_timeout(Some(DEADLINE))?;
    for (id, port) in [(1, 53), (2, 5_353), (3, 54)] {
        ask(&socket, Some(&format!("[::1]:{port}")), &query(id, "port.test", A))?;
    }
    assert_eq!(server.served().len(), 3);
    let finished = probe.stop()?;
    finished.require_complete()?;
    let ports: Vec<Option<i64>> =
        lookups_of(&finished, i64::from(netns.inode())).iter().map(|line| line.int("server.port")).collect();
    assert_eq!(ports, [Some(5_353), Some(54)]);
    Ok(())
}
