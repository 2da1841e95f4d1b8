use otandem_core::image::{Expect, Hex, Image};
use otandem_core::record::{Record, SlotStatus};
use otandem_core::update::{JobKey, Origin, Then, Update};

use super::life::Kind;
use super::*;

const JOB: &str = "job";

fn update() -> Update {
    let digest = Hex([2; 32]);
    Update {
        origin: Origin::Job {
            key: JobKey {
                endpoint: "cloud.example".into(),
                thing: "thing".into(),
                job: JOB.into(),
                execution: 1,
                queued_at: 1,
            },
            closed: false,
        },
        from: SetId::A,
        target: SetId::B,
        images: vec![Image {
            slot: "rootfs".into(),
            source: "https://images.example/2".into(),
            compression: None,
            raw: Expect { size: Some(1), sha256: Some(digest), md5: None },
            file: Expect::default(),
        }],
        version: Some("2.0".into()),
        then: Then::Reboot,
        require_cloud: true,
        retry: false,
        written: vec![digest],
    }
}

fn record(state: Phase) -> Record {
    let mut record = Record { state, confirmed: Some(SetId::A), ..Record::default() };
    let status = SlotStatus {
        sha256: Hex([2; 32]),
        size: 1,
        file_sha256: None,
        md5: None,
        version: None,
        installed_at: 0,
        installs: 1,
    };
    record.slots_b.insert("rootfs".into(), status);
    record
}

fn armed() -> Record {
    record(Phase::Armed { update: update(), boot_id: "before".into() })
}

/// GRUB's block after a verb of our back end in set A.
fn after(back_end: &mut BackEnd, verb: Verb) -> Memory {
    let mut memory = Memory::Grub(vec![]);
    back_end.ask(&mut memory, SetId::A, verb).unwrap();
    memory
}

/// A life from these bytes on.
fn live(verb: Verb, sets: [Content; 2], record: Record, fate: Fate) -> Result<Course, String> {
    let mut back_end = BackEnd::new().unwrap();
    let memory = after(&mut back_end, verb);
    let rules = rules(vec!["rootfs".into()]);
    let digests = [Hex([1; 32]).to_string(), Hex([2; 32]).to_string()];
    let disk = Some(record);
    let mut device = Device { memory, sets, disk, back_end: &mut back_end, digests: &digests, rules: &rules };
    device.live(fate)
}

const WHOLE: [Content; 2] = [Content::Complete(0), Content::Complete(1)];

#[test]
fn an_armed_set_comes_to_the_end_that_its_images_deserve() {
    for (fate, end, boots) in [
        (Fate::Well, (Kind::Succeeded, false), 1),
        (Fate::Sick, (Kind::Failed, true), 2),
        (Fate::Silent, (Kind::Failed, true), 2),
    ] {
        let course = live(Verb::Arm(SetId::B), WHOLE, armed(), fate).unwrap();
        assert_eq!(course.ends.get(JOB), Some(&end), "{fate:?}");
        assert_eq!((course.boots, course.ran[1]), (boots, true), "{fate:?}");
    }
}

#[test]
fn a_job_that_was_cut_while_it_wrote_begins_again_and_succeeds() {
    let sets = [Content::Complete(0), Content::Dead];
    let writing = record(Phase::Writing { update: update(), checkpoint: None });
    let course = live(Verb::MarkBad(SetId::B), sets, writing, Fate::Well).unwrap();
    assert_eq!(course.ends.get(JOB), Some(&(Kind::Succeeded, false)));
}

#[test]
fn a_loader_that_would_run_a_torn_set_is_found() {
    let sets = [Content::Complete(0), Content::Torn("half".into())];
    let why = live(Verb::Arm(SetId::B), sets, armed(), Fate::Well).unwrap_err();
    assert!(why.contains("set B is booted") && why.contains("half"), "{why}");
}

#[test]
fn a_device_with_nothing_to_boot_is_found() {
    let why = live(Verb::Facts, [Content::Dead, Content::Dead], armed(), Fate::Well).unwrap_err();
    assert!(why.contains("nothing is booted"), "{why}");
}

#[test]
fn an_arming_of_a_set_that_is_not_whole_is_found() {
    let written = record(Phase::Written { update: update() });
    let sets = [Content::Complete(0), Content::Torn("half".into())];
    let why = live(Verb::MarkBad(SetId::B), sets, written, Fate::Well).unwrap_err();
    assert!(why.contains("set B is armed"), "{why}");
}

#[test]
fn a_loader_that_forgets_its_confirmation_is_found() {
    // The record says that B is the set for good; the memory begins with A for ever.
    let mut idle = record(Phase::Idle);
    idle.confirmed = Some(SetId::B);
    idle.restores = 9;
    let why = live(Verb::MarkBad(SetId::B), WHOLE, idle, Fate::Well).unwrap_err();
    assert!(why.contains("late fallback"), "{why}");
}

fn cut(after: u64, model: Model) -> Cut {
    Cut { after, model, repeat: false }
}

fn finding(end: Option<End>, ends: End, tried: bool, ran_b: bool) -> Finding {
    let course = Course { ends: [(JOB.to_owned(), ends)].into(), ran: [true, ran_b], boots: 1 };
    Finding {
        ends: end.map(|end| (JOB.to_owned(), end)).into_iter().collect(),
        job: Some((JOB.to_owned(), tried)),
        courses: vec![course],
    }
}

#[test]
fn an_outcome_that_was_told_and_changes_is_found() {
    let done = (Kind::Succeeded, false);
    let mut past = Past::default();
    past.add(cut(1, Model::Prefix), &finding(Some(done), done, false, true)).unwrap();
    past.add(cut(2, Model::Prefix), &finding(None, done, false, true)).unwrap();
    past.add(cut(3, Model::DropSinceFlush), &finding(Some(done), done, false, true)).unwrap();
    for changed in [None, Some((Kind::Failed, false))] {
        let why = past.add(cut(4, Model::Prefix), &finding(changed, done, false, true)).unwrap_err();
        assert!(why.contains("was told to have ended"), "{why}");
    }
}

#[test]
fn rolled_back_without_a_try_is_found() {
    let back = (Kind::Failed, true);
    let mut past = Past::default();
    past.add(cut(1, Model::Prefix), &finding(None, back, false, true)).unwrap();
    let why = past.add(cut(2, Model::Prefix), &finding(None, back, false, false)).unwrap_err();
    assert!(why.contains("was never tried"), "{why}");
    past.add(cut(3, Model::Prefix), &finding(None, back, true, false)).unwrap();
    past.add(cut(4, Model::Prefix), &finding(None, back, false, false)).unwrap();
}

#[test]
fn a_job_without_an_end_is_found() {
    let mut open = finding(None, (Kind::Failed, false), false, true);
    open.courses[0].ends.clear();
    let why = Past::default().add(cut(1, Model::Prefix), &open).unwrap_err();
    assert!(why.contains("has no end"), "{why}");
}
