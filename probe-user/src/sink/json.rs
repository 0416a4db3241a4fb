//! NDJSON: one event a line, the attribute names as they are.

use std::io::{self, Write};

use serde_json::{Map, Value};

use crate::event::{AttrValue, Attributes};
use crate::kernel::clock::rfc3339;

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
    serde_json::to_writer(&mut *out, &Value::Object(object))?;
    out.write_all(b"\n")
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
            visitor("text", AttrValue::Str("a\u{1b}[m\"\u{202e}"));
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
        assert!(!line.contains(&0x1b), "escapes are JSON's");
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["time"], "2023-11-14T22:13:20.000000001Z");
        assert_eq!(value["event"], "probe.test");
        assert_eq!(value["text"], "a\u{1b}[m\"\u{202e}");
        assert_eq!(value["port"], 53);
        assert_eq!(value["seconds"], 0.25);
        assert_eq!(value["map"]["ENOENT"], 2);
    }
}
