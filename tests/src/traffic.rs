//! Traffic that goes on whatever happens, and notices when it does not.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::dns_server::{A, query};
use crate::flooding::Reflector;
use crate::netns::Netns;

/// Who waits longer waits for ever: what is dropped on loopback does not come again by itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two exchanges: continuous, and still leaves the machine to others.
const PACE: Duration = Duration::from_millis(2);
const SERVER: &str = "127.0.0.1:53";

/// What one side of the traffic did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    /// Exchanges, each of which was answered.
    pub exchanges: u64,
    /// The longest one.
    pub slowest: Duration,
}

impl Passed {
    fn note(&mut self, begun: Instant) {
        self.exchanges += 1;
        self.slowest = self.slowest.max(begun.elapsed());
    }
}

/// Lookups over UDP and connections over TCP, in a network namespace of their own and the cgroup of this process.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    lookups: JoinHandle<Result<Passed>>,
    connections: JoinHandle<Result<Passed>>,
    _server: Reflector,
}

impl Traffic {
    /// Begins.
    ///
    /// # Errors
    ///
    /// No network namespace, or no sockets in it.
    pub fn start() -> Result<Self> {
        let netns = Netns::new()?;
        netns.run(|| {
            let server: SocketAddr = SERVER.parse()?;
            let reflector = Reflector::start(server)?;
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let address = listener.local_addr()?;
            // It ends with this process: the last connection is not its last.
            std::thread::spawn(move || listener.incoming().flatten().for_each(echo));
            let stop = Arc::new(AtomicBool::new(false));
            let (until, till) = (Arc::clone(&stop), Arc::clone(&stop));
            Ok(Self {
                lookups: std::thread::spawn(move || lookups(server, &until)),
                connections: std::thread::spawn(move || connections(address, &till)),
                stop,
                _server: reflector,
            })
        })?
    }

    /// Whether it still goes on: it ends by itself when something is dropped.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        !self.lookups.is_finished() && !self.connections.is_finished()
    }

    /// Ends it. Returns what passed over UDP and over TCP.
    ///
    /// # Errors
    ///
    /// Something was refused, or not answered.
    pub fn stop(self) -> Result<(Passed, Passed)> {
        self.stop.store(true, Ordering::Relaxed);
        let join = |thread: JoinHandle<Result<Passed>>| thread.join().ok().context("a thread panicked")?;
        Ok((join(self.lookups).context("lookups")?, join(self.connections).context("connections")?))
    }
}

/// Gives back what comes.
fn echo(connection: TcpStream) {
    std::thread::spawn(move || {
        let (mut reader, mut writer) = (&connection, &connection);
        // It ends when the other end does, in whatever way.
        drop(std::io::copy(&mut reader, &mut writer));
    });
}

fn lookups(server: SocketAddr, stop: &AtomicBool) -> Result<Passed> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut passed = Passed::default();
    let mut packet = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let id = u16::try_from(passed.exchanges % (1 << 16))?;
        let begun = Instant::now();
        socket.send(&query(id, "echo.test", A)).with_context(|| format!("question {id} was refused"))?;
        socket.recv(&mut packet).with_context(|| format!("question {id} was not answered"))?;
        ensure!(packet.starts_with(&id.to_be_bytes()), "another answer than that to {id}");
        passed.note(begun);
        std::thread::sleep(PACE);
    }
    Ok(passed)
}

fn connections(server: SocketAddr, stop: &AtomicBool) -> Result<Passed> {
    let mut passed = Passed::default();
    let mut lasting = connect(server)?;
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        exchange(&mut lasting, passed.exchanges).context("the lasting connection")?;
        exchange(&mut connect(server)?, passed.exchanges).context("a new connection")?;
        passed.note(begun);
        std::thread::sleep(PACE);
    }
    Ok(passed)
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&server, PATIENCE).context("cannot connect")?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_nodelay(true)?;
    Ok(connection)
}

fn exchange(connection: &mut TcpStream, number: u64) -> Result<()> {
    let said = number.to_be_bytes();
    connection.write_all(&said)?;
    let mut heard = [0; 8];
    connection.read_exact(&mut heard)?;
    ensure!(heard == said, "{heard:?} came back for {said:?}");
    Ok(())
}
