//! From addresses to frames.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::images::{Function, Images, Key};
use super::kernel::KernelSymbols;
use super::maps::{self, Backing, Mapping};
use super::names::readable;
use super::process::Process;
use super::unresolved::{Reason, Unresolved};

/// Where a process has its code is read again after this time: it may have become another program, or loaded a library.
const MAPS_AGE: Duration = Duration::from_secs(1);
/// And at once for an address where it had none, but not more often than this.
const MISS_AGE: Duration = Duration::from_millis(250);
/// Frames of one stack; the kernel gives 127 (`kernel.perf_event_max_stack`).
pub const MAX_FRAMES: usize = 512;
/// Longest name of a file in a frame; file names end at 255 bytes.
const MAX_FILE_NAME: usize = 64;

/// Limits of [`Symbolizer`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Processes of which it is remembered where they have their code; the longest unused give way.
    pub processes: NonZeroUsize,
    /// Bytes of tables of functions; the longest unused give way, but one may be larger than this by itself (64 MiB).
    pub tables: usize,
    /// Names of functions kept as they are shown.
    pub names: NonZeroUsize,
}

impl Default for Limits {
    fn default() -> Self {
        let some = |number| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
        Self { processes: some(256), tables: 128 << 20, names: some(16_384) }
    }
}

/// A frame of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The function, or in brackets what is known instead: `[libfoo.so+0x1234]`, `[anonymous]`, `[unknown]`, `[process gone]`. From a
    /// stranger's file: to be escaped where it is written.
    pub name: Arc<str>,
    /// It is a function's name.
    pub known: bool,
}

impl Frame {
    fn without_name(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), known: false }
    }
}

/// Where a process had its code when it was last looked at.
#[derive(Debug)]
struct Space {
    mappings: Vec<Mapping>,
    /// What is known of the file behind each.
    files: Vec<Known>,
    /// What its just-in-time compiler wrote, and when that was last looked for.
    compiled: Option<Key>,
    asked: Option<Instant>,
    read: Instant,
}

#[derive(Clone, Debug)]
enum Known {
    NotYet,
    File(Key),
    Unreadable(Arc<str>),
}

impl Space {
    /// Nothing of a process that is gone; one that has ended and was not waited for has no memory any more.
    fn read(process: &Process, now: Instant) -> Option<Self> {
        let mappings = process.mappings().ok().filter(|mappings| !mappings.is_empty())?;
        let files = vec![Known::NotYet; mappings.len()];
        Some(Self { mappings, files, compiled: None, asked: None, read: now })
    }
}

/// A process, opened when it is first needed.
struct Living {
    pid: u32,
    start_ns: u64,
    process: Option<Option<Process>>,
}

impl Living {
    fn get(&mut self) -> Option<&Process> {
        let Self { pid, start_ns, process } = self;
        process.get_or_insert_with(|| Process::open(*pid, *start_ns)).as_ref()
    }
}

/// Gives names to addresses of user space and of the kernel.
///
/// It reads files of strangers: as it waits for their file systems (FUSE, NFS), it belongs on a thread that nothing else waits for.
#[derive(Debug)]
pub struct Symbolizer {
    processes: LruCache<(u32, u64), Space>,
    images: Images,
    names: LruCache<(u64, u64), Arc<str>>,
    kernel: Arc<KernelSymbols>,
    kernel_names: LruCache<usize, Arc<str>>,
    unresolved: Unresolved,
}

impl Symbolizer {
    /// Nothing known yet of processes. The kernel's functions were read before capabilities were given back.
    #[must_use]
    pub fn new(kernel: Arc<KernelSymbols>, limits: Limits) -> Self {
        let Limits { processes, tables, names } = limits;
        Self {
            processes: LruCache::new(processes),
            images: Images::new(tables),
            names: LruCache::new(names),
            kernel,
            kernel_names: LruCache::new(names),
            unresolved: Unresolved::default(),
        }
    }

    /// Frames of a stack of a process, outermost first. `start_ns` is when it began (CLOCK_BOOTTIME), which names it for good;
    /// addresses come innermost first, as bpf_get_stack gives them of a thread in a system call: each is where a call returns to, so
    /// what is looked up is the byte before; a 0 ends them. One frame if the process is gone and was not seen before.
    pub fn user(&mut self, pid: u32, start_ns: u64, addresses: &[u64]) -> Vec<Frame> {
        self.user_at(pid, start_ns, addresses, Instant::now())
    }

    fn user_at(&mut self, pid: u32, start_ns: u64, addresses: &[u64], now: Instant) -> Vec<Frame> {
        let addresses = until_zero(addresses);
        let Self { processes, images, names, kernel: _, kernel_names: _, unresolved } = self;
        unresolved.looked_at(addresses.len());
        let mut living = Living { pid, start_ns, process: None };
        let key = (pid, start_ns);
        if let Some(space) = processes.get_mut(&key) {
            if now.saturating_duration_since(space.read) >= MAPS_AGE {
                renew(space, &mut living, now);
            }
        } else if let Some(space) = living.get().and_then(|process| Space::read(process, now)) {
            processes.put(key, space);
        }
        let Some(space) = processes.get_mut(&key) else {
            unresolved.count(Reason::Gone, addresses.len());
            return if addresses.is_empty() {
                Vec::new()
            } else {
                vec![Frame::without_name("[process gone]")]
            };
        };
        let mut frames: Vec<Frame> = addresses
            .iter()
            .map(|address| {
                let before = address.saturating_sub(1);
                let miss = maps::find(&space.mappings, before).is_none();
                if miss && now.saturating_duration_since(space.read) >= MISS_AGE {
                    renew(space, &mut living, now);
                }
                frame(before, space, &mut living, images, names, now).unwrap_or_else(|(name, reason)| {
                    unresolved.count(reason, 1);
                    Frame::without_name(name)
                })
            })
            .collect();
        frames.reverse();
        frames
    }

    /// Frames of a stack of the kernel, outermost first, from addresses innermost first, which a 0 ends. A single one where it hides its functions.
    pub fn kernel(&mut self, addresses: &[u64]) -> Vec<Frame> {
        let addresses = until_zero(addresses);
        let Self { processes: _, images: _, names: _, kernel, kernel_names, unresolved } = self;
        unresolved.looked_at(addresses.len());
        let KernelSymbols::Known(symbols) = kernel.as_ref() else {
            unresolved.count(Reason::Kernel, addresses.len());
            return if addresses.is_empty() { Vec::new() } else { vec![Frame::without_name("[kernel]")] };
        };
        let frame = |address: &u64| {
            let Some((index, raw)) = symbols.find(address.saturating_sub(1)) else {
                unresolved.count(Reason::Kernel, 1);
                return Frame::without_name("[unknown]");
            };
            let name = kernel_names.get_or_insert(index, || readable(raw).into());
            Frame { name: Arc::clone(name), known: true }
        };
        addresses.iter().rev().map(frame).collect()
    }

    /// What had no name so far, and why.
    #[must_use]
    pub fn unresolved(&self) -> &Unresolved {
        &self.unresolved
    }

    /// The kernel's functions, and what to do if there are none.
    #[must_use]
    pub fn kernel_symbols(&self) -> &KernelSymbols {
        &self.kernel
    }

    /// Memory that tables of functions of files take.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        self.images.bytes()
    }
}

/// Records have room for more than every stack has.
fn until_zero(addresses: &[u64]) -> &[u64] {
    let addresses = addresses.get(..MAX_FRAMES).unwrap_or(addresses);
    addresses.split(|address| *address == 0).next().unwrap_or_default()
}

/// Looks again at where a process has its code. What is known of one that is gone stays as it was.
fn renew(space: &mut Space, living: &mut Living, now: Instant) {
    match living.get().and_then(|process| Space::read(process, now)) {
        Some(again) => *space = Space { compiled: space.compiled, asked: space.asked, ..again },
        None => space.read = now,
    }
}

/// The frame at an address; or what to call it, and why.
fn frame(
    address: u64,
    space: &mut Space,
    living: &mut Living,
    images: &mut Images,
    names: &mut LruCache<(u64, u64), Arc<str>>,
    now: Instant,
) -> Result<Frame, (Arc<str>, Reason)> {
    let Space { mappings, files, compiled, asked, read: _ } = space;
    let Some((index, mapping)) = maps::find(mappings, address) else {
        return Err(("[unknown]".into(), Reason::Unmapped));
    };
    let mut named = |(id, raw): Function<'_>| {
        let name = names.get_or_insert(id, || readable(raw).into());
        Frame { name: Arc::clone(name), known: true }
    };
    let offset = address - mapping.start + mapping.offset;
    let unnamed = match &mapping.backing {
        Backing::Nothing => ("[anonymous]".into(), Reason::Anonymous),
        Backing::Special(name) if **name != *b"[vdso]" => (brackets(name), Reason::Anonymous),
        Backing::Special(_) | Backing::File { .. } => {
            let mut unread = Known::NotYet;
            let file = files.get_mut(index).unwrap_or(&mut unread);
            let shown = match &mapping.backing {
                Backing::File { path, .. } => base_name(path),
                Backing::Special(_) | Backing::Nothing => "[vdso]".into(),
            };
            match image(file, mapping, living, images) {
                Ok(key) => match images.get(&key).map(|image| image.find(offset)) {
                    Some(Ok(function)) => return Ok(named(function)),
                    Some(Err((at, wrong))) => {
                        let reason = match wrong {
                            Some(error) => {
                                Reason::Unreadable { file: Arc::clone(&shown), error: Arc::clone(error) }
                            }
                            None => Reason::NoSymbol { file: Arc::clone(&shown) },
                        };
                        (format!("[{}+{:#x}]", plain(&shown), at.unwrap_or(offset)).into(), reason)
                    }
                    None => ("[unknown]".into(), Reason::Other),
                },
                Err(error) => {
                    let name = format!("[{}+{offset:#x}]", plain(&shown)).into();
                    let reason =
                        error.map_or(Reason::Gone, |error| Reason::Unreadable { file: shown, error });
                    (name, reason)
                }
            }
        }
    };
    // Some runtimes have their compiled code in files of memory (memfd), so that it is asked of whatever has no name.
    if let Some(function) = images.compiled(compiled.as_ref(), address) {
        return Ok(named(function));
    }
    if asked.is_none_or(|asked| now.saturating_duration_since(asked) >= MAPS_AGE) {
        *asked = Some(now);
        let file = living.get().and_then(|process| process.perf_map().ok());
        let Some(Ok(key)) = file.map(|file| images.perf_map(file, *compiled)) else { return Err(unnamed) };
        *compiled = Some(key);
    }
    images.compiled(compiled.as_ref(), address).map(named).ok_or(unnamed)
}

/// The image behind a mapping; or why there is none, which is nothing if the process is gone.
fn image(
    file: &mut Known,
    mapping: &Mapping,
    living: &mut Living,
    images: &mut Images,
) -> Result<Key, Option<Arc<str>>> {
    match file {
        Known::File(key) if images.get(key).is_some() => return Ok(*key),
        Known::Unreadable(error) => return Err(Some(Arc::clone(error))),
        // Forgotten for others.
        Known::File(_) | Known::NotYet => {}
    }
    let process = living.get().ok_or(None)?;
    let found = match &mapping.backing {
        Backing::File { .. } => {
            process.open_mapped(mapping).and_then(|opened| images.mapped(process, opened))
        }
        Backing::Special(_) | Backing::Nothing => process.vdso(mapping).map(|bytes| images.vdso(&bytes)),
    };
    match found {
        Ok(key) => {
            *file = Known::File(key);
            Ok(key)
        }
        Err(error) => {
            let error: Arc<str> = error.to_string().into();
            *file = Known::Unreadable(Arc::clone(&error));
            Err(Some(error))
        }
    }
}

fn base_name(path: &[u8]) -> Arc<str> {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    String::from_utf8_lossy(name.get(..MAX_FILE_NAME).unwrap_or(name)).into()
}

/// Without what stands for something in a frame's name.
fn plain(name: &str) -> &str {
    name.trim_matches(['[', ']'])
}

fn brackets(name: &[u8]) -> Arc<str> {
    let name = String::from_utf8_lossy(name.get(..MAX_FILE_NAME).unwrap_or(name));
    format!("[{}]", plain(&name)).into()
}
