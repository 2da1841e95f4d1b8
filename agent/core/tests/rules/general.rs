//! General jobs: what the machine keeps of them, so that each ends in exactly one outcome.

use otandem_core::jobs::document::{JobDocument, JobPlan, OldSchema, parse_text};
use otandem_core::jobs::running::RunningJob;
use otandem_core::jobs::wire::Details;
use otandem_core::machine::{Event, JobEvent};
use otandem_core::update::{JobKey, Outcome, Then};

use super::{Firmware, actions, device, last_reason};
use crate::model::{ENDPOINT, Fault, FaultKind, GENERAL_JOB, THING, World};

fn key() -> JobKey {
    JobKey {
        endpoint: ENDPOINT.into(),
        thing: THING.into(),
        job: GENERAL_JOB.into(),
        execution: 1,
        queued_at: 7,
    }
}

fn plan() -> Box<JobPlan> {
    let text = br#"{"version":"1.0","steps":[
        {"action":{"name":"one","type":"runCommand","input":{"command":"true"}}},
        {"action":{"name":"two","type":"runCommand","input":{"command":"true"}}}]}"#;
    match parse_text(text, OldSchema::default()) {
        Ok(JobDocument::Plan(plan)) => Box::new(plan),
        other => panic!("{other:?}"),
    }
}

fn start(world: &mut World) {
    let job = RunningJob {
        key: key(),
        boot_id: world.boot_id(),
        step: 0,
        steps: 2,
        name: "one".into(),
        rerunnable: false,
        closed: false,
        waits: false,
        ignore_failure: false,
        set: None,
        since: 0,
        details: Details::new(),
    };
    world.feed(Event::Job(JobEvent::Start(Box::new(job), plan())));
}

fn ended(outcome: Outcome) -> Event {
    Event::Job(JobEvent::Ended {
        key: key(),
        outcome,
        details: Details::from([("stderr".into(), "x".into())]),
    })
}

fn found(world: &mut World, asked_for_reboot: bool) {
    let boot_id = world.boot_id();
    world.feed(Event::Job(JobEvent::Found { boot_id, asked_for_reboot }));
}

fn on_disk(world: &World) -> Option<usize> {
    world.disk.as_ref().and_then(|record| record.job.as_ref()).map(|job| job.step)
}

fn outcomes(world: &World) -> Vec<&'static str> {
    let kind =
        |f: &otandem_core::record::Finished| f.outcome.as_ref().map_or("", otandem_core::jobs::wire::status);
    world.record().outbox.iter().map(kind).collect()
}

#[test]
fn job_is_on_disk_before_it_runs_and_its_outcome_before_it_is_sent() {
    let mut world = device();
    let from = world.done.len();
    start(&mut world);
    assert_eq!(actions(&world, from), ["Save", "RunJob"]);
    assert_eq!(on_disk(&world), Some(0));
    world.feed(Event::Job(JobEvent::Step { step: 1, name: "two".into() }));
    assert_eq!(on_disk(&world), Some(1));
    assert!(
        !world.agent().takes_jobs() && !world.agent().ready(),
        "one job at a time, and no update beside it"
    );
    let from = world.done.len();
    world.feed(ended(Outcome::succeeded("Job exited with status: 0")));
    assert_eq!(actions(&world, from), ["Save", "Flush"]);
    let disk = world.disk.clone().unwrap();
    assert_eq!((disk.job, disk.outbox.len()), (None, 1));
    assert_eq!(disk.outbox[0].details["stderr"], "x");
    assert!(disk.finished[0].details.is_empty(), "what programs wrote is kept until it was told");
    assert!(world.agent().takes_jobs());
}

#[test]
fn job_that_cannot_be_saved_does_not_run() {
    let mut world = device();
    world.disk_broken = true;
    let from = world.done.len();
    start(&mut world);
    assert!(!actions(&world, from).contains(&"RunJob"));
    assert_eq!(outcomes(&world), ["FAILED"]);
    assert!(last_reason(&world).contains("cannot be saved"), "{}", last_reason(&world));
}

#[test]
fn no_update_is_taken_while_a_job_runs() {
    let mut world = device();
    start(&mut world);
    let firmware = world.firmware(Firmware::good(0));
    let update = world.local_update(firmware, Then::Reboot);
    world.feed(Event::Offer(Box::new(update)));
    assert_eq!(world.phase(), "idle");
    assert!(
        matches!(world.answers.last(), Some(Err(why)) if why.contains("step 1/2: one")),
        "{:?}",
        world.answers
    );
}

#[test]
fn job_that_ran_when_the_power_went_has_failed_and_is_told() {
    let mut world = device();
    start(&mut world);
    world.reset();
    found(&mut world, false);
    assert_eq!(outcomes(&world), ["FAILED"]);
    assert_eq!(last_reason(&world), "interrupted by restart of the device in step 1/2: one");
    assert_eq!(on_disk(&world), None);
}

#[test]
fn reboot_that_a_job_asked_for_is_its_success_and_its_other_steps_follow() {
    let mut world = device();
    start(&mut world);
    world.reset();
    found(&mut world, true);
    let next = world.agent().interrupted_job().cloned().unwrap();
    assert_eq!((next.step, on_disk(&world)), (1, Some(1)));
    world.feed(Event::Job(JobEvent::Start(Box::new(next), plan())));
    assert!(world.agent().running_job().is_some());
    // That step reboots as well, and is the last.
    world.reset();
    found(&mut world, true);
    assert_eq!(outcomes(&world), ["SUCCEEDED"]);
}

#[test]
fn job_that_the_cloud_ended_is_stopped_and_told_to_nobody() {
    let mut world = device();
    start(&mut world);
    let from = world.done.len();
    world.feed(Event::Job(JobEvent::Closed(key(), "CANCELED".into())));
    world.feed(Event::Job(JobEvent::Closed(key(), "CANCELED".into())));
    assert_eq!(actions(&world, from), ["Say", "StopJob"]);
    assert!(!world.agent().takes_jobs(), "its processes are not gone yet");
    world.feed(ended(Outcome::failed("Job stopped")));
    assert!(outcomes(&world).is_empty() && world.agent().takes_jobs());
    assert!(world.record().finished(&key()).is_some());
}

#[test]
fn end_of_a_job_counts_once() {
    let mut world = device();
    start(&mut world);
    world.feed(ended(Outcome::succeeded("first")));
    world.feed(ended(Outcome::failed("second")));
    assert_eq!(outcomes(&world), ["SUCCEEDED"]);
    start(&mut world);
    assert!(world.agent().running_job().is_none(), "an execution that ended here does not run again");
}

#[test]
fn torn_save_of_a_step_leaves_a_job_that_is_told_all_the_same() {
    let mut world = device();
    start(&mut world);
    world.fault = Some(Fault { after: 0, kind: FaultKind::CutTorn });
    world.feed(Event::Job(JobEvent::Step { step: 1, name: "two".into() }));
    found(&mut world, false);
    assert_eq!(outcomes(&world), ["FAILED"]);
}
