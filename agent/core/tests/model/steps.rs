//! What may happen next, chosen by proptest.

use std::time::Duration;

use otandem_core::boot::SetId;
use otandem_core::jobs::wire::Details;
use otandem_core::machine::{Cloud, Event, Health, Hook, HookAnswer, Verb};
use otandem_core::record::{Finished, Record, State};
use otandem_core::update::{JobKey, Origin, Outcome, Then};
use proptest::prelude::*;

use super::perform::written_image;
use super::{
    Content, ENDPOINT, FULL, Fault, FaultKind, Firmware, Pipeline, SLOT, Status, World, slot_status,
};

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum Step {
    /// Whatever the device waits for comes, as it should.
    Go,
    /// The session gets a turn.
    Talk,
    /// The thread of a general job comes to its next point.
    StepsGoOn,
    /// The same, but every answer is lost.
    TalkUnanswered,
    /// Only the news that the job ended.
    Notify,
    /// An answer that nobody waits for, or one more time.
    LateCloud(u8),
    Health(u8),
    Hook(u8),
    /// A hook answers that was not asked.
    LateHook(u8),
    Fetch(u8),
    /// Events of a pipeline that is not at this point.
    LateFetch(u8),
    /// Time passes to the next wake, and the tick comes.
    Wait,
    /// Time jumps by so many minutes.
    Jump(u16),
    /// The reboot that was asked for comes.
    Reboots,

    NewJob {
        like: Firmware,
        digest_known: bool,
        retry: bool,
        then: Then,
        /// With the image of an earlier one, if it is in the list.
        known: Option<u8>,
        /// Its image is installed by a step of a general job.
        steps: bool,
        /// That this step fails is no failure of the job.
        ignores: bool,
    },
    JobAgain {
        recreated: bool,
    },
    CloudEnds {
        deleted: bool,
    },
    TimeLeft(u16),
    Install {
        like: Firmware,
        then: Then,
    },
    Verb(u8),

    Fault(Fault),
    DiskBroken(bool),
    BootloaderBroken(bool),
    AgentDies,
    PowerCut,
    DeadMan,
    /// The slots are complete, and power fails before anybody knows.
    CutAfterHeads,

    EnvironmentReset,
    /// Another tool writes the environment.
    Tool {
        set: SetId,
        left: u8,
        first: bool,
    },
    Blind(u8),
    RecordLost,
    RecordRestored(u8),
    RecordOfAnother(u8),
}

/// Which kinds of steps a run is made of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Palette {
    pub faults: bool,
    pub environment: bool,
    pub records: bool,
    pub people: bool,
}

fn any_set() -> impl Strategy<Value = SetId> {
    prop_oneof![Just(SetId::A), Just(SetId::B)]
}

fn any_firmware() -> impl Strategy<Value = Firmware> {
    prop_oneof![
        6 => Just(Firmware::good(0)),
        2 => Just(Firmware::sick(0)),
        1 => Just(Firmware::dead(0)),
        1 => Just(Firmware::offline(0)),
    ]
}

fn any_fault() -> impl Strategy<Value = Fault> {
    let kind = prop_oneof![
        Just(FaultKind::NotDone),
        Just(FaultKind::DoneAlthough),
        Just(FaultKind::Torn),
        Just(FaultKind::CutBefore),
        Just(FaultKind::CutAfter),
        Just(FaultKind::CutTorn),
    ];
    (0..5u8, kind).prop_map(|(after, kind)| Fault { after, kind })
}

fn any_then() -> impl Strategy<Value = Then> {
    prop_oneof![6 => Just(Then::Reboot), 1 => Just(Then::Arm), 1 => Just(Then::Hold)]
}

/// A run of steps of the palette.
pub fn steps(palette: Palette) -> impl Strategy<Value = Vec<Step>> {
    let mut kinds: Vec<(u32, BoxedStrategy<Step>)> = vec![
        (30, Just(Step::Go).boxed()),
        (4, Just(Step::Talk).boxed()),
        (4, Just(Step::StepsGoOn).boxed()),
        (2, Just(Step::TalkUnanswered).boxed()),
        (1, Just(Step::Notify).boxed()),
        (2, (0..6u8).prop_map(Step::LateCloud).boxed()),
        (3, (0..3u8).prop_map(Step::Health).boxed()),
        (3, (0..3u8).prop_map(Step::Hook).boxed()),
        (2, (0..8u8).prop_map(Step::LateHook).boxed()),
        (4, (0..5u8).prop_map(Step::Fetch).boxed()),
        (2, (0..5u8).prop_map(Step::LateFetch).boxed()),
        (3, Just(Step::Wait).boxed()),
        (1, (0..300u16).prop_map(Step::Jump).boxed()),
        (2, Just(Step::Reboots).boxed()),
        (
            6,
            (
                any_firmware(),
                any::<bool>(),
                any::<bool>(),
                any_then(),
                prop::option::weighted(0.3, 0..4u8),
                any::<bool>(),
                prop::bool::weighted(0.2),
            )
                .prop_map(|(like, digest_known, retry, then, known, steps, ignores)| Step::NewJob {
                    like,
                    digest_known,
                    retry,
                    then,
                    known,
                    steps,
                    ignores,
                })
                .boxed(),
        ),
        (1, any::<bool>().prop_map(|recreated| Step::JobAgain { recreated }).boxed()),
        (1, any::<bool>().prop_map(|deleted| Step::CloudEnds { deleted }).boxed()),
        (1, (0..3000u16).prop_map(Step::TimeLeft).boxed()),
    ];
    if palette.people {
        kinds.extend([
            (4, (0..12u8).prop_map(Step::Verb).boxed()),
            (2, (any_firmware(), any_then()).prop_map(|(like, then)| Step::Install { like, then }).boxed()),
        ]);
    }
    if palette.faults {
        kinds.extend([
            (6, any_fault().prop_map(Step::Fault).boxed()),
            (1, any::<bool>().prop_map(Step::DiskBroken).boxed()),
            (2, any::<bool>().prop_map(Step::BootloaderBroken).boxed()),
            (3, Just(Step::AgentDies).boxed()),
            (3, Just(Step::PowerCut).boxed()),
            (1, Just(Step::DeadMan).boxed()),
            (1, Just(Step::CutAfterHeads).boxed()),
        ]);
    }
    if palette.environment {
        let tool = (any_set(), 0..=FULL, any::<bool>());
        kinds.extend([
            (2, Just(Step::EnvironmentReset).boxed()),
            (3, tool.prop_map(|(set, left, first)| Step::Tool { set, left, first }).boxed()),
            (1, (0..3u8).prop_map(Step::Blind).boxed()),
            (3, Just(Step::PowerCut).boxed()),
        ]);
    }
    if palette.records {
        kinds.extend([
            (1, Just(Step::RecordLost).boxed()),
            (1, (0..20u8).prop_map(Step::RecordRestored).boxed()),
            (1, (0..8u8).prop_map(Step::RecordOfAnother).boxed()),
            (2, Just(Step::PowerCut).boxed()),
        ]);
    }
    prop::collection::vec(prop::strategy::Union::new_weighted(kinds), 1..70)
}

impl World {
    pub fn take(&mut self, step: &Step) {
        self.note(|_| format!("{step:?}"));
        match step {
            Step::Go => {
                self.goes_on();
            }
            Step::Talk => {
                // A new session, or a hint of the cloud, is a reason to ask again.
                self.asking |= self.machine.as_ref().is_some_and(|m| m.interrupted_job().is_some());
                self.talk();
            }
            Step::StepsGoOn => {
                self.steps_go_on();
            }
            Step::TalkUnanswered => {
                self.loses_answers = true;
                self.talk();
                self.loses_answers = false;
            }
            Step::Notify => {
                self.notify();
            }
            Step::LateCloud(which) => self.late_cloud(*which),
            Step::Health(which) => self.health(*which),
            Step::Hook(which) => self.answer_hook(hook_answer(*which)),
            Step::LateHook(which) => self.late_hook(*which),
            Step::Fetch(which) => self.fetch(*which),
            Step::LateFetch(which) => self.late_fetch(*which),
            Step::Wait => self.wait(),
            Step::Jump(minutes) => {
                self.pass(Duration::from_secs(u64::from(*minutes) * 60));
                self.feed(Event::Tick);
            }
            Step::Reboots if self.rebooting => self.reset(),
            Step::Reboots => {}

            Step::NewJob { like, digest_known, retry, then, known, steps, ignores } => {
                let known = known.and_then(|k| self.firmwares.iter().rev().nth(usize::from(k)).copied());
                let firmware = known.unwrap_or_else(|| self.firmware(*like));
                let job = self.new_job(firmware);
                (self.jobs[job].digest_known, self.jobs[job].retry) = (*digest_known, *retry);
                self.jobs[job].then = *then;
                (self.jobs[job].steps, self.jobs[job].ignores) = (*steps, *steps && *ignores);
            }
            Step::JobAgain { recreated } => self.job_again(*recreated),
            Step::CloudEnds { deleted } => {
                self.cloud_ends(if *deleted { Status::Deleted } else { Status::Ended });
            }
            Step::TimeLeft(seconds) => {
                self.feed(Event::Cloud(Cloud::TimeLeft(Duration::from_secs(u64::from(*seconds)))));
            }
            Step::Install { like, then } => {
                let firmware = self.firmware(*like);
                let update = Box::new(self.local_update(firmware, *then));
                self.feed(Event::Offer(update));
            }
            Step::Verb(which) => self.verb(*which),

            Step::Fault(fault) => self.fault = Some(*fault),
            Step::DiskBroken(broken) => self.disk_broken = *broken,
            Step::BootloaderBroken(broken) => self.bootloader_broken = *broken,
            Step::AgentDies => self.start_agent(),
            Step::PowerCut => self.reset(),
            Step::DeadMan => self.dead_man(),
            Step::CutAfterHeads => {
                if self.pipeline == Pipeline::Writing {
                    self.complete_slots();
                    self.reset();
                }
            }
            _ => self.world_changes(step),
        }
        self.judge();
    }

    fn world_changes(&mut self, step: &Step) {
        match step {
            Step::EnvironmentReset => {
                self.env.reset();
                self.tampered = true;
            }
            Step::Tool { set, left, first } => {
                self.env.set_left(*set, *left);
                if *first {
                    self.env.put_first(*set);
                }
                self.tampered = true;
            }
            Step::Blind(how) => {
                self.blind = *how;
                self.look_again();
            }
            Step::RecordLost => {
                self.disk = None;
                self.seen.clear();
            }
            Step::RecordRestored(age) if !self.history.is_empty() => {
                let at = self.history.len().saturating_sub(1 + usize::from(*age));
                self.disk = Some(self.history[at].clone());
                self.seen.clear();
                self.stale = true;
            }
            Step::RecordOfAnother(kind) => {
                self.disk = Some(self.foreign_record(*kind));
                self.seen.clear();
                self.stale = true;
            }
            _ => {}
        }
    }

    fn health(&mut self, which: u8) {
        let healthy = self.running().is_some_and(|f| f.healthy);
        let health = match which {
            0 if healthy => Health::Passed,
            0 | 1 => Health::NotYet("later".into()),
            _ if healthy => Health::NotYet("later".into()),
            _ => Health::Hopeless("never".into()),
        };
        if health == Health::Passed {
            self.checking = false;
        }
        self.feed(Event::Health(health));
    }

    fn late_hook(&mut self, which: u8) {
        let hook = [Hook::PreInstall, Hook::PreReboot, Hook::PostConfirm, Hook::OnRollback];
        let hook = hook[usize::from(which % 4)];
        if self.hook != Some(hook) {
            self.feed(Event::Hook(hook, hook_answer(which / 4)));
        }
    }

    fn fetch(&mut self, which: u8) {
        match (self.pipeline, which) {
            (Pipeline::No, _) => {}
            (_, 0) => {
                self.pipeline = Pipeline::No;
                self.feed(Event::FetchEnded(Outcome::failed("digest mismatch")));
            }
            (Pipeline::Writing, 1) => {
                let checkpoint = otandem_core::image::Checkpoint {
                    image: 0,
                    source_offset: 16,
                    raw_offset: 16,
                    source_digests: vec![],
                    etag: None,
                };
                self.feed(Event::Checkpoint(checkpoint));
            }
            (Pipeline::Writing, 2) => self.feed(Event::Progress { done: 50, total: Some(100) }),
            _ => self.pipeline_goes_on(),
        }
    }

    fn late_fetch(&mut self, which: u8) {
        match (self.pipeline, which) {
            (Pipeline::Opening, 0) | (Pipeline::Writing, 1 | 2) => {}
            (_, 0) => self.feed(Event::Ready),
            (_, 1) => self.feed(Event::Written(vec![written_image(Firmware::good(99))])),
            (_, 2) => self.feed(Event::Progress { done: 1, total: None }),
            (Pipeline::No, 3) => self.feed(Event::FetchEnded(Outcome::failed("late"))),
            _ => {}
        }
    }

    fn late_cloud(&mut self, which: u8) {
        let event = match which {
            0 if self.phase() != "trial" => Cloud::Accepted,
            1 if self.phase() != "armed" => Cloud::SealAcknowledged,
            2 => Cloud::Alive(None),
            3 if self.phase() == "idle" => Cloud::Closed("late".into()),
            4 => match self.jobs.first().filter(|j| !j.live()) {
                Some(job) => Cloud::Acknowledged(job.key.clone()),
                None => return,
            },
            _ => return,
        };
        // That a job lives can only be said of one that does.
        if which == 2 && !self.job_lives() {
            return;
        }
        self.feed(Event::Cloud(event));
    }

    fn job_lives(&self) -> bool {
        let key = self.machine.as_ref().and_then(|m| m.record().state.update()?.origin.open_job());
        key.is_some_and(|key| self.jobs.iter().any(|j| j.key == *key && j.live()))
    }

    fn verb(&mut self, which: u8) {
        let Some(booted) = self.booted else { return };
        let verb = match which {
            0 | 1 => Verb::Confirm,
            2 | 3 => Verb::Rollback,
            4 => Verb::Reboot,
            5 => Verb::MarkBad(booted.other()),
            6 => Verb::MarkBad(booted),
            7 => Verb::Activate { set: booted.other(), reboot: true },
            8 => Verb::Activate { set: booted.other(), reboot: false },
            9 => Verb::Activate { set: booted, reboot: true },
            _ => match self.content(booted.other()) {
                // The digest was compared with what is in the slots.
                Content::Complete(firmware) if self.pipeline == Pipeline::No => {
                    let slots = [(SLOT.to_owned(), slot_status(firmware))].into();
                    Verb::Adopt { set: booted.other(), slots }
                }
                _ => return,
            },
        };
        self.feed(Event::User(verb));
    }

    /// Time passes to the next wake. A tick that is due must change something: a driver must not spin.
    pub fn wait(&mut self) {
        for _ in 0..8 {
            let Some(machine) = &self.machine else { return };
            let Some(due) = machine.next_wake() else {
                self.pass(Duration::from_secs(60));
                self.feed(Event::Tick);
                return;
            };
            if due > self.now().boot {
                self.pass(due.since(self.now().boot));
                self.feed(Event::Tick);
                return;
            }
            let before = machine.clone();
            self.feed(Event::Tick);
            assert_ne!(self.machine.as_ref(), Some(&before), "a tick is due that does nothing");
        }
        let still_due =
            self.machine.as_ref().and_then(|m| m.next_wake()).is_some_and(|t| t <= self.now().boot);
        assert!(!still_due, "ticks are due for ever");
    }

    /// A record that another device wrote.
    fn foreign_record(&mut self, kind: u8) -> Record {
        let target = if kind.is_multiple_of(2) { SetId::A } else { SetId::B };
        let firmware = self.firmware(Firmware::good(0));
        let key = JobKey {
            endpoint: ENDPOINT.into(),
            thing: "thing-2".into(),
            job: "theirs".into(),
            execution: 1,
            queued_at: 1,
        };
        let mut update = self.local_update(firmware, Then::Reboot);
        update.origin = Origin::Job { key: key.clone(), closed: false };
        (update.target, update.from) = (target, target.other());
        update.written = vec![firmware.digest()];
        let boot_id = "boot-of-another".to_owned();
        let state = match kind / 2 {
            0 => State::Writing { update, checkpoint: None },
            1 => State::Written { update },
            2 => State::Arming { update, attempt: 1 },
            _ => State::Armed { update, boot_id },
        };
        let outcome = Some(Outcome::succeeded("theirs"));
        let finished = Finished { key, outcome, seal: None, details: Details::new() };
        let mut record = Record { state, confirmed: Some(target.other()), ..Record::default() };
        record.outbox.push(finished.clone());
        record.finished.push(finished);
        record.slots_mut(target).insert(SLOT.into(), slot_status(firmware));
        record
    }
}

fn hook_answer(which: u8) -> HookAnswer {
    match which % 3 {
        0 => HookAnswer::Done,
        1 => HookAnswer::NotNow,
        _ => HookAnswer::Failed("exit 1".into()),
    }
}
