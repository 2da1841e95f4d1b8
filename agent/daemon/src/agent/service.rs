//! What the service manager is told, and when.

use std::time::{Duration, Instant};

use crate::notify::{Notifier, NotifyError};

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Service {
    notifier: Option<Notifier>,
    /// The last sign of life.
    alive: Option<Instant>,
    status: String,
    /// The manager is told when the agent ends.
    farewell: bool,
}

impl Service {
    /// From the environment; a manager that cannot be told is done without.
    #[must_use]
    pub fn from_env() -> Self {
        let notifier = Notifier::from_env().map_err(|e| tracing::warn!("{e}")).ok();
        Self { notifier, alive: None, status: String::new(), farewell: true }
    }

    /// Nobody is told anything.
    #[must_use]
    pub const fn none() -> Self {
        Self { notifier: None, alive: None, status: String::new(), farewell: true }
    }

    /// Of an agent behind which another one comes in the same process: a manager that was told of an end would see to it.
    #[must_use]
    pub fn without_farewell(self) -> Self {
        Self { farewell: false, ..self }
    }

    fn tell(&self, tell: impl FnOnce(&Notifier) -> Result<(), NotifyError>) {
        if let Some(Err(e)) = self.notifier.as_ref().map(tell) {
            tracing::debug!("{e}");
        }
    }

    /// State is settled.
    pub(super) fn ready(&self) {
        self.tell(Notifier::ready);
    }

    /// The agent ends.
    pub(super) fn stopping(&self) {
        if self.farewell {
            self.tell(Notifier::stopping);
        }
    }

    /// One line, when it changed.
    pub(super) fn status(&mut self, text: &str) {
        if self.status != text {
            text.clone_into(&mut self.status);
            self.tell(|n| n.status(text));
        }
    }

    /// The loop turns.
    pub(super) fn alive(&mut self) {
        let Some(every) = self.notifier.as_ref().and_then(Notifier::watchdog_interval) else { return };
        if self.alive.is_none_or(|t| t.elapsed() >= every / 2) {
            self.alive = Some(Instant::now());
            self.tell(Notifier::alive);
        }
    }

    /// When the next sign of life is due at the latest.
    pub(super) fn next(&self) -> Option<Duration> {
        self.notifier.as_ref().and_then(Notifier::watchdog_interval)
    }
}
