//! The Jobs service as a pure state machine: time and the URL signer come in, answers and notices go out.
//!
//! This file has the operator's side (create, cancel, delete); [`device`] the device's requests, [`request`] their
//! wire form, [`queue`] the order, the timers and the notices, [`document`] the placeholders of a job document.
//!
//! A client token is echoed and means nothing else, as with AWS: the same update sent twice is judged twice. The
//! answers agree with each other all the same, since after a terminal update the second answer is
//! `InvalidStateTransition` with that terminal state in it.

pub mod device;
pub mod document;
pub mod queue;
pub mod request;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

/// Longest job document, in characters.
pub const MAX_DOCUMENT: usize = 32 * 1024;
/// Timeouts are given in minutes, of which there may be this many.
pub const MAX_MINUTES: u64 = 10_080;
/// The service retries an execution at most this often.
pub const MAX_RETRIES: u32 = 10;

/// Where an execution stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Not yet taken by the device.
    Queued,
    /// Taken.
    InProgress,
    /// Done, said the device.
    Succeeded,
    /// Failed, said the device; may be retried.
    Failed,
    /// A timer ran out; may be retried.
    TimedOut,
    /// Can never apply, said the device.
    Rejected,
    /// Cancelled by the operator.
    Canceled,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::InProgress,
        Self::Succeeded,
        Self::Failed,
        Self::TimedOut,
        Self::Rejected,
        Self::Canceled,
    ];

    /// Name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::InProgress => "IN_PROGRESS",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED_OUT",
            Self::Rejected => "REJECTED",
            Self::Canceled => "CANCELED",
        }
    }

    /// Nothing comes after it.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::InProgress)
    }
}

/// How often the service starts an execution again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retries {
    /// After FAILED.
    pub failed: u32,
    /// After TIMED_OUT.
    pub timed_out: u32,
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSpec {
    /// Job id, 1 to 64 of `[a-zA-Z0-9_-]`.
    pub id: String,
    /// Things that get it.
    pub things: Vec<String>,
    /// Job document, JSON text.
    pub document: String,
    /// Time limit from the moment an execution is taken; the device cannot extend it. Whole minutes.
    pub in_progress_timeout: Option<Duration>,
    /// Retries by the service.
    pub retries: Retries,
    /// Life of presigned URLs; AWS allows 60 to 3600 seconds.
    pub presign_for: Duration,
}

impl JobSpec {
    /// A job for one thing: URLs live an hour, no timeout, no retries.
    #[must_use]
    pub fn new(id: &str, thing: &str, document: &str) -> Self {
        Self {
            id: id.to_owned(),
            things: vec![thing.to_owned()],
            document: document.to_owned(),
            in_progress_timeout: None,
            retries: Retries::default(),
            presign_for: Duration::from_secs(3600),
        }
    }
}

/// Whether what runs is touched too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Only what is QUEUED.
    No,
    /// IN_PROGRESS as well.
    Yes,
}

/// An operator's call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The name breaks the pattern.
    #[error("{0:?} is not a job id or thing name: use 1 to 64 (thing: 128) letters, digits, '_' and '-'")]
    Name(String),
    /// The document is too long.
    #[error(
        "the document of job {id} has {length} characters, at most {MAX_DOCUMENT} are allowed: shorten it"
    )]
    DocumentTooLong {
        /// The job.
        id: String,
        /// Its length.
        length: usize,
    },
    /// The document is not a JSON object.
    #[error("the document of job {id} is not a JSON object: {cause}")]
    Document {
        /// The job.
        id: String,
        /// Why not.
        cause: String,
    },
    /// A number is out of its range.
    #[error("{what} of job {id} is outside {range}")]
    Range {
        /// The job.
        id: String,
        /// Which setting.
        what: &'static str,
        /// What is allowed.
        range: &'static str,
    },
    /// The id is taken.
    #[error("job {0} exists already: delete it first or take another id")]
    Exists(String),
    /// There is no such job, or none of it on the thing.
    #[error("there is no job {0}: list the jobs to see what there is")]
    NotFound(String),
    /// It runs.
    #[error("job {0} is in progress: use force to end it all the same")]
    InProgress(String),
}

#[derive(Debug, Clone)]
pub(crate) struct Job {
    document: Value,
    presign_for: Duration,
    in_progress_timeout: Option<Duration>,
    retries: Retries,
    canceled: bool,
}

/// One attempt of one thing at one job. Times are since the Unix epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Execution {
    /// The thing.
    pub thing: String,
    /// The job.
    pub job: String,
    /// 1, then one more for each retry.
    pub number: i64,
    /// Where it stands.
    pub status: Status,
    /// What the device said last; `None` when it never said anything.
    pub details: Option<BTreeMap<String, String>>,
    /// 1, then one more for each change.
    pub version: i64,
    /// When it was queued.
    pub queued_at: Duration,
    /// When it was taken.
    pub started_at: Option<Duration>,
    /// When it last changed.
    pub updated_at: Duration,
    /// When the step timer runs out.
    pub step_deadline: Option<Duration>,
    /// When the in-progress timer runs out.
    pub deadline: Option<Duration>,
    order: u64,
    failed_before: u32,
    timed_out_before: u32,
}

/// Makes a URL that can be fetched out of the one in a placeholder, for a limited time.
pub type Sign<'a> = &'a mut dyn FnMut(&str, Duration) -> String;

/// All jobs and executions of the account.
#[derive(Debug, Clone, Default)]
pub struct Jobs {
    jobs: BTreeMap<String, Job>,
    executions: Vec<Execution>,
    queued: u64,
    told: queue::Told,
}

impl Jobs {
    /// Creates a job and queues it on its things.
    ///
    /// # Errors
    /// What AWS refuses too: a bad name, a document that is too long or not an object, a taken id, ranges.
    pub fn create(&mut self, spec: &JobSpec, now: Duration) -> Result<(), JobError> {
        let length = spec.document.chars().count();
        if length > MAX_DOCUMENT {
            return Err(JobError::DocumentTooLong { id: spec.id.clone(), length });
        }
        let minutes = spec.in_progress_timeout.map(|t| t.as_secs() / 60);
        if minutes.is_some_and(|m| !(1..=MAX_MINUTES).contains(&m)) {
            return Err(range(spec, "in-progress timeout", "1 to 10080 minutes"));
        }
        if spec.retries.failed + spec.retries.timed_out > MAX_RETRIES {
            return Err(range(spec, "number of retries", "0 to 10"));
        }
        if !(60..=3600).contains(&spec.presign_for.as_secs()) {
            return Err(range(spec, "life of the URLs", "60 to 3600 seconds"));
        }
        let cause = match serde_json::from_str::<Value>(&spec.document) {
            Ok(Value::Object(_)) => return self.create_unchecked(spec, now),
            Ok(_) => "it is another kind of value".to_owned(),
            Err(e) => e.to_string(),
        };
        Err(JobError::Document { id: spec.id.clone(), cause })
    }

    /// Creates a job that AWS would not take: any length, any kind of JSON value, any lifetime. What is not JSON at
    /// all goes out as one string.
    ///
    /// # Errors
    /// A bad name or a taken id.
    pub fn create_unchecked(&mut self, spec: &JobSpec, now: Duration) -> Result<(), JobError> {
        let bad = std::iter::once((&spec.id, request::is_job_id(&spec.id)))
            .chain(spec.things.iter().map(|thing| (thing, request::is_thing(thing))))
            .find(|(_, good)| !good);
        if let Some((name, _)) = bad {
            return Err(JobError::Name(name.clone()));
        }
        if self.jobs.contains_key(&spec.id) {
            return Err(JobError::Exists(spec.id.clone()));
        }
        let document =
            serde_json::from_str(&spec.document).unwrap_or_else(|_| Value::String(spec.document.clone()));
        let job = Job {
            document,
            presign_for: spec.presign_for,
            in_progress_timeout: spec.in_progress_timeout,
            retries: spec.retries,
            canceled: false,
        };
        self.jobs.insert(spec.id.clone(), job);
        for thing in &spec.things {
            self.enqueue(thing, &spec.id, 1, now);
        }
        Ok(())
    }

    fn enqueue(&mut self, thing: &str, job: &str, number: i64, now: Duration) -> &mut Execution {
        self.queued += 1;
        self.executions.push(Execution {
            thing: thing.to_owned(),
            job: job.to_owned(),
            number,
            status: Status::Queued,
            details: None,
            version: 1,
            queued_at: now,
            started_at: None,
            updated_at: now,
            step_deadline: None,
            deadline: None,
            order: self.queued,
            failed_before: 0,
            timed_out_before: 0,
        });
        let last = self.executions.len() - 1;
        &mut self.executions[last]
    }

    /// Cancels a job. Executions in progress go on unless forced. There are no retries after it.
    ///
    /// # Errors
    /// [`JobError::NotFound`].
    pub fn cancel(&mut self, id: &str, force: Force, now: Duration) -> Result<(), JobError> {
        self.jobs.get_mut(id).ok_or_else(|| JobError::NotFound(id.to_owned()))?.canceled = true;
        for execution in self.executions.iter_mut().filter(|e| e.job == id) {
            let ends = match execution.status {
                Status::Queued => true,
                Status::InProgress => force == Force::Yes,
                _ => false,
            };
            if ends {
                execution.change(Status::Canceled, now);
            }
        }
        Ok(())
    }

    /// Cancels what one thing has of a job.
    ///
    /// # Errors
    /// [`JobError::NotFound`], or [`JobError::InProgress`] without force.
    pub fn cancel_execution(
        &mut self,
        thing: &str,
        id: &str,
        force: Force,
        now: Duration,
    ) -> Result<(), JobError> {
        let execution = self
            .executions
            .iter_mut()
            .rfind(|e| e.thing == thing && e.job == id && !e.status.is_terminal())
            .ok_or_else(|| JobError::NotFound(id.to_owned()))?;
        if execution.status == Status::InProgress && force == Force::No {
            return Err(JobError::InProgress(id.to_owned()));
        }
        execution.change(Status::Canceled, now);
        Ok(())
    }

    /// Forgets a job and its executions; the id can be used again.
    ///
    /// # Errors
    /// [`JobError::NotFound`], or [`JobError::InProgress`] when an execution is not at its end and force is not given.
    pub fn delete(&mut self, id: &str, force: Force) -> Result<(), JobError> {
        if !self.jobs.contains_key(id) {
            return Err(JobError::NotFound(id.to_owned()));
        }
        let open = self.executions.iter().any(|e| e.job == id && !e.status.is_terminal());
        if open && force == Force::No {
            return Err(JobError::InProgress(id.to_owned()));
        }
        self.jobs.remove(id);
        self.executions.retain(|e| e.job != id);
        Ok(())
    }

    /// The latest execution of a job on a thing.
    #[must_use]
    pub fn execution(&self, thing: &str, job: &str) -> Option<&Execution> {
        self.executions.iter().rfind(|e| e.thing == thing && e.job == job)
    }

    /// Every execution, in the order in which they were queued.
    pub fn executions(&self) -> impl Iterator<Item = &Execution> {
        self.executions.iter()
    }
}

fn range(spec: &JobSpec, what: &'static str, range: &'static str) -> JobError {
    JobError::Range { id: spec.id.clone(), what, range }
}

impl Execution {
    /// Every change of status goes through here, so that versions and timers cannot be forgotten.
    fn change(&mut self, status: Status, now: Duration) {
        self.status = status;
        self.version += 1;
        self.updated_at = now;
        if status.is_terminal() {
            self.step_deadline = None;
            self.deadline = None;
        }
    }
}
