//! Files on the building machine: sparse copies, hashes.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::ImageError;
use crate::error::file;

/// What is looked at for zeros at a time.
const BLOCK: usize = 64 << 10;

/// Copies `from` to `to`, which may exist, leaving holes where there are only zeros.
///
/// # Errors
/// [`ImageError::File`] when one of them cannot be read or written.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<(), ImageError> {
    let out = File::create(to).map_err(file("create", to))?;
    let size = fs::metadata(from).map_err(file("read", from))?.len();
    out.set_len(size).map_err(file("enlarge", to))?;
    place(from, &out, to, 0)
}

/// Writes the content of `from` at `offset` of `out` (named `to` in errors), except for what is zero and is so already.
pub(crate) fn place(from: &Path, out: &File, to: &Path, offset: u64) -> Result<(), ImageError> {
    let mut source = File::open(from).map_err(file("open", from))?;
    let mut out = out;
    let mut block = vec![0; BLOCK];
    let mut at = offset;
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match source.read(&mut block[filled..]).map_err(file("read", from))? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        if block[..filled].iter().any(|byte| *byte != 0) {
            out.seek(SeekFrom::Start(at)).map_err(file("seek in", to))?;
            out.write_all(&block[..filled]).map_err(file("write", to))?;
        }
        at += filled as u64;
    }
}

/// Writes the content of `from` at `offset` of the file `to`, over whatever is there.
///
/// # Errors
/// [`ImageError::File`] when one of them cannot be read or written.
pub(crate) fn overwrite(from: &Path, to: &Path, offset: u64) -> Result<(), ImageError> {
    let mut source = File::open(from).map_err(file("open", from))?;
    let mut out = fs::OpenOptions::new().write(true).open(to).map_err(file("open", to))?;
    out.seek(SeekFrom::Start(offset)).map_err(file("seek in", to))?;
    std::io::copy(&mut source, &mut out).map_err(file("write", to))?;
    Ok(())
}

/// SHA-256 of bytes in hex.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A UUID that follows from a name.
pub(crate) fn uuid(name: &str) -> String {
    let h = digest_of(name.as_bytes());
    // Version 4, variant 1: some tools look at it.
    format!("{}-{}-4{}-8{}-{}", &h[0..8], &h[8..12], &h[13..16], &h[17..20], &h[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    #[test]
    fn a_sparse_copy_has_the_same_bytes_and_less_room() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let mut bytes = vec![0; 8 << 20];
        bytes[3 << 20] = 7;
        bytes.extend_from_slice(b"tail");
        fs::write(&from, &bytes).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), bytes);
        let room = fs::metadata(&to).unwrap().blocks() * 512;
        assert!(room < 1 << 20, "{room}");
    }

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
    fn uuids_follow_from_names() {
        assert_eq!(uuid("a"), uuid("a"));
        assert_ne!(uuid("a"), uuid("b"));
        assert_eq!(uuid("a").len(), 36);
    }
}
