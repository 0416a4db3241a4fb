//! YAML, event by event: nothing is built of what is nested or repeated, so neither depth nor aliases cost anything.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

use super::{Contents, Entry, Fault, MOST_ELEMENTS, MOST_FAULTS, MOST_KEYS, Place, Value};

const ANCHORS: &str = "anchors and aliases are not allowed; write the value out";

pub(super) fn read(text: &str) -> Contents {
    let mut reader = Reader { parser: Parser::new_from_str(text), contents: Contents::default() };
    if let Err(fault) = reader.document() {
        reader.contents.faults.push(fault);
    }
    reader.contents
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    contents: Contents,
}

/// A value, or what is wrong with it.
type Node = Result<Value, Fault>;

impl Reader<'_> {
    /// The next event; an error ends the reading, because behind it nothing is certain.
    fn next(&mut self) -> Result<(Event<'static>, Span), Fault> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((owned(event), span)),
            Some(Err(error)) => Err(Fault::at(place(error.marker()), error.info())),
            None => Ok((Event::StreamEnd, Span::empty(Marker::new(0, 1, 0)))),
        }
    }

    fn document(&mut self) -> Result<(), Fault> {
        let mut documents = 0;
        loop {
            let (event, span) = self.next()?;
            let at = place(&span.start);
            match event {
                Event::StreamEnd => return Ok(()),
                Event::DocumentStart(_) if documents == 1 => {
                    return Err(Fault::at(at, "one document is allowed, and here a second begins"));
                }
                Event::DocumentStart(_) => documents += 1,
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
                Event::MappingStart(0, None) => self.mapping()?,
                Event::Scalar(text, ScalarStyle::Plain, 0, None) if is_null(&text) => {}
                Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::MappingStart(..)
                | Event::Alias(_)
                | Event::SequenceEnd
                | Event::MappingEnd => {
                    return Err(Fault::at(at, "lines of the form key: value are allowed"));
                }
            }
        }
    }

    fn mapping(&mut self) -> Result<(), Fault> {
        loop {
            let (event, span) = self.next()?;
            let at = place(&span.start);
            let key = match event {
                Event::MappingEnd => return Ok(()),
                Event::Scalar(text, _, 0, None) => Some(text.into_owned()),
                event => {
                    self.skip(&event)?;
                    self.contents.faults.push(Fault::at(at, "a key is a word, and nothing else is allowed"));
                    None
                }
            };
            let node = self.value(at)?;
            match (key, node) {
                (Some(key), Ok(value)) => self.contents.entries.push(Entry { key, value, place: at }),
                (Some(key), Err(Fault { place, message })) => {
                    self.contents.faults.push(Fault { place, message: format!("{key}: {message}") });
                }
                // That the key is none was said.
                (None, _) => {}
            }
            // The rest would only repeat what is wrong.
            if self.contents.entries.len() > MOST_KEYS || self.contents.faults.len() > MOST_FAULTS {
                return self.finish();
            }
        }
    }

    /// The value of a key. The outer error ends the reading, the inner one is of this value alone.
    fn value(&mut self, key: Place) -> Result<Node, Fault> {
        let (event, span) = self.next()?;
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                Ok(scalar(&text, style, anchor, tag.is_some()).map(Value::One).map_err(|m| Fault::at(key, m)))
            }
            Event::SequenceStart(0, None) => self.sequence(key),
            event => {
                let message = match &event {
                    Event::MappingStart(0, None) => {
                        "a mapping is not allowed here: there are no sections, keys are like otlp-endpoint"
                    }
                    Event::SequenceStart(0, _) | Event::MappingStart(0, _) => TAGS,
                    _ => ANCHORS,
                };
                let at = if matches!(event, Event::Alias(_)) { place(&span.start) } else { key };
                self.skip(&event)?;
                Ok(Err(Fault::at(at, message)))
            }
        }
    }

    fn sequence(&mut self, key: Place) -> Result<Node, Fault> {
        let mut texts = Vec::new();
        let mut wrong = None;
        loop {
            let (event, span) = self.next()?;
            let result = match event {
                Event::SequenceEnd => break,
                Event::Scalar(text, style, anchor, tag) => {
                    scalar(&text, style, anchor, tag.is_some()).map_err(|message| Fault::at(key, message))
                }
                event => {
                    let message = match &event {
                        Event::Alias(_) => ANCHORS,
                        _ => "the elements of a list are single values, and nothing else is allowed",
                    };
                    self.skip(&event)?;
                    Err(Fault::at(place(&span.start), message))
                }
            };
            match result {
                // One more than is allowed, so that it is seen.
                Ok(text) if texts.len() <= MOST_ELEMENTS => texts.push(text),
                Ok(_) => {}
                Err(fault) => wrong = wrong.or(Some(fault)),
            }
        }
        Ok(wrong.map_or(Ok(Value::Many(texts)), Err))
    }

    /// Passes over what an event begins.
    fn skip(&mut self, event: &Event<'_>) -> Result<(), Fault> {
        let mut depth = depth_after(0, event);
        while depth > 0 {
            let (event, _) = self.next()?;
            depth = depth_after(depth, &event);
        }
        Ok(())
    }

    /// Passes over the rest of the mapping.
    fn finish(&mut self) -> Result<(), Fault> {
        let mut depth = 1;
        while depth > 0 {
            let (event, _) = self.next()?;
            if matches!(event, Event::StreamEnd) {
                break;
            }
            depth = depth_after(depth, &event);
        }
        Ok(())
    }
}

const TAGS: &str = "tags are not allowed";

fn depth_after(depth: usize, event: &Event<'_>) -> usize {
    match event {
        Event::SequenceStart(..) | Event::MappingStart(..) => depth + 1,
        Event::SequenceEnd | Event::MappingEnd => depth.saturating_sub(1),
        // Nothing comes behind it.
        Event::StreamEnd => 0,
        Event::Nothing
        | Event::StreamStart
        | Event::DocumentStart(_)
        | Event::DocumentEnd
        | Event::Alias(_)
        | Event::Scalar(..) => depth,
    }
}

fn scalar(text: &str, style: ScalarStyle, anchor: usize, has_tag: bool) -> Result<String, &'static str> {
    match (anchor, has_tag) {
        (0, false) if style == ScalarStyle::Plain && is_null(text) => {
            Err("has no value; without one the line is to be left out")
        }
        (0, false) => Ok(text.to_owned()),
        (0, true) => Err(TAGS),
        (_, _) => Err(ANCHORS),
    }
}

/// YAML's word for nothing, in the core schema.
fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn place(marker: &Marker) -> Place {
    // The parser counts columns from 0.
    Place { line: marker.line().max(1), column: marker.col() + 1 }
}

/// An event that borrows nothing from the parser.
fn owned(event: Event<'_>) -> Event<'static> {
    match event {
        Event::Nothing => Event::Nothing,
        Event::StreamStart => Event::StreamStart,
        Event::StreamEnd => Event::StreamEnd,
        Event::DocumentStart(explicit) => Event::DocumentStart(explicit),
        Event::DocumentEnd => Event::DocumentEnd,
        Event::Alias(anchor) => Event::Alias(anchor),
        Event::Scalar(text, style, anchor, tag) => Event::Scalar(
            text.into_owned().into(),
            style,
            anchor,
            tag.map(|tag| std::borrow::Cow::Owned(tag.into_owned())),
        ),
        Event::SequenceStart(anchor, tag) => {
            Event::SequenceStart(anchor, tag.map(|tag| std::borrow::Cow::Owned(tag.into_owned())))
        }
        Event::SequenceEnd => Event::SequenceEnd,
        Event::MappingStart(anchor, tag) => {
            Event::MappingStart(anchor, tag.map(|tag| std::borrow::Cow::Owned(tag.into_owned())))
        }
        Event::MappingEnd => Event::MappingEnd,
    }
}
