//! A configuration file as it was written: keys and values with their places, and everything that is wrong with its form. What keys
//! there are and what they may say, is clap's to know (`cli::layers`).

mod toml;
mod yaml;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use foldhash::fast::RandomState;

/// A file of more bytes is not read: nobody wrote it by hand.
pub const MOST_BYTES: usize = 1 << 20;
/// Keys of one file; there are some dozens that mean something.
pub const MOST_KEYS: usize = 256;
/// Elements of one list.
pub const MOST_ELEMENTS: usize = 1_024;
/// Bytes of a key, or of one value.
pub const MOST_TEXT: usize = 4_096;
/// What is wrong is said so many times.
pub const MOST_FAULTS: usize = 100;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One mapping of keys to scalars, or to sequences of them.
    Yaml,
    /// One table of keys, with scalars or arrays of them.
    Toml,
}

impl Format {
    /// By the extension of the name.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "yaml" | "yml" => Some(Self::Yaml),
            "toml" => Some(Self::Toml),
            _ => None,
        }
    }
}

/// Where something is written; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Character of the line.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// What a key is set to. Scalars are text: what they mean depends on the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A scalar.
    One(String),
    /// A list of scalars.
    Many(Vec<String>),
}

/// A key that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As it is written.
    pub key: String,
    /// What to.
    pub value: Value,
    /// Where the key is.
    pub place: Place,
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where, if it is anywhere.
    pub place: Option<Place>,
    /// What, and what is allowed. Values are not repeated here: they may be secrets.
    pub message: String,
}

impl Fault {
    fn at(place: Place, message: impl Into<String>) -> Self {
        Self { place: Some(place), message: message.into() }
    }

    fn nowhere(message: impl Into<String>) -> Self {
        Self { place: None, message: message.into() }
    }
}

/// What a file says, and what is wrong with how it says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// In the order in which they are written.
    pub entries: Vec<Entry>,
    /// Likewise.
    pub faults: Vec<Fault>,
}

impl Contents {
    fn wrong(fault: Fault) -> Self {
        Self { entries: Vec::new(), faults: vec![fault] }
    }
}

/// Reads a file, and no more of it than is allowed.
#[must_use]
pub fn read_file(path: &Path) -> Contents {
    let Some(format) = Format::of(path) else {
        return Contents::wrong(Fault::nowhere(
            "its name tells the format, and may end in .yaml, .yml or .toml",
        ));
    };
    let bytes = || -> io::Result<Vec<u8>> {
        // Whoever opens a pipe waits for somebody to write, and a directory reads as an error that says little.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut bytes = Vec::new();
        let limit = u64::try_from(MOST_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match bytes() {
        Ok(bytes) => read(format, &bytes),
        Err(error) => Contents::wrong(Fault::nowhere(format!("cannot be read: {error}"))),
    }
}

/// Reads what a file holds.
#[must_use]
pub fn read(format: Format, bytes: &[u8]) -> Contents {
    if bytes.len() > MOST_BYTES {
        return Contents::wrong(Fault::nowhere(format!(
            "is larger than the {MOST_BYTES} bytes that are allowed"
        )));
    }
    let text = match std::str::from_utf8(bytes) {
        // What some editors begin a file with is no part of it.
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let before = String::from_utf8_lossy(valid);
            return Contents::wrong(Fault::at(end_of(&before), "is not UTF-8, and nothing else is allowed"));
        }
    };
    let mut contents = match format {
        Format::Yaml => yaml::read(text),
        Format::Toml => toml::read(text),
    };
    check_bounds(&mut contents);
    check_twice(&mut contents);
    contents.faults.sort_by_key(|fault| fault.place);
    contents.faults.truncate(MOST_FAULTS);
    contents
}

/// The place behind a text.
fn end_of(text: &str) -> Place {
    let line = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Place { line, column }
}

/// Texts that are too long, and keys that are too many, go.
fn check_bounds(contents: &mut Contents) {
    let Contents { entries, faults } = contents;
    if let Some(first) = entries.get(MOST_KEYS) {
        faults.push(Fault::at(first.place, format!("at most {MOST_KEYS} keys are allowed")));
        entries.truncate(MOST_KEYS);
    }
    entries.retain(|entry| {
        let longest = match &entry.value {
            Value::One(text) => text.len(),
            Value::Many(texts) => texts.iter().map(String::len).max().unwrap_or(0),
        };
        let fits = entry.key.len() <= MOST_TEXT && longest <= MOST_TEXT;
        if !fits {
            let message = format!("at most {MOST_TEXT} bytes are allowed in a key or a value");
            faults.push(Fault::at(entry.place, message));
        }
        let few = !matches!(&entry.value, Value::Many(texts) if texts.len() > MOST_ELEMENTS);
        if !few {
            let message = format!("{}: at most {MOST_ELEMENTS} elements are allowed", entry.key);
            faults.push(Fault::at(entry.place, message));
        }
        fits && few
    });
}

/// A key that is there twice is a mistake, whichever of the two was meant.
fn check_twice(contents: &mut Contents) {
    let Contents { entries, faults } = contents;
    let mut first: HashMap<&str, Place, RandomState> = HashMap::default();
    for entry in &*entries {
        let place = *first.entry(&entry.key).or_insert(entry.place);
        if place != entry.place {
            let message = format!("{}: is there already in line {}; once is allowed", entry.key, place.line);
            faults.push(Fault::at(entry.place, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Value {
        Value::One(text.to_owned())
    }

    fn many(texts: &[&str]) -> Value {
        Value::Many(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn both_formats_say_the_same() {
        let yaml = "# what it is\n---\ninterval: 30s\nring-kib: 512 # KiB\nnat: true\ndns-port: [53, 5353]\n\
                    comm: \"a\\\"b\"\npid: 0x10\n";
        let toml = "# what it is\n\ninterval = \"30s\"\nring-kib = 512 # KiB\nnat = true\ndns-port = [53, 5353]\n\
                    comm = 'a\"b'\npid = 0x10\n";
        let want = [
            ("interval", one("30s"), 3),
            ("ring-kib", one("512"), 4),
            ("nat", one("true"), 5),
            ("dns-port", many(&["53", "5353"]), 6),
            ("comm", one("a\"b"), 7),
            ("pid", one("0x10"), 8),
        ]
        .map(|(key, value, line)| Entry {
            key: key.to_owned(),
            value,
            place: Place { line, column: 1 },
        });
        for (format, text) in [(Format::Yaml, yaml), (Format::Toml, toml)] {
            let contents = read(format, text.as_bytes());
            assert_eq!(contents.faults, [], "{format:?}");
            assert_eq!(contents.entries, want, "{format:?}");
        }
    }

    #[test]
    fn nothing_is_set_where_nothing_is_said() {
        for text in ["", "\n", "# nothing\n", "\u{feff}"] {
            for format in [Format::Yaml, Format::Toml] {
                assert_eq!(read(format, text.as_bytes()), Contents::default(), "{format:?} {text:?}");
            }
        }
        for text in ["---\n", "---\n...\n", "{}", "~"] {
            assert_eq!(read(Format::Yaml, text.as_bytes()), Contents::default(), "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_form_is_said_with_its_place() {
        use Format::{Toml, Yaml};
        let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
        for (what, format, text, faults) in [
            ("a key without value", Yaml, "a: 1\nb:\n", &[(2, 1, "b: has no value")][..]),
            ("one that is null", Yaml, "b: ~\n", &[(1, 1, "has no value")]),
            ("one in a list", Yaml, "b: [1, ~]\n", &[(1, 1, "has no value")]),
            ("a mapping", Yaml, "otlp:\n  endpoint: x\n", &[(1, 1, "otlp: a mapping")]),
            ("a list in a list", Yaml, "a: [[1], 2]\nb:\n", &[(1, 5, "a: "), (2, 1, "b: ")]),
            ("a table", Toml, "[otlp]\nendpoint = 1\n", &[(1, 2, "otlp: a table")]),
            ("an inline table", Toml, "x = { y = 1 }\n", &[(1, 1, "x: a table")]),
            ("a dotted key", Toml, "otlp.endpoint = 1\n", &[(1, 1, "otlp: a table")]),
            ("a list in a list", Toml, "a = [[1], 2]\n", &[(1, 1, "a: ")]),
            ("twice", Yaml, "a: 1\nb: 2\na: 1\n", &[(3, 1, "already in line 1")]),
            ("twice", Toml, "a = 1\nb = 2\na = 1\n", &[(3, 1, "duplicate key")]),
            ("no mapping", Yaml, "interval\n", &[(1, 1, "key: value")]),
            ("a list", Yaml, "- a\n- b\n", &[(1, 1, "key: value")]),
            ("two documents", Yaml, "a: 1\n---\nb: 2\n", &[(2, 1, "one document")]),
            ("anchors", Yaml, bomb, &[(1, 1, "a: anchors"), (2, 1, "b: anchors"), (3, 5, "c: anchors")]),
            ("a merge", Yaml, "<<: *nothing\n", &[(1, 5, "")]),
            ("a tag", Yaml, "a: !!int 1\n", &[(1, 1, "a: tags")]),
            ("a list as a key", Yaml, "[1, 2]: x\nb: ~\n", &[(1, 1, "a key"), (2, 1, "b: ")]),
            ("a tab", Yaml, "a: 1\n\tb: 2\n", &[(1, 4, "a tab")]),
            ("a quote that does not end", Toml, "a = \"x\nb = 2\n", &[(1, 7, "")]),
            ("a time without quotes", Toml, "interval = 10s\nb = 1\n", &[(1, 12, "must be quoted")]),
        ] {
            let found = read(format, text.as_bytes()).faults;
            assert_eq!(found.len(), faults.len(), "{what}: {found:?}");
            for (fault, (line, column, words)) in found.iter().zip(faults) {
                let place = fault.place.unwrap();
                assert_eq!((place.line, place.column), (*line, *column), "{what}: {fault:?}");
                assert!(fault.message.contains(words), "{what}: {fault:?}");
            }
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let large = vec![b'#'; MOST_BYTES + 1];
        let long = format!("a: {}\n", "x".repeat(MOST_TEXT + 1));
        let keys: String = (0..10_000).map(|n| format!("k{n}: 1\n")).collect();
        let elements = format!("a: [{}]\nb: 1\n", "1, ".repeat(MOST_ELEMENTS + 1));
        let twice = "a: 1\n".repeat(10_000);
        let deep = format!("a: {}", "[".repeat(100_000));
        let deep_toml = format!("a = {}", "[".repeat(100_000));
        for (what, format, text, words) in [
            ("bytes", Format::Yaml, large.as_slice(), "larger than"),
            ("bytes", Format::Toml, &large, "larger than"),
            ("text", Format::Yaml, long.as_bytes(), "at most 4096 bytes"),
            ("keys", Format::Yaml, keys.as_bytes(), "at most 256 keys"),
            ("elements", Format::Yaml, elements.as_bytes(), "at most 1024 elements"),
            ("faults", Format::Yaml, twice.as_bytes(), "already in line 1"),
            ("depth", Format::Yaml, deep.as_bytes(), ""),
            ("depth", Format::Toml, deep_toml.as_bytes(), ""),
            ("no text", Format::Yaml, b"a: 1\nb: \xff\n", "not UTF-8"),
            ("no text", Format::Toml, b"a = '\xff'\n", "not UTF-8"),
        ] {
            let contents = read(format, text);
            assert!(
                contents.faults.iter().any(|fault| fault.message.contains(words)),
                "{what}: {contents:?}"
            );
            assert!(contents.faults.len() <= MOST_FAULTS && contents.entries.len() <= MOST_KEYS, "{what}");
        }
        assert_eq!(
            read(Format::Yaml, b"a: 1\nb: \xff\n").faults[0].place,
            Some(Place { line: 2, column: 4 })
        );
    }

    #[test]
    fn a_file_is_told_by_its_name() {
        for (name, format) in [
            ("/etc/probe/probe.yaml", Some(Format::Yaml)),
            ("probe.yml", Some(Format::Yaml)),
            ("probe.toml", Some(Format::Toml)),
            ("probe.json", None),
            ("yaml", None),
            ("probe.YAML", None),
        ] {
            assert_eq!(Format::of(Path::new(name)), format, "{name}");
        }
        for (path, words) in
            [("/nonexistent/probe.yaml", "No such file"), ("/dev/zero.conf", ".yaml, .yml or .toml")]
        {
            let contents = read_file(Path::new(path));
            assert!(contents.faults[0].message.contains(words), "{contents:?}");
        }
    }
}
