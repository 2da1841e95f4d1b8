//! A step of a general job that installs images. The update goes its whole ordinary way, over the reboot; the job stays
//! in the record at this step, and how the update ends is the result of the step instead of an outcome of its own.

use super::event::InstallStep;
use super::job::JobRun;
use super::{Action, Machine, Now};
use crate::jobs::output::joined;
use crate::jobs::running::RunningJob;
use crate::jobs::verdict;
use crate::jobs::wire::Details;
use crate::record::{Finished, State};
use crate::seal::Seal;
use crate::update::{Outcome, Update};

impl Machine {
    /// The general job whose step the update under way is.
    #[must_use]
    pub fn installing_job(&self) -> Option<&RunningJob> {
        let key = self.record.state.update()?.origin.job()?;
        self.record.job.as_ref().filter(|job| job.key == *key)
    }

    /// The running set is settled and nothing else keeps an update from beginning.
    pub(super) fn may_update(&self) -> bool {
        self.record.state == State::Idle && self.run.kept && self.run.unsaved.is_none() && !self.leaving()
    }

    /// The steps before it are done, and their thread has ended.
    pub(super) fn install_step(&mut self, install: InstallStep, now: Now) -> Vec<Action> {
        let InstallStep { key, step, name, ignore_failure, update, details } = install;
        let runs = self.run.job != JobRun::No;
        let Some(job) = self.record.job.take_if(|job| runs && job.key == key) else { return vec![] };
        self.run.job = JobRun::No;
        let closed = job.closed;
        let details = joined(job.details.clone(), details);
        self.record.job = Some(RunningJob { waits: true, ignore_failure, details, ..job }.at(step, &name));
        if closed {
            return self.running_job_ended(&key, Outcome::failed("ended by the cloud"), Details::new());
        }
        let outcome = match update {
            Ok(update) if self.may_update() && self.is_for_here(&update) => return self.begin(*update, now),
            Ok(_) => {
                let why = self.obstacle().unwrap_or_else(|| self.unsettled());
                Outcome::failed(format!("this device takes no update: {why}"))
            }
            Err(outcome) => outcome,
        };
        self.step_ended(Some(outcome), None);
        let mut actions = match self.run.unsaved {
            Some(_) => vec![Action::Flush],
            None => vec![Action::Save, Action::Flush],
        };
        if self.record.job.is_some() {
            actions.push(Action::AskCloud);
        }
        actions
    }

    /// The result of the step: the job goes on with the next one, or is over. Only the record changes here.
    pub(super) fn step_ended(&mut self, outcome: Option<Outcome>, seal: Option<String>) {
        let Some(job) = self.record.job.take() else { return };
        let closed = job.closed || self.record.state.update().is_some_and(|u| u.origin.open_job().is_none());
        let (key, details, name, ignored) =
            (job.key.clone(), job.details.clone(), job.name.clone(), job.ignore_failure);
        self.record.last.clone_from(&outcome);
        let told = outcome.filter(|_| !closed);
        let installed = self.record.state.update().map(|u| u.target);
        let result = match told {
            None => None,
            Some(Outcome::Succeeded { reason }) => Some(Ok((reason, installed))),
            Some(_) if ignored => Some(Ok((verdict::succeeded(), None))),
            Some(Outcome::Failed { reason }) => {
                Some(Err(Outcome::failed(format!("{reason}, in step {name}"))))
            }
            Some(Outcome::Rejected { reason }) => {
                Some(Err(Outcome::rejected(format!("{reason}, in step {name}"))))
            }
        };
        let outcome = match result {
            None => None,
            Some(Err(outcome)) => Some(outcome.clipped()),
            Some(Ok((reason, set))) => {
                let job = RunningJob { set, ..job };
                if let Some(next) = job.next("after the installation") {
                    // Until that is saved a restart finds the update once more: nothing is told before.
                    self.run.disk_armed |= self.was_armed();
                    self.record.job = Some(next);
                    return;
                }
                Some(Outcome::succeeded(reason))
            }
        };
        let tell = outcome.is_some();
        if tell {
            self.record.last.clone_from(&outcome);
        }
        self.record.finish(Finished { key, outcome, seal, details }, tell);
    }

    const fn was_armed(&self) -> bool {
        !matches!(
            self.record.state,
            State::Idle | State::Accepted { .. } | State::Writing { .. } | State::Written { .. }
        )
    }

    /// A job that an earlier life of this device had at this step, and the record of it is lost (UPDATE-RULES 4.4).
    pub(super) fn sealed_step(
        &mut self,
        job: RunningJob,
        update: Update,
        seal: &Seal,
        now: Now,
    ) -> Vec<Action> {
        if self.record.job.is_some() || self.run.untouchable.is_some() || !seal.armed() {
            return vec![];
        }
        let actions = self.sealed(update, seal, now);
        if self.record.state.update().and_then(|u| u.origin.job()) == Some(&job.key) {
            self.record.job = Some(RunningJob { waits: true, ..job });
        }
        actions
    }
}
