use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::request::{Topic, parse_topic};
use super::*;

const DOC: &str = r#"{"operation":"fota","url":"${aws:iot:s3-presigned-url:https://s3/b/k}"}"#;

/// A service with a clock and a signer that numbers its URLs.
struct Bench {
    jobs: Jobs,
    now: Duration,
    signed: u32,
}

impl Bench {
    fn new() -> Self {
        Self { jobs: Jobs::default(), now: Duration::from_secs(1_000), signed: 0 }
    }

    fn create(&mut self, id: &str) {
        self.jobs.create(&JobSpec::new(id, "dev", DOC), self.now).unwrap();
    }

    /// Sends `payload` to `$aws/things/dev/jobs/<suffix>`.
    fn ask(&mut self, suffix: &str, payload: Value) -> (&'static str, Value) {
        self.ask_raw(suffix, payload.to_string().as_bytes())
    }

    fn ask_raw(&mut self, suffix: &str, payload: &[u8]) -> (&'static str, Value) {
        let topic = format!("$aws/things/dev/jobs/{suffix}");
        let (thing, topic) = parse_topic(&topic).unwrap();
        let signed = &mut self.signed;
        let mut sign = |url: &str, _| {
            *signed += 1;
            format!("{url}#{signed}")
        };
        let answer = self.jobs.serve(thing, &topic, payload, self.now, &mut sign);
        (answer.suffix, answer.payload)
    }

    fn ok(&mut self, suffix: &str, payload: Value) -> Value {
        let (kind, answer) = self.ask(suffix, payload);
        assert_eq!(kind, "accepted", "{answer}");
        answer
    }

    fn refused(&mut self, suffix: &str, payload: Value) -> Value {
        let (kind, answer) = self.ask(suffix, payload);
        assert_eq!(kind, "rejected", "{answer}");
        answer
    }

    /// notify-next of this moment: the job ids that were told, "-" for an empty queue.
    fn told(&mut self) -> Vec<String> {
        let notices = self.jobs.notices(self.now, &mut |url, _| url.to_owned());
        let next = notices.into_iter().filter(|n| n.topic.ends_with("/notify-next"));
        next.map(|n| n.job.unwrap_or_else(|| "-".into())).collect()
    }

    fn state(&self, job: &str) -> (Status, i64, i64) {
        let e = self.jobs.execution("dev", job).unwrap();
        (e.status, e.number, e.version)
    }
}

#[test]
fn start_next_takes_the_oldest_and_hands_out_the_running_one_again() {
    let mut b = Bench::new();
    b.create("j1");
    b.create("j2");
    let first = b.ok("start-next", json!({"statusDetails": {"a": "1"}, "clientToken": "t"}));
    assert_eq!(first["clientToken"], "t");
    assert_eq!(first["timestamp"], 1000);
    let e = &first["execution"];
    assert_eq!(
        (&e["jobId"], &e["status"], &e["versionNumber"]),
        (&json!("j1"), &json!("IN_PROGRESS"), &json!(2))
    );
    assert_eq!(e["statusDetails"], json!({"a": "1"}));
    assert_eq!(e["jobDocument"]["url"], "https://s3/b/k#1");
    let again = b.ok("start-next", json!({"statusDetails": {"a": "2"}}));
    assert_eq!(again["execution"]["jobId"], "j1");
    assert_eq!(again["execution"]["statusDetails"], json!({"a": "1"}), "details of a running job stay");
    assert_eq!(again["execution"]["versionNumber"], 2);
    assert_eq!(again["execution"]["jobDocument"]["url"], "https://s3/b/k#2", "signed anew");
}

#[test]
fn empty_queue_answers_without_an_execution() {
    let answer = Bench::new().ok("start-next", json!({}));
    assert!(answer.get("execution").is_none());
}

#[test]
fn in_progress_comes_before_older_queued() {
    let mut b = Bench::new();
    b.create("j1");
    b.create("j2");
    b.ok("j2/update", json!({"status": "IN_PROGRESS"}));
    assert_eq!(b.ok("start-next", json!({}))["execution"]["jobId"], "j2");
}

#[test]
fn notify_next_fires_only_when_the_next_job_is_another_one() {
    let mut b = Bench::new();
    b.create("j1");
    assert_eq!(b.told(), ["j1"]);
    b.create("j2");
    assert!(b.told().is_empty(), "j1 is still next");
    b.ok("start-next", json!({}));
    assert!(b.told().is_empty(), "taking it changes nothing");
    b.ok("j1/update", json!({"status": "IN_PROGRESS", "statusDetails": {"p": "5"}}));
    assert!(b.told().is_empty());
    b.ok("j1/update", json!({"status": "SUCCEEDED"}));
    assert_eq!(b.told(), ["j2"]);
    b.ok("j2/update", json!({"status": "REJECTED"}));
    assert_eq!(b.told(), ["-"]);
}

#[test]
fn notify_lists_what_is_pending() {
    let mut b = Bench::new();
    b.create("j1");
    b.create("j2");
    b.ok("start-next", json!({}));
    let notices = b.jobs.notices(b.now, &mut |url, _| url.to_owned());
    let notify = notices.iter().find(|n| n.topic.ends_with("/notify")).unwrap();
    assert_eq!(notify.payload["jobs"]["IN_PROGRESS"][0]["jobId"], "j1");
    assert_eq!(notify.payload["jobs"]["QUEUED"][0]["jobId"], "j2");
    b.jobs.delete("j1", Force::Yes).unwrap();
    b.jobs.delete("j2", Force::Yes).unwrap();
    let notices = b.jobs.notices(b.now, &mut |url, _| url.to_owned());
    assert_eq!(notices[0].payload["jobs"], json!({}));
}

#[test]
fn update_replaces_all_details_and_keeps_them_when_omitted() {
    let mut b = Bench::new();
    b.create("j1");
    let with = |details: Value| json!({"status": "IN_PROGRESS", "statusDetails": details, "includeJobExecutionState": true});
    let a = b.ok("j1/update", with(json!({"a": "1", "b": "2"})));
    assert_eq!(a["executionState"]["statusDetails"], json!({"a": "1", "b": "2"}));
    let a = b.ok("j1/update", with(json!({"c": "3"})));
    assert_eq!(a["executionState"]["statusDetails"], json!({"c": "3"}));
    let a = b.ok("j1/update", with(Value::Null));
    assert_eq!(
        a["executionState"],
        json!({"status": "IN_PROGRESS", "statusDetails": {"c": "3"}, "versionNumber": 4})
    );
    assert!(b.ok("j1/update", json!({"status": "IN_PROGRESS"})).get("executionState").is_none());
}

#[test]
fn update_hands_out_a_freshly_signed_document() {
    let mut b = Bench::new();
    b.create("j1");
    b.ok("start-next", json!({}));
    let a = b.ok("j1/update", json!({"status": "IN_PROGRESS", "includeJobDocument": true}));
    assert_eq!(a["jobDocument"]["url"], "https://s3/b/k#2");
}

#[test]
fn stale_version_is_a_mismatch_with_the_state() {
    let mut b = Bench::new();
    b.create("j1");
    b.ok("start-next", json!({}));
    let r = b.refused("j1/update", json!({"status": "SUCCEEDED", "expectedVersion": 77, "clientToken": "x"}));
    assert_eq!((&r["code"], &r["clientToken"]), (&json!("VersionMismatch"), &json!("x")));
    assert_eq!(r["executionState"]["versionNumber"], 2);
    b.ok("j1/update", json!({"status": "SUCCEEDED", "expectedVersion": 2}));
}

#[test]
fn the_same_terminal_update_twice_is_answered_consistently() {
    let mut b = Bench::new();
    b.create("j1");
    let update = json!({"status": "SUCCEEDED", "clientToken": "fixed", "executionNumber": 1});
    b.ok("j1/update", update.clone());
    let r = b.refused("j1/update", update);
    assert_eq!(
        (&r["code"], &r["executionState"]["status"]),
        (&json!("InvalidStateTransition"), &json!("SUCCEEDED"))
    );
    assert_eq!(r["clientToken"], "fixed");
}

#[test]
fn wrong_number_unknown_job_and_deleted_job_are_not_found() {
    let mut b = Bench::new();
    b.create("j1");
    let code = |r: Value| r["code"].clone();
    assert_eq!(
        code(b.refused("j1/update", json!({"status": "FAILED", "executionNumber": 2}))),
        "ResourceNotFound"
    );
    assert_eq!(code(b.refused("nope/update", json!({"status": "FAILED"}))), "ResourceNotFound");
    b.ok("start-next", json!({}));
    assert_eq!(b.jobs.delete("j1", Force::No), Err(JobError::InProgress("j1".into())));
    b.jobs.delete("j1", Force::Yes).unwrap();
    assert_eq!(code(b.refused("j1/update", json!({"status": "SUCCEEDED"}))), "ResourceNotFound");
}

#[test]
fn requests_that_break_a_limit_are_refused_and_change_nothing() {
    let mut b = Bench::new();
    b.create("j1");
    let long = "v".repeat(1025);
    let eleven: serde_json::Map<_, _> = (0..11).map(|i| (format!("k{i}"), json!("v"))).collect();
    let in_progress = |details: Value| json!({"status": "IN_PROGRESS", "statusDetails": details});
    for bad in [
        json!({}),
        json!({"status": "QUEUED"}),
        json!({"status": "TIMED_OUT"}),
        json!({"status": 7}),
        json!([]),
        in_progress(json!({"k": long})),
        in_progress(json!({"k": ""})),
        in_progress(json!({"k": "line\nbreak"})),
        in_progress(json!({"k": 5})),
        in_progress(json!({"bad key": "v"})),
        in_progress(json!({"k".repeat(129): "v"})),
        in_progress(json!(eleven)),
        in_progress(json!("text")),
        json!({"status": "IN_PROGRESS", "stepTimeoutInMinutes": 0}),
        json!({"status": "IN_PROGRESS", "stepTimeoutInMinutes": 10_081}),
        json!({"status": "IN_PROGRESS", "expectedVersion": "1"}),
        json!({"status": "IN_PROGRESS", "includeJobDocument": "yes"}),
        json!({"status": "IN_PROGRESS", "clientToken": "t".repeat(65)}),
    ] {
        assert_eq!(b.refused("j1/update", bad.clone())["code"], "InvalidRequest", "{bad}");
    }
    assert_eq!(b.refused("start-next", json!({"stepTimeoutInMinutes": -1}))["code"], "InvalidRequest");
    assert_eq!(b.ask_raw("j1/update", b"{").1["code"], "InvalidJson");
    assert_eq!(b.ask_raw("j1/nonsense", b"{}").1["code"], "InvalidTopic");
    assert_eq!(b.state("j1"), (Status::Queued, 1, 1));
    b.ok("j1/update", in_progress(json!({"k:_-9": "v".repeat(1024)})));
}

#[test]
fn step_timer_runs_out_is_renewed_and_can_be_cleared() {
    let mut b = Bench::new();
    b.create("j1");
    let e = b.ok("start-next", json!({"stepTimeoutInMinutes": 1}));
    assert_eq!(e["execution"]["approximateSecondsBeforeTimedOut"], 60);
    b.now += Duration::from_secs(50);
    b.ok("j1/update", json!({"status": "IN_PROGRESS", "stepTimeoutInMinutes": 1}));
    b.now += Duration::from_secs(50);
    b.jobs.expire(b.now);
    assert_eq!(b.state("j1").0, Status::InProgress, "renewed");
    b.ok("j1/update", json!({"status": "IN_PROGRESS", "stepTimeoutInMinutes": -1}));
    b.now += Duration::from_secs(600);
    b.jobs.expire(b.now);
    assert_eq!(b.state("j1").0, Status::InProgress, "cleared");
    b.ok("j1/update", json!({"status": "IN_PROGRESS", "stepTimeoutInMinutes": 1}));
    b.now += Duration::from_secs(60);
    b.jobs.expire(b.now);
    assert_eq!(b.state("j1").0, Status::TimedOut);
    assert_eq!(b.refused("j1/update", json!({"status": "SUCCEEDED"}))["code"], "InvalidStateTransition");
}

#[test]
fn the_device_cannot_extend_the_in_progress_timer() {
    let mut b = Bench::new();
    let mut spec = JobSpec::new("j1", "dev", DOC);
    spec.in_progress_timeout = Some(Duration::from_secs(120));
    b.jobs.create(&spec, b.now).unwrap();
    b.now += Duration::from_secs(500);
    b.ok("start-next", json!({}));
    b.now += Duration::from_secs(100);
    b.ok("j1/update", json!({"status": "IN_PROGRESS", "stepTimeoutInMinutes": 10}));
    assert_eq!(b.ok("start-next", json!({}))["execution"]["approximateSecondsBeforeTimedOut"], 20);
    b.now += Duration::from_secs(20);
    assert_eq!(
        b.refused("j1/update", json!({"status": "SUCCEEDED"}))["executionState"]["status"],
        "TIMED_OUT"
    );
}

#[test]
fn failed_and_timed_out_are_retried_as_often_as_the_job_says() {
    let mut b = Bench::new();
    let mut spec = JobSpec::new("j1", "dev", DOC);
    spec.retries = Retries { failed: 1, timed_out: 1 };
    b.jobs.create(&spec, b.now).unwrap();
    assert_eq!(b.told(), ["j1"]);
    b.ok("j1/update", json!({"status": "FAILED"}));
    assert_eq!(b.state("j1"), (Status::Queued, 2, 1));
    assert_eq!(b.told(), ["j1"], "a new execution is another next one");
    let r = b.refused("j1/update", json!({"status": "FAILED", "executionNumber": 1}));
    assert_eq!(r["executionState"]["status"], "FAILED");
    b.ok("start-next", json!({"stepTimeoutInMinutes": 1}));
    b.now += Duration::from_secs(60);
    b.jobs.expire(b.now);
    assert_eq!(b.state("j1"), (Status::Queued, 3, 1));
    b.ok("j1/update", json!({"status": "FAILED"}));
    assert_eq!(b.state("j1"), (Status::Failed, 3, 2), "none left");
    b.create("j2");
    b.ok("j2/update", json!({"status": "REJECTED"}));
    assert_eq!(b.state("j2").1, 1, "REJECTED is never retried");
}

#[test]
fn cancel_spares_what_runs_unless_forced() {
    let mut b = Bench::new();
    b.create("j1");
    b.create("j2");
    b.ok("start-next", json!({}));
    b.jobs.cancel("j1", Force::No, b.now).unwrap();
    b.jobs.cancel("j2", Force::No, b.now).unwrap();
    assert_eq!((b.state("j1").0, b.state("j2").0), (Status::InProgress, Status::Canceled));
    assert_eq!(
        b.jobs.cancel_execution("dev", "j1", Force::No, b.now),
        Err(JobError::InProgress("j1".into()))
    );
    b.told();
    b.jobs.cancel("j1", Force::Yes, b.now).unwrap();
    assert_eq!(b.told(), ["-"]);
    assert_eq!(
        b.refused("j1/update", json!({"status": "SUCCEEDED"}))["executionState"]["status"],
        "CANCELED"
    );
}

#[test]
fn recreated_job_is_another_one() {
    let mut b = Bench::new();
    b.create("j1");
    assert_eq!(b.told(), ["j1"]);
    assert_eq!(b.jobs.create(&JobSpec::new("j1", "dev", DOC), b.now), Err(JobError::Exists("j1".into())));
    b.jobs.delete("j1", Force::Yes).unwrap();
    b.now += Duration::from_secs(5);
    b.create("j1");
    assert_eq!(b.told(), ["j1"]);
    assert_eq!(b.ok("start-next", json!({}))["execution"]["queuedAt"], 1005);
}

#[test]
fn get_pending_and_describe_answer() {
    let mut b = Bench::new();
    b.create("j1");
    b.create("j2");
    b.ok("start-next", json!({}));
    let pending = b.ok("get", json!({"clientToken": "p"}));
    assert_eq!(
        (&pending["inProgressJobs"][0]["jobId"], &pending["queuedJobs"][0]["jobId"]),
        (&json!("j1"), &json!("j2"))
    );
    assert_eq!(b.ok("$next/get", json!({}))["execution"]["jobId"], "j1");
    assert!(b.ok("j2/get", json!({"includeJobDocument": false}))["execution"].get("jobDocument").is_none());
    b.ok("j1/update", json!({"status": "SUCCEEDED"}));
    assert_eq!(b.refused("j1/get", json!({}))["code"], "TerminalStateReached");
}

#[test]
fn bad_jobs_are_refused_as_the_service_does() {
    let mut b = Bench::new();
    let mut create = |spec: JobSpec| b.jobs.create(&spec, Duration::ZERO);
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_DOCUMENT));
    assert!(matches!(create(JobSpec::new("j", "dev", &long)), Err(JobError::DocumentTooLong { .. })));
    assert!(matches!(create(JobSpec::new("j", "dev", "[1]")), Err(JobError::Document { .. })));
    assert!(matches!(create(JobSpec::new("j", "dev", "{")), Err(JobError::Document { .. })));
    assert!(matches!(create(JobSpec::new("a b", "dev", "{}")), Err(JobError::Name(_))));
    let mut spec = JobSpec::new("j", "dev", "{}");
    spec.presign_for = Duration::from_secs(3601);
    assert!(matches!(create(spec), Err(JobError::Range { .. })));
    b.jobs.create_unchecked(&JobSpec::new("j", "dev", &long), b.now).unwrap();
}

#[derive(Debug, Clone)]
enum Op {
    Create(u8, u32),
    Cancel(u8, bool),
    Delete(u8, bool),
    Ask(u8, u8, Value),
    Advance(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let status =
        prop_oneof![Just("IN_PROGRESS"), Just("SUCCEEDED"), Just("FAILED"), Just("REJECTED"), Just("QUEUED")];
    let body = (status, prop::option::of(-2..5i64), prop::option::of(0..4i64), prop::option::of(0..3i64))
        .prop_map(|(status, step, expected, number)| {
            json!({"status": status, "stepTimeoutInMinutes": step, "expectedVersion": expected,
            "executionNumber": number, "includeJobDocument": true, "includeJobExecutionState": true})
        });
    prop_oneof![
        (0..4u8, 0..3u32).prop_map(|(j, r)| Op::Create(j, r)),
        (0..4u8, any::<bool>()).prop_map(|(j, f)| Op::Cancel(j, f)),
        (0..4u8, any::<bool>()).prop_map(|(j, f)| Op::Delete(j, f)),
        (0..4u8, 0..4u8, body).prop_map(|(j, kind, body)| Op::Ask(j, kind, body)),
        (0..200u64).prop_map(Op::Advance),
    ]
}

fn apply(b: &mut Bench, op: Op) {
    let force = |f| if f { Force::Yes } else { Force::No };
    match op {
        Op::Create(j, retries) => {
            let mut spec = JobSpec::new(&format!("j{j}"), "dev", DOC);
            spec.retries = Retries { failed: retries, timed_out: retries };
            spec.in_progress_timeout = (retries == 2).then_some(Duration::from_secs(120));
            let _ = b.jobs.create(&spec, b.now);
        }
        Op::Cancel(j, f) => drop(b.jobs.cancel(&format!("j{j}"), force(f), b.now)),
        Op::Delete(j, f) => drop(b.jobs.delete(&format!("j{j}"), force(f))),
        Op::Ask(j, kind, body) => {
            let suffix = match kind {
                0 => "start-next".to_owned(),
                1 => format!("j{j}/get"),
                2 => "get".to_owned(),
                _ => format!("j{j}/update"),
            };
            b.ask(&suffix, body);
        }
        Op::Advance(s) => {
            b.now += Duration::from_secs(s);
            b.jobs.expire(b.now);
        }
    }
}

proptest! {
    #[test]
    fn versions_only_grow_and_ends_are_final(ops in prop::collection::vec(op(), 0..60)) {
        let mut b = Bench::new();
        for op in ops {
            let before = b.jobs.clone();
            apply(&mut b, op);
            for old in before.executions() {
                // A deleted execution is gone; one with the same order is the same one.
                let Some(new) = b.jobs.executions().find(|e| e.order == old.order) else { continue };
                prop_assert!(new.version >= old.version);
                prop_assert!(new == old || new.version > old.version, "a change without a new version");
                if old.status.is_terminal() {
                    prop_assert_eq!(new, old);
                }
            }
            let pending = b.jobs.pending("dev");
            let firsts = pending.iter().skip_while(|e| e.status == Status::InProgress);
            prop_assert!(firsts.clone().all(|e| e.status == Status::Queued));
            prop_assert!(b.jobs.executions().all(|e| !e.status.is_terminal() || e.remaining(b.now).is_none()));
        }
    }

    #[test]
    fn any_payload_on_any_topic_is_answered(topic in "(start-next|get|j1/update|\\$next/get|\\PC{0,20})",
                                            payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut b = Bench::new();
        b.create("j1");
        b.ask_raw(&topic, &payload);
    }
}

#[test]
fn topics_of_others_are_not_the_service_s() {
    assert!(parse_topic("$aws/things/dev/shadow/update").is_none());
    assert!(parse_topic("dt/x").is_none());
    assert_eq!(parse_topic("$aws/things/dev/jobs/j1/update"), Some(("dev", Ok(Topic::Update("j1".into())))));
}
