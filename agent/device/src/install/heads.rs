//! What waits in the state directory until the whole set is complete: the head of each image, and a note of what was
//! written and verified.
//!
//! `head.SLOT` has the first 1 MiB of the image (or all of it); it is there whole or not at all. `head.SLOT.part` is
//! the room reserved for it. `done.SLOT` says that the rest is in the slot and verified.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use otandem_core::image::{Expect, Md5, Sha256};
use serde::{Deserialize, Serialize};

use super::error::Fault;
use super::slot::HEAD;

/// A note is far smaller than this.
const NOTE_LIMIT: u64 = 4096;

/// What was written to a slot, once it is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Note {
    /// Version of this form.
    pub(crate) version: u32,
    pub(crate) size: u64,
    pub(crate) sha256: Sha256,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file_sha256: Option<Sha256>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) md5: Option<Md5>,
    /// What the image was verified against: a note for other promises proves nothing.
    pub(crate) raw: Expect,
    pub(crate) file: Expect,
}

impl Note {
    /// The form that this build writes and reads.
    pub(crate) const VERSION: u32 = 1;
}

/// The state directory, as far as heads are concerned.
pub(crate) struct Heads<'a> {
    directory: &'a Path,
}

impl<'a> Heads<'a> {
    pub(crate) fn new(directory: &'a Path) -> Self {
        Self { directory }
    }

    fn file(&self, name: &str, slot: &str) -> PathBuf {
        self.directory.join(format!("{name}.{slot}"))
    }

    fn part(&self, slot: &str) -> PathBuf {
        self.directory.join(format!("head.{slot}.part"))
    }

    /// Takes the room for a head, so that a full disk is found out before anything is written.
    pub(crate) fn reserve(&self, slot: &str) -> Result<(), Fault> {
        let path = self.part(slot);
        let reserve = || {
            let file = create(&path)?;
            let len = libc::off_t::try_from(HEAD).unwrap_or(libc::off_t::MAX);
            match nix::fcntl::posix_fallocate(&file, 0, len) {
                // Flash file systems have no such call: written zeros take room as well.
                Err(nix::Error::EOPNOTSUPP | nix::Error::EINVAL) => file.write_all_at(&vec![0; HEAD], 0),
                other => Ok(other?),
            }
        };
        reserve().map_err(|source| Fault::State { what: "reserve 1 MiB for", path, source })
    }

    /// Stores a head durably.
    pub(crate) fn store(&self, slot: &str, head: &[u8]) -> Result<(), Fault> {
        let (part, path) = (self.part(slot), self.file("head", slot));
        let store = || {
            let file = create(&part)?;
            file.write_all_at(head, 0)?;
            file.set_len(head.len() as u64)?;
            self.settle(&file, &part, &path)
        };
        store().map_err(|source| Fault::State { what: "write", path, source })
    }

    /// The stored head, if it has `len` bytes.
    pub(crate) fn load(&self, slot: &str, len: usize) -> Result<Vec<u8>, Fault> {
        let path = self.file("head", slot);
        let load = || {
            let file = File::open(&path)?;
            if file.metadata()?.len() != len as u64 {
                return Err(io::Error::other("its size is not that of a head"));
            }
            let mut head = Vec::with_capacity(len.min(HEAD));
            file.take(HEAD as u64).read_to_end(&mut head)?;
            Ok(head)
        };
        load().map_err(|source| Fault::State { what: "read", path, source })
    }

    /// Stores a note durably.
    pub(crate) fn note(&self, slot: &str, note: &Note) -> Result<(), Fault> {
        let path = self.file("done", slot);
        let part = self.directory.join(format!("done.{slot}.part"));
        let store = || {
            let mut file = create(&part)?;
            file.set_len(0)?;
            file.write_all(&serde_json::to_vec(note)?)?;
            self.settle(&file, &part, &path)
        };
        store().map_err(|source| Fault::State { what: "write", path, source })
    }

    /// The note on a slot; `None` if there is none that can be used.
    pub(crate) fn read_note(&self, slot: &str) -> Option<Note> {
        let mut text = Vec::new();
        File::open(self.file("done", slot)).ok()?.take(NOTE_LIMIT).read_to_end(&mut text).ok()?;
        parse_note(&text)
    }

    /// Removes what waits for `slot`, durably, but keeps the room that was reserved.
    pub(crate) fn renew(&self, slot: &str) -> Result<(), Fault> {
        // The note first: without the head it would be a promise that nothing keeps.
        self.remove(&[self.file("done", slot), self.file("head", slot)])
    }

    /// Removes everything that belongs to `slot`, durably.
    pub(crate) fn forget(&self, slot: &str) -> Result<(), Fault> {
        self.renew(slot)?;
        self.remove(&[self.part(slot), self.directory.join(format!("done.{slot}.part"))])
    }

    fn remove(&self, paths: &[PathBuf]) -> Result<(), Fault> {
        for path in paths {
            match std::fs::remove_file(path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Fault::State { what: "remove", path: path.clone(), source });
                }
                _ => {}
            }
        }
        self.sync().map_err(|source| Fault::State { what: "sync", path: self.directory.to_owned(), source })
    }

    fn settle(&self, file: &File, part: &Path, path: &Path) -> io::Result<()> {
        file.sync_all()?;
        std::fs::rename(part, path)?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        File::open(self.directory)?.sync_all()
    }
}

fn parse_note(text: &[u8]) -> Option<Note> {
    serde_json::from_slice(text).ok().filter(|note: &Note| note.version == Note::VERSION)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use otandem_core::image::Hex;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn note() -> Note {
        Note {
            version: Note::VERSION,
            size: 7,
            sha256: Hex([7; 32]),
            file_sha256: None,
            md5: Some(Hex([1; 16])),
            raw: Expect { size: Some(7), ..Expect::default() },
            file: Expect::default(),
        }
    }

    #[test]
    fn head_is_whole_or_absent_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let heads = Heads::new(dir.path());
        heads.reserve("rootfs").unwrap();
        assert!(heads.load("rootfs", HEAD).is_err(), "room alone is not a head");
        heads.store("rootfs", b"head").unwrap();
        assert_eq!(heads.load("rootfs", 4).unwrap(), b"head");
        assert!(heads.load("rootfs", 5).is_err());
        let mode = std::fs::metadata(dir.path().join("head.rootfs")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        heads.note("rootfs", &note()).unwrap();
        assert_eq!(heads.read_note("rootfs"), Some(note()));
        heads.forget("rootfs").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_state_directory_is_a_failure_that_names_it() {
        let fault = Heads::new(Path::new("/nonexistent/state")).reserve("rootfs").unwrap_err();
        assert!(fault.to_string().contains("/nonexistent/state/head.rootfs.part"), "{fault}");
    }

    proptest! {
        #[test]
        fn noise_is_never_a_note(noise: Vec<u8>, flip in 0usize..200, with: u8) {
            prop_assert_eq!(parse_note(&noise), None);
            let mut text = serde_json::to_vec(&note()).unwrap();
            let at = flip % text.len();
            text[at] = with;
            parse_note(&text);
        }
    }
}
