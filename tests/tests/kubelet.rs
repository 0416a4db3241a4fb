//! Names of pods from a kubelet: where they go, and that a kubelet that is slow, down or lying costs names and nothing else.

use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt as _, chown};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use probe_tests::certificates::Authority;
use probe_tests::http::{self, free_address};
use probe_tests::kubelet::{Answer, Kubelet, Pod};
use probe_tests::live;
use probe_tests::otlp_receiver::{Point, PointValue, Receiver};
use probe_tests::probe::{self, Line, Probe, in_guest, patient, poll};
use probe_tests::workload::Workload;

live! {
    names_are_on_resources_events_rows_and_labels
    names_come_late_and_outlast_their_pod
    a_kubelet_that_fails_costs_names_and_nothing_else
    a_filter_finds_its_pod
    a_token_is_read_by_uid_and_mode
    over_tls_only_who_is_believed_is_asked
}

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const LONG: Duration = Duration::from_secs(30);
const NODE: &str = "node-7";

/// A pod with a process in it.
fn pod(name: &str, digits: &str) -> Result<(Pod, Workload)> {
    let (pod, workload) = (Pod::new(name, digits)?, Workload::start(WORKLOAD)?);
    pod.add(workload.pid())?;
    Ok((pod, workload))
}

/// probe on a node of that name.
fn start(args: &[&str]) -> Result<Probe> {
    Probe::start_with(args, |command| {
        command.env("K8S_NODE_NAME", NODE);
    })
}

/// How often a container called getppid, as rows tell; and the row last told.
fn calls(lines: &[Line], id: &str) -> (i64, Option<Line>) {
    let ours = |line: &&Line| {
        line.event() == "syscall.summary"
            && line.text("container.id") == Some(id)
            && line.text("syscall.name") == Some("getppid")
    };
    let rows: Vec<&Line> = lines.iter().filter(ours).collect();
    (rows.iter().filter_map(|row| row.int("count")).sum(), rows.last().map(|row| (*row).clone()))
}

/// Waits until a container called getppid so often, and says what its last row was.
fn wait_for_calls(probe: &Probe, id: &str, count: i64) -> Result<Line> {
    probe.wait_for(&format!("{count} calls"), LONG, |lines| {
        let (found, row) = calls(lines, id);
        row.filter(|_| found == count)
    })
}

/// The last point of getppid's calls in a container.
fn last(points: &[Point], id: &str) -> Option<Point> {
    let is_it = |point: &&Point| {
        point.name == "process.syscall.duration"
            && point.resource.get("container.id").is_some_and(|of| of == id)
            && point.attributes.get("syscall.name").is_some_and(|name| name == "getppid")
    };
    points.iter().rfind(is_it).cloned()
}

fn count(point: &Point) -> Option<u64> {
    match &point.value {
        PointValue::Exponential { count, .. } | PointValue::Explicit { count, .. } => Some(*count),
        PointValue::Sum { .. } | PointValue::Gauge(_) => None,
    }
}

fn names_are_on_resources_events_rows_and_labels() -> Result<()> {
    let (pod, mut workload) = pod("web", "a1")?;
    let kubelet = Kubelet::start(Answer::Pods(vec![pod.on(NODE)]))?;
    let receiver = Receiver::start()?;
    let page = free_address()?;
    let (kubelet_url, endpoint, listen) = (kubelet.url(), receiver.endpoint(), page.to_string());
    let probe = start(&[
        "run",
        "--interval",
        "500ms",
        "--kubelet",
        &kubelet_url,
        "--kube-labels",
        "app",
        "--otlp-endpoint",
        &endpoint,
        "--prometheus-listen",
        &listen,
    ])?;
    poll("a question", LONG, || Ok((!kubelet.requests().is_empty()).then_some(())))?;
    workload.tell("getppid 321")?;
    let refused = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    workload.tell(&format!("flood refused 1 {refused}"))?;
    wait_for_calls(&probe, &pod.id, 321)?;
    // No series of a container of a pod is on a page before its names are.
    let labels = format!("k8s_pod_name=\"{}\"", pod.name);
    let series = poll("the page", LONG, || {
        let text = http::get(page, "/metrics")?.body;
        let ours: Vec<&str> = text.lines().filter(|line| line.contains(&pod.id)).collect();
        ensure!(ours.iter().all(|line| line.contains(&labels)), "{ours:#?}");
        let calls = |line: &&&str| {
            line.starts_with("process_syscall_duration_seconds_count") && line.contains("getppid")
        };
        Ok(ours.iter().find(calls).map(|line| (*line).to_owned()))
    })?;
    let finished = probe.stop()?;
    finished.require_complete()?;

    for label in [
        "k8s_namespace_name=\"shop\"",
        "k8s_container_name=\"nginx\"",
        "k8s_deployment_name=\"web\"",
        "k8s_pod_label_app=\"web\"",
    ] {
        ensure!(series.contains(label), "{label} is not in {series}");
    }
    ensure!(!series.contains("secret") && series.ends_with(" 321"), "{series}");

    let point = last(&receiver.points(), &pod.id).context("no point of the container")?;
    ensure!(count(&point) == Some(321), "{point:?}");
    let identity =
        [("k8s.namespace.name", "shop"), ("k8s.pod.name", &pod.name), ("k8s.container.name", "nginx")];
    let more = [
        ("k8s.deployment.name", "web"),
        ("k8s.pod.label.app", "web"),
        ("k8s.node.name", NODE),
        ("container.image.name", "docker.io/library/nginx"),
    ];
    for (key, value) in identity.iter().chain(&more) {
        ensure!(point.resource.get(*key).is_some_and(|found| found == value), "{key}: {point:?}");
    }
    ensure!(!point.resource.contains_key("k8s.pod.label.secret"), "{point:?}");

    let failed = |event: &str| event == "tcp.connect";
    let of_line = finished
        .lines
        .iter()
        .find(|line| failed(line.event()) && line.text("container.id") == Some(&*pod.id));
    let of_line = of_line.context("no event of the container")?;
    let records = receiver.records();
    let record = records
        .iter()
        .find(|record| failed(&record.event) && record.resource.get("container.id") == Some(&pod.id));
    let record = record.context("no log record of the container")?;
    for (key, value) in identity {
        ensure!(of_line.text(key) == Some(value), "{key}: {of_line:?}");
        ensure!(record.attributes.get(key).is_some_and(|found| found == value), "{key}: {record:?}");
    }
    // Nobody named a token, and this is no TLS.
    ensure!(kubelet.requests().iter().all(|head| !head.to_lowercase().contains("authorization")));
    workload.end()
}

fn names_come_late_and_outlast_their_pod() -> Result<()> {
    let kubelet = Kubelet::start(Answer::Pods(Vec::new()))?;
    let receiver = Receiver::start()?;
    let (kubelet_url, endpoint) = (kubelet.url(), receiver.endpoint());
    let probe =
        start(&["run", "--interval", "500ms", "--kubelet", &kubelet_url, "--otlp-endpoint", &endpoint])?;
    let asked = |least: usize| {
        poll("a further question", LONG, || Ok((kubelet.requests().len() >= least).then_some(())))
    };
    asked(1)?;
    let begun = Instant::now();
    let (first, mut workload) = pod("web", "b2")?;
    kubelet.set(Answer::Pods(vec![first.on(NODE)]));
    let mut told = 0;
    let mut named = |workload: &mut Workload, pod: &Pod| {
        poll("a name", LONG, || {
            workload.tell("getppid 10")?;
            told += 10;
            let row = wait_for_calls(&probe, &pod.id, told)?;
            Ok((row.text("k8s.pod.name") == Some(&*pod.name)).then_some(told))
        })
    };
    named(&mut workload, &first)?;
    ensure!(kubelet.requests().len() >= 2, "it was told of before it was there");
    let before = kubelet.requests().len();

    // It goes, and another comes: the kubelet is asked again, and knows nothing of the first any more.
    let (second, mut other) = pod("api", "c3")?;
    kubelet.set(Answer::Pods(vec![second.on(NODE)]));
    other.tell("getppid 7")?;
    asked(before + 1)?;
    poll("a name of the other", LONG, || {
        other.tell("getppid 1")?;
        let named = |line: &Line| line.text("k8s.pod.name") == Some(&*second.name);
        Ok(probe.lines().iter().any(named).then_some(()))
    })?;
    let told = named(&mut workload, &first)?;
    let id = first.id.clone();
    workload.end()?;
    let name = first.name.clone();
    drop(first);
    // Not more often than every five seconds.
    let (elapsed, questions) = (begun.elapsed().as_secs(), kubelet.requests().len());
    ensure!(u64::try_from(questions)? <= elapsed / 5 + 2, "{questions} questions in {elapsed} s");
    let finished = probe.stop()?;
    finished.require_complete()?;
    let point = last(&receiver.points(), &id).context("no point of what is gone")?;
    ensure!(count(&point) == u64::try_from(told).ok(), "{told}: {point:?}");
    ensure!(point.resource.get("k8s.pod.name") == Some(&name), "{point:?}");
    other.end()
}

fn a_kubelet_that_fails_costs_names_and_nothing_else() -> Result<()> {
    let (pod, mut workload) = pod("web", "d4")?;
    let kubelet = Kubelet::start(Answer::Silence)?;
    let lie = |text: &str| Answer::Body(text.to_owned());
    let cases = [
        ("slow", Answer::Silence, "no whole answer within 5 s"),
        ("401", Answer::Status(401), "--kubelet-token-file"),
        ("403", Answer::Status(403), "nodes/proxy"),
        ("500", Answer::Status(500), "500"),
        ("redirected", Answer::Status(302), "not followed"),
        ("garbage", lie("<html>log in</html>"), "no list of pods"),
        ("another kind", lie(r#"{"kind":"NodeList","items":[]}"#), "no list of pods"),
        ("cut", Answer::Cut, "breaks off"),
        ("endless", Answer::Endless, if in_guest() { "answer" } else { "longer than 32 MiB" }),
        ("another node's", Answer::Pods(vec![pod.on("node-8")]), "1 pods of other nodes"),
        ("down", Answer::Silence, "onnection refused"),
    ];
    let nobody = format!("http://{}", free_address()?);
    for (name, answer, words) in cases {
        kubelet.set(answer);
        let url = if name == "down" { nobody.clone() } else { kubelet.url() };
        let (before, answered) = (kubelet.requests().len(), kubelet.answered());
        let probe = start(&["syscalls", "--interval", "250ms", "--kubelet", &url])?;
        workload.tell("getppid 123")?;
        let row = wait_for_calls(&probe, &pod.id, 123).with_context(|| name.to_owned())?;
        ensure!(row.text("k8s.pod.name").is_none() && row.text("k8s.pod.uid").is_some(), "{name}: {row:?}");
        if name == "slow" {
            // It ends while it waits for an answer, and at once.
            poll("a question", LONG, || Ok((kubelet.requests().len() > before).then_some(())))?;
            let begun = Instant::now();
            let finished = probe.stop()?;
            ensure!(begun.elapsed() < patient(Duration::from_secs(4)), "{:?}", begun.elapsed());
            finished.require_complete()?;
            continue;
        }
        if name != "down" {
            poll("an answer", LONG, || Ok((kubelet.answered() > answered).then_some(())))?;
        }
        // What went wrong is said while it runs; what it says is read at its end.
        let finished = said(probe, words).with_context(|| name.to_owned())?;
        ensure!(calls(&finished.lines, &pod.id).0 == 123, "{name}");
        let (complaints, of_peers) =
            (finished.stderr.matches("pods have no names").count(), name != "another node's");
        ensure!(complaints == usize::from(of_peers), "{name}: {}", finished.stderr);
    }
    workload.end()
}

/// Ends probe once it must have asked; its stderr has these words.
fn said(probe: Probe, words: &str) -> Result<probe::Finished> {
    // At least another interval, so that it has seen what it got.
    let rows = probe.lines().len();
    probe.wait_for("further rows", LONG, |lines| (lines.len() > rows + 20).then_some(()))?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    ensure!(finished.stderr.contains(words), "{words} is not in {}", finished.stderr);
    Ok(finished)
}

fn a_filter_finds_its_pod() -> Result<()> {
    let (ours, mut workload) = pod("web", "e5")?;
    let (others, mut other) = pod("api", "f6")?;
    let kubelet = Kubelet::start(Answer::Pods(vec![others.on(NODE), ours.on(NODE)]))?;
    let (url, name) = (kubelet.url(), format!("shop/{}", ours.name));
    let probe = start(&["syscalls", "--interval", "250ms", "--kubelet", &url, "--pod", &name])?;
    other.tell("getppid 99")?;
    workload.tell("getppid 55")?;
    wait_for_calls(&probe, &ours.id, 55)?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    ensure!(finished.lines.iter().all(|line| line.text("container.id") == Some(&*ours.id)), "others too");

    // Rows for people have its name in place of the container's id.
    let args = ["syscalls", "--duration", "2s", "--interval", "500ms", "--kubelet", &url, "--pod", &name];
    let (output, told) = std::thread::scope(|scope| {
        let running = scope.spawn(|| probe::run(args));
        let told = poll("the end", LONG, || {
            workload.tell("getppid 5")?;
            Ok(running.is_finished().then_some(()))
        });
        (running.join(), told)
    });
    told?;
    let output = output.map_err(|_panicked| anyhow::anyhow!("it panicked"))??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("shop/web-5d78"), "{text}");
    ensure!(!text.contains(ours.id.get(..12).unwrap_or_default()), "{text}");

    for (args, code, words) in [
        (vec!["--kubelet", &url, "--pod", "shop/nobody"], 2, vec!["shop/nobody", &name]),
        (vec!["--kubelet", "off", "--pod", &name], 2, vec!["--kubelet", &name]),
        (vec!["--kubelet", "10.0.0.7:10250"], 2, vec!["10.0.0.7:10250", "https://"]),
        (vec!["--kubelet", &url, "--pod", "nobody"], 2, vec!["nobody", "namespace"]),
    ] {
        let output = probe::run([&["syscalls", "--duration", "1s"], &*args].concat())?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code), "{args:?}: {:?}: {stderr}", output.status);
        ensure!(words.iter().all(|word| stderr.contains(word)), "{args:?}: {stderr}");
    }
    workload.end()?;
    other.end()
}

/// A file of the test's own; it is removed when dropped.
struct TokenFile(PathBuf);

impl TokenFile {
    fn new(owner: u32) -> Result<Self> {
        let file = Self::with("let me in\n", &format!("{owner}"))?;
        chown(&file.0, Some(owner), Some(owner))?;
        Ok(file)
    }

    fn with(text: &str, name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("probe-token-{}-{name}", std::process::id()));
        let file = Self(path);
        let mut open = std::fs::OpenOptions::new();
        let mut written = open.create_new(true).write(true).mode(0o600).open(&file.0)?;
        std::io::Write::write_all(&mut written, text.as_bytes())?;
        Ok(file)
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        // It may not have been made.
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// The capabilities that would open any file are given back by the time the kubelet is asked.
fn a_token_is_read_by_uid_and_mode() -> Result<()> {
    let (pod, mut workload) = pod("web", "97")?;
    let kubelet = Kubelet::start(Answer::Pods(vec![pod.on(NODE)]))?;
    let url = kubelet.url();
    let (ours, anothers) = (TokenFile::new(0)?, TokenFile::new(65_534)?);
    let run = |file: &TokenFile| {
        let file = file.0.display().to_string();
        start(&["syscalls", "--interval", "250ms", "--kubelet", &url, "--kubelet-token-file", &file])
    };
    let probe = run(&ours)?;
    poll("a question", LONG, || Ok((!kubelet.requests().is_empty()).then_some(())))?;
    probe.stop()?.require_complete()?;
    let head = kubelet.requests().pop().unwrap_or_default().to_lowercase();
    ensure!(
        head.contains("authorization: bearer let me in\r\n") && head.starts_with("get /pods http"),
        "{head}"
    );

    let before = kubelet.requests().len();
    let probe = run(&anothers)?;
    workload.tell("getppid 3")?;
    wait_for_calls(&probe, &pod.id, 3)?;
    let finished = said(probe, "--kubelet-token-file")?;
    let path = anothers.0.display().to_string();
    ensure!(finished.stderr.contains(&path) && finished.stderr.contains("uid 0"), "{}", finished.stderr);
    ensure!(kubelet.requests().len() == before, "it was asked without the token");
    workload.end()
}

/// As kubelets do: theirs are often signed by nobody whom the host knows.
fn over_tls_only_who_is_believed_is_asked() -> Result<()> {
    let (pod, mut workload) = pod("web", "18")?;
    let (ours, other) = (Authority::new("ours")?, Authority::new("other")?);
    let (token, known, unknown) =
        (TokenFile::new(0)?, TokenFile::with(&ours.pem, "ours")?, TokenFile::with(&other.pem, "other")?);
    let path = |file: &TokenFile| file.0.display().to_string();
    let (token, known, unknown) = (path(&token), path(&known), path(&unknown));
    let way_out = "--kubelet-ca FILE names who is believed";
    for (what, name, last_year, flags, named, words) in [
        ("known", "127.0.0.1", 4_000, &["--kubelet-ca", &known][..], true, ""),
        ("unknown", "127.0.0.1", 4_000, &["--kubelet-ca", &unknown], false, way_out),
        ("another's", "node-8", 4_000, &["--kubelet-ca", &known], false, way_out),
        ("expired", "127.0.0.1", 2_020, &["--kubelet-ca", &known], false, "expired"),
        ("anybody", "127.0.0.1", 2_020, &["--kubelet-insecure-tls"], true, "whoever answers at"),
    ] {
        let identity = ours.sign(name, last_year)?;
        let kubelet = Kubelet::start_tls(Answer::Pods(vec![pod.on(NODE)]), &identity)?;
        let url = kubelet.url();
        let args = ["syscalls", "--interval", "250ms", "--kubelet", &url, "--kubelet-token-file", &token];
        let probe = start(&[&args[..], flags].concat())?;
        poll("a question, or its end", LONG, || Ok((kubelet.answered() > 0).then_some(())))?;
        workload.tell("getppid 3")?;
        let row = wait_for_calls(&probe, &pod.id, 3).with_context(|| what.to_owned())?;
        ensure!(named || row.text("k8s.pod.name").is_none(), "{what}: {row:?}");
        if named {
            let has_name = |line: &Line| line.text("k8s.pod.name") == Some(&*pod.name);
            poll("a name", LONG, || {
                workload.tell("getppid 1")?;
                Ok(probe.lines().iter().any(has_name).then_some(()))
            })
            .with_context(|| what.to_owned())?;
        }
        let finished = said(probe, words).with_context(|| what.to_owned())?;
        let complaints = finished.stderr.matches("pods have no names").count();
        ensure!(complaints == usize::from(!named), "{what}: {}", finished.stderr);
        // Who is not believed hears no token.
        let heard = kubelet.requests();
        ensure!(heard.is_empty() != named, "{what}: {heard:?}");
        let told = |head: &String| head.to_lowercase().contains("authorization: bearer let me in\r\n");
        ensure!(heard.iter().all(told), "{what}: {heard:?}");
    }
    workload.end()
}
