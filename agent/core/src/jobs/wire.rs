//! Topics and payloads of AWS IoT Jobs, read with bounds and written as small as can be.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::gather::Gather as _;
use crate::update::{JobKey, Outcome};

/// Bytes of a payload that is looked at; the broker's own limit.
pub const MAX_PAYLOAD: usize = 128 * 1024;
/// Characters of one value in statusDetails.
pub const MAX_DETAIL: usize = 1024;

/// statusDetails: at most ten entries, and an update replaces all of them.
pub type Details = BTreeMap<String, String>;

/// The five topics that the Jobs policy allows to subscribe to.
#[must_use]
pub fn subscriptions(thing: &str) -> Vec<String> {
    let at = format!("$aws/things/{thing}/jobs");
    vec![
        format!("{at}/start-next/accepted"),
        format!("{at}/start-next/rejected"),
        format!("{at}/+/update/accepted"),
        format!("{at}/+/update/rejected"),
        format!("{at}/notify-next"),
    ]
}

/// Where start-next is published.
#[must_use]
pub fn start_next_topic(thing: &str) -> String {
    format!("$aws/things/{thing}/jobs/start-next")
}

/// Where an update of `job` is published.
#[must_use]
pub fn update_topic(thing: &str, job: &str) -> String {
    format!("$aws/things/{thing}/jobs/{job}/update")
}

/// What a topic that comes in means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound<'a> {
    /// `notify-next`.
    NotifyNext,
    /// Answer to start-next; `true` = accepted.
    StartNext(bool),
    /// Answer to an update of this job; `true` = accepted.
    Update(&'a str, bool),
}

/// Reads a topic; `None` = not one of ours.
#[must_use]
pub fn inbound<'a>(thing: &str, topic: &'a str) -> Option<Inbound<'a>> {
    let rest = topic.strip_prefix("$aws/things/")?.strip_prefix(thing)?.strip_prefix("/jobs/")?;
    let parts: Vec<&str> = rest.split('/').collect();
    match parts[..] {
        ["notify-next"] => Some(Inbound::NotifyNext),
        ["start-next", "accepted"] => Some(Inbound::StartNext(true)),
        ["start-next", "rejected"] => Some(Inbound::StartNext(false)),
        [job, "update", "accepted"] => Some(Inbound::Update(job, true)),
        [job, "update", "rejected"] => Some(Inbound::Update(job, false)),
        _ => None,
    }
}

/// A job name that may stand in a topic.
#[must_use]
pub fn is_job_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// One execution, as start-next gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Execution {
    /// Which one.
    pub key: JobKey,
    /// What to do.
    pub document: Value,
    /// What was last told about it.
    pub details: Details,
    /// Seconds until it times out.
    pub seconds_left: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireExecution {
    job_id: String,
    #[serde(default)]
    job_document: Value,
    #[serde(default)]
    status_details: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    queued_at: Value,
    #[serde(default)]
    execution_number: i64,
    #[serde(default)]
    approximate_seconds_before_timed_out: Option<u64>,
}

/// The members of any answer that matter here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// The request that it answers.
    pub token: Option<String>,
    /// start-next, notify-next: the execution; `None` = the queue is empty.
    pub execution: Option<Execution>,
    /// update: a fresh document.
    pub document: Option<Value>,
    /// update: where the execution stands now.
    pub state: Option<String>,
    /// rejected: why.
    pub code: String,
    /// rejected: for people.
    pub message: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireAnswer {
    client_token: Option<String>,
    execution: Option<Value>,
    job_document: Option<Value>,
    execution_state: Option<WireState>,
    code: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireState {
    status: Option<String>,
}

/// Reads an answer or a notification.
///
/// # Errors
/// One line for the log: too long, not JSON, not of the expected shape.
pub fn read(endpoint: &str, thing: &str, payload: &[u8]) -> Result<Answer, String> {
    if payload.len() > MAX_PAYLOAD {
        return Err(format!("{} bytes, more than {MAX_PAYLOAD}", payload.len()));
    }
    // A struct could also be read from a list; only objects are answers.
    if payload.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
        return Err("not a JSON object".into());
    }
    let wire: WireAnswer = serde_json::from_slice(payload).map_err(|e| format!("not an answer: {e}"))?;
    // The service answers `{}` for "no execution" in some places.
    let execution = match wire.execution {
        Some(v) if !v.is_null() && v.as_object().is_none_or(|o| !o.is_empty()) => {
            Some(execution(endpoint, thing, v)?)
        }
        _ => None,
    };
    Ok(Answer {
        token: wire.client_token,
        execution,
        document: wire.job_document.filter(|d| !d.is_null()),
        state: wire.execution_state.and_then(|s| s.status),
        code: wire.code.unwrap_or_default(),
        message: wire.message.unwrap_or_default(),
    })
}

fn execution(endpoint: &str, thing: &str, value: Value) -> Result<Execution, String> {
    if !value.is_object() {
        return Err("execution: not an object".into());
    }
    let wire: WireExecution = serde_json::from_value(value).map_err(|e| format!("execution: {e}"))?;
    if !is_job_id(&wire.job_id) {
        return Err("execution: jobId is not 1 to 64 of a-z, A-Z, 0-9, - and _".into());
    }
    let queued_at = wire.queued_at.as_i64().or_else(|| {
        // Some services send it as a float.
        wire.queued_at.as_f64().filter(|f| f.is_finite()).map(whole_millis)
    });
    // A document may also come as text.
    let document = match wire.job_document {
        Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        other => other,
    };
    let details = wire.status_details.unwrap_or_default();
    Ok(Execution {
        key: JobKey {
            endpoint: endpoint.into(),
            thing: thing.into(),
            job: wire.job_id,
            execution: wire.execution_number,
            queued_at: queued_at.unwrap_or(0),
        },
        document,
        details: details.into_iter().filter_map(|(k, v)| Some((k, v.as_str()?.to_owned()))).gather(),
        seconds_left: wire.approximate_seconds_before_timed_out,
    })
}

#[allow(clippy::cast_possible_truncation)] // A float outside i64 saturates; it is only ever compared.
fn whole_millis(seconds: f64) -> i64 {
    (seconds * 1000.0) as i64
}

/// The payload of start-next.
#[must_use]
pub fn start_next(token: &str, step_timeout: Option<u32>) -> Vec<u8> {
    let mut body = json!({ "clientToken": token });
    if let Some(minutes) = step_timeout {
        body["stepTimeoutInMinutes"] = minutes.into();
    }
    body.to_string().into_bytes()
}

/// What an update says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update<'a> {
    /// `IN_PROGRESS`, `SUCCEEDED`, `FAILED` or `REJECTED`.
    pub status: &'a str,
    /// All of them: an update replaces what was there.
    pub details: &'a Details,
    /// Which execution.
    pub execution: i64,
    /// To know the answer by.
    pub token: &'a str,
    /// Ask for the document with fresh URLs.
    pub with_document: bool,
    /// Renew the step timer.
    pub step_timeout: Option<u32>,
}

impl Update<'_> {
    /// The payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = json!({
            "status": self.status,
            "statusDetails": self.details,
            "executionNumber": self.execution,
            "includeJobExecutionState": true,
            "clientToken": self.token,
        });
        if self.with_document {
            body["includeJobDocument"] = true.into();
        }
        if let Some(minutes) = self.step_timeout {
            body["stepTimeoutInMinutes"] = minutes.into();
        }
        body.to_string().into_bytes()
    }
}

/// The status of an outcome.
#[must_use]
pub const fn status(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded { .. } => "SUCCEEDED",
        Outcome::Failed { .. } => "FAILED",
        Outcome::Rejected { .. } => "REJECTED",
    }
}

/// A status that an execution does not leave any more.
#[must_use]
pub fn is_terminal(status: &str) -> bool {
    matches!(status, "SUCCEEDED" | "FAILED" | "TIMED_OUT" | "REJECTED" | "REMOVED" | "CANCELED")
}

/// A value that statusDetails takes: not empty, bounded, no control or other invisible characters.
#[must_use]
pub fn detail(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() || is_invisible(c) { ' ' } else { c })
        .take(MAX_DETAIL)
        .collect();
    if clean.is_empty() { "-".into() } else { clean }
}

/// As [`detail`], in plain ASCII: for a service that refused the other.
#[must_use]
pub fn plain_detail(text: &str) -> String {
    let plain: String =
        text.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).take(256).collect();
    if plain.is_empty() { "-".into() } else { plain }
}

/// Unicode category C beyond the control characters: format characters, surrogates, private use, noncharacters.
pub(super) fn is_invisible(c: char) -> bool {
    matches!(u32::from(c),
        0xAD | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x180E | 0x200B..=0x200F | 0x202A..=0x202E
        | 0x2060..=0x206F | 0xE000..=0xF8FF | 0xFDD0..=0xFDEF | 0xFEFF | 0xFFF0..=0xFFFB | 0xFFFE | 0xFFFF
        | 0xE0000..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_topics_of_this_thing_are_read() {
        assert_eq!(inbound("t", "$aws/things/t/jobs/notify-next"), Some(Inbound::NotifyNext));
        assert_eq!(inbound("t", "$aws/things/t/jobs/j1/update/accepted"), Some(Inbound::Update("j1", true)));
        assert_eq!(inbound("t", "$aws/things/t/jobs/start-next/rejected"), Some(Inbound::StartNext(false)));
        for foreign in
            ["$aws/things/tt/jobs/notify-next", "$aws/things/t/jobs/notify", "x", "$aws/things/t/shadow/get"]
        {
            assert_eq!(inbound("t", foreign), None);
        }
    }

    #[test]
    fn a_job_name_that_would_leave_its_topic_is_refused() {
        let bad = json!({"execution":{"jobId":"../x","queuedAt":1,"executionNumber":1}}).to_string();
        assert!(read("e", "t", bad.as_bytes()).unwrap_err().contains("jobId"));
    }

    #[test]
    fn an_empty_execution_is_none() {
        assert_eq!(read("e", "t", br#"{"execution":{},"timestamp":1}"#).unwrap().execution, None);
        assert_eq!(read("e", "t", br#"{"timestamp":1}"#).unwrap().execution, None);
    }

    #[test]
    fn details_hold_what_the_service_takes() {
        assert_eq!(detail("a\nb\u{202e}c"), "a b c");
        assert_eq!(detail(""), "-");
        assert_eq!(detail(&"x".repeat(5000)).chars().count(), MAX_DETAIL);
        assert_eq!(plain_detail("dé\n"), "d??");
    }

    proptest! {
        #[test]
        fn any_payload_is_read_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read("e", "t", &payload);
        }

        #[test]
        fn any_shape_is_read_or_refused(text in r#"\{"(execution|clientToken|executionState|jobDocument|code)":(\{\}|1|"x"|null|\[\]|\{"jobId":("j"|1|null),"queuedAt":(1|1\.5|"x"),"executionNumber":(1|"2")\})\}"#) {
            let _ = read("e", "t", text.as_bytes());
        }
    }
}
