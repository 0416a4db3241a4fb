//! What a service manager is told: that all is attached, that it is alive, that it reads its configuration again, that it ends.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use probe_tests::probe::{attached_links, command, expected_links, patient, poll, require_root};
use rustix::process::{Pid, Signal, kill_process};

const LONG: Duration = Duration::from_secs(60);
/// After which the manager would take it for hung; a third of it is how often it says otherwise.
const WATCHDOG: Duration = Duration::from_secs(3);

/// The manager's end.
struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    /// As systemd has it on a host: a path.
    fn by_path() -> Result<Self> {
        let path = std::env::temp_dir().join(own_name());
        Ok(Self { socket: UnixDatagram::bind(&path)?, name: path.display().to_string() })
    }

    /// As it is in containers: a name.
    fn by_name() -> Result<Self> {
        let name = own_name();
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes())?)?;
        Ok(Self { socket, name: format!("@{name}") })
    }

    fn start(&self, adjust: impl FnOnce(&mut Command)) -> Result<Agent> {
        require_root()?;
        let mut command = command(["run"])?;
        command.stdout(Stdio::null()).stderr(Stdio::null()).env("NOTIFY_SOCKET", &self.name);
        adjust(&mut command);
        Ok(Agent(command.spawn()?))
    }

    /// The next datagram, as lines; `None`: nothing comes within that time.
    fn next_within(&self, time: Duration) -> Result<Option<Vec<String>>> {
        self.socket.set_read_timeout(Some(time))?;
        let mut bytes = [0; 4096];
        match self.socket.recv(&mut bytes) {
            Ok(length) => {
                let text = std::str::from_utf8(bytes.get(..length).unwrap_or_default())?;
                Ok(Some(text.lines().map(str::to_owned).collect()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The next datagram that is not only a sign of life.
    fn next(&self) -> Result<Vec<String>> {
        let end = Instant::now() + patient(LONG);
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            match self.next_within(left)? {
                Some(lines) if is_alive(&lines) => {}
                Some(lines) => return Ok(lines),
                None => break,
            }
        }
        bail!("nothing was told within {LONG:?}");
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // The abstract one is nowhere.
        let _none = std::fs::remove_file(&self.name);
    }
}

struct Agent(Child);

impl Agent {
    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.0), signal)?)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn own_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("probe-notify-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn is_alive(lines: &[String]) -> bool {
    lines == ["WATCHDOG=1"]
}

fn now_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000
}

/// From the start to the end, told to a manager of either kind.
#[test]
fn a_service_manager_hears_of_start_reload_and_end() -> Result<()> {
    for manager in [Manager::by_path()?, Manager::by_name()?] {
        let file = std::env::temp_dir().join(format!("{}.yaml", own_name()));
        std::fs::write(&file, "interval: 5s\n")?;
        let mut agent = manager.start(|command| {
            command.arg("--config").arg(&file);
        })?;
        // The very first that is told, and by then it is true.
        let first = manager.next()?;
        let links = attached_links(agent.0.id())?;
        ensure!(first.first().is_some_and(|line| line == "READY=1"), "{first:?}");
        ensure!(links >= expected_links("run"), "{links} programs are attached");
        let status = first.iter().find_map(|line| line.strip_prefix("STATUS=")).context("no status")?;
        ensure!(["tcp", "dns", "syscalls"].iter().all(|signal| status.contains(signal)), "{status}");

        for (text, said) in [("interval: 2s\n", "last read"), ("interval: never\n", "has faults")] {
            std::fs::write(&file, text)?;
            let before = now_usec();
            agent.signal(Signal::HUP)?;
            let reloading = manager.next()?;
            ensure!(reloading.first().is_some_and(|line| line == "RELOADING=1"), "{reloading:?}");
            let since = reloading.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
            let since: u64 = since.context("no time of the reload")?.parse()?;
            ensure!((before..=now_usec()).contains(&since), "{since} is not since {before}");
            let ready = manager.next()?;
            ensure!(ready.first().is_some_and(|line| line == "READY=1"), "{ready:?}");
            ensure!(ready.iter().any(|line| line.starts_with("STATUS=") && line.contains(said)), "{ready:?}");
        }

        agent.signal(Signal::TERM)?;
        let last = manager.next()?;
        ensure!(last.first().is_some_and(|line| line == "STOPPING=1"), "{last:?}");
        let status = poll("the end", LONG, || Ok(agent.0.try_wait()?))?;
        ensure!(status.success(), "{status}");
        // Nothing after the end; and without a watchdog nobody was told of life.
        ensure!(manager.next_within(Duration::from_millis(1))?.is_none());
        std::fs::remove_file(file)?;
    }
    Ok(())
}

/// A pipeline that hangs, here on a stdout that nobody reads, says nothing; when it goes on, it does again.
#[test]
fn a_pipeline_that_hangs_is_not_alive() -> Result<()> {
    let manager = Manager::by_path()?;
    let (mut reader, writer) = std::io::pipe()?;
    let agent = manager.start(|command| {
        // Several pages of rows in each interval, into one page.
        command.args(["--interval", "250ms", "-o", "json"]).stdout(writer);
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    })?;
    let first = manager.next()?;
    ensure!(first.first().is_some_and(|line| line == "READY=1"), "{first:?}");
    // It is read for now.
    let copy: OwnedFd = reader.try_clone()?.into();
    let reading = std::thread::spawn(move || -> Result<()> {
        let mut bytes = [0; 65_536];
        let end = Instant::now() + patient(WATCHDOG * 2);
        let mut copy = File::from(copy);
        while Instant::now() < end && copy.read(&mut bytes)? != 0 {}
        Ok(())
    });
    for _time in 0..3 {
        let alive =
            manager.next_within(patient(WATCHDOG))?.context("not alive within the watchdog's time")?;
        ensure!(is_alive(&alive), "{alive:?}");
    }
    reading.join().ok().context("the reader fell over")??;
    // Nobody reads: signs of life end once the pipe is full. Longer than the question to the pipeline is waited for, and asked again.
    let silence = Duration::from_secs(5) + WATCHDOG;
    let end = Instant::now() + patient(LONG);
    while let Some(alive) = manager.next_within(patient(silence))? {
        ensure!(is_alive(&alive), "{alive:?}");
        ensure!(Instant::now() < end, "it says that it is alive, with a stdout that nobody reads");
    }
    // Read again, it goes on.
    let reading = std::thread::spawn(move || {
        let mut bytes = [0; 65_536];
        while reader.read(&mut bytes).is_ok_and(|length| length != 0) {}
    });
    let alive = manager.next_within(patient(LONG))?.context("it stays silent")?;
    ensure!(is_alive(&alive), "{alive:?}");
    drop(agent);
    reading.join().ok().context("the reader fell over")?;
    Ok(())
}
