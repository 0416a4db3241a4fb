//! Whose the events of TCP connections are: of processes that close, die, fork, hand on, become others.
//!
//! As `tcp`: every test has a network namespace and a cgroup of its own, and `probe` runs outside of both.
#![expect(clippy::print_stdout, reason = "the sums beside the kernel's are what a reader wants to see")]

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use probe_common::testdrop::{BARE, DATA};
use probe_tests::drop::{RuleExt as _, lose};
use probe_tests::live;
use probe_tests::probe::{DEADLINE, Line, poll};
use probe_user::entity::process::parse_stat;
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::ClockId;

#[path = "tcp/scene.rs"]
mod scene;
#[path = "owners/strange.rs"]
mod strange;

use scene::{Connection, FULL, LOOPBACKS, Owner, Peer, SEGMENT, Scene, at};
use strange::{
    further_paths_of_mptcp_are_nobodys, half_open_connections, mptcp_subflows_are_their_processes,
    raw_sockets_are_no_connections, tcp_fast_open,
};

live! {
    a_closed_connection_stays_its_processes
    a_dead_process_keeps_its_connections
    a_pid_that_comes_again_takes_nothing_over
    a_child_inherits_no_ownership
    a_connection_handed_on_stays_its_makers
    a_process_is_named_as_the_program_it_became
    a_threads_connection_is_its_processes
    connections_that_workers_accept_are_the_listeners
    mptcp_subflows_are_their_processes
    further_paths_of_mptcp_are_nobodys
    tcp_fast_open
    raw_sockets_are_no_connections
    half_open_connections
}

/// The first retransmit from a local port in a state.
fn retransmit_in(scene: &Scene, state: &str, local_port: u16) -> Result<Line> {
    scene.probe.line(&format!("a retransmit from port {local_port} in {state}"), |line| {
        scene.is_ours(line)
            && line.event() == "tcp.retransmit"
            && line.text("network.connection.state") == Some(state)
            && line.int("network.local.port") == Some(local_port.into())
    })
}

/// The client's end of a connection, then the server's.
fn ends<'a>(address: &'a str, connection: &Connection, port: u16) -> ((&'a str, u16), (&'a str, u16)) {
    ((address, connection.client_port), (address, port))
}

/// Another program that does what `tcp_peer` does: a copy of it, under another name. It is removed when dropped.
struct OtherProgram(PathBuf);

impl OtherProgram {
    const NAME: &str = "tcp_other";

    fn new() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("probe-owners-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let copy = Self(directory);
        std::fs::copy(env!("CARGO_BIN_EXE_tcp_peer"), copy.0.join(Self::NAME))?;
        Ok(copy)
    }

    fn path(&self) -> String {
        self.0.join(Self::NAME).display().to_string()
    }
}

impl Drop for OtherProgram {
    fn drop(&mut self) {
        // A test that fails here has failed for other reasons.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// What the process had sent, or its FIN, is lost; it lives on without the socket.
fn a_closed_connection_stays_its_processes() -> Result<()> {
    let mut scene = Scene::new("retransmit")?;
    for address in LOOPBACKS {
        for (lost, segments) in [(DATA, 4), (BARE, 0)] {
            let port = scene.server.listen(address, "")?;
            let connection = scene.connect(address, port, FULL)?;
            let (here, there) = ends(address, &connection, port);
            scene.loss.set(&[lose(lost).sent_to(port)])?;
            scene.send(&connection, segments)?;
            scene.client.tell(&format!("close {}", connection.client))?;
            let event = retransmit_in(&scene, "fin_wait_1", connection.client_port)?;
            scene.check(&event, here, there, &scene.client)?;
            scene.loss.heal()?;
            scene.receive(&connection, segments)?;
        }
    }
    scene.finish()?.require_kernels_sums("a_closed_connection_stays_its_processes")
}

/// The kernel goes on with what a killed process has sent, and ends the connection.
fn a_dead_process_keeps_its_connections() -> Result<()> {
    let mut scene = Scene::new("retransmit,connect,close")?;
    for address in LOOPBACKS {
        for (lost, segments) in [(DATA, 4), (BARE, 0)] {
            let port = scene.server.listen(address, "")?;
            let connection = scene.connect(address, port, FULL)?;
            let (here, there) = ends(address, &connection, port);
            // Its names are read while it lives.
            scene.check(&scene.event("tcp.connect", here.1, there.1)?, here, there, &scene.client)?;
            scene.loss.set(&[lose(lost).sent_to(port)])?;
            scene.send(&connection, segments)?;
            let next = Peer::start("test-client", &scene.netns, &scene.cgroup)?;
            let dead = std::mem::replace(&mut scene.client, next);
            let owner = Owner { pid: dead.pid(), comm: dead.name, executable: "tcp_peer" };
            dead.workload.kill()?;
            let retransmit = retransmit_in(&scene, "fin_wait_1", connection.client_port)?;
            scene.check_owner(&retransmit, here, there, owner)?;
            scene.loss.heal()?;
            scene.receive(&connection, segments)?;
            scene.server.tell(&format!("close {}", connection.server))?;
            let close = scene.event("tcp.close", here.1, there.1)?;
            scene.check_owner(&close, here, there, owner)?;
        }
    }
    scene.finish()?.require_kernels_sums("a_dead_process_keeps_its_connections")
}

/// A process that gets the number of a dead one gets neither its connections nor gives them its name.
fn a_pid_that_comes_again_takes_nothing_over() -> Result<()> {
    let other = OtherProgram::new()?;
    let mut scene = Scene::new("retransmit")?;
    for address in LOOPBACKS {
        let mut heir = Peer::start("test-heir", &scene.netns, &scene.cgroup)?;
        let port = scene.server.listen(address, "")?;
        let connection = scene.connect(address, port, FULL)?;
        let (here, there) = ends(address, &connection, port);
        // /proc tells begins of processes to the clock's tick.
        wait_for_ticks(scene.client.pid(), 3)?;
        scene.loss.set(&[lose(BARE).sent_to(port)])?;

        // Nothing of it was seen before it is dead and its number another's: its FIN waits 200 ms for an answer.
        let pid = scene.client.pid();
        heir.name = "test-second";
        let dead = std::mem::replace(&mut scene.client, heir);
        dead.workload.kill()?;
        scene.client.tell(&format!("start {pid} {}", other.path()))?;
        scene.client.tell("name test-second")?;
        retransmit_in(&scene, "fin_wait_1", connection.client_port)?;

        let second_port = scene.server.listen(address, "")?;
        let second = scene.connect(address, second_port, FULL)?;
        scene.loss.set(&[lose(BARE).sent_to(port), lose(DATA).sent_to(second_port)])?;
        let netns = scene.netns.inode();
        let of_dead = |lines: &[Line]| -> Vec<Line> {
            let wanted = |line: &&Line| {
                line.int("linux.netns") == Some(netns.into())
                    && line.int("network.local.port") == Some(connection.client_port.into())
            };
            lines.iter().filter(wanted).cloned().collect()
        };
        let before = of_dead(&scene.probe.lines()).len();
        scene.client.tell(&format!("send {} {SEGMENT} 4", second.client))?;
        let event = retransmit_in(&scene, "established", second.client_port)?;
        let (second_here, second_there) = ends(address, &second, second_port);
        let owner = Owner { pid, comm: "test-second", executable: OtherProgram::NAME };
        scene.check_owner(&event, second_here, second_there, owner)?;

        let events = scene.probe.wait_for("another retransmit of the dead one's", DEADLINE, |lines| {
            Some(of_dead(lines)).filter(|events| events.len() > before)
        })?;
        for event in events {
            assert_eq!(event.int("process.pid"), Some(pid.into()), "{event:?}");
            assert_eq!(event.text("process.comm"), Some("test-client"), "{event:?}");
            assert_eq!(event.get("process.executable.name"), None, "nobody asked in time: {event:?}");
            assert_eq!(event.text("network.local.address"), Some(here.0), "{event:?}");
            assert_eq!(event.int("network.peer.port"), Some(there.1.into()), "{event:?}");
        }
        scene.loss.heal()?;
        scene.receive(&second, 4)?;
        let next = Peer::start("test-client", &scene.netns, &scene.cgroup)?;
        std::mem::replace(&mut scene.client, next).workload.end()?;
    }
    scene.finish()?.require_kernels_sums("a_pid_that_comes_again_takes_nothing_over")
}

/// Waits until a process is so many ticks of /proc's clock old.
fn wait_for_ticks(pid: u32, ticks: u64) -> Result<()> {
    /// USER_HZ is 100.
    const TICK_NS: u64 = 10_000_000;
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    let (_, began) = parse_stat(&stat).context("no start time")?;
    poll("a process's age", DEADLINE, || {
        let now = rustix::time::clock_gettime(ClockId::Boottime);
        let now = u64::try_from(now.tv_sec)? * 100 + u64::try_from(now.tv_nsec)? / TICK_NS;
        Ok((now >= began + ticks).then_some(()))
    })
}

/// A child that sends on what it inherited sends for who connected, whether that one has closed it or died; what it connects
/// itself is its own.
fn a_child_inherits_no_ownership() -> Result<()> {
    let mut scene = Scene::new("retransmit,connect")?;
    for address in LOOPBACKS {
        for dies in [false, true] {
            let port = scene.server.listen(address, "")?;
            let connection = scene.connect(address, port, FULL)?;
            let (here, there) = ends(address, &connection, port);
            scene.check(&scene.event("tcp.connect", here.1, there.1)?, here, there, &scene.client)?;
            let child = scene.client.tell("fork close")?.parse()?;
            scene.client.tell("name test-child")?;
            if dies {
                let parent = i32::try_from(scene.client.pid()).ok().and_then(Pid::from_raw);
                kill_process(parent.context("no such pid")?, Signal::KILL)?;
            }
            scene.loss.set(&[lose(DATA).sent_to(port)])?;
            scene.send(&connection, 4)?;
            let event = retransmit_in(&scene, "established", connection.client_port)?;
            scene.check(&event, here, there, &scene.client)?;
            scene.loss.heal()?;
            scene.receive(&connection, 4)?;

            let own = scene.connect(address, port, FULL)?;
            let (here, there) = ends(address, &own, port);
            let event = scene.event("tcp.connect", here.1, there.1)?;
            let owner = Owner { pid: child, comm: "test-child", executable: "tcp_peer" };
            scene.check_owner(&event, here, there, owner)?;
            let next = Peer::start("test-client", &scene.netns, &scene.cgroup)?;
            let family = std::mem::replace(&mut scene.client, next);
            // Where the parent was killed, the child ends as it hears no more.
            if dies { family.workload.kill()? } else { family.workload.end()? }
        }
    }
    scene.finish()?.require_kernels_sums("a_child_inherits_no_ownership")
}

/// Handed to another process over a UNIX socket (SCM_RIGHTS): it stays who connected, or listened, whose it is.
fn a_connection_handed_on_stays_its_makers() -> Result<()> {
    let octets = 4 * SEGMENT.parse::<u32>()?;
    let mut scene = Scene::new("retransmit")?;
    let mut heir = Peer::start("test-heir", &scene.netns, &scene.cgroup)?;
    heir.tell("door heir")?;
    for address in LOOPBACKS {
        for (from_client, kept) in [(true, false), (true, true), (false, false), (false, true)] {
            let port = scene.server.listen(address, "")?;
            let connection = scene.connect(address, port, FULL)?;
            let (here, there) = ends(address, &connection, port);
            let (maker, number) = if from_client {
                (&mut scene.client, &connection.client)
            } else {
                (&mut scene.server, &connection.server)
            };
            maker.tell(&format!("hand {number} heir"))?;
            let taken = heir.tell("take")?;
            if !kept {
                maker.tell(&format!("close {number}"))?;
            }
            let (local, peer) = if from_client { (here, there) } else { (there, here) };
            scene.loss.set(&[lose(DATA).sent_to(peer.1).sent_from(local.1)])?;
            heir.tell(&format!("send {taken} {SEGMENT} 4"))?;
            let event = retransmit_in(&scene, "established", local.1)?;
            scene.check(&event, local, peer, if from_client { &scene.client } else { &scene.server })?;
            scene.loss.heal()?;
            if from_client {
                scene.receive(&connection, 4)?;
            } else {
                scene.client.tell(&format!("receive {} {octets}", connection.client))?;
            }
        }
    }
    heir.workload.end()?;
    scene.finish()?.require_kernels_sums("a_connection_handed_on_stays_its_makers")
}

/// The same process under another name: comm and executable are those after execve, of connections from before it too.
fn a_process_is_named_as_the_program_it_became() -> Result<()> {
    const KINDS: &str = "retransmit,connect";
    let other = OtherProgram::new()?;
    let mut scene = Scene::new(KINDS)?;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        let before = scene.connect(address, port, FULL)?;
        let (here, there) = ends(address, &before, port);
        scene.check(&scene.event("tcp.connect", here.1, there.1)?, here, there, &scene.client)?;

        scene.client.tell(&format!("exec {}", other.path()))?;
        let owner =
            Owner { pid: scene.client.pid(), comm: OtherProgram::NAME, executable: OtherProgram::NAME };
        let after = scene.connect(address, port, FULL)?;
        let (new_here, new_there) = ends(address, &after, port);
        let event = scene.event("tcp.connect", new_here.1, new_there.1)?;
        scene.check_owner(&event, new_here, new_there, owner)?;

        scene.loss.set(&[lose(DATA).sent_to(port)])?;
        // Its connections are numbered as before.
        scene.send(&before, 4)?;
        let event = retransmit_in(&scene, "established", before.client_port)?;
        scene.check_owner(&event, here, there, owner)?;
        // To one that comes later it never was another. What is seen before it has looked through all open files is nobody's.
        scene.begin_anew(KINDS)?;
        let event = scene.probe.line("a retransmit of somebody's", |line| {
            scene.is_ours(line)
                && line.int("network.local.port") == Some(before.client_port.into())
                && line.get("process.pid").is_some()
        })?;
        scene.check_owner(&event, here, there, owner)?;
        scene.loss.heal()?;
        scene.receive(&before, 4)?;
        let next = Peer::start("test-client", &scene.netns, &scene.cgroup)?;
        std::mem::replace(&mut scene.client, next).workload.end()?;
    }
    // The sums would be those of three probes.
    scene.finish().map(drop)
}

/// A thread's socket is its process's, named by the leading thread.
fn a_threads_connection_is_its_processes() -> Result<()> {
    let mut scene = Scene::new("retransmit,connect")?;
    for address in LOOPBACKS {
        let port = scene.server.tell(&format!("thread test-thread listen {}", at(address, 0)))?.parse()?;
        let connection = scene.meet(&format!("thread test-thread connect {} {FULL}", at(address, port)))?;
        let (here, there) = ends(address, &connection, port);
        scene.loss.set(&[lose(DATA).sent_to(port).after(0, 1)])?;
        scene.send(&connection, 4)?;
        scene.receive(&connection, 4)?;
        let retransmit = retransmit_in(&scene, "established", connection.client_port)?;
        scene.check(&retransmit, here, there, &scene.client)?;
        scene.check(&scene.event("tcp.connect", here.1, there.1)?, here, there, &scene.client)?;
        scene.check(&scene.event("tcp.connect", there.1, here.1)?, there, here, &scene.server)?;
    }
    scene.finish()?.require_kernels_sums("a_threads_connection_is_its_processes")
}

/// Of a server that forks workers, as `probe tcp --help` says.
fn connections_that_workers_accept_are_the_listeners() -> Result<()> {
    let octets = 4 * SEGMENT.parse::<u32>()?;
    let mut scene = Scene::new("retransmit,connect,close")?;
    let ports = LOOPBACKS.map(|address| scene.server.listen(address, ""));
    let [v4, v6] = ports;
    // The worker accepts from the newest.
    let (v4, v6) = (v4?, v6?);
    scene.server.tell("fork keep")?;
    scene.server.tell("name test-worker")?;
    for (address, port) in [("::1", v6), ("127.0.0.1", v4)] {
        let connection = scene.connect(address, port, FULL)?;
        let (here, there) = ends(address, &connection, port);
        scene.loss.set(&[lose(DATA).sent_from(port).after(0, 1)])?;
        scene.server.tell(&format!("send {} {SEGMENT} 4", connection.server))?;
        scene.client.tell(&format!("receive {} {octets}", connection.client))?;
        scene.part(&connection)?;
        for name in ["tcp.connect", "tcp.retransmit", "tcp.close"] {
            let event = scene.event(name, there.1, here.1)?;
            scene.check(&event, there, here, &scene.server)?;
        }
        scene.server.tell("unlisten")?;
    }
    scene.finish()?.require_kernels_sums("connections_that_workers_accept_are_the_listeners")
}
