//! `cargo xtask setup`: install the pinned BPF toolchain.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, bail, ensure};

use crate::{
    process::{self, is_root, repo_root, say, show},
    toolchain,
};

/// `ip` and `nft`; real DNS servers, real resolvers, and who else looks at them; who else counts system calls; who reads pages.
const TEST_TOOLS: [&str; 12] = [
    "iproute2",
    "nftables",
    "dnsmasq-base",
    "unbound",
    "bind9-dnsutils",
    "tshark",
    "python3",
    "python3-venv",
    "strace",
    "linux-perf",
    "prometheus",
    "docker.io",
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only print the commands that are still missing here
    #[arg(long)]
    print: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = repo_root()?;
    if args.print {
        for command in missing(&root) {
            say(show_with_env(&command));
        }
        return Ok(());
    }
    ensure(&root)?;
    let versions = toolchain::installed(&root)?;
    say(format_args!(
        "BPF toolchain ready: {}; bpf-linker {}; LLVM {}",
        versions.rustc, versions.bpf_linker, versions.llvm
    ));
    Ok(())
}

/// Installs what is missing and nothing else, so that CI can call it every time.
pub(crate) fn ensure(root: &Path) -> Result<()> {
    let commands = missing(root);
    if commands.iter().any(needs_root) && !is_root() {
        let line = commands.iter().filter(|c| needs_root(c)).map(show).collect::<Vec<_>>().join(" && ");
        bail!(
            "only root installs packages. Run this line, then `cargo xtask setup` again:\n\n    sudo sh -c '{line}'\n"
        );
    }
    for mut command in commands {
        say(format_args!("+ {}", show_with_env(&command)));
        process::run(&mut command)?;
    }
    Ok(())
}

/// The commands that bring this machine to the pinned toolchain; none when it is there.
fn missing(root: &Path) -> Vec<Command> {
    let mut commands = missing_packages(&toolchain::APT_PACKAGES);
    if toolchain::bpf_linker_version(root).ok().as_deref() != Some(toolchain::BPF_LINKER) {
        let mut install = toolchain::cargo();
        install
            .env("LLVM_PREFIX", toolchain::LLVM_PREFIX)
            .args(["install", "bpf-linker", "--version", toolchain::BPF_LINKER, "--locked", "--force"])
            .args(["--no-default-features", "--features", toolchain::BPF_LINKER_LLVM, "--root"])
            .arg(toolchain::tools_dir(root));
        commands.push(install);
    }
    commands
}

/// The commands that install packages that are not there.
pub(crate) fn missing_packages(packages: &[&str]) -> Vec<Command> {
    let packages = packages.iter().filter(|package| !is_installed(package)).collect::<Vec<_>>();
    if packages.is_empty() {
        return Vec::new();
    }
    let mut update = Command::new("apt-get");
    update.arg("update");
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["install", "-y", "--no-install-recommends"]).args(packages);
    vec![update, install]
}

/// Installs Debian's Prometheus, which has promtool. Where systemd runs, its package starts a server as it is installed, which nobody
/// asked for: there, whoever wants the check installs it themselves.
pub(crate) fn ensure_prometheus() -> Result<()> {
    let commands = missing_packages(&["prometheus"]);
    ensure!(
        commands.is_empty() || is_root() && !Path::new("/run/systemd/system").exists(),
        "promtool is missing: apt-get install prometheus, then `systemctl disable --now prometheus prometheus-node-exporter`"
    );
    for mut command in commands {
        say(format_args!("+ {}", show_with_env(&command)));
        process::run(&mut command)?;
    }
    Ok(())
}

/// Installs what live tests call, as root; where that does not work, they say what they miss.
pub(crate) fn ensure_test_tools(root: &Path) {
    let install = |mut command: Command| {
        say(format_args!("+ {}", show_with_env(&command)));
        process::run(&mut command).inspect_err(|error| say(format_args!("{error:#}"))).is_ok()
    };
    for command in missing_packages(&TEST_TOOLS) {
        install(command);
    }
    // Its versions are noted beside it once it is whole.
    let (venv, pins) = (toolchain::tools_dir(root).join("otlp-decoder"), toolchain::OTLP_DECODER.join("\n"));
    let note = venv.join("pins");
    if fs::read_to_string(&note).is_ok_and(|noted| noted == pins) {
        return;
    }
    let mut create = Command::new("python3");
    create.args(["-m", "venv"]).arg(&venv);
    let mut fill = Command::new(venv.join("bin/pip"));
    fill.args(["install", "--quiet"]).args(toolchain::OTLP_DECODER);
    if install(create)
        && install(fill)
        && let Err(error) = fs::write(&note, pins)
    {
        say(format_args!("{}: {error}", note.display()));
    }
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .output()
        .is_ok_and(|query| query.stdout == b"installed")
}

fn needs_root(command: &Command) -> bool {
    command.get_program() == "apt-get"
}

/// With the variables that the command sets itself, so that the printed line does the same.
fn show_with_env(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={} ", name.to_string_lossy(), value?.to_string_lossy())))
        .collect::<String>();
    variables + &show(command)
}
