use super::*;
use proptest::prelude::*;
use serde_json::json;

fn no_toml(_: &str) -> Result<Value, String> {
    Err("no reader of TOML here".into())
}

fn read(format: Format, text: &[u8]) -> Result<Value, FormatError> {
    parse(format, text, no_toml)
}

#[test]
fn formats_are_named_in_any_case() {
    for format in Format::ALL {
        assert_eq!(format.name().parse(), Ok(format));
        assert_eq!(format.name().to_lowercase().parse(), Ok(format));
    }
    assert!("yaml".parse::<Format>().unwrap_err().to_string().contains("PLAINTEXT"));
    assert_eq!("indexed".parse(), Ok(ArrayStyle::Indexed));
    assert!("posix".parse::<ArrayStyle>().is_err());
}

#[test]
fn json_is_compact_and_without_null_members() {
    let value = json!({"b": [1, null, {"n": null}], "a": {"n": null, "x": 1.5}});
    assert_eq!(print(Format::Json, &value, ArrayStyle::Bash).unwrap(), br#"{"a":{"x":1.5},"b":[1,null,{}]}"#);
}

#[test]
fn plaintext_is_the_string_and_nothing_else() {
    let text = "as it is\n'\u{0}".to_owned();
    let value = Value::String(text.clone());
    assert_eq!(print(Format::Plaintext, &value, ArrayStyle::Bash).unwrap(), text.as_bytes());
    assert_eq!(read(Format::Plaintext, text.as_bytes()).unwrap(), value);
    for other in [json!({}), json!(1), json!(null), json!([])] {
        assert!(print(Format::Plaintext, &other, ArrayStyle::Bash).is_err());
    }
}

#[test]
fn what_is_too_large_or_no_text_is_refused() {
    for format in Format::ALL {
        assert_eq!(read(format, &vec![b' '; MAX_TEXT + 1]), Err(FormatError::TooLarge(format)));
        assert_eq!(read(format, b"ab\xff"), Err(FormatError::NotUtf8 { format, at: 2 }));
    }
    let long = json!("x".repeat(MAX_TEXT));
    assert_eq!(print(Format::Json, &long, ArrayStyle::Bash), Err(FormatError::TooLarge(Format::Json)));
    assert!(print(Format::Plaintext, &long, ArrayStyle::Bash).is_ok());
    let error = read(Format::Json, b"{\"a\":\n1,}").unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
}

/// Nothing that a format without types would read back as something else.
fn distinguishable() -> impl Strategy<Value = Value> {
    let text = "[ -~\u{80}-\u{2ff}\n\t]{0,8}";
    let scalar = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Few digits: the reader of JSON takes the nearest number only for those.
        any::<i32>().prop_map(|n| json!(f64::from(n) + 0.25)),
        text.prop_filter("looks like another type", |text| scalar::typed(text).is_string())
            .prop_map(Value::from),
    ];
    let list = prop::collection::vec(scalar.clone(), 0..4).prop_map(Value::from);
    let leaf = prop_oneof![4 => scalar, 1 => list];
    let object = |of: BoxedStrategy<Value>, from: usize| {
        prop::collection::btree_map("[a-z][A-Za-z0-9]{0,4}", of, from..5)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    };
    let inner = leaf.prop_recursive(3, 16, 4, move |inner| object(inner.boxed(), 1));
    object(inner.boxed(), 0)
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(value in distinguishable()) {
        for (format, arrays) in [
            (Format::Json, ArrayStyle::Bash),
            (Format::Shell, ArrayStyle::Bash),
            (Format::Shell, ArrayStyle::Indexed),
            (Format::Dotenv, ArrayStyle::Bash),
        ] {
            match print(format, &value, arrays) {
                Ok(text) => prop_assert_eq!(read(format, &text), Ok(value.clone()), "{}", String::from_utf8_lossy(&text)),
                Err(error) => prop_assert!(format == Format::Dotenv && value.to_string().contains("\\n"), "{}", error),
            }
        }
    }

    /// The reading of chariotd's way to write quotes must not spoil ours.
    #[test]
    fn values_of_quotes_and_backslashes_are_read_back(
        texts in prop::collection::vec("['\\\\ \n=(#a)]{0,6}", 1..5),
        list in prop::collection::vec("['\\\\ \n=(#a)]{0,4}", 0..4),
    ) {
        let mut members: serde_json::Map<_, _> =
            texts.iter().enumerate().map(|(at, text)| (format!("v{at}"), json!(text))).collect();
        members.insert("l".into(), json!(list));
        let value = Value::Object(members);
        let text = print(Format::Shell, &value, ArrayStyle::Bash).unwrap();
        prop_assert_eq!(read(Format::Shell, &text), Ok(value));
    }

    /// Whatever is read can be printed, and then reads the same: a file does not change by being rewritten.
    #[test]
    fn what_is_read_stays_what_it_is(text in "([a-c_]{1,4}=[-'\"\\\\( )a1e.#\n]{0,6}\n?){0,4}") {
        for format in [Format::Shell, Format::Dotenv] {
            let Ok(value) = read(format, text.as_bytes()) else { continue };
            let Ok(printed) = print(format, &value, ArrayStyle::Indexed) else { continue };
            let again = read(format, &printed).unwrap();
            let twice = print(format, &again, ArrayStyle::Indexed).unwrap();
            prop_assert_eq!(String::from_utf8(twice), String::from_utf8(printed));
        }
    }

    #[test]
    fn no_bytes_end_the_readers(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[a_='\"\\\\()#; \r\n$1.-]{0,40}") {
        for format in Format::ALL {
            let _ = read(format, &bytes);
            let _ = read(format, text.as_bytes());
        }
    }
}
