//! What the service answers to a device.

use std::time::Duration;

use serde_json::{Value, json};

use super::request::{Body, Clearable, Code, Rejection, StepTimer, Topic};
use super::{Jobs, Sign, Status};

/// An answer, to be published on the request's topic and `accepted` or `rejected`.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// `accepted` or `rejected`.
    pub suffix: &'static str,
    /// JSON payload.
    pub payload: Value,
}

impl Answer {
    fn accepted(mut payload: Value, token: Option<String>, now: Duration) -> Self {
        payload["timestamp"] = now.as_secs().into();
        if let Some(token) = token {
            payload["clientToken"] = token.into();
        }
        Self { suffix: "accepted", payload }
    }

    /// A refusal with the token of the request.
    #[must_use]
    pub fn rejected(rejection: Rejection, token: Option<String>, now: Duration) -> Self {
        let mut payload = json!({"code": rejection.code.name(), "message": rejection.message});
        if let Some(state) = rejection.state {
            payload["executionState"] = state;
        }
        Self { suffix: "rejected", ..Self::accepted(payload, token, now) }
    }
}

impl Jobs {
    /// Serves one request of `thing`.
    pub fn serve(
        &mut self,
        thing: &str,
        topic: &Result<Topic, Rejection>,
        payload: &[u8],
        now: Duration,
        sign: Sign<'_>,
    ) -> Answer {
        self.expire(now);
        let body = match Body::read(payload) {
            Ok(body) => body,
            Err((token, rejection)) => return Answer::rejected(rejection, token, now),
        };
        let result = match topic {
            Err(rejection) => Err(rejection.clone()),
            Ok(Topic::GetPending) => Ok(json!({
                "inProgressJobs": self.summaries(thing, Status::InProgress),
                "queuedJobs": self.summaries(thing, Status::Queued),
            })),
            Ok(Topic::StartNext) => self.start_next(thing, &body, now, sign),
            Ok(Topic::Describe(job)) => self.describe_execution(thing, job.as_deref(), &body, now, sign),
            Ok(Topic::Update(job)) => self.update(thing, job, &body, now, sign),
        };
        match result {
            Ok(payload) => Answer::accepted(payload, body.token, now),
            Err(rejection) => Answer::rejected(rejection, body.token, now),
        }
    }

    /// Takes the next execution. One that is IN_PROGRESS already is handed out as it is: neither its details nor its
    /// timers change.
    fn start_next(
        &mut self,
        thing: &str,
        body: &Body,
        now: Duration,
        sign: Sign<'_>,
    ) -> Result<Value, Rejection> {
        let (details, timer) = (body.details()?, body.step_timer(Clearable::No)?);
        let Some(next) = self.pending(thing).first().map(|e| e.order) else { return Ok(json!({})) };
        let Some(index) = self.executions.iter().position(|e| e.order == next) else { return Ok(json!({})) };
        if self.executions[index].status == Status::Queued {
            if details.is_some() {
                self.executions[index].details = details;
            }
            self.run(index, timer, now);
        }
        Ok(json!({"execution": self.describe(&self.executions[index], now, Some(sign))}))
    }

    /// IN_PROGRESS, with its timers.
    fn run(&mut self, index: usize, timer: StepTimer, now: Duration) {
        let limit = self.jobs.get(&self.executions[index].job).and_then(|job| job.in_progress_timeout);
        let execution = &mut self.executions[index];
        execution.change(Status::InProgress, now);
        if execution.started_at.is_none() {
            execution.started_at = Some(now);
            execution.deadline = limit.map(|limit| now.saturating_add(limit));
        }
        match timer {
            StepTimer::Leave => {}
            StepTimer::Clear => execution.step_deadline = None,
            StepTimer::Minutes(minutes) => {
                execution.step_deadline = Some(now.saturating_add(Duration::from_secs(minutes * 60)));
            }
        }
    }

    fn describe_execution(
        &mut self,
        thing: &str,
        job: Option<&str>,
        body: &Body,
        now: Duration,
        sign: Sign<'_>,
    ) -> Result<Value, Rejection> {
        let with_document = body.flag("includeJobDocument", true)?;
        let number = body.number("executionNumber")?;
        let execution = match job {
            Some(job) => &self.executions[self.find(thing, job, number)?],
            None => match self.pending(thing).first() {
                Some(next) => next,
                None => return Ok(json!({})),
            },
        };
        if execution.status.is_terminal() {
            let mut rejection = Rejection::new(Code::TerminalStateReached, "the execution is at its end");
            rejection.state = Some(execution.state());
            return Err(rejection);
        }
        Ok(json!({"execution": self.describe(execution, now, with_document.then_some(sign))}))
    }

    fn find(&self, thing: &str, job: &str, number: Option<i64>) -> Result<usize, Rejection> {
        self.executions
            .iter()
            .rposition(|e| e.thing == thing && e.job == job && number.is_none_or(|n| n == e.number))
            .ok_or_else(|| Rejection::new(Code::ResourceNotFound, format!("no such execution of job {job}")))
    }

    fn update(
        &mut self,
        thing: &str,
        job: &str,
        body: &Body,
        now: Duration,
        sign: Sign<'_>,
    ) -> Result<Value, Rejection> {
        let (status, details) = (body.status()?, body.details()?);
        let timer = body.step_timer(Clearable::Yes)?;
        let (expected, number) = (body.number("expectedVersion")?, body.number("executionNumber")?);
        let with_state = body.flag("includeJobExecutionState", false)?;
        let with_document = body.flag("includeJobDocument", false)?;
        let index = self.find(thing, job, number)?;
        let execution = &self.executions[index];
        let refuse = |code, message| {
            let mut rejection = Rejection::new(code, message);
            rejection.state = Some(execution.state());
            Err(rejection)
        };
        if execution.status.is_terminal() {
            return refuse(
                Code::InvalidStateTransition,
                format!("the execution is {}", execution.status.name()),
            );
        }
        if expected.is_some_and(|version| version != execution.version) {
            return refuse(Code::VersionMismatch, format!("the version is {}", execution.version));
        }
        if details.is_some() {
            self.executions[index].details = details;
        }
        if status == Status::InProgress {
            self.run(index, timer, now);
        } else {
            self.finish(index, status, now);
        }
        let mut answer = json!({});
        if with_state {
            answer["executionState"] = self.executions[index].state();
        }
        if with_document {
            answer["jobDocument"] = self.document(job, sign);
        }
        Ok(answer)
    }
}
