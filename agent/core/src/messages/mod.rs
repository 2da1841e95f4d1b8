//! Files that become messages: what a message file may say ([`read`]), and which one is sent when ([`Sender`]).
//!
//! A message file is a JSON object. `topic` and `payload` must be there; `qos` (0 or 1, default 1) and `retain`
//! (default false) may be; other members are not looked at. What goes out as the payload:
//!
//! | payload | on the wire |
//! |---|---|
//! | object, array | its JSON without white space; numbers, order of members and escapes as they are in the file |
//! | string | its characters in UTF-8, without quotes; `""` is an empty payload |
//! | number, `true`, `false`, `null` | its JSON text |
//!
//! Whatever a broker would close the connection for is refused here, with a reason for people.

mod letterhead;
mod priority;
mod queue;
mod sender;
#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use letterhead::{Brief, Letterhead, LetterheadError};
pub use priority::Ahead;
pub use queue::{Order, Place, Queue};
pub use sender::{Pace, Sender, Verdicts};

/// Bytes of a payload at most.
pub const MAX_PAYLOAD: usize = 128 << 10;
/// Bytes of a topic at most.
pub const MAX_TOPIC: usize = 256;
/// Slashes in a topic at most; the three of `$aws/rules/NAME/` are free.
pub const MAX_SLASHES: usize = 7;
/// Bytes of a message file at most: a payload of which each byte is escaped (`\u0000`), and some room.
pub const MAX_FILE: u64 = 6 * (128 << 10) + (64 << 10);
/// Characters of a topic or value that a reason repeats.
const SHOWN: usize = 80;

/// How sure it is that a message arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Once or not at all.
    AtMostOnce,
    /// Acknowledged, else sent again.
    AtLeastOnce,
}

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The whole topic, prefix and suffix included.
    pub topic: String,
    /// The bytes on the wire.
    pub payload: Vec<u8>,
    /// Quality of service.
    pub qos: Qos,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
}

/// Which topics beginning with `$` may be published to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reserved {
    /// None: they are the cloud's own.
    #[default]
    Refused,
    /// All that the device's policy allows.
    Allowed,
}

/// How the files of one directory are read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    /// Put before each topic.
    pub prefix: String,
    /// Put behind each topic.
    pub suffix: String,
    /// Lies under each message.
    pub letterhead: Option<Letterhead>,
    /// Topics beginning with `$`.
    pub reserved: Reserved,
}

/// Why a file is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing in it.
    #[error("the file is empty: write it completely in tmp/, then move it into new/")]
    Empty,
    /// No JSON.
    #[error("the file is no JSON: {0}")]
    NotJson(String),
    /// JSON of another kind.
    #[error("the file is no JSON object: write {{\"topic\": ..., \"payload\": ...}}")]
    NotAnObject,
    /// A member that must be there.
    #[error("{0:?} is missing")]
    Missing(&'static str),
    /// A member of the wrong kind.
    #[error("{key:?} is {found}: use {wanted}")]
    Wrong {
        /// The member.
        key: &'static str,
        /// Its beginning.
        found: String,
        /// What may be there.
        wanted: &'static str,
    },
    /// A payload that is to be compressed.
    #[error("\"compress\" is not supported: leave it away, or compress the content yourself")]
    Compress,
    /// A topic that no broker takes.
    #[error("topic {topic:?}: {why}")]
    Topic {
        /// Its beginning.
        topic: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A payload that no broker takes.
    #[error("the payload has {0} bytes; the broker takes {MAX_PAYLOAD}")]
    Payload(usize),
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    topic: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    qos: Option<&'a RawValue>,
    #[serde(borrow, default)]
    retain: Option<&'a RawValue>,
    #[serde(borrow, default)]
    compress: Option<&'a RawValue>,
}

/// `null` is a value like any other.
fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(d: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(d).map(Some)
}

/// Reads a message file.
///
/// # Errors
/// [`Refusal`]: what is wrong with it.
pub fn read(bytes: &[u8], rules: &Rules) -> Result<Message, Refusal> {
    match bytes.iter().find(|b| !b.is_ascii_whitespace()) {
        None => return Err(Refusal::Empty),
        Some(b'{') => {}
        // A list would fill the members one by one.
        Some(_) if serde_json::from_slice::<&RawValue>(bytes).is_ok() => return Err(Refusal::NotAnObject),
        Some(_) => {}
    }
    let under = rules.letterhead.as_ref().map(|letterhead| letterhead.under(bytes)).transpose()?;
    let file: File<'_> =
        serde_json::from_slice(under.as_deref().map_or(bytes, str::as_bytes)).map_err(not_json)?;
    if file.compress.is_some() {
        return Err(Refusal::Compress);
    }
    let qos = qos(file.qos)?;
    let retain = match file.retain.map(RawValue::get) {
        None | Some("false") => false,
        Some("true") => true,
        Some(found) => return Err(wrong("retain", found, "true or false")),
    };
    let topic = text("topic", file.topic.ok_or(Refusal::Missing("topic"))?)?;
    let topic = format!("{}{topic}{}", rules.prefix, rules.suffix);
    if let Err(why) = check_topic(&topic, rules.reserved) {
        return Err(Refusal::Topic { topic: topic.chars().take(SHOWN).collect(), why });
    }
    let payload = payload(file.payload.ok_or(Refusal::Missing("payload"))?)?;
    if payload.len() > MAX_PAYLOAD {
        return Err(Refusal::Payload(payload.len()));
    }
    Ok(Message { topic, payload, qos, retain })
}

fn not_json(e: serde_json::Error) -> Refusal {
    Refusal::NotJson(e.to_string())
}

fn wrong(key: &'static str, found: &str, wanted: &'static str) -> Refusal {
    Refusal::Wrong { key, found: found.chars().take(SHOWN).collect(), wanted }
}

fn qos(raw: Option<&RawValue>) -> Result<Qos, Refusal> {
    // In quotes as well: what other agents take goes on.
    match raw.map(|raw| raw.get().trim_matches('"')) {
        None | Some("1") => Ok(Qos::AtLeastOnce),
        Some("0") => Ok(Qos::AtMostOnce),
        Some("2") => Err(wrong("qos", "2", "0 or 1; the broker has no QoS 2")),
        Some(found) => Err(wrong("qos", found, "0 or 1")),
    }
}

fn text(key: &'static str, raw: &RawValue) -> Result<String, Refusal> {
    if !raw.get().starts_with('"') {
        return Err(wrong(key, raw.get(), "a string"));
    }
    serde_json::from_str(raw.get()).map_err(not_json)
}

fn payload(raw: &RawValue) -> Result<Vec<u8>, Refusal> {
    match raw.get().as_bytes() {
        [b'"', ..] => text("payload", raw).map(String::into_bytes),
        json @ [b'{' | b'[', ..] => Ok(compact(json)),
        // Numbers, true, false and null have no inside.
        json => Ok(json.to_vec()),
    }
}

/// JSON without the white space between its tokens.
fn compact(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut quoted, mut escaped) = (false, false);
    for &byte in json {
        if quoted || !byte.is_ascii_whitespace() {
            out.push(byte);
        }
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ => {}
        }
    }
    out
}

/// Whether messages can be published on `topic`: the limits of MQTT, and those of AWS IoT.
///
/// # Errors
/// What is wrong with it.
pub fn check_topic(topic: &str, reserved: Reserved) -> Result<(), &'static str> {
    // Basic Ingest: $aws/rules/NAME/ does not count.
    let free = if topic.starts_with("$aws/") { 3 } else { 0 };
    if topic.is_empty() {
        Err("is empty")
    } else if topic.len() > MAX_TOPIC {
        Err("is longer than 256 bytes")
    } else if topic.contains(['+', '#']) {
        Err("has a wildcard (+ or #); those are for subscriptions")
    } else if topic.contains('\0') {
        Err("has a NUL character")
    } else if topic.matches('/').count() > MAX_SLASHES + free {
        Err("has more than 7 slashes")
    } else if topic.starts_with('$') && reserved == Reserved::Refused {
        Err("begins with $, which is the cloud's own; set reserved-topics = true to allow it")
    } else {
        Ok(())
    }
}
