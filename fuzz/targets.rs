//! What is fuzzed: every format that comes from outside, bytes in. A target must not panic; what it may return is held
//! by the tests of each module. `fuzz_targets/` runs these under a fuzzer, `agent/core/tests/corpora.rs` replays
//! the corpora on a stable compiler. What the boot back ends read is in `boot_targets.rs`.

use otandem_core::formats::{self, ArrayStyle, Format};
use otandem_core::services::definition;
use otandem_core::{filter, fota, frame, image, jobs, messages, provisioning, record, seal};

/// What runs on one input.
pub type Target = fn(&[u8]);

/// Name and function of each target.
pub const ALL: [(&str, Target); 13] = [
    ("job_document", job_document),
    ("job_plan", job_plan),
    ("jobs_payload", jobs_payload),
    ("frame", frame_of_a_record),
    ("record", record_of_a_device),
    ("seal", seal_of_a_job),
    ("digest", digest_of_an_image),
    ("message", message_file),
    ("shell", settings_in_shell),
    ("dotenv", settings_in_dotenv),
    ("definition", definition_of_a_service),
    ("topic_filter", topic_filter),
    ("provisioning", answers_of_provisioning),
];

/// A job document as text.
pub fn job_document(data: &[u8]) {
    if let Ok(document) = fota::parse_text(data) {
        assert!(!document.images.is_empty(), "an update without an image");
        for image in &document.images {
            let sha256 = image.raw.sha256.is_some() || image.file.sha256.is_some();
            assert!(sha256 || (image.file.md5.is_some() && image.source.starts_with("https:")), "no trust");
        }
    }
}

/// A document of a general job as text.
pub fn job_plan(data: &[u8]) {
    if let Ok(jobs::document::JobDocument::Plan(plan)) = jobs::document::parse_text(data, Default::default())
    {
        for step in plan.all_steps() {
            let installs = matches!(step.action, jobs::document::Action::Install { .. });
            assert!(
                installs || step.argv().first().is_some_and(|a| !a.is_empty()),
                "a step without a program"
            );
            assert!(step.argv().iter().all(|a| !a.contains('\0')), "an argument that cannot be passed");
        }
    }
}

/// Topic, a zero byte, payload: any message of the broker, at a desk that waits for answers.
pub fn jobs_payload(data: &[u8]) {
    let mut parts = data.splitn(2, |b| *b == 0);
    let (Some(topic), Some(payload)) = (parts.next(), parts.next()) else { return };
    let me = jobs::Identity { endpoint: "e".into(), thing: "t".into(), step_timeout: None };
    let mut desk = jobs::Desk::new(me, 1);
    let now = otandem_core::time::Boottime::default();
    desk.up([].iter(), now);
    desk.ask_next(now);
    desk.message(&String::from_utf8_lossy(topic), payload, now);
}

/// One copy of the record as it lies on disk.
pub fn frame_of_a_record(data: &[u8]) {
    if let Ok(found) = frame::decode(data) {
        assert!(found.payload.len() < data.len());
    }
}

/// The payload of such a copy.
pub fn record_of_a_device(data: &[u8]) {
    if let Ok(found) = record::Record::decode(data) {
        // What was read can be written and read again.
        if let Ok(bytes) = found.encode() {
            assert_eq!(record::Record::decode(&bytes).ok(), Some(found));
        }
    }
}

/// The entry of statusDetails.
pub fn seal_of_a_job(data: &[u8]) {
    if let Ok(seal) = String::from_utf8_lossy(data).parse::<seal::Seal>() {
        assert_eq!(seal.to_string().parse(), Ok(seal));
    }
}

/// A digest in hex.
pub fn digest_of_an_image(data: &[u8]) {
    if let Ok(digest) = String::from_utf8_lossy(data).parse::<image::Sha256>() {
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
}

/// A letterhead, a zero byte, a message file; or a message file alone.
pub fn message_file(data: &[u8]) {
    let (letterhead, file) = match data.iter().position(|b| *b == 0) {
        Some(at) => (messages::Letterhead::read(&data[..at]).ok(), &data[at + 1..]),
        None => (None, data),
    };
    let rules = messages::Rules { letterhead, ..Default::default() };
    if let Ok(message) = messages::read(file, &rules) {
        assert_eq!(
            messages::check_topic(&message.topic, rules.reserved),
            Ok(()),
            "a topic that no broker takes"
        );
        assert!(message.payload.len() <= messages::MAX_PAYLOAD, "a payload that no broker takes");
    }
}

/// Assignments of a shell.
pub fn settings_in_shell(data: &[u8]) {
    settings(Format::Shell, data);
}

/// A file of an environment.
pub fn settings_in_dotenv(data: &[u8]) {
    settings(Format::Dotenv, data);
}

/// What was read and can be written is, from then on, read and written as the same.
fn settings(format: Format, data: &[u8]) {
    let read = |text: &[u8]| formats::parse(format, text, |_| Err(String::new()));
    let Ok(value) = read(data) else { return };
    for arrays in [ArrayStyle::Bash, ArrayStyle::Indexed] {
        if let Ok(printed) = formats::print(format, &value, arrays) {
            let again = read(&printed).and_then(|value| formats::print(format, &value, arrays));
            assert_eq!(again, Ok(printed), "a file that changes by being written again");
        }
    }
}

/// A definition of a service as a module of JavaScript.
pub fn definition_of_a_service(data: &[u8]) {
    if let Ok(service) = definition::read("service.js", data, |_| Err(String::new())) {
        assert!(!service.key.is_empty() && !service.notifycmd.is_empty() && !service.timeout.is_zero());
        assert!(
            service.outfile.is_none_or(|file| file.path.is_absolute()),
            "a file beside the working directory"
        );
    }
}

/// A topic filter, a zero byte, a topic or another filter.
pub fn topic_filter(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, second) = text.split_once('\0').unwrap_or((&text, "a/b"));
    let Ok(filter) = filter::Filter::new(first) else { return };
    assert!(filter.covers(&filter), "a filter that does not mean what it means");
    assert_eq!(filter.matches(first), !first.contains(['+', '#']), "{first}");
    if let Ok(other) = filter::Filter::new(second) {
        let covers = [filter.covers(&other), other.covers(&filter)];
        let kept = filter::widest([&filter, &other]).len();
        assert_eq!(kept, if covers == [false; 2] { 2 } else { 1 }, "{first} {second}");
    }
}

/// What the cloud says while a device is provisioned, and the record that an attempt leaves.
pub fn answers_of_provisioning(data: &[u8]) {
    use provisioning::{KeyOrigin, answer, is_thing_name};
    for key in [KeyOrigin::Device, KeyOrigin::Cloud] {
        if let Ok(made) = answer::created(data, key) {
            assert!(answer::is_certificate_id(&made.certificate), "an id that names no directory");
            assert!(made.key.is_some() == (key == KeyOrigin::Cloud));
        }
    }
    if let Ok(registered) = answer::registered(data) {
        assert!(is_thing_name(&registered.thing), "a name that is none");
    }
    let said = answer::rejected(data).to_string();
    assert!(!said.contains(char::is_control), "a line that is not one");
    if let Some(found) = provisioning::record::Record::from_bytes(data) {
        assert!(provisioning::record::Record::from_bytes(&found.to_bytes()) == Some(found));
    }
}
