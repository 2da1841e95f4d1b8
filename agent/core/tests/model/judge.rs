//! What must never be, looked for after every step and before every action.

use otandem_core::machine::{Action, MAX_RESUMES};
use otandem_core::record::{Finished, State};
use otandem_core::update::{JobKey, Origin, Outcome};

use super::{Content, FULL, THING, World};

pub const fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded { .. } => "SUCCEEDED",
        Outcome::Failed { .. } => "FAILED",
        Outcome::Rejected { .. } => "REJECTED",
    }
}

impl World {
    /// Invariants of the machine between two effects.
    pub fn judge(&mut self) {
        let Some(machine) = self.machine.take() else { return };
        let record = machine.record();
        assert!(record.resumes <= MAX_RESUMES + 1, "taken up {} times", record.resumes);

        self.follow_update(&record.state);
        self.machine = Some(machine);
        self.judge_steps();
        let machine = self.machine.take().expect("it was put back");
        let record = machine.record();
        for finished in &record.outbox {
            self.judge_outcome(finished);
        }
        if let State::Armed { update, .. } | State::Trial { update, .. } = &record.state
            && update.origin != Origin::Adopted
            && !self.stale
        {
            assert!(self.complete(update.from), "a trial without a fallback");
        }
        if machine.ready() {
            let booted = self.booted.expect("something runs");
            assert!(self.kept, "ready before the running set was kept in this boot");
            assert_eq!(record.confirmed, Some(booted), "ready on a set that is not confirmed");
            if !self.tampered {
                assert!(self.env.left(booted) == FULL, "ready on a set that is counted down");
            }
        }
        self.machine = Some(machine);
    }

    /// Between the lists of actions, and at a flush, the session may send.
    pub fn judge_sendable(&self) {
        let Some(machine) = &self.machine else { return };
        for finished in machine.sendable() {
            assert_eq!(finished.key.thing, THING, "speaks for another thing");
            if let Some(Outcome::Succeeded { .. }) = &finished.outcome {
                assert!(self.saved.contains(&finished.key), "a success is sent before it is on disk");
            }
        }
    }

    /// When a new update begins, nothing of it was tried.
    fn follow_update(&mut self, state: &State) {
        let update = state.update().map(|u| (u.target, u.origin.clone()));
        let same = |a: &Origin, b: &Origin| a.job() == b.job();
        let changed = match (&self.last_update, &update) {
            (None, Some(_)) => true,
            (Some((_, a)), Some((_, b))) => !same(a, b),
            _ => false,
        };
        if changed && let Some((target, origin)) = &update {
            let runs = self.booted == Some(*target);
            if !runs && *origin != Origin::Adopted {
                self.tried[usize::from(*target == otandem_core::boot::SetId::B)] = false;
            }
        }
        self.last_update = update;
    }

    fn judge_outcome(&mut self, finished: &Finished) {
        let outcome = finished.outcome.as_ref().expect("what waits to be sent says how it ended");
        // An old copy of the record may come to another end than the one it forgot: the cloud, which was told that one,
        // takes no second.
        if let Some(before) = self.seen.get(&finished.key).filter(|_| !self.stale) {
            assert_eq!(*before, kind(outcome), "{} ended twice: {outcome:?}", finished.key);
        }
        let judged = (finished.key.clone(), kind(outcome));
        if !self.judged.contains(&judged) {
            self.judge_new_outcome(&finished.key, outcome);
            self.judged.push(judged);
        }
    }

    /// This outcome was saved or sent: it is the only one from now on.
    pub fn has_ended(&mut self, finished: &Finished) {
        if let Some(outcome) = &finished.outcome {
            self.seen.entry(finished.key.clone()).or_insert(kind(outcome));
        }
    }

    fn judge_new_outcome(&self, key: &JobKey, outcome: &Outcome) {
        // A general job says nothing about a set.
        if key.job == super::GENERAL_JOB {
            return;
        }
        let booted = self.booted.expect("something runs");
        let job = self.jobs.iter().find(|j| j.key == *key);
        let (steps, ignores) = job.map_or((false, false), |j| (j.steps, j.ignores));
        if let Outcome::Succeeded { reason } = outcome {
            if ignores {
                return;
            }
            let running = self.running().expect("a complete set runs");
            if !self.stale {
                let wanted = job.map(|j| j.firmware.id);
                assert_eq!(wanted, Some(running.id), "succeeded with another image: {reason}");
            }
            // The steps behind an installation may end in a later boot than the one that confirmed it.
            if reason != "already running" && !steps {
                assert!(running.healthy, "succeeded without having passed");
                assert_eq!(self.confirmed, Some(booted), "succeeded without having been confirmed");
            }
        }
        if outcome.reason().starts_with("rolled back") && !self.tampered && !self.stale {
            let target = booted.other();
            let tried = self.tried[usize::from(target == otandem_core::boot::SetId::B)];
            assert!(tried, "'rolled back' from a set that was never tried: {outcome:?}");
        }
    }

    /// What an action must find before it has its effect.
    pub fn judge_action(&self, action: &Action) {
        let booted = self.booted.expect("something runs");
        let record = self.machine.as_ref().expect("who acts runs").record();
        let on_disk = || self.disk.as_ref().map(|d| &d.state);
        if self.blind > 0 && self.machine.as_ref().is_some_and(|m| m.booted().is_none()) {
            let harmless = matches!(
                action,
                Action::Say(_)
                    | Action::Answer(_)
                    | Action::Settled
                    | Action::Save
                    | Action::Flush
                    | Action::AskCloud
                    | Action::Report
                    | Action::RunJob(..)
                    | Action::StopJob
            );
            assert!(harmless, "{action:?} though nobody knows what runs");
        }
        match *action {
            Action::Flush => self.judge_sendable(),
            Action::Arm(set) => {
                assert_ne!(set, booted, "arms the running set");
                assert!(self.complete(set), "arms a set that is not complete");
                let known = match on_disk() {
                    Some(State::Arming { update, .. }) => update.target == set,
                    Some(State::Idle) => self.disk.as_ref().is_some_and(|d| d.restores > 0),
                    _ => false,
                };
                assert!(known, "arms without having saved that it will");
            }
            Action::MarkBad(set) => assert_ne!(set, booted, "marks the running set"),
            Action::Disarm(set) => {
                assert!(self.complete(set.other()), "leaves nothing to boot");
            }
            Action::Confirm(set) | Action::Keep(set) => {
                assert_eq!(set, booted, "confirms a set that does not run");
                if matches!(record.state, State::Confirming { .. }) {
                    let saved = matches!(on_disk(), Some(State::Confirming { .. }));
                    assert!(saved, "confirms without having saved that it will");
                }
            }
            Action::Write => {
                let target = record.state.update().expect("an update is written").target;
                assert_ne!(target, booted, "writes the running set");
                assert!(!self.env.listed(target), "writes a set that the bootloader may try");
                assert!(self.kept, "writes before the running set was kept in this boot");
                let saved = matches!(on_disk(), Some(State::Writing { .. }));
                assert!(saved, "writes without having saved that it will");
                assert!(!matches!(self.content(booted), Content::Torn | Content::Empty));
            }
            _ => {}
        }
    }
}
