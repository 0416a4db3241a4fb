//! The server's side of the load: answers, and counts what it sees.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::{Answers, message};

const PORT: u16 = 53;
/// Holds what comes while the server waits for a CPU; the host's limit of a socket's buffer holds some 2 ms of it.
const BUFFER: usize = 16 * 1024 * 1024;
/// How often a server without work looks whether it should end.
const IDLE: Duration = Duration::from_millis(20);
/// How exactly delays are kept.
const TICK: Duration = Duration::from_micros(200);
/// Delays are below this.
const MOST_MICROS: u64 = 20_000;

/// Listens at an address of this thread's network namespace.
pub(super) fn socket(address: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((address, PORT)).with_context(|| format!("cannot listen at {address}"))?;
    set_socket_recv_buffer_size_force(&socket, BUFFER).context("no room for a burst")?;
    Ok(socket)
}

/// Answers until told to stop. Returns how many questions came, and how many answers went.
pub(super) fn serve(socket: &UdpSocket, answers: Answers, stop: &AtomicBool) -> Result<(u64, u64)> {
    match answers {
        Answers::AtOnce => at_once(socket, stop),
        Answers::Later => later(socket, stop),
    }
}

fn at_once(socket: &UdpSocket, stop: &AtomicBool) -> Result<(u64, u64)> {
    socket.set_read_timeout(Some(IDLE))?;
    let (mut received, mut answered) = (0, 0);
    let (mut octets, mut answer) = ([0; message::MOST], Vec::new());
    loop {
        match socket.recv_from(&mut octets) {
            Ok((length, peer)) => {
                received += 1;
                if message::answer(&mut answer, octets.get(..length).unwrap_or_default()) {
                    socket.send_to(&answer, peer)?;
                    answered += 1;
                }
            }
            Err(error) if is_idle(&error) => {
                if stop.load(Ordering::Relaxed) {
                    return Ok((received, answered));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn later(socket: &UdpSocket, stop: &AtomicBool) -> Result<(u64, u64)> {
    socket.set_nonblocking(true)?;
    let (mut received, mut answered) = (0, 0);
    let mut octets = [0; message::MOST];
    let mut due = BinaryHeap::new();
    loop {
        match socket.recv_from(&mut octets) {
            Ok((length, peer)) => {
                received += 1;
                let mut answer = Vec::new();
                if message::answer(&mut answer, octets.get(..length).unwrap_or_default()) {
                    due.push(Reverse((Instant::now() + delay(received), peer, answer)));
                }
                continue;
            }
            Err(error) if is_idle(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        while due.peek().is_some_and(|Reverse((when, ..))| *when <= now) {
            if let Some(Reverse((_, peer, answer))) = due.pop() {
                socket.send_to(&answer, peer)?;
                answered += 1;
            }
        }
        if stop.load(Ordering::Relaxed) && due.is_empty() {
            return Ok((received, answered));
        }
        thread::sleep(TICK);
    }
}

/// Spread evenly, the same each time: steps of the golden ratio.
fn delay(number: u64) -> Duration {
    Duration::from_micros(number.wrapping_mul(12_361) % MOST_MICROS)
}

fn is_idle(error: &io::Error) -> bool {
    // What an empty socket says depends on whether it blocks; a signal is neither.
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_spread() {
        let delays: Vec<_> = (0..1000).map(delay).collect();
        assert!(delays.iter().all(|delay| *delay < Duration::from_millis(20)));
        for quarter in 0..4 {
            let of_quarter = |delay: &&Duration| delay.as_millis() / 5 == quarter;
            let count = delays.iter().filter(of_quarter).count();
            assert!((200..300).contains(&count), "{quarter}: {count}");
        }
    }
}
