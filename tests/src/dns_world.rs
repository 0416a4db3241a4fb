//! A network namespace with a DNS server in it and probe looking on; those who ask there; and what probe says, compared with what
//! both ends saw.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use probe_user::kernel::clock::monotonic_ns;

use crate::dns_server::{A, DnsServer, Script, Served, framed, query, send_apart};
use crate::netns::Netns;
use crate::probe::{DEADLINE, Finished, Line, Probe, patient};

/// Where the server listens.
pub const SERVER: &str = "127.0.0.2:53";
/// There too.
pub const OTHER_SERVER: &str = "127.0.0.3:53";
/// And there.
pub const SERVER_V6: &str = "[::1]:53";

/// How far probe may be from what the server saw, seconds: how long it takes a thread to get going.
#[must_use]
pub fn tolerance() -> f64 {
    patient(Duration::from_millis(2)).as_secs_f64()
}

/// A namespace with a DNS server in it, and probe looking on.
#[derive(Debug)]
pub struct World {
    /// The namespace.
    pub netns: Netns,
    /// At [`SERVER`], [`OTHER_SERVER`] and [`SERVER_V6`].
    pub server: DnsServer,
    /// `probe dns`.
    pub probe: Probe,
}

impl World {
    /// Makes one, with these arguments for `probe dns`.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn new(arguments: &[&str], scripts: &[(&str, Script)]) -> Result<Self> {
        let (netns, server) = serve(scripts)?;
        let probe = Probe::start(&[&["dns"], arguments].concat())?;
        Ok(Self { netns, server, probe })
    }

    /// A socket in the namespace, not connected.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn socket(&self, local: &str) -> Result<UdpSocket> {
        let socket = self.netns.run(|| UdpSocket::bind(local))??;
        socket.set_read_timeout(Some(patient(DEADLINE)))?;
        Ok(socket)
    }

    /// A socket in the namespace, connected to a server.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn connected(&self, server: &str) -> Result<UdpSocket> {
        let socket = self.socket(if server.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
        socket.connect(server)?;
        Ok(socket)
    }

    /// A TCP connection in the namespace to a server.
    ///
    /// # Errors
    ///
    /// Nobody takes it.
    pub fn stream(&self, server: &str) -> Result<Stream> {
        Stream::connect(&self.netns, server)
    }

    /// Lookups of this namespace.
    #[must_use]
    pub fn ours(&self, lines: &[Line]) -> Vec<Line> {
        lookups(lines, i64::from(self.netns.inode()))
    }

    /// Waits for so many lookups of this namespace.
    ///
    /// # Errors
    ///
    /// They do not come.
    pub fn lookups(&self, count: usize) -> Result<Vec<Line>> {
        self.probe.wait_for(&format!("{count} lookups"), DEADLINE, |lines| {
            let ours = self.ours(lines);
            (ours.len() >= count).then_some(ours)
        })
    }

    /// Waits for so many lookups, ends probe, and requires that there are no more and that nothing was lost.
    ///
    /// # Errors
    ///
    /// There are others than so many, or something was lost.
    pub fn exactly(self, count: usize) -> Result<Vec<Line>> {
        self.lookups(count)?;
        let netns = i64::from(self.netns.inode());
        let finished = self.probe.stop()?;
        finished.require_complete()?;
        let ours = lookups_of(&finished, netns);
        ensure!(ours.len() == count, "{} lookups instead of {count}: {ours:#?}", ours.len());
        Ok(ours)
    }
}

/// A namespace with a DNS server in it.
///
/// # Errors
///
/// The system's.
pub fn serve(scripts: &[(&str, Script)]) -> Result<(Netns, DnsServer)> {
    let netns = Netns::new()?;
    let addresses = [SERVER.parse()?, OTHER_SERVER.parse()?, SERVER_V6.parse()?];
    let server = netns.run(|| DnsServer::start(&addresses, scripts))??;
    Ok((netns, server))
}

fn lookups(lines: &[Line], netns: i64) -> Vec<Line> {
    let is_ours = |line: &&Line| line.event() == "dns.lookup" && line.int("linux.netns") == Some(netns);
    lines.iter().filter(is_ours).cloned().collect()
}

/// Lookups of a namespace that a finished probe told of.
#[must_use]
pub fn lookups_of(finished: &Finished, netns: i64) -> Vec<Line> {
    lookups(&finished.lines, netns)
}

/// When a packet was sent: just before, and just after.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// CLOCK_MONOTONIC nanoseconds.
    pub begun_ns: u64,
    /// The same.
    pub ended_ns: u64,
}

/// Sends a packet: to somebody, or where the socket is connected to.
///
/// # Errors
///
/// The system's.
pub fn send(socket: &UdpSocket, to: Option<&str>, packet: &[u8]) -> Result<Sent> {
    let begun_ns = monotonic_ns();
    match to {
        Some(to) => socket.send_to(packet, to)?,
        None => socket.send(packet)?,
    };
    Ok(Sent { begun_ns, ended_ns: monotonic_ns() })
}

/// A packet's id, and when it was there.
///
/// # Errors
///
/// None comes, or it is none.
pub fn receive(socket: &UdpSocket) -> Result<(u16, u64)> {
    let mut packet = [0; 65_536];
    let len = socket.recv(&mut packet).context("no answer")?;
    let received_ns = monotonic_ns();
    let [high, low, ..] = packet;
    ensure!(len >= 12, "an answer of {len} octets");
    Ok((u16::from_be_bytes([high, low]), received_ns))
}

/// Asks and waits for the answer.
///
/// # Errors
///
/// None comes, or another.
pub fn ask(socket: &UdpSocket, to: Option<&str>, packet: &[u8]) -> Result<(Sent, u64)> {
    let sent = send(socket, to, packet)?;
    let (id, received_ns) = receive(socket)?;
    ensure!(Some(&id.to_be_bytes()[..]) == packet.get(..2), "the answer has id {id}");
    Ok((sent, received_ns))
}

/// A TCP connection to a server.
#[derive(Debug)]
pub struct Stream(pub TcpStream);

impl Stream {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Nobody takes it.
    pub fn connect(netns: &Netns, server: &str) -> Result<Self> {
        let stream = netns.run(|| TcpStream::connect(server))?.with_context(|| server.to_owned())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patient(DEADLINE)))?;
        Ok(Self(stream))
    }

    /// Sends messages in one write.
    ///
    /// # Errors
    ///
    /// The other end is gone.
    pub fn send(&mut self, messages: &[Vec<u8>]) -> Result<Sent> {
        let octets: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
        let begun_ns = monotonic_ns();
        self.0.write_all(&octets)?;
        Ok(Sent { begun_ns, ended_ns: monotonic_ns() })
    }

    /// Sends a message in segments of so many octets, its length first. When the last of them went.
    ///
    /// # Errors
    ///
    /// The other end is gone.
    pub fn send_cut(&mut self, message: &[u8], first: usize, others: usize) -> Result<Sent> {
        let octets = framed(message);
        let (first, rest) = octets.split_at_checked(first).context("more than there is")?;
        let mut sent = send_apart(&self.0, first)?;
        for piece in rest.chunks(others) {
            sent = send_apart(&self.0, piece)?;
        }
        let (begun_ns, ended_ns) = sent;
        Ok(Sent { begun_ns, ended_ns })
    }

    /// The next message, and when it was there.
    ///
    /// # Errors
    ///
    /// None comes, or it is none.
    pub fn receive(&mut self) -> Result<(Vec<u8>, u64)> {
        let mut length = [0; 2];
        self.0.read_exact(&mut length).context("no answer")?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        self.0.read_exact(&mut message).context("a part of an answer")?;
        let received_ns = monotonic_ns();
        ensure!(message.len() >= 12, "an answer of {} octets", message.len());
        Ok((message, received_ns))
    }

    /// The next message's id, and when it was there.
    ///
    /// # Errors
    ///
    /// None comes, or it is none.
    pub fn receive_id(&mut self) -> Result<(u16, u64)> {
        let (message, received_ns) = self.receive()?;
        let id = message.first_chunk().context("just looked at")?;
        Ok((u16::from_be_bytes(*id), received_ns))
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    ///
    /// None comes, or another.
    pub fn ask(&mut self, message: &[u8]) -> Result<(Sent, u64)> {
        let sent = self.send(&[message.to_vec()])?;
        let (id, received_ns) = self.receive_id()?;
        ensure!(Some(&id.to_be_bytes()[..]) == message.get(..2), "the answer has id {id}");
        Ok((sent, received_ns))
    }

    /// Waits until the server closes.
    ///
    /// # Errors
    ///
    /// It sends something, or does not close.
    pub fn closed(&mut self) -> Result<()> {
        match self.0.read(&mut [0; 16]) {
            Ok(0) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Ok(len) => bail!("{len} octets instead of the end"),
            Err(error) => Err(error).context("it does not close"),
        }
    }
}

/// Sends a million and more octets that mean nothing over a TCP connection to an address of the namespace, and requires that they
/// arrive as they are.
///
/// # Errors
///
/// They do not, or somebody listens there.
pub fn pass_stream(netns: &Netns, address: &str) -> Result<()> {
    let listener = netns.run(|| TcpListener::bind(address))?.with_context(|| address.to_owned())?;
    let mut client = netns.run(|| TcpStream::connect(address))??;
    let (mut server, _from) = listener.accept()?;
    let sent: Vec<u8> = (0..1_000_000_u32).map(|at| at.wrapping_mul(0x9e37_79b1).to_be_bytes()[0]).collect();
    let sending = sent.clone();
    let sender = std::thread::spawn(move || client.write_all(&sending));
    let mut got = Vec::new();
    server.read_to_end(&mut got)?;
    sender.join().ok().context("the sender panicked")??;
    ensure!(got == sent, "{address}: {} of {} octets", got.len(), sent.len());
    Ok(())
}

/// Seconds between two times.
#[must_use]
pub fn seconds(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e9
}

/// Checks a latency against both ends. The query left during the client's send call, and the answer arrived during the
/// server's (loopback delivers in the sender's own call): between the inner and the outer ends of these two. How far it is from what
/// the server itself took, seconds.
///
/// # Errors
///
/// It is none that it can be.
pub fn check_latency(
    line: &Line,
    sent: Sent,
    received_ns: u64,
    served: &Served,
    answer: usize,
) -> Result<f64> {
    let duration = line.float("duration").context("no duration")?;
    let (begun_ns, ended_ns) = *served.answered_ns.get(answer).context("never answered")?;
    let least = seconds(sent.ended_ns, begun_ns);
    let most = seconds(sent.begun_ns, ended_ns) + tolerance();
    ensure!(duration >= least && duration <= most, "{duration} s is not in {least} to {most}: {}", line.0);
    ensure!(duration <= seconds(sent.begun_ns, received_ns), "longer than the client waited: {}", line.0);
    Ok((duration - seconds(served.received_ns, begun_ns)).abs())
}

/// What is no DNS question or answer, although it comes from or goes to port 53.
#[must_use]
pub fn nonsense() -> Vec<Vec<u8>> {
    let good = query(0x4242, "good.test", A);
    let changed = |at: usize, octet: u8| {
        let mut packet = good.clone();
        packet.splice(at..=at, [octet]);
        packet
    };
    let cut = |len: usize| good.get(..len).unwrap_or_default();
    let mut all: Vec<Vec<u8>> = (0..good.len()).map(|len| cut(len).to_vec()).collect();
    all.extend([
        changed(5, 0),
        changed(5, 2),
        changed(4, 0xff),
        // Lengths that lead out of the packet, pointers, reserved kinds of labels.
        changed(12, 63),
        changed(12, 0xc0),
        changed(12, 0x40),
        changed(12, 0xff),
        // Opcodes that are no query: STATUS, UPDATE.
        changed(2, 1 | 2 << 3),
        changed(2, 1 | 5 << 3),
        vec![0; 12],
        vec![0xff; 12],
        vec![0xff; 1_400],
        // No end to the name: labels of one octet, and beyond 255 octets.
        [cut(12), &[1, b'a'].repeat(127), &[1]].concat(),
        [cut(12), &[1, b'a'].repeat(128), &[0, 0, 1, 0, 1]].concat(),
        [cut(12), &[63; 64].repeat(5), &[0, 0, 1, 0, 1]].concat(),
    ]);
    // Noise, always the same.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for len in [13, 40, 255, 512, 1_300, 9_000, 60_000] {
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let mut packet: Vec<u8> = noise.take(len).collect();
        // Whatever else it is: not one question.
        packet.splice(4..=4, [0x80]);
        all.push(packet);
    }
    all
}
