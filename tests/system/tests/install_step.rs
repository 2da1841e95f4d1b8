//! General jobs with a step that installs an image: over the reboot and back.

use otandem_core::boot::SetId;
use otandem_lab::{Direction, Force, HttpFault, MqttFault, Operation, Position, Rule, Status};
use otandem_system_tests::device::{Heard, Reboots, Script};
use otandem_system_tests::pack::Packing;
use otandem_system_tests::world::{LIMIT, Published, World};
use otandem_system_tests::{Health, Image};
use serde_json::{Value, json};

fn handler(name: &str) -> Value {
    json!({"action": {"name": name, "type": "runHandler", "input": {"handler": name, "path": "default"}}})
}

/// Stop the services, install, and start them again on the new set.
fn document(published: &Published) -> Value {
    let image = published.document["image"].clone();
    json!({"version": "1.0", "includeStdOut": true, "steps": [handler("stop"),
        {"action": {"name": "install", "type": "installImage", "input": {"image": image}}}],
        "finalStep": handler("start")})
}

/// A device whose handlers say on which set they run.
fn world() -> World {
    let world = World::new();
    let says = |what: &str| format!("echo {what}; tell {what}\n");
    world.device.script(Script::Handler("stop"), &says("stop")).unwrap();
    world.device.script(Script::Handler("start"), &says("start")).unwrap();
    world
}

fn image(world: &World, health: Health) -> (Image, Published) {
    let image = world.image("2.0", health);
    let published = world.publish(&image, Packing::Zstd);
    (image, published)
}

/// How often the handlers ran.
fn ran(world: &World) -> (usize, usize) {
    let count = |what| world.device.look(|heard| heard.events.iter().filter(|e| *e == what).count());
    (count("stop"), count("start"))
}

fn boots(world: &World) -> usize {
    world.device.look(|heard| heard.boots.len())
}

/// What was said about the job, one line for each change of the status.
fn statuses(world: &World, job: &str) -> Vec<String> {
    let mut said = world.lab.inspect(|lab| {
        let end = format!("/{job}/update");
        let status = |e: &otandem_lab::Entry| e.json()["status"].as_str().unwrap_or_default().to_owned();
        lab.messages(Direction::In, &end).map(status).collect::<Vec<_>>()
    });
    said.dedup();
    said
}

#[test]
fn a_job_stops_services_installs_and_runs_its_final_step_behind_the_confirmed_reboot() {
    let world = world();
    world.device.make_gate("start").unwrap();
    world.device.script(Script::Handler("start"), "tell start; gate start; echo start\n").unwrap();
    let (image, published) = image(&world, Health::Good);
    world.job("job", &document(&published));
    world.wait_gate("start");
    assert_eq!((world.device.booted(), boots(&world)), (Some(SetId::B), 2));
    assert_eq!(world.device.status().unwrap()["confirmed"], "B", "before the next step runs");
    world.wait_lab("the progress of the job", |lab| {
        let execution = lab.jobs.execution(&world.thing, "job")?;
        (execution.details.as_ref()?.get("progress")? == "step 3/3: start").then_some(())
    });
    world.device.open_gate("start").unwrap();
    world.expect_end("job", Status::Succeeded, "Job exited with status: 0");
    let wrote = world.details("job")["stdout"].split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(wrote, ["stop", "start"], "of all steps, over the reboot");
    assert_eq!(
        (ran(&world), statuses(&world, "job")),
        ((1, 1), vec!["IN_PROGRESS".into(), "SUCCEEDED".into()])
    );
    assert_eq!(world.device.digest(SetId::B, "rootfs"), image.sha256);
    // The same image once more: nothing to do, and no reboot.
    world.device.script(Script::Handler("start"), "tell start\n").unwrap();
    world.run("again", &document(&published), Status::Succeeded, "Job exited with status: 0");
    assert_eq!((ran(&world), boots(&world)), ((2, 2), 2));
    world.finish();
}

#[test]
fn an_image_that_is_rolled_back_fails_the_job_and_the_final_step_does_not_run() {
    let world = world();
    let (_, published) = image(&world, Health::Hopeless);
    world.run("job", &document(&published), Status::Failed, "rolled back: health check");
    let reason = world.details("job")["reason"].clone();
    assert!(reason.ends_with(", in step install"), "{reason}");
    assert_eq!((ran(&world), world.device.booted()), ((1, 0), Some(SetId::A)));
    world.device.script(Script::Handler("stop"), "tell stop\n").unwrap();
    let next = json!({"version": "1.0", "steps": [handler("stop")]});
    world.run("next", &next, Status::Succeeded, "");
    world.finish();
}

#[test]
fn kill_and_power_cut_in_the_download_resume_it_and_run_no_step_twice() {
    for cut in [false, true] {
        let world = world();
        let (image, published) = image(&world, Health::Good);
        let at = world.stall(&published, 60);
        world.job("job", &document(&published));
        world.wait_sent(&published.path, at);
        world.wait_log("checkpoint saved at 2097152 bytes");
        if cut {
            world.device.power_cut().unwrap();
        } else {
            world.device.kill_agent(|| ()).unwrap();
        }
        world.lab.release_stalls();
        world.expect_end("job", Status::Succeeded, "Job exited with status: 0");
        assert_eq!((ran(&world), world.device.digest(SetId::B, "rootfs")), ((1, 1), image.sha256));
        let count = world.counters().path(&published.path);
        assert!(count.offsets.last().unwrap() > &0, "goes on where it was: {count:?}");
        world.finish();
    }
}

#[test]
fn a_job_that_is_cancelled_in_the_download_touches_nothing_and_runs_nothing_more() {
    let world = world();
    let (_, published) = image(&world, Health::Good);
    let at = world.stall(&published, 50);
    world.job("job", &document(&published));
    world.wait_sent(&published.path, at);
    let status = world.device.status().unwrap();
    let shown = [&status["job"]["state"], &status["job"]["step"], &status["job"]["name"], &status["phase"]];
    assert_eq!(json!(shown), json!(["installing", 2, "install", "writing"]));
    let by_hand = json!({"version": "1.0", "steps": [handler("stop")]}).to_string();
    let refused = world.device.run_fed(&["job", "run", "-"], by_hand.as_bytes(), 75).unwrap();
    assert!(refused.contains("job job (execution 1) is under way: step 2/3: install"), "{refused}");
    world.lab.cancel_job("job", Force::Yes).unwrap();
    world.lab.release_stalls();
    let next = json!({"version": "1.0", "steps": [handler("stop")]});
    world.run("next", &next, Status::Succeeded, "");
    assert_eq!((ran(&world), statuses(&world, "job")), ((2, 0), vec!["IN_PROGRESS".into()]));
    assert_eq!((world.device.booted(), boots(&world)), (Some(SetId::A), 1));
    world.finish();
}

#[test]
fn a_url_that_expired_is_renewed_for_the_step() {
    let world = world();
    let (image, published) = image(&world, Health::Good);
    let at = Position::Object((published.file_size / 2) as u64);
    world.lab.fault(Rule::once(HttpFault::ExpireAt(at)).path(&published.path));
    world.run("job", &document(&published), Status::Succeeded, "Job exited with status: 0");
    assert_eq!((ran(&world), world.device.digest(SetId::B, "rootfs")), ((1, 1), image.sha256));
    assert!(world.counters().path(&published.path).statuses.contains(&403));
    world.finish();
}

#[test]
fn a_record_that_is_lost_between_arming_and_trial_is_settled_from_the_cloud_and_the_job_goes_on() {
    let world = world();
    world.device.reboots(Reboots::ByHand);
    let (image, published) = image(&world, Health::Good);
    world.job("job", &document(&published));
    world.device.wait("the reboot", LIMIT, |heard| (heard.reboots_due > 0).then_some(())).unwrap();
    world.device.power_off().unwrap();
    for copy in ["record.0", "record.1"] {
        std::fs::remove_file(world.device.folder().path("state").join(copy)).unwrap();
    }
    world.device.reboots(Reboots::AtOnce);
    world.device.power_on().unwrap();
    world.expect_end("job", Status::Succeeded, "Job exited with status: 0");
    assert_eq!((ran(&world), world.device.digest(SetId::B, "rootfs")), ((1, 1), image.sha256));
    world.finish();
}

#[test]
fn a_device_whose_updates_are_misconfigured_fails_the_step_and_says_why() {
    let world = World::off(|spec| spec.with("update", "trial-boots", "99"));
    world.device.script(Script::Handler("stop"), "tell stop\n").unwrap();
    world.device.power_on().unwrap();
    world.wait_connected(1);
    let (_, published) = image(&world, Health::Good);
    world.run("job", &document(&published), Status::Failed, "this device takes no update");
    let reason = world.details("job")["reason"].clone();
    assert!(reason.ends_with(", in step install"), "{reason}");
    assert_eq!(ran(&world), (1, 0));
    world.finish();
}

#[test]
fn the_calls_of_a_device_without_daemon_leave_a_job_that_goes_on_to_the_daemon() {
    let world = World::with(|spec| spec.with("update", "require-cloud", "false"));
    world.device.script(Script::Handler("stop"), "tell stop\n").unwrap();
    world.device.script(Script::Handler("start"), "tell start\n").unwrap();
    world.device.script(Script::Hook("post-confirm"), "tell confirmed\n").unwrap();
    world.device.reboots(Reboots::ByHand);
    let (_, published) = image(&world, Health::Good);
    world.job("job", &document(&published));
    world.device.wait("the reboot", LIMIT, |heard| (heard.reboots_due > 0).then_some(())).unwrap();
    // The document does not come back, and the agent ends while its job waits for it.
    world.lab.fault(Rule::always(MqttFault::DropAnswer(Operation::StartNext)));
    world.device.reboot().unwrap();
    let confirmed = |heard: &Heard| heard.events.iter().any(|e| e == "confirmed").then_some(());
    world.device.wait("the confirmation", LIMIT, confirmed).unwrap();
    let job = world.device.status().unwrap()["job"].clone();
    assert_eq!((&job["state"], &job["step"]), (&json!("waiting"), &json!(3)));
    world.device.stop_agent().unwrap();
    world.lab.clear_faults();
    world.device.run(&["fota", "handle", "--force"], 0).unwrap();
    assert_eq!((ran(&world), statuses(&world, "job")), ((1, 0), vec!["IN_PROGRESS".into()]));
    world.device.start_agent().unwrap();
    world.expect_end("job", Status::Succeeded, "Job exited with status: 0");
    assert_eq!(ran(&world), (1, 1));
    world.finish();
}
