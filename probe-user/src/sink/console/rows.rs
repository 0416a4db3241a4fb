//! Tables of what a run came to: rows by key, as many as there is room for, and how they stand on the screen.

use std::hash::Hash;
use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::text::counted;

/// Rows that a table shows.
pub(super) const TOP: usize = 10;

/// Rows by key, up to a limit, and one row for all the others.
#[derive(Clone, Debug)]
pub(super) struct Bounded<K, V> {
    most: usize,
    pub(super) rows: HashMap<K, V, RandomState>,
    pub(super) rest: V,
}

impl<K: Eq + Hash, V: Default> Bounded<K, V> {
    pub(super) fn new(most: usize) -> Self {
        Self { most, rows: HashMap::default(), rest: V::default() }
    }

    pub(super) fn row(&mut self, key: K) -> &mut V {
        if self.rows.len() < self.most || self.rows.contains_key(&key) {
            return self.rows.entry(key).or_default();
        }
        &mut self.rest
    }
}

/// A table whose columns of numbers, those named, stand to the right.
pub(super) fn table<const N: usize>(heading: [&str; N], numbers: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(heading);
    for (index, name) in heading.iter().enumerate() {
        let Some(column) = table.column_mut(index) else { continue };
        if index == 0 {
            column.set_padding((0, 1));
        }
        if numbers.contains(name) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Rows that a table of so many does not show.
pub(super) fn more(out: &mut dyn Write, rows: usize) -> io::Result<()> {
    match rows.checked_sub(TOP) {
        Some(more @ 1..) => writeln!(out, "… and {more} more"),
        Some(0) | None => Ok(()),
    }
}

/// How the numbers read, below the tables.
pub(super) fn sentences(out: &mut dyn Write, readings: &[String]) -> io::Result<()> {
    if !readings.is_empty() {
        writeln!(out)?;
    }
    readings.iter().try_for_each(|reading| writeln!(out, "→ {reading}."))
}

/// What has no row, and is only known in sum.
pub(super) fn beyond(out: &mut dyn Write, row: &str, rows: usize, count: u64, what: &str) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    writeln!(out, "others, after the first {rows} {row}s: {}", counted(count, what))
}
