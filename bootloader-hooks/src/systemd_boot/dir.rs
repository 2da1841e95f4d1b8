//! The directory of entry files, and the few changes that are made in it.
//!
//! Nothing here allocates or frees a cluster of the FAT, but the making of a lost entry: a rename changes directory
//! sectors only, and a content is replaced in place. What a power cut in a rename may leave (both names for one file,
//! the new one empty, or, without the mount option `dirsync`, neither) the back end is ready for; for that reason
//! nothing is ever deleted here: freeing one of two names of a file would free the other's content.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::PosixFadviseAdvice;
use nix::libc;

use super::entry::SECTOR;
use crate::BootError;

/// More files than a directory of entries has.
const MAX_FILES: usize = 256;
/// An entry is far smaller; what is longer is cut.
const MAX_CONTENT: u64 = 64 << 10;

/// A file: its name and its content.
pub(super) type Found = (String, Vec<u8>);

/// What the back end does to one directory `loader/entries`. Each call is durable and read back when it returns.
pub(super) trait EntryDir: Send {
    /// For messages.
    fn path(&self) -> &Path;

    /// All files with a name that is text.
    fn list(&self) -> Result<Vec<Found>, BootError>;

    /// Replaces the content of a file in one write, in place.
    fn rewrite(&self, name: &str, content: &[u8; SECTOR]) -> Result<(), BootError>;

    /// Gives a file another name, which no file has.
    fn rename(&self, from: &str, to: &str) -> Result<(), BootError>;

    /// Makes a file.
    fn create(&self, name: &str, content: &[u8; SECTOR]) -> Result<(), BootError>;
}

/// A directory on a file system, FAT as a rule.
pub(super) struct FatDir(PathBuf);

impl FatDir {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    fn put(&self, name: &str, content: &[u8; SECTOR], options: &OpenOptions) -> Result<(), BootError> {
        let path = self.0.join(name);
        let put = || {
            let file = options.open(&path)?;
            file.write_all_at(content, 0)?;
            // A template is one sector long; what somebody wrote longer by hand must not show through.
            if file.metadata()?.len() > SECTOR as u64 {
                file.set_len(SECTOR as u64)?;
            }
            file.sync_all()?;
            self.sync()?;
            // So that what is read back comes from the disk. Only advice.
            let _ = nix::fcntl::posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
            read(&path)
        };
        let found = put().map_err(|source| BootError::Io { action: "write", path: path.clone(), source })?;
        if found == content { Ok(()) } else { Err(differs(&path, "what was written", "something else")) }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

impl EntryDir for FatDir {
    fn path(&self) -> &Path {
        &self.0
    }

    fn list(&self) -> Result<Vec<Found>, BootError> {
        let io = |source| BootError::Io { action: "read", path: self.0.clone(), source };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.0).map_err(io)?.take(MAX_FILES) {
            let entry = entry.map_err(io)?;
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if let (Ok(name), true) = (entry.file_name().into_string(), is_file) {
                // A file that cannot be read is none to the loader either.
                found.push((name, read(&entry.path()).unwrap_or_default()));
            }
        }
        Ok(found)
    }

    fn rewrite(&self, name: &str, content: &[u8; SECTOR]) -> Result<(), BootError> {
        self.put(name, content, OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), BootError> {
        let (old, new) = (self.0.join(from), self.0.join(to));
        let before =
            read(&old).map_err(|source| BootError::Io { action: "read", path: old.clone(), source })?;
        let rename = || {
            std::fs::rename(&old, &new)?;
            // The new name gets durable before the old one goes, where they lie in different sectors.
            File::open(&new)?.sync_all()?;
            self.sync()?;
            Ok((old.exists(), read(&new)?))
        };
        let (still, after) =
            rename().map_err(|source| BootError::Io { action: "rename to", path: new.clone(), source })?;
        match (still, after == before) {
            (false, true) => Ok(()),
            (true, _) => Err(differs(&old, "gone", "still there")),
            (_, false) => Err(differs(&new, "what it was before its new name", "something else")),
        }
    }

    fn create(&self, name: &str, content: &[u8; SECTOR]) -> Result<(), BootError> {
        self.put(name, content, OpenOptions::new().read(true).write(true).create_new(true))
    }
}

/// The content of a file.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(MAX_CONTENT).read_to_end(&mut content)?;
    Ok(content)
}

fn differs(path: &Path, wanted: &str, found: &str) -> BootError {
    BootError::ReadBack { what: path.display().to_string(), wanted: wanted.into(), found: found.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_made_in_place_and_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let entries = FatDir::new(dir.path().into());
        std::fs::write(dir.path().join("x.conf"), [b'a'; 700]).unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        entries.rewrite("x.conf", &[b'b'; SECTOR]).unwrap();
        entries.rename("x.conf", "x+1.conf").unwrap();
        entries.create("y.conf", &[b'c'; SECTOR]).unwrap();
        let mut all = entries.list().unwrap();
        all.sort_unstable();
        assert_eq!(all, [("x+1.conf".into(), vec![b'b'; SECTOR]), ("y.conf".into(), vec![b'c'; SECTOR])]);
    }

    #[test]
    fn what_is_not_there_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let entries = FatDir::new(dir.path().into());
        std::fs::write(dir.path().join("x.conf"), b"").unwrap();
        for error in [
            entries.rewrite("no.conf", &[0; SECTOR]).unwrap_err(),
            entries.rename("no.conf", "new.conf").unwrap_err(),
            entries.create("x.conf", &[0; SECTOR]).unwrap_err(),
            FatDir::new("/nonexistent/entries".into()).list().unwrap_err(),
        ] {
            let text = error.to_string();
            assert!([".conf", "/nonexistent/entries"].iter().any(|p| text.contains(p)), "{text}");
        }
    }
}
