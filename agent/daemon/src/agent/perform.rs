//! What an action does to the machine: one arm each.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use otandem_boot::{BootControl, BootError, View};
use otandem_core::boot::{Facts, SetId};
use otandem_core::image::{Checkpoint, Sha256};
use otandem_core::jobs::document::JobPlan;
use otandem_core::jobs::running::RunningJob;
use otandem_core::machine::{Action, Event, Evidence, Hook, HookAnswer, Machine};
use otandem_core::update::{Origin, Outcome};
use otandem_device::install;
use otandem_device::jobs::asked_for_reboot;
use otandem_device::run::{self, Spec, Stop};
use otandem_device::state::{RecordStore, atomic_write};
use tokio::sync::mpsc;

use super::checks::{self, Environment, Runner};
use super::general::Steps;
use super::install::{Terms, Work, Worker};
use super::world::{Loader, bootloader, heads};
use crate::cloud::identity;
use crate::cloud::tls::{Clock, wall};
use crate::config::{BootKind, Settings, UpdateSettings};
use crate::general;

/// Between two feedings of a hardware watchdog; the shortest common timeout is 15 s.
const FEED_EVERY: Duration = Duration::from_secs(5);
/// Without a byte for this long a download that somebody waits for is given up; a job's has `update.download-timeout`.
const PATIENCE: Duration = Duration::from_secs(120);
/// A reboot command that does not come back is ended after this.
const REBOOT_LIMIT: Duration = Duration::from_secs(60);

/// An action that has not had its effect, and why.
#[derive(Debug)]
pub enum NotDone {
    /// It could not be done.
    Failed(String),
    /// The bootloader keeps the running set, since nothing else would boot.
    NoFallback(String),
}

/// Carries actions out.
pub struct Performer {
    settings: Settings,
    store: Option<RecordStore>,
    boot: Option<Loader>,
    /// For certificates.
    clock: Arc<Clock>,
    /// Why no image may be written on this device, whatever it is.
    refusal: Option<String>,
    no_digest: install::NoDigest,
    worker: Option<Worker>,
    health: Option<Runner>,
    hook: Option<Runner>,
    programs: Vec<Runner>,
    job: Option<Steps>,
    watchdog: Option<File>,
    tell: mpsc::UnboundedSender<Work>,
    works: mpsc::UnboundedReceiver<Work>,
}

impl Performer {
    pub(super) fn new(
        settings: Settings,
        store: Option<RecordStore>,
        boot: Option<Loader>,
        clock: Arc<Clock>,
        refusal: Option<String>,
    ) -> Self {
        let (tell, works) = mpsc::unbounded_channel();
        Self {
            settings,
            store,
            boot,
            clock,
            refusal,
            no_digest: install::NoDigest::Refuse,
            worker: None,
            health: None,
            hook: None,
            programs: vec![],
            job: None,
            watchdog: None,
            tell,
            works,
        }
    }

    /// Whether a person said in so many words that the next image needs no digest.
    pub(super) const fn no_digest(&mut self, allowed: bool) {
        self.no_digest = if allowed { install::NoDigest::Allow } else { install::NoDigest::Refuse };
    }

    /// What the bootloader says now.
    pub(super) fn facts(&mut self) -> Result<Facts, String> {
        self.boot()?.facts().map_err(|e| e.to_string())
    }

    /// Asks the bootloader again; one that does not answer is opened anew, since what it is made of may have come late.
    pub(super) fn look(&mut self) -> Result<Evidence, String> {
        let updates = self.updates()?.clone();
        let mut facts = self.facts();
        if !facts.as_ref().is_ok_and(|facts| facts.booted.set().is_some()) {
            (self.boot, facts) = bootloader(&updates);
        }
        Ok(Evidence { facts, heads: heads(&updates), unread: false })
    }

    /// What the bootloader has stored, in its own words.
    pub(super) fn view(&mut self) -> Result<View, String> {
        self.boot()?.view().map_err(|e| e.to_string())
    }

    /// Which bootloader it is.
    pub(super) fn boot_kind(&self) -> Option<BootKind> {
        self.boot.as_ref().map(|boot| boot.kind)
    }

    /// Why no image may be written on this device, whatever it is.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Whether this device takes no firmware because it was told so.
    pub(super) fn without_slots(&self) -> bool {
        self.settings.without_slots()
    }

    /// Slots that no image can be written to, since they are not there: partitions, and files that are overwritten in
    /// place. Other files are made by the update that fills them.
    pub(super) fn missing_slots(&self) -> Vec<String> {
        let Ok(updates) = self.updates() else { return vec![] };
        let mut missing = vec![];
        for set in SetId::BOTH {
            let layout = updates.set(set);
            for (slot, path) in &layout.slots {
                let must_be_there = path.starts_with("/dev") || layout.in_place.contains(slot);
                if must_be_there && !path.exists() {
                    missing.push(format!(
                        "slot {slot} of set {set} is missing: there is no {}; check the disk, its partition table \
                         and what is mounted",
                        path.display()
                    ));
                }
            }
        }
        missing
    }

    /// End of the device certificate's validity, in seconds since 1970, or what is wrong with it; `None` without a
    /// cloud.
    pub(super) fn certificate(&self) -> Option<Result<u64, String>> {
        let cloud = self.settings.cloud.on()?;
        Some(identity::certificate(cloud, &self.clock).map(|identity| identity.not_after))
    }

    /// `update.require-cloud` for local installs; they need no cloud unless told so.
    pub(super) fn local_require_cloud(&self) -> bool {
        self.updates().is_ok_and(|u| u.require_cloud == Some(true)) && self.settings.cloud.on().is_some()
    }

    /// The next thing that a thread tells.
    pub(super) async fn next_work(&mut self) -> Work {
        match self.works.recv().await {
            Some(work) => work,
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }

    fn updates(&self) -> Result<&UpdateSettings, String> {
        self.settings.updates.as_ref().map_err(|finding| format!("configuration: {}", finding.problem))
    }

    fn boot(&mut self) -> Result<&mut dyn BootControl, String> {
        match &mut self.boot {
            Some(boot) => Ok(boot.control.as_mut()),
            None => Err("no bootloader is configured: see [bootloader]".into()),
        }
    }

    /// One effect. `machine` has the record as it is to be saved.
    pub(super) fn perform(&mut self, action: &Action, machine: &Machine) -> Result<(), NotDone> {
        match action {
            // Leaving a set that runs is "this one bad" to the bootloader; taking an arming back is its own verb.
            Action::Disarm(set) if machine.booted() == Some(*set) => {
                self.boot().map_err(NotDone::Failed)?.mark_bad(*set).map_err(|e| match e {
                    BootError::NoFallback { .. } => NotDone::NoFallback(e.to_string()),
                    e => NotDone::Failed(e.to_string()),
                })
            }
            other => self.act(other, machine).map_err(NotDone::Failed),
        }
    }

    fn act(&mut self, action: &Action, machine: &Machine) -> Result<(), String> {
        match action {
            Action::Save => self.save(machine),
            Action::MarkBad(set) => self.boot()?.mark_bad(*set).map_err(|e| e.to_string()),
            Action::Arm(set) => self.boot()?.arm(*set).map_err(|e| e.to_string()),
            Action::Keep(set) => self.boot()?.keep(*set).map_err(|e| e.to_string()),
            Action::Disarm(set) => self.boot()?.disarm(*set).map_err(|e| e.to_string()),
            Action::Confirm(set) => self.boot()?.confirm(*set).map_err(|e| e.to_string()),
            Action::Reboot => self.reboot(),
            Action::Fetch { resume } => {
                if let Err(why) = self.fetch(machine, resume.clone()) {
                    self.tell(Event::FetchEnded(Outcome::failed(why)));
                }
                Ok(())
            }
            Action::Write => {
                if let Some(worker) = &self.worker {
                    worker.write();
                }
                Ok(())
            }
            Action::StopFetch => {
                self.stop_fetch();
                self.discard(machine);
                Ok(())
            }
            Action::CheckHealth => {
                self.check_health(machine);
                Ok(())
            }
            Action::StopHealth => {
                self.health.take().into_iter().for_each(Runner::stop);
                Ok(())
            }
            Action::RunHook(hook) => {
                self.run_hook(*hook, machine);
                Ok(())
            }
            Action::Say(text) => {
                tracing::warn!("{text}");
                Ok(())
            }
            Action::RunJob(job, plan) => self.run_job(job, plan),
            Action::StopJob => {
                self.stop_job();
                Ok(())
            }
            Action::Settled
            | Action::Report
            | Action::Flush
            | Action::AskCloud
            | Action::Answer(_)
            | Action::Continue => Ok(()),
        }
    }

    fn tell(&self, event: Event) {
        let _ = self.tell.send(Work::Event(Box::new(event)));
    }

    fn save(&mut self, machine: &Machine) -> Result<(), String> {
        let bytes = machine.record().encode().map_err(|e| e.to_string())?;
        match &mut self.store {
            Some(store) => store.save(&bytes).map_err(|e| e.to_string()),
            None => Err("there is no state directory to save in".into()),
        }
    }

    fn reboot(&mut self) -> Result<(), String> {
        let command = self.updates()?.reboot_command.clone();
        tracing::info!("rebooting");
        let stop = Stop::new().map_err(|e| e.to_string())?;
        let mut spec = Spec::new(command);
        spec.time_limit = Some(REBOOT_LIMIT);
        let outcome = run::run(spec, &stop).map_err(|e| e.to_string())?;
        if outcome.success() {
            Ok(())
        } else {
            Err(format!("the reboot command ended with {:?}", outcome.end))
        }
    }

    // --- images -----------------------------------------------------------------------------------------------

    fn fetch(&mut self, machine: &Machine, resume: Option<Checkpoint>) -> Result<(), String> {
        self.stop_fetch();
        if let Some(why) = &self.refusal {
            return Err(why.clone());
        }
        let update = machine.record().state.update().ok_or("no update is under way")?;
        let images = update.images.clone();
        let heads = (install::HEAD as u64).saturating_mul(images.len() as u64);
        let mut terms = self.terms(update.target, update.from)?;
        if let (Origin::Local, Ok(http)) = (&update.origin, &mut terms.http) {
            http.download_timeout = http.download_timeout.min(PATIENCE);
        }
        match &mut self.store {
            Some(store) => store.probe_writable(heads).map_err(|e| format!("no state space: {e}"))?,
            None => return Err("there is no state directory".into()),
        }
        for image in &images {
            tracing::info!("slot {} of set {}: {}", image.slot, update.target, image.source_for_log());
        }
        let worker = Worker::start(terms, images, resume, self.tell.clone()).map_err(|e| e.to_string())?;
        self.worker = Some(worker);
        Ok(())
    }

    fn terms(&self, target: SetId, from: SetId) -> Result<Terms, String> {
        let updates = self.updates()?;
        Ok(Terms {
            targets: updates.set(target).slots.clone(),
            in_place: updates.set(target).in_place.clone(),
            forbidden: updates.set(from).slots.values().cloned().collect(),
            boots_first: Some(updates.boots_first.clone()),
            state_dir: self.settings.state_dir.clone(),
            limits: install::Limits {
                zstd_window: updates.zstd_window,
                xz_memory: updates.xz_memory,
                rate: updates.rate_limit,
                checkpoint_bytes: updates.checkpoint_bytes,
                checkpoint_every: updates.checkpoint_interval,
            },
            read_back: if updates.read_back {
                install::ReadBack::Always
            } else {
                install::ReadBack::WhereDue
            },
            other_disk: if updates.allow_other_disk {
                install::OtherDisk::Allow
            } else {
                install::OtherDisk::Refuse
            },
            no_digest: self.no_digest,
            // The roots are read when they are needed: they are a good part of what the agent would hold all day.
            http: identity::downloads(&self.settings, &self.clock),
        })
    }

    fn stop_fetch(&mut self) {
        self.worker.take().into_iter().for_each(Worker::stop);
    }

    /// What an update that is given up had begun.
    fn discard(&self, machine: &Machine) {
        let Some(running) = machine.booted() else { return };
        let Ok(updates) = self.updates() else { return };
        let targets = &updates.set(running.other()).slots;
        if let Err(e) = install::discard(&self.settings.state_dir, targets) {
            tracing::warn!("what the update had begun is not removed: {e}");
        }
    }

    // --- scripts ----------------------------------------------------------------------------------------------

    fn check_health(&mut self, machine: &Machine) {
        if self.health.as_ref().is_some_and(|h| !h.is_over()) {
            return;
        }
        let started = self
            .updates()
            .map(|u| (u.health_dir.clone(), u.health_check_timeout))
            .and_then(|(dir, limit)| checks::health(dir, limit, environment(machine), self.tell.clone()));
        match started {
            Ok(runner) => self.health = Some(runner),
            Err(why) => self.tell(Event::Health(otandem_core::machine::Health::NotYet(why))),
        }
    }

    fn run_hook(&mut self, hook: Hook, machine: &Machine) {
        let started =
            self.updates().map(|u| (u.hook_dir.clone(), u.hook_timeout)).and_then(|(dir, limit)| {
                checks::hook(hook, &dir, limit, environment(machine), self.tell.clone())
            });
        match started {
            Ok(runner) => self.hook = Some(runner),
            Err(why) => self.tell(Event::Hook(hook, HookAnswer::Failed(why))),
        }
    }

    /// Reads a slot whole and answers as [`Event::User`], or refuses.
    pub(super) fn verify(
        &self,
        set: SetId,
        slot: String,
        path: PathBuf,
        wanted: Sha256,
    ) -> Result<(), String> {
        checks::verify(set, slot, path, wanted, wall(), self.tell.clone())
    }

    /// Runs a program of a feature.
    pub(super) fn run_program(&mut self, name: String, argv: Vec<String>, stdin: Vec<u8>) {
        match checks::program(name.clone(), argv, stdin, vec![], self.tell.clone()) {
            Ok(runner) => self.programs.push(runner),
            Err(why) => {
                let _ = self.tell.send(Work::Program(name, Err(why)));
            }
        }
    }

    // --- general jobs -----------------------------------------------------------------------------------------

    fn run_job(&mut self, job: &RunningJob, plan: &JobPlan) -> Result<(), String> {
        let mark = Some(general::reboot_mark(&self.settings));
        let terms = general::terms(self.settings.jobs.on(), &job.key.job, &job.key.thing, mark);
        self.job = Some(Steps::start(job, plan.clone(), terms, self.tell.clone())?);
        Ok(())
    }

    /// Its steps still run, or the end of the last one was not heard yet.
    pub(super) const fn job_runs(&self) -> bool {
        self.job.is_some()
    }

    /// It ends, and tells how.
    pub(super) fn stop_job(&self) {
        self.job.iter().for_each(Steps::stop);
    }

    /// Its thread told that it has ended.
    pub(super) fn job_is_over(&mut self) {
        self.job = None;
    }

    /// Whether a step of this job said that it reboots the device.
    pub(super) fn asked_for_reboot(&self, job: &str) -> bool {
        asked_for_reboot(&general::reboot_mark(&self.settings), job)
    }

    /// What a step said about a reboot is settled.
    pub(super) fn forget_reboot(&self) {
        let _ = std::fs::remove_file(general::reboot_mark(&self.settings));
    }

    // --- settled, watchdog, time ------------------------------------------------------------------------------

    /// The file that tells the dead-man that nothing is open about this boot.
    fn settled_file(&self) -> PathBuf {
        self.settings.run_dir.join("settled")
    }

    /// Nothing is settled yet: a file from before would lie.
    pub(super) fn unsettle(&self) {
        let _ = std::fs::remove_file(self.settled_file());
    }

    pub(super) fn settled(&mut self, machine: &Machine) -> Result<(), String> {
        if let Some(mut watchdog) = self.watchdog.take() {
            // The magic close: whoever feeds it in ordinary operation takes over.
            let _ = watchdog.write_all(b"V");
        }
        let _ = std::fs::create_dir_all(&self.settings.run_dir);
        let set = machine.booted().map_or("unknown", SetId::name);
        atomic_write(&self.settled_file(), format!("{set}\n").as_bytes(), 0o644).map_err(|e| e.to_string())
    }

    /// In a trial only this loop feeds the hardware watchdog.
    pub(super) fn take_watchdog(&mut self) {
        let Some(path) = self.updates().ok().and_then(|u| u.watchdog.clone()) else { return };
        if self.watchdog.is_some() {
            return;
        }
        match File::options().write(true).open(&path) {
            Ok(file) => self.watchdog = Some(file),
            Err(e) => tracing::warn!("{}: {e}: the trial runs without a hardware watchdog", path.display()),
        }
    }

    pub(super) fn feed_watchdog(&mut self) {
        if let Some(watchdog) = &mut self.watchdog
            && let Err(e) = watchdog.write_all(b"\0")
        {
            tracing::warn!("the hardware watchdog does not take its food: {e}");
        }
    }

    pub(super) fn next_feed(&self) -> Option<Duration> {
        self.watchdog.as_ref().map(|_| FEED_EVERY)
    }

    /// Threads and programs are ended; nothing is discarded, so that the next start goes on.
    pub(super) fn stop(&mut self) {
        self.stop_fetch();
        self.stop_job();
        self.health
            .take()
            .into_iter()
            .chain(self.hook.take())
            .chain(self.programs.drain(..))
            .for_each(Runner::stop);
    }
}

/// What scripts are told.
fn environment(machine: &Machine) -> Environment {
    let mut env: Environment = vec![];
    let mut put = |name: &str, value: String| env.push((name.into(), value.into()));
    put("OTANDEM_PHASE", machine.phase().to_owned());
    if let Some(set) = machine.booted() {
        put("OTANDEM_SET", set.to_string());
    }
    if let Some(update) = machine.record().state.update() {
        put("OTANDEM_TARGET", update.target.to_string());
        put("OTANDEM_VERSION", update.version.clone().unwrap_or_default());
        if let Some(key) = update.origin.job() {
            put("OTANDEM_JOB_ID", key.job.clone());
            put("OTANDEM_THING_NAME", key.thing.clone());
        }
    }
    env
}
