//! UPDATE-RULES 2: arming, booting, verdict.

use otandem_core::boot::SetId;
use otandem_core::machine::{Event, Health, MAX_RESUMES, Verb};
use otandem_core::record::State;
use otandem_core::update::{Cause, Reason, Then};

use super::{
    Firmware, Setup, World, actions, device, device_in, device_like, failed, finish, go_to, go_without_cloud,
    in_order, last_reason, told,
};
use crate::model::{Content, FULL, Fault, FaultKind, SLOT, Status};

fn cut(kind: FaultKind, after: u8) -> Option<Fault> {
    Some(Fault { after, kind })
}

#[test]
fn booted_unknown_touches_nothing_and_refuses_people() {
    let (mut world, _) = device_in("armed", Firmware::good(0));
    world.blind = 1;
    world.reset();
    let from = world.done.len();
    for event in [Event::Tick, Event::Continue, Event::Health(Health::Passed), Event::Ready] {
        world.feed(event);
    }
    world.feed(Event::User(Verb::Confirm));
    assert_eq!(actions(&world, from), ["Answer"]);
    assert!(world.answers.last().is_some_and(Result::is_err));
    assert!(!world.settled, "the dead-man is what lets the bootloader fall back");
    assert_eq!(world.agent().next_wake(), None);
}

#[test]
fn a_bootloader_that_does_not_answer_is_left_alone() {
    let mut world = device();
    world.blind = 2;
    world.reset();
    assert!(world.agent().not_ready().is_some_and(|why| why.contains("does not answer")));
    assert!(world.settled, "with nothing pending a dead-man's reboot helps nobody");
}

#[test]
fn a_trial_of_which_nothing_can_be_read_is_left_to_the_dead_man() {
    let (mut world, _) = device_in("armed", Firmware::good(0));
    (world.blind, world.unread, world.disk) = (2, true, None);
    world.reset();
    assert!(!world.settled, "nobody knows that nothing is pending");
    (world.blind, world.unread) = (0, false);
    world.look_again();
    assert_eq!(world.phase(), "trial", "it is looked at as soon as that is possible");
}

#[test]
fn a_bootloader_that_answers_later_is_asked_again_and_the_trial_goes_on() {
    let (mut world, job) = device_in("armed", Firmware::good(0));
    world.blind = 2;
    world.reset();
    let from = world.done.len();
    world.look_again();
    assert_eq!(actions(&world, from), [""; 0], "it still does not answer");
    assert!(!world.settled && world.agent().untouchable().is_some());
    world.blind = 0;
    world.look_again();
    assert_eq!((world.phase(), world.booted), ("trial", Some(SetId::B)));
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn a_bootloader_that_answered_is_not_asked_again() {
    let (mut world, _) = device_in("writing", Firmware::good(0));
    let (from, phase) = (world.done.len(), world.phase().to_owned());
    world.look_again();
    assert_eq!(actions(&world, from), [""; 0]);
    assert_eq!(world.phase(), phase);
}

#[test]
fn arming_is_saved_before_and_after() {
    let (mut world, _) = device_in("written", Firmware::good(0));
    let from = world.done.len();
    go_to(&mut world, "armed");
    assert!(in_order(&actions(&world, from), &["Save", "Arm", "Save", "Report"]));
    let State::Armed { boot_id, .. } = &world.disk.as_ref().expect("saved").state else {
        panic!("not armed")
    };
    assert_eq!(*boot_id, world.boot_id());
}

#[test]
fn power_cut_before_arm_arms_again() {
    let (mut world, job) = device_in("written", Firmware::good(0));
    world.fault = cut(FaultKind::CutBefore, 1);
    go_to(&mut world, "armed");
    assert_eq!(world.boot_id(), "boot-2");
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn power_cut_after_arm_is_the_reboot_into_the_trial() {
    let (mut world, job) = device_in("written", Firmware::good(0));
    world.fault = cut(FaultKind::CutAfter, 1);
    go_to(&mut world, "trial");
    assert_eq!(world.booted, Some(SetId::B));
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn agent_that_dies_between_arm_and_its_save_finds_the_set_armed() {
    let (mut world, job) = device_in("written", Firmware::good(0));
    world.fault = cut(FaultKind::CutBefore, 1);
    go_to(&mut world, "armed");
    let State::Armed { update, .. } = world.state().clone() else { panic!("not armed") };
    world.disk.as_mut().expect("saved").state = State::Arming { update, attempt: 1 };
    let from = world.done.len();
    world.start_agent();
    assert_eq!(world.phase(), "armed");
    assert!(!actions(&world, from).contains(&"Arm"));
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn arming_twice_in_vain_fails() {
    let (mut world, job) = device_in("written", Firmware::good(0));
    world.bootloader_broken = true;
    let from = world.done.len();
    finish_on_a(&mut world);
    assert_eq!(actions(&world, from).iter().filter(|a| **a == "Arm").count(), 2);
    assert_eq!(told(&world, job), "FAILED");
    assert!(last_reason(&world).starts_with("not armed"));
}

#[test]
fn rolling_back_where_the_old_set_does_not_boot_any_more_stays_up_and_says_so() {
    let (mut world, job) = device_in("trial", Firmware::sick(0));
    // Another tool took the old set out of the order in the meantime.
    world.env.mark_bad(SetId::A);
    let (from, boots) = (world.done.len(), world.boot_id());
    world.feed(Event::Health(Health::Hopeless("no".into())));
    assert_eq!(world.phase(), "idle");
    assert!(!actions(&world, from).contains(&"Reboot"), "{:?}", &world.done[from..]);
    assert_eq!(last_reason(&world), "cannot go back: health check: no");
    assert!(world.record().late_fallback);
    while world.status(job) == Status::InProgress && world.goes_on() {}
    assert_eq!((told(&world, job), world.boot_id()), ("FAILED", boots));
}

fn finish_on_a(world: &mut World) {
    finish(world);
    assert_eq!(world.booted, Some(SetId::A));
}

#[test]
fn armed_in_this_boot_reboots_again() {
    let (mut world, job) = device_in("armed", Firmware::good(0));
    world.start_agent();
    assert_eq!(world.phase(), "armed");
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn bootloader_that_did_not_try_the_set_is_no_rollback_and_bans_nothing() {
    let (mut world, job) = device_in("armed", Firmware::good(0));
    world.env.reset();
    world.reset();
    finish_on_a(&mut world);
    assert_eq!(told(&world, job), "FAILED");
    assert_eq!(last_reason(&world), "bootloader did not try set B");
    assert_eq!(world.record().bans, []);
}

#[test]
fn set_that_was_tried_and_did_not_stay_up_is_rolled_back() {
    let (mut world, job) = device_in("armed", Firmware::dead(0));
    finish_on_a(&mut world);
    assert_eq!(told(&world, job), "FAILED");
    assert_eq!(last_reason(&world), "rolled back: set B was tried and did not stay up");
}

#[test]
fn power_cut_in_the_only_trial_boot_is_a_trial_without_a_verdict() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.reset();
    finish_on_a(&mut world);
    assert_eq!(told(&world, job), "FAILED");
    assert_eq!(last_reason(&world), "rolled back: trial ended without a verdict");
}

#[test]
fn power_cut_in_one_of_two_trial_boots_goes_on_with_the_trial() {
    let mut world = device_like(Setup { tries: 2, ..Setup::default() });
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_job(firmware);
    go_to(&mut world, "trial");
    world.reset();
    assert_eq!((world.booted, world.phase()), (Some(SetId::B), "trial"));
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn power_cut_after_confirm_ends_in_success() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.fault = cut(FaultKind::CutAfter, 2);
    finish(&mut world);
    assert_eq!(world.boot_id(), "boot-3");
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::B), "SUCCEEDED"));
}

#[test]
fn power_cut_before_confirm_rolls_back_and_does_not_blame_the_image() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.talk();
    world.fault = cut(FaultKind::CutBefore, 1);
    finish_on_a(&mut world);
    assert_eq!(told(&world, job), "FAILED");
    assert!(last_reason(&world).starts_with("rolled back: the device left the set"));
    assert_eq!(world.record().bans, []);
}

#[test]
fn going_back_is_saved_before_the_bootloader_is_told() {
    let (mut world, _) = device_in("trial", Firmware::sick(0));
    let from = world.done.len();
    world.feed(Event::Health(Health::Hopeless("no".into())));
    assert!(in_order(&actions(&world, from), &["Save", "Disarm", "Report", "RunHook"]));
    assert!(matches!(world.disk.as_ref().map(|d| &d.state), Some(State::RollingBack { .. })));
    assert_eq!(world.env.primary(), Some(SetId::A));
    finish_on_a(&mut world);
}

#[test]
fn going_back_twice_in_vain_stays_up_and_says_so() {
    let (mut world, job) = device_in("trial", Firmware::sick(0));
    world.env.confirm(SetId::B);
    world.env.mark_bad(SetId::A);
    world.bootloader_broken = true;
    world.feed(Event::Health(Health::Hopeless("no".into())));
    for boot in ["boot-3", "boot-4"] {
        assert_eq!(world.phase(), "rolling-back");
        while world.boot_id() != boot {
            assert!(world.goes_on());
        }
        assert_eq!(world.booted, Some(SetId::B));
    }
    assert!(failed(&world) && last_reason(&world).starts_with("cannot go back: health check: no"));
    assert!(world.settled && !world.rebooting);
    assert!(world.talk());
    assert_eq!(told(&world, job), "FAILED");
}

#[test]
fn agent_that_is_restarted_before_the_reboot_back_has_not_failed_to_go_back() {
    let (mut world, job) = device_in("trial", Firmware::sick(0));
    world.feed(Event::Health(Health::Hopeless("no".into())));
    for _ in 0..4 {
        world.start_agent();
        assert_eq!(world.phase(), "rolling-back");
    }
    finish_on_a(&mut world);
    assert_eq!(told(&world, job), "FAILED");
    assert_eq!(last_reason(&world), "rolled back: health check: no");
}

#[test]
fn nobody_goes_back_to_a_set_without_a_head() {
    let (mut world, job) = device_in("trial", Firmware::sick(0));
    world.put(SetId::A, Content::Torn);
    world.stale = true;
    world.start_agent();
    world.feed(Event::Health(Health::Hopeless("no".into())));
    assert_eq!(world.phase(), "idle");
    assert!(last_reason(&world).starts_with("cannot go back"));
    assert!(world.env.listed(SetId::B));
    assert!(world.talk());
    assert_eq!(told(&world, job), "FAILED");
}

// --- 2.3 ------------------------------------------------------------------------------------------------------

#[test]
fn keep_happens_after_local_health_and_does_not_wait_for_the_cloud() {
    let mut world = device();
    go_without_cloud(&mut world);
    world.env.set_left(SetId::A, 2);
    let from = world.done.len();
    world.reset();
    assert_eq!(world.env.left(SetId::A), 1);
    assert!(!actions(&world, from).contains(&"Keep"), "kept before it is known to be well");
    world.feed(Event::Health(Health::Passed));
    assert_eq!(world.env.left(SetId::A), FULL);
    assert!(world.agent().ready());
}

#[test]
fn set_that_could_not_be_kept_is_kept_later() {
    let mut world = World::new(Setup::default());
    world.bootloader_broken = true;
    world.feed(Event::Health(Health::Passed));
    assert!(!world.agent().ready());
    world.bootloader_broken = false;
    world.wait();
    assert!(world.agent().ready());
}

// --- 2.4, without a job ---------------------------------------------------------------------------------------

#[test]
fn adopted_factory_set_is_confirmed_when_healthy() {
    let mut world = World::new(Setup { settled: false, ..Setup::default() });
    assert_eq!((world.phase(), world.settled), ("trial", false));
    world.feed(Event::Health(Health::Passed));
    assert!(world.agent().ready() && world.settled);
    assert_eq!(world.disk.as_ref().and_then(|d| d.confirmed), Some(SetId::A));
    assert_eq!(world.record().last, None, "nobody asked, so nobody is told");
}

/// A sick set that lost its record, beside `other`; `good` in the bootloader's eyes.
fn sick_and_lost(other: Content, good: bool) -> World {
    let mut world = World::new(Setup { b: other, ..Setup::default() });
    world.put(SetId::A, Content::Complete(Firmware::sick(1)));
    if !good {
        world.env.mark_bad(SetId::B);
    }
    world.disk = None;
    world.reset();
    world.feed(Event::Health(Health::Hopeless("no".into())));
    world
}

#[test]
fn lost_record_rolls_back_only_to_a_good_set_with_a_readable_head() {
    let mut world = sick_and_lost(Content::Complete(Firmware::good(2)), true);
    assert_eq!(world.phase(), "rolling-back");
    finish(&mut world);
    assert_eq!(world.booted, Some(SetId::B));

    for (other, good) in [(Content::Complete(Firmware::good(2)), false), (Content::Torn, true)] {
        let mut world = sick_and_lost(other, good);
        assert_eq!(world.phase(), "trial");
        assert!(world.settled, "the dead-man would reset it for ever");
        assert_eq!(world.agent().next_wake(), None);
        assert!(!world.agent().ready());
    }
}

#[test]
fn adopted_set_does_not_go_back_because_the_disk_fails() {
    let mut world =
        World::new(Setup { settled: false, b: Content::Complete(Firmware::good(2)), ..Setup::default() });
    world.disk_broken = true;
    world.start_agent();
    world.feed(Event::Health(Health::Passed));
    assert_eq!(world.phase(), "trial");
    world.wait();
    assert_eq!((world.phase(), world.booted), ("trial", Some(SetId::A)));
    // Who asks for an update is told why not, and does not wait for a disk that may never come.
    assert!(!world.agent().settling());
    assert!(world.agent().not_ready().is_some_and(|why| why.contains("cannot be saved")));
    world.disk_broken = false;
    world.wait();
    assert!(world.agent().ready());
}

fn device_on_b() -> World {
    let (mut world, _) = device_in("trial", Firmware::good(0));
    finish(&mut world);
    assert_eq!(world.booted, Some(SetId::B));
    world
}

#[test]
fn reset_environment_is_restored_once_and_then_the_running_set_is_taken() {
    let mut world = device_on_b();
    world.env.reset();
    world.reset();
    assert_eq!(world.booted, Some(SetId::A));
    finish(&mut world);
    assert_eq!(world.booted, Some(SetId::B));
    assert_eq!(world.record().restores, 0, "kept, so it counts anew");

    let mut world = device_on_b();
    world.disk.as_mut().expect("saved").restores = 1;
    world.env.reset();
    world.reset();
    assert!(world.record().late_fallback);
    finish(&mut world);
    assert_eq!((world.booted, world.record().confirmed), (Some(SetId::A), Some(SetId::A)));
}

#[test]
fn nothing_is_restored_to_a_set_without_a_head() {
    let mut world = device_on_b();
    world.put(SetId::B, Content::Torn);
    world.env.reset();
    world.reset();
    assert!(world.record().late_fallback);
    finish(&mut world);
    assert_eq!(world.booted, Some(SetId::A));
}

#[test]
fn restoring_waits_for_the_disk() {
    let mut world = device_on_b();
    world.env.reset();
    world.disk_broken = true;
    world.reset();
    assert!(!world.agent().ready() && !world.rebooting);
    world.disk_broken = false;
    world.wait();
    assert!(world.rebooting);
    finish(&mut world);
    assert_eq!(world.booted, Some(SetId::B));
}

#[test]
fn written_set_that_boots_by_itself_must_prove_itself() {
    let mut world = device_on_b();
    let sick = world.firmware(Firmware::sick(0));
    let job = world.new_job(sick);
    go_to(&mut world, "written");
    world.env.reset();
    world.reset();
    assert_eq!((world.booted, world.phase()), (Some(SetId::A), "trial"));
    finish(&mut world);
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::B), "FAILED"));
}

#[test]
fn set_that_leaves_slots_out_is_not_armed() {
    let mut world = World::new(Setup::default());
    world.rules.slots.push("boot".into());
    world.start_agent();
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_job(firmware);
    finish(&mut world);
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::A), "FAILED"));
    assert!(last_reason(&world).contains("slots"));
    assert!(world.record().slots_b.contains_key(SLOT), "what was written is known all the same");
}

#[test]
fn set_whose_fallback_is_gone_is_not_left_a_second_time() {
    let (mut world, _) = device_in("trial", Firmware::sick(0));
    world.feed(Event::Health(Health::Hopeless("no".into())));
    assert_eq!(world.phase(), "rolling-back");
    world.put(SetId::A, Content::Torn);
    world.stale = true;
    world.start_agent();
    assert_eq!(world.phase(), "idle");
    assert!(last_reason(&world).starts_with("cannot go back"));
    assert!(!world.rebooting);
}

#[test]
fn mark_that_kills_the_agent_every_time_does_not_keep_the_job_open() {
    let (mut world, job) = device_in("armed", Firmware::dead(0));
    world.talk();
    world.reset();
    // On disk: it goes back, and that killed the agent as often as it may.
    let record = world.disk.as_mut().expect("saved");
    let State::Armed { update, .. } = record.state.clone() else { panic!("not armed") };
    let reason = Reason::new(Cause::NoVerdict, "set B was tried and did not stay up");
    record.state = State::RollingBack { update, reason, attempt: 1, boot_id: "boot-3".into() };
    record.resumes = MAX_RESUMES;
    let from = world.done.len();
    world.dead_man();
    assert_eq!((world.booted, world.phase()), (Some(SetId::A), "idle"));
    assert!(!actions(&world, from).contains(&"Disarm"));
    finish_on_a(&mut world);
    assert_eq!(told(&world, job), "FAILED");
}

#[test]
fn switch_to_a_set_that_is_not_recorded_complete_is_refused_whoever_asks() {
    let mut world = device();
    world.put(SetId::B, Content::Complete(Firmware::good(2)));
    world.start_agent();
    finish(&mut world);
    let mut update = world.local_update(Firmware::good(1), Then::Reboot);
    update.images.clear();
    world.feed(Event::Offer(Box::new(update)));
    assert!(failed(&world));
    assert_eq!(last_reason(&world), "set B does not hold a complete image");
}
