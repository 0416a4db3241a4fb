//! Text that is safe on a terminal, and numbers that people read.

use std::borrow::Cow;
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

/// What share of the segments that connections sent was sent again; nothing where that is not known. (A SYN-ACK is sent for no
/// connection yet, and is not among them.)
pub(super) fn share_of_sent(again: u64, sent: u64) -> Option<String> {
    let percent = || format!("{:.2}% of {sent} sent", again as f64 * 100.0 / sent as f64);
    (sent != 0 && again <= sent).then(percent)
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
    figures(value, unit)
}

/// A number below a thousand in three figures.
fn figures(value: f64, unit: &str) -> String {
    let decimals = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}{unit}")
}

/// How long something lasted, in at most seven characters up to a thousand days: `45.6s`, `16m40s`, `27h46m`, `11d13h`.
pub(super) fn age(duration: Duration) -> String {
    let whole = duration.as_secs();
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
    match whole {
        0..1_000 => seconds(duration),
        1_000..6_000 => format!("{minutes}m{}s", whole % 60),
        6_000..360_000 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// Octets in three figures: `812B`, `1.23KiB`, `45.6MiB`.
pub(super) fn octets(octets: u64) -> String {
    let mut value = octets as f64;
    if octets < 1_000 {
        return format!("{octets}B");
    }
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        value /= 1024.0;
        unit = larger;
        if value < 1_000.0 {
            break;
        }
    }
    figures(value, unit)
}

/// A share in hundredths.
pub(super) fn share(part: u64, all: u64) -> String {
    if all == 0 {
        return String::new();
    }
    let percent = part as f64 * 100.0 / all as f64;
    if percent > 0.0 && percent < 1.0 { "<1%".to_owned() } else { format!("{percent:.0}%") }
}

/// "Most": so many hundredths.
const MOST_PERCENT: u64 = 75;
/// If so many hundredths of the events may be missing, nothing is concluded from the others.
const LOST_PERCENT: u64 = 10;

/// So many hundredths, rounded down.
pub(super) fn percent(part: u64, all: u64) -> u64 {
    part.saturating_mul(100).checked_div(all).unwrap_or(0)
}

pub(super) fn is_most(part: u64, all: u64) -> bool {
    part != 0 && percent(part, all) >= MOST_PERCENT
}

/// Of events that probe lost itself, and those that it saw.
pub(super) fn too_much_is_missing(lost: u64, seen: u64) -> bool {
    percent(lost, seen + lost) >= LOST_PERCENT
}

/// A number of things: `1 event`, `2 events`.
pub(super) fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

/// Characters of a text.
pub(super) fn width(text: &str) -> usize {
    text.chars().count()
}

/// Text in at most so many characters; `…` stands for what is cut off.
pub(super) fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if width(text) <= most {
        return text.into();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    if most == 0 { kept.into() } else { format!("{kept}…").into() }
}

/// Text in at most so many characters, without its middle where it is longer: of a path both ends tell most.
pub(super) fn cut_middle(text: &str, most: usize) -> Cow<'_, str> {
    let all = width(text);
    let Some(left) = most.checked_sub(1).filter(|_| all > most) else { return cut(text, most) };
    let head = left / 3;
    let tail = left - head;
    let kept = |from, count| text.chars().skip(from).take(count);
    kept(0, head).chain(['…']).chain(kept(all - tail, tail)).collect::<String>().into()
}

/// How often a second, in as many figures as it is worth.
pub(super) fn rate(count: u64, covers: Duration) -> String {
    let seconds = covers.as_secs_f64();
    if seconds == 0.0 {
        return String::new();
    }
    match count as f64 / seconds {
        0.0 => "0".to_owned(),
        rate if rate < 0.05 => "<0.1".to_owned(),
        rate if rate < 9.95 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    }
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

    #[test]
    fn ages() {
        for (seconds, want) in [
            (45, "45.0s"),
            (999, "999s"),
            (1_000, "16m40s"),
            (5_999, "99m59s"),
            (6_000, "1h40m"),
            (99_999, "27h46m"),
            (359_999, "99h59m"),
            (360_000, "4d4h"),
            (86_399_999, "999d23h"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), want);
            assert!(want.len() <= 7, "{want}");
        }
    }

    #[test]
    fn numbers_of_octets() {
        for (count, want) in [
            (0, "0B"),
            (999, "999B"),
            (1_000, "0.98KiB"),
            (1_024, "1.00KiB"),
            (46_695, "45.6KiB"),
            (1_048_575, "1.00MiB"),
            (1_288_490, "1.23MiB"),
            (u64::MAX, "16.0EiB"),
        ] {
            assert_eq!(octets(count), want);
        }
    }

    #[test]
    fn what_is_cut_says_so_and_fits() {
        for (text, most, want) in [
            ("nginx", 5, "nginx"),
            ("nginx", 4, "ngi…"),
            ("nginx", 1, "…"),
            ("nginx", 0, ""),
            ("名前です", 3, "名前…"),
            ("", 0, ""),
        ] {
            assert_eq!(cut(text, most), want, "{text} in {most}");
        }
    }

    #[test]
    fn what_is_cut_in_the_middle_keeps_both_ends() {
        for (text, most, want) in [
            ("/var/lib/app/data.db", 20, "/var/lib/app/data.db"),
            ("/var/lib/app/data.db", 13, "/var…/data.db"),
            ("/var/lib/app/data.db", 2, "…b"),
            ("/var/lib/app/data.db", 1, "…"),
            ("/var/lib/app/data.db", 0, ""),
            ("/名前/です/か", 7, "/名…です/か"),
        ] {
            let got = cut_middle(text, most);
            assert_eq!(got, want, "{text} in {most}");
            assert!(width(&got) <= most, "{got} in {most}");
        }
    }

    #[test]
    fn rates() {
        for (count, ms, want) in [
            (0, 1_000, "0"),
            (1, 60_000, "<0.1"),
            (1, 10_000, "0.1"),
            (3, 1_001, "3.0"),
            (9, 1_000, "9.0"),
            (99, 10_000, "9.9"),
            (100, 10_000, "10"),
            (57_078, 1_000, "57078"),
            (1, 0, ""),
        ] {
            assert_eq!(rate(count, Duration::from_millis(ms)), want, "{count} in {ms}");
        }
    }

    #[test]
    fn shares() {
        for (part, all, want) in
            [(0, 0, ""), (0, 9, "0%"), (1, 1_000, "<1%"), (1, 3, "33%"), (2, 3, "67%"), (3, 3, "100%")]
        {
            assert_eq!(share(part, all), want);
        }
    }
}
