//! What an answer of the cloud says about the shadow, and about what was sent.

use std::time::Duration;

use serde_json::Value;

use super::default::Making;
use super::document::Halves;
use super::engine::{Action, Batch, Flight, Shadow};
use crate::time::Boottime;

/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

impl Shadow {
    pub(super) fn got(&mut self, message: &Value, ours: bool) {
        let Some(version) = message["version"].as_u64() else { return };
        if !ours && self.document.is_some() && self.version.is_some_and(|known| version < known) {
            return;
        }
        if ours {
            self.wants_get = self.seen > version && self.document.is_none();
        }
        (self.seen, self.making) = (0, Making::No);
        (self.version, self.got) = (Some(version), version);
        self.document = Some(Halves::of(&message["state"]));
        self.reconcile();
    }

    pub(super) fn not_got(&mut self, message: &Value, now: Boottime) {
        if message["code"].as_u64() != Some(404) {
            return self.failed(reason("asking for the shadow", message), now);
        }
        self.wants_get = false;
        if self.makes_default {
            self.version = None;
            return self.make();
        }
        // There is none, so nothing is desired; the first report makes one.
        (self.version, self.document) = (None, Some(Halves::default()));
        self.reconcile();
    }

    pub(super) fn updated(&mut self, message: &Value, ours: Option<Flight>) {
        let Some(batch) = ours.and_then(|flight| flight.update) else {
            let state = &message["state"];
            let whole = |half: &str| state.get(half).is_some_and(|half| !half.is_object());
            let silent = state.get("desired").is_none() && state.get("reported").is_none();
            if (whole("desired") || whole("reported") || silent)
                && message["version"].as_u64() >= self.version
            {
                // A half was deleted, which no difference tells.
                self.wants_get = true;
            }
            return self.changed(&Halves::of(state), message, true);
        };
        self.failures = 0;
        self.last_error = None;
        if batch.default {
            self.making = Making::No;
        }
        if let (Some(document), Some(version)) = (&mut self.document, message["version"].as_u64()) {
            document.overlay(&batch.halves);
            self.version = Some(version);
        }
        for file in batch.riders.iter().chain(&batch.files) {
            self.locals.retain(|local| local.file != *file);
            self.actions.push_back(Action::Leave(*file, Ok(())));
        }
        for (at, sent) in batch.services {
            if self.report(at).as_ref() == Some(&sent) {
                self.services[at].untold =
                    Some((sent, "the cloud took its report and did not keep it".into()));
            }
        }
        self.reconcile();
    }

    /// Somebody changed the shadow, so that it has the version of `message` now. `late`: it matters even if later changes
    /// were seen.
    pub(super) fn changed(&mut self, change: &Halves, message: &Value, late: bool) {
        let Some(version) = message["version"].as_u64() else { return };
        let Some(document) = &mut self.document else {
            self.seen = self.seen.max(version);
            return;
        };
        let known = self.version.unwrap_or_default();
        if version < known {
            // What it took away was not in the delta that came before it.
            self.wants_get |= late && version > self.got;
            return;
        }
        document.overlay(change);
        self.wants_get |= version > known + 1;
        self.version = Some(version);
        self.reconcile();
    }

    pub(super) fn not_updated(&mut self, message: &Value, batch: Batch, now: Boottime) {
        let why = reason("an update of the shadow", message);
        match message["code"].as_u64() {
            Some(409) => {
                self.wants_get = true;
                // The first time it was somebody else, and it goes on at once.
                if self.failures > 0 {
                    self.failed(why, now);
                } else {
                    self.failures = 1;
                    self.due = now;
                }
            }
            Some(400 | 413) if batch.parts() > 1 => self.single = true,
            Some(400 | 413) if batch.services.is_empty() && batch.files.is_empty() => {
                if batch.default {
                    self.not_made(&why, now)
                } else {
                    self.failed(why, now)
                }
            }
            Some(400 | 413) => {
                for (at, sent) in batch.services {
                    self.services[at].untold = Some((sent, why.clone()));
                }
                for file in batch.files {
                    self.locals.retain(|local| local.file != file);
                    self.actions.push_back(Action::Leave(file, Err(why.clone())));
                }
                self.last_error = Some(why);
            }
            _ => self.failed(why, now),
        }
    }

    pub(super) fn failed(&mut self, why: String, now: Boottime) {
        let longest = PAUSE.0.saturating_mul(1 << self.failures.min(9)).min(PAUSE.1);
        self.failures += 1;
        // Many devices that failed together come back one by one.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = Duration::from_millis((self.seed >> 33) % 1000);
        self.due = now.after(longest / 2 + longest.mul_f64(share.as_secs_f64() / 2.0));
        self.last_error = Some(why);
    }
}

fn reason(what: &str, message: &Value) -> String {
    let text = message["message"].as_str().unwrap_or_default();
    format!("{what} was refused: {} {text}", message["code"])
}
