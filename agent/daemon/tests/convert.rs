//! `otandem convert`: what it prints, and how it ends.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn convert(args: &str, stdin: &[u8], stdout: Stdio) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_otandem"))
        .args(["--config", "/nonexistent/otandem.toml", "convert"])
        .args(args.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Wrong usage ends it before it reads.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn printed(args: &str, stdin: &str) -> String {
    let run = convert(args, stdin.as_bytes(), Stdio::piped());
    assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// A build without the function says so, and how to get it.
fn not_built() -> bool {
    if otandem::features::list().contains(&"services") {
        return false;
    }
    let run = convert("--from json --to shell", b"{}", Stdio::piped());
    assert_eq!(run.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&run.stderr).contains("--features services"));
    true
}

#[test]
fn settings_are_converted_whatever_the_configuration_is() {
    if not_built() {
        return;
    }
    let json = r#"{"host":"it's","ports":[1,2],"tls":{"on":true}}"#;
    let shell = "host='it'\\''s'\nports=('1' '2')\ntls_on='true'\n";
    assert_eq!(printed("--from json --to shell", json), shell);
    assert_eq!(printed("--from SHELL --to JSON", shell), json);
    let indexed = "host='it'\\''s'\nports_0='1'\nports_1='2'\nports__count='2'\ntls_on='true'\n";
    assert_eq!(printed("--from json --to shell --array-style indexed", json), indexed);
    assert_eq!(printed("--from shell --to json", indexed), json);
    assert_eq!(
        printed("--from json --to toml", json),
        "host = \"it's\"\nports = [1, 2]\n\n[tls]\non = true\n"
    );
    assert_eq!(
        printed("--from toml --to dotenv", "host = 'a b'\n[tls]\non = true"),
        "host=a b\ntls_on=true\n"
    );
    assert_eq!(printed("--from json --to plaintext", r#""as it is""#), "as it is");
}

#[test]
fn what_is_wrong_is_told_and_nothing_is_written() {
    if not_built() {
        return;
    }
    let large = vec![b' '; (1 << 20) + 1];
    for (args, stdin, code, said) in [
        ("--from json --to shell", &b"{\"a\":1,\"b\":{\"c d\":1}}"[..], 65, "SHELL cannot hold $.b[\"c d\"]"),
        ("--from shell --to json", b"a=1\nreboot\n", 65, "line 2"),
        ("--from json --to toml", b"{", 65, "not JSON"),
        ("--from json --to json", b"\xff", 65, "byte 0 is not UTF-8"),
        ("--from json --to json", &large, 65, "more than 1048576 bytes"),
        ("--from yaml --to json", b"", 64, "there is no format"),
        ("--from json", b"", 64, "--to"),
    ] {
        let run = convert(args, stdin, Stdio::piped());
        let told = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(code), "{args}: {told}");
        assert!(told.contains(said), "{args}: {told}");
        assert!(run.stdout.is_empty(), "{args}");
    }
}

#[test]
fn output_that_cannot_be_written_is_no_success() {
    if not_built() {
        return;
    }
    let Ok(full) = std::fs::File::create("/dev/full") else {
        println!("skipped: no /dev/full here");
        return;
    };
    let run = convert("--from json --to json", b"{}", full.into());
    assert_eq!(run.status.code(), Some(73));
}
