use super::*;
use crate::BootControl as _;
use otandem_core::boot::{Facts, SetState};
use proptest::prelude::*;

/// A machine with a simulated bootloader, running set A after its first boot.
struct Machine {
    dir: tempfile::TempDir,
    loader: Simulator,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut loader = Simulator::open(dir.path(), BootNames::default()).unwrap();
        assert_eq!(loader.boot(|_| true).unwrap(), Some(SetId::A));
        Self { dir, loader }
    }

    /// As it is after years: A confirmed, B not bootable.
    fn with_bad_b() -> Self {
        let machine = Self::new();
        machine.control().mark_bad(SetId::B).unwrap();
        machine
    }

    fn control(&self) -> Simulated {
        Simulated::open(self.dir.path(), Config::default()).unwrap()
    }

    fn with_tries(&self, tries: u8) -> Simulated {
        let trial_tries = Tries::new(tries).unwrap();
        Simulated::open(self.dir.path(), Config { trial_tries, ..Config::default() }).unwrap()
    }

    fn facts(&self) -> Facts {
        self.control().facts().unwrap()
    }

    fn boot(&mut self) -> SetId {
        self.loader.boot(|_| true).unwrap().unwrap()
    }

    fn env_bytes(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("env")).unwrap()
    }
}

#[test]
fn a_new_machine_boots_a_and_both_sets_are_good() {
    let facts = Machine::new().facts();
    assert_eq!(facts.booted, Booted::Set(SetId::A));
    assert_eq!(facts.primary, Some(SetId::A));
    assert_eq!((facts.a, facts.b), (SetState::Good, SetState::Good));
}

#[test]
fn an_armed_set_is_tried_once_and_then_the_old_one_comes_back() {
    let mut machine = Machine::with_bad_b();
    machine.control().arm(SetId::B).unwrap();
    let armed = machine.facts();
    assert_eq!((armed.primary, armed.a, armed.b), (Some(SetId::B), SetState::Good, SetState::Untried));
    assert_eq!(machine.boot(), SetId::B);
    let trial = machine.facts();
    assert_eq!((trial.booted, trial.primary), (Booted::Set(SetId::B), Some(SetId::A)));
    assert_eq!(trial.b, SetState::Tried);
    assert_ne!(trial.boot_id, armed.boot_id);
    assert_eq!(machine.boot(), SetId::A);
    let back = machine.facts();
    assert_eq!((back.booted, back.a, back.b), (Booted::Set(SetId::A), SetState::Good, SetState::Tried));
}

#[test]
fn two_tries_are_told_from_one() {
    let mut machine = Machine::with_bad_b();
    machine.with_tries(2).arm(SetId::B).unwrap();
    assert_eq!(machine.with_tries(2).facts().unwrap().b, SetState::Untried);
    assert_eq!(machine.boot(), SetId::B);
    assert_eq!(machine.with_tries(2).facts().unwrap().b, SetState::Tried);
    assert_eq!([machine.boot(), machine.boot()], [SetId::B, SetId::A]);
}

#[test]
fn three_tries_are_refused_since_three_means_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { trial_tries: Tries::new(3).unwrap(), ..Config::default() };
    assert!(matches!(Simulated::open(dir.path(), config), Err(BootError::Config(_))));
}

#[test]
fn a_confirmed_set_is_booted_for_ever_and_no_boot_writes_anything() {
    let mut machine = Machine::with_bad_b();
    machine.control().arm(SetId::B).unwrap();
    assert_eq!(machine.boot(), SetId::B);
    machine.control().confirm(SetId::B).unwrap();
    let facts = machine.facts();
    assert_eq!((facts.primary, facts.a, facts.b), (Some(SetId::B), SetState::Good, SetState::Good));
    let before = machine.env_bytes();
    for _ in 0..5 {
        assert_eq!(machine.boot(), SetId::B);
        machine.control().keep(SetId::B).unwrap();
    }
    assert_eq!(machine.env_bytes(), before);
}

#[test]
fn a_set_that_cannot_be_loaded_is_passed_over_and_counts_as_tried() {
    let mut machine = Machine::with_bad_b();
    machine.control().arm(SetId::B).unwrap();
    assert_eq!(machine.loader.boot(|set| set == SetId::A).unwrap(), Some(SetId::A));
    assert_eq!(machine.facts().b, SetState::Tried);
}

#[test]
fn disarm_goes_back_to_the_running_set_and_marks_the_other_bad() {
    let mut machine = Machine::new();
    machine.control().arm(SetId::B).unwrap();
    machine.control().disarm(SetId::B).unwrap();
    let facts = machine.facts();
    assert_eq!((facts.primary, facts.a, facts.b), (Some(SetId::A), SetState::Good, SetState::Bad));
    assert_eq!(machine.boot(), SetId::A);
}

#[test]
fn a_trial_is_rolled_back_by_marking_the_running_set_bad() {
    let mut machine = Machine::with_bad_b();
    machine.with_tries(2).arm(SetId::B).unwrap();
    assert_eq!(machine.boot(), SetId::B);
    machine.control().mark_bad(SetId::B).unwrap();
    assert_eq!((machine.facts().primary, machine.facts().b), (Some(SetId::A), SetState::Bad));
    assert_eq!([machine.boot(), machine.boot()], [SetId::A, SetId::A]);
}

#[test]
fn the_last_bootable_set_is_never_marked_bad() {
    let mut machine = Machine::with_bad_b();
    let before = machine.env_bytes();
    assert!(matches!(machine.control().mark_bad(SetId::A), Err(BootError::NoFallback { set: SetId::A })));
    assert_eq!(machine.env_bytes(), before);
    machine.control().arm(SetId::B).unwrap();
    assert_eq!(machine.boot(), SetId::B);
    // In its last try the running set is no fallback.
    assert!(matches!(machine.control().mark_bad(SetId::A), Err(BootError::NoFallback { .. })));
}

#[test]
fn keep_refills_a_counter_that_another_tool_used_up() {
    let mut machine = Machine::new();
    for env in [Env::new(&SetId::BOTH, 1, 3), Env::new(&[SetId::B], 0, 3)] {
        machine.loader.set_env(&env).unwrap();
        machine.control().keep(SetId::A).unwrap();
        assert_eq!(machine.facts().a, SetState::Good);
    }
}

#[test]
fn the_wrong_set_is_refused() {
    let machine = Machine::new();
    let before = machine.env_bytes();
    let mut control = machine.control();
    assert!(matches!(control.arm(SetId::A), Err(BootError::Running { .. })));
    assert!(matches!(control.disarm(SetId::A), Err(BootError::Running { .. })));
    assert!(matches!(control.keep(SetId::B), Err(BootError::NotRunning { .. })));
    assert!(matches!(control.confirm(SetId::B), Err(BootError::NotRunning { .. })));
    assert_eq!(machine.env_bytes(), before);
}

#[test]
fn nothing_is_written_while_the_running_set_is_unknown() {
    for content in [None, Some(""), Some("C"), Some("A B"), Some("\u{0}\u{1}")] {
        let machine = Machine::new();
        let booted = machine.dir.path().join("booted");
        match content {
            Some(text) => std::fs::write(&booted, text).unwrap(),
            None => std::fs::remove_file(&booted).unwrap(),
        }
        let before = machine.env_bytes();
        assert_eq!(machine.facts().booted, Booted::Unknown);
        for set in SetId::BOTH {
            let calls =
                [Simulated::arm, Simulated::keep, Simulated::disarm, Simulated::confirm, Simulated::mark_bad];
            for call in calls {
                let e = call(&mut machine.control(), set).unwrap_err();
                assert!(matches!(e, BootError::BootedUnknown { .. }), "{content:?}: {e}");
            }
        }
        assert_eq!(machine.env_bytes(), before);
    }
}

#[test]
fn without_a_boot_id_the_running_set_is_unknown() {
    let machine = Machine::new();
    std::fs::remove_file(machine.dir.path().join("boot_id")).unwrap();
    assert_eq!(machine.facts().booted, Booted::Unknown);
}

#[test]
fn a_lost_environment_boots_the_defaults() {
    let mut machine = Machine::new();
    machine.control().arm(SetId::B).unwrap();
    machine.loader.reset_env().unwrap();
    assert_eq!(machine.loader.env().unwrap(), Env::default());
    assert_eq!(machine.boot(), SetId::A);
    let facts = machine.facts();
    assert_eq!((facts.a, facts.b), (SetState::Good, SetState::Good));
}

#[test]
fn after_a_lost_environment_a_set_that_hangs_is_left_after_three_tries() {
    let mut machine = Machine::new();
    machine.loader.reset_env().unwrap();
    let boots: Vec<SetId> = (0..8).map(|_| machine.boot()).collect();
    use SetId::{A, B};
    assert_eq!(boots, [A, A, A, B, B, B, A, A]);
}

#[test]
fn a_write_that_the_medium_lost_is_found_by_reading_back() {
    let machine = Machine::new();
    let mut control = machine.control();
    control.set_faults(Box::new(|n| if n == 0 { Fault::Lost } else { Fault::None }));
    let e = control.arm(SetId::B).unwrap_err();
    assert!(matches!(e, BootError::ReadBack { .. }), "{e}");
    control.arm(SetId::B).unwrap();
    assert_eq!(machine.facts().primary, Some(SetId::B));
}

#[test]
fn a_machine_where_nothing_can_be_loaded_boots_nothing() {
    let mut machine = Machine::new();
    assert_eq!(machine.loader.boot(|_| false).unwrap(), None);
    assert_eq!(machine.facts().booted, Booted::Unknown);
}

#[test]
fn an_environment_that_was_cut_off_keeps_what_can_be_read() {
    let machine = Machine::with_bad_b();
    machine.control().keep(SetId::A).unwrap();
    let path = machine.dir.path().join("env");
    std::fs::write(&path, &machine.env_bytes()[..512]).unwrap();
    assert_eq!(machine.facts().b, SetState::Bad);
    assert_eq!(machine.env_bytes().len(), 1024);
}

fn sets() -> impl Strategy<Value = SetId> {
    prop_oneof![Just(SetId::A), Just(SetId::B)]
}

fn envs() -> impl Strategy<Value = Env> {
    (proptest::collection::vec(sets(), 1..3), 0..5_u8, 0..5_u8)
        .prop_map(|(order, a, b)| Env::new(&order, a, b))
}

fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::None),
        Just(Fault::Fails),
        Just(Fault::Lost),
        (0..=40_usize).prop_map(Fault::Torn),
        (0..=512_usize).prop_map(Fault::Torn),
    ]
}

/// Any call at all; `true` if it ended well.
fn call(control: &mut Simulated, verb: u8, set: SetId) -> bool {
    match verb {
        0 => control.arm(set),
        1 => control.keep(set),
        2 => control.disarm(set),
        3 => control.confirm(set),
        _ => control.mark_bad(set),
    }
    .is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn an_environment_comes_back_from_its_text(env in envs()) {
        let names = BootNames::new("system0", "system1").unwrap();
        prop_assert_eq!(Env::parse(&env.format(&names), &names), Some(env));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>(), order in "[AB ]{0,6}", left in "[0-9a-gx]{0,4}") {
        let names = BootNames::default();
        let _ = Env::parse(&text, &names);
        let _ = Env::parse(&format!("BOOT_ORDER={order}\nBOOT_A_LEFT={left}\nBOOT_B_LEFT={left}"), &names);
    }

    #[test]
    fn noise_in_the_file_still_boots_a_set(noise in proptest::collection::vec(any::<u8>(), 0..1500)) {
        let mut machine = Machine::with_bad_b();
        std::fs::write(machine.dir.path().join("env"), noise).unwrap();
        prop_assert_eq!(machine.facts().primary, Some(SetId::A));
        prop_assert_eq!(machine.boot(), SetId::A);
    }

    #[test]
    fn after_any_call_from_any_environment_with_any_fault_some_set_boots(
        env in envs(), calls in proptest::collection::vec((0..5_u8, sets(), faults()), 1..5),
    ) {
        let mut machine = Machine::new();
        machine.loader.set_env(&env).unwrap();
        for (verb, set, fault) in calls {
            let mut control = machine.control();
            control.set_faults(Box::new(move |_| fault));
            let before = machine.loader.env().unwrap();
            call(&mut control, verb, set);
            // Torn inside the header: never the new one, and not the defaults either.
            if matches!(fault, Fault::Fails | Fault::Lost | Fault::Torn(0..24)) {
                prop_assert_eq!(machine.loader.env().unwrap(), before);
            }
            prop_assert!(machine.facts().primary.is_some() || env.primary().is_none());
        }
        prop_assert!(machine.loader.boot(|_| true).unwrap().is_some());
    }

    #[test]
    fn a_power_cut_while_arming_boots_a_or_tries_b_and_then_comes_back_to_a(fault in faults()) {
        let mut machine = Machine::with_bad_b();
        let mut control = machine.control();
        control.set_faults(Box::new(move |_| fault));
        let armed = control.arm(SetId::B).is_ok();
        let first = machine.boot();
        prop_assert!(!armed || first == SetId::B, "what was armed is tried");
        prop_assert_eq!([machine.boot(), machine.boot()], [SetId::A, SetId::A]);
    }

    #[test]
    fn a_power_cut_while_confirming_leaves_a_trial_or_a_confirmed_set(fault in faults()) {
        let mut machine = Machine::with_bad_b();
        machine.control().arm(SetId::B).unwrap();
        machine.boot();
        let mut control = machine.control();
        control.set_faults(Box::new(move |_| fault));
        let confirmed = control.confirm(SetId::B).is_ok();
        let next = machine.boot();
        prop_assert!(!confirmed || next == SetId::B);
        prop_assert_eq!([machine.boot(), machine.boot()], [next, next]);
    }

    #[test]
    fn a_power_cut_while_rolling_back_never_keeps_the_refused_set(fault in faults()) {
        let mut machine = Machine::with_bad_b();
        machine.control().arm(SetId::B).unwrap();
        machine.boot();
        let mut control = machine.control();
        control.set_faults(Box::new(move |_| fault));
        let _ = control.mark_bad(SetId::B);
        prop_assert_eq!([machine.boot(), machine.boot()], [SetId::A, SetId::A]);
    }

    #[test]
    fn a_set_marked_bad_is_booted_only_when_the_other_cannot_be_loaded(env in envs(), bad in sets()) {
        let mut env = env;
        if env.bootable(bad.other()) {
            env.mark_bad(bad);
            prop_assert_eq!(env.state(bad, None, Tries::ONE), SetState::Bad);
            prop_assert_eq!(env.clone().next_boot(|_| true), Some(bad.other()));
        }
    }
}
