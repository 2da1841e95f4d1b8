//! What to do with an execution that start-next gave.

use std::time::Duration;

use super::conditions::Facts;
use super::document::{self, Action, JobDocument, JobPlan, OldSchema};
use super::running::RunningJob;
use super::wire::Execution;
use crate::fota::{self, Document};
use crate::image::Image;
use crate::machine::{Cloud, Event, Machine};
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

/// A general job, ready to run. One that goes on after its reboot begins with the step that is next.
///
/// # Errors
/// The outcome: the document is wrong, or not for this device.
pub fn general(
    execution: &Execution,
    machine: &Machine,
    boot_id: &str,
    rules: &GeneralRules,
) -> Result<(RunningJob, JobPlan), Outcome> {
    let plan = match document::parse(&execution.document, rules.old_schema)? {
        JobDocument::Plan(plan) => plan,
        JobDocument::Fota(_) => return Err(Outcome::rejected("a firmware job is no general job")),
    };
    if plan.all_steps().any(|step| matches!(step.action, Action::Install { .. })) {
        return Err(Outcome::rejected("steps of type installImage cannot be run by this version"));
    }
    let next = machine.interrupted_job().filter(|job| job.key == execution.key).map(|job| job.step);
    if next.is_none() {
        let mut facts = rules.facts.clone();
        facts.extend(machine.booted().map(|set| ("bootedSet".to_owned(), set.to_string())));
        plan.check_conditions(&facts)?;
    }
    let step = next.unwrap_or(0);
    let name = plan.all_steps().nth(step).map(|step| step.name.clone()).unwrap_or_default();
    let job = RunningJob {
        key: execution.key.clone(),
        boot_id: boot_id.to_owned(),
        step: 0,
        steps: plan.all_steps().count(),
        name: String::new(),
        rerunnable: plan.rerunnable,
        closed: false,
    };
    Ok((job.at(step, &name), plan))
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

/// Decides. `now_left` = what the execution says about its time.
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
    let held = machine.record().state.update().is_some_and(|u| u.origin != Origin::Adopted);
    if machine.unsaved() && !held {
        let outcome = Outcome::failed("the record cannot be saved: check the state directory");
        return Intake::Event(Box::new(Event::JobEnded(key.clone(), outcome)));
    }
    let seal = execution.details.get(seal::DETAIL).and_then(|s| s.parse::<Seal>().ok()).filter(Seal::armed);
    if let Some(seal) = seal {
        return sealed(execution, seal, machine, rules);
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
    let update = Update {
        origin: Origin::Job { key: execution.key.clone(), closed: false },
        from: seal.from,
        target: seal.target,
        images,
        version: None,
        then: Then::Reboot,
        require_cloud: rules.require_cloud,
        retry: false,
        written: vec![],
    };
    if adopted && machine.booted() != Some(seal.target) {
        return Intake::Later;
    }
    Intake::Event(Box::new(Event::Cloud(Cloud::Sealed { update: Box::new(update), seal })))
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
    let document = fota::parse(&execution.document)?;
    let booted = machine.booted().ok_or_else(|| Outcome::failed("which set runs is not known"))?;
    let compatible = rules.compatible.as_deref();
    let device = Device { booted, layout: &rules.layout, record: machine.record(), compatible };
    let request = Request {
        origin: Origin::Job { key: execution.key.clone(), closed: false },
        set: None,
        then: rules.then,
        require_cloud: rules.require_cloud,
    };
    plan(&document, &device, request)
}

/// A fresh document of the update under way: its images, resolved as they were the first time.
///
/// # Errors
/// The outcome, where it is not the document that was taken.
pub fn fresh_images(
    document: &serde_json::Value,
    machine: &Machine,
    rules: &JobRules,
) -> Result<Vec<Image>, Outcome> {
    let changed = |o: &Outcome| Outcome::failed(format!("the job document changed: {}", o.reason()));
    let Some(update) = machine.record().state.update() else { return Ok(vec![]) };
    let mut document = fota::parse(document).map_err(|o| changed(&o))?;
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
