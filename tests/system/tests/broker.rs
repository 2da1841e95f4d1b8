//! A broker that loses, refuses, repeats and garbles.

use otandem_lab::jobs::request::Code;
use otandem_lab::{Direction, MqttFault, Operation, Rule, Status};
use otandem_system_tests::Health;
use otandem_system_tests::pack::Packing;
use otandem_system_tests::world::World;

/// An update held in its trial, once the cloud has answered what the trial tells it.
fn in_trial() -> World {
    let world = World::new();
    world.device.make_gate("trial").unwrap();
    world.device.health_after("test \"$OTANDEM_SET\" = A || gate trial").unwrap();
    let image = world.image("2.0", Health::Good);
    world.job("update", &world.publish(&image, Packing::Zstd).document);
    world.wait_gate("trial");
    world.wait_lab("the answer to the seal of the trial", |lab| {
        let asked = lab
            .messages(Direction::In, "/update")
            .map(|e| e.json())
            .find(|v| v["statusDetails"]["otandem"].as_str().is_some_and(|s| s.starts_with("v1;trial;")))?;
        let mut answers = lab.messages(Direction::Out, "/update/accepted");
        answers.any(|e| e.json()["clientToken"] == asked["clientToken"]).then_some(())
    });
    world.device.health_after("").unwrap();
    world
}

fn outcomes(world: &World) -> usize {
    world.lab.inspect(|lab| {
        lab.messages(Direction::In, "/update/update").filter(|e| e.json()["status"] == "SUCCEEDED").count()
    })
}

#[test]
fn outcome_whose_answer_is_lost_is_sent_once_more_and_not_again() {
    let world = in_trial();
    world.lab.fault(Rule::once(MqttFault::KickAfter(Operation::Update)));
    world.device.open_gate("trial").unwrap();
    world.expect_end("update", Status::Succeeded, "set B");
    // The next job is only asked for when the outbox is empty.
    let image = world.image("3.0", Health::Good);
    world.run("next", &world.publish(&image, Packing::Zstd).document, Status::Succeeded, "3.0");
    assert_eq!(outcomes(&world), 2);
    world.finish();
}

#[test]
fn outcome_that_gets_no_answer_in_a_living_session_is_sent_again() {
    let world = in_trial();
    world.lab.fault(Rule::once(MqttFault::DropAnswer(Operation::Update)));
    world.device.open_gate("trial").unwrap();
    world.expect_end("update", Status::Succeeded, "set B");
    let image = world.image("3.0", Health::Good);
    world.run("next", &world.publish(&image, Packing::Zstd).document, Status::Succeeded, "3.0");
    assert_eq!(outcomes(&world), 2);
    world.finish();
}

#[test]
fn broker_that_refuses_throttles_or_kicks_only_costs_time() {
    let world = World::off(|spec| spec);
    for fault in [
        MqttFault::RefuseConnect(3),
        MqttFault::CloseConnect,
        MqttFault::KickBefore(Operation::StartNext),
        MqttFault::Reject(Operation::StartNext, Code::RequestThrottled),
        MqttFault::Reject(Operation::StartNext, Code::InternalError),
        MqttFault::KickAfter(Operation::StartNext),
        MqttFault::Reject(Operation::Update, Code::RequestThrottled),
        MqttFault::KickBefore(Operation::Update),
        MqttFault::DropPuback(Operation::StartNext),
        MqttFault::DuplicateNotifyNext,
    ] {
        world.lab.fault(Rule::once(fault));
    }
    let image = world.image("2.0", Health::Good);
    world.job("update", &world.publish(&image, Packing::Zstd).document);
    world.device.power_on().unwrap();
    world.expect_end("update", Status::Succeeded, "set B");
    world.finish();
}

#[test]
fn hostile_messages_cost_a_line_in_the_log_and_nothing_else() {
    let world = World::new();
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    for payload in [
        b"not json".to_vec(),
        vec![0xFF; 1000],
        deep.into_bytes(),
        vec![b'x'; 120_000],
        br#"{"execution":{"jobId":"../../etc","executionNumber":-1,"queuedAt":1e300}}"#.to_vec(),
        br#"{"execution":7}"#.to_vec(),
        Vec::new(),
    ] {
        world.lab.push_notify_next(&world.thing, payload);
    }
    let image = world.image("2.0", Health::Good);
    world.run("update", &world.publish(&image, Packing::Zstd).document, Status::Succeeded, "set B");
    // Bytes that are no MQTT end the session, and the device comes back.
    let times = world.counters().connects[&world.thing];
    world.lab.send_bytes(&world.thing, &[0xF0, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]);
    world.wait_connected(times + 1);
    let image = world.image("3.0", Health::Good);
    world.run("next", &world.publish(&image, Packing::Zstd).document, Status::Succeeded, "3.0");
    world.finish();
}

#[test]
fn second_execution_after_a_retry_by_the_service_is_a_new_attempt() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    let half = otandem_lab::Position::Object(published.file_size as u64 / 2);
    world.lab.fault(Rule::once(otandem_lab::HttpFault::WrongByteAt(half)).path(&published.path));
    let mut spec = otandem_lab::JobSpec::new("update", &world.thing, &published.document.to_string());
    spec.retries.failed = 1;
    world.lab.create_job(&spec).unwrap();
    world.wait_lab("the second execution SUCCEEDED", |lab| {
        let last = lab.jobs.execution(&world.thing, "update")?;
        (last.number == 2 && last.status == Status::Succeeded).then_some(())
    });
    world.finish();
}
