//! The jobs desk: which request to the jobs service is due, what its answer means, what is sent again
//! (UPDATE-RULES 5). No clock, no socket, no randomness but the seed it is given.
//!
//! On connect: flush the outbox and wait for its answers; then, if an update is under way, ask whether its job lives;
//! else ask for the next one. `notify-next` is only a hint to ask.

pub mod command;
pub mod conditions;
pub mod document;
mod fields;
pub mod intake;
pub mod output;
pub mod running;
pub mod show;
pub mod verdict;
pub mod wire;

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use crate::record::Finished;
use crate::seal;
use crate::time::Boottime;
use crate::update::{JobKey, Outcome};
use wire::{Answer, Details, Execution, Inbound};

/// Entry of statusDetails that names the phase of the update.
pub const PHASE: &str = "phase";
/// How long an answer is waited for.
pub const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// A request without an answer is sent again after a random time up to this, doubling from 2 s.
pub const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// Who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Host name of the cloud.
    pub endpoint: String,
    /// Thing name.
    pub thing: String,
    /// `jobs.step-timeout`, in minutes: covers everything up to the end of the trial.
    pub step_timeout: Option<u32>,
}

/// What the desk wants from the program.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send this, QoS 1.
    Publish {
        /// Topic.
        topic: String,
        /// JSON.
        payload: Vec<u8>,
    },
    /// start-next was accepted.
    Accepted,
    /// start-next gave this execution.
    Job(Box<Execution>),
    /// The next job is another one now, or none: a hint to ask.
    NextChanged(Option<JobKey>),
    /// The job lives; a document where one was asked for and came.
    Alive(JobKey, Option<Value>),
    /// The cloud ended the job by itself.
    Closed(JobKey, String),
    /// The outcome of this execution is known to the cloud, or the cloud takes none any more.
    Acknowledged(JobKey),
    /// The update with the seal of phase `armed` was acknowledged.
    SealAcknowledged(JobKey),
    /// For the log.
    Warn(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ask {
    StartNext,
    /// Progress, or the seal of phase `armed`, which must arrive.
    Report {
        key: JobKey,
        details: Details,
        armed: bool,
    },
    Alive {
        key: JobKey,
        details: Details,
    },
    Terminal {
        finished: Finished,
        plain: bool,
    },
}

impl Ask {
    fn key(&self) -> Option<&JobKey> {
        match self {
            Self::StartNext => None,
            Self::Report { key, .. } | Self::Alive { key, .. } => Some(key),
            Self::Terminal { finished, .. } => Some(&finished.key),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pending {
    ask: Ask,
    token: String,
    /// When it is taken as lost, or, while `resend`, when it is sent again.
    due: Boottime,
    resend: bool,
    attempt: u32,
}

/// The desk.
#[derive(Debug, Clone, PartialEq)]
pub struct Desk {
    me: Identity,
    up: bool,
    pending: Vec<Pending>,
    /// A report that waits for the one before it.
    queued: Option<Ask>,
    /// What to ask once the outbox is flushed.
    wanted: VecDeque<Ask>,
    tokens: u64,
    random: u64,
}

impl Desk {
    /// A desk without a session. `seed` makes tokens and back-off differ between devices and runs.
    #[must_use]
    pub const fn new(me: Identity, seed: u64) -> Self {
        Self {
            me,
            up: false,
            pending: Vec::new(),
            queued: None,
            wanted: VecDeque::new(),
            tokens: 0,
            random: seed | 1,
        }
    }

    /// Who we are.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.me
    }

    /// All subscriptions stand: send what waits in the outbox.
    pub fn up<'a>(&mut self, outbox: impl Iterator<Item = &'a Finished>, now: Boottime) -> Vec<Output> {
        self.up = true;
        self.pending.clear();
        self.flush(outbox, now)
    }

    /// The session is gone, and with it every answer.
    pub fn down(&mut self) {
        self.up = false;
        for pending in self.pending.drain(..) {
            match pending.ask {
                // The outbox is flushed again by itself, progress is old by then.
                Ask::Terminal { .. } | Ask::Report { armed: false, .. } => {}
                other => self.wanted.push_back(other),
            }
        }
        self.queued = None;
    }

    /// Sends the outcomes that are not on their way yet.
    pub fn flush<'a>(&mut self, outbox: impl Iterator<Item = &'a Finished>, now: Boottime) -> Vec<Output> {
        let mut out = vec![];
        for finished in outbox {
            let on_its_way = self
                .pending
                .iter()
                .any(|p| matches!(&p.ask, Ask::Terminal { finished: f, .. } if f.key == finished.key));
            if finished.outcome.is_some() && self.up && !on_its_way {
                self.forget_reports(&finished.key);
                out.extend(self.send(Ask::Terminal { finished: finished.clone(), plain: false }, now));
            }
        }
        out.extend(self.send_wanted(now));
        out
    }

    fn forget_reports(&mut self, key: &JobKey) {
        let about = |ask: &Ask| ask.key() == Some(key) && !matches!(ask, Ask::Terminal { .. });
        self.pending.retain(|p| !about(&p.ask));
        self.wanted.retain(|a| !about(a));
        self.queued = self.queued.take().filter(|a| !about(a));
    }

    /// Ask for the next job; in a trial, also the proof that the cloud is there.
    pub fn ask_next(&mut self, now: Boottime) -> Vec<Output> {
        self.want(Ask::StartNext, now)
    }

    /// Another execution seems to have the name of `old`, which was deleted then: an answer to whether the one lives may be
    /// about the other, so it does not count any more, and start-next tells which one there is.
    pub fn replaced(&mut self, old: &JobKey, now: Boottime) -> Vec<Output> {
        let about = |ask: &Ask| matches!(ask, Ask::Alive { key, .. } if key == old);
        self.pending.retain(|p| !about(&p.ask));
        self.wanted.retain(|ask| !about(ask));
        self.ask_next(now)
    }

    /// Ask whether the job lives, and for its document with fresh URLs.
    pub fn ask_alive(&mut self, key: JobKey, details: Details, now: Boottime) -> Vec<Output> {
        self.want(Ask::Alive { key, details }, now)
    }

    /// Tell where the job stands. Progress within a phase is dropped where it would queue up; each new phase is told at
    /// once, since people follow it; `armed` arrives.
    pub fn report(&mut self, key: JobKey, details: Details, armed: bool, now: Boottime) -> Vec<Output> {
        let ask = Ask::Report { key, details, armed };
        // What waited there is older than this in any case.
        self.queued = None;
        if self.telling(&ask) {
            self.queued = Some(ask);
            return vec![];
        }
        if !armed && !self.up {
            return vec![];
        }
        self.want(ask, now)
    }

    /// A report of the same phase of the same job waits for its answer.
    fn telling(&self, ask: &Ask) -> bool {
        let about = |ask: &Ask| match ask {
            Ask::Report { key, details, .. } => Some((key.clone(), details.get(PHASE).cloned())),
            _ => None,
        };
        let phase = about(ask);
        self.pending.iter().any(|p| about(&p.ask).is_some_and(|told| Some(told) == phase))
    }

    fn want(&mut self, ask: Ask, now: Boottime) -> Vec<Output> {
        let same = |other: &Ask| match (other, &ask) {
            (Ask::StartNext, Ask::StartNext) => true,
            (Ask::Alive { key: a, .. }, Ask::Alive { key: b, .. }) => a == b,
            _ => false,
        };
        if self.wanted.iter().any(same) || self.pending.iter().any(|p| same(&p.ask)) {
            return vec![];
        }
        self.wanted.push_back(ask);
        self.send_wanted(now)
    }

    fn flushing(&self) -> bool {
        self.pending.iter().any(|p| matches!(p.ask, Ask::Terminal { .. }))
    }

    fn send_wanted(&mut self, now: Boottime) -> Vec<Output> {
        let mut out = vec![];
        while self.up && !self.flushing() {
            let Some(ask) = self.wanted.pop_front() else { break };
            out.extend(self.send(ask, now));
        }
        out
    }

    fn send(&mut self, ask: Ask, now: Boottime) -> Option<Output> {
        let token = self.token(&ask);
        let output = self.publish(&ask, &token);
        self.pending.push(Pending { ask, token, due: now.after(ANSWER_WAIT), resend: false, attempt: 0 });
        Some(output)
    }

    fn publish(&self, ask: &Ask, token: &str) -> Output {
        let thing = &self.me.thing;
        let update = |key: &JobKey, status, details: &Details, with_document, step_timeout| Output::Publish {
            topic: wire::update_topic(thing, &key.job),
            payload: wire::Update {
                status,
                details,
                execution: key.execution,
                token,
                with_document,
                step_timeout,
            }
            .encode(),
        };
        match ask {
            Ask::StartNext => Output::Publish {
                topic: wire::start_next_topic(thing),
                payload: wire::start_next(token, self.me.step_timeout),
            },
            Ask::Report { key, details, .. } => {
                update(key, "IN_PROGRESS", details, false, self.me.step_timeout)
            }
            Ask::Alive { key, details } => update(key, "IN_PROGRESS", details, true, self.me.step_timeout),
            Ask::Terminal { finished, plain } => {
                let details = terminal_details(finished, *plain);
                let status = finished.outcome.as_ref().map_or("FAILED", wire::status);
                update(&finished.key, status, &details, false, None)
            }
        }
    }

    /// A terminal update has the same token for ever, so that the service sees a repetition as one.
    fn token(&mut self, ask: &Ask) -> String {
        if let Ask::Terminal { finished, .. } = ask {
            let key = &finished.key;
            let sum = crate::crc::crc32(format!("{key:?}").as_bytes());
            return format!("end-{sum:08x}-{}", key.execution);
        }
        self.tokens += 1;
        format!("{:08x}-{}", self.next_random() >> 32, self.tokens)
    }

    /// xorshift64*: spread, not secrecy.
    const fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn back_off(&mut self, attempt: u32) -> Duration {
        let most = Duration::from_secs(2).saturating_mul(1 << attempt.min(8)).min(MAX_BACKOFF);
        let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(self.next_random() % millis)
    }

    /// When [`Desk::tick`] is due.
    #[must_use]
    pub fn next_wake(&self) -> Option<Boottime> {
        self.pending.iter().filter(|_| self.up).map(|p| p.due).min()
    }

    /// Sends again what got no answer.
    pub fn tick(&mut self, now: Boottime) -> Vec<Output> {
        let mut out = vec![];
        if !self.up {
            return out;
        }
        for i in 0..self.pending.len() {
            if self.pending[i].due > now {
                continue;
            }
            if self.pending[i].resend {
                let ask = self.pending[i].ask.clone();
                let token = self.token(&ask);
                out.push(self.publish(&ask, &token));
                let p = &mut self.pending[i];
                (p.token, p.resend, p.due) = (token, false, now.after(ANSWER_WAIT));
            } else {
                self.later(i, now);
            }
        }
        // Progress that got no answer is old by now.
        self.pending.retain(|p| !(p.resend && matches!(p.ask, Ask::Report { armed: false, .. })));
        out.extend(self.send_queued(now));
        out
    }

    fn later(&mut self, i: usize, now: Boottime) {
        let attempt = self.pending[i].attempt;
        let wait = self.back_off(attempt);
        let p = &mut self.pending[i];
        (p.attempt, p.resend, p.due) = (attempt.saturating_add(1), true, now.after(wait));
    }

    fn send_queued(&mut self, now: Boottime) -> Vec<Output> {
        match self.queued.take() {
            Some(ask) if !self.telling(&ask) => self.want(ask, now),
            other => {
                self.queued = other;
                vec![]
            }
        }
    }

    /// A message came in.
    pub fn message(&mut self, topic: &str, payload: &[u8], now: Boottime) -> Vec<Output> {
        let Some(inbound) = wire::inbound(&self.me.thing, topic) else { return vec![] };
        let answer = match wire::read(&self.me.endpoint, &self.me.thing, payload) {
            Ok(answer) => answer,
            Err(why) => return vec![Output::Warn(format!("{topic}: {why}"))],
        };
        let mut out = match inbound {
            Inbound::NotifyNext => return vec![Output::NextChanged(answer.execution.map(|e| e.key))],
            Inbound::StartNext(accepted) => self.start_next_answered(accepted, answer, now),
            Inbound::Update(job, accepted) => self.update_answered(job, accepted, &answer, now),
        };
        out.extend(self.send_queued(now));
        out.extend(self.send_wanted(now));
        out
    }

    /// The request that this answers. A late answer to an older one of the same kind is no answer, and the service
    /// echoes every token.
    fn answered(&mut self, is: impl Fn(&Ask) -> bool, token: Option<&str>) -> Option<Pending> {
        let i = self.pending.iter().position(|p| is(&p.ask) && token == Some(p.token.as_str()))?;
        Some(self.pending.remove(i))
    }

    fn start_next_answered(&mut self, accepted: bool, answer: Answer, now: Boottime) -> Vec<Output> {
        let Some(pending) = self.answered(|a| matches!(a, Ask::StartNext), answer.token.as_deref()) else {
            return vec![];
        };
        if !accepted {
            self.pending.push(pending);
            self.later(self.pending.len() - 1, now);
            return vec![Output::Warn(format!("start-next: {} {}", answer.code, answer.message))];
        }
        let mut out = vec![Output::Accepted];
        out.extend(answer.execution.map(|e| Output::Job(Box::new(e))));
        out
    }

    fn update_answered(&mut self, job: &str, accepted: bool, answer: &Answer, now: Boottime) -> Vec<Output> {
        let about = |a: &Ask| a.key().is_some_and(|k| k.job == job);
        let Some(pending) = self.answered(about, answer.token.as_deref()) else { return vec![] };
        match (&pending.ask, accepted) {
            (Ask::StartNext, _) => vec![],
            (Ask::Terminal { finished, .. }, true) => vec![Output::Acknowledged(finished.key.clone())],
            (Ask::Report { key, armed: true, .. }, true) => vec![Output::SealAcknowledged(key.clone())],
            (Ask::Report { .. }, true) => vec![],
            (Ask::Alive { key, .. }, true) => vec![Output::Alive(key.clone(), answer.document.clone())],
            (Ask::Terminal { .. }, false) => self.terminal_refused(pending, answer, now),
            (_, false) => self.report_refused(pending, answer, now),
        }
    }

    /// UPDATE-RULES 5.2.
    fn terminal_refused(&mut self, mut pending: Pending, answer: &Answer, now: Boottime) -> Vec<Output> {
        let Ask::Terminal { finished, plain } = &mut pending.ask else { return vec![] };
        let key = finished.key.clone();
        let state = answer.state.as_deref().unwrap_or_default();
        let over = |why: &str| {
            vec![
                Output::Warn(format!("{key}: {why}: {} {}", answer.code, answer.message)),
                Output::Acknowledged(key.clone()),
            ]
        };
        match answer.code.as_str() {
            "ResourceNotFound" => over("the cloud does not know it any more"),
            "InvalidStateTransition" | "VersionMismatch" | "TerminalStateReached"
                if wire::is_terminal(state) =>
            {
                over("already ended in the cloud")
            }
            "InvalidRequest" if *plain => over("the cloud does not take the outcome"),
            "InvalidRequest" => {
                *plain = true;
                self.send_again(pending, now)
            }
            _ => self.retry(pending, now),
        }
    }

    fn report_refused(&mut self, pending: Pending, answer: &Answer, now: Boottime) -> Vec<Output> {
        let Some(key) = pending.ask.key().cloned() else { return vec![] };
        let state = answer.state.as_deref().unwrap_or_default();
        match answer.code.as_str() {
            "ResourceNotFound" => self.closed(key, "deleted"),
            "InvalidStateTransition" | "VersionMismatch" | "TerminalStateReached"
                if wire::is_terminal(state) =>
            {
                self.closed(key, state)
            }
            // Without the state in the answer: an IN_PROGRESS that is refused can only mean an ended execution.
            "InvalidStateTransition" if state.is_empty() => self.closed(key, "ended"),
            "InvalidRequest" => vec![Output::Warn(format!("{key}: progress refused: {}", answer.message))],
            _ if matches!(pending.ask, Ask::Report { armed: false, .. }) => vec![],
            _ => self.retry(pending, now),
        }
    }

    /// What still waits for an answer about an ended job must not hold up the next one.
    fn closed(&mut self, key: JobKey, why: &str) -> Vec<Output> {
        self.forget_reports(&key);
        vec![Output::Closed(key, why.to_owned())]
    }

    fn retry(&mut self, pending: Pending, now: Boottime) -> Vec<Output> {
        self.pending.push(pending);
        self.later(self.pending.len() - 1, now);
        vec![]
    }

    fn send_again(&mut self, mut pending: Pending, now: Boottime) -> Vec<Output> {
        let output = self.publish(&pending.ask, &pending.token);
        pending.due = now.after(ANSWER_WAIT);
        self.pending.push(pending);
        vec![output]
    }
}

/// What goes with an outcome: the reason and the seal.
fn terminal_details(finished: &Finished, plain: bool) -> Details {
    let reason = finished.outcome.as_ref().map_or("", Outcome::reason);
    let mut details = Details::new();
    let text = if plain { wire::plain_detail(reason) } else { wire::detail(reason) };
    details.insert("reason".into(), text);
    for (name, text) in &finished.details {
        details.insert(name.clone(), if plain { output::plain(text) } else { text.clone() });
    }
    if let Some(seal) = finished.seal.as_ref().filter(|_| !plain) {
        details.insert(seal::DETAIL.into(), seal.clone());
    }
    details
}

#[cfg(test)]
mod tests;
