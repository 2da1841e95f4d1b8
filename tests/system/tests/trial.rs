//! The trial of a new image: who judges it, and what happens to one that is not well.

use otandem_core::boot::SetId;
use otandem_lab::Status;
use otandem_system_tests::Health;
use otandem_system_tests::device::{Heard, Reboots, Script};
use otandem_system_tests::pack::Packing;
use otandem_system_tests::world::{LIMIT, World};
use serde_json::json;

fn boots(world: &World) -> Vec<Option<SetId>> {
    world.device.look(|heard| heard.boots.iter().map(|boot| boot.set).collect())
}

#[test]
fn image_that_is_not_well_is_rolled_back_banned_and_taken_again_only_when_told() {
    let world = World::new();
    let image = world.image("bad", Health::Hopeless);
    let published = world.publish(&image, Packing::Zstd);
    let running = world.device.digest(SetId::A, "rootfs");
    world.run("first", &published.document, Status::Failed, "rolled back: health check: 10-image");
    assert_eq!(boots(&world), [SetId::A, SetId::B, SetId::A].map(Some));
    assert_eq!(world.device.digest(SetId::A, "rootfs"), running);
    let requests = world.counters().path(&published.path).requests;
    world.run("second", &published.document, Status::Rejected, "refused");
    assert_eq!(world.counters().path(&published.path).requests, requests, "a banned image was fetched");
    let mut retry = published.document.clone();
    retry["retry"] = json!(true);
    world.run("third", &retry, Status::Failed, "rolled back");
    let good = world.image("good", Health::Good);
    world.run("fourth", &world.publish(&good, Packing::Zstd).document, Status::Succeeded, "set B (good)");
    world.finish();
}

#[test]
fn check_that_never_passes_ends_the_trial_at_its_deadline() {
    let world = World::with(|spec| spec.with("update", "health-timeout", "\"3s\""));
    let image = world.image("bad", Health::Bad);
    let document = world.publish(&image, Packing::Zstd).document;
    world.run("update", &document, Status::Failed, "rolled back: health check");
    assert_eq!(world.device.booted(), Some(SetId::A));
    world.finish();
}

#[test]
fn image_that_cannot_reach_the_cloud_is_rolled_back_and_the_old_one_says_so() {
    let world = World::with(|spec| spec.with("update", "cloud-timeout", "\"3s\""));
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    world.device.reboots(Reboots::ByHand);
    world.job("update", &published.document);
    world.device.wait("the reboot", LIMIT, |heard| (heard.reboots_due > 0).then_some(())).unwrap();
    world.lab.deactivate(&world.thing);
    world.device.reboots(Reboots::AtOnce);
    world.wait_boot(SetId::B, 2);
    world.wait_boot(SetId::A, 3);
    world.lab.activate(&world.thing);
    world.expect_end("update", Status::Failed, "rolled back: the cloud was out of reach");
    // The cloud alone is no reason to refuse an image for ever.
    world.run("again", &published.document, Status::Succeeded, "set B");
    world.finish();
}

#[test]
fn hooks_say_not_now_and_are_asked_again() {
    let world = World::with(|spec| spec.with("update", "retry-interval", "\"1s\""));
    let asked = world.device.folder().path("asked");
    for hook in ["pre-install", "pre-reboot"] {
        let mark = format!("{}-{hook}", asked.display());
        let body = format!("tell hook {hook}\ntest -e '{mark}' || {{ : > '{mark}'; exit 75; }}\n");
        world.device.script(Script::Hook(hook), &body).unwrap();
    }
    world.device.script(Script::Hook("post-confirm"), "tell hook post-confirm\n").unwrap();
    let image = world.image("2.0", Health::Good);
    world.run("update", &world.publish(&image, Packing::Zstd).document, Status::Succeeded, "set B");
    let told = |heard: &Heard| {
        let told: Vec<_> =
            heard.events.iter().filter_map(|e| e.strip_prefix("hook ").map(str::to_owned)).collect();
        told.contains(&"post-confirm".to_owned()).then_some(told)
    };
    let told = world.device.wait("the hook after the confirmation", LIMIT, told).unwrap();
    assert_eq!(told, ["pre-install", "pre-install", "pre-reboot", "pre-reboot", "post-confirm"]);
    world.finish();
}

#[test]
fn hook_that_fails_ends_the_update_before_anything_is_armed() {
    for hook in ["pre-install", "pre-reboot"] {
        let world = World::new();
        world.device.script(Script::Hook(hook), "echo no room for it\nexit 3\n").unwrap();
        let image = world.image("2.0", Health::Good);
        let document = world.publish(&image, Packing::Zstd).document;
        world.run("update", &document, Status::Failed, &format!("{hook} hook: no room for it"));
        assert_eq!(boots(&world), [Some(SetId::A)]);
        let requests = world.counters().path("images/2.0.zstd").requests;
        assert_eq!(requests > 0, hook == "pre-reboot", "{requests} requests before {hook}");
        world.device.folder().remove_script(Script::Hook(hook)).unwrap();
        world.run("again", &document, Status::Succeeded, "set B");
        world.finish();
    }
}

#[test]
fn rollback_is_told_to_the_product_before_the_reboot() {
    let world = World::new();
    world.device.script(Script::Hook("on-rollback"), "tell hook on-rollback\n").unwrap();
    let image = world.image("bad", Health::Hopeless);
    world.run("update", &world.publish(&image, Packing::Zstd).document, Status::Failed, "rolled back");
    let order: Vec<String> = world.device.look(|heard| {
        let told = |e: &&String| matches!(e.as_str(), "reboot" | "hook on-rollback");
        heard.events.iter().filter(told).cloned().collect()
    });
    assert_eq!(order, ["reboot", "hook on-rollback", "reboot"]);
    world.finish();
}
