//! What the live commands have in common.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use super::output::{StdoutSink, Style, Tee, closing_lines, ended};
use super::stacks::StackSink;
use super::{Failure, block_on};
use crate::config::Config;
use crate::pipeline::{Pipeline, Sink};
use crate::signals::SignalKind;
use crate::telemetry::SelfStats;

/// Shows one signal until the end.
pub(super) fn show(config: &Config, kind: &'static dyn SignalKind) -> Result<ExitCode, Failure> {
    show_with(config, kind, None)
}

/// The same, and what stacks came to; in place of everything else on stdout, if they are wanted there.
pub(super) fn show_with(
    config: &Config,
    kind: &'static dyn SignalKind,
    mut stacks: Option<StackSink>,
) -> Result<ExitCode, Failure> {
    let mut pipeline = Pipeline::start(config, &[kind], false, Arc::new(SelfStats::new()))?;
    let begun = Instant::now();
    block_on(async {
        let is_text = stacks.as_ref().is_some_and(|stacks| stacks.as_text);
        let mut stdout = (!is_text).then(|| StdoutSink::new(config, Style::Live, Some(kind.object().name)));
        let mut sinks: Vec<&mut dyn Sink> = Vec::new();
        sinks.extend(stdout.as_mut().map(|sink| sink as &mut dyn Sink));
        sinks.extend(stacks.as_mut().map(|sink| sink as &mut dyn Sink));
        let result = pipeline.run(&mut Tee(sinks)).await;
        let result = result.and_then(|report| {
            stdout.as_mut().map_or(Ok(()), |sink| sink.close(&report))?;
            Ok(report)
        });
        if let Some(report) = ended(result)? {
            if let Some(stacks) = stacks {
                let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
                stacks.finish(&format!("{host}, {:.1} s", begun.elapsed().as_secs_f64()))?;
            }
            closing_lines(&report);
        }
        Ok(ExitCode::SUCCESS)
    })
}
