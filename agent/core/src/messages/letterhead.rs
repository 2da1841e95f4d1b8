//! What lies under every message of a directory: members that a message does not have come from here.

use serde_json::{Map, Value};

use super::{Refusal, Rules, not_json};

/// A JSON object under each message: objects are merged at every depth, everything else of the message wins, `null`
/// too.
#[derive(Debug, Clone, PartialEq)]
pub struct Letterhead(Map<String, Value>);

/// The text is no letterhead.
#[derive(Debug, thiserror::Error)]
pub enum LetterheadError {
    /// No JSON.
    #[error("a letterhead is a JSON object, and this is none: {0}")]
    NotAnObject(#[source] serde_json::Error),
}

impl Letterhead {
    /// Reads the content of a letterhead file.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn read(bytes: &[u8]) -> Result<Self, LetterheadError> {
        serde_json::from_slice(bytes).map(Self).map_err(LetterheadError::NotAnObject)
    }

    /// The message with this letterhead under it, as JSON.
    pub(super) fn under(&self, message: &[u8]) -> Result<String, Refusal> {
        let message: Map<String, Value> = serde_json::from_slice(message).map_err(not_json)?;
        let mut merged = self.0.clone();
        merge(&mut merged, message);
        Ok(Value::Object(merged).to_string())
    }
}

/// As deep as the parser allows, which is 128 levels.
fn merge(under: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Object(under)), Value::Object(over)) => merge(under, over),
            (_, value) => drop(under.insert(key, value)),
        }
    }
}

/// What the maker of a letterhead is told of a message file; empty where the file does not say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brief {
    /// The topic with prefix and suffix, whatever there is of it.
    pub topic: String,
    /// `priority`, as text.
    pub priority: String,
    /// `priority_slot`, as text.
    pub priority_slot: String,
    /// It goes ahead of others because of that.
    pub prioritised: bool,
}

impl Brief {
    /// Reads a message file as far as that.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn of(message: &[u8], rules: &Rules) -> Result<Self, Refusal> {
        let message: Map<String, Value> = serde_json::from_slice(message).map_err(not_json)?;
        let text = |key: &str| match message.get(key) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        let topic = format!("{}{}{}", rules.prefix, text("topic"), rules.suffix);
        let (priority, priority_slot) = (text("priority"), text("priority_slot"));
        Ok(Self { topic, priority, priority_slot, prioritised: false })
    }
}
