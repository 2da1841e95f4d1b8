//! Which of several certificates is shown to the broker.
//!
//! The preferred one, until the broker, whose own certificate was in order, has sent the device away [`REFUSALS`] times
//! in a row without accepting its session; then the next one, after the last the first. What never reached the broker
//! says nothing about a certificate. The preferred one is the one with which the device came up last: so a new
//! certificate is preferred when it has worked, not before, and one that does not work leaves everything as it was.

/// A broker may drop a device for reasons of its own, though hardly thrice.
pub const REFUSALS: u8 = 3;

/// What a refusal means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Nothing yet, or there is no other certificate.
    Stay,
    /// Another certificate is shown from now on.
    Next {
        /// The one that was refused.
        refused: String,
    },
    /// The one on trial is given up; what was preferred is shown again.
    Back {
        /// The one that was on trial.
        refused: String,
    },
}

/// The state of the rule. Certificates go by their names in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Shown now; `None`: the preferred one is next.
    shown: Option<String>,
    trial: Option<String>,
    refusals: u8,
}

impl Rotation {
    /// All names in the order in which they are worth showing now: the first that can be used is shown. `names` are in
    /// the order of the store.
    #[must_use]
    pub fn order(&self, names: &[String], preferred: Option<&str>) -> Vec<String> {
        let known = |name: Option<&str>| name.and_then(|name| names.iter().position(|n| n == name));
        let shown = self.shown.as_deref().filter(|_| self.trial.is_none());
        let first = known(shown).or_else(|| known(preferred)).unwrap_or(0);
        let (before, from) = names.split_at(first.min(names.len()));
        let trial = known(self.trial.as_deref()).map(|at| &names[at]);
        let others = from.iter().chain(before).filter(|name| Some(*name) != trial);
        trial.into_iter().chain(others).cloned().collect()
    }

    /// This one is shown from now on.
    pub fn show(&mut self, name: &str) {
        if self.shown.as_deref() != Some(name) {
            self.refusals = 0;
        }
        self.shown = Some(name.to_owned());
    }

    /// Which one is shown.
    #[must_use]
    pub fn shown(&self) -> Option<&str> {
        self.shown.as_deref()
    }

    /// The one on trial.
    #[must_use]
    pub fn trial(&self) -> Option<&str> {
        self.trial.as_deref()
    }

    /// Refusals of the one that is shown, in a row.
    #[must_use]
    pub const fn refusals(&self) -> u8 {
        self.refusals
    }

    /// Show this one next; it must prove itself.
    pub fn try_out(&mut self, name: &str) {
        (self.trial, self.refusals) = (Some(name.to_owned()), 0);
    }

    /// The broker is who it should be, and sent the device away.
    pub fn refused(&mut self, names: &[String]) -> Turn {
        self.refusals = self.refusals.saturating_add(1);
        let Some(shown) = self.shown.clone().filter(|_| self.refusals >= REFUSALS) else { return Turn::Stay };
        if self.trial.take().is_some() {
            (self.shown, self.refusals) = (None, 0);
            return Turn::Back { refused: shown };
        }
        match next(names, &shown) {
            Some(other) if other != shown => {
                (self.shown, self.refusals) = (Some(other.to_owned()), 0);
                Turn::Next { refused: shown }
            }
            _ => Turn::Stay,
        }
    }

    /// The session is up. Returns the name of the certificate that did it, which is to be preferred.
    pub fn accepted(&mut self) -> Option<&str> {
        (self.trial, self.refusals) = (None, 0);
        self.shown.as_deref()
    }
}

/// The one after `name`, wrapping round; the first where `name` is not there.
#[must_use]
pub fn next<'a>(names: &'a [String], name: &str) -> Option<&'a str> {
    let at = names.iter().position(|n| n == name).map_or(0, |at| at + 1);
    names.get(at % names.len().max(1)).map(String::as_str)
}
