//! The five FOTA calls: one by one, in any order, and all together; with the daemon and without it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use otandem_core::boot::SetId;
use otandem_lab::{Direction, Scheme, Status};
use otandem_system_tests::device::{Device, Heard, Reboots, Script};
use otandem_system_tests::pack::Packing;
use otandem_system_tests::world::{LIMIT, Published, SIZE, World};
use otandem_system_tests::{Health, Image};
use serde_json::{Value, json};

/// A device that is on, whose agent does not run, and no job.
fn without_daemon() -> World {
    let world = World::new();
    world.device.wait_ready(LIMIT).unwrap();
    world.device.stop_agent().unwrap();
    world.wait_session(false);
    world
}

/// Runs a command; it must end with this exit code.
fn run(device: &Device, arguments: &[&str], code: i32) -> String {
    device.run(arguments, code).unwrap()
}

/// A document for a person: with a URL in place of what the cloud replaces.
fn local(world: &World, published: &Published) -> Value {
    let mut document = published.document.clone();
    document["image"]["url"] = json!(world.lab.signed_url(&published.path, Scheme::Https, LIMIT));
    document
}

/// The document as a file in the device's folder.
fn file(world: &World, document: &Value) -> String {
    let path = world.device.folder().path("job.json");
    fs::write(&path, document.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// An image on the server, and a document for it as a file.
fn offered(world: &World, version: &str) -> (Image, Published, String) {
    let image = world.image(version, Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    let path = file(world, &local(world, &published));
    (image, published, path)
}

fn confirmed(heard: &Heard) -> Option<()> {
    heard.events.iter().any(|event| event == "confirmed").then_some(())
}

fn connects(world: &World) -> u64 {
    world.counters().connects[&world.thing]
}

fn primary(device: &Device) -> Value {
    device.status().unwrap()["bootloader"]["primary"].clone()
}

#[test]
fn calls_do_the_steps_one_by_one_while_the_daemon_runs() {
    let world = World::with(|spec| spec.with("jobs", "enabled", "false"));
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Raw);
    let url = world.lab.signed_url(&published.path, Scheme::Https, LIMIT);
    let document =
        json!({"operation": "fota", "bc_idx": 1, "bc_crc": image.md5(), "bc_size": SIZE, "bc_url": url});
    let path = file(&world, &document);
    let device = &world.device;
    device.script(Script::Hook("post-confirm"), "tell confirmed\n").unwrap();
    run(device, &["fota", "test", &path], 65);
    run(device, &["fota", "update", &path], 0);
    assert_eq!(device.digest(SetId::B, "rootfs"), image.sha256);
    assert_eq!(primary(device), "A", "update arms nothing");
    run(device, &["fota", "test", &path], 0);
    assert_eq!(primary(device), "B");
    assert_eq!(device.look(|heard| heard.boots.len()), 1, "test does not reset");
    run(device, &["fota", "reset"], 0);
    device.wait("the confirmation", LIMIT, confirmed).unwrap();
    run(device, &["fota", "confirm"], 0);
    assert_eq!(device.booted(), Some(SetId::B));
    world.finish();
}

#[test]
fn calls_do_the_steps_one_by_one_without_a_daemon() {
    let world = without_daemon();
    let device = &world.device;
    let (image, published, path) = offered(&world, "2.0");
    run(device, &["fota", "update", &path], 0);
    assert_eq!((device.digest(SetId::B, "rootfs"), primary(device)), (image.sha256, json!("A")));
    device.run_fed(&["fota", "test"], local(&world, &published).to_string().as_bytes(), 0).unwrap();
    assert_eq!(primary(device), "B");
    device.reboots(Reboots::ByHand);
    run(device, &["fota", "reset"], 0);
    device.wait("the reset", LIMIT, |heard| (heard.reboots_due == 1).then_some(())).unwrap();
    assert_eq!(device.reboot_without_agent().unwrap(), SetId::B);
    assert_eq!(device.status().unwrap()["confirmed"], "A", "nobody has confirmed it yet");
    run(device, &["fota", "confirm"], 0);
    let status = device.status().unwrap();
    assert_eq!((&status["booted"], &status["confirmed"]), (&json!("B"), &json!("B")), "{status}");
    assert!(device.env().unwrap().contains("BOOT_B_LEFT=3"), "{:?}", device.env());
    world.finish();
}

#[test]
fn calls_out_of_order_are_refused_and_change_nothing() {
    for daemon in [true, false] {
        let world = if daemon { World::new() } else { without_daemon() };
        let device = &world.device;
        device.wait_ready(LIMIT).unwrap();
        let (_, published, path) = offered(&world, "2.0");
        let env = device.env().unwrap();
        let said = run(device, &["fota", "test", &path], 65);
        assert!(said.contains("fota update"), "{said}");
        // The running set is final already: saying so again is no mistake.
        run(device, &["fota", "confirm"], 0);
        assert_eq!(device.env().unwrap(), env);
        run(device, &["fota", "update", &path], 0);
        // What was written is another image than the one of this document.
        let other = world.image("3.0", Health::Good);
        let mut document = local(&world, &world.publish(&other, Packing::Zstd));
        let said = run(device, &["fota", "test", &file(&world, &document)], 65);
        assert!(said.contains("does not hold"), "{said}");
        // A failed update leaves nothing to arm, not even what was there before.
        document["image"]["sha256"] = json!("0".repeat(64));
        run(device, &["fota", "update", &file(&world, &document)], 65);
        let said = run(device, &["fota", "test", &file(&world, &local(&world, &published))], 65);
        assert!(said.contains("does not hold"), "{said}");
        assert_eq!(primary(device), "A");
        world.finish();
    }
}

/// A good image on the server.
fn good_image(world: &World) -> Published {
    world.publish(&world.image("2.0", Health::Good), Packing::Zstd)
}

/// The job `update`, which goes well.
fn good_job(world: &World) {
    world.job("update", &good_image(world).document);
}

/// The same, but its download stands still at half: what is fetched, and the byte where it does.
fn job_that_stalls(world: &World) -> (Published, u64) {
    let published = good_image(world);
    let at = world.stall(&published, 50);
    world.job("update", &published.document);
    (published, at)
}

#[test]
fn handle_leaves_the_broker_while_it_fetches_and_comes_back() {
    let world = without_daemon();
    let before = connects(&world);
    let (published, at) = job_that_stalls(&world);
    std::thread::scope(|scope| {
        let handling =
            scope.spawn(|| world.device.run(&["fota", "handle", "--force", "--auto-reset", "false"], 10));
        world.wait_sent(&published.path, at);
        world.wait_session(false);
        world.lab.release_stalls();
        handling.join().unwrap().unwrap();
    });
    assert_eq!(connects(&world), before + 2, "once to take the job, once to tell how it went");
    assert_eq!(world.details("update")["phase"], "armed", "the seal must be there before the reset");
    world.device.reboot().unwrap();
    world.expect_end("update", Status::Succeeded, "set B");
    world.finish();
}

#[test]
fn handle_keeps_its_session_when_it_is_told_to() {
    let world = without_daemon();
    let before = connects(&world);
    let (published, at) = job_that_stalls(&world);
    let told = ["fota", "handle", "--force", "--auto-reset", "false", "--disconnect-mqtt", "false"];
    std::thread::scope(|scope| {
        let handling = scope.spawn(|| world.device.run(&told, 10));
        world.wait_sent(&published.path, at);
        // What the cloud says meanwhile is heard: a job that is cancelled ends the call at once.
        world.lab.cancel_job("update", otandem_lab::Force::Yes).unwrap();
        assert!(handling.join().unwrap().unwrap_err().to_string().contains("exit status: 0"));
    });
    assert_eq!(connects(&world), before + 1);
    assert_eq!(primary(&world.device), "A");
    world.finish();
}

#[test]
fn handle_resets_by_itself_and_settles_the_trial_when_it_is_called_again() {
    let world = without_daemon();
    let device = &world.device;
    device.reboots(Reboots::ByHand);
    good_job(&world);
    run(device, &["fota", "handle", "--force"], 0);
    device.wait("the reset", LIMIT, |heard| (heard.reboots_due == 1).then_some(())).unwrap();
    assert_eq!(device.reboot_without_agent().unwrap(), SetId::B);
    // Something is pending here, so the cloud is asked without --force.
    let said = run(device, &["fota", "handle"], 0);
    assert!(said.contains("set B (2.0) confirmed"), "{said}");
    world.expect_end("update", Status::Succeeded, "set B (2.0)");
    world.finish();
}

#[test]
fn handle_asks_the_cloud_only_when_something_waits_or_it_is_forced() {
    let world = without_daemon();
    let before = connects(&world);
    good_job(&world);
    let said = run(&world.device, &["fota", "handle"], 0);
    assert!(said.contains("--force"), "{said}");
    assert_eq!(connects(&world), before);
    world.wait_status("update", Status::Queued);
    run(&world.device, &["fota", "handle", "--force", "--auto-reset", "false"], 10);
    // The reset is still due; nobody has to ask for it again.
    run(&world.device, &["fota", "handle", "--auto-reset", "false"], 10);
    world.device.reboots(Reboots::ByHand);
    run(&world.device, &["fota", "reset"], 0);
    world.device.wait("the reset", LIMIT, |heard| (heard.reboots_due == 1).then_some(())).unwrap();
    world.device.reboot().unwrap();
    world.expect_end("update", Status::Succeeded, "set B");
    world.finish();
}

/// A callback that keeps what it gets, and judges it by the word `dance`.
fn callback(device: &Device) -> String {
    let path = device.folder().path("callback");
    let script = "#!/bin/sh\nPATH=$PATH:/usr/bin:/bin\ncat > \"$0.taken\"\ngrep -q dance \"$0.taken\"\n";
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn handle_gives_other_jobs_to_the_callback_and_firmware_jobs_not() {
    let world = without_daemon();
    let device = &world.device;
    let callback = callback(device);
    let taken = format!("{callback}.taken");
    let call = ["fota", "handle", "--force", "--auto-reset", "false", "--job-callback", &callback];
    let dance = json!({"operation": "dance", "steps": 3});
    world.job("dance", &dance);
    run(device, &call, 0);
    world.wait_status("dance", Status::Succeeded);
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(&taken).unwrap()).unwrap(), dance);
    world.job("sing", &json!({"operation": "sing"}));
    run(device, &call, 0);
    world.wait_status("sing", Status::Failed);
    fs::remove_file(&taken).unwrap();
    good_job(&world);
    run(device, &call, 10);
    assert!(!fs::exists(&taken).unwrap(), "the callback got a firmware job");
    device.reboot().unwrap();
    world.expect_end("update", Status::Succeeded, "set B");
    world.finish();
}

#[test]
fn a_callback_that_cannot_be_run_fails_the_job_and_none_rejects_it() {
    let world = without_daemon();
    let device = &world.device;
    world.job("nobody", &json!({"operation": "dance"}));
    run(device, &["fota", "handle", "--force"], 0);
    world.expect_end("nobody", Status::Rejected, "no firmware job");
    world.job("absent", &json!({"operation": "dance"}));
    run(device, &["fota", "handle", "--force", "--job-callback", "/nonexistent/callback"], 0);
    world.expect_end("absent", Status::Failed, "/nonexistent/callback");
    world.finish();
}

#[test]
fn one_call_works_through_the_queue_until_a_reset_is_due() {
    let world = without_daemon();
    let device = &world.device;
    let callback = callback(device);
    world.job("dance", &json!({"operation": "dance"}));
    world.lab.advance(std::time::Duration::from_secs(1));
    good_job(&world);
    run(device, &["fota", "handle", "--force", "--auto-reset", "false", "--job-callback", &callback], 10);
    world.wait_status("dance", Status::Succeeded);
    device.reboot().unwrap();
    world.expect_end("update", Status::Succeeded, "set B");
    world.finish();
}

#[test]
fn handle_of_one_document_needs_no_cloud_and_says_whether_a_reset_is_due() {
    for daemon in [true, false] {
        let world = if daemon { World::new() } else { without_daemon() };
        let device = &world.device;
        device.wait_ready(LIMIT).unwrap();
        device.reboots(Reboots::ByHand);
        device.script(Script::Hook("post-confirm"), "tell confirmed\n").unwrap();
        let (image, published, path) = offered(&world, "2.0");
        let asked = connects(&world);
        run(device, &["fota", "handle", &path, "--auto-reset", "false"], 10);
        assert_eq!((device.digest(SetId::B, "rootfs"), primary(device)), (image.sha256, json!("B")));
        assert_eq!(device.look(|heard| heard.reboots_due), 0, "it was told not to reset");
        assert_eq!(connects(&world), asked);
        device.reboot().unwrap();
        device.wait("the confirmation", LIMIT, confirmed).unwrap();
        let next = world.image("3.0", Health::Good);
        let next = local(&world, &world.publish(&next, Packing::Zstd));
        if !daemon {
            device.stop_agent().unwrap();
        }
        device.run_fed(&["fota", "handle", "-"], next.to_string().as_bytes(), 0).unwrap();
        device.wait("the reset", LIMIT, |heard| (heard.reboots_due == 1).then_some(())).unwrap();
        let updates = world.lab.inspect(|lab| lab.messages(Direction::In, "/update").count());
        assert_eq!(updates, 0, "no job is told of {}", published.path);
        world.finish();
    }
}

#[test]
fn broken_documents_are_refused_with_what_is_wrong() {
    for daemon in [true, false] {
        let world = if daemon { World::new() } else { without_daemon() };
        let device = &world.device;
        device.wait_ready(LIMIT).unwrap();
        let huge = format!("{{\"operation\":\"fota\",\"x\":\"{}\"}}", "x".repeat(1 << 20));
        for call in ["update", "test", "handle"] {
            for (document, code, reason) in [
                ("this is no JSON", 65, "JSON"),
                ("", 65, "JSON"),
                ("{}", 65, ""),
                ("{\"operation\":\"fota\"}", 65, "missing"),
                ("{\"operation\":\"dance\"}", 65, ""),
                (huge.as_str(), 65, "32"),
            ] {
                let said = device.run_fed(&["fota", call, "-"], document.as_bytes(), code).unwrap();
                assert!(said.contains(reason) && said.contains("otandem:"), "{call}: {said}");
            }
            let said = run(device, &["fota", call, "/nonexistent/job.json"], 66);
            assert!(said.contains("/nonexistent/job.json"), "{said}");
        }
        assert_eq!(primary(device), "A");
        world.finish();
    }
}
