//! What can be read like a disk, and files that are disks.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// How much is copied at once.
const CHUNK: usize = 1 << 20;

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

/// Copies a file and leaves out its holes: a disk of 256 MiB with 40 MiB on it costs 40 MiB. `to` is made anew.
///
/// # Errors
/// As the file system says.
pub fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let size = source.metadata()?.len();
    let target = File::create(to)?;
    target.set_len(size)?;
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while let Some((start, end)) = next_data(&source, at, size)? {
        at = start;
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            source.read_exact_at(&mut chunk[..len], at)?;
            target.write_all_at(&chunk[..len], at)?;
            at += len as u64;
        }
    }
    Ok(())
}

/// The next stretch with data at or behind `at`; `None`: holes only, to the end.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| io::Error::from(ErrorKind::FileTooLarge))?;
        match lseek(file, at, whence) {
            Ok(found) => Ok(Some(u64::try_from(found).unwrap_or(size))),
            Err(Errno::ENXIO) => Ok(None),
            Err(e) => Err(io::Error::from(e)),
        }
    };
    if at >= size {
        return Ok(None);
    }
    let Some(start) = seek(at, Whence::SeekData)? else { return Ok(None) };
    let end = seek(start, Whence::SeekHole)?.unwrap_or(size).min(size);
    Ok(Some((start, end)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_sparse_copy_has_the_same_bytes_and_keeps_the_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[7; 10_000], 3 << 20).unwrap();
        file.write_all_at(&[9; 512], (8 << 20) - 512).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20, "the holes were filled");
    }

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
