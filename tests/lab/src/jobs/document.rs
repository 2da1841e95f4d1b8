//! Placeholders of a job document: replaced each time that the document is handed out, as AWS does.

use std::time::Duration;

use serde_json::Value;

use super::Sign;

/// The plain form and the form whose URL is percent-encoded.
const PLACEHOLDERS: [&str; 2] = ["${aws:iot:s3-presigned-url:", "${aws:iot:s3-presigned-url-v2:"];

/// The document with every presigned-URL placeholder replaced by a URL signed now. Other placeholders stay: the
/// device has to refuse them.
pub fn hand_out(document: &Value, valid_for: Duration, sign: Sign<'_>) -> Value {
    match document {
        Value::String(text) => Value::String(replace(text, valid_for, sign)),
        Value::Array(items) => items.iter().map(|item| hand_out(item, valid_for, sign)).collect(),
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(k, v)| (k.clone(), hand_out(v, valid_for, sign))).collect())
        }
        other => other.clone(),
    }
}

fn replace(text: &str, valid_for: Duration, sign: Sign<'_>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let inside =
            PLACEHOLDERS.iter().find_map(|p| from.strip_prefix(p)).and_then(|url| url.split_once('}'));
        match inside {
            Some((url, after)) => {
                out.push_str(&sign(url, valid_for));
                rest = after;
            }
            None => {
                out.push_str("${");
                rest = &from[2..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn both_forms_are_signed_anew_and_others_stay() {
        let mut serial = 0;
        let mut sign = |url: &str, d: Duration| {
            serial += 1;
            format!("<{url}|{}|{serial}>", d.as_secs())
        };
        let document = json!({"a": "${aws:iot:s3-presigned-url:https://s3/b/k}",
            "b": ["x ${aws:iot:s3-presigned-url-v2:https://b.s3/k} y"], "c": "${aws:iot:parameter:p}", "d": 1});
        let out = hand_out(&document, Duration::from_secs(60), &mut sign);
        assert_eq!(
            out,
            json!({"a": "<https://s3/b/k|60|1>", "b": ["x <https://b.s3/k|60|2> y"],
            "c": "${aws:iot:parameter:p}", "d": 1})
        );
    }

    proptest! {
        #[test]
        fn any_text_is_handed_out(text in "(\\PC|\\$\\{aws:iot:s3-presigned-url:|\\}){0,30}") {
            let out = replace(&text, Duration::ZERO, &mut |url, _| url.to_owned());
            if !text.contains("${aws:iot:s3") {
                prop_assert_eq!(out, text);
            }
        }
    }
}
