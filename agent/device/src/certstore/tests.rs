use std::process::{Command, Stdio};

use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};

use super::*;

fn temp() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(&dir.path().join("certs"));
    (dir, store)
}

fn put(store: &Store, name: &str) {
    let pair = store.pair(name);
    fs::create_dir_all(pair.cert.parent().unwrap()).unwrap();
    fs::write(&pair.cert, "c").unwrap();
    fs::write(&pair.key, "k").unwrap();
}

fn names(store: &Store) -> Vec<String> {
    store.list().unwrap().into_iter().map(|pair| pair.name).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

/// A certificate for the key that waits in the store.
fn certified(store: &Store) -> String {
    store.request("x").unwrap();
    let key = KeyPair::from_pem(&fs::read_to_string(store.path().join(".new/key.pem")).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.not_after = rcgen::date_time_ymd(2040, 1, 1);
    params.self_signed(&key).unwrap().pem()
}

#[test]
fn certificates_are_listed_in_the_order_of_their_names_and_links_and_other_directories_are_none() {
    let (_dir, store) = temp();
    assert_eq!(names(&store), [""; 0]);
    for name in ["b", "a", "0", ".new", "half"] {
        put(&store, name);
    }
    fs::remove_file(store.pair("half").key).unwrap();
    fs::create_dir(store.path().join("lost+found")).unwrap();
    symlink("a", store.path().join("preferred")).unwrap();
    fs::write(store.path().join("endpoint.txt"), "h").unwrap();
    assert_eq!(names(&store), ["0", "a", "b", "half"], "what is broken is told when it is loaded");
    fs::write(store.path().join("cert.pem"), "c").unwrap();
    assert_eq!(names(&store), [".", "0", "a", "b", "half"], "the present layout stays valid");
}

#[test]
fn preferred_is_a_relative_link_that_is_replaced_whole() {
    let (_dir, store) = temp();
    put(&store, "a");
    put(&store, "b");
    assert_eq!(store.preferred(), None);
    fs::write(store.path().join(".preferred.new"), "left by a power cut").unwrap();
    for name in ["a", "b", "b"] {
        store.prefer(name).unwrap();
        assert_eq!(store.preferred().as_deref(), Some(name));
        assert_eq!(fs::read_link(store.path().join("preferred")).unwrap(), Path::new(name));
    }
    for bad in ["c", "..", "../b", "", "/"] {
        assert!(matches!(store.prefer(bad), Err(StoreError::NoSuch { .. })), "{bad}");
    }
    assert_eq!(store.preferred().as_deref(), Some("b"));
    assert!(!store.path().join(".preferred.new").exists());
    for outside in ["/etc", "../x", ".."] {
        fs::remove_file(store.path().join("preferred")).unwrap();
        symlink(outside, store.path().join("preferred")).unwrap();
        assert_eq!(store.preferred(), None, "{outside}");
    }
}

#[test]
fn the_endpoint_is_host_and_perhaps_port() {
    let (_dir, store) = temp();
    fs::create_dir_all(store.path()).unwrap();
    assert_eq!(store.endpoint().unwrap(), None);
    let read = |text: &str| {
        fs::write(store.path().join("endpoint.txt"), text).unwrap();
        store.endpoint()
    };
    assert_eq!(read(" a.example\n").unwrap(), Some(("a.example".into(), None)));
    assert_eq!(read("a.example:443\n").unwrap(), Some(("a.example".into(), Some(443))));
    assert_eq!(read("a:443:9").unwrap(), Some(("a".into(), Some(443))));
    for bad in ["", ":1", "a:", "a:x", "a:0", "a:99999", "a b", "https://a"] {
        assert!(matches!(read(bad), Err(StoreError::Endpoint { .. })), "{bad}");
    }
}

#[test]
fn a_key_is_made_once_and_its_request_is_what_openssl_takes() {
    let (dir, store) = temp();
    let request = store.request("gateway-7").unwrap();
    let key = store.path().join(".new/key.pem");
    let text = fs::read_to_string(&key).unwrap();
    assert_eq!((mode(&key), mode(key.parent().unwrap()), mode(store.path())), (0o600, 0o700, 0o700));
    let again = store.request("gateway-7").unwrap();
    assert_eq!(fs::read_to_string(&key).unwrap(), text, "a key that the cloud may have heard of is kept");
    for request in [request, again] {
        let file = dir.path().join("request.pem");
        fs::write(&file, &request).unwrap();
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-verify", "-noout", "-subject", "-in"]).arg(&file).stderr(Stdio::piped());
        let Ok(out) = openssl.output() else {
            println!("skipped: no openssl");
            return;
        };
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success() && said.contains("OK") && said.contains("gateway-7"),
            "{said}\n{request}"
        );
    }
}

#[test]
fn a_key_that_cannot_sign_requests_is_made_anew() {
    let (_dir, store) = temp();
    let stage = store.stage().unwrap();
    for bad in [
        &b"noise"[..],
        b"\xff\xfe",
        b"-----BEGIN RSA PRIVATE KEY-----\nAA==\n-----END RSA PRIVATE KEY-----\n",
    ] {
        fs::write(stage.join(KEY), bad).unwrap();
        assert!(store.request("x").unwrap().contains("CERTIFICATE REQUEST"));
    }
}

#[test]
fn a_certificate_is_admitted_with_its_key_after_a_power_cut_at_any_step() {
    // The steps that may have been done before the power went.
    for done in 0..=3 {
        let (_dir, store) = temp();
        let pem = certified(&store);
        assert!(!store.is_kept());
        store.keep(&pem, None, u64::MAX / 2, 0).unwrap_err();
        store.keep(&pem, None, 1_800_000_000, 0).unwrap();
        assert!(store.is_kept());
        let stage = store.path().join(STAGE);
        for (from, to) in
            [(CERT, "ab-certificate.pem.crt"), (KEY, "ab-private.pem.key")].into_iter().take(done)
        {
            fs::rename(stage.join(from), stage.join(to)).unwrap();
        }
        if done == 3 {
            fs::rename(&stage, store.path().join("ab")).unwrap();
        }
        store.admit("ab").unwrap();
        store.admit("ab").unwrap();
        let pair = store.list().unwrap().remove(0);
        load_identity(&pair.cert, &pair.key, 1_800_000_000, 0).unwrap();
        assert_eq!((names(&store), mode(&pair.key)), (vec!["ab".to_owned()], 0o600));
        assert!(!stage.exists());
    }
}

#[test]
fn what_is_no_pair_and_what_has_no_plain_name_is_refused() {
    let (_dir, store) = temp();
    let mine = certified(&store);
    let other = temp();
    let theirs = certified(&other.1);
    let e = store.keep(&theirs, None, 1_800_000_000, 0).unwrap_err();
    assert!(matches!(e, StoreError::Certificate(CertError::Mismatch { .. })), "{e}");
    store.keep(&mine, None, 1_800_000_000, 0).unwrap();
    for bad in ["..", "a/b", "", ".new", "preferred/x"] {
        assert!(matches!(store.admit(bad), Err(StoreError::NoSuch { .. })), "{bad}");
    }
    assert!(matches!(temp().1.admit("ab"), Err(StoreError::NoSuch { .. })));
    store.admit("ab").unwrap();
}

#[test]
fn a_certificate_that_is_not_valid_yet_is_kept_since_the_clock_may_be_late() {
    let (_dir, store) = temp();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    let cert = params.self_signed(&key).unwrap().pem();
    store.keep(&cert, Some(&key.serialize_pem()), 1_700_000_000, 1_600_000_000).unwrap();
    assert_eq!(mode(&store.path().join(".new/key.pem")), 0o600);
}

#[test]
fn keys_that_others_could_read_are_made_private() {
    let (_dir, store) = temp();
    put(&store, "a");
    fs::set_permissions(store.pair("a").key, Permissions::from_mode(0o644)).unwrap();
    store.tighten();
    assert_eq!(mode(&store.pair("a").key), 0o600);
}

proptest! {
    #[test]
    fn lengths_are_der(length in 0usize..70_000) {
        let made = request::element(0x30, &[&vec![0; length]]);
        let [a, b, c, ..] = length.to_le_bytes();
        let head = match length {
            0..=0x7f => vec![0x30, a],
            0x80..=0xff => vec![0x30, 0x81, a],
            0x100..=0xffff => vec![0x30, 0x82, b, a],
            _ => vec![0x30, 0x83, c, b, a],
        };
        prop_assert_eq!(made.len(), head.len() + length);
        prop_assert!(made.starts_with(&head));
    }
}
