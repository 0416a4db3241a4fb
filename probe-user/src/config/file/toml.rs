//! TOML; the parser goes on after an error, so that all of them are told.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Contents, Entry, Fault, MOST_ELEMENTS, MOST_FAULTS, MOST_KEYS, Place, Value, end_of};

pub(super) fn read(text: &str) -> Contents {
    let mut contents = Contents::default();
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors.iter().take(MOST_FAULTS) {
        let place = error.span().map(|span| place(text, &span));
        contents.faults.push(Fault { place, message: error.message().to_owned() });
    }
    let mut keys: Vec<_> = table.into_inner().into_iter().collect();
    keys.sort_by_key(|(key, _)| key.span().start);
    // One more than is allowed, so that it is seen.
    for (key, spanned) in keys.into_iter().take(MOST_KEYS + 1) {
        let place = place(text, &key.span());
        let key = key.into_inner().into_owned();
        match value(text, &spanned) {
            Ok(value) => contents.entries.push(Entry { key, value, place }),
            // Where nothing was understood, the parser has said so.
            Err(message) if errors.is_empty() => {
                contents.faults.push(Fault::at(place, format!("{key}: {message}")));
            }
            Err(_) => {}
        }
    }
    contents
}

fn value(text: &str, spanned: &Spanned<DeValue<'_>>) -> Result<Value, &'static str> {
    match spanned.get_ref() {
        DeValue::Array(elements) => {
            let elements = elements.iter().take(MOST_ELEMENTS + 1);
            Ok(Value::Many(elements.map(|element| scalar(text, element)).collect::<Result<_, _>>()?))
        }
        DeValue::Table(_) => {
            Err("a table is not allowed here: there are no sections, keys are like otlp-endpoint")
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => Ok(Value::One(scalar(text, spanned)?)),
    }
}

/// A scalar as text: what it says, of strings, and of others as they are written.
fn scalar(text: &str, spanned: &Spanned<DeValue<'_>>) -> Result<String, &'static str> {
    match spanned.get_ref() {
        DeValue::String(string) => Ok(string.clone().into_owned()),
        DeValue::Boolean(yes) => Ok(yes.to_string()),
        DeValue::Integer(integer) if integer.radix() == 10 => Ok(integer.as_str().to_owned()),
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_) => {
            Ok(text.get(spanned.span()).unwrap_or_default().to_owned())
        }
        DeValue::Array(_) | DeValue::Table(_) => {
            Err("the elements of a list are single values, and nothing else is allowed")
        }
    }
}

fn place(text: &str, span: &Range<usize>) -> Place {
    // An error may lie inside of a character.
    let before = (0..=span.start.min(text.len())).rev().find_map(|end| text.get(..end));
    end_of(before.unwrap_or_default())
}
