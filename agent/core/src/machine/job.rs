//! General jobs: what the record keeps of the one that runs, so that it ends in exactly one outcome whatever dies.

use super::{Action, Cloud, Event, JobEvent, Machine, Now, Reboot, SAVE_RETRY};
use crate::jobs::document::JobPlan;
use crate::jobs::output::joined;
use crate::jobs::running::{Interrupted, RunningJob, interrupted};
use crate::jobs::wire::Details;
use crate::record::{Finished, State};
use crate::update::{JobKey, Outcome};

/// How far the general job of the record is in this life of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum JobRun {
    /// There is none, or it waits for its document.
    #[default]
    No,
    /// It is being saved; nothing of it runs.
    Begins,
    /// It runs.
    Runs,
}

impl Machine {
    /// The next job may be asked for. On a device whose updates are off or broken general jobs run all the same.
    #[must_use]
    pub fn takes_jobs(&self) -> bool {
        let without_updates = self.run.untouchable.is_some()
            && self.record.state == State::Idle
            && self.record.job.is_none()
            && self.run.unsaved.is_none()
            && self.run.reboot == Reboot::No;
        self.ready() || without_updates
    }

    /// The general job whose steps run.
    #[must_use]
    pub fn running_job(&self) -> Option<&RunningJob> {
        self.record.job.as_ref().filter(|_| self.run.job != JobRun::No)
    }

    /// A general job that goes on, after the reboot that it asked for or the installation that was its step, as soon as
    /// its document is here again.
    #[must_use]
    pub fn interrupted_job(&self) -> Option<&RunningJob> {
        let waits = self.run.job == JobRun::No && self.installing_job().is_none();
        self.record.job.as_ref().filter(|_| waits)
    }

    pub(super) fn job(&mut self, event: JobEvent, now: Now) -> Vec<Action> {
        match event {
            JobEvent::Install(install) => self.install_step(*install, now),
            JobEvent::Sealed { job, update, seal } => self.sealed_step(*job, *update, &seal, now),
            JobEvent::Closed(key, why) if self.installing_job().is_some_and(|job| job.key == key) => {
                self.step(Event::Cloud(Cloud::Closed(why)), now)
            }
            JobEvent::Found { boot_id, asked_for_reboot } => self.job_found(boot_id, asked_for_reboot),
            JobEvent::Start(job, plan) => self.start_job(*job, plan),
            JobEvent::Step { step, name } => self.job_step(step, &name),
            JobEvent::Ended { key, outcome, details } => self.running_job_ended(&key, outcome, details),
            JobEvent::Closed(key, why) => self.job_closed(&key, &why),
        }
    }

    fn job_found(&mut self, boot_id: String, asked_for_reboot: bool) -> Vec<Action> {
        let Some(job) = self.interrupted_job().cloned() else { return vec![] };
        match interrupted(&job, &boot_id, asked_for_reboot) {
            Interrupted::Ended(outcome) => self.running_job_ended(&job.key, outcome, Details::new()),
            Interrupted::Again => {
                self.record.job = None;
                vec![Action::Save, Action::Say(format!("{}: interrupted, runs again", job.key))]
            }
            Interrupted::GoesOn(next) if next == job => vec![],
            Interrupted::GoesOn(next) => {
                self.record.job = Some(next);
                vec![Action::Save]
            }
        }
    }

    fn start_job(&mut self, mut job: RunningJob, plan: Box<JobPlan>) -> Vec<Action> {
        if self.record.finished(&job.key).is_some() {
            return self.answer_again(&job.key);
        }
        let known = self.interrupted_job().filter(|j| j.key == job.key).cloned();
        if known.is_none() && !self.takes_jobs() || self.record.state != State::Idle {
            return vec![];
        }
        // One that goes on may come before the running set is settled, or before what it goes on from is saved.
        let installs = plan.install_step().is_some_and(|(at, ..)| at >= job.step);
        let settles = installs && !self.may_update() && self.run.untouchable.is_none();
        let unsaved = self.run.unsaved.is_some() && self.run.disk_armed;
        if known.is_some() && (settles || unsaved || self.leaving()) {
            return vec![];
        }
        if self.run.unsaved.is_none() {
            self.run.disk_armed = false;
        }
        (job.waits, job.since) = (false, self.run.wall.max(self.record.wall));
        if let Some(known) = known {
            if let Some(set) = known.set.filter(|set| self.booted() != Some(*set)) {
                let why = format!("the device left set {set}, which the job had installed");
                return self.running_job_ended(&known.key, Outcome::failed(why), Details::new());
            }
            (job.since, job.details, job.set) = (known.since, known.details, known.set);
        }
        self.record.job = Some(job.clone());
        self.run.job = JobRun::Begins;
        vec![Action::Save, Action::RunJob(Box::new(job), plan)]
    }

    fn job_step(&mut self, step: usize, name: &str) -> Vec<Action> {
        let Some(job) = self.record.job.take() else { return vec![] };
        self.run.job = JobRun::Runs;
        // The first step is in the record since before it began.
        let known = job.step == step;
        self.record.job = Some(job.at(step, name));
        if known { vec![Action::Report] } else { vec![Action::Save, Action::Report] }
    }

    /// Late news of a job that is over already change nothing.
    pub(super) fn running_job_ended(
        &mut self,
        key: &JobKey,
        outcome: Outcome,
        details: Details,
    ) -> Vec<Action> {
        let Some(job) = self.record.job.take_if(|job| job.key == *key) else { return vec![] };
        self.run.job = JobRun::No;
        self.run.job_deadline = None;
        let outcome = (!job.closed).then(|| outcome.clipped());
        let details = joined(job.details, details);
        let told = outcome.is_some();
        if told {
            self.record.last.clone_from(&outcome);
        }
        self.record.finish(Finished { key: job.key, outcome, seal: None, details }, told);
        match self.run.unsaved {
            Some(_) => vec![Action::Flush],
            None => vec![Action::Save, Action::Flush],
        }
    }

    fn job_closed(&mut self, key: &JobKey, why: &str) -> Vec<Action> {
        let runs = self.run.job != JobRun::No;
        let Some(job) = self.record.job.as_mut().filter(|job| job.key == *key && !job.closed) else {
            return vec![];
        };
        job.closed = true;
        let said = Action::Say(format!("{key}: ended by the cloud ({why})"));
        if runs {
            return vec![said, Action::StopJob];
        }
        let mut actions = vec![said];
        actions.extend(self.running_job_ended(key, Outcome::failed(why), Details::new()));
        actions
    }

    /// This action, which failed, belongs to a job of which nothing has run.
    pub(super) fn job_begins(&self, action: &Action) -> bool {
        self.run.job == JobRun::Begins && matches!(action, Action::Save | Action::RunJob(..))
    }

    pub(super) fn job_action_failed(&mut self, action: &Action, why: &str, now: Now) -> Vec<Action> {
        let begins = self.job_begins(action);
        let mut actions = match action {
            Action::Save => self.save_later(why, now),
            _ => vec![Action::Say(format!("{action:?}: {why}"))],
        };
        if let Some(key) = self.record.job.as_ref().filter(|_| begins).map(|job| job.key.clone()) {
            let why = match action {
                Action::Save => format!("the record cannot be saved: {why}"),
                _ => why.to_owned(),
            };
            actions.extend(self.running_job_ended(&key, Outcome::failed(why), Details::new()));
        }
        actions
    }

    /// The retry of a save on a device that takes no update.
    pub(super) fn save_for_jobs(&mut self, now: Now) -> Vec<Action> {
        if self.run.unsaved.is_none_or(|t| now.boot.since(t) < SAVE_RETRY) {
            return vec![];
        }
        self.run.unsaved = None;
        vec![Action::Save, Action::Flush]
    }
}
