//! Wrong input to every command: a message that names what is wrong, the documented exit code, and nothing changed.

use std::fs;
use std::process::{Command, Stdio};

use otandem_core::boot::SetId;
use otandem_system_tests::device::{Device, Spec};
use otandem_system_tests::world::LIMIT;
use otandem_system_tests::{Health, Image, binary};
use tempfile::TempDir;

/// A device without a cloud, and things in its folder that are no input.
fn device(daemon: bool) -> (TempDir, Device) {
    let folder = tempfile::Builder::new().prefix("otandem-").tempdir().unwrap();
    let factory = Image::plain("factory", Health::Good, 1 << 20);
    let device = Device::make(folder.path(), Spec::default(), &factory).unwrap();
    device.power_on().unwrap();
    device.wait_ready(LIMIT).unwrap();
    if !daemon {
        device.stop_agent().unwrap();
    }
    let noise: Vec<u8> = (0..5000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    for (name, bytes) in [
        ("noise.json", noise.as_slice()),
        ("noise.img", &noise),
        ("text.json", b"no document"),
        ("huge.json", &[b' '; 100_000]),
        // Cut in the middle of a letter.
        ("letters.json", "\u{fc}".repeat(50_000).as_bytes()),
        ("broken.img", &noise),
        ("broken.img.sha256", b"not a digest"),
        ("empty.img", b""),
    ] {
        fs::write(device.folder().path(name), bytes).unwrap();
    }
    (folder, device)
}

/// `DIR` stands for the device's folder, `ZERO` for a digest that nothing has.
const CALLS: [(&str, i32, &str); 39] = [
    ("", 64, "Usage"),
    ("frobnicate", 64, "frobnicate"),
    ("status --colour", 64, "--colour"),
    ("install", 64, "SOURCE"),
    ("install DIR/absent.img", 66, "absent.img"),
    ("install DIR/noise.img", 65, "no digest"),
    ("install DIR/broken.img", 65, "broken.img.sha256"),
    ("install DIR/noise.img --sha256 ZERO", 65, "instead of"),
    ("install DIR/noise.img --sha256 12", 64, "64 hex digits"),
    ("install DIR/noise.img --sha256 ZERO --no-digest", 64, "cannot be used with"),
    ("install DIR/noise.img --set C", 64, "use A or B"),
    ("install DIR/noise.img --set A --no-digest", 65, "running"),
    ("install DIR/noise.img --slot absent --no-digest", 65, "unknown slot"),
    ("install DIR/empty.img --no-digest", 65, "empty"),
    ("install DIR/noise.json", 65, "not UTF-8"),
    ("install DIR/text.json", 65, "JSON"),
    ("install DIR/huge.json", 65, "more than 32768"),
    ("install DIR/letters.json", 65, "more than 32768"),
    ("install DIR --no-digest", 65, ""),
    ("install http://127.0.0.1:1/x", 65, "no digest"),
    ("install https://B%C3%BCcher/x --sha256 ZERO", 65, "URL"),
    ("mark", 64, "VERDICT"),
    ("mark splendid", 64, "splendid"),
    ("mark good C", 64, "booted, other, A or B"),
    ("mark good other", 64, "--verify"),
    ("mark good other --verify 12", 64, "64 hex digits"),
    ("mark good other --verify ZERO", 65, ""),
    ("mark active other", 65, "not recorded as complete"),
    ("mark bad booted", 65, "cannot be marked bad"),
    ("rollback", 65, "not recorded as complete"),
    ("reboot now", 64, "now"),
    ("fota", 64, "Usage"),
    ("fota update DIR/absent.json", 66, "absent.json"),
    ("fota update DIR/noise.json", 65, "not UTF-8"),
    ("fota test DIR", 66, "directory"),
    ("fota handle --disconnect-mqtt maybe", 64, "maybe"),
    ("fota handle DIR/huge.json", 65, "more than 32768"),
    ("config", 64, "Usage"),
    ("completions tcsh", 64, "tcsh"),
];

#[test]
fn every_command_refuses_wrong_input_with_the_documented_exit_code() {
    for daemon in [true, false] {
        let (_folder, device) = device(daemon);
        let (env, running) = (device.env().unwrap(), device.digest(SetId::A, "rootfs"));
        let root = device.folder().path("");
        let root = root.to_str().unwrap().trim_end_matches('/');
        let mut wrong = Vec::new();
        for (line, code, text) in CALLS {
            let line = line.replace("DIR", root).replace("ZERO", &"0".repeat(64));
            let words: Vec<&str> = line.split_whitespace().collect();
            let output = device.command(&words).unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            if output.status.code() != Some(code) || !said.contains(text) || !output.stdout.is_empty() {
                wrong.push(format!("{line}: {:?}, not {code} with {text:?}: {said}", output.status.code()));
            }
        }
        assert!(wrong.is_empty(), "daemon: {daemon}\n{}", wrong.join("\n"));
        // What was written on the way was the other set, and it is not in the order.
        assert_eq!(device.digest(SetId::A, "rootfs"), running);
        let first = |env: &str| env.lines().find(|line| line.starts_with("BOOT_ORDER")).map(str::to_owned);
        assert!(first(&device.env().unwrap()).unwrap().starts_with("BOOT_ORDER=A"), "{env}");
        assert_eq!(device.look(|heard| heard.boots.len()), 1);
    }
}

#[test]
fn configurations_that_cannot_be_read_are_named_with_exit_78() {
    let folder = tempfile::Builder::new().prefix("otandem-").tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("noise.toml"), [0xFF; 100]).unwrap();
    fs::write(path("huge.toml"), vec![b'#'; 3 << 20]).unwrap();
    fs::create_dir(path("little")).unwrap();
    // Not the socket of an agent that runs on this machine.
    let control = format!("[control]\nsocket = '{}'\n", path("control.sock").display());
    fs::write(path("little/own.toml"), control).unwrap();
    let state = path("state");
    for (config, call, text) in [
        ("absent.toml", "status", "absent.toml"),
        ("absent.toml", "config check", "absent.toml"),
        ("noise.toml", "confirm", "UTF-8"),
        ("noise.toml", "config check", "UTF-8"),
        ("huge.toml", "install x --no-digest", "larger than"),
        ("little", "config check", "no slots are configured"),
        ("little", "fota handle --force", "no cloud is configured"),
    ] {
        let mut command = Command::new(binary::otandem().unwrap());
        command.arg("--config").arg(path(config)).arg("--state-dir").arg(&state).args(call.split(' '));
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.code() == Some(78) && said.contains(text), "{config}, {call}: {said}");
    }
}
