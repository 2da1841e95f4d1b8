//! The trial of a set, and its confirmation.

use super::{Action, Health, Hook, Machine, Now};
use crate::record::State;
use crate::seal::Seal;
use crate::time::Boottime;
use crate::update::{Cause, Origin, Outcome, Update};

/// What fails in a trial though the set may be well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    Disk,
    Bootloader,
}

impl Machine {
    /// The target runs. Also the way back into a trial after the agent, or the device, died in it.
    pub(super) fn trial(&mut self, now: Now) -> Vec<Action> {
        let boot_id = self.boot_id();
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        let again = match &self.record.state {
            State::Trial { boot_id: b, started, .. } if *b == boot_id => Some(*started),
            _ => None,
        };
        let counts = matches!(self.record.state, State::Trial { .. }) && !self.only_set(&update);
        if !counts {
            self.record.resumes = 0;
        }
        let worn_out = counts && self.worn_out();
        let started = again.unwrap_or_else(|| now.boot.into());
        self.record.state = State::Trial { update, boot_id, started };
        if worn_out {
            return self.trial_failed(Cause::Device, self.died());
        }
        vec![Action::CheckHealth, Action::Save, Action::Report, Action::AskCloud]
    }

    /// A job that an earlier life of this device had under way, and the record of it is lost (UPDATE-RULES 4.4).
    pub(super) fn sealed(&mut self, mut update: Update, seal: &Seal, now: Now) -> Vec<Action> {
        let Some(booted) = self.booted() else { return vec![] };
        if let Some(key) = update.origin.job().filter(|k| self.record.finished(k).is_some()).cloned() {
            return self.answer_again(&key);
        }
        let idle = match &self.record.state {
            State::Idle => true,
            State::Trial { update, .. } if update.origin == Origin::Adopted => false,
            _ => return vec![],
        };
        if self.run.unsaved.is_some() || self.run.restoring || self.run.reboot != super::Reboot::No {
            return vec![];
        }
        if !seal.armed() {
            // Nothing was tried: it starts again, once the running set is settled.
            return if idle { self.accept(update, now) } else { vec![] };
        }
        (update.target, update.from) = (seal.target, seal.from);
        if self.holds_another(seal) {
            let text = format!("state lost; set {} holds another image by now", seal.target);
            let key = update.origin.job().filter(|_| idle).cloned();
            return key.map_or_else(Vec::new, |key| self.job_ended(key, Outcome::failed(text)));
        }
        if booted == seal.target {
            // As a job it has somewhere to go back to, and deadlines.
            (self.run.cloud, self.run.stays) = (true, false);
            self.enter(State::Trial { update, boot_id: self.boot_id(), started: now.boot.into() });
            let mut actions = vec![Action::CheckHealth, Action::Save];
            if self.run.health == Some(Health::Passed) {
                actions = self.confirm();
            }
            return actions;
        }
        if !idle {
            return vec![];
        }
        self.record.state = State::Armed { update, boot_id: seal.boot_id.clone() };
        self.drop_armed(Cause::NotTried, &format!("state lost; set {} is not running", seal.target))
    }

    /// After the record was lost something else was installed there, and that is known.
    fn holds_another(&self, seal: &Seal) -> bool {
        let slots = self.record.slots(seal.target);
        !slots.is_empty() && !slots.values().any(|s| s.sha256.to_string() == seal.digest)
    }

    pub(super) fn trial_health(&mut self, health: Health, now: Now) -> Vec<Action> {
        if let Some(why) = self.hear(health) {
            return self.trial_failed(Cause::Health, format!("health check: {why}"));
        }
        self.trial_verdict(now)
    }

    pub(super) fn trial_cloud(&mut self, now: Now) -> Vec<Action> {
        self.run.cloud = true;
        self.trial_verdict(now)
    }

    /// Everything passed, or a deadline did.
    pub(super) fn trial_verdict(&mut self, now: Now) -> Vec<Action> {
        let State::Trial { update, started, .. } = &self.record.state else { return vec![] };
        let running = now.boot.since(Boottime::from(*started));
        let cloud_missing = self.cloud_missing(update);
        let passed = matches!(self.run.health, Some(Health::Passed));
        if passed && !cloud_missing {
            let broken = self.run.unsaved.is_some() || self.run.boot_failed.is_some();
            return if broken { vec![] } else { self.confirm() };
        }
        if !passed && running >= self.rules.health_timeout {
            let why = match &self.run.health {
                Some(Health::NotYet(why) | Health::Hopeless(why)) => format!("health check: {why}"),
                _ => "health checks gave no answer".to_owned(),
            };
            return self.trial_failed(Cause::Health, why);
        }
        if cloud_missing && running >= self.rules.cloud_timeout {
            return self.trial_failed(Cause::Cloud, "the cloud was out of reach for the whole trial".into());
        }
        vec![]
    }

    /// The trial ends badly. Without a way back the device stays where it is: a job learns that, and an adopted set
    /// goes on being asked whether it is well.
    pub(super) fn trial_failed(&mut self, cause: Cause, text: String) -> Vec<Action> {
        let Some(update) = self.record.state.update() else { return vec![] };
        if self.way_back(update) {
            return self.roll_back(cause, &text);
        }
        if update.origin != Origin::Adopted {
            return self.cannot_go_back(&text);
        }
        if std::mem::replace(&mut self.run.stays, true) {
            return vec![];
        }
        // Nothing can be settled for the better by a dead-man's reboot.
        let mut actions = self.settle();
        actions.push(Action::Say(format!("not well, and no other set to go back to: {text}")));
        actions
    }

    /// An adopted set without a way back is tried for as long as it takes.
    fn only_set(&self, update: &Update) -> bool {
        update.origin == Origin::Adopted && !self.way_back(update)
    }

    /// The disk or the bootloader fails in a trial. An update goes back to where both were known to work; an adopted
    /// set is all that there is, and waits for them.
    pub(super) fn trial_broken(&mut self, text: String, what: Broken, now: Now) -> Vec<Action> {
        let update = match &self.record.state {
            State::Trial { update, .. } | State::Confirming { update } => update.clone(),
            _ => return vec![],
        };
        if update.origin != Origin::Adopted {
            return self.trial_failed(Cause::Device, text);
        }
        match what {
            Broken::Disk => self.run.unsaved = Some(now.boot),
            Broken::Bootloader => self.run.boot_failed = Some(now.boot),
        }
        if let State::Confirming { .. } = &self.record.state {
            self.record.state = State::Trial { update, boot_id: self.boot_id(), started: now.boot.into() };
        }
        let mut actions = self.settle();
        if !matches!(self.run.health, Some(Health::Passed)) {
            actions.push(Action::CheckHealth);
        }
        actions.push(Action::Say(format!("the running set cannot be settled yet: {text}")));
        actions
    }

    pub(super) fn confirm(&mut self) -> Vec<Action> {
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        let target = update.target;
        self.enter(State::Confirming { update });
        vec![Action::StopHealth, Action::Save, Action::Confirm(target), Action::Continue]
    }

    /// The agent died between the decision and its end.
    pub(super) fn confirm_again(&mut self, now: Now) -> Vec<Action> {
        let State::Confirming { update } = &self.record.state else { return vec![] };
        let (update, target) = (update.clone(), update.target);
        if self.worn_out() {
            if self.only_set(&update) {
                self.enter(State::Trial { update, boot_id: self.boot_id(), started: now.boot.into() });
                return self.trial(now);
            }
            return self.trial_failed(Cause::Device, self.died());
        }
        vec![Action::Save, Action::Confirm(target), Action::Continue]
    }

    pub(super) fn confirmed(&mut self) -> Vec<Action> {
        let State::Confirming { update } = &self.record.state else { return vec![] };
        let update: Update = update.clone();
        self.record.confirmed = Some(update.target);
        (self.record.late_fallback, self.record.restores) = (false, 0);
        self.record.lift_ban(&update.raw_digests().unwrap_or_default());
        self.run.kept = true;
        self.run.boot_failed = None;
        let version = update.version.as_ref().map(|v| format!(" ({v})")).unwrap_or_default();
        let text = format!("set {}{version} confirmed", update.target);
        let mut actions = self.settle();
        if update.origin == Origin::Adopted {
            actions.extend([Action::Answer(Ok(text.clone())), Action::AskCloud]);
        } else {
            actions.push(Action::RunHook(Hook::PostConfirm));
        }
        actions.extend(self.end(Some(Outcome::succeeded(text))));
        actions
    }
}
