//! UPDATE-RULES 4: the record, the seal, what is counted.

use otandem_core::boot::SetId;
use otandem_core::image::Checkpoint;
use otandem_core::machine::{Cloud, Event, Health, HookAnswer, MAX_RESUMES, SEAL_WAIT};
use otandem_core::record::State;
use otandem_core::seal::Seal;
use otandem_core::update::Then;

use super::{
    Firmware, Setup, World, actions, device, device_in, device_like, finish, go_to, go_without_cloud,
    in_order, last_reason, told,
};
use crate::model::{Content, Pipeline, Status};

fn checkpoint() -> Checkpoint {
    Checkpoint { image: 0, source_offset: 7, raw_offset: 9, source_digests: vec![], etag: None }
}

/// The agent dies and comes as far as it was: the running set kept, the job alive, the pipeline writing.
fn die_and_come_back(world: &mut World) {
    world.start_agent();
    while world.phase() == "writing" && world.pipeline != Pipeline::Writing {
        assert!(world.goes_on());
    }
}

#[test]
fn writing_goes_on_from_the_checkpoint_once_the_running_set_is_kept_and_the_job_lives() {
    let (mut world, job) = device_in("writing", Firmware::good(0));
    world.feed(Event::Checkpoint(checkpoint()));
    world.reset();
    let from = world.done.len();
    while world.pipeline == Pipeline::No {
        assert!(world.goes_on());
    }
    let done = actions(&world, from);
    assert!(in_order(&done, &["Keep", "Save", "Fetch"]), "{done:?}");
    assert!(world.done[from..].iter().any(|a| a.contains("Fetch") && a.contains("raw_offset: 9")));
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn interrupted_job_waits_for_the_cloud_to_say_that_it_lives() {
    for phase in ["accepted", "writing", "written"] {
        let (mut world, job) = device_in(phase, Firmware::good(0));
        world.reset();
        world.feed(Event::Health(Health::Passed));
        assert_eq!((world.phase(), world.hook, world.pipeline), (phase, None, Pipeline::No));
        world.cloud_ends(Status::Ended);
        world.talk();
        assert_eq!((world.phase(), world.record().outbox.len()), ("idle", 0));
        assert_eq!(world.status(job), Status::Ended);
    }
}

#[test]
fn five_resumes_without_progress_fail() {
    let (mut world, job) = device_in("writing", Firmware::good(0));
    for resumes in 1..=MAX_RESUMES {
        die_and_come_back(&mut world);
        assert_eq!(world.disk.as_ref().expect("saved").resumes, resumes, "counted before its effect");
    }
    die_and_come_back(&mut world);
    finish(&mut world);
    assert_eq!((last_reason(&world).as_str(), told(&world, job)), ("agent died in writing", "FAILED"));
}

#[test]
fn checkpoint_is_progress() {
    let (mut world, _) = device_in("writing", Firmware::good(0));
    for _ in 0..3 * MAX_RESUMES {
        die_and_come_back(&mut world);
        world.feed(Event::Checkpoint(checkpoint()));
    }
    assert_eq!(world.phase(), "writing");
}

#[test]
fn device_that_is_switched_off_every_night_while_it_waits_has_not_failed() {
    let mut world = device_like(Setup { window: true, ..Setup::default() });
    let firmware = world.firmware(Firmware::good(0));
    world.new_job(firmware);
    go_to(&mut world, "written");
    for _ in 0..2 * MAX_RESUMES {
        world.reset();
        while world.agent().phase() != "waiting" {
            assert!(world.goes_on());
        }
    }
    assert_eq!(world.phase(), "written");
}

#[test]
fn agent_that_dies_in_every_step_comes_to_an_end() {
    for phase in ["armed", "trial"] {
        let (mut world, job) = device_in(phase, Firmware::good(0));
        for _ in 0..=MAX_RESUMES + 1 {
            world.start_agent();
        }
        finish(&mut world);
        assert_eq!((world.booted, told(&world, job)), (Some(SetId::A), "FAILED"));
        assert!(last_reason(&world).contains(&format!("agent died in {phase}")), "{}", last_reason(&world));
    }
}

#[test]
fn interrupted_work_ends_when_the_running_set_stays_unwell() {
    for hopeless in [false, true] {
        let (mut world, job) = device_in("writing", Firmware::good(0));
        world.put(SetId::A, Content::Complete(Firmware::sick(1)));
        world.reset();
        let health = if hopeless { Health::Hopeless("no".into()) } else { Health::NotYet("not yet".into()) };
        world.feed(Event::Health(health));
        if !hopeless {
            assert_eq!(world.phase(), "writing");
            world.wait();
        }
        assert_eq!(world.phase(), "idle");
        assert!(last_reason(&world).starts_with("the running set is not well"));
        world.talk();
        assert_eq!(told(&world, job), "FAILED");
    }
}

// --- 4.1: a disk that fails -----------------------------------------------------------------------------------

#[test]
fn full_disk_refuses_the_update_before_the_first_byte_and_says_so() {
    let mut world = device();
    let firmware = world.firmware(Firmware::good(0));
    let job = world.new_job(firmware);
    world.disk_broken = true;
    let from = world.done.len();
    world.talk();
    assert_eq!(world.phase(), "idle");
    assert!(!actions(&world, from).contains(&"Fetch"));
    // Nobody asks for it again: without this the job would wait for a disk that may never come back.
    assert!(actions(&world, from).contains(&"Flush"), "{:?}", actions(&world, from));
    world.talk();
    assert_eq!(told(&world, job), "FAILED");
    assert!(!world.agent().ready());
    world.disk_broken = false;
    finish(&mut world);
}

#[test]
fn intent_to_write_is_saved_before_the_mark_and_the_mark_before_the_bytes() {
    let (mut world, _) = device_in("accepted", Firmware::good(0));
    world.answer_hook(HookAnswer::Done);
    let from = world.done.len();
    world.feed(Event::Ready);
    assert!(in_order(&actions(&world, from), &["Save", "MarkBad", "Write"]));
    assert_eq!(world.record().slots_b.len(), 0);
}

#[test]
fn mark_that_fails_leaves_the_slots_alone() {
    let (mut world, job) = device_in("accepted", Firmware::good(0));
    world.answer_hook(HookAnswer::Done);
    world.bootloader_broken = true;
    let from = world.done.len();
    world.feed(Event::Ready);
    assert!(!actions(&world, from).contains(&"Write"));
    finish(&mut world);
    assert_eq!(told(&world, job), "FAILED");
}

#[test]
fn installs_are_counted_beyond_what_the_slot_held() {
    let mut world = device();
    for installs in 1..=2 {
        for _ in SetId::BOTH {
            let firmware = world.firmware(Firmware::good(0));
            world.new_job(firmware);
            finish(&mut world);
        }
        assert_eq!(world.record().slots_b["rootfs"].installs, installs);
    }
}

// --- 4.4: the seal --------------------------------------------------------------------------------------------

#[test]
fn armed_waits_for_the_acknowledgement_of_its_seal() {
    let (mut world, job) = device_in("written", Firmware::good(0));
    world.answer_hook(HookAnswer::Done);
    assert_eq!((world.phase(), world.rebooting), ("armed", false));
    world.talk();
    assert!(world.rebooting);
    let seal: Seal = world.jobs[job].seal.as_deref().expect("told").parse().expect("a seal");
    assert_eq!((seal.phase.as_str(), seal.target, seal.boot_id), ("armed", SetId::B, world.boot_id()));
}

#[test]
fn seal_not_acknowledged_for_60s_reboots_only_if_record_is_shared() {
    for record_shared in [true, false] {
        let mut world = device_like(Setup { record_shared, ..Setup::default() });
        let firmware = world.firmware(Firmware::good(0));
        world.new_job(firmware);
        go_to(&mut world, "written");
        world.answer_hook(HookAnswer::Done);
        world.pass(SEAL_WAIT);
        world.feed(Event::Tick);
        assert_eq!(world.rebooting, record_shared);
    }
}

#[test]
fn reset_of_somebody_else_is_due_when_the_seal_is_acknowledged_or_had_its_time() {
    for record_shared in [true, false] {
        let mut world = device_like(Setup { record_shared, ..Setup::default() });
        let firmware = world.firmware(Firmware::good(0));
        let job = world.new_job(firmware);
        world.jobs[job].then = Then::Arm;
        go_to(&mut world, "armed");
        assert!(!world.agent().reset_due());
        world.pass(SEAL_WAIT);
        world.feed(Event::Tick);
        assert_eq!(world.agent().reset_due(), record_shared);
        world.talk();
        assert!(world.agent().reset_due() && !world.rebooting);
    }
}

#[test]
fn lost_record_before_arming_starts_the_job_again() {
    let (mut world, job) = device_in("writing", Firmware::good(0));
    world.talk();
    world.disk = None;
    world.reset();
    finish(&mut world);
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::B), "SUCCEEDED"));
}

#[test]
fn lost_record_with_the_armed_set_running_is_its_trial() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.disk = None;
    world.start_agent();
    assert!(matches!(world.state(), State::Trial { update, .. } if update.origin.job().is_none()));
    world.talk();
    assert!(matches!(world.state(), State::Trial { update, .. } if update.origin.job().is_some()));
    finish(&mut world);
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::B), "SUCCEEDED"));
}

#[test]
fn lost_record_and_a_sick_armed_set_fails_the_job() {
    let (mut world, job) = device_in("trial", Firmware::sick(0));
    world.disk = None;
    world.start_agent();
    world.talk();
    finish(&mut world);
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::A), "FAILED"));
}

#[test]
fn lost_record_and_a_sick_set_that_stays_ends_its_job_when_the_cloud_tells_of_it() {
    let (mut world, job) = device_in("trial", Firmware::sick(0));
    world.disk = None;
    world.env.mark_bad(SetId::A);
    world.start_agent();
    world.wait();
    assert_eq!((world.phase(), world.settled), ("trial", true));
    world.talk();
    while world.status(job) == Status::InProgress && world.goes_on() {}
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::B), "FAILED"));
    assert!(last_reason(&world).starts_with("cannot go back"), "{}", last_reason(&world));
}

#[test]
fn lost_record_and_another_image_in_the_armed_set_is_no_success() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.disk = None;
    world.reset();
    assert_eq!(world.booted, Some(SetId::A));
    // Settled and updated by hand before the cloud is reached.
    world.feed(Event::Health(Health::Passed));
    let firmware = world.firmware(Firmware::good(0));
    let update = world.local_update(firmware, Then::Reboot);
    world.feed(Event::Offer(Box::new(update)));
    go_to(&mut world, "trial");
    world.feed(Event::Health(Health::Passed));
    assert_eq!((world.booted, world.phase()), (Some(SetId::B), "idle"));
    finish(&mut world);
    assert_eq!((world.running(), told(&world, job)), (Some(firmware), "FAILED"));
    assert!(world.env.listed(SetId::B));
}

#[test]
fn lost_record_settled_before_the_cloud_is_reached_still_succeeds() {
    let (mut world, job) = device_in("trial", Firmware::good(0));
    world.disk = None;
    world.start_agent();
    world.feed(Event::Health(Health::Passed));
    assert!(world.agent().ready());
    finish(&mut world);
    assert_eq!(told(&world, job), "SUCCEEDED");
}

#[test]
fn lost_record_with_the_old_set_running_fails_without_a_ban() {
    let (mut world, job) = device_in("armed", Firmware::good(0));
    world.talk();
    world.disk = None;
    world.env.reset();
    world.reset();
    finish(&mut world);
    assert_eq!((world.booted, told(&world, job)), (Some(SetId::A), "FAILED"));
    assert_eq!(last_reason(&world), "state lost; set B is not running");
    assert_eq!(world.record().bans, []);
    assert!(!world.env.listed(SetId::B));
}

#[test]
fn seal_of_another_job_does_not_touch_a_trial() {
    let (mut world, _) = device_in("trial", Firmware::good(0));
    let before = world.record().clone();
    let other = world.firmware(Firmware::good(0));
    let other = world.new_job(other);
    let update = Box::new(world.update_of(other, SetId::B));
    let seal: Seal = "v1;armed;B;A;-;boot-1".parse().expect("a seal");
    world.feed(Event::Cloud(Cloud::Sealed { update, seal }));
    assert_eq!(*world.record(), before);
}

// --- 4.6 ------------------------------------------------------------------------------------------------------

#[test]
fn deadlines_of_a_trial_begin_anew_with_its_boot() {
    let mut world = device_like(Setup { tries: 2, ..Setup::default() });
    let firmware = world.firmware(Firmware::good(0));
    let update = world.local_update(firmware, Then::Reboot);
    world.feed(Event::Offer(Box::new(update)));
    go_to(&mut world, "trial");
    world.pass(world.rules.health_timeout * 3);
    world.reset();
    let due = world.agent().next_wake().expect("the deadline");
    assert_eq!(due.since(world.now().boot), world.rules.health_timeout);
}

#[test]
fn wall_time_is_a_floor_that_never_sinks() {
    let mut world = device();
    world.agent().trust_wall(1_700_000_000);
    world.agent().trust_wall(5);
    assert_eq!(world.record().wall, 1_700_000_000);
}

#[test]
fn a_clock_that_nothing_has_confirmed_is_no_floor() {
    let mut world = device();
    world.agent().trust_wall(1_700_000_000);
    // An RTC in the far future: believed once, every certificate would be expired for ever.
    world.agent().note_wall(4_000_000_000);
    assert_eq!(world.record().wall, 1_700_000_000);
}

#[test]
fn record_of_an_older_moment_arms_nothing_that_is_gone() {
    let (mut world, _) = device_in("written", Firmware::good(0));
    let old = world.disk.clone();
    go_without_cloud(&mut world);
    world.put(SetId::B, Content::Torn);
    world.disk = old;
    world.reset();
    world.feed(Event::Health(Health::Passed));
    world.feed(Event::Cloud(Cloud::Alive(None)));
    world.answer_hook(HookAnswer::Done);
    assert_eq!(world.phase(), "idle");
    assert_eq!(last_reason(&world), "set B does not hold a complete image");
}
