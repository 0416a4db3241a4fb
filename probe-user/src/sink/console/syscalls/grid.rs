//! Columns as wide as what is in them, the last as wide as the room that is left.

use super::super::colours::{Colours, Tone};
use super::super::text::width;

/// Between columns.
const GAP: usize = 2;
/// The last column has so much room at least.
const LAST_LEAST: usize = 10;

/// What stands in a column of a row.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) tone: Option<Tone>,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, tone: None }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// A heading, and whether its column is one of numbers, which stand to the right.
pub(super) type Heading = (&'static str, bool);

/// Rows as lines below their heading. Columns that are empty in all rows are left out. The last column's text is made when its
/// room is known, by row and room.
pub(super) fn lines<const N: usize>(
    headings: [Heading; N],
    rows: &[[Cell; N]],
    last: &str,
    of_last: &dyn Fn(usize, usize) -> Cell,
    columns: usize,
    colours: Colours,
) -> Vec<String> {
    let widths: Vec<usize> = headings
        .iter()
        .enumerate()
        .map(|(column, (name, _))| {
            let texts = rows.iter().filter_map(|row| row.get(column)).map(|cell| width(&cell.text));
            match texts.max().unwrap_or(0) {
                0 => 0,
                widest => widest.max(width(name)),
            }
        })
        .collect();
    let taken: usize = widths.iter().filter(|width| **width != 0).map(|width| width + GAP).sum();
    let room = columns.saturating_sub(taken).max(LAST_LEAST);
    let line = |cells: &[Cell; N], end: Cell| {
        let mut line = String::new();
        for ((cell, width), (_, is_number)) in cells.iter().zip(&widths).zip(&headings) {
            let Cell { text, tone } = cell;
            let padded = match (*width, is_number) {
                (0, _) => continue,
                (width, true) => format!("{text:>width$}"),
                (width, false) => format!("{text:<width$}"),
            };
            line.push_str(&colours.paint(tone.unwrap_or(Tone::Plain), padded));
            line.extend([' '; GAP]);
        }
        line.push_str(&colours.paint(end.tone.unwrap_or(Tone::Plain), end.text));
        line.trim_end().to_owned()
    };
    let heading = line(&headings.map(|(name, _)| name.into()), last.into());
    let rows = rows.iter().enumerate().map(|(index, row)| line(row, of_last(index, room)));
    std::iter::once(heading).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADINGS: [Heading; 3] = [("NAME", false), ("COUNT", true), ("NEVER", true)];

    fn of(rows: &[[&str; 2]], columns: usize) -> Vec<String> {
        let rows: Vec<[Cell; 3]> =
            rows.iter().map(|[name, count]| [(*name).into(), (*count).into(), "".into()]).collect();
        let last = |row: usize, room: usize| format!("{row} of {room}").into();
        lines(HEADINGS, &rows, "LAST", &last, columns, Colours::Off)
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let want = ["NAME     COUNT  LAST", "a            7  0 of 15", "longer  123456  1 of 15"];
        // COUNT is narrower than what is in it.
        assert_eq!(
            of(&[["a", "7"], ["longer", "123456"]], 31),
            ["NAME     COUNT  LAST", "a            7  0 of 15", "longer  123456  1 of 15"]
        );
        assert_eq!(want.len(), 3);
        assert_eq!(of(&[["a", "7"]], 5)[1], "a         7  0 of 10", "some room there always is");
        assert_eq!(of(&[], 80), ["LAST"]);
    }

    #[test]
    fn colours_take_no_room() {
        let rows = [[Cell { text: "a".into(), tone: Some(Tone::Bad) }, "7".into(), "".into()]];
        let lines = lines(HEADINGS, &rows, "LAST", &|_, _| "x".into(), 40, Colours::On);
        assert_eq!(lines[1], "\u{1b}[31ma   \u{1b}[0m      7  x");
    }
}
