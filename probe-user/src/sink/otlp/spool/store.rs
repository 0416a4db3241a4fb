//! The directory: segments in the order of their numbers, the oldest first. Every call may wait for the disk.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustix::fs::{FlockOperation, OFlags, flock};

use super::segment::{self, Frame, State, Unreadable};
use crate::kernel::least;
use crate::sink::otlp::encode::{EncodedRequest, RequestLimits};

/// Whoever has it locked has the directory.
const LOCK: &str = "lock";
/// Made and removed at once, to see whether that goes.
const TRIAL: &str = "trial";
/// Behind the number of a segment, which is sixteen digits.
const EXTENSION: &str = "spool";
/// Where a new segment begins: so many make up what there may be, within bounds.
const SEGMENTS: u64 = 16;
const SMALLEST_SEGMENT: u64 = 64 << 10;
const LARGEST_SEGMENT: u64 = 4 << 20;
/// No segment is larger: the largest, and the largest frame beyond it.
const MOST_OCTETS: u64 = LARGEST_SEGMENT + (2 * segment::MOST_BODY) as u64;
/// Requests that are kept in memory while they cannot be written.
const HELD: usize = 8;
/// Between two times that the disk is waited for, so that a power cut costs no more than that.
const SYNC: Duration = Duration::from_secs(1);

/// Why a directory is of no use.
#[derive(Debug, thiserror::Error)]
#[error("--spool: {dir:?} cannot be used: {why}; {way_out}")]
pub struct SpoolError {
    dir: PathBuf,
    why: String,
    way_out: &'static str,
}

const WRITABLE: &str = "give a directory on a disk that the user probe runs as may write to by its permissions alone: capabilities that would override them are given back";

/// Log records that are lost, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// The oldest, for room.
    pub(super) full: u64,
    /// They could not be written.
    pub(super) unwritten: u64,
    /// They were torn or damaged.
    pub(super) damaged: u64,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    octets: u64,
    /// Log records that no collector has taken.
    items: u64,
}

/// The oldest segment, while it is sent.
#[derive(Debug)]
struct Head {
    number: u64,
    file: File,
    bytes: Bytes,
    /// Those that wait.
    frames: VecDeque<Frame>,
}

/// What is being sent.
#[derive(Debug)]
struct Taken {
    number: u64,
    frames: usize,
    items: u64,
    /// Its segment had to go meanwhile.
    is_gone: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    /// Locked for as long as it is open.
    _lock: File,
    most_octets: u64,
    segment_octets: u64,
    segments: VecDeque<Segment>,
    /// The last of them, while it is written to.
    active: Option<File>,
    /// Those before it that the disk may not have.
    sealed: Vec<File>,
    head: Option<Head>,
    taken: Option<Taken>,
    next: u64,
    /// Could not be written yet.
    held: VecDeque<EncodedRequest>,
    lost: Lost,
    trouble: Option<String>,
    /// Since when there is something that the disk may not have.
    unsynced: Option<Instant>,
}

impl Store {
    /// Takes a directory, which is made if only it itself is missing, and looks through what is there. Works with permissions alone, as
    /// everything after the start does.
    pub(super) fn open(dir: &Path, most_octets: u64) -> Result<Self, SpoolError> {
        let refuse = |why: String, way_out| SpoolError { dir: dir.to_owned(), why, way_out };
        let opened = least::without_capabilities(|| Self::open_plainly(dir, most_octets));
        let opened = opened.map_err(|error| refuse(error.to_string(), WRITABLE))?;
        opened.map_err(|refusal| match refusal {
            Refusal::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                refuse(error.to_string(), "make the directory above it; probe makes the last one only")
            }
            Refusal::Io(error) => refuse(error.to_string(), WRITABLE),
            Refusal::InUse => refuse("another probe uses it".to_owned(), "give each a directory of its own"),
            Refusal::Open => refuse(
                "others than its owner may write to it".to_owned(),
                "take that right away, or give a directory below it, which probe makes",
            ),
        })
    }

    fn open_plainly(dir: &Path, most_octets: u64) -> Result<Self, Refusal> {
        match std::fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        let dir = std::fs::canonicalize(dir)?;
        let about = std::fs::metadata(&dir)?;
        if !about.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory).into());
        }
        if about.mode() & 0o022 != 0 {
            return Err(Refusal::Open);
        }
        let lock = plainly().read(true).write(true).create(true).truncate(false).open(dir.join(LOCK))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Refusal::InUse),
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let trial = dir.join(TRIAL);
        plainly().write(true).create(true).truncate(false).open(&trial)?;
        std::fs::remove_file(&trial)?;
        let mut store = Self {
            dir,
            _lock: lock,
            most_octets,
            segment_octets: (most_octets / SEGMENTS).clamp(SMALLEST_SEGMENT, LARGEST_SEGMENT),
            segments: VecDeque::new(),
            active: None,
            sealed: Vec::new(),
            head: None,
            taken: None,
            next: 0,
            held: VecDeque::new(),
            lost: Lost::default(),
            trouble: None,
            unsynced: None,
        };
        store.look_through()?;
        store.make_room(0);
        Ok(store)
    }

    /// Finds the segments, and cuts off what was torn. What is not ours is left alone.
    fn look_through(&mut self) -> io::Result<()> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            numbers.extend(entry?.file_name().to_str().and_then(number_of));
        }
        numbers.sort_unstable();
        for number in numbers {
            self.next = self.next.max(number.saturating_add(1));
            let path = self.path(number);
            match self.look_at(number) {
                Ok(Some(segment)) => self.segments.push_back(segment),
                Ok(None) => {}
                Err(error) => tracing::warn!("{} is left where it is: {error}", path.display()),
            }
        }
        Ok(())
    }

    /// `None`: there is nothing in it any more.
    fn look_at(&mut self, number: u64) -> io::Result<Option<Segment>> {
        let path = self.path(number);
        let (file, bytes) = read(&path)?;
        let contents = match segment::read(&bytes) {
            Ok(contents) => contents,
            Err(Unreadable::Begun) => {
                std::fs::remove_file(&path)?;
                return Ok(None);
            }
            Err(Unreadable::Version(version)) => {
                return Err(io::Error::other(format!(
                    "it is of version {version}; this probe knows {}",
                    segment::VERSION
                )));
            }
            Err(Unreadable::Foreign) => return Err(io::Error::other("it is no segment")),
        };
        if let Some(tail) = contents.tail {
            file.set_len(octets(contents.end))?;
            self.lost.damaged += u64::from(tail.items);
            tracing::warn!(
                "{}: the last {} octets were not written to their end and are cut off, with {} events at least",
                path.display(),
                tail.octets,
                tail.items
            );
        }
        let mut items = 0;
        for frame in &contents.frames {
            match frame.state {
                State::Waiting => items += u64::from(frame.items),
                State::Sent => {}
                State::Damaged => {
                    // Counted once, and not at every start.
                    file.write_all_at(&segment::SENT, octets(frame.at))?;
                    self.lost.damaged += u64::from(frame.items);
                    tracing::warn!(
                        "{}: {} events at octet {} are damaged",
                        path.display(),
                        frame.items,
                        frame.at
                    );
                }
            }
        }
        if items == 0 {
            std::fs::remove_file(&path)?;
            return Ok(None);
        }
        Ok(Some(Segment { number, octets: octets(contents.end), items }))
    }

    /// Where a request should be cut.
    pub(super) fn limits(&self, limits: RequestLimits) -> RequestLimits {
        let fits = usize::try_from(self.segment_octets).unwrap_or(usize::MAX);
        let fits = fits.saturating_sub(segment::HEADER + segment::FRAME_HEAD);
        RequestLimits { bytes: limits.bytes.min(fits), ..limits }
    }

    /// Writes a request, or keeps it until that goes.
    pub(super) fn append(&mut self, request: EncodedRequest) {
        self.held.push_back(request);
        self.write_held();
    }

    /// Tries again what could not be written. True: nothing is kept back.
    pub(super) fn write_held(&mut self) -> bool {
        while let Some(request) = self.held.pop_front() {
            if let Err(error) = self.write(&request) {
                if error.kind() == io::ErrorKind::FileTooLarge {
                    self.lost.unwritten += request.items;
                    continue;
                }
                self.held.push_front(request);
                self.trouble = Some(error.to_string());
                while self.held.len() > HELD {
                    self.lost.unwritten += self.held.pop_front().map_or(0, |request| request.items);
                }
                return false;
            }
            self.trouble = None;
        }
        true
    }

    fn write(&mut self, request: &EncodedRequest) -> io::Result<()> {
        let items = u32::try_from(request.items).unwrap_or(u32::MAX);
        let frame = segment::frame(&request.body, items).ok_or(io::ErrorKind::FileTooLarge)?;
        let needed = octets(frame.len());
        if needed + octets(segment::HEADER) > self.most_octets {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let is_full = |last: &Segment| {
            last.octets > octets(segment::HEADER) && last.octets + needed > self.segment_octets
        };
        if self.segments.back().is_some_and(is_full) {
            self.seal();
        }
        self.make_room(needed + octets(segment::HEADER));
        if self.active.is_none() {
            self.begin()?;
        }
        let (Some(file), Some(last)) = (&self.active, self.segments.back_mut()) else {
            return Err(io::Error::other("no segment"));
        };
        if let Err(error) = file.write_all_at(&frame, last.octets) {
            // What there is of it is not to be found by the next one. If even that fails, the next start cuts it off.
            if file.set_len(last.octets).is_err() {
                self.active = None;
            }
            return Err(error);
        }
        last.octets += needed;
        last.items += request.items;
        self.unsynced.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        let path = self.path(self.next);
        let file = plainly().write(true).create_new(true).open(&path)?;
        self.next += 1;
        if let Err(error) = file.write_all_at(&segment::header(), 0) {
            // Nothing is lost with it.
            let _there = std::fs::remove_file(&path);
            return Err(error);
        }
        self.segments.push_back(Segment { number: self.next - 1, octets: octets(segment::HEADER), items: 0 });
        self.active = Some(file);
        Ok(())
    }

    /// Nothing more goes into the last segment.
    fn seal(&mut self) {
        self.sealed.extend(self.active.take());
    }

    fn note(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.trouble = Some(error.to_string());
        }
    }

    /// Removes the oldest until there is room for so much more.
    fn make_room(&mut self, needed: u64) {
        while self.octets() + needed > self.most_octets
            && let Some(oldest) = self.segments.front()
        {
            let (number, mut items) = (oldest.number, oldest.items);
            // What is under way may arrive yet.
            if let Some(taken) = self.taken.as_mut().filter(|taken| taken.number == number) {
                taken.is_gone = true;
                items = items.saturating_sub(taken.items);
            }
            self.lost.full += items;
            self.remove_oldest();
        }
    }

    fn remove_oldest(&mut self) {
        let Some(oldest) = self.segments.pop_front() else { return };
        if self.segments.is_empty() {
            self.active = None;
        }
        if self.head.as_ref().is_some_and(|head| head.number == oldest.number) {
            self.head = None;
        }
        let removed = std::fs::remove_file(self.path(oldest.number));
        self.note(removed);
    }

    /// The oldest records, as one request. Whatever was taken before and is not [`Self::done`] waits again.
    pub(super) fn take(&mut self, limits: RequestLimits) -> Option<EncodedRequest> {
        self.give_back();
        loop {
            let number = self.segments.front()?.number;
            if self.head.as_ref().is_none_or(|head| head.number != number)
                && let Err(error) = self.open_head(number)
            {
                tracing::warn!("{} cannot be read: {error}", self.path(number).display());
                self.lost.damaged += self.segments.front().map_or(0, |oldest| oldest.items);
                self.remove_oldest();
                continue;
            }
            let head = self.head.as_ref()?;
            let (mut frames, mut bytes, mut items) = (0, 0, 0u64);
            for frame in &head.frames {
                let (len, more) = (frame.body.len(), u64::from(frame.items));
                let too_many = usize::try_from(items + more).is_ok_and(|items| items > limits.items);
                if frames > 0 && (bytes + len > limits.bytes || too_many) {
                    break;
                }
                (frames, bytes, items) = (frames + 1, bytes + len, items + more);
            }
            if frames == 0 {
                self.remove_oldest();
                continue;
            }
            let mut body = BytesMut::with_capacity(bytes);
            // Messages behind one another are one, with the elements of all of them.
            for frame in head.frames.iter().take(frames) {
                body.extend_from_slice(head.bytes.get(frame.body.clone()).unwrap_or_default());
            }
            self.taken = Some(Taken { number, frames, items, is_gone: false });
            return Some(EncodedRequest { body: body.freeze(), first: 0, items });
        }
    }

    fn open_head(&mut self, number: u64) -> io::Result<()> {
        if self.segments.len() == 1 {
            self.seal();
        }
        let (file, bytes) = read(&self.path(number))?;
        let contents =
            segment::read(&bytes).map_err(|_unreadable| io::Error::other("it is no segment any more"))?;
        let frames: VecDeque<Frame> =
            contents.frames.into_iter().filter(|frame| frame.state == State::Waiting).collect();
        let found: u64 = frames.iter().map(|frame| u64::from(frame.items)).sum();
        if let Some(segment) = self.segments.front_mut() {
            // The disk does not give back what it was given.
            self.lost.damaged += segment.items.saturating_sub(found);
            segment.items = found;
        }
        self.head = Some(Head { number, file, bytes: bytes.into(), frames });
        Ok(())
    }

    /// What was taken has been delivered, or refused for good.
    pub(super) fn done(&mut self) {
        let Some(taken) = self.taken.take().filter(|taken| !taken.is_gone) else { return };
        let mut outcome = Ok(());
        let mut is_empty = false;
        if let Some(head) = self.head.as_mut().filter(|head| head.number == taken.number) {
            for frame in head.frames.drain(..taken.frames.min(head.frames.len())) {
                outcome = outcome.and(head.file.write_all_at(&segment::SENT, octets(frame.at)));
            }
            is_empty = head.frames.is_empty();
        }
        if let Some(oldest) = self.segments.front_mut() {
            oldest.items = oldest.items.saturating_sub(taken.items);
        }
        self.note(outcome);
        if is_empty {
            self.remove_oldest();
        }
    }

    /// What was taken is not under way any more.
    pub(super) fn give_back(&mut self) {
        if let Some(taken) = self.taken.take().filter(|taken| taken.is_gone) {
            self.lost.full += taken.items;
        }
    }

    /// Waits for the disk, if it is time.
    pub(super) fn sync(&mut self, now: bool) {
        if self.unsynced.is_some_and(|since| now || since.elapsed() >= SYNC) {
            self.unsynced = None;
            let files = std::mem::take(&mut self.sealed);
            let mut outcome = files.iter().chain(&self.active).try_for_each(File::sync_data);
            // Their names, too, are to outlive a power cut.
            outcome = outcome.and_then(|()| File::open(&self.dir)?.sync_all());
            self.note(outcome);
        }
    }

    /// What could not be written, to be sent as it is.
    pub(super) fn take_held(&mut self) -> Option<EncodedRequest> {
        self.held.pop_front()
    }

    /// Log records that wait: on disk, and before it.
    pub(super) fn items(&self) -> (u64, u64) {
        (
            self.segments.iter().map(|segment| segment.items).sum(),
            self.held.iter().map(|request| request.items).sum(),
        )
    }

    /// Of all segments.
    pub(super) fn octets(&self) -> u64 {
        self.segments.iter().map(|segment| segment.octets).sum()
    }

    /// What was lost since this was asked last.
    pub(super) fn lost(&mut self) -> Lost {
        std::mem::take(&mut self.lost)
    }

    /// What is wrong with the disk at present.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) const fn is_unsynced(&self) -> bool {
        self.unsynced.is_some()
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:016x}.{EXTENSION}"))
    }
}

enum Refusal {
    Io(io::Error),
    InUse,
    Open,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn octets(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// For nobody else, and not by way of a link.
fn plainly() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    options
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    let is_ours =
        digits.len() == 16 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(digits, 16).ok().filter(|_| is_ours)
}

fn read(path: &Path) -> io::Result<(File, Vec<u8>)> {
    let mut file = plainly().read(true).write(true).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() || about.len() > MOST_OCTETS {
        return Err(io::Error::other("it is no segment"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0));
    file.read_to_end(&mut bytes)?;
    Ok((file, bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A directory that goes with the test.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("probe-spool-{name}-{}", std::process::id()));
            drop(std::fs::remove_dir_all(&path));
            Self(path)
        }

        fn open(&self, most: u64) -> Store {
            Store::open(&self.0, most).unwrap()
        }

        fn files(&self) -> Vec<String> {
            let mut names: Vec<_> = std::fs::read_dir(&self.0)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    fn request(fill: u8, len: usize) -> EncodedRequest {
        EncodedRequest { body: vec![fill; len].into(), first: 0, items: 1 }
    }

    /// Everything, request by request, without limits worth the name.
    fn drain(store: &mut Store) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(request) = store.take(RequestLimits { bytes: 1, items: 1 }) {
            assert!(request.body.iter().all(|byte| *byte == request.body[0]));
            all.push(request.body[0]);
            store.done();
        }
        all
    }

    #[test]
    fn what_waits_survives_a_restart_and_goes_oldest_first() {
        let dir = Dir::new("restart");
        let mut store = dir.open(MIB);
        for fill in 1..=9 {
            store.append(request(fill, 30_000));
        }
        assert_eq!((store.items(), store.segments.len()), ((9, 0), 5), "two fit into 64 KiB");
        // One is delivered, one is under way when it ends: that one comes again.
        assert!(store.take(RequestLimits { bytes: 1, items: 1 }).is_some());
        store.done();
        assert!(store.take(RequestLimits { bytes: 1, items: 1 }).is_some());
        drop(store);
        let mut store = dir.open(MIB);
        assert_eq!((store.items(), store.lost()), ((8, 0), Lost::default()));
        store.append(request(10, 5));
        assert_eq!(drain(&mut store), [2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!((store.octets(), dir.files()), (0, vec![LOCK.to_owned()]));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        store.append(request(11, 5));
        assert_eq!((mode(&dir.0), mode(&store.path(store.next - 1))), (0o700, 0o600));
    }

    #[test]
    fn requests_are_put_together_within_limits() {
        let dir = Dir::new("together");
        let mut store = dir.open(MIB);
        for fill in 1..=7 {
            store.append(request(fill, 100));
        }
        let mut taken = Vec::new();
        for limits in [RequestLimits { bytes: 250, items: 9 }, RequestLimits { bytes: 10_000, items: 3 }] {
            let request = store.take(limits).unwrap();
            assert_eq!(request.body.len() as u64, 100 * request.items);
            taken.push(request.items);
            store.done();
        }
        assert_eq!((taken, drain(&mut store)), (vec![2, 3], vec![6, 7]));
    }

    #[test]
    fn the_oldest_go_for_room_and_are_counted_unless_they_arrive() {
        let dir = Dir::new("room");
        let mut store = dir.open(MIB);
        for _ in 0..20 {
            store.append(request(1, 60_000));
        }
        let (left, lost) = (store.items().0, store.lost());
        assert!(store.octets() <= MIB);
        assert_eq!((left + lost.full, lost.full > 0), (20, true));
        // One is under way while its segment goes.
        assert!(store.take(RequestLimits { bytes: 1, items: 1 }).is_some());
        for _ in 0..20 {
            store.append(request(2, 60_000));
        }
        let under_way = store.lost().full;
        assert_eq!(store.items().0 + under_way, left + 19);
        store.done();
        assert_eq!(store.lost().full, 0, "it has arrived");
        assert!(store.take(RequestLimits { bytes: 1, items: 1 }).is_some());
        for _ in 0..20 {
            store.append(request(3, 60_000));
        }
        let before = store.lost().full;
        store.give_back();
        assert_eq!((store.lost().full, before), (1, 19), "it has not");
        // A smaller limit holds for what is there.
        drop(store);
        let most = 5 * 60_100;
        let mut store = Store::open(&dir.0, most).unwrap();
        assert!(store.octets() <= most);
        assert_eq!(store.items().0 + store.lost().full, left);
        // Larger than all that there may be.
        store.append(request(4, 400_000));
        assert_eq!((store.lost().unwritten, store.items().1), (1, 0));
    }

    #[test]
    fn torn_damaged_and_foreign_files() {
        let dir = Dir::new("torn");
        let mut store = dir.open(MIB);
        for fill in 1..=3 {
            store.append(request(fill, 1_000));
        }
        let path = store.path(0);
        drop(store);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let (later, letter) = (dir.0.join("00000000000000ff.spool"), dir.0.join("letter.spool"));
        std::fs::write(&later, b"not one of ours, I fear").unwrap();
        std::fs::write(&letter, b"dear spool").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.0.join("00000000000000aa.spool")).unwrap();
        std::fs::create_dir(dir.0.join("00000000000000bb.spool")).unwrap();
        // A crash came before the header.
        std::fs::write(dir.0.join("0000000000000009.spool"), &segment::MAGIC[..5]).unwrap();
        let mut store = dir.open(MIB);
        assert_eq!((store.items().0, store.lost().damaged, store.next), (2, 1, 0x100));
        drop(store);
        let mut damaged = std::fs::read(&path).unwrap();
        damaged[segment::HEADER + segment::FRAME_HEAD + 7] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let mut store = dir.open(MIB);
        assert_eq!((store.items().0, store.lost().damaged), (1, 1));
        assert_eq!(drain(&mut store), [2]);
        drop(store);
        let mut store = dir.open(MIB);
        assert_eq!((store.lost(), store.items()), (Lost::default(), (0, 0)), "counted once");
        let left = [
            "00000000000000aa.spool",
            "00000000000000bb.spool",
            "00000000000000ff.spool",
            "letter.spool",
            LOCK,
        ];
        assert_eq!(dir.files(), left);
        assert_eq!(std::fs::read(&later).unwrap(), b"not one of ours, I fear");
    }

    #[test]
    fn a_directory_is_one_probes_and_nobody_elses() {
        let dir = Dir::new("whose");
        let first = dir.open(MIB);
        let error = Store::open(&dir.0, MIB).unwrap_err().to_string();
        assert!(error.contains("--spool") && error.contains("another probe uses it"), "{error}");
        drop(first);
        let allow = |mode| std::fs::set_permissions(&dir.0, std::fs::Permissions::from_mode(mode)).unwrap();
        for (mode, wanted) in [(0o500, "Permission denied"), (0o777, "others than its owner")] {
            allow(mode);
            let error = Store::open(&dir.0, MIB).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        allow(0o700);
        drop(dir.open(MIB));
        let file = dir.0.join("file");
        std::fs::write(&file, "").unwrap();
        for path in [file, dir.0.join("a/b"), PathBuf::from("/proc/spool")] {
            assert!(Store::open(&path, MIB).is_err(), "{path:?}");
        }
    }

    /// What the disk does not take waits in memory, within bounds, and is written when it does.
    #[test]
    fn a_disk_that_takes_nothing_costs_no_more_than_there_is_no_room_for() {
        let dir = Dir::new("gone");
        let mut store = dir.open(MIB);
        let away = dir.0.with_extension("away");
        std::fs::rename(&dir.0, &away).unwrap();
        for fill in 0..10 {
            store.append(request(fill, 10));
        }
        assert!(store.trouble().is_some() && !store.write_held());
        assert_eq!((store.items(), store.lost().unwritten), ((0, HELD as u64), 2));
        assert_eq!(store.take_held().map(|request| request.body[0]), Some(2));
        std::fs::rename(&away, &dir.0).unwrap();
        assert!(store.write_held() && store.trouble().is_none());
        assert_eq!(drain(&mut store), [3, 4, 5, 6, 7, 8, 9]);
    }
}
