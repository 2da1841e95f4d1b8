//! A directory with a channel in place of the session.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use otandem_core::messages::{Order as Sorting, Pace, Qos, Reserved};
use otandem_device::spool::Keep;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::cloud::channel::{Fate, Post};
use crate::config::{Excess, Limits};

/// Only a failure takes this long.
const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    dir: tempfile::TempDir,
    settings: MessagesSettings,
    messages: Messages,
    outbound: UnboundedReceiver<Outbound>,
    fates: Option<Fates>,
}

impl Bench {
    /// Not started.
    fn new(change: impl FnOnce(&mut MessagesSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = MessagesSettings {
            name: "test".into(),
            directory: dir.path().join("m"),
            pace: Pace { concurrency: 10, rate: 0, retries: 2 },
            order: Sorting::Lexical,
            topic_prefix: String::new(),
            topic_suffix: String::new(),
            letterhead_file: None,
            letterhead_generator: None,
            priorities: false,
            reserved: Reserved::Refused,
            keep: Keep { files: 100, bytes: 8 << 20 },
            bounds: Limits::default(),
        };
        change(&mut settings);
        for part in ["tmp", "new", "failed"] {
            fs::create_dir_all(settings.directory.join(part)).unwrap();
        }
        let (_, outbound) = unbounded_channel();
        Self { dir, settings, messages: Messages::new(vec![]), outbound, fates: None }
    }

    /// Starts it, or ends it without a word and starts it again.
    fn start(&mut self) {
        let (sender, outbound) = unbounded_channel();
        self.messages = Messages::new(vec![self.settings.clone()]);
        self.messages.attach(&Reach { outbound: sender, done: unbounded_channel().0 });
        (self.outbound, self.fates) = (outbound, None);
    }

    fn up(&self) {
        self.messages.threads[0].tell(Order::Session { up: true });
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.settings.directory.join(name)
    }

    fn put(&self, name: &str, content: &str) {
        fs::write(self.path("tmp").join(name), content).unwrap();
        fs::rename(self.path("tmp").join(name), self.path("new").join(name)).unwrap();
    }

    /// A message whose payload is its name.
    fn message(&self, name: &str) {
        self.put(name, &format!("{{\"topic\":\"t\",\"payload\":{name:?}}}"));
    }

    fn posts(&mut self) -> Vec<Post> {
        match self.outbound.blocking_recv().unwrap() {
            Outbound::Post(posts, fates) => {
                self.fates = Some(fates);
                posts
            }
            other => panic!("{other:?}"),
        }
    }

    fn tell(&self, fate: Fate) {
        self.fates.as_ref().unwrap().tell(fate);
    }

    /// Acknowledges so many messages; their payloads.
    fn acknowledge(&mut self, count: usize) -> Vec<String> {
        let mut payloads = vec![];
        while payloads.len() < count {
            let posts = self.posts();
            self.tell(Fate::Published(posts.iter().map(|post| post.id).collect()));
            payloads.extend(posts.into_iter().map(|post| String::from_utf8(post.payload.to_vec()).unwrap()));
        }
        assert_eq!(payloads.len(), count);
        payloads
    }

    fn list(&self, part: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path(part)).unwrap();
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// Waits until the status is so.
    fn wait(&self, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            let (mut status, mut attention) = (json!({}), vec![]);
            self.messages.show(&mut status, &mut attention);
            let mut status = status["messages"]["test"].clone();
            status["attention"] = json!(attention);
            if seen(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{what}: {status}");
            std::thread::yield_now();
        }
    }

    fn wait_empty(&self) {
        self.wait("an empty queue", |s| s["waiting"] == 0 && s["sent"] != 0);
        assert_eq!(self.list("new"), BTreeSet::new());
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{n:05}")).collect()
}

#[test]
fn a_backlog_goes_out_in_order_and_each_file_leaves_when_it_is_acknowledged() {
    let mut bench = Bench::new(|s| s.pace.concurrency = 3);
    for name in names(50).iter().rev() {
        bench.message(name);
    }
    bench.start();
    bench.wait("the backlog", |s| s["waiting"] == 50);
    bench.up();
    let first = bench.posts();
    assert_eq!(first.len(), 3);
    assert_eq!((first[0].topic.as_str(), first[0].qos), ("t", Qos::AtLeastOnce));
    assert_eq!(bench.list("new").len(), 50);
    bench.tell(Fate::Published(first.iter().map(|post| post.id).collect()));
    assert_eq!(bench.acknowledge(47), names(50)[3..]);
    bench.wait_empty();
}

#[test]
fn a_backlog_larger_than_what_is_remembered_goes_out_in_order() {
    let all = names(10_000);
    let mut bench = Bench::new(|s| s.pace.concurrency = 1000);
    all.iter().for_each(|name| {
        fs::write(bench.path("new").join(name), format!("{{\"topic\":\"t\",\"payload\":{name:?}}}")).unwrap()
    });
    bench.start();
    bench.wait("the backlog", |s| s["waiting"] == 10_000);
    bench.up();
    assert_eq!(bench.acknowledge(10_000), all);
    bench.wait_empty();
}

#[test]
fn files_that_come_while_connected_are_sent_in_the_order_of_their_coming() {
    let mut bench = Bench::new(|_| ());
    bench.start();
    bench.up();
    bench.message("b");
    assert_eq!(bench.acknowledge(1), ["b"]);
    bench.message("a");
    assert_eq!(bench.acknowledge(1), ["a"]);
    let all = names(2000);
    all.iter().for_each(|name| bench.message(name));
    assert_eq!(bench.acknowledge(2000), all);
    bench.wait_empty();
}

#[test]
fn what_was_on_its_way_when_the_session_ended_or_the_agent_was_killed_is_sent_again() {
    let mut bench = Bench::new(|s| s.pace.concurrency = 2);
    ["a", "b", "c"].iter().for_each(|name| bench.message(name));
    bench.start();
    bench.up();
    let posts = bench.posts();
    bench.tell(Fate::Lost { ids: posts.iter().map(|post| post.id).collect(), suspect: None });
    bench.up();
    let posts = bench.posts();
    assert_eq!(posts.iter().map(|post| &post.payload[..]).collect::<Vec<_>>(), [b"a", b"b"]);
    bench.start();
    bench.up();
    assert_eq!(bench.acknowledge(3), ["a", "b", "c"]);
    bench.wait_empty();
}

#[test]
fn poison_of_every_kind_goes_to_failed_with_its_reason_and_the_others_are_sent() {
    let mut bench = Bench::new(|_| ());
    bench.message("a");
    for (name, content) in [
        ("empty", ""),
        ("no-json", "{"),
        ("list", "[]"),
        ("no-topic", "{\"payload\":1}"),
        ("wildcard", "{\"topic\":\"a/#\",\"payload\":1}"),
        ("qos", "{\"topic\":\"t\",\"payload\":1,\"qos\":2}"),
        ("reserved", "{\"topic\":\"$aws/things/x/jobs/start-next\",\"payload\":1}"),
    ] {
        bench.put(name, content);
    }
    bench.put("large", &format!("{{\"topic\":\"t\",\"payload\":\"{}\"}}", "x".repeat(128 * 1024 + 1)));
    bench.put("huge", &"x".repeat(1 << 20));
    fs::create_dir(bench.path("new/dir")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", bench.path("new/link")).unwrap();
    nix::unistd::mkfifo(&bench.path("new/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    bench.message("z");
    bench.start();
    bench.up();
    assert_eq!(bench.acknowledge(2), ["a", "z"]);
    bench.wait_empty();
    let status = bench.wait("12 failed", |s| s["failed"] == 12);
    assert!(status["last-error"].as_str().unwrap().contains(": "), "{status}");
    let failed = bench.list("failed");
    assert_eq!(failed.iter().filter(|name| failed.contains(&format!("{name}.reason"))).count(), 12);
    let reason = fs::read_to_string(bench.path("failed/wildcard.reason")).unwrap();
    assert!(reason.contains("wildcard"), "{reason}");
}

#[test]
fn a_message_that_the_session_refuses_goes_to_failed() {
    let mut bench = Bench::new(|_| ());
    bench.message("a");
    bench.start();
    bench.up();
    let id = bench.posts()[0].id;
    bench.tell(Fate::Refused(id, "not this one".into()));
    bench.wait("one failed", |s| s["failed"] == 1);
    assert_eq!(fs::read_to_string(bench.path("failed/a.reason")).unwrap(), "not this one\n");
}

#[test]
fn a_message_that_ends_sessions_is_given_up_at_the_last_try() {
    let mut bench = Bench::new(|s| s.pace.retries = 0);
    ["a", "b"].iter().for_each(|name| bench.message(name));
    bench.start();
    bench.up();
    let ids: Vec<u64> = bench.posts().iter().map(|post| post.id).collect();
    bench.tell(Fate::Lost { suspect: Some((ids[0], "the broker closed".into())), ids });
    bench.up();
    assert_eq!(bench.acknowledge(1), ["b"]);
    bench.wait_empty();
    let reason = fs::read_to_string(bench.path("failed/a.reason")).unwrap();
    assert_eq!(reason, "the broker closed; tried 1 times\n");
}

#[test]
fn the_same_name_moved_in_again_is_another_message() {
    let mut bench = Bench::new(|_| ());
    bench.put("a", "{\"topic\":\"t\",\"payload\":\"one\"}");
    bench.start();
    bench.up();
    let posts = bench.posts();
    bench.put("a", "{\"topic\":\"t\",\"payload\":\"two\"}");
    bench.tell(Fate::Published(vec![posts[0].id]));
    assert_eq!(bench.acknowledge(1), ["two"]);
    bench.wait_empty();
}

#[test]
fn a_directory_that_is_removed_is_made_again_and_goes_on() {
    let mut bench = Bench::new(|_| ());
    bench.start();
    bench.up();
    bench.message("a");
    assert_eq!(bench.acknowledge(1), ["a"]);
    bench.wait_empty();
    fs::remove_dir_all(&bench.settings.directory).unwrap();
    let end = Instant::now() + LIMIT;
    while !bench.path("new").exists() || !bench.path("tmp").exists() {
        assert!(Instant::now() < end, "not made again");
        std::thread::yield_now();
    }
    bench.message("b");
    assert_eq!(bench.acknowledge(1), ["b"]);
}

#[test]
fn without_its_letterhead_nothing_is_sent_and_the_status_says_why() {
    let mut bench = Bench::new(|s| s.letterhead_file = Some(s.directory.join("letterhead.json")));
    bench.message("a");
    bench.start();
    bench.up();
    let status = bench.wait("the trouble", |s| s["attention"] != json!([]));
    assert!(status["attention"][0].as_str().unwrap().contains("letterhead.json"), "{status}");
    fs::write(bench.path("letterhead.json"), "{\"topic\":\"other\",\"qos\":0}").unwrap();
    bench.put("a", "{\"payload\":1}");
    bench.start();
    bench.up();
    let posts = bench.posts();
    assert_eq!((posts[0].topic.as_str(), posts[0].qos), ("other", Qos::AtMostOnce));
}

fn limited(excess: Excess) -> Bench {
    Bench::new(|s| s.bounds = Limits { files: 20, bytes: 0, excess })
}

/// Files that were modified in the order of their names.
fn fill(bench: &Bench, names: &[String]) {
    for name in names {
        let file = bench.path("tmp").join(name);
        fs::write(&file, format!("{{\"topic\":\"t\",\"payload\":{name:?}}}")).unwrap();
        let seconds = 1_000_000_000 + name.parse::<u64>().unwrap();
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        fs::rename(&file, bench.path("new").join(name)).unwrap();
    }
}

#[test]
fn of_more_than_may_wait_the_oldest_the_newest_or_none_are_kept() {
    let all = names(30);
    for (excess, kept, failed) in
        [(Excess::Oldest, &all[12..], 0), (Excess::Newest, &all[..20], 0), (Excess::Refuse, &all[..20], 10)]
    {
        let mut bench = limited(excess);
        fill(&bench, &all);
        bench.start();
        let status = bench.wait("the rest", |s| s["waiting"] == kept.len());
        assert_eq!(bench.list("new"), kept.iter().cloned().collect(), "{excess:?}");
        let gone = (30 - kept.len()) as u64;
        assert_eq!(
            (status["failed"].as_u64(), status["dropped"].as_u64()),
            (Some(failed), Some(gone - failed))
        );
        // And while it runs; the same file again is no more than before.
        for _ in 0..50 {
            fill(&bench, &all[15..16]);
        }
        fill(&bench, &["99997".into(), "99998".into(), "99999".into()]);
        let more = |s: &Value| s["dropped"].as_u64().unwrap() + s["failed"].as_u64().unwrap() > gone;
        bench.wait("one more", more);
        bench.wait("the last", |_| bench.list("new").len() <= 20);
        assert_eq!(bench.list("new").contains("99999"), excess == Excess::Oldest, "{excess:?}");
        assert!(bench.list("new").contains("00015"), "{excess:?}");
    }
}

#[test]
fn of_large_messages_only_a_few_are_in_memory() {
    let mut bench = Bench::new(|s| s.pace.concurrency = 1000);
    for name in names(50) {
        bench.put(&name, &format!("{{\"topic\":\"t\",\"payload\":\"{}\"}}", "x".repeat(120_000)));
    }
    bench.start();
    bench.up();
    let mut ids: Vec<u64> = vec![];
    let mut most = 0;
    for done in 0..50 {
        while ids.len() <= done {
            ids.extend(bench.posts().iter().map(|post| post.id));
        }
        most = most.max(ids.len() - done);
        bench.tell(Fate::Published(vec![ids[done]]));
    }
    assert!((10..=20).contains(&most), "{most}");
    bench.wait_empty();
}

#[test]
fn a_full_queue_is_told_in_the_reason() {
    let mut bench = limited(Excess::Refuse);
    fill(&bench, &names(21));
    bench.start();
    bench.wait("one failed", |s| s["failed"] == 1);
    let reason = fs::read_to_string(bench.path("failed/00020.reason")).unwrap();
    assert!(reason.contains("20 files"), "{reason}");
}

#[test]
fn what_is_told_of_a_directory_names_it() {
    let mut bench = Bench::new(|_| ());
    bench.start();
    let status = bench.wait("a status", |_| true);
    assert_eq!(status["directory"].as_str().map(Path::new), Some(bench.settings.directory.as_path()));
    assert!(bench.settings.directory.starts_with(bench.dir.path()));
}

#[test]
fn a_program_makes_a_letterhead_for_each_message_and_where_it_fails_that_message_does() {
    let mut bench = Bench::new(|_| {});
    let program = bench.dir.path().join("generator");
    let script = "#!/bin/sh\n[ \"$MESSAGE_PRIORITY\" != 9 ] || { echo sad >&2; exit 3; }\n\
        printf '{\"topic\": \"from/it\", \"payload\": {\"told\": \"%s|%s|%s|%s\"}}' \"$MESSAGE_TOPIC\" \"${MESSAGE_FILENAME##*/new/}\" \
        \"$MESSAGE_PRIORITY_SLOT\" \"${MESSAGE_TIMESTAMP%%??????????}\"\n\
        test \"${MESSAGE_TIMESTAMP%???.*}\" = \"$MESSAGE_TIMESTAMP_S\"\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    bench.settings.letterhead_generator = Some(program);
    bench.put("1", r#"{"topic": "a", "payload": {"own": 1}, "priority_slot": "x"}"#);
    bench.put("2", r#"{"payload": 2, "priority": 9}"#);
    bench.put("3", r#"{"payload": [3]}"#);
    for name in ["1", "3"] {
        let file = fs::File::options().write(true).open(bench.path("new").join(name)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_millis(1_500_000_000_250)).unwrap();
    }
    bench.start();
    bench.up();
    let mut posts = vec![];
    while posts.len() < 2 {
        posts.extend(bench.posts());
    }
    let [one, three] = posts.as_slice() else { panic!("{posts:?}") };
    assert_eq!((one.topic.as_str(), three.topic.as_str()), ("a", "from/it"));
    let told: Value = serde_json::from_slice(&one.payload).unwrap();
    assert_eq!(told, json!({ "own": 1, "told": "a|1|x|1500000000" }));
    assert_eq!(&three.payload[..], b"[3]", "what is no object is the message's own");
    bench.wait("one refused", |s| s["failed"] == 1);
    let reason = fs::read_to_string(bench.path("failed/2.reason")).unwrap();
    assert!(reason.contains("exit code 3: sad"), "{reason}");
}

/// The topic tells the name, the slot holds the newest by time of modification.
fn rank(bench: &Bench, name: &str, members: &str, seconds: u64) {
    fs::write(bench.path("tmp").join(name), format!("{{\"topic\":\"t\",\"payload\":{name:?}{members}}}"))
        .unwrap();
    let file = fs::File::options().write(true).open(bench.path("tmp").join(name)).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    fs::rename(bench.path("tmp").join(name), bench.path("new").join(name)).unwrap();
}

#[test]
fn a_priority_goes_ahead_by_its_number_and_of_a_slot_only_the_newest() {
    let mut bench = Bench::new(|settings| {
        settings.priorities = true;
        settings.pace.concurrency = 1;
    });
    rank(&bench, "a", "", 9);
    rank(&bench, "b", ",\"priority_slot\":\"s\"", 3);
    rank(&bench, "c", ",\"priority_slot\":\"s\"", 2);
    rank(&bench, "d", ",\"priority\":0", 1);
    rank(&bench, "e", ",\"priority\":5,\"priority_slot\":\"other\"", 1);
    rank(&bench, "f", ",\"priority\":\"no number\"", 1);
    rank(&bench, "g", "", 1);
    bench.start();
    bench.up();
    assert_eq!(bench.acknowledge(3), ["d", "b", "e"]);
    // While one is on its way, a newer one of its slot comes, and takes the place of one that waited ahead.
    let posts = bench.posts();
    assert_eq!(&posts[0].payload[..], b"a");
    rank(&bench, "h", ",\"priority_slot\":\"t\"", 5);
    rank(&bench, "i", ",\"priority_slot\":\"t\"", 6);
    bench.wait("both", |s| s["waiting"] == 6);
    bench.tell(Fate::Published(vec![posts[0].id]));
    assert_eq!(bench.acknowledge(5), ["i", "c", "f", "g", "h"]);
    bench.wait_empty();
}

#[test]
fn without_priorities_nothing_goes_ahead() {
    let mut bench = Bench::new(|_| {});
    rank(&bench, "a", "", 1);
    rank(&bench, "b", ",\"priority\":0", 1);
    bench.start();
    bench.up();
    assert_eq!(bench.acknowledge(2), ["a", "b"]);
}
