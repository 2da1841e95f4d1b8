//! The update machine: what happens next, for every state and every event.
//!
//! [`Machine::step`] is one `match (state, event)`. It changes the record in memory and answers with actions; the
//! driver performs them in order. The first action that fails ends the list and comes back as [`Event::Failed`];
//! [`Action::Continue`] comes back as [`Event::Continue`], so that a step which needs the one before it durable
//! waits for it. Both come back before any other event. A [`Action::Save`] writes the record as it stands: intent is
//! always saved before its effect, and what does not depend on the disk stands before the save in the list.
//!
//! ```text
//! Idle -> Accepted -> Writing{checkpoint} -> Written -> Arming -> Armed -> (reboot)
//!      -> Trial -> Confirming -> (outcome in the outbox) -> Idle
//! any failure before Arming -> (outcome in the outbox) -> Idle       the running set was never touched
//! Trial, no -> RollingBack{reason} -> (reboot) -> (outcome in the outbox) -> Idle
//! ```
//!
//! `start` turns the verdict on a boot into the first actions; `flow` goes from an offer to a written set, `arm` to
//! the reboot, `trial` to the confirmation, `end` back to the old set and to the outcome; `trouble` holds what fails
//! and what time does; `user` is what people ask for, `job` what
//! general jobs need to survive, `step` the update that is a step of one. `event` and `rules` are the vocabulary.

mod arm;
mod end;
mod event;
mod flow;
mod job;
mod rules;
mod start;
mod step;
mod trial;
mod trouble;
mod user;

use std::time::Duration;

use crate::boot::{Facts, SetId, SetState};
use crate::record::{Finished, Record, State};
use crate::time::Boottime;
use crate::update::{Origin, Outcome, Then, Update};

pub use event::{Action, Cloud, Event, Evidence, Health, Hook, HookAnswer, InstallStep, JobEvent};
pub use event::{Now, WrittenImage};
use job::JobRun;
pub use rules::{Rules, Window};
pub use user::Verb;

/// Why nothing is taken that could not be kept through a power cut.
pub const UNSAVED: &str = "the record cannot be saved: check the state directory";
/// A pending step is taken up again at most this often without progress.
pub const MAX_RESUMES: u32 = 5;
/// How long the acknowledgement of phase `armed` is waited for before the reboot.
pub const SEAL_WAIT: Duration = Duration::from_secs(60);
/// A reboot that was asked for and did not come is asked for again after this.
pub const REBOOT_RETRY: Duration = Duration::from_secs(300);
/// A save that failed is tried again after this.
pub const SAVE_RETRY: Duration = Duration::from_secs(10);
/// A write to the bootloader that failed while nothing depends on it is tried again after this.
pub const BOOT_RETRY: Duration = Duration::from_secs(60);
/// Progress goes to the cloud at most this often, and only when it moved by [`PROGRESS_STEP`].
pub const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Per cent that progress must have moved before it is reported again.
pub const PROGRESS_STEP: u32 = 5;

/// What this process knows beyond the record. Gone with the process, and rightly so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Run {
    /// When this process took over.
    started: Boottime,
    /// What the wall clock showed last, in seconds since 1970.
    wall: u64,
    facts: Option<Facts>,
    /// Each set's slots begin with something: as found at the start, then as written by this process.
    heads: [bool; 2],
    /// Why nothing may be touched.
    untouchable: Option<String>,
    /// A trial may be pending of which nothing can be read.
    unread: bool,
    settled: bool,
    /// The running set is confirmed and its counter was refreshed in this boot.
    kept: bool,
    health: Option<Health>,
    cloud: bool,
    /// The job of the update was seen alive by this process.
    alive: bool,
    fetch: Fetching,
    /// The hook whose answer is waited for.
    asked: Option<Hook>,
    /// Waiting for a better moment: since when, until when, why.
    wait: Option<Wait>,
    armed_since: Option<Boottime>,
    seal_acknowledged: bool,
    /// The cloud did not take the seal in time, and the reboot may come without.
    seal_lapsed: bool,
    reboot: Reboot,
    job_deadline: Option<Boottime>,
    /// The last save failed at this time; the record on disk is older than the one here.
    unsaved: Option<Boottime>,
    /// The record on disk may still hold an update that was armed: until it is saved nothing is told about its end,
    /// since a restart might come to another one.
    disk_armed: bool,
    /// The running set could not be kept or confirmed at this time.
    boot_failed: Option<Boottime>,
    /// `Idle` is restoring the order after the environment was reset.
    restoring: bool,
    /// An adopted set is not well and has nowhere to go: said once.
    stays: bool,
    /// How far the general job is.
    job: JobRun,
    progress: Option<(u64, Option<u64>)>,
    reported: Option<(Boottime, u32)>,
}

/// How far the pipeline is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Fetching {
    #[default]
    No,
    /// Asked to open the images.
    Opening,
    /// Asked to write them.
    Writing,
}

/// How far a reboot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Reboot {
    #[default]
    No,
    /// Asked for at this time, and not refused: the device is going down.
    Asked(Boottime),
    /// It did not start at this time.
    Refused(Boottime),
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

    /// What the wall clock shows: for display, not believed.
    pub fn note_wall(&mut self, seconds: u64) {
        self.run.wall = seconds;
    }

    /// Certificates were found valid at this wall time: it is noted with the next save, and no later start believes an
    /// earlier one. A clock that merely shows something must not get here: one that stood in the far future once would
    /// make every certificate expired for ever.
    pub fn trust_wall(&mut self, seconds: u64) {
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

    /// The outcomes that may be sent. An outcome is on disk before it is sent; only while the record cannot be saved a
    /// refusal or failure goes out unsaved, provided that the job was never armed: a restart then asks the cloud
    /// before it does anything for the job, and finds it closed. To be asked between two lists of actions, and at
    /// [`Action::Flush`].
    pub fn sendable(&self) -> impl Iterator<Item = &Finished> {
        let saved = self.run.unsaved.is_none();
        let bad_news = !self.run.disk_armed;
        let succeeded = |f: &Finished| matches!(f.outcome, Some(Outcome::Succeeded { .. }));
        self.record.outbox.iter().filter(move |f| saved || (bad_news && !succeeded(f)))
    }

    /// The record on disk is older than the one here: the last save failed.
    #[must_use]
    pub const fn unsaved(&self) -> bool {
        self.run.unsaved.is_some()
    }

    /// Nothing about this boot is open.
    #[must_use]
    pub const fn settled(&self) -> bool {
        self.run.settled
    }

    /// The running set is confirmed and its counter was refreshed in this boot.
    #[must_use]
    pub const fn kept(&self) -> bool {
        self.run.kept
    }

    /// A new update may be offered: nothing under way, and the running set known, confirmed and refreshed
    /// (UPDATE-RULES 1.1).
    #[must_use]
    pub fn ready(&self) -> bool {
        self.record.job.is_none() && self.may_update()
    }

    /// Why not, for people.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        if self.ready() {
            return None;
        }
        let job = self.record.job.as_ref().filter(|_| self.record.state == State::Idle);
        let runs = job.map(|job| format!("{} runs: {}", job.key, job.progress()));
        Some(self.obstacle().or(runs).unwrap_or_else(|| self.unsettled()))
    }

    /// What keeps every update and job from beginning.
    fn obstacle(&self) -> Option<String> {
        if let Some(why) = &self.run.untouchable {
            return Some(why.clone());
        }
        if self.run.unsaved.is_some() {
            return Some(UNSAVED.into());
        }
        self.leaving().then(|| "the device is about to reboot".into())
    }

    fn leaving(&self) -> bool {
        self.run.restoring || self.run.reboot != Reboot::No
    }

    /// What is not settled yet.
    fn unsettled(&self) -> String {
        match &self.record.state {
            State::Idle => match &self.run.health {
                Some(Health::NotYet(why) | Health::Hopeless(why)) => {
                    format!("the running set is not well: {why}")
                }
                _ => "the running set is not settled yet".into(),
            },
            state => format!("an update is under way ({})", self.waiting().unwrap_or_else(|| state.name())),
        }
    }

    /// Why nothing on this device may be touched, if so; only [`Machine::look_again`] changes it.
    #[must_use]
    pub fn untouchable(&self) -> Option<&str> {
        self.run.untouchable.as_deref()
    }

    /// The running set is still being looked at: whether an update can be taken is known soon.
    #[must_use]
    pub fn settling(&self) -> bool {
        let adopting = |update: &Update| update.origin == Origin::Adopted;
        let looking = match &self.record.state {
            State::Idle => !self.run.kept,
            State::Trial { update, .. } | State::Confirming { update } => adopting(update),
            _ => false,
        };
        let no_answer = matches!(self.run.health, None | Some(Health::Passed));
        let broken = self.run.boot_failed.is_some() || self.run.unsaved.is_some();
        looking && no_answer && self.run.untouchable.is_none() && !broken
    }

    /// A set is armed, and the reboot is somebody else's to do: the cloud has the seal, or it had the time to take it.
    #[must_use]
    pub fn reset_due(&self) -> bool {
        let due =
            |update: &Update| update.then != Then::Reboot && (self.told(update) || self.run.seal_lapsed);
        matches!(&self.record.state, State::Armed { update, .. } if due(update))
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
        use State::{Accepted, Armed, Arming, Confirming, Idle, RollingBack, Trial, Writing, Written};
        if let Some(why) = &self.run.untouchable {
            let why = why.clone();
            return self.step_untouchable(event, &why, now);
        }
        match (&self.record.state, event) {
            (_, Event::Failed(action, why)) => self.failed(*action, &why, now),
            (RollingBack { .. }, Event::NoFallback(why)) => self.no_fallback(&why),
            (_, Event::User(verb)) => self.user(verb, now),
            (_, Event::Tick) => self.tick(now),
            (_, Event::Cloud(Cloud::Acknowledged(key))) => self.acknowledged(&key),
            (_, Event::Job(event)) => self.job(event, now),

            (Idle, Event::Offer(update)) => self.accept(*update, now),
            (Idle, Event::JobEnded(key, outcome)) => self.job_ended(key, outcome),
            (Trial { update, .. }, Event::JobEnded(key, outcome)) if update.origin == Origin::Adopted => {
                self.job_ended(key, outcome)
            }
            (_, Event::Offer(update)) => self.not_taken(&update),
            (Idle | Trial { .. }, Event::Cloud(Cloud::Sealed { update, seal })) => {
                self.sealed(*update, &seal, now)
            }
            (Idle, Event::Health(health)) => self.running_set_health(health),
            (Idle, Event::Continue) => self.idle_continues(now),

            // Taken up again after a restart: first the running set, then the work (UPDATE-RULES 1.1).
            (Accepted { .. } | Writing { .. } | Written { .. }, Event::Health(health)) => {
                self.running_set_health(health)
            }
            (Accepted { .. } | Writing { .. } | Written { .. }, Event::Continue) if !self.run.kept => {
                self.resume(now)
            }
            (Accepted { .. } | Writing { .. } | Written { .. }, Event::Cloud(Cloud::Alive(images))) => {
                self.alive(images, now)
            }

            (Accepted { .. }, Event::Hook(Hook::PreInstall, answer)) => self.pre_install(answer, now),
            (Accepted { .. } | Writing { .. }, Event::Ready) => self.begin_to_write(),
            (Writing { .. }, Event::Continue) => self.write(),
            (Writing { .. }, Event::Checkpoint(reached)) => self.checkpoint(reached),
            (Writing { .. }, Event::Progress { done, total }) => self.note_progress(done, total, now),
            (Writing { .. }, Event::Written(images)) => self.written(&images, now),
            (Accepted { .. } | Writing { .. }, Event::FetchEnded(outcome)) => self.fetch_ended(outcome),

            (Written { .. }, Event::Hook(Hook::PreReboot, answer)) => self.pre_reboot(answer, now),
            (Arming { .. }, Event::Continue) => self.armed(now),
            (Armed { .. }, Event::Cloud(Cloud::SealAcknowledged)) => self.seal_acknowledged(now),
            (Idle, Event::Cloud(Cloud::TimeLeft(_))) if self.record.job.is_none() => vec![],
            (_, Event::Cloud(Cloud::TimeLeft(left))) => self.time_left(left, now),

            (Idle, Event::Cloud(Cloud::Closed(_))) => vec![],
            (Trial { .. } | Confirming { .. } | RollingBack { .. }, Event::Cloud(Cloud::Closed(why))) => {
                self.closed_after_reboot(&why)
            }
            (_, Event::Cloud(Cloud::Closed(why))) => self.closed_before_reboot(&why),

            (Trial { .. }, Event::Health(health)) => self.trial_health(health, now),
            (Trial { .. }, Event::Cloud(Cloud::Accepted)) => self.trial_cloud(now),
            (Trial { .. }, Event::Continue) => self.trial_verdict(now),
            (Confirming { .. }, Event::Continue) => self.confirmed(),
            (RollingBack { .. }, Event::Continue) => self.back_on_old_set(),
            (RollingBack { .. }, Event::Hook(Hook::OnRollback, _)) => self.hook_before_leaving(now),

            // Late answers of things that were given up in between.
            (
                _,
                Event::Continue
                | Event::NoFallback(_)
                | Event::JobEnded(..)
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

    fn step_untouchable(&mut self, event: Event, why: &str, now: Now) -> Vec<Action> {
        match event {
            Event::User(_) => vec![Action::Answer(Err(why.to_owned()))],
            Event::Offer(update) => self.not_taken(&update),
            Event::JobEnded(key, outcome) if self.record.state == State::Idle => self.job_ended(key, outcome),
            Event::Cloud(Cloud::Acknowledged(key)) => self.acknowledged(&key),
            Event::Job(event) => self.job(event, now),
            Event::Failed(action, why) => self.job_action_failed(&action, &why, now),
            Event::Tick => self.save_for_jobs(now),
            _ => vec![],
        }
    }

    /// When [`Event::Tick`] is due; `None` = not before something else happens.
    #[must_use]
    pub fn next_wake(&self) -> Option<Boottime> {
        if self.run.untouchable.is_some() {
            return self.run.unsaved.map(|t| t.after(SAVE_RETRY));
        }
        let mut due: Vec<Boottime> = Vec::new();
        due.extend(self.run.unsaved.map(|t| t.after(SAVE_RETRY)));
        due.extend(self.run.boot_failed.map(|t| t.after(BOOT_RETRY)));
        // While a hook is being asked its answer is what is waited for.
        due.extend(self.run.wait.as_ref().filter(|_| self.run.asked.is_none()).map(|w| w.until));
        match self.run.reboot {
            Reboot::Asked(t) | Reboot::Refused(t) => due.push(t.after(REBOOT_RETRY)),
            Reboot::No => {}
        }
        match &self.record.state {
            State::Accepted { .. } | State::Writing { .. } | State::Written { .. } if !self.run.kept => {
                due.push(self.run.started.after(self.rules.health_timeout));
            }
            State::Armed { update, .. } if self.run.reboot == Reboot::No && self.seal_may_lapse(update) => {
                due.extend(self.run.armed_since.map(|t| t.after(SEAL_WAIT)));
            }
            State::Trial { update, started, .. } if !self.run.stays => {
                let started = Boottime::from(*started);
                if !matches!(self.run.health, Some(Health::Passed)) {
                    due.push(started.after(self.rules.health_timeout));
                }
                if self.cloud_missing(update) {
                    due.push(started.after(self.rules.cloud_timeout));
                }
            }
            _ => {}
        }
        due.into_iter().min()
    }

    /// The machine enters another state; what was counted about the one before is over.
    fn enter(&mut self, state: State) {
        self.record.resumes = 0;
        self.record.state = state;
    }

    fn head(&self, set: SetId) -> bool {
        self.run.heads[usize::from(set == SetId::B)]
    }

    fn set_head(&mut self, set: SetId, readable: bool) {
        self.run.heads[usize::from(set == SetId::B)] = readable;
    }

    /// The trial may end in going back: only to a set that begins with something. An adopted set has no fallback that
    /// anybody vouched for, so the bootloader must hold it good as well (UPDATE-RULES 2.4, row `none`).
    fn way_back(&self, update: &Update) -> bool {
        let good = || self.run.facts.as_ref().is_some_and(|f| f.state(update.from) == SetState::Good);
        self.head(update.from) && (update.origin != Origin::Adopted || good())
    }

    fn cloud_missing(&self, update: &Update) -> bool {
        update.require_cloud && !self.run.cloud
    }

    fn on_target(&self) -> bool {
        self.record.state.update().is_some_and(|u| self.booted() == Some(u.target))
    }
}
