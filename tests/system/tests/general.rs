//! General jobs: steps that the cloud gives and the device runs.

use otandem_core::boot::SetId;
use otandem_lab::jobs::request::Code;
use otandem_lab::{Direction, Force, JobSpec, MqttFault, Operation, Rule, Status};
use otandem_system_tests::Health;
use otandem_system_tests::device::Script;
use otandem_system_tests::pack::Packing;
use otandem_system_tests::world::World;
use serde_json::{Value, json};

fn step(handler: &str) -> Value {
    json!({"action": {"name": handler, "type": "runHandler", "input": {"handler": handler, "path": "default"}}})
}

fn steps(handlers: &[&str]) -> Value {
    json!({"version": "1.0", "includeStdOut": true, "steps": handlers.iter().map(|h| step(h)).collect::<Vec<_>>()})
}

/// A device on set A with these handlers.
fn world(handlers: &[(&'static str, &str)]) -> World {
    let world = World::new();
    for (name, body) in handlers {
        world.device.script(Script::Handler(name), body).unwrap();
    }
    world
}

/// How often scripts told this.
fn told(world: &World, what: &str) -> usize {
    world.device.look(|heard| heard.events.iter().filter(|e| *e == what).count())
}

#[test]
fn steps_run_in_their_order_and_the_cloud_sees_what_they_wrote() {
    let world = world(&[
        ("one", "echo \"$OTANDEM_JOB_ID $OTANDEM_THING_NAME\"\n"),
        ("two", "echo bad >&2; exit 4\n"),
    ]);
    world.run("good", &steps(&["one", "one"]), Status::Succeeded, "Job exited with status: 0");
    assert!(world.details("good")["stdout"].starts_with("good device"), "{:?}", world.details("good"));
    world.run(
        "bad",
        &steps(&["one", "two", "one"]),
        Status::Failed,
        "Job exited with status: 4, in step two",
    );
    assert_eq!(world.details("bad")["stderr"].trim(), "bad");
    world.run("old", &json!({"operation": "one", "path": "default"}), Status::Succeeded, "status: 0");
    assert!(!world.details("old").contains_key("stdout"), "nobody asked for it");
    world.finish();
}

#[test]
fn documents_that_are_wrong_or_for_others_are_rejected_and_the_next_is_served() {
    let world = world(&[("one", "tell ran\n")]);
    let reason =
        "Unable to execute job, invalid job document provided! steps[0].action.input.handler: missing";
    let wrong =
        json!({"version": "1.0", "steps": [{"action": {"name": "n", "type": "runHandler", "input": {}}}]});
    world.run("wrong", &wrong, Status::Rejected, reason);
    let mut others = steps(&["one"]);
    others["conditions"] = json!([{"key": "thingName", "value": ["another"]}]);
    world.run("others", &others, Status::Rejected, "a condition of the job is not met");
    others["conditions"] =
        json!([{"key": "bootedSet", "value": ["A"]}, {"key": "thingName", "value": ["device"]}]);
    world.run("ours", &others, Status::Succeeded, "");
    let image = json!({"url": "https://h/i", "sha256": "ab".repeat(32), "compatible": "another"});
    let install = json!({"version": "1.0", "steps": [
        step("one"), {"action": {"name": "n", "type": "installImage", "input": {"image": image}}}]});
    world.run("install", &install, Status::Rejected, "the image is for \"another\"");
    world.wait_told("ran", 1);
    world.finish();
}

#[test]
fn ten_jobs_keep_their_order_and_none_is_lost_over_a_kill() {
    let world =
        world(&[("one", "tell begins $OTANDEM_JOB_ID; [ \"$OTANDEM_JOB_ID\" != job-3 ] || gate three\n")]);
    world.device.make_gate("three").unwrap();
    for n in 0..10 {
        world.job(&format!("job-{n}"), &steps(&["one"]));
    }
    world.wait_gate("three");
    world.device.kill_agent(|| ()).unwrap();
    for n in 0..10 {
        let (status, reason) = world.wait_end(&format!("job-{n}"));
        let expected = if n == 3 { Status::Failed } else { Status::Succeeded };
        assert_eq!(status, expected, "job-{n}: {reason}");
        world.wait_told(&format!("begins job-{n}"), 1);
    }
    world.expect_end("job-3", Status::Failed, "interrupted by restart of the agent in step 1/1: one");
    let order: Vec<_> = world.device.look(|heard| {
        heard.events.iter().filter_map(|e| e.strip_prefix("begins job-")).map(str::to_owned).collect()
    });
    assert!(order.is_sorted(), "{order:?}");
    world.finish();
}

#[test]
fn a_job_that_may_run_again_does_after_a_power_cut() {
    let world = world(&[("one", "tell begins; gate here\n")]);
    world.device.make_gate("here").unwrap();
    let mut document = steps(&["one"]);
    document["rerunnable"] = json!(true);
    world.job("again", &document);
    world.wait_gate("here");
    world.device.power_cut().unwrap();
    world.wait_gate("here");
    world.device.open_gate("here").unwrap();
    world.expect_end("again", Status::Succeeded, "");
    world.wait_told("begins", 2);
    world.finish();
}

#[test]
fn a_reboot_in_the_middle_of_a_job_is_survived_and_happens_once() {
    let reboots = "tell reboots; echo \"$OTANDEM_JOB_ID\" >\"$OTANDEM_REBOOT_MARK\"; gate down\n";
    let world = world(&[("down", reboots), ("after", "tell after\n")]);
    world.device.make_gate("down").unwrap();
    world.job("reboot", &steps(&["down"]));
    world.wait_gate("down");
    world.device.power_cut().unwrap();
    world.expect_end("reboot", Status::Succeeded, "the device rebooted");
    world.job("middle", &steps(&["down", "after"]));
    world.wait_gate("down");
    // In order this time: the agent is told to stop before the device goes down.
    world.device.reboot().unwrap();
    world.expect_end("middle", Status::Succeeded, "Job exited with status: 0");
    world.wait_told("reboots", 2);
    world.wait_told("after", 1);
    world.finish();
}

#[test]
fn a_job_that_the_cloud_ended_is_killed_and_the_next_one_runs() {
    let world = world(&[("one", "tell begins; gate here\ntell never\n"), ("two", "tell two\n")]);
    for (id, end) in [("canceled", true), ("deleted", false)] {
        world.device.make_gate("here").unwrap();
        world.job(id, &steps(&["one"]));
        world.wait_gate("here");
        let next = format!("after-{id}");
        world.job(&next, &steps(&["two"]));
        if end {
            world.lab.cancel_job(id, Force::Yes).unwrap();
        } else {
            world.lab.delete_job(id, Force::Yes).unwrap();
        }
        world.expect_end(&next, Status::Succeeded, "");
        let outcomes = world.lab.inspect(|lab| {
            let end = format!("/{id}/update");
            lab.messages(Direction::In, &end).filter(|e| e.json()["status"] != "IN_PROGRESS").count()
        });
        assert_eq!(outcomes, 0, "an outcome for a job that the cloud ended");
    }
    assert_eq!(told(&world, "never"), 0);
    world.finish();
}

#[test]
fn a_job_that_the_cloud_ended_while_it_waits_for_its_reboot_keeps_no_other_waiting() {
    let reboots = "echo \"$OTANDEM_JOB_ID\" >\"$OTANDEM_REBOOT_MARK\"; gate down\n";
    let world = world(&[("down", reboots), ("two", "tell two\n")]);
    world.device.make_gate("down").unwrap();
    world.job("canceled", &steps(&["down"]));
    world.wait_gate("down");
    world.job("next", &steps(&["two"]));
    world.lab.cancel_job("canceled", Force::Yes).unwrap();
    world.expect_end("next", Status::Succeeded, "");
    world.finish();
}

#[test]
fn the_cloud_sees_which_step_runs() {
    let world = world(&[("one", "true\n"), ("two", "gate here\n")]);
    world.device.make_gate("here").unwrap();
    world.job("long", &steps(&["one", "two"]));
    world.wait_gate("here");
    world.wait_lab("the progress of the job", |lab| {
        let execution = lab.jobs.execution(&world.thing, "long")?;
        (execution.details.as_ref()?.get("progress")? == "step 2/2: two").then_some(())
    });
    world.device.open_gate("here").unwrap();
    world.expect_end("long", Status::Succeeded, "");
    world.finish();
}

#[test]
fn an_agent_that_is_told_to_stop_ends_its_job_and_says_so() {
    let world = world(&[("one", "gate here\n")]);
    world.device.make_gate("here").unwrap();
    world.job("stopped", &steps(&["one"]));
    world.wait_gate("here");
    world.device.stop_agent().unwrap();
    world.expect_end("stopped", Status::Failed, "Job stopped, in step one");
    world.device.start_agent().unwrap();
    world.device.script(Script::Handler("one"), "true\n").unwrap();
    world.run("next", &steps(&["one"]), Status::Succeeded, "");
    world.finish();
}

#[test]
fn an_outcome_that_nobody_acknowledged_outlives_the_agent() {
    let world = world(&[("one", "echo out; tell ran\n")]);
    world.lab.fault(Rule::always(MqttFault::Reject(Operation::Update, Code::RequestThrottled)));
    world.job("silent", &steps(&["one"]));
    // What is sent is on disk.
    world.wait_lab("the outcome", |lab| {
        lab.messages(Direction::In, "/silent/update").any(|e| e.json()["status"] == "SUCCEEDED").then_some(())
    });
    world.device.kill_agent(|| world.lab.clear_faults()).unwrap();
    world.expect_end("silent", Status::Succeeded, "Job exited with status: 0");
    assert!(world.details("silent")["stdout"].starts_with("out"));
    world.wait_told("ran", 1);
    world.finish();
}

#[test]
fn an_update_comes_after_the_job_and_the_jobs_go_on_after_the_update() {
    let world = world(&[("one", "gate here\n")]);
    world.device.make_gate("here").unwrap();
    world.job("general", &steps(&["one"]));
    world.wait_gate("here");
    let image = world.image("2.0", Health::Good);
    world.job("update", &world.publish(&image, Packing::Zstd).document);
    let install = world.device.command(&["install", "/nonexistent.img", "--no-digest"]).unwrap();
    assert!(!install.status.success());
    world.device.open_gate("here").unwrap();
    world.expect_end("general", Status::Succeeded, "");
    world.expect_end("update", Status::Succeeded, "set B (2.0)");
    world.device.script(Script::Handler("one"), "true\n").unwrap();
    world.run("last", &steps(&["one"]), Status::Succeeded, "");
    assert_eq!(world.device.booted(), Some(SetId::B));
    world.finish();
}

#[test]
fn a_device_whose_updates_are_misconfigured_runs_jobs_all_the_same() {
    let world = World::off(|spec| spec.with("update", "trial-boots", "99"));
    world.device.script(Script::Handler("one"), "true\n").unwrap();
    world.device.power_on().unwrap();
    world.wait_connected(1);
    world.run("general", &steps(&["one"]), Status::Succeeded, "");
    let image = world.image("2.0", Health::Good);
    world.run("update", &world.publish(&image, Packing::Zstd).document, Status::Failed, "takes no update");
    world.finish();
}

#[test]
fn output_that_the_service_does_not_take_is_told_once_more_in_plain_words() {
    let world = world(&[("one", "printf 'a\\nb\\033[0m\\n'\n")]);
    world.run("lines", &steps(&["one"]), Status::Succeeded, "");
    let stdout = world.details("lines")["stdout"].clone();
    assert!(stdout == "a\nb [0m\n" || stdout == "a b [0m ", "{stdout:?}");
    world.finish();
}

#[test]
fn the_time_limit_of_the_service_ends_the_process_as_well() {
    let world = world(&[("one", "gate here\n"), ("two", "true\n")]);
    world.device.make_gate("here").unwrap();
    let minute = std::time::Duration::from_secs(60);
    let text = steps(&["one"]).to_string();
    let spec = JobSpec { in_progress_timeout: Some(minute), ..JobSpec::new("slow", &world.thing, &text) };
    world.lab.create_job(&spec).unwrap();
    world.wait_gate("here");
    world.job("next", &steps(&["two"]));
    world.lab.advance(minute * 2);
    world.expect_end("next", Status::Succeeded, "");
    world.wait_status("slow", Status::TimedOut);
    world.finish();
}

#[test]
fn the_job_that_runs_is_in_the_status_of_the_device() {
    let world = world(&[("one", "true\n"), ("two", "gate here\n")]);
    world.device.make_gate("here").unwrap();
    assert_eq!(world.device.status().unwrap()["job"], Value::Null);
    world.job("long", &steps(&["one", "two"]));
    world.wait_gate("here");
    let job = world.device.status().unwrap()["job"].clone();
    let shown = ["id", "execution", "state", "step", "steps", "name"].map(|member| job[member].clone());
    assert_eq!(json!(shown), json!(["long", 1, "running", 2, 2, "two"]));
    assert!(job["since"].as_u64().is_some_and(|since| since > 1_700_000_000), "{job}");
    let text = world.device.run(&["status"], 0).unwrap();
    assert!(text.contains("job:        long, step 2/2: two, running, for "), "{text}");
    world.device.open_gate("here").unwrap();
    world.expect_end("long", Status::Succeeded, "");
    assert_eq!(world.device.status().unwrap()["job"], Value::Null);
    world.finish();
}

#[test]
fn a_job_by_hand_runs_beside_no_other_unless_it_is_said() {
    let world = world(&[("one", "gate here\n"), ("quick", "tell quick\n")]);
    world.device.make_gate("here").unwrap();
    world.job("cloud", &steps(&["one"]));
    world.wait_gate("here");
    let document = steps(&["quick"]).to_string();
    let refused = world.device.run_fed(&["job", "run", "-"], document.as_bytes(), 75).unwrap();
    assert!(refused.contains("job cloud (execution 1) is under way: step 1/1: one"), "{refused}");
    assert!(refused.contains("--beside") && told(&world, "quick") == 0, "{refused}");
    world.device.run_fed(&["job", "run", "-", "--beside"], document.as_bytes(), 0).unwrap();
    world.wait_told("quick", 1);
    world.device.open_gate("here").unwrap();
    world.expect_end("cloud", Status::Succeeded, "");
    world.device.run_fed(&["job", "run", "-"], document.as_bytes(), 0).unwrap();
    world.wait_told("quick", 2);
    world.finish();
}

/// Lets the job by hand go on in the end.
struct Opens<'a>(&'a World);

impl Drop for Opens<'_> {
    fn drop(&mut self) {
        self.0.device.open_gate("hand").unwrap();
    }
}

#[test]
fn what_the_cloud_gives_waits_until_a_job_by_hand_is_over() {
    let world = world(&[("hand", "gate hand; tell over\n"), ("quick", "tell quick\n")]);
    world.device.make_gate("hand").unwrap();
    let (by_hand, quick) = (steps(&["hand"]).to_string(), steps(&["quick"]).to_string());
    std::thread::scope(|threads| {
        // A failure must not leave the thread at the gate.
        let opens = Opens(&world);
        let hand = threads.spawn(|| world.device.run_fed(&["job", "run", "-"], by_hand.as_bytes(), 0));
        world.wait_gate("hand");
        world.job("cloud", &steps(&["quick"]));
        let image = world.image("2.0", Health::Good);
        world.job("update", &world.publish(&image, Packing::Zstd).document);
        world.wait_lab("the news of the jobs", |lab| {
            lab.messages(Direction::Out, "/notify-next")
                .any(|e| e.json().get("execution").is_some())
                .then_some(())
        });
        let second = world.device.run_fed(&["job", "run", "-"], quick.as_bytes(), 75).unwrap();
        assert!(second.contains("another job is run by hand"), "{second}");
        let update = world.device.run(&["mark", "active", "other"], 75).unwrap();
        assert!(update.contains("a job is run by hand"), "{update}");
        assert_eq!(told(&world, "quick"), 0);
        drop(opens);
        let said = hand.join().unwrap().unwrap();
        assert!(said.contains("SUCCEEDED"), "{said}");
    });
    world.expect_end("cloud", Status::Succeeded, "");
    world.expect_end("update", Status::Succeeded, "set B");
    let order: Vec<_> = world.device.look(|heard| {
        heard.events.iter().filter(|e| ["over", "quick"].contains(&e.as_str())).cloned().collect()
    });
    assert_eq!(order, ["over", "quick"]);
    world.finish();
}

#[test]
fn what_is_gone_when_its_turn_comes_costs_one_job_and_the_next_one_runs() {
    let world = world(&[("one", "gate here\n"), ("gone", "tell gone\n"), ("last", "tell last\n")]);
    world.device.make_gate("here").unwrap();
    world.job("first", &steps(&["one"]));
    world.wait_gate("here");
    world.job("without-handler", &steps(&["gone"]));
    world.job("deleted", &steps(&["last"]));
    world.job("last", &steps(&["last"]));
    world.device.folder().remove_script(Script::Handler("gone")).unwrap();
    world.lab.delete_job("deleted", Force::Yes).unwrap();
    world.device.open_gate("here").unwrap();
    world.expect_end("without-handler", Status::Failed, "Job not started: ");
    world.expect_end("last", Status::Succeeded, "");
    world.wait_told("last", 1);
    assert_eq!(told(&world, "gone"), 0);
    world.finish();
}

#[test]
fn a_job_goes_on_while_the_broker_is_away_and_is_told_when_it_is_back() {
    let world = world(&[("one", "tell begins; gate here\n")]);
    world.device.make_gate("here").unwrap();
    world.job("job", &steps(&["one"]));
    world.wait_gate("here");
    world.lab.kick(&world.thing);
    world.wait_connected(2);
    world.device.open_gate("here").unwrap();
    world.expect_end("job", Status::Succeeded, "Job exited with status: 0");
    world.wait_told("begins", 1);
    world.finish();
}
