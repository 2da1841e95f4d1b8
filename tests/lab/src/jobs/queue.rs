//! Order of the queue, timers, retries, and what the cloud says of its own accord.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Execution, Jobs, Sign, Status, document};

/// What each thing was last told of its queue.
pub(super) type Told = BTreeMap<String, Queue>;

/// Executions, next one first, each by its place in the order of creation: a job that was deleted and made again
/// under its old id is another one.
type Queue = Vec<u64>;

/// Lists in a notice hold at most this many executions each.
const LISTED: usize = 10;

/// A push of the cloud.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// Whose queue changed.
    pub thing: String,
    /// Job that is next now, for `notify-next`.
    pub job: Option<String>,
    /// `$aws/things/<thing>/jobs/notify` or `notify-next`.
    pub topic: String,
    /// JSON payload.
    pub payload: Value,
}

impl Jobs {
    /// What a thing still has to do: IN_PROGRESS first, then in the order of creation.
    #[must_use]
    pub fn pending(&self, thing: &str) -> Vec<&Execution> {
        let mut open: Vec<_> =
            self.executions.iter().filter(|e| e.thing == thing && !e.status.is_terminal()).collect();
        open.sort_by_key(|e| (e.status != Status::InProgress, e.order));
        open
    }

    /// Ends an execution and queues its retry where the job has one left.
    pub(super) fn finish(&mut self, index: usize, status: Status, now: Duration) {
        self.executions[index].change(status, now);
        let ended = self.executions[index].clone();
        let Some(job) = self.jobs.get(&ended.job).filter(|job| !job.canceled) else { return };
        let (failed, timed_out) = match status {
            Status::Failed if ended.failed_before < job.retries.failed => (1, 0),
            Status::TimedOut if ended.timed_out_before < job.retries.timed_out => (0, 1),
            _ => return,
        };
        let again = self.enqueue(&ended.thing, &ended.job, ended.number + 1, now);
        again.failed_before = ended.failed_before + failed;
        again.timed_out_before = ended.timed_out_before + timed_out;
    }

    /// Ends as TIMED_OUT whatever ran out of time.
    pub fn expire(&mut self, now: Duration) {
        // Retries are appended with no timer, so the length at the start is enough.
        for index in 0..self.executions.len() {
            let execution = &self.executions[index];
            if execution.remaining(now) == Some(Duration::ZERO) {
                self.finish(index, Status::TimedOut, now);
            }
        }
    }

    /// What is to be pushed since the last call: `notify` to a thing whose set of pending executions changed,
    /// `notify-next` where the first of them is another one. An execution that is merely taken or updated changes
    /// neither.
    pub fn notices(&mut self, now: Duration, sign: Sign<'_>) -> Vec<Notice> {
        let mut things: Vec<String> = self.executions.iter().map(|e| e.thing.clone()).collect();
        things.extend(self.told.keys().cloned());
        things.sort();
        things.dedup();
        let mut notices = Vec::new();
        for thing in things {
            let queue: Queue = self.pending(&thing).iter().map(|e| e.order).collect();
            let told = self.told.get(&thing).map_or(&[][..], Vec::as_slice);
            let set = |queue: &[u64]| queue.iter().copied().collect::<BTreeSet<_>>();
            let (changed, other_next) = (set(&queue) != set(told), queue.first() != told.first());
            if changed {
                notices.push(self.notify(&thing, now));
            }
            if other_next {
                notices.push(self.notify_next(&thing, now, sign));
            }
            self.told.insert(thing, queue);
        }
        notices
    }

    fn notify(&self, thing: &str, now: Duration) -> Notice {
        let mut lists = Map::new();
        for status in [Status::InProgress, Status::Queued] {
            let list = self.summaries(thing, status);
            if !list.is_empty() {
                lists.insert(status.name().to_owned(), list.into());
            }
        }
        Notice {
            thing: thing.to_owned(),
            job: None,
            topic: format!("$aws/things/{thing}/jobs/notify"),
            payload: json!({"jobs": lists, "timestamp": now.as_secs()}),
        }
    }

    /// The `notify-next` that tells how the queue stands now.
    pub fn notify_next(&self, thing: &str, now: Duration, sign: Sign<'_>) -> Notice {
        let next = self.pending(thing).first().copied();
        let mut payload = json!({"timestamp": now.as_secs()});
        if let Some(next) = next {
            payload["execution"] = self.describe(next, now, Some(sign));
        }
        Notice {
            thing: thing.to_owned(),
            job: next.map(|e| e.job.clone()),
            topic: format!("$aws/things/{thing}/jobs/notify-next"),
            payload,
        }
    }

    pub(super) fn summaries(&self, thing: &str, status: Status) -> Vec<Value> {
        let pending = self.pending(thing);
        pending.into_iter().filter(|e| e.status == status).take(LISTED).map(Execution::summary).collect()
    }

    /// An execution as devices get it; with the document when there is a signer.
    pub(super) fn describe(&self, execution: &Execution, now: Duration, sign: Option<Sign<'_>>) -> Value {
        let mut value = execution.summary();
        value["thingName"] = execution.thing.clone().into();
        value["status"] = execution.status.name().into();
        if let Some(details) = &execution.details {
            value["statusDetails"] = json!(details);
        }
        if let Some(left) = execution.remaining(now) {
            value["approximateSecondsBeforeTimedOut"] = left.as_secs().into();
        }
        if let Some(sign) = sign {
            value["jobDocument"] = self.document(&execution.job, sign);
        }
        value
    }

    pub(super) fn document(&self, job: &str, sign: Sign<'_>) -> Value {
        self.jobs.get(job).map_or(Value::Null, |job| document::hand_out(&job.document, job.presign_for, sign))
    }
}

impl Execution {
    /// Time until the first of its timers runs out; `None` when none runs.
    #[must_use]
    pub fn remaining(&self, now: Duration) -> Option<Duration> {
        self.step_deadline.into_iter().chain(self.deadline).min().map(|end| end.saturating_sub(now))
    }

    fn summary(&self) -> Value {
        let mut value = json!({
            "jobId": self.job,
            "queuedAt": self.queued_at.as_secs(),
            "lastUpdatedAt": self.updated_at.as_secs(),
            "versionNumber": self.version,
            "executionNumber": self.number,
        });
        if let Some(started) = self.started_at {
            value["startedAt"] = started.as_secs().into();
        }
        value
    }

    /// `executionState` of an answer.
    pub(super) fn state(&self) -> Value {
        json!({
            "status": self.status.name(),
            "statusDetails": self.details.clone().unwrap_or_default(),
            "versionNumber": self.version,
        })
    }
}
