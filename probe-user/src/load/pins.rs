//! What may outlive the agent: links, programs and maps, pinned below a directory of a BPF file system, and in a map beside them
//! what the agent knew ([`Pins::leave`]). It all lives as long as the directory does, and no longer than the kernel.
//!
//! ```text
//! DIR/state           a hash map: who made it all (identity), and octets in pieces
//! DIR/<signal>/map_*  maps of the signal's object
//! DIR/<signal>/prog_* programs, for their counts of runs
//! DIR/<signal>/link_* what keeps programs attached
//! ```

#![expect(unsafe_code, reason = "bpf(2) takes pointers")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, MapData, MapError};
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::{ObjectSpec, Plain};

/// Where they are unless another place is named.
pub const PIN_DIRECTORY: &str = "/sys/fs/bpf/probe";

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// `BPF_OBJ_GET` of `enum bpf_cmd`.
const BPF_OBJ_GET: libc::c_int = 7;
/// `BPF_F_NO_PREALLOC`: pieces take memory only once they are there.
const NO_PREALLOC: u32 = 1;

/// With its key and the kernel's own words it makes 2 KiB.
const PIECE: usize = 1_984;
type Piece = [u8; PIECE];
/// 31 MiB of them at most.
const MOST_PIECES: u32 = 16_384;
/// Key of the identity: its length in two octets, and text.
const IDENTITY: u32 = u32::MAX;
/// Key of what is written last: length and checksum of the octets.
const HEAD: u32 = u32::MAX - 1;

/// Why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory is not to be had.
    #[error("--pin {}: {source} (its parent has to be a BPF file system that root may write to: mount -t bpf bpf /sys/fs/bpf)", .directory.display())]
    Directory {
        /// Where.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing can be pinned there.
    #[error("--pin {}: this is no BPF file system (mount one: mount -t bpf bpf /sys/fs/bpf; in a container, mount the host's)", .0.display())]
    FileSystem(PathBuf),
    /// Somebody else's.
    #[error("--pin {}: another probe uses it (end that one, or name another directory)", .0.display())]
    Locked(PathBuf),
    /// The map of the state is not to be had.
    #[error("--pin {}: {what}: {source}", .directory.display())]
    State {
        /// Where.
        directory: PathBuf,
        /// What did not work.
        what: &'static str,
        /// What the kernel said.
        source: Box<MapError>,
    },
    /// Nothing of it is there any more.
    #[error("--pin {}: it was removed while probe ran, so its programs end with it", .0.display())]
    Removed(PathBuf),
    /// What is there does not go.
    #[error("--pin {}: what is there cannot be removed: {source}", .directory.display())]
    Remove {
        /// Where.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is more to leave than there is room for.
    #[error("--pin {}: {octets} octets of state, and room for {}", .directory.display(), MOST_PIECES as usize * PIECE)]
    TooMuch {
        /// Where.
        directory: PathBuf,
        /// How many.
        octets: usize,
    },
}

/// What an earlier agent has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing is there.
    Nothing,
    /// Programs run, and who began them left nothing else: it was killed.
    Orphans,
    /// Everything.
    All {
        /// Who made it, as given to [`Pins::begin`].
        identity: String,
        /// What it knew.
        state: Vec<u8>,
    },
}

/// What is pinned in a directory, as anybody sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// Nothing.
    Nothing,
    /// An agent that runs has it.
    Running,
    /// So many programs run, and nobody reads what they find.
    Waiting(usize),
}

impl Pinned {
    /// Looks. What may not be looked at is taken for nothing.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(lock) = rustix::fs::open(directory, flags, Mode::empty()) else { return Self::Nothing };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            == Err(rustix::io::Errno::WOULDBLOCK)
        {
            return Self::Running;
        }
        let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
        let links = entries(directory)
            .flat_map(|object| entries(&object.path()))
            .filter(|entry| entry.file_name().as_bytes().starts_with(b"link_"))
            .count();
        if links == 0 { Self::Nothing } else { Self::Waiting(links) }
    }
}

type State = HashMap<MapData, u32, Plain<Piece>>;

/// The directory, locked.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    /// Held for as long as this is there.
    _lock: OwnedFd,
    state: Option<State>,
    /// Names of the maps of each object.
    maps: BTreeMap<&'static str, Vec<String>>,
    /// Whether what is pinned stays when this goes.
    stays: bool,
}

impl Pins {
    /// Makes the directory, if only it itself is missing, and locks it.
    ///
    /// # Errors
    ///
    /// When it is not on a BPF file system, or another process has it.
    pub fn open(
        directory: &Path,
        objects: impl Iterator<Item = &'static ObjectSpec>,
    ) -> Result<Self, PinError> {
        let refused = |source: io::Error| PinError::Directory { directory: directory.to_owned(), source };
        let parent = directory.parent().unwrap_or(directory);
        let is_bpf = |path: &Path| -> io::Result<bool> {
            // The type's width and sign are the architecture's.
            Ok(rustix::fs::statfs(path)?.f_type as u64 & 0xffff_ffff == BPF_FS_MAGIC)
        };
        if !directory.exists() {
            if !is_bpf(parent).map_err(refused)? {
                return Err(PinError::FileSystem(directory.to_owned()));
            }
            std::fs::DirBuilder::new().mode(0o700).create(directory).map_err(refused)?;
        }
        if !is_bpf(directory).map_err(refused)? {
            return Err(PinError::FileSystem(directory.to_owned()));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock =
            rustix::fs::open(directory, flags, Mode::empty()).map_err(|error| refused(error.into()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(PinError::Locked(directory.to_owned())),
            Err(error) => return Err(refused(error.into())),
        }
        let maps = objects.map(|object| (object.name, names_of_maps(object.elf))).collect();
        let directory = directory.to_owned();
        Ok(Self { directory, _lock: lock, state: None, maps, stays: true })
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What an earlier agent has left. It stays there.
    ///
    /// # Errors
    ///
    /// When its map does not read.
    pub fn look(&mut self) -> Result<Left, PinError> {
        if !std::fs::read_dir(&self.directory).is_ok_and(|mut entries| entries.next().is_some()) {
            return Ok(Left::Nothing);
        }
        // None, or one of another shape: another version's.
        let Ok(state) = self.open_state() else { return Ok(Left::Orphans) };
        let read = |source| self.error("what is left there does not read", source);
        let left = match (get(&state, IDENTITY).map_err(read)?, get(&state, HEAD).map_err(read)?) {
            (Some(identity), Some(head)) => octets(&state, &head)
                .map_err(read)?
                .map_or(Left::Orphans, |octets| Left::All { identity: text(&identity), state: octets }),
            (_, _) => Left::Orphans,
        };
        self.state = Some(state);
        Ok(left)
    }

    /// Removes everything that is pinned there, which detaches it, and begins anew.
    ///
    /// # Errors
    ///
    /// When something does not go, or the kernel makes no map.
    pub fn begin(&mut self, identity: &str) -> Result<(), PinError> {
        self.clear()?;
        self.stays = false;
        let error = |source| self.error("cannot make a map for the state", source);
        let path = self.directory.join("state");
        let state = State::create(MOST_PIECES, NO_PREALLOC).map_err(error)?;
        state.pin(&path).map_err(|source| error(MapError::PinError { name: None, error: source }))?;
        let mut state = self.open_state().map_err(error)?;
        let length = u16::try_from(identity.len()).unwrap_or(u16::MAX).to_le_bytes();
        let identity = [length.as_slice(), identity.as_bytes()].concat();
        state.insert(IDENTITY, piece(&identity), 0).map_err(error)?;
        self.state = Some(state);
        Ok(())
    }

    /// Everything is attached: from now on it stays when this process ends. What was left for this one is used up.
    pub fn commit(&mut self) {
        self.stays = true;
        if let Some(state) = &mut self.state {
            let _absent = state.remove(&HEAD);
            for number in 0..MOST_PIECES {
                if state.remove(&number).is_err() {
                    break;
                }
            }
        }
    }

    /// Leaves octets for the next agent.
    ///
    /// # Errors
    ///
    /// When there are too many, or the kernel does not take them. The next agent then begins anew.
    pub fn leave(&mut self, octets: &[u8]) -> Result<(), PinError> {
        let directory = self.directory.clone();
        if octets.len() > MOST_PIECES as usize * PIECE {
            return Err(PinError::TooMuch { directory, octets: octets.len() });
        }
        if !directory.join("state").exists() {
            return Err(PinError::Removed(directory));
        }
        let error = |source| PinError::State {
            directory: directory.clone(),
            what: "the state cannot be written",
            source: Box::new(source),
        };
        let Some(state) = &mut self.state else { return Ok(()) };
        for (number, bytes) in (0..).zip(octets.chunks(PIECE)) {
            state.insert(number, piece(bytes), 0).map_err(error)?;
        }
        let length = u64::try_from(octets.len()).unwrap_or(u64::MAX).to_le_bytes();
        let head = [length.as_slice(), &crc32fast::hash(octets).to_le_bytes()].concat();
        // Last: only what is whole is believed.
        state.insert(HEAD, piece(&head), 0).map_err(error)
    }

    /// Names of the maps of an object that are pinned. What belongs to programs alone (`.rodata`) is not.
    pub(super) fn maps_of(&self, object: &str) -> &[String] {
        self.maps.get(object).map_or(&[], Vec::as_slice)
    }

    /// The directory of an object.
    pub(super) fn of(&self, object: &str) -> PathBuf {
        self.directory.join(object)
    }

    /// Makes the directory of an object.
    pub(super) fn make(&self, object: &str) -> io::Result<PathBuf> {
        let directory = self.of(object);
        match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(directory),
        }
    }

    /// Forgets an object that does not run.
    pub(crate) fn forget(&self, object: &str) {
        let directory = self.of(object);
        if directory.exists()
            && let Err(error) = std::fs::remove_dir_all(&directory)
        {
            tracing::warn!("{}: {error}; what is pinned there stays", directory.display());
        }
    }

    fn open_state(&self) -> Result<State, MapError> {
        State::try_from(aya::maps::Map::from_map_data(MapData::from_pin(self.directory.join("state"))?)?)
    }

    fn clear(&mut self) -> Result<(), PinError> {
        self.state = None;
        let removed = std::fs::read_dir(&self.directory).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    std::fs::remove_dir_all(entry.path())?;
                } else {
                    std::fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        });
        removed.map_err(|source| PinError::Remove { directory: self.directory.clone(), source })
    }

    fn error(&self, what: &'static str, source: MapError) -> PinError {
        PinError::State { directory: self.directory.clone(), what, source: Box::new(source) }
    }
}

impl Drop for Pins {
    /// A start that failed leaves nothing behind.
    fn drop(&mut self) {
        if !self.stays
            && let Err(error) = self.clear()
        {
            tracing::warn!("{error}");
        }
    }
}

/// Names of the maps of an object, without those of its sections of data.
fn names_of_maps(elf: &[u8]) -> Vec<String> {
    let Ok(object) = aya_obj::Object::parse(elf) else { return Vec::new() };
    let mut names: Vec<String> = object.maps.into_keys().filter(|name| !name.starts_with('.')).collect();
    names.sort_unstable();
    names
}

/// A descriptor of what is pinned somewhere.
pub(super) fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` for `BPF_OBJ_*` commands.
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `attr` is the kernel's structure for this command; the path is alive and ends with NUL.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attr, size_of::<Attr>()) };
    match i32::try_from(result) {
        // SAFETY: a new descriptor, nobody else's.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn get(state: &State, key: u32) -> Result<Option<Piece>, MapError> {
    match state.get(&key, 0) {
        Ok(Plain(piece)) => Ok(Some(piece)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn piece(octets: &[u8]) -> Plain<Piece> {
    let mut piece = [0; PIECE];
    for (to, from) in piece.iter_mut().zip(octets) {
        *to = *from;
    }
    Plain(piece)
}

/// What [`HEAD`] tells of, if it is whole.
fn octets(state: &State, head: &Piece) -> Result<Option<Vec<u8>>, MapError> {
    let Some((length, rest)) = head.split_first_chunk::<8>() else { return Ok(None) };
    let Some(checksum) = rest.first_chunk::<4>() else { return Ok(None) };
    let most = MOST_PIECES as usize * PIECE;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|length| *length <= most);
    let Some(length) = length else { return Ok(None) };
    let mut octets = Vec::with_capacity(length);
    for number in 0.. {
        if octets.len() >= length {
            break;
        }
        let Some(piece) = get(state, number)? else { return Ok(None) };
        octets.extend_from_slice(&piece);
    }
    octets.truncate(length);
    Ok((crc32fast::hash(&octets) == u32::from_le_bytes(*checksum)).then_some(octets))
}

/// A text with its length before it.
fn text(piece: &Piece) -> String {
    let length = piece.first_chunk().map_or(0, |length| usize::from(u16::from_le_bytes(*length)));
    let octets = piece.get(2..).and_then(|text| text.get(..length)).unwrap_or_default();
    String::from_utf8_lossy(octets).into_owned()
}
