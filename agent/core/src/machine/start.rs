//! The first step of a process: from the verdict on the boot to what is done about it.

use super::{Action, Evidence, MAX_RESUMES, Machine, Now, Rules, Run};
use crate::boot::{Booted, Facts, SetId};
use crate::record::{Record, State};
use crate::update::{Cause, Origin, Outcome, Reason, Then, Update};
use crate::verdict::{RESTORE_ATTEMPTS, Verdict, verdict};

impl Machine {
    /// A process starts: settle what is pending, then go on. `record` = `None` where there is none that can be read.
    #[must_use]
    pub fn start(record: Option<Record>, evidence: Evidence, rules: Rules, now: Now) -> (Self, Vec<Action>) {
        let Evidence { facts, heads } = evidence;
        let verdict_on = |facts: &Facts| verdict(record.as_ref(), facts);
        let first = facts.as_ref().map_or(Verdict::Untouchable, verdict_on);
        let untouchable = match &facts {
            Err(why) => Some(format!("the bootloader cannot be asked: {why}")),
            Ok(facts) if facts.booted == Booted::Unknown => {
                Some("which set runs is not known: nothing is written, armed or confirmed".to_owned())
            }
            Ok(_) => None,
        };
        let run = Run { facts: facts.ok(), heads, untouchable, ..Run::default() };
        let mut machine = Self { record: record.unwrap_or_default(), rules, run };
        let actions = machine.carry_out(first, now);
        (machine, actions)
    }

    fn carry_out(&mut self, verdict: Verdict, now: Now) -> Vec<Action> {
        match verdict {
            Verdict::Untouchable => self.stay_untouched(),
            Verdict::Adopt => self.adopt(now),
            Verdict::GoOn => self.go_on(),
            Verdict::WasArmed => self.armed(now),
            Verdict::ArmAgain => self.arm_again(),
            Verdict::RebootAgain => self.armed_in_this_boot(now),
            Verdict::Trial => self.trial(now),
            Verdict::Confirm => self.confirm(),
            Verdict::Back(reason) => self.back(reason),
            Verdict::RollBackAgain => self.roll_back_again(),
            Verdict::CannotGoBack => self.cannot_go_back(),
            Verdict::WrongSet => self.wrong_set(now),
            Verdict::Restore => self.restore(),
            Verdict::LateFallback => self.late_fallback(),
        }
    }

    fn stay_untouched(&mut self) -> Vec<Action> {
        let why = self.run.untouchable.clone().unwrap_or_default();
        let mut actions = vec![Action::Say(why)];
        // With a trial pending the dead-man must go on: its reboot is what lets the bootloader fall back.
        if matches!(self.record.state, State::Idle) {
            actions.extend(self.settle());
        }
        actions
    }

    fn adopt(&mut self, now: Now) -> Vec<Action> {
        let Some(target) = self.booted() else { return vec![] };
        let update = Update {
            origin: Origin::Adopted,
            from: target.other(),
            target,
            images: vec![],
            version: None,
            then: Then::Reboot,
            require_cloud: false,
            retry: false,
            written: vec![],
        };
        self.record.state = State::Trial { update, boot_id: self.boot_id(), started: now.boot.into() };
        vec![
            Action::Say(format!("no record: settling set {target} as it runs")),
            Action::Save,
            Action::CheckHealth,
            Action::AskCloud,
        ]
    }

    pub(super) fn boot_id(&self) -> String {
        self.run.facts.as_ref().map(|f| f.boot_id.clone()).unwrap_or_default()
    }

    /// Counts that a pending step is taken up again; `true` = too often.
    fn worn_out(&mut self) -> bool {
        self.record.resumes = self.record.resumes.saturating_add(1);
        self.record.resumes > MAX_RESUMES
    }

    fn died(&self) -> String {
        format!("agent died in {} {} times", self.record.state.name(), MAX_RESUMES)
    }

    /// On the set that the record expects, with nothing pending about the boot.
    fn go_on(&mut self) -> Vec<Action> {
        if !matches!(self.record.state, State::Idle) && self.worn_out() {
            let mut actions = self.end(Some(Outcome::failed(self.died())));
            actions.extend(self.idle_on_confirmed_set());
            return actions;
        }
        let mut actions = vec![];
        if let Some(update) = self.record.state.update() {
            actions.push(Action::Save);
            if update.origin.open_job().is_some() {
                actions.push(Action::AskCloud);
            }
        }
        actions.extend(self.idle_on_confirmed_set());
        actions
    }

    /// The confirmed set runs: its counter is refreshed as soon as it is well, without waiting for anything else.
    fn idle_on_confirmed_set(&mut self) -> Vec<Action> {
        let mut actions = self.settle();
        actions.extend([Action::CheckHealth, Action::Flush]);
        actions
    }

    fn arm_again(&mut self) -> Vec<Action> {
        let State::Arming { update, attempt } = &self.record.state else { return vec![] };
        let (update, attempt) = (update.clone(), attempt + 1);
        let target = update.target;
        self.record.state = State::Arming { update, attempt };
        let mut actions = self.settle();
        actions.extend([Action::Save, Action::Arm(target), Action::Continue]);
        actions
    }

    fn armed_in_this_boot(&mut self, now: Now) -> Vec<Action> {
        self.run.armed_since = Some(now.boot);
        let State::Armed { update, .. } = &self.record.state else { return vec![] };
        let reboot = update.then == Then::Reboot;
        let mut actions = self.settle();
        if reboot {
            actions.push(Action::AskCloud);
            actions.push(Action::Report);
            actions.extend(self.reboot_when_told(now));
        }
        actions
    }

    /// The target runs. Also the way back into a trial after the agent, or the device, died in it.
    fn trial(&mut self, now: Now) -> Vec<Action> {
        let boot_id = self.boot_id();
        let again = match &self.record.state {
            State::Trial { boot_id: b, started, .. } if *b == boot_id => Some(*started),
            _ => None,
        };
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        let died = matches!(self.record.state, State::Trial { .. }).then(|| self.died());
        let worn_out = died.is_some() && self.worn_out();
        let started = again.unwrap_or_else(|| now.boot.into());
        self.record.state = State::Trial { update, boot_id, started };
        match died {
            Some(text) if worn_out => self.roll_back(Cause::Device, text),
            _ => {
                if again.is_none() && !worn_out {
                    // A new boot of the trial is no repetition of an old step.
                    self.record.resumes = self.record.resumes.min(1);
                }
                vec![Action::Save, Action::CheckHealth, Action::Report, Action::AskCloud]
            }
        }
    }

    /// The old set runs and the new one is given up: undo what the bootloader still holds, then finish.
    fn back(&mut self, reason: Reason) -> Vec<Action> {
        let counted = matches!(self.record.state, State::RollingBack { .. });
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        if !counted && reason.cause == Cause::NoVerdict {
            let digests = update.raw_digests().unwrap_or_default();
            self.record.note_bad_trial(&digests, false, "two trials of this image ended without a verdict");
        }
        let target = update.target;
        self.record.state = State::RollingBack { update, reason, attempt: 1 };
        vec![Action::Save, Action::Disarm(target), Action::Continue]
    }

    fn roll_back_again(&mut self) -> Vec<Action> {
        let State::RollingBack { update, reason, attempt } = self.record.state.clone() else { return vec![] };
        self.record.state = State::RollingBack { update, reason, attempt: attempt + 1 };
        self.leave_set()
    }

    /// Twice the device was told to go back and twice it came up here. Staying up and saying so beats a reboot loop.
    fn cannot_go_back(&mut self) -> Vec<Action> {
        let State::RollingBack { reason, .. } = &self.record.state else { return vec![] };
        let outcome = Outcome::failed(format!("cannot go back: {}", reason.text));
        self.record.restores = RESTORE_ATTEMPTS;
        self.record.late_fallback = true;
        let mut actions = self.end(Some(outcome));
        actions.extend(self.settle());
        actions.push(Action::Say("the device runs a set that failed its trial and cannot leave it".into()));
        actions
    }

    fn wrong_set(&mut self, now: Now) -> Vec<Action> {
        let running = self.booted().map_or("?", SetId::name);
        let outcome = Outcome::failed(format!(
            "the device left the set that the update was for: it runs set {running}"
        ));
        let mut actions = self.end(Some(outcome));
        if let Some(facts) = self.run.facts.clone() {
            let next = verdict(Some(&self.record), &facts);
            actions.extend(self.carry_out(next, now));
        }
        actions
    }

    fn restore(&mut self) -> Vec<Action> {
        let Some(confirmed) = self.record.confirmed else { return vec![] };
        self.record.restores += 1;
        self.run.restoring = true;
        vec![
            Action::Say(format!("the boot environment was reset: going back to set {confirmed}")),
            Action::Save,
            Action::Arm(confirmed),
            Action::Continue,
        ]
    }

    /// The confirmed set does not boot any more. The set that does is taken as it is, once it is well, so that the
    /// device can be updated again.
    pub(super) fn late_fallback(&mut self) -> Vec<Action> {
        self.record.late_fallback = true;
        let mut actions =
            vec![Action::Say("late fallback: the confirmed set does not boot any more".into()), Action::Save];
        actions.extend(self.idle_on_confirmed_set());
        actions
    }

    pub(super) fn settle(&mut self) -> Vec<Action> {
        if self.run.settled {
            return vec![];
        }
        self.run.settled = true;
        vec![Action::Settled]
    }
}
