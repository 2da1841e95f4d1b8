//! The general job that runs, as the record remembers it, and what a restart in its middle means.

use serde::{Deserialize, Serialize};

use crate::boot::SetId;
use crate::jobs::verdict;
use crate::jobs::wire::Details;
use crate::update::{JobKey, Outcome};

/// Entry of statusDetails that says which step runs.
pub const PROGRESS: &str = "progress";
/// Characters of a step's name that the record keeps.
const NAME_KEPT: usize = 64;

/// Saved before each step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunningJob {
    /// Which one.
    pub key: JobKey,
    /// The boot in which the step began.
    pub boot_id: String,
    /// The step, counted from 0, the final one included.
    pub step: usize,
    /// How many there are.
    pub steps: usize,
    /// Its name, for the reason.
    pub name: String,
    /// The document says that it may run again.
    #[serde(default)]
    pub rerunnable: bool,
    /// The cloud ended it by itself: it is being stopped, and nobody is told how it ends.
    #[serde(default)]
    pub closed: bool,
    /// The step has not begun: it does when the job's document is here again.
    #[serde(default)]
    pub waits: bool,
    /// The step installs images, and the job goes on even where that fails.
    #[serde(default)]
    pub ignore_failure: bool,
    /// The set that a step of it installed: the steps behind it are for that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetId>,
    /// When the job began here, in seconds since 1970 by the device's clock; for display only.
    #[serde(default)]
    pub since: u64,
    /// What the programs of the steps before an installation wrote; told with the end of the job.
    #[serde(default, skip_serializing_if = "Details::is_empty")]
    pub details: Details,
}

impl RunningJob {
    /// With a name of bounded length.
    #[must_use]
    pub fn at(mut self, step: usize, name: &str) -> Self {
        self.step = step;
        self.name = name.chars().take(NAME_KEPT).collect();
        self
    }

    /// The step behind this one, which has not begun. `after`: what came before it, since its name is in the document
    /// alone. `None`: this was the last one.
    #[must_use]
    pub fn next(mut self, after: &str) -> Option<Self> {
        let step = self.step.saturating_add(1);
        (self.waits, self.ignore_failure) = (true, false);
        (step < self.steps).then(|| self.at(step, after))
    }

    /// Where it stands, for people.
    #[must_use]
    pub fn progress(&self) -> String {
        verdict::progress(self.step, self.steps, &self.name)
    }
}

/// What a start finds about the job that ran before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interrupted {
    /// It is over.
    Ended(Outcome),
    /// It is taken again from its first step.
    Again,
    /// Its next step has not begun, or it asked for the reboot that has happened: so it goes on.
    GoesOn(RunningJob),
}

/// Decides. `boot_id` is that of now; `asked_for_reboot`: the step that ran had said that it reboots the device.
#[must_use]
pub fn interrupted(job: &RunningJob, boot_id: &str, asked_for_reboot: bool) -> Interrupted {
    let rebooted = job.boot_id != boot_id;
    if job.closed {
        return Interrupted::Ended(Outcome::failed("dropped here when the cloud ended the job"));
    }
    if job.waits {
        return Interrupted::GoesOn(job.clone());
    }
    if rebooted && asked_for_reboot {
        let over = || Interrupted::Ended(Outcome::succeeded("the device rebooted, as the job asked"));
        return job.clone().next("after the reboot").map_or_else(over, Interrupted::GoesOn);
    }
    if job.rerunnable {
        return Interrupted::Again;
    }
    let what = if rebooted { "of the device" } else { "of the agent" };
    Interrupted::Ended(Outcome::failed(format!("interrupted by restart {what} in {}", job.progress())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(step: usize, rerunnable: bool) -> RunningJob {
        let key =
            JobKey { endpoint: "e".into(), thing: "t".into(), job: "j".into(), execution: 1, queued_at: 1 };
        RunningJob {
            key,
            boot_id: "b1".into(),
            step: 0,
            steps: 2,
            name: String::new(),
            rerunnable,
            closed: false,
            waits: false,
            ignore_failure: false,
            set: None,
            since: 0,
            details: Details::new(),
        }
        .at(step, "reboot")
    }

    #[test]
    fn a_job_that_ran_when_the_agent_died_has_failed_unless_it_may_run_again() {
        for (boot, what) in [("b1", "of the agent"), ("b2", "of the device")] {
            let Interrupted::Ended(Outcome::Failed { reason }) = interrupted(&job(1, false), boot, false)
            else {
                panic!("{boot}")
            };
            assert_eq!(reason, format!("interrupted by restart {what} in step 2/2: reboot"));
            assert_eq!(interrupted(&job(1, true), boot, false), Interrupted::Again);
        }
    }

    #[test]
    fn a_job_that_reboots_succeeds_after_the_boot_id_changed_and_is_not_looped() {
        let ended = interrupted(&job(1, true), "b2", true);
        assert!(matches!(ended, Interrupted::Ended(Outcome::Succeeded { .. })), "{ended:?}");
        let Interrupted::GoesOn(next) = interrupted(&job(0, false), "b2", true) else { panic!() };
        assert_eq!((next.step, next.waits), (1, true));
    }

    #[test]
    fn a_step_that_has_not_begun_is_not_interrupted() {
        let waiting = RunningJob { waits: true, ..job(1, true) };
        for boot in ["b1", "b2"] {
            assert_eq!(interrupted(&waiting, boot, false), Interrupted::GoesOn(waiting.clone()));
        }
    }

    #[test]
    fn a_job_that_an_older_agent_saved_is_read() {
        let old = r#"{"key":{"endpoint":"e","thing":"t","job":"j","execution":1,"queued-at":1},"boot-id":"b1",
                      "step":1,"steps":2,"name":"reboot","rerunnable":true,"closed":false}"#;
        assert_eq!(serde_json::from_str::<RunningJob>(old).unwrap(), job(1, true));
    }

    #[test]
    fn a_reboot_that_did_not_happen_is_no_success() {
        let ended = interrupted(&job(1, false), "b1", true);
        assert!(matches!(ended, Interrupted::Ended(Outcome::Failed { .. })), "{ended:?}");
    }
}
