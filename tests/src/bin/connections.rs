//! Very many TCP connections, for `cargo xtask bench connections`. Orders come on stdin, one a line; each is answered with one
//! line on stdout.
//!
//! A process may have only so many files open, so this one has others of its kind hold the connections, both ends of each.

use std::collections::VecDeque;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData, MapInfo};
use probe_common::tcp::SocketState;
use probe_tests::netns::Netns;
use probe_tests::orders;
use probe_tests::probe::fdinfo;
use probe_tests::workload::Workload;
use probe_user::load::{Plain, count_entries};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections to one listener: fewer than there are ports to connect from (net.ipv4.ip_local_port_range), by far.
const TO_ONE_LISTENER: usize = 10_000;
/// Connections that one process holds at most.
const OF_ONE_PROCESS: usize = 100_000;
/// Descriptors that a process has beside those of its connections: listeners, and its own.
const OTHERS: usize = 64;
/// Nothing on loopback takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let mut all = All::default();
    orders::obey(|words| all.obey(words))
}

#[derive(Default)]
struct All {
    /// Those who hold connections, where others do.
    holders: Vec<Workload>,
    /// Those that this process holds, the oldest first.
    held: VecDeque<Connection>,
    listeners: Vec<TcpListener>,
}

/// Both ends.
struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// Which one it came to.
    listener: usize,
}

impl All {
    fn obey(&mut self, words: &[&str]) -> Result<usize> {
        match words {
            // hold COUNT: so many connections in a network namespace of their own, held by other processes. Answers with how
            // many processes.
            ["hold", count] => self.hold(count.parse()?),
            // reopen RATE MILLISECONDS: closes so many of them a second, one after the other, and opens as many. Answers with
            // how many.
            ["reopen", rate, milliseconds] => {
                let share = rate.parse::<f64>()? / self.holders.len() as f64;
                self.all(|_holder| format!("reopen_yours {share} {milliseconds}"))
            }
            // sockets PID: answers with how many sockets a running probe knows.
            ["sockets", pid] => sockets(pid.parse()?),
            // make COUNT, reopen_yours RATE MILLISECONDS: what holders are told.
            ["make", count] => self.make(count.parse()?),
            ["reopen_yours", rate, milliseconds] => {
                self.reopen(rate.parse()?, Duration::from_millis(milliseconds.parse()?))
            }
            _ => bail!("no such order"),
        }
    }

    fn hold(&mut self, count: usize) -> Result<usize> {
        let of_one = (open_files()?.saturating_sub(OTHERS) / 2).min(OF_ONE_PROCESS);
        ensure!(of_one > 0, "too few files may be open: raise `ulimit -Hn`");
        let program = std::env::current_exe()?;
        let program = program.to_str().context("this program's path is no UTF-8")?;
        Netns::new()?.run(|| -> Result<()> {
            for _ in 0..count.div_ceil(of_one) {
                self.holders.push(Workload::start(program)?);
            }
            Ok(())
        })??;
        let made = self.all(|holder| format!("make {}", of_one.min(count - holder * of_one)))?;
        ensure!(made == count, "{made} connections were made instead of {count}");
        Ok(self.holders.len())
    }

    /// Has every holder do something, all at once. Returns the sum of their answers.
    fn all(&mut self, order: impl Fn(usize) -> String) -> Result<usize> {
        for (index, holder) in self.holders.iter_mut().enumerate() {
            holder.order(&order(index))?;
        }
        self.holders.iter_mut().map(|holder| Ok(holder.hear()?.parse::<usize>()?)).sum()
    }

    fn make(&mut self, count: usize) -> Result<usize> {
        open_files()?;
        for index in 0..count {
            if index % TO_ONE_LISTENER == 0 {
                self.listeners.push(TcpListener::bind("127.0.0.1:0")?);
            }
            let connection = self
                .open(index / TO_ONE_LISTENER)
                .with_context(|| format!("connection {index} of {count}"))?;
            self.held.push_back(connection);
        }
        Ok(self.held.len())
    }

    fn open(&self, listener: usize) -> Result<Connection> {
        let listens = self.listeners.get(listener).context("no listener")?;
        let client = TcpStream::connect(listens.local_addr()?).context("cannot connect")?;
        let (server, peer) = listens.accept().context("cannot accept")?;
        ensure!(peer == client.local_addr()?, "somebody else connected");
        client.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection { client, server, listener })
    }

    /// Each has its turn, at its time: after a delay several come at once.
    fn reopen(&mut self, rate: f64, duration: Duration) -> Result<usize> {
        let begun = Instant::now();
        let mut reopened: u32 = 0;
        loop {
            let due = Duration::from_secs_f64(f64::from(reopened) / rate);
            if due >= duration {
                return Ok(usize::try_from(reopened)?);
            }
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            let oldest = self.held.pop_front().context("none is held")?;
            let listener = oldest.listener;
            close(oldest)?;
            self.held.push_back(self.open(listener)?);
            reopened += 1;
        }
    }
}

/// The server's end first: what is left of it in TIME_WAIT takes no port from later connections.
fn close(connection: Connection) -> Result<()> {
    let Connection { mut client, server, listener: _ } = connection;
    drop(server);
    let read = client.read(&mut [0]).context("the end of a connection")?;
    ensure!(read == 0, "an idle connection carried something");
    Ok(())
}

/// How many files this process may open, after asking for as many as there are to be had.
fn open_files() -> Result<usize> {
    let Rlimit { current: _, maximum } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    // None: no limit but that of the whole system.
    Ok(maximum.map_or(Ok(usize::MAX), usize::try_from)?)
}

/// Entries of the map SOCKETS that a process has open.
fn sockets(pid: u32) -> Result<usize> {
    for info in fdinfo(pid)? {
        let Some(id) = info.lines().find_map(|line| line.strip_prefix("map_id:")) else { continue };
        let id = id.trim().parse()?;
        if MapInfo::from_id(id)?.name_as_str() == Some("SOCKETS") {
            let map = Map::from_map_data(MapData::from_id(id)?)?;
            let map: HashMap<MapData, Plain<u64>, Plain<SocketState>> = map.try_into()?;
            return Ok(usize::try_from(count_entries(&map)?)?);
        }
    }
    bail!("process {pid} has no map SOCKETS: is it probe?")
}
