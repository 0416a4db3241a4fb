//! Programs as people write them, with libraries and their start-up: what they ask for is not known beforehand.

use std::process::Command;

use anyhow::{Result, anyhow, ensure};
use probe_tests::probe::in_guest;
use probe_tests::require::own_host;

use super::NOTHING;
use super::harness::{Beyond, Rows, Scene};

/// Memory, files that are there and are not, output in pieces, a child by fork and one by posix_spawn.
const C: &str = r#"
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
    /* Whoever started this may have told it to ignore some, and posix_spawn asks. */
    for (int i = 1; i < 32; i++)
        signal(i, SIG_DFL);
    for (int i = 0; i < 40; i++) {
        char *room = malloc(i % 2 ? 100 : 1 << 20);
        memset(room, i, 100);
        struct stat out;
        stat(i % 3 ? "/proc/self/status" : "/does/not/exist", &out);
        FILE *file = fopen(i % 4 ? "/proc/version" : "/does/not/exist", "r");
        if (file) {
            fgets(room, 100, file);
            fclose(file);
        }
        free(room);
        printf("%d\n", i);
        fflush(stdout);
    }
    if (!fork())
        _exit(getppid() == 0);
    wait(NULL);
    pid_t child;
    char *argv[] = { "nothing", NULL }, *envp[] = { NULL };
    if (posix_spawn(&child, "/does/not/exist", NULL, NULL, argv, envp) == 0)
        wait(NULL);
    return 0;
}
"#;

/// Statically linked C.
#[test]
fn a_static_c_program() -> Result<()> {
    if in_guest() {
        return own_host("a C compiler");
    }
    let scene = Scene::new()?;
    let (comm, path) = (scene.comm("equal"), scene.path("equal"));
    let source = format!("{path}.c");
    std::fs::write(&source, C)?;
    let compiled = Command::new("cc").args(["-static", "-O1", "-w", "-o", &path, &source]).status()?;
    ensure!(compiled.success(), "cc: install gcc and libc6-dev");
    let outcome = scene.measure(&[&path], NOTHING)?;
    let rows = outcome.of(&comm)?;
    let errors: i64 = rows.values().flat_map(|(_, errors)| errors.values()).sum();
    ensure!(rows.len() >= 12 && errors >= 20, "too little to compare: {rows:?}");
    // The child of fork, and that of posix_spawn, which finds nothing to execute.
    let born = |call: &str| rows.get(call).map_or(0, |row| row.0);
    let made: Vec<&str> = ["clone", "clone3", "vfork"].into_iter().filter(|call| born(call) != 0).collect();
    assert_eq!(made.iter().map(|call| born(call)).sum::<i64>(), 2);
    let mut perf = vec![(comm.as_str(), "fork", 1, 0)];
    perf.extend(made.iter().map(|call| (comm.as_str(), *call, born(call), 0)));
    outcome.compare(&[(&comm, &rows)], &Beyond { perf: &perf, ends: 3, born: 2, ..Beyond::default() })
}

/// Threads of a library: when they wait for each other, and for memory, is different each time.
#[test]
fn a_program_with_threads() -> Result<()> {
    let scene = Scene::new()?;
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_workload"), scene.path("equal"))?;
    let outcome = scene.measure(&[&scene.path("equal")], |running| running.tell("threads 8 500\n"))?;
    let comm = scene.comm("equal");
    let rows = outcome.of(&comm)?;
    let count = |call: &str| rows.get(call).map_or(0, |row| row.0);
    assert_eq!((count("getppid"), count("sched_yield"), count("clone3") + count("clone")), (4_000, 4_000, 8));
    let made = if count("clone3") == 0 { "clone" } else { "clone3" };
    let perf = [(comm.as_str(), "fork", 1, 0), (&comm, made, 8, 0)];
    outcome.compare_beside(&[(&comm, &rows)], &[], &Beyond { perf: &perf, ..Beyond::default() })?;
    // Reading orders and answering, starting threads and ending them.
    let calls =
        ["getppid", "sched_yield", made, "read", "write", "openat", "set_robust_list", "rseq", "sigaltstack"];
    outcome.compare_apart(&[(&comm, &rows)], &calls);
    Ok(())
}

/// A shell that starts programs.
#[test]
fn a_shell_script() -> Result<()> {
    if in_guest() {
        return own_host("a shell and its programs");
    }
    let scene = Scene::new()?;
    // By names that nobody else's processes have.
    for name in ["sh", "true", "cat"] {
        std::os::unix::fs::symlink(format!("/bin/{name}"), scene.path(name))?;
    }
    let [sh, yes, cat] = ["sh", "true", "cat"].map(|name| scene.path(name));
    let script = format!(
        "for i in 1 2 3 4 5; do {yes}; done; {cat} /does/not/exist; {cat} /proc/version | {cat}; true"
    );
    let outcome = scene.measure(&[&sh, "-c", &script], NOTHING)?;
    let comms = ["sh", "true", "cat"].map(|name| scene.comm(name));
    let rows = comms.each_ref().map(|comm| outcome.of(comm));
    let [sh, yes, cat] =
        rows.into_iter().collect::<Result<Vec<_>>>()?.try_into().map_err(|_| anyhow!("three"))?;
    let count = |rows: &Rows, call: &str| rows.get(call).map_or(0, |row| row.0);
    assert_eq!([&sh, &yes, &cat].map(|rows| count(rows, "execve")), [1, 5, 3]);
    let all = [(comms[0].as_str(), &sh), (&comms[1], &yes), (&comms[2], &cat)];
    // Which of its children began how is the shell's affair.
    let made = ["clone", "clone3", "fork", "vfork"];
    let born: i64 = made.iter().map(|call| count(&sh, call)).sum();
    assert_eq!(born, 8);
    let perf = [(comms[0].as_str(), "rt_sigreturn", -count(&sh, "rt_sigreturn"), 0)];
    outcome.compare_beside(&all, &made, &Beyond { perf: &perf, born, ..Beyond::default() })?;
    // How often the shell is interrupted by the end of children differs.
    outcome.compare_apart(
        &all,
        &[
            "execve",
            "openat",
            "close",
            "mmap",
            "mprotect",
            "read",
            "write",
            "pread64",
            "access",
            "newfstatat",
            "dup2",
        ],
    );
    Ok(())
}
