//! File slots, local sources, and plans and targets that are refused.

mod install_support;

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use install_support::{Bench, Log, MIB, MemFetch, Object, image, image_bytes, sha256, zstd};
use otandem_core::image::{Compression, Image};
use otandem_device::install::{
    Class, Fault, Fetch, FetchError, FileFetch, InstallError, Limits, Plan, install,
};

static GO: AtomicBool = AtomicBool::new(false);

fn fault(result: Result<Vec<otandem_device::install::Written>, InstallError>) -> Fault {
    match result {
        Err(InstallError::Image { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_slot_is_replaced_only_when_the_set_is_complete() {
    let raw = image_bytes(2 * MIB + 99, 3);
    let bench = Bench::new(&["rootfs"]);
    let old = image_bytes(2 * MIB, 8);
    std::fs::write(bench.path("rootfs"), &old).unwrap();
    let state = bench.state();
    let images = [image("rootfs", "x", None, &raw)];
    let plan = bench.plan(&images, &state);
    let mut fetch = MemFetch::new([("x", zstd(&raw, 300_000))]);

    // Refused before it begins: the old file is whole.
    let mut log = Log { refuse_ready: true, ..Log::default() };
    install(&plan, &mut fetch, &mut log, &GO).unwrap_err();
    assert!(std::fs::read(bench.path("rootfs")).unwrap() == old);
    assert_eq!(std::fs::read_dir(bench.dir.path()).unwrap().count(), 2, "no temporary stays behind");

    // Interrupted: it cannot be mounted.
    let mut log = Log { stop_after: Some(1), ..Log::default() };
    assert!(matches!(install(&plan, &mut fetch, &mut log, &GO), Err(InstallError::Stopped)));
    let now = std::fs::read(bench.path("rootfs")).unwrap();
    assert!(now[..MIB].iter().all(|b| *b == 0) && now[MIB..] == old[MIB..]);

    let plan = Plan { resume: log.last.as_ref(), ..bench.plan(&images, &state) };
    let written = install(&plan, &mut fetch, &mut Log::default(), &GO).unwrap();
    assert!(written[0].resumed);
    assert!(std::fs::read(bench.path("rootfs")).unwrap() == raw);
    assert_eq!(std::fs::read_dir(bench.dir.path()).unwrap().count(), 2);
}

#[test]
fn after_a_cut_between_two_renames_nothing_is_fetched_again() {
    let (boot, root) = (image_bytes(MIB, 1), image_bytes(2 * MIB, 2));
    let bench = Bench::new(&["boot", "rootfs"]);
    let state = bench.state();
    let images = [image("boot", "b", None, &boot), image("rootfs", "r", None, &root)];
    let mut fetch = MemFetch::new([("b", boot.clone()), ("r", root.clone())]);
    // As the second checkpoint (all is written) leaves things, and then one rename.
    let mut last = None;
    for _ in 0..8 {
        let mut log = Log { stop_after: Some(1), ..Log::default() };
        let plan = Plan { resume: last.as_ref(), ..bench.plan(&images, &state) };
        install(&plan, &mut fetch, &mut log, &GO).unwrap_err();
        last = log.last;
        if last.as_ref().is_some_and(|c| c.image == 2) {
            break;
        }
    }
    assert_eq!(last.as_ref().unwrap().image, 2);
    std::fs::rename(bench.dir.path().join(".rootfs.img.otandem"), bench.path("rootfs")).unwrap();
    let before = fetch.handed();
    let plan = Plan { resume: last.as_ref(), ..bench.plan(&images, &state) };
    install(&plan, &mut fetch, &mut Log::default(), &GO).unwrap();
    assert_eq!(fetch.handed(), before);
    assert!(std::fs::read(bench.path("boot")).unwrap() == boot);
    assert!(std::fs::read(bench.path("rootfs")).unwrap() == root);
}

#[test]
fn zeros_become_holes() {
    use std::os::unix::fs::MetadataExt;
    let mut raw = vec![0; 64 * MIB];
    raw[40 * MIB] = 1;
    let bench = Bench::new(&["rootfs"]);
    let state = bench.state();
    let images = [image("rootfs", "x", None, &raw)];
    let mut fetch = MemFetch::new([("x", zstd(&raw, raw.len()))]);
    install(&bench.plan(&images, &state), &mut fetch, &mut Log::default(), &GO).unwrap();
    let meta = std::fs::metadata(bench.path("rootfs")).unwrap();
    assert_eq!(meta.len(), raw.len() as u64);
    assert!(meta.blocks() * 512 <= 2 * MIB as u64, "{} bytes are taken", meta.blocks() * 512);
    assert!(std::fs::read(bench.path("rootfs")).unwrap() == raw);
}

#[test]
fn what_another_update_left_behind_does_not_show_through_holes() {
    let mut raw = vec![0; 4 * MIB];
    raw[0] = 1;
    raw[3 * MIB] = 1;
    let bench = Bench::new(&["rootfs"]);
    std::fs::write(bench.dir.path().join(".rootfs.img.otandem"), vec![0xee; 6 * MIB]).unwrap();
    let state = bench.state();
    std::fs::write(state.join("head.rootfs"), vec![0xee; MIB]).unwrap();
    let images = [image("rootfs", "x", None, &raw)];
    install(&bench.plan(&images, &state), &mut MemFetch::new([("x", raw.clone())]), &mut Log::default(), &GO)
        .unwrap();
    assert!(std::fs::read(bench.path("rootfs")).unwrap() == raw);
    assert_eq!(bench.names_in_state(), [""; 0]);
}

#[test]
fn a_format_that_this_build_cannot_open_is_rejected_in_so_many_words() {
    let bench = Bench::new(&["rootfs"]);
    let state = bench.state();
    for (format, begin) in
        [(Compression::Xz, &b"\xfd7zXZ\0noise that is no xz"[..]), (Compression::Gzip, b"\x1f\x8b\x08\xff")]
    {
        let images = [image("rootfs", "x", None, begin)];
        let mut log = Log::default();
        let mut fetch = MemFetch::new([("x", begin.to_vec())]);
        let fault = fault(install(&bench.plan(&images, &state), &mut fetch, &mut log, &GO));
        // Which of the two it is depends on the features that this test is built with.
        match fault {
            Fault::Unsupported(found) => {
                assert_eq!((found, fault.class(), log.ready), (format, Class::Rejected, 0));
                assert!(fault.to_string().starts_with("this build has no "), "{fault}");
            }
            Fault::Corrupt { format: found, .. } => assert_eq!(found, format),
            Fault::Truncated { .. } => {}
            other => panic!("{other}"),
        }
    }
}

#[test]
fn the_stop_flag_ends_it() {
    let raw = image_bytes(8 * MIB, 3);
    let bench = Bench::new(&["rootfs"]);
    let state = bench.state();
    let images = [image("rootfs", "x", None, &raw)];
    let mut fetch = MemFetch::new([("x", raw.clone())]);
    fetch.object("x").stop_at = Some(3 * MIB);
    let stop = fetch.stop.clone();
    let mut log = Log::default();
    assert!(matches!(
        install(&bench.plan(&images, &state), &mut fetch, &mut log, &stop),
        Err(InstallError::Stopped)
    ));
    assert!(log.progress.last().is_none_or(|p| p.raw <= 4 * MIB as u64), "{:?}", log.progress.last());
}

#[test]
fn a_rate_limit_paces_the_source() {
    // One byte more than the burst at a rate at which the wait does not show, and the same bytes arrive.
    let raw = image_bytes(300_000, 3);
    let bench = Bench::new(&["rootfs"]);
    let state = bench.state();
    let images = [image("rootfs", "x", None, &raw)];
    let mut plan = bench.plan(&images, &state);
    plan.limits = Limits { rate: Some(1 << 30), ..plan.limits };
    install(&plan, &mut MemFetch::new([("x", raw.clone())]), &mut Log::default(), &GO).unwrap();
    assert!(std::fs::read(bench.path("rootfs")).unwrap() == raw);
}

#[test]
fn names_that_make_no_plan_are_rejected() {
    let raw = image_bytes(5000, 3);
    let bench = Bench::new(&["rootfs"]);
    let state = bench.state();
    let mut fetch = MemFetch::new([("x", raw.clone())]);
    let mut run =
        |images: &[Image]| install(&bench.plan(images, &state), &mut fetch, &mut Log::default(), &GO);
    let one = image("rootfs", "x", None, &raw);
    let named = |slot: &str| Image { slot: slot.to_owned(), ..one.clone() };
    assert!(matches!(run(&[]), Err(InstallError::NoImages)));
    for bad in ["", "../x", ".x", "a/b", "a b", &"x".repeat(65)] {
        assert!(matches!(fault(run(&[named(bad)])), Fault::BadName), "{bad}");
    }
    assert!(matches!(fault(run(&[named("data")])), Fault::UnknownSlot));
    assert!(matches!(fault(run(&[one.clone(), one.clone()])), Fault::NamedTwice));
    for e in [run(&[]), run(&[named("data")]), run(&[one.clone(), one.clone()])] {
        assert_eq!(e.unwrap_err().class(), Class::Rejected);
    }
}

#[test]
fn a_source_that_says_no_decides_the_class() {
    struct Says(FetchError);
    impl Fetch for Says {
        fn open(
            &mut self,
            _: &Image,
            _: u64,
            _: Option<&str>,
        ) -> Result<otandem_device::install::Opened, FetchError> {
            Err(self.0.clone())
        }
    }
    let bench = Bench::new(&["rootfs"]);
    let state = bench.state();
    let images = [image("rootfs", "https://u:p@host/x?secret", None, b"x")];
    let reason = || "because".to_owned();
    for (error, class) in [
        (FetchError::Stopped, Class::Stopped),
        (FetchError::Failed { reason: reason() }, Class::Failed),
        (FetchError::Rejected { reason: reason() }, Class::Rejected),
        (FetchError::Changed { reason: reason() }, Class::Failed),
    ] {
        let mut log = Log::default();
        let error = install(&bench.plan(&images, &state), &mut Says(error), &mut log, &GO).unwrap_err();
        assert_eq!((error.class(), log.ready), (class, 0));
        assert!(!error.to_string().contains("secret") && !error.to_string().contains("p@"), "{error}");
    }
}

#[test]
fn a_second_image_that_cannot_be_had_is_found_before_the_first_is_written() {
    let raw = image_bytes(5000, 3);
    let bench = Bench::new(&["boot", "rootfs"]);
    let state = bench.state();
    let images = [image("boot", "x", None, &raw), image("rootfs", "missing", None, &raw)];
    let mut log = Log::default();
    let mut fetch = MemFetch::new([("x", raw)]);
    let error = install(&bench.plan(&images, &state), &mut fetch, &mut log, &GO).unwrap_err();
    assert!(error.to_string().contains("slot rootfs") && error.to_string().contains("404"), "{error}");
    assert_eq!(log.ready, 0);
}

#[test]
fn an_object_that_changes_while_others_are_written_fails() {
    struct Changing(MemFetch);
    impl Fetch for Changing {
        fn open(
            &mut self,
            image: &Image,
            from: u64,
            etag: Option<&str>,
        ) -> Result<otandem_device::install::Opened, FetchError> {
            let opened = self.0.open(image, from, etag);
            if image.source == "b" {
                self.0
                    .objects
                    .insert("b".into(), Object { etag: Some("two".into()), ..self.0.objects["b"].clone() });
            }
            opened
        }
    }
    let raw = image_bytes(5000, 3);
    let bench = Bench::new(&["boot", "rootfs"]);
    let state = bench.state();
    let images = [image("boot", "a", None, &raw), image("rootfs", "b", None, &raw)];
    let mut fetch = Changing(MemFetch::new([("a", raw.clone()), ("b", raw)]));
    let error = install(&bench.plan(&images, &state), &mut fetch, &mut Log::default(), &GO).unwrap_err();
    assert!(error.to_string().contains("changed"), "{error}");
    assert!(!bench.path("boot").exists() && !bench.path("rootfs").exists());
}

#[test]
fn unsafe_file_targets_are_refused_before_anything_is_touched() {
    let raw = image_bytes(5000, 3);
    let mut bench = Bench::new(&["rootfs"]);
    let state = bench.state();
    let images = [image("rootfs", "x", None, &raw)];
    let dir = bench.dir.path().to_owned();
    std::fs::write(dir.join("running.img"), b"running").unwrap();
    std::fs::hard_link(dir.join("running.img"), dir.join("hard.img")).unwrap();
    symlink(dir.join("running.img"), dir.join("link.img")).unwrap();
    symlink(&dir, dir.join("here")).unwrap();
    std::fs::create_dir(dir.join("folder")).unwrap();
    let forbidden = [dir.join("running.img")];
    for (target, says) in [
        (dir.join("running.img"), "running set"),
        (dir.join("hard.img"), "running set"),
        (dir.join("here/running.img"), "running set"),
        (dir.join("link.img"), "link"),
        (dir.join("folder"), "neither"),
        (PathBuf::from("/dev/null"), "neither"),
        (PathBuf::from("relative.img"), "absolute"),
    ] {
        bench.targets.insert("rootfs".to_owned(), target.clone());
        let mut log = Log::default();
        let plan = Plan { forbidden: &forbidden, ..bench.plan(&images, &state) };
        let fault = fault(install(&plan, &mut MemFetch::new([("x", raw.clone())]), &mut log, &GO));
        assert!(fault.to_string().contains(says), "{}: {fault}", target.display());
        assert_eq!((fault.class(), log.ready), (Class::Rejected, 0), "{}", target.display());
    }
    assert_eq!(std::fs::read(dir.join("running.img")).unwrap(), b"running");
    // Two slots on one file, one of them not even named by an image.
    bench.targets.insert("rootfs".to_owned(), dir.join("both.img"));
    bench.targets.insert("boot".to_owned(), dir.join("here/both.img"));
    let mut fetch = MemFetch::new([("x", raw.clone())]);
    let fault = fault(install(&bench.plan(&images, &state), &mut fetch, &mut Log::default(), &GO));
    assert!(fault.to_string().contains("also slot boot"), "{fault}");
}

#[test]
fn a_partition_that_is_not_there_is_the_fault_of_the_device_and_not_of_the_image() {
    let raw = image_bytes(MIB, 9);
    let mut bench = Bench::new(&["rootfs"]);
    let state = bench.state();
    let images = [image("rootfs", "x", None, &raw)];
    bench.targets.insert("rootfs".to_owned(), PathBuf::from("/dev/disk-that-is-not-there"));
    let mut log = Log::default();
    let mut fetch = MemFetch::new([("x", raw)]);
    let fault = fault(install(&bench.plan(&images, &state), &mut fetch, &mut log, &GO));
    assert!(fault.to_string().contains("/dev/disk-that-is-not-there"), "{fault}");
    assert!(fault.to_string().contains("no such block device"), "{fault}");
    assert_eq!((fault.class(), log.ready), (Class::Failed, 0));
}

#[test]
fn local_files_are_sources() {
    let raw = image_bytes(2 * MIB, 3);
    let bench = Bench::new(&["rootfs"]);
    let state = bench.state();
    let source = bench.dir.path().join("source.zst");
    std::fs::write(&source, zstd(&raw, 100_000)).unwrap();
    let images = [image("rootfs", source.to_str().unwrap(), None, &raw)];
    install(&bench.plan(&images, &state), &mut FileFetch, &mut Log::default(), &GO).unwrap();
    assert!(std::fs::read(bench.path("rootfs")).unwrap() == raw);
}

#[test]
fn local_sources_that_are_none_are_rejected_and_changed_ones_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, b"one").unwrap();
    let open = |source: &str, from, etag: Option<&str>| {
        FileFetch.open(&image("rootfs", source, None, b"one"), from, etag).map(|o| o.etag)
    };
    let name = path.to_str().unwrap();
    let etag = open(name, 0, None).unwrap().unwrap();
    assert!(open(name, 3, Some(&etag)).is_ok(), "at its end there is an empty rest");
    std::fs::write(&path, b"other").unwrap();
    assert!(matches!(open(name, 0, Some(&etag)), Err(FetchError::Changed { .. })));
    assert!(matches!(open(name, 6, None), Err(FetchError::Changed { .. })));
    assert!(matches!(open("image", 0, None), Err(FetchError::Rejected { .. })));
    assert!(matches!(open("/dev/zero", 0, None), Err(FetchError::Rejected { .. })));
    assert!(matches!(open(dir.path().to_str().unwrap(), 0, None), Err(FetchError::Rejected { .. })));
    assert!(matches!(open("/nonexistent", 0, None), Err(FetchError::Failed { .. })));
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(
        matches!(open(fifo.to_str().unwrap(), 0, None), Err(FetchError::Rejected { .. })),
        "and does not hang"
    );
}

#[test]
#[ignore = "slow: tests/run --full"]
fn an_image_beyond_4_gib_is_digested_and_written_whole() {
    const FRAME: usize = 64 * MIB;
    let frames = 81; // 5 GiB and one frame more
    let one = zstd(&vec![0; FRAME], FRAME);
    let bench = Bench::new(&["rootfs"]);
    let state = bench.state();
    let mut expected = sha2::Sha256::default();
    let zeros = vec![0; FRAME];
    for _ in 0..frames {
        sha2::Digest::update(&mut expected, &zeros);
    }
    let mut image = image("rootfs", "x", None, b"");
    image.raw.size = Some((FRAME * frames) as u64);
    image.raw.sha256 = Some(otandem_core::image::Hex(sha2::Digest::finalize(expected).into()));
    let images = [image];
    let written = install(
        &bench.plan(&images, &state),
        &mut MemFetch::new([("x", one.repeat(frames))]),
        &mut Log::default(),
        &GO,
    )
    .unwrap();
    assert_eq!(written[0].size, (FRAME * frames) as u64);
    assert_eq!(std::fs::metadata(bench.path("rootfs")).unwrap().len(), (FRAME * frames) as u64);
    assert_ne!(written[0].sha256, sha256(b""));
}
