//! One end of TCP connections: a process that connects, listens, sends and receives as it is told, line by line.
//!
//! Orders come on stdin; each is answered with one line on stdout. Connections have numbers, in the order in which they
//! came about.

use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use probe_tests::orders;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

#[path = "tcp_peer/lives.rs"]
mod lives;

/// No order takes longer: a test that hangs tells nothing.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let mut peer = Peer::default();
    if let Some(connections) = lives::inherited()? {
        peer.connections = connections.into_iter().map(Some).collect();
        // The order that began this program.
        let mut answers = std::io::stdout().lock();
        writeln!(answers, "done")?;
        answers.flush()?;
    }
    orders::obey(|words| peer.obey(words))
}

#[derive(Default)]
struct Peer {
    listeners: Vec<Socket>,
    connections: Vec<Option<Socket>>,
    door: Option<UnixListener>,
}

impl Peer {
    fn obey(&mut self, words: &[&str]) -> Result<String> {
        match words {
            // name NAME: what this process is called.
            ["name", name] => rustix::thread::set_name(&CString::new(*name)?)?,
            // listen ADDRESS [OPTION…]: answers with the port.
            ["listen", address, options @ ..] => {
                let address: SocketAddr = address.parse()?;
                let socket = socket(address, options)?;
                socket.bind(&address.into())?;
                socket.listen(1024)?;
                let port = port(&socket.local_addr()?)?;
                self.listeners.push(socket);
                return Ok(port.to_string());
            }
            // accept: from the newest listener. Answers with the number and the peer's port.
            ["accept"] => {
                let (connection, peer) = self.listeners.last().context("nobody listens")?.accept()?;
                limit(&connection)?;
                return Ok(format!("{} {}", self.keep(connection), port(&peer)?));
            }
            // drain: from the newest listener what waits to be accepted. Answers with the peers' ports.
            ["drain"] => {
                let listener = self.listeners.last().context("nobody listens")?;
                listener.set_nonblocking(true)?;
                let mut ports = Vec::new();
                while let Ok((_closed, peer)) = listener.accept() {
                    ports.push(port(&peer)?.to_string());
                }
                listener.set_nonblocking(false)?;
                return Ok(ports.join(" "));
            }
            // connect ADDRESS [OPTION…]: answers with the number and the local port, or with what went wrong.
            ["connect", address, options @ ..] => {
                let address: SocketAddr = address.parse()?;
                let socket = socket(address, options)?;
                if let Err(error) = socket.connect(&address.into()) {
                    return Ok(format!("error {:?}", error.kind()));
                }
                let local = port(&socket.local_addr()?)?;
                return Ok(format!("{} {local}", self.keep(socket)));
            }
            // begin ADDRESS: a connect that nobody waits for. Answers with the number.
            ["begin", address] => {
                let address: SocketAddr = address.parse()?;
                let socket = socket(address, &[])?;
                socket.set_nonblocking(true)?;
                // It is in progress.
                drop(socket.connect(&address.into()));
                return Ok(self.keep(socket).to_string());
            }
            // fast ADDRESS OCTETS [OPTION…]: connects by sending, with what the SYN has room for (TCP Fast Open). Answers as
            // connect.
            ["fast", address, octets, options @ ..] => {
                let address: SocketAddr = address.parse()?;
                let socket = socket(address, options)?;
                let octets = vec![b'x'; octets.parse()?];
                let sent = socket.send_to_with_flags(&octets, &address.into(), libc::MSG_FASTOPEN)?;
                ensure!(sent == octets.len(), "{sent} octets were sent");
                let local = port(&socket.local_addr()?)?;
                return Ok(format!("{} {local}", self.keep(socket)));
            }
            // raw ADDRESS HEX: sends a segment made by hand, header first, on a raw socket of TCP's number.
            ["raw", address, hex] => {
                let address: SocketAddr = address.parse()?;
                let socket = Socket::new(Domain::for_address(address), Type::RAW, Some(Protocol::TCP))?;
                socket.connect(&SocketAddr::new(address.ip(), 0).into())?;
                socket.send(&octets(hex)?)?;
            }
            // send NUMBER OCTETS TIMES: each write becomes a segment of its own, as far as the window allows.
            ["send", number, octets, times] => {
                let octets = vec![b'x'; octets.parse()?];
                let mut connection = self.connection(number)?;
                for _ in 0..times.parse::<u32>()? {
                    connection.write_all(&octets)?;
                }
            }
            // receive NUMBER OCTETS
            ["receive", number, octets] => {
                self.connection(number)?.read_exact(&mut vec![0; octets.parse()?])?
            }
            // srtt NUMBER: microseconds of the smoothed round-trip time, as TCP_INFO has it.
            ["srtt", number] => return srtt(self.connection(number)?).map(|us| us.to_string()),
            // door NAME: where others may hand connections to this process.
            ["door", name] => {
                self.door = Some(UnixListener::bind_addr(&UnixAddr::from_abstract_name(name)?)?);
            }
            // hand NUMBER NAME: hands a connection to who has that door. This process keeps it too.
            ["hand", number, name] => {
                let connection = [self.connection(number)?.as_fd()];
                let door = UnixStream::connect_addr(&UnixAddr::from_abstract_name(name)?)?;
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut message = SendAncillaryBuffer::new(&mut space);
                ensure!(message.push(SendAncillaryMessage::ScmRights(&connection)), "no room for a socket");
                sendmsg(&door, &[IoSlice::new(b"x")], &mut message, SendFlags::empty())?;
            }
            // take: what was handed in at the door. Answers with the number.
            ["take"] => {
                let (visitor, _) = self.door.as_ref().context("there is no door")?.accept()?;
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut message = RecvAncillaryBuffer::new(&mut space);
                recvmsg(&visitor, &mut [IoSliceMut::new(&mut [0])], &mut message, RecvFlags::empty())?;
                let socket = message.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
                    _ => None,
                });
                return Ok(self.keep(socket.context("nothing was handed in")?.into()).to_string());
            }
            // close NUMBER
            ["close", number] => drop(self.take(number)?),
            // reset NUMBER: closes it so that the kernel sends a reset.
            ["reset", number] => self.take(number)?.set_linger(Some(Duration::ZERO))?,
            // unlisten: closes the newest listener.
            ["unlisten"] => drop(self.listeners.pop()),
            // thread NAME ORDER…: on a thread of that name, which ends with it.
            ["thread", name, order @ ..] => {
                let name = CString::new(*name)?;
                return std::thread::scope(|scope| {
                    let thread = scope.spawn(|| {
                        rustix::thread::set_name(&name)?;
                        self.obey(order)
                    });
                    thread.join().ok().context("the thread panicked")?
                });
            }
            // fork keep|close: a child takes the orders from now on; this process keeps its sockets or closes them. Answers
            // with the child's pid.
            ["fork", sockets @ ("keep" | "close")] => {
                lives::fork(|| {
                    if *sockets == "close" {
                        *self = Self::default();
                    }
                })?;
                return Ok(std::process::id().to_string());
            }
            // start PID PROGRAM: another process takes the orders from now on.
            ["start", pid, program] => lives::start_as(pid.parse()?, program)?,
            // exec PROGRAM: goes on as that program, with its connections.
            ["exec", program] => {
                let connections: Vec<&Socket> = self.connections.iter().flatten().collect();
                lives::become_program(program, &connections)?;
            }
            // serve LISTENERS CONNECTIONS OCTETS: of each of the newest listeners so many connections, at once; takes so
            // many octets of each and gives as many back.
            ["serve", listeners, connections, octets] => {
                let (listeners, connections, octets) =
                    (listeners.parse()?, connections.parse()?, octets.parse()?);
                ensure!(listeners <= self.listeners.len(), "there are fewer listeners");
                let newest = self.listeners.iter().rev().take(listeners);
                return all(
                    newest.flat_map(|listener| std::iter::repeat_n(listener, connections)),
                    |listener| {
                        let (connection, _) = listener.accept()?;
                        limit(&connection)?;
                        take(&connection, octets)?;
                        give(&connection, octets)?;
                        // The other end closes first.
                        ensure!((&connection).read(&mut [0])? == 0, "more came than was to come");
                        Ok(())
                    },
                );
            }
            // load CONNECTIONS OCTETS ADDRESS,ADDRESS… [OPTION…]: so many connections to each, at once; gives so many
            // octets to each and takes as many.
            ["load", connections, octets, addresses, options @ ..] => {
                let (connections, octets) = (connections.parse()?, octets.parse()?);
                let addresses =
                    addresses.split(',').map(str::parse).collect::<Result<Vec<SocketAddr>, _>>()?;
                return all(
                    addresses.iter().flat_map(|address| std::iter::repeat_n(address, connections)),
                    |address| {
                        let connection = socket(*address, options)?;
                        connection.connect(&(*address).into())?;
                        give(&connection, octets)?;
                        take(&connection, octets)
                    },
                );
            }
            _ => bail!("no such order"),
        }
        Ok("done".to_owned())
    }

    fn keep(&mut self, connection: Socket) -> usize {
        self.connections.push(Some(connection));
        self.connections.len() - 1
    }

    fn connection(&self, number: &str) -> Result<&Socket> {
        self.connections.get(number.parse::<usize>()?).and_then(Option::as_ref).context("no such connection")
    }

    fn take(&mut self, number: &str) -> Result<Socket> {
        self.connections
            .get_mut(number.parse::<usize>()?)
            .and_then(Option::take)
            .context("no such connection")
    }
}

/// `tcpi_rtt` of tcp(7).
#[expect(unsafe_code, reason = "getsockopt(2) of TCP_INFO has no safe wrapper")]
fn srtt(connection: &Socket) -> Result<u32> {
    // SAFETY: plain numbers, for which zeros are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of_val(&info))?;
    // SAFETY: the kernel writes no more than `len` octets to `info`.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    ensure!(result == 0, "TCP_INFO: {}", std::io::Error::last_os_error());
    Ok(info.tcpi_rtt)
}

/// A TCP socket without delay, or one of MPTCP. Options: `mptcp`; `reuse_port`; `mss=OCTETS`; `cc=NAME`; `from=ADDRESS`, to bind to.
fn socket(address: SocketAddr, options: &[&str]) -> Result<Socket> {
    let protocol = options.contains(&"mptcp").then_some(Protocol::MPTCP);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, protocol)?;
    if protocol.is_none() {
        // MPTCP knows the option from 5.17 on.
        socket.set_tcp_nodelay(true)?;
    }
    limit(&socket)?;
    for option in options {
        match option.split_once('=').unwrap_or((option, "")) {
            ("mptcp", "") => {}
            ("reuse_port", "") => socket.set_reuse_port(true)?,
            ("mss", octets) => socket.set_tcp_mss(octets.parse()?)?,
            ("cc", name) => socket.set_tcp_congestion(name.as_bytes())?,
            ("from", address) => socket.bind(&address.parse::<SocketAddr>()?.into())?,
            _ => bail!("no such option: {option}"),
        }
    }
    Ok(socket)
}

fn limit(socket: &Socket) -> Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.set_write_timeout(Some(PATIENCE))?)
}

fn port(address: &SockAddr) -> Result<u16> {
    Ok(address.as_socket().context("no IP address")?.port())
}

fn give(connection: &Socket, octets: usize) -> Result<()> {
    let mut connection = connection;
    Ok(connection.write_all(&vec![b'x'; octets])?)
}

fn take(connection: &Socket, octets: usize) -> Result<()> {
    let mut connection = connection;
    Ok(connection.read_exact(&mut vec![0; octets])?)
}

/// `0a1b`
fn octets(hex: &str) -> Result<Vec<u8>> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}

/// Does it with all at once, and answers with how many there were.
fn all<T: Send>(items: impl Iterator<Item = T>, job: impl Fn(T) -> Result<()> + Sync) -> Result<String> {
    let job = &job;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.map(|item| scope.spawn(move || job(item))).collect();
        let count = threads.len();
        for thread in threads {
            thread.join().ok().context("a thread panicked")??;
        }
        Ok(count.to_string())
    })
}
