//! The lab's certificate authority: X.509 v3 certificates for the servers, for devices, and bad ones for tests.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SignatureAlgorithm,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::der::{DecodePem as _, Encode as _};
use x509_cert::request::CertReq;

/// Where the lab listens.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Something about certificates failed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A key or certificate could not be made.
    #[error("cannot make the certificate of {name:?}: {source}; is the name plain text?")]
    Make {
        /// Common name that was asked for.
        name: String,
        /// What the certificate library said.
        source: rcgen::Error,
    },
    /// What should be a request for a certificate is none, or is not signed by its key.
    #[error("not a request for a certificate that a P-256 key has signed")]
    Request,
    /// A file could not be written.
    #[error("cannot write {path}: {source}; is the folder there and writable?", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Validity {
    /// Now and for decades.
    #[default]
    Now,
    /// In 2001 only.
    Expired,
    /// From 2090 on.
    NotYet,
}

impl Validity {
    fn years(self) -> (i32, i32) {
        match self {
            Self::Now => (2020, 2049),
            Self::Expired => (2001, 2002),
            Self::NotYet => (2090, 2099),
        }
    }
}

/// A certificate with its key, in PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Common name of the subject; the broker takes it for the thing name.
    pub common_name: String,
    /// Certificate, PEM.
    pub certificate_pem: String,
    /// PKCS#8 private key, PEM.
    pub key_pem: String,
}

/// Where [`Identity::write`] put things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// Certificate, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM, mode 0600.
    pub key: PathBuf,
}

impl Identity {
    /// Writes `<name>.cert.pem` and `<name>.key.pem` (mode 0600) into `folder`.
    ///
    /// # Errors
    /// [`CaError::Write`] with the file that could not be written.
    pub fn write(&self, folder: &Path) -> Result<IdentityFiles, CaError> {
        // Thing names may hold ':', which no file system here minds; '/' cannot be in one.
        let files = IdentityFiles {
            certificate: folder.join(format!("{}.cert.pem", self.common_name)),
            key: folder.join(format!("{}.key.pem", self.common_name)),
        };
        write_file(&files.certificate, &self.certificate_pem, 0o644)?;
        write_file(&files.key, &self.key_pem, 0o600)?;
        Ok(files)
    }
}

pub(crate) fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), CaError> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| CaError::Write { path: path.to_owned(), source })
}

/// A root that signs servers and devices. Clones are the same root.
#[derive(Clone)]
pub struct Authority {
    issuer: Arc<Issuer<'static, KeyPair>>,
    pem: String,
    der: CertificateDer<'static>,
}

impl Authority {
    /// A new root with a new key.
    ///
    /// # Errors
    /// [`CaError::Make`] when the key or the certificate cannot be made.
    pub fn new(name: &str) -> Result<Self, CaError> {
        let make = || {
            let mut params = params(name, Validity::Now)?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let key = KeyPair::generate()?;
            let certificate = params.self_signed(&key)?;
            let (pem, der) = (certificate.pem(), certificate.der().clone());
            Ok(Self { issuer: Arc::new(Issuer::new(params, key)), pem, der })
        };
        make().map_err(|source| CaError::Make { name: name.to_owned(), source })
    }

    /// The root certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The root certificate, DER.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// A client certificate for a device.
    ///
    /// # Errors
    /// [`CaError::Make`] when the key or the certificate cannot be made.
    pub fn device(&self, common_name: &str, validity: Validity) -> Result<Identity, CaError> {
        self.issue(common_name, validity, ExtendedKeyUsagePurpose::ClientAuth, Vec::new())
    }

    /// A client certificate for the P-256 key that signed `request` (PKCS#10, PEM), whatever subject that names; PEM, and
    /// the public key.
    ///
    /// # Errors
    /// [`CaError::Request`] for anything else, [`CaError::Make`].
    pub fn sign(&self, common_name: &str, request: &str) -> Result<(String, Vec<u8>), CaError> {
        let key = requested(request).ok_or(CaError::Request)?;
        let make = || {
            let mut params = params(common_name, Validity::Now)?;
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.signed_by(&P256(key.clone()), &*self.issuer)
        };
        let certificate = make().map_err(|source| make_error(common_name, source))?;
        Ok((certificate.pem(), key))
    }

    /// A server certificate for `localhost`, 127.0.0.1 and `address`, under which the clients find the server.
    ///
    /// # Errors
    /// [`CaError::Make`] when the key or the certificate cannot be made.
    pub fn server(
        &self,
        common_name: &str,
        validity: Validity,
        address: IpAddr,
    ) -> Result<Identity, CaError> {
        let localhost = "localhost".try_into().map_err(|source| make_error(common_name, source))?;
        let mut names = vec![SanType::DnsName(localhost), SanType::IpAddress(LOOPBACK)];
        if address != LOOPBACK {
            names.push(SanType::IpAddress(address));
        }
        self.issue(common_name, validity, ExtendedKeyUsagePurpose::ServerAuth, names)
    }

    fn issue(
        &self,
        common_name: &str,
        validity: Validity,
        usage: ExtendedKeyUsagePurpose,
        names: Vec<SanType>,
    ) -> Result<Identity, CaError> {
        let make = || {
            let mut params = params(common_name, validity)?;
            params.subject_alt_names = names;
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![usage];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &*self.issuer)?;
            Ok(Identity {
                common_name: common_name.to_owned(),
                certificate_pem: certificate.pem(),
                key_pem: key.serialize_pem(),
            })
        };
        make().map_err(|source| make_error(common_name, source))
    }
}

/// A public key, as a point.
struct P256(Vec<u8>);

impl PublicKeyData for P256 {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// The public key of a request that it signed itself.
fn requested(request: &str) -> Option<Vec<u8>> {
    let request = CertReq::from_pem(request).ok()?;
    let key = request.info.public_key.subject_public_key.as_bytes()?.to_vec();
    let signed = request.info.to_der().ok()?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key)
        .verify(&signed, request.signature.as_bytes()?)
        .ok()?;
    Some(key)
}

fn make_error(name: &str, source: rcgen::Error) -> CaError {
    CaError::Make { name: name.to_owned(), source }
}

fn params(name: &str, validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let (from, to) = validity.years();
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(to, 12, 31);
    Ok(params)
}
