//! Moments of an update at which a device is held, so that something can happen to it just then.
//!
//! Scripts on the data partition wait there: hooks, the health check, the program that reboots. A gate is shut for one
//! passage, by a file; who comes to it takes the file away and waits in that boot only, so that a device that was held
//! when its power went is not held again.

use std::time::Duration;

use otandem_images::Chain;
use otandem_lab::{HttpFault, Position, Rule, Status};
use otandem_vm::stage::{BOOT, Offer, Setup, Stage};

/// A moment of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// In the middle of the download, a checkpoint saved.
    Writing,
    /// Complete and verified, not armed.
    Written,
    /// Armed; the reboot is asked for and does not come.
    Armed,
    /// In the trial, before the verdict.
    Trial,
    /// Confirmed in the bootloader, the outcome on disk.
    Confirmed,
}

/// How long an update may take to a gate: download, write, perhaps a boot.
const WAY: Duration = Duration::from_secs(180);

/// Waits at a shut gate. It counts as shut until the one who came to it has opened it on the disk.
const GATE: &str = "\
[ -e /data/gates/$1 ] || exit 0
touch /run/gate-$1
rm /data/gates/$1
sync
touch /run/at-$1
while [ -e /run/gate-$1 ]; do sleep 0.2; done
";
/// Reboots, or is said to.
const REBOOT: &str = "\
[ -e /data/gates/armed ] || exec /sbin/reboot
rm /data/gates/armed
sync
touch /run/at-armed
";

impl Moment {
    const fn gate(self) -> &'static str {
        match self {
            Self::Writing => "writing",
            Self::Written => "written",
            Self::Armed => "armed",
            Self::Trial => "trial",
            Self::Confirmed => "confirmed",
        }
    }

    /// Whether the new set runs then.
    pub const fn in_new_set(self) -> bool {
        matches!(self, Self::Trial | Self::Confirmed)
    }
}

/// A device with gates.
pub fn setup(chain: Chain) -> Setup {
    let script = |gate: &str| format!("#!/bin/sh\nexec /bin/sh /data/gate {gate}\n");
    Setup::new(chain)
        .with("update", "hook-dir", "\"/data/hooks.d\"")
        .with("update", "hook-timeout", "\"20min\"")
        .with("update", "retry-interval", "\"1s\"")
        .with("update", "health-dir", "\"/data/health.d\"")
        .with("update", "health-check-timeout", "\"20min\"")
        .with("update", "health-timeout", "\"20min\"")
        .with("update", "cloud-timeout", "\"2min\"")
        .with("update", "reboot-command", "[\"/bin/sh\", \"/data/reboot\"]")
        .data("gate", GATE)
        .data("reboot", REBOOT)
        .data("gates/README", "files that hold the device\n")
        .data("hooks.d/pre-reboot", &script("written"))
        .data("hooks.d/post-confirm", &script("confirmed"))
        .data("health.d/10-gate", &script("trial"))
}

/// A device with gates, up in set A.
pub fn up(setup: Setup) -> Stage {
    let mut stage = Stage::with(setup);
    stage.power_on();
    stage.sh("chmod 755 /data/hooks.d/* /data/health.d/* && sync");
    stage
}

/// Shuts the gate of this moment.
pub fn shut(stage: &mut Stage, moment: Moment) {
    stage.sh(&format!("touch /data/gates/{} && sync", moment.gate()));
}

/// Opens the gate of this moment for whoever waits there.
pub fn open(stage: &mut Stage, moment: Moment) {
    stage.sh(&format!("rm -f /run/gate-{}", moment.gate()));
}

/// Waits until the device stands at the gate.
pub fn wait(stage: &mut Stage, moment: Moment) {
    stage.vm.ok(&format!("until [ -e /run/at-{} ]; do sleep 0.2; done", moment.gate()), WAY).unwrap();
}

/// A job whose download stands still after `percent` of the image, with a checkpoint on the disk; the byte where it does.
pub fn job_stalled(stage: &mut Stage, job: &str, offer: &Offer, percent: u64) -> u64 {
    let at = offer.size * percent / 100;
    stage.lab.fault(Rule::once(HttpFault::StallAt(Position::Object(at))).path(&offer.path));
    stage.job(job, &offer.document);
    stage.wait_sent(&offer.path, at);
    stage
        .vm
        .ok("until grep -q '\"raw-offset\":[1-9]' /data/otandem/record.*; do sleep 0.2; done", WAY)
        .unwrap();
    at
}

/// A device whose update of `offer`, version 2.0, stands still at this moment.
pub fn held(setup: Setup, moment: Moment) -> (Stage, Offer) {
    let mut stage = up(setup);
    let offer = stage.good("2.0");
    if moment == Moment::Writing {
        job_stalled(&mut stage, "update", &offer, 60);
        return (stage, offer);
    }
    shut(&mut stage, moment);
    stage.job("update", &offer.document);
    if moment.in_new_set() {
        stage.expect_up("B", "2.0");
    }
    wait(&mut stage, moment);
    (stage, offer)
}

/// The device is in order: it settles in this set, another good image goes into the other one.
pub fn next_update_succeeds(mut stage: Stage, next: &str) {
    let offer = stage.good("3.0");
    stage.update("next", &offer, next);
    let status = stage.status();
    assert_eq!(status["confirmed"], next, "{status}");
    assert_eq!(status["bootloader"]["primary"], next, "{status}");
    stage.finish();
}

/// The update failed for this reason, and the device is settled in set A, whose bytes are those of before.
pub fn back_on_a(stage: &mut Stage, reason: &str, before: &str) {
    stage.expect_end("update", Status::Failed, reason);
    stage.wait_sh("[ -e /run/otandem/settled ]");
    assert_eq!(stage.digest("root-a"), before, "set A was written");
    let status = stage.status();
    assert_eq!(status["booted"], "A", "{status}");
    assert_eq!(status["phase"], "idle", "{status}");
}

/// Waits for a line of the agent's log.
pub fn wait_log(stage: &mut Stage, words: &str) {
    stage.vm.expect(words, BOOT).unwrap();
}
