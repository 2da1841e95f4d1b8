//! Random histories of a device, on the model of UPDATE-RULES 6. What is checked at every step stands in
//! `model/judge.rs`, what must have become of it in `model/calm.rs`.

mod model;

use std::collections::BTreeMap;

use model::{Content, Firmware, Palette, Setup, Status, Step, World, steps};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

fn any_setup() -> impl Strategy<Value = Setup> {
    let b = prop_oneof![
        Just(Content::Empty),
        Just(Content::Torn),
        Just(Content::Complete(Firmware::good(2))),
        Just(Content::Complete(Firmware::sick(2))),
    ];
    (1..3u8, any::<bool>(), any::<bool>(), b, any::<bool>()).prop_map(
        |(tries, record_shared, window, b, settled)| Setup {
            tries,
            record_shared,
            window,
            b,
            settled,
            writes_down: false,
        },
    )
}

fn live_through(setup: Setup, steps: &[Step]) -> World {
    let mut world = World::new(setup);
    for step in steps {
        world.take(step);
    }
    world.calm_down();
    world
}

/// `PROPTEST_CASES` asks for more or fewer.
fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|s| s.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(cases),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn jobs_end_truly_whatever_cloud_hooks_and_images_do(
        setup in any_setup(),
        steps in steps(Palette::default()),
    ) {
        live_through(setup, &steps);
    }

    #[test]
    fn power_cuts_and_failing_storage_leave_nothing_half_done(
        setup in any_setup(),
        steps in steps(Palette { faults: true, ..Palette::default() }),
    ) {
        live_through(setup, &steps);
    }

    #[test]
    fn people_at_the_device_cannot_break_an_update(
        setup in any_setup(),
        steps in steps(Palette { people: true, faults: true, ..Palette::default() }),
    ) {
        live_through(setup, &steps);
    }

    #[test]
    fn other_tools_in_the_boot_environment_are_survived(
        setup in any_setup(),
        steps in steps(Palette { environment: true, faults: true, ..Palette::default() }),
    ) {
        live_through(setup, &steps);
    }

    #[test]
    fn lost_old_and_foreign_records_are_survived(
        setup in any_setup(),
        steps in steps(Palette { records: true, faults: true, ..Palette::default() }),
    ) {
        live_through(setup, &steps);
    }

    #[test]
    fn everything_at_once_is_survived(
        setup in any_setup(),
        steps in steps(Palette { records: true, environment: true, people: true, faults: true }),
    ) {
        live_through(setup, &steps);
    }
}

/// Without it the properties could hold because nothing ever happens.
#[test]
fn histories_come_to_every_kind_of_end() {
    let mut runner = TestRunner::deterministic();
    let all = Palette { records: true, environment: true, people: true, faults: true };
    let histories = (any_setup(), steps(all));
    let mut ends: BTreeMap<&str, u32> = BTreeMap::new();
    let mut note = |end: &'static str, came: bool| *ends.entry(end).or_default() += u32::from(came);
    for _ in 0..1000 {
        let (setup, steps) = histories.new_tree(&mut runner).expect("a history").current();
        let world = live_through(setup, &steps);
        for job in 0..world.jobs.len() {
            note("succeeded", world.status(job) == Status::Told("SUCCEEDED"));
            note("failed", world.status(job) == Status::Told("FAILED"));
            note("rejected", world.status(job) == Status::Told("REJECTED"));
            note("ended by the cloud", world.status(job) == Status::Ended);
            let steps = world.jobs[job].steps && !world.jobs[job].ignores;
            note("succeeded in steps", steps && world.status(job) == Status::Told("SUCCEEDED"));
        }
        let Some(record) = world.machine.as_ref().map(otandem_core::machine::Machine::record) else {
            continue;
        };
        let reasons =
            record.finished.iter().filter_map(|f| f.outcome.as_ref()).map(|o| o.reason().to_owned());
        let reasons: Vec<String> = reasons.collect();
        let said = |start: &str| reasons.iter().any(|r| r.starts_with(start));
        note("rolled back", said("rolled back"));
        let in_step =
            |start: &str| reasons.iter().any(|r| r.starts_with(start) && r.ends_with(", in step install"));
        note("step rolled back", in_step("rolled back"));
        note("step failed", in_step("digest mismatch"));
        note("interrupted", said("interrupted by restart"));
        note("job lost", said("interrupted, and the record"));
        note("not tried", said("bootloader did not try"));
        note("state lost", said("state lost"));
        note("not armed", said("not armed"));
        note("disk", said("the record cannot be saved"));
        note("put off", said("put off"));
        note("wrong set", said("the device left the set"));
        note("dropped", said("dropped on the device"));
        note("late fallback", record.late_fallback);
        note("banned", record.bans.iter().any(|b| b.why.is_some()));
    }
    let never: Vec<_> = ends.iter().filter(|(_, n)| **n == 0).collect();
    assert!(never.is_empty(), "never came to {never:?} of {ends:?}");
    assert!(ends["succeeded"] > 300, "{ends:?}");
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn a_good_image_arrives_wherever_power_fails(
        tries in 1..3u8,
        fault in 0..40u8,
        after in any::<bool>(),
    ) {
        let mut world = World::new(Setup { tries, ..Setup::default() });
        let kind = if after { model::FaultKind::CutAfter } else { model::FaultKind::CutBefore };
        let firmware = world.firmware(Firmware::good(0));
        let job = world.new_job(firmware);
        world.fault = Some(model::Fault { after: fault, kind });
        for _ in 0..200 {
            if world.is_over() || !world.goes_on() {
                break;
            }
        }
        world.calm_down();
        // A cut in the trial is a trial without a verdict: with one try that is a rollback, told as such.
        let told = world.status(job);
        prop_assert!(matches!(told, Status::Told("SUCCEEDED" | "FAILED")), "{told:?}");
        let on_new = world.running() == Some(firmware);
        prop_assert_eq!(on_new, told == Status::Told("SUCCEEDED"));
    }
}
