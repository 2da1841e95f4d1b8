//! What was said and done: transcript and counters, on which tests wait and which they assert.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::jobs::{Jobs, Status};

/// Where a transcript entry went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// A message from a device.
    In,
    /// A message to a device.
    Out,
    /// Something that happened to a connection; the payload says what.
    Event,
}

/// One line of the transcript.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The lab's time, since the Unix epoch.
    pub at: Duration,
    /// Which way.
    pub direction: Direction,
    /// Thing of the connection; empty where it is not known.
    pub thing: String,
    /// Topic, or a word for the event: `connect`, `close`, `violation`, `subscribe`, `handshake`, `http`.
    pub topic: String,
    /// Payload, or text of the event.
    pub payload: Bytes,
}

impl Entry {
    /// The payload as JSON, `Null` if it is not.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.payload).unwrap_or_default()
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 300;
        let way = match self.direction {
            Direction::In => "->",
            Direction::Out => "<-",
            Direction::Event => "==",
        };
        let text = String::from_utf8_lossy(&self.payload[..self.payload.len().min(SHOWN)]);
        let more = if self.payload.len() > SHOWN { "..." } else { "" };
        write!(f, "{:>12} {} {way} {} {text}{more}", self.at.as_secs(), self.thing, self.topic)
    }
}

/// What one object of the image server was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PathCount {
    /// Requests, whatever the answer.
    pub requests: u64,
    /// Body bytes handed to the network.
    pub body_bytes: u64,
    /// First byte of each request for a range, in the order of the requests; 0 for the whole object.
    pub offsets: Vec<u64>,
    /// Status of each answer.
    pub statuses: Vec<u16>,
}

/// Totals since the start of the lab.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Messages from devices, by topic.
    pub received: BTreeMap<String, u64>,
    /// Messages to devices, by topic.
    pub sent: BTreeMap<String, u64>,
    /// Messages either way, by job id.
    pub by_job: BTreeMap<String, u64>,
    /// Accepted CONNECTs, by thing.
    pub connects: BTreeMap<String, u64>,
    /// Forbidden client ids, topics and filters: (thing, what). Each closed a connection.
    pub violations: Vec<(String, String)>,
    /// Broken limits and protocol rules: (thing, what). Each closed a connection.
    pub offences: Vec<(String, String)>,
    /// TLS handshakes that failed, with the reason.
    pub failed_handshakes: Vec<String>,
    /// Requests that were answered RequestThrottled because of the rate.
    pub throttled: u64,
    /// The image server, by object.
    pub paths: BTreeMap<String, PathCount>,
}

impl Counters {
    /// What was asked of one object; zero if nothing.
    #[must_use]
    pub fn path(&self, path: &str) -> PathCount {
        self.paths.get(path).cloned().unwrap_or_default()
    }
}

/// Transcript and counters.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub transcript: Vec<Entry>,
    pub counters: Counters,
}

impl Record {
    pub fn message(&mut self, at: Duration, direction: Direction, thing: &str, topic: &str, payload: Bytes) {
        let by_topic = match direction {
            Direction::In => Some(&mut self.counters.received),
            Direction::Out => Some(&mut self.counters.sent),
            Direction::Event => None,
        };
        if let Some(by_topic) = by_topic {
            *by_topic.entry(topic.to_owned()).or_default() += 1;
            if let Some(job) = job_of(topic, &payload) {
                *self.counters.by_job.entry(job).or_default() += 1;
            }
        }
        let (thing, topic) = (thing.to_owned(), topic.to_owned());
        self.transcript.push(Entry { at, direction, thing, topic, payload });
    }

    pub fn event(&mut self, at: Duration, thing: &str, what: &str, text: impl Into<String>) {
        self.message(at, Direction::Event, thing, what, Bytes::from(text.into()));
    }
}

/// The job a message is about: in its topic, else in its execution.
fn job_of(topic: &str, payload: &[u8]) -> Option<String> {
    let rest = topic.strip_prefix("$aws/things/")?.split_once("/jobs/")?.1;
    let first = rest.split('/').next()?;
    if !matches!(first, "start-next" | "notify" | "notify-next" | "get" | "$next") {
        return Some(first.to_owned());
    }
    let value: serde_json::Value = serde_json::from_slice(payload).ok()?;
    value["execution"]["jobId"].as_str().map(str::to_owned)
}

/// The lab at one moment, for the conditions that tests wait for.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// The lab's time, since the Unix epoch.
    pub now: Duration,
    /// Everything said so far.
    pub transcript: &'a [Entry],
    /// Totals so far.
    pub counters: &'a Counters,
    /// The Jobs service.
    pub jobs: &'a Jobs,
    /// Client ids that are connected.
    pub connected: &'a [String],
}

impl Snapshot<'_> {
    /// Status of the latest execution of a job on a thing.
    #[must_use]
    pub fn status(&self, thing: &str, job: &str) -> Option<Status> {
        self.jobs.execution(thing, job).map(|e| e.status)
    }

    /// Messages of one direction whose topic ends so.
    pub fn messages<'s>(
        &'s self,
        direction: Direction,
        topic_end: &'s str,
    ) -> impl Iterator<Item = &'s Entry> {
        self.transcript.iter().filter(move |e| e.direction == direction && e.topic.ends_with(topic_end))
    }
}
