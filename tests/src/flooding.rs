//! Real traffic as fast as this machine makes it, for a while, and counted: what `probe` should have seen.
#![expect(unsafe_code, reason = "a system call is made raw, so that none is made twice or not at all")]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::dns_server::{A, query};

/// Lookups of one thread that wait for their answer: with those of another they fit into a socket's buffer.
const WINDOW: u16 = 64;
/// However slow the machine is: more than the smallest rings hold.
const LEAST: u64 = 100;
/// No answer on loopback takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Answers of the reflector's end come so often that it may look whether it should stop.
const IDLE: Duration = Duration::from_millis(50);
/// QR, RFC 1035, 4.1.1.
const RESPONSE: u8 = 0x80;

/// A DNS server that turns each question into its answer and nothing else. It ends when it is dropped.
#[derive(Debug)]
pub struct Reflector {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reflector {
    /// Listens in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// The address is not to be had.
    pub fn start(address: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind(address).with_context(|| format!("cannot listen on {address}/udp"))?;
        socket.set_read_timeout(Some(IDLE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut packet) else { continue };
                if let Some(flags) = packet.get_mut(2) {
                    *flags |= RESPONSE;
                }
                // Nobody may be there any more: the client's business.
                drop(socket.send_to(packet.get(..len).unwrap_or_default(), from));
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Looks names up at a [`Reflector`], on some threads. Returns how many were answered: all that were asked.
///
/// # Errors
///
/// A question is refused, or its answer does not come.
pub fn lookups(server: SocketAddr, threads: usize, duration: Duration) -> Result<u64> {
    let one = || -> Result<u64> {
        let socket = UdpSocket::bind((server.ip(), 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let end = Instant::now() + duration;
        let mut answered = 0;
        let mut packet = [0; 512];
        let mut question = query(0, "flood.test", A);
        while answered < LEAST || Instant::now() < end {
            // Every id once before it comes again.
            let first = u16::try_from(answered % (1 << 16))?;
            for id in first..=first + (WINDOW - 1) {
                for (byte, of_id) in question.iter_mut().zip(id.to_be_bytes()) {
                    *byte = of_id;
                }
                socket.send(&question)?;
            }
            for _ in 0..WINDOW {
                socket.recv(&mut packet).context("an answer")?;
                answered += 1;
            }
        }
        Ok(answered)
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|thread| thread.join().ok().context("a thread panicked")?).sum()
    })
}

/// Connects to where nobody listens. Returns how often that was refused: always.
///
/// # Errors
///
/// It ended in another way.
pub fn refused(target: SocketAddr, duration: Duration) -> Result<u64> {
    let end = Instant::now() + duration;
    let mut count = 0;
    while count < LEAST || Instant::now() < end {
        match TcpStream::connect(target) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => count += 1,
            other => ensure!(false, "nobody should listen at {target}: {other:?}"),
        }
    }
    Ok(count)
}

/// Calls getppid. Returns how often.
#[must_use]
pub fn calls(duration: Duration) -> u64 {
    let end = Instant::now() + duration;
    let mut count = 0;
    while count < LEAST || Instant::now() < end {
        for _ in 0..100 {
            // SAFETY: no requirement.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        count += 100;
    }
    count
}
