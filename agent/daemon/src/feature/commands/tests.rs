//! The directory with a channel in place of the loop.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use otandem_device::spool::Keep;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

/// Only a failure takes this long.
const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    _dir: tempfile::TempDir,
    commands: Commands,
    told: UnboundedReceiver<Done>,
}

impl Bench {
    /// Not started.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("c");
        for part in ["tmp", "new", "failed"] {
            fs::create_dir_all(directory.join(part)).unwrap();
        }
        let keep = Keep { files: 10, bytes: 1 << 20 };
        let commands = Commands::new(CommandsSettings { directory, keep });
        Self { _dir: dir, commands, told: unbounded_channel().1 }
    }

    fn start(&mut self) {
        let (done, told) = unbounded_channel();
        self.told = told;
        self.commands.attach(&Reach { outbound: unbounded_channel().0, done });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.commands.settings.directory.join(name)
    }

    fn put(&self, name: &str) {
        fs::write(self.path("tmp").join(name), "").unwrap();
        fs::rename(self.path("tmp").join(name), self.path("new").join(name)).unwrap();
    }

    fn told(&mut self) -> Done {
        self.told.blocking_recv().unwrap()
    }

    fn wait(&self, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            let (mut status, mut attention) = (json!({}), vec![]);
            self.commands.show(&mut status, &mut attention);
            let mut status = status["commands"].clone();
            status["attention"] = json!(attention);
            if seen(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{what}: {status}");
            std::thread::yield_now();
        }
    }

    fn left(&self, part: &str) -> usize {
        fs::read_dir(self.path(part)).unwrap().count()
    }
}

#[test]
fn each_file_is_the_command_of_its_name_and_leaves_when_it_is_told() {
    let mut bench = Bench::new();
    bench.start();
    for (name, done) in [
        ("refetch", Done::Refetch),
        ("reprovision.1", Done::Reprovision),
        ("jobs-refresh.by.hand", Done::AskCloud),
        ("refetch", Done::Refetch),
    ] {
        bench.put(name);
        assert_eq!(bench.told(), done, "{name}");
    }
    bench.wait("four done", |s| s["done"] == 4);
    assert_eq!((bench.left("new"), bench.left("failed")), (0, 0));
}

#[test]
fn what_waits_at_the_start_is_done_once_for_each_command_in_the_order_of_names() {
    let mut bench = Bench::new();
    for name in ["reprovision", "refetch.2", "refetch.10", "jobs-refresh"] {
        bench.put(name);
    }
    bench.start();
    assert_eq!(
        [bench.told(), bench.told(), bench.told()],
        [Done::AskCloud, Done::Refetch, Done::Reprovision]
    );
    bench.wait("all done", |s| s["done"] == 4);
    assert_eq!(bench.left("new"), 0);
    assert!(bench.told.try_recv().is_err());
}

#[test]
fn the_status_is_written_whole_for_those_who_may_give_commands() {
    let mut bench = Bench::new();
    bench.start();
    bench.put("status");
    let Done::Status(to) = bench.told() else { panic!("something else") };
    to.tell(json!({ "phase": "idle" }));
    bench.wait("done", |s| s["done"] == 1);
    let text = fs::read_to_string(bench.path(STATUS)).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({ "phase": "idle" }));
    assert!(text.ends_with("}\n"));
    assert_eq!(fs::metadata(bench.path(STATUS)).unwrap().permissions().mode() & 0o777, STATUS_MODE);
    // Nobody else's file is in the way, and what cannot be written is told.
    fs::remove_file(bench.path(STATUS)).unwrap();
    fs::create_dir(bench.path(STATUS)).unwrap();
    bench.put("status.again");
    let Done::Status(to) = bench.told() else { panic!("something else") };
    to.tell(json!({}));
    let status = bench.wait("refused", |s| s["failed"] == 1);
    assert!(status["last-error"].as_str().unwrap().contains("status.json"), "{status}");
}

#[test]
fn a_status_that_the_agent_does_not_give_any_more_is_still_wanted_at_the_next_start() {
    let mut bench = Bench::new();
    bench.put("status");
    bench.start();
    let asked = bench.told();
    drop(asked);
    bench.start();
    let Done::Status(to) = bench.told() else { panic!("something else") };
    to.tell(json!({}));
    bench.wait("done", |s| s["done"] == 1);
}

#[test]
fn what_is_no_command_goes_to_failed_with_those_that_are_and_blocks_nothing() {
    let mut bench = Bench::new();
    bench.put("refetch.not");
    ["open-tunnel", ".refetch", "Refetch"].into_iter().for_each(|name| bench.put(name));
    fs::create_dir(bench.path("new/refetch.folder")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", bench.path("new/refetch.link")).unwrap();
    nix::unistd::mkfifo(&bench.path("new/refetch.pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(bench.path("tmp/refetch.large"), vec![0; 4097]).unwrap();
    fs::rename(bench.path("tmp/refetch.large"), bench.path("new/refetch.large")).unwrap();
    bench.start();
    assert_eq!(bench.told(), Done::Refetch);
    bench.wait("the bad ones", |s| s["failed"] == 7 && s["done"] == 1);
    let reason = fs::read_to_string(bench.path("failed/open-tunnel.reason")).unwrap();
    assert!(reason.contains("refetch, reprovision, jobs-refresh, status"), "{reason}");
    bench.put("refetch");
    assert_eq!(bench.told(), Done::Refetch);
    bench.wait("the good ones", |s| s["done"] == 2);
    assert_eq!(bench.left("new"), 0);
}

#[test]
fn only_the_newest_failures_are_kept() {
    let mut bench = Bench::new();
    (0..30).for_each(|n| bench.put(&format!("what.{n:02}")));
    bench.put("zzz");
    bench.start();
    bench.put("refetch");
    assert_eq!(bench.told(), Done::Refetch);
    bench.wait("all refused", |s| s["failed"] == 10 && s["done"] == 1);
    assert!(bench.path("failed/zzz").exists());
}

#[test]
fn a_directory_that_cannot_be_used_or_goes_away_is_opened_again() {
    let mut bench = Bench::new();
    bench.start();
    bench.put("refetch");
    assert_eq!(bench.told(), Done::Refetch);
    bench.wait("done", |s| s["done"] == 1);
    fs::remove_dir_all(&bench.commands.settings.directory).unwrap();
    let end = Instant::now() + LIMIT;
    while !bench.path("new").exists() {
        assert!(Instant::now() < end, "the directory is not made again");
        std::thread::yield_now();
    }
    // It may have been made a moment ago: in either case what is there is found.
    fs::write(bench.path("new/jobs-refresh"), "").unwrap();
    assert_eq!(bench.told(), Done::AskCloud);
}
