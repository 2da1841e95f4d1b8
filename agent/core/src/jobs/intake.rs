//! What to do with an execution that start-next gave.

use std::time::Duration;

use serde_json::Value;

use super::conditions::Facts;
use super::document::{self, JobDocument, JobPlan, OldSchema};
use super::running::{PROGRESS, RunningJob};
use super::wire::{Details, Execution};
use crate::fota::{self, Document};
use crate::image::Image;
use crate::machine::{Cloud, Event, JobEvent, Machine, UNSAVED};
use crate::plan::{Device, Layout, Request, plan};
use crate::seal::{self, Seal};
use crate::update::{JobKey, Origin, Outcome, Then, Update};

/// What the configuration says about firmware jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRules {
    /// The slot sets.
    pub layout: Layout,
    /// What this device calls itself.
    pub compatible: Option<String>,
    /// The trial of a job must reach the cloud.
    pub require_cloud: bool,
    /// How far a job goes by itself.
    pub then: Then,
}

/// What the configuration says about general jobs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GeneralRules {
    /// How documents of the old schema are read.
    pub old_schema: OldSchema,
    /// What conditions may ask for, beside the booted set.
    pub facts: Facts,
}

/// What to do about a general job: run it, or settle what an earlier life of this device had under way for it. `None`:
/// nothing now; whoever asks for the next job comes upon it again.
///
/// # Errors
/// The outcome: the document is wrong, or not for this device, or it ran before and nobody knows how far.
pub fn general(
    execution: &Execution,
    machine: &Machine,
    boot_id: &str,
    rules: &GeneralRules,
    updates: &JobRules,
) -> Result<Option<JobEvent>, Outcome> {
    let known = machine.interrupted_job().filter(|job| job.key == execution.key);
    let seal = execution.details.get(seal::DETAIL).and_then(|s| s.parse::<Seal>().ok());
    let seal = seal.filter(|_| known.is_none() && machine.untouchable().is_none());
    let settles = seal.as_ref().is_some_and(Seal::armed);
    let adopted = machine.record().state.update().is_some_and(|u| u.origin == Origin::Adopted);
    let settles_now = settles && adopted;
    if !(known.is_some() || settles_now || machine.takes_jobs() || machine.unsaved()) {
        return Ok(None);
    }
    let plan = match document::parse(&execution.document, rules.old_schema)? {
        JobDocument::Plan(plan) => plan,
        JobDocument::Fota(_) => return Err(Outcome::rejected("a firmware job is no general job")),
    };
    let install = plan.install_step().filter(|_| seal.is_some());
    if known.is_none() && install.is_none() {
        begins(execution, &plan, machine, rules, updates)?;
    }
    // What had been told of an update says as well which step it was: it is the only one of its kind.
    let step = known.map_or_else(|| install.map_or(0, |(at, ..)| at), |job| job.step);
    let job = running(execution, &plan, boot_id, step);
    match (install, seal) {
        (Some((.., document)), Some(seal)) if settles => {
            if adopted && machine.booted() != Some(seal.target) {
                return Ok(None);
            }
            let update = Box::new(update_of(&execution.key, images(document), &seal, updates));
            Ok(Some(JobEvent::Sealed { job: Box::new(job), update, seal }))
        }
        // Said at once: it may be long until the record can be saved.
        _ if known.is_none() && !machine.takes_jobs() => Err(Outcome::failed(UNSAVED)),
        _ => Ok(Some(JobEvent::Start(Box::new(job), Box::new(plan)))),
    }
}

fn running(execution: &Execution, plan: &JobPlan, boot_id: &str, step: usize) -> RunningJob {
    let at = plan.all_steps().nth(step);
    let job = RunningJob {
        key: execution.key.clone(),
        boot_id: boot_id.to_owned(),
        step: 0,
        steps: plan.all_steps().count(),
        name: String::new(),
        rerunnable: plan.rerunnable,
        closed: false,
        waits: false,
        ignore_failure: at.is_some_and(|step| step.ignore_failure),
        set: None,
        since: 0,
        details: Details::new(),
    };
    job.at(step, at.map_or("", |step| &step.name))
}

/// Whether it may begin with its first step.
fn begins(
    execution: &Execution,
    plan: &JobPlan,
    machine: &Machine,
    rules: &GeneralRules,
    updates: &JobRules,
) -> Result<(), Outcome> {
    if let Some(progress) = execution.details.get(PROGRESS).filter(|_| !plan.rerunnable) {
        let why = format!("interrupted, and the record of the job is lost: it was in {progress}");
        return Err(Outcome::failed(why));
    }
    let mut facts = rules.facts.clone();
    facts.extend(machine.booted().map(|set| ("bootedSet".to_owned(), set.to_string())));
    plan.check_conditions(&facts)?;
    // An image that is not for this device is refused before the steps in front of it have done anything.
    match plan.install_step() {
        Some((_, step, document)) if !step.ignore_failure && machine.untouchable().is_none() => {
            match install(document, &execution.key, machine, updates) {
                Err(Outcome::Rejected { reason }) => {
                    Err(Outcome::rejected(format!("{reason}, in step {}", step.name)))
                }
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// What an execution means here.
#[derive(Debug, Clone, PartialEq)]
pub enum Intake {
    /// Feed this to the update machine.
    Event(Box<Event>),
    /// It ended here before: the cloud is told again.
    Known(JobKey),
    /// It is the one under way.
    Ours,
    /// Another job while an update is under way, or the device is not settled: kept until then.
    Later,
    /// No firmware job: for another function.
    Other,
}

/// Decides.
#[must_use]
pub fn intake(execution: &Execution, machine: &Machine, rules: &JobRules) -> Intake {
    let key = &execution.key;
    if machine.record().finished(key).is_some() {
        return Intake::Known(key.clone());
    }
    if machine.record().state.update().and_then(|u| u.origin.job()) == Some(key) {
        return Intake::Ours;
    }
    if !fota::is_fota(&execution.document) {
        return Intake::Other;
    }
    if let Some(why) = machine.untouchable() {
        let outcome = Outcome::failed(format!("this device takes no update: {why}"));
        return Intake::Event(Box::new(Event::JobEnded(key.clone(), outcome)));
    }
    // Before all else: what became of it is known by the boot, and waits until it can be saved.
    let seal = execution.details.get(seal::DETAIL).and_then(|s| s.parse::<Seal>().ok()).filter(Seal::armed);
    if let Some(seal) = seal {
        return sealed(execution, seal, machine, rules);
    }
    let held = machine.record().state.update().is_some_and(|u| u.origin != Origin::Adopted);
    if machine.unsaved() && !held {
        let outcome = Outcome::failed(UNSAVED);
        return Intake::Event(Box::new(Event::JobEnded(key.clone(), outcome)));
    }
    if !machine.ready() {
        return Intake::Later;
    }
    match update(execution, machine, rules) {
        Ok(update) => Intake::Event(Box::new(Event::Offer(Box::new(update)))),
        Err(outcome) => Intake::Event(Box::new(Event::JobEnded(key.clone(), outcome))),
    }
}

/// An earlier life of this device had it armed, and the record of that is lost.
fn sealed(execution: &Execution, seal: Seal, machine: &Machine, rules: &JobRules) -> Intake {
    let adopted = machine.record().state.update().is_some_and(|u| u.origin == Origin::Adopted);
    if !adopted && !machine.ready() {
        return Intake::Later;
    }
    let images = fota::parse(&execution.document).map(|d| images(&d)).unwrap_or_default();
    let update = update_of(&execution.key, images, &seal, rules);
    if adopted && machine.booted() != Some(seal.target) {
        return Intake::Later;
    }
    Intake::Event(Box::new(Event::Cloud(Cloud::Sealed { update: Box::new(update), seal })))
}

/// The update that a seal speaks of.
fn update_of(key: &JobKey, images: Vec<Image>, seal: &Seal, rules: &JobRules) -> Update {
    Update {
        images,
        from: seal.from,
        require_cloud: rules.require_cloud,
        ..Update::switch_to(seal.target, Origin::Job { key: key.clone(), closed: false })
    }
}

fn images(document: &Document) -> Vec<Image> {
    let image = |i: &fota::DocumentImage| Image {
        slot: i.slot.clone().unwrap_or_default(),
        source: i.source.clone(),
        compression: i.compression,
        raw: i.raw,
        file: i.file,
    };
    document.images.iter().map(image).collect()
}

fn update(execution: &Execution, machine: &Machine, rules: &JobRules) -> Result<Update, Outcome> {
    install(&fota::parse(&execution.document)?, &execution.key, machine, rules)
}

/// The update that a job, or a step of one, asks for.
///
/// # Errors
/// The outcome, where there is nothing to do: succeeded (`already running`), failed or rejected.
pub fn install(
    document: &Document,
    key: &JobKey,
    machine: &Machine,
    rules: &JobRules,
) -> Result<Update, Outcome> {
    if let Some(why) = machine.untouchable() {
        return Err(Outcome::failed(format!("this device takes no update: {why}")));
    }
    let booted = machine.booted().ok_or_else(|| Outcome::failed("which set runs is not known"))?;
    let compatible = rules.compatible.as_deref();
    let device = Device { booted, layout: &rules.layout, record: machine.record(), compatible };
    let request = Request {
        origin: Origin::Job { key: key.clone(), closed: false },
        set: None,
        then: rules.then,
        require_cloud: rules.require_cloud,
    };
    plan(document, &device, request)
}

/// What a document of the update under way asks to be installed.
fn installed(document: &Value, machine: &Machine) -> Result<Document, Outcome> {
    if machine.installing_job().is_none() {
        return fota::parse(document);
    }
    match document::parse(document, OldSchema::default())? {
        JobDocument::Plan(plan) => match plan.install_step() {
            Some((.., document)) => Ok(document.clone()),
            None => Err(Outcome::rejected("it has no step of type installImage")),
        },
        JobDocument::Fota(_) => Err(Outcome::rejected("it is a firmware job")),
    }
}

/// A fresh document of the update under way: its images, resolved as they were the first time.
///
/// # Errors
/// The outcome, where it is not the document that was taken.
pub fn fresh_images(document: &Value, machine: &Machine, rules: &JobRules) -> Result<Vec<Image>, Outcome> {
    let changed = |o: &Outcome| Outcome::failed(format!("the job document changed: {}", o.reason()));
    let Some(update) = machine.record().state.update() else { return Ok(vec![]) };
    let mut document = installed(document, machine).map_err(|o| changed(&o))?;
    // What was decided once stays decided: only sources are taken from here.
    (document.force, document.retry) = (true, true);
    let compatible = rules.compatible.as_deref();
    let device = Device { booted: update.from, layout: &rules.layout, record: machine.record(), compatible };
    let request = Request {
        origin: update.origin.clone(),
        set: Some(update.target),
        then: update.then,
        require_cloud: false,
    };
    plan(&document, &device, request).map(|u| u.images).map_err(|o| changed(&o))
}

/// The time that an execution still has, less what a report may be late by.
#[must_use]
pub fn time_left(execution: &Execution) -> Option<Duration> {
    execution.seconds_left.map(Duration::from_secs)
}
