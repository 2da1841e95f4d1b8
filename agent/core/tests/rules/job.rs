//! UPDATE-RULES 5: the job around an update.

use std::time::Duration;

use otandem_core::boot::SetId;
use otandem_core::jobs::wire::Details;
use otandem_core::machine::{Action, Cloud, Event, Health, HookAnswer, PROGRESS_EVERY, WrittenImage};
use otandem_core::record::{FINISHED_KEPT, Finished};
use otandem_core::update::{Origin, Outcome, Then};

use super::{Firmware, actions, device, device_in, failed, finish, go_to, last_reason, told};
use crate::model::{Pipeline, Status, THING};

#[test]
fn known_execution_is_answered_from_what_is_known() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    finish(&mut world);
    // The cloud forgot the answer.
    world.jobs[job].status = Status::InProgress;
    let from = world.done.len();
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
    assert!(!actions(&world, from).contains(&"Fetch"));
}

#[test]
fn known_execution_that_failed_is_not_settled_a_second_time_by_its_seal() {
    let (mut world, job) = device_in("trial", Firmware::sick(0));
    finish(&mut world);
    let key = world.jobs[job].key.clone();
    let before = world.record().finished(&key).cloned();
    world.jobs[job].status = Status::InProgress;
    assert!(world.jobs[job].seal.is_some());
    finish(&mut world);
    assert_eq!(told(&world, job), "FAILED");
    assert_eq!(world.record().finished(&key).cloned(), before);
}

#[test]
fn execution_that_the_cloud_ended_and_offers_again_fails() {
    let (mut world, job) = device_in("writing", Firmware::good(0));
    world.cloud_ends(Status::Ended);
    world.notify();
    world.jobs[job].status = Status::InProgress;
    finish(&mut world);
    assert_eq!(told(&world, job), "FAILED");
}

#[test]
fn retry_and_recreated_job_are_other_executions() {
    for recreated in [false, true] {
        let (mut world, job) = device_in("writing", Firmware::good(0));
        world.cloud_ends(Status::Ended);
        world.notify();
        world.job_again(recreated);
        finish(&mut world);
        assert_eq!(told(&world, job + 1), "SUCCEEDED");
    }
}

#[test]
fn sixteen_finished_executions_are_remembered() {
    let mut world = device();
    for _ in 0..FINISHED_KEPT + 3 {
        let firmware = Firmware::good(1);
        let job = world.new_job(firmware);
        let key = world.jobs[job].key.clone();
        world.jobs[job].status = Status::Deleted;
        world.feed(Event::JobEnded(key, Outcome::rejected("malformed")));
        world.talk();
    }
    assert_eq!(world.record().finished.len(), FINISHED_KEPT);
}

#[test]
fn jobs_of_another_thing_are_disowned() {
    let (world, job) = device_in("writing", Firmware::good(0));
    let key = world.jobs[job].key.clone();
    let mut record = world.record().clone();
    let outcome = Some(Outcome::failed("x"));
    record.outbox.push(Finished { key: key.clone(), outcome, seal: None, details: Details::new() });
    assert!(!record.clone().disown(&key.endpoint, THING));
    assert!(record.disown(&key.endpoint, "the clone"));
    assert_eq!((record.state.name(), record.outbox.len()), ("idle", 0));

    // The bootloader may know of what was armed: that is settled, and nobody is told.
    let (world, _) = device_in("armed", Firmware::good(0));
    let mut record = world.record().clone();
    assert!(record.disown("another.example", THING));
    assert_eq!(record.state.name(), "armed");
    assert!(record.state.update().is_some_and(|u| u.origin.open_job().is_none()));
}

#[test]
fn refused_job_is_recorded_and_told_once() {
    let mut world = device();
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_job(firmware);
    let key = world.jobs[job].key.clone();
    world.feed(Event::JobEnded(key.clone(), Outcome::rejected("malformed")));
    world.feed(Event::JobEnded(key, Outcome::failed("another word")));
    assert_eq!(world.record().outbox.len(), 1);
    finish(&mut world);
    assert_eq!(told(&world, job), "REJECTED");
}

#[test]
fn no_job_is_taken_while_an_update_is_under_way_or_the_set_is_not_kept() {
    for phase in ["accepted", "writing", "written", "armed", "trial"] {
        let (mut world, _) = device_in(phase, Firmware::good(0));
        let before = world.record().clone();
        let other = world.firmware(Firmware::good(0));
        let other = world.new_job(other);
        let target = world.booted.expect("runs").other();
        let update = Box::new(world.update_of(other, target));
        world.feed(Event::Offer(update));
        assert_eq!(*world.record(), before);
    }
    let mut world = device();
    world.reset();
    let firmware = world.firmware(Firmware::good(0));
    let update = Box::new(world.local_update(firmware, Then::Reboot));
    world.feed(Event::Offer(update));
    assert_eq!(world.phase(), "idle");
    assert!(world.answers.last().is_some_and(Result::is_err), "who asks is told");
}

#[test]
fn changed_document_fails() {
    let (mut world, job) = device_in("writing", Firmware::good(0));
    let other = world.firmware(Firmware::good(0));
    let image = world.image(other, true);
    world.feed(Event::Cloud(Cloud::Alive(Some(vec![image]))));
    assert_eq!(world.pipeline, Pipeline::No);
    finish(&mut world);
    assert_eq!(told(&world, job), "FAILED");
}

#[test]
fn fresh_url_of_the_same_image_is_taken() {
    let (mut world, _) = device_in("writing", Firmware::good(0));
    let firmware = world.jobs[0].firmware;
    let image = world.image(firmware, true);
    let url = image.source.clone();
    world.feed(Event::Cloud(Cloud::Alive(Some(vec![image]))));
    assert_eq!(world.record().state.update().expect("under way").images[0].source, url);
    assert_eq!(world.pipeline, Pipeline::Writing);
}

#[test]
fn nothing_is_armed_on_the_word_of_the_pipeline_alone() {
    let (mut world, job) = device_in("writing", Firmware::good(0));
    let wrong = WrittenImage { sha256: Firmware::good(99).digest(), size: 100, file_sha256: None, md5: None };
    world.pipeline = Pipeline::No;
    world.feed(Event::Written(vec![wrong]));
    finish(&mut world);
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::A), "FAILED"));
}

#[test]
fn job_cannot_succeed_by_holding() {
    let mut world = device();
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_job(firmware);
    world.jobs[job].then = Then::Hold;
    go_to(&mut world, "armed");
    finish(&mut world);
    assert_eq!((world.running(), told(&world, job)), (Some(firmware), "SUCCEEDED"));
}

// --- 5.4: the cloud ends the job ------------------------------------------------------------------------------

#[test]
fn cancel_before_arming_stops_and_tells_nobody() {
    for phase in ["accepted", "writing", "written"] {
        let (mut world, job) = device_in(phase, Firmware::good(0));
        world.cloud_ends(Status::Ended);
        world.notify();
        assert_eq!((world.phase(), world.pipeline), ("idle", Pipeline::No));
        assert_eq!((world.record().outbox.len(), world.status(job)), (0, Status::Ended));
        assert!(world.agent().ready());
    }
}

#[test]
fn cancel_while_armed_disarms() {
    let (mut world, _) = device_in("armed", Firmware::good(0));
    assert!(world.env.listed(SetId::B));
    world.cloud_ends(Status::Ended);
    world.notify();
    assert_eq!(world.phase(), "idle");
    assert!(!world.env.listed(SetId::B) && !world.rebooting);
    assert_eq!(world.record().bans, []);
}

#[test]
fn cancel_after_the_accepted_reboot_lets_the_facts_win() {
    let (mut world, job) = device_in("armed", Firmware::good(0));
    world.talk();
    assert!(world.rebooting);
    world.cloud_ends(Status::Ended);
    world.notify();
    assert_eq!(world.phase(), "armed");
    assert_eq!(
        world.env.primary(),
        Some(SetId::B),
        "nobody writes to the bootloader while the device goes down"
    );
    finish(&mut world);
    assert_eq!((world.booted, world.status(job)), (Some(SetId::B), Status::Ended));
}

#[test]
fn cancel_in_trial_lets_the_facts_win() {
    for (like, runs) in [(Firmware::good(0), SetId::B), (Firmware::sick(0), SetId::A)] {
        let (mut world, job) = device_in("trial", like);
        world.cloud_ends(Status::Ended);
        world.notify();
        assert_eq!(world.phase(), "trial");
        finish(&mut world);
        assert_eq!((world.booted, world.status(job)), (Some(runs), Status::Ended));
        assert_eq!(failed(&world), runs == SetId::A, "the outcome is known here all the same");
        assert!(world.record().finished(&world.jobs[job].key).is_some_and(|f| f.outcome.is_some()));
    }
}

#[test]
fn too_little_time_left_does_not_arm() {
    let (mut world, job) = device_in("written", Firmware::good(0));
    let left = world.rules.reboot_reserve;
    world.feed(Event::Cloud(Cloud::TimeLeft(left)));
    world.pass(Duration::from_secs(1));
    let from = world.done.len();
    world.answer_hook(HookAnswer::Done);
    assert!(!actions(&world, from).contains(&"Arm"));
    finish(&mut world);
    assert_eq!((last_reason(&world).as_str(), told(&world, job)), ("too little time left", "FAILED"));
}

#[test]
fn time_left_of_an_earlier_job_says_nothing_about_the_next() {
    let mut world = device();
    world.feed(Event::Cloud(Cloud::TimeLeft(Duration::ZERO)));
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_job(firmware);
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

// --- Telling --------------------------------------------------------------------------------------------------

#[test]
fn outcome_is_sent_until_it_is_acknowledged() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.loses_answers = true;
    world.feed(Event::Cloud(Cloud::Accepted));
    world.feed(Event::Health(Health::Passed));
    world.talk();
    world.reset();
    assert_eq!(world.agent().sendable().count(), 1);
    world.loses_answers = false;
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
    assert_eq!(world.disk.as_ref().expect("saved").outbox, []);
}

#[test]
fn progress_is_reported_every_10_s_and_5_per_cent_at_most() {
    let (mut world, _) = device_in("writing", Firmware::good(0));
    let mut progress = |done: u64, later: Duration| {
        world.pass(later);
        let from = world.done.len();
        world.feed(Event::Progress { done, total: Some(100) });
        actions(&world, from).contains(&"Report")
    };
    assert!(progress(1, Duration::ZERO));
    assert!(!progress(50, Duration::ZERO), "too soon");
    assert!(!progress(5, PROGRESS_EVERY), "too little");
    assert!(progress(60, Duration::ZERO));
}

#[test]
fn reasons_are_bounded_and_on_one_line() {
    let (mut world, _) = device_in("writing", Firmware::good(0));
    world.feed(Event::FetchEnded(Outcome::failed("a\nb".repeat(5000))));
    let reason = last_reason(&world);
    assert!(reason.len() < 1000 && !reason.contains('\n'));
}

#[test]
fn local_update_is_told_to_nobody_but_the_person() {
    let mut world = device();
    let firmware = world.firmware(Firmware::good(0));
    let update = world.local_update(firmware, Then::Hold);
    assert_eq!(update.origin, Origin::Local);
    world.feed(Event::Offer(Box::new(update)));
    finish(&mut world);
    assert_eq!(world.record().finished, []);
    assert_eq!(world.answers, [Ok("written and verified; not armed".to_owned())]);
    assert!(!world.env.listed(SetId::B));
    assert!(!world.done.iter().any(|a| *a == format!("{:?}", Action::Arm(SetId::B))));
}

#[test]
fn refusal_for_want_of_a_disk_is_sent_without_the_disk() {
    let mut world = device();
    world.disk_broken = true;
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_job(firmware);
    let mut update = world.local_update(firmware, Then::Reboot);
    update.origin = Origin::Job { key: world.jobs[job].key.clone(), closed: false };
    let from = world.done.len();
    // The device was idle and had nothing to save, so that it did not know of the disk before.
    world.feed(Event::Offer(Box::new(update)));
    assert!(last_reason(&world).contains("cannot be saved"), "{}", last_reason(&world));
    assert!(actions(&world, from).contains(&"Flush"), "{:?}", actions(&world, from));
    assert!(world.agent().sendable().next().is_some());
}
