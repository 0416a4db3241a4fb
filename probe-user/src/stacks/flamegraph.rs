//! The picture of folded stacks: an SVG that opens in any browser, and zooms and searches there.

use std::io::{self, Write};
use std::str::FromStr;

use inferno::flamegraph::{Options, Palette, TextTruncateDirection, from_lines};

use super::folded::{Folded, Unit, frame_text};

/// No picture gets larger; one of a busy host has 1 MB.
const MAX_BYTES: usize = 64 << 20;

/// What stands around the frames.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// Above all.
    pub title: &'a str,
    /// Below it: host, duration, what was sampled.
    pub subtitle: &'a str,
    /// What the widths are.
    pub unit: Unit,
    /// Frames narrower than this share of the whole, in percent, are left out. A twentieth of a percent is half a pixel.
    pub min_width: f64,
}

impl Picture<'_> {
    /// The usual `min_width`.
    pub const MIN_WIDTH: f64 = 0.05;
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum DrawError {
    /// No stack weighs anything.
    #[error("there is nothing to draw: no stack was sampled (sample for longer, or choose other calls)")]
    Empty,
    /// It cannot be written, or gets too large.
    #[error("cannot draw the flame graph: {0}")]
    Write(#[from] io::Error),
}

/// Draws it. Functions of the kernel are orange, those of C++ and Rust yellow, all others red; the same names have the same
/// shade in every picture.
///
/// # Errors
///
/// See [`DrawError`].
pub fn flamegraph(folded: &Folded, picture: &Picture<'_>) -> Result<Vec<u8>, DrawError> {
    let Picture { title, subtitle, unit, min_width } = *picture;
    let lines = folded.lines(unit);
    if lines.is_empty() {
        return Err(DrawError::Empty);
    }
    let mut options = Options::default();
    options.title = frame_text(title);
    options.subtitle = (!subtitle.is_empty()).then(|| frame_text(subtitle));
    // The palette that tells user space and kernel apart is named after the first that needed it.
    options.colors = Palette::from_str("java").map_err(io::Error::other)?;
    options.deterministic = true;
    options.min_width = min_width;
    // The beginning of a path of names says less than its end, but of `[libfoo.so+0x1234]` the file matters.
    options.text_truncate_direction = TextTruncateDirection::Right;
    (options.count_name, options.factor) = match unit {
        Unit::Time => ("µs".into(), 1e-3),
        Unit::Calls => ("calls".into(), 1.0),
    };
    let mut svg = Limited::default();
    from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)?;
    Ok(svg.0)
}

#[derive(Default)]
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_BYTES {
            return Err(io::Error::other("it gets larger than 64 MiB (leave out more narrow frames)"));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::folded::{FoldedLimits, Weight};
    use super::super::symbolizer::Frame;
    use super::*;
    use proptest::prelude::*;

    fn picture(unit: Unit) -> Picture<'static> {
        Picture { title: "probe syscalls", subtitle: "host, 10 s", unit, min_width: Picture::MIN_WIDTH }
    }

    fn add(folded: &mut Folded, comm: &str, user: &[&str], kernel: &[&str], weight: Weight) {
        let frames = |names: &[&str]| -> Vec<Frame> {
            names.iter().map(|name| Frame { name: (*name).into(), known: true }).collect()
        };
        folded.add(comm, &frames(user), "read", &frames(kernel), weight);
    }

    /// Titles of the frames: what is shown when the mouse is over them.
    fn titles(svg: &[u8]) -> Vec<String> {
        let text = std::str::from_utf8(svg).unwrap();
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
        let document = roxmltree::Document::parse_with_options(text, options).unwrap();
        let titles =
            document.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "title")));
        titles.filter_map(|node| node.text().map(str::to_owned)).collect()
    }

    #[test]
    fn frames_have_their_share() {
        let mut folded = Folded::default();
        add(&mut folded, "nginx", &["main", "read"], &["ksys_read"], Weight { ns: 3_000_000, calls: 1 });
        add(&mut folded, "nginx", &["main", "[libfoo.so+0x12]"], &[], Weight { ns: 1_000_000, calls: 3 });
        let time = titles(&flamegraph(&folded, &picture(Unit::Time)).unwrap());
        for want in [
            "all (4,000 µs, 100%)",
            "main (4,000 µs, 100.00%)",
            "read (3,000 µs, 75.00%)",
            "ksys_read (3,000 µs, 75.00%)",
            "[libfoo.so+0x12] (1,000 µs, 25.00%)",
        ] {
            assert!(time.iter().any(|title| title == want), "{want}: {time:?}");
        }
        let calls = titles(&flamegraph(&folded, &picture(Unit::Calls)).unwrap());
        assert!(calls.iter().any(|title| title == "read (1 calls, 25.00%)"), "{calls:?}");
        let again = flamegraph(&folded, &picture(Unit::Time)).unwrap();
        assert_eq!(again, flamegraph(&folded, &picture(Unit::Time)).unwrap(), "the same picture every time");
    }

    #[test]
    fn nothing_is_no_picture() {
        let mut folded = Folded::default();
        add(&mut folded, "sh", &["main"], &[], Weight { ns: 0, calls: 1 });
        let error = flamegraph(&folded, &picture(Unit::Time)).unwrap_err();
        assert!(
            matches!(error, DrawError::Empty) && error.to_string().contains("sample for longer"),
            "{error}"
        );
        assert!(flamegraph(&folded, &picture(Unit::Calls)).is_ok());
    }

    #[test]
    fn a_picture_of_much_stays_small() {
        let mut folded = Folded::new(FoldedLimits::default());
        for stack in 0..12_000 {
            let user: Vec<String> = (0..60).map(|depth| format!("function_{stack}_{depth}")).collect();
            let user: Vec<&str> = user.iter().map(String::as_str).collect();
            add(&mut folded, "busy", &user, &[], Weight { ns: 1_000, calls: 1 });
        }
        assert!(folded.other().calls > 0);
        let svg = flamegraph(&folded, &picture(Unit::Time)).unwrap();
        assert!(svg.len() < 1 << 20, "{}", svg.len());
    }

    proptest! {
        #[test]
        fn names_of_strangers_are_xml(
            names in proptest::collection::vec("\\PC{0,20}|[\\x00-\\x7f]{0,20}|(?s:.{0,9})|[\u{fff0}-\u{10010}]{0,9}|[<>&\"';\\]]{0,9}|\\]\\]>", 1..12),
            ns in 1u64..1 << 40,
        ) {
            let mut folded = Folded::default();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let [first, rest @ ..] = &names[..] else { unreachable!() };
            add(&mut folded, first, rest, &names, Weight { ns, calls: 1 });
            let around = Picture { title: first, subtitle: names[names.len() - 1], ..picture(Unit::Calls) };
            let svg = flamegraph(&folded, &around).unwrap();
            // All, the process, its frames, the call, the kernel's.
            prop_assert_eq!(titles(&svg).len(), 2 + rest.len() + 1 + names.len());
        }
    }
}
