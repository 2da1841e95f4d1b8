//! The file formats of `otandem_core::formats` with the reader of TOML that they want, and `otandem convert`.

use serde_json::{Number, Value};

use otandem_core::formats::{self, ArrayStyle, Format, FormatError};

/// Reads `text` in any format.
///
/// # Errors
/// As [`formats::parse`].
pub fn parse(format: Format, text: &[u8]) -> Result<Value, FormatError> {
    formats::parse(format, text, read_toml)
}

/// What `text` says in one format, in another one.
///
/// # Errors
/// The text is not of the format `from`, or `to` cannot hold what it says.
pub fn convert(from: Format, to: Format, arrays: ArrayStyle, text: &[u8]) -> Result<Vec<u8>, FormatError> {
    formats::print(to, &parse(from, text)?, arrays)
}

/// The reader of TOML that the formats want.
///
/// # Errors
/// Where it is none, and why.
pub fn read_toml(text: &str) -> Result<Value, String> {
    let table = text.parse::<toml::Table>().map_err(|error| {
        let line =
            1 + text.bytes().take(error.span().map_or(0, |span| span.start)).filter(|b| *b == b'\n').count();
        format!("line {line}: {}", error.message().replace('\n', ", "))
    })?;
    as_json(toml::Value::Table(table))
}

/// Dates and times become text; there is no infinity in JSON.
fn as_json(value: toml::Value) -> Result<Value, String> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(integer) => Value::from(integer),
        toml::Value::Float(real) => {
            let number = Number::from_f64(real);
            Value::Number(
                number.ok_or_else(|| format!("{real} is no number that JSON has; use a finite one"))?,
            )
        }
        toml::Value::Boolean(yes) => Value::Bool(yes),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(elements) => {
            Value::Array(elements.into_iter().map(as_json).collect::<Result<_, _>>()?)
        }
        toml::Value::Table(members) => {
            let members = members.into_iter().map(|(key, member)| Ok((key, as_json(member)?)));
            Value::Object(members.collect::<Result<_, String>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn toml_is_read_as_json_has_it() {
        let text = "a = 1\nb = 1.5\nc = 'x'\nd = true\ne = 2024-07-04T10:00:00Z\nf = [1, { g = 2 }]\n[h.i]\nj = 07:32:00\n";
        let value = json!({
            "a": 1, "b": 1.5, "c": "x", "d": true, "e": "2024-07-04T10:00:00Z", "f": [1, {"g": 2}],
            "h": {"i": {"j": "07:32:00"}},
        });
        assert_eq!(parse(Format::Toml, text.as_bytes()), Ok(value));
        for (text, said) in [("a = inf", "inf"), ("a = ", "line 1"), ("a = 1\na = 2", "line 2")] {
            let error = parse(Format::Toml, text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("not TOML: ") && error.contains(said), "{error}");
        }
    }

    #[test]
    fn every_format_is_converted_to_every_other() {
        let value = json!({"a": 1, "b": {"c": "it's", "d": true}});
        let json = value.to_string();
        for from in Format::ALL {
            for to in Format::ALL {
                let arrays = ArrayStyle::Indexed;
                let Ok(text) = convert(Format::Json, from, arrays, json.as_bytes()) else { continue };
                let Ok(text) = convert(from, to, arrays, &text) else { continue };
                assert_eq!(parse(to, &text), Ok(value.clone()), "{from} to {to}");
            }
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("finite", |real| real.is_finite()).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        scalar.prop_recursive(4, 24, 4, |inner| {
            let list = prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from);
            let key = prop_oneof!["[a-z]{0,3}", any::<String>()];
            let object = prop::collection::btree_map(key, inner, 0..4);
            prop_oneof![list, object.prop_map(|members| Value::Object(members.into_iter().collect()))]
        })
    }

    proptest! {
        #[test]
        fn the_toml_that_is_written_is_read_back(members in prop::collection::btree_map(any::<String>(), values(), 0..4)) {
            let value = Value::Object(members.into_iter().collect());
            let text = formats::print(Format::Toml, &value, ArrayStyle::Bash).unwrap();
            prop_assert_eq!(parse(Format::Toml, &text), Ok(value), "{}", String::from_utf8_lossy(&text));
        }
    }
}
