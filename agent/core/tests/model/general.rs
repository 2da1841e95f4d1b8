//! General jobs with a step that installs: the thread that runs their steps, and what the session does for them. What a
//! document means is asked of the product itself.

use otandem_core::jobs::document::OldSchema;
use otandem_core::jobs::intake::{self, GeneralRules, JobRules};
use otandem_core::jobs::running::{PROGRESS, RunningJob};
use otandem_core::jobs::wire::{Details, Execution};
use otandem_core::machine::{Event, InstallStep, JobEvent};
use otandem_core::plan::Layout;
use otandem_core::record::State;
use otandem_core::seal;
use otandem_core::update::{Origin, Outcome};
use serde_json::{Value, json};

use super::{SLOT, THING, World};

/// The step of every such job that installs; one comes before it and one behind.
pub const INSTALLS: usize = 1;
const STEPS: [&str; 3] = ["one", "install", "two"];

/// The thread of a job: the step that is next, and whether its end was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runner {
    pub job: usize,
    pub next: usize,
    pub stopped: bool,
}

impl World {
    /// A job in the queue that runs a program, installs, and runs another one.
    pub fn new_general_job(&mut self, firmware: super::Firmware) -> usize {
        let job = self.new_job(firmware);
        self.jobs[job].steps = true;
        job
    }

    fn document(&mut self, job: usize) -> Value {
        let firmware = self.jobs[job].firmware;
        let image = self.image(firmware, true);
        let install = json!({"action": {"name": STEPS[INSTALLS], "type": "installImage",
        "ignoreStepFailure": if self.jobs[job].ignores { "true" } else { "false" },
        "input": {"retry": self.jobs[job].retry, "image": {
            "url": image.source, "sha256": firmware.digest().to_string(), "size": 100, "slot": SLOT,
        }}}});
        let command = |name: &str| {
            json!({"action": {"name": name, "type": "runCommand",
            "input": {"command": "true"}}})
        };
        json!({"version": "1.0", "steps": [command(STEPS[0]), install, command(STEPS[2])]})
    }

    fn rules_for(&self, job: usize) -> JobRules {
        let paths = |set: &str| [(SLOT.to_owned(), format!("/dev/{set}"))].into();
        let layout = Layout { index: [0, 1], paths: [paths("a"), paths("b")], copy_if_missing: vec![] };
        JobRules { layout, compatible: None, require_cloud: true, then: self.jobs[job].then }
    }

    /// The general job that the machine has under way, whichever part of it.
    pub fn job_of_steps(&self) -> Option<usize> {
        let job = self.machine.as_ref()?.record().job.as_ref().filter(|job| !job.closed)?;
        self.jobs.iter().position(|j| j.key == job.key)
    }

    /// start-next gave this one.
    pub fn serve_general(&mut self, job: usize) {
        let mut details = Details::new();
        let Some(queued) = self.jobs.get(job) else { return };
        details.extend(queued.seal.clone().map(|seal| (seal::DETAIL.to_owned(), seal)));
        details.extend(queued.progress.clone().map(|text| (PROGRESS.to_owned(), text)));
        let key = queued.key.clone();
        let execution =
            Execution { key: key.clone(), document: self.document(job), details, seconds_left: None };
        let rules = GeneralRules { old_schema: OldSchema::default(), ..GeneralRules::default() };
        let (boot_id, updates) = (self.boot_id(), self.rules_for(job));
        let machine = self.agent();
        let goes_on = machine.interrupted_job().is_some_and(|job| job.key == key);
        let event = match intake::general(&execution, machine, &boot_id, &rules, &updates) {
            Ok(None) => return,
            Ok(Some(event)) => Event::Job(event),
            Err(outcome) if goes_on => Event::Job(JobEvent::Ended { key, outcome, details: Details::new() }),
            Err(outcome) => Event::JobEnded(key, outcome),
        };
        self.feed(event);
    }

    /// `RunJob`
    pub fn run_steps(&mut self, running: &RunningJob) {
        assert!(self.runner.is_none(), "two jobs at once");
        let saved = self.disk.as_ref().and_then(|d| d.job.as_ref());
        assert_eq!(saved, Some(running), "runs before it is saved");
        assert!(self.disk.as_ref().is_some_and(|d| d.state == State::Idle), "runs beside an update");
        if running.key.job == super::GENERAL_JOB {
            return;
        }
        let job = self.jobs.iter().position(|j| j.key == running.key).expect("a known job");
        if !self.stale && running.step > INSTALLS && !self.jobs[job].ignores {
            let installed = self.running().map(|f| f.id);
            assert_eq!(installed, Some(self.jobs[job].firmware.id), "goes on without what it had installed");
            assert!(
                self.kept || self.blind > 0 || running.set.is_some(),
                "goes on before the set is permanent"
            );
        }
        self.runner = Some(Runner { job, next: running.step, stopped: false });
    }

    /// The thread comes to its next point. `false`: there is none.
    pub fn steps_go_on(&mut self) -> bool {
        let Some(runner) = self.runner else { return false };
        let key = self.jobs[runner.job].key.clone();
        let ended = |outcome| JobEvent::Ended { key: key.clone(), outcome, details: Details::new() };
        let event = match STEPS.get(runner.next) {
            _ if runner.stopped => {
                self.runner = None;
                ended(Outcome::failed("Job stopped"))
            }
            None => {
                self.runner = None;
                ended(Outcome::succeeded("Job exited with status: 0"))
            }
            Some(name) if runner.next == INSTALLS => {
                self.runner = None;
                self.install_step(runner.job, name)
            }
            Some(name) => {
                self.runner = Some(Runner { next: runner.next + 1, ..runner });
                JobEvent::Step { step: runner.next, name: (*name).to_owned() }
            }
        };
        self.feed(Event::Job(event));
        true
    }

    fn install_step(&mut self, job: usize, name: &str) -> JobEvent {
        let key = self.jobs[job].key.clone();
        let document = self.document(job)["steps"][INSTALLS]["action"]["input"].clone();
        let document = otandem_core::fota::parse(&json!({
            "operation": "fota", "image": document["image"], "retry": document["retry"],
        }));
        let rules = self.rules_for(job);
        let machine = self.agent();
        let update = match document {
            Ok(document) => intake::install(&document, &key, machine, &rules).map(Box::new),
            Err(outcome) => Err(outcome),
        };
        let details = Details::from([("stderr".to_owned(), "one\n".to_owned())]);
        JobEvent::Install(Box::new(InstallStep {
            key,
            step: INSTALLS,
            name: name.to_owned(),
            ignore_failure: self.jobs[job].ignores,
            update,
            details,
        }))
    }

    /// An agent starts with a job in its record.
    pub fn find_steps(&mut self) {
        let Some(machine) = &self.machine else { return };
        if machine.record().job.as_ref().is_none_or(|job| job.key.job == super::GENERAL_JOB) {
            return;
        }
        let (boot_id, asked_for_reboot) = (self.boot_id(), std::mem::take(&mut self.asked_for_reboot));
        self.feed(Event::Job(JobEvent::Found { boot_id, asked_for_reboot }));
        // With the session comes the question.
        self.asking |= self.machine.as_ref().is_some_and(|m| m.interrupted_job().is_some());
    }

    /// The question for a job that goes on: `true` if the agent learned something.
    pub fn ask_for_steps(&mut self) -> bool {
        let Some(job) = self.job_of_steps().filter(|_| self.agent().interrupted_job().is_some()) else {
            return false;
        };
        self.asking = false;
        let next = self.start_next();
        if next == Some(job) {
            self.serve_general(job);
        } else {
            let key = self.jobs[job].key.clone();
            self.feed(Event::Job(JobEvent::Closed(key, "start-next does not give it any more".into())));
        }
        true
    }

    /// The update of a step is one of the job's own, and the job is at that step.
    pub fn judge_steps(&self) {
        let Some(machine) = &self.machine else { return };
        let record = machine.record();
        let Some(job) = &record.job else { return };
        assert_eq!(job.key.thing, THING, "runs a job of another thing");
        if let Some(update) = record.state.update().filter(|u| u.origin != Origin::Adopted) {
            assert_eq!(update.origin.job(), Some(&job.key), "an update beside a job");
            assert_eq!((job.step, job.waits), (INSTALLS, true), "an update in another step");
            assert!(self.runner.is_none(), "steps run beside their update");
        }
        assert!(record.finished(&job.key).is_none(), "{} goes on after its end", job.key);
    }
}
