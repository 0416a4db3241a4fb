//! NDJSON: one event a line, the attribute names as they are.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Serializer, Value};

use crate::event::{AttrValue, Attributes};
use crate::kernel::clock::rfc3339;
use crate::sink::console::is_hostile;

/// Writes an event as one line.
///
/// # Errors
///
/// What `out` returns.
pub fn write(out: &mut dyn Write, event: &dyn Attributes) -> io::Result<()> {
    let mut object = Map::new();
    object.insert("time".to_owned(), rfc3339(event.time_unix_ns()).into());
    object.insert("event".to_owned(), event.event_name().into());
    event.visit(&mut |key, value| {
        object.insert(key.to_owned(), json(value));
    });
    line(out, object)
}

/// Writes an object as one line.
///
/// # Errors
///
/// What `out` returns.
pub fn line(out: &mut dyn Write, object: Map<String, Value>) -> io::Result<()> {
    Value::Object(object).serialize(&mut Serializer::with_formatter(&mut *out, Harmless))?;
    out.write_all(b"\n")
}

/// Compact, and escapes what JSON itself lets pass and a terminal or a reader does not: DEL, C1, bidirectional controls.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        for part in fragment.split_inclusive(is_hostile) {
            let hostile = part.chars().next_back().filter(|last| is_hostile(*last));
            let plain = part.len() - hostile.map_or(0, char::len_utf8);
            out.write_all(part.get(..plain).unwrap_or_default().as_bytes())?;
            if let Some(hostile) = hostile {
                // None of them is beyond the basic plane.
                write!(out, "\\u{:04x}", u32::from(hostile))?;
            }
        }
        Ok(())
    }
}

fn json(value: AttrValue<'_>) -> Value {
    match value {
        AttrValue::Str(text) => text.into(),
        AttrValue::Int(number) => number.into(),
        AttrValue::Float(number) => number.into(),
        AttrValue::Bool(yes) => yes.into(),
        AttrValue::List(texts) => texts.iter().copied().map(Value::from).collect(),
        AttrValue::Map(counts) => {
            Value::Object(counts.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Everything;

    impl Attributes for Everything {
        fn event_name(&self) -> &'static str {
            "probe.test"
        }
        fn time_unix_ns(&self) -> u64 {
            1_700_000_000_000_000_001
        }
        fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
            visitor("text", AttrValue::Str("a\u{1b}[m\"\u{202e}b\u{9b}\u{7f}名"));
            visitor("port", AttrValue::Int(53));
            visitor("seconds", AttrValue::Float(0.25));
            visitor("yes", AttrValue::Bool(true));
            visitor("list", AttrValue::List(&["0x1"]));
            visitor("map", AttrValue::Map(&[("ENOENT", 2)]));
        }
    }

    #[test]
    fn one_line_that_any_parser_reads_back() {
        let mut line = Vec::new();
        write(&mut line, &Everything).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let text = std::str::from_utf8(&line).unwrap();
        assert!(!text.trim_end_matches('\n').contains(is_hostile), "escapes are JSON's: {text}");
        assert!(text.contains("\\u202eb\\u009b\\u007f名"), "{text}");
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["time"], "2023-11-14T22:13:20.000000001Z");
        assert_eq!(value["event"], "probe.test");
        assert_eq!(value["text"], "a\u{1b}[m\"\u{202e}b\u{9b}\u{7f}名");
        assert_eq!(value["port"], 53);
        assert_eq!(value["seconds"], 0.25);
        assert_eq!(value["map"]["ENOENT"], 2);
    }
}
