//! Calls of the 32-bit table. perf reads their numbers as those of the 64-bit one: what it calls `semget` is getppid.

use anyhow::{Result, ensure};
use probe_tests::elf::{Abi, Program};
use probe_tests::probe::in_guest;
use probe_tests::require::own_kernel;

use super::harness::{Beyond, Scene, rows};
use super::{NOTHING, program};

/// arch/x86/entry/syscalls/syscall_32.tbl
const WRITE: i64 = 4;
const CLOSE: i64 = 6;
const WAITPID: i64 = 7;
const GETPID: i64 = 20;
const GETPPID: i64 = 64;
const LLSEEK: i64 = 140;
const UGETRLIMIT: i64 = 191;
const MMAP2: i64 = 192;
const EXIT_GROUP: i64 = 252;
const CLOCK_GETTIME64: i64 = 403;

/// Whether this kernel runs 32-bit programs at all. Those of the virtual machines do.
fn has_32_bits(scene: &Scene) -> Result<bool> {
    let mut it = Program::new(Abi::I386);
    it.call(EXIT_GROUP, &[0]);
    scene.write("try", &it)?;
    let found = match std::process::Command::new(scene.path("try")).status() {
        Ok(status) => status.success(),
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => false,
        Err(error) => return Err(error.into()),
    };
    if !found {
        ensure!(!in_guest(), "this kernel should run 32-bit programs");
        own_kernel("32-bit programs: in kernels with CONFIG_IA32_EMULATION")?;
    }
    Ok(found)
}

/// A 32-bit program: what its calls are called is to be seen from its table alone.
fn write_32(scene: &Scene, name: &str) -> Result<()> {
    let mut it = Program::new(Abi::I386);
    it.times(300, |it| it.call(GETPPID, &[]));
    it.times(30, |it| it.call(CLOSE, &[-1]));
    it.times(2, |it| it.call(WAITPID, &[-1, 0, 0]));
    it.call(GETPID, &[]);
    it.call(LLSEEK, &[-1, 0, 0, 0, 0]);
    it.call(UGETRLIMIT, &[0, 8]);
    it.call(MMAP2, &[0, 4096, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1]);
    it.call(CLOCK_GETTIME64, &[1, 8]);
    it.call(EXIT_GROUP, &[0]);
    scene.write(name, &it)
}

/// Its rows but execve, which is a call of the 64-bit program that it was.
const ROWS_32: [super::harness::Row<'static>; 8] = [
    ("getppid", 300, &[]),
    ("close", 30, &[("EBADF", 30)]),
    ("waitpid", 2, &[("ECHILD", 2)]),
    ("getpid", 1, &[]),
    ("_llseek", 1, &[("EBADF", 1)]),
    ("ugetrlimit", 1, &[("EFAULT", 1)]),
    ("mmap2", 1, &[]),
    ("clock_gettime64", 1, &[("EFAULT", 1)]),
];

/// What perf makes of [`ROWS_32`]. The 64-bit table has no 403; execve returns as 11 of the 32-bit table.
const PERF_32: [(&str, i64, i64); 15] = [
    ("getppid", -300, 0),
    ("semget", 300, 0),
    ("close", -30, -30),
    ("lstat", 30, 30),
    ("waitpid", -2, -2),
    ("poll", 2, 2),
    ("getpid", -1, 0),
    ("writev", 1, 0),
    ("_llseek", -1, -1),
    ("getpriority", 1, 1),
    ("ugetrlimit", -1, -1),
    ("getxattr", 1, 1),
    ("mmap2", -1, 0),
    ("lgetxattr", 1, 0),
    ("clock_gettime64", -1, -1),
];

/// What perf makes of the calls of [`ROWS_32`] and of the execve before them, whose end it reads by the 64-bit table.
fn perf_of_program(comm: &str) -> Vec<(&str, &'static str, i64, i64)> {
    const OF_EXECVE: [(&str, i64, i64); 3] = [("execve", -1, 0), ("munmap", 1, 0), ("fork", 1, 0)];
    PERF_32.iter().chain(&OF_EXECVE).map(|(call, calls, errors)| (comm, *call, *calls, *errors)).collect()
}

#[test]
fn a_32_bit_binary() -> Result<()> {
    let scene = Scene::new()?;
    if !has_32_bits(&scene)? {
        return Ok(());
    }
    let comm = scene.comm("equal");
    write_32(&scene, "equal")?;
    let outcome = scene.measure(&[&scene.path("equal")], NOTHING)?;
    let mut want = rows(&ROWS_32);
    want.extend(rows(&[("execve", 1, &[])]));
    let perf = perf_of_program(&comm);
    outcome.compare(&[(&comm, &want)], &Beyond { perf: &perf, ends: 1, ..Beyond::default() })
}

/// Calls before the execve are those of the 64-bit table, and stay it, though some have the numbers of calls after it: 64-bit
/// lstat is 6, as 32-bit close is.
#[test]
fn a_64_bit_process_that_becomes_a_32_bit_one() -> Result<()> {
    let scene = Scene::new()?;
    if !has_32_bits(&scene)? {
        return Ok(());
    }
    let comm = scene.comm("other");
    write_32(&scene, "other")?;
    let mut it = program();
    it.times(20, |it| it.call(libc::SYS_getppid, &[]));
    it.times(5, |it| it.call(libc::SYS_lstat, &[8, 8]));
    it.exec(libc::SYS_execve, &[&scene.path("other")]);
    scene.write("equal", &it)?;
    let outcome = scene.measure(&[&scene.path("equal")], NOTHING)?;
    let mut want = rows(&ROWS_32);
    want.extend(rows(&[("execve", 2, &[]), ("getppid", 320, &[]), ("lstat", 5, &[("EFAULT", 5)])]));
    let perf = perf_of_program(&comm);
    outcome.compare(&[(&comm, &want)], &Beyond { perf: &perf, ends: 1, ..Beyond::default() })
}

/// `int $0x80` in a 64-bit process.
#[test]
fn a_64_bit_process_that_makes_32_bit_calls() -> Result<()> {
    let scene = Scene::new()?;
    if !has_32_bits(&scene)? {
        return Ok(());
    }
    let comm = scene.comm("equal");
    let mut it = program();
    let text = it.text(".");
    it.times(50, |it| it.call(libc::SYS_getppid, &[]));
    it.times(70, |it| it.call_32(GETPPID, &[]));
    it.times(10, |it| it.call_32(CLOSE, &[-1]));
    it.times(5, |it| it.call(libc::SYS_lstat, &[8, 8]));
    it.call_32(WRITE, &[1, text, 1]);
    it.call(libc::SYS_exit_group, &[0]);
    scene.write("equal", &it)?;
    let outcome = scene.measure(&[&scene.path("equal")], NOTHING)?;
    let want = rows(&[
        ("execve", 1, &[]),
        ("getppid", 120, &[]),
        ("close", 10, &[("EBADF", 10)]),
        ("lstat", 5, &[("EFAULT", 5)]),
        ("write", 1, &[]),
    ]);
    let perf = [
        (comm.as_str(), "fork", 1, 0),
        (&comm, "getppid", -70, 0),
        (&comm, "semget", 70, 0),
        (&comm, "close", -10, -10),
        (&comm, "lstat", 10, 10),
        (&comm, "write", -1, 0),
        (&comm, "stat", 1, 0),
    ];
    outcome.compare(&[(&comm, &want)], &Beyond { perf: &perf, ends: 1, ..Beyond::default() })
}
