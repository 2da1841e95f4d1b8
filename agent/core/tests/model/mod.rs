//! The world around the update machine (UPDATE-RULES 6): a bootloader, two slot sets, a disk that fails, a cloud that
//! changes its mind, and the driver that performs actions exactly as `Action` describes them. Whatever must never
//! happen is checked where it would happen.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part of the world")]

mod calm;
mod cloud;
mod general;
mod judge;
mod loader;
mod perform;
mod steps;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use otandem_core::boot::{Booted, Facts, SetId};
use otandem_core::image::{Expect, Hex, Image, Sha256};
use otandem_core::machine::{Evidence, Hook, Machine, Now, Rules, Window};
use otandem_core::record::{Record, SlotStatus, State};
use otandem_core::time::Boottime;
use otandem_core::update::{JobKey, Origin, Then, Update};

pub use cloud::{Job, Status};
pub use general::Runner;
pub use loader::{Env, FULL};
pub use perform::{Fault, FaultKind};
pub use steps::{Palette, Step, steps};

pub const ENDPOINT: &str = "cloud.example";
pub const THING: &str = "thing-1";
pub const SLOT: &str = "rootfs";
/// Name of the job that is no update.
pub const GENERAL_JOB: &str = "general";

/// What an image does when it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firmware {
    /// Names it: its digest is made of it.
    pub id: u8,
    pub healthy: bool,
    pub crashes_agent: bool,
    pub reaches_cloud: bool,
}

impl Firmware {
    pub const fn good(id: u8) -> Self {
        Self { id, healthy: true, crashes_agent: false, reaches_cloud: true }
    }

    pub const fn sick(id: u8) -> Self {
        Self { healthy: false, ..Self::good(id) }
    }

    pub const fn dead(id: u8) -> Self {
        Self { crashes_agent: true, ..Self::good(id) }
    }

    pub const fn offline(id: u8) -> Self {
        Self { reaches_cloud: false, ..Self::good(id) }
    }

    pub fn digest(self) -> Sha256 {
        Hex([self.id; 32])
    }
}

/// What the slots of a set hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Empty,
    /// Its head is zero: cannot be loaded.
    Torn,
    Complete(Firmware),
}

/// The pipeline, as far as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipeline {
    No,
    Opening,
    Writing,
}

/// How one world differs from another.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub tries: u8,
    pub record_shared: bool,
    pub window: bool,
    /// What B holds in the beginning.
    pub b: Content,
    /// The device was settled before; else it starts without a record.
    pub settled: bool,
    /// Every action is written down, for tests that ask in which order they came.
    pub writes_down: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            tries: 1,
            record_shared: true,
            window: false,
            b: Content::Empty,
            settled: true,
            writes_down: true,
        }
    }
}

/// The device and the cloud.
pub struct World {
    pub env: Env,
    sets: [Content; 2],
    pub booted: Option<SetId>,
    boots: u32,
    pub time: Duration,
    wall_minutes: u64,
    pub rules: Rules,

    // The disk.
    pub disk: Option<Record>,
    history: Vec<Record>,
    pub disk_broken: bool,
    pub bootloader_broken: bool,
    pub fault: Option<Fault>,
    /// 1: sources disagree on the booted set; 2: the bootloader cannot be asked.
    pub blind: u8,
    /// Where the record would lie cannot be read.
    pub unread: bool,

    // The process and what it is waiting for.
    pub machine: Option<Machine>,
    pub hook: Option<Hook>,
    pub checking: bool,
    pub pipeline: Pipeline,
    pub runner: Option<Runner>,
    /// The step that runs has said that it reboots the device.
    pub asked_for_reboot: bool,
    pub reporting: bool,
    pub asking: bool,
    pub rebooting: bool,
    pub settled: bool,
    pub kept: bool,
    confirmed: Option<SetId>,
    pub answers: Vec<Result<String, String>>,
    pub said: Vec<String>,
    pub done: Vec<String>,
    writes_down: bool,

    // The cloud.
    pub jobs: Vec<Job>,
    firmwares: Vec<Firmware>,
    pub urls: u32,
    pub loses_answers: bool,

    // What the judge remembers.
    tried: [bool; 2],
    last_update: Option<(SetId, Origin)>,
    /// Outcomes that were saved or sent.
    seen: HashMap<JobKey, &'static str>,
    saved: HashSet<JobKey>,
    judged: Vec<(JobKey, &'static str)>,
    /// Another tool changed counters or the environment was reset: counters prove nothing any more.
    tampered: bool,
    /// The record is not the one that was saved last: it may speak of images that are gone.
    pub stale: bool,
    pub resets: u32,
    trace: bool,
}

impl World {
    pub fn new(setup: Setup) -> Self {
        let rules = Rules {
            health_timeout: Duration::from_secs(600),
            cloud_timeout: Duration::from_secs(1800),
            retry_interval: Duration::from_secs(300),
            defer_limit: Duration::from_secs(3 * 3600),
            reboot_window: setup.window.then_some(Window { from: 60, to: 300 }),
            record_shared: setup.record_shared,
            reboot_reserve: Duration::from_secs(900),
            slots: vec![SLOT.into()],
        };
        let mut world = Self {
            env: Env::new(setup.tries),
            sets: [Content::Complete(Firmware::good(1)), setup.b],
            booted: None,
            boots: 0,
            time: Duration::ZERO,
            wall_minutes: 0,
            rules,
            disk: setup.settled.then(|| settled_record(setup.b)),
            history: vec![],
            disk_broken: false,
            bootloader_broken: false,
            fault: None,
            blind: 0,
            unread: false,
            machine: None,
            hook: None,
            checking: false,
            pipeline: Pipeline::No,
            runner: None,
            asked_for_reboot: false,
            reporting: false,
            asking: false,
            rebooting: false,
            settled: false,
            kept: false,
            confirmed: None,
            answers: vec![],
            said: vec![],
            done: vec![],
            writes_down: setup.writes_down,
            jobs: vec![],
            firmwares: vec![Firmware::good(1)],
            urls: 0,
            loses_answers: false,
            tried: [false; 2],
            last_update: None,
            seen: HashMap::new(),
            saved: HashSet::new(),
            judged: vec![],
            tampered: false,
            stale: false,
            resets: 0,
            trace: std::env::var_os("OTANDEM_TRACE").is_some(),
        };
        if let Content::Complete(firmware) = setup.b {
            world.firmwares.push(firmware);
        }
        world.reset();
        world.resets = 0;
        world
    }

    // --- Looking ----------------------------------------------------------------------------------------------

    pub fn content(&self, set: SetId) -> Content {
        self.sets[usize::from(set == SetId::B)]
    }

    pub fn put(&mut self, set: SetId, content: Content) {
        self.sets[usize::from(set == SetId::B)] = content;
    }

    pub fn complete(&self, set: SetId) -> bool {
        matches!(self.content(set), Content::Complete(_))
    }

    /// What runs.
    pub fn running(&self) -> Option<Firmware> {
        match self.content(self.booted?) {
            Content::Complete(firmware) => Some(firmware),
            _ => None,
        }
    }

    /// The agent; fails where none runs.
    pub fn agent(&mut self) -> &mut Machine {
        self.machine.as_mut().expect("an agent runs")
    }

    pub fn state(&self) -> &State {
        &self.machine.as_ref().expect("an agent runs").record().state
    }

    pub fn phase(&self) -> &'static str {
        self.machine.as_ref().map_or("none", |m| m.record().state.name())
    }

    pub fn record(&self) -> &Record {
        self.machine.as_ref().expect("an agent runs").record()
    }

    pub fn now(&self) -> Now {
        let minute = u16::try_from(self.wall_minutes % 1440).expect("less than a day");
        Now { boot: Boottime(self.time), minute }
    }

    pub fn pass(&mut self, time: Duration) {
        let before = self.time.as_secs() / 60;
        self.time += time;
        self.wall_minutes += self.time.as_secs() / 60 - before;
    }

    pub fn boot_id(&self) -> String {
        format!("boot-{}", self.boots)
    }

    // --- Power and process ------------------------------------------------------------------------------------

    /// Power fails and comes back, or somebody resets the device.
    pub fn reset(&mut self) {
        let sets = self.sets;
        let loads = |set| matches!(sets[usize::from(set == SetId::B)], Content::Complete(_));
        let (tried, booted) = self.env.reset_device(loads);
        for set in tried {
            self.tried[usize::from(set == SetId::B)] = true;
        }
        assert!(booted.is_some(), "nothing boots any more: {:?} {:?}", self.env, self.sets);
        self.booted = booted;
        self.boots += 1;
        self.resets += 1;
        self.wall_minutes += 1;
        self.time = Duration::from_secs(5);
        (self.settled, self.kept, self.confirmed, self.rebooting) = (false, false, None, false);
        self.note(|w| format!("--- boot {} of {booted:?}, {:?}", w.boots, w.env));
        self.start_agent();
    }

    /// The agent's process starts (again).
    pub fn start_agent(&mut self) {
        self.machine = None;
        (self.hook, self.checking, self.pipeline, self.runner) = (None, false, Pipeline::No, None);
        (self.reporting, self.asking) = (false, false);
        let Some(firmware) = self.running() else { return };
        if firmware.crashes_agent {
            return;
        }
        let record = self.disk.as_ref().map(|r| {
            let bytes = r.encode().expect("a record that was saved can be encoded");
            let mut record = Record::decode(&bytes).expect("what was encoded is read again");
            assert_eq!(record, *r);
            record.disown(ENDPOINT, THING);
            record
        });
        let evidence = self.evidence();
        let (machine, actions) = Machine::start(record, evidence, self.rules.clone(), self.now());
        self.machine = Some(machine);
        self.note(|w| format!("    start as {}: {actions:?}", w.phase()));
        let boot = self.boots;
        self.perform(actions);
        if boot == self.boots {
            self.find_steps();
        }
    }

    fn evidence(&self) -> Evidence {
        let heads = SetId::BOTH.map(|s| self.complete(s));
        Evidence { facts: self.facts(), heads, unread: self.unread }
    }

    /// The agent that could not ask the bootloader asks again, as often as it likes.
    pub fn look_again(&mut self) {
        let evidence = self.evidence();
        let now = self.now();
        let Some(machine) = &mut self.machine else { return };
        let was = machine.untouchable().is_some();
        let actions = machine.look_again(evidence, now);
        if was && machine.untouchable().is_none() {
            self.settled = false;
        }
        self.note(|w| format!("    looks again in {}: {actions:?}", w.phase()));
        self.perform(actions);
    }

    fn facts(&self) -> Result<Facts, String> {
        let booted = match (self.blind, self.booted) {
            (2, _) => return Err("it does not answer".into()),
            (1, _) | (_, None) => Booted::Unknown,
            (_, Some(set)) => Booted::Set(set),
        };
        Ok(Facts {
            booted,
            boot_id: self.boot_id(),
            primary: self.env.primary(),
            a: self.env.state(SetId::A),
            b: self.env.state(SetId::B),
        })
    }

    /// The dead-man that does not need the agent: resets a device whose trial nobody settled.
    pub fn dead_man(&mut self) {
        if !self.settled {
            self.note(|_| "    dead-man".into());
            self.reset();
        }
    }

    pub fn note(&self, text: impl FnOnce(&Self) -> String) {
        if self.trace {
            eprintln!("{}", text(self));
        }
    }

    // --- Documents --------------------------------------------------------------------------------------------

    /// A new firmware: its number is its identity.
    pub fn firmware(&mut self, like: Firmware) -> Firmware {
        let id = u8::try_from(self.firmwares.len() + 10).expect("few firmwares in one run");
        let firmware = Firmware { id, ..like };
        self.firmwares.push(firmware);
        firmware
    }

    pub fn firmware_of(&self, image: &Image) -> Firmware {
        let id =
            image.source.rsplit('/').next().and_then(|s| s.split('?').next()).and_then(|s| s.parse().ok());
        *self.firmwares.iter().find(|f| Some(f.id) == id).expect("a known firmware")
    }

    /// The image of an update, under a URL that nobody saw before.
    pub fn image(&mut self, firmware: Firmware, digest_known: bool) -> Image {
        self.urls += 1;
        let sha256 = digest_known.then(|| firmware.digest());
        Image {
            slot: SLOT.into(),
            source: format!("https://images.example/{}?sig={}", firmware.id, self.urls),
            compression: None,
            raw: Expect { size: Some(100), sha256, md5: None },
            file: Expect { size: None, sha256: None, md5: Some(Hex([firmware.id; 16])) },
        }
    }

    pub fn local_update(&mut self, firmware: Firmware, then: Then) -> Update {
        let from = self.booted.expect("something runs");
        Update {
            origin: Origin::Local,
            from,
            target: from.other(),
            images: vec![self.image(firmware, true)],
            version: None,
            then,
            require_cloud: false,
            retry: true,
            written: vec![],
        }
    }
}

pub fn slot_status(firmware: Firmware) -> SlotStatus {
    SlotStatus {
        sha256: firmware.digest(),
        size: 100,
        file_sha256: None,
        md5: None,
        version: None,
        installed_at: 0,
        installs: 1,
    }
}

fn settled_record(b: Content) -> Record {
    let mut record = Record { confirmed: Some(SetId::A), ..Record::default() };
    if let Content::Complete(firmware) = b {
        record.slots_b.insert(SLOT.into(), slot_status(firmware));
    }
    record
}
