//! Faults of the broker, and the lab with the client library that the agent uses.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Client, LIMIT, tls};
use mqttbytes::QoS;
use mqttbytes::v4::Packet;
use otandem_lab::jobs::request::Code;
use otandem_lab::{Force, JobSpec, Lab, LabConfig, MqttFault, Operation, Rule, Status};
use serde_json::json;

const START: &str = "$aws/things/dev/jobs/start-next";

fn lab() -> Lab {
    Lab::start(LabConfig::default()).unwrap()
}

fn job(lab: &Lab, id: &str) {
    lab.create_job(&JobSpec::new(id, "dev", r#"{"operation":"fota"}"#)).unwrap();
}

fn status(lab: &Lab, id: &str) -> Option<Status> {
    lab.inspect(|lab| lab.status("dev", id))
}

#[test]
fn lost_answer_was_served_all_the_same() {
    let lab = lab();
    lab.fault(Rule::once(MqttFault::DropAnswer(Operation::Update)).job("j1"));
    job(&lab, "j1");
    let mut client = Client::connect(&lab, "dev");
    client.publish("$aws/things/dev/jobs/j1/update", QoS::AtLeastOnce, r#"{"status":"SUCCEEDED"}"#);
    assert!(matches!(client.packet(), Ok(Packet::PubAck(_))));
    let (kind, again) = client.ask("dev", "j1/update", json!({"status": "SUCCEEDED"}));
    assert_eq!((kind.as_str(), &again["code"]), ("rejected", &json!("InvalidStateTransition")));
    assert_eq!(status(&lab, "j1"), Some(Status::Succeeded));
}

#[test]
fn lost_puback_still_answers() {
    let lab = lab();
    lab.fault(Rule::once(MqttFault::DropPuback(Operation::StartNext)));
    let mut client = Client::connect(&lab, "dev");
    client.publish(START, QoS::AtLeastOnce, "{}");
    assert!(matches!(client.packet(), Ok(Packet::Publish(_))), "no PUBACK before it");
    client.publish(START, QoS::AtLeastOnce, "{}");
    assert!(matches!(client.packet(), Ok(Packet::PubAck(_))));
}

#[test]
fn refusals_come_their_number_of_times_and_change_nothing() {
    let lab = lab();
    job(&lab, "j1");
    lab.fault(Rule::once(MqttFault::Reject(Operation::StartNext, Code::RequestThrottled)).times(2).after(1));
    let mut client = Client::connect(&lab, "dev");
    let codes: Vec<_> = (0..4)
        .map(|_| client.ask("dev", "start-next", json!({"clientToken": "t"})).1["code"].clone())
        .collect();
    assert_eq!(codes, [json!(null), json!("RequestThrottled"), json!("RequestThrottled"), json!(null)]);
}

#[test]
fn kicks_happen_before_or_after_the_request_is_served() {
    let lab = lab();
    job(&lab, "j1");
    let update = "$aws/things/dev/jobs/j1/update";
    lab.fault(Rule::once(MqttFault::KickBefore(Operation::Update)));
    let mut client = Client::connect(&lab, "dev");
    client.publish(update, QoS::AtLeastOnce, r#"{"status":"SUCCEEDED"}"#);
    client.closed();
    assert_eq!(status(&lab, "j1"), Some(Status::Queued));
    lab.fault(Rule::once(MqttFault::KickAfter(Operation::Update)));
    let mut client = Client::connect(&lab, "dev");
    client.publish(update, QoS::AtLeastOnce, r#"{"status":"SUCCEEDED"}"#);
    client.closed();
    assert_eq!(status(&lab, "j1"), Some(Status::Succeeded));
}

#[test]
fn notices_are_doubled_swapped_and_lost() {
    let lab = lab();
    let mut client = Client::connect(&lab, "dev");
    client.subscribed_to_jobs("dev");
    let next = |client: &mut Client| client.message().1["execution"]["jobId"].clone();
    lab.fault(Rule::once(MqttFault::DuplicateNotifyNext));
    job(&lab, "j1");
    assert_eq!([next(&mut client), next(&mut client)], ["j1", "j1"]);
    lab.fault(Rule::once(MqttFault::HoldNotifyNext));
    lab.cancel_job("j1", Force::Yes).unwrap();
    job(&lab, "j2");
    assert_eq!(
        [next(&mut client), next(&mut client)],
        [json!("j2"), json!(null)],
        "the empty queue comes late"
    );
    lab.fault(Rule::once(MqttFault::DropNotifyNext));
    lab.cancel_job("j2", Force::Yes).unwrap();
    job(&lab, "j3");
    assert_eq!(next(&mut client), "j3");
}

#[test]
fn connect_is_refused_with_a_code_or_closed() {
    let lab = lab();
    let identity = lab.identity("dev").unwrap();
    lab.fault(Rule::once(MqttFault::RefuseConnect(3)));
    let mut client = Client::open(&lab, &identity);
    client.hello("dev");
    assert!(matches!(client.packet(), Ok(Packet::ConnAck(ack)) if ack.code as u8 == 3));
    lab.fault(Rule::once(MqttFault::CloseConnect));
    let mut client = Client::open(&lab, &identity);
    client.hello("dev");
    assert!(client.packet().is_err());
    Client::connect(&lab, "dev");
}

#[test]
fn hostile_bytes_reach_the_device() {
    let lab = lab();
    let mut client = Client::connect(&lab, "dev");
    client.subscribed_to_jobs("dev");
    let nested = "[".repeat(60_000);
    lab.push_notify_next("dev", nested.clone());
    assert!(matches!(client.packet(), Ok(Packet::Publish(p)) if p.payload == nested.as_bytes()));
    lab.fault(Rule::once(MqttFault::ReplaceAnswer(
        Operation::StartNext,
        Bytes::from_static(b"\xFF not JSON"),
    )));
    client.publish(START, QoS::AtMostOnce, "{}");
    assert!(matches!(client.packet(), Ok(Packet::Publish(p)) if &p.payload[..] == b"\xFF not JSON"));
    lab.send_bytes("dev", b"\xF0\x01x");
    assert_eq!(client.bytes(3).unwrap(), b"\xF0\x01x");
}

#[test]
fn advancing_the_clock_times_a_job_out_and_tells_the_device() {
    let lab = lab();
    job(&lab, "j1");
    let mut client = Client::connect(&lab, "dev");
    client.subscribed_to_jobs("dev");
    client.ask("dev", "start-next", json!({"stepTimeoutInMinutes": 2}));
    lab.advance(Duration::from_secs(119));
    assert_eq!(status(&lab, "j1"), Some(Status::InProgress));
    lab.advance(Duration::from_secs(1));
    assert_eq!(status(&lab, "j1"), Some(Status::TimedOut));
    assert!(client.message().1.get("execution").is_none());
}

#[test]
fn the_agent_s_client_library_gets_its_job() {
    use rumqttc::{Client, Event, MqttOptions, Packet, PublishOptions, QoS, TlsConfiguration, Transport};
    let lab = lab();
    let identity = lab.identity("dev").unwrap();
    let mut options = MqttOptions::new("dev", ("localhost", lab.mqtt_port()));
    let config = tls(lab.authority(), Some(&identity));
    options.set_transport(Transport::Tls(TlsConfiguration::Rustls(std::sync::Arc::new(config))));
    let (client, mut connection) = Client::builder(options).capacity(10).build();
    client.subscribe("$aws/things/dev/jobs/notify-next", QoS::AtLeastOnce).unwrap();
    let mut messages = Vec::new();
    while messages.len() < 3 {
        match connection.recv_timeout(LIMIT).expect("no event in time").expect("connection lost") {
            Event::Incoming(Packet::SubAck(_)) => job(&lab, "j1"),
            Event::Incoming(Packet::Publish(message)) => {
                let topic = String::from_utf8(message.topic.to_vec()).unwrap();
                match messages.len() {
                    0 => client.publish(START, "{}", PublishOptions::at_least_once()).unwrap(),
                    1 => {
                        let update = json!({"status": "SUCCEEDED", "clientToken": "end"}).to_string();
                        client
                            .publish(
                                "$aws/things/dev/jobs/j1/update",
                                update,
                                PublishOptions::at_least_once(),
                            )
                            .unwrap();
                    }
                    _ => {}
                }
                messages.push(topic.replace("$aws/things/dev/jobs/", ""));
            }
            _ => {}
        }
    }
    assert_eq!(messages, ["notify-next", "start-next/accepted", "j1/update/accepted"]);
    assert_eq!(status(&lab, "j1"), Some(Status::Succeeded));
}
