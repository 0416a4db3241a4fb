//! `probe dns`.

use std::process::ExitCode;
use std::time::Duration;

use super::args::{LookupArgs, Shared, positive};
use super::{Failure, live};
use crate::config::Glob;
use crate::signals;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: probe dns --slower-than 100ms --name '*.svc.cluster.local'

LATENCY is the time to the answer, and without one until the lookup was given up. CODE is the answer's, or unanswered, or late: the \
answer to a lookup that was given up before. SERVER is whom the process asked, with its port where that is not 53; ← is who asked a \
server of this host (served here), and OWNER is that server then.

DETAILS: try 2 is the same question asked again. lost twin: the question for the other kind of address (A, AAAA), asked beside it, \
was answered. cut: the answer had no room in its packet; tcp after cut: asked again over TCP because of that. empty: the name exists, \
but not with this type. after 6 NXDOMAIN: so many lookups of names that do not exist went before, for the sake of a search list.

At the end of a table: what it came to by server and code, by name (the slowest) and by owner, and how that reads, where the numbers \
say something. FAILED are answers that neither have the name nor deny it (SERVFAIL, REFUSED); SHARE is that of lookups unanswered, of \
codes that of answers. Colours are for terminals; NO_COLOR=1 turns them off.")]
pub(super) struct Args {
    #[command(flatten)]
    shared: Shared,
    /// Only names that match; * and ? stand for any text and any character
    #[arg(long, value_name = "GLOB")]
    name: Option<String>,
    /// Only these types, e.g. A,AAAA
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',', value_parser = qtype)]
    types: Vec<String>,
    /// Only these response codes, e.g. NXDOMAIN,SERVFAIL
    #[arg(long, value_name = "CODE", value_delimiter = ',', value_parser = rcode)]
    rcode: Vec<String>,
    /// Only lookups that took at least this time
    #[arg(long, value_name = "TIME", value_parser = positive)]
    slower_than: Option<Duration>,
    #[command(flatten)]
    lookups: LookupArgs,
}

/// Runs it.
pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let mut config = args.shared.resolve(Duration::from_secs(1))?;
    args.lookups.apply(&mut config.dns)?;
    config.dns.name = args.name.as_deref().map(Glob::new);
    config.dns.types = args.types;
    config.dns.rcodes = args.rcode;
    config.dns.slower_than = args.slower_than;
    live::show(&config, &signals::dns::Dns)
}

fn qtype(text: &str) -> Result<String, String> {
    signals::dns::type_named(text)
        .map(String::from)
        .ok_or_else(|| "write a type such as AAAA, or its number as TYPE28".to_owned())
}

fn rcode(text: &str) -> Result<String, String> {
    let known = || signals::dns::rcodes().map(String::from);
    known()
        .find(|code| code.eq_ignore_ascii_case(text))
        .ok_or_else(|| format!("it is one of {}", known().collect::<Vec<_>>().join(", ")))
}
