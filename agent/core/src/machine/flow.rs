//! From an offer to a set that is written and verified, and the wait for the reboot.

use super::{Action, Fetching, Health, Hook, HookAnswer, MAX_RESUMES, Machine, Now, Wait, WrittenImage};
use super::{PROGRESS_EVERY, PROGRESS_STEP};
use crate::image::{Checkpoint, Image};
use crate::jobs::wire::Details;
use crate::record::{Finished, SlotStatus, State};
use crate::update::{JobKey, Origin, Outcome, Then, Update};

impl Machine {
    // --- The running set first --------------------------------------------------------------------------------

    /// Outside a trial: the running set is well, so its counter is refreshed, whatever else is going on.
    pub(super) fn running_set_health(&mut self, health: Health) -> Vec<Action> {
        match self.hear(health) {
            Some(why) if !self.run.kept && self.record.state != State::Idle => self.not_well(&why),
            _ => self.refresh(),
        }
    }

    /// Notes what the checks say, and returns why there is no hope. That they passed is final: they stop then, and what
    /// comes later was said before.
    pub(super) fn hear(&mut self, health: Health) -> Option<String> {
        if self.run.health == Some(Health::Passed) {
            return None;
        }
        let hopeless = match &health {
            Health::Hopeless(why) => Some(why.clone()),
            _ => None,
        };
        self.run.health = Some(health);
        hopeless
    }

    pub(super) fn refresh(&mut self) -> Vec<Action> {
        let well = matches!(self.run.health, Some(Health::Passed));
        let Some(booted) = self.booted().filter(|_| well && !self.run.kept && !self.run.restoring) else {
            return vec![];
        };
        let act = if self.record.confirmed == Some(booted) { Action::Keep } else { Action::Confirm };
        vec![Action::StopHealth, act(booted), Action::Continue]
    }

    pub(super) fn idle_continues(&mut self, now: Now) -> Vec<Action> {
        if self.run.restoring {
            return self.reboot(now);
        }
        let mut actions = self.settle();
        actions.push(Action::AskCloud);
        actions.extend(self.refreshed());
        actions
    }

    /// The bootloader holds the running set as the one to keep.
    fn refreshed(&mut self) -> Vec<Action> {
        self.run.kept = true;
        self.run.boot_failed = None;
        let changed = self.record.confirmed != self.booted() || self.record.restores > 0;
        self.record.confirmed = self.booted();
        self.record.restores = 0;
        if changed { vec![Action::Save] } else { vec![] }
    }

    /// Work that was interrupted cannot go on where the running set itself is not well.
    pub(super) fn not_well(&mut self, why: &str) -> Vec<Action> {
        self.end(Some(Outcome::failed(format!("the running set is not well: {why}"))))
    }

    // --- Idle -------------------------------------------------------------------------------------------------

    pub(super) fn accept(&mut self, update: Update, now: Now) -> Vec<Action> {
        if let Some(key) = update.origin.job().filter(|k| self.record.finished(k).is_some()).cloned() {
            return self.answer_again(&key);
        }
        if !self.ready() || !self.is_for_here(&update) {
            return self.not_taken(&update);
        }
        self.run.job_deadline = None;
        self.begin(update, now)
    }

    /// The update starts from the set that runs.
    pub(super) fn is_for_here(&self, update: &Update) -> bool {
        self.booted() == Some(update.from) && update.from != update.target
    }

    pub(super) fn begin(&mut self, mut update: Update, now: Now) -> Vec<Action> {
        if update.origin.job().is_some() {
            // A job ends when its image has run: it cannot stop before that.
            update.then = update.then.max(Then::Arm);
        }
        self.run.alive = true;
        self.run.progress = None;
        self.run.reported = None;
        self.run.disk_armed = false;
        if update.images.is_empty() {
            // To a set that is complete already: nothing to fetch, and whoever asks is there.
            self.enter(State::Written { update });
            return self.arm(now);
        }
        self.enter(State::Accepted { update });
        let mut actions = vec![Action::Save, Action::Report];
        actions.extend(self.ask(Hook::PreInstall));
        actions
    }

    /// An offer at the wrong time: a job is offered again, a person is told.
    pub(super) fn not_taken(&self, update: &Update) -> Vec<Action> {
        if update.origin != Origin::Local {
            return vec![];
        }
        let why = self.not_ready().unwrap_or_else(|| "the update is not for the set that runs".into());
        vec![Action::Answer(Err(why))]
    }

    /// A job that is refused as it comes: recorded like any other, so that it is answered once.
    pub(super) fn job_ended(&mut self, key: JobKey, outcome: Outcome) -> Vec<Action> {
        if self.record.finished(&key).is_some() {
            return self.answer_again(&key);
        }
        // A device that cannot save takes no job, and says so rather than letting it wait.
        let unsaved = self.run.unsaved.is_some();
        if !self.takes_jobs() && !unsaved {
            return vec![];
        }
        self.run.disk_armed = false;
        let outcome = Some(outcome.clipped());
        self.record.last.clone_from(&outcome);
        self.record.finish(Finished { key, outcome, seal: None, details: Details::new() }, true);
        if unsaved { vec![Action::Flush] } else { vec![Action::Save, Action::Flush] }
    }

    /// A known execution is answered with what is known of it (UPDATE-RULES 5.1).
    pub(super) fn answer_again(&mut self, key: &JobKey) -> Vec<Action> {
        let Some(finished) = self.record.finished(key).cloned() else { return vec![] };
        if self.record.outbox.iter().any(|f| f.key == *key) {
            return vec![Action::Flush];
        }
        let outcome =
            finished.outcome.or_else(|| Some(Outcome::failed("dropped here when the cloud ended the job")));
        self.record.finish(Finished { outcome, ..finished }, true);
        vec![Action::Save, Action::Flush]
    }

    // --- Taken up again ---------------------------------------------------------------------------------------

    /// The running set is well and refreshed. A job is gone on with when the cloud said that it lives.
    pub(super) fn resume(&mut self, now: Now) -> Vec<Action> {
        let mut actions = self.refreshed();
        if self.known_to_live() {
            actions.extend(self.take_up(now));
        }
        actions
    }

    pub(super) fn known_to_live(&self) -> bool {
        self.run.alive || self.record.state.update().is_none_or(|u| u.origin.open_job().is_none())
    }

    /// Goes on with the step that was interrupted. Counted before its effect, so that a step which kills the agent
    /// comes to an end.
    fn take_up(&mut self, now: Now) -> Vec<Action> {
        if self.worn_out() {
            return self.end(Some(Outcome::failed(self.died())));
        }
        let mut actions = vec![Action::Save];
        actions.extend(match &self.record.state {
            State::Accepted { .. } => self.ask(Hook::PreInstall),
            State::Writing { .. } => self.fetch(),
            State::Written { .. } => self.gate(now),
            _ => vec![],
        });
        actions
    }

    /// Counts that a pending step is taken up again; `true` = too often.
    pub(super) const fn worn_out(&mut self) -> bool {
        self.record.resumes = self.record.resumes.saturating_add(1);
        self.record.resumes > MAX_RESUMES
    }

    pub(super) fn died(&self) -> String {
        format!("agent died in {}", self.record.state.name())
    }

    /// The job lives. After a restart this is what the work waits for.
    pub(super) fn alive(&mut self, images: Option<Vec<Image>>, now: Now) -> Vec<Action> {
        let Some(update) = self.record.state.update_mut() else { return vec![] };
        if let Some(fresh) = images {
            if !same_images(&update.images, &fresh) {
                let outcome = Outcome::failed("the job document changed while the update was under way");
                return self.end(Some(outcome));
            }
            update.images = fresh;
        }
        let first = !std::mem::replace(&mut self.run.alive, true);
        if first && self.run.kept { self.take_up(now) } else { vec![] }
    }

    // --- Accepted, Writing ------------------------------------------------------------------------------------

    pub(super) fn ask(&mut self, hook: Hook) -> Vec<Action> {
        self.run.asked = Some(hook);
        vec![Action::RunHook(hook)]
    }

    /// `true` once for every time that the hook was asked; an answer that nobody waits for counts for nothing.
    pub(super) fn asked(&mut self, hook: Hook) -> bool {
        self.run.asked.take_if(|h| *h == hook).is_some()
    }

    pub(super) fn pre_install(&mut self, answer: HookAnswer, now: Now) -> Vec<Action> {
        if !self.asked(Hook::PreInstall) {
            return vec![];
        }
        match answer {
            HookAnswer::Done => {
                self.run.wait = None;
                self.fetch()
            }
            HookAnswer::NotNow => self.wait_for("the pre-install hook says: not now", now),
            HookAnswer::Failed(why) => self.end(Some(Outcome::failed(format!("pre-install hook: {why}")))),
        }
    }

    fn fetch(&mut self) -> Vec<Action> {
        let resume = match &self.record.state {
            State::Writing { checkpoint, .. } => checkpoint.clone(),
            _ => None,
        };
        self.run.fetch = Fetching::Opening;
        vec![Action::Fetch { resume }]
    }

    /// Everything that can be known before the first byte is known. Intent, then the mark, then the bytes.
    pub(super) fn begin_to_write(&mut self) -> Vec<Action> {
        if self.run.fetch != Fetching::Opening || !self.run.kept {
            return vec![];
        }
        let (update, checkpoint) = match &self.record.state {
            State::Accepted { update } => (update.clone(), None),
            State::Writing { update, checkpoint } => (update.clone(), checkpoint.clone()),
            _ => return vec![],
        };
        let target = update.target;
        for image in &update.images {
            self.record.slots_mut(target).remove(&image.slot);
        }
        self.set_head(target, false);
        // Not a new state where it is taken up again: what was counted goes on.
        self.record.state = State::Writing { update, checkpoint };
        vec![Action::Save, Action::MarkBad(target), Action::Continue]
    }

    pub(super) fn write(&mut self) -> Vec<Action> {
        if self.run.fetch != Fetching::Opening {
            return vec![];
        }
        self.run.fetch = Fetching::Writing;
        vec![Action::Write, Action::Report]
    }

    pub(super) fn checkpoint(&mut self, reached: Checkpoint) -> Vec<Action> {
        if self.run.fetch != Fetching::Writing {
            return vec![];
        }
        let State::Writing { checkpoint, .. } = &mut self.record.state else { return vec![] };
        *checkpoint = Some(reached);
        self.record.resumes = 0;
        vec![Action::Save]
    }

    pub(super) fn note_progress(&mut self, done: u64, total: Option<u64>, now: Now) -> Vec<Action> {
        if self.run.fetch != Fetching::Writing {
            return vec![];
        }
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

    pub(super) fn fetch_ended(&mut self, outcome: Outcome) -> Vec<Action> {
        if std::mem::take(&mut self.run.fetch) == Fetching::No {
            return vec![];
        }
        self.end(Some(outcome))
    }

    pub(super) fn written(&mut self, images: &[WrittenImage], now: Now) -> Vec<Action> {
        if self.run.fetch != Fetching::Writing {
            return vec![];
        }
        self.run.fetch = Fetching::No;
        let State::Writing { update, .. } = &self.record.state else { return vec![] };
        let mut update = update.clone();
        // The pipeline compared every digest. Nothing is armed on its word alone.
        let sound = images.len() == update.images.len()
            && update.images.iter().zip(images).all(|(want, got)| {
                want.raw.sha256.is_none_or(|d| d == got.sha256) && want.raw.size.is_none_or(|s| s == got.size)
            });
        if !sound {
            return self.end(Some(Outcome::failed("what was written is not what the job asks for")));
        }
        update.written = images.iter().map(|i| i.sha256).collect();
        // What was told last is a little behind, and would be told with every later phase.
        let size = images.iter().map(|i| i.size).fold(0, u64::saturating_add);
        self.run.progress = Some((size, Some(size)));
        if let Some(why) = self.record.ban(&update.written).filter(|_| !update.retry) {
            return self.end(Some(Outcome::rejected(format!("this image is refused: {why}"))));
        }
        self.note_slots(&update, images);
        self.set_head(update.target, true);
        let target = update.target;
        let hold = update.then == Then::Hold;
        self.enter(State::Written { update });
        if !self.record.complete(target, self.rules.slots.iter().map(String::as_str)) {
            let why = format!("set {target} has slots that this update leaves out and nobody wrote before");
            return self.end(Some(Outcome::failed(why)));
        }
        if hold {
            return self.end(Some(Outcome::succeeded("written and verified; not armed")));
        }
        let mut actions = vec![Action::Save, Action::Report];
        actions.extend(self.gate(now));
        actions
    }

    fn note_slots(&mut self, update: &Update, images: &[WrittenImage]) {
        let installed_at = self.run.wall.max(self.record.wall);
        for (image, got) in update.images.iter().zip(images) {
            let status = SlotStatus {
                sha256: got.sha256,
                size: got.size,
                file_sha256: got.file_sha256,
                md5: got.md5,
                version: update.version.clone(),
                installed_at,
                installs: self.record.count_install(update.target, &image.slot),
            };
            self.record.slots_mut(update.target).insert(image.slot.clone(), status);
        }
    }

    // --- Written: is the reboot due? --------------------------------------------------------------------------

    pub(super) fn gate(&mut self, now: Now) -> Vec<Action> {
        let State::Written { update } = &self.record.state else { return vec![] };
        if update.then != Then::Reboot {
            return self.arm(now);
        }
        if self.rules.reboot_window.is_some_and(|w| !w.contains(now.minute)) {
            return self.wait_for("outside the reboot window", now);
        }
        self.ask(Hook::PreReboot)
    }

    pub(super) fn pre_reboot(&mut self, answer: HookAnswer, now: Now) -> Vec<Action> {
        if !self.asked(Hook::PreReboot) {
            return vec![];
        }
        match answer {
            HookAnswer::Done => self.arm(now),
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
        let mut actions = if first { vec![Action::Report] } else { vec![] };
        if std::mem::take(&mut self.record.resumes) > 0 {
            // A device that is switched off every night while it waits has not failed at anything.
            actions.push(Action::Save);
        }
        actions
    }

    pub(super) fn time_left(&mut self, left: std::time::Duration, now: Now) -> Vec<Action> {
        self.run.job_deadline = Some(now.boot.after(left));
        vec![]
    }
}

/// The same images under fresh URLs.
fn same_images(old: &[Image], new: &[Image]) -> bool {
    old.len() == new.len()
        && old.iter().zip(new).all(|(a, b)| a.slot == b.slot && a.raw == b.raw && a.file == b.file)
}
