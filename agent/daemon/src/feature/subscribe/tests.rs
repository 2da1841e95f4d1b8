//! Rules with the loop's end alone.

use std::fs;
use std::io::{Read, Write};
use std::time::Instant;

use otandem_core::filter::Filter;
use tokio::sync::mpsc::unbounded_channel;

use super::*;

/// Only a failure takes this long.
const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    dir: tempfile::TempDir,
    subscribe: Subscribe,
}

fn rule(name: &str, filter: &str, target: Target) -> SubscribeSettings {
    let filter = Filter::new(filter).unwrap();
    SubscribeSettings { name: name.into(), filter, target, timeout: LIMIT, queue: 3 }
}

impl Bench {
    fn new(rules: impl FnOnce(&tempfile::TempDir) -> Vec<SubscribeSettings>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut subscribe = Subscribe::new(rules(&dir));
        subscribe.attach(&Reach { outbound: unbounded_channel().0, done: unbounded_channel().0 });
        Self { dir, subscribe }
    }

    /// As the loop does it.
    fn message(&self, topic: &str, payload: &[u8]) {
        self.subscribe.deal(topic, payload);
    }

    fn pipe(dir: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
        let path = dir.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    fn wait(&self, name: &str, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            let mut status = json!({});
            self.subscribe.show(&mut status, &mut vec![]);
            let status = status["subscribe"][name].clone();
            if seen(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{what}: {status}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_message_goes_to_every_rule_that_means_its_topic_and_to_no_other() {
    let bench = Bench::new(|dir| {
        let write = |name: &str, filter| rule(name, filter, Target::Write(dir.path().join(name)));
        vec![write("one", "a/+"), write("all", "a/#"), write("other", "b/#"), write("hidden", "#")]
    });
    assert_eq!(bench.subscribe.optional(), [["#"]], "one subscription brings all of them");
    bench.message("a/b", b"first");
    bench.message("a/b/c", b"second");
    bench.message("$aws/x", b"third");
    for (name, received, content) in [("one", 1, "first"), ("all", 2, "second"), ("hidden", 2, "second")] {
        let status = bench.wait(name, "all done", |s| s["done"] == received);
        assert_eq!(status["received"], received);
        assert_eq!(fs::read_to_string(bench.dir.path().join(name)).unwrap(), content);
    }
    assert_eq!(bench.wait("other", "nothing", |_| true)["received"], 0);
    assert!(!bench.dir.path().join("other").exists());
}

#[test]
fn while_a_command_runs_the_newest_messages_wait_and_others_go_on() {
    let bench = Bench::new(|dir| {
        Bench::pipe(dir, "gate");
        let dir = dir.path().display();
        let command = format!("cd {dir}; read line < gate; cat >> out; echo \" $MESSAGE_TOPIC\" >> out");
        vec![
            rule("slow", "a/+", Target::Exec(command)),
            rule("beside", "a/+", Target::Write("/dev/null".into())),
        ]
    });
    bench.message("a/0", b"0");
    // Opening it waits for the command to be there.
    let gate = || fs::OpenOptions::new().write(true).open(bench.dir.path().join("gate")).unwrap();
    let mut first = gate();
    for n in 1..6 {
        bench.message(&format!("a/{n}"), format!("{n}").as_bytes());
        bench.wait("beside", "the other rule", |s| s["done"] == n + 1);
    }
    let status = bench.wait("slow", "some dropped", |s| s["dropped"] == 2);
    assert_eq!((&status["waiting"], &status["received"]), (&json!(3), &json!(6)));
    first.write_all(b"\n").unwrap();
    drop(first);
    for done in 1..4 {
        bench.wait("slow", "the one before", |s| s["done"] == done);
        gate().write_all(b"\n").unwrap();
    }
    bench.wait("slow", "all done", |s| s["done"] == 4 && s["waiting"] == 0);
    let out = fs::read_to_string(bench.dir.path().join("out")).unwrap();
    assert_eq!(out, "0 a/0\n3 a/3\n4 a/4\n5 a/5\n");
}

#[test]
fn what_waits_is_bounded_by_its_bytes_too_and_a_single_large_message_is_taken() {
    let bench = Bench::new(|dir| {
        Bench::pipe(dir, "gate");
        let command = format!("read line < {}; cat > /dev/null", dir.path().join("gate").display());
        vec![rule("slow", "a", Target::Exec(command))]
    });
    bench.message("a", b"");
    let gate = fs::OpenOptions::new().write(true).open(bench.dir.path().join("gate")).unwrap();
    bench.message("a", &vec![0; QUEUE_BYTES / 2]);
    bench.message("a", &vec![0; QUEUE_BYTES / 2]);
    assert_eq!(bench.wait("slow", "both", |s| s["waiting"] == 2)["dropped"], 0);
    bench.message("a", &vec![0; QUEUE_BYTES + 1]);
    assert_eq!(bench.wait("slow", "one", |s| s["waiting"] == 1)["dropped"], 2);
    drop(gate);
}

#[test]
fn what_fails_is_counted_and_told_and_the_next_message_is_taken() {
    let bench = Bench::new(|dir| {
        let pipe = Bench::pipe(dir, "pipe");
        let command = "read word; echo \"not $word\" >&2; test \"$word\" = good".to_owned();
        vec![
            rule("nobody", "a", Target::Write(pipe)),
            rule("picky", "a", Target::Exec(command)),
            rule("gone", "a", Target::Write(dir.path().join("no/folder"))),
        ]
    });
    bench.message("a", b"bad\n");
    let status = bench.wait("nobody", "a failure", |s| s["failed"] == 1);
    assert!(status["last-error"].as_str().unwrap().contains("nobody reads"), "{status}");
    let status = bench.wait("picky", "a failure", |s| s["failed"] == 1);
    assert_eq!(status["last-error"], "\"a\": exit code 1: not bad");
    bench.wait("gone", "a failure", |s| s["failed"] == 1);
    let path = bench.dir.path().join("pipe");
    let mut reader = fs::File::options().read(true).write(true).open(path).unwrap();
    bench.message("a", b"good\n");
    bench.wait("picky", "the next one", |s| s["done"] == 1);
    let mut got = [0; 5];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"good\n");
}

#[test]
fn the_end_of_the_agent_ends_a_command_that_runs() {
    let bench = Bench::new(|dir| {
        Bench::pipe(dir, "held");
        let command = format!("exec 3> {}; echo >&3; sleep 1000", dir.path().join("held").display());
        vec![rule("long", "a", Target::Exec(command))]
    });
    bench.message("a", b"");
    let mut held = fs::File::open(bench.dir.path().join("held")).unwrap();
    held.read_exact(&mut [0]).unwrap();
    let Bench { subscribe, dir: _dir } = bench;
    drop(subscribe);
    // The end of the file: nobody holds the other end any more.
    assert_eq!(held.read(&mut [0]).unwrap(), 0);
}
