//! UPDATE-RULES 2.7: which digests are refused.

use otandem_core::boot::SetId;

use super::{Firmware, device, device_in, finish, go_to, last_reason, told};
use crate::model::Content;

#[test]
fn digest_is_banned_after_a_health_check_said_no() {
    let (mut world, job) = device_in("trial", Firmware::sick(0));
    let firmware = world.running().expect("it runs");
    finish(&mut world);
    assert_eq!(told(&world, job), "FAILED");
    assert!(world.record().ban(&[firmware.digest()]).is_some_and(|why| why.starts_with("health check")));

    let again = world.new_job(firmware);
    world.jobs[again].digest_known = false;
    finish(&mut world);
    assert_eq!(told(&world, again), "REJECTED");
    assert_eq!(world.booted, Some(SetId::A));
}

#[test]
fn retry_overrides_a_ban_and_success_lifts_it() {
    let (mut world, _) = device_in("trial", Firmware::sick(0));
    let firmware = world.running().expect("it runs");
    finish(&mut world);
    let again = world.new_job(firmware);
    world.jobs[again].retry = true;
    go_to(&mut world, "trial");
    world.put(SetId::B, Content::Complete(Firmware { healthy: true, ..firmware }));
    finish(&mut world);
    assert_eq!(told(&world, again), "SUCCEEDED");
    assert_eq!(world.record().bans, []);
}

#[test]
fn two_silent_trials_ban_the_digest() {
    let mut world = device();
    let firmware = world.firmware(Firmware::dead(0));
    for silent in 1..=2 {
        let job = world.new_job(firmware);
        finish(&mut world);
        assert_eq!(told(&world, job), "FAILED");
        assert_eq!(world.record().ban(&[firmware.digest()]).is_some(), silent == 2);
    }
}

#[test]
fn cloud_alone_never_bans() {
    let mut world = device();
    let firmware = world.firmware(Firmware::offline(0));
    for _ in 0..3 {
        let job = world.new_job(firmware);
        finish(&mut world);
        assert_eq!(told(&world, job), "FAILED");
        assert!(last_reason(&world).starts_with("rolled back: the cloud was out of reach"));
    }
    assert_eq!(world.record().bans, []);
}

#[test]
fn lost_environment_in_a_trial_never_bans() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.env.reset();
    world.reset();
    finish(&mut world);
    assert_eq!(told(&world, job), "FAILED");
    assert_eq!(world.record().bans, []);
}
