//! The loop with a bootloader of the tests' own.

use std::collections::VecDeque;

use otandem_boot::{BootControl, BootError, View};
use otandem_core::boot::{Booted, Facts, SetId, SetState};
use otandem_core::machine::{Evidence, Rules};
use otandem_device::state::{RecordStore, StateDir};

use super::world::Loader;
use super::*;
use crate::cloud::identity;
use crate::config::{BootKind, Settings, Sources};
use crate::control::{Answer, Request};

/// Fails as often as it is told to, then is a bootloader that boots set A.
struct Flaky {
    failures: u32,
}

impl BootControl for Flaky {
    fn facts(&mut self) -> Result<Facts, BootError> {
        if self.failures > 0 {
            self.failures -= 1;
            return Err(BootError::Config("its storage is not there yet".into()));
        }
        let (a, b) = (SetState::Good, SetState::Bad);
        let booted = Booted::Set(SetId::A);
        Ok(Facts { booted, boot_id: "boot".into(), primary: Some(SetId::A), a, b })
    }

    fn view(&mut self) -> Result<View, BootError> {
        Ok(View { loader: "flaky".into(), values: vec![] })
    }

    fn arm(&mut self, _: SetId) -> Result<(), BootError> {
        unreachable!("nothing is armed here")
    }

    fn keep(&mut self, _: SetId) -> Result<(), BootError> {
        Ok(())
    }

    fn disarm(&mut self, _: SetId) -> Result<(), BootError> {
        unreachable!("nothing is disarmed here")
    }

    fn confirm(&mut self, _: SetId) -> Result<(), BootError> {
        Ok(())
    }

    fn mark_bad(&mut self, set: SetId) -> Result<(), BootError> {
        Err(BootError::NoFallback { set })
    }
}

fn settings(dir: &std::path::Path) -> Settings {
    let config = dir.join("otandem.toml");
    let text = format!(
        "[slots.A]\nrootfs = '{dir}/a'\n[slots.B]\nrootfs = '{dir}/b'\n\
         [bootloader]\nkind = 'simulated'\ndirectory = '{dir}/none'\n\
         [update]\nstate-dir = '{dir}/state'\nrun-dir = '{dir}/run'\nhealth-dir = '{dir}/health.d'\n\
         state-shared = false\n",
        dir = dir.display()
    );
    std::fs::write(&config, text).unwrap();
    let (settings, findings) =
        Settings::load(&Sources { explicit: Some(config), ..Sources::default() }).unwrap();
    assert_eq!(findings, []);
    settings
}

/// Rules by which nothing ends by itself while a test runs.
pub(crate) fn patient_rules() -> Rules {
    let hour = Duration::from_secs(3600);
    Rules {
        health_timeout: hour,
        cloud_timeout: hour,
        retry_interval: hour,
        defer_limit: hour,
        reboot_window: None,
        record_shared: true,
        reboot_reserve: hour,
        slots: vec!["rootfs".into()],
    }
}

/// An agent whose bootloader failed at the start and fails `failures` times more.
fn agent(dir: &std::path::Path, failures: u32) -> Agent {
    agent_with(settings(dir), failures)
}

fn agent_with(settings: Settings, failures: u32) -> Agent {
    let state = StateDir::open(&settings.state_dir).unwrap();
    let lock = state.lock().unwrap();
    let (store, _) = RecordStore::open(&state, &lock).unwrap();
    let evidence = Evidence { facts: Err("not there yet".into()), heads: [true, false], unread: false };
    let (machine, first) = Machine::start(None, evidence, patient_rules(), Agent::now());
    let loader = Loader { kind: BootKind::Custom, control: Box::new(Flaky { failures }) };
    let performer = Performer::new(settings, Some(store), Some(loader), identity::clock(0), None);
    let opened = Opened { machine, first, performer };
    Agent::new(Parts {
        opened,
        features: vec![],
        link: None,
        service: Service::none(),
        rules: None,
        named: None,
    })
}

async fn status(calls: &mpsc::Sender<Call>) -> serde_json::Value {
    let (reply, _progress, answer) = Reply::channel();
    calls.send(Call { request: Request::Status, reply }).await.unwrap();
    match answer.await.unwrap() {
        Answer::Done { data, .. } => data,
        Answer::Failed { reason, .. } => panic!("{reason}"),
    }
}

#[tokio::test]
async fn a_bootloader_that_failed_at_the_start_is_asked_again_and_the_device_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = agent(dir.path(), 1);
    // The time of the next look comes from the status, which sees that it answers again.
    agent.look.due = boottime().after(Duration::from_secs(3600));
    let (calls, inbox) = mpsc::channel(1);
    let (stop, stopped) = oneshot::channel();
    let people = async {
        let mut seen = VecDeque::new();
        loop {
            let status = status(&calls).await;
            let settled = status["settled"] == true && status["ready"] == true;
            seen.push_back(status);
            if settled {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = stop.send(());
        seen
    };
    let (mut seen, ended) = tokio::join!(people, agent.run(inbox, stopped, Until::Stopped));
    assert_eq!(ended, Ended::Stopped);
    let (first, last) = (seen.pop_front().unwrap(), seen.pop_back().unwrap());
    assert!(first["attention"].to_string().contains("cannot be asked: not there yet"), "{first}");
    assert_eq!((&first["booted"], &first["ready"]), (&serde_json::Value::Null, &false.into()), "{first}");
    assert_eq!((&last["booted"], &last["confirmed"]), (&"A".into(), &"A".into()), "{last}");
    assert_eq!(std::fs::read_to_string(dir.path().join("run/settled")).unwrap(), "A\n");
}

#[test]
fn a_bootloader_that_goes_on_failing_is_asked_less_and_less_often() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = agent(dir.path(), u32::MAX);
    for _ in 0..20 {
        agent.look_again();
        assert!(agent.machine.untouchable().is_some_and(|why| why.contains("cannot be asked")));
        assert!(agent.look.due <= boottime().after(LOOK_AGAIN.1));
    }
    assert_eq!(agent.look.backoff.ceiling(), LOOK_AGAIN.1);
}

#[test]
fn a_running_set_that_the_bootloader_keeps_is_told_from_a_bootloader_that_fails() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = agent(dir.path(), 0);
    agent.look_again();
    assert_eq!(agent.machine.booted(), Some(SetId::A));
    let refused = agent.perform(&Action::Disarm(SetId::A)).unwrap_err();
    assert!(matches!(&refused, NotDone::NoFallback(why) if why.contains("not bootable")), "{refused:?}");
    let failed = agent.perform(&Action::MarkBad(SetId::B)).unwrap_err();
    assert!(matches!(failed, NotDone::Failed(_)), "{failed:?}");
}

#[test]
fn a_partition_that_is_not_there_wants_attention_and_a_file_that_an_update_makes_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path());
    let updates = settings.updates.as_mut().unwrap();
    updates.b.slots.insert("rootfs".into(), "/dev/disk-that-is-not-there".into());
    let attention = agent_with(settings, 0).status()["attention"].to_string();
    assert!(attention.contains("slot rootfs of set B is missing"), "{attention}");
    assert!(attention.contains("/dev/disk-that-is-not-there"), "{attention}");
    assert!(!attention.contains("of set A is missing"), "{attention}");
}

#[test]
fn a_configuration_that_hides_where_the_record_lies_leaves_the_boot_to_the_dead_man() {
    let settles = |text: &str, record: bool| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("otandem.toml");
        std::fs::write(&file, text).unwrap();
        let sources =
            Sources { explicit: Some(file), state_dir: Some(dir.path().join("state")), ..Sources::default() };
        let (settings, _) = Settings::load(&sources).unwrap();
        if record {
            let state = StateDir::open(&settings.state_dir).unwrap();
            let (mut store, _) = RecordStore::open(&state, &state.lock().unwrap()).unwrap();
            store.save(&otandem_core::record::Record::default().encode().unwrap()).unwrap();
        }
        open(&settings, identity::clock(0), None).unwrap().first.contains(&Action::Settled)
    };
    assert!(!settles("[slots.A\n", false), "a trial may be pending");
    assert!(!settles("[slots.A]\nrootfs = 'relative'\n", false), "a trial may be pending");
    assert!(settles("[slots.A\n", true), "the record says that nothing is pending");
    assert!(settles("[jobs]\nenabled = true\n", false), "a device without updates");
}
