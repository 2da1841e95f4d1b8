//! The shadow service: classic and named shadows, versions, deltas, and the refusals that a device meets.
//!
//! It serves as a [`Hook`](crate::Hook) on [`FILTER`]; what an operator changes comes from [`Shadows::change`] and is
//! pushed by whoever called it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::world::{Inbound, Outbound, To};

/// Topics of requests: those of answers match too and are passed over.
pub const FILTER: &str = "$aws/things/+/shadow/#";
/// Bytes of a document, without metadata.
const MAX_DOCUMENT: usize = 8 * 1024;
/// Objects inside each other below `desired` or `reported`.
const MAX_LEVELS: usize = 6;
const MAX_TOKEN: usize = 64;

/// One shadow.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shadow {
    /// What the device says.
    pub reported: Map<String, Value>,
    /// What is wanted of it.
    pub desired: Map<String, Value>,
    /// Grows with every change, also when it was deleted in between.
    pub version: u64,
    exists: bool,
}

/// All shadows, by what is before `/get` in their topics.
#[derive(Debug, Default)]
pub struct Shadows {
    all: BTreeMap<String, Shadow>,
}

struct Refusal(u64, &'static str);

impl Shadows {
    /// A shadow that exists.
    #[must_use]
    pub fn get(&self, thing: &str, name: Option<&str>) -> Option<&Shadow> {
        self.all.get(&prefix(thing, name)).filter(|shadow| shadow.exists)
    }

    /// Changes a shadow as an operator does, who names no version. To be pushed: topics and payloads.
    ///
    /// # Panics
    /// The service would refuse it.
    pub fn change(
        &mut self,
        thing: &str,
        name: Option<&str>,
        state: &Value,
        now: Duration,
    ) -> Vec<(String, Value)> {
        let prefix = prefix(thing, name);
        match self.update(&prefix, &json!({"state": state}), now) {
            Ok(said) => said,
            Err(Refusal(code, message)) => panic!("{code} {message}: {state}"),
        }
    }

    /// Serves a request; nothing for the answers of others.
    pub fn serve(&mut self, request: &Inbound) -> Vec<Outbound> {
        let Some((prefix, call)) = request.topic.rsplit_once('/').filter(|(prefix, _)| is_shadow(prefix))
        else {
            return vec![];
        };
        let body =
            if request.payload.is_empty() { Ok(json!({})) } else { serde_json::from_slice(&request.payload) };
        let body: Value = body.unwrap_or_default();
        let token = body["clientToken"].as_str().map(str::to_owned);
        let answer = match call {
            _ if !body.is_object() => Err(Refusal(400, "Payload contains invalid json")),
            _ if token.as_ref().is_some_and(|token| token.len() > MAX_TOKEN) => {
                Err(Refusal(400, "Invalid clientToken"))
            }
            "get" => self.answer(prefix, request.now),
            "update" => self.update(prefix, &body, request.now),
            "delete" => self.delete(prefix, request.now),
            _ => return vec![],
        };
        let said = answer.unwrap_or_else(|Refusal(code, message)| {
            let refusal = json!({"code": code, "message": message, "timestamp": request.now.as_secs()});
            vec![(format!("{}/rejected", request.topic), refusal)]
        });
        let outbound = said.into_iter().map(|(topic, mut payload)| {
            if let Some(token) = &token {
                payload["clientToken"] = token.as_str().into();
            }
            Outbound { topic, payload: payload.to_string().into(), to: To::Subscribers }
        });
        outbound.collect()
    }

    fn answer(&self, prefix: &str, now: Duration) -> Result<Vec<(String, Value)>, Refusal> {
        let shadow = self.all.get(prefix).filter(|shadow| shadow.exists);
        let shadow = shadow.ok_or(Refusal(404, "No shadow exists"))?;
        let mut state = json!({});
        for (name, half) in [("desired", &shadow.desired), ("reported", &shadow.reported)] {
            if !half.is_empty() {
                state[name] = json!(half);
            }
        }
        let delta = delta(&shadow.desired, &shadow.reported);
        if !delta.is_empty() {
            state["delta"] = Value::Object(delta);
        }
        let got = json!({"state": state, "version": shadow.version, "timestamp": now.as_secs()});
        Ok(vec![(format!("{prefix}/get/accepted"), got)])
    }

    fn update(&mut self, prefix: &str, body: &Value, now: Duration) -> Result<Vec<(String, Value)>, Refusal> {
        let state = &body["state"];
        if !state.is_object() {
            return Err(Refusal(400, "Missing required node: state"));
        }
        let known = self.all.get(prefix).cloned().unwrap_or_default();
        let mut after =
            if known.exists { known.clone() } else { Shadow { version: known.version, ..Shadow::default() } };
        for (name, half) in [("desired", &mut after.desired), ("reported", &mut after.reported)] {
            match state.get(name) {
                None => {}
                Some(Value::Null) => half.clear(),
                Some(Value::Object(update)) => {
                    check(update, 1)?;
                    overlay(half, update);
                }
                Some(_) => return Err(Refusal(400, "Desired and reported must be objects")),
            }
        }
        match &body["version"] {
            Value::Null => {}
            version if version.as_u64().is_none() => return Err(Refusal(400, "Invalid version")),
            version if version.as_u64() != Some(known.version) => {
                return Err(Refusal(409, "Version conflict"));
            }
            _ => {}
        }
        if json!({"desired": after.desired, "reported": after.reported}).to_string().len() > MAX_DOCUMENT {
            return Err(Refusal(413, "The payload exceeds the maximum size allowed"));
        }
        (after.version, after.exists) = (known.version + 1, true);
        let (version, timestamp) = (after.version, now.as_secs());
        let accepted = json!({"state": state, "version": version, "timestamp": timestamp});
        let mut said = vec![(format!("{prefix}/update/accepted"), accepted)];
        let delta = delta(&after.desired, &after.reported);
        if state.get("desired").is_some() && !delta.is_empty() {
            let delta = json!({"state": delta, "version": version, "timestamp": timestamp});
            said.push((format!("{prefix}/update/delta"), delta));
        }
        self.all.insert(prefix.to_owned(), after);
        Ok(said)
    }

    fn delete(&mut self, prefix: &str, now: Duration) -> Result<Vec<(String, Value)>, Refusal> {
        let shadow = self.all.get_mut(prefix).filter(|shadow| shadow.exists);
        let shadow = shadow.ok_or(Refusal(404, "No shadow exists"))?;
        let version = shadow.version;
        *shadow = Shadow { version: version + 1, ..Shadow::default() };
        let deleted = json!({"version": version, "timestamp": now.as_secs()});
        Ok(vec![(format!("{prefix}/delete/accepted"), deleted)])
    }
}

fn prefix(thing: &str, name: Option<&str>) -> String {
    let named = name.map(|name| format!("/name/{name}")).unwrap_or_default();
    format!("$aws/things/{thing}/shadow{named}")
}

/// Not `.../shadow/get` of an answer, nor the empty name.
fn is_shadow(prefix: &str) -> bool {
    let levels: Vec<_> = prefix.split('/').collect();
    match levels[..] {
        ["$aws", "things", _, "shadow"] => true,
        ["$aws", "things", _, "shadow", "name", name] => !name.is_empty(),
        _ => false,
    }
}

fn check(members: &Map<String, Value>, level: usize) -> Result<(), Refusal> {
    if level > MAX_LEVELS {
        return Err(Refusal(400, "JSON contains too many levels of nesting; maximum is 6"));
    }
    for value in members.values() {
        match value {
            Value::Object(members) => check(members, level + 1)?,
            Value::Array(elements) if elements.contains(&Value::Null) => {
                return Err(Refusal(400, "State contains an invalid node"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn overlay(base: &mut Map<String, Value>, update: &Map<String, Value>) {
    for (key, value) in update {
        match value {
            Value::Null => drop(base.remove(key)),
            Value::Object(members) => {
                let mut under = match base.remove(key) {
                    Some(Value::Object(under)) => under,
                    _ => Map::new(),
                };
                overlay(&mut under, members);
                base.insert(key.clone(), Value::Object(under));
            }
            other => drop(base.insert(key.clone(), other.clone())),
        }
    }
}

/// What is desired and not reported; lists whole.
fn delta(desired: &Map<String, Value>, reported: &Map<String, Value>) -> Map<String, Value> {
    let differs = |(key, desired): (&String, &Value)| match (desired, reported.get(key)) {
        (Value::Object(desired), Some(Value::Object(reported))) => {
            let inner = delta(desired, reported);
            (!inner.is_empty()).then(|| (key.clone(), Value::Object(inner)))
        }
        (desired, reported) => (reported != Some(desired)).then(|| (key.clone(), desired.clone())),
    };
    desired.iter().filter_map(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(shadows: &mut Shadows, call: &str, body: Value) -> Vec<(String, Value)> {
        let request = Inbound {
            thing: "t".into(),
            client_id: "t".into(),
            topic: format!("{}/{call}", prefix("t", None)),
            payload: body.to_string().into(),
            now: Duration::from_secs(5),
        };
        let said = shadows.serve(&request).into_iter();
        let shown = |out: Outbound| {
            let topic = out.topic.rsplit("/shadow/").next().unwrap_or_default().to_owned();
            (topic, serde_json::from_slice(&out.payload).unwrap())
        };
        said.map(shown).collect()
    }

    fn code(said: &[(String, Value)]) -> Option<u64> {
        said[0].1["code"].as_u64()
    }

    #[test]
    fn updates_are_merged_and_told_with_the_delta() {
        let mut shadows = Shadows::default();
        assert_eq!(code(&ask(&mut shadows, "get", json!({}))), Some(404));
        let said = ask(
            &mut shadows,
            "update",
            json!({"state": {"desired": {"a": {"b": 1, "c": [1]}}}, "clientToken": "x"}),
        );
        assert_eq!(said[0].0, "update/accepted");
        assert_eq!(
            (&said[1].0[..], &said[1].1["state"]),
            ("update/delta", &json!({"a": {"b": 1, "c": [1]}}))
        );
        assert_eq!((&said[0].1["clientToken"], &said[0].1["version"]), (&json!("x"), &json!(1)));
        let said = ask(&mut shadows, "update", json!({"state": {"reported": {"a": {"b": 1}}}, "version": 1}));
        assert_eq!(said.len(), 1, "nothing is desired by that");
        let got = &ask(&mut shadows, "get", json!({}))[0].1;
        assert_eq!((&got["state"]["delta"], &got["version"]), (&json!({"a": {"c": [1]}}), &json!(2)));
        ask(&mut shadows, "update", json!({"state": {"desired": {"a": {"b": null}}, "reported": null}}));
        let shadow = shadows.get("t", None).unwrap();
        assert_eq!((json!(shadow.desired), json!(shadow.reported)), (json!({"a": {"c": [1]}}), json!({})));
        ask(&mut shadows, "delete", json!({}));
        assert!(shadows.get("t", None).is_none());
        shadows.change("t", None, &json!({"reported": {}}), Duration::ZERO);
        assert_eq!(shadows.get("t", None).unwrap().version, 5);
        assert!(shadows.get("t", Some("other")).is_none());
    }

    #[test]
    fn what_the_service_refuses_changes_nothing() {
        let mut shadows = Shadows::default();
        ask(&mut shadows, "update", json!({"state": {"reported": {"a": 1}}}));
        let deep = json!({"1": {"2": {"3": {"4": {"5": {"6": {"7": 1}}}}}}});
        for (body, refusal) in [
            (json!([]), 400),
            (json!({}), 400),
            (json!({"state": {"reported": 1}}), 400),
            (json!({"state": {"reported": {"a": [null]}}}), 400),
            (json!({"state": {"reported": deep}}), 400),
            (json!({"state": {"reported": {"a": 2}}, "clientToken": "x".repeat(65)}), 400),
            (json!({"state": {"reported": {"a": 2}}, "version": "1"}), 400),
            (json!({"state": {"reported": {"a": 2}}, "version": 7}), 409),
            (json!({"state": {"reported": {"a": "x".repeat(9000)}}}), 413),
        ] {
            assert_eq!(code(&ask(&mut shadows, "update", body.clone())), Some(refusal), "{body}");
        }
        assert_eq!(shadows.get("t", None).unwrap().reported["a"], 1);
        assert_eq!(ask(&mut shadows, "get/accepted", json!({})), []);
    }
}
