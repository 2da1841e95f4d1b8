//! The first step of a process: from the verdict on the boot to what is done about it.

use super::{Action, Evidence, Machine, Now, Rules, Run};
use crate::boot::{Booted, Facts, SetId};
use crate::record::{Record, State};
use crate::update::{Origin, Outcome, Update};
use crate::verdict::{Verdict, verdict};

impl Machine {
    /// A process starts: settle what is pending, then go on. `record` = `None` where there is none that can be read;
    /// one that came from another device has been through [`Record::disown`].
    #[must_use]
    pub fn start(record: Option<Record>, evidence: Evidence, rules: Rules, now: Now) -> (Self, Vec<Action>) {
        let Evidence { facts, heads, unread } = evidence;
        let verdict_on = |facts: &Facts| verdict(record.as_ref(), facts);
        let first = facts.as_ref().map_or(Verdict::Untouchable, verdict_on);
        let untouchable = untouchable(&facts);
        let run = Run { started: now.boot, facts: facts.ok(), heads, untouchable, unread, ..Run::default() };
        let mut machine = Self { record: record.unwrap_or_default(), rules, run };
        let actions = machine.carry_out(first, now);
        (machine, actions)
    }

    /// The bootloader is asked again, where nothing could be touched so far: it may have been a storage that came late,
    /// or a program that failed once. With an answer the process starts as if it did so now: nothing was done about the
    /// boot before, so the record stands as it was found. Without one only the reason changes.
    pub fn look_again(&mut self, evidence: Evidence, now: Now) -> Vec<Action> {
        let Some(was) = self.run.untouchable.take() else { return vec![] };
        self.run.untouchable = untouchable(&evidence.facts);
        match &self.run.untouchable {
            None => {
                let record = std::mem::take(&mut self.record);
                let (machine, actions) = Self::start(Some(record), evidence, self.rules.clone(), now);
                // The steps of a job run on beside all this.
                let job = self.run.job;
                *self = machine;
                self.run.job = job;
                actions
            }
            Some(why) if *why != was => vec![Action::Say(why.clone())],
            Some(_) => vec![],
        }
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
            Verdict::Confirm => self.confirm_again(now),
            Verdict::Back(reason) => self.back(reason),
            Verdict::RollBackAgain => self.roll_back_again(),
            Verdict::CannotGoBack => self.could_not_go_back(),
            Verdict::WrongSet => self.wrong_set(now),
            Verdict::Restore => self.restore(),
            Verdict::LateFallback => self.late_fallback(),
        }
    }

    fn stay_untouched(&mut self) -> Vec<Action> {
        let why = self.run.untouchable.clone().unwrap_or_default();
        let mut actions = vec![Action::Say(why)];
        // With a trial pending the dead-man must go on: its reboot is what lets the bootloader fall back.
        if self.record.state == State::Idle && !self.run.unread {
            actions.extend(self.settle());
        }
        actions
    }

    fn adopt(&mut self, now: Now) -> Vec<Action> {
        let Some(target) = self.booted() else { return vec![] };
        let update = Update::switch_to(target, Origin::Adopted);
        self.enter(State::Trial { update, boot_id: self.boot_id(), started: now.boot.into() });
        vec![
            Action::Say(format!("no record: settling set {target} as it runs")),
            Action::CheckHealth,
            Action::AskCloud,
            Action::Save,
        ]
    }

    /// The boot that this is, as the bootloader tells it; empty where it tells nothing.
    #[must_use]
    pub fn boot_id(&self) -> String {
        self.run.facts.as_ref().map(|f| f.boot_id.clone()).unwrap_or_default()
    }

    /// On the set that the record expects, with nothing pending about the boot. Interrupted work is taken up when
    /// the running set was found well and the cloud said that the job lives.
    fn go_on(&mut self) -> Vec<Action> {
        let mut actions = self.settle();
        actions.extend([Action::CheckHealth, Action::Flush]);
        if self.record.state.update().is_some_and(|u| u.origin.open_job().is_some()) {
            actions.push(Action::AskCloud);
        }
        actions
    }

    fn could_not_go_back(&mut self) -> Vec<Action> {
        let State::RollingBack { reason, .. } = &self.record.state else { return vec![] };
        let text = reason.text.clone();
        self.cannot_go_back(&text)
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
        if !self.head(confirmed) {
            return self.late_fallback();
        }
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
        let mut actions = self.settle();
        actions.extend([
            Action::Say("late fallback: the confirmed set does not boot any more".into()),
            Action::CheckHealth,
            Action::Save,
            Action::Flush,
        ]);
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

/// Why nothing may be touched, given what the bootloader says.
fn untouchable(facts: &Result<Facts, String>) -> Option<String> {
    match facts {
        Err(why) => Some(format!("the bootloader cannot be asked: {why}")),
        Ok(facts) if facts.booted == Booted::Unknown => {
            Some("which set runs is not known: nothing is written, armed or confirmed".to_owned())
        }
        Ok(_) => None,
    }
}
