use proptest::prelude::*;
use serde_json::{Value, json};

use super::answer::{created, registered, rejected};
use super::rotation::{REFUSALS, Rotation, Turn, next};
use super::*;

const REGISTER_TOPIC: &str = "$aws/provisioning-templates/gateways/provision/json";
const PEM: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

fn plan(key: KeyOrigin) -> Plan {
    let parameters = [("SerialNumber".to_owned(), "1234".to_owned())].into();
    Plan { template: "gateways".into(), parameters, key }
}

fn message<'a>(topic: &'a str, payload: &'a [u8]) -> Event<'a> {
    Event::Message { topic, payload }
}

fn certificate(more: &[(&str, &str)]) -> Vec<u8> {
    let mut answer =
        json!({"certificateId": "ab12", "certificatePem": PEM, "certificateOwnershipToken": "secret"});
    more.iter().for_each(|(member, value)| answer[*member] = json!(value));
    answer.to_string().into_bytes()
}

fn owned(since: u64) -> Record {
    Record::Owned { certificate: "ab12".into(), token: "secret".into(), since }
}

fn told(action: &Action) -> (String, Value) {
    let Action::Publish { topic, payload } = action else { panic!("{action:?}") };
    (topic.clone(), serde_json::from_slice(payload).unwrap())
}

#[test]
fn a_key_of_the_device_is_on_disk_before_the_cloud_hears_of_it_and_the_certificate_before_it_is_used() {
    let mut flow = Flow::new(plan(KeyOrigin::Device), None, 100);
    let topics = flow.topics();
    assert_eq!(topics.len(), 4);
    assert_eq!(topics[0], "$aws/certificates/create-from-csr/json/accepted");
    assert_eq!(topics[3], format!("{REGISTER_TOPIC}/rejected"));
    assert_eq!(flow.step(Event::Up, 100), [Action::MakeRequest]);
    let asked = flow.step(Event::Request("-----BEGIN".into()), 100);
    assert_eq!(
        asked.iter().map(told).collect::<Vec<_>>(),
        [(FROM_REQUEST.into(), json!({"certificateSigningRequest": "-----BEGIN"}))]
    );
    let accepted = flow.step(message(&topics[0], &certificate(&[])), 107);
    let [Action::Keep(made, record)] = accepted.as_slice() else { panic!("{accepted:?}") };
    assert_eq!((made.certificate.as_str(), &made.key, record), ("ab12", &None, &owned(107)));
    let asked = flow.step(Event::Kept, 108);
    let parameters = json!({"certificateOwnershipToken": "secret", "parameters": {"SerialNumber": "1234"}});
    assert_eq!(asked.iter().map(told).collect::<Vec<_>>(), [(REGISTER_TOPIC.into(), parameters)]);
    let answer = br#"{"deviceConfiguration":{"a":"b"},"thingName":"gw-1"}"#;
    let configuration = json!({"a": "b"}).as_object().unwrap().clone();
    let done = Record::Registered { certificate: "ab12".into(), thing: "gw-1".into(), configuration };
    assert_eq!(flow.step(message(&topics[2], answer), 109), [Action::Finish(done)]);
    assert_eq!(flow.step(message(&topics[2], answer), 109), [], "said twice");
}

#[test]
fn a_key_of_the_cloud_must_come_with_the_certificate() {
    let mut flow = Flow::new(plan(KeyOrigin::Cloud), None, 100);
    let asked = flow.step(Event::Up, 100);
    assert_eq!(asked.iter().map(told).collect::<Vec<_>>(), [(WITH_KEY.into(), json!({}))]);
    let topic = format!("{WITH_KEY}/accepted");
    let key = ("privateKey", "-----BEGIN RSA PRIVATE KEY-----");
    let accepted = flow.step(message(&topic, &certificate(&[key])), 100);
    assert!(matches!(&accepted[..], [Action::Keep(made, _)] if made.key.as_deref() == Some(key.1)));
    assert!(!format!("{accepted:?}").contains("RSA") && !format!("{accepted:?}").contains("secret"));
    let mut flow = Flow::new(plan(KeyOrigin::Cloud), None, 100);
    flow.step(Event::Up, 100);
    let failed = flow.step(message(&topic, &certificate(&[])), 100);
    assert!(matches!(&failed[..], [Action::Fail(why)] if why.to_string().contains("privateKey is missing")));
}

#[test]
fn a_token_is_used_again_while_it_is_good_and_no_longer() {
    for (now, asks) in [(100, "register"), (100 + TOKEN_LIFE - 1, "register"), (100 + TOKEN_LIFE, "create")] {
        let mut flow = Flow::new(plan(KeyOrigin::Device), Some(&owned(100)), now);
        assert_eq!(flow.topics().len(), if asks == "register" { 2 } else { 4 });
        let first = flow.step(Event::Up, now);
        match asks {
            "register" => assert_eq!(told(&first[0]).1["certificateOwnershipToken"], "secret"),
            _ => assert_eq!(first, [Action::MakeRequest]),
        }
    }
    // The clock was set back: when the token came is not known.
    assert_eq!(Flow::new(plan(KeyOrigin::Device), Some(&owned(100)), 99).topics().len(), 4);
}

#[test]
fn a_refusal_is_told_with_its_code_and_costs_the_token_only_where_it_is_about_the_token() {
    for (answer, forgets) in [
        (r#"{"statusCode":400,"errorCode":"InvalidCertificateOwnershipToken","errorMessage":"m"}"#, true),
        (r#"{"statusCode":404,"errorCode":"CertificateNotFound","errorMessage":"m"}"#, true),
        (r#"{"statusCode":400,"errorCode":"InvalidParameters","errorMessage":"m"}"#, false),
        (r#"{"statusCode":500,"errorCode":"InternalFailureOfTokens","errorMessage":"m"}"#, false),
        ("noise", false),
    ] {
        let mut flow = Flow::new(plan(KeyOrigin::Device), Some(&owned(100)), 101);
        flow.step(Event::Up, 101);
        let topic = format!("{REGISTER_TOPIC}/rejected");
        let actions = flow.step(message(&topic, answer.as_bytes()), 101);
        assert_eq!(actions.contains(&Action::Forget), forgets, "{answer}");
        let Some(Action::Fail(why)) = actions.last() else { panic!("{actions:?}") };
        let code = answer.split('"').nth(5).unwrap_or("no reason given");
        assert!(why.to_string().contains(code), "{why}");
    }
}

#[test]
fn messages_of_others_and_a_session_that_comes_back_change_nothing() {
    let mut flow = Flow::new(plan(KeyOrigin::Device), None, 100);
    flow.step(Event::Up, 100);
    assert_eq!(flow.step(Event::Up, 100), []);
    flow.step(Event::Request("r".into()), 100);
    for topic in ["x/accepted", "$aws/certificates/create/json/accepted", REGISTER_TOPIC, FROM_REQUEST] {
        assert_eq!(flow.step(message(topic, &certificate(&[])), 100), [], "{topic}");
    }
    assert_eq!(flow.step_name(), "asking for a certificate");
}

#[test]
fn an_id_that_is_no_plain_name_is_refused() {
    for id in ["", ".", "..", "../x", "a/b", "a.b", "-a", "é", "a\0", &"a".repeat(129)] {
        assert!(created(&certificate(&[("certificateId", id)]), KeyOrigin::Device).is_err(), "{id}");
    }
    let id = "95b9dfa3efa5c5660c506eb8fe67712bf431201140fd2f2ea10719b88b6b7412";
    assert_eq!(created(&certificate(&[("certificateId", id)]), KeyOrigin::Device).unwrap().certificate, id);
}

#[test]
fn what_a_registration_says_is_bounded() {
    let long = "x".repeat(70_000);
    for bad in [
        json!({}),
        json!([]),
        json!({"thingName": "a/b"}),
        json!({"thingName": "t", "deviceConfiguration": 1}),
        json!({"thingName": "t", "deviceConfiguration": {"a": {}}}),
        json!({"thingName": "t", "deviceConfiguration": {"a": long}}),
    ] {
        assert!(registered(bad.to_string().as_bytes()).is_err(), "{:.80}", bad.to_string());
    }
    assert!(registered(br#"{"thingName":"t","deviceConfiguration":null}"#).unwrap().configuration.is_empty());
}

#[test]
fn records_come_back_as_they_were_and_name_no_secret_in_logs() {
    let configuration = json!({"a": "b"}).as_object().unwrap().clone();
    for record in [
        owned(7),
        Record::Registered { certificate: "ab".into(), thing: "t".into(), configuration },
        Record::Untried { certificate: "ab".into() },
    ] {
        assert_eq!(Record::from_bytes(&record.to_bytes()), Some(record.clone()));
        assert!(!format!("{record:?}").contains("secret"));
    }
    let later = String::from_utf8(owned(7).to_bytes()).unwrap().replace("\"version\":1", "\"version\":2");
    assert_eq!(Record::from_bytes(later.as_bytes()), None);
}

fn names(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Shows what is first, as the session does.
fn shown(rotation: &mut Rotation, all: &[String], preferred: Option<&str>) -> String {
    let name = rotation.order(all, preferred).remove(0);
    rotation.show(&name);
    name
}

#[test]
fn three_refusals_in_a_row_bring_the_next_certificate_and_after_the_last_the_first() {
    let all = names("a b c");
    let mut rotation = Rotation::default();
    assert_eq!(shown(&mut rotation, &all, Some("b")), "b");
    let mut seen = vec![];
    for _ in 0..3 * REFUSALS {
        rotation.refused(&all);
        seen.push(shown(&mut rotation, &all, Some("b")));
    }
    assert_eq!(seen, names("b b c c c a a a b"));
    assert_eq!(rotation.accepted(), Some("b"));
}

#[test]
fn a_session_between_two_refusals_begins_the_count_anew() {
    let all = names("a b");
    let mut rotation = Rotation::default();
    shown(&mut rotation, &all, None);
    for _ in 0..10 {
        assert_eq!(rotation.refused(&all), Turn::Stay);
        assert_eq!(rotation.refused(&all), Turn::Stay);
        assert_eq!(rotation.accepted(), Some("a"));
    }
}

#[test]
fn one_certificate_is_shown_for_ever() {
    let mut rotation = Rotation::default();
    shown(&mut rotation, &names("a"), None);
    assert!((0..20).all(|_| rotation.refused(&names("a")) == Turn::Stay));
    assert_eq!(shown(&mut rotation, &names("a"), None), "a");
}

#[test]
fn a_certificate_on_trial_that_is_refused_gives_way_to_what_was_preferred() {
    let all = names("new old other");
    let mut rotation = Rotation::default();
    assert_eq!(shown(&mut rotation, &all, Some("old")), "old");
    rotation.try_out("new");
    assert_eq!(shown(&mut rotation, &all, Some("old")), "new");
    let turns: Vec<_> = (0..REFUSALS).map(|_| rotation.refused(&all)).collect();
    assert_eq!(turns.last(), Some(&Turn::Back { refused: "new".into() }));
    assert_eq!(shown(&mut rotation, &all, Some("old")), "old");
    rotation.try_out("new");
    shown(&mut rotation, &all, Some("old"));
    assert_eq!(rotation.accepted(), Some("new"));
    assert_eq!(rotation.trial(), None);
}

#[test]
fn the_order_begins_with_the_preferred_one_or_the_first_and_names_each_once() {
    let order = |all: &str, preferred| Rotation::default().order(&names(all), preferred).join(" ");
    assert_eq!(order("a b c", Some("b")), "b c a");
    assert_eq!(order("a b c", Some("gone")), "a b c");
    assert_eq!(order("a b", None), "a b");
    assert_eq!(order("", Some("a")), "");
    assert_eq!((next(&[], "a"), next(&names("a b"), "b")), (None, Some("a")));
}

proptest! {
    #[test]
    fn no_answer_and_no_record_panics(text in "\\PC{0,200}") {
        let _ = created(text.as_bytes(), KeyOrigin::Cloud);
        let _ = registered(text.as_bytes());
        let _ = rejected(text.as_bytes());
        let _ = Record::from_bytes(text.as_bytes());
    }

    #[test]
    fn no_value_of_a_known_member_gets_out_of_its_bounds(
        member in prop::sample::select(vec!["certificateId", "certificatePem", "privateKey",
            "certificateOwnershipToken", "thingName", "deviceConfiguration"]),
        value in "[-./a-zA-Z0-9\\x00\\n]{0,140}",
    ) {
        let bytes = certificate(&[("privateKey", "-----BEGIN X"), ("thingName", "t"), (member, &value)]);
        if let Ok(made) = created(&bytes, KeyOrigin::Cloud) {
            prop_assert!(made.certificate.len() <= 128 && !made.certificate.contains(['/', '.', '\0']));
        }
        if let Ok(made) = registered(&bytes) {
            prop_assert!(is_thing_name(&made.thing));
        }
        let asked = rejected(&bytes);
        prop_assert!(asked.code.len() <= 4 * 300);
    }
}
