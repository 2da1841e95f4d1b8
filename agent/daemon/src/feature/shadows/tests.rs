//! Tables with a channel in place of the session.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use otandem_core::shadow::merge::EmptyList;
use otandem_device::spool::Keep;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::cloud::channel::{Fate, Post};

/// Only a failure takes this long.
const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    dir: tempfile::TempDir,
    shadows: Shadows,
    outbound: UnboundedReceiver<Outbound>,
    fates: Option<Fates>,
}

fn table(name: &str) -> ServicesSettings {
    ServicesSettings {
        name: name.into(),
        thing: None,
        shadow: None,
        directory: None,
        updates: None,
        default_shadow: None,
        empty_list: EmptyList::Value,
        keep: Keep { files: 10, bytes: 1 << 20 },
    }
}

impl Bench {
    /// One table with updates and definitions, running.
    fn new(definitions: &[(&str, Value)], change: impl FnOnce(&mut ServicesSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for part in ["u/tmp", "u/new", "u/failed", "d"] {
            fs::create_dir_all(dir.path().join(part)).unwrap();
        }
        for (name, definition) in definitions {
            let mut definition = definition.clone();
            let notify = definition["notifycmd"].as_str().unwrap_or("true");
            definition["notifycmd"] = format!("cd {}; {notify}", dir.path().display()).into();
            definition["outfile"] = dir.path().join(name).to_string_lossy().into();
            let text = definition.to_string();
            fs::write(dir.path().join(format!("d/{name}.json")), text).unwrap();
        }
        let mut settings = table("test");
        settings.updates = Some(dir.path().join("u"));
        settings.directory = Some(dir.path().join("d"));
        change(&mut settings);
        let shadows = Shadows::new(vec![settings], "t", &dir.path().join("state"));
        let (sender, outbound) = unbounded_channel();
        let mut bench = Self { dir, shadows, outbound, fates: None };
        bench.shadows.attach(&Reach { outbound: sender, done: unbounded_channel().0 });
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path("u/tmp").join(name), text).unwrap();
        fs::rename(self.path("u/tmp").join(name), self.path("u/new").join(name)).unwrap();
    }

    fn session(&self, up: bool) {
        self.shadows.threads[0].tell.tell(if up { Order::Up(0) } else { Order::Down });
    }

    fn post(&mut self) -> Post {
        match self.outbound.blocking_recv().unwrap() {
            Outbound::Post(mut posts, fates) => {
                self.fates = Some(fates);
                posts.remove(0)
            }
            other => panic!("{other:?}"),
        }
    }

    /// The next request, which must be on a topic that ends so.
    fn asked(&mut self, end: &str) -> Value {
        let post = self.post();
        assert!(post.topic.ends_with(end), "{} is no {end}", post.topic);
        serde_json::from_slice(&post.payload).unwrap()
    }

    fn answer(&self, end: &str, mut message: Value, request: &Value) {
        message["clientToken"] = request["clientToken"].clone();
        let topic = format!("$aws/things/t/shadow/{end}");
        assert!(self.shadows.threads[0].message(&topic, message.to_string().as_bytes()));
    }

    /// Connected, to a shadow that is so.
    fn up(&mut self, state: Value) {
        self.session(true);
        let request = self.asked("/get");
        self.answer("get/accepted", json!({"state": state, "version": 7}), &request);
    }

    /// Takes the next update; what it says.
    fn accept(&mut self, version: u64) -> Value {
        let request = self.asked("/update");
        let message = json!({"state": request["state"], "version": version});
        self.answer("update/accepted", message, &request);
        request["state"].clone()
    }

    fn list(&self, part: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path(part)).unwrap();
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// Waits until the status is so; what wants attention is in it.
    fn wait(&self, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            let (mut status, mut attention) = (json!({}), vec![]);
            self.shadows.show(&mut status, &mut attention);
            let mut status = status["services"]["test"].clone();
            if status.is_object() {
                status["attention"] = json!(attention);
            }
            if seen(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{what}: {status}");
            std::thread::yield_now();
        }
    }

    fn wait_waiting(&self, count: u64) {
        self.wait("updates", |status| status["updates"]["waiting"] == count);
    }
}

fn service(key: &str) -> Value {
    json!({"key": key, "outformat": "JSON"})
}

#[test]
fn an_update_is_applied_offline_and_leaves_when_the_shadow_has_it() {
    let mut bench = Bench::new(&[("foo", service("foo"))], |_| {});
    bench.put("foo.1", "{\"a\":1}");
    bench.put("own", "{\"x\":1}");
    bench.wait_waiting(2);
    assert_eq!(fs::read_to_string(bench.path("foo")).unwrap(), "{\"a\":1}");
    bench.up(json!({}));
    assert_eq!(bench.list("u/new").len(), 2, "nothing is sure yet");
    assert_eq!(bench.accept(8), json!({"reported": {"foo": {"a": 1}, "own": {"x": 1}}}));
    bench.wait_waiting(0);
    assert!(bench.list("u/new").is_empty() && bench.list("u/failed").is_empty());
}

#[test]
fn a_second_file_of_the_same_name_is_an_update_of_its_own() {
    let mut bench = Bench::new(&[], |_| {});
    bench.put("own", "{\"x\":1}");
    bench.up(json!({}));
    let request = bench.asked("/update");
    bench.put("own", "{\"y\":2}");
    bench.wait_waiting(2);
    bench.answer("update/accepted", json!({"state": request["state"], "version": 8}), &request);
    assert_eq!(bench.accept(9), json!({"reported": {"own": {"y": 2}}}));
    bench.wait_waiting(0);
    assert!(bench.list("u/new").is_empty());
}

#[test]
fn what_is_no_update_goes_to_failed_and_others_go_on() {
    use std::os::unix::ffi::OsStrExt;
    let mut bench = Bench::new(&[("foo", service("foo"))], |_| {});
    let odd = std::ffi::OsStr::from_bytes(b"\xff");
    fs::create_dir(bench.path("u/tmp/dir")).unwrap();
    nix::unistd::mkfifo(&bench.path("u/tmp/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", bench.path("u/tmp/link")).unwrap();
    fs::write(bench.path("u/tmp").join(odd), "{}").unwrap();
    for name in ["dir", "pipe", "link"].map(AsRef::as_ref).into_iter().chain([odd]) {
        fs::rename(bench.path("u/tmp").join(name), bench.path("u/new").join(name)).unwrap();
    }
    for (name, text) in [("bad", "{"), (".dot", "1"), ("otandem", "1"), ("good", "1"), ("null", "null")] {
        bench.put(name, text);
    }
    bench.wait("all of them", |s| s["updates"]["failed"] == 7 && s["updates"]["waiting"] == 2);
    bench.up(json!({"reported": {"null": 1}}));
    assert_eq!(bench.accept(8)["reported"], json!({"good": 1, "null": null}));
    let status = bench.wait("the end of all", |status| status["updates"]["failed"] == 7);
    assert!(status["updates"]["last-error"].is_string());
    bench.wait_waiting(0);
    let reason =
        |name: &str| fs::read_to_string(bench.path("u/failed").join(format!("{name}.reason"))).unwrap();
    assert!(reason("bad").contains("JSON") && reason("dir").contains("directory"));
    assert!(reason(".dot").contains("no key") && reason("otandem").contains("no key"));
}

#[test]
fn what_is_desired_is_written_the_command_runs_and_its_failure_is_seen() {
    let mut foo = service("foo");
    foo["notifycmd"] = "cat foo >> seen; echo sad >&2; exit 3".into();
    let mut bench = Bench::new(&[("foo", foo)], |_| {});
    bench.up(json!({"desired": {"foo": {"a": 1}}}));
    assert_eq!(bench.accept(8), json!({"desired": {"foo": null}, "reported": {"foo": {"a": 1}}}));
    let status = bench.wait("the end of the command", |status| status["attention"][0].is_string());
    assert!(status["attention"][0].as_str().unwrap().ends_with("exit code 3: sad"), "{status}");
    assert_eq!(fs::read_to_string(bench.path("seen")).unwrap(), "{\"a\":1}");
    assert_eq!(fs::read_dir(bench.path("state/services")).unwrap().count(), 0, "nothing is due any more");
}

#[test]
fn a_missing_shadow_is_made_of_what_the_command_prints_about_the_thing() {
    let mut bench = Bench::new(&[("foo", service("foo"))], |settings| {
        settings.default_shadow =
            Some("thing=$(cat); echo '{\"foo\":{\"of\":\"'\"$thing\"'\"},\"x\":1}'".into());
    });
    bench.session(true);
    let request = bench.asked("/get");
    bench.answer("get/rejected", json!({"code": 404, "message": "none"}), &request);
    assert_eq!(bench.accept(1), json!({"reported": {"foo": {"of": "t"}, "x": 1}}));
    assert_eq!(fs::read_to_string(bench.path("foo")).unwrap(), "{\"of\":\"t\"}");
}

#[test]
fn a_default_that_fails_is_seen_and_not_posted_as_nothing() {
    let mut bench = Bench::new(&[], |settings| settings.default_shadow = Some("echo sad >&2; exit 1".into()));
    bench.session(true);
    let request = bench.asked("/get");
    bench.answer("get/rejected", json!({"code": 404, "message": "none"}), &request);
    let status = bench.wait("the failure", |status| status["attention"][0].is_string());
    assert!(status["attention"][0].as_str().unwrap().contains("exit code 1: sad"), "{status}");
    // What comes next, after a while, is the same question.
    bench.asked("/get");
}

#[test]
fn a_shadow_whose_requests_end_the_connection_leaves_it_to_others() {
    let mut bench = Bench::new(&[], |_| {});
    for alone in [false, true] {
        bench.session(true);
        let post = bench.post();
        assert_eq!(post.alone, alone);
        let suspect = Some((post.id, "check the policy".to_owned()));
        bench.fates.as_ref().unwrap().tell(Fate::Lost { ids: vec![post.id], suspect });
        bench.session(false);
    }
    let status = bench.wait("the bar", |status| status["attention"][0].is_string());
    assert!(status["attention"][0].as_str().unwrap().contains("check the policy"), "{status}");
    bench.session(true);
    bench.put("own", "1");
    bench.wait_waiting(1);
    assert!(bench.outbound.is_empty(), "it is left alone");
}

#[test]
fn refetch_asks_again_and_bad_definitions_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("bad.js"), "module.exports = {").unwrap();
    let mut bench = Bench::new(&[("foo", service("foo"))], |settings| {
        fs::copy(dir.path().join("bad.js"), settings.directory.as_ref().unwrap().join("bad.js")).unwrap();
    });
    bench.up(json!({"reported": {"foo": {"a": 1}}}));
    let status = bench.wait("a settled shadow", |status| status["shadows"][0]["settled"] == true);
    assert_eq!((&status["shadows"][0]["version"], &status["services"]), (&json!(7), &json!(1)));
    assert!(status["attention"][0].as_str().unwrap().contains("bad.js: "), "{status}");
    bench.shadows.threads[0].tell.tell(Order::Refetch);
    bench.asked("/get");
}

#[test]
fn a_shadow_belongs_to_one_table_and_names_choose_among_several() {
    let dir = tempfile::tempdir().unwrap();
    for (sub, name, extra) in [
        ("a", "classic", json!(null)),
        ("a", "net", json!("net")),
        ("b", "net", json!("net")),
        ("c", "third", json!(null)),
    ] {
        fs::create_dir_all(dir.path().join(sub)).unwrap();
        let definition = json!({"key": name, "shadow": extra, "outfile": dir.path().join(format!("{sub}-{name}")),
            "outformat": "JSON", "notifycmd": "true"});
        fs::write(dir.path().join(sub).join(format!("{name}.json")), definition.to_string()).unwrap();
    }
    let with = |name: &str, thing: Option<&str>, shadow: Option<&str>| ServicesSettings {
        thing: thing.map(str::to_owned),
        shadow: shadow.map(str::to_owned),
        directory: Some(dir.path().join(name)),
        ..table(name)
    };
    let tables = load::load(
        vec![with("a", None, None), with("b", Some("own"), None), with("c", Some("other"), Some("x"))],
        "own",
    );
    let names: Vec<Vec<_>> =
        tables.iter().map(|t| t.shadows.iter().map(|(n, d)| (n.get(), d.len())).collect()).collect();
    let name = |text: &str, count: usize| (format!("$aws/things/{text}/get"), count);
    assert_eq!(
        names,
        [
            vec![name("own/shadow", 1), name("own/shadow/name/net", 1)],
            vec![],
            vec![name("other/shadow/name/x", 1)]
        ]
    );
    assert!(tables[1].problems[0].contains("is that of services.a already"), "{:?}", tables[1].problems);
    assert!(tables[0].problems.is_empty() && tables[2].problems.is_empty());
    let feature = Shadows::new(vec![with("a", None, None)], "own", dir.path());
    assert_eq!(feature.optional().iter().map(Vec::len).collect::<Vec<_>>(), [5, 5]);
}

#[test]
fn more_files_than_memory_holds_go_out_in_their_order() {
    let mut bench = Bench::new(&[], |_| {});
    for n in 0..700 {
        bench.put(&format!("own.{n:03}"), &format!("{{\"n\":{n},\"m{}\":{n}}}", n % 7));
    }
    bench.wait_waiting(700);
    bench.up(json!({}));
    let (mut own, mut last) = (json!({}), 0);
    for version in 8.. {
        let update = bench.accept(version)["reported"]["own"].clone();
        own.as_object_mut().unwrap().extend(update.as_object().unwrap().clone());
        let n = own["n"].as_u64().unwrap();
        assert!(n >= last, "{n} after {last}");
        last = n;
        if last == 699 {
            break;
        }
    }
    bench.wait_waiting(0);
    assert_eq!(
        own,
        json!({"n": 699, "m0": 693, "m1": 694, "m2": 695, "m3": 696, "m4": 697, "m5": 698, "m6": 699})
    );
    assert!(bench.list("u/new").is_empty());
}

#[test]
fn a_directory_that_is_taken_away_is_made_again() {
    let mut bench = Bench::new(&[], |_| {});
    bench.up(json!({}));
    bench.put("own", "1");
    assert_eq!(bench.accept(8), json!({"reported": {"own": 1}}));
    bench.wait_waiting(0);
    fs::remove_dir_all(bench.path("u")).unwrap();
    let end = Instant::now() + LIMIT;
    while !bench.path("u/failed").exists() {
        assert!(Instant::now() < end, "it is not made again");
        std::thread::yield_now();
    }
    bench.put("own", "2");
    assert_eq!(bench.accept(9), json!({"reported": {"own": 2}}));
}

#[test]
fn what_runs_ends_with_the_agent_and_is_due_again() {
    let mut foo = service("foo");
    foo["notifycmd"] = "echo $$ > pid; exec sleep 1000".into();
    foo["timeout"] = 600.into();
    let mut bench = Bench::new(&[("foo", foo)], |_| {});
    bench.up(json!({"desired": {"foo": {"a": 1}}}));
    bench.accept(8);
    let end = Instant::now() + LIMIT;
    let pid = loop {
        match fs::read_to_string(bench.path("pid")) {
            Ok(pid) if pid.ends_with('\n') => break pid.trim().to_owned(),
            _ => assert!(Instant::now() < end, "it does not run"),
        }
        std::thread::yield_now();
    };
    bench.shadows.threads.clear();
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
    assert_eq!(fs::read_dir(bench.path("state/services")).unwrap().count(), 1);
}

#[test]
fn messages_that_come_too_fast_cost_a_question_and_no_memory() {
    let mut bench = Bench::new(&[], |_| {});
    bench.up(json!({}));
    bench.wait("a settled shadow", |status| status["shadows"][0]["settled"] == true);
    let pending = Arc::clone(&bench.shadows.threads[0].pending);
    pending.store(MAX_PENDING, Ordering::SeqCst);
    bench.answer("update/accepted", json!({"state": {"desired": {"foo": 1}}, "version": 8}), &json!({}));
    bench.asked("/get");
    assert_eq!(pending.load(Ordering::SeqCst), MAX_PENDING, "it was not kept");
}
