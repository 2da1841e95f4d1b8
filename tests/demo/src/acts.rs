//! The four acts, each with what must be true at its end.

use std::path::Path;

use otandem_core::boot::SetId;
use otandem_lab::{HttpFault, Position, Rule, Status};
use otandem_system_tests::Health;
use otandem_system_tests::device::Heard;

use crate::screen::{Who, mib};
use crate::stage::{Offer, Stage};

/// Seconds of a download that is watched: longer than the device waits between two reports of its progress.
const WATCHED: u64 = 13;
/// The same where the download is not the point.
const SHORT: u64 = 2;

/// What the agent's log says once two frames are on disk for good.
const SAVED: &str = "checkpoint saved at 33554432";

/// A line of the table.
pub struct Line {
    /// The act.
    pub name: &'static str,
    /// What was shown, or what was not as told.
    pub result: Result<End, String>,
}

/// How an act ended.
pub struct End {
    /// Status of the job.
    pub status: &'static str,
    /// What the act showed.
    pub text: String,
}

/// An act: told, then checked.
type Act = fn(&Stage, &Path) -> Result<End, String>;

const ACTS: [(&str, &str, Act); 4] = [
    ("good", "1. A good update: from 1.0 to 2.0", good),
    ("power cut", "2. The power fails in the middle of the download of 3.0", power_cut),
    ("corrupted", "3. A byte of 4.0 is not what it was when the image was made", corrupted),
    ("not well", "4. 5.0 is complete and boots, but its health check says no", not_well),
];

/// Plays all acts; one that does not end as told ends the show, since the others build on it.
pub fn all(stage: &Stage, folder: &Path) -> Vec<Line> {
    let mut lines = Vec::new();
    let start = || {
        stage.device.power_on().map_err(|e| e.to_string())?;
        let connected = |lab: &otandem_lab::Snapshot<'_>| !lab.connected.is_empty();
        stage
            .lab
            .wait_for(connected, crate::stage::LIMIT)
            .map_err(|e| format!("{e}\n{}", stage.device.tail()))
    };
    if let Err(why) = start() {
        return vec![Line { name: "start", result: Err(why) }];
    }
    for (name, title, act) in ACTS {
        stage.screen.forget_progress();
        stage.screen.plain(&format!("\n{title}"));
        let result = act(stage, folder).and_then(|end| within_policy(stage).map(|()| end));
        match &result {
            Ok(end) => stage.screen.line(Who::Demo, &format!("as told: {}", end.text)),
            Err(why) => stage.screen.line(Who::Demo, &format!("NOT AS TOLD: {why}")),
        }
        let failed = result.is_err();
        lines.push(Line { name, result });
        if failed {
            break;
        }
    }
    lines
}

/// In no act may the device do what its policy forbids, or end by itself.
fn within_policy(stage: &Stage) -> Result<(), String> {
    let violations = stage.lab.inspect(|lab| [&lab.counters.violations[..], &lab.counters.offences].concat());
    check(violations.is_empty(), &format!("the device left its policy: {violations:?}"))?;
    let crashes = stage.device.look(|heard| heard.crashes.clone());
    check(crashes.is_empty(), &format!("the agent ended by itself: {crashes:?}"))?;
    let stubborn = stage.device.look(|heard| heard.stubborn);
    check(stubborn == 0, "the agent did not end when the device was shut down")
}

fn check(right: bool, else_what: &str) -> Result<(), String> {
    if right { Ok(()) } else { Err(else_what.to_owned()) }
}

/// Runs the job to its end, which must be this one.
fn ends(stage: &Stage, id: &str, wanted: Status, reason: &str) -> Result<String, String> {
    let (status, why) = stage.wait_end(id)?;
    let right = status == wanted && why.contains(reason);
    check(right, &format!("job {id} ended {} ({why}), not {} ({reason})", status.name(), wanted.name()))?;
    Ok(why)
}

fn runs(stage: &Stage, set: SetId) -> Result<(), String> {
    let booted = stage.device.booted();
    check(booted == Some(set), &format!("{booted:?} runs, not set {set}"))
}

fn holds(stage: &Stage, set: SetId, offer: &Offer) -> Result<(), String> {
    check(stage.holds(set, &offer.image), &format!("set {set} does not hold {}", offer.image.version))
}

fn good(stage: &Stage, folder: &Path) -> Result<End, String> {
    let offer = stage.offer("2.0", Health::Good, folder, WATCHED)?;
    let before = stage.slot_digest(SetId::A);
    stage.create_job("update-2-0", &offer)?;
    ends(stage, "update-2-0", Status::Succeeded, "set B")?;
    runs(stage, SetId::B)?;
    holds(stage, SetId::B, &offer)?;
    check(stage.slot_digest(SetId::A) == before, "set A was changed, and it was running")?;
    let boots = stage.device.look(|heard| heard.boots.len());
    check(boots == 2, &format!("{boots} boots instead of 2"))?;
    Ok(End { status: "SUCCEEDED", text: "set B runs 2.0, and set A still holds 1.0".into() })
}

fn power_cut(stage: &Stage, folder: &Path) -> Result<End, String> {
    let offer = stage.offer("3.0", Health::Good, folder, WATCHED / 2)?;
    // The server stops in the third frame, so that the power fails in mid-download on every machine.
    let stop = u64::midpoint(offer.two_frames, offer.size);
    stage.lab.fault(Rule::once(HttpFault::StallAt(Position::Object(stop))).path(&offer.path));
    let before = stage.device.look(|heard| heard.log.len());
    stage.create_job("update-3-0", &offer)?;
    stage.wait_sent(&offer.path, stop)?;
    let saved = |heard: &Heard| heard.log[before..].iter().any(|line| line.contains(SAVED)).then_some(());
    stage.device.wait("a checkpoint", crate::stage::LIMIT, saved).map_err(|e| e.to_string())?;
    stage.screen.line(Who::Device, &format!("POWER CUT (kill -9) after {} MiB", mib(stop)));
    stage.device.power_cut().map_err(|e| e.to_string())?;
    stage.lab.release_stalls();
    ends(stage, "update-3-0", Status::Succeeded, "set A")?;
    runs(stage, SetId::A)?;
    holds(stage, SetId::A, &offer)?;
    let sent = stage.sent(&offer.path);
    let once_more = sent.saturating_sub(offer.size);
    check(once_more < offer.size / 2, &format!("{sent} bytes were fetched for an image of {}", offer.size))?;
    let offsets = stage.lab.inspect(|lab| lab.counters.path(&offer.path).offsets);
    let resumed = offsets.last().copied().unwrap_or(0);
    check(resumed == offer.two_frames, &format!("the download went on at byte {resumed}"))?;
    let text = format!(
        "went on at {} MiB: {} MiB fetched in all for a file of {} MiB",
        mib(resumed),
        mib(sent),
        mib(offer.size)
    );
    Ok(End { status: "SUCCEEDED", text })
}

fn corrupted(stage: &Stage, folder: &Path) -> Result<End, String> {
    let offer = stage.offer("4.0", Health::Good, folder, SHORT)?;
    let wrong = Position::Object(offer.size / 2);
    stage.lab.fault(Rule::always(HttpFault::WrongByteAt(wrong)).path(&offer.path));
    let (before, boots) = (stage.slot_digest(SetId::A), stage.device.look(|heard| heard.boots.len()));
    stage.create_job("update-4-0", &offer)?;
    let why = ends(stage, "update-4-0", Status::Failed, "slot rootfs")?;
    runs(stage, SetId::A)?;
    check(stage.slot_digest(SetId::A) == before, "set A was changed, and it was running")?;
    check(stage.device.look(|heard| heard.boots.len()) == boots, "the device was rebooted for it")?;
    check(!stage.holds(SetId::B, &offer.image), "set B holds the image all the same")?;
    Ok(End { status: "FAILED", text: format!("refused ({why}); set A goes on with 3.0, untouched") })
}

fn not_well(stage: &Stage, folder: &Path) -> Result<End, String> {
    let offer = stage.offer("5.0", Health::Hopeless, folder, SHORT)?;
    let (before, boots) = (stage.slot_digest(SetId::A), stage.device.look(|heard| heard.boots.len()));
    stage.create_job("update-5-0", &offer)?;
    let why = ends(stage, "update-5-0", Status::Failed, "rolled back: health check")?;
    runs(stage, SetId::A)?;
    check(stage.slot_digest(SetId::A) == before, "set A was changed")?;
    let tried =
        stage.device.look(|heard| heard.boots[boots..].iter().map(|boot| boot.set).collect::<Vec<_>>());
    check(tried == [Some(SetId::B), Some(SetId::A)], &format!("booted {tried:?}, not B and then A"))?;
    Ok(End { status: "FAILED", text: format!("{why}; set A runs 3.0 again") })
}
