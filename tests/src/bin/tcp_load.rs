//! TCP as fast as it goes, for `cargo xtask bench tcp`. Orders come on stdin, one a line: `LOAD MILLISECONDS`. Each is answered
//! with one line on stdout: how many a second of what the load counts.

use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use probe_tests::tcp_load::{Load, Place};

fn main() -> Result<()> {
    let place = Place::new()?;
    let mut answers = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let rate = obey(&place, &line).with_context(|| format!("cannot do {line:?}"))?;
        writeln!(answers, "{rate}")?;
        answers.flush()?;
    }
    Ok(())
}

fn obey(place: &Place, line: &str) -> Result<f64> {
    let (load, milliseconds) = line.split_once(' ').context("how long?")?;
    let load = Load::named(load).context("no such load: bulk, ping_pong, connect_close")?;
    place.run(load, Duration::from_millis(milliseconds.parse()?))
}
