//! The seam of everything that uses the cloud session: a feature says which topics it wants, gets their messages,
//! is woken, and hears when something of its own is done. A new feature is a new file here and a line in
//! `features.rs`.

pub mod commands;
pub mod jobs;
pub mod messages;
pub mod shadows;
mod sparing;
pub mod subscribe;
pub mod supervised;

use std::fmt;
use std::sync::Arc;

use otandem_core::machine::{Event, Machine, Now};
use otandem_core::time::Boottime;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use crate::cloud::channel::Outbound;

/// Where a feature with threads of its own reaches the rest of the agent from them.
#[derive(Debug, Clone)]
pub struct Reach {
    /// The session.
    pub outbound: UnboundedSender<Outbound>,
    /// All features, by [`Feature::on_done`].
    pub done: UnboundedSender<Done>,
}

/// What a feature may look at and ask for in one call.
pub struct Context<'a> {
    /// The update machine, to read.
    pub machine: &'a Machine,
    /// Now.
    pub now: Now,
    /// The boot that this is.
    pub boot_id: String,
    /// The agent is about to end, or a person runs a job by hand: nothing new is begun.
    pub leaving: bool,
    /// To be published, QoS 1, in this order: topic and payload.
    pub publish: Vec<(String, Vec<u8>)>,
    /// For the update machine, in this order.
    pub events: Vec<Event>,
    /// Programs to run; each ends in [`Feature::on_done`] with its name.
    pub programs: Vec<Program>,
}

/// A program that a feature wants to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// What the feature calls it.
    pub name: String,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// What it reads.
    pub stdin: Vec<u8>,
}

/// Something that a feature waited for, or should know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The update moved: tell where it stands.
    Report,
    /// Outcomes wait in the outbox.
    Flush,
    /// The update wants to know whether its job, or the cloud, is there; or is ready for the next job.
    AskCloud,
    /// The download needs fresh URLs.
    Renew,
    /// Shadows are to be asked for again.
    Refetch,
    /// A person or program wants a new certificate for the device.
    Reprovision,
    /// A program ended: its name; how, where it did not end well.
    Program(String, Result<(), String>),
    /// A thread wants the status: for the agent, no feature hears of it.
    Status(StatusFor),
}

/// Where a status goes; called in the loop, so it only passes it on.
#[derive(Clone)]
pub struct StatusFor(Arc<dyn Fn(Value) + Send + Sync>);

impl StatusFor {
    /// It goes to `tell`.
    #[must_use]
    pub fn new(tell: impl Fn(Value) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Here it is.
    pub fn tell(&self, status: Value) {
        (self.0)(status);
    }
}

impl fmt::Debug for StatusFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StatusFor")
    }
}

impl PartialEq for StatusFor {
    /// Whether both go to the same one.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for StatusFor {}

/// A function that uses the cloud session.
pub trait Feature {
    /// The topic filters without which the session is not up, for no feature: only what updates depend on.
    fn topics(&self) -> Vec<String> {
        vec![]
    }
    /// Topic filters that the others do not depend on, in groups of what belongs together, at most eight each: subscribed
    /// when the session is up, and set aside where the broker does not allow them.
    fn optional(&self) -> Vec<Vec<String>> {
        vec![]
    }
    /// The session is up, all `topics` subscribed; or it is gone.
    fn on_session(&mut self, _context: &mut Context<'_>, _up: bool) {}
    /// A group of `optional` is subscribed, until the session is gone; also groups of other features.
    fn on_granted(&mut self, _context: &mut Context<'_>, _topics: &[String]) {}
    /// A message on one of the topics; also on topics of other features.
    fn on_message(&mut self, _context: &mut Context<'_>, _topic: &str, _payload: &[u8]) {}
    /// Time passed.
    fn on_wake(&mut self, _context: &mut Context<'_>) {}
    /// When `on_wake` is due.
    fn next_wake(&self) -> Option<Boottime> {
        None
    }
    /// Something is done.
    fn on_done(&mut self, _context: &mut Context<'_>, _done: &Done) {}
    /// Nothing is under way that a short-lived process should wait for.
    fn idle(&self) -> bool {
        true
    }
    /// Here is the way to the session and to the others, before the session is up for the first time: for a feature with
    /// threads of its own.
    fn attach(&mut self, _reach: &Reach) {}
    /// Adds members to the status, and lines that an operator should look at.
    fn show(&self, _status: &mut Value, _attention: &mut Vec<String>) {}
}
