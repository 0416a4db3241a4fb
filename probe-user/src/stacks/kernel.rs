//! Functions of the kernel: /proc/kallsyms, read once.
//!
//! Addresses are in it for those only who may see them: CAP_SYSLOG, or at `kptr_restrict` 0 a `perf_event_paranoid` of at most 1.
//! The kernel asks when the file is opened, so it is read before capabilities are given back. What is loaded later (modules, BPF
//! programs) is not in it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::maps::hex;
use super::symbols::{Builder, Function, Symbols};

/// A distribution's kernel with its modules writes 10 MB.
const MAX_TEXT: u64 = 256 << 20;
/// Longest line that is looked at whole: names of the kernel end at 511 characters (KSYM_NAME_LEN).
const MAX_LINE: u64 = 1_024;

/// Symbols of data that are looked at.
const MAX_ENDS: usize = 1_000_000;

/// Functions of the kernel.
#[derive(Debug)]
pub enum KernelSymbols {
    /// By their addresses.
    Known(Symbols),
    /// Without their addresses: every one of them is 0.
    Hidden,
    /// There is no such file, or it cannot be read.
    Unreadable(io::Error),
}

impl KernelSymbols {
    /// Reads them now, with the capabilities of now; takes 80 ms and keeps 5 MB of the 122,000 that one host has.
    #[must_use]
    pub fn read() -> Self {
        Self::at(Path::new("/proc/kallsyms"))
    }

    /// From another file.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        match File::open(path).and_then(parse) {
            Ok(Some(symbols)) => Self::Known(symbols),
            Ok(None) => Self::Hidden,
            Err(error) => Self::Unreadable(error),
        }
    }

    /// What it means and what would help; nothing where all is well.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Known(_) => None,
            Self::Hidden => Some(
                "functions of the kernel have no names: this host hides their addresses (run as root or grant CAP_SYSLOG, and see that \
                 /proc/sys/kernel/kptr_restrict is not 2)"
                    .into(),
            ),
            Self::Unreadable(error) => {
                Some(format!("functions of the kernel have no names: /proc/kallsyms: {error} (is /proc mounted?)"))
            }
        }
    }
}

/// Functions of kallsyms' text, or nothing if it hides where they are: `ADDRESS TYPE NAME[\t[MODULE]]`. Lines that are not understood
/// are skipped.
///
/// # Errors
///
/// The system's.
pub fn parse(text: impl Read) -> io::Result<Option<Symbols>> {
    let mut text = BufReader::with_capacity(64 << 10, text.take(MAX_TEXT));
    let mut builder = Builder::default();
    let mut ends = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        if text.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let Some((start, kind, name)) = parse_line(&line) else { continue };
        if start == 0 {
            continue;
        }
        let function = Function { start, size: 0, rank: u8::from(kind.is_ascii_lowercase()), name: 0 };
        if !matches!(kind, b't' | b'T' | b'w' | b'W') {
            // Data ends the function before it.
            if ends.len() < MAX_ENDS {
                ends.push(start);
            }
        } else if builder.push(function, name).is_err() {
            break;
        }
    }
    let symbols = builder.build(ends);
    Ok((!symbols.is_empty()).then_some(symbols))
}

fn parse_line(line: &[u8]) -> Option<(u64, u8, &[u8])> {
    let mut words = line.split(u8::is_ascii_whitespace);
    let start = hex(words.next()?)?;
    let &[kind] = words.next()? else { return None };
    let name = words.next().filter(|name| !name.is_empty())?;
    Some((start, kind, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_kallsyms() {
        let text = b"\
0000000000000000 A fixed_percpu_data\n\
ffffffff81000000 T srso_alias_untrain_ret\n\
ffffffff81000000 T _text\n\
ffffffff81000200 t helper\n\
ffffffff81000280 T do_syscall_64\n\
ffffffff81000400 D data\n\
ffffffffc0000000 t nf_hook\t[nf_tables]\n\
ffffffffc0001000 t bpf_prog_6deef7357e7b4530_sd\t[bpf]\n\
\n\
what\n";
        let symbols = parse(&text[..]).unwrap().unwrap();
        let cases = [
            (0, None),
            (0xffff_ffff_8100_0000, Some("srso_alias_untrain_ret")),
            (0xffff_ffff_8100_0210, Some("helper")),
            (0xffff_ffff_8100_03ff, Some("do_syscall_64")),
            (0xffff_ffff_8100_0400, None),
            (0xffff_ffff_c000_0fff, Some("nf_hook")),
            (0xffff_ffff_c000_1fff, Some("bpf_prog_6deef7357e7b4530_sd")),
            (0xffff_ffff_ffff_ffff, None),
        ];
        for (address, want) in cases {
            let found = symbols.find(address).map(|(_, name)| std::str::from_utf8(name).unwrap());
            assert_eq!(found, want, "{address:#x}");
        }
    }

    #[test]
    fn hidden_and_absent_say_so() {
        let hidden = b"0000000000000000 T _text\n0000000000000000 t helper\n";
        assert!(parse(&hidden[..]).unwrap().is_none());
        assert!(parse(&b""[..]).unwrap().is_none());
        assert!(KernelSymbols::Hidden.remedy().unwrap().contains("CAP_SYSLOG"));
        let absent = KernelSymbols::at(Path::new("/nonexistent/kallsyms"));
        assert!(absent.remedy().unwrap().contains("No such file"), "{absent:?}");
    }

    #[test]
    fn this_kernel() {
        match KernelSymbols::read() {
            KernelSymbols::Known(symbols) => {
                assert!(symbols.len() > 10_000, "{symbols:?}");
                assert!(symbols.bytes() < 16 << 20, "{symbols:?}");
                // Where the kernel says that it is, it is found.
                let text = std::fs::read_to_string("/proc/kallsyms").unwrap();
                let line = text.lines().find(|line| line.ends_with(" T vfs_read")).unwrap();
                let address = hex(line.split(' ').next().unwrap().as_bytes()).unwrap();
                assert_eq!(symbols.find(address + 1).unwrap().1, b"vfs_read");
            }
            hidden => assert!(hidden.remedy().is_some(), "{hidden:?}"),
        }
    }
}
