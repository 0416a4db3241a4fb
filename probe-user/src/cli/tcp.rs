//! `probe tcp`.

use std::process::ExitCode;
use std::time::Duration;

use super::args::{PeerArgs, Shared};
use super::{Failure, live};
use crate::config::TcpKind;
use crate::signals;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: probe tcp --peer 10.0.0.0/8 --kind retransmit --duration 1m

A peer that a DNS answer in the same network namespace gave out lately has its name behind it, where need be in place of the
local address. DETAILS: ↑ is what was sent, ↓ what was received; a state that tells something; why a reset was sent. At the end of a
table: what it came to by kind, peer and owner, and how that reads, where the numbers say something.

An accepted connection is the process's that listened: of servers that fork workers, give --pid the parent's.")]
pub(super) struct Args {
    #[command(flatten)]
    shared: Shared,
    /// Kinds of events to show [default: retransmit,reset,failed]
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    kind: Vec<TcpKind>,
    /// Only connections with this local port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    local_port: Option<u16>,
    /// Only connections with this peer port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    peer_port: Option<u16>,
    /// Only peers in this network, e.g. 10.0.0.0/8, or one address
    #[arg(long, value_name = "CIDR", value_parser = network)]
    peer: Option<ipnet::IpNet>,
    #[command(flatten)]
    peers: PeerArgs,
}

/// Runs it.
pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let mut config = args.shared.resolve(Duration::from_secs(1))?;
    if !args.kind.is_empty() {
        config.tcp.kinds = args.kind;
    }
    config.tcp.local_port = args.local_port;
    config.tcp.peer_port = args.peer_port;
    config.tcp.peer = args.peer;
    args.peers.apply(&mut config.tcp);
    live::show(&config, &signals::tcp::Tcp)
}

fn network(text: &str) -> Result<ipnet::IpNet, String> {
    text.parse().or_else(|_no_network| text.parse().map(|address: std::net::IpAddr| address.into())).map_err(
        |_neither| "write an address (192.0.2.7) or a network (192.0.2.0/24, 2001:db8::/32)".to_owned(),
    )
}
