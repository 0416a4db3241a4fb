//! Drives the program `workload`: a process that does exactly what it is told.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// The process. It is killed when it is dropped.
#[derive(Debug)]
pub struct Workload {
    child: Child,
    /// None: told to end.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Workload {
    /// Starts `program` (`env!("CARGO_BIN_EXE_workload")`) in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn start(program: &str) -> Result<Self> {
        Self::start_as(Command::new(program))
    }

    /// Starts it by a command of its own, which passes on its stdin and stdout.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn start_as(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("stdout is piped")?);
        Ok(Self { child, orders, answers })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to do something, without waiting until it is done.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn order(&mut self, order: &str) -> Result<()> {
        let orders = self.orders.as_mut().context("it was told to end")?;
        // In one write, so that it takes one read.
        let line = format!("{order}\n");
        orders.write_all(line.as_bytes()).with_context(|| format!("{order}: the workload is gone"))
    }

    /// What it says about the oldest order not heard of yet.
    ///
    /// # Errors
    ///
    /// It failed: its own message is on stderr.
    pub fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("cannot hear the workload")?;
        ensure!(line.ends_with('\n'), "the workload failed");
        Ok(line.trim_end().to_owned())
    }

    /// Tells it to do something, and waits until it is done.
    ///
    /// # Errors
    ///
    /// It failed: its own message is on stderr.
    pub fn tell(&mut self, order: &str) -> Result<String> {
        self.order(order)?;
        self.hear().with_context(|| order.to_owned())
    }

    /// Lets it end by itself, and waits for that.
    ///
    /// # Errors
    ///
    /// It failed.
    pub fn end(mut self) -> Result<()> {
        drop(self.orders.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the workload ended with {status}");
        Ok(())
    }

    /// Kills it, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
