use super::*;

fn service(key: &str) -> Value {
    json!({"key": key, "outfile": format!("/x/{key}"), "outformat": "JSON", "notifycmd": "true"})
}

/// A shadow that does not exist, whose command says `defaults` one after the other.
fn bench(definitions: &[Value], defaults: &[Result<Value, &str>]) -> Bench {
    let mut bench = Bench::new(definitions);
    bench.shadow.make_default();
    bench.defaults = defaults.iter().map(|made| made.clone().map_err(str::to_owned)).collect();
    bench
}

fn reported(bench: &Bench) -> Value {
    json!(bench.cloud.state.reported)
}

#[test]
fn a_shadow_that_is_not_there_begins_with_what_the_command_says() {
    let default = json!({"foo": {"a": 1, "b": "DELETE"}, "other": {"x": [1, null]}, "gone": null});
    let bench = bench(&[service("foo"), service("bar")], &[Ok(default)]).file(0, "{\"c\":3}").up();
    assert_eq!(bench.text(0), "{\"a\":1,\"c\":3}");
    assert_eq!(bench.writes, [(0, true)]);
    assert_eq!(reported(&bench), json!({"foo": {"a": 1, "c": 3}, "other": {"x": [1]}}));
    assert_eq!(bench.published.len(), 2, "asked once, told once: {:?}", bench.published);
    assert!(bench.shadow.standing().settled);
}

#[test]
fn a_shadow_that_is_there_needs_no_command() {
    let mut bench = Bench::with(&[service("foo")], json!({"foo": {"a": 1}}), json!({}));
    bench.shadow.make_default();
    let bench = bench.up();
    assert_eq!(bench.text(0), "{\"a\":1}");
}

#[test]
fn an_empty_default_is_a_shadow_too() {
    let bench = bench(&[], &[Ok(json!({}))]).up();
    assert!(bench.cloud.exists && bench.shadow.standing().settled);
}

#[test]
fn a_command_that_fails_is_asked_again_and_nothing_is_made_of_it() {
    let failures =
        [Err("exit code 1"), Ok(json!([1])), Ok(json!({"otandem": {}})), Ok(json!({"a": "x".repeat(9000)}))];
    let mut all = failures.to_vec();
    all.push(Ok(json!({"foo": {"a": 1}})));
    let mut bench = bench(&[service("foo")], &all);
    bench.look();
    bench.shadow.session(true, bench.now);
    while bench.act() {}
    let why = bench.shadow.standing().last_error.unwrap();
    assert!(why.contains("exit code 1"), "{why}");
    assert!(!bench.cloud.exists && bench.files.is_empty());
    bench.quiet();
    assert_eq!(reported(&bench), json!({"foo": {"a": 1}}));
    assert_eq!((bench.shadow.standing().last_error, bench.defaults.len()), (None, 0));
}

#[test]
fn what_one_file_cannot_hold_keeps_all_files_as_they_are() {
    let mut shell = service("bar");
    shell["outformat"] = json!("SHELL");
    let bad = json!({"bar": {"no-name": 1}, "foo": {"a": 1}});
    let mut bench = bench(&[service("foo"), shell], &[Ok(bad), Ok(json!({"foo": {"a": 2}}))]);
    bench.look();
    bench.shadow.session(true, bench.now);
    while bench.act() {}
    assert!(bench.files.is_empty() && bench.shadow.standing().last_error.unwrap().contains("no-name"));
    bench.quiet();
    assert_eq!(bench.text(0), "{\"a\":2}");
}

#[test]
fn a_full_disk_makes_no_shadow() {
    let again = Ok(json!({"foo": {"a": 1}}));
    let mut bench = bench(&[service("foo")], &[again.clone(), again]);
    bench.full = true;
    bench.look();
    bench.shadow.session(true, bench.now);
    while bench.act() {}
    assert!(!bench.cloud.exists);
    bench.full = false;
    bench.quiet();
    assert_eq!(reported(&bench), json!({"foo": {"a": 1}}));
}

#[test]
fn update_files_that_waited_go_before_the_default() {
    let default = json!({"foo": {"a": 1, "b": 1, "c": 1}, "own": {"x": 1, "y": 1}});
    let mut bench = bench(&[service("foo")], &[Ok(default)]);
    bench.put(1, "foo", "{\"a\": 2}");
    bench.put(2, "foo", "{\"b\": \"DELETE\"}");
    bench.put(3, "own", "{\"x\": 2}");
    let bench = bench.up();
    assert_eq!(bench.text(0), "{\"a\":2,\"c\":1}");
    assert_eq!(reported(&bench), json!({"foo": {"a": 2, "c": 1}, "own": {"x": 2, "y": 1}}));
    assert_eq!(bench.left, [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
}

#[test]
fn a_default_that_the_cloud_refuses_is_asked_for_again() {
    let mut bench =
        bench(&[service("foo")], &[Ok(json!({"foo": {"a": 1}, "x": 1})), Ok(json!({"foo": {"a": 2}}))]);
    // With its parts together, then alone.
    bench.cloud.refuse = [400, 400].into();
    bench = bench.up();
    assert_eq!(reported(&bench), json!({"foo": {"a": 2}}));
}

#[test]
fn a_session_that_ends_while_the_command_runs_asks_it_again() {
    let mut bench = bench(&[service("foo")], &[]);
    bench.look();
    bench.shadow.session(true, bench.now);
    let Some(Action::Publish { topic, payload }) = bench.shadow.next_action() else {
        panic!("nothing is asked")
    };
    let (answer, message) = bench.cloud.serve(&topic, &payload).remove(0);
    bench.hear(answer, &message);
    assert_eq!(bench.shadow.next_action(), Some(Action::MakeDefault));
    assert_eq!(bench.shadow.next_wake(), None, "nothing is due while the command runs");
    bench.shadow.session(false, bench.now);
    bench.shadow.default_made(Ok(b"{\"foo\":{\"a\":1}}".to_vec()), bench.now);
    assert_eq!(bench.shadow.next_action(), None);
    bench.defaults.push_back(Ok(json!({"foo": {"a": 2}})));
    let bench = bench.up();
    assert_eq!(reported(&bench), json!({"foo": {"a": 2}}));
}
