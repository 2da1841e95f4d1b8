//! The steps of an update, in the order in which they happen.

use super::{
    Action, Health, Hook, HookAnswer, Machine, Now, PROGRESS_EVERY, PROGRESS_STEP, REBOOT_RETRY, SAVE_RETRY,
    SEAL_WAIT, Wait, WrittenImage,
};
use crate::image::{Checkpoint, Image};
use crate::record::{Finished, SlotStatus, State};
use crate::seal::Seal;
use crate::time::Boottime;
use crate::update::{Cause, JobKey, Origin, Outcome, Reason, Then, Update};

/// Characters of a reason that are kept.
const REASON_KEPT: usize = 512;

impl Machine {
    // --- Idle -------------------------------------------------------------------------------------------------

    pub(super) fn idle_health(&mut self, health: Health) -> Vec<Action> {
        let passed = health == Health::Passed;
        self.run.health = Some(health);
        let Some(booted) = self.booted().filter(|_| passed && !self.run.kept) else { return vec![] };
        let act = if self.record.confirmed == Some(booted) { Action::Keep } else { Action::Confirm };
        vec![Action::StopHealth, act(booted), Action::Continue]
    }

    pub(super) fn idle_continues(&mut self, now: Now) -> Vec<Action> {
        if self.run.restoring {
            return self.reboot(now);
        }
        self.run.kept = true;
        let changed = self.record.confirmed != self.booted() || self.record.restores > 0;
        self.record.confirmed = self.booted();
        self.record.restores = 0;
        let mut actions = if changed { vec![Action::Save] } else { vec![] };
        actions.extend(self.settle());
        actions.push(Action::AskCloud);
        actions
    }

    pub(super) fn accept(&mut self, update: Update) -> Vec<Action> {
        if !self.ready() || self.booted() != Some(update.from) || update.from == update.target {
            return vec![];
        }
        self.run.alive = true;
        self.run.progress = None;
        self.run.reported = None;
        self.record.resumes = 0;
        if update.images.is_empty() {
            // To a set that is complete already: nothing to fetch, and whoever asks is there.
            self.record.state = State::Written { update };
            return self.arm();
        }
        self.record.state = State::Accepted { update };
        vec![Action::Save, Action::Report, Action::RunHook(Hook::PreInstall)]
    }

    /// A job that is refused as it comes: recorded like any other, so that it is answered once.
    pub(super) fn refuse_job(&mut self, key: JobKey, outcome: Outcome) -> Vec<Action> {
        let outcome = Some(clip_outcome(outcome));
        self.record.last.clone_from(&outcome);
        self.record.finish(Finished { key, outcome, seal: None }, true);
        vec![Action::Save, Action::Flush]
    }

    /// A job that an earlier life of this device had under way, and the record of it is lost (UPDATE-RULES 4.4).
    pub(super) fn sealed(&mut self, mut update: Update, seal: &Seal, now: Now) -> Vec<Action> {
        let Some(booted) = self.booted() else { return vec![] };
        (update.target, update.from) = (seal.target, seal.from);
        if booted == seal.target {
            let confirmed = self.record.state == State::Idle && self.run.kept;
            self.run.cloud = true;
            self.record.state = State::Trial { update, boot_id: self.boot_id(), started: now.boot.into() };
            let mut actions = vec![Action::Save];
            if confirmed || self.run.health == Some(Health::Passed) {
                actions.extend(self.confirm());
            } else {
                actions.push(Action::CheckHealth);
            }
            return actions;
        }
        if !matches!(self.record.state, State::Idle) {
            return vec![];
        }
        self.record.state = State::Armed { update, boot_id: seal.boot_id.clone() };
        self.drop_armed(Cause::NotTried, &format!("state lost; set {} is not running", seal.target))
    }

    // --- Taken up again ---------------------------------------------------------------------------------------

    pub(super) fn resumed_health(&mut self, health: Health) -> Vec<Action> {
        let passed = health == Health::Passed;
        self.run.health = Some(health);
        let Some(booted) = self.booted().filter(|_| passed && !self.run.kept) else { return vec![] };
        vec![Action::StopHealth, Action::Keep(booted), Action::Continue]
    }

    /// The running set is well and refreshed. A job is gone on with when the cloud said that it lives.
    pub(super) fn resume(&mut self, now: Now) -> Vec<Action> {
        self.run.kept = true;
        let known =
            self.run.alive || self.record.state.update().is_none_or(|u| u.origin.open_job().is_none());
        match &self.record.state {
            State::Written { .. } => self.gate(now),
            _ if !known => vec![],
            State::Accepted { .. } => vec![Action::RunHook(Hook::PreInstall)],
            _ => self.fetch(),
        }
    }

    // --- Accepted, Writing ------------------------------------------------------------------------------------

    pub(super) fn pre_install(&mut self, answer: HookAnswer, now: Now) -> Vec<Action> {
        match answer {
            HookAnswer::Done => {
                self.run.wait = None;
                self.fetch()
            }
            HookAnswer::NotNow => self.wait_for("the pre-install hook says: not now", now),
            HookAnswer::Failed(why) => self.end(Some(Outcome::failed(format!("pre-install hook: {why}")))),
        }
    }

    pub(super) fn fetch(&mut self) -> Vec<Action> {
        let resume = match &self.record.state {
            State::Writing { checkpoint, .. } => checkpoint.clone(),
            _ => None,
        };
        self.run.fetching = true;
        vec![Action::Fetch { resume }]
    }

    /// The job lives. After a restart this is what the work waits for.
    pub(super) fn alive(&mut self, images: Option<Vec<Image>>) -> Vec<Action> {
        let Some(update) = self.record.state.update_mut() else { return vec![] };
        if let Some(fresh) = images {
            if !same_images(&update.images, &fresh) {
                let outcome = Outcome::failed("the job document changed while the update was under way");
                return self.end(Some(outcome));
            }
            update.images = fresh;
        }
        let first = !std::mem::replace(&mut self.run.alive, true);
        match &self.record.state {
            _ if !first || !self.run.kept => vec![],
            State::Accepted { .. } => vec![Action::RunHook(Hook::PreInstall)],
            _ => self.fetch(),
        }
    }

    /// Everything that can be known before the first byte is known. Intent, then the mark, then the bytes.
    pub(super) fn begin_to_write(&mut self) -> Vec<Action> {
        let (update, checkpoint) = match &self.record.state {
            State::Accepted { update } => (update.clone(), None),
            State::Writing { update, checkpoint } => (update.clone(), checkpoint.clone()),
            _ => return vec![],
        };
        let target = update.target;
        for image in &update.images {
            self.record.slots_mut(target).remove(&image.slot);
        }
        self.record.state = State::Writing { update, checkpoint };
        vec![Action::Save, Action::MarkBad(target), Action::Continue]
    }

    pub(super) fn checkpoint(&mut self, reached: Checkpoint) -> Vec<Action> {
        let State::Writing { checkpoint, .. } = &mut self.record.state else { return vec![] };
        *checkpoint = Some(reached);
        self.record.resumes = 0;
        vec![Action::Save]
    }

    pub(super) fn note_progress(&mut self, done: u64, total: Option<u64>, now: Now) -> Vec<Action> {
        self.run.progress = Some((done, total));
        let percent = self.percent().unwrap_or(0);
        let due = match self.run.reported {
            None => true,
            Some((at, was)) => {
                now.boot.since(at) >= PROGRESS_EVERY && percent >= was.saturating_add(PROGRESS_STEP)
            }
        };
        if !due {
            return vec![];
        }
        self.run.reported = Some((now.boot, percent));
        vec![Action::Report]
    }

    /// Per cent written, where the size is known.
    #[must_use]
    pub fn percent(&self) -> Option<u32> {
        let (done, total) = self.run.progress?;
        let total = total.filter(|t| *t > 0)?;
        u32::try_from(u128::from(done.min(total)) * 100 / u128::from(total)).ok()
    }

    pub(super) fn written(&mut self, images: &[WrittenImage], now: Now) -> Vec<Action> {
        let State::Writing { update, .. } = &self.record.state else { return vec![] };
        let mut update = update.clone();
        self.run.fetching = false;
        // The pipeline compared every digest. Nothing is armed on its word alone.
        let sound = images.len() == update.images.len()
            && update.images.iter().zip(images).all(|(want, got)| {
                want.raw.sha256.is_none_or(|d| d == got.sha256) && want.raw.size.is_none_or(|s| s == got.size)
            });
        if !sound {
            return self.end(Some(Outcome::failed("what was written is not what the job asks for")));
        }
        update.written = images.iter().map(|i| i.sha256).collect();
        if let Some(why) = self.record.ban(&update.written).filter(|_| !update.retry) {
            return self.end(Some(Outcome::rejected(format!("this image is refused: {why}"))));
        }
        let installed_at = self.record.wall;
        for (image, got) in update.images.iter().zip(images) {
            let slots = self.record.slots_mut(update.target);
            let installs = slots.get(&image.slot).map_or(0, |s| s.installs).saturating_add(1);
            let status = SlotStatus {
                sha256: got.sha256,
                size: got.size,
                file_sha256: got.file_sha256,
                md5: got.md5,
                version: update.version.clone(),
                installed_at,
                installs,
            };
            slots.insert(image.slot.clone(), status);
        }
        self.record.resumes = 0;
        let hold = update.then == Then::Hold;
        self.record.state = State::Written { update };
        if hold {
            return self.end(Some(Outcome::succeeded("written and verified; not armed")));
        }
        let mut actions = vec![Action::Save, Action::Report];
        actions.extend(self.gate(now));
        actions
    }

    // --- Written: is the reboot due? --------------------------------------------------------------------------

    pub(super) fn gate(&mut self, now: Now) -> Vec<Action> {
        let State::Written { update } = &self.record.state else { return vec![] };
        if update.then != Then::Reboot {
            return self.arm();
        }
        if self.rules.reboot_window.is_some_and(|w| !w.contains(now.minute)) {
            return self.wait_for("outside the reboot window", now);
        }
        vec![Action::RunHook(Hook::PreReboot)]
    }

    pub(super) fn pre_reboot(&mut self, answer: HookAnswer, now: Now) -> Vec<Action> {
        match answer {
            HookAnswer::Done => {
                self.run.wait = None;
                let left = self.run.job_deadline.map(|d| d.since(now.boot));
                if left.is_some_and(|left| left < self.rules.reboot_reserve) {
                    return self.end(Some(Outcome::failed("too little time left")));
                }
                self.arm()
            }
            HookAnswer::NotNow => self.wait_for("the pre-reboot hook says: not now", now),
            HookAnswer::Failed(why) => self.end(Some(Outcome::failed(format!("pre-reboot hook: {why}")))),
        }
    }

    fn wait_for(&mut self, why: &str, now: Now) -> Vec<Action> {
        let first = self.run.wait.is_none();
        let since = self.run.wait.as_ref().map_or(now.boot, |w| w.since);
        if now.boot.since(since) >= self.rules.defer_limit {
            return self.end(Some(Outcome::failed(format!("put off for too long: {why}"))));
        }
        let until = now.boot.after(self.rules.retry_interval);
        self.run.wait = Some(Wait { since, until, why: why.to_owned() });
        if first { vec![Action::Report] } else { vec![] }
    }

    pub(super) fn time_left(&mut self, left: std::time::Duration, now: Now) -> Vec<Action> {
        self.run.job_deadline = Some(now.boot.after(left));
        vec![]
    }

    // --- Arming, Armed, the reboot ----------------------------------------------------------------------------

    pub(super) fn arm(&mut self) -> Vec<Action> {
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        let target = update.target;
        self.record.state = State::Arming { update, attempt: 1 };
        vec![Action::Save, Action::Arm(target), Action::Continue]
    }

    pub(super) fn armed(&mut self, now: Now) -> Vec<Action> {
        let State::Arming { update, .. } = &self.record.state else { return vec![] };
        let update = update.clone();
        let then = update.then;
        let target = update.target;
        self.record.state = State::Armed { update, boot_id: self.boot_id() };
        self.run.armed_since = Some(now.boot);
        self.run.seal_acknowledged = false;
        let mut actions = self.settle();
        actions.extend([Action::Save, Action::Report]);
        if then == Then::Reboot {
            actions.extend(self.reboot_when_told(now));
        } else {
            actions.push(Action::Say(format!("set {target} is armed: the next reboot tries it")));
            actions.push(Action::Answer(Ok(format!("set {target} is armed: the next reboot tries it"))));
        }
        actions
    }

    pub(super) fn seal_acknowledged(&mut self, now: Now) -> Vec<Action> {
        self.run.seal_acknowledged = true;
        self.reboot_when_told(now)
    }

    /// The cloud must hold the seal before the reboot, or the other set the record (UPDATE-RULES 4.4).
    pub(super) fn reboot_when_told(&mut self, now: Now) -> Vec<Action> {
        let State::Armed { update, .. } = &self.record.state else { return vec![] };
        if update.then != Then::Reboot || self.run.reboot_asked.is_some() {
            return vec![];
        }
        let waited = self.run.armed_since.is_some_and(|t| now.boot.since(t) >= SEAL_WAIT);
        let told = update.origin.open_job().is_none() || self.run.seal_acknowledged;
        if told || (waited && self.rules.record_shared) { self.reboot(now) } else { vec![] }
    }

    pub(super) fn reboot(&mut self, now: Now) -> Vec<Action> {
        self.run.reboot_asked = Some(now.boot);
        vec![Action::Reboot]
    }

    /// Until the reboot the cloud's word ends an update; nothing is reported back.
    pub(super) fn closed_before_reboot(&mut self, why: &str) -> Vec<Action> {
        self.close_job();
        let say = Action::Say(format!("the cloud ended the job: {why}"));
        let armed = matches!(self.record.state, State::Arming { .. } | State::Armed { .. });
        let mut actions = vec![say];
        actions.extend(if armed { self.drop_armed(Cause::Closed, why) } else { self.end(None) });
        actions
    }

    /// From the reboot on the device's facts win; the outcome stays here.
    pub(super) fn closed_after_reboot(&mut self, why: &str) -> Vec<Action> {
        self.close_job();
        vec![Action::Say(format!("the cloud ended the job, the trial goes on: {why}")), Action::Save]
    }

    fn close_job(&mut self) {
        if let Some(Update { origin: Origin::Job { closed, .. }, .. }) = self.record.state.update_mut() {
            *closed = true;
        }
    }

    /// Still on the old set: undo the arming.
    pub(super) fn drop_armed(&mut self, cause: Cause, text: &str) -> Vec<Action> {
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        let target = update.target;
        self.run.reboot_asked = None;
        let reason = Reason { cause, text: clip(text) };
        self.record.state = State::RollingBack { update, reason, attempt: 1 };
        vec![Action::Save, Action::Disarm(target), Action::Continue]
    }

    // --- Trial ------------------------------------------------------------------------------------------------

    pub(super) fn trial_health(&mut self, health: Health, now: Now) -> Vec<Action> {
        let hopeless = match &health {
            Health::Hopeless(why) => Some(why.clone()),
            _ => None,
        };
        self.run.health = Some(health);
        if let Some(why) = hopeless {
            return self.trial_failed(Cause::Health, format!("health check: {why}"));
        }
        self.trial_verdict(now)
    }

    pub(super) fn trial_cloud(&mut self, now: Now) -> Vec<Action> {
        self.run.cloud = true;
        self.trial_verdict(now)
    }

    /// Everything passed, or a deadline did.
    pub(super) fn trial_verdict(&mut self, now: Now) -> Vec<Action> {
        let State::Trial { update, started, .. } = &self.record.state else { return vec![] };
        let running = now.boot.since(Boottime::from(*started));
        let cloud_missing = self.cloud_missing(update);
        let passed = matches!(self.run.health, Some(Health::Passed));
        if passed && !cloud_missing {
            return self.confirm();
        }
        if !passed && running >= self.rules.health_timeout {
            let why = match &self.run.health {
                Some(Health::NotYet(why)) => format!("health check: {why}"),
                _ => "health checks gave no answer".to_owned(),
            };
            return self.trial_failed(Cause::Health, why);
        }
        if cloud_missing && running >= self.rules.cloud_timeout {
            return self.trial_failed(Cause::Cloud, "the cloud was out of reach for the whole trial".into());
        }
        vec![]
    }

    fn trial_failed(&mut self, cause: Cause, text: String) -> Vec<Action> {
        let State::Trial { update, .. } = &self.record.state else { return vec![] };
        if self.way_back(update) {
            return self.roll_back(cause, text);
        }
        let mut actions = vec![Action::Say(format!("not well, and no other set to go back to: {text}"))];
        // Nothing can be settled for the better by a dead-man's reboot.
        actions.extend(self.settle());
        actions
    }

    pub(super) fn confirm(&mut self) -> Vec<Action> {
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        let target = update.target;
        self.record.state = State::Confirming { update };
        vec![Action::StopHealth, Action::Save, Action::Confirm(target), Action::Continue]
    }

    pub(super) fn confirmed(&mut self) -> Vec<Action> {
        let State::Confirming { update } = &self.record.state else { return vec![] };
        let update = update.clone();
        self.record.confirmed = Some(update.target);
        (self.record.late_fallback, self.record.restores) = (false, 0);
        self.record.lift_ban(&update.raw_digests().unwrap_or_default());
        self.run.kept = true;
        let version = update.version.as_ref().map(|v| format!(" ({v})")).unwrap_or_default();
        let adopted = update.origin == Origin::Adopted;
        let mut actions =
            self.end(Some(Outcome::succeeded(format!("set {}{version} confirmed", update.target))));
        actions.extend(self.settle());
        if !adopted {
            actions.push(Action::RunHook(Hook::PostConfirm));
        }
        actions.push(Action::Answer(Ok(format!("set {} is permanent", update.target))));
        actions
    }

    // --- Going back -------------------------------------------------------------------------------------------

    pub(super) fn roll_back(&mut self, cause: Cause, text: String) -> Vec<Action> {
        let Some(update) = self.record.state.update().cloned() else { return vec![] };
        if cause == Cause::Health {
            self.record.note_bad_trial(&update.raw_digests().unwrap_or_default(), true, &clip(&text));
        }
        let reason = Reason { cause, text: clip(&text) };
        self.record.state = State::RollingBack { update, reason, attempt: 1 };
        self.leave_set()
    }

    pub(super) fn leave_set(&self) -> Vec<Action> {
        let Some(update) = self.record.state.update() else { return vec![] };
        vec![
            Action::StopHealth,
            Action::Save,
            Action::Disarm(update.target),
            Action::Report,
            Action::RunHook(Hook::OnRollback),
        ]
    }

    /// The bootloader holds the old order again, and the old set runs: the update is over.
    pub(super) fn back_on_old_set(&mut self) -> Vec<Action> {
        let State::RollingBack { reason, update, .. } = &self.record.state else { return vec![] };
        if self.booted_target() {
            return vec![Action::RunHook(Hook::OnRollback)];
        }
        let (outcome, from) = (reason.outcome(), update.from);
        self.record.confirmed = Some(from);
        let mut actions = self.end(outcome);
        actions.extend(self.settle());
        if !self.run.kept {
            actions.push(Action::CheckHealth);
        }
        actions
    }

    // --- The end ----------------------------------------------------------------------------------------------

    /// The update is over. The outcome goes to disk before it goes anywhere else; `None` = nobody is told.
    pub(super) fn end(&mut self, outcome: Option<Outcome>) -> Vec<Action> {
        let Some(update) = self.record.state.update() else { return vec![] };
        let outcome = outcome.map(clip_outcome);
        let (seal, origin) = (self.seal().map(|s| s.to_string()), update.origin.clone());
        if let Some(key) = origin.job() {
            let finished = Finished { key: key.clone(), outcome: outcome.clone(), seal };
            let tell = origin.open_job().is_some() && outcome.is_some();
            self.record.finish(finished, tell);
        }
        if origin != Origin::Adopted {
            self.record.last = outcome.clone();
        }
        self.record.state = State::Idle;
        self.record.resumes = 0;
        let mut actions = if self.run.fetching { vec![Action::StopFetch] } else { vec![] };
        (self.run.fetching, self.run.alive, self.run.wait, self.run.job_deadline) =
            (false, false, None, None);
        (self.run.armed_since, self.run.reboot_asked, self.run.progress) = (None, None, None);
        match outcome.filter(|_| origin != Origin::Adopted) {
            Some(Outcome::Succeeded { reason }) => actions.extend([Action::Save, Action::Answer(Ok(reason))]),
            // Bad news does not wait for a disk that may be the cause of it.
            Some(other) => actions.extend([Action::Answer(Err(other.reason().to_owned())), Action::Save]),
            None => actions.push(Action::Save),
        }
        actions.push(Action::Flush);
        actions
    }

    pub(super) fn acknowledged(&mut self, key: &JobKey) -> Vec<Action> {
        let before = self.record.outbox.len();
        self.record.outbox.retain(|f| f.key != *key);
        if self.record.outbox.len() == before { vec![] } else { vec![Action::Save] }
    }

    /// What this device tells the cloud about the update, in every details map it sends.
    #[must_use]
    pub fn seal(&self) -> Option<Seal> {
        let update = self.record.state.update().filter(|u| u.origin.job().is_some())?;
        Some(Seal {
            phase: self.record.state.name().to_owned(),
            target: update.target,
            from: update.from,
            digest: update.digest(),
            boot_id: self.boot_id(),
        })
    }

    // --- What goes wrong --------------------------------------------------------------------------------------

    pub(super) fn failed(&mut self, action: Action, why: &str, now: Now) -> Vec<Action> {
        match (&self.record.state, action) {
            (State::Idle, Action::Save) => self.save_later(why, now),
            (State::Idle, Action::Keep(_) | Action::Confirm(_)) => {
                vec![Action::Say(format!("the counter of the running set cannot be refreshed: {why}"))]
            }
            (State::Idle, Action::Arm(_)) if self.run.restoring => {
                self.run.restoring = false;
                self.late_fallback()
            }
            (State::Accepted { .. } | State::Writing { .. } | State::Written { .. }, action) => {
                let what = if action == Action::Save { "the record cannot be saved" } else { "not prepared" };
                self.end(Some(Outcome::failed(format!("{what}: {why}"))))
            }
            (State::Arming { attempt, .. }, Action::Arm(_)) if *attempt < crate::verdict::ARM_ATTEMPTS => {
                self.arm_once_more()
            }
            (State::Arming { .. } | State::Armed { .. }, Action::Reboot) => self.reboot_failed(why, now),
            (State::Arming { .. }, Action::Arm(_)) => {
                self.drop_armed(Cause::NotArmed, &format!("not armed: {why}"))
            }
            (State::Arming { .. } | State::Armed { .. }, Action::Save) => {
                self.drop_armed(Cause::Dropped, &format!("the record cannot be saved: {why}"))
            }
            // What cannot be saved is not confirmed.
            (State::Trial { .. } | State::Confirming { .. }, Action::Save) => {
                self.roll_back(Cause::Device, format!("the record cannot be saved: {why}"))
            }
            (State::Confirming { .. }, Action::Confirm(_)) => {
                self.roll_back(Cause::Device, format!("the set cannot be made permanent: {why}"))
            }
            (State::RollingBack { update, .. }, Action::Save) => {
                vec![
                    Action::Say(format!("going back unsaved: {why}")),
                    Action::Disarm(update.target),
                    Action::Continue,
                ]
            }
            (State::RollingBack { .. }, Action::Disarm(_)) => {
                let mut actions =
                    vec![Action::Say(format!("the bootloader keeps the bad set in its order: {why}"))];
                actions.extend(self.back_on_old_set());
                actions
            }
            (_, Action::Reboot) => self.reboot_failed(why, now),
            (_, action) => vec![Action::Say(format!("{action:?}: {why}"))],
        }
    }

    fn arm_once_more(&mut self) -> Vec<Action> {
        let State::Arming { update, attempt } = self.record.state.clone() else { return vec![] };
        let target = update.target;
        self.record.state = State::Arming { update, attempt: attempt + 1 };
        vec![Action::Save, Action::Arm(target), Action::Continue]
    }

    fn save_later(&mut self, why: &str, now: Now) -> Vec<Action> {
        let first = self.run.unsaved.replace(now.boot).is_none();
        if first {
            vec![Action::Say(format!("the record cannot be saved, trying again: {why}"))]
        } else {
            vec![]
        }
    }

    fn reboot_failed(&mut self, why: &str, now: Now) -> Vec<Action> {
        self.run.reboot_asked = Some(now.boot);
        vec![Action::Say(format!("the reboot did not start, trying again: {why}"))]
    }

    // --- Time -------------------------------------------------------------------------------------------------

    pub(super) fn tick(&mut self, now: Now) -> Vec<Action> {
        if self.run.unsaved.is_some_and(|t| now.boot.since(t) >= SAVE_RETRY) {
            self.run.unsaved = None;
            return vec![Action::Save, Action::Flush, Action::AskCloud];
        }
        if self.run.reboot_asked.is_some_and(|t| now.boot.since(t) >= REBOOT_RETRY) {
            return self.reboot(now);
        }
        let due = self.run.wait.as_ref().is_some_and(|w| w.until <= now.boot);
        match &self.record.state {
            State::Accepted { .. } if due => vec![Action::RunHook(Hook::PreInstall)],
            State::Written { .. } if due => self.gate(now),
            State::Armed { .. } => self.reboot_when_told(now),
            State::Trial { .. } => self.trial_verdict(now),
            _ => vec![],
        }
    }
}

/// The same images under fresh URLs.
fn same_images(old: &[Image], new: &[Image]) -> bool {
    old.len() == new.len()
        && old.iter().zip(new).all(|(a, b)| a.slot == b.slot && a.raw == b.raw && a.file == b.file)
}

/// Reasons come from scripts and servers: bounded, on one line.
fn clip(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_KEPT).collect()
}

fn clip_outcome(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Succeeded { reason } => Outcome::Succeeded { reason: clip(&reason) },
        Outcome::Failed { reason } => Outcome::Failed { reason: clip(&reason) },
        Outcome::Rejected { reason } => Outcome::Rejected { reason: clip(&reason) },
    }
}
