//! `otandem service check`: what it prints, and how it ends.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Exit code, lines of standard output, standard error.
fn check(directory: &Path) -> (Option<i32>, Vec<Value>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_otandem"));
    command.args(["--config", "/nonexistent/otandem.toml", "service", "check"]).arg(directory);
    let run = command.output().unwrap();
    let out = String::from_utf8(run.stdout).unwrap();
    let lines = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (run.status.code(), lines, String::from_utf8(run.stderr).unwrap())
}

#[test]
fn definitions_are_shown_as_they_are_understood_and_wrong_ones_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    put(
        "foo.js",
        "module.exports = { key: 'foo', outfile: '/foo.rc', outformat: 'SHELL', notifycmd: 'sv restart foo' }",
    );
    put(
        "net.toml",
        "key = 'net'\noutfile = '/net'\noutformat = 'toml'\nnotifycmd = 'true'\nshadow = 'settings'\n",
    );
    let (code, lines, said) = check(dir.path());
    if !otandem::features::list().contains(&"services") {
        assert!(code == Some(64) && said.contains("--features services"), "{said}");
        return;
    }
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let foo = json!({"key": "foo", "outfile": "/foo.rc", "outformat": "SHELL", "array-style": "bash", "informat": "JSON",
        "notifycmd": "sv restart foo", "timeout": 10.0, "initialnotify": false});
    assert_eq!(lines[0], json!({"file": "foo.js", "definition": foo}));
    assert_eq!(
        (&lines[1]["file"], &lines[1]["definition"]["shadow"]),
        (&json!("net.toml"), &json!("settings"))
    );
    put("bad.json", "{\"key\": \"bad\"}");
    put("odd.toml", "key = 'odd'\noutfile = '/foo.rc'\noutformat = 'shell'\nnotifycmd = 'true'\nmine = 1\n");
    let (code, lines, said) = check(dir.path());
    assert_eq!((code, lines.len()), (Some(65), 3));
    for line in [
        "otandem: bad.json: outfile is missing",
        "otandem: odd.toml: mine is not known and has no effect",
        "otandem: odd.toml: the outfile /foo.rc is that of foo.js",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let (code, _, said) = check(&dir.path().join("gone"));
    assert!(code == Some(66) && said.contains("gone"), "{said}");
}
