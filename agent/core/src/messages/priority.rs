//! What a message file says of its place in the order.

use serde::Deserialize;
use serde_json::Value;

/// A message that goes ahead of those that have no priority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    /// Those with smaller numbers go first.
    pub priority: i64,
    /// Of all messages with the same slot only the newest goes ahead.
    pub slot: Option<String>,
}

/// Of a message that has a slot and no number.
const USUAL: i64 = 1;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    priority: Option<Value>,
    #[serde(default)]
    priority_slot: Option<Value>,
}

impl Ahead {
    /// Reads a message file as far as that: `priority`, a whole number, and `priority_slot`, a string or number. `None`: it has
    /// neither, or is no message.
    #[must_use]
    pub fn of(message: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_slice(message).ok()?;
        let slot = match file.priority_slot {
            Some(Value::String(text)) => Some(text),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let priority = match file.priority {
            None => slot.is_some().then_some(USUAL),
            Some(number) => number.as_i64(),
        };
        priority.map(|priority| Self { priority, slot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Order;
    use proptest::prelude::*;

    #[test]
    fn a_number_or_a_slot_goes_ahead_and_nothing_else() {
        let of = |text: &str| Ahead::of(text.as_bytes()).map(|a| (a.priority, a.slot));
        assert_eq!(of(r#"{"topic":"a","payload":1}"#), None);
        assert_eq!(of(r#"{"priority":-3,"payload":[1]}"#), Some((-3, None)));
        assert_eq!(of(r#"{"priority_slot":"x"}"#), Some((1, Some("x".into()))));
        assert_eq!(of(r#"{"priority_slot":0,"priority":7}"#), Some((7, Some("0".into()))));
        for none in [r#"{"priority":null}"#, r#"{"priority":"high","priority_slot":"x"}"#, "[1,2]x", "", "{"]
        {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn what_goes_ahead_comes_by_its_number_then_in_the_usual_order_and_before_all_others() {
        let place = |name: &str| Order::Lexical.place(name.into(), 0);
        let mut places = [
            place("b"),
            place("c").ahead(2),
            place("z").ahead(-1),
            place("a"),
            place("b").ahead(2),
            place("0").ahead(9).usual(),
        ];
        places.sort();
        let names: Vec<_> = places.iter().map(|p| (p.name().to_str().unwrap(), p.is_ahead())).collect();
        let ahead = [("z", true), ("b", true), ("c", true)];
        assert_eq!(names, [ahead, [("0", false), ("a", false), ("b", false)]].concat());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Ahead::of(&bytes);
        }
    }
}
