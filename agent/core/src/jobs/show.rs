//! The plan of a document as JSON, for `job plan`: a stable form that people and tests may rely on.

use serde_json::{Value, json};

use super::document::{Action, JobDocument, JobPlan, Place, Schema, Step};
use crate::update::Outcome;

/// What `job plan` prints.
#[must_use]
pub fn plan(read: &Result<JobDocument, Outcome>) -> Value {
    match read {
        Ok(JobDocument::Plan(plan)) => general(plan),
        Ok(JobDocument::Fota(_)) => json!({
            "schema": "fota", "valid": true, "includeStdOut": false,
            "steps": [{
                "name": "fota", "type": "installImage", "argv": [], "path": null, "runAsUser": "",
                "ignoreStepFailure": false, "allowStdErr": null,
            }],
            "finalStep": null,
        }),
        Err(outcome) => json!({ "valid": false, "reason": outcome.reason() }),
    }
}

fn general(plan: &JobPlan) -> Value {
    let mut shown = json!({
        "schema": match plan.schema { Schema::Steps => "steps", Schema::Operation => "operation" },
        "valid": true,
        "includeStdOut": plan.include_stdout,
        "steps": plan.steps.iter().map(step).collect::<Vec<_>>(),
        "finalStep": plan.final_step.as_ref().map(step),
    });
    // What only this agent knows is shown where it is used.
    if let Some(limit) = plan.time_limit {
        shown["timeoutSeconds"] = limit.as_secs().into();
    }
    if plan.rerunnable {
        shown["rerunnable"] = true.into();
    }
    if !plan.conditions.is_empty() {
        let conditions = plan.conditions.iter();
        shown["conditions"] = conditions.map(|c| json!({ "key": c.key, "value": c.values })).collect();
    }
    shown
}

fn step(step: &Step) -> Value {
    let kind = match step.action {
        Action::Handler { .. } => "runHandler",
        Action::Command { .. } => "runCommand",
        Action::Install { .. } => "installImage",
    };
    let path = match &step.action {
        Action::Handler { place: Place::Default, .. } => Some("default"),
        Action::Handler { place: Place::Directory(dir), .. } => Some(dir.as_str()),
        _ => None,
    };
    let mut shown = json!({
        "name": step.name, "type": kind, "argv": step.argv(), "path": path, "runAsUser": step.run_as_user,
        "ignoreStepFailure": step.ignore_failure, "allowStdErr": step.allow_stderr,
    });
    if let Some(limit) = step.time_limit {
        shown["timeoutSeconds"] = limit.as_secs().into();
    }
    shown
}
