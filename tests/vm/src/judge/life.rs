//! What becomes of a device that is switched on in a state: the loader decides, the real update machine takes over, and
//! its actions are done to the state, until all is quiet. Whatever must never happen is looked for where it would happen.

use std::collections::BTreeMap;
use std::time::Duration;

use otandem_core::boot::{Facts, SetId};
use otandem_core::machine::{
    Action, Cloud, Event, Evidence, Health, Hook, HookAnswer, Machine, Now, Rules, WrittenImage,
};
use otandem_core::record::{Finished, Record, State};
use otandem_core::time::Boottime;
use otandem_core::update::Outcome;

use super::boot::{BackEnd, Memory, Verb};
use super::slots::Content;

/// Tries of a trial on the virtual device.
const TRIAL_BOOTS: usize = 1;
/// Resets in which a device must have come to a whole set.
pub const MOST_RESETS: usize = TRIAL_BOOTS + 3;
/// Boots of one life until all must be quiet: an update that begins anew takes three.
const MOST_BOOTS: usize = 12;
/// Steps of the machine in one boot.
const MOST_STEPS: usize = 300;

/// What the images do in this life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Everything is well.
    Well,
    /// The new image says no in its trial.
    Sick,
    /// In its trial nobody speaks in the new image: the dead-man resets it.
    Silent,
}

impl Fate {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Well, Self::Sick, Self::Silent];
}

/// How a job ended, as far as it must not change any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `SUCCEEDED`
    Succeeded,
    /// `FAILED`
    Failed,
    /// `REJECTED`
    Rejected,
}

/// An outcome and whether it says that the new set had run.
pub type End = (Kind, bool);

/// How the outcome of a finished execution counts.
#[must_use]
pub fn end_of(finished: &Finished) -> Option<End> {
    let outcome = finished.outcome.as_ref()?;
    let kind = match outcome {
        Outcome::Succeeded { .. } => Kind::Succeeded,
        Outcome::Failed { .. } => Kind::Failed,
        Outcome::Rejected { .. } => Kind::Rejected,
    };
    Some((kind, outcome.reason().starts_with("rolled back")))
}

/// The version that a job brings, by the digests of its root file system, in the order of the versions.
pub type Digests = [String];

/// What a life came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Course {
    /// How each job ended: those of the record in which the life began, too.
    pub ends: BTreeMap<String, End>,
    /// Each set ran in this life: A, B.
    pub ran: [bool; 2],
    /// Boots.
    pub boots: usize,
}

/// A device in a state.
pub struct Device<'a> {
    /// The loader's memory.
    pub memory: Memory,
    /// What the sets hold.
    pub sets: [Content; 2],
    /// The record.
    pub disk: Option<Record>,
    /// Our back end.
    pub back_end: &'a mut BackEnd,
    /// SHA-256 of the root file system of each version, in hex.
    pub digests: &'a Digests,
    /// The configuration.
    pub rules: &'a Rules,
}

const fn index(set: SetId) -> usize {
    match set {
        SetId::A => 0,
        SetId::B => 1,
    }
}

/// One process of the agent, and what it waits for.
struct Process {
    machine: Machine,
    running: SetId,
    time: Duration,
    hook: Option<Hook>,
    checking: bool,
    opening: bool,
    writing: bool,
    asking: bool,
    reporting: bool,
    rebooting: bool,
}

impl Device<'_> {
    /// The device is reset again and again and nobody does anything: what runs must be whole each time.
    ///
    /// # Errors
    /// It is not, or nothing runs within [`MOST_RESETS`].
    pub fn never_settled(&mut self) -> Result<(), String> {
        for _ in 0..=MOST_RESETS {
            self.boots()?;
        }
        Ok(())
    }

    /// Lives until all is quiet.
    ///
    /// # Errors
    /// What must never happen, in words.
    pub fn live(&mut self, fate: Fate) -> Result<Course, String> {
        let mut course = Course::default();
        // What had ended before is not judged again.
        for finished in self.disk.iter().flat_map(|record| &record.finished) {
            course.ends.extend(end_of(finished).map(|end| (finished.key.job.clone(), end)));
        }
        while course.boots < MOST_BOOTS {
            let running = self.boots()?;
            course.boots += 1;
            course.ran[index(running)] = true;
            if fate == Fate::Silent && self.on_trial(running) {
                continue;
            }
            if self.process(running, fate, course.boots, &mut course.ends)? {
                return Ok(course);
            }
        }
        Err(format!("{fate:?}: not quiet after {MOST_BOOTS} boots"))
    }

    /// Reset until something runs, which must be a whole set.
    fn boots(&mut self) -> Result<SetId, String> {
        for _ in 0..MOST_RESETS {
            let sets = &self.sets;
            let Some(set) = self.memory.reset(|set| sets[index(set)] != Content::Dead) else { continue };
            return match &self.sets[index(set)] {
                Content::Complete(_) => Ok(set),
                other => Err(format!("set {set} is booted: {other:?}")),
            };
        }
        Err(format!("nothing is booted in {MOST_RESETS} resets"))
    }

    /// The target runs and has not proved itself yet: what is being confirmed has.
    fn on_trial(&self, running: SetId) -> bool {
        let state = self.disk.as_ref().map(|record| &record.state);
        let tried = matches!(
            state,
            Some(
                State::Arming { .. } | State::Armed { .. } | State::Trial { .. } | State::RollingBack { .. }
            )
        );
        tried && state.and_then(State::update).is_some_and(|update| update.target == running)
    }

    fn facts(&mut self, running: SetId, boots: usize) -> Result<Facts, String> {
        let facts = self.back_end.ask(&mut self.memory, running, Verb::Facts)?;
        Ok(Facts { boot_id: format!("judged-{boots}"), ..facts })
    }

    /// One process of the agent, from its start until all is quiet (true) or the device goes down.
    fn process(
        &mut self,
        running: SetId,
        fate: Fate,
        boots: usize,
        ends: &mut BTreeMap<String, End>,
    ) -> Result<bool, String> {
        let heads = self.sets.each_ref().map(|content| *content != Content::Dead);
        let evidence = Evidence { facts: self.facts(running, boots), heads, unread: false };
        let time = Duration::from_secs(5);
        let now = Now { boot: Boottime(time), minute: 720 };
        let (machine, actions) = Machine::start(self.disk.clone(), evidence, self.rules.clone(), now);
        let mut process = Process {
            machine,
            running,
            time,
            hook: None,
            checking: false,
            opening: false,
            writing: false,
            asking: false,
            reporting: false,
            rebooting: false,
        };
        self.perform(&mut process, actions, ends)?;
        for _ in 0..MOST_STEPS {
            if process.rebooting {
                return Ok(false);
            }
            let Some(event) = self.next(&mut process, fate) else {
                return self.quiet(&process, ends).map(|()| true);
            };
            let now = process.now();
            let actions = process.machine.step(event, now);
            self.perform(&mut process, actions, ends)?;
        }
        Err(format!("{fate:?}: busy for ever in phase {}", process.machine.phase()))
    }

    fn perform(
        &mut self,
        process: &mut Process,
        actions: Vec<Action>,
        ends: &mut BTreeMap<String, End>,
    ) -> Result<(), String> {
        let mut next = Some(actions);
        while let Some(list) = next.take() {
            for action in list {
                let now = process.now();
                if action == Action::Continue {
                    next = Some(process.machine.step(Event::Continue, now));
                    break;
                }
                if let Err(why) = self.act(process, &action, ends)? {
                    next = Some(process.machine.step(Event::Failed(Box::new(action), why), now));
                    break;
                }
            }
        }
        Ok(())
    }

    /// One effect. The inner error is one that the machine gets to hear.
    fn act(
        &mut self,
        process: &mut Process,
        action: &Action,
        ends: &mut BTreeMap<String, End>,
    ) -> Result<Result<(), String>, String> {
        let running = process.running;
        let verb = match *action {
            Action::MarkBad(set) => Verb::MarkBad(set),
            // As the agent does: leaving a set that runs is "bad" to the loader.
            Action::Disarm(set) if set == running => Verb::MarkBad(set),
            Action::Disarm(set) => Verb::Disarm(set),
            Action::Keep(set) => Verb::Keep(set),
            Action::Confirm(set) => Verb::Confirm(set),
            Action::Arm(set) => {
                if self.sets[index(set)].version().is_none() {
                    return Err(format!("set {set} is armed: {:?}", self.sets[index(set)]));
                }
                Verb::Arm(set)
            }
            Action::Save => {
                self.save(process, ends)?;
                return Ok(Ok(()));
            }
            _ => {
                self.request(process, action)?;
                return Ok(Ok(()));
            }
        };
        Ok(self.back_end.ask(&mut self.memory, running, verb).map(drop))
    }

    fn save(&mut self, process: &Process, ends: &mut BTreeMap<String, End>) -> Result<(), String> {
        let record = process.machine.record();
        self.disk = Some(record.clone());
        for finished in &record.outbox {
            let (job, Some(end)) = (finished.key.job.clone(), end_of(finished)) else { continue };
            match ends.insert(job.clone(), end) {
                Some(before) if before != end => {
                    return Err(format!("job {job} ended as {before:?} and then as {end:?}"));
                }
                Some(_) => {}
                None => self.must_be_true(&job, end, process.running)?,
            }
        }
        Ok(())
    }

    /// A new outcome, at the moment at which it can be told.
    fn must_be_true(&self, job: &str, end: End, running: SetId) -> Result<(), String> {
        if end.0 != Kind::Succeeded {
            return Ok(());
        }
        let (mut memory, sets) = (self.memory.clone(), &self.sets);
        for _ in 0..2 {
            let next = memory.reset(|set| sets[index(set)] != Content::Dead);
            if next != Some(running) {
                return Err(format!("job {job} SUCCEEDED in set {running}, and {next:?} is booted next"));
            }
        }
        Ok(())
    }

    fn request(&mut self, process: &mut Process, action: &Action) -> Result<(), String> {
        match action {
            Action::Reboot => process.rebooting = true,
            Action::Fetch { .. } => process.opening = true,
            Action::Write => {
                let target = process.machine.record().state.update().map(|update| update.target);
                let Some(target) = target.filter(|target| *target != process.running) else {
                    return Err("the running set is written".into());
                };
                self.sets[index(target)] = Content::Dead;
                process.writing = true;
            }
            Action::StopFetch => (process.opening, process.writing) = (false, false),
            Action::CheckHealth => process.checking = true,
            Action::StopHealth => process.checking = false,
            Action::RunHook(hook) => process.hook = Some(*hook),
            Action::Report => process.reporting = true,
            Action::AskCloud => process.asking = true,
            _ => {}
        }
        Ok(())
    }

    /// What happens next; `None`: nothing.
    fn next(&mut self, process: &mut Process, fate: Fate) -> Option<Event> {
        let state = &process.machine.record().state;
        let trial = matches!(state, State::Trial { .. });
        if let Some(hook) = process.hook.take() {
            return Some(Event::Hook(hook, HookAnswer::Done));
        }
        if std::mem::take(&mut process.checking) {
            let sick = fate == Fate::Sick && trial;
            let health = if sick { Health::Hopeless("sick".into()) } else { Health::Passed };
            return Some(Event::Health(health));
        }
        if std::mem::take(&mut process.opening) {
            return Some(Event::Ready);
        }
        if std::mem::take(&mut process.writing) {
            return Some(self.written(process));
        }
        if std::mem::take(&mut process.asking) {
            match state {
                State::Trial { .. } => return Some(Event::Cloud(Cloud::Accepted)),
                State::Accepted { .. } | State::Writing { .. } | State::Written { .. } => {
                    return Some(Event::Cloud(Cloud::Alive(None)));
                }
                _ => {}
            }
        }
        if std::mem::take(&mut process.reporting) && matches!(state, State::Armed { .. }) {
            return Some(Event::Cloud(Cloud::SealAcknowledged));
        }
        if let Some(finished) = process.machine.sendable().next() {
            return Some(Event::Cloud(Cloud::Acknowledged(finished.key.clone())));
        }
        let due = process.machine.next_wake()?;
        process.time = process.time.max(due.0);
        Some(Event::Tick)
    }

    /// The images of the update are in their slots.
    fn written(&mut self, process: &Process) -> Event {
        let failed = |why: &str| Event::FetchEnded(Outcome::failed(why));
        let Some(update) = process.machine.record().state.update() else { return failed("no update") };
        let mut all = Vec::new();
        for image in &update.images {
            let (Some(sha256), Some(size)) = (image.raw.sha256, image.raw.size) else {
                return failed("an image without digest or size");
            };
            if image.slot == "rootfs"
                && let Some(version) = self.digests.iter().position(|digest| *digest == sha256.to_string())
            {
                self.sets[index(update.target)] = Content::Complete(version);
            }
            all.push(WrittenImage { sha256, size, file_sha256: None, md5: None });
        }
        Event::Written(all)
    }

    /// Nothing happens any more: the device must be as a device is that waits for its next job.
    fn quiet(&mut self, process: &Process, ends: &mut BTreeMap<String, End>) -> Result<(), String> {
        let (machine, running) = (&process.machine, process.running);
        if let Some(why) = machine.not_ready() {
            return Err(format!("quiet in set {running} and not ready: {why}"));
        }
        let record = machine.record();
        if !record.outbox.is_empty() {
            return Err("an outcome waits for ever".into());
        }
        if record.late_fallback {
            return Err(format!("late fallback to set {running}"));
        }
        for finished in &record.finished {
            let (job, Some(end)) = (finished.key.job.clone(), end_of(finished)) else { continue };
            if let Some(before) = ends.insert(job.clone(), end)
                && before != end
            {
                return Err(format!("job {job} ended as {before:?}, and the record says {end:?}"));
            }
        }
        let sets = self.sets.clone();
        for _ in 0..=MOST_RESETS {
            let next = self.memory.reset(|set| sets[index(set)] != Content::Dead);
            if next != Some(running) {
                return Err(format!("ready in set {running}, and the next reset leads to {next:?}"));
            }
        }
        Ok(())
    }
}

impl Process {
    const fn now(&self) -> Now {
        Now { boot: Boottime(self.time), minute: 720 }
    }
}
