//! Static programs made by hand, call by call: no library, no loader, no run-time of a language that would make calls of its own.
//! What such a program asks the kernel for is what is written here, on every kernel and under every tracer.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Where everything is loaded: below 2 GiB, so that addresses fit whatever register they go to.
const BASE: u32 = 0x40_0000;
/// In the file, and from [`BASE`] on.
const DATA: usize = 0x100;
const TEXT: usize = 0x1000;

/// How a program is executed, and calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// `syscall`, numbers of the 64-bit table.
    X86_64,
    /// `int $0x80`, numbers of the 32-bit table.
    I386,
}

/// A program. Its only variables are the counters of loops; threads and forked processes have copies of them.
#[derive(Debug)]
pub struct Program {
    abi: Abi,
    data: Vec<u8>,
    text: Vec<u8>,
    loops: usize,
}

impl Program {
    /// One that does nothing yet, not even end.
    #[must_use]
    pub fn new(abi: Abi) -> Self {
        Self { abi, data: Vec::new(), text: Vec::new(), loops: 0 }
    }

    /// The address of these bytes, which the program may write to.
    pub fn data(&mut self, bytes: &[u8]) -> i32 {
        let address = BASE as usize + DATA + self.data.len();
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        address as i32
    }

    /// The address of a text, ended by NUL.
    pub fn text(&mut self, text: &str) -> i32 {
        self.data(&[text.as_bytes(), b"\0"].concat())
    }

    /// A call as this program makes them.
    pub fn call(&mut self, number: i64, args: &[i32]) {
        match self.abi {
            Abi::X86_64 => {
                // mov rdi, rsi, rdx, r10, r8, r9: sign-extended.
                const REGISTERS: [[u8; 3]; 6] = [
                    [0x48, 0xc7, 0xc7],
                    [0x48, 0xc7, 0xc6],
                    [0x48, 0xc7, 0xc2],
                    [0x49, 0xc7, 0xc2],
                    [0x49, 0xc7, 0xc0],
                    [0x49, 0xc7, 0xc1],
                ];
                for (register, value) in REGISTERS.iter().zip(args) {
                    self.text.extend(register);
                    self.text.extend(value.to_le_bytes());
                }
                self.load_number(number);
                self.text.extend([0x0f, 0x05]);
            }
            Abi::I386 => self.call_32(number, args),
        }
    }

    /// A call by `int $0x80`, of the 32-bit table, whatever the program is.
    pub fn call_32(&mut self, number: i64, args: &[i32]) {
        // mov ebx, ecx, edx, esi, edi.
        const REGISTERS: [u8; 5] = [0xbb, 0xb9, 0xba, 0xbe, 0xbf];
        for (register, value) in REGISTERS.iter().zip(args) {
            self.text.push(*register);
            self.text.extend(value.to_le_bytes());
        }
        self.load_number(number);
        self.text.extend([0xcd, 0x80]);
    }

    /// mov eax
    fn load_number(&mut self, number: i64) {
        self.text.push(0xb8);
        self.text.extend((number as u32).to_le_bytes());
    }

    /// The same so many times.
    ///
    /// # Panics
    ///
    /// In a loop of a 32-bit program, or in four: there is no register left.
    pub fn times(&mut self, count: u32, body: impl FnOnce(&mut Self)) {
        // No call changes these, nor do signals. mov, dec: r12d to r15d; ebp.
        let (load, decrement): ([u8; 2], [u8; 3]) = match self.abi {
            Abi::X86_64 => {
                assert!(self.loops < 4, "no register left");
                let register = 4 + self.loops as u8;
                ([0x41, 0xb8 + register], [0x41, 0xff, 0xc8 + register])
            }
            Abi::I386 => {
                assert!(self.loops == 0, "no register left");
                // nop, so that both have their length.
                ([0x90, 0xbd], [0x90, 0x90, 0x4d])
            }
        };
        self.text.extend(load);
        self.text.extend(count.to_le_bytes());
        let begin = self.text.len();
        self.loops += 1;
        body(self);
        self.loops -= 1;
        self.text.extend(decrement);
        // jnz
        self.text.extend([0x0f, 0x85]);
        let back = begin as i32 - (self.text.len() as i32 + 4);
        self.text.extend(back.to_le_bytes());
    }

    /// A call that makes a thread or a process, which does `child`, and must end there.
    ///
    /// Neither has a stack that differs, nor uses one.
    pub fn beget(&mut self, number: i64, args: &[i32], child: impl FnOnce(&mut Self)) {
        self.call(number, args);
        // test eax, eax; jnz
        self.text.extend([0x85, 0xc0, 0x0f, 0x85]);
        self.skipped(child);
    }

    /// Emits a distance, then `inner`, over which it leads.
    fn skipped(&mut self, inner: impl FnOnce(&mut Self)) {
        let place = self.text.len();
        self.text.extend([0; 4]);
        inner(self);
        let distance = (self.text.len() - place - 4) as i32;
        if let Some(room) = self.text.get_mut(place..place + 4) {
            room.copy_from_slice(&distance.to_le_bytes());
        }
    }

    /// Lets a signal be handled by `body`, in one rt_sigaction. It returns by rt_sigreturn. 64-bit programs only.
    pub fn handle(&mut self, signal: i32, flags: i32, body: impl FnOnce(&mut Self)) {
        const SA_RESTORER: i32 = 0x0400_0000;
        // jmp
        self.text.push(0xe9);
        let mut addresses = [0, 0];
        self.skipped(|program| {
            addresses[0] = program.here();
            body(program);
            // ret
            program.text.push(0xc3);
            addresses[1] = program.here();
            program.call(libc::SYS_rt_sigreturn, &[]);
        });
        let action = [u64::from(addresses[0]), (flags | SA_RESTORER) as u64, u64::from(addresses[1]), 0];
        let action = self.data(&action.map(u64::to_le_bytes).concat());
        self.call(libc::SYS_rt_sigaction, &[signal, action, 0, 8]);
    }

    fn here(&self) -> u32 {
        BASE + (TEXT + self.text.len()) as u32
    }

    /// Replaces the program, in a 64-bit one: `execve(argv[0], argv, {NULL})`, or the same by execveat.
    pub fn exec(&mut self, number: i64, argv: &[&str]) {
        let pointers: Vec<u64> = argv.iter().map(|word| self.text(word) as u64).chain([0]).collect();
        let array = self.data(&pointers.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>());
        let none = self.data(&[0; 8]);
        let path = pointers.first().map_or(0, |path| *path as i32);
        if number == libc::SYS_execveat {
            self.call(number, &[libc::AT_FDCWD, path, array, none, 0]);
        } else {
            self.call(number, &[path, array, none]);
        }
    }

    /// Writes it to a file.
    ///
    /// # Errors
    ///
    /// The system's, or it has too many data.
    pub fn write(&self, path: &Path) -> Result<()> {
        ensure!(DATA + self.data.len() <= TEXT, "{} octets of data are too many", self.data.len());
        let mut file = self.header();
        file.resize(DATA, 0);
        file.extend(&self.data);
        file.resize(TEXT, 0);
        file.extend(&self.text);
        std::fs::write(path, file).with_context(|| path.display().to_string())?;
        Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
    }

    /// `Elf64_Ehdr` and one `Elf64_Phdr`, or those of 32 bits.
    fn header(&self) -> Vec<u8> {
        /// PF_R | PF_W | PF_X
        const FLAGS: u64 = 7;
        let long = self.abi == Abi::X86_64;
        let size = (TEXT + self.text.len()) as u64;
        let (class, machine, header, segment) = if long { (2, 62, 64, 56) } else { (1, 3, 52, 32) };
        let mut out = vec![0x7f, b'E', b'L', b'F', class, 1, 1];
        out.resize(16, 0);
        // Of so many octets; addresses are eight in the one, four in the other.
        let mut put = |octets: usize, value: u64| out.extend(value.to_le_bytes().iter().take(octets));
        let address = if long { 8 } else { 4 };
        // Executable, machine, version; entry, program headers, no sections; no flags.
        for (octets, value) in [(2, 2), (2, machine), (4, 1)] {
            put(octets, value);
        }
        for value in [u64::from(BASE) + TEXT as u64, header, 0] {
            put(address, value);
        }
        put(4, 0);
        for value in [header, segment, 1, 0, 0, 0] {
            put(2, value);
        }
        // PT_LOAD: all of the file.
        put(4, 1);
        if long {
            put(4, FLAGS);
        }
        for value in [0, u64::from(BASE), u64::from(BASE), size, size] {
            put(address, value);
        }
        if !long {
            put(4, FLAGS);
        }
        put(address, 0x1000);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_as_written() {
        let path = std::env::temp_dir().join(format!("probe-elf-{}", std::process::id()));
        let mut program = Program::new(Abi::X86_64);
        let word = program.text("x");
        program.times(3, |program| {
            program.times(2, |program| program.call(libc::SYS_write, &[1, word, 1]));
        });
        program.beget(libc::SYS_fork, &[], |child| {
            child.call(libc::SYS_write, &[1, word, 1]);
            child.call(libc::SYS_exit_group, &[0]);
        });
        program.call(libc::SYS_wait4, &[-1, 0, 0, 0]);
        program.call(libc::SYS_exit_group, &[7]);
        program.write(&path).expect("a file");
        let output = std::process::Command::new(&path).output().expect("it starts");
        let _left = std::fs::remove_file(&path);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), b"xxxxxxx".as_slice()));
    }
}
