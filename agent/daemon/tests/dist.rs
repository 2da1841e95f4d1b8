//! What a distribution installs: units that systemd accepts, scripts that a shell accepts, and a dead-man that decides
//! right.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const DIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist");

fn dist(path: &str) -> PathBuf {
    Path::new(DIST).join(path)
}

/// Runs a tool that a machine may not have; `None`, told, if it has not.
fn tool(command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(e) => {
            eprintln!("skipped: {} cannot be run: {e}", command.get_program().display());
            None
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn systemd_accepts_every_unit() {
    // The programs that the units start are not installed here, so a copy of the units names others.
    let dir = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for entry in fs::read_dir(dist("usr/lib/systemd/system")).unwrap() {
        let path = entry.unwrap().path();
        let unit = fs::read_to_string(&path).unwrap();
        let unit = unit
            .replace("/usr/bin/otandem", env!("CARGO_BIN_EXE_otandem"))
            .replace("/usr/lib/otandem", dist("usr/lib/otandem").to_str().unwrap())
            .replace("man:otandem(8)", "man:systemd(1)");
        let copy = dir.path().join(path.file_name().unwrap());
        fs::write(&copy, unit).unwrap();
        units.push(copy);
    }
    assert!(units.len() >= 3);
    let Some(output) = tool(Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&units)) else {
        return;
    };
    let said = text(&output.stderr);
    let ours: Vec<_> = said.lines().filter(|l| l.contains("otandem")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn a_unit_with_a_mistake_would_be_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("otandem-wrong.service");
    fs::write(&unit, "[Service]\nType=notify\nExecStart=/nowhere/at/all\nRestrt=always\n").unwrap();
    let Some(output) = tool(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit)) else {
        return;
    };
    assert!(
        !output.status.success() && text(&output.stderr).contains("otandem-wrong"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn scripts_are_executable_and_a_posix_shell_reads_them() {
    for script in
        ["usr/lib/otandem/dead-man", "etc/init.d/otandem", "etc/sv/otandem/run", "etc/sv/otandem-trial/run"]
    {
        let path = dist(script);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o111, 0o111, "{script}");
        let output = Command::new("sh").arg("-n").arg(&path).output().unwrap();
        assert!(output.status.success(), "{script}: {}", text(&output.stderr));
        // BusyBox's shell, where it is there, since that is what small devices have.
        if let Some(output) = tool(Command::new("busybox").args(["sh", "-n"]).arg(&path)) {
            assert!(output.status.success(), "{script}: {}", text(&output.stderr));
        }
    }
}

#[test]
fn tmpfiles_and_sysusers_make_what_they_promise() {
    let root = tempfile::tempdir().unwrap();
    let tmpfiles = dist("usr/lib/tmpfiles.d/otandem.conf");
    let root_arg = format!("--root={}", root.path().display());
    if let Some(output) = tool(Command::new("systemd-tmpfiles").arg("--create").arg(&root_arg).arg(tmpfiles))
    {
        assert!(output.status.success(), "{}", text(&output.stderr));
        let mode = |p: &str| fs::metadata(root.path().join(p)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("run/otandem"), mode("var/lib/otandem")), (0o755, 0o700));
        assert_eq!(mode("var/spool/otandem"), 0o755);
    }
    fs::create_dir_all(root.path().join("etc")).unwrap();
    let sysusers = dist("usr/lib/sysusers.d/otandem.conf");
    if let Some(output) = tool(Command::new("systemd-sysusers").arg(&root_arg).arg(sysusers)) {
        assert!(output.status.success(), "{}", text(&output.stderr));
        let groups = fs::read_to_string(root.path().join("etc/group")).unwrap();
        assert!(groups.lines().any(|l| l.starts_with("otandem:")), "{groups}");
    }
}

/// The dead-man with a reboot that only leaves a mark.
struct DeadMan {
    dir: tempfile::TempDir,
}

impl DeadMan {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let reboot = dir.path().join("reboot");
        fs::write(&reboot, format!("#!/bin/sh\necho reset >{}/rebooted\n", dir.path().display())).unwrap();
        fs::set_permissions(&reboot, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("uptime"), "100.25 180.00\n").unwrap();
        fs::write(dir.path().join("cmdline"), "quiet panic=5\n").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Instead of sleeping, notes for how long and runs `act` in the directory of the test.
    fn fake_sleep(&self, act: &str) {
        let sleep = self.path("sleep");
        fs::write(&sleep, format!("#!/bin/sh\ncd {}\necho $1 >>slept\n{act}\n", self.dir.path().display()))
            .unwrap();
        fs::set_permissions(&sleep, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn settle(&self) {
        fs::write(self.path("settled"), "").unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        let path = format!("{}:{}", self.dir.path().display(), std::env::var("PATH").unwrap());
        command
            .env("PATH", path)
            .arg(dist("usr/lib/otandem/dead-man"))
            .args(arguments)
            .env("OTANDEM_RUN_DIR", self.dir.path())
            .env("OTANDEM_UPTIME", self.path("uptime"))
            .env("OTANDEM_CMDLINE", self.path("cmdline"))
            .env("OTANDEM_SYSRQ", self.path("sysrq"))
            .env("OTANDEM_KMSG", self.path("kmsg"))
            .env("OTANDEM_REBOOT", self.path("reboot"))
            .env("OTANDEM_PAUSE", "0")
            .stdin(Stdio::null());
        command
    }

    /// Exit code, and whether the device was reset.
    fn run(&self, arguments: &[&str]) -> (i32, bool) {
        let output = self.command(arguments).output().unwrap();
        (output.status.code().unwrap(), self.path("rebooted").exists())
    }
}

#[test]
fn the_dead_man_resets_a_device_that_is_not_settled() {
    let man = DeadMan::new();
    assert_eq!(man.run(&["now"]), (1, true));
    // The reboot command came back without a reboot: the kernel is told directly.
    assert_eq!(fs::read_to_string(man.path("sysrq")).unwrap(), "b\n");
    assert!(fs::read_to_string(man.path("kmsg")).unwrap().contains("no verdict"));
}

#[test]
fn the_dead_man_leaves_a_settled_device_alone() {
    let man = DeadMan::new();
    man.settle();
    for arguments in [&["now"][..], &["after", "0"], &["after", "99999999"], &["wait"]] {
        assert_eq!(man.run(arguments), (0, false), "{arguments:?}");
    }
    assert!(!man.path("sysrq").exists());
}

#[test]
fn the_deadline_counts_from_the_boot() {
    let man = DeadMan::new();
    // Up for 100 s: a deadline at 100 s has passed.
    assert_eq!(man.run(&["after", "100"]), (1, true));
    // At 150 s it has not: the script sleeps, here until the clock shows 150 s.
    let man = DeadMan::new();
    man.fake_sleep("echo '150.0 1.0' >uptime");
    assert_eq!(man.run(&["after", "150"]), (1, true));
    assert_eq!(
        fs::read_to_string(man.path("slept")).unwrap().lines().next(),
        Some("10"),
        "it looks every 10 s"
    );
}

#[test]
fn a_device_that_settles_while_the_dead_man_waits_is_left_alone() {
    for arguments in [&["after", "105"][..], &["wait"]] {
        let man = DeadMan::new();
        man.fake_sleep(": >settled");
        assert_eq!(man.run(arguments), (0, false), "{arguments:?}");
        let slept = fs::read_to_string(man.path("slept")).unwrap();
        assert_eq!(slept.lines().count(), 1, "{slept}");
    }
}

#[test]
fn the_dead_man_can_be_turned_off_by_the_kernel_command_line() {
    let man = DeadMan::new();
    fs::write(man.path("cmdline"), "quiet otandem.dead-man=off panic=5\n").unwrap();
    assert_eq!(man.run(&["after", "0"]), (0, false));
    fs::write(man.path("cmdline"), "quiet otandem.dead-man=offline\n").unwrap();
    assert_eq!(man.run(&["after", "0"]), (1, true));
}

#[test]
fn wrong_arguments_never_reset() {
    let man = DeadMan::new();
    for arguments in [&[][..], &["later"], &["after"], &["after", "-5"], &["after", "10min"], &["after", ""]]
    {
        assert_eq!(man.run(arguments), (64, false), "{arguments:?}");
    }
}
