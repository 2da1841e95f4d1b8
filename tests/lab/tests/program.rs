//! The program: its banner, its commands, and what it says to nonsense.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Runs the program on these lines; the banner comes first.
fn run(lines: &[&str]) -> (Vec<Value>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_otandem-lab"))
        .args(["--thing", "dev", "--clock", "standing", "--dir"])
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Dropping it ends the input, and with it the program.
    let mut input = program.stdin.take().unwrap();
    writeln!(input, "{}", lines.join("\n")).unwrap();
    drop(input);
    let answers = BufReader::new(program.stdout.take().unwrap()).lines();
    let answers = answers.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert!(program.wait().unwrap().success());
    (answers, folder)
}

#[test]
fn a_person_can_create_list_and_cancel() {
    let (answers, _folder) = run(&[
        "create j1 dev {\"operation\":\"fota\"}",
        "list",
        "cancel j1",
        "list",
        "delete j1",
        "list",
        "url b/k https",
        "counters",
    ]);
    assert!(answers.iter().skip(1).all(|a| a["ok"] == true), "{answers:?}");
    assert_eq!(answers[2]["result"][0]["status"], "QUEUED");
    assert_eq!(answers[4]["result"][0]["status"], "CANCELED");
    assert_eq!(answers[6]["result"], serde_json::json!([]));
    assert!(
        answers[7]["result"]["placeholder"]
            .as_str()
            .unwrap()
            .starts_with("${aws:iot:s3-presigned-url:https://127")
    );
}

#[test]
fn identities_lie_where_the_banner_says_and_keys_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let (answers, _folder) = run(&["identity second"]);
    for files in [&answers[0]["things"][0], &answers[1]["result"]] {
        let key = std::fs::metadata(files["key"].as_str().unwrap()).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        let certificate = std::fs::read_to_string(files["cert"].as_str().unwrap()).unwrap();
        assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
    }
    assert!(
        std::fs::read_to_string(answers[0]["ca"].as_str().unwrap()).unwrap().contains("BEGIN CERTIFICATE")
    );
}

#[test]
fn nonsense_is_answered_and_survived() {
    let lines = [
        "frobnicate",
        "create",
        "create j1 dev {",
        "cancel none",
        "put a /nonexistent",
        "url a ftp",
        "list x",
    ];
    let (answers, _folder) = run(&lines);
    assert_eq!(answers.len(), lines.len() + 1);
    for answer in &answers[1..] {
        assert_eq!(answer["ok"], false);
        assert!(!answer["error"].as_str().unwrap().is_empty());
    }
}

#[test]
fn wrong_options_are_a_usage_error() {
    let program = Command::new(env!("CARGO_BIN_EXE_otandem-lab")).args(["--frob", "x"]).output().unwrap();
    assert_eq!(program.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&program.stderr).contains("usage:"));
}
