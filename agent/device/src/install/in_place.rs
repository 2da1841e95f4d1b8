//! A slot that is a preallocated file, overwritten where it lies: a kernel that the loader reads from FAT, where a rename
//! is not atomic and a new file may find no room.
//!
//! Nothing of the file system changes, only the content: length, clusters and name stay, so a full disk cannot stop it.
//! What lies behind a shorter image is zeroed, so that the file is the image and nothing of an older one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::PosixFadviseAdvice;
use nix::libc;

use super::block::retry_buffered;
use super::buffer::{ALIGN, Buffer};
use super::slot::{self, Slot};
use crate::machine::{self, Dev};

/// What a medium writes whole or not at all.
const SECTOR: usize = 512;

/// An open file that keeps its length.
pub(crate) struct InPlaceSlot {
    file: File,
    path: PathBuf,
    capacity: u64,
    align: usize,
}

impl InPlaceSlot {
    /// Opens `path` for direct I/O where the file system has that; never through a link, and never makes it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let file = match open(flags | libc::O_DIRECT) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => open(flags)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(io::Error::other(
                    "it is not there: a slot that is written in place is preallocated",
                ));
            }
            other => other?,
        };
        let meta = file.metadata()?;
        let capacity = meta.len();
        let why = if !meta.is_file() {
            Some("not a regular file".to_owned())
        } else if is_on_root(meta.dev())? {
            Some("it lies on the running root".to_owned())
        } else if capacity == 0 || capacity % ALIGN as u64 != 0 {
            Some(format!("its size of {capacity} bytes is no multiple of {ALIGN}: preallocate it anew"))
        } else if meta.blocks().saturating_mul(512) < capacity {
            Some("it has holes, which may find no room: preallocate it with zeros written".to_owned())
        } else {
            None
        };
        match why {
            Some(why) => Err(io::Error::other(why)),
            None => Ok(Self { align: unit(&file), file, path: path.to_owned(), capacity }),
        }
    }
}

/// Bytes that can be written alone: one sector, where the medium and the file system take so little, so that a mark is
/// never torn.
fn unit(file: &File) -> usize {
    let mut buffer = Buffer::new();
    let sector = file.read_at(&mut buffer.bytes_mut()[..SECTOR], SECTOR as u64);
    if sector.is_ok_and(|n| n == SECTOR) { SECTOR } else { ALIGN }
}

/// Whether a device is that of `/`, or below it.
fn is_on_root(device: u64) -> io::Result<bool> {
    let below = machine::root_devices().map_err(io::Error::other)?;
    Ok(device == std::fs::metadata("/")?.dev() || below.contains(&Dev::from_raw(device)))
}

impl Slot for InPlaceSlot {
    fn path(&self) -> &Path {
        &self.path
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn align(&self) -> usize {
        self.align
    }

    fn in_place(&self) -> bool {
        true
    }

    fn holds(&mut self, size: u64, _complete: bool) -> bool {
        size <= self.capacity
    }

    fn spoil(&mut self) -> io::Result<()> {
        slot::spoil_in_place(self)
    }

    fn begin(&mut self, _keep: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<usize> {
        retry_buffered(&self.file, || self.file.write_at(bytes, at))
    }

    fn zero(&mut self, at: u64, len: u64) -> io::Result<()> {
        // Written: a hole would have to be filled again one day.
        slot::write_zeros(self, at, len)
    }

    fn read_at(&mut self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        retry_buffered(&self.file, || self.file.read_at(bytes, at))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        // Where direct I/O is refused, reading back is to come from the disk nevertheless. Only advice.
        let _ = nix::fcntl::posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(())
    }

    fn seal(&mut self, size: u64) -> io::Result<()> {
        slot::zero_tail(self, size)?;
        self.sync()
    }

    fn publish(&mut self, head: &[u8]) -> io::Result<()> {
        slot::publish_in_place(self, head)
    }

    fn discard(&mut self) {}
}
