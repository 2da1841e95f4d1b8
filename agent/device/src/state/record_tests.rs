use super::*;
use proptest::prelude::*;

fn open(dir: &Path) -> (RecordStore, Loaded) {
    let dir = StateDir::open(dir).unwrap();
    RecordStore::open(&dir, &dir.lock().unwrap()).unwrap()
}

fn load(dir: &Path) -> Loaded {
    open(dir).1
}

/// A directory after `payloads` were saved in turn.
fn saved(payloads: &[&[u8]]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    for payload in payloads {
        store.save(payload).unwrap();
    }
    dir
}

#[test]
fn a_first_start_finds_nothing_and_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = Loaded { payload: None, notes: vec![], lost: false };
    assert_eq!(load(dir.path()), nothing);
    assert_eq!(load(dir.path()), nothing, "the preallocated files alone are no loss");
}

#[test]
fn the_last_save_is_what_a_restart_finds() {
    for n in 1..5 {
        let payloads: Vec<Vec<u8>> = (0..n).map(|i| vec![i; 10_000]).collect();
        let dir = saved(&payloads.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let loaded = load(dir.path());
        assert_eq!(loaded, Loaded { payload: payloads.last().cloned(), notes: vec![], lost: false });
    }
}

#[test]
fn a_save_never_changes_the_size_nor_the_blocks_of_a_copy() {
    use std::os::unix::fs::MetadataExt;
    let dir = saved(&[]);
    let shape = || {
        ["record.0", "record.1"].map(|name| {
            let meta = std::fs::metadata(dir.path().join(name)).unwrap();
            (meta.ino(), meta.len(), meta.mode() & 0o777)
        })
    };
    let before = shape();
    assert!(before.iter().all(|(_, len, mode)| *len == 256 * 1024 && *mode == 0o600), "{before:?}");
    let (mut store, _) = open(dir.path());
    for len in [0, 1, 70_000, 200_000, 3] {
        store.save(&vec![1; len]).unwrap();
    }
    assert_eq!(shape(), before);
}

#[test]
fn a_record_that_does_not_fit_is_refused_and_the_old_one_stays() {
    let dir = saved(&[b"old"]);
    let (mut store, _) = open(dir.path());
    assert!(matches!(store.save(&vec![0; COPY_SIZE]), Err(StateError::TooLarge(_))));
    drop(store);
    assert_eq!(load(dir.path()).payload.unwrap(), b"old");
}

#[test]
fn a_deleted_copy_is_told_and_made_again() {
    let dir = saved(&[b"one", b"two"]);
    std::fs::remove_file(dir.path().join("record.1")).unwrap();
    let loaded = load(dir.path());
    assert_eq!(loaded.payload.unwrap(), b"one");
    assert!(loaded.notes[0].contains("record.1 is missing"), "{:?}", loaded.notes);
    assert_eq!(std::fs::metadata(dir.path().join("record.1")).unwrap().len(), 256 * 1024);
}

#[test]
fn two_unreadable_copies_are_set_aside_and_count_as_lost() {
    let dir = saved(&[b"one", b"two"]);
    for round in ["first noise", "second noise"] {
        for name in ["record.0", "record.1"] {
            std::fs::write(dir.path().join(name), round).unwrap();
        }
        let loaded = load(dir.path());
        assert!(loaded.lost && loaded.payload.is_none());
        assert!(loaded.notes.iter().any(|n| n.contains("lost")), "{:?}", loaded.notes);
        let bad = std::fs::read_to_string(dir.path().join("record.1.bad")).unwrap();
        assert_eq!(bad, round, "only the latest is kept");
        let (mut store, _) = open(dir.path());
        store.save(b"new").unwrap();
        drop(store);
        assert_eq!(load(dir.path()), Loaded { payload: Some(b"new".to_vec()), notes: vec![], lost: false });
    }
}

#[test]
fn copies_emptied_by_somebody_count_as_lost() {
    let dir = saved(&[b"one", b"two"]);
    for name in ["record.0", "record.1"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    assert!(load(dir.path()).lost);
    assert!(!load(dir.path()).lost, "told once");
}

#[test]
fn a_pipe_a_link_or_a_directory_in_place_of_a_copy_is_set_aside() {
    let dir = saved(&[b"one", b"two"]);
    let path = dir.path().join("record.0");
    let makers: [&dyn Fn(); 3] = [
        &|| std::fs::create_dir_all(path.join("deep")).unwrap(),
        &|| std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
        &|| nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap(),
    ];
    for make in makers {
        std::fs::remove_file(&path).unwrap();
        make();
        let loaded = load(dir.path());
        assert_eq!(loaded.payload.unwrap(), b"two");
        assert!(loaded.notes[0].contains("not a file"), "{:?}", loaded.notes);
        assert!(path.is_file());
    }
}

#[test]
fn holes_in_a_copy_are_filled_before_they_are_needed() {
    let dir = saved(&[b"one", b"two"]);
    let path = dir.path().join("record.1");
    let head = std::fs::read(&path).unwrap()[..100].to_vec();
    std::fs::remove_file(&path).unwrap();
    let file = File::create(&path).unwrap();
    file.set_len(256 * 1024).unwrap();
    file.write_all_at(&head, 0).unwrap();
    assert_eq!(load(dir.path()).payload.unwrap(), b"two");
    assert_eq!(lseek(&file, 0, Whence::SeekHole).unwrap(), 256 * 1024);
}

#[test]
fn the_lock_outlives_its_first_holder_as_long_as_a_writer_lives() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let state = StateDir::open(dir.path()).unwrap();
    assert!(matches!(state.lock(), Err(StateError::Locked { .. })));
    drop(store);
    state.lock().unwrap();
}

/// A file system of one MiB, or `None` where it cannot be had.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        match nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some("size=1m,mode=0700")) {
            Ok(()) => Some(Self(dir)),
            Err(e) => {
                eprintln!("skipped: cannot mount a small tmpfs: {e}");
                None
            }
        }
    }

    fn remount_read_only(&self) {
        let flags = nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY;
        nix::mount::mount(None::<&str>, self.0.path(), None::<&str>, flags, None::<&str>).unwrap();
    }

    fn fill(&self) {
        let mut file = File::create(self.0.path().join("full")).unwrap();
        let e = io::copy(&mut io::repeat(1), &mut file).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::StorageFull);
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_cannot_stop_a_save_but_an_update_is_refused_before_it_starts() {
    let Some(disk) = Tmpfs::mount() else { return };
    let (mut store, _) = open(disk.0.path());
    store.probe_writable(100_000).unwrap();
    let e = store.probe_writable(2_000_000).unwrap_err();
    assert!(e.to_string().contains("free space"), "{e}");
    disk.fill();
    assert!(store.probe_writable(100_000).is_err());
    for payload in [&b"one"[..], &[7; 200_000], b"three"] {
        store.save(payload).unwrap();
    }
    drop(store);
    let loaded = load(disk.0.path());
    assert_eq!(loaded, Loaded { payload: Some(b"three".to_vec()), notes: vec![], lost: false });
    assert!(!disk.0.path().join(".space").exists());
}

#[test]
fn a_disk_that_is_full_at_the_first_start_is_told_and_saves_work_once_there_is_space() {
    let Some(disk) = Tmpfs::mount() else { return };
    disk.fill();
    let dir = StateDir::open(disk.0.path()).unwrap();
    let lock = dir.lock().unwrap();
    let (mut store, loaded) = RecordStore::open(&dir, &lock).unwrap();
    assert_eq!(loaded.payload, None);
    assert!(loaded.notes[0].contains("free space"), "{:?}", loaded.notes);
    assert!(store.probe_writable(0).is_err());
    assert!(store.save(b"x").is_err());
    std::fs::remove_file(disk.0.path().join("full")).unwrap();
    store.probe_writable(0).unwrap();
    store.save(b"x").unwrap();
}

#[test]
fn a_read_only_file_system_is_read_and_told() {
    let Some(disk) = Tmpfs::mount() else { return };
    let (mut store, _) = open(disk.0.path());
    store.save(b"kept").unwrap();
    drop(store);
    disk.remount_read_only();
    let (mut store, loaded) = open(disk.0.path());
    assert_eq!(loaded.payload.unwrap(), b"kept");
    assert!(loaded.notes[0].contains("writable"), "{:?}", loaded.notes);
    assert!(store.save(b"x").is_err() && store.probe_writable(0).is_err());
}

#[test]
fn a_copy_removed_while_the_agent_runs_is_noticed_before_the_next_update() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    store.save(b"one").unwrap();
    std::fs::remove_file(dir.path().join("record.1")).unwrap();
    store.probe_writable(0).unwrap();
    store.save(b"two").unwrap();
    drop(store);
    assert_eq!(load(dir.path()).payload.unwrap(), b"two");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_torn_save_loads_the_old_record_or_the_new_one(
        lens in proptest::collection::vec(0..9000_usize, 1..4),
        new_len in 0..9000_usize,
        cut in prop_oneof![0..40_usize, 0..9100_usize, Just(COPY_SIZE)],
    ) {
        let payloads: Vec<Vec<u8>> = (1..).zip(&lens).map(|(i, len)| vec![i; *len]).collect();
        let dir = saved(&payloads.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let new = vec![99; new_len];
        let copy = frame::encode(u64::try_from(lens.len()).unwrap() + 1, &new, COPY_SIZE).unwrap();
        let path = dir.path().join(format!("record.{}", lens.len() % 2));
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(&copy[..cut], 0).unwrap();
        let payload = load(dir.path()).payload.unwrap();
        prop_assert!(payload == *payloads.last().unwrap() || payload == new);
        prop_assert!(cut < COPY_SIZE || payload == new);
    }

    #[test]
    fn noise_in_one_copy_never_costs_the_other(
        which in 0..2_usize, noise in proptest::collection::vec(any::<u8>(), 0..600), truncate in any::<bool>(),
    ) {
        let dir = saved(&[b"one", b"two"]);
        let path = dir.path().join(format!("record.{which}"));
        let file = OpenOptions::new().write(true).truncate(truncate).open(&path).unwrap();
        file.write_all_at(&noise, 0).unwrap();
        let (mut store, loaded) = open(dir.path());
        let payload = loaded.payload.unwrap();
        prop_assert!(payload == [b"two", b"one"][which] || payload == b"two");
        store.save(b"three").unwrap();
        drop(store);
        prop_assert_eq!(load(dir.path()).payload.unwrap(), b"three");
    }

    #[test]
    fn noise_in_both_copies_never_stops_the_agent(
        noise in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 2),
    ) {
        let dir = tempfile::tempdir().unwrap();
        for (i, bytes) in noise.iter().enumerate() {
            std::fs::write(dir.path().join(format!("record.{i}")), bytes).unwrap();
        }
        let (mut store, loaded) = open(dir.path());
        prop_assert!(loaded.lost && loaded.payload.is_none());
        store.save(b"new").unwrap();
    }
}
