//! Messages of the cloud for files and programs, with the real agent and the lab's broker.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use otandem_lab::policy::{Action, Policy};
use otandem_lab::{Direction, Status};
use otandem_system_tests::Health;
use otandem_system_tests::desk::Desk;
use otandem_system_tests::device::Script;
use otandem_system_tests::pack::Packing;
use otandem_system_tests::world::{LIMIT, World};
use serde_json::{Value, json};

/// Rules by their tables: key and value in TOML, `DIR` standing for a folder of the test.
fn off(rules: &[(&str, &[(&str, &str)])]) -> World {
    let world = World::off(|spec| spec);
    let policy = Policy::jobs().allow(Action::Subscribe, "site/*").allow(Action::Receive, "site/*");
    world.lab.set_policy(policy);
    fs::create_dir(at(&world, "")).unwrap();
    let dir = at(&world, "").display().to_string();
    for (name, keys) in rules {
        for (key, value) in *keys {
            let value = value.replace("DIR", dir.trim_end_matches('/'));
            world.device.configure(&format!("subscribe.{name}"), key, &value).unwrap();
        }
    }
    world
}

fn on(world: World) -> World {
    world.device.power_on().unwrap();
    wait_up(&world);
    world
}

fn at(world: &World, name: &str) -> PathBuf {
    world.device.folder().path("subscribed").join(name)
}

/// Waits until all is subscribed.
fn wait_up(world: &World) {
    world.device.wait_ready(LIMIT).unwrap();
    wait(world, "all subscriptions", |status| {
        let rules = status["subscribe"].as_object();
        let subscribed = rules.is_none_or(|rules| rules.values().all(|rule| rule["subscribed"] == true));
        status["cloud"]["connected"] == true && subscribed
    });
}

fn wait(world: &World, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + LIMIT;
    loop {
        let status = world.device.status().unwrap();
        if seen(&status) {
            return status;
        }
        assert!(Instant::now() < end, "{what}: {status}");
    }
}

fn wait_rule(world: &World, name: &str, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
    wait(world, what, |status| seen(&status["subscribe"][name]))["subscribe"][name].clone()
}

#[test]
fn wildcards_bring_every_message_to_each_rule_that_means_it_in_order() {
    let world = on(off(&[
        ("last", &[("topic", "'site/+/alarm'"), ("write", "'DIR/last'")]),
        (
            "all",
            &[
                ("topic", "'site/#'"),
                ("exec", "'printf \"%s %s\\n\" \"$MESSAGE_TOPIC\" \"$(cat)\" >> DIR/all'"),
                ("queue", "1000"),
            ],
        ),
    ]));
    let mut expected = String::new();
    for n in 0..60 {
        let topic = if n % 3 == 0 { format!("site/{n}/alarm") } else { format!("site/{n}/other/x") };
        world.lab.push(&topic, format!("{{\"n\":{n}}}"));
        expected += &format!("{topic} {{\"n\":{n}}}\n");
    }
    wait_rule(&world, "all", "all of them", |rule| rule["done"] == 60);
    assert_eq!(fs::read_to_string(at(&world, "all")).unwrap(), expected);
    let last = wait_rule(&world, "last", "a third of them", |rule| rule["done"] == 20);
    assert_eq!((&last["received"], &last["failed"]), (&json!(20), &json!(0)));
    assert_eq!(fs::read_to_string(at(&world, "last")).unwrap(), "{\"n\":57}");
    let text = world.device.run(&["status"], 0).unwrap();
    assert!(text.contains("subscribe:  all: 60 done, 0 waiting, 0 dropped, 0 failed\n"), "{text}");
    world.finish();
}

#[test]
fn a_command_that_hangs_costs_its_time_and_holds_up_no_job_and_no_other_rule() {
    let world = off(&[
        (
            "hangs",
            &[
                ("topic", "'site/a'"),
                ("exec", "'read word; test $word = go && exit; exec 3> DIR/held; sleep 1000 & sleep 1000'"),
                ("timeout", "'1s'"),
            ],
        ),
        ("beside", &[("topic", "'site/a'"), ("write", "'DIR/beside'")]),
    ]);
    world.device.script(Script::Handler("one"), "true\n").unwrap();
    nix::unistd::mkfifo(&at(&world, "held"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let world = on(world);
    world.lab.push("site/a", "stop\n");
    // Waits for the command to be there.
    let mut held = fs::File::open(at(&world, "held")).unwrap();
    world.lab.push("site/a", "go\n");
    wait_rule(&world, "beside", "the other rule", |rule| rule["done"] == 2);
    let job = json!({"version": "1.0", "steps": [
        {"action": {"name": "one", "type": "runHandler", "input": {"handler": "one", "path": "default"}}}]});
    world.run("beside", &job, Status::Succeeded, "");
    let rule = wait_rule(&world, "hangs", "its end", |rule| rule["done"] == 1);
    assert_eq!(rule["last-error"], "\"site/a\": not done within 1 s, and ended");
    assert_eq!(rule["failed"], 1);
    // The end of the file: nobody of its group holds the other end any more.
    assert_eq!(held.read(&mut [0]).unwrap(), 0);
    world.finish();
}

#[test]
fn a_pipe_without_a_reader_drops_what_comes_and_one_with_a_reader_gets_it() {
    let world = off(&[("pipe", &[("topic", "'site/p'"), ("write", "'DIR/pipe'")])]);
    nix::unistd::mkfifo(&at(&world, "pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let world = on(world);
    world.lab.push("site/p", "lost");
    let rule = wait_rule(&world, "pipe", "a failure", |rule| rule["failed"] == 1);
    assert!(rule["last-error"].as_str().unwrap().contains("nobody reads"), "{rule}");
    let mut reader = OpenOptions::new().read(true).write(true).open(at(&world, "pipe")).unwrap();
    world.lab.push("site/p", "heard");
    wait_rule(&world, "pipe", "the next one", |rule| rule["done"] == 1);
    let mut got = [0; 5];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"heard");
    world.finish();
}

#[test]
fn a_kill_at_any_moment_leaves_a_whole_file_and_a_new_start_goes_on() {
    let world = on(off(&[("file", &[("topic", "'site/f'"), ("write", "'DIR/file'"), ("queue", "1000")])]));
    let text = |n: usize| format!("{n:04} ").repeat(2000);
    for round in 0..3 {
        for n in 0..40 {
            world.lab.push("site/f", text(100 * round + n));
        }
        let sees = |word: usize| {
            wait_rule(&world, "file", "some", |rule| rule["done"].as_u64() >= Some(word as u64))
        };
        sees(2);
        world.device.kill_agent(|| {}).unwrap();
        let found = fs::read_to_string(at(&world, "file")).unwrap();
        let number: usize = found[..4].parse().unwrap();
        assert_eq!(found, text(number), "a torn file");
        wait_up(&world);
    }
    world.lab.push("site/f", "the end");
    wait_rule(&world, "file", "the last", |rule| rule["done"] == 1);
    assert_eq!(fs::read_to_string(at(&world, "file")).unwrap(), "the end");
    world.finish();
}

#[test]
fn what_the_policy_forbids_to_subscribe_to_costs_no_update_and_works_without_a_restart_when_it_is_allowed() {
    let desk = Desk::off();
    desk.lab.set_policy(Policy::jobs());
    desk.define("foo", "JSON", &json!({}));
    desk.device.configure("subscribe.alarm", "topic", "'site/alarm'").unwrap();
    desk.set("subscribe.alarm", "write", "alarm");
    let image = desk.image("2.0", Health::Good);
    let published = desk.publish(&image, Packing::Zstd);
    desk.device.power_on().unwrap();
    desk.run("update", &published.document, Status::Succeeded, "");
    let status = wait(&desk, "both set aside", |status| {
        status["cloud"]["set-aside"].as_array().is_some_and(|groups| groups.len() == 2)
    });
    let attention = status["attention"].to_string();
    for filter in [format!("$aws/things/{}/shadow/*", desk.thing), "site/alarm".into()] {
        let policy = format!("iot:Subscribe on topicfilter/{filter} and iot:Receive on topic/{filter}");
        assert!(attention.contains(&policy), "{filter}: {attention}");
    }
    wait(&desk, "the session without them", |status| status["cloud"]["connected"] == true);
    // A question whose answer cannot be heard is not asked, and would have been one offence more.
    let foreign = desk.counters().violations.iter().filter(|(_, what)| !what.contains("subscribe")).count();
    assert_eq!(foreign, 0, "{:?}", desk.counters().violations);

    let about = "$aws/things/*/shadow/*";
    let policy = [about, "site/*"].iter().fold(Policy::jobs(), |policy, topic| {
        policy.allow(Action::Subscribe, topic).allow(Action::Receive, topic)
    });
    desk.lab.set_policy(policy.allow(Action::Publish, about));
    let connects = desk.counters().connects.get(&desk.thing).copied();
    kill(Pid::from_raw(desk.device.look(|heard| heard.process()).unwrap()), Signal::SIGHUP).unwrap();
    let rule = |status: &Value| status["subscribe"]["alarm"]["subscribed"] == true;
    let status = wait(&desk, "both", |status| rule(status) && status["cloud"]["set-aside"] == json!([]));
    assert!(!status["attention"].to_string().contains("no subscription"), "{status}");
    desk.lab.push("site/alarm", "fire");
    desk.wait_file("alarm", |text| text == "fire");
    desk.change(&json!({"desired": {"foo": {"a": 1}}}));
    desk.wait_file("foo.rc", |text| text == "{\"a\":1}");
    assert_eq!(desk.counters().connects.get(&desk.thing).copied(), connects, "it cost no connection");
    assert!(desk.lab.inspect(|lab| lab.messages(Direction::In, "/shadow/get").count()) > 0);
}

/// A device with a directory of commands, not switched on.
fn with_commands(world: World) -> World {
    let directory = format!("{:?}", world.device.folder().path("commands").display().to_string());
    world.device.configure("commands", "directory", &directory).unwrap();
    world
}

fn command(world: &World, name: &str) {
    let directory = world.device.folder().path("commands");
    fs::create_dir_all(directory.join("new")).unwrap();
    fs::create_dir_all(directory.join("tmp")).unwrap();
    fs::write(directory.join("tmp").join(name), "").unwrap();
    fs::rename(directory.join("tmp").join(name), directory.join("new").join(name)).unwrap();
}

fn asked_for_jobs(world: &World, times: u64) {
    world.wait_lab(&format!("{times} requests for jobs"), |lab| {
        let topic = format!("$aws/things/{}/jobs/start-next", world.thing);
        (lab.counters.received.get(&topic).copied().unwrap_or_default() >= times).then_some(())
    });
}

#[test]
fn files_are_commands_also_those_that_wait_at_the_start() {
    let world = with_commands(off(&[]));
    command(&world, "refetch");
    command(&world, "make-coffee");
    world.device.power_on().unwrap();
    world.wait_log("commands: Refetch");
    wait_up(&world);
    let asked = world.lab.inspect(|lab| {
        lab.counters.received.get(&format!("$aws/things/{}/jobs/start-next", world.thing)).copied()
    });
    command(&world, "jobs-refresh.1");
    asked_for_jobs(&world, asked.unwrap_or_default() + 1);
    command(&world, "status.now");
    wait(&world, "three done", |status| status["commands"]["done"] == 3);
    let directory = world.device.folder().path("commands");
    let written: Value = serde_json::from_slice(&fs::read(directory.join("status.json")).unwrap()).unwrap();
    assert_eq!(written["cloud"]["connected"], true);
    assert_eq!(written["booted"], "A");
    let reason = fs::read_to_string(directory.join("failed/make-coffee.reason")).unwrap();
    assert!(reason.contains("jobs-refresh"), "{reason}");
    assert_eq!(fs::read_dir(directory.join("new")).unwrap().count(), 0);
    let text = world.device.run(&["status"], 0).unwrap();
    assert!(text.contains("commands:   3 done, 1 failed; last: \"make-coffee\": "), "{text}");
    world.finish();
}

#[test]
fn a_device_without_a_cloud_takes_commands_too() {
    let world = with_commands(World::off(|mut spec| {
        spec.cloud = None;
        spec
    }));
    command(&world, "status");
    world.device.power_on().unwrap();
    world.device.wait_ready(LIMIT).unwrap();
    wait(&world, "done", |status| status["commands"]["done"] == 1);
    let written = fs::read(world.device.folder().path("commands/status.json")).unwrap();
    let written: Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(written["cloud"]["configured"], false);
    world.finish();
}

#[test]
fn a_hangup_is_a_refetch_and_never_the_end() {
    let world = on(off(&[]));
    let process = world.device.look(|heard| heard.process()).unwrap();
    for _ in 0..2 {
        kill(Pid::from_raw(process), Signal::SIGHUP).unwrap();
        world.wait_log("SIGHUP: shadows are asked for again");
    }
    assert_eq!(world.device.status().unwrap()["cloud"]["connected"], true);
    assert_eq!(world.device.look(|heard| heard.process()), Some(process));
    world.finish();
}
