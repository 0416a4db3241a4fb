//! How many records a second go through a ring: for `cargo xtask bench flood`.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use probe_tests::flood::flood;

fn main() -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "records of 128 bytes, made on all CPUs but one, read on another")?;
    writeln!(
        out,
        "{:>9} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "ring KiB", "offered", "delivered", "lost", "offered/s", "delivered/s"
    )?;
    for ring_kib in [4, 256, 1024, 16_384] {
        let outcome = flood(ring_kib * 1024, Duration::from_secs(2))?;
        let (offered, delivered) = outcome.rates();
        writeln!(
            out,
            "{ring_kib:>9} {:>12} {:>12} {:>12} {offered:>12.0} {delivered:>12.0}",
            outcome.offered, outcome.delivered, outcome.lost
        )?;
        ensure!(outcome.delivered + outcome.lost == outcome.offered, "{outcome:?}");
    }
    Ok(())
}
