use super::*;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use proptest::prelude::*;
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

/// 2025-06-01, inside the validity of [`Files::pair`].
const NOW: u64 = 1_748_736_000;
const BUILT: u64 = NOW - 1000;

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    /// A certificate of the year 2025 and its key.
    fn pair(&self) -> (PathBuf, PathBuf) {
        let (cert, key) = made("gateway-7");
        (self.put("cert.pem", cert), self.put("key.pem", key))
    }
}

fn made(name: &str) -> (String, String) {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2026, 1, 1);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_chain_and_its_key_are_loaded_with_name_and_end() {
    let files = Files::new();
    let (cert, key) = files.pair();
    let chain = files.put("chain.pem", std::fs::read_to_string(&cert).unwrap() + &made("ca").0);
    let identity = load_identity(&chain, &key, NOW, BUILT).unwrap();
    assert_eq!(identity.chain.len(), 2);
    assert_eq!(identity.common_name.as_deref(), Some("gateway-7"));
    assert_eq!(identity.not_after, 1_767_225_600);
    assert!(!format!("{identity:?}").contains("key"));
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let files = Files::new();
    let (cert, _) = files.pair();
    let key = files.put("other.pem", made("other").1);
    let e = load_identity(&cert, &key, NOW, BUILT).unwrap_err();
    assert!(matches!(e, CertError::Mismatch { .. }), "{e}");
    let (_, key) = files.pair();
    let wrong_order = files.put("chain.pem", made("ca").0 + &std::fs::read_to_string(&cert).unwrap());
    assert!(matches!(load_identity(&wrong_order, &key, NOW, BUILT), Err(CertError::Mismatch { .. })));
}

#[test]
fn dates_are_judged_and_an_unset_clock_is_named() {
    let files = Files::new();
    let (cert, key) = files.pair();
    let at = |now, built| load_identity(&cert, &key, now, built);
    assert!(matches!(at(NOW * 2, BUILT), Err(CertError::Expired { .. })));
    assert!(matches!(at(NOW / 2, NOW / 2 - 1), Err(CertError::NotYetValid { .. })));
    let e = at(NOW / 2, NOW / 2).unwrap_err();
    assert!(e.to_string().starts_with("clock not set"), "{e}");
    at(1_767_225_600, BUILT).unwrap();
    assert!(at(1_767_225_601, BUILT).is_err());
}

#[test]
fn the_trusted_time_is_never_before_the_build_or_the_last_saved_time() {
    assert_eq!(trusted_now(5, 1, 2), 5);
    assert_eq!(trusted_now(0, 7, 2), 7);
    assert_eq!(trusted_now(0, 7, 9), 9);
}

#[test]
fn a_key_that_others_can_read_is_refused_with_what_to_do() {
    let files = Files::new();
    let (cert, key) = files.pair();
    for mode in [0o640, 0o604, 0o620, 0o601] {
        std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
        let e = load_identity(&cert, &key, NOW, BUILT).unwrap_err();
        assert!(matches!(e, CertError::KeyNotPrivate { .. }) && e.to_string().contains("chmod 600"), "{e}");
    }
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o400)).unwrap();
    load_identity(&cert, &key, NOW, BUILT).unwrap();
}

#[test]
fn a_key_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can make a file of another user");
        return;
    }
    let files = Files::new();
    let (cert, key) = files.pair();
    std::os::unix::fs::chown(&key, Some(1), None).unwrap();
    let e = load_identity(&cert, &key, NOW, BUILT).unwrap_err();
    assert!(matches!(e, CertError::KeyNotPrivate { owner: 1, .. }), "{e}");
}

#[test]
fn files_that_are_something_else_are_told_by_their_name() {
    let files = Files::new();
    let (cert, key) = files.pair();
    let as_cert = |path: &Path| load_identity(path, &key, NOW, BUILT).unwrap_err();
    let as_key = |path: &Path| load_identity(&cert, path, NOW, BUILT).unwrap_err();
    let none = files.0.path().join("none");
    assert!(
        matches!(as_cert(&none), CertError::Read { .. }) && matches!(as_key(&none), CertError::Read { .. })
    );
    let empty = files.put("empty", "");
    assert!(
        matches!(as_cert(&empty), CertError::Empty { .. })
            && matches!(as_key(&empty), CertError::Empty { .. })
    );
    let text = files.put("text", "hello");
    assert!(
        matches!(as_cert(&text), CertError::NotPem { .. })
            && matches!(as_key(&text), CertError::NotPem { .. })
    );
    assert!(matches!(as_cert(&key), CertError::NotPem { wanted: "certificate", .. }));
    assert!(matches!(as_key(&cert), CertError::NotPem { wanted: "private key", .. }));
    let large = files.put("large", vec![b'x'; 2_000_000]);
    assert!(matches!(as_cert(&large), CertError::TooLarge { .. }));
    let broken = files.put("broken", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    assert!(matches!(as_cert(&broken), CertError::Malformed { .. }));
    let head = files.put("head", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    assert!(matches!(as_cert(&head), CertError::NotPem { .. }));
    let locked = files
        .put("locked", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    assert!(matches!(as_key(&locked), CertError::KeyEncrypted { .. }));
    let odd = files.put("odd", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    assert!(matches!(as_key(&odd), CertError::KeyUnsupported { .. }));
}

#[test]
fn a_version_1_certificate_is_refused_with_how_to_make_it_v3() {
    let files = Files::new();
    let script = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -subj /CN=old \
        -out csr.pem && openssl x509 -req -in csr.pem -signkey key.pem -out cert.pem -days 2 && \
        openssl x509 -in cert.pem -noout -text | grep -q 'Version: 1'";
    let made = Command::new("sh").args(["-c", script]).current_dir(files.0.path()).output().unwrap();
    if !made.status.success() {
        eprintln!("skipped: there is no openssl that makes version 1 certificates");
        return;
    }
    let (cert, key) = (files.0.path().join("cert.pem"), files.0.path().join("key.pem"));
    let e = load_identity(&cert, &key, NOW, BUILT).unwrap_err();
    assert!(matches!(e, CertError::Version1 { .. }) && e.to_string().contains("make it v3"), "{e}");
}

#[test]
fn roots_are_loaded_and_one_bad_among_them_is_an_error() {
    let files = Files::new();
    let (one, two) = (made("one").0, made("two").0);
    assert_eq!(load_roots(&files.put("roots", one.clone() + &two)).unwrap().len(), 2);
    let bad = one + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(load_roots(&files.put("bad", bad)), Err(CertError::Malformed { .. })));
    assert!(matches!(load_roots(&files.put("none", "\n")), Err(CertError::NotPem { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_certificate_or_key_never_panics(
        at in 0..2000_usize, byte in any::<u8>(), noise in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let files = Files::new();
        let (cert, key) = files.pair();
        for damaged in [&cert, &key] {
            let whole = std::fs::read(damaged).unwrap();
            let mut bytes = whole.clone();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.extend_from_slice(&noise);
            files.put(damaged.file_name().unwrap().to_str().unwrap(), &bytes);
            let _ = load_identity(&cert, &key, NOW, BUILT);
            let _ = load_roots(&cert);
            files.put(damaged.file_name().unwrap().to_str().unwrap(), &whole);
        }
    }

    #[test]
    fn a_certificate_of_noise_is_malformed_not_a_panic(der in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(facts(Path::new("noise"), &[CertificateDer::from(der)]).is_err());
    }
}
