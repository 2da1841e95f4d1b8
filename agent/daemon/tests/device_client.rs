//! The AWS IoT Device Client's files and command line, by the real program: what it prints, what it says, how it ends.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const OTANDEM: &str = env!("CARGO_BIN_EXE_otandem");
const DEVICE: &str = r#"{"endpoint": "e.example", "cert": "~/cert.pem", "key": "~/key.pem", "thing-name": "t",
    "tunneling": {"enabled": false}, "secure-element": {"enabled": false, "secure-element-pin": "hunter2"}}"#;

/// A home directory.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        path
    }

    fn run(&self, program: &Path, args: &[&str], stdin: &[u8]) -> Output {
        let mut command = Command::new(program);
        command.args(args).env("HOME", self.dir.path()).current_dir(self.dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A program that reads less has its reasons.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap()
    }

    fn otandem(&self, args: &[&str]) -> (Option<i32>, String, String) {
        said(&self.run(Path::new(OTANDEM), args, b""))
    }

    /// As the program that a fleet's units start. Our own files: none.
    fn client(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let link = self.path("aws-iot-device-client");
        if !link.exists() {
            symlink(OTANDEM, &link).unwrap();
        }
        let ours = self.file("no/otandem.toml", "");
        let places = ["--config", ours.to_str().unwrap(), "--state-dir", self.dir.path().to_str().unwrap()];
        said(&self.run(&link, &[args, &places].concat(), b""))
    }
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

const IMPORT: [&str; 3] = ["config", "import", "aws-iot-device-client"];

#[test]
fn the_imported_configuration_passes_the_check_and_nothing_secret_is_said() {
    let home = Home::new();
    home.file("dc.json", DEVICE);
    let proxy = r#"{"http-proxy-enabled": true, "http-proxy-host": "10.0.0.1", "http-proxy-port": "3128",
        "http-proxy-auth-method": "UserNameAndPassword", "http-proxy-username": "u", "http-proxy-password": "swordfish"}"#;
    home.file("proxy.json", proxy);
    let (code, out, err) = home.otandem(&[&IMPORT[..], &["dc.json", "--proxy", "proxy.json"]].concat());
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains(&format!("cert = \"{}/cert.pem\"", home.dir.path().display())), "{out}");
    assert!(out.contains("http://u:swordfish@10.0.0.1:3128/"), "{out}");
    assert!(err.contains("secure-element.secure-element-pin: not carried over"), "{err}");
    assert!(!err.contains("hunter2") && !err.contains("swordfish") && !out.contains("hunter2"), "{err}");
    home.file("otandem.toml", &out);
    let (code, out, err) = home.otandem(&["--config", "otandem.toml", "config", "check"]);
    assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
    let args = [&IMPORT[..], &["-", "--home", "/home/dc"]].concat();
    let (code, out, _) = said(&home.run(Path::new(OTANDEM), &args, DEVICE.as_bytes()));
    assert_eq!(code, Some(0));
    assert!(out.contains("cert = \"/home/dc/cert.pem\""), "{out}");
}

#[test]
fn an_import_that_cannot_be_used_writes_nothing_and_one_that_is_not_complete_says_so() {
    let home = Home::new();
    for (text, code, expected) in [
        ("no JSON", 65, "standard input: not JSON"),
        ("{\"cert\": 3}", 65, "cert: must be a string"),
        ("{\"key\": \"key.pem\"}", 65, "key: is no absolute path"),
        (
            "{\"endpoint\": \"https://x/\", \"cert\": \"/c\", \"key\": \"/k\", \"thing-name\": \"t\"}",
            78,
            "host name",
        ),
        ("{}", 78, "thing-name: not there"),
    ] {
        let args = [&IMPORT[..], &["-"]].concat();
        let (got, out, err) = said(&home.run(Path::new(OTANDEM), &args, text.as_bytes()));
        assert_eq!((got, out.is_empty()), (Some(code), code == 65), "{text}: {err}");
        assert!(err.contains(expected), "{text}: {err}");
    }
    let (code, _, err) = home.otandem(&[&IMPORT[..], &["nowhere.json"]].concat());
    assert_eq!(code, Some(66), "{err}");
    assert_eq!(home.otandem(&["config", "import", "chariot", "x"]).0, Some(64));
}

#[test]
fn under_the_clients_name_its_command_line_is_read_as_it_reads_it() {
    let home = Home::new();
    let (code, out, _) = home.client(&["--cert", "c", "--cert", "c"]);
    assert_eq!((code, out.as_str()), (Some(64), ""));
    for (args, expected) in [
        (&["--frobnicate"][..], "\"--frobnicate\" is no flag"),
        (
            &["--enable-device-defender", "true"],
            "--enable-device-defender: otandem has no Device Defender metrics",
        ),
        (&["--log-level", "loud"], "--log-level: use DEBUG"),
    ] {
        let (code, _, err) = home.client(args);
        assert_eq!(code, Some(64), "{err}");
        assert!(err.contains(expected), "{err}");
    }
    let link = home.path("aws-iot-device-client");
    let (code, out, _) = said(&home.run(&link, &["--version"], b""));
    assert!(code == Some(0) && out.starts_with("otandem "), "{out}");
    let (code, out, _) = said(&home.run(&link, &["--help"], b""));
    assert!(code == Some(0) && out.contains("--jobs-handler-dir"), "{out}");
    assert_eq!(home.otandem(&["aws-iot-device-client", "--help"]).1, out);
    assert_eq!(home.client(&["--export-default-settings", "made.json"]).0, Some(0));
    assert!(fs::read_to_string(home.path("made.json")).unwrap().contains("handler-directory"));
    assert_eq!(home.client(&["--export-default-settings", "made.json"]).0, Some(73), "it may be a device's");
}

#[test]
fn files_that_are_missing_broken_or_open_to_others_end_it_before_anything_runs() {
    let home = Home::new();
    let ends = |args: &[&str], code: i32, expected: &str| {
        let (got, _, err) = home.client(args);
        assert_eq!(got, Some(code), "{err}");
        assert!(err.contains(expected), "{err}");
    };
    ends(&[], 78, "endpoint: not there");
    ends(&["--config-file", "nowhere"], 66, "nowhere: No such file");
    let file = home.file("dc.json", "{");
    ends(&["--config-file", "dc.json"], 65, "dc.json: not JSON");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    ends(&["--config-file", "dc.json"], 78, "chmod go-w");
    // Without the flag the file is where the client has it, and so are those beside it.
    home.file(".aws-iot-device-client/aws-iot-device-client.conf", "{\"cert\": 1}");
    ends(&[], 78, "cert: must be a string");
    home.file(".aws-iot-device-client/aws-iot-device-client.conf", DEVICE);
    home.file(".aws-iot-device-client/http-proxy.conf", "{\"http-proxy-enabled\": 1}");
    ends(&[], 78, "http-proxy-enabled: must be true or false");
    home.file(".aws-iot-device-client/http-proxy.conf", "{}");
    home.file(".aws-iot-device-client/aws-iot-device-client-runtime.conf", "[]");
    ends(&[], 65, "not a JSON object");
}
