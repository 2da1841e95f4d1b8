//! The broker, spoken to over mutual TLS: identity, policy, limits, take-over.

mod common;

use common::{Client, LIMIT, tls};
use mqttbytes::QoS;
use mqttbytes::v4::Packet;
use otandem_lab::{Authority, Direction, Lab, LabConfig, Limits, Policy, To, Validity};
use serde_json::json;

fn lab() -> Lab {
    Lab::start(LabConfig::default()).unwrap()
}

fn violations(lab: &Lab) -> Vec<String> {
    lab.inspect(|lab| lab.counters.violations.iter().map(|(_, what)| what.clone()).collect())
}

fn offences(lab: &Lab) -> Vec<String> {
    lab.inspect(|lab| lab.counters.offences.iter().map(|(_, what)| what.clone()).collect())
}

#[test]
fn publish_outside_the_policy_closes_and_is_counted_with_its_topic() {
    for topic in
        ["$aws/things/dev/jobs/j1/get", "$aws/things/dev/jobs/get", "$aws/things/other/jobs/start-next", "x"]
    {
        let lab = lab();
        let mut client = Client::connect(&lab, "dev");
        client.publish(topic, QoS::AtLeastOnce, "{}");
        client.closed();
        assert_eq!(violations(&lab), [format!("publish {topic}")]);
    }
}

#[test]
fn subscribe_outside_the_policy_closes() {
    for filter in
        ["$aws/things/dev/jobs/#", "$aws/things/dev/jobs/notify", "$aws/things/+/jobs/notify-next", "#"]
    {
        let lab = lab();
        let mut client = Client::connect(&lab, "dev");
        client.subscribe(&["$aws/things/dev/jobs/notify-next", filter]);
        client.closed();
        assert_eq!(violations(&lab), [format!("subscribe {filter}")]);
    }
}

#[test]
fn the_minimum_policy_is_enough_for_a_job_from_notice_to_end() {
    let lab = lab();
    let mut client = Client::connect(&lab, "dev");
    client.subscribed_to_jobs("dev");
    lab.create_job(&otandem_lab::JobSpec::new("j1", "dev", r#"{"operation":"fota"}"#)).unwrap();
    let (topic, notice) = client.message();
    assert_eq!(
        (topic.as_str(), &notice["execution"]["jobId"]),
        ("$aws/things/dev/jobs/notify-next", &json!("j1"))
    );
    let (kind, answer) = client.ask("dev", "start-next", json!({"clientToken": "a"}));
    assert_eq!((kind.as_str(), &answer["execution"]["status"]), ("accepted", &json!("IN_PROGRESS")));
    let (kind, _) = client.ask("dev", "j1/update", json!({"status": "SUCCEEDED"}));
    assert_eq!(kind, "accepted");
    let (topic, notice) = client.message();
    assert!(topic.ends_with("/notify-next") && notice.get("execution").is_none());
    let succeeded =
        |lab: &otandem_lab::Snapshot<'_>| lab.status("dev", "j1") == Some(otandem_lab::Status::Succeeded);
    lab.wait_for(succeeded, LIMIT).unwrap();
    assert!(violations(&lab).is_empty());
    lab.inspect(|lab| {
        assert_eq!(lab.counters.received["$aws/things/dev/jobs/j1/update"], 1);
        assert_eq!(lab.counters.by_job["j1"], 4, "notice, start, update and its answer");
    });
}

#[test]
fn answers_come_without_a_subscription_and_to_the_requester_only() {
    let policy = Policy::jobs().allow(otandem_lab::Action::Connect, "second");
    let lab = Lab::start(LabConfig { policy, ..LabConfig::default() }).unwrap();
    let mut first = Client::connect(&lab, "dev");
    let mut second = Client::open(&lab, &lab.identity("dev").unwrap());
    second.hello("second");
    assert!(matches!(second.packet(), Ok(Packet::ConnAck(_))));
    second.subscribed_to_jobs("dev");
    let (kind, _) = first.ask("dev", "start-next", json!({"clientToken": "first"}));
    assert_eq!(kind, "accepted");
    let (_, answer) = second.ask("dev", "start-next", json!({"clientToken": "second"}));
    assert_eq!(answer["clientToken"], "second", "the first answer did not come here");
}

#[test]
fn another_client_id_than_the_thing_is_refused_by_closing() {
    let lab = lab();
    let mut client = Client::open(&lab, &lab.identity("dev").unwrap());
    client.hello("dev-2");
    assert!(client.packet().is_err(), "not even CONNACK");
    assert_eq!(violations(&lab), ["connect as client id \"dev-2\""]);
}

#[test]
fn second_connection_with_the_client_id_takes_over() {
    let lab = lab();
    let mut old = Client::connect(&lab, "dev");
    let mut new = Client::connect(&lab, "dev");
    old.closed();
    let (kind, _) = new.ask("dev", "start-next", json!({}));
    assert_eq!(kind, "accepted");
    lab.inspect(|lab| assert_eq!((lab.counters.connects["dev"], lab.connected.len()), (2, 1)));
}

#[test]
fn certificates_that_are_no_good_do_not_connect() {
    let lab = lab();
    lab.activate("dev");
    let stranger = Authority::new("stranger").unwrap();
    let authority = lab.authority();
    let bad = [
        (authority.device("dev", Validity::Expired).unwrap(), "certificate expired"),
        (authority.device("dev", Validity::NotYet).unwrap(), "not valid yet"),
        (stranger.device("dev", Validity::Now).unwrap(), "UnknownIssuer"),
        (authority.device("nobody", Validity::Now).unwrap(), "not active"),
    ];
    for (identity, reason) in bad {
        let mut client = Client::open(&lab, &identity);
        client.hello("dev");
        assert!(client.packet().is_err());
        let said = |lab: &otandem_lab::Snapshot<'_>| {
            lab.counters.failed_handshakes.iter().any(|why| why.contains(reason))
        };
        lab.wait_for(said, LIMIT).unwrap_or_else(|e| panic!("{reason}: {e}"));
    }
    let mut anonymous = Client::with_tls(&lab, tls(authority, None));
    anonymous.hello("dev");
    assert!(anonymous.packet().is_err());
    assert_eq!(lab.inspect(|lab| lab.counters.connects.len()), 0);
}

#[test]
fn deactivated_certificate_is_thrown_out_and_stays_out() {
    let lab = lab();
    let identity = lab.identity("dev").unwrap();
    let mut client = Client::open(&lab, &identity);
    client.hello("dev");
    assert!(client.packet().is_ok());
    lab.deactivate("dev");
    client.closed();
    let mut again = Client::open(&lab, &identity);
    again.hello("dev");
    assert!(again.packet().is_err());
}

#[test]
fn limits_and_protocol_errors_close_and_are_named() {
    let many: Vec<String> = (0..9).map(|i| format!("$aws/things/dev/jobs/j{i}/update/accepted")).collect();
    let nine: Vec<&str> = many.iter().map(String::as_str).collect();
    let topic = "$aws/things/dev/jobs/start-next";
    let deep = format!("$aws/things/dev/jobs/{}update", "x/".repeat(7));
    type Say<'a> = Box<dyn Fn(&mut Client) + 'a>;
    let cases: Vec<(&str, Say<'_>)> = vec![
        ("9 filters in one SUBSCRIBE", Box::new(|c| c.subscribe(&nine))),
        ("0 filters in one SUBSCRIBE", Box::new(|c| c.raw(&[0x82, 2, 0, 1]))),
        ("QoS 2", Box::new(|c| c.publish(topic, QoS::ExactlyOnce, "{}"))),
        ("payload of 131073 bytes", Box::new(|c| c.publish(topic, QoS::AtLeastOnce, vec![b' '; 131_073]))),
        ("PayloadSizeLimitExceeded", Box::new(|c| c.raw(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F]))),
        ("too many topic levels", Box::new(|c| c.publish(&deep, QoS::AtLeastOnce, "{}"))),
        ("malformed topic", Box::new(|c| c.publish("$aws/things/dev/jobs/+/update", QoS::AtMostOnce, "{}"))),
        ("unexpected packet CONNECT", Box::new(|c| c.hello("dev"))),
        ("MalformedPacket", Box::new(|c| c.raw(&[0x80, 0]))),
        ("PayloadRequired", Box::new(|c| c.raw(&[0x30, 0]))),
        ("InvalidPacketType", Box::new(|c| c.raw(&[0xF0, 1, 0]))),
    ];
    for (what, say) in cases {
        let lab = lab();
        let mut client = Client::connect(&lab, "dev");
        say(&mut client);
        client.closed();
        let named =
            |lab: &otandem_lab::Snapshot<'_>| lab.counters.offences.iter().any(|(_, o)| o.contains(what));
        lab.wait_for(named, LIMIT).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}

#[test]
fn the_fifty_first_subscription_closes_and_a_payload_of_128_kib_passes() {
    let lab = lab();
    let mut client = Client::connect(&lab, "dev");
    client.publish("$aws/things/dev/jobs/start-next", QoS::AtLeastOnce, vec![b' '; 131_072]);
    assert!(client.message().0.ends_with("/rejected"));
    for i in 0..50 {
        client.subscribed(&[&format!("$aws/things/dev/jobs/j{i}/update/accepted")]);
        client.subscribed(&["$aws/things/dev/jobs/j0/update/accepted"]);
    }
    client.subscribe(&["$aws/things/dev/jobs/notify-next"]);
    client.closed();
    assert_eq!(offences(&lab), ["51 subscriptions"]);
}

#[test]
fn packet_before_connect_closes() {
    let lab = lab();
    let mut client = Client::open(&lab, &lab.identity("dev").unwrap());
    client.publish("x", QoS::AtMostOnce, "");
    client.closed();
    let mut five = Client::open(&lab, &lab.identity("dev").unwrap());
    five.raw(&[0x10, 15, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 3, b'd', b'e', b'v']);
    assert!(
        matches!(five.packet(), Ok(Packet::ConnAck(ack)) if ack.code as u8 == 1),
        "unacceptable protocol"
    );
    assert_eq!(offences(&lab), ["first packet is not CONNECT", "protocol level other than 4"]);
}

#[test]
fn silence_beyond_the_keep_alive_closes() {
    let lab = lab();
    let mut client = Client::open(&lab, &lab.identity("dev").unwrap());
    client.raw(&[0x10, 15, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 1, 0, 3, b'd', b'e', b'v']);
    assert!(client.packet().is_ok());
    client.closed();
    assert_eq!(offences(&lab), ["keep-alive passed"]);
}

#[test]
fn publishes_above_the_rate_are_throttled() {
    let limits = Limits { publishes_per_second: 5, ..Limits::default() };
    let lab = Lab::start(LabConfig { limits, ..LabConfig::default() }).unwrap();
    let mut client = Client::connect(&lab, "dev");
    // Two hundred at five a second take 39 s to be allowed: some are refused however slow this machine is.
    for i in 0..200 {
        client.publish(
            "$aws/things/dev/jobs/start-next",
            QoS::AtMostOnce,
            json!({"clientToken": format!("t{i}")}).to_string(),
        );
    }
    let answers: Vec<_> = (0..200).map(|_| client.message().1).collect();
    let refused =
        answers.iter().filter(|a| a["code"] == "RequestThrottled" && a["clientToken"] != json!(null)).count();
    assert!(refused > 0 && answers[0].get("code").is_none());
    assert_eq!(lab.inspect(|lab| lab.counters.throttled), refused as u64);
}

#[test]
fn unsubscribe_and_ping_are_answered() {
    let lab = lab();
    let mut client = Client::connect(&lab, "dev");
    client.subscribed_to_jobs("dev");
    client.raw(&[0xC0, 0]);
    assert!(matches!(client.packet(), Ok(Packet::PingResp)));
    let topic = b"$aws/things/dev/jobs/notify-next";
    let mut bytes = vec![0xA2, topic.len() as u8 + 4, 0, 9, 0, topic.len() as u8];
    bytes.extend_from_slice(topic);
    client.raw(&bytes);
    assert!(matches!(client.packet(), Ok(Packet::UnsubAck(ack)) if ack.pkid == 9));
    lab.create_job(&otandem_lab::JobSpec::new("j1", "dev", "{}")).unwrap();
    let (_, answer) = client.ask("dev", "start-next", json!({"clientToken": "t"}));
    assert_eq!(answer["clientToken"], "t", "no notice came in between");
}

#[test]
fn a_hook_serves_further_topics() {
    let policy = Policy::jobs()
        .allow(otandem_lab::Action::Publish, "echo/*")
        .allow(otandem_lab::Action::Receive, "echo/*");
    let lab = Lab::start(LabConfig { policy, ..LabConfig::default() }).unwrap();
    lab.hook(
        "echo/+",
        Box::new(|message| {
            vec![otandem_lab::Outbound {
                topic: format!("{}/answer", message.topic),
                payload: message.payload.clone(),
                to: To::Requester,
            }]
        }),
    );
    let mut client = Client::connect(&lab, "dev");
    client.publish("echo/a", QoS::AtLeastOnce, "7");
    assert_eq!(client.message(), ("echo/a/answer".to_owned(), json!(7)));
}

#[test]
fn a_wait_that_fails_shows_the_transcript() {
    let lab = lab();
    let mut client = Client::connect(&lab, "dev");
    client.ask("dev", "start-next", json!({"clientToken": "seen"}));
    let error = lab.wait_for(|_| false, std::time::Duration::ZERO).unwrap_err();
    assert!(
        error.to_string().contains("-> $aws/things/dev/jobs/start-next {\"clientToken\":\"seen\"}"),
        "{error}"
    );
    lab.inspect(|lab| assert_eq!(lab.messages(Direction::In, "/start-next").count(), 1));
}
