//! A directory of certificates, one directory for each with its key, and the link that says which one is preferred.
//!
//! ```text
//! endpoint.txt                          host[:port] of the broker
//! preferred -> ID                       which one is shown
//! ID/ID-certificate.pem.crt             0644
//! ID/ID-private.pem.key                 0600
//! cert.pem, key.pem                     one certificate without a directory; its name is "."
//! .new/                                 one that is being provisioned
//! ```
//!
//! The layout is chariotd's. What is written here is there whole or not at all, whenever the power goes: a certificate
//! is made ready in `.new`, which then gets its name.

mod request;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use otandem_core::provisioning::answer::is_certificate_id;

use crate::cert::{CertError, load_identity};
use crate::state::{StateError, atomic_write};

/// The name of the certificate that has no directory of its own.
pub const FLAT: &str = ".";
const PREFERRED: &str = "preferred";
const ENDPOINT: &str = "endpoint.txt";
const STAGE: &str = ".new";
const KEY: &str = "key.pem";
const CERT: &str = "cert.pem";
/// Entries of a store that are looked at.
const MAX_ENTRIES: usize = 4096;
/// Of `endpoint.txt`.
const MAX_ENDPOINT: usize = 1024;

/// Something about a store is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An operation on a file failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] StateError),
    /// The certificate that came is none for our key.
    #[error("the certificate cannot be used: {0}")]
    Certificate(#[from] CertError),
    /// A certificate that is not there, or a name that none can have.
    #[error("{path} has no certificate {name:?}: its names are those of its directories", path = path.display())]
    NoSuch {
        /// The store.
        path: PathBuf,
        /// What was looked for.
        name: String,
    },
    /// `endpoint.txt` does not say where the broker is.
    #[error("{path} is not HOST or HOST:PORT: {text:?}", path = path.display())]
    Endpoint {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// The cryptography failed; of a key that was there before, it was no P-256 key.
    #[error("no key and request can be made in {path}: {why}", path = path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// What failed.
        why: &'static str,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

/// One certificate of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Its name: that of its directory, or [`FLAT`].
    pub name: String,
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// A store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The one in `dir`, which need not be there yet.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Its certificates, in the order of their names. What is in them is not looked at: one that lacks its certificate or
    /// its key is told when it is loaded. Links are no certificates, nor are directories that hold neither file.
    ///
    /// # Errors
    /// The directory is there and cannot be read.
    pub fn list(&self) -> Result<Vec<Pair>, StoreError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(failed("read", &self.dir)(e)),
        };
        let mut pairs = vec![];
        let flat = self.pair(FLAT);
        if flat.cert.is_file() || flat.key.is_file() {
            pairs.push(flat);
        }
        for entry in entries.take(MAX_ENTRIES) {
            let entry = entry.map_err(failed("read", &self.dir))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') || !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            let pair = self.pair(&name);
            if pair.cert.is_file() || pair.key.is_file() {
                pairs.push(pair);
            }
        }
        pairs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(pairs)
    }

    fn pair(&self, name: &str) -> Pair {
        let dir = self.dir.join(name);
        let (cert, key) = match name {
            FLAT => (self.dir.join(CERT), self.dir.join(KEY)),
            _ => {
                (dir.join(format!("{name}-certificate.pem.crt")), dir.join(format!("{name}-private.pem.key")))
            }
        };
        Pair { name: name.to_owned(), cert, key }
    }

    /// Keys that others can read are made their owner's alone, where that is us: other agents wrote them so.
    pub fn tighten(&self) {
        let me = nix::unistd::geteuid().as_raw();
        for pair in self.list().unwrap_or_default().iter().filter(|pair| pair.name != FLAT) {
            let Ok(meta) = fs::symlink_metadata(&pair.key) else { continue };
            if meta.is_file() && meta.uid() == me && meta.mode() & 0o077 != 0 {
                match fs::set_permissions(&pair.key, Permissions::from_mode(0o600)) {
                    Ok(()) => {
                        tracing::warn!("{} could be read by others: it is 0600 now", pair.key.display());
                    }
                    Err(e) => tracing::warn!("{} can be read by others: {e}", pair.key.display()),
                }
            }
        }
    }

    /// What `preferred` names, whether or not it is there.
    #[must_use]
    pub fn preferred(&self) -> Option<String> {
        let target = fs::read_link(self.dir.join(PREFERRED)).ok()?;
        let name = target.to_str()?;
        (!name.contains('/') && name != "..").then(|| name.to_owned())
    }

    /// Makes `name` the preferred one: at every instant the link names the old one or the new one.
    ///
    /// # Errors
    /// There is no such certificate, or the link cannot be made.
    pub fn prefer(&self, name: &str) -> Result<(), StoreError> {
        if self.preferred().as_deref() == Some(name) {
            return Ok(());
        }
        if !self.list()?.iter().any(|pair| pair.name == name) {
            return Err(StoreError::NoSuch { path: self.dir.clone(), name: name.to_owned() });
        }
        let beside = self.dir.join(".preferred.new");
        match fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &beside)(e)),
            _ => {}
        }
        symlink(name, &beside).map_err(failed("make the link", &beside))?;
        let link = self.dir.join(PREFERRED);
        if let Err(e) = fs::rename(&beside, &link) {
            let _ = fs::remove_file(&beside);
            return Err(failed("replace the link", &link)(e));
        }
        sync(&self.dir)
    }

    /// The broker of these certificates: host and port, as `endpoint.txt` has them; `None` without that file.
    ///
    /// # Errors
    /// The file cannot be read or names no host.
    pub fn endpoint(&self) -> Result<Option<(String, Option<u16>)>, StoreError> {
        use io::Read as _;
        let path = self.dir.join(ENDPOINT);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", &path)(e)),
        };
        let mut text = String::new();
        file.take(MAX_ENDPOINT as u64).read_to_string(&mut text).map_err(failed("read", &path))?;
        let text = text.trim();
        // What follows a second colon was never looked at.
        let mut parts = text.split(':');
        let host = parts.next().unwrap_or_default();
        let port = parts.next().map(str::parse::<u16>).transpose();
        match port {
            Ok(port) if is_host(host) && port != Some(0) => Ok(Some((host.to_owned(), port))),
            _ => Err(StoreError::Endpoint { path, text: text.chars().take(80).collect() }),
        }
    }

    /// A request for a certificate, PEM, by the key in `.new`, which is made there if there is none: it is on disk when
    /// this returns. `name`: whom the request is about.
    ///
    /// # Errors
    /// The key cannot be made or put on disk.
    pub fn request(&self, name: &str) -> Result<String, StoreError> {
        let stage = self.stage()?;
        let path = stage.join(KEY);
        let error = |why| StoreError::Key { path: path.clone(), why };
        if let Some(text) = read_key(&path)? {
            if let Ok(request) = request::request(&text, name) {
                return Ok(request);
            }
            tracing::warn!("{} is no P-256 key and no certificate has it: it is made anew", path.display());
        }
        let key = request::key().map_err(error)?;
        atomic_write(&path, key.as_bytes(), 0o600)?;
        request::request(&key, name).map_err(error)
    }

    /// Puts the certificate that came into `.new`, and its key where that came too, and looks whether they are a pair.
    /// `now` and `built` as in [`load_identity`].
    ///
    /// # Errors
    /// They cannot be put on disk, or cannot be used.
    pub fn keep(&self, pem: &str, key: Option<&str>, now: u64, built: u64) -> Result<(), StoreError> {
        let stage = self.stage()?;
        let (cert_file, key_file) = (stage.join(CERT), stage.join(KEY));
        if let Some(key) = key {
            atomic_write(&key_file, key.as_bytes(), 0o600)?;
        }
        atomic_write(&cert_file, pem.as_bytes(), 0o644)?;
        match load_identity(&cert_file, &key_file, now, built) {
            // The cloud's clock may be ahead of ours, and it is the cloud that looks at the certificate.
            Ok(_) | Err(CertError::NotYetValid { .. } | CertError::ClockNotSet { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether `.new` holds a certificate with its key.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        let stage = self.dir.join(STAGE);
        stage.join(CERT).is_file() && stage.join(KEY).is_file()
    }

    /// What is in `.new` becomes the certificate `id`. Can be done again after a power cut at any point of it.
    ///
    /// # Errors
    /// `id` is no plain name, there is nothing in `.new`, or a step failed.
    pub fn admit(&self, id: &str) -> Result<(), StoreError> {
        let no_such = || StoreError::NoSuch { path: self.dir.clone(), name: id.to_owned() };
        if !is_certificate_id(id) {
            return Err(no_such());
        }
        let (stage, pair) = (self.dir.join(STAGE), self.pair(id));
        if !stage.is_dir() {
            return if pair.cert.is_file() && pair.key.is_file() { Ok(()) } else { Err(no_such()) };
        }
        for (from, to) in [(CERT, &pair.cert), (KEY, &pair.key)] {
            let to = stage.join(to.file_name().unwrap_or_default());
            match fs::rename(stage.join(from), &to) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && to.is_file() => {}
                other => other.map_err(failed("rename", &stage.join(from)))?,
            }
        }
        sync(&stage)?;
        let own = self.dir.join(id);
        fs::rename(&stage, &own).map_err(failed("rename", &stage))?;
        sync(&self.dir)
    }

    /// `.new`, made if need be.
    fn stage(&self) -> Result<PathBuf, StoreError> {
        private(&self.dir)?;
        let stage = self.dir.join(STAGE);
        private(&stage)?;
        sync(&self.dir)?;
        Ok(stage)
    }
}

fn is_host(host: &str) -> bool {
    (1..=253).contains(&host.len())
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

fn read_key(path: &Path) -> Result<Option<String>, StoreError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(Some(String::new())),
        Err(e) => Err(failed("read", path)(e)),
    }
}

/// A directory of its owner, with its parents, if it is not there.
fn private(dir: &Path) -> Result<(), StoreError> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
    dir.parent().map_or(Ok(()), sync)
}

fn sync(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}
