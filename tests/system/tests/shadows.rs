//! Shadows, the files of services and updates from files, with the real agent and the lab's shadow service.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Instant;

use otandem_lab::policy::{Action, Policy};
use otandem_lab::{Direction, Status};
use otandem_system_tests::desk::{Desk, TABLE};
use otandem_system_tests::device::Script;
use otandem_system_tests::world::LIMIT;
use serde_json::{Value, json};

#[test]
fn a_key_is_hooked_to_a_service_by_the_module_of_the_manual() {
    let desk = Desk::off();
    // The example, with a folder and a command of this device.
    let module = "module.exports = {\n  key: 'foo',\n  outfile: '/config/foo.rc',\n  outformat: 'SHELL',\n  informat: 'SHELL',\n  notifycmd: 'sv restart foo',\n}\n";
    let (rc, log) = (desk.path("foo.rc").display().to_string(), desk.path("foo.log").display().to_string());
    let module =
        module.replace("/config/foo.rc", &rc).replace("sv restart foo", &format!("cat {rc} >> {log}"));
    fs::write(desk.path("svcs/foo.js"), module).unwrap();
    let desk = desk.on();
    desk.change(&json!({"desired": {"foo": {"led1": "it's", "led2": "green"}}}));
    let text = "led1='it'\\''s'\nled2='green'\n";
    desk.wait_file("foo.log", |log| log == text);
    desk.wait_of(&desk.thing, None, |shadow| {
        (shadow.desired.is_empty() && shadow.reported["foo"] == json!({"led1": "it's", "led2": "green"}))
            .then_some(())
    });
    assert_eq!(desk.read("foo.rc"), text);
    // The same again changes nothing.
    desk.change(&json!({"desired": {"foo": {"led1": "it's"}}}));
    desk.wait_of(&desk.thing, None, |shadow| shadow.desired.is_empty().then_some(()));
    assert_eq!(desk.read("foo.log"), text);
    desk.finish();
}

#[test]
fn a_shadow_is_updated_by_the_commands_of_the_manual_without_any_service() {
    let desk = Desk::off().on();
    desk.wait_settled();
    let dir = desk.path("shadow").display().to_string();
    for line in [
        format!("echo '{{ \"led1\": \"red\", \"led2\": \"green\" }}' > {dir}/tmp/foo"),
        format!("mv {dir}/tmp/foo {dir}/new"),
    ] {
        assert!(Command::new("sh").arg("-c").arg(&line).status().unwrap().success(), "{line}");
    }
    desk.wait_reported(&json!({"foo": {"led1": "red", "led2": "green"}}));
    desk.wait_empty();
    desk.put("foo", "{\"led1\": \"DELETE\"}");
    desk.wait_reported(&json!({"foo": {"led2": "green"}}));
    desk.finish();
}

#[test]
fn shadows_need_no_more_than_the_policy_of_the_manual() {
    let desk = Desk::off();
    let manual = include_str!("../../../docs/services.md");
    let policy = manual.split("```json\n").find(|part| part.starts_with("{ \"Version\"")).unwrap();
    desk.lab.set_policy(Policy::parse(policy.split("```").next().unwrap()).unwrap());
    desk.device.configure("jobs", "enabled", "false").unwrap();
    desk.define("foo", "JSON", &json!({}));
    desk.define("net", "JSON", &json!({"shadow": "settings"}));
    desk.put("own", "1");
    let desk = desk.on();
    desk.wait_reported(&json!({"own": 1}));
    for name in [None, Some("settings")] {
        desk.change_of(&desk.thing, name, &json!({"desired": {"foo": {"a": 1}, "net": {"b": 2}}}));
    }
    desk.wait_file("foo.rc", |text| text == "{\"a\":1}");
    desk.wait_file("net.rc", |text| text == "{\"b\":2}");
    desk.wait_settled();
    desk.finish();
}

#[test]
fn what_is_refused_stays_desired_and_says_why_until_it_is_right() {
    let desk = Desk::off();
    desk.define("bad", "SHELL", &json!({}));
    desk.define("good", "SHELL", &json!({}));
    let desk = desk.on();
    let hostile = json!({"x; touch /tmp/otandem-hostile #": 1});
    desk.change(&json!({"desired": {"bad": hostile, "good": {"a": "$(exit 1)`'"}, "nobody": {"b": 1}}}));
    let why = desk.wait_of(&desk.thing, None, |shadow| {
        Some(shadow.reported.get("otandem")?["refused"]["bad"].as_str()?.to_owned())
    });
    assert!(why.contains("no name of a variable"), "{why}");
    desk.wait_of(&desk.thing, None, |shadow| {
        (json!(shadow.desired) == json!({"bad": hostile, "nobody": {"b": 1}})).then_some(())
    });
    desk.wait_file("good.rc", |text| text == "a='$(exit 1)`'\\'''\n");
    assert!(!desk.path("bad.rc").exists());
    desk.wait_status("the refusal", |status| status["shadows"][0]["refused"]["bad"].is_string());
    desk.change(&json!({"desired": {"bad": null}}));
    desk.change(&json!({"desired": {"bad": {"right": 1}}}));
    desk.wait_of(&desk.thing, None, |shadow| {
        let reported = json!(shadow.reported);
        (reported["bad"] == json!({"right": 1}) && reported["otandem"]["refused"]["bad"].is_null())
            .then_some(())
    });
    assert_eq!(desk.read("bad.rc"), "right='1'\n");
    desk.finish();
}

#[test]
fn deleting_a_whole_key_empties_every_kind_of_file_and_tells_the_service() {
    let desk = Desk::off();
    for (key, format) in [("json", "JSON"), ("shell", "SHELL"), ("plain", "PLAINTEXT"), ("toml", "TOML")] {
        desk.define(key, format, &json!({}));
    }
    let desk = desk.on();
    let all = json!({"json": {"a": 1}, "shell": {"a": 1}, "plain": "text", "toml": {"a": 1}});
    desk.change(&json!({"desired": all}));
    desk.wait_reported(&all);
    desk.wait_file("plain.rc", |text| text == "text");
    for key in ["json", "shell", "plain", "toml"] {
        desk.wait_file(&format!("{key}.log"), |log| log == "told\n");
    }
    desk.change(
        &json!({"desired": {"json": "DELETE", "shell": "DELETE", "plain": "DELETE", "toml": "DELETE"}}),
    );
    desk.wait_reported(&json!({}));
    for (key, empty) in [("json", "{}"), ("shell", "\n"), ("plain", ""), ("toml", "")] {
        assert_eq!(desk.read(&format!("{key}.rc")).trim(), empty.trim(), "{key}");
        desk.wait_file(&format!("{key}.log"), |log| log == "told\ntold\n");
    }
    desk.finish();
}

#[test]
fn a_command_that_a_kill_kept_from_its_end_runs_again() {
    let desk = Desk::off();
    desk.device.make_gate("notify").unwrap();
    desk.device.script(Script::Handler("notify"), "gate notify\ntell notified\n").unwrap();
    let script = desk.path("handlers/notify");
    desk.define("foo", "JSON", &json!({"notifycmd": script, "timeout": 600}));
    let desk = desk.on();
    desk.change(&json!({"desired": {"foo": {"a": 1}}}));
    desk.wait_gate("notify");
    desk.wait_reported(&json!({"foo": {"a": 1}}));
    desk.device.kill_agent(|| {}).unwrap();
    desk.wait_gate("notify");
    desk.device.open_gate("notify").unwrap();
    let told = |heard: &otandem_system_tests::device::Heard| {
        heard.events.iter().any(|e| e == "notified").then_some(())
    };
    desk.device.wait("the end of the command", LIMIT, told).unwrap();
    // Now it has run: another start does not run it again.
    let end = Instant::now() + LIMIT;
    while fs::read_dir(desk.path("state/services")).unwrap().next().is_some() {
        assert!(Instant::now() < end, "the mark stays");
    }
    desk.device.kill_agent(|| {}).unwrap();
    desk.wait_settled();
    assert!(desk.device.look(|heard| heard.gates.is_empty()));
    desk.finish();
}

#[test]
fn kills_during_two_hundred_updates_lose_none() {
    let desk = Desk::off();
    desk.define("foo", "JSON", &json!({}));
    let put = |desk: &Desk, range: std::ops::Range<u32>| {
        for n in range {
            let key = if n % 2 == 0 { "foo" } else { "own" };
            desk.put(&format!("{key}.{n:03}"), &format!("{{\"n{n}\":{n}}}"));
        }
    };
    put(&desk, 0..50);
    let desk = desk.on();
    for from in [50, 100, 150] {
        desk.wait_of(&desk.thing, None, |shadow| (!shadow.reported.is_empty()).then_some(()));
        put(&desk, from..from + 25);
        desk.device.kill_agent(|| put(&desk, from + 25..from + 50)).unwrap();
    }
    let all = |rest: u32| {
        json!(
            (0..200)
                .filter(|n| n % 2 == rest)
                .map(|n| (format!("n{n}"), json!(n)))
                .collect::<serde_json::Map<_, _>>()
        )
    };
    desk.wait_reported(&json!({"foo": all(0), "own": all(1)}));
    desk.wait_empty();
    assert_eq!(serde_json::from_str::<Value>(&desk.read("foo.rc")).unwrap(), all(0));
    assert_eq!(fs::read_dir(desk.path("shadow/failed")).unwrap().count(), 0);
    desk.finish();
}

#[test]
fn updates_of_a_device_that_boots_offline_are_applied_at_once_and_go_out_in_order_on_connect() {
    let desk = Desk::off();
    desk.define("foo", "JSON", &json!({}));
    desk.lab.deactivate(&desk.thing);
    desk.put("foo.1", "{\"a\":1,\"b\":1}");
    desk.put("own.2", "{\"x\":2}");
    desk.put("own.1", "{\"x\":1,\"y\":1}");
    desk.device.power_on().unwrap();
    desk.wait_file("foo.rc", |text| text == "{\"a\":1,\"b\":1}");
    desk.put("foo.2", "{\"a\":2}");
    desk.wait_file("foo.rc", |text| text == "{\"a\":2,\"b\":1}");
    desk.wait_file("foo.log", |log| log.starts_with("told"));
    assert_eq!(desk.left(), 4, "nobody has them yet");
    desk.lab.activate(&desk.thing);
    desk.wait_reported(&json!({"foo": {"a": 2, "b": 1}, "own": {"x": 2, "y": 1}}));
    desk.wait_empty();
    desk.finish();
}

#[test]
fn telemetry_beside_the_outkeys_and_of_dev_null_is_never_erased() {
    let desk = Desk::off();
    desk.define("foo", "JSON", &json!({"outkeys": ["a"]}));
    desk.define("nul", "JSON", &json!({"outfile": "/dev/null"}));
    let desk = desk.on();
    desk.put("foo", "{\"a\":1,\"temperature\":20}");
    desk.put("nul", "{\"temperature\":21}");
    let reported = json!({"foo": {"a": 1, "temperature": 20}, "nul": {"temperature": 21}});
    desk.wait_reported(&reported);
    desk.wait_empty();
    let asked =
        |desk: &Desk| desk.lab.inspect(|lab| lab.messages(Direction::Out, "/shadow/get/accepted").count());
    for connection in 2..4 {
        let before = asked(&desk);
        desk.lab.kick(&desk.thing);
        desk.wait_connected(connection);
        desk.wait_lab("the shadow, asked for", |lab| {
            (lab.messages(Direction::Out, "/shadow/get/accepted").count() > before).then_some(())
        });
        desk.wait_settled();
    }
    desk.change(&json!({"desired": {"foo": {"a": 2}}}));
    desk.wait_reported(&json!({"foo": {"a": 2, "temperature": 20}, "nul": {"temperature": 21}}));
    assert_eq!(desk.read("foo.rc"), "{\"a\":2}");
    let erased = desk.updates().iter().any(|state| state.to_string().contains("\"temperature\":null"));
    assert!(!erased, "{:?}", desk.updates());
    desk.finish();
}

#[test]
fn a_named_shadow_and_a_second_thing_are_served_beside_the_devices_own() {
    let desk = Desk::off();
    desk.define("foo", "JSON", &json!({}));
    desk.define("net", "TOML", &json!({"shadow": "settings", "outformat": "TOML"}));
    for (key, value) in [("thing", "\"radio\""), ("shadow", "\"live\"")] {
        desk.device.configure("services.radio", key, value).unwrap();
    }
    desk.set("services.radio", "updates", "radio");
    let desk = desk.on();
    desk.change(&json!({"desired": {"foo": {"a": 1}}}));
    desk.change_of(
        &desk.thing,
        Some("settings"),
        &json!({"desired": {"net": {"b": 2}, "foo": {"not": "mine"}}}),
    );
    desk.wait_file("foo.rc", |text| text == "{\"a\":1}");
    desk.wait_file("net.rc", |text| text == "b = 2\n");
    desk.put("net.1", "b = 3");
    desk.wait_of(&desk.thing, Some("settings"), |shadow| {
        (shadow.reported.get("net") == Some(&json!({"b": 3}))).then_some(())
    });
    let end = Instant::now() + LIMIT;
    while !desk.path("radio/new").exists() {
        assert!(Instant::now() < end, "the directory is not made");
    }
    fs::write(desk.path("radio/new/rssi"), "-70").unwrap();
    desk.wait_of("radio", Some("live"), |shadow| {
        (shadow.reported.get("rssi") == Some(&json!(-70))).then_some(())
    });
    desk.finish();
}

#[test]
fn poison_of_every_kind_goes_to_failed_with_its_reason_while_others_go_on() {
    let desk = Desk::off();
    desk.define("foo", "SHELL", &json!({}));
    let new = desk.path("shadow/new");
    fs::create_dir(new.join("a-directory")).unwrap();
    nix::unistd::mkfifo(&new.join("b-pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("/etc/passwd", new.join("c-link")).unwrap();
    fs::write(new.join(std::ffi::OsStr::from_bytes(b"d-\xff")), "1").unwrap();
    let large = format!("\"{}\"", "x".repeat(9000));
    let bad = [
        ("e-garbage", "\u{0}\u{1}", "JSON"),
        ("e-empty", "", "JSON"),
        ("e-large", large.as_str(), "larger"),
        ("foo.command", "a='1'\nreboot\n", "line 2"),
        (".hidden", "1", "no key"),
        ("otandem", "1", "no key"),
    ];
    bad.iter().for_each(|(name, text, _)| desk.put(name, text));
    desk.put("foo.ok", "a='1'\n");
    desk.put("zero", "0");
    let desk = desk.on();
    desk.wait_reported(&json!({"foo": {"a": 1}, "zero": 0}));
    desk.wait_status("ten failed", |status| status["updates"]["failed"] == 10);
    for (name, _, why) in bad {
        let reason = desk.read(&format!("shadow/failed/{name}.reason"));
        assert!(reason.contains(why), "{name}: {reason}");
    }
    desk.wait_empty();
    let text = desk.device.run(&["status"], 0).unwrap();
    assert!(text.contains("services:   test: 1 services, 0 updates waiting, 10 failed; last: "), "{text}");
    desk.finish();
}

#[test]
fn a_shadow_that_is_not_there_is_made_by_the_command_and_updates_that_waited_go_before_it() {
    let desk = Desk::off();
    desk.define("foo", "SHELL", &json!({"informat": "JSON"}));
    let command = r#"echo "{\"foo\":{\"a\":1,\"b\":1},\"made-for\":\"$(cat)\"}""#;
    desk.device.configure(TABLE, "default-shadow", &format!("{command:?}")).unwrap();
    desk.put("foo", "{\"a\":2}");
    let desk = desk.on();
    desk.wait_reported(&json!({"foo": {"a": 2, "b": 1}, "made-for": "device"}));
    assert_eq!(desk.read("foo.rc"), "a='2'\nb='1'\n");
    desk.wait_empty();
    // It is there now: the command is not asked again.
    desk.put("made-for", "\"nobody\"");
    desk.wait_reported(&json!({"foo": {"a": 2, "b": 1}, "made-for": "nobody"}));
    desk.device.kill_agent(|| {}).unwrap();
    desk.wait_settled();
    desk.wait_reported(&json!({"foo": {"a": 2, "b": 1}, "made-for": "nobody"}));
    desk.finish();
}

#[test]
fn jobs_run_although_the_policy_forbids_to_update_the_shadow() {
    let desk = Desk::off();
    let about = "$aws/things/*/shadow/*";
    let policy = Policy::jobs().allow(Action::Publish, "$aws/things/*/shadow/get");
    desk.lab.set_policy(policy.allow(Action::Subscribe, about).allow(Action::Receive, about));
    desk.put("own", "1");
    desk.device.script(Script::Handler("one"), "true\n").unwrap();
    desk.device.power_on().unwrap();
    desk.wait_status("the shadow left alone", |status| {
        status["attention"].to_string().contains("iot:Publish")
    });
    desk.wait_session(true);
    let job = json!({"version": "1.0", "steps": [
        {"action": {"name": "one", "type": "runHandler", "input": {"handler": "one", "path": "default"}}}]});
    desk.run("beside", &job, Status::Succeeded, "");
    assert_eq!(desk.left(), 1, "the update waits");
}
