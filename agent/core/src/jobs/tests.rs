//! Each row of UPDATE-RULES 5.2, on a scripted cloud.

use serde_json::{Value, json};

use super::*;

fn desk() -> Desk {
    Desk::new(Identity { endpoint: "e".into(), thing: "t".into(), step_timeout: None }, 7)
}

fn at(seconds: u64) -> Boottime {
    Boottime(Duration::from_secs(seconds))
}

fn key(job: &str) -> JobKey {
    JobKey { endpoint: "e".into(), thing: "t".into(), job: job.into(), execution: 1, queued_at: 5 }
}

fn ended(job: &str) -> Finished {
    Finished {
        key: key(job),
        outcome: Some(Outcome::failed("line\ntwo é")),
        seal: Some("v1;x".into()),
        details: Details::new(),
    }
}

fn published(out: &[Output]) -> Vec<(String, Value)> {
    out.iter()
        .filter_map(|o| match o {
            Output::Publish { topic, payload } => {
                Some((topic.clone(), serde_json::from_slice(payload).expect("our own JSON")))
            }
            _ => None,
        })
        .collect()
}

fn one(out: &[Output]) -> (String, Value) {
    let mut all = published(out);
    assert_eq!(all.len(), 1, "{out:?}");
    all.remove(0)
}

fn answer(
    desk: &mut Desk,
    request: &(String, Value),
    accepted: bool,
    mut body: Value,
    now: u64,
) -> Vec<Output> {
    body["clientToken"] = request.1["clientToken"].clone();
    let topic = format!("{}/{}", request.0, if accepted { "accepted" } else { "rejected" });
    desk.message(&topic, body.to_string().as_bytes(), at(now))
}

fn refused(code: &str, state: &str) -> Value {
    json!({"code": code, "message": "m", "executionState": {"status": state, "versionNumber": 3}})
}

/// A desk whose outbox holds `j1`, connected; and the terminal update it sent.
fn flushing() -> (Desk, (String, Value)) {
    let mut d = desk();
    let sent = one(&d.up([ended("j1")].iter(), at(0)));
    (d, sent)
}

#[test]
fn the_outbox_is_flushed_and_answered_before_the_next_job_is_asked_for() {
    let (mut d, sent) = flushing();
    assert_eq!(sent.0, "$aws/things/t/jobs/j1/update");
    assert_eq!(sent.1["status"], "FAILED");
    assert_eq!(sent.1["executionNumber"], 1);
    assert!(sent.1.get("expectedVersion").is_none());
    assert_eq!(sent.1["statusDetails"]["reason"], "line two é");
    assert!(d.ask_next(at(0)).is_empty());
    let out = answer(&mut d, &sent, true, json!({}), 1);
    assert_eq!(out[0], Output::Acknowledged(key("j1")));
    assert_eq!(one(&out).0, "$aws/things/t/jobs/start-next");
}

#[test]
fn a_terminal_update_has_the_same_token_in_every_life() {
    let (_, a) = flushing();
    let mut other = Desk::new(Identity { endpoint: "e".into(), thing: "t".into(), step_timeout: None }, 99);
    let b = one(&other.up([ended("j1")].iter(), at(0)));
    assert_eq!(a.1["clientToken"], b.1["clientToken"]);
}

#[test]
fn an_outcome_that_the_cloud_already_has_or_closed_is_done() {
    for (code, state) in [
        ("InvalidStateTransition", "FAILED"),
        ("InvalidStateTransition", "TIMED_OUT"),
        ("VersionMismatch", "CANCELED"),
        ("ResourceNotFound", ""),
    ] {
        let (mut d, sent) = flushing();
        let out = answer(&mut d, &sent, false, refused(code, state), 1);
        assert!(out.contains(&Output::Acknowledged(key("j1"))), "{code} {state}: {out:?}");
    }
}

#[test]
fn an_outcome_refused_while_in_progress_throttled_or_failing_is_sent_again() {
    for (code, state) in [
        ("InvalidStateTransition", "IN_PROGRESS"),
        ("VersionMismatch", "IN_PROGRESS"),
        ("RequestThrottled", ""),
        ("InternalError", ""),
    ] {
        let (mut d, sent) = flushing();
        assert!(published(&answer(&mut d, &sent, false, refused(code, state), 1)).is_empty());
        let due = d.next_wake().unwrap();
        assert!(due <= at(1 + 2));
        let again = one(&d.tick(due));
        assert_eq!(again.1, sent.1, "{code}");
    }
}

#[test]
fn silence_is_answered_by_sending_again_with_growing_pauses() {
    let (mut d, sent) = flushing();
    assert_eq!(d.next_wake(), Some(at(10)));
    assert!(d.tick(at(10)).is_empty());
    let due = d.next_wake().unwrap();
    assert!(due <= at(12));
    assert_eq!(one(&d.tick(due)).1, sent.1);
}

#[test]
fn an_outcome_that_is_invalid_is_sent_once_more_in_plain_words_and_then_closed() {
    let (mut d, sent) = flushing();
    let again = one(&answer(&mut d, &sent, false, refused("InvalidRequest", ""), 1));
    assert_eq!(again.1["statusDetails"], json!({"reason": "line?two ?"}));
    let out = answer(&mut d, &again, false, refused("InvalidRequest", ""), 2);
    assert!(out.contains(&Output::Acknowledged(key("j1"))));
}

#[test]
fn a_lost_session_asks_everything_again_after_the_next_flush() {
    let (mut d, _) = flushing();
    d.ask_next(at(0));
    d.down();
    let sent = one(&d.up([ended("j1")].iter(), at(20)));
    assert_eq!(sent.0, "$aws/things/t/jobs/j1/update");
    assert_eq!(one(&answer(&mut d, &sent, true, json!({}), 21)).0, "$aws/things/t/jobs/start-next");
}

#[test]
fn start_next_gives_the_execution_with_its_time_and_details() {
    let mut d = desk();
    d.up([].iter(), at(0));
    let sent = one(&d.ask_next(at(0)));
    let execution = json!({"jobId":"j2","queuedAt":7,"executionNumber":2,"jobDocument":{"operation":"fota"},
        "statusDetails":{"otandem":"v1;a"},"approximateSecondsBeforeTimedOut":90});
    let out = answer(&mut d, &sent, true, json!({"execution": execution}), 1);
    assert_eq!(out[0], Output::Accepted);
    let Output::Job(e) = &out[1] else { panic!("{out:?}") };
    assert_eq!(
        (e.key.job.as_str(), e.key.execution, e.key.queued_at, e.seconds_left),
        ("j2", 2, 7, Some(90))
    );
    assert_eq!(e.details["otandem"], "v1;a");
}

#[test]
fn an_answer_without_an_execution_is_still_an_accepted_answer() {
    let mut d = desk();
    d.up([].iter(), at(0));
    let sent = one(&d.ask_next(at(0)));
    assert_eq!(answer(&mut d, &sent, true, json!({"timestamp": 1}), 1), vec![Output::Accepted]);
}

#[test]
fn a_late_answer_to_an_older_request_is_no_answer() {
    let mut d = desk();
    d.up([].iter(), at(0));
    let old = one(&d.ask_next(at(0)));
    d.tick(at(10));
    let due = d.next_wake().unwrap();
    let new = one(&d.tick(due));
    assert!(answer(&mut d, &old, true, json!({}), 20).is_empty());
    assert_eq!(answer(&mut d, &new, true, json!({}), 20), vec![Output::Accepted]);
}

#[test]
fn a_job_ended_by_the_cloud_is_closed() {
    for (code, state) in
        [("InvalidStateTransition", "CANCELED"), ("ResourceNotFound", ""), ("VersionMismatch", "TIMED_OUT")]
    {
        let mut d = desk();
        d.up([].iter(), at(0));
        let sent = one(&d.ask_alive(key("j"), Details::new(), at(0)));
        assert_eq!(sent.1["includeJobDocument"], true);
        let out = answer(&mut d, &sent, false, refused(code, state), 1);
        assert!(matches!(&out[0], Output::Closed(k, _) if *k == key("j")), "{code}: {out:?}");
    }
}

#[test]
fn a_job_that_lives_comes_with_its_fresh_document() {
    let mut d = desk();
    d.up([].iter(), at(0));
    let sent = one(&d.ask_alive(key("j"), Details::new(), at(0)));
    let out = answer(&mut d, &sent, true, json!({"jobDocument": {"operation": "fota"}}), 1);
    assert_eq!(out, vec![Output::Alive(key("j"), Some(json!({"operation": "fota"})))]);
}

#[test]
fn progress_does_not_queue_up_and_the_latest_goes_next() {
    let mut d = desk();
    d.up([].iter(), at(0));
    let details = |p: &str| Details::from([("percent".to_owned(), p.to_owned())]);
    let first = one(&d.report(key("j"), details("1"), false, at(0)));
    assert!(d.report(key("j"), details("2"), false, at(1)).is_empty());
    assert!(d.report(key("j"), details("3"), false, at(2)).is_empty());
    let next = one(&answer(&mut d, &first, true, json!({}), 3));
    assert_eq!(next.1["statusDetails"]["percent"], "3");
}

#[test]
fn each_new_phase_is_told_although_the_one_before_got_no_answer_yet() {
    let mut d = desk();
    d.up([].iter(), at(0));
    let phase = |p: &str| Details::from([("phase".to_owned(), p.to_owned())]);
    one(&d.report(key("j"), phase("writing"), false, at(0)));
    assert!(d.report(key("j"), phase("writing"), false, at(1)).is_empty(), "progress waits");
    for next in ["written", "armed"] {
        let told = one(&d.report(key("j"), phase(next), next == "armed", at(2)));
        assert_eq!(told.1["statusDetails"]["phase"], next);
    }
}

#[test]
fn the_armed_seal_is_acknowledged_and_survives_a_lost_session() {
    let mut d = desk();
    let armed = Details::from([("otandem".to_owned(), "v1;armed".to_owned())]);
    assert!(d.report(key("j"), armed, true, at(0)).is_empty(), "no session yet");
    let sent = one(&d.up([].iter(), at(1)));
    d.down();
    let again = one(&d.up([].iter(), at(2)));
    assert_eq!(sent.1["statusDetails"], again.1["statusDetails"]);
    assert_eq!(answer(&mut d, &again, true, json!({}), 3), vec![Output::SealAcknowledged(key("j"))]);
}

#[test]
fn an_outcome_overtakes_progress_of_the_same_job() {
    let mut d = desk();
    d.up([].iter(), at(0));
    d.report(key("j1"), Details::new(), false, at(0));
    d.report(key("j1"), Details::new(), false, at(0));
    let sent = one(&d.flush([ended("j1")].iter(), at(1)));
    assert_eq!(sent.1["status"], "FAILED");
    assert_eq!(answer(&mut d, &sent, true, json!({}), 2), vec![Output::Acknowledged(key("j1"))]);
}

#[test]
fn a_report_without_answer_for_an_ended_job_does_not_hold_up_the_next_job() {
    let mut d = desk();
    d.up([].iter(), at(0));
    let lost = one(&d.report(key("j1"), Details::new(), true, at(0)));
    let alive = one(&d.ask_alive(key("j1"), Details::new(), at(1)));
    let out = answer(&mut d, &alive, false, refused("InvalidStateTransition", "CANCELED"), 2);
    assert_eq!(out, vec![Output::Closed(key("j1"), "CANCELED".into())]);
    let next = one(&d.report(key("j2"), Details::new(), true, at(3)));
    assert!(next.0.contains("j2") && lost.0.contains("j1"), "{next:?}");
}

#[test]
fn after_a_deletion_an_answer_about_another_job_of_the_same_name_does_not_count() {
    let mut d = desk();
    d.up([].iter(), at(0));
    let alive = one(&d.ask_alive(key("j"), Details::new(), at(0)));
    let next = one(&d.replaced(&key("j"), at(1)));
    assert!(next.0.ends_with("start-next"), "{next:?}");
    let late = answer(&mut d, &alive, true, json!({"jobDocument": {"operation": "fota"}}), 2);
    assert_eq!(late, vec![]);
    let execution = json!({"jobId": "j", "queuedAt": 9, "executionNumber": 1, "jobDocument": {}});
    let out = answer(&mut d, &next, true, json!({ "execution": execution }), 3);
    assert!(matches!(&out[..], [Output::Accepted, Output::Job(e)] if e.key.queued_at == 9), "{out:?}");
}

#[test]
fn hostile_payloads_cost_one_warning() {
    let mut d = desk();
    d.up([].iter(), at(0));
    d.ask_next(at(0));
    for payload in [&b"\xff\xfe"[..], b"[]", b"{\"execution\": 7}", &[b'['; 70_000], &[b' '; 200_000]] {
        for topic in ["start-next/accepted", "notify-next", "j/update/rejected"] {
            let out = d.message(&format!("$aws/things/t/jobs/{topic}"), payload, at(1));
            assert!(out.iter().all(|o| matches!(o, Output::Warn(_))), "{out:?}");
        }
    }
    let next = json!({"execution": {"jobId": "j", "queuedAt": 5, "executionNumber": 1}}).to_string();
    let hint = Output::NextChanged(Some(key("j")));
    assert_eq!(
        d.message("$aws/things/t/jobs/notify-next", next.as_bytes(), at(1)),
        vec![hint],
        "the next is served"
    );
    assert!(d.message("something/else", b"{}", at(1)).is_empty());
}
