use std::ffi::OsString;
use std::path::Path;

use otandem_core::jobs::document::OldStderr;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::flags::{self, FlagError, Order};
use super::keys::PROXY;
use super::*;
use crate::config::fragments::Fragment;
use crate::config::{Credentials, Finding, LogTarget, Settings, ThingName};

fn place() -> Place<'static> {
    Place { home: Some(Path::new("/home/dc")), cwd: None }
}

fn given(config: &Value) -> Given {
    Given::json(config.to_string().as_bytes(), "").unwrap()
}

fn translated(config: &Value) -> Translation {
    translate(&given(config), place())
}

/// A device's file with this put over it.
fn with(more: &Value) -> Value {
    let mut config = json!({
        "endpoint": "e.example", "cert": "/c/cert.pem", "key": "/c/key.pem", "root-ca": "/c/ca.pem", "thing-name": "t",
        "tunneling": {"enabled": false},
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// As `config check` and `run` read it.
fn settings(made: &Translation) -> (Settings, Vec<Finding>) {
    let (fragment, mut findings) = Fragment::parse(Path::new("result"), &made.toml());
    let settings = Settings::from_fragment(fragment, &mut findings);
    (settings, findings)
}

fn names(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.key.as_str()).collect()
}

fn told(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{finding}\n")).collect()
}

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn line(flags: &str) -> flags::Line {
    match flags::parse(&words(flags)) {
        Ok(Order::Run(line)) => line,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_devices_file_becomes_a_configuration_without_a_mistake() {
    let made = translated(&with(&json!({
        "logging": {"level": "WARN", "type": "stdout"},
        "jobs": {"enabled": true, "handler-directory": "~/jobs"},
    })));
    assert_eq!((&made.told, &made.wrong, &made.missing), (&vec![], &vec![], &vec![]));
    let (settings, findings) = settings(&made);
    assert_eq!(findings, []);
    let cloud = settings.cloud.on().unwrap();
    assert_eq!((cloud.endpoint.as_str(), cloud.port), ("e.example", 443));
    assert_eq!(cloud.thing, ThingName::Name("t".into()));
    assert_eq!(cloud.ca.as_deref(), Some(Path::new("/c/ca.pem")));
    let files = Credentials::Files { cert: "/c/cert.pem".into(), key: "/c/key.pem".into() };
    assert_eq!(cloud.credentials, files);
    assert_eq!((settings.log.level.as_str(), settings.log.target), ("warn", LogTarget::Stderr));
    let jobs = settings.jobs.on().unwrap();
    assert_eq!(jobs.handler_directory, Path::new("/home/dc/jobs"));
    assert_eq!(jobs.old_schema.stderr, OldStderr::Ignore, "the client never counted them");
    assert!(settings.updates.unwrap_err().problem.contains("takes no firmware"));
}

#[test]
fn what_is_not_said_is_as_the_client_has_it() {
    let config = json!({"ENDPOINT": "e.example", "Cert": "/c", "key": "/k", "thing-Name": "t"});
    let made = translated(&config);
    let (read, findings) = settings(&made);
    assert_eq!(findings, []);
    assert_eq!(read.jobs.on().unwrap().handler_directory, Path::new("/home/dc/.aws-iot-device-client/jobs"));
    assert_eq!(read.cloud.on().unwrap().ca, None, "the system's roots");
    assert_eq!(names(&made.told), ["tunneling.enabled"], "it is on there by default");
    let off =
        translated(&with(&json!({"jobs": {"enabled": false}, "logging": {}, "root-ca": "", "key": "/k"})));
    assert_eq!(settings(&off).0.jobs, crate::config::Feature::Off);
}

#[test]
fn every_key_that_is_not_carried_over_is_told_once_by_its_name_with_what_to_do_and_without_its_value() {
    let config = with(&json!({
        "_comment": "mine",
        "logging": {"type": "FILE", "file": "/log/SECRET", "enable-sdk-logging": true, "sdk-log-level": "TRACE", "sdk-log-file": "/x"},
        "tunneling": {"enabled": true, "endpoint": "SECRET"},
        "device-defender": {"enabled": false, "interval": 300},
        "fleet-provisioning": {"enabled": false, "template-name": "SECRET", "template-parameters": {"a": {"b": 1}},
            "csr-file": "/x", "device-key": "/x", "collect-system-information": true},
        "samples": {"pub-sub": {"enabled": true, "publish-topic": "SECRET"}},
        "config-shadow": {"enabled": true, "persistent-update": true},
        "sample-shadow": {"enabled": true, "shadow-name": "SECRET"},
        "secure-element": {"enabled": false, "secure-element-pin": "SECRET", "secure-element-slot-id": 7},
        "sensor-publish": {"sensors": [{"name": "SECRET", "addr": "/tmp/s"}]},
        "runtime-config": {"completed-fp": false, "device-config": {"a": 1}},
    }));
    let made = translated(&config);
    assert_eq!((&made.wrong, &made.missing), (&vec![], &vec![]));
    let expected = [
        "logging.type",
        "_comment",
        "config-shadow.enabled",
        "config-shadow.persistent-update",
        "device-defender.interval",
        "fleet-provisioning.collect-system-information",
        "fleet-provisioning.csr-file",
        "fleet-provisioning.device-key",
        "fleet-provisioning.template-name",
        "fleet-provisioning.template-parameters",
        "logging.enable-sdk-logging",
        "logging.file",
        "logging.sdk-log-file",
        "logging.sdk-log-level",
        "runtime-config.device-config",
        "sample-shadow.enabled",
        "sample-shadow.shadow-name",
        "samples.pub-sub.enabled",
        "samples.pub-sub.publish-topic",
        "secure-element.secure-element-pin",
        "secure-element.secure-element-slot-id",
        "sensor-publish.sensors",
        "tunneling.enabled",
        "tunneling.endpoint",
    ];
    assert_eq!(names(&made.told), expected);
    let text = told(&made.told);
    assert_eq!(text.lines().count(), expected.len(), "one line each");
    assert!(!text.contains("SECRET") && !made.toml().contains("SECRET"), "{text}");
    assert!(text.contains("device-defender.interval: not carried over: its function is off there"), "{text}");
    assert!(
        text.contains("sensor-publish.sensors: not carried over: otandem has no sensor publishing"),
        "{text}"
    );
    assert_eq!(settings(&made).1, []);
}

#[test]
fn a_provisioned_device_is_taken_over_and_a_claim_is_never_taken_for_a_device() {
    let claim = with(
        &json!({"fleet-provisioning": {"enabled": true, "template-name": "x"}, "cert": "/claim", "key": "/claim"}),
    );
    let made = translated(&claim);
    assert_eq!(names(&made.missing), ["fleet-provisioning.enabled"]);
    assert!(!made.toml().contains("/claim"), "{}", made.toml());
    assert!(settings(&made).0.cloud.on().is_none());
    // What the client leaves behind is a file of its own.
    let runtime = json!({"Runtime-Config": {"completed-fp": true, "cert": "/own/c", "key": "~/k", "thing-name": "own", "device-config": {}}});
    let mut both = given(&claim);
    both.extend(given(&runtime));
    let made = translate(&both, place());
    let (settings, findings) = settings(&made);
    assert_eq!((findings, &made.missing), (vec![], &vec![]));
    let cloud = settings.cloud.on().unwrap();
    assert_eq!(cloud.thing, ThingName::Name("own".into()));
    assert_eq!(cloud.credentials, Credentials::Files { cert: "/own/c".into(), key: "/home/dc/k".into() });
    assert!(
        told(&made.told)
            .contains("fleet-provisioning.template-name: not carried over: the device is provisioned")
    );
    let half = with(&json!({"runtime-config": {"completed-fp": true, "cert": "/own/c"}}));
    let made = translated(&half);
    assert_eq!(names(&made.told), ["runtime-config.completed-fp"]);
    assert!(made.toml().contains("/c/cert.pem"));
}

#[test]
fn a_proxy_comes_with_its_login_and_its_password_is_told_to_nobody() {
    let proxy = |file: Value| {
        let mut all = given(&with(&json!({})));
        all.extend(Given::json(file.to_string().as_bytes(), PROXY).unwrap());
        translate(&all, place())
    };
    let mut file = json!({"http-proxy-enabled": true, "http-proxy-host": "10.0.0.1", "http-proxy-port": "3128",
        "http-proxy-auth-method": "UserNameAndPassword", "http-proxy-username": "me@x", "http-proxy-password": "p:w/1"});
    let made = proxy(file.clone());
    let (settings, findings) = settings(&made);
    assert_eq!(findings, []);
    let url = settings.network.unwrap().proxy.unwrap();
    assert_eq!(url.as_str(), "http://me%40x:p%3Aw%2F1@10.0.0.1:3128/");
    assert!(!told(&made.told).contains("p:w"));
    file["http-proxy-auth-method"] = json!("None");
    assert!(proxy(file.clone()).toml().contains("proxy = \"http://10.0.0.1:3128/\""));
    for (key, value) in [
        ("http-proxy-port", json!("0")),
        ("http-proxy-port", json!("x")),
        ("http-proxy-host", json!("a/b")),
        ("http-proxy-host", json!("")),
        ("http-proxy-auth-method", json!("Digest")),
        ("http-proxy-enabled", json!("yes")),
    ] {
        let mut wrong = file.clone();
        wrong[key] = value.clone();
        assert_eq!(proxy(wrong).wrong.len(), 1, "{key} {value}");
    }
    file["http-proxy-enabled"] = json!(false);
    assert!(!proxy(file).toml().contains("proxy ="));
    let elsewhere = translated(&with(
        &json!({"http-proxy-enabled": true, "http-proxy-host": "h", "http-proxy-port": "1"}),
    ));
    assert!(!elsewhere.toml().contains("proxy ="), "the client does not look there");
}

#[test]
fn what_cannot_be_meant_is_wrong_and_named() {
    for (more, key) in [
        (json!({"cert": 3}), "cert"),
        (json!({"thing-name": ["t"]}), "thing-name"),
        (json!({"root-ca": "ca.pem"}), "root-ca"),
        (json!({"key": "~other/key"}), "key"),
        (json!({"key": "$HOME/key"}), "key"),
        (json!({"key": "/a b"}), "key"),
        (json!({"logging": {"level": "LOUD"}}), "logging.level"),
        (json!({"logging": {"type": "paper"}}), "logging.type"),
        (json!({"jobs": {"enabled": "true"}}), "jobs.enabled"),
        (
            json!({"jobs": {"handler-directory": "<replace_with_job_handler_directory_path>"}}),
            "jobs.handler-directory",
        ),
        (json!({"runtime-config": {"completed-fp": 1}}), "runtime-config.completed-fp"),
    ] {
        let made = translated(&with(&more));
        assert_eq!(names(&made.wrong), [key], "{more}");
        assert!(!made.wrong_flags);
    }
    let homeless = Place { home: None, cwd: None };
    let made = translate(&given(&with(&json!({"key": "~/k"}))), homeless);
    assert!(told(&made.wrong).contains("no home directory"), "{}", told(&made.wrong));
}

#[test]
fn files_that_are_none_of_the_clients_are_refused() {
    let refused = |bytes: &[u8]| Given::json(bytes, "").unwrap_err().to_string();
    assert!(refused(&vec![b' '; 70_000]).contains("longer than"));
    assert!(refused(b"").contains("not JSON"));
    assert!(refused(b"endpoint = 'x'").contains("not JSON"));
    assert!(refused(&[b'['; 1000]).contains("not JSON"), "too deep");
    assert!(refused("{\"a\":".repeat(200).as_bytes()).contains("not JSON"), "too deep");
    assert!(refused(b"[1]").contains("not a JSON object"));
    assert!(refused(br#"{"Cert":"/a","cert":"/b"}"#).contains("cert: written twice"));
    assert_eq!(Given::json(b"\xef\xbb\xbf{}", "").unwrap(), Given::default());
    let dotted = Given::json(br#"{"jobs.enabled": false}"#, "").unwrap();
    assert!(settings(&translate(&dotted, place())).0.jobs.on().is_some(), "no key of the client");
}

#[test]
fn flags_win_over_the_file_and_paths_begin_where_the_agent_does() {
    let mut all = given(&with(&json!({"logging": {"level": "DEBUG"}})));
    all.extend(line("--cert certs/c.pem --log-level error --enable-jobs false --jobs-handler-dir ~/j --log-type STDOUT").given);
    let made = translate(&all, Place { cwd: Some(Path::new("/srv")), ..place() });
    assert_eq!((&made.wrong, &made.missing, &made.told), (&vec![], &vec![], &vec![]));
    let text = made.toml();
    for expected in
        ["cert = \"/srv/certs/c.pem\"", "level = \"error\"", "enabled = false", "directory = \"/home/dc/j\""]
    {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_flag_that_turns_on_what_is_not_here_is_refused_and_one_that_tunes_what_is_off_is_told() {
    let run = |flags: &str| {
        let mut all = given(&with(&json!({})));
        all.extend(line(flags).given);
        translate(&all, place())
    };
    for flags in [
        "--enable-tunneling true",
        "--enable-device-defender true",
        "--enable-fleet-provisioning true",
        "--enable-pub-sub true",
        "--enable-sample-shadow true",
        "--enable-config-shadow true",
        "--enable-secure-element true",
    ] {
        let made = run(flags);
        let flag = flags.split(' ').next().unwrap();
        assert_eq!((names(&made.wrong), made.wrong_flags), (vec![flag], true), "{flags}");
    }
    for flags in [
        "--device-defender-interval 9",
        "--publish-topic t",
        "--shadow-name s",
        "--pkcs11-lib /l",
        "--csr-file /c",
        "--tunneling-region r",
        "--tunneling-disable-notification",
        "--log-file /x",
        "--enable-sdk-logging",
        "--sdk-log-level TRACE",
        "--sdk-log-file /x",
        "--secure-element-pin 1234",
    ] {
        let made = run(flags);
        let flag = flags.split(' ').next().unwrap();
        assert_eq!((names(&made.told), &made.wrong), (vec![flag], &vec![]), "{flags}");
        assert!(!told(&made.told).contains("1234"));
    }
    let off = run("--enable-tunneling false --enable-device-defender false --enable-pub-sub false");
    assert_eq!((&off.told, &off.wrong), (&vec![], &vec![]), "off here as there");
    let mut tuned = given(&json!({}));
    tuned.extend(line("--tunneling-service ssh").given);
    assert!(translate(&tuned, place()).wrong_flags, "tunneling is on there by default");
    let wrong = run("--enable-jobs yes --log-level loud");
    assert_eq!((names(&wrong.wrong), wrong.wrong_flags), (vec!["--log-level", "--enable-jobs"], true));
}

#[test]
fn unknown_repeated_and_half_flags_are_refused_as_there() {
    let refused = |flags: &str| flags::parse(&words(flags)).unwrap_err();
    assert_eq!(refused("--cert a --cert b"), FlagError::Twice("--cert"));
    assert_eq!(refused("--cert a --key"), FlagError::NoValue("--key"));
    for unknown in ["--frobnicate", "run", "-h", "--cert=a", "--collect-system-information"] {
        assert_eq!(refused(unknown), FlagError::Unknown(unknown.into()));
    }
    let files = line("--config-file f --http-proxy-config p --config c --state-dir s");
    assert_eq!((files.config_file, files.proxy_file), (Some("f".into()), Some("p".into())));
    assert_eq!((files.our_config, files.state_dir), (Some("c".into()), Some("s".into())));
    assert_eq!(flags::parse(&words("--help")), Ok(Order::Help));
    assert_eq!(flags::parse(&words("--version")), Ok(Order::Version));
    assert_eq!(flags::parse(&words("--cert a --help --version")), Ok(Order::Help));
    assert_eq!(flags::parse(&words("--export-default-settings x")), Ok(Order::Export("x".into())));
}

#[test]
fn the_help_names_every_flag_and_the_template_is_a_file_of_the_client() {
    let help = flags::help();
    assert_eq!(help.matches("\n  --").count(), 43 + 2 + 1);
    assert!(help.contains("--secure-element-pin: key in a secure element"));
    let made = translate(&Given::json(flags::TEMPLATE.as_bytes(), "").unwrap(), place());
    assert_eq!((&made.told, &made.missing), (&vec![], &vec![]), "it has only what means something here");
    assert!(!made.wrong.is_empty(), "what is to be replaced is no path");
}

#[test]
fn the_two_layers_are_the_whole() {
    let made = translated(&with(&json!({"jobs": {"enabled": true}})));
    let (mut both, above) = made.layers();
    assert_eq!((both.cloud.port, above.cloud.port), (Some(443), None), "our own files may say another");
    both.merge(above);
    assert_eq!(both, Fragment::parse(Path::new("x"), &made.toml()).0);
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z~/$ \\PC]{0,12}".prop_map(Value::from),
        Just(json!("/a/b")),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z.-]{0,8}", inner, 0..3)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[{}\\[\\]\":,a-z0-9\\\\ ]{0,80}") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            if let Ok(given) = Given::json(bytes, "") {
                let _ = translate(&given, place());
            }
        }
    }

    #[test]
    fn whatever_a_key_holds_the_result_is_toml_with_known_keys(
        top in prop::collection::btree_map(prop::sample::select(vec![
            "endpoint", "cert", "key", "root-ca", "thing-name", "logging", "jobs", "tunneling", "runtime-config",
            "fleet-provisioning", "samples", "secure-element", "other"]), json_value(), 0..8),
        block in prop::collection::btree_map(prop::sample::select(vec![
            "enabled", "level", "type", "file", "handler-directory", "completed-fp", "cert", "key", "thing-name"]), json_value(), 0..8),
        of in prop::sample::select(vec!["logging", "jobs", "runtime-config"]))
    {
        let mut config: serde_json::Map<_, _> = top.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        config.insert(of.to_owned(), Value::Object(block.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()));
        // Only names that differ in case alone are refused.
        let given = Given::json(Value::Object(config).to_string().as_bytes(), "").unwrap();
        let made = translate(&given, place());
        let (_, findings) = settings(&made);
        prop_assert!(findings.iter().all(|f| f.kind != crate::config::Kind::Unknown && !f.problem.contains("TOML")), "{findings:?}");
    }

    #[test]
    fn no_command_line_panics(args in prop::collection::vec(prop_oneof![
        Just("--cert".to_owned()), Just("--enable-jobs".to_owned()), Just("--enable-tunneling".to_owned()),
        Just("--jobs-handler-dir".to_owned()), "\\PC{0,10}"], 0..6))
    {
        let args: Vec<_> = args.into_iter().map(OsString::from).collect();
        if let Ok(Order::Run(line)) = flags::parse(&args) {
            let _ = translate(&line.given, place());
        }
    }
}
