use super::*;
use crate::run::Stop;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_file_keeps_its_mode_and_owner_and_a_link_stays_a_link() {
    let dir = folder();
    let (file, link) = (dir.path().join("foo.rc"), dir.path().join("link"));
    assert_eq!(read(&file).unwrap(), None);
    write(&file, b"a").unwrap();
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, NEW_MODE);
    fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&file, Some(65534), Some(65534)).unwrap();
    }
    symlink("foo.rc", &link).unwrap();
    write(&link, b"b").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(read(&file).unwrap(), Some(b"b".to_vec()));
    let meta = fs::metadata(&file).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o640);
    assert!(!root || (meta.uid(), meta.gid()) == (65534, 65534));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn what_is_no_file_is_neither_read_nor_replaced() {
    let dir = folder();
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [dir.path().to_owned(), pipe] {
        assert!(read(&path).is_err() && write(&path, b"x").is_err(), "{}", path.display());
        assert!(!fs::metadata(&path).unwrap().is_file());
    }
    assert!(write(&dir.path().join("gone/foo"), b"x").unwrap_err().to_string().contains("gone/foo"));
    let large = dir.path().join("large");
    File::create(&large).unwrap().set_len(MAX_TEXT as u64 + 1).unwrap();
    assert!(read(&large).is_err());
}

struct Bench {
    dir: tempfile::TempDir,
    ends: Receiver<Result<(), String>>,
    notifier: Notifier,
    stop: Stop,
}

impl Bench {
    fn at(dir: tempfile::TempDir, command: &str, seconds: u64) -> Self {
        let (told, ends) = channel();
        let told = std::sync::Mutex::new(told);
        let stop = Stop::new().unwrap();
        let command = format!("cd {}; {command}", dir.path().display());
        let ran: Ran = Arc::new(move |end| drop(told.lock().unwrap().send(end)));
        let limit = Duration::from_secs(seconds);
        let notifier = Notifier::new(command, limit, dir.path().join("mark"), stop.clone(), ran);
        Self { dir, ends, notifier, stop }
    }

    fn new(command: &str) -> Self {
        Self::at(folder(), command, 60)
    }

    fn marked(&self) -> bool {
        self.dir.path().join("mark").exists()
    }

    fn lines(&self) -> usize {
        fs::read_to_string(self.dir.path().join("out")).unwrap_or_default().lines().count()
    }
}

#[test]
fn changes_while_the_command_runs_run_it_once_more() {
    // Two at once would both find no lock; each run waits until it may end.
    let bench = Bench::new("mkdir lock || exit 9; echo x >> out; read line < gate; rmdir lock");
    nix::unistd::mkfifo(&bench.dir.path().join("gate"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    bench.notifier.mark().unwrap();
    bench.notifier.notify();
    // Opening it waits for the command to be there.
    let mut gate = OpenOptions::new().write(true).open(bench.dir.path().join("gate")).unwrap();
    for _ in 0..5 {
        bench.notifier.mark().unwrap();
        bench.notifier.notify();
    }
    assert!(bench.marked());
    gate.write_all(b"\n").unwrap();
    drop(gate);
    assert_eq!(bench.ends.recv().unwrap(), Ok(()));
    fs::write(bench.dir.path().join("gate"), "\n").unwrap();
    assert_eq!(bench.ends.recv().unwrap(), Ok(()));
    bench.notifier.wait();
    assert_eq!((bench.lines(), bench.marked()), (2, false));
}

#[test]
fn a_command_that_was_due_at_a_power_cut_runs_at_the_next_start() {
    let bench = Bench::new("echo x >> out");
    bench.notifier.mark().unwrap();
    let Bench { dir, .. } = bench;
    let bench = Bench::at(dir, "echo x >> out", 60);
    assert_eq!(bench.ends.recv().unwrap(), Ok(()));
    bench.notifier.wait();
    assert_eq!((bench.lines(), bench.marked()), (1, false));
    bench.notifier.mark().unwrap();
    bench.notifier.unmark();
    assert!(!bench.marked());
}

#[test]
fn a_command_that_fails_or_never_ends_has_run_and_says_so() {
    let bench = Bench::new("echo sad >&2; exit 3");
    bench.notifier.notify();
    assert_eq!(bench.ends.recv().unwrap(), Err("exit code 3: sad".into()));
    bench.notifier.wait();
    assert!(!bench.marked());
    let bench = Bench::at(folder(), "sleep 1000 & sleep 1000", 1);
    bench.notifier.notify();
    assert!(bench.ends.recv().unwrap().unwrap_err().contains("not done within 1 s"));
}

#[test]
fn a_command_that_ends_with_the_agent_is_still_due() {
    let bench = Bench::new("echo x > gate; sleep 1000");
    nix::unistd::mkfifo(&bench.dir.path().join("gate"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    bench.notifier.mark().unwrap();
    bench.notifier.notify();
    fs::read(bench.dir.path().join("gate")).unwrap();
    bench.stop.stop();
    assert!(bench.ends.recv().unwrap().is_err());
    bench.notifier.wait();
    assert!(bench.marked());
}

#[test]
fn the_answer_of_a_command_is_taken_whole_or_not_at_all() {
    let stop = Stop::new().unwrap();
    let ask = |command: &str| output(command, "thing", Duration::from_secs(60), 8, &stop);
    assert_eq!(ask("cat"), Ok("thing".into()));
    assert!(ask("echo 1234567").unwrap_err().contains("8 bytes"));
    assert!(ask("printf '\\377'").unwrap_err().contains("UTF-8"));
    assert_eq!(ask("echo {}; echo no >&2; exit 4"), Err("exit code 4: no".into()));
    let slow = output("sleep 1000", "", Duration::from_secs(1), 8, &stop);
    assert!(slow.unwrap_err().contains("not done within 1 s"));
}

#[test]
fn a_command_that_ends_the_agent_each_time_is_not_run_for_ever() {
    let mut dir = folder();
    for start in 0.. {
        let bench = Bench::at(dir, "echo x >> out; echo x > gate; sleep 1000", 600);
        let gate = bench.dir.path().join("gate");
        if start == 0 {
            nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
            bench.notifier.mark().unwrap();
            bench.notifier.notify();
        }
        if start == 3 {
            assert!(bench.ends.recv().unwrap().unwrap_err().contains("given up"));
            assert_eq!((bench.lines(), bench.marked()), (3, false));
            return;
        }
        fs::read(gate).unwrap();
        bench.stop.stop();
        assert!(bench.ends.recv().unwrap().is_err());
        bench.notifier.wait();
        dir = bench.dir;
    }
}
