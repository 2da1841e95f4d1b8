//! Power cuts, deaths of the agent and lost boot environments, in every phase of an update.

use otandem_core::boot::SetId;
use otandem_lab::Status;
use otandem_system_tests::Health;
use otandem_system_tests::device::{Reboots, Script};
use otandem_system_tests::pack::Packing;
use otandem_system_tests::world::{LIMIT, World};

/// A moment of an update at which the device can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Accepted,
    Writing,
    Written,
    Armed,
    Trial,
    Confirmed,
    RollingBack,
}

impl Moment {
    const ALL: [Self; 7] = [
        Self::Accepted,
        Self::Writing,
        Self::Written,
        Self::Armed,
        Self::Trial,
        Self::Confirmed,
        Self::RollingBack,
    ];

    const fn health(self) -> Health {
        match self {
            Self::RollingBack => Health::Hopeless,
            _ => Health::Good,
        }
    }

    const fn hook(self) -> Option<&'static str> {
        match self {
            Self::Accepted => Some("pre-install"),
            Self::Written => Some("pre-reboot"),
            Self::Confirmed => Some("post-confirm"),
            Self::RollingBack => Some("on-rollback"),
            Self::Writing | Self::Armed | Self::Trial => None,
        }
    }
}

/// A device whose update of an image `update` stands still at this moment.
fn held_at(moment: Moment) -> World {
    let world = World::new();
    let device = &world.device;
    device.make_gate("here").unwrap();
    if let Some(hook) = moment.hook() {
        device.script(Script::Hook(hook), "gate here\n").unwrap();
    }
    if moment == Moment::Trial {
        device.health_after("test \"$OTANDEM_SET\" = A || gate here").unwrap();
    }
    let image = world.image("2.0", moment.health());
    let published = world.publish(&image, Packing::Zstd);
    if moment == Moment::Armed {
        device.reboots(Reboots::ByHand);
    }
    if moment == Moment::Writing {
        world.job_stalled("update", &published, 50);
        return world;
    }
    world.job("update", &published.document);
    match moment {
        Moment::Armed => {
            device.wait("the reboot", LIMIT, |heard| (heard.reboots_due > 0).then_some(())).unwrap();
        }
        _ => world.wait_gate("here"),
    }
    world
}

/// What held the device holds it no more.
fn let_go(world: &World, moment: Moment) {
    if let Some(hook) = moment.hook() {
        world.device.folder().remove_script(Script::Hook(hook)).unwrap();
    }
    world.device.health_after("").unwrap();
    world.lab.release_stalls();
    world.device.reboots(Reboots::AtOnce);
}

/// The device is in order: another good image goes in.
fn next_update_succeeds(world: World) {
    let image = world.image("3.0", Health::Good);
    world.run("next", &world.publish(&image, Packing::Zstd).document, Status::Succeeded, "3.0");
    world.finish();
}

#[test]
fn power_cut_in_every_phase_leaves_a_complete_set_and_a_true_outcome() {
    for moment in Moment::ALL {
        eprintln!("power cut: {moment:?}");
        let world = held_at(moment);
        world.device.power_off().unwrap();
        let_go(&world, moment);
        world.device.power_on().unwrap();
        let (status, reason) = world.wait_end("update");
        match moment {
            Moment::Trial => assert!(
                status == Status::Failed && reason.contains("rolled back: trial ended without a verdict"),
                "{moment:?}: {status:?} {reason}"
            ),
            Moment::RollingBack => assert!(
                status == Status::Failed && reason.contains("rolled back: health check"),
                "{moment:?}: {status:?} {reason}"
            ),
            _ => assert!(status == Status::Succeeded, "{moment:?}: {status:?} {reason}"),
        }
        let runs = if status == Status::Succeeded { SetId::B } else { SetId::A };
        assert_eq!(world.device.booted(), Some(runs), "{moment:?}");
        next_update_succeeds(world);
    }
}

#[test]
fn agent_that_is_killed_goes_on_where_it_was_without_a_reboot() {
    for moment in Moment::ALL {
        eprintln!("agent killed: {moment:?}");
        let world = held_at(moment);
        world.device.kill_agent(|| let_go(&world, moment)).unwrap();
        let (status, reason) = world.wait_end("update");
        let wanted = if moment == Moment::RollingBack { Status::Failed } else { Status::Succeeded };
        assert!(status == wanted, "{moment:?}: {status:?} {reason}");
        let boots = if moment == Moment::RollingBack { 3 } else { 2 };
        assert_eq!(world.device.look(|heard| heard.boots.len()), boots, "{moment:?}: {reason}");
        next_update_succeeds(world);
    }
}

#[test]
fn boot_environment_lost_in_any_phase_never_starts_what_was_not_verified() {
    for moment in Moment::ALL {
        eprintln!("environment lost: {moment:?}");
        let world = held_at(moment);
        world.device.power_off().unwrap();
        world.device.reset_env().unwrap();
        let_go(&world, moment);
        world.device.power_on().unwrap();
        let (status, reason) = world.wait_end("update");
        match moment {
            // Nothing was armed yet, or all was over: the loss has cost nothing.
            Moment::Accepted | Moment::Writing | Moment::Written | Moment::Confirmed => {
                assert!(status == Status::Succeeded, "{moment:?}: {status:?} {reason}");
            }
            Moment::Armed | Moment::Trial | Moment::RollingBack => {
                assert!(status == Status::Failed, "{moment:?}: {status:?} {reason}");
            }
        }
        next_update_succeeds(world);
    }
}

#[test]
fn reboot_by_hand_while_downloading_resumes() {
    let world = held_at(Moment::Writing);
    let_go(&world, Moment::Writing);
    world.device.reboot().unwrap();
    world.expect_end("update", Status::Succeeded, "set B (2.0)");
    world.finish();
}

#[test]
fn device_whose_both_sets_are_good_falls_back_by_itself_when_one_is_destroyed() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    world.run("update", &world.publish(&image, Packing::Zstd).document, Status::Succeeded, "set B");
    world.device.power_off().unwrap();
    let slot = world.device.folder().slot(SetId::B, "rootfs");
    std::fs::write(slot, vec![0; 1 << 20]).unwrap();
    assert_eq!(world.device.power_on().unwrap(), SetId::A);
    world.wait_connected(3);
    next_update_succeeds(world);
}
