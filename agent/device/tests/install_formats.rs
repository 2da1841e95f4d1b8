//! Every way of packing, in one frame and in many, into files; and everything that can be wrong with a stream.
//! Restart points are counted by the bytes that are fetched.

mod install_support;

use std::io::Write;
use std::sync::atomic::AtomicBool;

use install_support::{Bench, Log, MIB, MemFetch, image, image_bytes, md5, sha256, zstd, zstd_window};
use otandem_core::image::{Checkpoint, Compression, DigestState, Expect, Image};
use otandem_device::install::{
    Class, Fault, InstallError, NoDigest, Plan, ReadBack, Written, discard, install,
};
use proptest::prelude::*;

static GO: AtomicBool = AtomicBool::new(false);
const FORMATS: [Compression; 4] = [Compression::None, Compression::Gzip, Compression::Xz, Compression::Zstd];

fn gzip(raw: &[u8], member: usize) -> Vec<u8> {
    let members = raw.chunks(member).flat_map(|part| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap()
    });
    members.collect()
}

fn xz_preset(raw: &[u8], stream: usize, preset: u32) -> Vec<u8> {
    let streams = raw.chunks(stream).flat_map(|part| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), preset);
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap()
    });
    streams.collect()
}

fn pack(format: Compression, raw: &[u8], frame: usize) -> Vec<u8> {
    match format {
        Compression::None => raw.to_vec(),
        Compression::Gzip => gzip(raw, frame),
        Compression::Xz => xz_preset(raw, frame, 0),
        Compression::Zstd => zstd(raw, frame),
    }
}

/// One slot, one image.
struct One {
    bench: Bench,
    image: Image,
    fetch: MemFetch,
    no_digest: NoDigest,
    read_back: ReadBack,
}

impl One {
    fn new(raw: &[u8], packed: Vec<u8>, compression: Option<Compression>) -> Self {
        Self {
            bench: Bench::new(&["rootfs"]),
            image: image("rootfs", "x", compression, raw),
            fetch: MemFetch::new([("x", packed)]),
            no_digest: NoDigest::Refuse,
            read_back: ReadBack::WhereDue,
        }
    }

    fn run_with(
        &mut self,
        log: &mut Log,
        resume: Option<&Checkpoint>,
        change: impl FnOnce(&mut Plan<'_>),
    ) -> Result<Written, InstallError> {
        let state = self.bench.state();
        let mut plan = self.bench.plan(std::slice::from_ref(&self.image), &state);
        plan.resume = resume;
        plan.no_digest = self.no_digest;
        plan.read_back = self.read_back;
        change(&mut plan);
        install(&plan, &mut self.fetch, log, &GO).map(|mut written| written.remove(0))
    }

    fn run(&mut self) -> Result<Written, InstallError> {
        self.run_with(&mut Log::default(), None, |_| {})
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(self.bench.path("rootfs")).unwrap()
    }

    /// The fault, and whether anything had been touched by then.
    fn fault(&mut self) -> (Fault, bool) {
        self.fault_with(|_| {})
    }

    fn fault_with(&mut self, change: impl FnOnce(&mut Plan<'_>)) -> (Fault, bool) {
        let mut log = Log::default();
        match self.run_with(&mut log, None, change) {
            Err(InstallError::Image { fault, .. }) => {
                assert!(!self.bench.path("rootfs").exists(), "what is wrong never gets its name");
                (fault, log.ready > 0)
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_format_in_one_frame_and_in_many_arrives_whole() {
    let raw = image_bytes(2 * MIB + 4321, 5);
    for format in FORMATS {
        for frame in [raw.len(), 300_000] {
            for named in [None, Some(format)] {
                let packed = pack(format, &raw, frame);
                let mut one = One::new(&raw, packed.clone(), named);
                one.image.file = Expect {
                    size: Some(packed.len() as u64),
                    sha256: Some(sha256(&packed)),
                    md5: Some(md5(&packed)),
                };
                one.image.raw.md5 = Some(md5(&raw));
                one.fetch.piece = 50_001;
                let written = one.run().unwrap();
                assert!(one.content() == raw, "{format:?} in frames of {frame}");
                assert_eq!(written.size, raw.len() as u64);
                assert_eq!((written.sha256, written.file_sha256), (sha256(&raw), Some(sha256(&packed))));
                assert_eq!(written.fetched, packed.len() as u64);
                assert_eq!(one.fetch.handed(), packed.len() as u64);
                assert_eq!(one.bench.names_in_state(), [""; 0]);
            }
        }
    }
}

#[test]
fn one_byte_at_a_time_makes_no_difference() {
    let raw = image_bytes(70_000, 9);
    for format in FORMATS {
        let mut one = One::new(&raw, pack(format, &raw, 20_000), Some(format));
        one.fetch.piece = 1;
        one.run().unwrap();
        assert!(one.content() == raw, "{format:?}");
    }
}

#[test]
fn sizes_around_blocks_and_buffers_arrive_whole() {
    for len in [1, 511, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 2 * MIB] {
        let raw = image_bytes(len, 3);
        let mut one = One::new(&raw, zstd(&raw, len), None);
        one.read_back = ReadBack::Always;
        assert!(one.run().unwrap().read_back);
        assert!(one.content() == raw, "{len}");
    }
}

#[test]
fn an_image_of_unknown_size_is_taken_by_its_digest() {
    let raw = image_bytes(MIB + 7, 3);
    for format in FORMATS {
        let mut one = One::new(&raw, pack(format, &raw, raw.len()), None);
        one.image.raw.size = None;
        one.fetch.object("x").hide_total = true;
        one.run().unwrap();
        assert!(one.content() == raw);
    }
}

#[test]
fn skippable_frames_and_stream_padding_are_passed_over() {
    let raw = image_bytes(400_000, 3);
    let skippable = [&[0x52, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"hello"].concat();
    let mut packed = skippable.clone();
    for part in raw.chunks(150_000) {
        packed.extend(zstd(part, part.len()));
        packed.extend(&skippable);
    }
    let mut one = One::new(&raw, packed, None);
    one.run().unwrap();
    assert!(one.content() == raw);

    let mut packed = Vec::new();
    for part in raw.chunks(150_000) {
        packed.extend(xz_preset(part, part.len(), 0));
        packed.extend([0; 8]);
    }
    let mut one = One::new(&raw, packed.clone(), None);
    one.run().unwrap();
    assert!(one.content() == raw);
    packed.push(0);
    let mut one = One::new(&raw, packed, None);
    assert!(matches!(one.fault().0, Fault::Truncated { .. }));
}

#[test]
fn a_stream_that_ends_early_fails() {
    let raw = image_bytes(600_000, 3);
    for format in FORMATS {
        for frame in [raw.len(), 200_000] {
            let packed = pack(format, &raw, frame);
            for (len, hide_total) in [(packed.len() - 1, false), (packed.len() / 2, true), (10, true)] {
                let mut one = One::new(&raw, packed.clone(), Some(format));
                let object = one.fetch.object("x");
                object.end = Some(len);
                object.hide_total = hide_total;
                let (fault, _) = one.fault();
                assert!(
                    matches!(fault, Fault::Truncated { .. } | Fault::Size { .. }),
                    "{format:?} {len}: {fault}"
                );
                assert_eq!(fault.class(), Class::Failed);
            }
        }
    }
}

#[test]
fn bytes_after_the_end_fail() {
    let raw = image_bytes(300_000, 3);
    for format in FORMATS {
        for garbage in [&b"x"[..], b"garbage that is long enough to be looked at"] {
            let mut packed = pack(format, &raw, raw.len());
            packed.extend(garbage);
            let mut one = One::new(&raw, packed, Some(format));
            one.fetch.object("x").hide_total = true;
            assert_eq!(one.fault().0.class(), Class::Failed, "{format:?}");
        }
    }
}

#[test]
fn a_changed_byte_anywhere_fails() {
    let raw = image_bytes(300_000, 3);
    for format in FORMATS {
        let packed = pack(format, &raw, 100_000);
        for at in [packed.len() / 3, packed.len() - 6] {
            let mut packed = packed.clone();
            packed[at] ^= 0x10;
            let mut one = One::new(&raw, packed, Some(format));
            assert_eq!(one.fault().0.class(), Class::Failed, "{format:?} at {at}");
        }
    }
}

#[test]
fn each_promise_that_is_broken_is_named() {
    let raw = image_bytes(300_000, 3);
    let packed = zstd(&raw, raw.len());
    let other = sha256(b"other");
    type Change = fn(&mut Image, otandem_core::image::Sha256);
    let cases: [(Change, &str); 6] = [
        (|i, d| i.raw.sha256 = Some(d), "sha256 of the image"),
        (|i, d| i.file.sha256 = Some(d), "sha256 of the file"),
        (|i, _| i.raw.md5 = Some(md5(b"other")), "md5 of the image"),
        (|i, _| i.file.md5 = Some(md5(b"other")), "md5 of the file"),
        (|i, _| i.raw.size = i.raw.size.map(|s| s + 1), "the image has 300000 bytes instead of 300001"),
        (|i, _| i.file.size = Some(7), "instead of 7"),
    ];
    for (change, says) in cases {
        let mut one = One::new(&raw, packed.clone(), None);
        change(&mut one.image, other);
        let (fault, _) = one.fault();
        assert!(fault.to_string().contains(says), "{fault}");
        assert_eq!(fault.class(), Class::Failed);
        assert_eq!(one.bench.names_in_state(), [""; 0], "nothing may go on from a wrong image");
    }
}

#[test]
fn a_bomb_ends_at_the_size_that_was_promised() {
    let raw = vec![0; 64 * MIB];
    for format in [Compression::Gzip, Compression::Zstd] {
        let packed = match format {
            Compression::Zstd => zstd_window(&raw, 20),
            _ => pack(format, &raw, raw.len()),
        };
        let mut one = One::new(&raw[..MIB], packed, Some(format));
        let mut log = Log::default();
        let error = one.run_with(&mut log, None, |_| {}).unwrap_err();
        assert!(
            matches!(error, InstallError::Image { fault: Fault::TooLong { limit: 0x10_0000, .. }, .. }),
            "{error}"
        );
        assert!(log.progress.iter().all(|p| p.raw <= MIB as u64), "not one byte beyond is written");
    }
}

#[test]
fn a_window_above_the_limit_is_refused_before_the_slot_is_touched() {
    let raw = image_bytes(2 * MIB, 3);
    let mut one = One::new(&raw, zstd_window(&raw, 21), None);
    let (fault, touched) = one.fault_with(|plan| plan.limits.zstd_window = 1 << 20);
    assert!(matches!(fault, Fault::Memory { cap: 0x10_0000, .. }), "{fault}");
    assert_eq!((fault.class(), touched), (Class::Rejected, false));

    let mut one = One::new(&raw, xz_preset(&raw, raw.len(), 6), None);
    let (fault, touched) = one.fault_with(|plan| plan.limits.xz_memory = 4 << 20);
    assert_eq!((fault.class(), touched), (Class::Rejected, false));
    // Both are within the limits that hold by default.
    One::new(&raw, zstd_window(&raw, 23), None).run().unwrap();
    One::new(&raw, xz_preset(&raw, raw.len(), 6), None).run().unwrap();
}

#[test]
fn a_later_frame_above_the_limit_is_refused_too() {
    let raw = image_bytes(2 * MIB, 3);
    let packed = [zstd(&raw[..MIB], MIB), zstd_window(&raw[MIB..], 21)].concat();
    let mut one = One::new(&raw, packed, None);
    let (fault, _) = one.fault_with(|plan| plan.limits.zstd_window = 1 << 20);
    assert!(matches!(fault, Fault::Memory { .. }), "{fault}");
}

#[test]
fn what_is_not_proven_is_not_guessed() {
    let raw = image_bytes(100_000, 3);
    let packed = zstd(&raw, raw.len());
    // No digest at all.
    let mut one = One::new(&raw, packed.clone(), None);
    one.image.raw = Expect::default();
    assert!(matches!(one.fault(), (Fault::NoDigest, false)));
    // Allowed, but then the compression must be named.
    one.no_digest = NoDigest::Allow;
    assert!(matches!(one.fault(), (Fault::UnnamedCompression(Compression::Zstd), false)));
    one.image.compression = Some(Compression::Zstd);
    assert!(one.run().unwrap().read_back, "what is not digested is at least read back");
    assert!(one.content() == raw);
    // An MD5 alone does not prove what was meant either, and calls for reading back.
    let mut one = One::new(&raw, packed.clone(), Some(Compression::None));
    one.image.raw = Expect::default();
    one.image.file = Expect { size: None, sha256: None, md5: Some(md5(&packed)) };
    let written = one.run().unwrap();
    assert!(written.read_back);
    assert_eq!(written.md5, Some(md5(&packed)));
    assert!(one.content() == packed, "written as it came");
}

#[test]
fn the_digest_of_the_file_alone_is_enough() {
    let raw = image_bytes(100_000, 3);
    let packed = zstd(&raw, raw.len());
    let mut one = One::new(&raw, packed.clone(), None);
    one.image.raw = Expect::default();
    one.image.file.sha256 = Some(sha256(&packed));
    assert_eq!(one.run().unwrap().sha256, sha256(&raw));
    assert!(one.content() == raw);
}

#[test]
fn an_empty_image_is_never_installed() {
    for format in FORMATS {
        let mut one = One::new(&[], pack(format, &[], 1), Some(format));
        assert!(matches!(one.fault(), (Fault::Empty, false)));
    }
    // Nothing but packaging.
    let mut packed = Vec::with_capacity(64);
    zstd_safe::compress(&mut packed, &[], 1).unwrap();
    let mut one = One::new(&[], packed, None);
    assert!(matches!(one.fault().0, Fault::Empty));
}

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

    /// Any bytes in place of an image are refused, and nothing panics or hangs.
    #[test]
    fn noise_in_any_format_is_refused(format in 0usize..4, mut noise in prop::collection::vec(any::<u8>(), 1..5000), magic: bool) {
        let raw = image_bytes(3000, 1);
        if magic {
            // As far as the header it is right.
            let begin = pack(FORMATS[format], &raw, raw.len());
            let n = noise.len().min(begin.len() / 2);
            noise[..n].copy_from_slice(&begin[..n]);
        }
        let mut one = One::new(&raw, noise, Some(FORMATS[format]));
        prop_assert!(one.run().is_err());
        prop_assert!(!one.bench.path("rootfs").exists());
    }

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
