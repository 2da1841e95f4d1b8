//! What a service says of its settings before they are written.

use std::fmt;

use serde_json::Value;

use super::merge::{EmptyList, merge};

/// The settings to use in place of those given, `None`: none at all; or why they are refused.
pub type Validate = Box<dyn FnMut(Option<&Value>) -> Answer + Send>;
type Answer = Result<Option<Value>, String>;

/// Asks, and remembers the last answer: the same settings are looked at many times.
pub(super) struct Validator {
    validate: Validate,
    last: Option<(Option<Value>, Answer)>,
}

impl Validator {
    pub(super) const fn new(validate: Validate) -> Self {
        Self { validate, last: None }
    }

    /// A refusal need not last: the program that refused may have been repaired.
    pub(super) fn forget(&mut self) {
        self.last.take_if(|(_, answer)| answer.is_err());
    }

    pub(super) fn ask(&mut self, config: Option<&Value>) -> Answer {
        if let Some((asked, answer)) = &self.last
            && asked.as_ref() == config
        {
            return answer.clone();
        }
        // A null is nothing, here as everywhere.
        let answer = (self.validate)(config)
            .map(|made| made.as_ref().and_then(|made| merge(None, made, EmptyList::Value)));
        self.last = Some((config.cloned(), answer.clone()));
        answer
    }
}

impl fmt::Debug for Validator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Validator").field("last", &self.last).finish_non_exhaustive()
    }
}
