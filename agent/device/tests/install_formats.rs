//! Every way of packing, in one frame and in many, into files; and everything that can be wrong with a stream.

mod install_support;
#[path = "install_support/packed.rs"]
mod packed;

use install_support::{Log, MIB, image_bytes, md5, sha256, zstd, zstd_window};
use otandem_core::image::{Compression, Expect, Image};
use otandem_device::install::{Class, Fault, InstallError, NoDigest, ReadBack};
use packed::{FORMATS, One, pack, xz_preset};
use proptest::prelude::*;

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
}
