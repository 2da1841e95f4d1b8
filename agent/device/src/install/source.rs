//! Where images come from.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use bytes::Bytes;
use nix::libc;
use otandem_core::image::{Compression, Image};

pub use super::error::FetchError;

/// Where bytes come from.
///
/// Network sources retry and resume by themselves and look at the caller's stop flag while they wait: the pipeline
/// cannot interrupt a call that blocks here (it gives the source up and returns without waiting for it).
pub trait Fetch: Send {
    /// Opens the source of `image` at byte `from`. `from` may be the length of the object: the stream is then
    /// empty. With `etag`, an object of another tag is [`FetchError::Changed`].
    ///
    /// # Errors
    /// Final: the source has given up.
    fn open(&mut self, image: &Image, from: u64, etag: Option<&str>) -> Result<Opened, FetchError>;
}

/// An open source.
pub struct Opened {
    /// Bytes of the whole object, from its beginning.
    pub total: Option<u64>,
    /// Names this state of the object; an interrupted image goes on only with the same one.
    pub etag: Option<String>,
    /// The bytes from `from` on.
    pub stream: Box<dyn ByteStream>,
}

/// Bytes in order, in pieces of any size (64 KiB or more costs least).
pub trait ByteStream: Send {
    /// The next piece; `None` at the end of the object.
    ///
    /// # Errors
    /// Final: the source has given up.
    fn next(&mut self) -> Result<Option<Bytes>, FetchError>;
}

/// Bytes of one read of a local file.
const READ: u64 = 128 << 10;

/// Images from local paths: files, and block devices for images copied from the other set. Of a block device only
/// as many bytes are read as the image has, so that size must be given.
#[derive(Debug, Default, Clone, Copy)]
pub struct FileFetch;

impl Fetch for FileFetch {
    fn open(&mut self, image: &Image, from: u64, etag: Option<&str>) -> Result<Opened, FetchError> {
        let path = &image.source;
        if !path.starts_with('/') {
            return Err(FetchError::Rejected { reason: format!("{path}: not an absolute path") });
        }
        let failed = |e: std::io::Error| FetchError::Failed { reason: format!("{path}: {e}") };
        // Non-blocking, since a FIFO in this place would otherwise hang the open.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let (total, tag) = if meta.is_file() {
            let tag = format!("{:x}-{:x}-{}.{}", meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
            (meta.len(), Some(tag))
        } else if meta.file_type().is_block_device() {
            let raw = image.raw.size.filter(|_| image.compression.is_none_or(|c| c == Compression::None));
            let Some(size) = image.file.size.or(raw) else {
                return Err(FetchError::Rejected {
                    reason: format!(
                        "{path}: the size of the image must be given to read it from a block device"
                    ),
                });
            };
            let device = file.seek(SeekFrom::End(0)).map_err(failed)?;
            if size > device {
                return Err(FetchError::Failed { reason: format!("{path}: has {device} of {size} bytes") });
            }
            (size, None)
        } else {
            return Err(FetchError::Rejected {
                reason: format!("{path}: neither a file nor a block device"),
            });
        };
        if let (Some(begun), Some(now)) = (etag, &tag)
            && begun != now
        {
            return Err(FetchError::Changed { reason: format!("{path} was replaced or written to") });
        }
        let Some(left) = total.checked_sub(from) else {
            return Err(FetchError::Changed {
                reason: format!("{path} has {total} bytes, {from} were read"),
            });
        };
        file.seek(SeekFrom::Start(from)).map_err(failed)?;
        Ok(Opened {
            total: Some(total),
            etag: tag,
            stream: Box::new(FileStream { file, left, path: path.clone() }),
        })
    }
}

struct FileStream {
    file: File,
    left: u64,
    path: String,
}

impl ByteStream for FileStream {
    fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let want = self.left.min(READ);
        let mut piece = Vec::with_capacity(usize::try_from(want).unwrap_or_default());
        // read_to_end on a vector with room neither zeroes it nor copies.
        let got = (&mut self.file)
            .take(want)
            .read_to_end(&mut piece)
            .map_err(|e| FetchError::Failed { reason: format!("{}: {e}", self.path) })?;
        self.left -= got as u64;
        Ok((got > 0).then(|| Bytes::from(piece)))
    }
}
