//! `probe syscalls` beside `strace -c`, `perf trace -s` and `perf stat`: the same calls, to the call, and the same errors.
//!
//! Where the others count something else, it is by an exact number, for a reason that is said:
//!
//! - a call counts when it returns. The kernel's tracepoints tell of the return of a thread that dies in a call, too, with the
//!   error that would have had it restarted; strace is not told of it;
//! - perf counts the first return of a thread or process as one more call of the kind that made it;
//! - perf knows a call by the number that is in the registers as it returns. There rt_sigreturn has none, and is not counted, and
//!   execveat is execve; and it reads all numbers as those of the 64-bit table.
//!
//! In virtual machines, which have neither strace nor perf, what the programs are known to do is the measure.

#[cfg(target_arch = "x86_64")]
#[path = "syscall_equality/compat.rs"]
mod compat;
#[path = "syscall_equality/harness.rs"]
mod harness;
#[path = "syscall_equality/real.rs"]
mod real;

use anyhow::{Result, ensure};
use harness::{Beyond, Running, Scene, rows};
use probe_tests::elf::{Abi, Program};
use rustix::process::Signal;

const NOTHING: fn(&mut Running) -> Result<()> = |_| Ok(());
const THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;
const SECOND_NS: i64 = 1_000_000_000;

fn program() -> Program {
    Program::new(Abi::X86_64)
}

/// A `struct timespec`.
fn time(it: &mut Program, ns: i64) -> i32 {
    it.data(&[(ns / SECOND_NS).to_le_bytes(), (ns % SECOND_NS).to_le_bytes()].concat())
}

/// Reads one octet: waits for the test.
fn read(it: &mut Program) {
    let room = it.data(&[0]);
    it.call(libc::SYS_read, &[0, room, 1]);
}

/// Tells the test.
fn write(it: &mut Program) {
    let text = it.text(".");
    it.call(libc::SYS_write, &[1, text, 1]);
}

/// Another program, for processes to become: `getpid` 30 times, and an error.
fn write_other(scene: &Scene) -> Result<()> {
    let mut other = program();
    other.times(30, |it| it.call(libc::SYS_getpid, &[]));
    other.call(libc::SYS_close, &[-1]);
    other.call(libc::SYS_exit_group, &[0]);
    scene.write("other", &other)
}

/// No library, no loader; errors of two kinds, and time that passes.
#[test]
fn a_static_binary() -> Result<()> {
    let scene = Scene::new()?;
    let comm = scene.comm("equal");
    let mut it = program();
    let missing = it.text("/does/not/exist");
    let pause = time(&mut it, SECOND_NS / 100);
    it.times(300, |it| {
        it.call(libc::SYS_getppid, &[]);
        it.times(3, |it| it.call(libc::SYS_close, &[-1]));
    });
    it.times(40, |it| it.call(libc::SYS_openat, &[libc::AT_FDCWD, missing, libc::O_RDONLY, 0]));
    it.call(libc::SYS_openat, &[libc::AT_FDCWD, 8, libc::O_RDONLY, 0]);
    it.times(20, |it| it.call(libc::SYS_nanosleep, &[pause, 0]));
    it.call(libc::SYS_exit_group, &[0]);
    scene.write("equal", &it)?;
    let outcome = scene.measure(&[&scene.path("equal")], NOTHING)?;
    let want = rows(&[
        ("execve", 1, &[]),
        ("getppid", 300, &[]),
        ("close", 900, &[("EBADF", 900)]),
        ("openat", 41, &[("ENOENT", 40), ("EFAULT", 1)]),
        ("nanosleep", 20, &[]),
    ]);
    outcome.compare(
        &[(&comm, &want)],
        &Beyond { perf: &[(&comm, "fork", 1, 0)], ends: 1, ..Beyond::default() },
    )?;
    // Calls that take long next to what it takes to look at them: strace stops the process twice in each.
    let (probe, perf, strace) = outcome.seconds(&comm, "nanosleep");
    ensure!(probe >= 0.2, "{probe}");
    for (name, seconds, part) in [("perf", perf, 0.01), ("strace", strace, 0.1)] {
        if let Some(seconds) = seconds {
            ensure!((seconds - probe).abs() <= part * probe, "{seconds} s by {name}, {probe} s by probe");
        }
    }
    Ok(())
}

#[test]
fn a_multi_threaded_one() -> Result<()> {
    let scene = Scene::new()?;
    let comm = scene.comm("equal");
    let mut it = program();
    it.times(4, |it| {
        it.beget(libc::SYS_clone, &[THREAD, 0, 0, 0, 0], |it| {
            it.times(500, |it| {
                it.call(libc::SYS_getppid, &[]);
                it.call(libc::SYS_sched_yield, &[]);
            });
            it.times(50, |it| it.call(libc::SYS_close, &[-1]));
            it.call(libc::SYS_exit, &[0]);
        });
    });
    read(&mut it);
    it.call(libc::SYS_exit_group, &[0]);
    scene.write("equal", &it)?;
    let outcome = scene.measure(&[&scene.path("equal")], |running| {
        // All the others are gone.
        running.blocked(&[libc::SYS_read])?;
        running.say()
    })?;
    let want = rows(&[
        ("execve", 1, &[]),
        ("clone", 4, &[]),
        ("getppid", 2_000, &[]),
        ("sched_yield", 2_000, &[]),
        ("close", 200, &[("EBADF", 200)]),
        ("read", 1, &[]),
    ]);
    let perf = [(comm.as_str(), "fork", 1, 0), (&comm, "clone", 4, 0)];
    outcome.compare(&[(&comm, &want)], &Beyond { perf: &perf, ends: 5, born: 4, ..Beyond::default() })
}

/// A failed execve, one that works, and execveat; a child that stays what it is.
#[test]
fn one_that_forks_and_execs() -> Result<()> {
    let scene = Scene::new()?;
    let (comm, other) = (scene.comm("equal"), scene.comm("other"));
    write_other(&scene)?;
    let path = scene.path("other");
    let mut it = program();
    it.times(5, |it| {
        it.beget(libc::SYS_fork, &[], |it| {
            it.times(20, |it| it.call(libc::SYS_getppid, &[]));
            it.exec(libc::SYS_execve, &["/does/not/exist"]);
            it.exec(libc::SYS_execve, &[&path]);
        });
        it.call(libc::SYS_wait4, &[-1, 0, 0, 0]);
    });
    it.beget(libc::SYS_fork, &[], |it| it.exec(libc::SYS_execveat, &[&path]));
    it.call(libc::SYS_wait4, &[-1, 0, 0, 0]);
    it.beget(libc::SYS_fork, &[], |it| {
        it.times(7, |it| it.call(libc::SYS_getppid, &[]));
        it.call(libc::SYS_exit_group, &[0]);
    });
    it.times(2, |it| it.call(libc::SYS_wait4, &[-1, 0, 0, 0]));
    it.call(libc::SYS_exit_group, &[0]);
    scene.write("equal", &it)?;
    let outcome = scene.measure(&[&scene.path("equal")], NOTHING)?;
    let want =
        rows(&[("execve", 1, &[]), ("fork", 7, &[]), ("getppid", 7, &[]), ("wait4", 8, &[("ECHILD", 1)])]);
    let want_other = rows(&[
        ("getppid", 100, &[]),
        ("execve", 10, &[("ENOENT", 5)]),
        ("execveat", 1, &[]),
        ("getpid", 180, &[]),
        ("close", 6, &[("EBADF", 6)]),
    ]);
    let perf = [
        (comm.as_str(), "fork", 2, 0),
        (&other, "fork", 6, 0),
        (&other, "execveat", -1, 0),
        (&other, "execve", 1, 0),
    ];
    outcome.compare(
        &[(&comm, &want), (&other, &want_other)],
        &Beyond { perf: &perf, ends: 8, born: 7, ..Beyond::default() },
    )
}

/// By vfork, and as posix_spawn does it; with an execve and without.
#[test]
fn one_that_vforks() -> Result<()> {
    let scene = Scene::new()?;
    let (comm, other) = (scene.comm("equal"), scene.comm("other"));
    write_other(&scene)?;
    let path = scene.path("other");
    let mut it = program();
    let spawn = [libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0];
    for (number, args) in [(libc::SYS_vfork, [].as_slice()), (libc::SYS_clone, &spawn)] {
        it.times(6, |it| {
            it.beget(number, args, |it| {
                it.times(10, |it| it.call(libc::SYS_getppid, &[]));
                it.exec(libc::SYS_execve, &[&path]);
            });
            it.call(libc::SYS_wait4, &[-1, 0, 0, 0]);
        });
        it.times(3, |it| {
            it.beget(number, args, |it| it.call(libc::SYS_exit_group, &[0]));
            it.call(libc::SYS_wait4, &[-1, 0, 0, 0]);
        });
    }
    it.call(libc::SYS_exit_group, &[0]);
    scene.write("equal", &it)?;
    let outcome = scene.measure(&[&scene.path("equal")], NOTHING)?;
    let want = rows(&[("execve", 1, &[]), ("vfork", 9, &[]), ("clone", 9, &[]), ("wait4", 18, &[])]);
    let want_other = rows(&[
        ("getppid", 120, &[]),
        ("execve", 12, &[]),
        ("getpid", 360, &[]),
        ("close", 12, &[("EBADF", 12)]),
    ]);
    let perf = [
        (comm.as_str(), "fork", 1, 0),
        (&comm, "vfork", 3, 0),
        (&comm, "clone", 3, 0),
        (&other, "vfork", 6, 0),
        (&other, "clone", 6, 0),
    ];
    outcome.compare(
        &[(&comm, &want), (&other, &want_other)],
        &Beyond { perf: &perf, ends: 19, born: 18, ..Beyond::default() },
    )
}

/// What threads die of that are inside calls.
#[derive(Clone, Copy, PartialEq)]
enum Death {
    ExitGroup,
    Kill,
    /// The first thread runs another program.
    Exec,
    /// Another one does, and becomes the first.
    ExecOfThread,
}

/// Threads that wait for what never comes, in five calls.
fn dying(death: Death) -> Result<()> {
    let scene = Scene::new()?;
    write_other(&scene)?;
    let path = scene.path("other");
    let mut it = program();
    let long = time(&mut it, 1_000 * SECOND_NS);
    let word = it.data(&[0; 8]);
    let waits: [(i64, &[i32]); 4] = [
        (libc::SYS_pause, &[]),
        (libc::SYS_futex, &[word, libc::FUTEX_WAIT, 0, 0]),
        (libc::SYS_nanosleep, &[long, 0]),
        (libc::SYS_rt_sigsuspend, &[word, 8]),
    ];
    for (number, args) in waits {
        it.beget(libc::SYS_clone, &[THREAD, 0, 0, 0, 0], |it| {
            it.times(100, |it| it.call(libc::SYS_getppid, &[]));
            it.call(number, args);
        });
    }
    let mut inside: Vec<i64> = waits.iter().map(|(number, _)| *number).chain([libc::SYS_read]).collect();
    let end = |it: &mut Program| {
        read(it);
        match death {
            Death::ExitGroup | Death::Kill => it.call(libc::SYS_exit_group, &[0]),
            Death::Exec | Death::ExecOfThread => it.exec(libc::SYS_execve, &[&path]),
        }
    };
    if death == Death::ExecOfThread {
        it.beget(libc::SYS_clone, &[THREAD, 0, 0, 0, 0], end);
        it.call(libc::SYS_pause, &[]);
        inside.push(libc::SYS_pause);
    } else {
        end(&mut it);
    }
    scene.write("equal", &it)?;
    let outcome = scene.measure(&[&scene.path("equal")], |running| {
        running.blocked(&inside)?;
        if death == Death::Kill { running.signal(Signal::KILL) } else { running.say() }
    })?;

    let (died, pauses): (&[(&str, i64)], _) = match death {
        Death::Kill => (&[("ERESTARTSYS", 1)], 1),
        Death::ExecOfThread => (&[], 2),
        Death::Exec | Death::ExitGroup => (&[], 1),
    };
    let threads = if death == Death::ExecOfThread { 5 } else { 4 };
    let mut want = rows(&[
        ("execve", 1, &[]),
        ("clone", threads, &[]),
        ("getppid", 400, &[]),
        ("read", 1, died),
        ("pause", pauses, &[("ERESTARTNOHAND", pauses)]),
        ("futex", 1, &[("ERESTARTSYS", 1)]),
        ("nanosleep", 1, &[("ERESTART_RESTARTBLOCK", 1)]),
        ("rt_sigsuspend", 1, &[("ERESTARTNOHAND", 1)]),
    ]);
    let execs = matches!(death, Death::Exec | Death::ExecOfThread);
    if execs {
        want.extend(rows(&[("execve", 2, &[]), ("getpid", 30, &[]), ("close", 1, &[("EBADF", 1)])]));
    }
    let comm = scene.comm(if execs { "other" } else { "equal" });
    let mut strace = vec![
        ("pause", -pauses, -pauses),
        ("futex", -1, -1),
        ("nanosleep", -1, -1),
        ("rt_sigsuspend", -1, -1),
    ];
    if death == Death::Kill {
        strace.push(("read", -1, -1));
    }
    let beyond = Beyond {
        perf: &[(&comm, "fork", 1, 0), (&comm, "clone", threads, 0)],
        strace: &strace,
        ends: if death == Death::Kill { 0 } else { 1 },
        born: threads,
        renamed: execs,
    };
    outcome.compare(&[(&comm, &want)], &beyond)
}

#[test]
fn one_whose_threads_die_in_calls_as_it_ends() -> Result<()> {
    dying(Death::ExitGroup)
}

#[test]
fn one_that_is_killed_in_calls() -> Result<()> {
    dying(Death::Kill)
}

#[test]
fn one_whose_threads_die_in_calls_as_it_execs() -> Result<()> {
    dying(Death::Exec)
}

#[test]
fn one_whose_other_thread_execs() -> Result<()> {
    dying(Death::ExecOfThread)
}

/// A call that a signal interrupts has returned, with the kernel's own error (ERESTART…), whether the process gets to see EINTR or the
/// call is made again: then it is one more. rt_sigreturn "returns" what the interrupted call did.
#[test]
fn one_with_signals_that_interrupt_calls() -> Result<()> {
    let scene = Scene::new()?;
    let comm = scene.comm("equal");
    let mut it = program();
    let long = time(&mut it, 1_000 * SECOND_NS);
    let [word, room] = [it.data(&[0; 8]), it.data(&[0; 8])];
    let stdin = it.data(&[0, 0, 0, 0, libc::POLLIN as u8, 0, 0, 0]);
    it.handle(libc::SIGUSR1, libc::SA_RESTART, write);
    it.handle(libc::SIGUSR2, 0, write);
    // Call, signal; the handler's write is the first thing to hear, that after the call the second.
    let steps: [(i64, &[i32], Signal); 6] = [
        (libc::SYS_read, &[0, room, 1], Signal::USR1),
        (libc::SYS_read, &[0, room, 1], Signal::USR2),
        (libc::SYS_nanosleep, &[long, 0], Signal::USR1),
        (libc::SYS_futex, &[word, libc::FUTEX_WAIT, 0, 0], Signal::USR2),
        (libc::SYS_pause, &[], Signal::USR1),
        (libc::SYS_rt_sigtimedwait, &[word, 0, long, 8], Signal::USR1),
    ];
    for (number, args, _) in steps {
        it.call(number, args);
        // For the next.
        it.call(libc::SYS_getppid, &[]);
        write(&mut it);
    }
    it.call(libc::SYS_poll, &[stdin, 1, -1]);
    read(&mut it);
    it.call(libc::SYS_exit_group, &[0]);
    scene.write("equal", &it)?;
    let outcome = scene.measure(&[&scene.path("equal")], |running| {
        for (step, (number, _, signal)) in steps.into_iter().enumerate() {
            running.blocked(&[number])?;
            running.signal(signal)?;
            running.hear()?;
            if step == 0 {
                // Made again.
                running.blocked(&[number])?;
                running.say()?;
            }
            running.hear()?;
        }
        running.blocked(&[libc::SYS_poll])?;
        running.signal(Signal::STOP)?;
        running.stopped()?;
        running.signal(Signal::CONT)?;
        running.blocked(&[libc::SYS_restart_syscall])?;
        running.say()
    })?;
    let want = rows(&[
        ("execve", 1, &[]),
        ("rt_sigaction", 2, &[]),
        ("read", 4, &[("ERESTARTSYS", 2)]),
        ("nanosleep", 1, &[("ERESTART_RESTARTBLOCK", 1)]),
        ("futex", 1, &[("ERESTARTSYS", 1)]),
        ("pause", 1, &[("ERESTARTNOHAND", 1)]),
        ("rt_sigtimedwait", 1, &[("EINTR", 1)]),
        ("poll", 1, &[("ERESTART_RESTARTBLOCK", 1)]),
        ("restart_syscall", 1, &[]),
        ("write", 12, &[]),
        ("getppid", 6, &[]),
        ("rt_sigreturn", 6, &[("EINTR", 5)]),
    ]);
    let perf = [(comm.as_str(), "fork", 1, 0), (&comm, "rt_sigreturn", -6, -5)];
    outcome.compare(&[(&comm, &want)], &Beyond { perf: &perf, ends: 1, ..Beyond::default() })
}

/// A call begun before the tracers came returns beside them, and is not counted.
#[test]
fn one_that_was_there_before() -> Result<()> {
    let scene = Scene::new()?;
    let comm = scene.comm("equal");
    let mut it = program();
    read(&mut it);
    it.times(50, |it| it.call(libc::SYS_getppid, &[]));
    read(&mut it);
    it.call(libc::SYS_exit_group, &[0]);
    scene.write("equal", &it)?;
    let (outcome, stat) = scene.measure_later(&scene.path("equal"), |running| {
        running.blocked(&[libc::SYS_read])?;
        running.say()?;
        running.say()
    })?;
    assert_eq!(outcome.of(&comm)?, rows(&[("getppid", 50, &[]), ("read", 1, &[])]));
    // One entered and was not returned from; one had been entered before.
    assert_eq!(stat.unwrap_or((52, 52)), (51 + 1, 51 + 1));
    Ok(())
}
