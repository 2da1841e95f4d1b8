//! `conditions` of a job document: on which devices it may run.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fields::{Fields, invalid, quoted};
use crate::update::Outcome;

/// What is known of this device, by the names that conditions use.
pub type Facts = BTreeMap<String, String>;

/// Conditions of one document, and values of one condition, at most.
const MOST: usize = 64;

/// The device's value for `key` must be one of `values`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Which fact; any case.
    pub key: String,
    /// At least one.
    pub values: Vec<String>,
}

impl Condition {
    /// Whether it holds.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, facts: &Facts) -> Result<(), Outcome> {
        let unmet = |why: String| Outcome::rejected(format!("a condition of the job is not met: {why}"));
        let found = facts.iter().find(|(key, _)| key.eq_ignore_ascii_case(&self.key));
        let Some((key, value)) = found else {
            let known: Vec<_> = facts.keys().map(String::as_str).collect();
            return Err(unmet(format!(
                "{} is not known of this device (known: {})",
                quoted(&self.key),
                known.join(", ")
            )));
        };
        if self.values.contains(value) {
            return Ok(());
        }
        let wanted: Vec<_> = self.values.iter().take(4).map(|v| quoted(v)).collect();
        Err(unmet(format!("{key} is {}, not {}", quoted(value), wanted.join(" or "))))
    }
}

/// Reads them; a member of another type than a list is not there.
pub(super) fn read(top: &Fields<'_>) -> Result<Vec<Condition>, Outcome> {
    let Some(given) = top.get("conditions") else { return Ok(vec![]) };
    // Somebody wanted fewer devices than all: what cannot be read is not passed over.
    let Value::Array(list) = given else { return Err(top.wrong("conditions", "not a list")) };
    if list.len() > MOST {
        return Err(top.wrong("conditions", &format!("more than {MOST}")));
    }
    list.iter().enumerate().map(|(i, value)| one(value, &format!("conditions[{i}]"))).collect()
}

fn one(value: &Value, at: &str) -> Result<Condition, Outcome> {
    let Value::Object(map) = value else { return Err(invalid(at, "not an object")) };
    let fields = Fields::at(map, at);
    let key = fields.required("key")?.to_owned();
    match fields.text("type") {
        None | Some("stringEqual") => {}
        Some(other) => {
            return Err(fields.wrong("type", &format!("{} is not stringEqual", quoted(other))));
        }
    }
    let Some(values) = fields.list("value") else { return Err(fields.wrong("value", "not a list")) };
    if values.is_empty() || values.len() > MOST {
        return Err(fields.wrong("value", &format!("not 1 to {MOST} values")));
    }
    let text = |(i, v): (usize, &Value)| {
        v.as_str().map(str::to_owned).ok_or_else(|| fields.wrong(&format!("value[{i}]"), "not a string"))
    };
    Ok(Condition { key, values: values.iter().enumerate().map(text).collect::<Result<_, _>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_holds_where_one_value_is_the_devices() {
        let facts = Facts::from([("thingName".into(), "t1".into())]);
        let condition = |key: &str, values: &[&str]| Condition {
            key: key.into(),
            values: values.iter().map(|v| (*v).into()).collect(),
        };
        assert_eq!(condition("thingname", &["t0", "t1"]).check(&facts), Ok(()));
        let why = condition("thingName", &["t0", "T1"]).check(&facts).unwrap_err();
        assert!(why.reason().contains("thingName is \"t1\", not \"t0\" or \"T1\""), "{why:?}");
        let why = condition("color", &["red"]).check(&facts).unwrap_err();
        assert!(why.reason().contains("\"color\" is not known"), "{why:?}");
    }
}
