//! Over TLS: who is trusted, who is not, and what is said then. Certificates are made here; no authority of the system's is needed.

use std::path::{Path, PathBuf};

use probe_tests::certificates::{Authority, Identity};
use probe_tests::otlp_receiver::{Settings, Tls};

use super::*;

const GRPC: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
const HTTP: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
const CA: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE";
const KEY: &str = "OTEL_EXPORTER_OTLP_CLIENT_KEY";

/// A directory of this test's.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("probe-tls-{name}-{}", std::process::id()));
        std::fs::create_dir(&directory)?;
        Ok(Self(directory))
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    fn path(&self, name: &str) -> String {
        let Self(directory) = self;
        directory.join(name).display().to_string()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let Self(directory) = self;
        let _left = std::fs::remove_dir_all(directory);
    }
}

fn receiver(protocol: (&str, &str), of: &Identity, clients: Option<&Authority>) -> Result<Receiver> {
    let clients = clients.map(|authority| authority.pem.clone());
    let tls = Some(Tls { certificate: of.pem.clone(), key: of.key.clone(), clients });
    let settings = Settings { tls, ..Settings::default() };
    if protocol == GRPC { Receiver::grpc(settings) } else { Receiver::http(settings) }
}

/// A snapshot and an event arrive.
async fn arrives(receiver: &Receiver, env: &[(&str, &str)]) -> Result<()> {
    let mut agent = Agent::start(&receiver.endpoint(), env)?;
    agent.tick();
    agent.exporter.event(&Entity::Host, &Retransmit(START));
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    assert_eq!((agent.sent(), agent.failed_in_all()), (1, 0), "{env:?}: {:?}", said(&receiver.endpoint()));
    assert_eq!((receiver.points().len(), receiver.records().len()), (1, 1));
    Ok(())
}

/// Nothing arrives, and what is said has all these words.
fn is_refused(receiver: &Receiver, env: &[(&str, &str)], words: &[&str]) -> Result<()> {
    let mut agent = Agent::start(&receiver.endpoint(), env)?;
    agent.tick();
    eventually("it is said", || !said(&receiver.endpoint()).is_empty())?;
    let said = said(&receiver.endpoint());
    assert!(words.iter().all(|word| said[0].contains(word)), "{words:?} {env:?}: {said:?}");
    assert_eq!((receiver.calls(), agent.sent()), (0, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_is_trusted_by_the_authority_that_is_named() -> Result<()> {
    let files = Files::new("trusted")?;
    let (ours, other) = (Authority::new("ours")?, Authority::new("other")?);
    // Of several in a file, the second.
    let ca = files.write("ca.pem", &format!("{}{}", other.pem, ours.pem))?;
    let wrong_ca = files.write("wrong.pem", &other.pem)?;
    let well = ours.sign("127.0.0.1", 4_000)?;
    for protocol in [GRPC, HTTP] {
        arrives(&receiver(protocol, &well, None)?, &[protocol, (CA, &ca)]).await?;
        // Of each signal.
        let env = [
            protocol,
            ("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", ca.as_str()),
            ("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", &ca),
            (CA, "/nowhere"),
        ];
        arrives(&receiver(protocol, &well, None)?, &env).await?;
        for (what, ca, identity, words) in [
            ("wrong authority", &wrong_ca, &well, ["UnknownIssuer", "--otlp-certificate", CA]),
            (
                "expired",
                &ca,
                &ours.sign("127.0.0.1", 2_020)?,
                ["expired", "renew the collector's certificate", "clock"],
            ),
            (
                "another's name",
                &ca,
                &ours.sign("collector.example", 4_000)?,
                ["not valid for name", "127.0.0.1", "the endpoint has to have a name"],
            ),
        ] {
            is_refused(&receiver(protocol, identity, None)?, &[protocol, (CA, ca)], &words).context(what)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_asks_who_probe_is_gets_an_answer() -> Result<()> {
    let files = Files::new("mutual")?;
    let (servers, clients, other) =
        (Authority::new("servers")?, Authority::new("clients")?, Authority::new("other")?);
    let ca = files.write("ca.pem", &servers.pem)?;
    let server = servers.sign("127.0.0.1", 4_000)?;
    let probe = clients.sign("probe", 4_000)?;
    let (certificate, key) = (files.write("probe.pem", &probe.pem)?, files.write("probe.key", &probe.key)?);
    let stranger = other.sign("probe", 4_000)?;
    let wrong = (files.write("other.pem", &stranger.pem)?, files.write("other.key", &stranger.key)?);
    for protocol in [GRPC, HTTP] {
        let env = [protocol, (CA, &ca), (CERTIFICATE, &certificate), (KEY, &key)];
        arrives(&receiver(protocol, &server, Some(&clients))?, &env).await?;
        let without = [protocol, (CA, &ca)];
        let words = ["it may ask who probe is", CERTIFICATE, KEY];
        is_refused(&receiver(protocol, &server, Some(&clients))?, &without, &words).context("without")?;
        let with_wrong = [protocol, (CA, &ca), (CERTIFICATE, &wrong.0), (KEY, &wrong.1)];
        let words = ["it may not take the certificate", CERTIFICATE];
        is_refused(&receiver(protocol, &server, Some(&clients))?, &with_wrong, &words).context("wrong")?;
    }
    Ok(())
}

/// Certificates are renewed while the agent runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_read_again_when_a_connection_fails() -> Result<()> {
    let files = Files::new("renewed")?;
    // Renewed under the same name.
    let (old, new) = (Authority::new("ours")?, Authority::new("ours")?);
    for protocol in [GRPC, HTTP] {
        let ca = files.write("ca.pem", &old.pem)?;
        let receiver = receiver(protocol, &new.sign("127.0.0.1", 4_000)?, None)?;
        let mut agent = Agent::start(&receiver.endpoint(), &[protocol, (CA, &ca)])?;
        agent.tick();
        eventually("it is said", || !said(&receiver.endpoint()).is_empty())?;
        // Neither a file that is gone nor one half written ends anything.
        std::fs::remove_file(&ca)?;
        let tries = agent.failed_in_all();
        eventually("an attempt", || {
            agent.tick();
            agent.failed_in_all() > tries
        })?;
        files.write("ca.pem", &new.pem)?;
        agent.tick();
        receiver.wait_for("a snapshot", DEADLINE, |r| r.points().first().cloned())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_of_no_use_is_named_with_its_variable() -> Result<()> {
    let files = Files::new("files")?;
    let authority = Authority::new("ours")?;
    let (one, other) = (authority.sign("probe", 4_000)?, authority.sign("probe", 4_000)?);
    let ca = files.write("ca.pem", &authority.pem)?;
    let (certificate, key) = (files.write("one.pem", &one.pem)?, files.write("one.key", &one.key)?);
    let key_of_other = files.write("other.key", &other.key)?;
    let text = files.write("text", "no PEM at all")?;
    let cut = files.write("cut", &authority.pem[..authority.pem.len() / 2])?;
    let directory = Path::new(&ca).parent().context("a directory")?.display().to_string();
    let missing = files.path("missing");
    for protocol in [GRPC, HTTP] {
        for (ca, certificate, key, words) in [
            (&missing, &certificate, &key, [CA, &missing, "No such file"]),
            (&directory, &certificate, &key, [CA, &directory, "Is a directory"]),
            (&text, &certificate, &key, [CA, &text, "there is no certificate in it"]),
            (&key, &certificate, &key, [CA, &key, "there is no certificate in it"]),
            (&cut, &certificate, &key, [CA, &cut, "BEGIN CERTIFICATE"]),
            (&ca, &missing, &key, [CERTIFICATE, &missing, "No such file"]),
            (&ca, &certificate, &missing, [KEY, &missing, "No such file"]),
            (&ca, &certificate, &certificate, [KEY, &certificate, "there is no key in it"]),
            (&ca, &certificate, &key_of_other, [KEY, &key_of_other, "it is not the key of the certificate"]),
        ] {
            let env = [protocol, (CA, ca.as_str()), (CERTIFICATE, certificate), (KEY, key)];
            let Err(error) = Agent::start("https://127.0.0.1:1", &env) else { panic!("{words:?}: started") };
            let error = format!("{error:#}");
            assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
            assert!(error.contains("; give a PEM file that probe may read"), "{error}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_own_metrics_go_the_same_way() -> Result<()> {
    let files = Files::new("own")?;
    let (servers, clients) = (Authority::new("servers")?, Authority::new("clients")?);
    let ca = files.write("ca.pem", &servers.pem)?;
    let (server, probe) = (servers.sign("127.0.0.1", 4_000)?, clients.sign("probe", 4_000)?);
    let (certificate, key) = (files.write("probe.pem", &probe.pem)?, files.write("probe.key", &probe.key)?);
    for protocol in [GRPC, HTTP] {
        let receiver = receiver(protocol, &server, Some(&clients))?;
        let env = [protocol, (CA, &ca), (CERTIFICATE, &certificate), (KEY, &key)];
        let target = config(&receiver.endpoint(), &env)?.metrics.context("a target for metrics")?;
        let stats = Arc::new(SelfStats::new());
        stats.add(metrics::PROBE_EVENTS, &[attr(key::SIGNAL, "tcp")], 7);
        let every = Duration::from_millis(50);
        let telemetry = Telemetry::start(&target, Temporality::Cumulative, &resources()?, every, &stats)?;
        receiver.wait_for("its own metrics", DEADLINE, |r| {
            r.points().into_iter().find(|point| point.name == "probe.events")
        })?;
        assert!(telemetry.shutdown(DEADLINE).await);
    }
    Ok(())
}
