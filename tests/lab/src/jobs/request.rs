//! The device's requests on the wire: topics, JSON, and the limits that AWS sets to them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{MAX_MINUTES, Status};

/// Pairs that statusDetails may hold.
pub const MAX_DETAILS: usize = 10;
/// Characters of a key of statusDetails.
pub const MAX_KEY: usize = 128;
/// Characters of a value of statusDetails.
pub const MAX_VALUE: usize = 1024;
/// Characters of a client token.
pub const MAX_TOKEN: usize = 64;

/// What a request topic asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// `get`
    GetPending,
    /// `start-next`
    StartNext,
    /// `<job>/get`; `None` for `$next`
    Describe(Option<String>),
    /// `<job>/update`
    Update(String),
}

/// Why a request is refused, as AWS names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// No such operation.
    InvalidTopic,
    /// The payload is not JSON.
    InvalidJson,
    /// The payload breaks a rule.
    InvalidRequest,
    /// The execution is at its end.
    InvalidStateTransition,
    /// No such execution.
    ResourceNotFound,
    /// Another version than expected.
    VersionMismatch,
    /// The service failed.
    InternalError,
    /// Too many requests.
    RequestThrottled,
    /// Only describe says it: the execution is at its end.
    TerminalStateReached,
}

impl Code {
    /// Name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidTopic => "InvalidTopic",
            Self::InvalidJson => "InvalidJson",
            Self::InvalidRequest => "InvalidRequest",
            Self::InvalidStateTransition => "InvalidStateTransition",
            Self::ResourceNotFound => "ResourceNotFound",
            Self::VersionMismatch => "VersionMismatch",
            Self::InternalError => "InternalError",
            Self::RequestThrottled => "RequestThrottled",
            Self::TerminalStateReached => "TerminalStateReached",
        }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejection {
    /// Its code.
    pub code: Code,
    /// For people.
    pub message: String,
    /// `executionState`, where the code has one.
    pub state: Option<Value>,
}

impl Rejection {
    /// A refusal without a state.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), state: None }
    }
}

fn invalid(message: impl Into<String>) -> Rejection {
    Rejection::new(Code::InvalidRequest, message)
}

/// Thing and operation of a topic of the Jobs service; `None` for a topic of another one. A topic that is the
/// service's but no request of it is an `Err` with the thing.
#[must_use]
pub fn parse_topic(topic: &str) -> Option<(&str, Result<Topic, Rejection>)> {
    let (thing, rest) = topic.strip_prefix("$aws/things/")?.split_once('/')?;
    let rest = rest.strip_prefix("jobs/")?;
    let job = |id: &str| {
        if is_job_id(id) { Ok(id.to_owned()) } else { Err(invalid(format!("{id:?} is not a job id"))) }
    };
    let topic = match *rest.split('/').collect::<Vec<_>>() {
        ["get"] => Ok(Topic::GetPending),
        ["start-next"] => Ok(Topic::StartNext),
        ["$next", "get"] => Ok(Topic::Describe(None)),
        [id, "get"] => job(id).map(|id| Topic::Describe(Some(id))),
        [id, "update"] => job(id).map(Topic::Update),
        _ => Err(Rejection::new(Code::InvalidTopic, format!("{rest:?} is no operation of jobs"))),
    };
    Some((thing, topic))
}

/// Whether the text can be a job id.
#[must_use]
pub fn is_job_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_alphanumeric() || b"_-".contains(&c))
}

/// Whether the text can be a thing name.
#[must_use]
pub fn is_thing(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|c| c.is_ascii_alphanumeric() || b":_-".contains(&c))
}

/// A timer as a request sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StepTimer {
    /// Not named: leave it.
    #[default]
    Leave,
    /// -1.
    Clear,
    /// Minutes from now.
    Minutes(u64),
}

/// A JSON body with its client token taken out.
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    /// To be echoed.
    pub token: Option<String>,
    fields: Map<String, Value>,
}

/// A payload that cannot even be read as an object, with the client token if there was one.
type Unread = (Option<String>, Rejection);

impl Body {
    /// Reads a payload; an empty one counts as `{}`.
    ///
    /// # Errors
    /// `InvalidJson`, or `InvalidRequest` for another kind of value or a bad client token.
    pub fn read(payload: &[u8]) -> Result<Self, Unread> {
        if payload.is_empty() {
            return Ok(Self { token: None, fields: Map::new() });
        }
        let value: Value = serde_json::from_slice(payload)
            .map_err(|e| (None, Rejection::new(Code::InvalidJson, format!("not JSON: {e}"))))?;
        let Value::Object(fields) = value else {
            return Err((None, invalid("the request is not an object")));
        };
        let token = match fields.get("clientToken") {
            None | Some(Value::Null) => None,
            Some(Value::String(token)) if (1..=MAX_TOKEN).contains(&token.chars().count()) => {
                Some(token.clone())
            }
            Some(_) => return Err((None, invalid("clientToken is not 1 to 64 characters"))),
        };
        Ok(Self { token, fields })
    }

    fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// A whole number.
    ///
    /// # Errors
    /// `InvalidRequest` for another kind of value.
    pub fn number(&self, name: &str) -> Result<Option<i64>, Rejection> {
        self.field(name)
            .map(|v| v.as_i64().ok_or_else(|| invalid(format!("{name} is not a whole number"))))
            .transpose()
    }

    /// A flag with its default.
    ///
    /// # Errors
    /// `InvalidRequest` for another kind of value.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, Rejection> {
        self.field(name)
            .map_or(Ok(default), |v| v.as_bool().ok_or_else(|| invalid(format!("{name} is not a boolean"))))
    }

    /// `status`, which an update must have.
    ///
    /// # Errors
    /// `InvalidRequest` when it is absent or one that devices cannot set.
    pub fn status(&self) -> Result<Status, Rejection> {
        const DEVICE: [Status; 4] = [Status::InProgress, Status::Succeeded, Status::Failed, Status::Rejected];
        let text =
            self.field("status").and_then(Value::as_str).ok_or_else(|| invalid("status is missing"))?;
        DEVICE
            .into_iter()
            .find(|status| status.name() == text)
            .ok_or_else(|| invalid(format!("status {text:?} cannot be set by a device")))
    }

    /// `statusDetails` within its limits; `None` leaves them unchanged.
    ///
    /// # Errors
    /// `InvalidRequest` with the limit that is broken.
    pub fn details(&self) -> Result<Option<BTreeMap<String, String>>, Rejection> {
        let Some(value) = self.field("statusDetails") else { return Ok(None) };
        let pairs = value.as_object().ok_or_else(|| invalid("statusDetails is not an object"))?;
        if pairs.len() > MAX_DETAILS {
            return Err(invalid(format!("statusDetails has {} pairs, at most {MAX_DETAILS}", pairs.len())));
        }
        let mut details = BTreeMap::new();
        for (key, value) in pairs {
            let good_key = (1..=MAX_KEY).contains(&key.len())
                && key.bytes().all(|c| c.is_ascii_alphanumeric() || b":_-".contains(&c));
            if !good_key {
                return Err(invalid(format!("key {key:?} of statusDetails breaks [a-zA-Z0-9:_-]{{1,128}}")));
            }
            let value = value.as_str().ok_or_else(|| invalid(format!("statusDetails.{key} is not text")))?;
            if !(1..=MAX_VALUE).contains(&value.chars().count()) || value.chars().any(is_other) {
                return Err(invalid(format!("statusDetails.{key} breaks [^\\p{{C}}]{{1,1024}}")));
            }
            details.insert(key.clone(), value.to_owned());
        }
        Ok(Some(details))
    }

    /// `stepTimeoutInMinutes`.
    ///
    /// # Errors
    /// `InvalidRequest` outside 1..10080; -1 only where the operation has it.
    pub fn step_timer(&self, clearable: Clearable) -> Result<StepTimer, Rejection> {
        match self.number("stepTimeoutInMinutes")? {
            None => Ok(StepTimer::Leave),
            Some(-1) if clearable == Clearable::Yes => Ok(StepTimer::Clear),
            Some(minutes) => u64::try_from(minutes)
                .ok()
                .filter(|m| (1..=MAX_MINUTES).contains(m))
                .map(StepTimer::Minutes)
                .ok_or_else(|| invalid(format!("stepTimeoutInMinutes {minutes} is outside 1..10080"))),
        }
    }
}

/// Whether -1 takes a timer away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clearable {
    /// start-next
    No,
    /// update
    Yes,
}

/// Unicode category C (other): controls, formats, private use. Unassigned code points are let through, the standard
/// library does not know them.
fn is_other(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0001}'..='\u{e007f}'
            | '\u{f0000}'..='\u{10ffff}')
}
