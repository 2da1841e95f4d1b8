//! One shadow: asks for it, applies what is desired to the files of services, reports what they hold, and posts what
//! update files say.
//!
//! The view of the document is kept up to date by every answer that shows a change, whoever made it; what there is to
//! do is found anew from that view and the files after each of them, so nothing depends on an answer that got lost. Every
//! update carries the version that it was made for: if anything else changed, the shadow is asked for again.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use super::default::Making;
use super::document::{Halves, MAX_DOCUMENT, as_patch};
use super::held::{Change, Held};
use super::merge::EmptyList;
use super::name::{Answer, Name};
use super::validator::{Validate, Validator};
use crate::formats::{self, ReadToml};
use crate::services::definition::{Definition, OWN_KEY};
use crate::time::Boottime;

/// Until a request without an answer is given up.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// Until what could not be written is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(60);

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// A request.
    Publish {
        /// Its topic.
        topic: String,
        /// Its JSON.
        payload: Vec<u8>,
    },
    /// The file of a service gets this text; then [`Shadow::written`].
    Write {
        /// Which one of the definitions.
        service: usize,
        /// All of it.
        text: Vec<u8>,
        /// Its command is to run afterwards.
        notify: bool,
    },
    /// The command of a service is to run; nothing is written.
    Notify(usize),
    /// An update file had its effect, or can have none, and why.
    Leave(u64, Result<(), String>),
    /// There is no shadow: it is to be asked what it begins with; then [`Shadow::default_made`].
    MakeDefault,
}

/// How it stands, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Version of the shadow as it is known; `None`: not asked for yet, or there is none.
    pub version: Option<u64>,
    /// Asked for since the session is up, and nothing is left to say.
    pub settled: bool,
    /// Keys that are not as desired or not reported, and why.
    pub refused: Vec<(String, String)>,
    /// What the service last refused.
    pub last_error: Option<String>,
}

/// A request without an answer yet.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) token: String,
    pub(super) sent: Boottime,
    /// `None`: it asks for the shadow.
    pub(super) update: Option<Batch>,
}

/// One update, and what is in it.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) halves: Halves,
    pub(super) services: Vec<(usize, Halves)>,
    pub(super) files: Vec<u64>,
    /// With it there is a shadow.
    pub(super) default: bool,
    /// The default shadow says something beside what its services report.
    pub(super) default_says: bool,
    /// Files that say nothing beside what their services report.
    pub(super) riders: Vec<u64>,
}

impl Batch {
    /// What it can be divided into.
    pub(super) fn parts(&self) -> usize {
        self.services.len() + self.files.len() + usize::from(self.default_says)
    }
}

/// An update file that waits for its report.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) file: u64,
    pub(super) key: String,
    pub(super) service: Option<usize>,
    /// What it says to its service, where a default shadow could come before it.
    pub(super) update: Option<Value>,
    /// What no file of a service holds.
    pub(super) patch: Option<Value>,
}

/// See the module.
#[derive(Debug)]
pub struct Shadow {
    pub(super) name: Name,
    pub(super) empty: EmptyList,
    pub(super) read_toml: ReadToml,
    pub(super) services: Vec<Held>,
    pub(super) locals: VecDeque<Local>,
    pub(super) actions: VecDeque<Action>,
    /// Written just now: the service, what, and for which file.
    pub(super) writing: Option<(usize, Change, Option<u64>)>,
    pub(super) up: bool,
    /// The shadow, once asked for in this session.
    pub(super) document: Option<Halves>,
    pub(super) version: Option<u64>,
    /// Of answers that came before the shadow itself.
    pub(super) seen: u64,
    /// The version that was last asked for.
    pub(super) got: u64,
    pub(super) wants_get: bool,
    pub(super) flight: Option<Flight>,
    /// Something of an update was refused, so its parts go one by one.
    pub(super) single: bool,
    pub(super) makes_default: bool,
    pub(super) making: Making,
    pub(super) failures: u32,
    /// Nothing is sent before.
    pub(super) due: Boottime,
    pub(super) write_again: Option<Boottime>,
    pub(super) tokens: u64,
    pub(super) seed: u64,
    pub(super) last_error: Option<String>,
}

impl Shadow {
    /// Nothing is known, and there is no session. `seed` makes tokens and pauses differ from those of other processes.
    #[must_use]
    pub fn new(
        name: Name,
        definitions: Vec<Definition>,
        empty: EmptyList,
        read_toml: ReadToml,
        seed: u64,
    ) -> Self {
        Self {
            name,
            empty,
            read_toml,
            services: definitions.into_iter().map(Held::new).collect(),
            locals: VecDeque::new(),
            actions: VecDeque::new(),
            writing: None,
            up: false,
            document: None,
            version: None,
            seen: 0,
            got: 0,
            wants_get: false,
            flight: None,
            single: false,
            makes_default: false,
            making: Making::No,
            failures: 0,
            due: Boottime::default(),
            write_again: None,
            tokens: 0,
            seed,
            last_error: None,
        }
    }

    /// Which one it is.
    #[must_use]
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// What `service` is.
    #[must_use]
    pub fn definition(&self, service: usize) -> Option<&Definition> {
        self.services.get(service).map(|held| &held.definition)
    }

    /// From now on the settings of `service` are what `validate` makes of them; what it refuses is not applied. To be said
    /// before anything else is told to the shadow.
    pub fn set_validator(&mut self, service: usize, validate: Validate) {
        if let Some(held) = self.services.get_mut(service) {
            held.validator = Some(Validator::new(validate));
        }
    }

    /// Its services.
    pub fn definitions(&self) -> impl Iterator<Item = &Definition> {
        self.services.iter().map(|held| &held.definition)
    }

    /// What to do next. It is done before anything else is told to the shadow.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Update files that wait for their report.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.locals.len()
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let why = |held: &Held| {
            let untold = held.untold.as_ref().map(|(_, why)| why.clone());
            held.refused.clone().or(untold).map(|why| (held.definition.key.clone(), why))
        };
        Standing {
            version: self.version,
            settled: self.document.is_some()
                && self.flight.is_none()
                && !self.wants_get
                && matches!(self.making, Making::No),
            refused: self.services.iter().filter_map(why).collect(),
            last_error: self.last_error.clone(),
        }
    }

    // --- what comes in -----------------------------------------------------------------------------------------------

    /// What the file of a service holds now, as far as it can be read; to be told before anything else is.
    pub fn look(&mut self, service: usize, text: Option<Vec<u8>>) {
        if let Some(held) = self.services.get_mut(service) {
            held.look(text);
        }
    }

    /// The session came or went.
    pub fn session(&mut self, up: bool, now: Boottime) {
        self.up = up;
        self.flight = None;
        (self.document, self.seen, self.wants_get) = (None, 0, up);
        (self.single, self.making) = (false, Making::No);
        for held in &mut self.services {
            held.untold = None;
            held.validator.iter_mut().for_each(Validator::forget);
        }
        self.due = now;
        self.advance(now);
    }

    /// The shadow is asked for again, now.
    pub fn refetch(&mut self, now: Boottime) {
        self.wants_get = self.up && !self.making.is_busy();
        self.due = now;
        self.advance(now);
    }

    /// Time passed.
    pub fn tick(&mut self, now: Boottime) {
        if self.flight.as_ref().is_some_and(|flight| now.since(flight.sent) >= ANSWERED_WITHIN) {
            self.flight = None;
            self.wants_get = true;
            self.failed("no answer from the cloud".into(), now);
        }
        if self.write_again.is_some_and(|at| now >= at) {
            self.reconcile();
        }
        self.advance(now);
    }

    /// When [`Shadow::tick`] is due.
    #[must_use]
    pub fn next_wake(&self) -> Option<Boottime> {
        let answer = self.flight.as_ref().map(|flight| flight.sent.after(ANSWERED_WITHIN));
        let pause = (self.up && self.flight.is_none() && self.failures > 0 && !self.making.is_busy())
            .then_some(self.due);
        [answer, pause, self.write_again].into_iter().flatten().min()
    }

    /// A message of this shadow.
    pub fn message(&mut self, answer: Answer, payload: &[u8], now: Boottime) {
        let Ok(message) = serde_json::from_slice::<Value>(payload) else { return };
        if !self.up || !message.is_object() {
            return;
        }
        let token = message["clientToken"].as_str();
        let ours = self.flight.take_if(|flight| {
            token == Some(flight.token.as_str())
                && flight.update.is_some() == matches!(answer, Answer::Updated | Answer::NotUpdated)
        });
        match answer {
            Answer::Got => self.got(&message, ours.is_some()),
            Answer::NotGot if ours.is_some() => self.not_got(&message, now),
            Answer::Updated => self.updated(&message, ours),
            Answer::NotUpdated => {
                if let Some(batch) = ours.and_then(|flight| flight.update) {
                    self.not_updated(&message, batch, now);
                }
            }
            Answer::Delta => {
                let state = message["state"].as_object().cloned().unwrap_or_default();
                self.changed(&Halves { desired: state, ..Halves::default() }, &message, false);
            }
            Answer::NotGot => {}
        }
        self.advance(now);
    }

    /// An update file for `key` of the shadow.
    pub fn update(&mut self, file: u64, key: &str, text: &[u8], now: Boottime) {
        if let Err(why) = self.take(file, key, text) {
            self.actions.push_back(Action::Leave(file, Err(why)));
        }
        self.advance(now);
    }

    /// A file was written, or why it was not.
    pub fn written(&mut self, result: Result<(), String>, now: Boottime) {
        let Some((service, change, file)) = self.writing.take() else { return };
        if file.is_none() && matches!(self.making, Making::Writing { .. }) {
            match result {
                Ok(()) => {
                    self.services[service].written(&change);
                    self.write_default();
                }
                Err(why) => self.not_made(&why, now),
            }
            return self.advance(now);
        }
        let held = &mut self.services[service];
        match (result, file) {
            (Ok(()), _) => held.written(&change),
            (Err(why), Some(file)) => {
                self.locals.retain(|local| local.file != file);
                self.actions.push_back(Action::Leave(file, Err(why)));
            }
            (Err(why), None) => {
                held.applied = None;
                held.refused = Some(why);
                self.write_again = Some(now.after(WRITE_AGAIN));
            }
        }
        if file.is_none() {
            self.reconcile_from(service + 1);
        }
        self.advance(now);
    }

    // --- files -------------------------------------------------------------------------------------------------------

    fn take(&mut self, file: u64, key: &str, text: &[u8]) -> Result<(), String> {
        if key.is_empty() || key == OWN_KEY {
            return Err(
                "its name is no key: the part before the first dot names one key of the shadow".into()
            );
        }
        let service = self.services.iter().position(|held| held.definition.key == key);
        let informat = service.map_or(formats::Format::Json, |at| self.services[at].definition.informat);
        let update = formats::parse(informat, text, self.read_toml).map_err(|e| e.to_string())?;
        let patch = as_patch(&update, self.empty);
        let mut alone = Halves::default();
        alone.reported.insert(key.to_owned(), patch.clone());
        if alone.size() > MAX_DOCUMENT {
            return Err(format!("larger than a shadow may be ({MAX_DOCUMENT} bytes); make it smaller"));
        }
        let Some(at) = service else {
            let (key, patch) = (key.to_owned(), Some(patch));
            self.locals.push_back(Local { file, key, service: None, update: None, patch });
            return Ok(());
        };
        let held = &mut self.services[at];
        let reported = self.document.as_ref().and_then(|document| document.reported.get(key));
        let change = held.change(Some(&update), reported, self.empty, self.read_toml)?;
        if held.is_ephemeral() {
            // Passed on, and that is all.
            self.actions.extend(change.filter(|change| change.notify).map(|_| Action::Notify(at)));
            self.actions.push_back(Action::Leave(file, Ok(())));
            return Ok(());
        }
        let patch = held.beside_file(&patch, change.as_ref());
        let update = self.makes_default.then_some(update);
        self.locals.push_back(Local { file, key: key.to_owned(), service: Some(at), update, patch });
        if let Some(change) = change {
            self.write(at, change, Some(file));
        }
        Ok(())
    }

    /// Whether one must wait until it is written.
    pub(super) fn write(&mut self, service: usize, change: Change, file: Option<u64>) -> bool {
        match &change.text {
            Some(text) => {
                let (text, notify) = (text.clone(), change.notify);
                self.actions.push_back(Action::Write { service, text, notify });
                self.writing = Some((service, change, file));
                true
            }
            None => {
                self.actions.extend(change.notify.then_some(Action::Notify(service)));
                false
            }
        }
    }

    /// Applies what is desired.
    pub(super) fn reconcile(&mut self) {
        self.write_again = None;
        if self.writing.is_none() {
            self.reconcile_from(0);
        }
    }

    fn reconcile_from(&mut self, first: usize) {
        for at in first..self.services.len() {
            if self.apply(at) {
                return;
            }
        }
    }

    /// Whether one must wait until it is written.
    fn apply(&mut self, at: usize) -> bool {
        let Some(document) = &self.document else { return false };
        let held = &mut self.services[at];
        let key = &held.definition.key;
        let (desired, reported) = (document.desired.get(key), document.reported.get(key));
        let contents = desired.is_some() || reported.is_some();
        let greet = held.definition.initialnotify && !held.greeted && contents;
        held.greeted |= contents;
        if held.is_ephemeral() || held.definition.outfile.as_ref().is_some_and(|file| file.is_null()) {
            let is_new = desired.is_some() && !(held.passed_on && held.applied.as_ref() == desired);
            let change =
                if is_new { held.change(desired, reported, self.empty, self.read_toml) } else { Ok(None) };
            held.passed_on = desired.is_some();
            held.refused = change.as_ref().err().cloned();
            held.applied = desired.filter(|_| change.is_ok()).cloned();
            let change = change.ok().flatten();
            let notify = change.as_ref().is_some_and(|change| change.notify);
            if let Some(change) = change {
                held.typed = change.value;
            }
            if greet || notify {
                self.actions.push_back(Action::Notify(at));
            }
            return false;
        }
        let change = held.change(desired, reported, self.empty, self.read_toml);
        held.applied = None;
        held.refused = None;
        match change {
            Err(why) => held.refused = desired.map(|_| why),
            Ok(change) => {
                held.applied = desired.cloned();
                if let Some(mut change) = change {
                    change.notify |= greet;
                    return self.write(at, change, None);
                }
            }
        }
        if greet {
            self.actions.push_back(Action::Notify(at));
        }
        false
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
