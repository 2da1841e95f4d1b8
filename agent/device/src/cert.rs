//! The device's own certificate and key, and the roots that it trusts: read, checked, and refused with a reason that
//! tells what to do.
//!
//! A TLS library reports most of these mistakes only at the first connection, and then as one short alert. Keys that
//! do not live in a file (TPM, PKCS#11) will come through the same [`Identity`].

mod der;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;
use rustls::RootCertStore;
use rustls::crypto::ring::sign::{RsaSigningKey, any_ecdsa_type};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SigningKey};

/// Larger files are no certificates; a full bundle of public roots has about 220 KiB.
const MAX_FILE: u64 = 1024 * 1024;

/// What the device shows to the cloud.
pub struct Identity {
    /// The device's certificate first, then what leads to its root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first certificate.
    pub key: PrivateKeyDer<'static>,
    /// End of the first certificate's validity, in seconds since 1970.
    pub not_after: u64,
    /// Its subject's common name, if it has one.
    pub common_name: Option<String>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("common_name", &self.common_name)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too large for what it should be.
    #[error("{path} is larger than 1 MiB, which no certificate or key is", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing in it.
    #[error("{path} is empty", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Not the form that we read.
    #[error(
        "{path} holds no {wanted} in PEM form (-----BEGIN ...): {why}; a DER file is converted by \
         `openssl x509 -inform der` or `openssl pkey -inform der`", path = path.display()
    )]
    NotPem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        wanted: &'static str,
        /// What the reader found.
        why: String,
    },
    /// PEM, but not a certificate inside.
    #[error("{path} holds a certificate that cannot be read: {why}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        why: String,
    },
    /// TLS here needs version 3.
    #[error(
        "{path} holds an X.509 version 1 certificate: make it v3, with `openssl x509 -req -extfile FILE` where FILE \
         says `basicConstraints=CA:FALSE`", path = path.display()
    )]
    Version1 {
        /// The file.
        path: PathBuf,
    },
    /// The validity has not begun and the clock is believable.
    #[error(
        "{path} is not valid yet: it begins at {not_before} and now is {now} (seconds since 1970); check the clock",
        path = path.display()
    )]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Begin of validity, in seconds since 1970.
        not_before: u64,
        /// The time used, in seconds since 1970.
        now: u64,
    },
    /// The validity has not begun, and the clock stands before this program was built.
    #[error(
        "clock not set: it stands before the build of otandem, so {path} (valid from {not_before} in seconds since \
         1970) seems not valid yet; set the time first", path = path.display()
    )]
    ClockNotSet {
        /// The file.
        path: PathBuf,
        /// Begin of validity, in seconds since 1970.
        not_before: u64,
    },
    /// The validity is over.
    #[error(
        "{path} has expired at {not_after} and now is {now} (seconds since 1970): check the clock, else renew it",
        path = path.display()
    )]
    Expired {
        /// The file.
        path: PathBuf,
        /// End of validity, in seconds since 1970.
        not_after: u64,
        /// The time used, in seconds since 1970.
        now: u64,
    },
    /// Somebody else can read or replace the key.
    #[error(
        "{path} is a private key that belongs to user {owner} with mode {mode:03o}: make it readable by its owner \
         alone, `chown {me}` and `chmod 600`", path = path.display()
    )]
    KeyNotPrivate {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
        /// The user that otandem runs as.
        me: u32,
    },
    /// A passphrase would be needed.
    #[error("{path} is encrypted with a passphrase: decrypt it with `openssl pkey`", path = path.display())]
    KeyEncrypted {
        /// The file.
        path: PathBuf,
    },
    /// A kind of key that TLS here cannot use.
    #[error("{path} holds a key that cannot be used: {why}; use RSA (2048 bits or more), P-256 or P-384",
        path = path.display())]
    KeyUnsupported {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        why: String,
    },
    /// The two files are not a pair.
    #[error(
        "the key {key} does not belong to the first certificate in {cert}, which must be the device's own",
        key = key.display(), cert = cert.display()
    )]
    Mismatch {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
    },
}

/// The time to judge certificates by, in seconds since 1970: a device without a battery for its clock starts in the
/// past, but never before this program was built nor before the time that it saved last.
#[must_use]
pub fn trusted_now(wall: u64, built: u64, last_saved: u64) -> u64 {
    wall.max(built).max(last_saved)
}

/// Loads the client certificate chain and its key.
///
/// `now` is the time to judge by (see [`trusted_now`]) and `built` that of this program's build, both in seconds since
/// 1970. A certificate that begins after a clock that is not past `built` is reported as `clock not set`.
///
/// # Errors
/// Whatever would make the cloud refuse the connection or others able to use the key.
pub fn load_identity(cert: &Path, key: &Path, now: u64, built: u64) -> Result<Identity, CertError> {
    let chain = load_chain(cert)?;
    let own = facts(cert, &chain)?;
    let (not_before, not_after) = own.validity;
    let path = || cert.to_owned();
    if now < not_before {
        return Err(match now <= built {
            true => CertError::ClockNotSet { path: path(), not_before },
            false => CertError::NotYetValid { path: path(), not_before, now },
        });
    }
    if now > not_after {
        return Err(CertError::Expired { path: path(), not_after, now });
    }
    let private = load_key(key)?;
    let signer = signing_key(&private)
        .map_err(|e| CertError::KeyUnsupported { path: key.into(), why: e.to_string() })?;
    CertifiedKey::new(chain.clone(), signer)
        .keys_match()
        .map_err(|_| CertError::Mismatch { cert: path(), key: key.into() })?;
    Ok(Identity { chain, key: private, not_after, common_name: own.common_name })
}

/// The key by which TLS signs for the device.
///
/// # Errors
/// It is neither ECDSA (P-256, P-384) nor RSA, or is damaged.
pub fn signing_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    any_ecdsa_type(key).or_else(|_| RsaSigningKey::new(key).map(|key| Arc::new(key) as _))
}

/// Loads the roots that a server's certificate must lead to.
///
/// # Errors
/// The file cannot be read, or one certificate in it cannot be used: trust is never quietly less than configured.
pub fn load_roots(path: &Path) -> Result<RootCertStore, CertError> {
    let mut roots = RootCertStore::empty();
    for der in load_chain(path)? {
        roots.add(der).map_err(|e| CertError::Malformed { path: path.into(), why: e.to_string() })?;
    }
    Ok(roots)
}

fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let bytes = read(path, &open(path)?)?;
    let not_pem = |why: String| CertError::NotPem { path: path.into(), wanted: "certificate", why };
    let chain = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| not_pem(reason(&e)))?;
    if chain.is_empty() {
        return Err(not_pem(reason(&PemError::NoItemsFound)));
    }
    Ok(chain)
}

fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertError> {
    let file = open(path)?;
    let meta = file.metadata().map_err(|source| CertError::Read { path: path.into(), source })?;
    let (owner, mode, me) = (meta.uid(), meta.mode() & 0o7777, nix::unistd::geteuid().as_raw());
    if (owner != me && owner != 0) || mode & 0o077 != 0 {
        return Err(CertError::KeyNotPrivate { path: path.into(), owner, mode, me });
    }
    let bytes = read(path, &file)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| {
        let encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
        if bytes.windows(encrypted.len()).any(|w| w == encrypted) {
            return CertError::KeyEncrypted { path: path.into() };
        }
        CertError::NotPem { path: path.into(), wanted: "private key", why: reason(&e) }
    })
}

/// Why it is not PEM, without quoting a file that may be a key.
fn reason(e: &PemError) -> String {
    match e {
        PemError::MissingSectionEnd { .. } => "its end is missing",
        PemError::IllegalSectionStart { .. } => "a BEGIN line is broken",
        PemError::Base64Decode(_) => "it is not base64 inside",
        PemError::NoItemsFound => "nothing of that kind is in it",
        _ => "it cannot be read",
    }
    .to_owned()
}

/// What is known of the first certificate, where all of them can be read.
fn facts(path: &Path, chain: &[CertificateDer<'_>]) -> Result<der::Facts, CertError> {
    let malformed = |why: String| CertError::Malformed { path: path.into(), why };
    let mut own = None;
    for certificate in chain {
        let facts = der::facts(certificate).ok_or_else(|| malformed("it is no X.509 certificate".into()))?;
        if !facts.is_v3 {
            return Err(CertError::Version1 { path: path.into() });
        }
        if own.is_none() {
            // What the server will do with it.
            ParsedCertificate::try_from(certificate).map_err(|e| malformed(e.to_string()))?;
            own = Some(facts);
        }
    }
    own.ok_or_else(|| CertError::Empty { path: path.into() })
}

/// Opened without waiting, should a pipe be in its place.
fn open(path: &Path) -> Result<File, CertError> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    file.map_err(|source| CertError::Read { path: path.into(), source })
}

fn read(path: &Path, file: &File) -> Result<Vec<u8>, CertError> {
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    read.map_err(|source| CertError::Read { path: path.into(), source })?;
    match u64::try_from(bytes.len()) {
        Ok(0) => Err(CertError::Empty { path: path.into() }),
        Ok(n) if n <= MAX_FILE => Ok(bytes),
        _ => Err(CertError::TooLarge { path: path.into() }),
    }
}

#[cfg(test)]
#[path = "cert_tests.rs"]
mod tests;
