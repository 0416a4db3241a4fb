//! What the kernel itself counts in a network namespace.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::netns::Netns;

/// The counters of /proc/net/snmp and /proc/net/netstat, by the names that `nstat` gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, i64>);

impl Counters {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// They are not there, or not as expected.
    pub fn read(netns: &Netns) -> Result<Self> {
        let mut counters = BTreeMap::new();
        for file in ["snmp", "netstat"] {
            parse(&netns.proc_net(file)?, &mut counters).with_context(|| format!("/proc/net/{file}"))?;
        }
        Ok(Self(counters))
    }

    /// One of them: `TcpRetransSegs`, `TcpExtTCPFastRetrans`.
    ///
    /// # Errors
    ///
    /// This kernel has none of that name.
    pub fn get(&self, name: &str) -> Result<i64> {
        self.0.get(name).copied().with_context(|| format!("this kernel has no counter {name}"))
    }
}

/// Pairs of lines: `Tcp: RtoAlgorithm RtoMin …`, `Tcp: 1 200 …`.
fn parse(text: &str, counters: &mut BTreeMap<String, i64>) -> Result<()> {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let (group, names) = names.split_once(": ").context("names without a group")?;
        let (_, values) = values.split_once(": ").context("values without a group")?;
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            counters.insert(format!("{group}{name}"), value.parse()?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_nstat() {
        let mut counters = BTreeMap::new();
        let text = "Tcp: MaxConn RetransSegs\nTcp: -1 42\nTcpExt: TCPFastRetrans\nTcpExt: 7\n";
        parse(text, &mut counters).unwrap();
        let counters = Counters(counters);
        assert_eq!(counters.get("TcpRetransSegs").unwrap(), 42);
        assert_eq!(counters.get("TcpMaxConn").unwrap(), -1);
        assert_eq!(counters.get("TcpExtTCPFastRetrans").unwrap(), 7);
        assert!(counters.get("TCPFastRetrans").is_err());
    }
}
