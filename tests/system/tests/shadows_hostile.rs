//! Shadows, files and commands that mean no good, by mistake or on purpose: everything else goes on.

use std::fs;

use otandem_system_tests::desk::Desk;
use serde_json::{Value, json};

#[test]
fn a_file_that_cannot_be_written_is_refused_and_written_once_it_can() {
    let desk = Desk::off();
    let outfile = desk.path("missing/foo.rc");
    desk.define("foo", "SHELL", &json!({"outfile": outfile}));
    desk.define("good", "SHELL", &json!({}));
    let desk = desk.on();
    desk.change(&json!({"desired": {"foo": {"a": 1}, "good": {"a": 1}}}));
    let refused = |shadow: &otandem_lab::shadow::Shadow| {
        Some(shadow.reported.get("otandem")?["refused"]["foo"].as_str()?.to_owned())
    };
    let why = desk.wait_of(&desk.thing, None, refused);
    assert!(why.contains("cannot write") && why.contains("missing/foo.rc"), "{why}");
    desk.wait_of(&desk.thing, None, |shadow| (!shadow.desired.contains_key("good")).then_some(()));
    desk.put("foo.1", "a='2'\n");
    desk.wait_status("the update that failed", |status| status["updates"]["failed"] == 1);
    assert!(desk.read("shadow/failed/foo.1.reason").contains("cannot write"));
    fs::create_dir(desk.path("missing")).unwrap();
    desk.lab.kick(&desk.thing);
    desk.wait_reported(&json!({"foo": {"a": 1}, "good": {"a": 1}}));
    assert_eq!(desk.read("missing/foo.rc"), "a='1'\n");
    desk.wait_file("foo.log", |log| log == "told\n");
    desk.finish();
}

#[test]
fn a_command_that_never_ends_holds_up_nobody() {
    let desk = Desk::off();
    let script = format!("echo begun >> {}; sleep 1000 & sleep 1000", desk.path("begun").display());
    desk.define("foo", "JSON", &json!({"notifycmd": script, "timeout": 1}));
    desk.define("good", "JSON", &json!({}));
    let desk = desk.on();
    desk.change(&json!({"desired": {"foo": {"a": 1}, "good": {"a": 1}}}));
    desk.wait_reported(&json!({"foo": {"a": 1}, "good": {"a": 1}}));
    desk.wait_file("good.log", |log| log == "told\n");
    desk.wait_status("the command's end", |status| {
        status["attention"].to_string().contains("not done within 1 s")
    });
    desk.change(&json!({"desired": {"foo": {"a": 2}}}));
    desk.wait_file("begun", |text| text == "begun\nbegun\n");
    desk.finish();
}

#[test]
fn a_hundred_changes_at_once_end_in_the_last_one_and_the_command_sees_it() {
    let desk = Desk::off();
    let (rc, log) = (desk.path("foo.rc"), desk.path("foo.log"));
    let command =
        format!("cat {} > {}; echo told >> {}", rc.display(), desk.path("seen").display(), log.display());
    desk.define("foo", "JSON", &json!({"notifycmd": command}));
    let desk = desk.on();
    desk.wait_settled();
    for n in 0..100 {
        desk.change(&json!({"desired": {"foo": {"n": n, "text": format!("{n}").repeat(n % 50)}}}));
    }
    let last = json!({"n": 99, "text": "99".repeat(49)});
    desk.wait_reported(&json!({"foo": last}));
    desk.wait_file("seen", |text| serde_json::from_str::<Value>(text).is_ok_and(|seen| seen == last));
    desk.wait_file("foo.log", |log| (1..=100).contains(&log.lines().count()));
    desk.wait_of(&desk.thing, None, |shadow| shadow.desired.is_empty().then_some(()));
    desk.finish();
}

#[test]
fn keys_and_values_of_any_kind_are_refused_or_written_and_nothing_else() {
    let desk = Desk::off();
    for (key, format) in
        [("shell", "SHELL"), ("json", "JSON"), ("toml", "TOML"), ("env", "DOTENV"), ("plain", "PLAINTEXT")]
    {
        desk.define(key, format, &json!({}));
    }
    let mark = desk.path("executed");
    let command = format!("x'; touch {}; '", mark.display());
    let hostile = json!({
        "../../../etc/passwd": 1, "a\u{0}b": 2, "$(touch executed)": 3, "PATH": "/tmp", "LD_PRELOAD": command,
        "a": [[1], {"b": "DELETE"}], "deep": {"1": {"2": {"3": {"4": command}}}}, "\u{202e}": command,
        "long": "x".repeat(700), "number": 1e300,
    });
    let desk = desk.on();
    desk.change(&json!({"desired": {"shell": hostile, "env": hostile, "plain": hostile}}));
    for key in ["shell", "env", "plain"] {
        desk.wait_of(&desk.thing, None, |shadow| {
            Some(shadow.reported.get("otandem")?["refused"][key].as_str()?.to_owned())
        });
        assert!(!desk.path(&format!("{key}.rc")).exists());
    }
    desk.change(&json!({"desired": null}));
    desk.change(&json!({"desired": {"json": hostile, "toml": hostile, "shell": {"ok": command}}}));
    desk.wait_of(&desk.thing, None, |shadow| shadow.desired.is_empty().then_some(()));
    desk.wait_of(&desk.thing, None, |shadow| (!shadow.reported.contains_key("otandem")).then_some(()));
    let json: Value = serde_json::from_str(&desk.read("json.rc")).unwrap();
    assert_eq!(
        (&json["PATH"], &json["a"], &json["number"]),
        (&json!("/tmp"), &json!([[1], {}]), &json!(1e300))
    );
    let run = std::process::Command::new("sh")
        .arg("-c")
        .arg(". ./shell.rc; printf %s \"$ok\"")
        .current_dir(desk.path(""))
        .output();
    assert_eq!(String::from_utf8(run.unwrap().stdout).unwrap(), command);
    for file in ["executed", "../executed"] {
        assert!(!desk.path(file).exists(), "{file}");
    }
    desk.finish();
}

#[test]
fn messages_that_are_no_answers_change_nothing() {
    let desk = Desk::off();
    desk.define("foo", "JSON", &json!({}));
    let desk = desk.on();
    desk.change(&json!({"desired": {"foo": {"a": 1}}}));
    desk.wait_reported(&json!({"foo": {"a": 1}}));
    desk.wait_settled();
    let prefix = format!("$aws/things/{}/shadow", desk.thing);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for end in ["get/accepted", "get/rejected", "update/accepted", "update/rejected", "update/delta"] {
        for payload in [
            "",
            "{",
            "[]",
            "null",
            "7",
            "\u{0}",
            &deep,
            r#"{"version":-1,"state":{"foo":{"a":5}}}"#,
            r#"{"version":"9","state":[]}"#,
            r#"{"version":0,"state":{"desired":{"foo":{"a":6}},"foo":{"a":6}}}"#,
            r#"{"code":404,"clientToken":"otandem-0-1"}"#,
            r#"{"code":{},"message":[],"clientToken":{}}"#,
        ] {
            desk.lab.push(&format!("{prefix}/{end}"), payload.to_owned());
        }
    }
    desk.change(&json!({"desired": {"foo": {"b": 2}}}));
    desk.wait_reported(&json!({"foo": {"a": 1, "b": 2}}));
    assert_eq!(desk.read("foo.rc"), "{\"a\":1,\"b\":2}");
    desk.finish();
}
