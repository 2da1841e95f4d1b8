//! The image server: objects over HTTP and HTTPS, with ranges, entity tags and presigned-style URLs.
//!
//! [`plan`] decides about a request without a socket, [`serve`] carries it out; [`sign`] makes and checks URLs.

pub mod http;
pub(crate) mod plan;
pub(crate) mod serve;
pub mod sign;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// Of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// With the certificate of the lab's authority.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Who may fetch an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Whoever has a URL that was signed for it.
    #[default]
    Signed,
    /// Anybody.
    Public,
}

/// An object could not be taken in.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve {path}: {source}; is it a readable file?", path = path.display())]
pub struct ObjectError {
    path: PathBuf,
    source: std::io::Error,
}

#[derive(Debug)]
enum Content {
    Memory(Bytes),
    File(File, u64),
}

/// Something to fetch. What was begun is served to its end even when the path holds another object by then.
#[derive(Debug)]
pub(crate) struct Object {
    content: Content,
    pub etag: String,
    pub access: Access,
}

impl Object {
    pub fn in_memory(bytes: Bytes, access: Access) -> Self {
        let digest = Sha256::digest(&bytes);
        let hex: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
        Self { content: Content::Memory(bytes), etag: format!("\"{hex}\""), access }
    }

    /// Reads nothing yet; the tag is made of inode, length and time of the last change.
    pub fn in_file(path: &Path, access: Access) -> Result<Self, ObjectError> {
        let open = || {
            let file = File::open(path)?;
            let meta = file.metadata()?;
            let etag =
                format!("\"{:x}-{:x}-{:x}-{:x}\"", meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
            Ok(Self { content: Content::File(file, meta.len()), etag, access })
        };
        open().map_err(|source| ObjectError { path: path.to_owned(), source })
    }

    pub fn len(&self) -> u64 {
        match &self.content {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(_, len) => *len,
        }
    }

    /// Fills `buf` with the bytes at `offset`, all of which must be within the object.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        match &self.content {
            Content::File(file, _) => file.read_exact_at(buf, offset),
            Content::Memory(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|from| bytes.get(from..)?.get(..buf.len()));
                buf.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// The objects and the signer of their URLs.
pub(crate) struct Images {
    objects: BTreeMap<String, Arc<Object>>,
    pub signer: sign::Signer,
    address: IpAddr,
    pub http_port: u16,
    pub https_port: u16,
}

impl Images {
    pub fn new(address: IpAddr, http_port: u16, https_port: u16) -> Self {
        Self { objects: BTreeMap::new(), signer: sign::Signer::new(), address, http_port, https_port }
    }

    pub fn put(&mut self, path: &str, object: Object) {
        self.objects.insert(path.trim_start_matches('/').to_owned(), Arc::new(object));
    }

    pub fn remove(&mut self, path: &str) {
        self.objects.remove(path.trim_start_matches('/'));
    }

    pub fn get(&self, path: &str) -> Option<Arc<Object>> {
        self.objects.get(path).cloned()
    }

    /// `http://<address>:<port>` or the other one.
    pub fn origin(&self, scheme: Scheme) -> String {
        let port = match scheme {
            Scheme::Http => self.http_port,
            Scheme::Https => self.https_port,
        };
        format!("{}://{}", scheme.name(), SocketAddr::new(self.address, port))
    }
}
