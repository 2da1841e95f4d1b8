use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn parse(text: &str) -> Result<Message, Refusal> {
    read(text.as_bytes(), &Rules::default())
}

fn wire(payload: &str) -> String {
    let message = parse(&format!("{{\"topic\":\"t\",\"payload\":{payload}}}")).unwrap();
    String::from_utf8(message.payload).unwrap()
}

#[test]
fn the_message_of_the_manual_is_published_as_it_stands() {
    let file = r#"{ "topic": "mytopic/foo", "payload": { "key": "value", "key2": 2 } }"#;
    let expected = Message {
        topic: "mytopic/foo".into(),
        payload: br#"{"key":"value","key2":2}"#.to_vec(),
        qos: Qos::AtLeastOnce,
        retain: false,
    };
    assert_eq!(parse(file), Ok(expected));
}

#[test]
fn every_kind_of_payload_has_its_form_on_the_wire() {
    for (payload, expected) in [
        (
            "{ \"b\" : [ 1.0 , 1e3, 12345678901234567890 ],\n \"a\": \"x \\\" y\\\\\" }",
            "{\"b\":[1.0,1e3,12345678901234567890],\"a\":\"x \\\" y\\\\\"}",
        ),
        ("[ ]", "[]"),
        ("\"pl\\u00e4in  text\"", "pläin  text"),
        ("\"\"", ""),
        ("-12.50", "-12.50"),
        ("true", "true"),
        ("false", "false"),
        ("null", "null"),
    ] {
        assert_eq!(wire(payload), expected, "{payload}");
    }
}

#[test]
fn what_is_no_message_is_refused_with_what_is_wrong() {
    for (file, why) in [
        ("", "empty"),
        (" \n", "empty"),
        ("{", "no JSON"),
        ("{\"topic\":\"t\",\"payload\":1} x", "no JSON"),
        ("{\"topic\":\"t\",\"payload\":\"\\ud800\"}", "no JSON"),
        ("[\"t\", 1]", "no JSON object"),
        ("3", "no JSON object"),
        ("x", "no JSON"),
        ("{\"payload\":1}", "\"topic\" is missing"),
        ("{\"topic\":\"t\"}", "\"payload\" is missing"),
        ("{\"topic\":null,\"payload\":1}", "\"topic\" is null: use a string"),
        ("{\"topic\":42,\"payload\":1}", "use a string"),
        ("{\"topic\":\"t\",\"topic\":\"u\",\"payload\":1}", "duplicate field"),
        ("{\"topic\":\"t\",\"payload\":1,\"qos\":2}", "no QoS 2"),
        ("{\"topic\":\"t\",\"payload\":1,\"qos\":5}", "use 0 or 1"),
        ("{\"topic\":\"t\",\"payload\":1,\"retain\":1}", "use true or false"),
        ("{\"topic\":\"t\",\"payload\":1,\"compress\":\"gzip\"}", "not supported"),
        ("{\"topic\":\"\",\"payload\":1}", "is empty"),
        ("{\"topic\":\"a/#\",\"payload\":1}", "wildcard"),
        ("{\"topic\":\"+\",\"payload\":1}", "wildcard"),
        ("{\"topic\":\"a\\u0000b\",\"payload\":1}", "NUL"),
        ("{\"topic\":\"$aws/things/x/shadow/update\",\"payload\":1}", "reserved-topics"),
        ("{\"topic\":\"1/2/3/4/5/6/7/8/9\",\"payload\":1}", "7 slashes"),
    ] {
        let refusal = parse(file).expect_err(file).to_string();
        assert!(refusal.contains(why), "{file}: {refusal}");
    }
    let broken = read(b"{\"topic\":\"\xff\",\"payload\":1}", &Rules::default()).unwrap_err();
    assert!(matches!(broken, Refusal::NotJson(_)), "{broken}");
}

#[test]
fn qos_and_retain_are_taken_and_other_members_are_not_looked_at() {
    let message = parse(r#"{"topic":"t","payload":1,"qos":0,"retain":true,"priority":3}"#).unwrap();
    assert_eq!((message.qos, message.retain), (Qos::AtMostOnce, true));
    assert_eq!(parse(r#"{"topic":"t","payload":1,"qos":"1","retain":null}"#).unwrap().qos, Qos::AtLeastOnce);
}

#[test]
fn limits_are_those_of_the_broker_to_the_byte() {
    let with = |topic: usize, payload: usize| {
        parse(&format!("{{\"topic\":\"{}\",\"payload\":\"{}\"}}", "t".repeat(topic), "p".repeat(payload)))
    };
    assert!(with(MAX_TOPIC, MAX_PAYLOAD).is_ok());
    assert!(matches!(with(MAX_TOPIC + 1, 1), Err(Refusal::Topic { .. })));
    assert_eq!(with(1, MAX_PAYLOAD + 1), Err(Refusal::Payload(MAX_PAYLOAD + 1)));
    assert!(parse("{\"topic\":\"1/2/3/4/5/6/7/8\",\"payload\":1}").is_ok());
    let allowed = Reserved::Allowed;
    assert_eq!(check_topic("$aws/rules/r/1/2/3/4/5/6/7/8", allowed), Ok(()));
    assert!(check_topic("$aws/rules/r/1/2/3/4/5/6/7/8/9", allowed).is_err());
}

#[test]
fn prefix_and_suffix_belong_to_the_topic_that_is_checked() {
    let rules = Rules { prefix: "p/".into(), suffix: "/s".into(), ..Rules::default() };
    assert_eq!(read(br#"{"topic":"t","payload":1}"#, &rules).unwrap().topic, "p/t/s");
    let rules = Rules { prefix: "x".repeat(MAX_TOPIC), ..Rules::default() };
    assert!(read(br#"{"topic":"t","payload":1}"#, &rules).is_err());
}

#[test]
fn a_letterhead_lies_under_the_message() {
    let letterhead = br#"{"topic":"from/letterhead","payload":{"device":{"id":7,"n":1},"list":[1,2],"x":1}}"#;
    let rules = Rules { letterhead: Some(Letterhead::read(letterhead).unwrap()), ..Rules::default() };
    let read = |file: &str| read(file.as_bytes(), &rules).unwrap();
    let message = read(r#"{"payload":{"device":{"n":2},"list":[3],"x":null}}"#);
    assert_eq!(message.topic, "from/letterhead");
    let payload: Value = serde_json::from_slice(&message.payload).unwrap();
    assert_eq!(payload, json!({"device": {"id": 7, "n": 2}, "list": [3], "x": null}));
    assert_eq!(read(r#"{"topic":"own","payload":"raw"}"#).payload, b"raw");
    for bad in ["", "[]", "{"] {
        assert!(Letterhead::read(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn a_payload_nested_without_end_is_passed_on_or_refused_but_never_followed() {
    let deep = format!("{}{}", "[".repeat(60_000), "]".repeat(60_000));
    assert_eq!(wire(&deep).len(), deep.len());
    let letterhead = Letterhead::read(b"{}").unwrap();
    let rules = Rules { letterhead: Some(letterhead), ..Rules::default() };
    let file = format!("{{\"topic\":\"t\",\"payload\":{deep}}}");
    assert!(matches!(read(file.as_bytes(), &rules), Err(Refusal::NotJson(_))));
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
        let letterhead = Rules { letterhead: Letterhead::read(b"{\"topic\":\"t\"}").ok(), ..Rules::default() };
        for rules in [&Rules::default(), &letterhead] {
            let framed = format!("{{\"topic\":\"t\",\"payload\":{text}}}");
            let quoted = format!("{{\"topic\":{text:?},\"payload\":1}}");
            for file in [&bytes[..], text.as_bytes(), framed.as_bytes(), quoted.as_bytes()] {
                if let Ok(message) = read(file, rules) {
                    prop_assert!(check_topic(&message.topic, rules.reserved).is_ok());
                    prop_assert!(message.payload.len() <= MAX_PAYLOAD);
                }
            }
        }
    }

    #[test]
    fn json_without_white_space_is_the_same_json(strings in prop::collection::vec(".{0,8}", 0..8), n in any::<i64>()) {
        let value = json!({"s": strings, "n": [n, {"x": strings}]});
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        let compact = compact(pretty.as_bytes());
        prop_assert_eq!(String::from_utf8(compact).unwrap(), value.to_string());
    }
}
