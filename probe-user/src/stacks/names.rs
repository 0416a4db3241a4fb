//! Names of functions as people write them.

use std::fmt::{self, Write};

/// A name of more bytes is cut, and ends with `…`: templates of C++ and closures of Rust go on for kilobytes.
pub const MAX_SHOWN: usize = 256;
/// How deep types may lie in each other in a mangled name.
const MAX_DEPTH: u32 = 96;

/// The name of a function as its file has it, demangled if it is one of C++ or Rust, without hash, parameters and return type;
/// at most [`MAX_SHOWN`] bytes. Control characters are still in it: it is a stranger's.
#[must_use]
pub fn readable(raw: &[u8]) -> String {
    let raw = String::from_utf8_lossy(raw);
    demangled(&raw).unwrap_or_else(|| cut(&raw))
}

/// At most [`MAX_SHOWN`] bytes of a text.
pub(super) fn cut(text: &str) -> String {
    let mut shown = Shown::default();
    // What does not fit ends it.
    let _cut = shown.write_str(text);
    shown.finish()
}

fn demangled(raw: &str) -> Option<String> {
    // GCC's parts of functions and clones: `_ZN…E.cold`, `_ZN…E.constprop.0`.
    let mangled = raw.split_once('.').map_or(raw, |(name, _)| name);
    let mut shown = Shown::default();
    let outcome = if let Ok(name) = rustc_demangle::try_demangle(raw) {
        write!(shown, "{name:#}")
    } else if mangled.starts_with("_Z") {
        let parsing = cpp_demangle::ParseOptions::default().recursion_limit(MAX_DEPTH);
        let writing =
            cpp_demangle::DemangleOptions::new().no_params().no_return_type().recursion_limit(MAX_DEPTH);
        cpp_demangle::Symbol::new_with_options(mangled, &parsing)
            .ok()?
            .structured_demangle(&mut shown, &writing)
    } else {
        return None;
    };
    // An error is one of the name's, or of what did not fit; of the first nothing is kept.
    (outcome.is_ok() || shown.cut).then(|| shown.finish()).filter(|name| !name.is_empty())
}

/// Text with an end.
#[derive(Default)]
struct Shown {
    text: String,
    cut: bool,
}

impl Shown {
    fn finish(self) -> String {
        let Self { mut text, cut } = self;
        if cut {
            text.push('…');
        }
        text
    }
}

impl Write for Shown {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Self { text: shown, cut } = self;
        let left = MAX_SHOWN - '…'.len_utf8() - shown.len();
        if text.len() <= left && !*cut {
            shown.push_str(text);
            return Ok(());
        }
        if !*cut {
            shown.push_str(text.get(..text.floor_char_boundary(left)).unwrap_or_default());
        }
        *cut = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_people_write_them() {
        let cases = [
            ("plain C", "do_nanosleep", "do_nanosleep"),
            ("nothing", "", ""),
            (
                "Rust, legacy",
                "_ZN4core9panicking9panic_fmt17h5f1a6fd39197ad62E",
                "core::panicking::panic_fmt",
            ),
            ("Rust, v0", "_RNvCs1234_7mycrate3foo", "mycrate::foo"),
            (
                "C++",
                "_ZNSt6vectorIiSaIiEE9push_backERKi",
                "std::vector<int, std::allocator<int> >::push_back",
            ),
            ("C++, a clone", "_ZN3foo3barEv.constprop.0", "foo::bar"),
            ("C++, a template", "_Z3addIiET_S0_S0_", "add<int>"),
            ("broken", "_ZN3fo", "_ZN3fo"),
            ("a variable called so", "_Zebra", "_Zebra"),
            ("Go", "main.(*server).handle", "main.(*server).handle"),
        ];
        for (what, raw, want) in cases {
            assert_eq!(readable(raw.as_bytes()), want, "{what}");
        }
        assert_eq!(readable(b"a\xffb"), "a\u{fffd}b");
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        for raw in ["é".repeat(400), "x".repeat(MAX_SHOWN + 1), format!("x{}", "é".repeat(400))] {
            let shown = readable(raw.as_bytes());
            assert!(shown.ends_with('…') && (MAX_SHOWN - 1..=MAX_SHOWN).contains(&shown.len()), "{shown}");
        }
        let fits = "x".repeat(MAX_SHOWN - '…'.len_utf8());
        assert_eq!(readable(fits.as_bytes()), fits);
        let nested = format!("_ZN{}3fooE", "9namespace".repeat(60));
        let shown = readable(nested.as_bytes());
        assert!(shown.starts_with("namespace::namespace") && shown.ends_with('…'), "{shown}");
        assert!(shown.len() <= MAX_SHOWN);
    }

    #[test]
    fn names_that_would_never_end() {
        // Each type is a pair of the one before with itself: the written name would have 2^30 parts.
        let mut doubling = String::from("_ZN1aISt4pairIiiE");
        for seq in 0..30u32 {
            let id = char::from_digit(seq, 36).unwrap().to_ascii_uppercase();
            doubling.push_str(&format!("St4pairIS{id}_S{id}_E"));
        }
        doubling.push_str("E1fEv");
        let deep = format!("_Z1f{}i", "P".repeat(900));
        let open = format!("_Z{}", "N1aI".repeat(250));
        let packs = format!("_Z1fI{}E", "Dp".repeat(500));
        for name in [doubling, deep, open, packs, format!("_R{}", "I".repeat(1000)), "_RNvB_1a".repeat(100)] {
            let begin = std::time::Instant::now();
            assert!(readable(name.as_bytes()).len() <= MAX_SHOWN);
            let took = begin.elapsed();
            assert!(took < std::time::Duration::from_secs(2), "{name} took {took:?}");
        }
    }
}
