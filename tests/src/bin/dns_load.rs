//! Lookups over UDP, for `cargo xtask bench dns`. Orders come on stdin, one a line, each answered with one line on stdout:
//!
//! - `paced RATE MILLISECONDS`, `delayed RATE MILLISECONDS`, `getaddrinfo MILLISECONDS`: questions sent, answers heard, questions
//!   the server received, answers it sent, nanoseconds that took, nanoseconds of CPU
//! - `connected PORT MILLISECONDS`, `unconnected PORT MILLISECONDS`: nanoseconds a packet
//! - `netns`: a path of the network namespace

use std::time::Duration;

use anyhow::{Result, bail};
use probe_tests::dns_load::{Answers, Place};
use probe_tests::orders;

fn main() -> Result<()> {
    let place = Place::new()?;
    orders::obey(|words| obey(&place, words))
}

fn obey(place: &Place, words: &[&str]) -> Result<String> {
    let milliseconds = |text: &str| Ok::<_, anyhow::Error>(Duration::from_millis(text.parse()?));
    Ok(match words {
        ["paced", rate, time] => {
            place.paced(rate.parse()?, milliseconds(time)?, Answers::AtOnce)?.to_string()
        }
        ["delayed", rate, time] => {
            place.paced(rate.parse()?, milliseconds(time)?, Answers::Later)?.to_string()
        }
        ["getaddrinfo", time] => place.getaddrinfo(milliseconds(time)?)?.to_string(),
        ["connected", port, time] => place.ping_pong(port.parse()?, true, milliseconds(time)?)?.to_string(),
        ["unconnected", port, time] => {
            place.ping_pong(port.parse()?, false, milliseconds(time)?)?.to_string()
        }
        ["netns"] => place.path(),
        _ => bail!("no such order"),
    })
}
