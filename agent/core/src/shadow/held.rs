//! One service of a shadow: what its file holds, what became of what was desired of it, and what is to be told of that.

use serde_json::{Map, Value, json};

use super::document::Halves;
use super::merge::{EmptyList, changed, difference, merge, restrict};
use super::validator::Validator;
use crate::formats::{self, Format, FormatError, ReadToml};
use crate::gather::Gather as _;
use crate::services::definition::{Definition, OWN_KEY, Outfile};

/// Characters of a reason that go into the shadow, where room is scarce.
const MAX_REASON: usize = 200;

/// A service and its file.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) definition: Definition,
    /// The file as it was last seen or written; `None`: there is none that can be read.
    text: Option<Vec<u8>>,
    /// What was written last: the text alone does not tell types.
    pub(super) typed: Option<Value>,
    /// Of what is desired, what was applied.
    pub(super) applied: Option<Value>,
    /// Why what is desired is not applied.
    pub(super) refused: Option<String>,
    /// A report that the cloud does not take, and why: not sent again before it changes.
    pub(super) untold: Option<(Halves, String)>,
    /// The first contents after the start have come.
    pub(super) greeted: bool,
    /// Of ephemeral data: what is desired now was notified of.
    pub(super) passed_on: bool,
    pub(super) validator: Option<Validator>,
}

/// A file to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    /// Its text; `None`: it is the file that is never written.
    pub(super) text: Option<Vec<u8>>,
    pub(super) value: Option<Value>,
    pub(super) notify: bool,
}

impl Held {
    pub(super) fn new(definition: Definition) -> Self {
        Self {
            definition,
            text: None,
            typed: None,
            applied: None,
            refused: None,
            untold: None,
            greeted: false,
            passed_on: false,
            validator: None,
        }
    }

    pub(super) fn look(&mut self, text: Option<Vec<u8>>) {
        self.text = text;
    }

    /// The file of settings; `None`: nothing is kept, so nothing can be compared.
    fn file(&self) -> Option<&Outfile> {
        self.definition.outfile.as_ref().filter(|file| !file.is_null())
    }

    pub(super) const fn is_ephemeral(&self) -> bool {
        self.definition.outfile.is_none()
    }

    fn limited(&self, value: Option<&Value>) -> Option<Value> {
        restrict(value?, self.definition.outkeys.as_deref())
    }

    /// What the file holds: of the values that have its text the one whose types are known, else what can be read from
    /// it.
    fn value(&self, reported: Option<&Value>, empty: EmptyList, read_toml: ReadToml) -> Option<Value> {
        let (file, text) = (self.file()?, self.text.as_ref()?);
        let limited = self.limited(reported);
        let known = [self.typed.as_ref(), limited.as_ref()].into_iter().flatten();
        for value in known {
            if print(file, Some(value)).as_ref() == Ok(text) {
                return Some(value.clone());
            }
        }
        // A null is nothing; reported, it would come back as nothing for ever.
        let parsed = formats::parse(file.format, text, read_toml).ok()?;
        Some(merge(None, &parsed, empty).unwrap_or_else(|| json!({})))
    }

    /// What `update` changes: `Ok(None)` if the file is so already. Without an update, what is missing is made of what was
    /// reported.
    pub(super) fn change(
        &mut self,
        update: Option<&Value>,
        reported: Option<&Value>,
        empty: EmptyList,
        read_toml: ReadToml,
    ) -> Result<Option<Change>, String> {
        let held = self.value(reported, empty, read_toml);
        let Some(file) = self.file().cloned() else {
            let passed = update.and_then(|update| merge(None, update, empty));
            let value = if update.is_some() { self.validated(passed)? } else { None };
            let notify = update.is_some_and(|update| match &self.definition.notifykeys {
                None => true,
                Some(keys) => {
                    update.as_object().is_none_or(|members| keys.iter().any(|k| members.contains_key(k)))
                }
            });
            return Ok(Some(Change { text: None, value, notify }));
        };
        let base = held.clone().or_else(|| self.limited(reported));
        let merged = match update {
            Some(update) => merge(base, update, empty),
            None => base,
        };
        // What the file holds has been validated, or is no longer ours to judge.
        let asks = update.is_some() || held.is_none();
        let merged = if asks { self.validated(merged)? } else { merged };
        let value = self.limited(merged.as_ref());
        let text = print(&file, value.as_ref()).map_err(|e| e.to_string())?;
        if self.text.as_ref() == Some(&text) {
            self.typed = value;
            return Ok(None);
        }
        if update.is_none() && (held.is_some() || value.as_ref().is_none_or(is_nothing)) {
            return Ok(None);
        }
        let notify = changed(held.as_ref(), value.as_ref(), self.definition.notifykeys.as_deref());
        // Texts that differ are a change, though the values may be the same: 1.10 and 1.1.
        let notify = notify || self.definition.notifykeys.is_none();
        Ok(Some(Change { text: Some(text), value, notify }))
    }

    /// What the service makes of these settings.
    fn validated(&mut self, config: Option<Value>) -> Result<Option<Value>, String> {
        self.validator.as_mut().map_or_else(|| Ok(config.clone()), |validator| validator.ask(config.as_ref()))
    }

    pub(super) fn written(&mut self, change: &Change) {
        if let Some(text) = &change.text {
            self.text = Some(text.clone());
            self.typed.clone_from(&change.value);
        }
    }

    /// What of an update file is reported as it is, since no file holds it.
    pub(super) fn beside_file(&self, patch: &Value, change: Option<&Change>) -> Option<Value> {
        if self.file().is_none() {
            let made = change.filter(|_| self.validator.is_some());
            return Some(made.map_or_else(|| patch.clone(), |made| made.value.clone().unwrap_or_default()));
        }
        let keys = self.definition.outkeys.as_ref()?;
        let members = patch.as_object()?.iter().filter(|(key, _)| !keys.contains(key));
        let members: Map<_, _> = members.map(|(key, value)| (key.clone(), value.clone())).gather();
        (!members.is_empty()).then_some(Value::Object(members))
    }

    /// What the cloud is to be told.
    pub(super) fn report(&self, document: &Halves, empty: EmptyList, read_toml: ReadToml) -> Halves {
        let key = &self.definition.key;
        let mut halves = Halves::default();
        if let Some(value) = self.reported(document.reported.get(key), empty, read_toml) {
            halves.reported.insert(key.clone(), value);
        }
        let desired = document.desired.get(key);
        if let (Some(applied), Some(desired)) = (&self.applied, desired)
            && applied == desired
            && let Some(cleared) = self.cleared(desired)
        {
            halves.desired.insert(key.clone(), cleared);
        }
        let told = document.reported.get(OWN_KEY).map_or(&Value::Null, |own| &own["refused"][key.as_str()]);
        let refused = self.refusal(desired).map(|why| why.chars().take(MAX_REASON).collect::<String>());
        let refused = refused.map_or(Value::Null, Value::String);
        if *told != refused {
            halves.reported.insert(OWN_KEY.into(), json!({"refused": {key.as_str(): refused}}));
        }
        halves
    }

    fn reported(&self, told: Option<&Value>, empty: EmptyList, read_toml: ReadToml) -> Option<Value> {
        if self.is_ephemeral() {
            return None;
        }
        if self.file().is_none() {
            let applied = self.applied.as_ref()?;
            // Of what was validated, the outcome is what holds.
            let passed =
                if self.validator.is_some() { self.typed.as_ref().unwrap_or(&Value::Null) } else { applied };
            let after = merge(told.cloned(), passed, empty);
            return difference(told, after.as_ref());
        }
        // Without a file nothing is known, and nothing is taken back.
        let value = self.value(told, empty, read_toml)?;
        let old = self.limited(told).filter(|old| !is_nothing(old));
        let patch = difference(old.as_ref(), Some(&value).filter(|value| !is_nothing(value)))?;
        match (patch, old) {
            // Others may report beside it.
            (Value::Null, Some(Value::Object(old))) if self.definition.outkeys.is_some() => {
                Some(Value::Object(old.into_iter().map(|(key, _)| (key, Value::Null)).gather()))
            }
            (patch, _) => Some(patch),
        }
    }

    /// What is taken out of the desired half: what was applied, and not more.
    fn cleared(&self, desired: &Value) -> Option<Value> {
        let (Some(keys), Some(members)) = (&self.definition.outkeys, desired.as_object()) else {
            return Some(Value::Null);
        };
        if members.keys().all(|key| keys.contains(key)) {
            return Some(Value::Null);
        }
        let own = members.keys().filter(|key| keys.contains(key));
        let own: Map<_, _> = own.map(|key| (key.clone(), Value::Null)).gather();
        (!own.is_empty()).then_some(Value::Object(own))
    }

    fn refusal(&self, desired: Option<&Value>) -> Option<String> {
        let desired = desired?;
        if self.refused.is_some() {
            return self.refused.clone();
        }
        let (keys, members) = (self.definition.outkeys.as_ref()?, desired.as_object()?);
        let strange = members.keys().find(|key| !keys.contains(key))?;
        Some(format!("{strange:?} is none of the outkeys of this service"))
    }
}

/// The text of a file that holds `value`, or nothing.
fn print(file: &Outfile, value: Option<&Value>) -> Result<Vec<u8>, FormatError> {
    let nothing = if file.format == Format::Plaintext { Value::from("") } else { json!({}) };
    formats::print(file.format, value.unwrap_or(&nothing), file.arrays)
}

/// What a shadow does not hold: an object without members, and the text of an emptied PLAINTEXT file.
fn is_nothing(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value == ""
}
