//! Interrupted images go on where they can, and start again where they cannot. What is saved is counted in the bytes
//! that are fetched.

mod install_support;
#[path = "install_support/packed.rs"]
mod packed;

use install_support::{Log, MIB, image_bytes, md5, sha256, zstd};
use otandem_core::image::{Checkpoint, Compression, DigestState};
use otandem_device::install::{Class, Fault, InstallError, discard};
use packed::{FORMATS, One, pack};
use proptest::prelude::*;

#[test]
fn an_interrupted_image_goes_on_at_its_last_restart_point() {
    let raw = image_bytes(5 * MIB + 777, 3);
    for format in FORMATS {
        let packed = pack(format, &raw, 256 << 10);
        let mut one = One::new(&raw, packed.clone(), None);
        one.image.file.sha256 = Some(sha256(&packed));
        one.image.raw.md5 = Some(md5(&raw));
        one.fetch.object("x").cut = Some(packed.len() * 3 / 4);
        let mut log = Log::default();
        assert_eq!(one.run_with(&mut log, None, |_| {}).unwrap_err().class(), Class::Failed);
        let last = log.last.unwrap();
        assert!(last.raw_offset >= 2 * MIB as u64, "{format:?}: {last:?}");
        one.fetch.object("x").cut = None;
        let before = one.fetch.handed();
        let written = one.run_with(&mut Log::default(), Some(&last), |_| {}).unwrap();
        assert!(one.content() == raw, "{format:?}");
        assert!(written.resumed && written.read_back);
        let fetched = one.fetch.handed() - before;
        assert_eq!(written.fetched, fetched);
        // The rest, and one look at the beginning.
        let rest = packed.len() as u64 - last.source_offset;
        assert!(fetched <= rest + (64 << 10), "{format:?}: {fetched} for a rest of {rest}");
        assert_eq!(one.fetch.opened.last().unwrap().1, last.source_offset);
    }
}

#[test]
fn an_image_in_one_frame_starts_again() {
    let raw = image_bytes(3 * MIB, 3);
    for format in [Compression::Gzip, Compression::Xz, Compression::Zstd] {
        let packed = pack(format, &raw, raw.len());
        let mut one = One::new(&raw, packed.clone(), None);
        one.fetch.object("x").cut = Some(packed.len() * 3 / 4);
        let mut log = Log::default();
        one.run_with(&mut log, None, |_| {}).unwrap_err();
        assert_eq!(log.last, None, "{format:?}");
        assert!(log.progress.iter().all(|p| p.durable == 0));
    }
}

/// A checkpoint in the middle of a framed image, and the bench on which it was made.
fn interrupted(raw: &[u8]) -> (One, Checkpoint) {
    let packed = zstd(raw, 256 << 10);
    let mut one = One::new(raw, packed.clone(), None);
    one.image.file.sha256 = Some(sha256(&packed));
    one.fetch.object("x").cut = Some(packed.len() * 3 / 4);
    let mut log = Log::default();
    one.run_with(&mut log, None, |_| {}).unwrap_err();
    one.fetch.object("x").cut = None;
    (one, log.last.unwrap())
}

#[test]
fn a_checkpoint_that_cannot_be_used_starts_the_image_again() {
    let raw = image_bytes(4 * MIB, 3);
    type Change = fn(&One, &mut Checkpoint);
    let cases: [(&str, Change); 7] = [
        ("no digest", |_, c| c.source_digests.clear()),
        ("other version", |_, c| c.source_digests[0].version = 99),
        ("noise as digest", |_, c| {
            c.source_digests =
                vec![DigestState { algorithm: "sha256".into(), version: 1, state: "zz".into() }];
        }),
        ("beyond the image", |_, c| c.raw_offset = 1 << 40),
        ("other images", |_, c| c.image = 9),
        ("in the head", |_, c| c.raw_offset = 4096),
        ("temporary gone", |one, _| {
            std::fs::remove_file(one.bench.dir.path().join(".rootfs.img.otandem")).unwrap();
        }),
    ];
    for (what, change) in cases {
        let (mut one, mut checkpoint) = interrupted(&raw);
        change(&one, &mut checkpoint);
        let written = one.run_with(&mut Log::default(), Some(&checkpoint), |_| {}).unwrap();
        assert!(!written.resumed, "{what}");
        assert!(one.content() == raw, "{what}");
    }
    // Beyond the source, with digests that would do.
    let (mut one, mut checkpoint) = interrupted(&raw);
    checkpoint.source_offset = 1 << 40;
    assert!(!one.run_with(&mut Log::default(), Some(&checkpoint), |_| {}).unwrap().resumed);
    assert!(one.content() == raw);
}

#[test]
fn what_was_damaged_while_the_device_was_off_is_found() {
    let raw = image_bytes(4 * MIB, 3);
    let (mut one, checkpoint) = interrupted(&raw);
    let temporary = one.bench.dir.path().join(".rootfs.img.otandem");
    let mut bytes = std::fs::read(&temporary).unwrap();
    bytes[MIB] ^= 1;
    std::fs::write(&temporary, bytes).unwrap();
    let error = one.run_with(&mut Log::default(), Some(&checkpoint), |_| {}).unwrap_err();
    assert!(matches!(error, InstallError::Image { fault: Fault::Digest { .. }, .. }), "{error}");
    // The next attempt with the same checkpoint starts again, and succeeds.
    assert!(!one.run_with(&mut Log::default(), Some(&checkpoint), |_| {}).unwrap().resumed);
    assert!(one.content() == raw);
}

#[test]
fn a_changed_object_fails_a_resume() {
    let raw = image_bytes(4 * MIB, 3);
    let (mut one, checkpoint) = interrupted(&raw);
    one.fetch.object("x").etag = Some("two".into());
    let error = one.run_with(&mut Log::default(), Some(&checkpoint), |_| {}).unwrap_err();
    assert_eq!(error.class(), Class::Failed);
    assert!(error.to_string().contains("changed"), "{error}");
}

#[test]
fn a_raw_image_that_looks_packed_in_its_middle_goes_on_raw() {
    let mut raw = image_bytes(3 * MIB, 3);
    // Every buffer but the first begins like a zstd frame.
    for at in [MIB, 2 * MIB] {
        raw[at..at + 4].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
    }
    let mut one = One::new(&raw, raw.clone(), None);
    one.fetch.object("x").cut = Some(2 * MIB + 5);
    let mut log = Log::default();
    one.run_with(&mut log, None, |_| {}).unwrap_err();
    one.fetch.object("x").cut = None;
    assert!(one.run_with(&mut Log::default(), log.last.as_ref(), |_| {}).unwrap().resumed);
    assert!(one.content() == raw);
}

#[test]
fn giving_up_leaves_nothing_behind() {
    let raw = image_bytes(4 * MIB, 3);
    let (one, _) = interrupted(&raw);
    assert!(
        !one.bench.names_in_state().is_empty() || one.bench.dir.path().join(".rootfs.img.otandem").exists()
    );
    discard(&one.bench.state(), &one.bench.targets).unwrap();
    assert_eq!(one.bench.names_in_state(), [""; 0]);
    assert_eq!(std::fs::read_dir(one.bench.dir.path()).unwrap().count(), 1, "the state directory alone");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// UPDATE-RULES 1.5, for every format: cut at any byte, go on with the last checkpoint.
    #[test]
    fn cut_at_any_byte_the_image_is_complete_in_the_end(
        format in 0usize..4, at in 0.0f64..1.0, again in 0.0f64..1.0, frame in 30_000usize..700_000
    ) {
        let raw = image_bytes(2 * MIB + 4097, 21);
        let packed = pack(FORMATS[format], &raw, frame);
        let mut one = One::new(&raw, packed.clone(), Some(FORMATS[format]));
        let mut last = None;
        for at in [at, again] {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction of a length")]
            let cut = (packed.len() as f64 * at) as usize;
            one.fetch.object("x").cut = Some(cut);
            let mut log = Log { last: last.clone(), ..Log::default() };
            let cut_short = one.run_with(&mut log, last.as_ref(), |_| {}).is_err();
            prop_assert!(cut_short);
            prop_assert!(!one.bench.path("rootfs").exists());
            last = log.last;
        }
        one.fetch.object("x").cut = None;
        one.run_with(&mut Log::default(), last.as_ref(), |_| {}).unwrap();
        prop_assert!(one.content() == raw);
    }
}
