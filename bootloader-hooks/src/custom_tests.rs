use super::*;
use std::path::Path;

use otandem_device::run::RunError;
use proptest::prelude::*;

/// What a RAUC back end does, with a log of its calls; `EXTRA` is put before it.
const PLAIN: &str = r#"
cd "$(dirname "$0")"
echo "$*" >> log
EXTRA
case $1 in
get-primary) cat primary ;;
set-primary) echo $2 > primary ;;
get-state) cat state.$2 ;;
set-state) echo $3 > state.$2 ;;
*) exit 1 ;;
esac
"#;

struct Program(tempfile::TempDir);

impl Program {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        install(&dir.path().join("boot"), &format!("#!/bin/sh\n{text}"));
        Self(dir)
    }

    fn plain(extra: &str) -> Self {
        let program = Self::new(&PLAIN.replace("EXTRA", extra));
        program.put("primary", "A");
        program.put("state.A", "good");
        program.put("state.B", "bad");
        program
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), format!("{text}\n")).unwrap();
    }

    fn get(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).unwrap().trim().to_owned()
    }

    /// All changes that were asked for so far.
    fn changes(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.0.path().join("log")).unwrap_or_default();
        log.lines().filter(|l| l.starts_with("set-")).map(str::to_owned).collect()
    }

    fn control(&self, cmdline: &str) -> Custom {
        control(&self.0.path().join("boot"), cmdline)
    }
}

/// Written by a child, so that no other child of this process can hold it open for writing, which would make it
/// impossible to execute.
fn install(path: &Path, text: &str) {
    let script = r#"cat > "$0" && chmod 755 "$0""#;
    let argv = ["/bin/sh".as_ref(), "-c".as_ref(), script.as_ref(), path.as_os_str()];
    let spec = Spec { stdin: Some(text.into()), ..Spec::new(argv) };
    assert!(run(spec, &Stop::new().unwrap()).unwrap().success());
}

fn control(path: &Path, cmdline: &str) -> Custom {
    let seen = Seen { cmdline: cmdline.into(), boot_id: "boot-1".into(), ..Seen::default() };
    Custom::new(path.into(), Config::default(), seen).unwrap()
}

const ON_A: &str = "otandem.set=A";
const ON_B: &str = "otandem.set=B";

#[test]
fn each_answer_of_the_program_means_what_the_table_says() {
    use Said::{Bad, Good, Tried, Untried};
    let on_a = Booted::Set(SetId::A);
    for (booted, primary, a, b, want_a, want_b) in [
        (on_a, SetId::A, Good, Good, SetState::Good, SetState::Good),
        (on_a, SetId::A, Good, Bad, SetState::Good, SetState::Bad),
        (on_a, SetId::B, Good, Good, SetState::Good, SetState::Untried),
        (on_a, SetId::B, Bad, Good, SetState::Bad, SetState::Good),
        (on_a, SetId::B, Tried, Good, SetState::Tried, SetState::Good),
        (on_a, SetId::A, Good, Tried, SetState::Good, SetState::Tried),
        (on_a, SetId::B, Good, Untried, SetState::Good, SetState::Untried),
        (Booted::Unknown, SetId::B, Good, Good, SetState::Good, SetState::Good),
    ] {
        let state = |set| meaning(set, booted, Some(primary), |s| if s == SetId::A { a } else { b });
        assert_eq!((state(SetId::A), state(SetId::B)), (want_a, want_b), "{booted:?} {primary} {a:?} {b:?}");
    }
}

#[test]
fn a_program_made_for_rauc_is_armed_fallback_first_and_primary_last() {
    let program = Program::plain("");
    let mut control = program.control(ON_A);
    control.arm(SetId::B).unwrap();
    assert_eq!(program.changes(), ["set-state A good", "set-state B good", "set-primary B"]);
    let facts = control.facts().unwrap();
    assert_eq!(facts.booted, Booted::Set(SetId::A));
    assert_eq!((facts.primary, facts.a, facts.b), (Some(SetId::B), SetState::Good, SetState::Untried));
    assert_eq!(facts.boot_id, "boot-1");
}

#[test]
fn a_power_cut_between_any_two_changes_leaves_a_good_primary() {
    type Call = fn(&mut Custom, SetId) -> Result<(), BootError>;
    let calls: [(Call, &str, SetId); 4] = [
        (Custom::arm, ON_A, SetId::B),
        (Custom::disarm, ON_A, SetId::B),
        (Custom::confirm, ON_B, SetId::B),
        (Custom::mark_bad, ON_B, SetId::B),
    ];
    for (call, cmdline, set) in calls {
        for cut in 1..=3 {
            let program = Program::plain(
                r#"n=$(grep -c ^set- log); case $1 in set-*) [ -e cut-$n ] && exit 1 ;; esac"#,
            );
            program.put(&format!("cut-{cut}"), "");
            program.put("primary", "B");
            program.put("state.B", "good");
            let result = call(&mut program.control(cmdline), set);
            assert_eq!(result.is_err(), program.changes().len() >= cut, "{cut}: {result:?}");
            let primary = program.get("primary");
            assert_eq!(program.get(&format!("state.{primary}")), "good", "{cut}: {:?}", program.changes());
        }
    }
}

#[test]
fn keep_always_asks_since_good_does_not_tell_a_full_counter() {
    let program = Program::plain("");
    program.control(ON_A).keep(SetId::A).unwrap();
    assert_eq!(program.changes(), ["set-state A good"]);
}

#[test]
fn confirm_makes_the_running_set_good_and_primary() {
    let program = Program::plain("");
    program.control(ON_B).confirm(SetId::B).unwrap();
    assert_eq!((program.get("primary"), program.get("state.B")), ("B".into(), "good".into()));
    program.control(ON_B).confirm(SetId::B).unwrap();
    assert_eq!(program.changes(), ["set-state B good", "set-primary B", "set-state B good"]);
}

#[test]
fn rolling_back_makes_the_fallback_primary_before_the_set_is_bad() {
    let program = Program::plain("");
    program.put("primary", "B");
    program.put("state.B", "good");
    program.control(ON_B).mark_bad(SetId::B).unwrap();
    assert_eq!(program.changes(), ["set-primary A", "set-state B bad"]);
}

#[test]
fn the_last_good_set_is_never_marked_bad() {
    let program = Program::plain("");
    let e = program.control(ON_A).mark_bad(SetId::A).unwrap_err();
    assert!(matches!(e, BootError::NoFallback { set: SetId::A }), "{e}");
    assert_eq!(program.changes(), [""; 0]);
}

#[test]
fn disarm_takes_the_arming_back() {
    let program = Program::plain("");
    program.control(ON_A).arm(SetId::B).unwrap();
    program.control(ON_A).disarm(SetId::B).unwrap();
    assert_eq!((program.get("primary"), program.get("state.B")), ("A".into(), "bad".into()));
}

#[test]
fn a_program_that_says_yes_and_does_nothing_is_found_out() {
    let program = Program::plain("case $1 in set-*) exit 0 ;; esac");
    let found = |result: Result<(), BootError>| {
        let e = result.unwrap_err();
        assert!(matches!(e, BootError::ReadBack { .. }), "{e}");
    };
    found(program.control(ON_A).arm(SetId::B));
    found(program.control(ON_B).confirm(SetId::B));
    found(program.control(ON_B).keep(SetId::B));
    program.put("state.B", "good");
    found(program.control(ON_A).arm(SetId::B));
    found(program.control(ON_A).mark_bad(SetId::B));
    found(program.control(ON_A).disarm(SetId::B));
}

#[test]
fn nothing_is_asked_to_change_while_the_running_set_is_unknown() {
    for (extra, cmdline) in [
        ("", ""),
        ("", "otandem.set=A otandem.set=B"),
        ("[ $1 = get-current ] && echo B && exit 0", ON_A),
        ("[ $1 = get-current ] && echo recovery && exit 0", ON_A),
        ("[ $1 = get-current ] && exit 0", ON_A),
        ("[ $1 = get-current ] && kill -9 $$", ON_A),
    ] {
        let program = Program::plain(extra);
        assert_eq!(program.control(cmdline).facts().unwrap().booted, Booted::Unknown, "{extra} {cmdline}");
        for set in SetId::BOTH {
            for call in [Custom::arm, Custom::keep, Custom::disarm, Custom::confirm, Custom::mark_bad] {
                let e = call(&mut program.control(cmdline), set).unwrap_err();
                assert!(matches!(e, BootError::BootedUnknown { .. }), "{e}");
            }
        }
        assert_eq!(program.changes(), [""; 0]);
    }
}

#[test]
fn get_current_alone_or_in_agreement_is_enough() {
    let program = Program::plain("[ $1 = get-current ] && echo A && exit 0");
    for cmdline in ["", ON_A] {
        assert_eq!(program.control(cmdline).facts().unwrap().booted, Booted::Set(SetId::A));
    }
}

#[test]
fn the_wrong_set_is_refused() {
    let program = Program::plain("");
    let mut control = program.control(ON_A);
    assert!(matches!(control.arm(SetId::A), Err(BootError::Running { .. })));
    assert!(matches!(control.disarm(SetId::A), Err(BootError::Running { .. })));
    assert!(matches!(control.keep(SetId::B), Err(BootError::NotRunning { .. })));
    assert!(matches!(control.confirm(SetId::B), Err(BootError::NotRunning { .. })));
    assert_eq!(program.changes(), [""; 0]);
}

#[test]
fn a_program_that_fails_hangs_or_is_missing_is_an_error_that_says_so() {
    let broken = Program::new("echo 'no environment' >&2; exit 5");
    let e = broken.control(ON_A).facts().unwrap_err();
    assert!(e.to_string().contains("no environment") && e.to_string().contains('5'), "{e}");
    let hanging = Program::new("[ $1 = get-current ] && exit 1; sleep 1000");
    let mut control = hanging.control(ON_A);
    control.set_time_limit(Duration::from_millis(50));
    assert!(matches!(control.facts(), Err(BootError::Refused { end: End::TimedOut, .. })));
    let e = super::tests::control(Path::new("/no/such/program"), ON_A).facts().unwrap_err();
    assert!(matches!(e, BootError::Program { source: RunError::NotFound { .. }, .. }), "{e}");
    assert!(Custom::new("boot".into(), Config::default(), Seen::default()).is_err());
}

#[test]
fn a_verbose_program_is_an_error_of_bounded_size() {
    let program = Program::new("[ $1 = get-current ] && exit 1; yes A | head -c 1000000");
    let e = program.control(ON_A).facts().unwrap_err();
    assert!(matches!(e, BootError::Answer { .. }) && e.to_string().len() < 1000, "{e}");
}

#[test]
fn no_primary_at_all_is_a_fact_and_no_error() {
    let program = Program::plain("[ $1 = get-primary ] && exit 0");
    assert_eq!(program.control(ON_A).facts().unwrap().primary, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_answer_makes_it_panic(answer in prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        "(A|B|good|bad|tried|\n| ){0,3}".prop_map(String::into_bytes),
    ]) {
        let program = Program::new("[ $1 = get-current ] && exit 1; cat \"$(dirname \"$0\")/answer\"");
        std::fs::write(program.0.path().join("answer"), &answer).unwrap();
        let mut control = program.control(ON_A);
        let text = String::from_utf8_lossy(&answer);
        // No answer is right for both questions, but for silence to the first.
        prop_assert!(control.facts().is_err(), "{text:?}");
        prop_assert!(control.arm(SetId::B).is_err());
    }
}

/// The example that is shipped, with a store of its own; the loader is played as its comment says.
struct Example(tempfile::TempDir);

impl Example {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        install(&dir.path().join("example"), include_str!("../custom/otandem-boot-example.sh"));
        let wrapper = "#!/bin/sh\ncd \"$(dirname \"$0\")\"\nexport OTANDEM_BOOT_STORE=$PWD/store\n\
                       export OTANDEM_BOOT_CMDLINE=\"quiet $(cat cmdline)\"\nexec ./example \"$@\"\n";
        install(&dir.path().join("boot"), wrapper);
        std::fs::write(dir.path().join("cmdline"), ON_A).unwrap();
        Self(dir)
    }

    fn control(&self) -> Custom {
        control(&self.0.path().join("boot"), "")
    }

    fn facts(&self) -> (Booted, Option<SetId>, SetState, SetState) {
        let f = self.control().facts().unwrap();
        (f.booted, f.primary, f.a, f.b)
    }

    fn store(&self) -> Vec<u8> {
        std::fs::read(self.0.path().join("store")).unwrap()
    }

    fn reset(&self) -> SetId {
        let path = self.0.path().join("store");
        let text = String::from_utf8(self.store()).unwrap();
        let value =
            |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).unwrap().to_owned();
        let primary: SetId = value("primary").parse().unwrap();
        let set = match value(primary.name()).as_str() {
            "untried" => {
                let tried = text.replace(&format!("{primary}=untried\n"), &format!("{primary}=tried\n"));
                std::fs::write(path, tried).unwrap();
                primary
            }
            "good" => primary,
            _ => primary.other(),
        };
        std::fs::write(self.0.path().join("cmdline"), format!("otandem.set={set}")).unwrap();
        set
    }
}

#[test]
fn the_example_program_goes_through_a_good_update() {
    let example = Example::new();
    let (on_a, on_b) = (Booted::Set(SetId::A), Booted::Set(SetId::B));
    assert_eq!(example.facts(), (on_a, Some(SetId::A), SetState::Good, SetState::Good));
    example.control().mark_bad(SetId::B).unwrap();
    assert_eq!(example.facts(), (on_a, Some(SetId::A), SetState::Good, SetState::Bad));
    assert_eq!(example.store().len(), 512);
    example.control().arm(SetId::B).unwrap();
    assert_eq!(example.facts(), (on_a, Some(SetId::B), SetState::Good, SetState::Untried));
    assert_eq!(example.reset(), SetId::B);
    assert_eq!(example.facts(), (on_b, Some(SetId::A), SetState::Good, SetState::Tried));
    example.control().confirm(SetId::B).unwrap();
    assert_eq!(example.facts(), (on_b, Some(SetId::B), SetState::Good, SetState::Good));
    let before = example.store();
    example.control().keep(SetId::B).unwrap();
    assert_eq!([example.reset(), example.reset()], [SetId::B, SetId::B]);
    assert_eq!(example.store(), before);
}

#[test]
fn the_example_program_comes_back_from_a_trial_and_can_try_again() {
    let example = Example::new();
    for _ in 0..2 {
        example.control().arm(SetId::B).unwrap();
        assert_eq!([example.reset(), example.reset()], [SetId::B, SetId::A]);
        assert_eq!(example.facts().3, SetState::Tried);
    }
    example.control().arm(SetId::B).unwrap();
    example.control().disarm(SetId::B).unwrap();
    assert_eq!(example.reset(), SetId::A);
    example.control().arm(SetId::B).unwrap();
    assert_eq!(example.reset(), SetId::B);
    example.control().mark_bad(SetId::B).unwrap();
    assert_eq!([example.reset(), example.reset()], [SetId::A, SetId::A]);
    assert_eq!(example.facts().3, SetState::Bad);
}

#[test]
fn the_fallback_of_the_example_program_is_no_trial() {
    let example = Example::new();
    example.control().arm(SetId::B).unwrap();
    assert_eq!(example.reset(), SetId::B);
    example.control().confirm(SetId::B).unwrap();
    example.control().mark_bad(SetId::B).unwrap();
    assert_eq!(example.facts(), (Booted::Set(SetId::B), Some(SetId::A), SetState::Good, SetState::Bad));
    assert_eq!([example.reset(), example.reset()], [SetId::A, SetId::A]);
}

#[test]
fn the_example_program_survives_noise_in_its_store() {
    let example = Example::new();
    for noise in [&b""[..], b"\0\xff\x01", b"primary=$(reboot)\nA=`id`\nB", &[b'x'; 5000]] {
        std::fs::write(example.0.path().join("store"), noise).unwrap();
        let (booted, primary, a, b) = example.facts();
        assert_eq!((booted, primary), (Booted::Set(SetId::A), Some(SetId::A)));
        assert_eq!((a, b), (SetState::Good, SetState::Good));
    }
}
