//! A file that is written once, at the end.
//!
//! It is opened before capabilities are given back: a directory that belongs to somebody else (`sudo`, in one's own home) lets root in for
//! CAP_DAC_OVERRIDE only. At the end a new file takes the place of the old one at once; where the directory does not take new files any
//! more, the one that was opened is written.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {error} ({})", path.display(), remedy(error))]
pub struct OutputError {
    path: PathBuf,
    #[source]
    error: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "make its directory first",
        io::ErrorKind::PermissionDenied => "name a file in a directory that you may write to",
        io::ErrorKind::IsADirectory => "name a file in it",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room, or name a file elsewhere",
        _ => "name a file elsewhere",
    }
}

/// A file to be written.
#[derive(Debug)]
pub struct Output {
    /// As it was named.
    named: PathBuf,
    /// Where that leads.
    path: PathBuf,
    file: File,
    /// It was not there before, and is empty still.
    made: bool,
}

impl Output {
    /// Opens it, and makes it if there is none; what it has in it stays until the new is complete.
    ///
    /// # Errors
    ///
    /// It cannot be made or written.
    pub fn open(path: &Path) -> Result<Self, OutputError> {
        let failed = |error| OutputError { path: path.to_owned(), error };
        let open = |options: &mut OpenOptions| options.write(true).open(path);
        let (file, made) = match open(OpenOptions::new().create_new(true)) {
            Ok(file) => (file, true),
            // A link that leads nowhere yet is no file, and in the way of a new one.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                (open(OpenOptions::new().create(true).truncate(false)).map_err(failed)?, false)
            }
            Err(error) => return Err(failed(error)),
        };
        let real = path.canonicalize().map_err(failed)?;
        Ok(Self { named: path.to_owned(), path: real, file, made })
    }

    /// Writes it, whole.
    ///
    /// # Errors
    ///
    /// The system's; what was there before is there still, unless there was no other way than to write over it.
    pub fn write(mut self, bytes: &[u8]) -> Result<(), OutputError> {
        let outcome = self.write_whole(bytes);
        self.made &= outcome.is_err();
        outcome.map_err(|error| OutputError { path: self.named.clone(), error })
    }

    fn write_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self { named: _, path, file, made: _ } = self;
        let found = file.metadata()?;
        // Pipes and devices take what comes.
        if !found.is_file() {
            return file.write_all(bytes);
        }
        let mut beside = path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
        beside.push(format!(".{}.tmp", std::process::id()));
        let beside = path.with_file_name(beside);
        match replace(path, &beside, bytes, &found) {
            Err(error)
                if [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem]
                    .contains(&error.kind()) =>
            {
                file.set_len(0)?;
                file.write_all(bytes)?;
                file.sync_all()
            }
            outcome => outcome,
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.made {
            // Nothing was written: what is left behind is an empty file at worst.
            let _left = std::fs::remove_file(&self.path);
        }
    }
}

fn replace(path: &Path, beside: &Path, bytes: &[u8], like: &std::fs::Metadata) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(beside)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.set_permissions(like.permissions()))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(beside, path));
    if written.is_err() {
        // It is the first error that counts.
        let _left = std::fs::remove_file(beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::kernel::least;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("probe-output-{}-{name}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = std::fs::read_dir(&self.0)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_new_file_takes_the_place_of_the_old_one() {
        let dir = Dir::new("replace");
        let path = dir.0.join("out.svg");
        Output::open(&path).unwrap().write(b"first").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let inode = path.metadata().unwrap().ino();
        let link = dir.0.join("link");
        std::os::unix::fs::symlink("out.svg", &link).unwrap();
        let output = Output::open(&link).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first", "nothing is lost before the end");
        output.write(b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        let found = path.metadata().unwrap();
        assert!(found.ino() != inode && found.permissions().mode() & 0o777 == 0o640);
        assert_eq!(dir.names(), ["link", "out.svg"]);
        assert!(link.is_symlink());
    }

    #[test]
    fn what_is_never_written_leaves_nothing() {
        let dir = Dir::new("nothing");
        drop(Output::open(&dir.0.join("new")).unwrap());
        assert!(dir.names().is_empty());
        std::fs::write(dir.0.join("old"), b"old").unwrap();
        drop(Output::open(&dir.0.join("old")).unwrap());
        assert_eq!(std::fs::read(dir.0.join("old")).unwrap(), b"old");
    }

    /// As after capabilities were given back.
    #[test]
    fn a_directory_that_takes_no_new_files_any_more() {
        let dir = Dir::new("closed");
        let path = dir.0.join("out.svg");
        let output = Output::open(&path).unwrap();
        std::fs::write(&path, b"something longer").unwrap();
        std::fs::set_permissions(&dir.0, std::fs::Permissions::from_mode(0o555)).unwrap();
        let mut written = None;
        least::reads_without(|| {
            written = Some((output.write(b"picture"), Output::open(&dir.0.join("other"))));
            Ok(())
        })
        .unwrap();
        let (written, other) = written.unwrap();
        written.unwrap();
        assert!(
            other.unwrap_err().to_string().ends_with("(name a file in a directory that you may write to)")
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"picture");
        std::fs::set_permissions(&dir.0, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(dir.names(), ["out.svg"]);
    }

    #[test]
    fn errors_say_what_to_do() {
        let dir = Dir::new("errors");
        let cases = [
            (
                dir.0.join("absent/out.svg"),
                "out.svg: No such file or directory (os error 2) (make its directory first)",
            ),
            (dir.0.clone(), "Is a directory (os error 21) (name a file in it)"),
            (
                "/dev/full".into(),
                "No space left on device (os error 28) (make room, or name a file elsewhere)",
            ),
        ];
        for (path, want) in cases {
            let error =
                Output::open(&path).and_then(|output| output.write(b"picture")).unwrap_err().to_string();
            assert!(error.starts_with("cannot write /") && error.ends_with(want), "{error}");
        }
        Output::open(Path::new("/dev/null")).unwrap().write(b"picture").unwrap();
    }
}
