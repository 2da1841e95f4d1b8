//! A shadow that does not exist yet is made of what a command says: each service's part goes to its file, all of it is
//! reported. What update files say goes before it.

use std::collections::VecDeque;

use serde_json::{Map, Value};

use super::document::{Halves, MAX_DOCUMENT, as_patch};
use super::engine::{Action, Shadow};
use super::held::Change;
use super::merge::merge;
use crate::services::definition::OWN_KEY;
use crate::time::Boottime;

/// Where the making of a shadow stands.
#[derive(Debug, Default)]
pub(super) enum Making {
    /// There is one, or none is made.
    #[default]
    No,
    /// The command runs.
    Asked,
    /// Its answer is written to the files of services.
    Writing {
        writes: VecDeque<(usize, Change)>,
        /// What no file holds.
        beside: Map<String, Value>,
    },
    /// It is in the files, and is to be reported.
    Telling(Map<String, Value>),
}

impl Making {
    /// Nothing else is sent before.
    pub(super) const fn is_busy(&self) -> bool {
        matches!(self, Self::Asked | Self::Writing { .. })
    }

    /// What is to be reported with the first update.
    pub(super) fn told(&self) -> Option<Halves> {
        let Self::Telling(reported) = self else { return None };
        Some(Halves { reported: reported.clone(), ..Halves::default() })
    }
}

impl Shadow {
    /// Where there is no shadow, one is made: [`Action::MakeDefault`], then [`Shadow::default_made`].
    pub const fn make_default(&mut self) {
        self.makes_default = true;
    }

    /// There is no shadow.
    pub(super) fn make(&mut self) {
        self.making = Making::Asked;
        self.actions.push_back(Action::MakeDefault);
    }

    /// What the command gave, or why it gave nothing: then it is asked again, later.
    pub fn default_made(&mut self, made: Result<Vec<u8>, String>, now: Boottime) {
        if !matches!(self.making, Making::Asked) {
            return;
        }
        match made.and_then(|text| self.plan(&text)) {
            Ok(making) => {
                self.making = making;
                self.write_default();
            }
            Err(why) => self.not_made(&why, now),
        }
        self.advance(now);
    }

    pub(super) fn not_made(&mut self, why: &str, now: Boottime) {
        self.making = Making::No;
        (self.document, self.wants_get) = (None, true);
        self.failed(format!("the default shadow cannot be made: {why}"), now);
    }

    /// All of it fits, or nothing is done.
    fn plan(&mut self, text: &[u8]) -> Result<Making, String> {
        let given: Value = serde_json::from_slice(text).map_err(|e| format!("no JSON: {e}"))?;
        let Some(Value::Object(all)) = given.is_object().then(|| merge(None, &given, self.empty)).flatten()
        else {
            return Err("no JSON object; print one with a member for each key of the shadow".into());
        };
        if all.contains_key(OWN_KEY) {
            return Err(format!("it has the key {OWN_KEY:?}, under which the agent reports; leave it out"));
        }
        let whole = Halves { reported: all.clone(), ..Halves::default() };
        if whole.size() > MAX_DOCUMENT {
            return Err(format!("larger than a shadow may be ({MAX_DOCUMENT} bytes); make it smaller"));
        }
        let (mut writes, mut beside) = (VecDeque::new(), all);
        for (at, held) in self.services.iter_mut().enumerate() {
            let key = held.definition.key.clone();
            let Some(mut part) = beside.remove(&key) else { continue };
            let late = self.locals.iter().filter(|local| local.service == Some(at));
            for update in late.filter_map(|local| local.update.as_ref()) {
                // What takes away is to take away from the file too.
                part = overlaid(Some(part), as_patch(update, self.empty));
            }
            let change = held.change(Some(&part), None, self.empty, self.read_toml);
            let change = change.map_err(|e| format!("{key:?}: {e}"))?;
            if !held.is_ephemeral()
                && let Some(rest) = held.beside_file(&part, change.as_ref())
            {
                beside.insert(key, rest);
            }
            writes.extend(change.map(|change| (at, change)));
        }
        Ok(Making::Writing { writes, beside })
    }

    /// The next of the files; when all are written there is a shadow, as far as this device is concerned.
    pub(super) fn write_default(&mut self) {
        while let Making::Writing { writes, .. } = &mut self.making {
            match writes.pop_front() {
                Some((at, change)) => {
                    if self.write(at, change, None) {
                        return;
                    }
                }
                None => {
                    let Making::Writing { beside, .. } = std::mem::take(&mut self.making) else { return };
                    self.making = Making::Telling(beside);
                    self.document = Some(Halves::default());
                    return self.reconcile();
                }
            }
        }
    }
}

/// `patch` put on `part`: as one update that says both, the nulls of `patch` kept.
fn overlaid(part: Option<Value>, patch: Value) -> Value {
    match (part, patch) {
        (Some(Value::Object(mut part)), Value::Object(patch)) => {
            for (key, value) in patch {
                let under = part.remove(&key);
                part.insert(key, overlaid(under, value));
            }
            Value::Object(part)
        }
        (_, patch) => patch,
    }
}
