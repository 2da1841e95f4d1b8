//! The update machine: what happens next, for every state and every event.
//!
//! [`Machine::step`] is one `match (state, event)`. It changes the record in memory and answers with actions; the
//! driver performs them in order. The first action that fails ends the list and comes back as [`Event::Failed`];
//! [`Action::Continue`] comes back as [`Event::Continue`], so that a step which needs the one before it durable
//! waits for it. A [`Action::Save`] writes the record as it stands: intent is always saved before its effect.
//!
//! ```text
//! Idle -> Accepted -> Writing{checkpoint} -> Written -> Arming -> Armed -> (reboot)
//!      -> Trial -> Confirming -> (outcome in the outbox) -> Idle
//! any failure before Arming -> (outcome in the outbox) -> Idle       the running set was never touched
//! Trial, no -> RollingBack{reason} -> (reboot) -> (outcome in the outbox) -> Idle
//! ```
//!
//! `start` turns the verdict on a boot into the first actions, `flow` holds the steps of an update, `user` what
//! people ask for.

mod flow;
mod start;
mod user;

use std::time::Duration;

use crate::boot::{Booted, Facts, SetId, SetState};
use crate::image::{Checkpoint, Image, Md5, Sha256};
use crate::record::{Finished, Record, State};
use crate::seal::Seal;
use crate::time::Boottime;
use crate::update::{JobKey, Origin, Outcome, Update};

pub use user::Verb;

/// A pending step is taken up again at most this often without progress.
pub const MAX_RESUMES: u32 = 5;
/// How long the acknowledgement of phase `armed` is waited for before the reboot.
pub const SEAL_WAIT: Duration = Duration::from_secs(60);
/// A reboot that was asked for and did not come is asked for again after this.
pub const REBOOT_RETRY: Duration = Duration::from_secs(300);
/// A save that failed is tried again after this.
pub const SAVE_RETRY: Duration = Duration::from_secs(10);
/// Progress goes to the cloud at most this often, and only when it moved by [`PROGRESS_STEP`].
pub const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Per cent that progress must have moved before it is reported again.
pub const PROGRESS_STEP: u32 = 5;

/// What the device's configuration says about updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Total time for the health checks of a trial.
    pub health_timeout: Duration,
    /// Total time in which a trial must have reached the cloud, where it must.
    pub cloud_timeout: Duration,
    /// How long after a "not now" a hook is asked again.
    pub retry_interval: Duration,
    /// How long "not now" is taken for an answer.
    pub defer_limit: Duration,
    /// Reboots for updates happen only in this time of the day.
    pub reboot_window: Option<Window>,
    /// The other set reads the same record, so that it knows what the seal would tell it.
    pub record_shared: bool,
    /// Time that a job must still have for the reboot and the trial.
    pub reboot_reserve: Duration,
    /// Names of the slots of a set.
    pub slots: Vec<String>,
}

/// A time of the day, in minutes after local midnight; may wrap around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First minute in it.
    pub from: u16,
    /// First minute behind it.
    pub to: u16,
}

impl Window {
    /// `minute` of the day lies in the window. A window of no length is the whole day.
    #[must_use]
    pub const fn contains(self, minute: u16) -> bool {
        if self.from < self.to {
            self.from <= minute && minute < self.to
        } else if self.from > self.to {
            minute >= self.from || minute < self.to
        } else {
            true
        }
    }
}

/// The time of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Monotonic, since the kernel started.
    pub boot: Boottime,
    /// Local time of the day in minutes; only for the reboot window.
    pub minute: u16,
}

/// What a start finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// What the bootloader says; `None` with a reason where it cannot be asked.
    pub facts: Result<Facts, String>,
    /// Each set's slots begin with something other than zeros: A, B.
    pub heads: [bool; 2],
}

/// Scripts of the product that an update passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Before the first byte; may say "not now".
    PreInstall,
    /// Before arming and reboot; may say "not now".
    PreReboot,
    /// After the new set became permanent.
    PostConfirm,
    /// Before the reboot that leaves a bad set.
    OnRollback,
}

impl Hook {
    /// File name in the hook directory.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreInstall => "pre-install",
            Self::PreReboot => "pre-reboot",
            Self::PostConfirm => "post-confirm",
            Self::OnRollback => "on-rollback",
        }
    }
}

/// What a hook answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookAnswer {
    /// Exit 0, or there is no such hook.
    Done,
    /// Exit 75.
    NotNow,
    /// Anything else.
    Failed(String),
}

/// What the health checks say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Every check passed in one round.
    Passed,
    /// Not yet; they go on by themselves.
    NotYet(String),
    /// Exit 100: no use in waiting.
    Hopeless(String),
}

/// An image that is in its slot, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenImage {
    /// SHA-256 of the raw image, computed over what was written.
    pub sha256: Sha256,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of the source, where it was computed.
    pub file_sha256: Option<Sha256>,
    /// MD5 of the source, where it was computed.
    pub md5: Option<Md5>,
}

/// What the cloud said about the job of this update, or about us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cloud {
    /// An accepted answer to start-next: the trial's proof that the cloud is in reach.
    Accepted,
    /// The job lives, and these are its images with fresh URLs; `None` where the answer had no document.
    Alive(Option<Vec<Image>>),
    /// The cloud ended the job.
    Closed(String),
    /// The seal of phase `armed` was acknowledged.
    SealAcknowledged,
    /// The job times out in this time.
    TimeLeft(Duration),
    /// An acknowledged outcome: it leaves the outbox.
    Acknowledged(JobKey),
    /// The job carries a seal of an earlier life of this device; see [`Seal`].
    Sealed {
        /// The update as the job describes it.
        update: Box<Update>,
        /// What the device had told the cloud.
        seal: Seal,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All actions before [`Action::Continue`] are done.
    Continue,
    /// An action could not be done; those behind it were not tried.
    Failed(Box<Action>, String),
    /// An update, validated; only while [`Machine::ready`].
    Offer(Box<Update>),
    /// A job that is refused without being taken; only while [`Machine::ready`].
    Refuse(JobKey, Outcome),
    /// The images can be had, fit, and decode; nothing was written.
    Ready,
    /// Bytes of the raw images written, and of how many, where that is known.
    Progress {
        /// Written so far.
        done: u64,
        /// In all.
        total: Option<u64>,
    },
    /// Writing can go on from here after a power cut.
    Checkpoint(Checkpoint),
    /// All images are complete and verified, heads included.
    Written(Vec<WrittenImage>),
    /// The images cannot be had or written.
    FetchEnded(Outcome),
    /// From the health checks.
    Health(Health),
    /// From a hook.
    Hook(Hook, HookAnswer),
    /// From the cloud.
    Cloud(Cloud),
    /// From a person.
    User(Verb),
    /// Time passed; see [`Machine::next_wake`].
    Tick,
}

/// What to do. Nothing else in the program has an effect on an update. `Save`, the five boot actions and `Reboot`
/// may fail; the others are requests that are always taken, and say how they ended by an event of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write the record.
    Save,
    /// The target is about to be written.
    MarkBad(SetId),
    /// Try this set at the next boot.
    Arm(SetId),
    /// Restore the running set's counter.
    Keep(SetId),
    /// The other set first again; this one bad.
    Disarm(SetId),
    /// Make this set permanent.
    Confirm(SetId),
    /// Open the images and look at their beginnings; ends in [`Event::Ready`] or [`Event::FetchEnded`].
    Fetch {
        /// Where to go on.
        resume: Option<Checkpoint>,
    },
    /// Begin to write; ends in [`Event::Written`] or [`Event::FetchEnded`].
    Write,
    /// Give the images up; no event comes from them any more.
    StopFetch,
    /// Run the health checks until all pass; answers with [`Event::Health`].
    CheckHealth,
    /// No more of them.
    StopHealth,
    /// Answers with [`Event::Hook`].
    RunHook(Hook),
    /// Restart the device.
    Reboot,
    /// Tell the cloud where the job stands ([`Machine::details`]).
    Report,
    /// Send what waits in the outbox.
    Flush,
    /// Ask the cloud whether the job lives; in a trial, whether the cloud is there.
    AskCloud,
    /// The booted set is settled: nothing about this boot is open.
    Settled,
    /// Tell the person who asked.
    Answer(Result<String, String>),
    /// Into the log.
    Say(String),
    /// Comes back as [`Event::Continue`].
    Continue,
}

/// What this process knows beyond the record. Gone with the process, and rightly so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Run {
    facts: Option<Facts>,
    heads: [bool; 2],
    /// Why nothing may be touched.
    untouchable: Option<String>,
    settled: bool,
    /// The running set is confirmed and its counter was refreshed in this boot.
    kept: bool,
    health: Option<Health>,
    cloud: bool,
    /// The job of the update was seen alive by this process.
    alive: bool,
    fetching: bool,
    /// Waiting for a better moment: since when, until when, why.
    wait: Option<Wait>,
    armed_since: Option<Boottime>,
    seal_acknowledged: bool,
    reboot_asked: Option<Boottime>,
    job_deadline: Option<Boottime>,
    /// The last save failed at this time; the record on disk is older than the one here.
    unsaved: Option<Boottime>,
    warned_unsaved: bool,
    /// `Idle` is restoring the order after the environment was reset.
    restoring: bool,
    progress: Option<(u64, Option<u64>)>,
    reported: Option<(Boottime, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Wait {
    since: Boottime,
    until: Boottime,
    why: String,
}

/// The update machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    record: Record,
    rules: Rules,
    run: Run,
}

impl Machine {
    /// The record as it stands: what [`Action::Save`] writes.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// The latest wall time seen is noted with the next save.
    pub fn note_wall(&mut self, seconds: u64) {
        self.record.wall = self.record.wall.max(seconds);
    }

    /// What the bootloader said when this process started.
    #[must_use]
    pub const fn facts(&self) -> Option<&Facts> {
        self.run.facts.as_ref()
    }

    /// The running set.
    #[must_use]
    pub fn booted(&self) -> Option<SetId> {
        self.run.facts.as_ref().and_then(|f| f.booted.set())
    }

    /// The outcomes that may be sent. An outcome is on disk before it is sent; while the record cannot be saved, a
    /// refusal or failure still goes out, since a restart would come to the same one.
    pub fn sendable(&self) -> impl Iterator<Item = &Finished> {
        let saved = self.run.unsaved.is_none();
        self.record
            .outbox
            .iter()
            .filter(move |f| saved || !matches!(f.outcome, Some(Outcome::Succeeded { .. })))
    }

    /// Nothing about this boot is open.
    #[must_use]
    pub const fn settled(&self) -> bool {
        self.run.settled
    }

    /// A new update may be offered: nothing under way, and the running set known, confirmed and refreshed
    /// (UPDATE-RULES 1.1).
    #[must_use]
    pub fn ready(&self) -> bool {
        self.record.state == State::Idle && self.run.kept && self.run.unsaved.is_none() && !self.run.restoring
    }

    /// Why not, for people.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        if self.ready() {
            return None;
        }
        if let Some(why) = &self.run.untouchable {
            return Some(why.clone());
        }
        if self.run.unsaved.is_some() {
            return Some("the record cannot be saved: check the state directory".into());
        }
        Some(match &self.record.state {
            State::Idle => match &self.run.health {
                Some(Health::NotYet(why) | Health::Hopeless(why)) => {
                    format!("the running set is not well: {why}")
                }
                _ => "the running set is not settled yet".into(),
            },
            state => format!("an update is under way ({})", self.waiting().unwrap_or_else(|| state.name())),
        })
    }

    /// `waiting` while a hook or the reboot window says "not now".
    fn waiting(&self) -> Option<&'static str> {
        self.run.wait.as_ref().map(|_| "waiting")
    }

    /// The phase for people and job details.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        self.waiting().unwrap_or_else(|| self.record.state.name())
    }

    /// Why it waits, or what a trial still lacks.
    #[must_use]
    pub fn waits_for(&self) -> Option<String> {
        if let Some(wait) = &self.run.wait {
            return Some(wait.why.clone());
        }
        let State::Trial { update, .. } = &self.record.state else { return None };
        match &self.run.health {
            Some(Health::Passed) if self.cloud_missing(update) => Some("the cloud".into()),
            Some(Health::NotYet(why) | Health::Hopeless(why)) => Some(format!("health checks: {why}")),
            _ => Some("health checks".into()),
        }
    }

    /// Bytes of the raw images written, and of how many.
    #[must_use]
    pub const fn progress(&self) -> Option<(u64, Option<u64>)> {
        self.run.progress
    }

    /// One event in, what to do about it out. The whole protocol of an update is this match.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Action> {
        if let Some(why) = &self.run.untouchable {
            let why = why.clone();
            return self.step_untouchable(event, &why);
        }
        match (&self.record.state, event) {
            (_, Event::Failed(action, why)) => self.failed(*action, &why, now),
            (_, Event::User(verb)) => self.user(verb, now),
            (_, Event::Tick) => self.tick(now),
            (_, Event::Cloud(Cloud::Acknowledged(key))) => self.acknowledged(&key),
            (_, Event::Cloud(Cloud::TimeLeft(left))) => self.time_left(left, now),

            (State::Idle, Event::Offer(update)) => self.accept(*update),
            (State::Idle, Event::Refuse(key, outcome)) => self.refuse_job(key, outcome),
            (_, Event::Offer(_) | Event::Refuse(..)) => vec![],
            (State::Idle, Event::Cloud(Cloud::Sealed { update, seal })) => self.sealed(*update, &seal, now),
            (State::Idle, Event::Health(health)) => self.idle_health(health),
            (State::Idle, Event::Continue) => self.idle_continues(now),

            // Taken up again after a restart: first the running set, then the work (UPDATE-RULES 1.1).
            (
                State::Accepted { .. } | State::Writing { .. } | State::Written { .. },
                Event::Health(health),
            ) => self.resumed_health(health),
            (State::Accepted { .. } | State::Writing { .. } | State::Written { .. }, Event::Continue)
                if !self.run.kept =>
            {
                self.resume(now)
            }

            (State::Accepted { .. }, Event::Hook(Hook::PreInstall, answer)) => self.pre_install(answer, now),
            (State::Accepted { .. } | State::Writing { .. }, Event::Cloud(Cloud::Alive(images))) => {
                self.alive(images)
            }
            (State::Accepted { .. } | State::Writing { .. }, Event::Ready) => self.begin_to_write(),
            (State::Writing { .. }, Event::Continue) => vec![Action::Write, Action::Report],
            (State::Writing { .. }, Event::Checkpoint(c)) => self.checkpoint(c),
            (State::Writing { .. }, Event::Progress { done, total }) => self.note_progress(done, total, now),
            (State::Writing { .. }, Event::Written(images)) => self.written(&images, now),
            (State::Accepted { .. } | State::Writing { .. }, Event::FetchEnded(outcome)) => {
                self.end(Some(outcome))
            }

            (State::Written { .. }, Event::Hook(Hook::PreReboot, answer)) => self.pre_reboot(answer, now),
            (State::Arming { .. }, Event::Continue) => self.armed(now),
            (State::Armed { .. }, Event::Cloud(Cloud::SealAcknowledged)) => self.seal_acknowledged(now),

            (
                State::Accepted { .. }
                | State::Writing { .. }
                | State::Written { .. }
                | State::Arming { .. }
                | State::Armed { .. },
                Event::Cloud(Cloud::Closed(why)),
            ) => self.closed_before_reboot(&why),
            (
                State::Trial { .. } | State::Confirming { .. } | State::RollingBack { .. },
                Event::Cloud(Cloud::Closed(why)),
            ) => self.closed_after_reboot(&why),

            (State::Trial { .. }, Event::Health(health)) => self.trial_health(health, now),
            (State::Trial { .. }, Event::Cloud(Cloud::Accepted)) => self.trial_cloud(now),
            (State::Trial { .. }, Event::Cloud(Cloud::Sealed { update, seal })) => {
                self.sealed(*update, &seal, now)
            }
            (State::Confirming { .. }, Event::Continue) => self.confirmed(),
            (State::RollingBack { .. }, Event::Continue) => self.back_on_old_set(),
            (State::RollingBack { .. }, Event::Hook(Hook::OnRollback, _)) => self.reboot(now),

            // Late answers of things that were given up in between.
            (
                _,
                Event::Continue
                | Event::Ready
                | Event::Progress { .. }
                | Event::Checkpoint(_)
                | Event::Written(_)
                | Event::FetchEnded(_)
                | Event::Health(_)
                | Event::Hook(..)
                | Event::Cloud(_),
            ) => vec![],
        }
    }

    fn step_untouchable(&mut self, event: Event, why: &str) -> Vec<Action> {
        match event {
            Event::User(_) => vec![Action::Answer(Err(why.to_owned()))],
            Event::Cloud(Cloud::Acknowledged(key)) => self.acknowledged(&key),
            _ => vec![],
        }
    }

    /// When [`Event::Tick`] is due; `None` = not before something else happens.
    #[must_use]
    pub fn next_wake(&self, now: Now) -> Option<Boottime> {
        let mut due: Vec<Boottime> = Vec::new();
        due.extend(self.run.unsaved.map(|t| t.after(SAVE_RETRY)));
        due.extend(self.run.wait.as_ref().map(|w| w.until));
        due.extend(self.run.reboot_asked.map(|t| t.after(REBOOT_RETRY)));
        match &self.record.state {
            State::Armed { .. } if self.run.reboot_asked.is_none() => {
                due.extend(self.run.armed_since.map(|t| t.after(SEAL_WAIT)).filter(|t| *t > now.boot));
            }
            State::Trial { update, started, .. } => {
                let started = Boottime::from(*started);
                if !matches!(self.run.health, Some(Health::Passed)) {
                    due.push(started.after(self.rules.health_timeout));
                }
                if self.cloud_missing(update) {
                    due.push(started.after(self.rules.cloud_timeout));
                }
                // A trial that has nowhere to go back to stays, and must not wake for ever.
                due.retain(|t| *t > now.boot || self.way_back(update));
            }
            _ => {}
        }
        due.into_iter().min()
    }

    /// A trial may end in going back: an adopted set has no known fallback, so it needs one that is good and
    /// begins with something (UPDATE-RULES 2.4, row `none`).
    fn way_back(&self, update: &Update) -> bool {
        if update.origin != Origin::Adopted {
            return true;
        }
        let readable = self.run.heads[usize::from(update.from == SetId::B)];
        let good = self.run.facts.as_ref().is_some_and(|f| f.state(update.from) == SetState::Good);
        readable && good
    }

    fn cloud_missing(&self, update: &Update) -> bool {
        update.require_cloud && !self.run.cloud
    }

    fn booted_target(&self) -> bool {
        match (self.record.state.update(), self.run.facts.as_ref().map(|f| f.booted)) {
            (Some(update), Some(Booted::Set(set))) => update.target == set,
            _ => false,
        }
    }
}
