//! `probe doctor`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};

use super::{Failure, defaults};
use crate::config::Output;
use crate::doctor::{Check, Findings, Verdict, examine};
use crate::sink::console::escape;

/// Columns that the table fits into.
const COLUMNS: u16 = 120;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 every signal can run, 3 this kernel cannot do it, 4 privileges are missing.\n\n\
                  Example: probe doctor -o json | jq 'select(.status != \"ok\")'"
)]
pub(super) struct Args {
    /// Form of the output
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Output,
    /// BTF file to use where the kernel brings none in /sys/kernel/btf/vmlinux
    #[arg(long, value_name = "FILE")]
    btf: Option<PathBuf>,
}

/// Runs it.
pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    super::logging::start(0, super::logging::LogFormat::Text)?;
    // No interval is waited for.
    let mut config = defaults(std::time::Duration::from_secs(1))?;
    config.btf = args.btf;
    let findings = examine(&config);
    let mut out = io::stdout().lock();
    let written = match args.output {
        Output::Table => table(&mut out, &findings),
        Output::Json => json(&mut out, &findings.checks),
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::running(error)),
        _ => Ok(ExitCode::from(match findings.verdict() {
            Verdict::Runs => 0,
            Verdict::Kernel => 3,
            Verdict::Privileges => 4,
        })),
    }
}

fn json(out: &mut dyn Write, checks: &[Check]) -> io::Result<()> {
    for check in checks {
        serde_json::to_writer(&mut *out, check)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn table(out: &mut dyn Write, findings: &Findings) -> io::Result<()> {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(COLUMNS);
    table.set_header(["CHECK", "STATUS", "DETAIL"]);
    let mut said = None;
    for Check { check, status, detail, remedy } in &findings.checks {
        let mut detail = escape(detail);
        // What fixes a signal fixes its programs: not said again under each.
        let again = std::mem::replace(&mut said, remedy.as_ref()) == remedy.as_ref();
        if let (Some(remedy), false) = (remedy, again) {
            detail.push_str("\n→ ");
            detail.push_str(&escape(remedy));
        }
        table.add_row([escape(check), status.to_string(), detail]);
    }
    if let Some(names) = table.column_mut(0) {
        names.set_constraint(ColumnConstraint::ContentWidth).set_padding((0, 1));
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out)?;
    for (verdict, can) in [
        (Verdict::Runs, "can run"),
        (Verdict::Privileges, "cannot run: privileges are missing"),
        (Verdict::Kernel, "cannot run on this kernel, or not as it is set up"),
    ] {
        let signals: Vec<&str> = findings
            .verdicts
            .iter()
            .filter(|(_, found)| *found == verdict)
            .map(|(signal, _)| *signal)
            .collect();
        if !signals.is_empty() {
            writeln!(out, "{} {can}", signals.join(", "))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    fn findings() -> Findings {
        let check = Check {
            check: "program syscalls/sched_process_exit".to_owned(),
            status: Status::Unavailable,
            detail: "the kernel refused \u{1b}[31m: ".repeat(20),
            remedy: Some("boot another kernel".to_owned()),
        };
        Findings { checks: vec![check], verdicts: vec![("syscalls", Verdict::Kernel)] }
    }

    #[test]
    fn the_table_fits_and_is_safe() {
        let mut out = Vec::new();
        table(&mut out, &findings()).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= usize::from(COLUMNS)), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(text.contains("→ boot another kernel"), "{text}");
    }

    #[test]
    fn one_object_a_line() {
        let mut out = Vec::new();
        json(&mut out, &findings().checks).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value.get("status").and_then(|status| status.as_str()), Some("unavailable"));
    }
}
