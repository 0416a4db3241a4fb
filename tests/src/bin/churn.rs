//! Containers that come and go, for `cargo xtask bench churn`. Orders come on stdin, one a line; each is answered with one line on
//! stdout.
//!
//! Each has a cgroup of its own, named as Docker names them, and a process that makes some calls and a connection that is refused.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use probe_tests::drop::Cgroup;
use probe_tests::orders;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [] => serve(),
        // Of a container: into its cgroup, and to work.
        [cgroup, target] => work(cgroup, target.parse()?),
        _ => bail!("churn takes orders on stdin"),
    }
}

fn serve() -> Result<()> {
    let (outer, mut made) = (Cgroup::new()?, 0u64);
    let docker = outer.below("docker")?;
    // A port that nobody listens on any more.
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let program = std::env::current_exe()?;
    orders::obey(|words| match words {
        // churn RATE MILLISECONDS: so many containers a second, one after the other. Answers with how many.
        ["churn", rate, milliseconds] => {
            let (rate, whole) = (rate.parse::<f64>()?, Duration::from_millis(milliseconds.parse()?));
            let (begun, before) = (Instant::now(), made);
            while begun.elapsed() < whole {
                let cgroup = docker.below(&format!("{made:064x}"))?;
                let status =
                    Command::new(&program).arg(cgroup.directory()).arg(target.to_string()).status()?;
                ensure!(status.success(), "a container ended, {status}");
                drop(cgroup);
                made += 1;
                let due = begun + Duration::from_secs_f64((made - before) as f64 / rate);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Ok(made - before)
        }
        _ => bail!("orders are: churn RATE MILLISECONDS"),
    })
}

fn work(cgroup: &str, target: SocketAddr) -> Result<()> {
    std::fs::write(format!("{cgroup}/cgroup.procs"), "0").context("cannot enter the cgroup")?;
    for _ in 0..20 {
        let _there = std::fs::metadata("/nonexistent/file");
    }
    ensure!(TcpStream::connect(target).is_err(), "somebody listens at {target}");
    Ok(())
}
