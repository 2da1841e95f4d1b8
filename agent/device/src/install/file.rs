//! A slot that is a file: written to a temporary beside it, and renamed when the set is complete.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::PosixFadviseAdvice;
use nix::libc;

use super::block::retry_buffered;
use super::buffer::ALIGN;
use super::slot::{HEAD, Slot};

/// An open file slot.
pub(crate) struct FileSlot {
    /// The temporary.
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    directory: File,
    capacity: u64,
    /// The file in place is this image, complete, from before an interruption: it is read there, and moved back to
    /// the temporary before anything else.
    adopted: Option<File>,
}

impl FileSlot {
    /// Opens (and makes) the temporary beside `path`, keeping what it holds.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let (parent, _) = split(path)?;
        let temporary = temporary(path)?;
        let file = open_direct(&temporary, true)?;
        let free = nix::sys::statvfs::fstatvfs(&file)?;
        #[allow(clippy::useless_conversion, reason = "the types differ between 32 and 64 bits")]
        let free = u64::from(free.blocks_available()).saturating_mul(u64::from(free.fragment_size()));
        // What the temporary has already need not be found again.
        let capacity = free.saturating_add(file.metadata()?.blocks().saturating_mul(512));
        let directory = File::open(parent)?;
        Ok(Self { file, path: path.to_owned(), temporary, directory, capacity, adopted: None })
    }

    fn reader(&self) -> &File {
        self.adopted.as_ref().unwrap_or(&self.file)
    }
}

impl Slot for FileSlot {
    fn path(&self) -> &Path {
        &self.path
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn align(&self) -> usize {
        ALIGN
    }

    fn in_place(&self) -> bool {
        false
    }

    fn holds(&mut self, size: u64, complete: bool) -> bool {
        let len = |file: &File| file.metadata().map_or(0, |m| m.len());
        if !complete {
            return len(&self.file) >= size;
        }
        if len(&self.file) == size {
            return true;
        }
        self.adopted = open_direct(&self.path, false).ok().filter(|file| len(file) == size);
        self.adopted.is_some()
    }

    fn spoil(&mut self) -> io::Result<()> {
        if self.adopted.take().is_some() {
            std::fs::rename(&self.path, &self.temporary)?;
            self.directory.sync_all()?;
            self.file = open_direct(&self.temporary, false)?;
            return Ok(());
        }
        let old = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(&self.path);
        let old = match old {
            Ok(old) => old,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let len = usize::try_from(old.metadata()?.len()).map_or(HEAD, |len| len.min(HEAD));
        // In two steps, as for slots that are written in place.
        for part in [0..len.min(ALIGN), len.min(ALIGN)..len] {
            old.write_all_at(&vec![0; part.len()], part.start as u64)?;
            old.sync_all()?;
        }
        Ok(())
    }

    fn begin(&mut self, keep: u64) -> io::Result<()> {
        // What an earlier attempt left behind `keep` would else show through the holes.
        self.file.set_len(keep)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<usize> {
        retry_buffered(&self.file, || self.file.write_at(bytes, at))
    }

    fn zero(&mut self, at: u64, len: u64) -> io::Result<()> {
        // Nothing lies behind the end, so growing leaves a hole.
        let end = at.saturating_add(len);
        if self.file.metadata()?.len() < end { self.file.set_len(end) } else { Ok(()) }
    }

    fn read_at(&mut self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let file = self.reader();
        retry_buffered(file, || file.read_at(bytes, at))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn seal(&mut self, size: u64) -> io::Result<()> {
        self.file.set_len(size)?;
        self.file.sync_all()?;
        self.directory.sync_all()?;
        // Where direct I/O is refused, reading back is to come from the disk nevertheless. Only advice.
        let _ = nix::fcntl::posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(())
    }

    fn publish(&mut self, _head: &[u8]) -> io::Result<()> {
        std::fs::rename(&self.temporary, &self.path)?;
        self.directory.sync_all()
    }

    fn discard(&mut self) {
        // Left behind it costs room and is truncated by the next attempt.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

impl Drop for FileSlot {
    fn drop(&mut self) {
        // Opened for nothing: do not leave an empty file behind.
        if self.file.metadata().is_ok_and(|m| m.len() == 0 && m.nlink() > 0) {
            self.discard();
        }
    }
}

/// Where the image for the slot `path` is written until it is complete.
pub(crate) fn temporary(path: &Path) -> io::Result<PathBuf> {
    let (parent, name) = split(path)?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".otandem");
    Ok(parent.join(hidden))
}

/// Parent directory and name of a file's path.
pub(crate) fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(io::Error::other("not the path of a file")),
    }
}

/// Opens a regular file for direct I/O where the file system has that. Never through a link.
fn open_direct(path: &Path, create: bool) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let open = |flags| {
        OpenOptions::new().read(true).write(true).create(create).mode(0o600).custom_flags(flags).open(path)
    };
    let file = match open(flags | libc::O_DIRECT) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => open(flags)?,
        other => other?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}
