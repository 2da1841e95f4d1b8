//! What can be read like a disk, and files that are disks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where the bytes of a place come from; see [`Sectors::recipe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Piece {
    /// In bytes.
    pub len: u64,
    /// Which store: two disks of one recording have the same ones.
    pub source: Source,
}

/// A store of bytes, and the place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The disk before the first write of the log, at this offset.
    Base(u64),
    /// The file of the log, at this offset.
    Log(u64),
    /// Nothing but zeros.
    Zero,
}

/// Something that can be read like a disk.
pub trait Sectors {
    /// In bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset` (bytes; need not be aligned).
    ///
    /// # Errors
    /// `UnexpectedEof` if that goes beyond the end; what the files behind it say.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Of what the bytes from `offset` on are made. Two disks of one recording with equal recipes for a place have
    /// equal bytes there, so a digest need not be computed again. `None`: has to be read to be known.
    fn recipe(&self, _offset: u64, _len: u64) -> Option<Vec<Piece>> {
        None
    }
}

/// A disk in a file.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    size: u64,
}

impl DiskFile {
    /// Opens an image for reading.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

impl Sectors for DiskFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

/// A disk in memory, for tests.
#[cfg(test)]
pub(crate) struct Bytes(pub Vec<u8>);

#[cfg(test)]
impl Sectors for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let end = from.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.0.get(from..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn reading_beyond_the_end_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, [1; 1024]).unwrap();
        let disk = DiskFile::open(&path).unwrap();
        assert_eq!(disk.read(513, &mut [0; 512]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        disk.read(512, &mut [0; 512]).unwrap();
    }
}
