//! What services with a `validate` of their own keep out of their files.

use super::*;
use std::sync::{Arc, Mutex};

type Asked = Arc<Mutex<Vec<Option<Value>>>>;

impl Bench {
    fn validated(
        mut self,
        service: usize,
        mut validate: impl FnMut(Option<&Value>) -> Result<Option<Value>, String> + Send + 'static,
    ) -> (Self, Asked) {
        let asked = Asked::default();
        let asks = Arc::clone(&asked);
        self.shadow.set_validator(
            service,
            Box::new(move |config| {
                asks.lock().unwrap().push(config.cloned());
                validate(config)
            }),
        );
        (self, asked)
    }
}

/// Refuses ports that are no numbers, and adds what is missing.
fn ports(config: Option<&Value>) -> Result<Option<Value>, String> {
    let mut config = config.cloned().unwrap_or_else(|| json!({}));
    if config["port"].is_string() {
        return Err("port: no number".into());
    }
    config["host"] = json!("localhost");
    Ok(Some(config))
}

#[test]
fn the_settings_are_what_the_service_makes_of_all_of_them() {
    let bench = Bench::with(&[shell("foo")], json!({"foo": {"a": "x"}}), json!({"foo": {"port": 80}}));
    let (bench, asked) = bench.file(0, "a='x'\n").validated(0, ports);
    let mut bench = bench.up();
    assert_eq!(bench.text(0), "a='x'\nhost='localhost'\nport='80'\n");
    bench.reports(json!({"foo": {"a": "x", "host": "localhost", "port": 80}}), json!({}));
    bench.put(1, "foo", "port=81");
    bench.reports(json!({"foo": {"a": "x", "host": "localhost", "port": 81}}), json!({}));
    assert_eq!(bench.left, [(1, Ok(()))]);
    let asked = asked.lock().unwrap();
    let all = |port| Some(json!({"a": "x", "port": port}));
    assert_eq!(asked[0], all(80));
    let mut next = all(81);
    next.as_mut().unwrap()["host"] = json!("localhost");
    assert_eq!(*asked.last().unwrap(), next);
}

#[test]
fn what_the_service_refuses_stays_desired_and_says_why_until_it_is_fine() {
    let (bench, asked) =
        Bench::with(&[shell("foo")], json!({}), json!({"foo": {"port": "x"}})).validated(0, ports);
    let mut bench = bench.up();
    assert_eq!(bench.writes, []);
    let refused = |why: Value| json!({"otandem": {"refused": why}});
    bench.reports(refused(json!({"foo": "port: no number"})), json!({"foo": {"port": "x"}}));
    bench.put(1, "foo", "port=y");
    assert_eq!(bench.left, [(1, Err("port: no number".to_owned()))]);
    // Looked at many times, asked about once; and again in a new session, for it may have been repaired.
    let times =
        || asked.lock().unwrap().iter().filter(|config| **config == Some(json!({"port": "x"}))).count();
    bench.others(json!({"reported": {"other": 1}}));
    let before = times();
    let mut bench = bench.up();
    assert_eq!(times(), before + 1);
    bench.others(json!({"desired": {"foo": {"port": 1}}}));
    assert_eq!(bench.text(0), "host='localhost'\nport='1'\n");
    assert_eq!(bench.cloud.state.desired, Map::new());
    assert!(!bench.cloud.state.reported.contains_key("otandem"));
}

#[test]
fn nothing_from_the_service_empties_the_file_and_a_null_in_it_is_nothing() {
    let (mut bench, _) =
        Bench::with(&[shell("foo")], json!({}), json!({"foo": {"a": 1}})).validated(0, |config| {
            Ok(config.filter(|config| config["a"] == 1).map(|_| json!({"b": null, "c": {"d": null}, "e": 2})))
        });
    bench = bench.up();
    assert_eq!(bench.text(0), "e='2'\n");
    bench.reports(json!({"foo": {"c": {}, "e": 2}}), json!({}));
    bench.others(json!({"desired": {"foo": {"a": 3}}}));
    assert_eq!(bench.text(0), "\n");
    assert_eq!(bench.cloud.state.desired, Map::new());
    assert!(!bench.cloud.state.reported.contains_key("foo"));
}

#[test]
fn a_service_with_defaults_gets_its_file_where_nobody_ever_said_anything() {
    let (bench, asked) = Bench::with(&[shell("foo")], json!({"other": 1}), json!({})).validated(0, ports);
    let bench = bench.up();
    assert_eq!(bench.text(0), "host='localhost'\n");
    bench.reports(json!({"other": 1, "foo": {"host": "localhost"}}), json!({}));
    assert_eq!(asked.lock().unwrap()[0], None);
    // What is in a file was judged when it came there.
    let (bench, asked) =
        Bench::with(&[shell("foo")], json!({}), json!({})).file(0, "port='x'\n").validated(0, ports);
    let bench = bench.up();
    assert_eq!((bench.text(0), asked.lock().unwrap().len()), ("port='x'\n", 0));
}

#[test]
fn what_has_no_file_is_validated_too() {
    let services = [
        json!({"key": "go", "notifycmd": "n", "ephemeraldata": true}),
        with(shell("null"), "outfile", json!("/dev/null")),
    ];
    let (bench, _) = Bench::new(&services).validated(0, ports);
    let (bench, _) = bench.validated(1, ports);
    let mut bench = bench.up();
    bench.others(json!({"desired": {"go": {"port": "x"}, "null": {"port": "x"}}}));
    assert!(bench.notified.is_empty());
    let why = json!({"go": "port: no number", "null": "port: no number"});
    bench.reports(json!({"otandem": {"refused": why}}), json!({"go": {"port": "x"}, "null": {"port": "x"}}));
    bench.others(json!({"desired": {"go": {"port": 1}, "null": {"port": 1}}}));
    assert_eq!(bench.notified, [0, 1]);
    bench.reports(json!({"null": {"port": 1, "host": "localhost"}}), json!({}));
    bench.put(1, "null", "port=2");
    bench.put(2, "null", "port=x");
    bench.put(3, "go", "{\"port\": \"x\"}");
    let no = Err("port: no number".to_owned());
    assert_eq!(bench.left, [(1, Ok(())), (2, no.clone()), (3, no)]);
    assert_eq!(bench.cloud.state.reported["null"], json!({"port": 2, "host": "localhost"}));
}
