//! General jobs that mean no good, by mistake or on purpose: each ends truthfully, and the next one runs.

use std::fs;
use std::process::Command;

use otandem_lab::{Force, JobSpec, Status};
use otandem_system_tests::device::Script;
use otandem_system_tests::world::{LIMIT, World};
use serde_json::{Value, json};

/// What the agent may ever need at once, in KiB: less than what a handler writes here.
const MEMORY: u64 = 32 * 1024;

fn step(handler: &str) -> Value {
    json!({"action": {"name": handler, "type": "runHandler", "input": {"handler": handler, "path": "default"}}})
}

fn steps(handlers: &[&str]) -> Value {
    json!({"version": "1.0", "includeStdOut": true, "steps": handlers.iter().map(|h| step(h)).collect::<Vec<_>>()})
}

fn install(world: &World, handlers: &[(&'static str, &str)]) {
    for (name, body) in handlers {
        world.device.script(Script::Handler(name), body).unwrap();
    }
}

/// A device on set A with these handlers.
fn world(handlers: &[(&'static str, &str)]) -> World {
    let world = World::new();
    install(&world, handlers);
    world
}

/// How often scripts told this.
fn told(world: &World, what: &str) -> usize {
    world.device.look(|heard| heard.events.iter().filter(|e| *e == what).count())
}

/// The most memory that the agent ever had, in KiB.
fn most_memory(world: &World) -> u64 {
    let process = world.device.look(|heard| heard.process()).unwrap();
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A process that is more than a number that nobody asked for.
fn lives(process: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

#[test]
fn output_of_any_amount_and_kind_is_read_to_its_end_and_the_end_of_it_is_told_as_text() {
    let euros = format!("printf 'x{}end'", "\u{20ac}".repeat(3000));
    let world = world(&[
        ("lines", "yes 0123456789abcdef | head -c 104857600; echo end"),
        ("one-line", "head -c 104857600 /dev/zero | tr '\\0' x; printf end"),
        ("both", "head -c 9000000 /dev/zero | tr '\\0' x >&2; head -c 9000000 /dev/urandom; printf end"),
        ("binary", "printf 'a\\000\\007\\033[31m\\177\\302\\205\\377\\303end'"),
        ("letters", &euros),
        ("half", "printf 'end\\342\\202'"),
    ]);
    for name in ["lines", "one-line", "both", "binary", "letters", "half"] {
        world.run(name, &steps(&[name]), Status::Succeeded, "Job exited with status: 0");
        let details = world.details(name);
        for text in [Some(&details["stdout"]), details.get("stderr")].into_iter().flatten() {
            assert!(text.chars().count() <= 1024, "{name}: {text:?}");
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{name}: {text:?}");
        }
        let told = details["stdout"].trim_end_matches([' ', '\n', '\u{fffd}']);
        assert!(told.ends_with("end"), "{name}: {told:?}");
    }
    assert_eq!(world.details("lines")["stdout"].chars().count(), 1024);
    assert_eq!(world.details("both")["stderr"], "x".repeat(1024));
    assert_eq!(world.details("letters")["stdout"], "\u{20ac}".repeat(1021) + "end");
    assert_eq!(world.details("half")["stdout"], "end\u{fffd}");
    let memory = most_memory(&world);
    assert!(memory < MEMORY, "the agent had {memory} KiB");
    world.finish();
}

/// Takes the ten seconds that a process is given to end by itself.
#[test]
fn what_is_deaf_to_a_request_to_end_is_killed_with_its_children_and_the_next_job_runs() {
    let deaf = "trap '' TERM\ntell process $$\nsleep 1000 &\ntell process $!\nwait\nwait\n";
    let world = world(&[("deaf", deaf), ("next", "tell next")]);
    let mut document = steps(&["deaf", "next"]);
    document["steps"][0]["action"]["timeoutSeconds"] = json!(1);
    world.job("deaf", &document);
    world.job("next", &steps(&["next"]));
    world.expect_end("deaf", Status::Failed, "Job timed out: the step ran for 1 s, in step deaf");
    world.expect_end("next", Status::Succeeded, "");
    world.wait_told("next", 1);
    let processes: Vec<String> = world.device.look(|heard| {
        heard.events.iter().filter_map(|e| e.strip_prefix("process ")).map(str::to_owned).collect()
    });
    assert_eq!(processes.len(), 2);
    let begin = std::time::Instant::now();
    // A kill is not done when it is sent; nothing else tells of it.
    while processes.iter().any(|process| lives(process)) {
        assert!(begin.elapsed() < LIMIT, "{processes:?} live on");
        std::thread::yield_now();
    }
    world.finish();
}

#[test]
fn a_daemon_that_keeps_the_outputs_and_a_handler_that_closes_them_hold_nothing_up() {
    let world = world(&[
        ("forks", "(trap '' HUP; gate daemon; tell daemon lives) &\necho forked\n"),
        ("leaves", "setsid sh -c 'trap \"\" HUP; exec sleep 1000' & tell session $!\necho left\n"),
        ("closes", "exec <&- >&- 2>&-\nexit 7\n"),
        ("next", "echo next"),
    ]);
    world.device.make_gate("daemon").unwrap();
    for name in ["forks", "leaves", "closes", "next"] {
        world.job(name, &steps(&[name]));
    }
    world.expect_end("forks", Status::Succeeded, "Job exited with status: 0");
    world.expect_end("leaves", Status::Succeeded, "Job exited with status: 0");
    world.expect_end("closes", Status::Failed, "Job exited with status: 7, in step closes");
    world.expect_end("next", Status::Succeeded, "Job exited with status: 0");
    assert_eq!(world.details("forks")["stdout"].trim_end(), "forked");
    // What was left behind on purpose was there all the time.
    world.wait_gate("daemon");
    world.device.open_gate("daemon").unwrap();
    world
        .device
        .wait("the daemon", LIMIT, |heard| heard.events.iter().find(|e| *e == "daemon lives").map(drop))
        .unwrap();
    let session = world.device.look(|heard| {
        heard.events.iter().find_map(|e| e.strip_prefix("session ")).map(|pid| pid.parse().unwrap())
    });
    let session = nix::unistd::Pid::from_raw(session.unwrap());
    nix::sys::signal::kill(session, nix::sys::signal::Signal::SIGKILL).unwrap();
    world.finish();
}

#[test]
fn outcomes_are_told_and_jobs_run_while_the_disk_of_the_state_is_full() {
    // Of the agent alone, and gone with it. Behind the script stand the agent, `--config` and its file.
    let mount = "mount -t tmpfs -o size=4m,mode=700 tmpfs \"${3%/*}/state\" && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "--", "sh", "-c", mount, "sh"];
    let try_it = ["--mount", "--", "sh", "-c", "mount -t tmpfs tmpfs /mnt"];
    if !Command::new("unshare").args(try_it).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: only root can mount a file system");
        return;
    }
    let world = World::with(|spec| spec.started_by(&wrapper));
    let state = world.device.folder().path("state");
    let filler = state.join("filler").display().to_string();
    install(
        &world,
        &[
            (
                "fills",
                &format!(
                    "cat /dev/zero >'{filler}'\ntell filled $?\ncp '{filler}' '{filler}.more' || echo full\n"
                ),
            ),
            ("fails", "exit 3"),
            ("next", &format!("[ -s '{filler}' ] && echo still full\n")),
        ],
    );
    world.run("fills", &steps(&["fills"]), Status::Succeeded, "Job exited with status: 0");
    world.wait_told("filled 1", 1);
    world.run("fails", &steps(&["fails"]), Status::Failed, "Job exited with status: 3, in step fails");
    world.run("next", &steps(&["next"]), Status::Succeeded, "Job exited with status: 0");
    assert_eq!(world.details("next")["stdout"].trim_end(), "still full");
    world.finish();
}

#[test]
fn a_job_or_a_handler_that_is_deleted_while_it_is_queued_does_not_stop_the_queue() {
    let world =
        world(&[("first", "gate here"), ("never", "tell never"), ("lost", "tell never"), ("next", "true")]);
    world.device.make_gate("here").unwrap();
    for name in ["first", "never", "lost", "next"] {
        world.job(name, &steps(&[name]));
    }
    world.wait_gate("here");
    world.lab.delete_job("never", Force::Yes).unwrap();
    world.device.folder().remove_script(Script::Handler("lost")).unwrap();
    world.device.open_gate("here").unwrap();
    world.expect_end("first", Status::Succeeded, "");
    world.expect_end("lost", Status::Failed, "Job not started: there is no handler");
    world.expect_end("next", Status::Succeeded, "");
    assert_eq!(told(&world, "never"), 0);
    world.finish();
}

/// Every document that differs from a good one in one place.
fn mutations(good: &Value) -> Vec<Value> {
    let strange = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1e300),
        json!(""),
        json!("\u{0}\u{1b}\u{202e}"),
        json!("../../bin/sh"),
        json!("x".repeat(5000)),
        json!([]),
        json!([[[]]]),
        json!({}),
        json!({"action": {}}),
    ];
    let mut places = vec![];
    places_of(good, String::new(), &mut places);
    let mut all = vec![];
    for place in places {
        for value in &strange {
            let mut document = good.clone();
            *document.pointer_mut(&place).unwrap() = value.clone();
            all.push(document);
        }
    }
    all
}

fn places_of(value: &Value, at: String, places: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| places_of(member, format!("{at}/{name}"), places));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| places_of(item, format!("{at}/{i}"), places));
        }
        _ => {}
    }
    places.push(at);
}

#[test]
fn documents_with_anything_anywhere_end_in_one_status_each_and_the_next_is_served() {
    let world = world(&[("one", "true")]);
    let mut good = steps(&["one"]);
    good["steps"][0]["action"]["input"]["args"] = json!(["a"]);
    good["steps"][0]["action"]["runAsUser"] = json!("");
    good["steps"][0]["action"]["allowStdErr"] = json!(0);
    good["steps"][0]["action"]["ignoreStepFailure"] = json!("false");
    good["finalStep"] = json!({"action": {"name": "f", "type": "runCommand", "input": {"command": "true"}}});
    good["conditions"] = json!([{"key": "thingName", "value": ["device"], "type": "stringEqual"}]);
    let documents = mutations(&good);
    for (n, document) in documents.iter().enumerate() {
        let text = document.to_string();
        world.lab.create_job_unchecked(&JobSpec::new(&format!("m-{n}"), &world.thing, &text)).unwrap();
    }
    for (n, document) in documents.iter().enumerate() {
        let (status, reason) = world.wait_end(&format!("m-{n}"));
        let ends = [Status::Succeeded, Status::Failed, Status::Rejected];
        assert!(ends.contains(&status) && !reason.is_empty(), "{status:?} {reason:?}: {document}");
    }
    world.run("good", &good, Status::Succeeded, "Job exited with status: 0");
    world.finish();
}
