//! Trials that must not end in the new set: it does not start, is not well, says nothing.

use otandem_images::{Chain, Defect, Root};
use otandem_lab::Status;
use otandem_vm::stage::{BOOT, Offer, Setup, Stage, impatient, release};

use crate::updates::{boot_id, sent};

/// What becomes of the new set.
#[derive(Clone, Copy)]
enum Start {
    /// It comes up, and then something is wrong.
    ComesUp,
    /// Nothing of it is ever seen.
    Never,
}

/// What a trial says that ended before the new image could say anything.
const NOT_UP: &str = "rolled back: set B was tried and did not stay up";

/// Nobody gives a verdict: the agent is killed in the trial, then the device is reset.
pub fn agent_killed_and_reset_in_the_trial(chain: Chain) {
    let mut stage = undecided(chain);
    // What is started anew goes on with the trial; so the last life of the agent ends with the device.
    let connects = stage.counters().connects.get(&stage.thing).copied().unwrap_or_default();
    stage.sh("kill -KILL $(pidof otandem)");
    stage.wait_connected(connects + 1);
    stage.sh("sync");
    stage.vm.reset().unwrap();
    back_on_a(stage, "rolled back: trial ended without a verdict");
}

/// Nobody gives a verdict: the agent was stopped in order, then comes an orderly reboot.
pub fn agent_stopped_and_rebooted_in_the_trial(chain: Chain) {
    let mut stage = undecided(chain);
    stage.vm.send("sync; /sbin/reboot\n").unwrap();
    back_on_a(stage, "rolled back: trial ended without a verdict");
}

/// A device in a trial that does not end by itself.
fn undecided(chain: Chain) -> Stage {
    let mut stage = Stage::with(Setup::new(chain).with("update", "health-timeout", "\"30min\""));
    stage.power_on();
    let mut root = release("2.0");
    root.health = "#!/bin/sh\necho not yet >&2\nexit 1\n".into();
    let offer = stage.publish(&root);
    stage.job("bad", &offer.document);
    stage.expect_up("B", "2.0");
    // It is told after it is on disk.
    stage.wait_lab("a report of the trial", |lab| {
        let details = lab.jobs.execution(&stage.thing, "bad")?.details.clone()?;
        (details.get("phase")? == "trial").then_some(())
    });
    stage
}

/// The new kernel is noise.
pub fn kernel_garbage(chain: Chain) {
    fails(chain, release("2.0").with(Defect::KernelGarbage), Start::Never, NOT_UP);
}

/// The new initial RAM file system is noise.
pub fn initrd_garbage(chain: Chain) {
    fails(chain, release("2.0").with(Defect::InitrdGarbage), Start::Never, NOT_UP);
}

/// The new root file system is noise.
pub fn root_garbage(chain: Chain) {
    fails(chain, release("2.0").with(Defect::RootGarbage), Start::Never, NOT_UP);
}

/// The new root file system has no first program.
pub fn no_init(chain: Chain) {
    fails(chain, release("2.0").with(Defect::NoInit), Start::Never, NOT_UP);
}

/// The health check says no until its time is over.
pub fn health_check_fails(chain: Chain) {
    fails(chain, release("2.0").with(Defect::HealthFails), Start::ComesUp, "rolled back: health check: ");
}

/// The health check says that there is no hope; and the same image offered again is refused without a download.
pub fn hopeless_image_is_refused_from_then_on(chain: Chain) {
    let mut stage = quick(chain);
    let offer = stage.publish(&release("2.0").with(Defect::HealthHopeless));
    goes_back(&mut stage, "bad", &offer, Start::ComesUp, "rolled back: health check: ");
    refused_from_then_on(stage, &offer, "health check");
}

/// An image of which nothing is ever seen gets a second chance, for it may have been the power; not a third one.
pub fn two_trials_without_a_verdict(chain: Chain) {
    let mut stage = quick(chain);
    let offer = stage.publish(&release("2.0").with(Defect::InitrdGarbage));
    for job in ["bad", "bad-again"] {
        goes_back(&mut stage, job, &offer, Start::Never, NOT_UP);
    }
    refused_from_then_on(stage, &offer, "two trials of this image ended without a verdict");
}

/// Offered again the image is refused with this reason: no download, no boot.
fn refused_from_then_on(mut stage: Stage, offer: &Offer, reason: &str) {
    let (boot, before) = (boot_id(&mut stage), sent(&stage, offer));
    stage.run("refused", &offer.document, Status::Rejected, reason);
    assert_eq!(sent(&stage, offer), before, "bytes of an image that is refused");
    assert_eq!(boot_id(&mut stage), boot, "a boot for an image that is refused");
    let status = stage.status();
    assert_eq!(status["banned"].as_array().map(Vec::len), Some(1), "{status}");
    finish(stage);
}

/// The new image is well but cannot reach the cloud: the old one tells.
pub fn new_image_cannot_reach_the_cloud(chain: Chain) {
    let reason = "rolled back: the cloud was out of reach for the whole trial";
    fails(chain, release("2.0").with(Defect::WrongCa), Start::ComesUp, reason);
}

/// There is no agent in the new image: the dead-man resets it.
pub fn agent_missing(chain: Chain) {
    fails(chain, impatient(release("2.0").with(Defect::AgentMissing)), Start::ComesUp, NOT_UP);
}

/// The agent of the new image ends at once, each time it is started: the dead-man resets it.
pub fn agent_crashes(chain: Chain) {
    fails(chain, impatient(release("2.0").with(Defect::AgentCrashes)), Start::ComesUp, NOT_UP);
}

/// The new image has a configuration that cannot be read: the dead-man resets it.
pub fn bad_configuration(chain: Chain) {
    fails(chain, impatient(release("2.0").with(Defect::BadConfiguration)), Start::ComesUp, NOT_UP);
}

/// The start of the new image hangs: the watchdog that was started before it resets it.
pub fn hangs_early(chain: Chain) {
    fails(chain, release("2.0").with(Defect::HangsEarly), Start::Never, NOT_UP);
}

/// The agent of the new image hangs in its trial: the watchdog that it fed resets it.
pub fn hangs_late(chain: Chain) {
    fails(chain, release("2.0").with(Defect::HangsLate), Start::ComesUp, "rolled back: ");
}

/// A device whose trials are decided soon.
fn quick(chain: Chain) -> Stage {
    let setup = Setup::new(chain).with("update", "health-timeout", "\"20s\"").with(
        "update",
        "cloud-timeout",
        "\"30s\"",
    );
    let mut stage = Stage::with(setup);
    stage.power_on();
    stage
}

/// One update to this image: the device is back on A without help, and says so.
fn fails(chain: Chain, root: Root, start: Start, reason: &str) {
    let mut stage = quick(chain);
    let offer = stage.publish(&root);
    goes_back(&mut stage, "bad", &offer, start, reason);
    finish(stage);
}

fn goes_back(stage: &mut Stage, job: &str, offer: &Offer, start: Start, reason: &str) {
    stage.job(job, &offer.document);
    if matches!(start, Start::ComesUp) {
        let version = offer.release.version.clone();
        stage.expect_up("B", &version);
    }
    assert_back(stage, job, reason);
}

fn back_on_a(mut stage: Stage, reason: &str) {
    assert_back(&mut stage, "bad", reason);
    finish(stage);
}

/// The factory image runs next, tells the truth and has the bootloader's ear.
fn assert_back(stage: &mut Stage, job: &str, reason: &str) {
    stage.expect_up("A", "1.0");
    stage.expect_end(job, Status::Failed, reason);
    stage.wait_settled();
    stage.wait_phase("idle");
    let status = stage.status();
    assert_eq!(status["booted"], "A", "{status}");
    assert_eq!(status["confirmed"], "A", "{status}");
    assert_eq!(status["bootloader"]["primary"], "A", "{status}");
    assert_eq!(status["bootloader"]["A"], "good", "{status}");
    assert_eq!(status["bootloader"]["B"], "bad", "{status}");
    assert_eq!(status["last-outcome"]["outcome"], "failed", "{status}");
    assert_eq!(status["update"], serde_json::Value::Null, "{status}");
}

/// It stays on A, which nobody wrote to.
fn finish(mut stage: Stage) {
    stage.vm.ok("sync", BOOT).unwrap();
    stage.vm.reset().unwrap();
    stage.expect_up("A", "1.0");
    stage.vm.power_cut();
    stage.assert_factory_untouched();
    stage.finish();
}
