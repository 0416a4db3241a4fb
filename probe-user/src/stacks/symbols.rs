//! Functions by address: sorted, compact, never changed once made.

/// A name of more bytes keeps its beginning. Mangled names of Rust and C++ are hundreds of bytes long, seldom more.
pub const MAX_NAME: usize = 1_024;
/// Functions of one table, and bytes that it may take; rustc itself has 93,000 in 17 MB.
const MAX_FUNCTIONS: usize = 1_000_000;
const MAX_BYTES: usize = 64 << 20;
/// A function whose size nobody tells ends where the next begins, and never further than this.
const MAX_OPEN: u64 = 64 << 10;
/// How many that begin before an address are asked whether they reach over it: one function may lie within another.
const NESTED: usize = 8;

/// A function as it is found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Function {
    pub(super) start: u64,
    /// 0 where it is not known.
    pub(super) size: u64,
    /// Of several at one address the lowest is known by its name.
    pub(super) rank: u8,
    /// Where its name begins, wherever names are.
    pub(super) name: u32,
}

/// What a table cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more functions than are kept")]
pub struct TooMany;

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u64,
    size: u32,
    /// Offset in `names`.
    name: u32,
}

/// Functions by address.
#[derive(Default)]
pub struct Symbols {
    entries: Box<[Entry]>,
    /// Each ends with a NUL.
    names: Box<[u8]>,
}

impl std::fmt::Debug for Symbols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { entries, names } = self;
        f.debug_struct("Symbols").field("functions", &entries.len()).field("names", &names.len()).finish()
    }
}

impl Symbols {
    /// Number and name of the function that an address is in.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<(usize, &[u8])> {
        let Self { entries, names } = self;
        let after = entries.partition_point(|entry| entry.start <= address);
        let (index, entry) = entries
            .get(..after)?
            .iter()
            .enumerate()
            .rev()
            .take(NESTED)
            .find(|(_, entry)| address - entry.start < u64::from(entry.size))?;
        let name = names.get(entry.name as usize..)?.split(|&byte| byte == 0).next()?;
        Some((index, name))
    }

    /// Functions in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.entries) + self.names.len()
    }
}

/// A table in the making.
#[derive(Debug, Default)]
pub(super) struct Builder {
    functions: Vec<Function>,
    names: Vec<u8>,
}

impl Builder {
    /// Takes a function; its name is copied. One without a name is none.
    pub(super) fn push(&mut self, function: Function, name: &[u8]) -> Result<(), TooMany> {
        let Self { functions, names } = self;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let name = name.get(..MAX_NAME).unwrap_or(name);
        if name.is_empty() {
            return Ok(());
        }
        let full = functions.len() >= MAX_FUNCTIONS
            || functions.len() * size_of::<Entry>() + names.len() + name.len() > MAX_BYTES;
        if full {
            return Err(TooMany);
        }
        let at = u32::try_from(names.len()).map_err(|_| TooMany)?;
        names.extend_from_slice(name);
        names.push(0);
        functions.push(Function { name: at, ..function });
        Ok(())
    }

    /// `ends`: where functions that tell no size end at the latest, whatever begins there.
    pub(super) fn build(self, mut ends: Vec<u64>) -> Symbols {
        let Self { mut functions, names } = self;
        let name = |function: &Function| {
            let rest = names.get(function.name as usize..).unwrap_or_default();
            rest.split(|&byte| byte == 0).next().unwrap_or_default()
        };
        functions.sort_by(|a, b| {
            let order = |function: &Function| (function.start, function.size == 0, function.rank);
            let plain = |function: &Function| {
                let name = name(function);
                let underscores = name.iter().take_while(|&&byte| byte == b'_').count();
                (underscores, name.len())
            };
            // What people call it: `write`, not `__write`; and the same every time.
            order(a).cmp(&order(b)).then_with(|| plain(a).cmp(&plain(b))).then_with(|| name(a).cmp(name(b)))
        });
        functions.dedup_by_key(|function| function.start);
        ends.extend(functions.iter().map(|function| function.start));
        ends.sort_unstable();
        ends.dedup();
        // Only the names that are left.
        let mut kept = Vec::new();
        let entries = functions
            .iter()
            .map(|function| {
                let Function { start, size, rank: _, name: _ } = *function;
                let next =
                    || ends.get(ends.partition_point(|end| *end <= start)).copied().unwrap_or(u64::MAX);
                let size = if size == 0 { (next() - start).min(MAX_OPEN) } else { size };
                let at = u32::try_from(kept.len()).unwrap_or(u32::MAX);
                kept.extend_from_slice(name(function));
                kept.push(0);
                Entry { start, size: u32::try_from(size).unwrap_or(u32::MAX), name: at }
            })
            .collect();
        Symbols { entries, names: kept.into() }
    }
}

#[cfg(test)]
pub(super) fn of(functions: &[(u64, u64, u8, &str)], ends: &[u64]) -> Symbols {
    let mut builder = Builder::default();
    for &(start, size, rank, name) in functions {
        builder.push(Function { start, size, rank, name: 0 }, name.as_bytes()).unwrap();
    }
    builder.build(ends.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_find_their_function() {
        let symbols = of(
            &[
                (0x100, 0x10, 0, "first"),
                (0x200, 0x100, 0, "around"),
                (0x220, 0x10, 0, "within"),
                (0x400, 0, 0, "open"),
                (0x440, 0, 0, "open to an end"),
                (0x9000, 0, 0, "open to nothing"),
                (u64::MAX - 1, 0x10, 0, "over the top"),
            ],
            &[0x448],
        );
        let cases = [
            (0, None),
            (0xff, None),
            (0x100, Some("first")),
            (0x10f, Some("first")),
            (0x110, None),
            (0x21f, Some("around")),
            (0x220, Some("within")),
            (0x230, Some("around")),
            (0x2ff, Some("around")),
            (0x300, None),
            (0x400, Some("open")),
            (0x43f, Some("open")),
            (0x447, Some("open to an end")),
            (0x448, None),
            (0x9000 + MAX_OPEN - 1, Some("open to nothing")),
            (0x9000 + MAX_OPEN, None),
            (u64::MAX, Some("over the top")),
        ];
        for (address, want) in cases {
            let found = symbols.find(address).map(|(_, name)| std::str::from_utf8(name).unwrap());
            assert_eq!(found, want, "{address:#x}");
        }
    }

    #[test]
    fn of_several_names_the_one_that_people_use() {
        type Case<'a> = (&'a str, &'a [(u64, u64, u8, &'a str)], &'a str);
        let cases: &[Case<'_>] = &[
            ("underscores", &[(1, 4, 0, "__write"), (1, 4, 0, "write"), (1, 4, 0, "__GI___write")], "write"),
            ("size", &[(1, 0, 0, "a"), (1, 4, 1, "sized")], "sized"),
            ("rank", &[(1, 4, 1, "a"), (1, 4, 0, "bb")], "bb"),
            ("shortest", &[(1, 4, 0, "memcpy@@GLIBC_2.14"), (1, 4, 0, "memcpy")], "memcpy"),
            ("first in order", &[(1, 4, 0, "b"), (1, 4, 0, "a")], "a"),
        ];
        for (what, functions, want) in cases {
            let mut reversed = functions.to_vec();
            reversed.reverse();
            for functions in [*functions, &reversed] {
                let symbols = of(functions, &[]);
                assert_eq!(symbols.find(1), Some((0, want.as_bytes())), "{what}");
                assert_eq!(symbols.len(), 1, "{what}");
            }
        }
    }

    #[test]
    fn a_long_name_keeps_its_beginning() {
        let symbols = of(&[(1, 1, 0, &"x".repeat(MAX_NAME + 5)), (2, 1, 0, "y\0z"), (3, 1, 0, "\0")], &[]);
        assert!(symbols.find(3).is_none());
        assert_eq!(symbols.find(1).unwrap().1.len(), MAX_NAME);
        assert_eq!(symbols.find(2).unwrap().1, b"y");
        assert_eq!(symbols.bytes(), 2 * 16 + MAX_NAME + 1 + 2);
        assert!(Symbols::default().is_empty() && Symbols::default().find(0).is_none());
    }
}
