//! A process that does exactly what it is told, line by line: tests know to the call what it asked the kernel for.
//!
//! A test runner's own process would not do: it makes calls of its own. Commands come on stdin; each is answered with
//! one line on stdout. Reading and answering take read, write and little else.
#![expect(unsafe_code, reason = "system calls are made raw, so that none is made twice or not at all")]

use std::ffi::CString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use probe_tests::workload::Workload;
use probe_tests::{dns_server, flooding, orders};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    if let Some(first) = arguments.next() {
        // A child of `children`: so many calls, and out.
        let count = first.to_str().and_then(|count| count.parse().ok()).context("how many calls?")?;
        return call(libc::SYS_getppid, count);
    }
    orders::obey(obey)
}

fn obey(words: &[&str]) -> Result<String> {
    match words {
        // name HEX: what this process is called, any octets.
        ["name", hex] => {
            let octets = octets(hex)?;
            let name = CString::new(octets)?;
            // SAFETY: a NUL-terminated string.
            let failed = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
            ensure!(failed == 0, "prctl failed");
        }
        ["getppid", count] => call(libc::SYS_getppid, count.parse()?)?,
        ["munlockall", count] => call(libc::SYS_munlockall, count.parse()?)?,
        ["yield", count] => call(libc::SYS_sched_yield, count.parse()?)?,
        // flood WHAT MILLISECONDS [ADDRESS]: as fast as it goes. Answers with how often.
        ["flood", "getppid", milliseconds] => return Ok(flooding::calls(time(milliseconds)?).to_string()),
        ["flood", "refused", milliseconds, target] => {
            return Ok(flooding::refused(target.parse()?, time(milliseconds)?)?.to_string());
        }
        ["flood", "lookups", milliseconds, server] => {
            return Ok(flooding::lookups(server.parse()?, 2, time(milliseconds)?)?.to_string());
        }
        // openat PATH COUNT
        ["openat", path, count] => {
            let path = CString::new(*path)?;
            for _ in 0..count.parse::<u32>()? {
                if let Some(file) = open(libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY) {
                    // SAFETY: just opened, ours alone.
                    unsafe { libc::close(file) };
                }
            }
        }
        // errnos DIRECTORY COUNT: opens that fail in eight ways, each so often.
        ["errnos", directory, count] => errnos(directory, count.parse()?)?,
        // read PATH COUNT: so many reads of an octet.
        ["read", path, count] => {
            let file = std::fs::File::open(path)?;
            for _ in 0..count.parse::<u32>()? {
                ensure!((&file).read(&mut [0])? == 1, "{path} has ended");
            }
        }
        // push ADDRESS: writes to a connection for ever.
        ["push", address] => {
            let mut stream = TcpStream::connect(address)?;
            loop {
                stream.write_all(&[0; 65_536])?;
            }
        }
        // nanosleep MILLISECONDS COUNT
        ["nanosleep", milliseconds, count] => {
            let milliseconds = milliseconds.parse()?;
            for _ in 0..count.parse::<u32>()? {
                nanosleep(milliseconds)?;
            }
        }
        // threads THREADS COUNT: each so many calls that never sleep, and as many that may.
        ["threads", threads, count] => {
            let count = count.parse()?;
            let threads: Vec<_> = (0..threads.parse::<u32>()?)
                .map(|_| {
                    std::thread::spawn(move || {
                        call(libc::SYS_getppid, count)?;
                        call(libc::SYS_sched_yield, count)
                    })
                })
                .collect();
            for thread in threads {
                thread.join().ok().context("a thread panicked")??;
            }
        }
        // children CHILDREN COUNT: one after the other, each a program of its own.
        ["children", children, count] => {
            for _ in 0..children.parse::<u32>()? {
                let status =
                    Command::new(std::env::current_exe()?).arg(count).stdin(Stdio::null()).status()?;
                ensure!(status.success(), "a child failed");
            }
        }
        // slow PATH: one open that takes its time. Answers with the thread and where the path lies.
        ["slow", path] => {
            let path = CString::new(*path)?;
            let file = open(libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY).context("cannot open it")?;
            // SAFETY: just opened, ours alone.
            unsafe { libc::close(file) };
            // SAFETY: no requirement.
            let tid = unsafe { libc::syscall(libc::SYS_gettid) };
            return Ok(format!("{tid} {:#x}", path.as_ptr().addr()));
        }
        // hang COUNT: a thread makes calls, then waits for a signal that never comes. Answers with the thread.
        ["hang", count] => {
            let count = count.parse()?;
            let (say, hear) = std::sync::mpsc::sync_channel(1);
            std::thread::spawn(move || {
                if call(libc::SYS_getppid, count).is_err() {
                    return;
                }
                // SAFETY: no requirement.
                let tid = unsafe { libc::syscall(libc::SYS_gettid) };
                if say.send(tid).is_err() {
                    return;
                }
                let nothing_blocked = 0u64;
                // SAFETY: a signal mask of the kernel's size that outlives the call.
                unsafe { libc::syscall(libc::SYS_rt_sigsuspend, &raw const nothing_blocked, 8) };
            });
            return Ok(hear.recv()?.to_string());
        }
        // sleepers THREADS MILLISECONDS: all sleep at the same time, once each.
        ["sleepers", threads, milliseconds] => {
            let milliseconds = milliseconds.parse()?;
            let threads: Vec<_> = (0..threads.parse::<u32>()?)
                .map(|_| std::thread::spawn(move || nanosleep(milliseconds)))
                .collect();
            for thread in threads {
                thread.join().ok().context("a thread panicked")??;
            }
        }
        // ask SERVER ID NAME: a lookup through a connected socket.
        ["ask", server, id, name] => {
            let socket = send(server, id, name)?;
            socket.recv(&mut [0; 512])?;
        }
        // ask-tcp SERVER ID NAME: over a connection of its own.
        ["ask-tcp", server, id, name] => {
            let mut stream = TcpStream::connect(server)?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.write_all(&dns_server::framed(&dns_server::query(id.parse()?, name, dns_server::A)))?;
            stream.read_exact(&mut [0; 14])?;
        }
        // resolve FILE: the addresses of each of the names in a file, as the C library asks for them.
        ["resolve", file] => {
            for name in std::fs::read_to_string(file)?.lines() {
                // Whether it has any is not asked here.
                let _found = (name, 0).to_socket_addrs();
            }
        }
        // unconnected SERVER FILE: the same as musl asks: both kinds at once, from a socket of their own that is not connected.
        ["unconnected", server, file] => {
            for (id, name) in (1..).zip(std::fs::read_to_string(file)?.lines()) {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(Duration::from_secs(60)))?;
                for (id, qtype) in [(2 * id, dns_server::A), (2 * id + 1, dns_server::AAAA)] {
                    socket.send_to(&dns_server::query(id, name, qtype), server)?;
                }
                for _answer in 0..2 {
                    socket.recv_from(&mut [0; 512])?;
                }
            }
        }
        // serve ADDRESS: a DNS server, as long as this process lives.
        ["serve", address] => std::mem::forget(dns_server::DnsServer::start(&[address.parse()?], &[])?),
        // configure FILE PLACE: the one lies in the other's place, for this process only.
        ["configure", file, place] => {
            // SAFETY: there is no other thread; what is shared with it is not relied upon.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            mount_bind(*file, *place)?;
        }
        // send SERVER ID NAME: the same without waiting for the answer.
        ["send", server, id, name] => drop(send(server, id, name)?),
        // connect ADDRESS: a TCP connection that is made and closed.
        ["connect", address] => drop(TcpStream::connect(address)?),
        // crowd PROCESSES: so many children at the same time, each of which makes a call.
        ["crowd", processes] => {
            let mut crowd = (0..processes.parse::<u32>()?)
                .map(|_| Workload::start(&std::env::current_exe()?.to_string_lossy()))
                .collect::<Result<Vec<_>>>()?;
            crowd.iter_mut().try_for_each(|child| child.tell("getppid 1").map(drop))?;
            crowd.into_iter().try_for_each(Workload::end)?;
        }
        // pin CPU: this process runs there from now on.
        ["pin", cpu] => {
            let mut cpus = rustix::thread::CpuSet::new();
            cpus.set(cpu.parse()?);
            rustix::thread::sched_setaffinity(None, &cpus)?;
        }
        _ => bail!("no such command"),
    }
    Ok("done".to_owned())
}

/// Asks for an address, through a socket of its own.
fn send(server: &str, id: &str, name: &str) -> Result<UdpSocket> {
    let server: SocketAddr = server.parse()?;
    let local: SocketAddr = if server.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(local)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.send(&dns_server::query(id.parse()?, name, dns_server::A))?;
    Ok(socket)
}

/// Exactly so many calls without arguments.
fn call(number: libc::c_long, count: u32) -> Result<()> {
    for _ in 0..count {
        // SAFETY: getppid, sched_yield and munlockall take nothing and have no requirement.
        let result = unsafe { libc::syscall(number) };
        ensure!(result >= 0, "system call {number} failed");
    }
    Ok(())
}

/// One nanosleep.
fn nanosleep(milliseconds: libc::c_long) -> Result<()> {
    let time = libc::timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
    let rest: *mut libc::timespec = std::ptr::null_mut();
    // SAFETY: a timespec that outlives the call; nothing is written.
    let failed = unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, rest) };
    ensure!(failed == 0, "nanosleep was interrupted");
    Ok(())
}

/// One openat, whatever comes of it.
fn open(directory: libc::c_int, path: *const libc::c_char, flags: libc::c_int) -> Option<libc::c_int> {
    // SAFETY: the kernel checks the pointer; an unreadable one is EFAULT.
    let file = unsafe { libc::syscall(libc::SYS_openat, directory, path, flags, 0) };
    libc::c_int::try_from(file).ok().filter(|file| *file >= 0)
}

/// Fails with ENOENT, ENOTDIR, EISDIR, ELOOP, ENAMETOOLONG, EFAULT, EBADF and EEXIST, in turn. `directory` is empty.
fn errnos(directory: &str, count: u32) -> Result<()> {
    let directory = std::path::Path::new(directory);
    let file = directory.join("file");
    std::fs::write(&file, "")?;
    let link = directory.join("link");
    std::os::unix::fs::symlink(&file, &link)?;
    let text = |path: &std::path::Path| CString::new(path.as_os_str().as_bytes());
    let missing = text(&directory.join("missing"))?;
    let below_file = text(&file.join("x"))?;
    let itself = text(directory)?;
    let link = text(&link)?;
    let long = CString::new(vec![b'x'; 300])?;
    let relative = CString::new("x")?;
    let existing = text(&file)?;
    let cases = [
        (libc::AT_FDCWD, missing.as_ptr(), libc::O_RDONLY),
        (libc::AT_FDCWD, below_file.as_ptr(), libc::O_RDONLY),
        (libc::AT_FDCWD, itself.as_ptr(), libc::O_WRONLY),
        (libc::AT_FDCWD, link.as_ptr(), libc::O_RDONLY | libc::O_NOFOLLOW),
        (libc::AT_FDCWD, long.as_ptr(), libc::O_RDONLY),
        (libc::AT_FDCWD, std::ptr::null(), libc::O_RDONLY),
        (-5, relative.as_ptr(), libc::O_RDONLY),
        (libc::AT_FDCWD, existing.as_ptr(), libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY),
    ];
    for (directory, path, flags) in cases {
        for _ in 0..count {
            ensure!(open(directory, path, flags).is_none(), "an open that must fail did not");
        }
    }
    Ok(())
}

fn time(milliseconds: &str) -> Result<Duration> {
    Ok(Duration::from_millis(milliseconds.parse()?))
}

fn octets(hex: &str) -> Result<Vec<u8>> {
    let pairs: Vec<char> = hex.chars().collect();
    let parse = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
    pairs.chunks(2).map(|pair| Ok(parse(pair)?)).collect()
}
