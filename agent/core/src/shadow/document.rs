//! A shadow document as far as it is known here, and what is to be changed of it.

use serde_json::{Map, Value, json};

use super::merge::{DELETE, EmptyList};
use crate::gather::Gather as _;

/// Bytes of a document at most, without its metadata.
pub const MAX_DOCUMENT: usize = 8 * 1024;

/// The two halves of a shadow, or of an update of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Halves {
    pub(super) reported: Map<String, Value>,
    pub(super) desired: Map<String, Value>,
}

impl Halves {
    /// The `state` of a message; what is no object is nothing.
    pub(super) fn of(state: &Value) -> Self {
        let half = |name: &str| state[name].as_object().cloned().unwrap_or_default();
        Self { reported: half("reported"), desired: half("desired") }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.reported.is_empty() && self.desired.is_empty()
    }

    /// As `state` of an update.
    pub(super) fn to_state(&self) -> Value {
        let mut state = Map::new();
        for (name, half) in [("reported", &self.reported), ("desired", &self.desired)] {
            if !half.is_empty() {
                state.insert(name.into(), Value::Object(half.clone()));
            }
        }
        Value::Object(state)
    }

    /// The document after `update`.
    pub(super) fn overlay(&mut self, update: &Self) {
        overlay_members(&mut self.reported, &update.reported);
        overlay_members(&mut self.desired, &update.desired);
    }

    /// Bytes of the document.
    pub(super) fn size(&self) -> usize {
        json!({"reported": self.reported, "desired": self.desired}).to_string().len()
    }

    /// Adds an update that comes after this one, if the two are the same as one after the other.
    pub(super) fn compose(&mut self, later: &Self) -> bool {
        let composes = |one: &Map<String, Value>, other: &Map<String, Value>| {
            other.iter().all(|(key, later)| one.get(key).is_none_or(|first| is_composable(first, later)))
        };
        if !composes(&self.reported, &later.reported) || !composes(&self.desired, &later.desired) {
            return false;
        }
        compose_members(&mut self.reported, &later.reported);
        compose_members(&mut self.desired, &later.desired);
        true
    }
}

/// What an object means depends on what is under it: put on a value or on nothing it is not the same update any more.
fn is_composable(first: &Value, later: &Value) -> bool {
    match (first, later) {
        (Value::Object(first), Value::Object(later)) => {
            later.iter().all(|(key, later)| first.get(key).is_none_or(|first| is_composable(first, later)))
        }
        (_, Value::Object(_)) => false,
        _ => true,
    }
}

fn compose_members(first: &mut Map<String, Value>, later: &Map<String, Value>) {
    for (key, later) in later {
        match (first.get_mut(key), later) {
            (Some(Value::Object(first)), Value::Object(later)) => compose_members(first, later),
            _ => {
                first.insert(key.clone(), later.clone());
            }
        }
    }
}

/// As the service does it: a null removes, and nothing else does.
pub(super) fn overlay_members(base: &mut Map<String, Value>, update: &Map<String, Value>) {
    for (key, value) in update {
        match value {
            Value::Null => {
                base.remove(key);
            }
            Value::Object(members) => {
                let under = base.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
                if !under.is_object() {
                    *under = Value::Object(Map::new());
                }
                if let Value::Object(under) = under {
                    overlay_members(under, members);
                }
            }
            other => {
                base.insert(key.clone(), other.clone());
            }
        }
    }
}

/// `update` as the service takes it: whatever deletes is a null, and there are no nulls in lists.
pub(super) fn as_patch(update: &Value, empty: EmptyList) -> Value {
    match update {
        Value::Object(members) => {
            Value::Object(members.iter().map(|(key, v)| (key.clone(), as_patch(v, empty))).gather())
        }
        Value::String(text) if text == DELETE => Value::Null,
        Value::Array(elements) if elements.is_empty() && empty == EmptyList::Deletes => Value::Null,
        Value::Array(elements) => {
            let kept = elements.iter().filter_map(|e| super::merge::merge(None, e, empty));
            Value::Array(kept.collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reported(value: Value) -> Halves {
        Halves::of(&json!({"reported": value}))
    }

    #[test]
    fn what_deletes_is_a_null_on_the_wire_but_not_in_lists() {
        for (update, patch) in [
            (json!("DELETE"), json!(null)),
            (json!({"a": "DELETE", "b": {"c": null}}), json!({"a": null, "b": {"c": null}})),
            (json!({"a": [1, null, "DELETE", []]}), json!({"a": [1, []]})),
        ] {
            assert_eq!(as_patch(&update, EmptyList::Value), patch, "{update}");
        }
        assert_eq!(as_patch(&json!({"a": []}), EmptyList::Deletes), json!({"a": null}));
    }

    #[test]
    fn an_object_after_a_deletion_is_not_merged_with_it() {
        assert!(!reported(json!({"a": null})).compose(&reported(json!({"a": {"b": 1}}))));
        assert!(!reported(json!({"a": {"c": 1}})).compose(&reported(json!({"a": {"c": {"b": 1}}}))));
        assert!(reported(json!({"a": {"b": 1}})).compose(&reported(json!({"a": null}))));
    }

    fn patch() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), (0..3i64).prop_map(Value::from)];
        let inner = leaf.prop_recursive(3, 12, 3, |inner| {
            prop::collection::btree_map("[ab]", inner, 0..3)
                .prop_map(|m| Value::Object(m.into_iter().collect()))
        });
        prop::collection::btree_map("[ab]", inner, 0..3).prop_map(|m| Value::Object(m.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn two_updates_in_one_are_the_same_as_one_after_the_other(base in patch(), one in patch(), two in patch()) {
            let (mut each, mut both) = (Halves::default(), Halves::default());
            each.overlay(&reported(base.clone()));
            both.overlay(&reported(base));
            let mut first = reported(one);
            let second = reported(two);
            each.overlay(&first);
            each.overlay(&second);
            if first.compose(&second) {
                both.overlay(&first);
                prop_assert_eq!(both, each);
            }
        }
    }
}
