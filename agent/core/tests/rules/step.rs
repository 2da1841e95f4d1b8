//! Steps of general jobs that install: the update is one like any other, and its end is the step's.

use std::time::Duration;

use otandem_core::boot::SetId;
use otandem_core::jobs::wire::Details;
use otandem_core::machine::{Cloud, Event, JobEvent};
use otandem_core::update::Outcome;

use super::{Firmware, actions, device, finish, go_to, in_order, last_reason, told};
use crate::model::{Fault, FaultKind, Status, World};

/// A device with such a job, its update in `phase`.
fn device_in(phase: &str, like: Firmware) -> (World, usize) {
    let mut world = device();
    let firmware = world.firmware(like);
    let job = world.new_general_job(firmware);
    go_to(&mut world, phase);
    (world, job)
}

/// At which steps the thread began.
fn begun(world: &World) -> Vec<usize> {
    let at = |text: &String| text.split("step: ").nth(1)?.split(',').next()?.parse().ok();
    world.done.iter().filter(|a| a.starts_with("RunJob")).filter_map(at).collect()
}

#[test]
fn job_goes_on_behind_the_confirmed_reboot_and_ends_once() {
    let (mut world, job) = device_in("armed", Firmware::good(0));
    let on_disk = world.disk.clone().unwrap().job.unwrap();
    assert_eq!((on_disk.progress().as_str(), on_disk.waits), ("step 2/3: install", true));
    assert_eq!(on_disk.details["stderr"], "one\n", "what the steps before wrote is kept over the reboot");
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
    assert_eq!(last_reason(&world), "Job exited with status: 0");
    assert_eq!((begun(&world), world.booted), (vec![0, 2], Some(SetId::B)));
    let all = actions(&world, 0);
    assert!(in_order(&all, &["RunJob", "Write", "Arm", "Reboot", "Confirm", "RunJob"]), "{all:?}");
    let ends = world.record().finished.iter().filter(|f| f.key == world.jobs[job].key).count();
    assert_eq!((ends, world.record().job.clone()), (1, None));
}

#[test]
fn rollback_is_the_end_of_the_job_with_the_reason_of_the_update() {
    let (mut world, job) = device_in("trial", Firmware::sick(0));
    finish(&mut world);
    assert_eq!(told(&world, job), "FAILED");
    assert!(last_reason(&world).starts_with("rolled back: health check"), "{}", last_reason(&world));
    assert!(last_reason(&world).ends_with(", in step install"), "{}", last_reason(&world));
    assert_eq!((begun(&world), world.booted), (vec![0], Some(SetId::A)));
}

#[test]
fn failure_that_the_document_ignores_lets_the_job_go_on() {
    let mut world = device();
    let firmware = world.firmware(Firmware::sick(0));
    let job = world.new_general_job(firmware);
    world.jobs[job].ignores = true;
    finish(&mut world);
    assert_eq!((told(&world, job), world.booted), ("SUCCEEDED", Some(SetId::A)));
    assert_eq!(begun(&world), [0, 2]);
}

#[test]
fn power_cut_in_any_phase_runs_no_step_twice() {
    for phase in ["accepted", "writing", "written", "armed"] {
        let (mut world, job) = device_in(phase, Firmware::good(0));
        world.reset();
        finish(&mut world);
        assert_eq!((told(&world, job), begun(&world)), ("SUCCEEDED", vec![0, 2]), "{phase}");
    }
}

#[test]
fn job_that_waits_for_its_next_step_is_not_interrupted_by_a_restart() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    while world.phase() != "idle" {
        assert!(world.goes_on());
    }
    let waits = world.agent().interrupted_job().cloned().unwrap();
    assert_eq!((waits.progress().as_str(), waits.set), ("step 3/3: after the installation", Some(SetId::B)));
    world.start_agent();
    world.reset();
    finish(&mut world);
    assert_eq!((told(&world, job), begun(&world)), ("SUCCEEDED", vec![0, 2]));
}

#[test]
fn steps_behind_an_installation_do_not_run_on_another_set() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    while world.phase() != "idle" {
        assert!(world.goes_on());
    }
    // The new set breaks before the job's document is here again, and the bootloader falls back.
    world.put(SetId::B, crate::model::Content::Torn);
    world.reset();
    for _ in 0..20 {
        world.goes_on();
    }
    assert_eq!((told(&world, job), world.booted), ("FAILED", Some(SetId::A)));
    assert_eq!(begun(&world), [0]);
    assert!(last_reason(&world).contains("the device left set B"), "{}", last_reason(&world));
}

#[test]
fn cloud_that_ends_the_job_before_the_reboot_stops_it_and_after_that_the_facts_win() {
    for phase in ["writing", "written", "armed", "trial"] {
        let (mut world, job) = device_in(phase, Firmware::good(0));
        world.cloud_ends(Status::Ended);
        let key = world.jobs[job].key.clone();
        world.feed(Event::Job(JobEvent::Closed(key.clone(), "CANCELED".into())));
        finish(&mut world);
        assert_eq!((world.status(job), begun(&world)), (Status::Ended, vec![0]), "{phase}");
        let (confirmed, ended) = (world.record().confirmed, world.record().finished(&key).cloned());
        assert_eq!(ended.unwrap().outcome, None, "{phase}: nothing more is said");
        assert_eq!(confirmed, Some(if phase == "trial" { SetId::B } else { SetId::A }), "{phase}");
        assert_eq!(world.env.listed(SetId::B), phase == "trial", "{phase}");
    }
}

#[test]
fn lost_record_is_settled_from_the_seal_and_the_job_goes_on() {
    for (like, end, steps) in
        [(Firmware::good(0), "SUCCEEDED", vec![0, 2]), (Firmware::dead(0), "FAILED", vec![0])]
    {
        let (mut world, job) = device_in("armed", like);
        while !world.rebooting {
            assert!(world.goes_on());
        }
        world.disk = None;
        world.reset();
        finish(&mut world);
        assert_eq!((told(&world, job), begun(&world)), (end, steps), "{}", last_reason(&world));
    }
}

#[test]
fn record_that_is_lost_before_arming_costs_the_download_and_no_step() {
    let (mut world, job) = device_in("writing", Firmware::good(0));
    while world.reporting {
        world.talk();
    }
    world.disk = None;
    world.reset();
    finish(&mut world);
    assert_eq!((told(&world, job), begun(&world)), ("SUCCEEDED", vec![0, 1, 2]));
}

#[test]
fn record_that_is_lost_in_another_step_ends_a_job_that_may_not_run_again() {
    let mut world = device();
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_general_job(firmware);
    while world.runner.is_none_or(|runner| runner.next == 0) {
        assert!(world.goes_on());
    }
    world.talk();
    world.disk = None;
    world.reset();
    finish(&mut world);
    assert_eq!((told(&world, job), begun(&world)), ("FAILED", vec![0]));
    assert!(last_reason(&world).contains("lost: it was in step 1/3: one"), "{}", last_reason(&world));
}

#[test]
fn image_that_runs_already_is_no_reason_to_reboot() {
    let (mut world, _) = device_in("armed", Firmware::good(0));
    finish(&mut world);
    let (resets, firmware) = (world.resets, world.running().unwrap());
    let job = world.new_general_job(firmware);
    finish(&mut world);
    assert_eq!((told(&world, job), world.resets), ("SUCCEEDED", resets));
    assert_eq!(begun(&world), [0, 2, 0, 2]);
}

#[test]
fn device_that_takes_no_update_fails_the_step() {
    let mut world = device();
    world.blind = 2;
    world.start_agent();
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_general_job(firmware);
    world.serve_general(job);
    while world.steps_go_on() {}
    assert!(last_reason(&world).contains("it does not answer"), "{}", last_reason(&world));
    assert!(last_reason(&world).ends_with(", in step install"), "{}", last_reason(&world));
    assert_eq!((begun(&world), world.record().outbox.len()), (vec![0], 1));
}

#[test]
fn image_that_is_refused_is_refused_before_any_step_ran() {
    let (mut world, _) = device_in("trial", Firmware::sick(0));
    finish(&mut world);
    let banned = world.jobs[0].firmware;
    let job = world.new_general_job(banned);
    finish(&mut world);
    assert_eq!((told(&world, job), begun(&world)), ("REJECTED", vec![0]));
    assert!(last_reason(&world).contains("this image is refused"), "{}", last_reason(&world));
}

#[test]
fn too_little_time_is_told_of_the_step() {
    let mut world = device();
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_general_job(firmware);
    while world.runner.is_none() {
        assert!(world.goes_on());
    }
    world.feed(Event::Cloud(Cloud::TimeLeft(Duration::from_secs(60))));
    finish(&mut world);
    assert_eq!(
        (told(&world, job), last_reason(&world).as_str()),
        ("FAILED", "too little time left, in step install")
    );
}

#[test]
fn after_the_reboot_of_a_step_the_installation_waits_until_the_running_set_is_settled() {
    let mut world = device();
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_general_job(firmware);
    while world.runner.is_none_or(|runner| runner.next == 0) {
        assert!(world.goes_on());
    }
    // The first step rebooted the device, and the harness finds that out for it.
    world.asked_for_reboot = true;
    world.reset();
    world.talk();
    assert_eq!(begun(&world), [0], "nothing is installed from a set that is not settled");
    finish(&mut world);
    assert_eq!((told(&world, job), begun(&world)), ("SUCCEEDED", vec![0, 1, 2]));
}

#[test]
fn power_cut_at_any_action_ends_the_job_once_and_truly() {
    for after in 0..40 {
        for kind in [FaultKind::CutBefore, FaultKind::CutAfter, FaultKind::CutTorn] {
            let mut world = device();
            let firmware = world.firmware(Firmware::good(0));
            let job = world.new_general_job(firmware);
            world.fault = Some(Fault { after, kind });
            for _ in 0..200 {
                if world.is_over() || !world.goes_on() {
                    break;
                }
            }
            world.calm_down();
            let (end, steps) = (told(&world, job), begun(&world));
            assert!(matches!(end, "SUCCEEDED" | "FAILED"), "{after} {kind:?}: {end}");
            if end == "SUCCEEDED" {
                assert_eq!(world.running(), Some(firmware), "{after} {kind:?}");
                assert_eq!(steps.last(), Some(&2), "{after} {kind:?}: {steps:?}");
            }
            for step in [0, 2] {
                let times = steps.iter().filter(|s| **s == step).count();
                assert!(times <= 1, "{after} {kind:?}: step {step} began {times} times");
            }
        }
    }
}

/// Its update is confirmed, and the disk takes no save any more since then.
fn confirmed_and_unsaved() -> (World, usize) {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    // The intent to confirm and the confirmation go well, the end of it does not. Anything else comes before.
    while world.phase() == "trial" {
        world.fault = Some(Fault { after: 2, kind: FaultKind::NotDone });
        assert!(world.goes_on());
    }
    world.disk_broken = true;
    assert!(world.phase() == "idle" && world.agent().unsaved());
    (world, job)
}

#[test]
fn no_step_begins_before_the_end_of_the_installation_is_saved() {
    let (mut world, job) = confirmed_and_unsaved();
    world.asking = true;
    world.talk();
    assert_eq!((begun(&world), world.record().outbox.len()), (vec![0], 0));
    world.disk_broken = false;
    finish(&mut world);
    assert_eq!((told(&world, job), begun(&world)), ("SUCCEEDED", vec![0, 2]));
}

#[test]
fn nothing_is_told_of_a_job_while_the_disk_still_holds_its_update() {
    let (mut world, job) = confirmed_and_unsaved();
    // Its document has become another one, which is wrong.
    let (key, outcome) = (world.jobs[job].key.clone(), Outcome::rejected("wrong"));
    world.feed(Event::Job(JobEvent::Ended { key, outcome, details: Details::new() }));
    assert_eq!(
        world.agent().sendable().count(),
        0,
        "a restart would find the update, and come to another end"
    );
    world.talk();
    world.disk_broken = false;
    world.reset();
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn job_that_waits_outlives_a_reset_of_the_boot_environment() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    while world.phase() != "idle" {
        assert!(world.goes_on());
    }
    world.env.reset();
    world.reset();
    assert_eq!(world.booted, Some(SetId::A), "the order is restored from there");
    world.asking = true;
    world.talk();
    assert_eq!((begun(&world), world.record().outbox.len()), (vec![0], 0));
    finish(&mut world);
    assert_eq!((told(&world, job), begun(&world), world.booted), ("SUCCEEDED", vec![0, 2], Some(SetId::B)));
}
