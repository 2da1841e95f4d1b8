//! Power, disk and network that fail, and jobs that the cloud ends, in the middle of an update.

use otandem_images::Chain;
use otandem_lab::{Direction, Force, MqttFault, Operation, Rule, Snapshot, Status};
use otandem_vm::stage::Stage;
use otandem_vm::{DiskError, Link, Request};

use crate::gates::{self, Moment};

/// Power is cut in the middle of the download: the next life goes on from the checkpoint, and fetches only what it
/// had not made durable.
pub fn power_cut_while_writing(chain: Chain) {
    let (mut stage, offer) = gates::held(gates::setup(chain), Moment::Writing);
    let stop = stage.counters().path(&offer.path).body_bytes;
    stage.vm.power_cut();
    stage.lab.clear_faults();
    stage.boot("A", "1.0");
    stage.expect_up("B", "2.0");
    stage.expect_end("update", Status::Succeeded, "");
    let fetched = stage.counters().path(&offer.path);
    let again = fetched.offsets.iter().skip(1).copied().min().expect("the second life fetched nothing");
    assert!(again > 0, "it began from zero: {fetched:?}");
    let most = stop + (offer.size - again);
    assert!(fetched.body_bytes <= most, "more than {most} bytes, the rest from {again} on: {fetched:?}");
    stage.finish();
}

/// Power is cut when the loader was told and nobody has rebooted yet: the next boot is the trial.
pub fn power_cut_when_armed(chain: Chain) {
    let (mut stage, _) = gates::held(gates::setup(chain), Moment::Armed);
    stage.vm.power_cut();
    stage.boot("B", "2.0");
    stage.expect_end("update", Status::Succeeded, "");
    gates::next_update_succeeds(stage, "A");
}

/// Power is cut in the trial: the loader goes back by itself, and the job says that nobody gave a verdict.
pub fn power_cut_in_the_trial(chain: Chain) {
    let (mut stage, _) = gates::held(gates::setup(chain), Moment::Trial);
    let before = stage.digest("root-a");
    stage.vm.power_cut();
    stage.boot("A", "1.0");
    gates::back_on_a(&mut stage, "rolled back: trial ended without a verdict", &before);
    gates::next_update_succeeds(stage, "B");
}

/// Power is cut as soon as the new set is confirmed: it stays, and the job hears of it.
pub fn power_cut_when_confirmed(chain: Chain) {
    let (mut stage, _) = gates::held(gates::setup(chain), Moment::Confirmed);
    stage.vm.power_cut();
    stage.boot("B", "2.0");
    stage.expect_end("update", Status::Succeeded, "");
    stage.wait_settled();
    let status = stage.status();
    assert_eq!(status["confirmed"], "B", "{status}");
    stage.finish();
}

/// The disk refuses a part of the slot that is written: the job fails and says why, the running set was not touched, and
/// the next job is served once the disk is well.
pub fn disk_error_while_writing(chain: Chain) {
    let mut stage = gates::up(gates::setup(chain));
    let before = stage.digest("root-a");
    let start = stage.partition("root-b").start + (9 << 20);
    let broken = DiskError::pages(Request::Write, start..start + (1 << 20));
    stage.vm.disk_error(Some(&broken)).unwrap();
    let offer = stage.good("2.0");
    stage.job("update", &offer.document);
    gates::back_on_a(&mut stage, "nput/output error", &before);
    stage.vm.disk_error(None).unwrap();
    gates::next_update_succeeds(stage, "B");
}

/// A slow disk, and a network that goes away in the middle of the download: the same process goes on at the byte.
pub fn network_lost_while_downloading(chain: Chain) {
    let setup = gates::setup(chain).with("network", "read-timeout", "\"5s\"").with(
        "network",
        "connect-timeout",
        "\"5s\"",
    );
    let mut stage = gates::up(setup);
    stage.vm.slow_disk(Some(4 << 20)).unwrap();
    let offer = stage.good("2.0");
    // Some of it is on the disk: what was sent may still be on its way.
    gates::job_stalled(&mut stage, "update", &offer, 50);
    stage.vm.network(Link::Down).unwrap();
    gates::wait_log(&mut stage, "next attempt in ");
    gates::wait_log(&mut stage, "next attempt in ");
    stage.lab.clear_faults();
    stage.vm.network(Link::Up).unwrap();
    stage.expect_up("B", "2.0");
    stage.expect_end("update", Status::Succeeded, "");
    let fetched = stage.counters().path(&offer.path);
    let again = fetched.offsets.iter().skip(1).copied().min().expect("nothing was asked for again");
    assert!(again > 0, "it began from zero: {fetched:?}");
    stage.finish();
}

/// The device has told that it is in this phase.
fn told(lab: &Snapshot<'_>, phase: &str) -> bool {
    let seal = format!("v1;{phase};");
    lab.messages(Direction::In, "/update")
        .any(|e| e.json()["statusDetails"]["otandem"].as_str().is_some_and(|s| s.starts_with(&seal)))
}

/// No outcome of the job was ever sent.
fn assert_silent(stage: &Stage) {
    let sent = stage.lab.inspect(|lab| {
        let outcomes = lab
            .messages(Direction::In, "/update/update")
            .map(|e| e.json()["status"].as_str().unwrap_or("").to_owned());
        outcomes.filter(|status| status != "IN_PROGRESS").collect::<Vec<_>>()
    });
    assert_eq!(sent, [] as [String; 0], "an outcome for a job that the cloud ended");
}

/// The job is cancelled in the middle of its download: nothing is armed, the next one is served.
pub fn cancelled_while_downloading(chain: Chain) {
    let (mut stage, _) = gates::held(gates::setup(chain), Moment::Writing);
    let before = stage.digest("root-a");
    stage.lab.cancel_job("update", Force::Yes).unwrap();
    stage.lab.release_stalls();
    stage.wait_phase("idle");
    assert_eq!(stage.digest("root-a"), before, "set A was written");
    stage.wait_status("update", Status::Canceled);
    assert_silent(&stage);
    gates::next_update_succeeds(stage, "B");
}

/// The job is cancelled while a hook keeps the written image from being armed: it never is.
pub fn cancelled_while_a_hook_runs(chain: Chain) {
    let (mut stage, _) = gates::held(gates::setup(chain), Moment::Written);
    let before = stage.digest("root-a");
    stage.lab.cancel_job("update", Force::Yes).unwrap();
    stage.wait_phase("idle");
    gates::open(&mut stage, Moment::Written);
    stage.wait_status("update", Status::Canceled);
    assert_silent(&stage);
    assert_eq!(stage.digest("root-a"), before, "set A was written");
    stage.sh("sync");
    stage.vm.reset().unwrap();
    stage.expect_up("A", "1.0");
    stage.wait_settled();
    gates::next_update_succeeds(stage, "B");
}

/// The job is cancelled when the loader was told, before the reboot: the arming is taken back, no reset tries the image.
pub fn cancelled_while_armed(chain: Chain) {
    let (mut stage, _) = gates::held(gates::setup(chain), Moment::Written);
    stage.wait_lab("the answer to phase written", |lab| {
        let phase = lab.jobs.execution(&stage.thing, "update")?.details.as_ref()?.get("phase")? == "written";
        let (asked, answered) = (Direction::In, Direction::Out);
        let all =
            lab.messages(asked, "/update").count() == lab.messages(answered, "/update/accepted").count();
        (phase && all).then_some(())
    });
    // Without the acknowledgement of the seal the device waits before the reboot.
    stage.lab.fault(Rule::always(MqttFault::DropAnswer(Operation::Update)));
    gates::open(&mut stage, Moment::Written);
    stage.wait_lab("phase armed", |lab| told(lab, "armed").then_some(()));
    stage.lab.clear_faults();
    stage.lab.cancel_job("update", Force::Yes).unwrap();
    stage.wait_phase("idle");
    assert_silent(&stage);
    stage.sh("sync");
    stage.vm.power_cut();
    stage.boot("A", "1.0");
    stage.wait_settled();
    gates::next_update_succeeds(stage, "B");
}

/// The job is cancelled in the trial: the image is well, so it stays; the cloud's word about the job stays too.
pub fn cancelled_in_the_trial(chain: Chain) {
    let (mut stage, _) = gates::held(gates::setup(chain), Moment::Trial);
    stage.lab.cancel_job("update", Force::Yes).unwrap();
    gates::open(&mut stage, Moment::Trial);
    stage.wait_settled();
    stage.wait_status("update", Status::Canceled);
    let status = stage.status();
    assert_eq!((&status["booted"], &status["confirmed"]), (&"B".into(), &"B".into()), "{status}");
    gates::next_update_succeeds(stage, "A");
}
