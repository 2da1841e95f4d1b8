use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::thread;

use super::*;

const KEEP: Keep = Keep { files: 3, bytes: 1000 };

struct Place {
    dir: tempfile::TempDir,
    spool: Spool,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(&dir.path().join("spool"), 100, KEEP).unwrap();
    Place { dir, spool }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("spool").join(name)
    }

    /// Writes in tmp/ and moves into new/, as one should.
    fn put(&self, name: &str, content: &str) {
        fs::write(self.path("tmp").join(name), content).unwrap();
        fs::rename(self.path("tmp").join(name), self.path("new").join(name)).unwrap();
    }

    fn load(&mut self, name: &str) -> (Entry, Vec<u8>) {
        match self.spool.load(OsStr::new(name)) {
            Loaded::Content(entry, bytes) => (entry, bytes),
            other => panic!("{other:?}"),
        }
    }

    fn refused(&mut self, name: &OsStr) -> (Entry, String) {
        match self.spool.load(name) {
            Loaded::Refused(entry, why) => (entry, why),
            other => panic!("{other:?}"),
        }
    }

    fn list(&self, part: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(part)).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn scan(&self) -> Vec<OsString> {
        let mut names = vec![];
        assert_eq!(self.spool.scan(false, |name, _| names.push(name)).unwrap(), names.len() as u64);
        names.sort();
        names
    }

    fn reopen(&mut self) {
        self.spool = Spool::open(&self.path("."), 100, KEEP).unwrap();
    }
}

#[test]
fn what_is_missing_is_made_and_only_owner_and_group_may_write_there() {
    let place = place();
    for (part, mode) in [("tmp", 0o770), ("new", 0o770), ("failed", 0o750)] {
        assert_eq!(fs::metadata(place.path(part)).unwrap().mode() & 0o7777, mode, "{part}");
    }
    // What is there stays as its owner made it.
    fs::set_permissions(place.path("new"), fs::Permissions::from_mode(0o1777)).unwrap();
    Spool::open(&place.path("."), 100, KEEP).unwrap();
    assert_eq!(fs::metadata(place.path("new")).unwrap().mode() & 0o7777, 0o1777);
    assert!(place.spool.is_there());
}

#[test]
fn a_file_that_is_done_is_removed_and_one_moved_in_over_it_stays() {
    let mut place = place();
    place.put("a", "one");
    let (entry, bytes) = place.load("a");
    assert_eq!(bytes, b"one");
    assert_eq!(place.spool.done(&entry), After::Nothing);
    assert_eq!(place.list("new"), [] as [&str; 0]);

    place.put("a", "one");
    let (entry, _) = place.load("a");
    place.put("a", "two");
    assert_eq!(place.spool.done(&entry), After::Another);
    let (entry, bytes) = place.load("a");
    assert_eq!(bytes, b"two");
    // The same holds for what is to fail.
    place.put("a", "three");
    assert_eq!(place.spool.fail(&entry, "wrong"), After::Another);
    assert_eq!((place.load("a").1, place.list("failed").len()), (b"three".to_vec(), 0));
    assert_eq!(fs::read_dir(place.path("tmp/.otandem-leaving")).unwrap().count(), 0);
}

#[test]
fn a_file_taken_away_by_somebody_else_is_no_error() {
    let mut place = place();
    place.put("a", "one");
    let (entry, _) = place.load("a");
    fs::remove_file(place.path("new/a")).unwrap();
    assert!(matches!(place.spool.load(OsStr::new("a")), Loaded::Gone));
    assert_eq!(place.spool.done(&entry), After::Nothing);
    assert_eq!(place.spool.fail(&entry, "x"), After::Nothing);
}

#[test]
fn a_power_cut_in_the_middle_of_a_removal_loses_nothing_of_it_not_its_name() {
    let mut place = place();
    for name in ["in-doubt", "replaced"] {
        fs::write(place.path("tmp/.otandem-leaving").join(name), "old").unwrap();
    }
    place.put("replaced", "new");
    place.reopen();
    assert_eq!(place.list("new"), ["in-doubt", "replaced"]);
    assert_eq!((place.load("in-doubt").1, place.load("replaced").1), (b"old".to_vec(), b"new".to_vec()));
    assert_eq!(fs::read_dir(place.path("tmp/.otandem-leaving")).unwrap().count(), 0);
}

#[test]
fn a_tmp_that_somebody_tidied_up_keeps_no_file_that_is_done() {
    let mut place = place();
    place.put("a", "1");
    let (entry, _) = place.load("a");
    fs::remove_dir(place.path("tmp/.otandem-leaving")).unwrap();
    assert_eq!(place.spool.done(&entry), After::Nothing);
    assert_eq!(place.list("new").len(), 0);
    assert_eq!(place.spool.done(&entry), After::Nothing, "it is gone already");
}

#[test]
fn what_fails_lies_in_failed_with_its_reason_beside_it() {
    let mut place = place();
    place.put("a", "bad");
    let (entry, _) = place.load("a");
    assert_eq!(place.spool.fail(&entry, "no good"), After::Nothing);
    assert_eq!(fs::read_to_string(place.path("failed/a")).unwrap(), "bad");
    assert_eq!(fs::read_to_string(place.path("failed/a.reason")).unwrap(), "no good\n");
    assert_eq!((place.list("new").len(), place.spool.failed()), (0, 1));
}

#[test]
fn failed_keeps_the_newest_up_to_a_number_whatever_their_names() {
    let mut place = place();
    for name in ["e", "d", "c", "b", "a", "c"] {
        place.put(name, name);
        let (entry, _) = place.load(name);
        place.spool.fail(&entry, "x");
    }
    assert_eq!(place.list("failed"), ["a", "a.reason", "b", "b.reason", "c", "c.reason"]);
    // It is the same after a restart, with more than may be there.
    for name in ["z", "y"] {
        fs::write(place.path("failed").join(name), "").unwrap();
    }
    place.reopen();
    assert_eq!((place.spool.failed(), place.list("failed").contains(&"b".to_owned())), (3, false));
}

#[test]
fn failed_keeps_a_number_of_bytes_and_a_file_larger_than_that_only_by_its_reason() {
    let mut place = place();
    let fail = |place: &mut Place, name: &str, size: usize| {
        fs::write(place.path("new").join(name), vec![b'x'; size]).unwrap();
        let (entry, _) = place.refused(OsStr::new(name));
        assert_eq!(place.spool.fail(&entry, "too large"), After::Nothing);
    };
    fail(&mut place, "a", 600);
    fail(&mut place, "b", 600);
    assert_eq!(place.list("failed"), ["b", "b.reason"]);
    fail(&mut place, "c", 2000);
    assert_eq!(place.list("failed"), ["b", "b.reason", "c.reason"]);
}

#[test]
fn nothing_but_regular_files_of_a_bounded_size_is_read() {
    let mut place = place();
    let new = place.path("new");
    fs::write(place.path("secret"), "secret").unwrap();
    symlink(place.path("secret"), new.join("link")).unwrap();
    symlink("nowhere", new.join("dangling")).unwrap();
    fs::create_dir(new.join("dir")).unwrap();
    fs::write(new.join("dir/inside"), "x").unwrap();
    nix::unistd::mkfifo(&new.join("pipe"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(new.join("socket")).unwrap();
    fs::write(new.join("large"), [b'x'; 101]).unwrap();
    fs::write(new.join("fits"), [b'x'; 100]).unwrap();
    for (name, told) in [
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("dir", "directory"),
        ("pipe", "pipe"),
        ("socket", "socket"),
        ("large", "101 bytes"),
    ] {
        let (entry, why) = place.refused(OsStr::new(name));
        assert!(why.contains(told), "{name}: {why}");
        assert_eq!(place.spool.fail(&entry, &why), After::Nothing, "{name}");
        let reason = fs::read_to_string(place.path("failed").join(format!("{name}.reason"))).unwrap();
        assert_eq!(reason, format!("{why}\n"));
    }
    assert_eq!(place.load("fits").1.len(), 100);
    assert_eq!(fs::read_to_string(place.path("secret")).unwrap(), "secret");
    assert_eq!(place.list("new"), ["fits"]);
}

#[test]
fn a_file_without_read_permission_is_refused() {
    if nix::unistd::geteuid().is_root() {
        println!("skipped: root reads everything");
        return;
    }
    let mut place = place();
    place.put("a", "one");
    fs::set_permissions(place.path("new/a"), fs::Permissions::from_mode(0o000)).unwrap();
    let (entry, why) = place.refused(OsStr::new("a"));
    assert!(why.contains("cannot be opened"), "{why}");
    assert_eq!(place.spool.fail(&entry, &why), After::Nothing);
}

#[test]
fn names_may_be_any_bytes_of_any_length() {
    let mut place = place();
    let noise = OsString::from_vec(b"\xff\xfe\n*".to_vec());
    let long = OsString::from("n".repeat(255));
    for name in [&noise, &long] {
        fs::write(place.path("new").join(name), "x").unwrap();
        let Loaded::Content(entry, _) = place.spool.load(name) else { panic!() };
        assert_eq!(place.spool.fail(&entry, "no good"), After::Nothing);
        assert!(place.path("failed").join(name).exists());
    }
    assert_eq!(place.list("failed").iter().filter(|n| n.ends_with(".reason")).count(), 2);
}

/// A directory that takes no changes, by the immutable flag; `None` where that cannot be had.
fn frozen(path: &Path) -> Option<impl Drop + use<>> {
    struct Thaw(PathBuf);
    impl Drop for Thaw {
        fn drop(&mut self) {
            let _ = std::process::Command::new("chattr").arg("-i").arg(&self.0).status();
        }
    }
    let set = std::process::Command::new("chattr").arg("+i").arg(path).output();
    if set.is_ok_and(|out| out.status.success()) {
        return Some(Thaw(path.to_owned()));
    }
    println!("skipped: chattr +i is not allowed here");
    None
}

#[test]
fn a_file_that_cannot_be_moved_stays_is_passed_over_and_goes_when_it_can() {
    let mut place = place();
    place.put("done", "x");
    place.put("bad", "y");
    let ((done, _), (bad, _)) = (place.load("done"), place.load("bad"));
    {
        let Some(_frozen) = frozen(&place.path("new")) else { return };
        assert_eq!(place.spool.done(&done), After::Stuck);
        assert_eq!(place.spool.fail(&bad, "no good"), After::Stuck);
        assert!(matches!(place.spool.load(OsStr::new("done")), Loaded::Gone));
        assert_eq!(place.scan(), [] as [&str; 0]);
        let (stuck, why) = place.spool.stuck();
        assert!(stuck == 2 && why.contains("new"), "{why}");
        place.spool.retry_stuck();
        assert_eq!(place.spool.stuck().0, 2);
    }
    // Another file of the name is another matter.
    place.put("bad", "better");
    assert_eq!(place.load("bad").1, b"better");
    place.spool.retry_stuck();
    assert_eq!((place.spool.stuck().0, place.list("new")), (0, vec!["bad".to_owned()]));
}

#[test]
fn a_part_that_is_a_link_is_refused() {
    let place = place();
    fs::remove_dir(place.path("new")).unwrap();
    symlink("/etc", place.path("new")).unwrap();
    let e = Spool::open(&place.path("."), 100, KEEP).unwrap_err();
    assert!(e.to_string().contains("new"), "{e}");
}

#[test]
fn a_scan_shows_every_name_once_and_times_where_they_count() {
    let mut place = place();
    let names: Vec<String> = (0..20_000).map(|n| format!("{n:05}")).collect();
    for name in &names {
        fs::write(place.path("new").join(name), "").unwrap();
    }
    assert_eq!(place.scan().len(), 20_000);
    // What a sender remembers of them is bounded, and is the first.
    let mut queue = otandem_core::messages::Queue::new(4096);
    queue.clear();
    let order = otandem_core::messages::Order::Lexical;
    place.spool.scan(false, |name, _| queue.put(order.place(name, 0))).unwrap();
    assert_eq!(queue.len(), 4096);
    for name in &names[..4096] {
        assert_eq!(queue.take().unwrap().name(), name.as_str());
    }
    assert!(queue.wants_scan());
    place.spool.scan(true, |_, modified| assert!(modified > 1_600_000_000_000_000_000)).unwrap();
    assert!(matches!(place.spool.load(OsStr::new("00000")), Loaded::Content(_, bytes) if bytes.is_empty()));
}

fn everything(watch: &Watch) -> Vec<Found> {
    let mut all = vec![];
    loop {
        match watch.read() {
            found if found.is_empty() => return all,
            found => all.extend(found),
        }
    }
}

#[test]
fn what_is_moved_in_or_written_and_closed_is_told_and_nothing_else() {
    let mut place = place();
    let (watch, bell) = (Watch::new(&place.spool).unwrap(), Bell::new().unwrap());
    place.put("a", "x");
    watch.wait(&bell, None);
    fs::write(place.path("new/b"), "y").unwrap();
    let half = File::create(place.path("new/c")).unwrap();
    fs::write(place.path("aside"), "z").unwrap();
    fs::rename(place.path("aside"), place.path("new/d")).unwrap();
    let (entry, _) = place.load("a");
    place.spool.done(&entry);
    let found = |names: &[&str]| names.iter().map(|n| Found::Name(n.into())).collect::<Vec<_>>();
    assert_eq!(everything(&watch), found(&["a", "b", "d"]));
    drop(half);
    assert_eq!(everything(&watch), found(&["c"]));
}

#[test]
fn what_is_linked_in_as_maildirs_do_and_what_nobody_can_write_is_told() {
    let place = place();
    let watch = Watch::new(&place.spool).unwrap();
    fs::write(place.path("tmp/a"), "x").unwrap();
    fs::hard_link(place.path("tmp/a"), place.path("new/a")).unwrap();
    fs::create_dir(place.path("new/b")).unwrap();
    std::os::unix::fs::symlink("nowhere", place.path("new/c")).unwrap();
    nix::unistd::mkfifo(&place.path("new/d"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(everything(&watch), ["a", "b", "c", "d"].map(|name| Found::Name(name.into())));
}

#[test]
fn a_directory_that_goes_away_is_told_and_can_be_made_anew() {
    let mut place = place();
    for part in ["new", "."] {
        let watch = Watch::new(&place.spool).unwrap();
        fs::remove_dir_all(place.path(part).canonicalize().unwrap()).unwrap();
        assert!(everything(&watch).contains(&Found::Gone), "{part}");
        assert!(!place.spool.is_there());
        fs::create_dir_all(place.path("")).unwrap();
        place.reopen();
        assert!(place.spool.is_there());
        place.put("a", "x");
        assert_eq!(place.scan(), ["a"]);
    }
}

#[test]
fn a_bell_wakes_whoever_waits_and_rings_once_until_it_is_heard() {
    let bell = Bell::new().unwrap();
    bell.ring();
    bell.ring();
    bell.wait(None);
    bell.hear();
    bell.wait(Some(std::time::Duration::ZERO));
    let (there, waits) = (bell.clone(), bell.clone());
    let waiting = thread::spawn(move || waits.wait(None));
    there.ring();
    waiting.join().unwrap();
}
