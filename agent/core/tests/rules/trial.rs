//! UPDATE-RULES 3: trial, confirmation, hooks.

use std::time::Duration;

use otandem_core::boot::SetId;
use otandem_core::machine::{Cloud, Event, Health, Hook, HookAnswer};
use otandem_core::update::Then;

use super::{
    Firmware, Setup, actions, device, device_in, device_like, finish, go_to, go_without_cloud, in_order,
    last_reason, told,
};
use crate::model::{Fault, FaultKind};

#[test]
fn health_checks_have_one_deadline_in_total() {
    let (mut world, job) = device_in("trial", Firmware::sick(0));
    let timeout = world.rules.health_timeout;
    world.pass(timeout / 2);
    world.feed(Event::Health(Health::NotYet("disk".into())));
    world.start_agent();
    world.pass(timeout / 2 - Duration::from_secs(1));
    world.feed(Event::Health(Health::NotYet("disk".into())));
    assert_eq!(world.phase(), "trial", "a restart of the agent neither shortens nor lengthens it");
    world.pass(Duration::from_secs(1));
    world.feed(Event::Tick);
    assert_eq!(world.phase(), "rolling-back");
    finish(&mut world);
    assert_eq!(told(&world, job), "FAILED");
    assert_eq!(last_reason(&world), "rolled back: health check: disk");
}

#[test]
fn checks_that_give_no_answer_end_the_trial() {
    let (mut world, _) = device_in("trial", Firmware::good(0));
    world.wait();
    assert_eq!(world.phase(), "rolling-back");
}

#[test]
fn hopeless_check_rolls_back_at_once() {
    let (mut world, _) = device_in("trial", Firmware::sick(0));
    world.feed(Event::Health(Health::Hopeless("wrong board".into())));
    assert_eq!(world.phase(), "rolling-back");
}

#[test]
fn not_yet_that_comes_after_passed_counts_for_nothing() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.feed(Event::Health(Health::Passed));
    world.feed(Event::Health(Health::NotYet("late".into())));
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn job_is_not_confirmed_before_the_cloud_was_reached() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.feed(Event::Health(Health::Passed));
    assert_eq!(world.agent().waits_for().as_deref(), Some("the cloud"));
    world.feed(Event::Cloud(Cloud::Accepted));
    assert_eq!(world.phase(), "idle");
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn cloud_that_stays_out_of_reach_rolls_back_after_cloud_timeout() {
    let (mut world, _) = device_in("trial", Firmware::offline(0));
    world.feed(Event::Health(Health::Passed));
    let due = world.agent().next_wake().expect("the deadline");
    assert_eq!(due.since(world.now().boot), world.rules.cloud_timeout);
    world.wait();
    assert_eq!(world.phase(), "rolling-back");
}

#[test]
fn local_install_does_not_wait_for_the_cloud() {
    let mut world = device();
    let firmware = world.firmware(Firmware::offline(0));
    let update = world.local_update(firmware, Then::Reboot);
    world.feed(Event::Offer(Box::new(update)));
    go_to(&mut world, "trial");
    world.feed(Event::Health(Health::Passed));
    assert!(world.agent().ready());
    assert_eq!(world.booted, Some(SetId::B));
}

#[test]
fn order_of_confirmation_is_save_confirm_save_report() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.feed(Event::Cloud(Cloud::Accepted));
    let from = world.done.len();
    world.feed(Event::Health(Health::Passed));
    assert!(in_order(&actions(&world, from), &["StopHealth", "Save", "Confirm", "Settled", "Save", "Flush"]));
    let disk = world.disk.as_ref().expect("saved");
    assert!(disk.outbox.iter().any(|f| f.key == world.jobs[job].key));
    assert_eq!(world.hook, Some(Hook::PostConfirm));
}

#[test]
fn save_that_fails_before_confirm_rolls_back() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.feed(Event::Cloud(Cloud::Accepted));
    world.disk_broken = true;
    let from = world.done.len();
    world.feed(Event::Health(Health::Passed));
    assert!(!actions(&world, from).contains(&"Confirm"));
    finish_without_disk(&mut world);
    assert_eq!(world.booted, Some(SetId::A));
    assert_eq!(
        world.agent().sendable().count(),
        0,
        "the disk still holds a trial: nothing is told before it is saved"
    );
    world.disk_broken = false;
    finish(&mut world);
    assert_eq!(told(&world, job), "FAILED");
    let digest = world.jobs[job].firmware.digest();
    assert_eq!(
        world.record().ban(&[digest]),
        None,
        "without a disk this counts as one silent trial, and one bans nothing"
    );
}

fn finish_without_disk(world: &mut crate::model::World) {
    while world.booted == Some(SetId::B) {
        assert!(world.goes_on());
    }
    go_without_cloud(world);
    go_to(world, "idle");
    let booted = world.booted.expect("a set runs");
    world.put(booted, crate::model::Content::Complete(Firmware::good(1)));
}

#[test]
fn save_that_fails_after_confirm_keeps_the_success_back_until_it_is_saved() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.feed(Event::Cloud(Cloud::Accepted));
    world.fault = Some(Fault { after: 2, kind: FaultKind::NotDone });
    world.feed(Event::Health(Health::Passed));
    assert_eq!(world.phase(), "idle");
    assert!(world.settled, "the set is permanent, whatever the disk does");
    assert_eq!(world.agent().sendable().count(), 0);
    assert!(!world.agent().ready());
    world.wait();
    assert_eq!(world.agent().sendable().count(), 1);
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn confirm_that_fails_rolls_back() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.feed(Event::Cloud(Cloud::Accepted));
    world.fault = Some(Fault { after: 1, kind: FaultKind::DoneAlthough });
    world.feed(Event::Health(Health::Passed));
    finish(&mut world);
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::A), "FAILED"));
}

// --- 3.5 ------------------------------------------------------------------------------------------------------

#[test]
fn pre_install_that_says_not_now_is_asked_again_every_interval() {
    let (mut world, job) = device_in("accepted", Firmware::good(0));
    world.answer_hook(HookAnswer::NotNow);
    assert_eq!(world.agent().phase(), "waiting");
    let due = world.agent().next_wake().expect("asked again");
    assert_eq!(due.since(world.now().boot), world.rules.retry_interval);
    world.wait();
    assert_eq!(world.hook, Some(Hook::PreInstall));
    assert_eq!(world.agent().next_wake(), None, "while it is asked its answer is waited for");
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn deferral_ends_after_defer_limit() {
    let (mut world, job) = device_in("written", Firmware::good(0));
    let asked = world.now().boot;
    while world.phase() == "written" {
        world.answer_hook(HookAnswer::NotNow);
        world.wait();
        assert!(world.now().boot.since(asked) < world.rules.defer_limit * 2, "waits for ever");
    }
    assert!(world.now().boot.since(asked) >= world.rules.defer_limit);
    finish(&mut world);
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::A), "FAILED"));
    assert!(last_reason(&world).starts_with("put off for too long"));
}

#[test]
fn reboot_window_holds_the_arming_back() {
    let mut world = device_like(Setup { window: true, ..Setup::default() });
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_job(firmware);
    go_to(&mut world, "written");
    assert_eq!(world.agent().phase(), "waiting");
    assert!(!world.env.listed(SetId::B), "armed only when the reboot is due");
    world.pass(Duration::from_secs(70 * 60));
    world.feed(Event::Tick);
    assert_eq!(world.hook, Some(Hook::PreReboot));
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn hook_that_fails_ends_the_update() {
    for phase in ["accepted", "written"] {
        let (mut world, job) = device_in(phase, Firmware::good(0));
        world.answer_hook(HookAnswer::Failed("exit 1".into()));
        finish(&mut world);
        assert_eq!((world.booted, told(&world, job)), (Some(SetId::A), "FAILED"));
        assert!(last_reason(&world).contains("hook: exit 1"));
    }
}

#[test]
fn hook_that_was_not_asked_moves_nothing() {
    let mut world = device_like(Setup { window: true, ..Setup::default() });
    let firmware = world.firmware(Firmware::good(0));
    world.new_job(firmware);
    go_to(&mut world, "written");
    world.feed(Event::Hook(Hook::PreReboot, HookAnswer::Done));
    assert_eq!(world.phase(), "written", "armed outside the window");
}

#[test]
fn rollback_hook_cannot_stop_the_way_back() {
    let (mut world, _) = device_in("trial", Firmware::sick(0));
    world.feed(Event::Health(Health::Hopeless("no".into())));
    world.answer_hook(HookAnswer::Failed("exit 1".into()));
    assert!(world.rebooting);
}

#[test]
fn reboot_that_does_not_start_is_asked_for_again() {
    let (mut world, job) = device_in("armed", Firmware::good(0));
    world.fault = Some(Fault { after: 0, kind: FaultKind::NotDone });
    world.reporting = true;
    while world.fault.is_some() {
        assert!(world.goes_on());
    }
    assert!(!world.rebooting && world.phase() == "armed");
    world.wait();
    assert!(world.rebooting);
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}
