//! UPDATE-RULES 2.6: what people may ask for, in every state.

use otandem_core::boot::SetId;
use otandem_core::machine::{Event, Health, Verb};
use otandem_core::record::SlotStatuses;
use otandem_core::update::Then;

use super::{Firmware, Setup, World, device, device_in, device_like, finish, go_to, last_reason, told};
use crate::model::{Content, FULL, Fault, FaultKind, SLOT, slot_status};

/// What the person is told.
fn ask(world: &mut World, verb: Verb) -> Result<String, String> {
    world.answers.clear();
    world.feed(Event::User(verb));
    world.answers.first().cloned().expect("who asks is answered")
}

/// B holds a complete image that is recorded.
fn with_b() -> World {
    device_like(Setup { b: Content::Complete(Firmware::good(2)), ..Setup::default() })
}

fn activate(set: SetId, reboot: bool) -> Verb {
    Verb::Activate { set, reboot }
}

#[test]
fn between_arming_and_the_end_only_confirm_rollback_and_status_are_taken() {
    let verbs = [
        Verb::MarkBad(SetId::A),
        Verb::MarkBad(SetId::B),
        activate(SetId::A, true),
        activate(SetId::B, false),
        Verb::Adopt { set: SetId::B, slots: SlotStatuses::new() },
    ];
    for phase in ["accepted", "writing", "written", "armed", "trial"] {
        let (mut world, _) = device_in(phase, Firmware::good(0));
        let before = (world.record().clone(), world.env.clone());
        for verb in &verbs {
            assert!(ask(&mut world, verb.clone()).is_err(), "{verb:?} in {phase}");
        }
        if phase != "written" && phase != "armed" {
            assert!(ask(&mut world, Verb::Reboot).is_err());
        }
        if phase != "trial" {
            assert!(ask(&mut world, Verb::Confirm).is_err());
        }
        assert_eq!((world.record(), &world.env), (&before.0, &before.1));
    }
}

#[test]
fn rollback_before_the_reboot_drops_the_update() {
    for phase in ["accepted", "writing", "written", "armed"] {
        let (mut world, job) = device_in(phase, Firmware::good(0));
        assert!(ask(&mut world, Verb::Rollback).is_ok());
        finish(&mut world);
        assert_eq!((world.booted, told(&world, job)), (Some(SetId::A), "FAILED"));
        assert_eq!(last_reason(&world), "dropped on the device before it was tried");
        assert!(phase == "accepted" || !world.env.listed(SetId::B), "what was touched stays bad");
    }
}

#[test]
fn rollback_in_a_trial_goes_back_without_a_ban() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    assert!(ask(&mut world, Verb::Rollback).is_ok());
    finish(&mut world);
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::A), "FAILED"));
    assert_eq!(last_reason(&world), "rolled back: asked for on the device");
    assert_eq!(world.record().bans, []);
}

#[test]
fn rollback_without_a_way_back_is_refused() {
    let mut world = World::new(Setup { settled: false, ..Setup::default() });
    assert_eq!(world.phase(), "trial");
    assert!(ask(&mut world, Verb::Rollback).is_err());
    assert_eq!(world.phase(), "trial");
}

#[test]
fn confirm_stands_in_for_the_cloud_but_not_for_the_health_of_a_jobs_image() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    assert!(ask(&mut world, Verb::Confirm).is_err());
    world.feed(Event::Health(Health::Passed));
    assert_eq!(world.phase(), "trial");
    assert!(ask(&mut world, Verb::Confirm).is_ok());
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn confirm_of_a_local_install_is_for_the_person_to_decide() {
    let mut world = device();
    let firmware = world.firmware(Firmware::sick(0));
    let update = world.local_update(firmware, Then::Reboot);
    world.feed(Event::Offer(Box::new(update)));
    go_to(&mut world, "trial");
    assert!(ask(&mut world, Verb::Confirm).is_ok());
    assert_eq!((world.booted, world.env.left(SetId::B)), (Some(SetId::B), FULL));
}

#[test]
fn confirm_of_a_settled_set_says_so_and_of_an_unsettled_one_settles_it() {
    let mut world = device();
    assert_eq!(ask(&mut world, Verb::Confirm), Ok("the running set is permanent already".into()));
    world.reset();
    assert!(ask(&mut world, Verb::Confirm).is_ok());
    assert!(world.agent().ready());
}

#[test]
fn confirm_that_the_bootloader_refuses_is_answered_and_made_good_later() {
    let mut world = device();
    world.reset();
    world.fault = Some(Fault { after: 0, kind: FaultKind::NotDone });
    assert!(ask(&mut world, Verb::Confirm).is_err());
    finish(&mut world);
}

#[test]
fn installed_set_that_was_left_armed_is_tried_when_the_person_reboots() {
    let mut world = device();
    let firmware = world.firmware(Firmware::good(0));
    let update = world.local_update(firmware, Then::Arm);
    world.feed(Event::Offer(Box::new(update)));
    go_to(&mut world, "armed");
    assert!(!world.rebooting);
    assert!(ask(&mut world, Verb::Reboot).is_ok());
    assert!(world.rebooting);
    finish(&mut world);
    assert_eq!(world.booted, Some(SetId::B));
}

#[test]
fn reboot_by_a_person_needs_no_window() {
    let mut world = device_like(Setup { window: true, ..Setup::default() });
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_job(firmware);
    go_to(&mut world, "written");
    assert!(ask(&mut world, Verb::Reboot).is_ok());
    assert_eq!(world.phase(), "armed");
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn reboot_by_a_person_does_not_arm_a_job_that_nobody_saw_alive() {
    let (mut world, _) = device_in("written", Firmware::good(0));
    world.reset();
    world.feed(Event::Health(Health::Passed));
    assert!(ask(&mut world, Verb::Reboot).is_err());
    assert_eq!(world.phase(), "written");
}

#[test]
fn reboot_of_an_idle_device_takes_no_work_on_its_way_down() {
    let mut world = device();
    assert!(ask(&mut world, Verb::Reboot).is_ok());
    assert!(world.rebooting && !world.agent().ready());

    let mut world = device();
    world.fault = Some(Fault { after: 0, kind: FaultKind::NotDone });
    world.feed(Event::User(Verb::Reboot));
    assert!(world.agent().ready(), "it did not start, so it is over");
    assert!(world.answers.last().is_some_and(Result::is_err));
}

#[test]
fn set_that_is_not_recorded_complete_is_not_activated() {
    let mut world = device();
    world.put(SetId::B, Content::Complete(Firmware::good(2)));
    world.reset();
    finish(&mut world);
    for verb in [Verb::Rollback, activate(SetId::B, true), activate(SetId::B, false)] {
        assert!(ask(&mut world, verb).is_err());
        assert_eq!(world.phase(), "idle");
    }
    let slots = [(SLOT.to_owned(), slot_status(Firmware::good(2)))].into();
    assert!(ask(&mut world, Verb::Adopt { set: SetId::B, slots }).is_ok());
    assert!(ask(&mut world, activate(SetId::B, true)).is_ok());
    assert_eq!(world.phase(), "armed");
}

#[test]
fn activated_set_has_a_trial_like_any_other() {
    for verb in [Verb::Rollback, activate(SetId::B, true)] {
        let mut world = with_b();
        world.feed(Event::User(verb));
        go_to(&mut world, "trial");
        assert_eq!(world.booted, Some(SetId::B));
        finish(&mut world);
        assert_eq!(world.record().confirmed, Some(SetId::B));
    }
}

#[test]
fn traces_of_an_older_trial_do_not_look_like_one_of_the_activated_set() {
    let mut world = with_b();
    world.env.set_left(SetId::B, 0);
    world.start_agent();
    finish(&mut world);
    // Power fails after the intent is on disk, before the bootloader is told.
    world.fault = Some(Fault { after: 2, kind: FaultKind::CutBefore });
    world.feed(Event::User(activate(SetId::B, true)));
    assert_eq!(world.phase(), "armed", "armed again, as nothing was tried");
}

#[test]
fn running_set_cannot_be_marked_bad_and_the_other_one_is_forgotten() {
    let mut world = with_b();
    assert!(ask(&mut world, Verb::MarkBad(SetId::A)).is_err());
    assert!(ask(&mut world, Verb::MarkBad(SetId::B)).is_ok());
    assert!(!world.env.listed(SetId::B));
    assert_eq!(world.record().slots_b.len(), 0);
}

#[test]
fn activating_the_running_set_leaves_the_other_one_as_it_is() {
    let mut world = with_b();
    world.env.put_first(SetId::B);
    assert!(ask(&mut world, activate(SetId::A, true)).is_ok());
    assert_eq!(world.env.order, [SetId::A, SetId::B]);
    assert!(!world.rebooting);
}
