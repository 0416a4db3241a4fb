//! What just-in-time compilers say of their code: /tmp/perf-PID.map, a line `START SIZE NAME` a function (the kernel's
//! tools/perf/Documentation/jit-interface.txt).

use super::maps::hex;
use super::symbols::{Builder, Function, Symbols};

/// A larger file is not read: node writes some MB.
pub const MAX_FILE: u64 = 32 << 20;

/// Its functions. Lines that are none are skipped, and what does not fit: the file is written while it is read. A function that
/// is written again where another was is the one that runs.
#[must_use]
pub fn parse(text: &[u8]) -> Symbols {
    let mut builder = Builder::default();
    let mut lines = text.split(|&byte| byte == b'\n').filter_map(parse_line).collect::<Vec<_>>();
    // The later of two at one address first.
    lines.reverse();
    lines.sort_by_key(|line| line.0);
    lines.dedup_by_key(|line| line.0);
    for (start, size, name) in lines {
        if builder.push(Function { start, size, rank: 0, name: 0 }, name).is_err() {
            break;
        }
    }
    builder.build(Vec::new())
}

fn parse_line(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let mut words = line.splitn(3, u8::is_ascii_whitespace);
    let number = |word: &[u8]| hex(word.strip_prefix(b"0x").unwrap_or(word));
    let (start, size, name) = (number(words.next()?)?, number(words.next()?)?, words.next()?.trim_ascii());
    (!name.is_empty()).then_some((start, size, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_compilers() {
        let text = b"\
7fbf1fc21000 b py::_find_and_load:<frozen importlib._bootstrap>\n\
0x7fbf1fc22000 0x10 LazyCompile:~ handle /app/server.js:12\n\
\n\
not a line\n\
7fbf1fc23000 10\n\
7fbf1fc24000 zz name\n\
7fbf1fc25000 10 before\n\
7fbf1fc25000 20 after\r\n\
7fbf1fc26000 10 cut off";
        let symbols = parse(text);
        let cases = [
            (0x7fbf1fc21005, Some("py::_find_and_load:<frozen importlib._bootstrap>")),
            (0x7fbf1fc2100b, None),
            (0x7fbf1fc22000, Some("LazyCompile:~ handle /app/server.js:12")),
            (0x7fbf1fc23000, None),
            (0x7fbf1fc24000, None),
            (0x7fbf1fc2501f, Some("after")),
            (0x7fbf1fc26000, Some("cut off")),
        ];
        for (address, want) in cases {
            let found = symbols.find(address).map(|(_, name)| std::str::from_utf8(name).unwrap());
            assert_eq!(found, want, "{address:#x}");
        }
        assert_eq!(symbols.len(), 4);
        assert!(parse(b"").is_empty());
    }
}
