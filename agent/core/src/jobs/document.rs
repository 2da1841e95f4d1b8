//! The document of a general job: bytes from the cloud in, a plan or a refusal out.
//!
//! Two schemas, both of the AWS IoT Device Client: `version` with `steps` and `finalStep`, and the older `operation`
//! with `args`. A document is checked as a whole before anything of it runs. A FOTA document is recognised first and
//! stays with [`crate::fota`].

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::command;
use super::conditions::{self, Condition, Facts};
use super::fields::{AlsoBoolean, Fields, INVALID, invalid, quoted, refuse_what_cannot_be_meant};
use crate::fota::{self, MAX_DOCUMENT};
use crate::update::Outcome;

/// Elements of `steps` at most.
pub const MAX_STEPS: usize = 100;
/// Arguments of one step at most.
pub const MAX_ARGS: usize = 256;
/// Characters of a user name at most; the service's own limit for this parameter.
pub const MAX_USER: usize = 256;
/// Bytes of a handler's name at most; a file name cannot be longer.
const MAX_NAME: usize = 255;

/// What a document is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobDocument {
    /// For the update machine.
    Fota(fota::Document),
    /// Steps to execute.
    Plan(JobPlan),
}

/// Which form a document has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// `version`, `steps`.
    Steps,
    /// `operation`, `args`.
    Operation,
}

/// A checked document: everything that is decided before the first step runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobPlan {
    /// Its form.
    pub schema: Schema,
    /// Standard output goes into the status as well.
    pub include_stdout: bool,
    /// It may run again where the agent died in its middle.
    pub rerunnable: bool,
    /// For all steps together; `None` = as the device is configured.
    pub time_limit: Option<Duration>,
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// At least one.
    pub steps: Vec<Step>,
    /// After all of them, if none failed.
    pub final_step: Option<Step>,
}

impl JobPlan {
    /// All steps in their order, the final one included.
    pub fn all_steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().chain(&self.final_step)
    }

    /// The step that installs images, and its place.
    #[must_use]
    pub fn install_step(&self) -> Option<(usize, &Step, &fota::Document)> {
        self.all_steps().enumerate().find_map(|(at, step)| match &step.action {
            Action::Install { document } => Some((at, step, document)),
            _ => None,
        })
    }

    /// Whether this device is meant.
    ///
    /// # Errors
    /// The condition that does not hold.
    pub fn check_conditions(&self, facts: &Facts) -> Result<(), Outcome> {
        self.conditions.iter().try_for_each(|condition| condition.check(facts))
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// For people.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// As whom; empty = as the agent.
    pub run_as_user: String,
    /// The job goes on whatever becomes of it.
    pub ignore_failure: bool,
    /// Lines on standard error that are no failure; `None` = they are not counted.
    pub allow_stderr: Option<u64>,
    /// `None` = as the device is configured.
    pub time_limit: Option<Duration>,
}

impl Step {
    /// What is executed, before the search in `PATH` and without what changes the user.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        match &self.action {
            Action::Handler { handler, args, user_argument, .. } => {
                let user = (*user_argument == UserArgument::Given).then(|| self.run_as_user.clone());
                [handler.clone()].into_iter().chain(user).chain(args.iter().cloned()).collect()
            }
            Action::Command { words } => words.clone(),
            Action::Install { .. } => vec![],
        }
    }
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Runs a handler: a program that the device has for jobs.
    Handler {
        /// File name.
        handler: String,
        /// Its arguments.
        args: Vec<String>,
        /// Where it is.
        place: Place,
        /// Whether the user's name comes before the arguments.
        user_argument: UserArgument,
    },
    /// Runs a command.
    Command {
        /// Program and arguments.
        words: Vec<String>,
    },
    /// Installs images into the set that does not run, and goes on once that set is confirmed.
    Install {
        /// What to install.
        document: fota::Document,
    },
}

/// Where a handler is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Somewhere in `PATH`, with the directories for handlers at its end.
    Search,
    /// In the configured directory.
    Default,
    /// In this one, absolute.
    Directory(String),
}

/// Whether a handler gets the user's name, which may be empty, as its first argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UserArgument {
    /// It does: what the handlers of the AWS IoT Device Client since 1.3, and ours, expect.
    #[default]
    Given,
    /// Handlers written for the old schema expect their own arguments alone.
    LeftOut,
}

/// What lines on standard error mean to a document of the old schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OldStderr {
    /// More than `allowStdErr`, which is 0 where it is absent, fail the job: as its documentation says.
    #[default]
    Strict,
    /// They are never counted: as the AWS IoT Device Client does.
    Ignore,
}

/// How documents of the old schema are read on this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OldSchema {
    /// See there.
    pub user_argument: UserArgument,
    /// See there.
    pub stderr: OldStderr,
}

/// Reads a document that came as text.
///
/// # Errors
/// The outcome to report: always a refusal, with the member at fault.
pub fn parse_text(text: &[u8], old: OldSchema) -> Result<JobDocument, Outcome> {
    let whole = |why: String| Outcome::rejected(format!("{INVALID} {why}"));
    if text.len() > MAX_DOCUMENT {
        return Err(whole(format!("more than {MAX_DOCUMENT} bytes")));
    }
    let value: Value = serde_json::from_slice(text).map_err(|e| whole(format!("not JSON: {e}")))?;
    parse(&value, old)
}

/// Reads a document.
///
/// # Errors
/// The outcome to report: always a refusal, with the member at fault.
pub fn parse(document: &Value, old: OldSchema) -> Result<JobDocument, Outcome> {
    if fota::is_fota(document) {
        return fota::parse(document).map(JobDocument::Fota);
    }
    let Value::Object(map) = document else {
        return Err(Outcome::rejected(format!("{INVALID} not a JSON object")));
    };
    refuse_what_cannot_be_meant(document, "")?;
    let top = Fields::top(map);
    // The version decides; with anything but a string that says something this is the old form.
    let (schema, steps, final_step) = match top.text("version").filter(|v| !v.is_empty()) {
        Some(version) => {
            check_version(&top, version)?;
            (Schema::Steps, steps(&top)?, final_step(&top)?)
        }
        None => (Schema::Operation, vec![operation(&top, old)?], None),
    };
    let installs = |step: &&Step| matches!(step.action, Action::Install { .. });
    if steps.iter().chain(&final_step).filter(installs).count() > 1 {
        return Err(top.wrong("steps", "more than one installImage: give each image set a job of its own"));
    }
    Ok(JobDocument::Plan(JobPlan {
        schema,
        include_stdout: top.is_true("includeStdOut", AlsoBoolean::Yes),
        rerunnable: top.own_flag("rerunnable")?,
        time_limit: top.own_seconds("timeoutSeconds")?.map(Duration::from_secs),
        conditions: conditions::read(&top)?,
        steps,
        final_step,
    }))
}

fn check_version(top: &Fields<'_>, version: &str) -> Result<(), Outcome> {
    let minor = version.strip_prefix("1.").unwrap_or_default();
    if !minor.is_empty() && minor.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(());
    }
    Err(top.wrong("version", &format!("{} is not a version that this agent knows (1.0)", quoted(version))))
}

/// Elements without an `action` are no steps.
fn steps(top: &Fields<'_>) -> Result<Vec<Step>, Outcome> {
    let Some(list) = top.list("steps") else {
        let why = if top.get("steps").is_some() { "not a list" } else { "missing" };
        return Err(top.wrong("steps", why));
    };
    if list.len() > MAX_STEPS {
        return Err(top.wrong("steps", &format!("{} elements, more than {MAX_STEPS}", list.len())));
    }
    let one = |(i, value): (usize, &Value)| match value {
        Value::Object(map) => step(map, &format!("steps[{i}]")).transpose(),
        _ => None,
    };
    let steps = list.iter().enumerate().filter_map(one).collect::<Result<Vec<_>, _>>()?;
    if steps.is_empty() { Err(top.wrong("steps", "no element has an action")) } else { Ok(steps) }
}

fn final_step(top: &Fields<'_>) -> Result<Option<Step>, Outcome> {
    match top.get("finalStep") {
        Some(Value::Object(map)) => step(map, "finalStep"),
        _ => Ok(None),
    }
}

/// `None`: it has no action.
fn step(map: &Map<String, Value>, at: &str) -> Result<Option<Step>, Outcome> {
    let element = Fields::at(map, at);
    if element.get("action").is_none() {
        return Ok(None);
    }
    let action = element.object("action")?;
    let name = action.required("name")?.to_owned();
    let kind = action.required("type")?;
    let input = action.object("input")?;
    let does = match kind {
        "runHandler" => handler(&input, "handler", UserArgument::Given)?,
        "runCommand" => run_command(&input)?,
        "installImage" => install(&input)?,
        other => {
            let why = format!("{} is not runHandler, runCommand or installImage", quoted(other));
            return Err(action.wrong("type", &why));
        }
    };
    let time_limit = action.own_seconds("timeoutSeconds")?.map(Duration::from_secs);
    if time_limit.is_some() && matches!(does, Action::Install { .. }) {
        let why = "an installation has the limits of updates (update.download-timeout, health-timeout, cloud-timeout)";
        return Err(action.wrong("timeoutSeconds", why));
    }
    Ok(Some(Step {
        name,
        action: does,
        run_as_user: user(&action)?,
        ignore_failure: action.is_true("ignoreStepFailure", AlsoBoolean::No),
        allow_stderr: action.count("allowStdErr")?,
        time_limit,
    }))
}

/// The old form: the operation is name and handler in one.
fn operation(top: &Fields<'_>, old: OldSchema) -> Result<Step, Outcome> {
    if top.get("operation").is_none() && top.get("steps").is_some() {
        return Err(top.wrong("version", "missing, or not a string such as \"1.0\", beside steps"));
    }
    let action = handler(top, "operation", old.user_argument)?;
    let counted = top.count("allowStdErr")?;
    Ok(Step {
        name: top.required("operation")?.to_owned(),
        action,
        run_as_user: String::new(),
        ignore_failure: false,
        allow_stderr: match old.stderr {
            OldStderr::Strict => Some(counted.unwrap_or(0)),
            OldStderr::Ignore => None,
        },
        time_limit: None,
    })
}

fn handler(input: &Fields<'_>, member: &str, user_argument: UserArgument) -> Result<Action, Outcome> {
    let name = input.required(member)?;
    // It names a file of the directory, and nothing else.
    if name.contains('/') || name.contains("..") || name == "." {
        return Err(input.wrong(member, &format!("{} is not a plain file name", quoted(name))));
    }
    if name.len() > MAX_NAME {
        return Err(input.wrong(member, &format!("longer than {MAX_NAME} bytes")));
    }
    Ok(Action::Handler { handler: name.to_owned(), args: args(input)?, place: place(input)?, user_argument })
}

/// What is no string becomes an empty one, so that the others keep their places.
fn args(input: &Fields<'_>) -> Result<Vec<String>, Outcome> {
    let list = input.list("args").unwrap_or_default();
    if list.len() > MAX_ARGS {
        return Err(input.wrong("args", &format!("{} elements, more than {MAX_ARGS}", list.len())));
    }
    Ok(list.iter().map(|v| v.as_str().unwrap_or_default().to_owned()).collect())
}

/// A managed template without the parameter sends an empty one.
fn place(input: &Fields<'_>) -> Result<Place, Outcome> {
    match input.text("path") {
        None | Some("") => Ok(Place::Search),
        Some("default") => Ok(Place::Default),
        Some(dir) if dir.starts_with('/') => Ok(Place::Directory(dir.to_owned())),
        Some(other) => {
            let why = format!("{} is neither \"default\" nor an absolute path", quoted(other));
            Err(input.wrong("path", &why))
        }
    }
}

fn run_command(input: &Fields<'_>) -> Result<Action, Outcome> {
    let words = command::words(input.required("command")?).map_err(|why| input.wrong("command", why))?;
    if words.len() > MAX_ARGS {
        return Err(input.wrong("command", &format!("{} words, more than {MAX_ARGS}", words.len())));
    }
    Ok(Action::Command { words })
}

fn install(input: &Fields<'_>) -> Result<Action, Outcome> {
    if input.get("image").is_none() && input.get("images").is_none() {
        return Err(input.wrong("image", "missing, and images as well"));
    }
    let mut document = json!({ "operation": "fota" });
    for member in ["image", "images", "retry", "force"] {
        if let Some(value) = input.get(member) {
            document[member] = value.clone();
        }
    }
    let document = fota::parse(&document).map_err(|outcome| {
        let why = outcome.reason().strip_prefix("job document: ").unwrap_or(outcome.reason()).to_owned();
        let (input, below) = (input.path(""), why.split_once(':').filter(|(name, _)| !name.contains(' ')));
        match below {
            Some((member, why)) => invalid(&format!("{input}{member}"), why.trim_start()),
            None => invalid(input.trim_end_matches('.'), &why),
        }
    })?;
    Ok(Action::Install { document })
}

/// Goes to handlers as an argument and to sudo as a name: nothing that could be taken for an option.
fn user(action: &Fields<'_>) -> Result<String, Outcome> {
    let name = action.text("runAsUser").unwrap_or_default();
    if name.chars().count() > MAX_USER {
        return Err(action.wrong("runAsUser", &format!("longer than {MAX_USER} characters")));
    }
    let strange = |c: char| c.is_control() || c.is_whitespace() || "/:#".contains(c);
    if name.starts_with('-') || name.contains(strange) {
        return Err(action.wrong("runAsUser", &format!("{} is no user name", quoted(name))));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
