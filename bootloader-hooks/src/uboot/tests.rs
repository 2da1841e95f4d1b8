use std::process::Command;

use super::*;
use crate::BootControl as _;
use crate::{BootNames, Tries};
use model::{Contents, Form, encode};
use otandem_core::boot::{Booted, SetState};
use proptest::prelude::*;

/// Bytes of a copy, and where the second one begins, as on the virtual device.
const SIZE: usize = 0x4000;
const SECOND: usize = 0x8000;

/// The real programs with an environment in a file.
struct Device {
    dir: tempfile::TempDir,
    setenv: PathBuf,
}

impl Device {
    /// An empty redundant environment; `None` (and the reason is printed) where the programs are not installed.
    fn new() -> Option<Self> {
        let setenv = FOLDERS.iter().map(|f| Path::new(f).join("fw_setenv")).find(|path| path.is_file());
        let Some(setenv) = setenv else {
            println!("skipped: fw_setenv (libubootenv-tool) is not installed");
            return None;
        };
        let device = Self { dir: tempfile::tempdir().unwrap(), setenv };
        std::fs::write(device.area(), vec![0; SECOND + SIZE]).unwrap();
        let line = |at: usize| format!("{} {at:#x} {SIZE:#x}\n", device.area().display());
        std::fs::write(device.config(), line(0) + &line(SECOND)).unwrap();
        Some(device)
    }

    /// With these variables in it.
    fn with(variables: &[(&str, &str)]) -> Option<Self> {
        let device = Self::new()?;
        device.store(variables);
        Some(device)
    }

    fn store(&self, variables: &[(&str, &str)]) {
        let variables =
            variables.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
        let copy = encode(&Contents { flags: 7, variables }, SIZE, Form::Redundant).unwrap();
        let mut area = vec![0; SECOND + SIZE];
        area[..SIZE].copy_from_slice(&copy);
        std::fs::write(self.area(), area).unwrap();
    }

    fn area(&self) -> PathBuf {
        self.dir.path().join("area")
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("fw_env.config")
    }

    fn tools(&self) -> Tools {
        Tools {
            printenv: self.setenv.with_file_name("fw_printenv"),
            setenv: self.setenv.clone(),
            fw_env_config: self.config(),
            timeout: Duration::from_secs(60),
        }
    }

    fn control(&self, running: &str) -> UBoot {
        control(self.tools(), running)
    }

    /// Another program in place of `fw_setenv`.
    fn with_setenv(&self, text: &str) -> Tools {
        let path = self.dir.path().join("setenv");
        install(&path, &format!("#!/bin/sh\n{text}"));
        Tools { setenv: path, ..self.tools() }
    }

    fn print(&self, name: &str) -> String {
        let mut program = Command::new(self.setenv.with_file_name("fw_printenv"));
        let output = program.arg("-c").arg(self.config()).args(["-n", name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn printed(&self) -> [String; 3] {
        ["BOOT_ORDER", "BOOT_A_LEFT", "BOOT_B_LEFT"].map(|name| self.print(name))
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.area()).unwrap()
    }
}

fn control(tools: Tools, running: &str) -> UBoot {
    let cmdline = format!("otandem.set={running}");
    let seen = Seen { cmdline, boot_id: "boot-1".into(), ..Seen::default() };
    UBoot::open(tools, Config::default(), seen).unwrap()
}

/// Written by a child, so that no other child of this process can hold it open for writing, which would make it
/// impossible to execute.
fn install(path: &Path, text: &str) {
    let script = r#"cat > "$0" && chmod 755 "$0""#;
    let mut child = Command::new("sh");
    let child = child.args(["-c", script]).arg(path).stdin(std::process::Stdio::piped()).spawn();
    let mut child = child.unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn value<'a>(view: &'a View, name: &str) -> &'a str {
    &view.values.iter().find(|(n, _)| n == name).unwrap().1
}

const CONFIRMED_A: [(&str, &str); 4] =
    [("BOOT_ORDER", "A"), ("BOOT_A_LEFT", "3"), ("BOOT_B_LEFT", "0"), ("bootcmd", "run distro_bootcmd")];

#[test]
fn an_update_goes_through_the_real_programs_and_leaves_other_variables_alone() {
    let Some(device) = Device::with(&CONFIRMED_A) else { return };
    device.control("A").arm(SetId::B).unwrap();
    assert_eq!(device.printed(), ["B A", "3", "1"]);
    let armed = device.control("A").facts().unwrap();
    assert_eq!((armed.booted, armed.primary), (Booted::Set(SetId::A), Some(SetId::B)));
    assert_eq!((armed.a, armed.b, armed.boot_id.as_str()), (SetState::Good, SetState::Untried, "boot-1"));
    // The boot script counts, and B runs.
    device.store(&[("BOOT_ORDER", "B A"), ("BOOT_A_LEFT", "3"), ("BOOT_B_LEFT", "0"), ("bootcmd", "x")]);
    let trial = device.control("B").facts().unwrap();
    assert_eq!((trial.primary, trial.a, trial.b), (Some(SetId::A), SetState::Good, SetState::Tried));
    device.control("B").confirm(SetId::B).unwrap();
    assert_eq!(device.printed(), ["B A", "3", "3"]);
    device.control("B").mark_bad(SetId::A).unwrap();
    assert_eq!(device.printed(), ["B", "0", "3"]);
    assert_eq!(device.print("bootcmd"), "x");
}

#[test]
fn disarmed_is_bad_and_the_running_set_is_full() {
    let Some(device) = Device::with(&CONFIRMED_A) else { return };
    let mut control = device.control("A");
    control.arm(SetId::B).unwrap();
    control.disarm(SetId::B).unwrap();
    assert_eq!(device.printed(), ["A", "3", "0"]);
    assert_eq!(control.facts().unwrap().b, SetState::Bad);
}

#[test]
fn a_change_that_changes_nothing_writes_nothing() {
    let Some(device) = Device::with(&CONFIRMED_A) else { return };
    let mut control = control(device.with_setenv("exit 1"), "A");
    control.keep(SetId::A).unwrap();
    control.confirm(SetId::A).unwrap();
    control.mark_bad(SetId::B).unwrap();
}

#[test]
fn a_script_that_counts_every_boot_is_served_by_keep_and_its_set_stays_good() {
    for left in ["2", "1"] {
        let variables = [("BOOT_ORDER", "A B"), ("BOOT_A_LEFT", left), ("BOOT_B_LEFT", "0")];
        let Some(device) = Device::with(&variables) else { return };
        let mut control = device.control("A");
        let facts = control.facts().unwrap();
        assert_eq!((facts.primary, facts.a, facts.b), (Some(SetId::A), SetState::Good, SetState::Tried));
        control.keep(SetId::A).unwrap();
        assert_eq!(device.printed(), ["A B", "3", "0"]);
    }
}

#[test]
fn a_lost_environment_is_what_the_boot_script_takes_it_for_and_a_write_without_defaults_says_what_to_do() {
    let Some(device) = Device::new() else { return };
    if Path::new("/etc/u-boot-initial-env").exists() {
        println!("skipped: this machine has defaults for a lost environment");
        return;
    }
    let mut control = device.control("A");
    let facts = control.facts().unwrap();
    assert_eq!((facts.primary, facts.a, facts.b), (Some(SetId::A), SetState::Good, SetState::Good));
    let view = control.view().unwrap();
    assert!(value(&view, "environment").starts_with("lost"), "{view:?}");
    assert!(value(&view, "BOOT_ORDER").starts_with("missing"), "{view:?}");
    let e = control.arm(SetId::B).unwrap_err().to_string();
    assert!(e.contains("default environment") && e.contains("u-boot-initial-env"), "{e}");
}

#[test]
fn a_lost_environment_is_repaired_by_a_write_where_there_are_defaults() {
    let Some(device) = Device::new() else { return };
    let defaults = device.dir.path().join("initial-env");
    std::fs::write(&defaults, "bootcmd=run distro_bootcmd\nBOOT_ORDER=B\n").unwrap();
    let text = format!("exec {} -f {} \"$@\"", device.setenv.display(), defaults.display());
    let mut control = control(device.with_setenv(&text), "A");
    control.mark_bad(SetId::B).unwrap();
    assert_eq!(device.printed(), ["A", "3", "0"]);
    assert_eq!(device.print("bootcmd"), "run distro_bootcmd");
}

#[test]
fn an_environment_on_a_device_that_is_not_there_is_an_error_and_not_a_lost_one() {
    let Some(device) = Device::new() else { return };
    std::fs::write(device.config(), "/no/such/device 0 0x4000\n").unwrap();
    let e = device.control("A").facts().unwrap_err().to_string();
    assert!(e.contains("/no/such/device"), "{e}");
}

#[test]
fn each_foreign_value_has_a_meaning_is_shown_and_is_repaired() {
    for odd in ["0x2", "9", "4", "-1", "x", " 2", "3 3", "\u{1}"] {
        let variables = [("BOOT_ORDER", "rescue B B A A"), ("BOOT_A_LEFT", odd), ("BOOT_B_LEFT", "0")];
        let Some(device) = Device::with(&variables) else { return };
        let mut control = device.control("A");
        let facts = control.facts().unwrap();
        assert_eq!(
            (facts.primary, facts.a, facts.b),
            (Some(SetId::A), SetState::Good, SetState::Tried),
            "{odd}"
        );
        let view = control.view().unwrap();
        assert!(value(&view, "BOOT_A_LEFT").contains("makes no sense"), "{view:?}");
        control.keep(SetId::A).unwrap();
        assert_eq!(device.printed(), ["B A rescue", "3", "0"], "{odd}");
    }
}

#[test]
fn an_order_that_names_neither_set_leaves_nothing_until_the_running_set_is_kept() {
    let Some(device) = Device::with(&[("BOOT_ORDER", "x y"), ("BOOT_A_LEFT", "3")]) else { return };
    let mut control = device.control("A");
    let facts = control.facts().unwrap();
    assert_eq!((facts.primary, facts.a, facts.b), (None, SetState::Bad, SetState::Bad));
    assert!(value(&control.view().unwrap(), "next boot").contains("starts anew"));
    assert!(matches!(control.mark_bad(SetId::B), Err(BootError::NoFallback { set: SetId::B })));
    control.keep(SetId::A).unwrap();
    assert_eq!(device.printed(), ["A x y", "3", "3"]);
}

#[test]
fn both_counters_used_up_is_shown_and_nothing_is_taken_from_the_last_set() {
    let Some(device) = Device::with(&[("BOOT_ORDER", "A B"), ("BOOT_A_LEFT", "0"), ("BOOT_B_LEFT", "0")])
    else {
        return;
    };
    let mut control = device.control("B");
    let facts = control.facts().unwrap();
    assert_eq!((facts.primary, facts.a, facts.b), (None, SetState::Tried, SetState::Tried));
    assert!(matches!(control.mark_bad(SetId::A), Err(BootError::NoFallback { .. })));
    control.confirm(SetId::B).unwrap();
    assert_eq!(device.printed(), ["B A", "0", "3"]);
}

#[test]
fn a_setenv_that_fails_hangs_or_lies_is_an_error_that_says_so() {
    let Some(device) = Device::with(&CONFIRMED_A) else { return };
    let arm = |text: &str, limit| {
        let tools = device.with_setenv(&format!("[ \"$1\" = -V ] && exec echo 0.3.2\n{text}"));
        control(Tools { timeout: limit, ..tools }, "A").arm(SetId::B).unwrap_err()
    };
    let long = Duration::from_secs(60);
    let e = arm("echo 'no space' >&2; exit 3", long);
    assert!(matches!(e, BootError::Refused { end: End::Exited(3), .. }), "{e}");
    assert!(e.to_string().contains("no space"), "{e}");
    let e = arm("cat > /dev/null", long);
    assert!(matches!(&e, BootError::ReadBack { what, .. } if what == "BOOT_ORDER"), "{e}");
    let e = arm("exec sleep 600", Duration::from_secs(2));
    assert!(matches!(e, BootError::Refused { end: End::TimedOut, .. }), "{e}");
    assert_eq!(device.printed(), ["A", "3", "0"]);
}

#[test]
fn u_boots_own_setenv_gets_its_own_form_of_script_in_one_call() {
    let Some(device) = Device::with(&CONFIRMED_A) else { return };
    let log = device.dir.path().join("log");
    for version in ["echo 'Compiled with U-Boot 2019.01'", "exit 1"] {
        let real = device.setenv.display();
        // `NAME value` to `NAME=value` for the real one, as U-Boot's own would understand it.
        let text = format!(
            "[ \"$1\" = -V ] && {{ {version}; exit; }}\ntee -a {} | sed 's/ /=/' | {real} \"$@\"",
            log.display()
        );
        let mut control = control(device.with_setenv(&text), "A");
        control.arm(SetId::B).unwrap();
        control.disarm(SetId::B).unwrap();
    }
    let once = "BOOT_ORDER B A\nBOOT_A_LEFT 3\nBOOT_B_LEFT 1\nBOOT_ORDER A\nBOOT_A_LEFT 3\nBOOT_B_LEFT 0\n";
    assert_eq!(std::fs::read_to_string(log).unwrap(), once.repeat(2));
}

#[test]
fn u_boots_own_printenv_fails_for_what_is_missing_and_that_is_understood() {
    let Some(device) = Device::with(&CONFIRMED_A) else { return };
    let path = device.dir.path().join("printenv");
    let run = |text: &str| {
        install(&path, &format!("#!/bin/sh\n{text}"));
        control(Tools { printenv: path.clone(), ..device.tools() }, "A").facts()
    };
    let missing = r#"echo BOOT_ORDER=B; echo '## Error: "BOOT_A_LEFT" not defined' >&2; exit 1"#;
    let facts = run(missing).unwrap();
    assert_eq!((facts.primary, facts.a, facts.b), (Some(SetId::B), SetState::Bad, SetState::Good));
    let bad = "echo BOOT_ORDER=B; echo 'Warning: Bad CRC, using default environment' >&2";
    assert_eq!(run(bad).unwrap().primary, Some(SetId::A));
    for broken in ["exit 1", "echo 'Cannot parse config file' >&2; exit 1", "kill -9 $$"] {
        assert!(matches!(run(broken), Err(BootError::Refused { .. })), "{broken}");
    }
}

#[test]
fn nothing_is_written_while_the_running_set_is_unknown_or_the_wrong_one() {
    let Some(device) = Device::with(&CONFIRMED_A) else { return };
    let before = device.bytes();
    let mut unknown = device.control("C");
    assert_eq!(unknown.facts().unwrap().booted, Booted::Unknown);
    for set in SetId::BOTH {
        assert!(unknown.arm(set).is_err() && unknown.keep(set).is_err() && unknown.disarm(set).is_err());
        assert!(unknown.confirm(set).is_err() && unknown.mark_bad(set).is_err());
    }
    let mut on_a = device.control("A");
    assert!(matches!(on_a.arm(SetId::A), Err(BootError::Running { .. })));
    assert!(matches!(on_a.disarm(SetId::A), Err(BootError::Running { .. })));
    assert!(matches!(on_a.keep(SetId::B), Err(BootError::NotRunning { .. })));
    assert!(matches!(on_a.confirm(SetId::B), Err(BootError::NotRunning { .. })));
    assert!(matches!(on_a.mark_bad(SetId::A), Err(BootError::NoFallback { .. })));
    assert_eq!(device.bytes(), before);
}

#[test]
fn three_tries_and_missing_programs_are_refused_at_once() {
    let Some(device) = Device::new() else { return };
    let config = Config { trial_tries: Tries::new(3).unwrap(), ..Config::default() };
    let refused = UBoot::open(device.tools(), config, Seen::default());
    assert!(matches!(refused, Err(BootError::Config(why)) if why.contains("trial-boots")));
    for tools in [
        Tools { setenv: "/no/such/fw_setenv".into(), ..device.tools() },
        Tools { printenv: "fw_printenv".into(), ..device.tools() },
        Tools { fw_env_config: "/no/such/file".into(), ..device.tools() },
    ] {
        assert!(UBoot::open(tools, Config::default(), Seen::default()).is_err());
    }
}

#[test]
fn other_boot_names_and_a_single_copy_are_used_and_shown() {
    let Some(device) = Device::new() else { return };
    let area = device.area();
    std::fs::write(device.config(), format!("{} 0x0 {SIZE:#x}\n", area.display())).unwrap();
    let variables = vec![(b"BOOT_ORDER".to_vec(), b"sys1 sys0".to_vec())];
    let copy = encode(&Contents { flags: 0, variables }, SIZE, Form::Single).unwrap();
    std::fs::write(&area, copy).unwrap();
    let names = BootNames::new("sys0", "sys1").unwrap();
    let seen = Seen { cmdline: "otandem.set=sys1".into(), ..Seen::default() };
    let mut control = UBoot::open(device.tools(), Config { names, ..Config::default() }, seen).unwrap();
    control.arm(SetId::A).unwrap();
    assert_eq!((device.print("BOOT_sys0_LEFT"), device.print("BOOT_sys1_LEFT")), ("1".into(), "3".into()));
    let view = control.view().unwrap();
    assert_eq!(value(&view, "BOOT_ORDER"), "sys0 sys1");
    assert!(value(&view, "environment").starts_with("a single copy"), "{view:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_values_give_facts_and_are_repaired_by_confirm(
        order in prop_oneof!["[ AB]{0,6}", "[ -~]{0,20}"], a in prop_oneof!["[0-3]", "[ -~]{0,6}"], b in "[0-4x]{0,2}",
    ) {
        let variables = [("BOOT_ORDER", order.as_str()), ("BOOT_A_LEFT", &a), ("BOOT_B_LEFT", &b)];
        let Some(device) = Device::with(&variables) else { return Ok(()) };
        let mut control = device.control("B");
        let before = control.facts().unwrap();
        control.view().unwrap();
        control.confirm(SetId::B).unwrap();
        let after = control.facts().unwrap();
        prop_assert_eq!((after.primary, after.b), (Some(SetId::B), SetState::Good));
        prop_assert_eq!(before.a, after.a);
    }
}
