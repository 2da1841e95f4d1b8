//! Gives up after too many failures to connect in a row, for a process that a supervisor starts again.

use tokio::sync::oneshot;

use super::{Context, Feature};

/// Failures that are borne; one more ends the process.
const BORNE: u32 = 5;

/// Counts failures. A session that came up is a success, whatever it was used for.
pub struct Supervised {
    failures: u32,
    give_up: Option<oneshot::Sender<()>>,
}

impl Supervised {
    /// `give_up` hears when it is enough.
    #[must_use]
    pub const fn new(give_up: oneshot::Sender<()>) -> Self {
        Self { failures: 0, give_up: Some(give_up) }
    }
}

impl Feature for Supervised {
    fn on_session(&mut self, _context: &mut Context<'_>, up: bool) {
        self.failures = if up { 0 } else { self.failures + 1 };
        if self.failures > BORNE
            && let Some(give_up) = self.give_up.take()
        {
            tracing::error!("{} failures in a row: giving up, to be started again", self.failures);
            let _ = give_up.send(());
        }
    }
}
