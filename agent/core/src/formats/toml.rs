//! TOML, written. A printer for values of JSON is a page; the reader is a crate that the daemon has.

use serde_json::{Map, Value};

use super::{Format, FormatError, Step, Way};

/// Values first, then a table for each object. Null members are left out.
pub(super) fn print(value: &Value) -> Result<String, FormatError> {
    let mut way = Way::new(Format::Toml);
    let Value::Object(members) = value else {
        return Err(way.refusal("only an object is a file of TOML"));
    };
    let mut text = String::new();
    table(members, &mut String::new(), &mut text, &mut way)?;
    Ok(text)
}

/// The members of the table `name`, then its tables.
fn table<'a>(
    members: &'a Map<String, Value>,
    name: &mut String,
    text: &mut String,
    way: &mut Way<'a>,
) -> Result<(), FormatError> {
    for (key, member) in members {
        if !(member.is_null() || member.is_object()) {
            push(text, &[&quoted_key(key), " = "], way)?;
            way.enter(Step::Key(key))?;
            inline(member, text, way)?;
            way.leave();
            text.push('\n');
        }
    }
    for (key, member) in members {
        let Value::Object(members) = member else { continue };
        let before = name.len();
        name.push_str(if before == 0 { "" } else { "." });
        name.push_str(&quoted_key(key));
        push(text, &[if text.is_empty() { "" } else { "\n" }, "[", name, "]\n"], way)?;
        way.enter(Step::Key(key))?;
        table(members, name, text, way)?;
        way.leave();
        name.truncate(before);
    }
    Ok(())
}

/// A value where it stands on one line.
fn inline<'a>(value: &'a Value, text: &mut String, way: &mut Way<'a>) -> Result<(), FormatError> {
    match value {
        Value::Null => Err(way.refusal("there is no null in a list of TOML")),
        Value::Number(number) if number.is_u64() && !number.is_i64() => {
            Err(way.refusal("integers of TOML have 63 bits and a sign"))
        }
        Value::Bool(_) | Value::Number(_) => push(text, &[&value.to_string()], way),
        Value::String(value) => push(text, &[&quoted(value)], way),
        Value::Array(elements) => {
            text.push('[');
            for (at, element) in elements.iter().enumerate() {
                text.push_str(if at == 0 { "" } else { ", " });
                way.enter(Step::Index(at))?;
                inline(element, text, way)?;
                way.leave();
            }
            push(text, &["]"], way)
        }
        Value::Object(members) => {
            text.push('{');
            for (at, (key, member)) in members.iter().filter(|(_, m)| !m.is_null()).enumerate() {
                push(text, &[if at == 0 { " " } else { ", " }, &quoted_key(key), " = "], way)?;
                way.enter(Step::Key(key))?;
                inline(member, text, way)?;
                way.leave();
            }
            push(text, &[" }"], way)
        }
    }
}

/// Long keys of many tables in each other must not grow without limit.
fn push(text: &mut String, parts: &[&str], way: &Way<'_>) -> Result<(), FormatError> {
    parts.iter().for_each(|part| text.push_str(part));
    if text.len() > super::MAX_TEXT { Err(FormatError::TooLarge(way.format)) } else { Ok(()) }
}

fn quoted_key(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if bare { key.to_owned() } else { quoted(key) }
}

/// The escapes of JSON are among those of TOML, which also wants one for DEL.
fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_become_tables_behind_the_values() {
        let value = json!({
            "z": 1, "b": {"c": "x", "d": {"e": [1, 2.5, "a\"\u{7f}\n"], "n": null}, "": {}},
            "list": [{"k": 1, "n": null}, {}], "a key": true, "nothing": null, "f": 1.0,
        });
        let text = "\"a key\" = true\nf = 1.0\nlist = [{ k = 1 }, { }]\nz = 1\n\n[b]\nc = \"x\"\n\n[b.\"\"]\n\n[b.d]\n\
                    e = [1, 2.5, \"a\\\"\\u007f\\n\"]\n";
        assert_eq!(print(&value).unwrap(), text);
        assert_eq!(print(&json!({})).unwrap(), "");
    }

    #[test]
    fn what_toml_has_no_form_for_is_named() {
        for (value, path) in [
            (json!([1]), "$"),
            (json!({"a": {"b": [1, null]}}), "$.a.b[1]"),
            (json!({"a b": u64::MAX}), "$[\"a b\"]"),
        ] {
            let FormatError::NoPlace { path: found, .. } = print(&value).unwrap_err() else {
                panic!("{value}")
            };
            assert_eq!(found, path);
        }
    }
}
