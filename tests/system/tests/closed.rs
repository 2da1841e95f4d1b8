//! Jobs that the cloud ends by itself.

use std::time::Duration;

use otandem_core::boot::SetId;
use otandem_lab::{Direction, Force, JobSpec, MqttFault, Operation, Rule, Snapshot, Status};
use otandem_system_tests::Health;
use otandem_system_tests::device::Script;
use otandem_system_tests::pack::Packing;
use otandem_system_tests::world::World;

/// The device has told that it is in this phase.
fn told(lab: &Snapshot<'_>, phase: &str) -> bool {
    let seal = format!("v1;{phase};");
    lab.messages(Direction::In, "/update")
        .any(|e| e.json()["statusDetails"]["otandem"].as_str().is_some_and(|s| s.starts_with(&seal)))
}

/// No outcome of this job was ever sent.
fn assert_silent(world: &World, job: &str) {
    let sent = world.lab.inspect(|lab| {
        let end = format!("/{job}/update");
        let outcomes =
            lab.messages(Direction::In, &end).map(|e| e.json()["status"].as_str().unwrap_or("").to_owned());
        outcomes.filter(|status| status != "IN_PROGRESS").collect::<Vec<_>>()
    });
    assert_eq!(sent, [] as [String; 0], "an outcome for a job that the cloud ended");
}

/// After all that, a good job is served.
fn next_job_is_served(world: &World, version: &str) {
    let image = world.image(version, Health::Good);
    world.run("next", &world.publish(&image, Packing::Zstd).document, Status::Succeeded, version);
}

#[test]
fn cancel_while_downloading_stops_and_touches_nothing() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    world.job_stalled("update", &published, 50);
    world.lab.cancel_job("update", Force::Yes).unwrap();
    next_job_is_served(&world, "3.0");
    world.wait_status("update", Status::Canceled);
    assert_silent(&world, "update");
    assert_eq!(world.device.look(|heard| heard.boots.len()), 2, "only the second job reboots");
    world.finish();
}

#[test]
fn cancel_while_armed_disarms() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    world.device.make_gate("written").unwrap();
    world.device.script(Script::Hook("pre-reboot"), "gate written\n").unwrap();
    world.job("update", &published.document);
    world.wait_gate("written");
    world.wait_lab("the answer to phase written", |lab| {
        let end = lab.jobs.execution(&world.thing, "update")?.details.as_ref()?.get("phase")? == "written";
        let (asked, answered) = (Direction::In, Direction::Out);
        let all =
            lab.messages(asked, "/update").count() == lab.messages(answered, "/update/accepted").count();
        (end && all).then_some(())
    });
    // Without the acknowledgement of the seal the device waits before the reboot.
    world.lab.fault(Rule::always(MqttFault::DropAnswer(Operation::Update)));
    world.device.folder().remove_script(Script::Hook("pre-reboot")).unwrap();
    world.device.open_gate("written").unwrap();
    world.wait_lab("phase armed", |lab| told(lab, "armed").then_some(()));
    world.lab.clear_faults();
    world.lab.cancel_job("update", Force::Yes).unwrap();
    next_job_is_served(&world, "3.0");
    assert_silent(&world, "update");
    let images: Vec<_> =
        world.device.look(|heard| heard.boots.iter().flat_map(|b| b.images.clone()).flatten().collect());
    assert_eq!(images, ["factory", "3.0"], "the cancelled image was tried");
    world.finish();
}

#[test]
fn cancel_in_the_trial_lets_the_facts_win() {
    let world = World::new();
    world.device.make_gate("trial").unwrap();
    world.device.health_after("test \"$OTANDEM_SET\" = A || gate trial").unwrap();
    let image = world.image("2.0", Health::Good);
    world.job("update", &world.publish(&image, Packing::Zstd).document);
    world.wait_gate("trial");
    world.lab.cancel_job("update", Force::Yes).unwrap();
    world.device.health_after("").unwrap();
    world.device.open_gate("trial").unwrap();
    next_job_is_served(&world, "3.0");
    assert_eq!(world.device.booted(), Some(SetId::A), "2.0 was made permanent in B, so 3.0 runs in A");
    world.wait_status("update", Status::Canceled);
    world.finish();
}

#[test]
fn deleted_and_created_again_is_another_job() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    world.job_stalled("update", &published, 50);
    world.lab.delete_job("update", Force::Yes).unwrap();
    world.lab.advance(Duration::from_secs(5));
    let other = world.image("3.0", Health::Good);
    world.run("update", &world.publish(&other, Packing::Zstd).document, Status::Succeeded, "3.0");
    world.finish();
}

#[test]
fn job_that_times_out_in_the_cloud_is_stopped_and_the_next_is_served() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    let stop = world.stall(&published, 50);
    let mut spec = JobSpec::new("update", &world.thing, &published.document.to_string());
    spec.in_progress_timeout = Some(Duration::from_secs(3600));
    world.lab.create_job(&spec).unwrap();
    world.wait_sent(&published.path, stop);
    world.lab.advance(Duration::from_secs(3700));
    next_job_is_served(&world, "3.0");
    world.wait_status("update", Status::TimedOut);
    assert_silent(&world, "update");
    world.finish();
}

#[test]
fn job_without_the_time_for_reboot_and_trial_is_not_armed() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    let mut spec = JobSpec::new("update", &world.thing, &published.document.to_string());
    spec.in_progress_timeout = Some(Duration::from_secs(60));
    world.lab.create_job(&spec).unwrap();
    world.expect_end("update", Status::Failed, "too little time left");
    assert_eq!(world.device.look(|heard| heard.boots.len()), 1);
    next_job_is_served(&world, "3.0");
    world.finish();
}
