//! Going back to the old set, and the end of every update.

use super::{Action, Fetching, Hook, Machine, Now, Reboot};
use crate::jobs::wire::Details;
use crate::record::{Finished, State};
use crate::seal::Seal;
use crate::update::{Cause, JobKey, Origin, Outcome, Reason};
use crate::verdict::{RESTORE_ATTEMPTS, ROLL_BACK_ATTEMPTS};

impl Machine {
    // --- Going back -------------------------------------------------------------------------------------------

    pub(super) fn roll_back(&mut self, cause: Cause, text: &str) -> Vec<Action> {
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        let reason = Reason::new(cause, text);
        if cause == Cause::Health {
            self.record.note_bad_trial(&update.raw_digests().unwrap_or_default(), true, &reason.text);
        }
        self.enter(State::RollingBack { update, reason, attempt: 1, boot_id: self.boot_id() });
        self.leave_set()
    }

    fn leave_set(&mut self) -> Vec<Action> {
        let Some(update) = self.record.state.update() else { return vec![] };
        let mut actions =
            vec![Action::StopHealth, Action::Save, Action::Disarm(update.target), Action::Report];
        actions.extend(self.ask(Hook::OnRollback));
        actions
    }

    /// The target runs though it was given up. Told in this boot: the agent was restarted before the reboot. Told in
    /// an earlier one: that reboot led here again.
    pub(super) fn roll_back_again(&mut self) -> Vec<Action> {
        let here = self.boot_id();
        let State::RollingBack { update, reason, attempt, boot_id } = &mut self.record.state else {
            return vec![];
        };
        let (from, text) = (update.from, reason.text.clone());
        let same_boot = *boot_id == here;
        if !same_boot {
            *attempt += 1;
            *boot_id = here;
            self.record.resumes = 0;
        }
        let worn_out = same_boot && self.worn_out();
        if worn_out || !self.head(from) {
            return self.cannot_go_back(&text);
        }
        self.leave_set()
    }

    /// Whatever the hook says, and only where there is something to leave.
    pub(super) fn hook_before_leaving(&mut self, now: Now) -> Vec<Action> {
        if self.asked(Hook::OnRollback) && self.on_target() { self.reboot(now) } else { vec![] }
    }

    /// The old set runs and the new one is given up: undo what the bootloader still holds, then finish.
    pub(super) fn back(&mut self, reason: Reason) -> Vec<Action> {
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        let target = update.target;
        if let State::RollingBack { .. } = &self.record.state {
            if self.worn_out() {
                // The bootloader's mark is what kills the agent: do without.
                return self.finish_on_old_set();
            }
        } else {
            if reason.cause == Cause::NoVerdict {
                let digests = update.raw_digests().unwrap_or_default();
                let why = "two trials of this image ended without a verdict";
                self.record.note_bad_trial(&digests, false, why);
            }
            self.enter(State::RollingBack { update, reason, attempt: 1, boot_id: self.boot_id() });
        }
        let mut actions = self.settle();
        actions.extend([Action::Save, Action::Disarm(target), Action::Continue]);
        actions
    }

    /// The bootloader was told. On the old set the update is over; on the new one the reboot is due.
    pub(super) fn back_on_old_set(&mut self) -> Vec<Action> {
        if self.on_target() {
            let mut actions = vec![Action::Report];
            actions.extend(self.ask(Hook::OnRollback));
            return actions;
        }
        self.finish_on_old_set()
    }

    pub(super) fn finish_on_old_set(&mut self) -> Vec<Action> {
        let State::RollingBack { reason, update, .. } = &self.record.state else { return vec![] };
        let (outcome, from) = (reason.outcome(), update.from);
        self.record.confirmed = Some(from);
        self.end(outcome)
    }

    /// The bootloader does not take the bad set out of its order.
    pub(super) fn disarm_failed(&mut self, why: &str) -> Vec<Action> {
        let on_target = self.on_target();
        let State::RollingBack { update, attempt, .. } = &mut self.record.state else { return vec![] };
        let target = update.target;
        let mut actions = vec![Action::Say(format!("the bootloader keeps set {target} in its order: {why}"))];
        if !on_target && *attempt < ROLL_BACK_ATTEMPTS {
            *attempt += 1;
            actions.extend([Action::Save, Action::Disarm(target), Action::Continue]);
        } else {
            actions.extend(self.back_on_old_set());
        }
        actions
    }

    /// The bootloader would have nothing to boot without the bad set. A reboot would lead nobody knows where: into the bad
    /// set once more, or nowhere.
    pub(super) fn no_fallback(&mut self, why: &str) -> Vec<Action> {
        if !self.on_target() {
            return self.disarm_failed(why);
        }
        let State::RollingBack { reason, .. } = &self.record.state else { return vec![] };
        let text = reason.text.clone();
        let mut actions = vec![Action::Say(why.to_owned())];
        actions.extend(self.cannot_go_back(&text));
        actions
    }

    /// Twice the device was told to go back and twice it came up here, or there is nothing to go back to. Staying up
    /// and saying so beats a reboot loop.
    pub(super) fn cannot_go_back(&mut self, text: &str) -> Vec<Action> {
        self.record.restores = RESTORE_ATTEMPTS;
        self.record.late_fallback = true;
        let mut actions =
            vec![Action::Say("the device runs a set that failed its trial and cannot leave it".into())];
        actions.extend(self.end(Some(Outcome::failed(format!("cannot go back: {text}")))));
        actions
    }

    // --- The end ----------------------------------------------------------------------------------------------

    /// The update is over. The outcome goes to disk before it goes anywhere else; `None` = nobody is told.
    pub(super) fn end(&mut self, outcome: Option<Outcome>) -> Vec<Action> {
        let Some(update) = self.record.state.update() else { return vec![] };
        let outcome = outcome.map(Outcome::clipped);
        let (seal, origin) = (self.seal().map(|s| s.to_string()), update.origin.clone());
        let step = self.installing_job().is_some();
        if step {
            self.step_ended(outcome.clone(), seal);
        } else if let Some(key) = origin.job() {
            let finished =
                Finished { key: key.clone(), outcome: outcome.clone(), seal, details: Details::new() };
            let tell = origin.open_job().is_some() && outcome.is_some();
            self.record.finish(finished, tell);
        }
        if origin != Origin::Adopted && !step {
            self.record.last.clone_from(&outcome);
        }
        self.enter(State::Idle);
        let mut actions = self.settle();
        if std::mem::take(&mut self.run.fetch) != Fetching::No {
            actions.push(Action::StopFetch);
        }
        (self.run.alive, self.run.wait, self.run.asked) = (false, None, None);
        (self.run.job_deadline, self.run.armed_since, self.run.progress) = (None, None, None);
        self.run.reboot = Reboot::No;
        if !self.run.kept {
            actions.push(Action::CheckHealth);
        }
        match outcome.filter(|_| origin != Origin::Adopted) {
            Some(Outcome::Succeeded { reason }) => actions.extend([Action::Save, Action::Answer(Ok(reason))]),
            // Bad news does not wait for a disk that may be the cause of it.
            Some(other) => actions.extend([Action::Answer(Err(other.reason().to_owned())), Action::Save]),
            None => actions.push(Action::Save),
        }
        actions.push(Action::Flush);
        if step && self.record.job.is_some() {
            // The next step comes with the document.
            actions.push(Action::AskCloud);
        }
        actions
    }

    pub(super) fn acknowledged(&mut self, key: &JobKey) -> Vec<Action> {
        let before = self.record.outbox.len();
        self.record.outbox.retain(|f| f.key != *key);
        if self.record.outbox.len() == before { vec![] } else { vec![Action::Save] }
    }

    /// What this device tells the cloud about the update, in every details map it sends.
    #[must_use]
    pub fn seal(&self) -> Option<Seal> {
        let update = self.record.state.update().filter(|u| u.origin.job().is_some())?;
        Some(Seal {
            phase: self.record.state.name().to_owned(),
            target: update.target,
            from: update.from,
            digest: update.digest(),
            boot_id: self.boot_id(),
        })
    }
}
