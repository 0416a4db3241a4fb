//! The matrix: tests × kernels, as it is printed and as docs carry it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail};

use crate::{live::Results, protocol::Outcome};

const BEGIN: &str = "<!-- made by `cargo xtask vm --write`; do not edit -->";
const END: &str = "<!-- end of what is made -->";

/// Results of all kernels, in the order of their columns.
#[derive(Debug)]
pub(crate) struct Table {
    /// Column's title and results.
    columns: Vec<(String, Results)>,
    tests: BTreeSet<String>,
}

impl Table {
    /// All tests get a row, also those that none reported.
    pub(crate) fn new(columns: Vec<(String, Results)>, tests: impl Iterator<Item = String>) -> Self {
        Self { columns, tests: tests.collect() }
    }

    fn cell(results: &Results, test: &str) -> Cell {
        match results.tests.get(test).map(|ended| &ended.outcome) {
            Some(Outcome::Passed) => Cell::Pass,
            Some(Outcome::Skipped { reason }) => Cell::Skip(reason.clone()),
            Some(Outcome::Failed { .. }) => Cell::Fail,
            None => Cell::Missing,
        }
    }

    /// Tests that ran nowhere: what they test is tested nowhere.
    pub(crate) fn skipped_everywhere(&self) -> Vec<&str> {
        let skipped = |test: &&String| {
            let mut cells = self.columns.iter().map(|(_title, results)| Self::cell(results, test));
            cells.all(|cell| matches!(cell, Cell::Skip(_)))
        };
        self.tests.iter().filter(skipped).map(String::as_str).collect()
    }

    /// Cells by kind: passed, skipped, failed or missing.
    pub(crate) fn sums(&self) -> (usize, usize, usize) {
        let mut sums = (0, 0, 0);
        for (_title, results) in &self.columns {
            for test in &self.tests {
                match Self::cell(results, test) {
                    Cell::Pass => sums.0 += 1,
                    Cell::Skip(_) => sums.1 += 1,
                    Cell::Fail | Cell::Missing => sums.2 += 1,
                }
            }
        }
        sums
    }

    /// One row a test.
    pub(crate) fn full(&self) -> String {
        let mut notes: Vec<String> = Vec::new();
        let mut text = self.head("test");
        for test in &self.tests {
            let _infallible = write!(text, "| `{test}` |");
            for (_title, results) in &self.columns {
                let cell = match Self::cell(results, test) {
                    Cell::Pass => "pass".to_owned(),
                    Cell::Fail => "**FAIL**".to_owned(),
                    Cell::Missing => "**not run**".to_owned(),
                    Cell::Skip(reason) => {
                        let number = notes.iter().position(|note| *note == reason).unwrap_or_else(|| {
                            notes.push(reason);
                            notes.len() - 1
                        });
                        format!("skip [{}]", number + 1)
                    }
                };
                let _infallible = write!(text, " {cell} |");
            }
            text.push('\n');
        }
        for (number, note) in notes.iter().enumerate() {
            let _infallible = write!(text, "\n[{}] {note}\n", number + 1);
        }
        text
    }

    /// One row a suite: how many passed.
    pub(crate) fn short(&self) -> String {
        let mut text = self.head("live tests");
        let mut suites: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
        for test in &self.tests {
            suites.entry(test.split("::").next().unwrap_or_default()).or_default().push(test);
        }
        for (suite, tests) in suites {
            let _infallible = write!(text, "| {suite} |");
            for (_title, results) in &self.columns {
                let cells = tests.iter().map(|test| Self::cell(results, test)).collect::<Vec<_>>();
                let count = |wanted: fn(&Cell) -> bool| cells.iter().filter(|cell| wanted(cell)).count();
                let _infallible = write!(text, " {} passed", count(|cell| *cell == Cell::Pass));
                for (number, what) in [
                    (count(|cell| matches!(cell, Cell::Skip(_))), "skipped"),
                    (count(|cell| matches!(cell, Cell::Fail | Cell::Missing)), "**failed**"),
                ] {
                    if number != 0 {
                        let _infallible = write!(text, ", {number} {what}");
                    }
                }
                text.push_str(" |");
            }
            text.push('\n');
        }
        text
    }

    fn head(&self, first: &str) -> String {
        let mut text = format!("| {first} |");
        for (title, _results) in &self.columns {
            let _infallible = write!(text, " {title} |");
        }
        text.push_str("\n|---|");
        text.push_str(&"---|".repeat(self.columns.len()));
        text.push('\n');
        text
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Cell {
    Pass,
    Skip(String),
    Fail,
    Missing,
}

/// Puts a table between the marks of a page. True: it was another before.
pub(crate) fn put(page: &Path, table: &str, write: bool) -> Result<bool> {
    let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let Some(new) = replaced(&text, table) else {
        bail!("{} has no place for the table: {BEGIN} … {END}", page.display());
    };
    if write && new != text {
        fs::write(page, &new).with_context(|| format!("cannot write {}", page.display()))?;
    }
    Ok(new != text)
}

fn replaced(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_old, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Ended;

    fn results(outcomes: &[(&str, Outcome)]) -> Results {
        let ended = |outcome: &Outcome| Ended { outcome: outcome.clone(), seconds: 1.0, retried: false };
        Results {
            kernel: "x".into(),
            tests: outcomes.iter().map(|(name, outcome)| ((*name).to_owned(), ended(outcome))).collect(),
        }
    }

    fn table() -> Table {
        let skip = || Outcome::Skipped { reason: "y: from 6.1 on".into() };
        let failed = Outcome::Failed { output: String::new() };
        let columns = vec![
            ("5.10".into(), results(&[("a::1", skip()), ("a::2", skip()), ("b::3", Outcome::Passed)])),
            ("host".into(), results(&[("a::1", Outcome::Passed), ("a::2", skip()), ("b::3", failed)])),
        ];
        Table::new(columns, ["a::1", "a::2", "b::3", "b::4"].map(str::to_owned).into_iter())
    }

    #[test]
    fn every_test_has_a_cell_for_every_kernel() {
        let full = table().full();
        for row in [
            "| test | 5.10 | host |",
            "| `a::1` | skip [1] | pass |",
            "| `a::2` | skip [1] | skip [1] |",
            "| `b::3` | pass | **FAIL** |",
            "| `b::4` | **not run** | **not run** |",
            "[1] y: from 6.1 on",
        ] {
            assert!(full.lines().any(|line| line == row), "{row}\n{full}");
        }
        let short = table().short();
        for row in [
            "| a | 0 passed, 2 skipped | 1 passed, 1 skipped |",
            "| b | 1 passed, 1 **failed** | 0 passed, 2 **failed** |",
        ] {
            assert!(short.lines().any(|line| line == row), "{row}\n{short}");
        }
    }

    #[test]
    fn what_ran_nowhere_is_named() {
        assert_eq!(table().skipped_everywhere(), ["a::2"]);
        assert_eq!(table().sums(), (2, 3, 3));
    }

    #[test]
    fn pages_keep_what_is_around() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = replaced(&page, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\n\nnew\n\n{END}\nb\n"));
        assert_eq!(replaced(&new, "new\n"), Some(new.clone()));
        assert_eq!(replaced("no marks", "new"), None);
    }
}
