//! The cloud: one queue of jobs, and the part of the driver that talks to it.

use otandem_core::boot::SetId;
use otandem_core::image::{Expect, Image};
use otandem_core::jobs::running::RunningJob;
use otandem_core::machine::{Cloud, Event, JobEvent};
use otandem_core::record::State;
use otandem_core::seal::Seal;
use otandem_core::update::{JobKey, Origin, Outcome, Then, Update};

use super::judge::kind;
use super::{ENDPOINT, Firmware, SLOT, THING, World};

/// Status of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Queued,
    InProgress,
    /// The device said how it ended.
    Told(&'static str),
    /// The cloud ended it: cancelled, timed out.
    Ended,
    Deleted,
}

/// One execution of one job.
#[derive(Debug, Clone)]
pub struct Job {
    pub key: JobKey,
    pub firmware: Firmware,
    pub status: Status,
    pub seal: Option<String>,
    pub digest_known: bool,
    pub retry: bool,
    pub then: Then,
    /// A general job with a step that installs.
    pub steps: bool,
    /// It goes on even where that step fails.
    pub ignores: bool,
    /// What was told of its steps.
    pub progress: Option<String>,
}

impl Job {
    pub fn live(&self) -> bool {
        matches!(self.status, Status::Queued | Status::InProgress)
    }
}

impl World {
    /// A job in the queue.
    pub fn new_job(&mut self, firmware: Firmware) -> usize {
        let number = i64::try_from(self.jobs.len()).expect("few jobs");
        let key = JobKey {
            endpoint: ENDPOINT.into(),
            thing: THING.into(),
            job: format!("job-{number}"),
            execution: 1,
            queued_at: number,
        };
        self.jobs.push(Job {
            key,
            firmware,
            status: Status::Queued,
            seal: None,
            digest_known: true,
            retry: false,
            then: Then::Reboot,
            steps: false,
            ignores: false,
            progress: None,
        });
        self.jobs.len() - 1
    }

    /// A further execution of the last job: a retry has another number, a re-created job another time.
    pub fn job_again(&mut self, recreated: bool) {
        let Some(last) = self.jobs.last().filter(|j| !j.live()).cloned() else { return };
        let mut key = last.key.clone();
        key.queued_at += 100;
        if !recreated {
            key.execution += 1;
        }
        self.jobs.push(Job { key, status: Status::Queued, seal: None, progress: None, ..last });
    }

    /// The cloud ends what is under way, else what waits.
    pub fn cloud_ends(&mut self, status: Status) {
        let at = self.jobs.iter().position(|j| j.status == Status::InProgress);
        if let Some(i) = at.or_else(|| self.jobs.iter().position(Job::live)) {
            self.jobs[i].status = status;
        }
    }

    /// The status of a job.
    pub fn status(&self, job: usize) -> Status {
        self.jobs[job].status
    }

    pub fn update_of(&mut self, job: usize, target: SetId) -> Update {
        let Job { key, firmware, digest_known, retry, then, .. } = self.jobs[job].clone();
        Update {
            origin: Origin::Job { key, closed: false },
            from: target.other(),
            target,
            images: vec![self.image(firmware, digest_known)],
            version: None,
            then,
            require_cloud: true,
            retry,
            written: vec![],
        }
    }

    fn job_under_way(&self) -> Option<usize> {
        let record = self.machine.as_ref()?.record();
        let Some(update) = record.state.update().filter(|u| u.origin != Origin::Adopted) else {
            return self.job_of_steps();
        };
        self.jobs.iter().position(|j| update.origin.open_job() == Some(&j.key))
    }

    /// What start-next answers.
    pub fn start_next(&mut self) -> Option<usize> {
        let under_way = self.jobs.iter().position(|j| j.status == Status::InProgress);
        let next = under_way.or_else(|| self.jobs.iter().position(|j| j.status == Status::Queued))?;
        self.jobs[next].status = Status::InProgress;
        Some(next)
    }

    /// The session gets a turn: outbox, details, questions, work. `true` if the agent learned something.
    pub fn talk(&mut self) -> bool {
        if self.machine.is_none() || !self.running().is_some_and(|f| f.reaches_cloud) {
            return false;
        }
        let boot = self.boots;
        let mut learned = self.send_outbox();
        if self.boots == boot && self.machine.is_some() {
            learned |= self.notify();
        }
        if self.boots == boot && self.machine.is_some() {
            learned |= self.send_details();
        }
        if self.boots == boot && self.machine.is_some() {
            learned |= self.ask();
        }
        if self.boots == boot && self.machine.is_some() {
            learned |= self.take_work();
        }
        learned
    }

    fn send_outbox(&mut self) -> bool {
        let waiting: Vec<_> = self.agent().sendable().cloned().collect();
        let mut learned = false;
        for finished in waiting {
            self.has_ended(&finished);
            let outcome = finished.outcome.expect("what is sent says how it ended");
            if let Some(job) = self.jobs.iter_mut().find(|j| j.key == finished.key)
                && job.live()
            {
                job.status = Status::Told(kind(&outcome));
            }
            if self.loses_answers {
                continue;
            }
            learned = true;
            let boot = self.boots;
            self.feed(Event::Cloud(Cloud::Acknowledged(finished.key)));
            if self.boots != boot {
                break;
            }
        }
        learned
    }

    /// The cloud says that the job under way ended.
    pub fn notify(&mut self) -> bool {
        let Some(job) = self.job_under_way().filter(|job| !self.jobs[*job].live()) else { return false };
        let (steps, key) = (self.job_of_steps() == Some(job), self.jobs[job].key.clone());
        self.feed(match steps {
            true => Event::Job(JobEvent::Closed(key, "it ended".into())),
            false => Event::Cloud(Cloud::Closed("it ended".into())),
        });
        true
    }

    fn send_details(&mut self) -> bool {
        if !self.reporting {
            return false;
        }
        let Some(job) = self.job_under_way() else {
            self.reporting = false;
            return false;
        };
        let seal = self.agent().seal();
        if self.jobs[job].live() {
            self.jobs[job].status = Status::InProgress;
            self.jobs[job].seal = seal.as_ref().map(ToString::to_string);
            self.jobs[job].progress = self.record().job.as_ref().map(RunningJob::progress);
        }
        if self.loses_answers {
            return false;
        }
        self.reporting = false;
        if seal.is_some_and(|s| s.phase == "armed") {
            self.feed(Event::Cloud(Cloud::SealAcknowledged));
            return true;
        }
        false
    }

    fn ask(&mut self) -> bool {
        if !self.asking || self.loses_answers {
            return false;
        }
        if self.ask_for_steps() {
            return true;
        }
        let phase = self.phase();
        if let Some(job) = self.job_under_way() {
            self.asking = false;
            if phase != "trial" {
                let images = self.fresh_images(job);
                self.feed(Event::Cloud(Cloud::Alive(images)));
                return true;
            }
        }
        if self.phase() != "trial" {
            return false;
        }
        self.asking = false;
        let boot = self.boots;
        let next = self.start_next();
        self.feed(Event::Cloud(Cloud::Accepted));
        if let Some(next) = next
            && self.boots == boot
            && let Some(State::Trial { update, .. }) = self.machine.as_ref().map(|m| &m.record().state)
            && update.origin == Origin::Adopted
        {
            self.tell_seal(next);
        }
        true
    }

    /// Every second answer carries the document.
    fn fresh_images(&mut self, job: usize) -> Option<Vec<Image>> {
        let Job { firmware, digest_known, steps, .. } = self.jobs[job];
        let mut image = self.image(firmware, digest_known || steps);
        if steps {
            image.file = Expect::default();
        }
        self.urls.is_multiple_of(2).then(|| vec![image])
    }

    fn tell_seal(&mut self, job: usize) -> bool {
        if self.jobs[job].steps {
            self.serve_general(job);
            return true;
        }
        let Some(seal) = self.jobs[job].seal.as_ref().and_then(|s| s.parse::<Seal>().ok()) else {
            return false;
        };
        let Some(booted) = self.booted else { return false };
        let update = Box::new(self.update_of(job, booted.other()));
        self.feed(Event::Cloud(Cloud::Sealed { update, seal }));
        true
    }

    /// Only while the machine is ready and the outbox is empty.
    fn take_work(&mut self) -> bool {
        let machine = self.agent();
        if !machine.ready() || !machine.record().outbox.is_empty() || self.loses_answers {
            return false;
        }
        let Some(next) = self.start_next() else { return false };
        if self.tell_seal(next) {
            return true;
        }
        let Some(booted) = self.booted else { return false };
        let job = self.jobs[next].clone();
        let digest = job.firmware.digest();
        let running = self.record().slots(booted).get(SLOT).is_some_and(|s| s.sha256 == digest);
        let banned = job.digest_known && !job.retry && self.record().ban(&[digest]).is_some();
        let event = if running {
            Event::JobEnded(job.key, Outcome::succeeded("already running"))
        } else if banned {
            Event::JobEnded(job.key, Outcome::rejected("this image is refused"))
        } else {
            Event::Offer(Box::new(self.update_of(next, booted.other())))
        };
        self.feed(event);
        true
    }
}
