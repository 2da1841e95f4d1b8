//! Modules that are read without an engine mean what Node.js makes of them.

use std::io::Write;
use std::process::{Command, Stdio};

use otandem_core::services::literal;
use otandem_core::shadow::merge;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::Value;

/// Evaluates every text of a list and prints the list of what they export; null for what does not run.
const NODE: &str = "
const texts = JSON.parse(require('fs').readFileSync(0, 'utf8'));
console.log(JSON.stringify(texts.map((text) => {
  const module = { exports: {} };
  try { new Function('module', text)(module); return JSON.parse(JSON.stringify(module.exports)); } catch (_) { return null; }
})));";

/// Object literals: mostly right ones, some that are broken or compute something.
fn literals() -> impl Strategy<Value = String> {
    let blank = "( |\n|\t|// c\n|/\\* \\* \\*/|\u{a0}){0,2}";
    let string = prop_oneof![
        "'([ -&(-\\[\\]-~é😀]|\\\\[ntrbfv0'\"\\\\qé]|\\\\x[0-9a-f]{2}|\\\\u00[0-9A-F]{2}|\\\\u\\{1F60[0-9]\\}|\\\\ud83d\\\\ude0[0-9]|\\\\\n){0,6}'",
        "\"[ !#-\\[\\]-~']{0,6}\"",
    ];
    let number = prop_oneof![
        "[-+]?(0|[1-9][0-9]{0,8})",
        "-?[1-9][0-9]{0,3}\\.[0-9]{0,2}",
        "-?\\.[0-9]{1,3}",
        "[1-9](\\.5)?[eE][-+]?[0-9]",
        "0[xX][0-9a-fA-F]{1,6}",
    ];
    let word = prop_oneof![
        8 => prop::sample::select(vec!["true", "false", "null", "undefined", "'x'"]),
        1 => prop::sample::select(vec!["x", "NaN", "1+1", "010", "1_0", "'a'+'b'", "`t`", "()=>1", "'\\u12'", "5n"]),
    ];
    let scalar = prop_oneof![string.clone(), number.prop_map(|n| n), word.prop_map(str::to_owned)];
    let key = prop_oneof!["[a-z$_é][a-z0-9$_]{0,3}", string, "[1-9][0-9]{0,3}"];
    let value = scalar.prop_recursive(3, 12, 4, move |inner| {
        let padded = (blank, inner, blank).prop_map(|(a, value, b)| format!("{a}{value}{b}"));
        let list =
            prop::collection::vec(padded.clone(), 0..4).prop_map(|list| format!("[{}]", list.join(",")));
        let member =
            (key.clone(), blank, padded).prop_map(|(key, blank, value)| format!("{key}{blank}:{value}"));
        let object = (prop::collection::vec(member, 0..4), any::<bool>()).prop_map(|(members, comma)| {
            format!("{{{}{}}}", members.join(","), if comma && !members.is_empty() { "," } else { "" })
        });
        prop_oneof![1 => list, 3 => object]
    });
    (blank, value, blank).prop_map(|(a, value, b)| format!("{a}module.exports = {value}{b};"))
}

#[test]
fn what_is_read_without_an_engine_is_what_node_makes_of_it() {
    let there = Command::new("node").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        println!("skipped: no node here");
        return;
    }
    let mut runner = TestRunner::default();
    let strategy = literals();
    let texts: Vec<_> = (0..2000).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect();
    let mut node =
        Command::new("node").args(["-e", NODE]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    node.stdin.take().unwrap().write_all(Value::from(texts.clone()).to_string().as_bytes()).unwrap();
    let answer = node.wait_with_output().unwrap();
    let exported: Vec<Value> = serde_json::from_slice(&answer.stdout).unwrap();
    let mut read = 0;
    for (text, exported) in texts.iter().zip(exported) {
        if let Ok(value) = literal::parse(text) {
            assert!(merge::same(&value, &exported), "{text}\nis {exported}, and was read as {value}");
            read += usize::from(value.as_object().is_some_and(|members| !members.is_empty()));
        }
    }
    assert!(read > 200, "only {read} modules could be read");
}
