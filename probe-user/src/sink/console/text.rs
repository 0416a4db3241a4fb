//! Text that is safe on a terminal, and numbers that people read.

use std::fmt::Write;
use std::time::Duration;

/// Escapes what could steer a terminal or mislead a reader: C0, C1 and DEL, bidirectional controls, invisible marks. Text of
/// DNS names, process names and paths comes from strangers.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_hostile(character) {
            // Writing to a string does not fail.
            let _infallible = write!(safe, "\\u{{{:x}}}", u32::from(character));
        } else {
            safe.push(character);
        }
    }
    safe
}

/// What [`escape`] escapes.
pub(in crate::sink) fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Bidirectional controls (Unicode TR 9), zero-width and line-separating characters, byte-order mark.
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

/// A duration in three figures: `812ns`, `1.23ms`, `45.6s`.
#[must_use]
pub fn seconds(duration: Duration) -> String {
    let ns = duration.as_nanos();
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns}ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let decimals = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        for (what, text, want) in [
            ("plain", "nginx: worker", "nginx: worker"),
            ("escape sequence", "a\u{1b}[31mb", "a\\u{1b}[31mb"),
            ("C1 control", "a\u{9b}b", "a\\u{9b}b"),
            ("delete", "\u{7f}", "\\u{7f}"),
            ("newline", "a\nb", "a\\u{a}b"),
            ("right-to-left override", "a\u{202e}b", "a\\u{202e}b"),
            ("isolate", "\u{2066}", "\\u{2066}"),
            ("other scripts", "名前", "名前"),
        ] {
            assert_eq!(escape(text), want, "{what}");
        }
        for character in (0..0x11_0000).filter_map(char::from_u32) {
            assert!(!escape(&character.to_string()).chars().any(char::is_control));
        }
    }

    #[test]
    fn durations() {
        for (ns, want) in [
            (0, "0ns"),
            (812, "812ns"),
            (1_234, "1.23µs"),
            (45_600_000, "45.6ms"),
            (999_000_000, "999ms"),
            (45_600_000_000, "45.6s"),
        ] {
            assert_eq!(seconds(Duration::from_nanos(ns)), want);
        }
    }
}
