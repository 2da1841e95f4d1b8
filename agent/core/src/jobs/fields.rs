//! The members of a job document, read as the documents of a running fleet expect it: names in any case, null and
//! values of the wrong type as if they were not there, unless a member must be.

use serde_json::{Map, Value};

use crate::update::Outcome;

/// How every refusal of a document begins; people search for it.
pub const INVALID: &str = "Unable to execute job, invalid job document provided!";
/// Characters of a value that a refusal quotes.
const QUOTED: usize = 64;

/// An object of the document and where it stands, so that each refusal names the member.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    pub(super) fn top(map: &'a Map<String, Value>) -> Self {
        Self { map, path: String::new() }
    }

    pub(super) fn at(map: &'a Map<String, Value>, path: &str) -> Self {
        Self { map, path: format!("{path}.") }
    }

    /// A member; as it is written first, else in any case.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        let any_case = || self.map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v);
        self.map.get(name).or_else(any_case).filter(|v| !v.is_null())
    }

    /// Where a member stands, for a refusal.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    pub(super) fn wrong(&self, name: &str, why: &str) -> Outcome {
        invalid(&self.path(name), why)
    }

    /// A string; anything else is not there.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name).and_then(Value::as_str)
    }

    /// A string that must be there and say something.
    pub(super) fn required(&self, name: &str) -> Result<&'a str, Outcome> {
        match self.get(name) {
            None => Err(self.wrong(name, "missing")),
            Some(Value::String(s)) if s.is_empty() => Err(self.wrong(name, "empty")),
            Some(Value::String(s)) => Ok(s),
            Some(_) => Err(self.wrong(name, "not a string")),
        }
    }

    /// An object that must be there.
    pub(super) fn object(&self, name: &str) -> Result<Fields<'a>, Outcome> {
        match self.get(name) {
            None => Err(self.wrong(name, "missing")),
            Some(Value::Object(map)) => Ok(Fields::at(map, &self.path(name))),
            Some(_) => Err(self.wrong(name, "not an object")),
        }
    }

    /// The members of a list; anything else is not there.
    pub(super) fn list(&self, name: &str) -> Option<&'a [Value]> {
        self.get(name).and_then(Value::as_array).map(Vec::as_slice)
    }

    /// Exactly the string "true"; where `also_boolean`, true as well.
    pub(super) fn is_true(&self, name: &str, also_boolean: AlsoBoolean) -> bool {
        match self.get(name) {
            Some(Value::String(s)) => s == "true",
            Some(Value::Bool(b)) => *b && also_boolean == AlsoBoolean::Yes,
            _ => false,
        }
    }

    /// A number without a fraction, 2.0 included; a string or 2.5 is not there. Below 0 it can mean nothing.
    pub(super) fn count(&self, name: &str) -> Result<Option<u64>, Outcome> {
        let Some(Value::Number(number)) = self.get(name) else { return Ok(None) };
        if let Some(whole) = number.as_u64() {
            return Ok(Some(whole));
        }
        match number.as_f64() {
            Some(f) if f < 0.0 => Err(self.wrong(name, "below 0")),
            Some(f) if f.fract() == 0.0 && f <= MOST_EXACT => Ok(Some(whole(f))),
            _ => Ok(None),
        }
    }

    /// A member that only this agent knows: what is there must be right.
    pub(super) fn own_flag(&self, name: &str) -> Result<bool, Outcome> {
        match self.get(name) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or_else(|| self.wrong(name, "neither true nor false")),
        }
    }

    /// Seconds, at most a week.
    pub(super) fn own_seconds(&self, name: &str) -> Result<Option<u64>, Outcome> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => {
                let seconds = v.as_u64().filter(|s| (1..=WEEK).contains(s));
                let wrong = || self.wrong(name, "not a whole number of seconds from 1 to 604800");
                seconds.map(Some).ok_or_else(wrong)
            }
        }
    }
}

/// Whether a JSON true counts beside the string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AlsoBoolean {
    Yes,
    No,
}

/// Beyond this a float is no exact whole number.
const MOST_EXACT: f64 = 9_007_199_254_740_992.0;
/// The longest that a job may ask for.
const WEEK: u64 = 7 * 24 * 3600;

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Whole and within 0 to 2^53.
const fn whole(f: f64) -> u64 {
    f as u64
}

/// A refusal that says where and why.
pub(super) fn invalid(at: &str, why: &str) -> Outcome {
    Outcome::rejected(format!("{INVALID} {at}: {why}"))
}

/// A value of the document as a refusal may show it: short, on one line.
pub(super) fn quoted(value: &str) -> String {
    let short: String = value.chars().take(QUOTED).collect();
    let more = if short.len() < value.len() { "..." } else { "" };
    format!("{short:?}{more}")
}

/// What must not stand anywhere: a placeholder that the service did not replace would be executed as it stands, and
/// no argument or path can hold a NUL.
pub(super) fn refuse_what_cannot_be_meant(value: &Value, at: &str) -> Result<(), Outcome> {
    match value {
        Value::String(s) if s.contains("${aws:iot:") => {
            Err(invalid(at, "a ${aws:iot:...} placeholder was not replaced by the service"))
        }
        Value::String(s) if s.contains('\0') => Err(invalid(at, "holds a NUL character")),
        Value::Array(list) => {
            let entry = |(i, v)| refuse_what_cannot_be_meant(v, &format!("{at}[{i}]"));
            list.iter().enumerate().try_for_each(entry)
        }
        Value::Object(map) => map.iter().try_for_each(|(name, v)| {
            let dot = if at.is_empty() { "" } else { "." };
            let name: String = name.chars().take(QUOTED).collect();
            refuse_what_cannot_be_meant(v, &format!("{at}{dot}{name}"))
        }),
        _ => Ok(()),
    }
}
