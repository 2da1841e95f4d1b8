//! What is sent: one update at a time, with as much in it as fits.

use serde_json::{Map, Value, json};

use super::document::{Halves, MAX_DOCUMENT};
use super::engine::{Action, Batch, Flight, Shadow};
use crate::gather::Gather as _;
use crate::services::definition::OWN_KEY;
use crate::time::Boottime;

impl Shadow {
    pub(super) fn advance(&mut self, now: Boottime) {
        if !self.up
            || self.flight.is_some()
            || self.writing.is_some()
            || self.making.is_busy()
            || now < self.due
        {
            return;
        }
        if self.wants_get || self.document.is_none() {
            let token = self.token();
            let payload = json!({"clientToken": token});
            return self.send(self.name.get(), &payload, Flight { token, sent: now, update: None });
        }
        let batch = self.batch();
        if batch.halves.is_empty() && !batch.default {
            (self.single, self.failures) = (false, 0);
            return;
        }
        let token = self.token();
        let mut payload = json!({"state": batch.halves.to_state(), "clientToken": token});
        if batch.halves.is_empty() {
            // A shadow without anything in it is one too.
            payload["state"] = json!({"reported": {}});
        }
        if let Some(version) = self.version {
            payload["version"] = version.into();
        }
        self.send(self.name.update(), &payload, Flight { token, sent: now, update: Some(batch) });
    }

    fn send(&mut self, topic: String, payload: &Value, flight: Flight) {
        self.actions.push_back(Action::Publish { topic, payload: payload.to_string().into_bytes() });
        self.flight = Some(flight);
    }

    fn token(&mut self) -> String {
        self.tokens += 1;
        format!("otandem-{:x}-{}", self.seed & 0xffff_ffff, self.tokens)
    }

    /// What a service has to say.
    pub(super) fn report(&self, at: usize) -> Option<Halves> {
        let report = self.services[at].report(self.document.as_ref()?, self.empty, self.read_toml);
        (!report.is_empty()).then_some(report)
    }

    /// The next update; those that need none leave.
    fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        let Some(document) = self.document.clone() else { return batch };
        if let Some(default) = self.making.told() {
            (batch.default, batch.default_says) = (true, !default.is_empty());
            batch.halves = default;
        }
        for at in 0..self.services.len() {
            let Some(report) = self.report(at) else {
                self.services[at].untold = None;
                continue;
            };
            if self.services[at].untold.as_ref().is_some_and(|(untold, _)| *untold == report) {
                continue;
            }
            if self.single && !batch.halves.is_empty() {
                break;
            }
            match add(&mut batch.halves, &report, &document) {
                Added::Yes => batch.services.push((at, report)),
                Added::Conflict => break,
                Added::TooLarge if batch.halves.is_empty() => {
                    self.services[at].untold = Some((report, too_large()));
                }
                Added::TooLarge => break,
            }
        }
        self.batch_files(&mut batch, &document);
        if batch.halves.is_empty()
            && let Some(tidied) = self.tidied(&document)
        {
            batch.halves.reported.insert(OWN_KEY.into(), tidied);
        }
        batch
    }

    /// What takes back refusals of services that are not here any more, and the empty rest.
    fn tidied(&self, document: &Halves) -> Option<Value> {
        let own = document.reported.get(OWN_KEY)?.as_object()?;
        let refused = own.get("refused")?.as_object()?;
        let known = |key: &str| self.services.iter().any(|held| held.definition.key == key);
        let strange: Map<_, _> =
            refused.keys().filter(|key| !known(key)).map(|key| (key.clone(), Value::Null)).gather();
        if strange.len() == refused.len() {
            return Some(if own.len() == 1 { Value::Null } else { json!({"refused": null}) });
        }
        (!strange.is_empty()).then(|| json!({"refused": strange}))
    }

    fn batch_files(&mut self, batch: &mut Batch, document: &Halves) {
        let mut left = Vec::new();
        for local in &self.locals {
            let told = local.service.is_none_or(|at| self.report(at).is_none());
            let update = local.patch.as_ref().map(|patch| {
                let mut halves = Halves::default();
                halves.reported.insert(local.key.clone(), patch.clone());
                halves
            });
            // Nothing that is not so already.
            let update = update.filter(|update| {
                let mut after = document.clone();
                after.overlay(update);
                batch.halves.reported.contains_key(&local.key) || after != *document
            });
            match (update, local.service.filter(|_| !told)) {
                (None, None) => left.push((local.file, Ok(()))),
                (None, Some(at)) if batch.services.iter().any(|(sent, _)| *sent == at) => {
                    batch.riders.push(local.file);
                }
                (None, Some(at)) => match &self.services[at].untold {
                    Some((_, why)) => left.push((local.file, Err(why.clone()))),
                    None => break,
                },
                (Some(_), _) if self.single && !batch.halves.is_empty() => break,
                (Some(update), _) => match add(&mut batch.halves, &update, document) {
                    Added::Yes => batch.files.push(local.file),
                    Added::TooLarge if batch.halves.is_empty() => left.push((local.file, Err(too_large()))),
                    Added::TooLarge | Added::Conflict => break,
                },
            }
        }
        for (file, outcome) in left {
            self.locals.retain(|local| local.file != file);
            self.actions.push_back(Action::Leave(file, outcome));
        }
    }
}

enum Added {
    Yes,
    /// One after the other it would be another update.
    Conflict,
    /// The document would become too large.
    TooLarge,
}

fn add(update: &mut Halves, part: &Halves, document: &Halves) -> Added {
    let mut both = update.clone();
    if !both.compose(part) {
        return Added::Conflict;
    }
    let mut after = document.clone();
    after.overlay(&both);
    if after.size() > MAX_DOCUMENT && after.size() > document.size() {
        return Added::TooLarge;
    }
    *update = both;
    Added::Yes
}

fn too_large() -> String {
    format!("the shadow would be larger than {MAX_DOCUMENT} bytes; take something out of it")
}
