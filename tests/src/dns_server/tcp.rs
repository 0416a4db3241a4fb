//! The same over TCP (RFC 1035, 4.2.2; RFC 7766): questions may come one behind the other, and each is answered in its own time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use probe_user::kernel::clock::monotonic_ns;
use socket2::SockRef;

use super::message::Question;
use super::{Shared, Stream, Transport, is_nothing, with_id};

/// How often a thread without work looks whether it should end.
const IDLE: Duration = Duration::from_millis(100);

/// A message with its length before it.
#[must_use]
pub fn framed(message: &[u8]) -> Vec<u8> {
    with_length(message, 0)
}

fn with_length(message: &[u8], more: i16) -> Vec<u8> {
    let len = (message.len() as u16).wrapping_add_signed(more);
    [&len.to_be_bytes(), message].concat()
}

/// Sends octets in a segment of their own, whatever came before and comes behind. Just before, and just after, CLOCK_MONOTONIC
/// nanoseconds.
///
/// # Errors
///
/// The other end is gone.
pub fn send_apart(stream: &TcpStream, mut octets: &[u8]) -> io::Result<(u64, u64)> {
    let begun_ns = monotonic_ns();
    while !octets.is_empty() {
        // The end of a record: nothing is put behind it into the same buffer.
        let sent = SockRef::from(stream).send_with_flags(octets, libc::MSG_EOR | libc::MSG_NOSIGNAL)?;
        octets = octets.get(sent..).unwrap_or_default();
    }
    Ok((begun_ns, monotonic_ns()))
}

/// Starts the thread that listens at an address.
pub(super) fn listen(address: SocketAddr, shared: Arc<Shared>) -> Result<JoinHandle<()>> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}/tcp"))?;
    SockRef::from(&listener).set_read_timeout(Some(IDLE))?;
    let name = format!("dns {address}/tcp");
    Ok(std::thread::Builder::new().name(name).spawn(move || {
        let mut threads = Vec::new();
        while !shared.stopped() {
            let (stream, client) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if is_nothing(&error) => continue,
                Err(_) => break,
            };
            let mut connection = Connection {
                stream,
                ends: (address, client),
                shared: Arc::clone(&shared),
                input: Vec::new(),
                output: Vec::new(),
                held: Vec::new(),
                due: BinaryHeap::new(),
                number: 0,
                no_more: false,
            };
            let serve = move || {
                while !connection.shared.stopped() && connection.step().is_ok_and(|goes_on| goes_on) {}
            };
            threads.push(std::thread::spawn(serve));
        }
        for thread in threads {
            drop(thread.join());
        }
    })?)
}

/// One connection's thread.
struct Connection {
    stream: TcpStream,
    /// The server's, the client's.
    ends: (SocketAddr, SocketAddr),
    shared: Arc<Shared>,
    /// What has come, but for the messages taken.
    input: Vec<u8>,
    /// Answers that wait for the next one, and their places in the log.
    output: Vec<u8>,
    held: Vec<usize>,
    due: BinaryHeap<Reverse<Due>>,
    /// Answers so far: those of one time go out in the order of the questions.
    number: u64,
    /// The client sends nothing any more.
    no_more: bool,
}

/// An answer that waits for its time.
struct Due {
    at: Instant,
    number: u64,
    /// Position in the log.
    entry: usize,
    stream: Stream,
    message: Vec<u8>,
}

impl Due {
    const fn order(&self) -> (Instant, u64) {
        (self.at, self.number)
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

impl Connection {
    /// Whether it goes on.
    fn step(&mut self) -> io::Result<bool> {
        self.stream.set_nodelay(true)?;
        while let Some(Reverse(due)) = self.due.peek()
            && due.at <= Instant::now()
        {
            let Some(Reverse(due)) = self.due.pop() else { break };
            if due.stream == Stream::Close {
                self.stream.shutdown(Shutdown::Both)?;
                return Ok(false);
            }
            self.send(&due)?;
        }
        let wait = match self.due.peek() {
            Some(Reverse(due)) => due.at.saturating_duration_since(Instant::now()).min(IDLE),
            None if self.no_more => return Ok(false),
            None => IDLE,
        };
        if wait.is_zero() {
            return Ok(true);
        }
        if self.no_more {
            std::thread::sleep(wait);
            return Ok(true);
        }
        self.stream.set_read_timeout(Some(wait))?;
        let mut octets = [0; 16_384];
        match self.stream.read(&mut octets) {
            Ok(len) => {
                let received = (Instant::now(), monotonic_ns());
                self.no_more = len == 0;
                self.input.extend(octets.iter().take(len));
                while let Some(message) = self.message() {
                    self.take(&message, received)?;
                }
                Ok(true)
            }
            Err(error) if is_nothing(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The next message that is there as a whole.
    fn message(&mut self) -> Option<Vec<u8>> {
        let (length, rest) = self.input.split_first_chunk()?;
        let end = usize::from(u16::from_be_bytes(*length));
        let message = rest.get(..end)?.to_vec();
        self.input.drain(..length.len() + end);
        Some(message)
    }

    fn take(&mut self, message: &[u8], (received, received_ns): (Instant, u64)) -> io::Result<()> {
        let Some(question) = Question::parse(message) else { return Ok(()) };
        let (server, client) = self.ends;
        let served = question.served((server, Transport::Tcp), client, received_ns);
        let (entry, script) = self.shared.take(&question, served);
        for nonsense in &script.first {
            self.stream.write_all(&framed(&with_id(nonsense, question.id)))?;
        }
        let message = question.answer(&script, Transport::Tcp);
        for _ in 0..script.times {
            self.number += 1;
            let (at, number, stream) = (received + script.delay, self.number, script.stream);
            self.due.push(Reverse(Due { at, number, entry, stream, message: message.clone() }));
        }
        Ok(())
    }

    fn send(&mut self, due: &Due) -> io::Result<()> {
        let more = if let Stream::Lie(more) = due.stream { more } else { 0 };
        let octets = with_length(&due.message, more);
        let whole = octets.len();
        let size = match due.stream {
            Stream::Held => {
                self.output.extend(octets);
                self.held.push(due.entry);
                return Ok(());
            }
            Stream::Whole | Stream::Lie(_) | Stream::Close => whole,
            Stream::LengthApart => 2,
            Stream::Cut(size) => size,
        };
        if size < whole {
            let (first, rest) = octets.split_at(size);
            let rest_size = if due.stream == Stream::LengthApart { whole } else { size };
            let mut sent = send_apart(&self.stream, first)?;
            for piece in rest.chunks(rest_size) {
                sent = send_apart(&self.stream, piece)?;
            }
            self.shared.answered(due.entry, sent);
            return Ok(());
        }
        self.output.extend(octets);
        let begun_ns = monotonic_ns();
        self.stream.write_all(&std::mem::take(&mut self.output))?;
        let sent = (begun_ns, monotonic_ns());
        for entry in self.held.drain(..).chain([due.entry]) {
            self.shared.answered(entry, sent);
        }
        Ok(())
    }
}
