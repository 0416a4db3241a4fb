//! Configuration files of any bytes: read as YAML and as TOML.

#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use probe_user::config::file::{Format, MOST_ELEMENTS, MOST_FAULTS, MOST_KEYS, MOST_TEXT, Value, read};

fuzz_target!(|bytes: &[u8]| {
    for format in [Format::Yaml, Format::Toml] {
        let contents = read(format, bytes);
        assert!(contents.entries.len() <= MOST_KEYS && contents.faults.len() <= MOST_FAULTS);
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
        for entry in &contents.entries {
            let texts = match &entry.value {
                Value::One(text) => std::slice::from_ref(text),
                Value::Many(texts) => texts,
            };
            assert!(texts.len() <= MOST_ELEMENTS && texts.iter().all(|text| text.len() <= MOST_TEXT));
            assert!(entry.place.line >= 1 && entry.place.column >= 1, "{entry:?}");
        }
        for fault in &contents.faults {
            assert!(!fault.message.is_empty());
            // YAML ends a line at a carriage return, too.
            if let (Some(place), Format::Toml) = (fault.place, format) {
                assert!(place.line <= lines && place.column >= 1, "{fault:?}");
            }
        }
        let keys: HashSet<&str> = contents.entries.iter().map(|entry| entry.key.as_str()).collect();
        assert!(
            keys.len() == contents.entries.len() || !contents.faults.is_empty(),
            "twice, and nobody says so"
        );
        assert_eq!(read(format, bytes), contents, "the same again");
    }
});
