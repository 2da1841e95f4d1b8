//! Arming, and the reboot into the armed set.

use super::{Action, Machine, Now, Reboot, SEAL_WAIT};
use crate::boot::SetState;
use crate::record::State;
use crate::update::{Cause, Origin, Outcome, Reason, Then, Update};

impl Machine {
    /// Armed only when the reboot is due, in good time, and only what is recorded as complete and begins with
    /// something: the record may be older than the slots.
    pub(super) fn arm(&mut self, now: Now) -> Vec<Action> {
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        (self.run.wait, self.run.asked) = (None, None);
        let target = update.target;
        let complete = self.record.complete(target, self.rules.slots.iter().map(String::as_str));
        if !complete || !self.head(target) {
            return self.end(Some(Outcome::failed(format!("set {target} does not hold a complete image"))));
        }
        let left = self.run.job_deadline.map(|d| d.since(now.boot));
        if update.then == Then::Reboot && left.is_some_and(|left| left < self.rules.reboot_reserve) {
            return self.end(Some(Outcome::failed("too little time left")));
        }
        self.enter(State::Arming { update, attempt: 1 });
        let mut actions = vec![Action::Save, Action::Arm(target), Action::Continue];
        // Traces of an older trial must not look like one of this update, should power fail before it is armed.
        if self.run.facts.as_ref().is_some_and(|f| f.state(target) == SetState::Tried) {
            actions.insert(0, Action::MarkBad(target));
        }
        actions
    }

    pub(super) fn arm_again(&mut self) -> Vec<Action> {
        let State::Arming { update, attempt } = self.record.state.clone() else { return vec![] };
        let target = update.target;
        if !self.head(target) {
            return self.nothing_to_arm();
        }
        self.record.state = State::Arming { update, attempt: attempt + 1 };
        let mut actions = self.settle();
        actions.extend([Action::Save, Action::Arm(target), Action::Continue]);
        actions
    }

    fn nothing_to_arm(&mut self) -> Vec<Action> {
        self.drop_armed(Cause::NotArmed, "the set does not hold a complete image any more")
    }

    /// The bootloader was seen to hold the request.
    pub(super) fn armed(&mut self, now: Now) -> Vec<Action> {
        let State::Arming { update, .. } = &self.record.state else { return vec![] };
        let update = update.clone();
        let (then, target) = (update.then, update.target);
        let person = update.origin == Origin::Local;
        if !self.head(target) {
            return self.nothing_to_arm();
        }
        self.enter(State::Armed { update, boot_id: self.boot_id() });
        self.run.armed_since = Some(now.boot);
        (self.run.seal_acknowledged, self.run.seal_lapsed) = (false, false);
        let mut actions = self.settle();
        actions.extend([Action::Save, Action::Report]);
        if then == Then::Reboot {
            if person {
                // The last word before the reboot: how the trial ends is in the status.
                actions.push(Action::Answer(Ok(format!("set {target} is armed: rebooting into it"))));
            }
            actions.extend(self.reboot_when_told(now));
        } else {
            let text = format!("set {target} is armed: the next reboot tries it");
            actions.extend([Action::Say(text.clone()), Action::Answer(Ok(text))]);
        }
        actions
    }

    /// Armed, and the agent was restarted before the reboot.
    pub(super) fn armed_in_this_boot(&mut self, now: Now) -> Vec<Action> {
        let State::Armed { update, .. } = &self.record.state else { return vec![] };
        let (reboot, target) = (update.then == Then::Reboot, update.target);
        if !self.head(target) {
            return self.nothing_to_arm();
        }
        if self.worn_out() {
            return self.drop_armed(Cause::Dropped, &self.died());
        }
        self.run.armed_since = Some(now.boot);
        let mut actions = self.settle();
        actions.extend([Action::Save, Action::AskCloud, Action::Report]);
        if reboot {
            actions.extend(self.reboot_when_told(now));
        }
        actions
    }

    pub(super) fn seal_acknowledged(&mut self, now: Now) -> Vec<Action> {
        self.run.seal_acknowledged = true;
        self.reboot_when_told(now)
    }

    pub(super) fn told(&self, update: &Update) -> bool {
        update.origin.open_job().is_none() || self.run.seal_acknowledged
    }

    /// The reboot comes without the acknowledgement, some time.
    pub(super) fn seal_may_lapse(&self, update: &Update) -> bool {
        self.rules.record_shared && !self.told(update) && !self.run.seal_lapsed
    }

    /// The cloud must hold the seal before the reboot, or the other set the record (UPDATE-RULES 4.4).
    pub(super) fn reboot_when_told(&mut self, now: Now) -> Vec<Action> {
        let State::Armed { update, .. } = &self.record.state else { return vec![] };
        let waited = self.run.armed_since.is_some_and(|t| now.boot.since(t) >= SEAL_WAIT);
        let may = self.told(update) || (waited && self.rules.record_shared);
        self.run.seal_lapsed = waited && self.rules.record_shared;
        let ours = update.then == Then::Reboot && self.run.reboot == Reboot::No;
        if ours && may { self.reboot(now) } else { vec![] }
    }

    pub(super) fn reboot(&mut self, now: Now) -> Vec<Action> {
        self.run.reboot = Reboot::Asked(now.boot);
        vec![Action::Reboot]
    }

    /// Until the reboot the cloud's word ends an update; nothing is reported back.
    pub(super) fn closed_before_reboot(&mut self, why: &str) -> Vec<Action> {
        if matches!((&self.record.state, self.run.reboot), (State::Armed { .. }, Reboot::Asked(_))) {
            return self.closed_after_reboot(why);
        }
        self.close_job();
        let mut actions = vec![Action::Say(format!("the cloud ended the job: {why}"))];
        let armed = matches!(self.record.state, State::Arming { .. } | State::Armed { .. });
        actions.extend(if armed { self.drop_armed(Cause::Closed, why) } else { self.end(None) });
        actions
    }

    /// From the accepted reboot on the device's facts win; the outcome stays here.
    pub(super) fn closed_after_reboot(&mut self, why: &str) -> Vec<Action> {
        if !self.close_job() {
            return vec![];
        }
        vec![Action::Say(format!("the cloud ended the job, the trial goes on: {why}")), Action::Save]
    }

    /// `true` if that is news.
    fn close_job(&mut self) -> bool {
        match self.record.state.update_mut() {
            Some(Update { origin: Origin::Job { closed, .. }, .. }) => !std::mem::replace(closed, true),
            _ => false,
        }
    }

    /// Still on the old set: undo the arming.
    pub(super) fn drop_armed(&mut self, cause: Cause, text: &str) -> Vec<Action> {
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        let target = update.target;
        self.run.reboot = Reboot::No;
        self.enter(State::RollingBack {
            update,
            reason: Reason::new(cause, text),
            attempt: 1,
            boot_id: self.boot_id(),
        });
        let mut actions = self.settle();
        actions.extend([Action::Save, Action::Disarm(target), Action::Continue]);
        actions
    }
}
