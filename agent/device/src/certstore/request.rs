//! A key of this device and the request for its certificate: PKCS#8 and PKCS#10 (RFC 2986), both PEM.
//!
//! The request is a handful of fixed bytes around a name, a public key and a signature; a library for it would be larger
//! than everything else here together.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;

/// Longest common name (RFC 5280, `ub-common-name`).
const MAX_NAME: usize = 64;
/// Characters of base64 in a line (RFC 7468).
const LINE: usize = 64;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const BIT_STRING: u8 = 0x03;
const UTF8_STRING: u8 = 0x0c;
/// INTEGER 0: the version.
const VERSION: &[u8] = &[0x02, 0x01, 0x00];
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
/// SEQUENCE { 1.2.840.10045.2.1 ecPublicKey, 1.2.840.10045.3.1.7 P-256 }
const P256_KEY: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07,
];
/// SEQUENCE { 1.2.840.10045.4.3.2 ecdsa-with-SHA256 }
const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// `[0] {}`: no attributes.
const NO_ATTRIBUTES: &[u8] = &[0xa0, 0x00];

/// A new P-256 key.
pub(super) fn key() -> Result<String, &'static str> {
    let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
    let made = made.map_err(|_| "the system gives no random numbers")?;
    Ok(in_pem("PRIVATE KEY", made.as_ref()))
}

/// The request for `name`, signed by the key in `key`.
pub(super) fn request(key: &str, name: &str) -> Result<String, &'static str> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes());
    let der = der.map_err(|_| "the key is no PKCS#8 in PEM form")?;
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der(), &random);
    let pair = pair.map_err(|_| "the key is no P-256 key")?;
    let name: String = name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
    let name = [COMMON_NAME, &element(UTF8_STRING, &[name.as_bytes()])].concat();
    let subject = element(SEQUENCE, &[&element(SET, &[&element(SEQUENCE, &[&name])])]);
    let public = element(SEQUENCE, &[P256_KEY, &element(BIT_STRING, &[&[0], pair.public_key().as_ref()])]);
    let asked = element(SEQUENCE, &[VERSION, &subject, &public, NO_ATTRIBUTES]);
    let signature = pair.sign(&random, &asked).map_err(|_| "the key does not sign")?;
    let signature = element(BIT_STRING, &[&[0], signature.as_ref()]);
    Ok(in_pem("CERTIFICATE REQUEST", &element(SEQUENCE, &[&asked, ECDSA_SHA256, &signature])))
}

fn in_pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for (at, character) in text.chars().enumerate() {
        pem.push(character);
        if (at + 1) % LINE == 0 || at + 1 == text.len() {
            pem.push('\n');
        }
    }
    pem + &format!("-----END {label}-----\n")
}

/// A DER element: tag, length, contents.
pub(super) fn element(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let length: usize = contents.iter().map(|part| part.len()).sum();
    let bytes = length.to_be_bytes();
    let digits = &bytes[bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len() - 1)..];
    let mut out = vec![tag];
    match digits {
        [short] if *short < 0x80 => out.push(*short),
        _ => {
            // At most eight digits.
            out.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
            out.extend_from_slice(digits);
        }
    }
    contents.iter().for_each(|part| out.extend_from_slice(part));
    out
}
