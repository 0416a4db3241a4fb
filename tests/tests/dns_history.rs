//! What one lookup has to do with others: the twin that got no answer, the question that is asked again, what a search list makes of
//! a name. And what only an answer's records tell. Against servers that do as they are told.

use std::time::Duration;

use anyhow::{Result, ensure};
use probe_tests::dns_server::{A, AAAA, NXDOMAIN, SERVFAIL, Script, query};
use probe_tests::dns_world::{OTHER_SERVER, SERVER, SERVER_V6, World, ask, receive, send, serve};
use probe_tests::otlp_receiver::{PointValue, Receiver};
use probe_tests::probe::{DEADLINE, Line, Probe, patient};

/// How long the resolvers here wait for an answer before they ask again.
fn patience() -> Duration {
    patient(Duration::from_millis(600))
}

/// Name, type, outcome.
fn shown(line: &Line) -> (&str, &str, &str) {
    let text = |key| line.text(key).unwrap_or_default();
    (text("dns.question.name"), text("dns.question.type"), text("dns.outcome"))
}

fn only(qtype: u16) -> Script {
    Script { only: Some(qtype), ..Script::default() }
}

/// Asks for both kinds of address from one socket, as glibc does, and takes so many answers.
fn ask_both(world: &World, server: &str, name: &str, answers: usize) -> Result<()> {
    let socket = world.connected(server)?;
    send(&socket, None, &query(11, name, A))?;
    send(&socket, None, &query(12, name, AAAA))?;
    for _ in 0..answers {
        receive(&socket)?;
    }
    Ok(())
}

#[test]
fn a_lost_twin_is_named() -> Result<()> {
    let scripts = [
        ("four.test", only(A)),
        ("six.test", only(AAAA)),
        ("neither.test", Script::never()),
        ("text.test", only(A)),
    ];
    let world = World::new(&["--timeout", "500ms"], &scripts)?;
    ask_both(&world, SERVER, "four.test", 1)?;
    ask_both(&world, SERVER_V6, "six.test", 1)?;
    ask_both(&world, SERVER, "neither.test", 0)?;
    ask_both(&world, SERVER, "both.test", 2)?;
    // Of two that are no twins.
    let socket = world.connected(SERVER)?;
    send(&socket, None, &query(13, "text.test", A))?;
    send(&socket, None, &query(14, "text.test", 16))?;
    receive(&socket)?;
    let lines = world.exactly(10)?;
    let (lost, others): (Vec<&Line>, Vec<&Line>) =
        lines.iter().partition(|line| line.get("dns.lost_twin") == Some(&true.into()));
    let mut lost: Vec<_> = lost.into_iter().map(shown).collect();
    lost.sort_unstable();
    assert_eq!(lost, [("four.test", "AAAA", "unanswered"), ("six.test", "A", "unanswered")], "{lines:#?}");
    ensure!(others.iter().all(|line| line.get("dns.lost_twin").is_none()), "{others:#?}");
    let unanswered = others.iter().filter(|line| line.text("dns.outcome") == Some("unanswered")).count();
    assert_eq!(unanswered, 3, "{others:#?}");
    Ok(())
}

/// Tries of a question, in the order in which they were made: by their outcome or code.
fn attempts(lines: &[Line]) -> Vec<(i64, String)> {
    let mut tries: Vec<(i64, String)> = lines
        .iter()
        .map(|line| {
            let end = line.text("dns.response_code").or(line.text("dns.outcome")).unwrap_or_default();
            (line.int("dns.attempt").unwrap_or_default(), end.to_owned())
        })
        .collect();
    tries.sort_unstable();
    tries
}

fn named(lines: &[Line], name: &str) -> Vec<Line> {
    lines.iter().filter(|line| line.text("dns.question.name") == Some(name)).cloned().collect()
}

/// As Go's resolver: every try has its own socket and its own id. Whether the try before waits still, or is given up.
#[test]
fn tries_from_other_sockets_are_numbered() -> Result<()> {
    let twice = Script { ignored: 2, ..Script::default() };
    let tries = [(1, "unanswered"), (2, "unanswered"), (3, "NOERROR")];
    for (timeout, told) in [("60s", 2), ("250ms", 0)] {
        let world = World::new(&["--timeout", timeout], &[("again.test", twice.clone())])?;
        for id in [71, 1_072, 503] {
            let socket = world.connected(SERVER)?;
            socket.set_read_timeout(Some(patience()))?;
            send(&socket, None, &query(id, "again.test", A))?;
            let answer = receive(&socket);
            ensure!(answer.is_ok() == (id == 503), "the third is answered: {answer:?}");
        }
        let want: Vec<_> =
            tries.iter().skip(told).map(|(number, end)| (*number, (*end).to_owned())).collect();
        let lines = world.lookups(want.len())?;
        assert_eq!(attempts(&lines), want, "{lines:#?}");
    }
    Ok(())
}

/// An answer that is of no use is followed by another try, at the next server, at once.
#[test]
fn the_next_server_is_the_next_try() -> Result<()> {
    let (netns, broken) = serve(&[])?;
    drop(broken);
    let failing = [("name.test", Script::rcode(SERVFAIL))];
    let of = |server: &str, scripts: &[(&str, Script)]| -> Result<_> {
        let addresses = [server.parse()?];
        netns.run(|| probe_tests::dns_server::DnsServer::start(&addresses, scripts))?
    };
    let (_first, second) = (of(SERVER, &failing)?, of(OTHER_SERVER, &[])?);
    let world = World { netns, server: second, probe: Probe::start(&["dns"])? };
    for (id, server) in [(1, SERVER), (1, OTHER_SERVER)] {
        ask(&world.connected(server)?, None, &query(id, "name.test", A))?;
    }
    // Once it was of use, what is asked again is asked anew.
    ask(&world.connected(OTHER_SERVER)?, None, &query(2, "name.test", A))?;
    let lines = world.exactly(3)?;
    let tries: Vec<_> =
        lines.iter().map(|line| (line.text("dns.response_code"), line.int("dns.attempt"))).collect();
    assert_eq!(
        tries,
        [(Some("SERVFAIL"), Some(1)), (Some("NOERROR"), Some(2)), (Some("NOERROR"), Some(1))],
        "{lines:#?}"
    );
    Ok(())
}

/// musl asks all its servers at once: that is one try, also where one of them stays silent.
#[test]
fn all_servers_at_once_are_one_try() -> Result<()> {
    let (netns, server) = serve(&[])?;
    drop(server);
    let start = |server: &str, script: Script| -> Result<_> {
        let addresses = [server.parse()?];
        netns.run(|| probe_tests::dns_server::DnsServer::start(&addresses, &[("all.test", script)]))?
    };
    let (_silent, server) = (start(SERVER, Script::never())?, start(OTHER_SERVER, Script::default())?);
    let world = World { netns, server, probe: Probe::start(&["dns", "--timeout", "500ms"])? };
    let socket = world.socket("0.0.0.0:0")?;
    for qtype in [A, AAAA] {
        for server in [SERVER, OTHER_SERVER] {
            send(&socket, Some(server), &query(21, "all.test", qtype))?;
        }
    }
    for _ in 0..2 {
        receive(&socket)?;
    }
    let lines = world.exactly(4)?;
    for line in &lines {
        let outcome =
            if line.text("server.address") == Some("127.0.0.2") { "unanswered" } else { "answered" };
        assert_eq!(line.text("dns.outcome"), Some(outcome), "{}", line.0);
        assert_eq!(line.int("dns.attempt"), Some(1), "{}", line.0);
        assert_eq!(line.get("dns.lost_twin"), None, "it was answered elsewhere: {}", line.0);
    }
    Ok(())
}

/// What a search list makes of a name that has dots enough, before it is asked for as it is (ndots:5).
const SEARCH: [&str; 3] =
    ["api.example.test.default.svc.test", "api.example.test.svc.test", "api.example.test.test"];

fn misses(line: &Line) -> Option<i64> {
    line.int("dns.search_misses")
}

#[test]
fn what_a_search_list_costs_is_counted() -> Result<()> {
    let scripts: Vec<(&str, Script)> =
        SEARCH.iter().chain(&["typo.test"]).map(|name| (*name, Script::rcode(NXDOMAIN))).collect();
    let world = World::new(&[], &scripts)?;
    let socket = world.connected(SERVER)?;
    let found = "api.example.test";
    // For one kind of address.
    ask(&socket, None, &query(1, "typo.test", A))?;
    for (id, name) in (2..).zip(SEARCH.iter().chain(&[found])) {
        ask(&socket, None, &query(id, name, A))?;
    }
    // They count once.
    ask(&socket, None, &query(6, found, A))?;
    // For both.
    for name in SEARCH.iter().chain(&[found]) {
        ask_both(&world, SERVER, name, 2)?;
    }
    let lines = world.exactly(6 + 8)?;
    let of_found: Vec<Option<i64>> = named(&lines, found).iter().map(misses).collect();
    assert_eq!(of_found, [Some(3), None, Some(6), None], "{lines:#?}");
    let others = lines.iter().filter(|line| line.text("dns.question.name") != Some(found));
    ensure!(others.into_iter().all(|line| misses(line).is_none()), "{lines:#?}");
    Ok(())
}

/// Codes beyond four bits are in an OPT record (RFC 6891, 6.1.3); how long an answer may be kept is in its records.
#[test]
fn what_the_records_of_an_answer_tell() -> Result<()> {
    let extended = |rcode: u16| Script {
        rcode: (rcode & 0xf) as u8,
        edns: Some((rcode >> 4) as u8),
        answers: 0,
        ..Script::default()
    };
    let kept = |ttls: &[u32]| Script { ttls: ttls.to_vec(), answers: ttls.len() as u16, ..Script::default() };
    let cases = [
        ("plain.test", Script::default(), "NOERROR", Some(60.0)),
        ("edns.test", extended(0), "NOERROR", None),
        ("nx.edns.test", extended(3), "NXDOMAIN", None),
        ("badvers.test", extended(16), "BADVERS", None),
        ("badcookie.test", extended(23), "BADCOOKIE", None),
        ("unheard.of.test", extended(3_000), "RCODE3000", None),
        ("least.test", kept(&[300, 17, 86_400]), "NOERROR", Some(17.0)),
        ("last.test", kept(&[300, 20, 5]), "NOERROR", Some(5.0)),
        ("zero.test", kept(&[0, 10]), "NOERROR", Some(0.0)),
        (
            "alias.test",
            Script { aliases: vec!["x.cdn.test"], ttls: vec![7, 30], ..Script::default() },
            "NOERROR",
            Some(7.0),
        ),
        ("both.test", Script { edns: Some(0), ..kept(&[40, 30]) }, "NOERROR", Some(30.0)),
        ("gone.test", Script::rcode(NXDOMAIN), "NXDOMAIN", None),
    ];
    let scripts: Vec<(&str, Script)> =
        cases.iter().map(|(name, script, ..)| (*name, script.clone())).collect();
    let world = World::new(&[], &scripts)?;
    // Over TCP the same.
    let socket = world.connected(SERVER)?;
    let mut stream = world.stream(SERVER_V6)?;
    for (id, (name, ..)) in (1..).zip(&cases) {
        ask(&socket, None, &query(id, name, A))?;
        stream.ask(&query(id, name, A))?;
    }
    let lines = world.exactly(2 * cases.len())?;
    for (name, _, rcode, ttl) in &cases {
        let lines = named(&lines, name);
        assert_eq!(lines.len(), 2, "{name}");
        for line in lines {
            assert_eq!(line.text("dns.response_code"), Some(*rcode), "{}", line.0);
            assert_eq!(line.float("dns.ttl"), *ttl, "{}", line.0);
        }
    }
    Ok(())
}

/// Both readings as metrics, by server.
#[test]
fn lost_twins_and_search_lists_arrive_at_the_collector() -> Result<()> {
    let mut scripts: Vec<(&str, Script)> =
        SEARCH.iter().map(|name| (*name, Script::rcode(NXDOMAIN))).collect();
    scripts.push(("four.test", only(A)));
    let (netns, server) = serve(&scripts)?;
    let receiver = Receiver::start()?;
    let probe = Probe::start(&["run", "--interval", "1s", "--otlp-endpoint", &receiver.endpoint()])?;
    let world = World { netns, server, probe };
    let socket = world.connected(SERVER_V6)?;
    for (id, name) in (1..).zip(SEARCH.iter().chain(&["api.example.test"])) {
        ask(&socket, None, &query(id, name, A))?;
    }
    ask_both(&world, SERVER, "four.test", 1)?;
    for (metric, server, count) in
        [("dns.lookup.search_misses", "::1", 3.0), ("dns.lookup.lost_twin", "127.0.0.2", 1.0)]
    {
        let what = format!("{metric} of {server}");
        // Given up after five seconds.
        let point = receiver.wait_for(&what, 2 * DEADLINE, |receiver| {
            let points = receiver.points();
            let is_it = |point: &&probe_tests::otlp_receiver::Point| {
                point.name == metric && point.attributes.get("server.address").is_some_and(|at| at == server)
            };
            points.iter().rev().find(is_it).cloned()
        })?;
        let PointValue::Sum { value, monotonic: true } = point.value else {
            anyhow::bail!("no counter: {point:?}");
        };
        ensure!(value == count && point.unit == "{lookup}", "{what}: {point:?}");
        ensure!(point.attributes.len() == 1, "{point:?}");
    }
    let finished = world.probe.stop()?;
    finished.require_complete()
}
