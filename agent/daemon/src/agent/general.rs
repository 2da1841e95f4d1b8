//! General jobs beside the loop: the thread that runs their steps, and what the loop does with them at its start and
//! at its end.

use std::sync::mpsc as blocking;
use std::time::Duration;

use otandem_core::jobs::document::{Action, JobPlan};
use otandem_core::jobs::intake;
use otandem_core::jobs::running::RunningJob;
use otandem_core::jobs::wire::Details;
use otandem_core::machine::{Event, InstallStep, JobEvent};
use otandem_core::update::{JobKey, Outcome};
use otandem_device::jobs::{Finish, GRACE, Installs, Terms, execute};
use otandem_device::machine::boot_id;
use otandem_device::run::Stop;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::install::Work;
use super::{Agent, Ended, next_inbound};

/// How long a job may come to its end by itself when the agent is told to stop.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the cloud may take to acknowledge how it ended; the next start tells it again.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The thread that runs the steps of a job.
pub struct Steps {
    stop: Stop,
}

impl Steps {
    /// Starts it. Each step waits until the loop has saved that it is next.
    ///
    /// # Errors
    /// No thread or descriptor can be had.
    pub fn start(
        job: &RunningJob,
        plan: JobPlan,
        terms: Terms,
        tell: mpsc::UnboundedSender<Work>,
    ) -> Result<Self, String> {
        let stop = Stop::new().map_err(|e| format!("no descriptor left to run programs: {e}"))?;
        let (seen, key, from) = (stop.clone(), job.key.clone(), job.step);
        let spawned = std::thread::Builder::new().name("job".into()).spawn(move || {
            let mut begins = |step, name: &str| {
                let (reply, replied) = blocking::channel();
                let _ = tell.send(Work::JobStep(step, name.to_owned(), reply));
                let _ = replied.recv();
            };
            let finish = execute(&plan, from, &terms, &seen, &mut begins);
            let _ = tell.send(Work::JobOver(key, finish));
        });
        spawned.map_err(|e| format!("no thread to run the job: {e}"))?;
        Ok(Self { stop })
    }

    /// Ends what runs; how it ended is still told.
    pub fn stop(&self) {
        self.stop.stop();
    }
}

impl Agent {
    /// The boot that this is: as the bootloader tells it, who may be a simulated one, else as the kernel does.
    pub(super) fn boot_id(&self) -> String {
        let told = self.machine.boot_id();
        if told.is_empty() { boot_id().unwrap_or_default() } else { told }
    }

    /// The job that ran when the agent ended.
    pub(super) fn find_job(&mut self) {
        let Some(job) = self.machine.interrupted_job() else { return };
        let asked_for_reboot = self.performer.asked_for_reboot(&job.key.job);
        let boot_id = self.boot_id();
        self.event(Event::Job(JobEvent::Found { boot_id, asked_for_reboot }));
        if !self.machine.unsaved() {
            self.performer.forget_reboot();
        }
    }

    pub(super) fn job_over(&mut self, key: JobKey, finish: Finish) {
        self.performer.job_is_over();
        match finish {
            Finish::Ended(outcome, details) => {
                tracing::info!("{key}: {}", outcome.reason());
                self.event(Event::Job(JobEvent::Ended { key, outcome, details }));
            }
            Finish::Installs(installs) => self.install_step(key, *installs),
            // Nothing goes on after a reboot that nobody wants any more, and may never come.
            Finish::Rebooting if self.machine.running_job().is_some_and(|job| job.closed) => {
                self.performer.forget_reboot();
                let outcome = Outcome::failed("ended by the cloud");
                self.event(Event::Job(JobEvent::Ended { key, outcome, details: Details::new() }));
            }
            // The record has it; the next start goes on.
            Finish::Rebooting => tracing::info!("{key}: goes on after the reboot"),
        }
    }

    /// A step that installs images is an update like any other.
    fn install_step(&mut self, key: JobKey, installs: Installs) {
        let Installs {
            index: step,
            step: otandem_core::jobs::document::Step { name, action, ignore_failure, .. },
            details,
        } = installs;
        let update = match (&action, &self.rules) {
            (Action::Install { document }, Some(rules)) => {
                intake::install(document, &key, &self.machine, rules).map(Box::new)
            }
            _ => {
                let why = self.machine.untouchable().unwrap_or("updates are not configured");
                Err(Outcome::failed(format!("this device takes no update: {why}")))
            }
        };
        tracing::info!("{key}: step {name} installs");
        let install = InstallStep { key, step, name, ignore_failure, update, details };
        self.event(Event::Job(JobEvent::Install(Box::new(install))));
    }

    /// The agent is told to stop. A job gets a moment to end by itself, then it is ended, and told in either case.
    pub(super) async fn leave(&mut self) -> Ended {
        self.leaving = true;
        let reboots = |agent: &Self| {
            let job = agent.machine.running_job().map(|job| job.key.job.clone());
            job.is_some_and(|job| agent.performer.asked_for_reboot(&job))
        };
        if self.performer.job_runs() && !reboots(self) {
            tracing::info!("a job runs: waiting {} s for its end", PATIENCE.as_secs());
            self.until(PATIENCE, |agent| !agent.performer.job_runs() || reboots(agent)).await;
        }
        if self.performer.job_runs() {
            self.performer.stop_job();
            self.until(GRACE + PATIENCE, |agent| !agent.performer.job_runs()).await;
        }
        if self.link.is_some() && self.machine.sendable().next().is_some() {
            self.until(LAST_WORDS, |agent| agent.machine.sendable().next().is_none()).await;
        }
        Ended::Stopped
    }

    /// The loop without its other half: nothing new is begun.
    async fn until(&mut self, longest: Duration, over: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + longest;
        while !over(self) {
            tokio::select! {
                biased;
                work = self.performer.next_work() => self.work(work),
                inbound = next_inbound(&mut self.link) => self.inbound(inbound),
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }
}
