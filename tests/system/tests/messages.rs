//! Files that become messages, with the real agent and the lab's broker.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use otandem_lab::policy::{Action, Policy};
use otandem_lab::{Direction, Status};
use otandem_system_tests::device::Script;
use otandem_system_tests::world::{LIMIT, World};
use serde_json::{Value, json};

/// A device with one directory for messages, not switched on; its policy allows to publish below these topics.
fn off(keys: &[(&str, &str)]) -> World {
    let world = World::off(|spec| keys.iter().fold(spec, |spec, (key, value)| spec.with(TABLE, key, value)));
    world.lab.set_policy(policy());
    let directory = format!("{:?}", folder(&world, "").display().to_string());
    world.device.configure(TABLE, "directory", &directory).unwrap();
    world
}

const TABLE: &str = "messages.test";

fn policy() -> Policy {
    Policy::jobs().allow(Action::Publish, "data/*").allow(Action::Publish, "mytopic/*")
}

/// As fast as it goes.
const FAST: [(&str, &str); 2] = [("rate", "0"), ("concurrency", "50")];

fn fast() -> World {
    let world = off(&FAST);
    world.device.configure("cloud", "publish-rate", "0").unwrap();
    world
}

fn on(world: World) -> World {
    world.device.power_on().unwrap();
    world.wait_connected(1);
    world
}

fn folder(world: &World, name: &str) -> PathBuf {
    world.device.folder().path("messages").join(name)
}

/// Lies there before the agent has made its directories.
fn put(world: &World, name: &str, content: &str) {
    fs::create_dir_all(folder(world, "new")).unwrap();
    fs::create_dir_all(folder(world, "tmp")).unwrap();
    fs::write(folder(world, "tmp").join(name), content).unwrap();
    fs::rename(folder(world, "tmp").join(name), folder(world, "new").join(name)).unwrap();
}

fn put_numbers(world: &World, numbers: std::ops::Range<u32>) {
    for n in numbers {
        put(world, &format!("{n:05}"), &format!("{{\"topic\":\"data/n\",\"payload\":{n}}}"));
    }
}

/// The numbers that the broker got, in the order of their coming.
fn got(lab: &otandem_lab::Snapshot<'_>) -> Vec<u64> {
    lab.messages(Direction::In, "data/n").filter_map(|entry| entry.json().as_u64()).collect()
}

fn wait_count(world: &World, topic: &str, count: u64) {
    world.wait_lab(&format!("{count} messages on {topic}"), |lab| {
        (lab.counters.received.get(topic).copied().unwrap_or_default() >= count).then_some(())
    });
}

/// Waits until the status of the directory is so.
fn wait_status(world: &World, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
    world.device.wait_ready(LIMIT).unwrap();
    let end = Instant::now() + LIMIT;
    loop {
        let status = world.device.status().unwrap()["messages"]["test"].clone();
        if seen(&status) {
            return status;
        }
        assert!(Instant::now() < end, "{what}: {status}");
    }
}

fn wait_empty(world: &World) {
    wait_status(world, "an empty queue", |status| status["waiting"] == 0);
    assert_eq!(fs::read_dir(folder(world, "new")).unwrap().count(), 0);
}

#[test]
fn the_example_of_the_manual_is_published_word_for_word() {
    let world = on(off(&[]));
    // The agent makes the directories.
    wait_status(&world, "the directory", |status| status["waiting"] == 0);
    let dir = folder(&world, "").display().to_string();
    let dir = dir.trim_end_matches('/');
    for line in [
        format!(
            "echo '{{ \"topic\": \"mytopic/foo\", \"payload\": {{ \"key\": \"value\", \"key2\": 2 }} }}' > {dir}/tmp/foomsg"
        ),
        format!("mv {dir}/tmp/foomsg {dir}/new/"),
    ] {
        assert!(Command::new("sh").arg("-c").arg(&line).status().unwrap().success(), "{line}");
    }
    wait_count(&world, "mytopic/foo", 1);
    let payload =
        world.lab.inspect(|lab| lab.messages(Direction::In, "mytopic/foo").next().unwrap().payload.clone());
    assert_eq!(&payload[..], br#"{"key":"value","key2":2}"#);
    wait_empty(&world);
    world.finish();
}

#[test]
fn messages_need_no_jobs_and_no_subscription() {
    let world = off(&[]);
    world.lab.set_policy(Policy::default().allow(Action::Connect, "*").allow(Action::Publish, "data/*"));
    world.device.configure("jobs", "enabled", "false").unwrap();
    put(&world, "quick", "{\"topic\":\"data/n\",\"payload\":0,\"qos\":0}");
    put_numbers(&world, 1..3);
    let world = on(world);
    wait_count(&world, "data/n", 3);
    wait_empty(&world);
    world.finish();
}

#[test]
fn a_device_that_boots_offline_keeps_everything_and_sends_it_in_order_on_connect() {
    let world = fast();
    world.lab.deactivate(&world.thing);
    put_numbers(&world, 100..200);
    world.device.power_on().unwrap();
    world.wait_lab("an attempt to connect", |lab| (!lab.counters.failed_handshakes.is_empty()).then_some(()));
    put_numbers(&world, 0..100);
    wait_status(&world, "the backlog", |status| status["waiting"] == 200);
    world.lab.activate(&world.thing);
    world.wait_connected(1);
    wait_count(&world, "data/n", 200);
    assert_eq!(world.lab.inspect(got), (0..200).collect::<Vec<u64>>());
    wait_empty(&world);
    world.finish();
}

#[test]
fn a_kill_in_the_middle_of_two_thousand_messages_loses_none() {
    let world = fast();
    // So that there is a middle.
    world.device.configure(TABLE, "rate", "1000").unwrap();
    put_numbers(&world, 0..2000);
    world.device.power_on().unwrap();
    for at in [300, 800, 1300] {
        wait_count(&world, "data/n", at);
        let left = || fs::read_dir(folder(&world, "new")).unwrap().count();
        world.device.kill_agent(|| assert!(left() > 100, "{} are left", left())).unwrap();
    }
    wait_status(&world, "an empty queue", |status| status["waiting"] == 0 && status["sent"] != 0);
    let got: BTreeSet<u64> = world.lab.inspect(got).into_iter().collect();
    let lost: Vec<u64> = (0..2000).filter(|n| !got.contains(n)).collect();
    assert_eq!(lost, [] as [u64; 0]);
    assert_eq!(fs::read_dir(folder(&world, "new")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(folder(&world, "failed")).unwrap().count(), 0);
    world.finish();
}

#[test]
fn poison_of_every_kind_goes_to_failed_with_its_reason_while_others_go_on() {
    let world = fast();
    put_numbers(&world, 0..50);
    let bad = [
        ("00010-empty", "", "empty"),
        ("00011-number-for-topic", "{\"topic\":42,\"payload\":1}", "use a string"),
        ("00012-no-json", "\u{0}\u{1}", "no JSON"),
        ("00013-wildcard", "{\"topic\":\"data/#\",\"payload\":1}", "wildcard"),
        ("00014-no-topic", "{\"topic\":\"\",\"payload\":1}", "is empty"),
        ("00015-qos", "{\"topic\":\"data/n\",\"payload\":1,\"qos\":2}", "no QoS 2"),
        ("00016-no-payload", "{\"topic\":\"data/n\"}", "\"payload\" is missing"),
    ];
    bad.iter().for_each(|(name, content, _)| put(&world, name, content));
    put(&world, "00017-large", &format!("{{\"topic\":\"data/n\",\"payload\":\"{}\"}}", "x".repeat(131_073)));
    symlink("/etc/passwd", folder(&world, "new/00018-link")).unwrap();
    fs::create_dir(folder(&world, "new/00019-directory")).unwrap();
    nix::unistd::mkfifo(&folder(&world, "new/00020-pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // What killed others at every start is an ordinary message.
    put(&world, "00021-number", "{\"topic\":\"data/number\",\"payload\":7}");
    put(&world, "00022-true", "{\"topic\":\"data/true\",\"payload\":true}");
    world.device.power_on().unwrap();
    wait_count(&world, "data/n", 50);
    wait_count(&world, "data/true", 1);
    let status = wait_status(&world, "eleven failed", |status| status["failed"] == 11);
    assert!(status["last-error"].is_string(), "{status}");
    for (name, _, why) in bad {
        let reason = fs::read_to_string(folder(&world, "failed").join(format!("{name}.reason"))).unwrap();
        assert!(reason.contains(why), "{name}: {reason}");
    }
    wait_empty(&world);
    let text = world.device.run(&["status"], 0).unwrap();
    assert!(text.contains("messages:   test: 0 waiting, 11 failed; last: "), "{text}");
    world.finish();
}

#[test]
fn a_message_that_the_policy_forbids_is_given_up_and_neither_messages_nor_jobs_are_lost() {
    let world = fast();
    put_numbers(&world, 0..20);
    put(&world, "00010-forbidden", "{\"topic\":\"forbidden/x\",\"payload\":1}");
    world.device.script(Script::Handler("one"), "true\n").unwrap();
    world.device.power_on().unwrap();
    let job = json!({"version": "1.0", "steps": [
        {"action": {"name": "one", "type": "runHandler", "input": {"handler": "one", "path": "default"}}}]});
    world.run("beside", &job, Status::Succeeded, "");
    wait_status(&world, "the end of it", |status| status["failed"] == 1 && status["waiting"] == 0);
    let got: BTreeSet<u64> = world.lab.inspect(got).into_iter().collect();
    assert_eq!(got, (0..20).collect());
    let reason = fs::read_to_string(folder(&world, "failed/00010-forbidden.reason")).unwrap();
    assert!(reason.contains("iot:Publish") && reason.contains("tried 3 times"), "{reason}");
    // Once in company, then alone.
    assert_eq!(world.counters().violations.len(), 4, "{:?}", world.counters().violations);
}

#[test]
fn a_job_does_not_wait_behind_a_backlog_of_messages() {
    // By the rates of the broker, at which the backlog takes ten seconds.
    let world = off(&[("rate", "0"), ("concurrency", "1000")]);
    put_numbers(&world, 0..1000);
    world.device.script(Script::Handler("one"), "true\n").unwrap();
    world.device.power_on().unwrap();
    wait_count(&world, "data/n", 20);
    let job = json!({"version": "1.0", "steps": [
        {"action": {"name": "one", "type": "runHandler", "input": {"handler": "one", "path": "default"}}}]});
    world.run("beside", &job, Status::Succeeded, "");
    let before = world.lab.inspect(got).len();
    assert!(before < 900, "{before} messages were sent before the job ended");
    assert_eq!(world.counters().throttled, 0, "the broker's rate was kept");
    wait_count(&world, "data/n", 1000);
    wait_empty(&world);
    world.finish();
}
