use super::*;
use crate::services::definition;
use serde_json::Map;
use serde_json::json;
use std::collections::BTreeMap;

fn no_toml(_: &str) -> Result<Value, String> {
    Err("no TOML here".into())
}

/// The service, as it is documented: versions, merging, deltas, limits.
#[derive(Default)]
struct Cloud {
    state: Halves,
    version: u64,
    exists: bool,
    /// Codes with which the next updates are refused.
    refuse: VecDeque<u64>,
}

impl Cloud {
    /// What everyone hears of a change.
    fn change(&mut self, state: &Value, token: Option<&str>) -> Vec<(Answer, Value)> {
        self.state.overlay(&Halves::of(state));
        for (name, half) in [("desired", &mut self.state.desired), ("reported", &mut self.state.reported)] {
            if state.get(name).is_some_and(Value::is_null) {
                half.clear();
            }
        }
        self.version += 1;
        self.exists = true;
        let mut heard = vec![];
        let delta = delta(&self.state.desired, &self.state.reported);
        if !delta.is_empty() && state["desired"].is_object() {
            heard.push((Answer::Delta, json!({"state": delta, "version": self.version})));
        }
        let mut accepted = json!({"state": state, "version": self.version});
        if let Some(token) = token {
            accepted["clientToken"] = token.into();
        }
        heard.push((Answer::Updated, accepted));
        heard
    }

    fn serve(&mut self, topic: &str, payload: &[u8]) -> Vec<(Answer, Value)> {
        let request: Value = serde_json::from_slice(payload).unwrap();
        let token = &request["clientToken"];
        let refused = |code: u64| json!({"code": code, "message": "no", "clientToken": token});
        if topic.ends_with("/get") {
            if !self.exists {
                return vec![(Answer::NotGot, refused(404))];
            }
            let state = json!({"reported": self.state.reported, "desired": self.state.desired});
            return vec![(
                Answer::Got,
                json!({"state": state, "version": self.version, "clientToken": token}),
            )];
        }
        if let Some(code) = self.refuse.pop_front() {
            return vec![(Answer::NotUpdated, refused(code))];
        }
        if request["version"].as_u64().is_some_and(|version| version != self.version) {
            return vec![(Answer::NotUpdated, refused(409))];
        }
        let mut after = self.state.clone();
        after.overlay(&Halves::of(&request["state"]));
        if after.size() > MAX_DOCUMENT {
            return vec![(Answer::NotUpdated, refused(413))];
        }
        self.change(&request["state"], token.as_str())
    }
}

fn delta(desired: &Map<String, Value>, reported: &Map<String, Value>) -> Map<String, Value> {
    let differs = |(key, desired): (&String, &Value)| match (desired, reported.get(key)) {
        (Value::Object(desired), Some(Value::Object(reported))) => {
            let inner = delta(desired, reported);
            (!inner.is_empty()).then(|| (key.clone(), Value::Object(inner)))
        }
        (desired, reported) => (reported != Some(desired)).then(|| (key.clone(), desired.clone())),
    };
    desired.iter().filter_map(differs).collect()
}

struct Bench {
    shadow: Shadow,
    cloud: Cloud,
    files: BTreeMap<usize, Vec<u8>>,
    /// Files that cannot be written now.
    full: bool,
    now: Boottime,
    writes: Vec<(usize, bool)>,
    notified: Vec<usize>,
    left: Vec<(u64, Result<(), String>)>,
    published: Vec<Value>,
    /// What the command for a shadow that is not there says, each time.
    defaults: VecDeque<Result<Value, String>>,
}

impl Bench {
    fn new(definitions: &[Value]) -> Self {
        let definitions = definitions.iter().map(|d| definition::from_value(d).unwrap()).collect();
        let name = Name { thing: "t".into(), shadow: None };
        Self {
            shadow: Shadow::new(name, definitions, EmptyList::Value, no_toml, 7),
            cloud: Cloud::default(),
            files: BTreeMap::new(),
            full: false,
            now: Boottime(Duration::from_secs(100)),
            writes: vec![],
            notified: vec![],
            left: vec![],
            published: vec![],
            defaults: VecDeque::new(),
        }
    }

    fn with(definitions: &[Value], reported: Value, desired: Value) -> Self {
        let mut bench = Self::new(definitions);
        bench.cloud.change(&json!({"reported": reported, "desired": desired}), None);
        bench
    }

    fn file(mut self, service: usize, text: &str) -> Self {
        self.files.insert(service, text.into());
        self
    }

    fn text(&self, service: usize) -> &str {
        self.files.get(&service).map_or("", |text| std::str::from_utf8(text).unwrap())
    }

    fn look(&mut self) {
        for at in 0..self.shadow.services.len() {
            self.shadow.look(at, self.files.get(&at).cloned());
        }
    }

    fn up(mut self) -> Self {
        self.look();
        self.shadow.session(true, self.now);
        self.quiet();
        self
    }

    /// Does what is to be done; `true`: there was something.
    fn act(&mut self) -> bool {
        let mut heard = VecDeque::new();
        let mut acted = false;
        loop {
            while let Some(action) = self.shadow.next_action() {
                acted = true;
                match action {
                    Action::Publish { topic, payload } => {
                        self.published.push(serde_json::from_slice(&payload).unwrap());
                        heard.extend(self.cloud.serve(&topic, &payload));
                    }
                    Action::Write { service, text, notify } => {
                        let result = if self.full { Err("disk full".to_owned()) } else { Ok(()) };
                        if result.is_ok() {
                            self.files.insert(service, text);
                            self.writes.push((service, notify));
                        }
                        self.shadow.written(result, self.now);
                    }
                    Action::Notify(service) => self.notified.push(service),
                    Action::Leave(file, outcome) => self.left.push((file, outcome)),
                    Action::MakeDefault => {
                        let made = self.defaults.pop_front().expect("asked no more often than it answers");
                        self.shadow.default_made(made.map(|made| made.to_string().into_bytes()), self.now);
                    }
                }
            }
            let Some((answer, message)) = heard.pop_front() else { return acted };
            self.hear(answer, &message);
        }
    }

    fn hear(&mut self, answer: Answer, message: &Value) {
        self.look();
        self.shadow.message(answer, message.to_string().as_bytes(), self.now);
    }

    /// Until nothing happens any more.
    fn quiet(&mut self) {
        for _ in 0..100 {
            while self.act() {}
            let Some(wake) = self.shadow.next_wake() else { return };
            if wake.since(self.now) > Duration::from_secs(30) {
                return;
            }
            self.now = self.now.max(wake);
            self.look();
            self.shadow.tick(self.now);
        }
        panic!("it never becomes quiet: {:?}", self.published.iter().rev().take(4).collect::<Vec<_>>());
    }

    /// Somebody else changes the shadow.
    fn others(&mut self, state: Value) {
        for (answer, message) in self.cloud.change(&state, None) {
            self.hear(answer, &message);
            while self.act() {}
        }
        self.quiet();
    }

    fn put(&mut self, file: u64, key: &str, text: &str) {
        self.look();
        self.shadow.update(file, key, text.as_bytes(), self.now);
        self.quiet();
    }

    #[track_caller]
    fn reports(&self, reported: Value, desired: Value) {
        let state = &self.cloud.state;
        assert_eq!((json!(state.reported), json!(state.desired)), (reported, desired));
    }
}

fn shell(key: &str) -> Value {
    json!({"key": key, "outfile": format!("/c/{key}"), "outformat": "SHELL", "informat": "SHELL", "notifycmd": "n"})
}

fn with(mut definition: Value, key: &str, value: Value) -> Value {
    definition[key] = value;
    definition
}

#[test]
fn what_is_desired_is_written_notified_reported_and_cleared() {
    let mut bench =
        Bench::with(&[shell("foo")], json!({"other": 1}), json!({"foo": {"a": "x"}, "alien": 2})).up();
    assert_eq!(bench.text(0), "a='x'\n");
    bench.reports(json!({"other": 1, "foo": {"a": "x"}}), json!({"alien": 2}));
    bench.others(json!({"desired": {"foo": {"b": 1}}}));
    assert_eq!(bench.text(0), "a='x'\nb='1'\n");
    bench.reports(json!({"other": 1, "foo": {"a": "x", "b": 1}}), json!({"alien": 2}));
    assert_eq!(bench.writes, [(0, true), (0, true)]);
}

#[test]
fn a_file_that_is_as_desired_is_neither_written_nor_notified_and_its_types_are_those_desired() {
    let bench =
        Bench::with(&[shell("foo")], json!({}), json!({"foo": {"v": "1.10"}})).file(0, "v='1.10'\n").up();
    assert_eq!(bench.writes, []);
    bench.reports(json!({"foo": {"v": "1.10"}}), json!({}));
    // A text that differs is another value, whatever its numbers are.
    let bench = Bench::with(&[shell("foo")], json!({"foo": {"v": "1.1"}}), json!({"foo": {"v": "1.10"}}));
    let bench = bench.file(0, "v='1.1'\n").up();
    assert_eq!(bench.text(0), "v='1.10'\n");
    bench.reports(json!({"foo": {"v": "1.10"}}), json!({}));
}

#[test]
fn a_file_changed_by_hand_is_reported_and_a_missing_one_comes_back() {
    let reported = json!({"foo": {"a": 1, "b": 2}});
    let bench = Bench::with(&[shell("foo")], reported.clone(), json!({})).file(0, "a=3 # mine\n").up();
    bench.reports(json!({"foo": {"a": 3}}), json!({}));
    assert_eq!(bench.text(0), "a=3 # mine\n");
    let bench = Bench::with(&[shell("foo")], reported.clone(), json!({})).up();
    assert_eq!((bench.text(0), &bench.writes[..]), ("a='1'\nb='2'\n", &[(0, true)][..]));
    bench.reports(reported, json!({}));
}

#[test]
fn what_cannot_be_written_stays_desired_and_says_why_until_it_is_fine() {
    let mut bench =
        Bench::with(&[shell("foo"), shell("bar")], json!({}), json!({"foo": {"a-b": 1}, "bar": {"x": 1}}))
            .up();
    let why = bench.cloud.state.reported["otandem"]["refused"]["foo"].as_str().unwrap().to_owned();
    assert!(why.contains("a-b"), "{why}");
    bench.reports(json!({"bar": {"x": 1}, "otandem": {"refused": {"foo": why}}}), json!({"foo": {"a-b": 1}}));
    bench.others(json!({"desired": {"foo": {"a-b": null, "a": 1}}}));
    bench.reports(json!({"bar": {"x": 1}, "foo": {"a": 1}}), json!({}));

    bench.full = true;
    bench.others(json!({"desired": {"foo": {"a": 2}}}));
    assert_eq!(bench.cloud.state.reported["otandem"]["refused"]["foo"], "disk full");
    assert_eq!(bench.cloud.state.desired["foo"], json!({"a": 2}));
    bench.full = false;
    bench.now = bench.now.after(WRITE_AGAIN);
    bench.look();
    bench.shadow.tick(bench.now);
    bench.quiet();
    bench.reports(json!({"bar": {"x": 1}, "foo": {"a": 2}}), json!({}));
}

#[test]
fn deleting_a_whole_key_empties_the_file_and_notifies() {
    for (format, empty) in [("SHELL", "\n"), ("JSON", "{}"), ("PLAINTEXT", ""), ("DOTENV", "\n")] {
        let mut bench = Bench::new(&[with(shell("foo"), "outformat", json!(format))]);
        let value = if format == "PLAINTEXT" { json!("x") } else { json!({"a": "x"}) };
        bench.cloud.change(&json!({"desired": {"foo": value}}), None);
        let mut bench = bench.up();
        bench.reports(json!({"foo": value}), json!({}));
        bench.others(json!({"desired": {"foo": "DELETE"}}));
        assert!(bench.text(0) == empty || bench.text(0).is_empty(), "{format}: {:?}", bench.text(0));
        assert_eq!(bench.writes, [(0, true), (0, true)], "{format}");
        bench.reports(json!({}), json!({}));
    }
}

#[test]
fn telemetry_beside_the_outkeys_is_neither_written_nor_erased() {
    let service = with(shell("foo"), "outkeys", json!(["a"]));
    let mut bench = Bench::with(&[service], json!({"foo": {"a": 1, "t": 20}}), json!({"foo": {"a": 2}}))
        .file(0, "a='1'\n")
        .up();
    assert_eq!(bench.text(0), "a='2'\n");
    bench.reports(json!({"foo": {"a": 2, "t": 20}}), json!({}));
    bench.put(1, "foo", "t=21");
    bench.put(2, "foo", "a=3\nt=22");
    assert_eq!((bench.text(0), &bench.left[..]), ("a='3'\n", &[(1, Ok(())), (2, Ok(()))][..]));
    assert_eq!(bench.writes.len(), 2);
    bench.reports(json!({"foo": {"a": 3, "t": 22}}), json!({}));
    bench.others(json!({"desired": {"foo": {"x": 1, "a": 4}}}));
    assert_eq!(bench.cloud.state.desired["foo"], json!({"x": 1}));
    bench.others(json!({"desired": {"foo": "DELETE"}}));
    let reported = &bench.cloud.state.reported["foo"];
    assert_eq!(*reported, json!({"t": 22}));
}

#[test]
fn only_changes_of_notifykeys_notify_and_dev_null_is_never_written() {
    let mut bench = Bench::new(&[
        with(shell("foo"), "notifykeys", json!(["a"])),
        with(shell("null"), "outfile", json!("/dev/null")),
    ])
    .up();
    bench.others(json!({"desired": {"foo": {"a": 1}}}));
    bench.others(json!({"desired": {"foo": {"b": 1}}}));
    bench.others(json!({"desired": {"null": {"b": 1}}}));
    bench.others(json!({"desired": {"null": {"b": 1, "c": 2}}}));
    assert_eq!((&bench.writes[..], &bench.notified[..]), (&[(0, true), (0, false)][..], &[1, 1][..]));
    bench.reports(json!({"foo": {"a": 1, "b": 1}, "null": {"b": 1, "c": 2}}), json!({}));
}

#[test]
fn ephemeral_data_is_notified_and_neither_kept_nor_reported() {
    let service = json!({"key": "go", "notifycmd": "n", "ephemeraldata": true});
    let mut bench = Bench::with(&[service], json!({}), json!({"go": {"now": 1}})).up();
    assert_eq!(bench.notified, [0]);
    bench.reports(json!({}), json!({}));
    bench.others(json!({"desired": {"go": {"now": 1}}}));
    bench.put(1, "go", "{\"now\": 2}");
    assert_eq!((&bench.notified[..], &bench.left[..]), (&[0, 0, 0][..], &[(1, Ok(()))][..]));
    bench.reports(json!({}), json!({}));
}

#[test]
fn the_first_contents_notify_once_where_that_is_asked_for() {
    let service = with(shell("foo"), "initialnotify", json!(true));
    let mut bench = Bench::with(&[service], json!({"foo": {"a": 1}}), json!({})).file(0, "a='1'\n").up();
    assert_eq!((&bench.notified[..], bench.writes.len()), (&[0][..], 0));
    bench.shadow.refetch(bench.now);
    bench.quiet();
    assert_eq!(bench.notified, [0]);
}

#[test]
fn updates_from_files_are_applied_at_once_and_leave_when_they_are_reported() {
    let mut bench = Bench::new(&[shell("foo")]);
    bench.put(1, "foo", "a=1");
    bench.put(2, "foo", "a=2\nb=x");
    bench.put(3, "led", "{\"red\": true, \"off\": null}");
    assert_eq!((bench.text(0), bench.left.len()), ("a='2'\nb='x'\n", 0));
    let mut bench = bench.up();
    assert_eq!(bench.left, [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
    bench.reports(json!({"foo": {"a": 2, "b": "x"}, "led": {"red": true}}), json!({}));
    bench.put(4, "led", "\"DELETE\"");
    bench.put(5, "foo", "b=");
    bench.put(6, "foo", "b=");
    bench.reports(json!({"foo": {"a": 2}}), json!({}));
    assert_eq!(bench.left.len(), 6);
    bench.put(7, "led", "{");
    bench.put(8, "foo", "x=1; reboot");
    bench.put(9, "otandem", "{}");
    bench.put(10, "big", &json!("x".repeat(MAX_DOCUMENT)).to_string());
    assert!(bench.left[6..].iter().all(|(_, outcome)| outcome.is_err()), "{:?}", &bench.left[6..]);
    assert_eq!((bench.left.len(), bench.text(0)), (10, "a='2'\n"));
}

#[test]
fn an_update_that_the_cloud_refuses_does_not_hold_up_the_others() {
    for code in [400, 413] {
        let mut bench = Bench::new(&[]);
        for (file, key) in [(1, "a"), (2, "b"), (3, "c")] {
            bench.put(file, key, "1");
        }
        // All of them together, then the first alone, then the second.
        bench.cloud.refuse = [code, code].into();
        let bench = bench.up();
        let failed: Vec<_> = bench.left.iter().filter(|(_, o)| o.is_err()).map(|(file, _)| *file).collect();
        assert_eq!((failed, bench.left.len()), (vec![1], 3), "{code}");
        bench.reports(json!({"b": 1, "c": 1}), json!({}));
    }
}

#[test]
fn throttling_and_silence_are_waited_out() {
    for codes in [vec![429, 500, 429], vec![403], vec![409, 409, 409, 409]] {
        let mut bench = Bench::new(&[]);
        bench.put(1, "a", "1");
        let begin = bench.now;
        bench.cloud.refuse = codes.clone().into();
        let bench = bench.up();
        assert_eq!(bench.left, [(1, Ok(()))], "{codes:?}");
        assert!(bench.now > begin, "{codes:?}: no pause");
    }
    let mut bench = Bench::new(&[]);
    bench.shadow.session(true, bench.now);
    assert!(matches!(bench.shadow.next_action(), Some(Action::Publish { .. })));
    assert_eq!(bench.shadow.next_wake(), Some(bench.now.after(ANSWERED_WITHIN)));
    bench.put(1, "a", "1");
    assert_eq!(bench.left, [(1, Ok(()))]);
}

#[test]
fn stale_deltas_are_dropped_and_a_gap_asks_again() {
    let mut bench = Bench::with(&[shell("foo")], json!({"foo": {"a": 1}}), json!({})).file(0, "a='1'\n").up();
    bench.cloud.version = 9;
    bench.shadow.refetch(bench.now);
    bench.quiet();
    bench.hear(Answer::Delta, &json!({"state": {"foo": {"a": 5}}, "version": 8}));
    bench.quiet();
    assert_eq!(bench.text(0), "a='1'\n");
    // Two versions further: what was between them is not known.
    let before = bench.published.len();
    bench.cloud.change(&json!({"desired": {"foo": {"b": 2}}}), None);
    bench.cloud.change(&json!({"desired": {"foo": {"c": 3}}}), None);
    bench.hear(Answer::Delta, &json!({"state": {"foo": {"c": 3}}, "version": 11}));
    bench.quiet();
    assert!(bench.published[before].get("state").is_none());
    bench.reports(json!({"foo": {"a": 1, "b": 2, "c": 3}}), json!({}));
}

#[test]
fn a_delta_that_overtakes_the_answer_is_not_lost() {
    let mut bench = Bench::with(&[shell("foo")], json!({}), json!({}));
    bench.shadow.session(true, bench.now);
    let Some(Action::Publish { topic, payload }) = bench.shadow.next_action() else { panic!() };
    let old = bench.cloud.serve(&topic, &payload);
    for (answer, message) in
        bench.cloud.change(&json!({"desired": {"foo": {"a": 1}}}), None).into_iter().chain(old)
    {
        bench.hear(answer, &message);
        while bench.act() {}
    }
    bench.quiet();
    bench.reports(json!({"foo": {"a": 1}}), json!({}));
}

#[test]
fn a_shadow_that_is_full_refuses_what_makes_it_larger() {
    let mut bench = Bench::with(&[], json!({"x": "y".repeat(MAX_DOCUMENT - 100)}), json!({})).up();
    bench.put(1, "a", &json!("z".repeat(100)).to_string());
    bench.put(2, "b", "1");
    bench.put(3, "x", "null");
    assert!(bench.left[0].1.is_err() && bench.left[1].1.is_ok() && bench.left[2].1.is_ok());
    bench.reports(json!({"b": 1}), json!({}));
}

#[path = "engine_property.rs"]
mod property;

#[test]
fn a_half_that_is_deleted_whole_is_noticed() {
    let mut bench = Bench::with(&[shell("foo")], json!({}), json!({"foo": {"no-name": 1}})).up();
    bench.others(json!({"desired": null}));
    bench.reports(json!({}), json!({}));
    bench.others(json!({"desired": {"foo": {"a": 1}}}));
    bench.reports(json!({"foo": {"a": 1}}), json!({}));
    // What was reported is so still.
    bench.others(json!({"reported": null}));
    bench.reports(json!({"foo": {"a": 1}}), json!({}));
}

#[test]
fn refusals_of_services_that_are_gone_are_taken_back() {
    let told = json!({"foo": {"a": 1}, "otandem": {"refused": {"gone": "x"}, "by": "others"}});
    let mut bench = Bench::with(&[shell("foo")], told, json!({}));
    // Even where that is refused at first.
    bench.cloud.refuse = [400, 400].into();
    let bench = bench.up();
    bench.reports(json!({"foo": {"a": 1}, "otandem": {"by": "others"}}), json!({}));
    let bench = Bench::with(&[], json!({"otandem": {"refused": {"gone": "x"}}}), json!({})).up();
    assert_eq!(json!(bench.cloud.state.reported), json!({}));
}

#[path = "default_tests.rs"]
mod default;

#[path = "engine_validate.rs"]
mod validate;
