//! One test for each rule of UPDATE-RULES 2 to 5 that the update machine answers for, told on the same world as the
//! random histories.

mod model;

#[path = "rules/ban.rs"]
mod ban;
#[path = "rules/boot.rs"]
mod boot;
#[path = "rules/general.rs"]
mod general;
#[path = "rules/job.rs"]
mod job;
#[path = "rules/people.rs"]
mod people;
#[path = "rules/record.rs"]
mod record;
#[path = "rules/step.rs"]
mod step;
#[path = "rules/trial.rs"]
mod trial;

use otandem_core::update::Outcome;

use model::{Firmware, Setup, Status, World};

/// A device on set A that waits for work.
fn device() -> World {
    device_like(Setup::default())
}

fn device_like(setup: Setup) -> World {
    let mut world = World::new(setup);
    go_to(&mut world, "idle");
    while !world.agent().ready() {
        assert!(world.goes_on(), "does not become ready");
    }
    world
}

/// Everything goes as it should until the machine is in `phase`.
fn go_to(world: &mut World, phase: &str) {
    for _ in 0..60 {
        if world.phase() == phase {
            return;
        }
        assert!(world.goes_on(), "hangs in {} on the way to {phase}", world.phase());
    }
    panic!("does not come to {phase}, is in {}", world.phase());
}

/// The same, until everything is over.
fn finish(world: &mut World) {
    for _ in 0..100 {
        if world.is_over() {
            return;
        }
        assert!(world.goes_on(), "hangs in {}", world.phase());
    }
    panic!("does not end, is in {}", world.phase());
}

/// A device with a job in `phase`.
fn device_in(phase: &str, like: Firmware) -> (World, usize) {
    let mut world = device();
    let firmware = world.firmware(like);
    let job = world.new_job(firmware);
    go_to(&mut world, phase);
    (world, job)
}

/// Everything goes on, but without the cloud: what the device does by itself.
fn go_without_cloud(world: &mut World) {
    let firmware = world.running().expect("a complete set runs");
    let booted = world.booted.expect("a set runs");
    world.put(booted, model::Content::Complete(Firmware { reaches_cloud: false, ..firmware }));
}

fn last_reason(world: &World) -> String {
    world.record().last.as_ref().map(|o| o.reason().to_owned()).unwrap_or_default()
}

fn failed(world: &World) -> bool {
    matches!(world.record().last, Some(Outcome::Failed { .. }))
}

fn told(world: &World, job: usize) -> &'static str {
    match world.status(job) {
        Status::Told(status) => status,
        other => panic!("nothing was told: {other:?}"),
    }
}

/// What was done since `from`, the names of the actions only.
fn actions(world: &World, from: usize) -> Vec<&str> {
    world.done[from..].iter().map(|a| a.split(['(', ' ']).next().unwrap_or_default()).collect()
}

/// `wanted` were done in this order, whatever was done between.
fn in_order(done: &[&str], wanted: &[&str]) -> bool {
    let mut rest = done.iter();
    wanted.iter().all(|w| rest.any(|d| d == w))
}
