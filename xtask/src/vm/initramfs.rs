//! The file system of a virtual machine: programs, their shared libraries, the plan. Nothing else; process 1 is the runner
//! of the tests itself.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use cpio::newc::{Builder, trailer};

use crate::{
    live::Live,
    process::{self, output},
    protocol::{GUEST_MODULES, GUEST_PLAN, Plan},
};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const REGULAR: u32 = 0o100_644;
const SYMLINK: u32 = 0o120_777;
const DEVICE: u32 = 0o020_600;

/// Writes the archive that all kernels share.
pub(crate) fn base(live: &Live, scratch: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    // Before devtmpfs is mounted, process 1 has these for its output.
    archive.device("dev/console", 5, 1)?;
    archive.device("dev/null", 1, 3)?;
    fs::create_dir_all(scratch).with_context(|| scratch.display().to_string())?;
    let mut libraries = BTreeSet::new();
    for program in live.programs() {
        let stripped = scratch.join(program.file_name().context("a program without a name")?);
        process::run(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
        archive.copy(&stripped, program, EXECUTABLE)?;
        libraries.extend(shared_libraries(program)?);
    }
    for library in libraries {
        archive.copy(&library, &library, EXECUTABLE)?;
    }
    archive.link("init", &live.runner)?;
    archive.link("bin/probe", &live.probe)?;
    for tool in &live.tools {
        archive.link(&format!("bin/{}", tool.file_name().unwrap_or_default().to_string_lossy()), tool)?;
    }
    archive.finish()
}

/// Writes what one machine has of its own, after the archive that all share: the kernel unpacks one after the other.
pub(crate) fn write(to: &Path, base: &[u8], plan: &Plan, modules: &[PathBuf]) -> Result<()> {
    let mut archive = Archive::default();
    archive.file(Path::new(GUEST_PLAN), &serde_json::to_vec(plan)?, REGULAR)?;
    for module in modules {
        let name = module.file_name().context("a module without a name")?;
        archive.copy(module, &Path::new(GUEST_MODULES).join(name), REGULAR)?;
    }
    let own = archive.finish()?;
    let mut file = BufWriter::new(File::create(to).with_context(|| to.display().to_string())?);
    file.write_all(base)?;
    file.write_all(&own)?;
    Ok(file.flush()?)
}

/// Libraries and loader of a program, by the paths under which it looks for them.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let list = output(Command::new("ldd").arg(program))?;
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(list.lines().filter_map(path).collect())
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    directories: BTreeSet<PathBuf>,
}

impl Archive {
    fn copy(&mut self, from: &Path, to: &Path, mode: u32) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(to, &content, mode)
    }

    fn file(&mut self, to: &Path, content: &[u8], mode: u32) -> Result<()> {
        self.parents(to)?;
        self.entry(to, mode, |builder| builder, content)
    }

    fn link(&mut self, from: &str, to: &Path) -> Result<()> {
        self.parents(Path::new(from))?;
        self.entry(Path::new(from), SYMLINK, |builder| builder, to.as_os_str().as_encoded_bytes())
    }

    fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        self.parents(Path::new(path))?;
        self.entry(Path::new(path), DEVICE, |builder| builder.rdev_major(major).rdev_minor(minor), &[])
    }

    fn parents(&mut self, path: &Path) -> Result<()> {
        let parents = path.ancestors().skip(1).filter(|parent| parent.file_name().is_some());
        for parent in parents.map(relative).collect::<BTreeSet<_>>() {
            if self.directories.insert(parent.clone()) {
                self.entry(&parent, DIRECTORY, |builder| builder, &[])?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &Path,
        mode: u32,
        adjust: impl FnOnce(Builder) -> Builder,
        content: &[u8],
    ) -> Result<()> {
        self.inode += 1;
        let builder = Builder::new(&relative(path).to_string_lossy()).ino(self.inode).mode(mode);
        let size = u32::try_from(content.len()).with_context(|| path.display().to_string())?;
        let mut writer = adjust(builder).write(&mut self.bytes, size);
        io::copy(&mut &*content, &mut writer)?;
        writer.finish()?;
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(trailer(self.bytes)?)
    }
}

/// Archives know no root.
fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}
