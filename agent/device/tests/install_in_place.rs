//! File slots that are written where they lie, on a file system that is not the one of `/`. Where a machine has no
//! other, each test says that it was skipped.

mod install_support;

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use install_support::{Bench, Log, MIB, MemFetch, image, image_bytes, zstd};
use otandem_device::install::{Class, Fault, InstallError, Plan, ReadBack, discard, install};

static GO: AtomicBool = AtomicBool::new(false);

/// What was in the slot before.
const OLD: u8 = 0xaa;

/// A slot of `size` bytes, preallocated.
fn preallocated(size: usize) -> Option<(Bench, BTreeSet<String>)> {
    let shm = Path::new("/dev/shm");
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    if device(shm).is_none() || device(shm) == device(Path::new("/")) {
        println!("skipped: /dev/shm is not a file system of its own");
        return None;
    }
    let bench = Bench::new_in(shm, &["kernel"]);
    std::fs::write(bench.path("kernel"), vec![OLD; size]).unwrap();
    Some((bench, BTreeSet::from(["kernel".to_owned()])))
}

fn fault(result: Result<Vec<otandem_device::install::Written>, InstallError>) -> Fault {
    match result {
        Err(InstallError::Image { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_keeps_its_length_and_inode_and_what_lies_behind_the_image_is_zero() {
    let size = 6 * MIB;
    for len in [5000, MIB, MIB + 1, 3 * MIB + 1234, size] {
        let Some((bench, in_place)) = preallocated(size) else { return };
        let (state, path) = (bench.state(), bench.path("kernel"));
        let before = std::fs::metadata(path).unwrap();
        let raw = image_bytes(len, 3);
        let images = [image("kernel", "x", None, &raw)];
        let plan = Plan { in_place: &in_place, read_back: ReadBack::Always, ..bench.plan(&images, &state) };
        let written =
            install(&plan, &mut MemFetch::new([("x", zstd(&raw, 100_000))]), &mut Log::default(), &GO)
                .unwrap();
        assert!(written[0].read_back);
        let content = std::fs::read(path).unwrap();
        assert_eq!(content.len(), size);
        assert!(content[..len] == raw[..], "{len}");
        assert!(content[len..].iter().all(|b| *b == 0), "{len}: an older image shows");
        let after = std::fs::metadata(path).unwrap();
        assert_eq!((after.ino(), after.blocks()), (before.ino(), before.blocks()));
        assert_eq!(bench.names_in_state(), [""; 0]);
        let beside = std::fs::read_dir(bench.dir.path()).unwrap().count();
        assert_eq!(beside, 2, "nothing but the slot and the state directory");
    }
}

#[test]
fn after_a_cut_it_has_no_head_and_goes_on_where_it_was() {
    let Some((bench, in_place)) = preallocated(4 * MIB) else { return };
    let (state, path) = (bench.state(), bench.path("kernel"));
    let raw = image_bytes(3 * MIB + 77, 3);
    let images = [image("kernel", "x", None, &raw)];
    let mut fetch = MemFetch::new([("x", raw.clone())]);
    fetch.object("x").cut = Some(2 * MIB + MIB / 2);
    let mut log = Log::default();
    let plan = || Plan { in_place: &in_place, ..bench.plan(&images, &state) };
    install(&plan(), &mut fetch, &mut log, &GO).unwrap_err();
    let content = std::fs::read(path).unwrap();
    assert!(content[..MIB].iter().all(|b| *b == 0), "it cannot be loaded");
    assert!(content[MIB..2 * MIB] == raw[MIB..2 * MIB]);

    fetch.object("x").cut = None;
    let again = Plan { resume: log.last.as_ref(), ..plan() };
    let written = install(&again, &mut fetch, &mut Log::default(), &GO).unwrap();
    assert!(written[0].resumed && written[0].read_back);
    assert!(std::fs::read(path).unwrap()[..raw.len()] == raw);
}

#[test]
fn giving_up_leaves_the_file_where_it_is_without_a_head() {
    let Some((bench, in_place)) = preallocated(4 * MIB) else { return };
    let state = bench.state();
    let raw = image_bytes(3 * MIB, 3);
    let images = [image("kernel", "x", None, &raw)];
    let mut fetch = MemFetch::new([("x", raw.clone())]);
    fetch.object("x").cut = Some(2 * MIB);
    let plan = Plan { in_place: &in_place, ..bench.plan(&images, &state) };
    install(&plan, &mut fetch, &mut Log::default(), &GO).unwrap_err();
    discard(&state, &bench.targets).unwrap();
    assert_eq!(bench.names_in_state(), [""; 0]);
    let content = std::fs::read(bench.path("kernel")).unwrap();
    assert_eq!(content.len(), 4 * MIB);
    assert!(content[..MIB].iter().all(|b| *b == 0));
}

#[test]
fn an_image_larger_than_the_file_is_rejected_before_it_is_touched() {
    let Some((bench, in_place)) = preallocated(MIB) else { return };
    let state = bench.state();
    let raw = image_bytes(MIB + 1, 3);
    let images = [image("kernel", "x", None, &raw)];
    let plan = Plan { in_place: &in_place, ..bench.plan(&images, &state) };
    let fault = fault(install(&plan, &mut MemFetch::new([("x", raw)]), &mut Log::default(), &GO));
    assert!(matches!(fault, Fault::DoesNotFit { capacity, .. } if capacity == MIB as u64), "{fault}");
    assert!(std::fs::read(bench.path("kernel")).unwrap().iter().all(|b| *b == OLD));
}

#[test]
fn files_that_are_not_fit_for_it_are_refused_before_anything_is_touched() {
    let Some((mut bench, in_place)) = preallocated(MIB) else { return };
    let state = bench.state();
    let dir = bench.dir.path().to_owned();
    let raw = image_bytes(5000, 3);
    let images = [image("kernel", "x", None, &raw)];
    let sparse = std::fs::File::create(dir.join("sparse")).unwrap();
    sparse.set_len(MIB as u64).unwrap();
    std::fs::write(dir.join("odd"), vec![OLD; 5001]).unwrap();
    std::fs::write(dir.join("empty"), b"").unwrap();
    symlink(bench.path("kernel"), dir.join("link")).unwrap();
    let on_root = tempfile::NamedTempFile::new_in("/").ok();
    if let Some(file) = &on_root {
        std::fs::write(file.path(), vec![OLD; MIB]).unwrap();
    }
    let root = on_root.as_ref().map(|file| (file.path().to_owned(), "running root"));
    let cases = [
        ("missing", "preallocated"),
        ("sparse", "holes"),
        ("odd", "multiple"),
        ("empty", "multiple"),
        ("link", "link"),
    ];
    for (target, says) in cases.map(|(name, says)| (dir.join(name), says)).into_iter().chain(root) {
        bench.targets.insert("kernel".to_owned(), target.clone());
        let mut log = Log::default();
        let plan = Plan { in_place: &in_place, ..bench.plan(&images, &state) };
        let fault = fault(install(&plan, &mut MemFetch::new([("x", raw.clone())]), &mut log, &GO));
        assert!(fault.to_string().contains(says), "{}: {fault}", target.display());
        assert_eq!((fault.class(), log.ready), (Class::Rejected, 0), "{}", target.display());
    }
}
