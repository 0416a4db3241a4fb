//! Colours, for eyes only: a few, on a terminal, unless somebody does not want them.

use std::ffi::OsStr;

use anstyle::{AnsiColor, Style};

/// Whether lines have colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colours {
    /// Text and nothing else: files, pipes.
    #[default]
    Off,
    /// With escape sequences (ECMA-48, SGR).
    On,
}

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Worth a look.
    Odd,
    /// What somebody waits for in vain.
    Bad,
}

impl Colours {
    /// For what is written to a terminal or elsewhere, by the values of `NO_COLOR` (<https://no-color.org>: set and not empty)
    /// and `TERM`.
    #[must_use]
    pub fn wanted(on_terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> Self {
        let unwanted = no_color.is_some_and(|value| !value.is_empty());
        if on_terminal && !unwanted && term.is_none_or(|term| term != "dumb") { Self::On } else { Self::Off }
    }

    /// Text, as wide as before.
    pub(super) fn paint(self, tone: Tone, text: String) -> String {
        let colour = match (self, tone) {
            (Self::Off, _) | (Self::On, Tone::Plain) => return text,
            (Self::On, Tone::Odd) => AnsiColor::Yellow,
            (Self::On, Tone::Bad) => AnsiColor::Red,
        };
        let style = Style::new().fg_color(Some(colour.into()));
        format!("{style}{text}{style:#}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_has_colours_and_only_where_they_are_wanted() {
        for (on_terminal, no_color, term, want) in [
            (true, None, Some("xterm-256color"), Colours::On),
            (true, None, None, Colours::On),
            (true, Some(""), Some("xterm"), Colours::On),
            (true, Some("1"), Some("xterm"), Colours::Off),
            (true, Some("0"), Some("xterm"), Colours::Off),
            (true, None, Some("dumb"), Colours::Off),
            (false, None, Some("xterm"), Colours::Off),
            (false, Some(""), None, Colours::Off),
        ] {
            let got = Colours::wanted(on_terminal, no_color.map(OsStr::new), term.map(OsStr::new));
            assert_eq!(got, want, "{on_terminal} {no_color:?} {term:?}");
        }
    }

    #[test]
    fn what_is_painted_ends_as_it_began() {
        for (colours, tone, want) in [
            (Colours::On, Tone::Bad, "\u{1b}[31mx \u{1b}[0m"),
            (Colours::On, Tone::Odd, "\u{1b}[33mx \u{1b}[0m"),
            (Colours::On, Tone::Plain, "x "),
            (Colours::Off, Tone::Bad, "x "),
        ] {
            assert_eq!(colours.paint(tone, "x ".to_owned()), want, "{colours:?} {tone:?}");
        }
    }
}
