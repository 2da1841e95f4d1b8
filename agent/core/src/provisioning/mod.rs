//! A certificate of its own for a device that has only its factory's: fleet provisioning by claim.
//!
//! [`Flow`] is one attempt as a state machine, [`answer`] what the cloud says in it, [`record`] what must outlive a power
//! cut, and [`rotation`] the rule by which one of several certificates is shown.
//!
//! ```text
//!            Up                 Request            accepted            Kept                accepted
//!  Waiting ------> MakeRequest --------> Creating ---------> Keeping -------> Registering ---------> Finish
//!     |   (a key of the cloud: at once)     |                                   ^   |
//!     +---- the record holds a token -------)-----------------------------------+   |
//!                                           +--- rejected, late, gone: Fail --------+
//! ```
//!
//! The key is on disk before the cloud hears of it, certificate and token before they are used: an attempt that is cut
//! off anywhere is taken up where it was, with the same key.

pub mod answer;
pub mod record;
pub mod rotation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use answer::{AnswerError, Created, Registered, Rejected};
use record::Record;

/// How long the cloud may take for one answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Seconds for which a token is used. The cloud takes it for an hour and then deletes the certificate; what is asked in
/// the last minutes could be answered too late.
pub const TOKEN_LIFE: u64 = 55 * 60;

const FROM_REQUEST: &str = "$aws/certificates/create-from-csr/json";
const WITH_KEY: &str = "$aws/certificates/create/json";

/// Where the private key is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyOrigin {
    /// Here; it never leaves the device.
    #[default]
    Device,
    /// By the cloud, which sends it.
    Cloud,
}

/// What an attempt asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Name of the provisioning template.
    pub template: String,
    /// What the template is told of this device.
    pub parameters: BTreeMap<String, String>,
    /// Where the key is made.
    pub key: KeyOrigin,
}

/// As the cloud allows it; anything else would change the meaning of a topic.
#[must_use]
pub fn is_template_name(name: &str) -> bool {
    (1..=36).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// As the cloud allows it; anything else would change the meaning of a topic.
#[must_use]
pub fn is_thing_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b":_-".contains(&b))
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// The claim's session is up, all topics subscribed.
    Up,
    /// The key is on disk; here is the request that it signed.
    Request(String),
    /// A message.
    Message {
        /// Its topic.
        topic: &'a str,
        /// Its payload.
        payload: &'a [u8],
    },
    /// What [`Action::Keep`] names is on disk.
    Kept,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Take the key that is on disk, or make one and put it there; then [`Event::Request`].
    MakeRequest,
    /// Ask; the answer must be there within [`ANSWER_LIMIT`].
    Publish {
        /// Topic.
        topic: String,
        /// Payload.
        payload: Vec<u8>,
    },
    /// Certificate, the cloud's key if it made one, and the record, on disk; then [`Event::Kept`].
    Keep(Box<Created>, Record),
    /// The record is of no use any more: the next attempt begins anew, with the same key.
    Forget,
    /// The device is registered: this record on disk, and what follows from it.
    Finish(Record),
    /// The attempt is over.
    Fail(Failure),
}

/// Why an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The cloud said no.
    #[error("{step}: {rejected}")]
    Rejected {
        /// What was asked for.
        step: &'static str,
        /// What it said.
        rejected: Rejected,
    },
    /// The cloud said something that cannot be used.
    #[error("{step}: the answer cannot be used: {source}")]
    Answer {
        /// What was asked for.
        step: &'static str,
        /// What is wrong with it.
        source: AnswerError,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// For the session. The token of an earlier attempt, if it is still good.
    Waiting(Option<(String, String)>),
    /// For the request.
    Making,
    /// For a certificate.
    Creating,
    /// For the disk: certificate id and token.
    Keeping(String, String),
    /// For the thing: certificate id.
    Registering(String),
    Over,
}

/// One attempt.
#[derive(Debug)]
pub struct Flow {
    plan: Plan,
    state: State,
}

impl Flow {
    /// `record`: of an earlier attempt. `now`: seconds since 1970, by the clock that the record was written with.
    #[must_use]
    pub fn new(plan: Plan, record: Option<&Record>, now: u64) -> Self {
        let token = match record {
            Some(Record::Owned { certificate, token, since })
                if (*since..since.saturating_add(TOKEN_LIFE)).contains(&now) =>
            {
                Some((certificate.clone(), token.clone()))
            }
            _ => None,
        };
        Self { plan, state: State::Waiting(token) }
    }

    /// The topics that must be subscribed before [`Event::Up`].
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        let mut asked = vec![self.register()];
        if !matches!(self.state, State::Waiting(Some(_))) {
            asked.insert(0, self.create().to_owned());
        }
        asked.iter().flat_map(|topic| [format!("{topic}/accepted"), format!("{topic}/rejected")]).collect()
    }

    /// What it is doing, for people.
    #[must_use]
    pub const fn step_name(&self) -> &'static str {
        match self.state {
            State::Waiting(_) => "connecting with the claim",
            State::Making | State::Creating | State::Keeping(..) => CREATE,
            State::Registering(_) => REGISTER,
            State::Over => "over",
        }
    }

    /// The next step. `now`: seconds since 1970.
    pub fn step(&mut self, event: Event<'_>, now: u64) -> Vec<Action> {
        match (std::mem::replace(&mut self.state, State::Over), event) {
            (State::Waiting(Some((certificate, token))), Event::Up) => self.registering(certificate, &token),
            (State::Waiting(None), Event::Up) => match self.plan.key {
                KeyOrigin::Device => self.goes_on(State::Making, vec![Action::MakeRequest]),
                KeyOrigin::Cloud => self.creating(b"{}".to_vec()),
            },
            (State::Making, Event::Request(pem)) => {
                self.creating(json!({ "certificateSigningRequest": pem }).to_string().into_bytes())
            }
            (State::Creating, Event::Message { topic, payload }) if is_answer(topic, self.create()) => {
                self.created(topic, payload, now)
            }
            (State::Keeping(certificate, token), Event::Kept) => self.registering(certificate, &token),
            (State::Registering(certificate), Event::Message { topic, payload })
                if is_answer(topic, &self.register()) =>
            {
                registered(certificate, topic, payload)
            }
            // A session that came back, an answer to what was asked before.
            (state, _) => self.goes_on(state, vec![]),
        }
    }

    fn goes_on(&mut self, state: State, actions: Vec<Action>) -> Vec<Action> {
        self.state = state;
        actions
    }

    fn creating(&mut self, payload: Vec<u8>) -> Vec<Action> {
        let topic = self.create().to_owned();
        self.goes_on(State::Creating, vec![Action::Publish { topic, payload }])
    }

    fn created(&mut self, topic: &str, payload: &[u8], now: u64) -> Vec<Action> {
        if !topic.ends_with("/accepted") {
            return rejected(CREATE, payload);
        }
        match answer::created(payload, self.plan.key) {
            Ok(created) => {
                let (certificate, token) = (created.certificate.clone(), created.token.clone());
                let record =
                    Record::Owned { certificate: certificate.clone(), token: token.clone(), since: now };
                let keep = Action::Keep(Box::new(created), record);
                self.goes_on(State::Keeping(certificate, token), vec![keep])
            }
            Err(source) => vec![Action::Fail(Failure::Answer { step: CREATE, source })],
        }
    }

    fn registering(&mut self, certificate: String, token: &str) -> Vec<Action> {
        let mut asked = json!({ "certificateOwnershipToken": token });
        if !self.plan.parameters.is_empty() {
            asked["parameters"] = json!(self.plan.parameters);
        }
        let payload = asked.to_string().into_bytes();
        let publish = Action::Publish { topic: self.register(), payload };
        self.goes_on(State::Registering(certificate), vec![publish])
    }

    const fn create(&self) -> &'static str {
        match self.plan.key {
            KeyOrigin::Device => FROM_REQUEST,
            KeyOrigin::Cloud => WITH_KEY,
        }
    }

    fn register(&self) -> String {
        format!("$aws/provisioning-templates/{}/provision/json", self.plan.template)
    }
}

const CREATE: &str = "asking for a certificate";
const REGISTER: &str = "registering the device";

fn registered(certificate: String, topic: &str, payload: &[u8]) -> Vec<Action> {
    if !topic.ends_with("/accepted") {
        return rejected(REGISTER, payload);
    }
    match answer::registered(payload) {
        Ok(Registered { thing, configuration }) => {
            vec![Action::Finish(Record::Registered { certificate, thing, configuration })]
        }
        Err(source) => vec![Action::Fail(Failure::Answer { step: REGISTER, source })],
    }
}

fn rejected(step: &'static str, payload: &[u8]) -> Vec<Action> {
    let rejected = answer::rejected(payload);
    // What is wrong with the template or its parameters may be put right while the token is good.
    let forget = step == REGISTER && rejected.is_of_the_token();
    let fail = Action::Fail(Failure::Rejected { step, rejected });
    if forget { vec![Action::Forget, fail] } else { vec![fail] }
}

fn is_answer(topic: &str, asked: &str) -> bool {
    topic.strip_prefix(asked).is_some_and(|rest| matches!(rest, "/accepted" | "/rejected"))
}
