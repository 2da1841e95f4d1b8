//! The lab's time: the one by which URLs expire and jobs time out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Whether time passes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockMode {
    /// Stands still at the moment of start until it is advanced: for tests.
    #[default]
    Standing,
    /// Follows the machine's clock, plus what it was advanced by: for the demo and for people.
    Running,
}

/// A clock that can be put forward. All times are durations since the Unix epoch.
#[derive(Debug, Clone)]
pub struct Clock {
    mode: ClockMode,
    /// Start for a standing clock, zero for a running one, plus every advance.
    base: Duration,
}

impl Clock {
    /// A clock that starts at the machine's present time.
    #[must_use]
    pub fn new(mode: ClockMode) -> Self {
        let base = match mode {
            ClockMode::Standing => machine_time(),
            ClockMode::Running => Duration::ZERO,
        };
        Self { mode, base }
    }

    /// Now, since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> Duration {
        match self.mode {
            ClockMode::Standing => self.base,
            ClockMode::Running => machine_time().saturating_add(self.base),
        }
    }

    /// Puts the clock forward.
    pub fn advance(&mut self, by: Duration) {
        self.base = self.base.saturating_add(by);
    }
}

fn machine_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
