//! TCP as fast as it goes, for `cargo xtask bench tcp`. Orders come on stdin, one a line: `LOAD MILLISECONDS`. Each is answered
//! with one line on stdout: how many a second of what the load counts.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use probe_tests::orders;
use probe_tests::tcp_load::{Load, Place};

fn main() -> Result<()> {
    let place = Place::new()?;
    orders::obey(|words| obey(&place, words))
}

fn obey(place: &Place, words: &[&str]) -> Result<f64> {
    let [load, milliseconds] = words else { bail!("which load, and how long?") };
    let load = Load::named(load).context("no such load: bulk, ping_pong, connect_close")?;
    place.run(load, Duration::from_millis(milliseconds.parse()?))
}
