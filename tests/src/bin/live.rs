//! The runner of live tests: `live PLAN EVENTS` on a host, process 1 in a virtual machine. `cargo xtask` starts it.

use std::path::Path;

use anyhow::{Result, bail};
use probe_tests::guest;

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    if std::process::id() == 1 {
        return guest::main();
    }
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [plan, events] => guest::run_plan(Path::new(plan), Path::new(events)),
        _ => bail!("usage: live PLAN EVENTS"),
    }
}
