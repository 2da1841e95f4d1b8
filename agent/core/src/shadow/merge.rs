//! Merging and comparing settings by the rules of the shadow service.
//!
//! Objects are merged member by member, everything else is replaced as a whole, lists too. A null deletes, and so does
//! the text `DELETE`, for formats that have no null; on request also an empty list. Numbers are equal if their values
//! are, so that 1 and 1.0 are no difference: formats without types give back one for the other.

use serde_json::{Map, Value};

use crate::gather::Gather as _;

/// The text that deletes as null does.
pub const DELETE: &str = "DELETE";

/// What an empty list in an update means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EmptyList {
    /// A list without elements.
    #[default]
    Value,
    /// What it is for is deleted.
    Deletes,
}

impl EmptyList {
    /// Whether `value` says that what it is for is to go.
    fn deletes(self, value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::String(text) => text == DELETE,
            Value::Array(elements) => elements.is_empty() && self == Self::Deletes,
            _ => false,
        }
    }
}

/// `base` after `update`; `None` where nothing is left because the whole of it is deleted. Deleting what is not there
/// changes nothing. In a list, elements that delete are left out of it.
#[must_use]
pub fn merge(base: Option<Value>, update: &Value, empty: EmptyList) -> Option<Value> {
    if empty.deletes(update) {
        return None;
    }
    match update {
        Value::Object(updates) => {
            let mut members = match base {
                Some(Value::Object(members)) => members,
                _ => Map::new(),
            };
            for (key, update) in updates {
                if let Some(merged) = merge(members.remove(key), update, empty) {
                    members.insert(key.clone(), merged);
                }
            }
            Some(Value::Object(members))
        }
        Value::Array(elements) => {
            Some(Value::Array(elements.iter().filter_map(|element| merge(None, element, empty)).collect()))
        }
        other => Some(other.clone()),
    }
}

/// The update that makes `new` of `old`: members that are gone as null, lists whole; `None` if they are the same.
#[must_use]
pub fn difference(old: Option<&Value>, new: Option<&Value>) -> Option<Value> {
    match (old, new) {
        (None, None) => None,
        (Some(_), None) => Some(Value::Null),
        (Some(old), Some(new)) if same(old, new) => None,
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
            let changed = |(key, new)| Some((String::clone(key), difference(old.get(key), Some(new))?));
            Some(Value::Object(gone.chain(new.iter().filter_map(changed)).gather()))
        }
        (_, Some(new)) => Some(new.clone()),
    }
}

/// Whether two values are equal, numbers by their value.
#[must_use]
pub fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => one == other,
    }
}

/// `value` with only those of its members that `keys` names; all of it without keys. What is no object has no members,
/// so nothing of it is left.
#[must_use]
pub fn restrict(value: &Value, keys: Option<&[String]>) -> Option<Value> {
    let Some(keys) = keys else { return Some(value.clone()) };
    let members = value.as_object()?.iter().filter(|(key, _)| keys.contains(key));
    Some(Value::Object(members.map(|(key, member)| (key.clone(), member.clone())).gather()))
}

/// Whether any of the members that `keys` names has changed; without keys, whether anything has.
#[must_use]
pub fn changed(old: Option<&Value>, new: Option<&Value>, keys: Option<&[String]>) -> bool {
    let differ = |old: Option<&Value>, new: Option<&Value>| difference(old, new).is_some();
    match keys {
        None => differ(old, new),
        Some(keys) => {
            let member = |of: Option<&'_ Value>, key: &str| of.and_then(|value| value.get(key)).cloned();
            keys.iter().any(|key| differ(member(old, key).as_ref(), member(new, key).as_ref()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn keys(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn updates_are_merged_as_the_shadow_service_does() {
        let gone = Value::Null;
        for (base, update, merged) in [
            (json!({"a": 1}), json!({"b": 2}), json!({"a": 1, "b": 2})),
            (json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": 3}}), json!({"a": {"b": 3, "c": 2}})),
            (json!({"a": [1, 2, 3]}), json!({"a": [4]}), json!({"a": [4]})),
            (json!({"a": 1, "b": 2}), json!({"a": null}), json!({"b": 2})),
            (json!({"a": 1, "b": 2}), json!({"a": "DELETE"}), json!({"b": 2})),
            (json!({"a": {"b": 1}}), json!({"a": {"b": "DELETE"}}), json!({"a": {}})),
            (json!({"a": 1}), json!({"b": null, "c": {"d": null}}), json!({"a": 1, "c": {}})),
            (json!({"a": 1}), json!({"a": {"b": 2, "c": null}}), json!({"a": {"b": 2}})),
            (json!({"a": {"b": 1}}), json!({"a": 2}), json!({"a": 2})),
            (json!({"a": 1}), json!({"a": [1, null, "DELETE", {"b": null}]}), json!({"a": [1, {}]})),
            (json!({"a": 1}), json!({"a": []}), json!({"a": []})),
            (json!({"a": 1}), json!({}), json!({"a": 1})),
            (json!({"a": 1}), json!("text"), json!("text")),
            (json!({"a": 1}), json!(null), gone.clone()),
            (json!({"a": 1}), json!("DELETE"), gone),
        ] {
            let found = merge(Some(base.clone()), &update, EmptyList::Value);
            assert_eq!(found.unwrap_or_default(), merged, "{base} and {update}");
        }
        assert_eq!(merge(None, &json!({"a": null, "b": 1}), EmptyList::Value), Some(json!({"b": 1})));
        assert_eq!(merge(None, &json!(null), EmptyList::Value), None);
    }

    #[test]
    fn an_empty_list_deletes_where_it_is_said_to() {
        let base = Some(json!({"a": [1], "b": {"c": 1}, "d": 1}));
        let update = json!({"a": [], "b": {"c": []}, "e": [[], 1], "f": []});
        let deleting = merge(base.clone(), &update, EmptyList::Deletes);
        assert_eq!(deleting, Some(json!({"b": {}, "d": 1, "e": [1]})));
        let plain = merge(base, &update, EmptyList::Value);
        assert_eq!(plain, Some(json!({"a": [], "b": {"c": []}, "d": 1, "e": [[], 1], "f": []})));
    }

    #[test]
    fn differences_name_what_is_gone_and_take_lists_whole() {
        for (old, new, update) in [
            (json!({"a": 1}), json!({"a": 1}), None),
            (json!({"a": 1}), json!({"a": 1.0}), None),
            (json!({"a": [1, {"b": 2}]}), json!({"a": [1.0, {"b": 2.0}]}), None),
            (json!({"a": 1}), json!({"a": "1"}), Some(json!({"a": "1"}))),
            (json!({"a": 1, "b": 2}), json!({"b": 3}), Some(json!({"a": null, "b": 3}))),
            (json!({"a": [1, 2]}), json!({"a": [1, 3]}), Some(json!({"a": [1, 3]}))),
            (json!({"a": {"b": 1, "c": 1}}), json!({"a": {"c": 1}}), Some(json!({"a": {"b": null}}))),
            (json!({"a": {"b": 1}}), json!({"a": 1}), Some(json!({"a": 1}))),
            (json!({"a": {}}), json!({}), Some(json!({"a": null}))),
            (json!("x"), json!("y"), Some(json!("y"))),
        ] {
            assert_eq!(difference(Some(&old), Some(&new)), update, "{old} to {new}");
        }
        assert_eq!(difference(None, Some(&json!({}))), Some(json!({})));
        assert_eq!(difference(Some(&json!(1)), None), Some(Value::Null));
        assert_eq!(difference(None, None), None);
        assert!(!same(&json!(u64::MAX), &json!(u64::MAX - 1)));
    }

    #[test]
    fn keys_limit_what_is_written_and_what_notifies() {
        let old = json!({"a": 1, "b": {"c": 1}, "t": 5});
        let new = json!({"a": 1, "b": {"c": 2}, "t": 6});
        assert_eq!(restrict(&new, None), Some(new.clone()));
        assert_eq!(restrict(&new, Some(&keys(&["b", "x"]))), Some(json!({"b": {"c": 2}})));
        assert_eq!(restrict(&new, Some(&[])), Some(json!({})));
        assert_eq!(restrict(&json!("text"), Some(&keys(&["b"]))), None);
        for (named, notifies) in
            [(&["a"][..], false), (&["b"], true), (&["a", "t"], true), (&["x"], false), (&[], false)]
        {
            assert_eq!(changed(Some(&old), Some(&new), Some(&keys(named))), notifies, "{named:?}");
        }
        assert!(changed(Some(&old), Some(&new), None));
        assert!(!changed(Some(&old), Some(&old), None));
        assert!(changed(None, Some(&new), Some(&keys(&["a"]))));
        assert!(changed(Some(&old), None, Some(&keys(&["a"]))));
    }

    /// What a shadow can hold: no null, and nothing that means one.
    fn settings() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0..3i64).prop_map(Value::from),
            "[ab]{0,2}".prop_map(Value::from)
        ];
        scalar.prop_recursive(3, 20, 4, |inner| {
            let list = prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from);
            let object = prop::collection::btree_map("[a-d]", inner, 0..4);
            prop_oneof![list, object.prop_map(|members| Value::Object(members.into_iter().collect()))]
        })
    }

    proptest! {
        #[test]
        fn a_difference_merged_gives_the_new_value(old in prop::option::of(settings()), new in prop::option::of(settings())) {
            match difference(old.as_ref(), new.as_ref()) {
                None => prop_assert_eq!(old, new),
                Some(update) => {
                    prop_assert_ne!(&old, &new);
                    prop_assert_eq!(merge(old, &update, EmptyList::Value), new);
                }
            }
        }

        #[test]
        fn merging_an_update_again_changes_nothing(base in settings(), update in settings()) {
            let once = merge(Some(base), &update, EmptyList::Deletes);
            prop_assert_eq!(&merge(once.clone(), &update, EmptyList::Deletes), &once);
        }
    }
}
