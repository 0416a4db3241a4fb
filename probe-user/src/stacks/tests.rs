//! Symbols of real processes: programs are compiled here, and run.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::entity::process::{TICK_NS, parse_stat};
use crate::kernel::least;

/// Tells where its functions are, and waits for the end of what it reads. `--map FILE` maps a file to be run, and tells where; `--jit NAME`
/// has memory of its own, and a perf map that calls it so.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
__attribute__((noinline)) int lent_function(int a) { return a + 1; }
__attribute__((noinline)) static int own_function(int a) { return a + 2; }
int main(int argc, char **argv) {
    void *more = 0;
    if (argc > 2 && !strcmp(argv[1], "--map")) {
        int file = open(argv[2], O_RDONLY);
        struct stat stat;
        fstat(file, &stat);
        more = mmap(0, stat.st_size, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
        close(file);
    } else if (argc > 2) {
        more = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        char path[64];
        snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
        FILE *map = fopen(path, "w");
        fprintf(map, "%lx 10 %s\n", (unsigned long)more, argv[2]);
        fclose(map);
    }
    printf("%lx %lx %lx %lx\n", (unsigned long)lent_function, (unsigned long)own_function,
           (unsigned long)getauxval(AT_SYSINFO_EHDR), (unsigned long)more);
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0);
    if (argc > 2 && !strcmp(argv[1], "--jit")) {
        char path[64];
        snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
        unlink(path);
    }
    return lent_function(argc) + own_function(argc) == 0;
}
"#;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("probe-stacks-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// The program, compiled with these flags.
    fn program(&self, flags: &[&str]) -> PathBuf {
        let path = self.0.join("program");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-x", "c", "-", "-o"]).arg(&path).args(flags).stdin(Stdio::piped());
        let mut cc = cc.spawn().unwrap();
        cc.stdin.take().unwrap().write_all(PROGRAM.as_bytes()).unwrap();
        assert!(cc.wait().unwrap().success());
        path
    }

    fn run(&self, tool: &str, arguments: &[&str]) {
        assert!(
            Command::new(tool).args(arguments).current_dir(&self.0).status().unwrap().success(),
            "{tool}"
        );
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// The program, running.
struct Running {
    child: Child,
    start_ns: u64,
    lent: u64,
    own: u64,
    vdso: u64,
    more: u64,
}

impl Running {
    fn new(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let numbers: Vec<u64> =
            line.split_whitespace().map(|word| u64::from_str_radix(word, 16).unwrap()).collect();
        let [lent, own, vdso, more] = numbers[..] else { panic!("{line:?}") };
        Self { start_ns: start_of(child.id()), child, lent, own, vdso, more }
    }

    fn names(&self, symbolizer: &mut Symbolizer, addresses: &[u64]) -> Vec<String> {
        // An address of a function stands for a call at its very beginning.
        let calls: Vec<u64> = addresses.iter().rev().map(|address| address + 1).collect();
        let frames = symbolizer.user(self.child.id(), self.start_ns, &calls);
        frames.iter().map(|frame| frame.name.to_string()).collect()
    }

    fn end(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn start_of(pid: u32) -> u64 {
    parse_stat(&std::fs::read(format!("/proc/{pid}/stat")).unwrap()).unwrap().1 * TICK_NS
}

fn symbolizer() -> Symbolizer {
    Symbolizer::new(Arc::new(KernelSymbols::Hidden), Limits::default())
}

fn reasons(symbolizer: &Symbolizer) -> Vec<String> {
    symbolizer.unresolved().reasons().iter().map(|(reason, count)| format!("{count} {reason}")).collect()
}

#[inline(never)]
fn known_function() -> u64 {
    std::hint::black_box(42)
}

#[test]
fn functions_of_this_process() {
    let mut symbolizer = symbolizer();
    let own = std::process::id();
    let addresses = [
        known_function as fn() -> u64 as usize as u64 + 1,
        libc::getpid as *const () as usize as u64 + 1,
        0x10,
    ];
    let frames = symbolizer.user(own, start_of(own), &addresses);
    let names: Vec<(&str, bool)> = frames.iter().map(|frame| (&*frame.name, frame.known)).collect();
    assert_eq!(names[0], ("[unknown]", false));
    assert!(names[1].0.ends_with("getpid") && names[1].1, "{names:?}");
    assert_eq!(names[2], ("probe_user::stacks::tests::known_function", true));
    assert_eq!(reasons(&symbolizer), ["1 the process has no code there (a program without frame pointers?)"]);
    assert!(symbolizer.user(own, start_of(own), &[]).is_empty());
    assert_eq!(symbolizer.user(own, start_of(own), &[7, 0, 8]).len(), 1, "a 0 ends them");
    let many = vec![1; MAX_FRAMES + 1];
    assert_eq!(symbolizer.user(own, start_of(own), &many).len(), MAX_FRAMES);
}

#[test]
fn stripped_programs_keep_what_they_lend() {
    let dir = Dir::new("stripped");
    let mut symbolizer = symbolizer();
    for (flags, lent, own) in [
        (&["-rdynamic"][..], "lent_function", "own_function"),
        (&["-rdynamic", "-s"], "lent_function", "[program+"),
        (&["-s"], "[program+", "[program+"),
        (&["-static"], "lent_function", "own_function"),
        (&["-no-pie"], "lent_function", "own_function"),
    ] {
        let running = Running::new(&mut Command::new(dir.program(flags)));
        let names = running.names(&mut symbolizer, &[running.lent, running.own]);
        assert!(names[0].starts_with(lent) && names[1].starts_with(own), "{flags:?}: {names:?}");
    }
    assert_eq!(reasons(&symbolizer), ["3 program has no symbol there (install its debug symbols)"]);
}

/// What has no name has the file's own address of it: addr2line takes it.
#[test]
fn what_has_no_name_has_an_address() {
    let dir = Dir::new("address");
    let full = dir.program(&["-Wl,--build-id"]);
    let listing = Command::new("nm").arg(&full).output().unwrap().stdout;
    let listing = String::from_utf8(listing).unwrap();
    let line = listing.lines().find(|line| line.ends_with(" own_function")).unwrap();
    let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
    dir.run("strip", &["program"]);
    let running = Running::new(&mut Command::new(&full));
    let names = running.names(&mut symbolizer(), &[running.own]);
    assert_eq!(names, [format!("[program+{address:#x}]")]);
}

/// As Fedora strips: symbols of functions compressed into the file.
#[test]
fn compressed_symbols_are_read() {
    let dir = Dir::new("debugdata");
    dir.program(&[]);
    dir.run("objcopy", &["-S", "--keep-symbol=own_function", "program", "mini"]);
    dir.run("objcopy", &["--only-keep-debug", "mini", "mini.debug"]);
    dir.run("xz", &["-k", "mini.debug"]);
    dir.run("strip", &["program"]);
    dir.run("objcopy", &["--add-section", ".gnu_debugdata=mini.debug.xz", "program"]);
    let running = Running::new(&mut Command::new(dir.0.join("program")));
    let names = running.names(&mut symbolizer(), &[running.own, running.lent]);
    assert!(names[0] == "own_function" && names[1].starts_with("[program+"), "{names:?}");
}

/// As in a container: with a root of its own, where neither its program nor its library nor its debug symbols have a path of ours; and with
/// what probe keeps of its capabilities.
#[test]
fn programs_with_another_root() {
    let dir = Dir::new("root");
    dir.program(&["-static-pie", "-Wl,--build-id=0xabcdef0123456789"]);
    dir.run("cp", &["program", "library"]);
    dir.run("cp", &["program", "debug"]);
    dir.run("strip", &["program"]);
    let script = "mount -t tmpfs none /mnt && mkdir -p /mnt/old /mnt/usr/lib/debug/.build-id/ab \
                  && cp program /mnt/elsewhere && cp debug /mnt/usr/lib/debug/.build-id/ab/cdef0123456789.debug \
                  && cp library '/mnt/a library' && cd /mnt && pivot_root . old \
                  && exec ./elsewhere --map '/a library'";
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "sh", "-c", script]).current_dir(&dir.0);
    let running = Running::new(unshare.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
    assert!(!Path::new("/elsewhere").exists() && !Path::new("/a library").exists());
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", running.child.id())).unwrap();
    let base = maps.lines().find(|line| line.ends_with(" /elsewhere")).unwrap();
    let base = u64::from_str_radix(base.split('-').next().unwrap(), 16).unwrap();
    let mut symbolizer = symbolizer();
    let mut names = Vec::new();
    least::reads_without(|| {
        // The library is mapped whole, so that what is at an offset in the file is at it in memory.
        names = running.names(&mut symbolizer, &[running.own, running.more + (running.lent - base)]);
        Ok(())
    })
    .unwrap();
    assert_eq!(names, ["own_function", "lent_function"], "{:?}", reasons(&symbolizer));
}

#[test]
fn a_process_that_is_gone_is_said_to_be() {
    let dir = Dir::new("gone");
    let mut early = symbolizer();
    let mut late = symbolizer();
    let mut running = Running::new(&mut Command::new(dir.program(&[])));
    assert_eq!(running.names(&mut early, &[running.own]), ["own_function"]);
    let other = early.user(running.child.id(), running.start_ns + 10 * TICK_NS, &[running.own + 1]);
    assert_eq!(&*other[0].name, "[process gone]", "it is another that began then");
    running.end();
    assert_eq!(running.names(&mut late, &[running.own, running.lent]), ["[process gone]"]);
    assert_eq!(reasons(&late), ["2 the process had ended"]);
    // What was known of it before it ended is known still.
    assert_eq!(running.names(&mut early, &[running.own, running.lent]), ["own_function", "lent_function"]);
}

#[test]
fn a_deleted_program_has_names_a_deleted_library_is_said_to_be() {
    let dir = Dir::new("deleted");
    let path = dir.program(&[]);
    let library = dir.0.join("library.so");
    std::fs::copy(&path, &library).unwrap();
    let running = Running::new(Command::new(&path).arg("--map").arg(&library));
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(&library).unwrap();
    let mut symbolizer = symbolizer();
    let mut names = Vec::new();
    least::reads_without(|| {
        names = running.names(&mut symbolizer, &[running.own, running.more]);
        Ok(())
    })
    .unwrap();
    assert_eq!(names[0], "own_function");
    assert_eq!(names[1], "[library.so+0x0]");
    assert_eq!(reasons(&symbolizer), ["1 library.so cannot be read: deleted since"]);
}

#[test]
fn functions_of_the_vdso() {
    let dir = Dir::new("vdso");
    let running = Running::new(&mut Command::new(dir.program(&[])));
    let vdso = std::fs::File::open(format!("/proc/{}/mem", running.child.id())).unwrap();
    let mut bytes = vec![0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&vdso, &mut bytes, running.vdso).unwrap();
    let mut symbolizer = symbolizer();
    let names: Vec<String> = (0..4096u64)
        .step_by(16)
        .flat_map(|offset| running.names(&mut symbolizer, &[running.vdso + offset]))
        .collect();
    assert!(names.iter().any(|name| name.ends_with("clock_gettime")), "{names:?}");
    assert!(names[0].starts_with("[vdso+0x"), "{}", names[0]);
}

#[test]
fn what_compilers_tell_of_their_code() {
    let dir = Dir::new("jit");
    let path = dir.program(&[]);
    let name = "py::handle:/app/server.py";
    let running = Running::new(Command::new(&path).args(["--jit", name]));
    let mut symbolizer = symbolizer();
    assert_eq!(running.names(&mut symbolizer, &[running.more, running.more + 0x20]), [name, "[anonymous]"]);
    let wanted =
        ["1 code made while running, of which there is no /tmp/perf-PID.map (ask its runtime for one)"];
    assert_eq!(reasons(&symbolizer), wanted);
}

/// Files that are no programs, and programs that are cut off, in the memory of a process that runs.
#[test]
fn rubbish_has_no_names_and_does_no_harm() {
    let dir = Dir::new("rubbish");
    let path = dir.program(&[]);
    let program = std::fs::read(&path).unwrap();
    let rubbish: Vec<u8> = (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut magic = rubbish.clone();
    magic[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let cases = [
        ("rubbish", rubbish, "no ELF file"),
        ("magic", magic, "a broken ELF file: headers of another size"),
        ("half", program[..program.len() / 2].to_vec(), "a broken ELF file: it ends too early"),
        ("head", program[..60].to_vec(), "a broken ELF file: it ends too early"),
    ];
    for (name, bytes, why) in cases {
        let file = dir.0.join(name);
        std::fs::write(&file, bytes).unwrap();
        let running = Running::new(Command::new(&path).arg("--map").arg(&file));
        let mut symbolizer = symbolizer();
        let names = running.names(&mut symbolizer, &[running.more, running.own]);
        assert_eq!(names, [format!("[{name}+0x0]"), "own_function".into()]);
        assert_eq!(reasons(&symbolizer), [format!("1 {name} cannot be read: {why}")]);
    }
}

/// A file of 8 KiB that claims two gigabytes of symbols; and one that is cut off after it was looked at, which kills whoever has
/// it mapped.
#[test]
fn hostile_files_cost_little() {
    let dir = Dir::new("hostile");
    let path = dir.program(&[]);
    let sparse = dir.0.join("sparse");
    let file = std::fs::File::create(&sparse).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &elf::tests::of_zeros(2 << 30), 0).unwrap();
    file.set_len(3 << 30).unwrap();
    assert!(file.metadata().unwrap().blocks() < 100);
    let running = Running::new(Command::new(&path).arg("--map").arg(&sparse));
    let mut symbolizer = symbolizer();
    let begin = Instant::now();
    assert_eq!(running.names(&mut symbolizer, &[running.more]), ["[sparse+0x0]"]);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(reasons(&symbolizer), ["1 sparse cannot be read: more functions than are kept"]);
    file.set_len(10).unwrap();
    assert_eq!(running.names(&mut symbolizer, &[running.more]), ["[sparse+0x0]"]);
}

#[test]
fn tables_keep_within_their_budget() {
    let dir = Dir::new("budget");
    let running = Running::new(&mut Command::new(dir.program(&["-static"])));
    let own = std::process::id();
    let limits = Limits { tables: 10_000, ..Limits::default() };
    let mut symbolizer = Symbolizer::new(Arc::new(KernelSymbols::Hidden), limits);
    let mut bytes = Vec::new();
    for _ in 0..3 {
        assert_eq!(running.names(&mut symbolizer, &[running.own]), ["own_function"]);
        bytes.push(symbolizer.table_bytes());
        let frames =
            symbolizer.user(own, start_of(own), &[known_function as fn() -> u64 as usize as u64 + 1]);
        assert!(frames[0].known);
        bytes.push(symbolizer.table_bytes());
    }
    assert_eq!(bytes[..2], bytes[2..4], "one gives way to the other");
}

#[test]
fn functions_of_the_kernel() {
    let text =
        b"ffffffff81000000 T entry_SYSCALL_64\nffffffff81000100 T do_syscall_64\nffffffff81000200 D data\n";
    let symbols = kernel::parse(&text[..]).unwrap().unwrap();
    let mut known = Symbolizer::new(Arc::new(KernelSymbols::Known(symbols)), Limits::default());
    let addresses = [0xffff_ffff_8100_0110, 0xffff_ffff_8100_0100, 0xffff_ffff_8100_0210];
    let names: Vec<String> = known.kernel(&addresses).iter().map(|frame| frame.name.to_string()).collect();
    assert_eq!(
        names,
        ["[unknown]", "entry_SYSCALL_64", "do_syscall_64"],
        "where a call returns to is behind it"
    );
    assert_eq!(reasons(&known), ["1 no function of the kernel is known there"]);
    let mut hidden = symbolizer();
    assert_eq!(hidden.kernel(&addresses), [Frame { name: "[kernel]".into(), known: false }]);
    assert_eq!(hidden.unresolved().without_name(), 3);
    assert!(hidden.kernel(&[]).is_empty());
}
