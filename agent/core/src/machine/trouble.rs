//! What fails, and what time does.

use super::trial::Broken;
use super::{Action, BOOT_RETRY, Health, Hook, Machine, Now, REBOOT_RETRY, Reboot, SAVE_RETRY};
use crate::record::State;
use crate::update::{Cause, Outcome};
use crate::verdict::ARM_ATTEMPTS;

impl Machine {
    /// An action could not be done: what follows, by state.
    pub(super) fn failed(&mut self, action: Action, why: &str, now: Now) -> Vec<Action> {
        let unsaved = || format!("the record cannot be saved: {why}");
        match (&self.record.state, action) {
            (_, Action::Reboot) => self.reboot_failed(why, now),
            (_, action) if self.job_begins(&action) => self.job_action_failed(&action, why, now),

            (State::Idle, Action::Save) => {
                // The save that failed has ended its list, and with it the sending. Bad news does not wait for the disk;
                // what may go without it is decided where it is sent.
                let mut actions = self.save_later(why, now);
                actions.push(Action::Flush);
                actions
            }
            (State::Idle, Action::Arm(_)) if self.run.restoring => {
                self.run.restoring = false;
                self.late_fallback()
            }
            (State::Idle, Action::Keep(_) | Action::Confirm(_)) => {
                self.run.boot_failed = Some(now.boot);
                said(format!("the running set cannot be refreshed in the bootloader: {why}"))
            }
            (State::Idle, action) => said(format!("{action:?}: {why}")),

            (State::Accepted { .. } | State::Writing { .. } | State::Written { .. }, action) => {
                let what = match action {
                    Action::Save => unsaved(),
                    Action::Keep(_) | Action::Confirm(_) => {
                        self.run.boot_failed = Some(now.boot);
                        format!("the running set cannot be refreshed in the bootloader: {why}")
                    }
                    _ => format!("the set to be written cannot be marked in the bootloader: {why}"),
                };
                self.end(Some(Outcome::failed(what)))
            }

            (State::Arming { .. } | State::Armed { .. }, Action::Save) => {
                self.run.disk_armed = true;
                self.drop_armed(Cause::Dropped, &unsaved())
            }
            (State::Arming { attempt, .. }, Action::Arm(_)) if *attempt < ARM_ATTEMPTS => self.arm_again(),
            (State::Arming { .. }, _) => self.drop_armed(Cause::NotArmed, &format!("not armed: {why}")),

            // What cannot be saved is not confirmed.
            (State::Trial { .. } | State::Confirming { .. }, Action::Save) => {
                self.run.disk_armed = true;
                self.trial_broken(unsaved(), Broken::Disk, now)
            }
            (State::Confirming { .. }, Action::Confirm(_)) => {
                self.trial_broken(format!("the set cannot be made permanent: {why}"), Broken::Bootloader, now)
            }

            (State::RollingBack { update, .. }, Action::Save) => {
                self.run.disk_armed = true;
                let target = update.target;
                vec![
                    Action::Say(format!("going back unsaved: {why}")),
                    Action::Disarm(target),
                    Action::Continue,
                ]
            }
            (State::RollingBack { .. }, Action::Disarm(_)) => self.disarm_failed(why),
            (_, action) => vec![Action::Say(format!("{action:?}: {why}"))],
        }
    }

    pub(super) fn save_later(&mut self, why: &str, now: Now) -> Vec<Action> {
        if self.run.unsaved.replace(now.boot).is_some() {
            return vec![];
        }
        vec![Action::Say(format!("the record cannot be saved, trying again: {why}"))]
    }

    fn reboot_failed(&mut self, why: &str, now: Now) -> Vec<Action> {
        if self.record.state == State::Idle && !self.run.restoring {
            self.run.reboot = Reboot::No;
            return said(format!("the reboot did not start: {why}"));
        }
        self.run.reboot = Reboot::Refused(now.boot);
        vec![Action::Say(format!("the reboot did not start, trying again: {why}"))]
    }

    pub(super) fn tick(&mut self, now: Now) -> Vec<Action> {
        let past = |t: Option<crate::time::Boottime>, wait| t.is_some_and(|t| now.boot.since(t) >= wait);
        if past(self.run.unsaved, SAVE_RETRY) {
            self.run.unsaved = None;
            return self.save_again();
        }
        if let Reboot::Asked(t) | Reboot::Refused(t) = self.run.reboot
            && past(Some(t), REBOOT_RETRY)
        {
            return self.reboot(now);
        }
        if past(self.run.boot_failed, BOOT_RETRY) {
            self.run.boot_failed = None;
            return match &self.record.state {
                State::Trial { .. } => self.trial_verdict(now),
                _ if self.run.kept => vec![],
                _ if self.run.health == Some(Health::Passed) => self.refresh(),
                _ => vec![Action::CheckHealth],
            };
        }
        let waited = self.run.asked.is_none() && self.run.wait.as_ref().is_some_and(|w| w.until <= now.boot);
        match &self.record.state {
            State::Accepted { .. } | State::Writing { .. } | State::Written { .. }
                if !self.run.kept && past(Some(self.run.started), self.rules.health_timeout) =>
            {
                self.not_well("its health checks did not pass in time")
            }
            State::Accepted { .. } if waited => self.ask(Hook::PreInstall),
            State::Written { .. } if waited => self.gate(now),
            State::Armed { .. } => self.reboot_when_told(now),
            State::Trial { .. } => self.trial_verdict(now),
            _ => vec![],
        }
    }

    fn save_again(&mut self) -> Vec<Action> {
        match (&self.record.state, self.record.confirmed) {
            (State::Idle, Some(confirmed)) if self.run.restoring => {
                vec![Action::Save, Action::Arm(confirmed), Action::Continue]
            }
            (State::Trial { .. }, _) => vec![Action::Save, Action::AskCloud, Action::Continue],
            _ => vec![Action::Save, Action::Flush, Action::AskCloud],
        }
    }
}

/// For the log, and for whoever may have asked.
fn said(text: String) -> Vec<Action> {
    vec![Action::Say(text.clone()), Action::Answer(Err(text))]
}
