//! The command line of a device: with a daemon, and without one.

use std::fs;

use otandem_core::boot::SetId;
use otandem_system_tests::device::{Device, Heard, Script, Spec};
use otandem_system_tests::pack::{self, Packing};
use otandem_system_tests::world::{LIMIT, SIZE};
use otandem_system_tests::{Health, Image};
use serde_json::json;
use tempfile::TempDir;

/// A device without a cloud, its agent settled.
fn offline() -> (TempDir, Device) {
    let folder = tempfile::Builder::new().prefix("otandem-").tempdir().unwrap();
    let factory = Image::plain("factory", Health::Good, 2 << 20);
    let device = Device::make(folder.path(), Spec::default(), &factory).unwrap();
    device.script(Script::Hook("post-confirm"), "tell confirmed\n").unwrap();
    device.power_on().unwrap();
    device.wait_ready(LIMIT).unwrap();
    (folder, device)
}

/// Runs a command; it must end with this exit code.
fn run(device: &Device, arguments: &[&str], code: i32) -> String {
    device.run(arguments, code).unwrap()
}

/// A packed image as a file in the device's folder.
fn file(device: &Device, image: &Image) -> String {
    device.know(image);
    let path = device.folder().path(&format!("{}.img.zst", image.version));
    fs::write(&path, pack::pack(&image.bytes, Packing::Zstd, 1 << 20).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn confirmed(heard: &Heard) -> Option<()> {
    heard.events.iter().any(|event| event == "confirmed").then_some(())
}

#[test]
fn install_from_a_file_with_a_daemon_arms_and_the_reboot_makes_it_permanent() {
    let (_folder, device) = offline();
    let image = Image::plain("2.0", Health::Good, SIZE);
    let path = file(&device, &image);
    let refused = run(&device, &["install", &path], 65);
    assert!(refused.contains("no digest"), "{refused}");
    run(&device, &["install", &path, "--sha256", &image.sha256], 0);
    assert_eq!(device.look(|heard| heard.boots.len()), 1, "install does not reboot by itself");
    let status = device.status().unwrap();
    assert_eq!(
        (&status["phase"], &status["bootloader"]["primary"]),
        (&json!("armed"), &json!("B")),
        "{status}"
    );
    run(&device, &["reboot"], 0);
    device.wait("the confirmation", LIMIT, confirmed).unwrap();
    assert_eq!((device.booted(), device.digest(SetId::B, "rootfs")), (Some(SetId::B), image.sha256));
}

#[test]
fn install_without_a_daemon_is_the_same_and_the_lock_keeps_a_second_one_out() {
    let (_folder, device) = offline();
    let image = Image::plain("2.0", Health::Good, SIZE);
    let path = file(&device, &image);
    device.stop_agent().unwrap();
    fs::write(format!("{path}.sha256"), format!("{}  image\n", image.sha256)).unwrap();
    run(&device, &["install", &path], 0);
    assert_eq!(device.digest(SetId::B, "rootfs"), image.sha256);
    device.reboot().unwrap();
    device.wait("the confirmation", LIMIT, confirmed).unwrap();
    assert_eq!(device.booted(), Some(SetId::B));
}

#[test]
fn install_of_a_damaged_file_or_with_a_wrong_digest_changes_nothing() {
    let (_folder, device) = offline();
    let image = Image::plain("2.0", Health::Good, SIZE);
    let path = file(&device, &image);
    let running = device.digest(SetId::A, "rootfs");
    let wrong = "0".repeat(64);
    let said = run(&device, &["install", &path, "--sha256", &wrong], 65);
    assert!(said.contains("instead of"), "{said}");
    let said = run(&device, &["install", &path, "--sha256", &image.sha256, "--set", "A"], 65);
    assert!(said.contains("running"), "{said}");
    run(&device, &["install", "/nonexistent/image"], 66);
    run(&device, &["install", &path, "--sha256", "no"], 64);
    let status = device.status().unwrap();
    assert_eq!((&status["booted"], &status["bootloader"]["primary"]), (&json!("A"), &json!("A")), "{status}");
    assert_eq!(device.digest(SetId::A, "rootfs"), running);
}

#[test]
fn bad_image_installed_by_hand_is_rolled_back_and_status_says_why() {
    let (_folder, device) = offline();
    let image = Image::plain("bad", Health::Hopeless, SIZE);
    let path = file(&device, &image);
    run(&device, &["install", &path, "--sha256", &image.sha256, "--reboot"], 0);
    device.wait("set A again", LIMIT, |heard| (heard.boots.len() == 3).then_some(())).unwrap();
    let settled =
        |heard: &Heard| (heard.events.iter().filter(|e| *e == "health 0").count() >= 2).then_some(());
    device.wait("a well set A", LIMIT, settled).unwrap();
    let status = device.status().unwrap();
    assert_eq!(status["booted"], "A", "{status}");
    assert_eq!(status["last-outcome"]["outcome"], "failed", "{status}");
    assert!(status["last-outcome"]["reason"].as_str().unwrap().contains("health check"), "{status}");
}

#[test]
fn status_check_is_for_monitoring() {
    let (_folder, device) = offline();
    let image = Image::plain("2.0", Health::Good, SIZE);
    let path = file(&device, &image);
    // What waits for a settled device is answered when it is one.
    run(&device, &["install", &path, "--sha256", &image.sha256, "--reboot"], 0);
    device.wait("the confirmation", LIMIT, confirmed).unwrap();
    let said = run(&device, &["status", "--check"], 0);
    assert!(said.contains("set B"), "{said}");
    device.stop_agent().unwrap();
    let said = run(&device, &["status", "--check"], 1);
    assert!(said.contains("no daemon"), "{said}");
    run(&device, &["status"], 0);
    run(&device, &["config", "check"], 0);
    device.configure("update", "no-such-key", "1").unwrap();
    let said = run(&device, &["config", "check"], 78);
    assert!(said.contains("no-such-key"), "{said}");
    // A mistake in the configuration never keeps the agent from starting.
    device.start_agent().unwrap();
    let warned = |heard: &Heard| heard.lines("no-such-key").next().map(drop);
    device.wait("a warning", LIMIT, warned).unwrap();
}

#[test]
fn rollback_goes_back_only_to_a_set_that_is_known_to_be_complete() {
    let (_folder, device) = offline();
    let image = Image::plain("2.0", Health::Good, SIZE);
    let path = file(&device, &image);
    let said = run(&device, &["rollback"], 65);
    assert!(said.contains("not recorded as complete"), "{said}");
    run(&device, &["install", &path, "--sha256", &image.sha256, "--reboot"], 0);
    device.wait("the confirmation", LIMIT, confirmed).unwrap();
    // The factory set is adopted by its digest.
    let said = run(&device, &["mark", "active", "other"], 65);
    assert!(said.contains("not recorded as complete"), "{said}");
    run(&device, &["mark", "good", "other", "--verify", &"0".repeat(64)], 65);
    let factory = device.digest(SetId::A, "rootfs");
    run(&device, &["mark", "good", "other", "--verify", &factory], 0);
    run(&device, &["rollback"], 0);
    device.wait("set A", LIMIT, |heard| (heard.boots.last()?.set == Some(SetId::A)).then_some(())).unwrap();
}
