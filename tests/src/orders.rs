//! The other side of [`crate::workload`]: a program that does what it is told.

use std::fmt::Display;
use std::io::{BufRead as _, Write as _};

use anyhow::{Context as _, Result};

/// Takes orders from stdin, a line each, until it ends; each is answered by a line on stdout.
///
/// # Errors
///
/// One that cannot be done.
pub fn obey<A: Display>(mut do_it: impl FnMut(&[&str]) -> Result<A>) -> Result<()> {
    let mut answers = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = do_it(&words).with_context(|| format!("cannot do {line:?}"))?;
        writeln!(answers, "{answer}")?;
        answers.flush()?;
    }
    Ok(())
}
