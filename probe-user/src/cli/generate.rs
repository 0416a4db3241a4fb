//! What is made from the definition of the command line: completions, and manual pages.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Failure};

/// What `probe completions` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: probe completions bash > /etc/bash_completion.d/probe")]
pub(super) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

/// What `probe man` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: probe man /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// An existing directory for probe.1, probe-run.1 and so on
    directory: PathBuf,
}

/// Prints the script.
pub(super) fn completions(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "probe", &mut script);
    match io::stdout().lock().write_all(&script) {
        // Who closes it has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::running(error)),
        Ok(()) | Err(_) => Ok(ExitCode::SUCCESS),
    }
}

/// Writes a page for probe, and one for each subcommand that help shows.
pub(super) fn man(args: &ManArgs) -> Result<ExitCode, Failure> {
    for (name, page) in pages().map_err(Failure::running)? {
        let path = args.directory.join(name);
        std::fs::write(&path, page)
            .map_err(|error| Failure::running(format_args!("{}: {error}", path.display())))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Their files' names, and what is in them.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    // Names in full (`probe-run`) are given out when it is built.
    let mut all = Cli::command().disable_help_subcommand(true);
    all.build();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set());
    std::iter::once(&all).chain(shown).map(page).collect()
}

fn page(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let man = clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).manual("probe");
    let mut page = Vec::new();
    man.render(&mut page)?;
    let file = Path::new(&name).with_extension("1").display().to_string();
    Ok((file, page))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_command_has_a_page_that_names_its_flags() {
        let pages = pages().unwrap();
        let command = Cli::command();
        let shown = || command.get_subcommands().filter(|command| !command.is_hide_set());
        assert_eq!(pages.len(), 1 + shown().count());
        for command in shown() {
            let file = format!("probe-{}.1", command.get_name());
            let page = pages.iter().find(|(name, _)| *name == file).map(|(_, page)| page);
            let page = String::from_utf8(page.unwrap().clone()).unwrap();
            for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
                // As groff wants it: a hyphen that is one.
                let flag = format!("\\-\\-{}", flag.replace('-', "\\-"));
                assert!(page.contains(&flag), "{file}: {flag}");
            }
            assert!(page.contains("Example: "), "{file}");
        }
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "probe", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            assert!(script.contains("prometheus-listen"), "{shell}");
        }
    }
}
