//! Booleans, numbers and strings as text without types, and which text is taken for which of them.

use serde_json::{Number, Value};

/// Booleans, numbers and strings as text; `None` for anything else.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Number(number) => Some(number_text(number)),
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// As JavaScript prints it (ECMA-262, Number::toString), which is what the files of chariotd have: `1` for 1.0,
/// `1e+21`, `0` for -0. Integers keep all of their digits.
fn number_text(number: &Number) -> String {
    let real = match (number.is_f64(), number.as_f64()) {
        (true, Some(real)) => real,
        _ => return number.to_string(),
    };
    let size = real.abs();
    if size == 0.0 {
        "0".to_owned()
    } else if (1e-6..1e21).contains(&size) {
        real.to_string()
    } else {
        // As JSON, but with a sign.
        let text = number.to_string();
        if text.contains("e-") || text.contains("e+") { text } else { text.replace('e', "e+") }
    }
}

/// What a text without types means: `true`, `false`, a number as JSON writes numbers, else a string. So `007`, `0x1f`,
/// `+5`, `Infinity` and a blank are strings, and so is an integer that no number holds exactly.
pub(super) fn typed(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    let integer = is_json_number(text.as_bytes())?;
    if integer {
        let exact = text.parse().map(|n: i64| Number::from(n)).ok();
        if let Some(exact) = exact.or_else(|| text.parse().map(|n: u64| Number::from(n)).ok()) {
            return Some(exact);
        }
    }
    let number = Number::from_f64(text.parse().ok()?)?;
    (!integer || number_text(&number) == text).then_some(number)
}

/// RFC 8259, section 6; `Some(true)` for one without fraction and exponent.
fn is_json_number(text: &[u8]) -> Option<bool> {
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let (whole, mut rest) = digits(text)?;
    if whole.len() > 1 && whole[0] == b'0' {
        return None;
    }
    let integer = rest.is_empty();
    if let Some(fraction) = rest.strip_prefix(b".") {
        rest = digits(fraction)?.1;
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
        let unsigned = exponent.strip_prefix(b"+").or_else(|| exponent.strip_prefix(b"-"));
        rest = digits(unsigned.unwrap_or(exponent))?.1;
    }
    rest.is_empty().then_some(integer)
}

/// At least one digit, and what follows.
fn digits(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (count > 0).then(|| text.split_at(count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_printed_as_javascript_prints_them() {
        for (number, printed) in [
            ("1", "1"),
            ("1.0", "1"),
            ("-64.2", "-64.2"),
            ("-0.0", "0"),
            ("1e3", "1000"),
            ("1e20", "100000000000000000000"),
            ("1e21", "1e+21"),
            ("-1.5e300", "-1.5e+300"),
            ("0.000001", "0.000001"),
            ("1e-7", "1e-7"),
            ("1.25e-9", "1.25e-9"),
            ("5e-324", "5e-324"),
            ("0.1", "0.1"),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
        ] {
            let value: Value = serde_json::from_str(number).unwrap();
            assert_eq!(text(&value).as_deref(), Some(printed), "{number}");
        }
    }

    #[test]
    fn text_is_a_number_only_where_json_has_it_so() {
        for (text, value) in [
            ("1", json!(1)),
            ("-64.2", json!(-64.2)),
            ("1e+21", json!(1e21)),
            ("1.50", json!(1.5)),
            ("1E3", json!(1000.0)),
            ("0", json!(0)),
            ("18446744073709551615", json!(u64::MAX)),
            ("100000000000000000000", json!(1e20)),
            ("true", json!(true)),
            ("false", json!(false)),
        ] {
            assert_eq!(typed(text), value);
        }
        for text in [
            "",
            " ",
            "007",
            "-",
            "-01",
            "+5",
            ".5",
            "5.",
            "1e",
            "1e+",
            "0x1F",
            "Infinity",
            "NaN",
            " 1",
            "1 ",
            "1e999",
            "True",
            "null",
            "12345678901234567890123",
            "1_000",
            "1.5.2",
        ] {
            assert_eq!(typed(text), json!(text));
        }
    }
}
