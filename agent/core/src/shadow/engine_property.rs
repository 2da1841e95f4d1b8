//! Any order of what people, files, disks and the cloud may do.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Move {
    Desire(Value),
    Report(Value),
    File(&'static str, Value),
    Edit(&'static str),
    Refuse(u64),
    Reconnect,
    Full(bool),
    /// All that is desired is deleted.
    Clear,
    /// The whole shadow is.
    Delete,
}

fn settings() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => (0..3i64).prop_map(Value::from),
        1 => Just(json!("DELETE")),
        1 => Just(json!("1.10")),
        1 => Just(json!([1, 2])),
        1 => Just(json!({"in": 1})),
    ];
    prop::collection::btree_map(prop_oneof![4 => Just("a"), 4 => Just("b"), 1 => Just("b-c")], leaf, 1..3)
        .prop_map(|members| json!(members))
}

fn moves() -> impl Strategy<Value = Move> {
    let whole = prop_oneof![6 => settings(), 1 => Just(json!("DELETE"))];
    let key = prop_oneof![Just("foo"), Just("bar"), Just("free")];
    prop_oneof![
        4 => (key.clone(), whole).prop_map(|(key, value)| Move::Desire(json!({key: value}))),
        2 => (0..5i64).prop_map(|t| Move::Report(json!({"bar": {"t": t}, "alien": {"x": t}}))),
        4 => (key, settings()).prop_map(|(key, value)| Move::File(key, value)),
        1 => prop_oneof![Just("a='7'\n"), Just("(")].prop_map(Move::Edit),
        2 => prop_oneof![Just(400u64), Just(409), Just(413), Just(429), Just(500)].prop_map(Move::Refuse),
        1 => Just(Move::Reconnect),
        1 => any::<bool>().prop_map(Move::Full),
        1 => Just(Move::Clear),
        1 => Just(Move::Delete),
    ]
}

proptest! {
    #[test]
    fn in_the_end_what_is_reported_is_what_the_files_hold(moves in prop::collection::vec(moves(), 0..12)) {
        let services = [with(shell("foo"), "informat", json!("JSON")),
            with(with(shell("bar"), "informat", json!("JSON")), "outkeys", json!(["a", "b", "b-c"]))];
        let mut bench = Bench::new(&services).up();
        let mut files = 0;
        for step in moves {
            match step {
                Move::Desire(desired) => bench.others(json!({"desired": desired})),
                Move::Report(reported) => bench.others(json!({"reported": reported})),
                Move::File(key, value) => {
                    files += 1;
                    bench.put(files, key, &value.to_string());
                }
                Move::Edit(text) => { bench.files.insert(0, text.into()); }
                Move::Refuse(code) => bench.cloud.refuse.push_back(code),
                Move::Reconnect => {
                    bench.shadow.session(false, bench.now);
                    bench = bench.up();
                }
                Move::Full(full) => bench.full = full,
                Move::Clear => bench.others(json!({"desired": null})),
                Move::Delete => {
                    // Nobody is told.
                    bench.cloud.state = Halves::default();
                    bench.cloud.exists = false;
                }
            }
        }
        bench.full = false;
        bench.cloud.refuse.clear();
        bench.cloud.change(&json!({"reported": {"alien": {"x": 9}, "bar": {"t": 9}}}), None);
        for _ in 0..2 {
            bench.shadow.session(false, bench.now);
            bench = bench.up();
        }
        // Every file left, once.
        let mut left: Vec<_> = bench.left.iter().map(|(file, _)| *file).collect();
        left.sort_unstable();
        prop_assert_eq!(left, (1..=files).collect::<Vec<_>>());
        let state = &bench.cloud.state;
        for (at, key) in ["foo", "bar"].into_iter().enumerate() {
            let mut told = state.reported.get(key).cloned().unwrap_or_else(|| json!({}));
            if let Some(members) = told.as_object_mut().filter(|_| key == "bar") {
                prop_assert_eq!(members.remove("t"), Some(json!(9)), "telemetry");
            }
            if let Some(text) = bench.files.get(&at).filter(|text| text.as_slice() != b"(") {
                let printed = formats::print(formats::Format::Shell, &told, formats::ArrayStyle::Bash).unwrap();
                let held = formats::parse(formats::Format::Shell, text, no_toml).unwrap();
                let told = formats::parse(formats::Format::Shell, &printed, no_toml).unwrap();
                prop_assert!(crate::shadow::merge::same(&held, &told), "{}: {:?} and {:?}", key, held, told);
            }
            let refused = &bench.cloud.state.reported.get("otandem").map_or(Value::Null, |own| own["refused"][key].clone());
            prop_assert_eq!(state.desired.contains_key(key), !refused.is_null(), "{}: {:?} {}", key, state.desired.get(key), refused);
        }
        prop_assert_eq!(&state.reported["alien"], &json!({"x": 9}));
    }
}
