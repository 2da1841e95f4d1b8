//! The file `grubenv`: read whole, written in place.
//!
//! Never truncated and never renamed: GRUB reads it without replaying a journal, and a rename is not atomic on FAT.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::statfs::{self, FsType};
use nix::unistd::{Whence, lseek};

use super::block::SIZE;
use crate::BootError;

/// A file of more bytes is no environment block.
const MOST: usize = 64 * 1024;
/// What a direct read must be a multiple of on any medium, in length and in memory.
const PAGE: usize = 4096;
/// Superblock number of f2fs; GRUB reads it and cannot write in it.
const F2FS: u32 = 0xF2F5_2010;

/// Writes bytes at the beginning of a file, all at once; tells how many.
pub(super) type Put = fn(&File, &[u8]) -> io::Result<usize>;

/// `grubenv`, by its path: another file may come to its place at any time.
#[derive(Debug)]
pub(super) struct EnvFile {
    path: PathBuf,
    put: Put,
}

fn flags(flags: OFlag) -> i32 {
    (flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits()
}

/// The file systems in which GRUB cannot write a file where it lies.
fn unwritable(kind: FsType) -> Option<&'static str> {
    match kind {
        statfs::BTRFS_SUPER_MAGIC => Some("btrfs"),
        FsType(number) if u32::try_from(number) == Ok(F2FS) => Some("f2fs"),
        _ => None,
    }
}

impl EnvFile {
    /// Looks whether GRUB can use the file at `path`, whatever it holds.
    ///
    /// # Errors
    /// It is missing, no plain file, or on a file system that GRUB cannot write.
    pub fn open(path: PathBuf) -> Result<Self, BootError> {
        let file = Self { path, put: |file, bytes| file.write_at(bytes, 0) };
        let opened = file.open_with(OpenOptions::new().read(true).custom_flags(flags(OFlag::O_NONBLOCK)))?;
        let kind = statfs::fstatfs(&opened).map_err(|e| file.io("look at", e.into()))?;
        match unwritable(kind.filesystem_type()) {
            Some(name) => Err(file.unfit(&format!(
                "lies on {name}, where GRUB cannot write; put it on FAT (the EFI system partition) or plain ext4"
            ))),
            None => Ok(file),
        }
    }

    #[cfg(test)]
    pub fn set_put(&mut self, put: Put) {
        self.put = put;
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn io(&self, action: &'static str, source: io::Error) -> BootError {
        BootError::Io { action, path: self.path.clone(), source }
    }

    fn unfit(&self, why: &str) -> BootError {
        BootError::Config(format!("grubenv {} {why}", self.path.display()))
    }

    /// Opens the file; what keeps it from being `grubenv` is told with what to do about it.
    fn open_with(&self, options: &OpenOptions) -> Result<File, BootError> {
        let path = self.path.display();
        let file = options.open(&self.path).map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => {
                self.unfit(&format!("does not exist; make it once with `grub-editenv {path} create`"))
            }
            Some(Errno::ELOOP) => self.unfit("is a symbolic link; name the file that GRUB reads"),
            Some(Errno::EISDIR) => self.unfit("is a directory; name the file in it"),
            Some(Errno::EROFS) => {
                self.unfit("is on a file system that is mounted read-only; mount it read-write")
            }
            _ => self.io("open", e),
        })?;
        let meta = file.metadata().map_err(|e| self.io("look at", e))?;
        match () {
            () if meta.is_dir() => Err(self.unfit("is a directory; name the file in it")),
            () if !meta.is_file() => Err(self.unfit("is no plain file")),
            () => Ok(file),
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// It cannot be read, or is too large for an environment block.
    pub fn read(&self) -> Result<Vec<u8>, BootError> {
        let file = self.open_with(OpenOptions::new().read(true).custom_flags(flags(OFlag::O_NONBLOCK)))?;
        let mut bytes = Vec::new();
        let limit = u64::try_from(MOST + 1).unwrap_or(u64::MAX);
        file.take(limit).read_to_end(&mut bytes).map_err(|e| self.io("read", e))?;
        if bytes.len() > MOST {
            return Err(self.unfit("is no environment block: it is larger than 64 KiB"));
        }
        Ok(bytes)
    }

    /// Writes `block` over the beginning, makes the file exactly that long, and returns what the medium then holds.
    ///
    /// # Errors
    /// It could not be written, made durable or read again.
    pub fn write(&self, block: &[u8]) -> Result<Vec<u8>, BootError> {
        let mut options = OpenOptions::new();
        let file = self.open_with(options.read(true).write(true).custom_flags(flags(OFlag::empty())))?;
        let length = file.metadata().map_err(|e| self.io("look at", e))?.len();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MOST {
            return Err(self.unfit("is no environment block: it is larger than 64 KiB"));
        }
        let in_place = length == SIZE && !has_hole(&file);
        let mut bytes = block.to_vec();
        // The rest of a longer file would be read as a part of the block until it is cut off.
        bytes.resize(length.max(block.len()), b'#');
        let written = (self.put)(&file, &bytes).map_err(|e| self.io("write", e))?;
        if written != bytes.len() {
            let short = format!("only {written} of {} bytes were taken", bytes.len());
            return Err(self.io("write", io::Error::new(io::ErrorKind::WriteZero, short)));
        }
        file.sync_data().map_err(|e| self.io("write", e))?;
        if !in_place {
            let size = u64::try_from(block.len()).unwrap_or(u64::MAX);
            file.set_len(size).and_then(|()| file.sync_all()).map_err(|e| self.io("write", e))?;
            self.sync_folder()?;
        }
        // So that a plain read comes from the medium, where that can be had. It is only a hint.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        drop(file);
        self.read_direct().map_or_else(|_| self.read(), Ok)
    }

    /// The new size and blocks of the file stand in its directory on some file systems.
    fn sync_folder(&self) -> Result<(), BootError> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|e| self.io("write the folder of", e))
    }

    /// Reads past the page cache; an error where the file system has no such thing.
    fn read_direct(&self) -> io::Result<Vec<u8>> {
        let file = OpenOptions::new().read(true).custom_flags(flags(OFlag::O_DIRECT)).open(&self.path)?;
        let mut memory = vec![0; 2 * PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        let buffer = memory
            .get_mut(start..start.saturating_add(PAGE))
            .ok_or_else(|| io::Error::other("memory cannot be aligned"))?;
        let read = file.read_at(buffer, 0)?;
        Ok(buffer[..read].to_vec())
    }
}

/// GRUB writes only to blocks that are there. Where nobody knows, there is none.
fn has_hole(file: &File) -> bool {
    let size = i64::try_from(SIZE).unwrap_or(i64::MAX);
    lseek(file.as_fd(), 0, Whence::SeekHole).is_ok_and(|hole| hole < size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_that_grub_cannot_write_are_named() {
        assert_eq!(unwritable(statfs::BTRFS_SUPER_MAGIC), Some("btrfs"));
        assert_eq!(unwritable(FsType(0xF2F5_2010)), Some("f2fs"));
        assert_eq!(unwritable(statfs::EXT4_SUPER_MAGIC), None);
        assert_eq!(unwritable(statfs::MSDOS_SUPER_MAGIC), None);
    }
}
