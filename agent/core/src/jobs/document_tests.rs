use super::super::show;
use super::*;
use proptest::prelude::*;

fn plan(document: &Value) -> JobPlan {
    match parse(document, OldSchema::default()) {
        Ok(JobDocument::Plan(plan)) => plan,
        other => panic!("no plan: {other:?}"),
    }
}

fn refusal(document: &Value) -> String {
    match parse(document, OldSchema::default()) {
        Err(Outcome::Rejected { reason }) => reason,
        other => panic!("not rejected: {other:?}"),
    }
}

fn action() -> Value {
    json!({"name":"n","type":"runHandler","input":{"handler":"h.sh","args":["a","b"],"path":"default"}})
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut document = json!({"version":"1.0","steps":[{"action":action()}]});
    change(&mut document);
    document
}

/// One step whose action was changed.
fn acts(change: impl FnOnce(&mut Value)) -> Value {
    with(|d| change(&mut d["steps"][0]["action"]))
}

#[test]
fn the_example_of_the_documentation_is_read() {
    let document = json!({
        "_comment": "x", "version": "1.0",
        "steps": [
            {"action": {"name": "Install-Packages", "type": "runHandler", "runAsUser": "root",
                "input": {"handler": "install-packages.sh", "args": ["wget"], "path": "default"}}},
            {"action": {"name": "print-greeting", "type": "runCommand", "runAsUser": "root",
                "ignoreStepFailure": "true", "input": {"command": "echo,Hello World!"}}},
        ],
        "finalStep": {"action": {"name": "Remove-Packages", "type": "runHandler",
            "input": {"handler": "remove-packages.sh", "args": ["wget"], "path": "/home/ubuntu/h"}}},
    });
    let shown = show::plan(&parse(&document, OldSchema::default()));
    assert_eq!(
        shown,
        json!({
            "schema": "steps", "valid": true, "includeStdOut": false,
            "steps": [
                {"name": "Install-Packages", "type": "runHandler", "argv": ["install-packages.sh", "root", "wget"],
                 "path": "default", "runAsUser": "root", "ignoreStepFailure": false, "allowStdErr": null},
                {"name": "print-greeting", "type": "runCommand", "argv": ["echo", "Hello World!"],
                 "path": null, "runAsUser": "root", "ignoreStepFailure": true, "allowStdErr": null},
            ],
            "finalStep": {"name": "Remove-Packages", "type": "runHandler",
                "argv": ["remove-packages.sh", "", "wget"], "path": "/home/ubuntu/h", "runAsUser": "",
                "ignoreStepFailure": false, "allowStdErr": null},
        })
    );
}

#[test]
fn the_old_schema_is_one_step_with_an_empty_user_argument() {
    let document =
        json!({"operation":"install-packages.sh","args":["lftp"],"path":"default","allowStdErr":2});
    let read = plan(&document);
    assert_eq!((read.schema, read.steps.len()), (Schema::Operation, 1));
    let step = &read.steps[0];
    assert_eq!(step.argv(), ["install-packages.sh", "", "lftp"]);
    assert_eq!((step.name.as_str(), step.allow_stderr), ("install-packages.sh", Some(2)));
    let echo = json!({"operation":"echo","args":["Hello world!"]});
    assert_eq!(plan(&echo).steps[0].allow_stderr, Some(0), "absent is none in the old schema");
    let old = OldSchema { user_argument: UserArgument::LeftOut, stderr: OldStderr::Ignore };
    let Ok(JobDocument::Plan(read)) = parse(&document, old) else { panic!() };
    assert_eq!(read.steps[0].argv(), ["install-packages.sh", "lftp"]);
    assert_eq!(read.steps[0].allow_stderr, None);
}

#[test]
fn a_fota_document_is_recognised_first() {
    let sha = "ab".repeat(32);
    let document = json!({"operation":"fota","image":{"url":"https://h/i","sha256":sha}});
    assert!(matches!(parse(&document, OldSchema::default()), Ok(JobDocument::Fota(_))));
    assert_eq!(show::plan(&parse(&document, OldSchema::default()))["schema"], "fota");
    let broken = show::plan(&parse(&json!({"operation":"fota"}), OldSchema::default()));
    assert_eq!(broken["valid"], false);
}

#[test]
fn member_names_are_taken_in_any_case_and_values_as_they_are() {
    let document = json!({"VERSION":"1.0","Steps":[{"ACTION":{"NAME":"n","Type":"runHandler",
        "INPUT":{"Handler":"h","ARGS":["x"],"Path":"default"},"RunAsUser":"u","IGNORESTEPFAILURE":"true"}}]});
    let read = plan(&document);
    assert_eq!(read.steps[0].argv(), ["h", "u", "x"]);
    assert!(read.steps[0].ignore_failure);
    assert!(refusal(&acts(|a| a["type"] = json!("RUNHANDLER"))).contains("not runHandler"));
}

#[test]
fn wrong_types_and_null_count_as_absent_where_the_member_may_be() {
    for (member, value) in [
        ("runAsUser", json!(7)),
        ("runAsUser", Value::Null),
        ("ignoreStepFailure", json!(true)),
        ("ignoreStepFailure", json!("TRUE")),
        ("ignoreStepFailure", json!("false")),
        ("allowStdErr", json!("2")),
        ("allowStdErr", json!(2.5)),
    ] {
        let step = plan(&acts(|a| a[member] = value.clone())).steps.remove(0);
        assert_eq!(step, plan(&acts(|_| {})).steps.remove(0), "{member}: {value}");
    }
    assert_eq!(plan(&acts(|a| a["allowStdErr"] = json!(2.0))).steps[0].allow_stderr, Some(2));
    assert_eq!(plan(&acts(|a| a["input"]["args"] = json!("x"))).steps[0].argv(), ["h.sh", ""]);
    let args = json!(["a", 1, null, {"x":1}, "b"]);
    assert_eq!(
        plan(&acts(|a| a["input"]["args"] = args)).steps[0].argv(),
        ["h.sh", "", "a", "", "", "", "b"],
        "the others keep their places"
    );
    assert!(plan(&with(|d| d["conditions"] = json!(null))).conditions.is_empty());
    assert_eq!(plan(&with(|d| d["finalStep"] = json!({"name":"x"}))).final_step, None);
    assert_eq!(plan(&with(|d| d["finalStep"] = json!([1]))).final_step, None);
}

#[test]
fn standard_output_is_asked_for_by_boolean_or_string() {
    for (value, included) in [
        (json!(true), true),
        (json!("true"), true),
        (json!(false), false),
        (json!("false"), false),
        (json!("yes"), false),
        (json!(1), false),
        (Value::Null, false),
    ] {
        assert_eq!(plan(&with(|d| d["includeStdOut"] = value.clone())).include_stdout, included, "{value}");
    }
}

#[test]
fn elements_of_steps_without_an_action_are_skipped() {
    let read = plan(&with(|d| d["steps"] = json!([1, {}, {"action":null}, {"action":action()}, "x"])));
    assert_eq!(read.steps.len(), 1);
}

#[test]
fn each_refusal_begins_as_people_know_it_and_names_the_member() {
    let cases = [
        (json!([1]), "not a JSON object"),
        (json!({}), "operation: missing"),
        (json!({"operation":""}), "operation: empty"),
        (json!({"operation":7}), "operation: not a string"),
        (json!({"operation":"x","version":"x"}), "version: \"x\" is not a version"),
        (json!({"operation":"x","version":"1.0"}), "steps: missing"),
        (json!({"version":1.0,"steps":[]}), "version: missing, or not a string"),
        (with(|d| d["version"] = json!("2.0")), "version: \"2.0\""),
        (with(|d| d["version"] = json!("1")), "version: \"1\""),
        (with(|d| d["version"] = json!("1.x")), "version: \"1.x\""),
        (with(|d| d["steps"] = json!({})), "steps: not a list"),
        (with(|d| d["steps"] = json!([])), "steps: no element has an action"),
        (with(|d| d["steps"] = json!(vec![json!({}); MAX_STEPS + 1])), "steps: 101 elements"),
        (with(|d| d["steps"][0]["action"] = json!("x")), "steps[0].action: not an object"),
        (acts(|a| drop(a.as_object_mut().unwrap().remove("name"))), "steps[0].action.name: missing"),
        (acts(|a| a["name"] = json!("")), "steps[0].action.name: empty"),
        (acts(|a| a["type"] = json!("runAnything")), "steps[0].action.type: \"runAnything\""),
        (acts(|a| a["input"] = Value::Null), "steps[0].action.input: missing"),
        (acts(|a| a["input"] = json!("h.sh")), "steps[0].action.input: not an object"),
        (acts(|a| a["input"] = json!({})), "steps[0].action.input.handler: missing"),
        (acts(|a| a["input"]["handler"] = json!("../h")), "input.handler: \"../h\" is not a plain file name"),
        (acts(|a| a["input"]["handler"] = json!("/bin/sh")), "is not a plain file name"),
        (acts(|a| a["input"]["handler"] = json!("..")), "is not a plain file name"),
        (acts(|a| a["input"]["handler"] = json!("x".repeat(256))), "input.handler: longer than 255"),
        (acts(|a| a["input"]["path"] = json!("handlers")), "input.path: \"handlers\" is neither"),
        (acts(|a| a["input"]["args"] = json!(vec!["x"; MAX_ARGS + 1])), "input.args: 257 elements"),
        (acts(|a| a["input"]["args"] = json!(["a\0"])), "steps[0].action.input.args[0]: holds a NUL"),
        (acts(|a| a["runAsUser"] = json!("-u root")), "action.runAsUser: \"-u root\" is no user name"),
        (acts(|a| a["runAsUser"] = json!("#0")), "is no user name"),
        (acts(|a| a["runAsUser"] = json!("x".repeat(257))), "runAsUser: longer than 256"),
        (acts(|a| a["allowStdErr"] = json!(-1)), "action.allowStdErr: below 0"),
        (acts(|a| a["timeoutSeconds"] = json!(0)), "action.timeoutSeconds: not a whole number"),
        (with(|d| d["timeoutSeconds"] = json!("5")), "timeoutSeconds: not a whole number"),
        (with(|d| d["rerunnable"] = json!("yes")), "rerunnable: neither"),
        (with(|d| d["finalStep"] = json!({"action":{}})), "finalStep.action.name: missing"),
        (
            acts(|a| a["input"]["args"] = json!(["${aws:iot:parameter:x}"])),
            "steps[0].action.input.args[0]: a ${aws:iot:...} placeholder",
        ),
    ];
    for (document, names) in cases {
        let why = refusal(&document);
        assert!(why.starts_with(INVALID), "{why:?}");
        assert!(why.contains(names), "{why:?} does not name {names:?}");
    }
}

#[test]
fn a_command_is_split_and_what_cannot_run_is_refused() {
    let command = |text: &str| {
        acts(|a| *a = json!({"name":"n","type":"runCommand","runAsUser":"u","input":{"command":text}}))
    };
    assert_eq!(plan(&command(r"echo,Hello\, I am")).steps[0].argv(), ["echo", "Hello, I am"]);
    assert!(refusal(&command("ls -la")).contains("steps[0].action.input.command: its first word"));
    assert!(refusal(&command("")).contains("input.command: empty"));
    assert!(refusal(&command(",")).contains("input.command: empty"));
}

#[test]
fn an_install_step_takes_the_images_of_a_fota_document() {
    let step = |input: Value| acts(|a| *a = json!({"name":"n","type":"installImage","input":input}));
    let image = json!({"url":"https://h/i","sha256":"ab".repeat(32)});
    let read = plan(&step(json!({"image": image})));
    assert!(matches!(&read.steps[0].action, Action::Install { document } if document.images.len() == 1));
    assert!(read.steps[0].argv().is_empty());
    let why = refusal(&step(json!({"image":{"sha256":"ab".repeat(32)}})));
    assert!(why.contains("steps[0].action.input.image.url: missing"), "{why}");
    for (input, why) in [
        (json!({}), "input.image: missing, and images as well"),
        (json!({"bc_url":"https://x/y","bc_size":1}), "input.image: missing, and images as well"),
        (json!({"image":{},"images":[]}), "input: image and images exclude each other"),
        (json!({"images":[{"url":"https://x/y"}, 7]}), "input.images[1]: not an object"),
        (json!({"image":{"url":"https://x/y"}}), "input: image 0: no digest"),
    ] {
        let refused = refusal(&step(input));
        assert!(refused.contains(&format!("steps[0].action.{why}")), "{refused}");
    }
}

#[test]
fn what_an_install_step_cannot_mean_is_refused() {
    let image = json!({"url":"https://h/i","sha256":"ab".repeat(32)});
    let install = json!({"action": {"name":"n","type":"installImage","input":{"image":image}}});
    let two = json!({"version":"1.0","steps":[install],"finalStep":install});
    assert!(refusal(&two).contains("steps: more than one installImage"), "{}", refusal(&two));
    let mut limited = json!({"version":"1.0","steps":[install]});
    assert_eq!(
        plan(&limited).install_step().map(|(at, step, _)| (at, step.name.clone())),
        Some((0, "n".into()))
    );
    limited["steps"][0]["action"]["timeoutSeconds"] = json!(60);
    let why = refusal(&limited);
    assert!(
        why.contains("steps[0].action.timeoutSeconds: an installation has the limits of updates"),
        "{why}"
    );
}

#[test]
fn conditions_are_read_or_refused_never_passed_over() {
    let when = |conditions: Value| with(|d| d["conditions"] = conditions);
    let facts = Facts::from([("thingName".into(), "t".into())]);
    let met = json!([{"key":"thingName","value":["t"],"type":"stringEqual"}]);
    assert_eq!(plan(&when(met)).check_conditions(&facts), Ok(()));
    let unmet = json!([{"key":"thingName","value":["t"]},{"key":"thingName","value":["u"]}]);
    assert!(plan(&when(unmet)).check_conditions(&facts).is_err());
    for (conditions, names) in [
        (json!({"key":"k","value":["x"]}), "conditions: not a list"),
        (json!([7]), "conditions[0]: not an object"),
        (json!([{"value":["x"]}]), "conditions[0].key: missing"),
        (json!([{"key":"k"}]), "conditions[0].value: not a list"),
        (json!([{"key":"k","value":[]}]), "conditions[0].value: not 1 to"),
        (json!([{"key":"k","value":[1]}]), "conditions[0].value[0]: not a string"),
        (json!([{"key":"k","value":["x"],"type":"regex"}]), "conditions[0].type: \"regex\""),
    ] {
        let why = refusal(&when(conditions));
        assert!(why.contains(names), "{why:?} does not name {names:?}");
    }
}

#[test]
fn huge_and_broken_text_is_refused() {
    let why = |text: &[u8]| parse_text(text, OldSchema::default()).unwrap_err().reason().to_owned();
    assert!(why(&vec![b' '; MAX_DOCUMENT + 1]).contains("more than"));
    assert!(why(b"{").contains("not JSON"));
    assert!(why("[".repeat(20_000).as_bytes()).contains("not JSON"));
}

fn any_document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![
            "1\\.[0-9]",
            "runHandler",
            "runCommand",
            "installImage",
            "default",
            "true",
            "[a-z,\\\\ /.]{0,12}",
            ".{0,8}"
        ]
        .prop_map(Value::from),
    ];
    let name = prop_oneof![
        "version",
        "steps",
        "finalStep",
        "action",
        "name",
        "type",
        "input",
        "handler",
        "args",
        "path",
        "command",
        "runAsUser",
        "ignoreStepFailure",
        "allowStdErr",
        "operation",
        "conditions",
        "key",
        "value",
        "timeoutSeconds",
        "includeStdOut",
        "rerunnable",
        "image",
        "Steps",
    ];
    leaf.prop_recursive(5, 48, 8, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(name.clone(), inner, 0..8)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// Documents that are nearly right: one member of a good one is replaced.
fn nearly_right() -> impl Strategy<Value = Value> {
    let places = ["version", "steps", "finalStep", "conditions", "includeStdOut", "timeoutSeconds"];
    let inside = ["name", "type", "input", "runAsUser", "allowStdErr", "ignoreStepFailure", "timeoutSeconds"];
    let inputs = ["handler", "args", "path"];
    (0..places.len() + inside.len() + inputs.len(), any_document()).prop_map(move |(i, value)| {
        with(|d| {
            if let Some(name) = places.get(i) {
                d[*name] = value;
            } else if let Some(name) = inside.get(i - places.len()) {
                d["steps"][0]["action"][*name] = value;
            } else {
                d["steps"][0]["action"]["input"][inputs[i - places.len() - inside.len()]] = value;
            }
        })
    })
}

proptest! {
    #[test]
    fn any_document_is_a_plan_or_a_refusal(document in prop_oneof![any_document(), nearly_right()]) {
        match parse(&document, OldSchema::default()) {
            Ok(JobDocument::Plan(plan)) => {
                prop_assert!(!plan.steps.is_empty());
                for step in plan.all_steps() {
                    let argv = step.argv();
                    if matches!(step.action, Action::Install { .. }) {
                        continue;
                    }
                    prop_assert!(!argv[0].is_empty() && argv.iter().all(|a| !a.contains('\0')));
                    if matches!(step.action, Action::Handler { .. }) {
                        prop_assert!(!argv[0].contains('/') && argv[0] != "..");
                    }
                }
            }
            Ok(JobDocument::Fota(_)) => prop_assert!(fota::is_fota(&document)),
            Err(outcome) => {
                let rejected = matches!(outcome, Outcome::Rejected { .. });
                prop_assert!(rejected);
            }
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_text(&text, OldSchema::default());
    }
}
