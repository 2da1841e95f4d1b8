//! The record on disk: two preallocated copies, written in place by turns.
//!
//! A save touches the copy that is not the current one, so that a power cut in the middle of it leaves the current one
//! alone. Both copies have all their blocks from the beginning: a full disk cannot stop a save.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::unistd::{Whence, lseek};
use otandem_core::frame::{self, FrameError};

use super::{Lock, StateDir, StateError, failed, sync_dir};

/// Bytes of one copy. Far above a record of 16 images with their checkpoints; small beside any data partition.
const COPY_SIZE: usize = 256 * 1024;
/// Writes are whole blocks of this many bytes, so that the medium need not read before it writes.
const BLOCK: usize = 4096;

/// What was found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The newest payload, or `None` if there is none (any more).
    pub payload: Option<Vec<u8>>,
    /// What a person should know: damaged or missing copies, and what was done about them.
    pub notes: Vec<String>,
    /// There was a record, and it is gone: not a first start.
    pub lost: bool,
}

/// The two copies, ready to be written.
#[derive(Debug)]
pub struct RecordStore {
    dir: PathBuf,
    paths: [PathBuf; 2],
    /// Sequence number of the current copy; 0 = none.
    seq: u64,
    /// Which copy the next save overwrites.
    next: usize,
    /// Open and fully allocated, or to be made so by the next save.
    files: [Option<File>; 2],
    /// Keeps the right to write as long as there is a writer.
    _lock: Lock,
}

impl RecordStore {
    /// Loads the record and prepares both copies. A medium that takes no writes is a note here and an error of
    /// [`RecordStore::save`], so that the agent starts and can say so.
    ///
    /// # Errors
    /// A copy exists that cannot be read at all (a medium error, missing rights).
    pub fn open(dir: &StateDir, lock: &Lock) -> Result<(Self, Loaded), StateError> {
        let paths = ["record.0", "record.1"].map(|name| dir.path().join(name));
        let mut notes = Vec::new();
        let copies = [read_copy(&paths[0], &mut notes)?, read_copy(&paths[1], &mut notes)?];
        let found = [0, 1].map(|i| frame::decode(copies[i].as_deref().unwrap_or_default()));
        for ((path, copy), found) in paths.iter().zip(&copies).zip(&found) {
            match (copy, found) {
                (Some(_), Err(e)) if *e != FrameError::Blank => {
                    notes.push(format!("{} is unreadable: {e}", path.display()));
                }
                (Some(bytes), Err(_)) if bytes.len() < COPY_SIZE => {
                    notes.push(format!("{} is cut off and empty", path.display()));
                }
                _ => {}
            }
        }
        let newest = frame::newest(found[0].clone().ok(), found[1].clone().ok());
        let lost = newest.is_none() && !notes.is_empty();
        if lost {
            for (path, found) in paths.iter().zip(&found) {
                if *found != Err(FrameError::Blank) {
                    set_aside(path, &mut notes);
                }
            }
            notes.push("the record is lost: what an update was doing must be learned anew".to_owned());
        }
        if newest.is_some() {
            let missing = paths.iter().zip(&copies).filter(|(_, copy)| copy.is_none());
            notes.extend(missing.map(|(p, _)| format!("{} is missing; the other copy is used", p.display())));
        }
        let next = usize::from(newest.is_some() && found[0].as_ref().ok() == newest.as_ref());
        let seq = newest.map_or(0, |f| f.seq);
        let payload = newest.map(|f| f.payload.to_vec());
        let mut store =
            Self { dir: dir.path().into(), paths, seq, next, files: [None, None], _lock: lock.clone() };
        if let Err(e) = store.prepare() {
            notes.push(e.to_string());
        }
        Ok((store, Loaded { payload, notes, lost }))
    }

    /// Makes `payload` the record. When this returns `Ok`, it is on the medium; when it does not, the record is the old
    /// one or the new one.
    ///
    /// # Errors
    /// The payload is too large, or the medium takes no writes.
    pub fn save(&mut self, payload: &[u8]) -> Result<(), StateError> {
        // A frame with the last number of all would not be read again; no device saves 2^64 times.
        let seq = self.seq.saturating_add(1).min(u64::MAX - 1);
        let copy = frame::encode(seq, payload, COPY_SIZE)?;
        // The padding need not be written: what lies behind a frame is ignored, and flash wears by the byte.
        let used = frame::frame_len(payload.len()).next_multiple_of(BLOCK).min(COPY_SIZE);
        self.prepare()?;
        let path = &self.paths[self.next];
        let unprepared = || failed("open", path)(io::ErrorKind::NotFound.into());
        let file = self.files[self.next].as_ref().ok_or_else(unprepared)?;
        file.write_all_at(&copy[..used], 0).and_then(|()| file.sync_data()).map_err(failed("write", path))?;
        self.seq = seq;
        self.next = 1 - self.next;
        Ok(())
    }

    /// Can an update be recorded from its first step to its last, with `extra` bytes beside the record (the heads of
    /// the images)? Asked before the first byte of a slot is written.
    ///
    /// # Errors
    /// The file system is read-only, full, or a copy of the record is gone and cannot be made again.
    pub fn probe_writable(&mut self, extra: u64) -> Result<(), StateError> {
        for (path, file) in self.paths.iter().zip(&mut self.files) {
            // Somebody may have removed the name while the file was open: a save would then go nowhere.
            if !path.exists() {
                *file = None;
            }
        }
        self.prepare()?;
        let scratch = self.dir.join(".space");
        let unwritable = |source: io::Error| StateError::Unwritable { path: scratch.clone(), source };
        let _ = std::fs::remove_file(&scratch);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&scratch);
        let had = file.and_then(|file| reserve(&file, extra).and_then(|()| file.sync_all()));
        let removed = std::fs::remove_file(&scratch);
        had.and(removed).map_err(unwritable)
    }

    /// Opens what is not open yet and gives every copy all of its blocks.
    fn prepare(&mut self) -> Result<(), StateError> {
        let mut created = false;
        for (path, slot) in self.paths.iter().zip(&mut self.files) {
            if slot.is_none() {
                let unwritable = |source| StateError::Unwritable { path: path.clone(), source };
                created |= !path.exists();
                let file = open_copy(path, true).map_err(unwritable)?;
                allocate(&file).map_err(unwritable)?;
                *slot = Some(file);
            }
        }
        if created { sync_dir(&self.dir) } else { Ok(()) }
    }
}

/// Never waits on a pipe and never follows a link.
fn open_copy(path: &Path, write: bool) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().read(true).write(write).create(write).mode(0o600).custom_flags(flags).open(path)
}

/// At most one copy's bytes, `None` if there is no such file. Something else than a file is set aside.
fn read_copy(path: &Path, notes: &mut Vec<String>) -> Result<Option<Vec<u8>>, StateError> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open", path)(e)),
        Ok(meta) if !meta.is_file() => {
            notes.push(format!("{} is not a file", path.display()));
            set_aside(path, notes);
            return Ok(None);
        }
        Ok(_) => {}
    }
    // One byte more tells the end without growing.
    let mut bytes = Vec::with_capacity(COPY_SIZE + 1);
    let limit = u64::try_from(COPY_SIZE).unwrap_or(u64::MAX);
    let file = open_copy(path, false).map_err(failed("open", path))?;
    file.take(limit).read_to_end(&mut bytes).map_err(failed("read", path))?;
    Ok(Some(bytes))
}

/// Renames to `.bad`, for a person to look at; only the latest is kept.
fn set_aside(path: &Path, notes: &mut Vec<String>) {
    let mut bad = path.as_os_str().to_owned();
    bad.push(".bad");
    let bad = PathBuf::from(bad);
    if bad.is_dir() {
        let _ = std::fs::remove_dir_all(&bad);
    }
    match std::fs::rename(path, &bad) {
        Ok(()) => notes.push(format!("{} was set aside as {}", path.display(), bad.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => notes.push(format!("{} cannot be set aside: {e}", path.display())),
    }
}

/// Writes real bytes wherever the file has none: an allocation that is only promised (`fallocate`) may still need a
/// block for bookkeeping at the first write. What is there is kept.
fn allocate(file: &File) -> io::Result<()> {
    let size = libc::off_t::try_from(COPY_SIZE).unwrap_or(libc::off_t::MAX);
    let hole = match lseek(file, 0, Whence::SeekHole) {
        Ok(offset) => offset,
        // Nothing there at all.
        Err(Errno::ENXIO) => 0,
        Err(e) => return Err(e.into()),
    };
    if hole >= size {
        return Ok(());
    }
    let mut bytes = Vec::with_capacity(COPY_SIZE);
    let mut reader = file;
    reader.seek(SeekFrom::Start(0))?;
    reader.take(u64::try_from(COPY_SIZE).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    bytes.resize(COPY_SIZE, 0);
    file.write_all_at(&bytes, 0)?;
    file.sync_all()
}

/// Takes `bytes` of space for `file`, or fails.
#[allow(clippy::useless_conversion, reason = "the numbers are narrower on 32-bit machines")]
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let Ok(len) = libc::off_t::try_from(bytes) else { return Err(Errno::EFBIG.into()) };
    if len == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        // File systems without the call: what they say of their free space is the best there is.
        Err(Errno::EOPNOTSUPP) => {
            let space = nix::sys::statvfs::fstatvfs(file)?;
            let free = u64::from(space.blocks_available()).saturating_mul(u64::from(space.fragment_size()));
            if free < bytes { Err(Errno::ENOSPC.into()) } else { Ok(()) }
        }
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
