//! `otandem job`: general jobs on this device, without the cloud.

use std::io::Write;
use std::path::Path;

use otandem_core::jobs::document::{self, JobDocument, JobPlan};
use otandem_core::jobs::wire::{self, Details, detail};
use otandem_core::jobs::{show, verdict};
use otandem_core::update::Outcome;
use otandem_device::jobs::{Finish, Terms, execute};
use otandem_device::run::Stop;
use otandem_device::state::{Lock, StateDir, StateError};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::{ask, complain, input, parts};
use crate::cli::{Job, RunJob};
use crate::cloud::identity;
use crate::config::{Feature, Settings};
use crate::control::{Answer, Client};
use crate::exit::Exit;
use crate::{features, general};

type Read = Result<JobDocument, Outcome>;

/// Carries out `otandem job`.
pub fn job(settings: &Settings, job: &Job) -> Exit {
    // Who has asked for strict rules gets no others without being told.
    match &settings.jobs {
        Feature::Broken(finding) => return complain(Exit::Config, &finding.to_string()),
        Feature::Off => tracing::warn!("jobs.enabled is false: the defaults hold here, not what [jobs] says"),
        Feature::On(_) => {}
    }
    match job {
        Job::Plan { document } => match read(settings, document) {
            Ok(read) => {
                let _ = writeln!(std::io::stdout(), "{}", show::plan(&read));
                if read.is_ok() { Exit::Ok } else { Exit::Data }
            }
            Err((exit, why)) => complain(exit, &why),
        },
        Job::Run(run) => match self::run(settings, run) {
            Ok(exit) => exit,
            Err((exit, why)) => complain(exit, &why),
        },
    }
}

fn read(settings: &Settings, path: &Path) -> Result<Read, (Exit, String)> {
    let text = input::bytes(path)?;
    Ok(document::parse_text(&text, general::old_schema(settings)))
}

fn run(settings: &Settings, run: &RunJob) -> Result<Exit, (Exit, String)> {
    if !wire::is_job_id(&run.job_id) {
        return Err((Exit::Usage, "--job-id: use 1 to 64 letters, digits, '-' and '_'".into()));
    }
    let thing =
        settings.cloud.on().and_then(|cloud| identity::identity(cloud, settings).ok()).map(|me| me.thing);
    let plan = match read(settings, &run.document)? {
        Ok(JobDocument::Fota(_)) => {
            let why = "this is a firmware job: `otandem fota handle FILE` does it, `otandem install FILE` without reboot";
            return Err((Exit::Usage, why.into()));
        }
        Ok(JobDocument::Plan(plan)) if plan.install_step().is_some() => {
            let why = "this job installs images (installImage) and goes on after the reboot: only the daemon does that, for \
                       a job of the cloud; `otandem install FILE` installs an image, `otandem fota handle FILE` a \
                       firmware document";
            return Err((Exit::Usage, why.into()));
        }
        Ok(JobDocument::Plan(plan)) => match refusal(settings, &plan, thing.as_deref()) {
            None => plan,
            Some(outcome) => return Ok(tell(&outcome, Details::new())),
        },
        Err(outcome) => return Ok(tell(&outcome, Details::new())),
    };
    let mut terms =
        general::terms(settings.jobs.on(), &run.job_id, thing.as_deref().unwrap_or_default(), None);
    if let Some(dir) = &run.handler_directory {
        let dir =
            std::fs::canonicalize(dir).map_err(|e| (Exit::NoInput, format!("{}: {e}", dir.display())))?;
        if let Some(last) = terms.search.last_mut() {
            last.clone_from(&dir);
        }
        terms.handler_directory = dir;
    }
    let _alone = if run.beside { Alone::Not } else { alone(settings)? };
    let runtime = parts::runtime().map_err(|e| (Exit::System, e.to_string()))?;
    let finish = runtime.block_on(in_thread(plan, terms)).map_err(|why| (Exit::System, why))?;
    Ok(match finish {
        Finish::Ended(outcome, details) => tell(&outcome, details),
        // Nobody gave its steps a way to say so; documents that install are refused before.
        Finish::Rebooting | Finish::Installs(_) => Exit::Software,
    })
}

/// What keeps others from beginning something; gone with the value.
#[allow(dead_code, reason = "held, not looked at")]
enum Alone {
    /// The daemon begins nothing while this is connected.
    Daemon(Client),
    /// No daemon runs, and none comes, nor another command.
    State(Lock),
    /// There is nobody, or nobody is minded.
    Not,
}

/// Two jobs never run at once by accident: neither of the cloud and by hand, nor two by hand.
fn alone(settings: &Settings) -> Result<Alone, (Exit, String)> {
    if let Some(mut daemon) = ask::connect(settings)? {
        return match daemon.hold().map_err(|e| ask::refused(&e))? {
            None => Ok(Alone::Daemon(daemon)),
            Some(Answer::Failed { exit, reason }) => Err((exit, reason)),
            Some(Answer::Done { .. }) => {
                Err((Exit::Protocol, "the daemon does not wait for this job".into()))
            }
        };
    }
    if !settings.state_dir.exists() {
        return Ok(Alone::Not);
    }
    match StateDir::open(&settings.state_dir).and_then(|dir| dir.lock()) {
        Ok(lock) => Ok(Alone::State(lock)),
        Err(e @ StateError::Locked { .. }) => {
            Err((Exit::TempFail, format!("{e}; --beside runs the job all the same")))
        }
        // Whoever may not touch the state has no agent of their own to wait for.
        Err(_) => Ok(Alone::Not),
    }
}

/// Why the document does not run here.
fn refusal(settings: &Settings, plan: &JobPlan, thing: Option<&str>) -> Option<Outcome> {
    // The bootloader is asked only where somebody wants to know.
    let booted = (!plan.conditions.is_empty())
        .then(|| settings.updates.as_ref().ok())
        .flatten()
        .and_then(|updates| features::boot_control(updates).ok()?.1.facts().ok()?.booted.set());
    plan.check_conditions(&general::facts(settings, thing, booted)).err()
}

/// The steps, in a thread of their own, so that an interrupt ends what runs: it leads a session of its own and does not
/// see the terminal's.
async fn in_thread(plan: JobPlan, terms: Terms) -> Result<Finish, String> {
    // Before anything runs that they would leave behind.
    let mut term = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut int = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let stop = Stop::new().map_err(|e| e.to_string())?;
    let seen = stop.clone();
    let (tell, mut told) = oneshot::channel();
    let steps = plan.all_steps().count();
    let spawned = std::thread::Builder::new().name("job".into()).spawn(move || {
        let mut begins = |index, name: &str| {
            // A terminal obeys control characters, and the name is the document's.
            let _ = writeln!(std::io::stderr(), "{}", detail(&verdict::progress(index, steps, name)));
        };
        let _ = tell.send(execute(&plan, 0, &terms, &seen, &mut begins));
    });
    spawned.map_err(|e| format!("no thread to run the job: {e}"))?;
    loop {
        tokio::select! {
            finish = &mut told => return finish.map_err(|_| "the job's thread is gone: this is a defect".into()),
            _ = term.recv() => stop.stop(),
            _ = int.recv() => stop.stop(),
        }
    }
}

/// Prints what would be told to the cloud.
fn tell(outcome: &Outcome, mut details: Details) -> Exit {
    details.insert("reason".into(), detail(outcome.reason()));
    let status = wire::status(outcome);
    let _ = writeln!(std::io::stdout(), "{}", json!({ "status": status, "statusDetails": details }));
    match outcome {
        Outcome::Succeeded { .. } => Exit::Ok,
        Outcome::Failed { .. } => Exit::Attention,
        Outcome::Rejected { .. } => Exit::Data,
    }
}
