//! What the live commands have in common.

use std::process::ExitCode;
use std::sync::Arc;

use super::output::{StdoutSink, Style, closing_lines, ended};
use super::{Failure, block_on};
use crate::config::Config;
use crate::pipeline::Pipeline;
use crate::signals::SignalKind;
use crate::telemetry::SelfStats;

/// Shows one signal until the end.
pub(super) fn show(config: &Config, kind: &'static dyn SignalKind) -> Result<ExitCode, Failure> {
    let mut pipeline = Pipeline::start(config, &[kind], false, Arc::new(SelfStats::new()))?;
    block_on(async {
        let mut sink = StdoutSink::new(config, Style::Live, Some(kind.object().name));
        let result = pipeline.run(&mut sink).await;
        let result = result.and_then(|report| sink.close(&report).map(|()| report));
        if let Some(report) = ended(result)? {
            closing_lines(&report);
        }
        Ok(ExitCode::SUCCESS)
    })
}
