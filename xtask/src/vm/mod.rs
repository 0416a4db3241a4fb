//! `cargo xtask vm`: the live tests on other kernels, in virtual machines, and the table of all.

mod apt;
mod initramfs;
mod kernels;
mod qemu;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use self::{
    kernels::{Kernel, SERIES},
    qemu::{Machine, Qemu},
    table::Table,
};
use crate::{
    live::{self, Ended, Live, Results},
    process::{is_root, repo_root, say},
    protocol::{IN_GUEST, Outcome, Plan, Suite},
};

/// A test that takes longer in an emulated machine hangs.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Where one machine differs: more possible CPUs than are online, as on hosts that can take more.
const MANY_CPUS: (&str, u32) = ("6.1", 16);
/// Suites whose subject is user space, whatever the kernel: of the guests, the oldest alone runs them.
const OF_USER_SPACE: [&str; 8] =
    ["commands", "config", "kubelet", "logs", "notify", "otlp", "prometheus", "spool"];
/// Tells the tests how many CPUs are possible.
const POSSIBLE_CPUS: &str = "PROBE_TEST_POSSIBLE_CPUS";
/// The running kernel's column.
const HOST: &str = "host";
/// Pages with the table: whole, and in short.
const FULL_PAGE: &str = "docs/kernels.md";
const SHORT_PAGE: &str = "README.md";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Series of Debian kernels; `host` is the running one
    #[arg(long, value_name = "SERIES", value_delimiter = ',', default_values_t = all())]
    kernel: Vec<String>,
    /// Only tests whose name contains this
    #[arg(long, value_name = "NAME")]
    test: Option<String>,
    /// Instead of tests, run this there: 'probe doctor', 'probe run --duration 10s'
    #[arg(long, value_name = "COMMAND", conflicts_with = "test")]
    exec: Option<String>,
    /// Fetch the newest kernels again
    #[arg(long)]
    refresh: bool,
    /// Machines at a time
    #[arg(long, value_name = "N", default_value_t = 2)]
    jobs: usize,
    /// Write the table into README.md and docs/kernels.md
    #[arg(long, conflicts_with_all = ["test", "exec"])]
    write: bool,
}

/// Every column of the table.
fn all() -> Vec<String> {
    SERIES.into_iter().chain([HOST]).map(String::from).collect()
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = repo_root()?;
    let directory = directory(&root);
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let series = args.kernel.iter().filter(|series| *series != HOST).cloned().collect::<Vec<_>>();
    let kernels = kernels::obtain(&directory, &series, args.refresh)?;
    let qemu = Qemu::obtain(&directory)?;
    let live = Live::build(&root)?;
    let mut plan = live.plan(args.test.as_deref())?;
    if let Some(command) = &args.exec {
        plan.suites.clear();
        plan.command = command.split_whitespace().map(str::to_owned).collect();
    }
    let tests = live::names(&plan).collect::<Vec<_>>();
    ensure!(
        args.exec.is_some() || !tests.is_empty(),
        "no live test has {:?} in its name",
        args.test.as_deref().unwrap_or("")
    );
    let with_host = args.exec.is_none() && args.kernel.iter().any(|series| series == HOST);
    let host = if with_host { Some(host_results(&root, &live, &plan)?) } else { None };

    plan.timeout_s = TIMEOUT.as_secs();
    plan.second_try = true;
    plan.env.extend([(IN_GUEST.into(), "1".into()), ("PATH".into(), "/bin".into())]);
    say(format_args!("==== {} tests on each of {} kernels; {}", tests.len(), kernels.len(), qemu.version()?));
    let start = Instant::now();
    let columns = boot_all(&directory, &kernels, &qemu, &live, &plan, args.jobs.max(1), args.test.is_none())?;
    say(format_args!("---- {:.1} s", start.elapsed().as_secs_f64()));
    if args.exec.is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    let columns = columns.into_iter().chain(host.map(|results| (HOST.to_owned(), results))).collect();
    conclude(&root, args, columns, tests)
}

/// Prints the table, and judges.
fn conclude(
    root: &Path,
    args: &Args,
    columns: Vec<(String, Results)>,
    tests: Vec<String>,
) -> Result<ExitCode> {
    for (title, results) in &columns {
        say(format_args!("{title}: {}", results.kernel));
        for (name, _) in results.tests.iter().filter(|(_, ended)| ended.retried) {
            say(format_args!("    at the second try: {name}"));
        }
    }
    let table = Table::new(columns, tests.into_iter());
    say(table.full());
    let (passed, skipped, mut failed) = table.sums();
    let nowhere = table.skipped_everywhere();
    for test in &nowhere {
        say(format_args!("{test} was skipped on every kernel: what it tests is tested nowhere"));
    }
    failed += nowhere.len();
    let whole = args.test.is_none() && args.kernel == all();
    if whole && failed == 0 {
        for (page, text) in [(FULL_PAGE, table.full()), (SHORT_PAGE, table.short())] {
            if table::put(&root.join(page), &text, args.write)? && !args.write {
                say(format_args!("{page} has another table: run `cargo xtask vm --write`"));
                failed += 1;
            }
        }
    }
    if skipped > 0 {
        say(format_args!("{skipped} skipped, each for the reason given"));
    }
    say(format_args!("{passed} passed, {failed} failed"));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Boots every kernel, a few at a time.
fn boot_all(
    directory: &Path,
    kernels: &[Kernel],
    qemu: &Qemu,
    live: &Live,
    plan: &Plan,
    jobs: usize,
    every: bool,
) -> Result<Vec<(String, Results)>> {
    let base = initramfs::base(live, &directory.join("stripped"))?;
    // The newest first: it takes longest.
    let waiting = Mutex::new(kernels.iter().rev());
    let columns = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let workers = (0..jobs.min(kernels.len()))
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(kernel) = next else { return Ok(()) };
                        let results = boot(directory, kernel, qemu, &base, plan, every)?;
                        let column = (kernel.series.clone(), results);
                        columns.lock().unwrap_or_else(PoisonError::into_inner).push(column);
                    }
                })
            })
            .collect::<Vec<_>>();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let mut columns = columns.into_inner().unwrap_or_else(PoisonError::into_inner);
    columns.sort_by_key(|(series, _results)| kernels.iter().position(|kernel| kernel.series == *series));
    Ok(columns)
}

/// Takes the suites of user space out of a plan. Returns their tests as skipped.
fn leave_out(plan: &mut Plan) -> Results {
    let is_of_user_space = |suite: &Suite| OF_USER_SPACE.contains(&suite.name.as_str());
    let (left_out, kept) = std::mem::take(&mut plan.suites).into_iter().partition(is_of_user_space);
    plan.suites = kept;
    let left_out = Plan { suites: left_out, ..Plan::default() };
    let reason = format!("user space is its subject: it runs on {} and on hosts", SERIES[0]);
    let skipped =
        || Ended { outcome: Outcome::Skipped { reason: reason.clone() }, seconds: 0.0, retried: false };
    let tests = live::names(&left_out).map(|name| (name, skipped())).collect();
    Results { kernel: String::new(), tests }
}

fn boot(
    directory: &Path,
    kernel: &Kernel,
    qemu: &Qemu,
    base: &[u8],
    plan: &Plan,
    every: bool,
) -> Result<Results> {
    let Kernel { series, vmlinuz, modules } = kernel;
    let possible_cpus = if series == MANY_CPUS.0 { MANY_CPUS.1 } else { 2 };
    let mut plan = plan.clone();
    plan.env.insert(POSSIBLE_CPUS.into(), possible_cpus.to_string());
    // Asked for by name, or alone, they run anywhere.
    let left_out = if every && series != SERIES[0] { leave_out(&mut plan) } else { Results::default() };
    let initrd = directory.join(format!("{series}.cpio"));
    initramfs::write(&initrd, base, &plan, modules)?;
    let mut results = qemu.run(&Machine {
        vmlinuz,
        initrd: &initrd,
        possible_cpus,
        timeout: TIMEOUT,
        console: &directory.join(format!("{series}.console")),
        prefix: &format!("[{series}] "),
    })?;
    results.tests.extend(left_out.tests);
    Ok(results)
}

fn directory(root: &Path) -> PathBuf {
    root.join("target/vm")
}

/// What `cargo xtask test` found on this host, with what it ran.
#[derive(Deserialize, Serialize)]
struct HostResults {
    programs: Vec<(PathBuf, u64, u128)>,
    results: Results,
}

/// Keeps results for the host's column.
pub(crate) fn keep_host_results(root: &Path, live: &Live, results: &Results) -> Result<()> {
    let kept = HostResults { programs: identity(live)?, results: results.clone() };
    let path = directory(root).join("host.json");
    fs::create_dir_all(directory(root))?;
    fs::write(&path, serde_json::to_vec(&kept)?).with_context(|| path.display().to_string())
}

/// The host's column: from the last `cargo xtask test` of the same programs, or by running the tests now.
fn host_results(root: &Path, live: &Live, plan: &Plan) -> Result<Results> {
    let path = directory(root).join("host.json");
    let kept = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<HostResults>(&text).ok());
    if let Some(kept) = kept
        && kept.programs == identity(live)?
        && kept.results.missing(plan).is_empty()
    {
        say("==== the host's results are those of the last `cargo xtask test`");
        return Ok(kept.results);
    }
    ensure!(is_root(), "live tests load BPF programs, which needs root on the host");
    say("==== live tests on the host");
    live.run_on_host(root, plan)
}

/// Path, size and time of every program: others give other results.
fn identity(live: &Live) -> Result<Vec<(PathBuf, u64, u128)>> {
    let of = |path: &Path| {
        let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
        Ok((path.to_owned(), metadata.len(), modified))
    };
    live.programs().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{live::Ended, protocol::Outcome};

    #[test]
    fn the_hosts_results_are_read_back() {
        let tests = [
            ("a::b".to_owned(), Ended { outcome: Outcome::Passed, seconds: 1.5, retried: false }),
            (
                "a::c".to_owned(),
                Ended { outcome: Outcome::Failed { output: "x\n".into() }, seconds: 0.0, retried: true },
            ),
        ];
        let results = Results { kernel: "6.18".into(), tests: tests.into_iter().collect() };
        let kept = HostResults { programs: vec![("/x".into(), 7, 1_795_324_246_248_454_111)], results };
        let text = serde_json::to_vec(&kept).unwrap();
        let read: HostResults = serde_json::from_slice(&text).unwrap();
        assert_eq!(serde_json::to_vec(&read).unwrap(), text);
    }
}
