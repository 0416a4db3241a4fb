//! What every task needs: where the repository is, how to run a command, where to print.

use std::{
    env,
    fmt::Display,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Prints one line. A closed pipe (`| head`) is no reason for a task to die half-way.
pub(crate) fn say(line: impl Display) {
    let mut stdout = io::stdout().lock();
    let _closed = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// The repository's root. Asked at run time first: a target directory may outlive the tree it came from.
pub(crate) fn repo_root() -> Result<PathBuf> {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let Some(root) = Path::new(&xtask).parent() else {
        bail!("{} has no parent: run this as `cargo xtask` inside the repository", xtask.display());
    };
    root.canonicalize().with_context(|| format!("cannot find the repository at {}", root.display()))
}

/// The cargo that started this task, so that its children use the same toolchain.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Whether this process may install packages and load BPF programs.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs to the end with the terminal's output; an exit code other than 0 is an error that names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("cannot start `{}`", show(command)))?;
    ensure!(status.success(), "`{}` failed: {status}", show(command));
    Ok(())
}

/// Runs to the end and returns its trimmed standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", show(command)))?;
    ensure!(output.status.success(), "`{}` failed: {}", show(command), output.status);
    let text =
        String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", show(command)))?;
    Ok(text.trim().to_owned())
}

/// The command as a user would type it.
pub(crate) fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
