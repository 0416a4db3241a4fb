//! What was there before the programs: a program that the kernel runs over all open files, once (BPF iterator, 5.8).

use std::io::{self, Read as _};

use aya::Btf;
use aya::programs::Program;
use aya::programs::links::LinkError;
use aya_obj::btf::{BtfType, Func, FuncLinkage, Int, IntEncoding};

use super::{Hook, LoadError, Loaded};
use crate::kernel::fields::{OPEN_FILES, Resolved};

/// Its name for aya, which puts `bpf_iter_` before it.
const ITERATOR: &str = "task_file";
/// What the program reads.
const NEEDS: [&str; 6] =
    ["file.f_inode", "file.private_data", "inode.i_sb", "super_block.s_magic", "socket.sk", "socket.type"];

impl Loaded {
    /// Has the object's program look for what was there before, if it has one. To be called once the others are attached, so
    /// that nothing falls in between.
    ///
    /// # Errors
    ///
    /// When this kernel has no such iterator or field, or refuses the program. The signal runs all the same.
    pub fn look_for_older(&mut self, fields: &Resolved) -> Result<(), LoadError> {
        let (signal, Some(program)) = (self.spec.name, self.spec.older) else { return Ok(()) };
        let absent = |path: &str| fields.absent.iter().any(|field| field.path == path);
        let mut missing: Vec<&str> = NEEDS.into_iter().filter(|path| absent(path)).collect();
        let Some(id) = fields.open_files.filter(|_| missing.is_empty()) else {
            if fields.open_files.is_none() {
                missing.push(OPEN_FILES);
            }
            return Err(LoadError::MissingFields { signal, fields: missing.join(", ") });
        };
        let refused = |source| LoadError::Program { signal, program, source: Box::new(source) };
        let hook = Hook::OpenFiles;
        let unattached = |source| LoadError::Attach { signal, program, hook, source: Box::new(source) };
        let Some(Program::Iter(iter)) = self.ebpf.program_mut(program) else {
            return Err(LoadError::Broken { signal, part: program });
        };
        iter.load(ITERATOR, &with_function(OPEN_FILES, id)).map_err(refused)?;
        let link = iter.attach().map_err(unattached)?;
        let walk = iter.take_link(link).map_err(unattached)?.into_file().map_err(|error| match error {
            LinkError::SyscallError(error) => error.io_error,
            other => io::Error::other(other),
        });
        let ended = walk.and_then(run).map_err(|source| LoadError::Walk { signal, program, source });
        // It has done its work.
        iter.unload().map_err(refused)?;
        ended
    }
}

/// The kernel walks while it is read. The program writes nothing, so there is nothing to read but the end.
fn run(mut walk: std::fs::File) -> io::Result<()> {
    let mut nothing = [0; 64];
    loop {
        match walk.read(&mut nothing) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // After a million files without output the kernel comes up for air (MAX_ITER_OBJECTS, kernel/bpf/bpf_iter.c).
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Types among which a function has this id: aya wants a whole kernel's to look up one number, which is known already.
fn with_function(name: &str, id: u32) -> Btf {
    let mut btf = Btf::new();
    for _ in 1..id {
        btf.add_type(BtfType::Int(Int::new(0, 4, IntEncoding::None, 0)));
    }
    let name = btf.add_string(name);
    btf.add_type(BtfType::Func(Func::new(name, 0, FuncLinkage::Static)));
    btf
}

#[cfg(test)]
mod tests {
    use aya_obj::btf::BtfKind;

    use super::*;

    #[test]
    fn the_function_has_its_number() {
        for id in [1, 2, 64_252] {
            let found = with_function(OPEN_FILES, id).id_by_type_name_kind(OPEN_FILES, BtfKind::Func);
            assert_eq!(found.ok(), Some(id));
        }
    }
}
