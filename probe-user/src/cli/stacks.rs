//! `probe syscalls --stacks` and `--flamegraph`: what sampled stacks came to, as text on stdout and as a picture in a file.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Failure;
use crate::pipeline::{Flow, Sink};
use crate::series::Snapshot;
use crate::signals::syscalls::Sampled;
use crate::signals::{Event, Summary};
use crate::sink::console::escape;
use crate::stacks::{Output, Picture, Unit, flamegraph};

/// Reasons that are named for addresses without a name.
const REASONS: usize = 5;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Stacks (of calls that work, or of those that --syscall names)")]
pub(super) struct StackArgs {
    /// Sample where calls come from and where they sleep; at the end, folded stacks on stdout in place of tables
    /// (COMM;FUNCTION;…;syscall:NAME;FUNCTION_[k];… WEIGHT). As JSON: slow calls have their stack
    #[arg(long)]
    stacks: bool,
    /// Draw them as a flame graph into this file, at the end
    #[arg(long, value_name = "FILE.svg")]
    flamegraph: Option<PathBuf>,
    /// What a stack weighs: the time of its calls (nanoseconds in text), or their number
    #[arg(long, value_name = "WHAT", default_value = "time")]
    weigh: Weigh,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Weigh {
    /// Time
    Time,
    /// Number of calls
    Calls,
}

impl StackArgs {
    /// What stacks weigh, if any are wanted.
    pub(super) fn unit(&self) -> Option<Unit> {
        let unit = match self.weigh {
            Weigh::Time => Unit::Time,
            Weigh::Calls => Unit::Calls,
        };
        (self.stacks || self.flamegraph.is_some()).then_some(unit)
    }

    /// Where they go. The file is opened now: better than to find out at the end.
    pub(super) fn sink(&self, as_text: bool) -> Result<Option<StackSink>, Failure> {
        let Some(unit) = self.unit() else { return Ok(None) };
        let picture = match &self.flamegraph {
            Some(path) => Some(open(path)?),
            None => None,
        };
        Ok(Some(StackSink { unit, as_text: self.stacks && as_text, picture, sampled: None }))
    }
}

fn open(path: &Path) -> Result<Output, Failure> {
    Output::open(path).map_err(|error| Failure::usage(format!("--flamegraph: {error}")))
}

/// Waits for what stacks came to.
pub(super) struct StackSink {
    unit: Unit,
    /// Whether they are what stdout is for.
    pub(super) as_text: bool,
    picture: Option<Output>,
    sampled: Option<Arc<Sampled>>,
}

impl Sink for StackSink {
    fn wants_events(&self) -> bool {
        false
    }

    fn event(&mut self, _event: &Event) -> io::Result<Flow> {
        Ok(Flow::More)
    }

    fn interval(&mut self, summaries: &[Summary], _snapshot: &Snapshot<'_>) -> io::Result<()> {
        for summary in summaries {
            match summary {
                Summary::Syscalls(summary) if summary.sampled.is_some() => {
                    self.sampled.clone_from(&summary.sampled);
                }
                Summary::Syscalls(_) | Summary::Tcp(_) | Summary::Dns(_) => {}
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StackSink {
    /// Writes the text and the picture, and says on stderr what has no name.
    pub(super) fn finish(self, subtitle: &str) -> Result<(), Failure> {
        let Self { unit, as_text, picture, sampled } = self;
        let Some(sampled) = sampled else {
            return Err(Failure::running(anyhow::anyhow!(
                "no stack was sampled: none of the chosen calls was made (choose others, or wait for longer)"
            )));
        };
        if as_text {
            let mut out = io::BufWriter::new(io::stdout().lock());
            match sampled.folded.write(unit, &mut out).and_then(|()| out.flush()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                outcome => outcome.map_err(Failure::running)?,
            }
        }
        if let Some(file) = picture {
            let title = match unit {
                Unit::Time => "System calls by time",
                Unit::Calls => "System calls by number",
            };
            let picture = Picture { title, subtitle, unit, min_width: Picture::MIN_WIDTH };
            let svg = flamegraph(&sampled.folded, &picture).map_err(Failure::running)?;
            file.write(&svg).map_err(Failure::running)?;
        }
        explain(&mut io::stderr().lock(), &sampled).map_err(Failure::running)
    }
}

fn explain(out: &mut dyn Write, sampled: &Sampled) -> io::Result<()> {
    let Sampled { folded, unresolved, remedy, lost } = sampled;
    writeln!(
        out,
        "stacks: {} different ones stand for {} calls; {} of {} functions have no name",
        folded.stacks(),
        folded.total().calls,
        unresolved.without_name(),
        unresolved.addresses()
    )?;
    for (reason, count) in unresolved.reasons().into_iter().take(REASONS) {
        writeln!(out, "  {count}: {}", escape(&reason.to_string()))?;
    }
    if let Some(remedy) = remedy {
        writeln!(out, "  {remedy}")?;
    }
    if *lost != 0 {
        writeln!(out, "lost: {lost} stacks came faster than they could be named")?;
    }
    Ok(())
}
