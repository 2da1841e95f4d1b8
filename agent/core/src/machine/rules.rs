//! What the device's configuration and the time of the day say about updates.

use std::time::Duration;

/// What the device's configuration says about updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Total time for the health checks of a trial.
    pub health_timeout: Duration,
    /// Total time in which a trial must have reached the cloud, where it must.
    pub cloud_timeout: Duration,
    /// How long after a "not now" a hook is asked again.
    pub retry_interval: Duration,
    /// How long "not now" is taken for an answer.
    pub defer_limit: Duration,
    /// Reboots for updates happen only in this time of the day.
    pub reboot_window: Option<Window>,
    /// The other set reads the same record, so that it knows what the seal would tell it.
    pub record_shared: bool,
    /// Time that a job must still have for the reboot and the trial.
    pub reboot_reserve: Duration,
    /// Names of the slots of a set.
    pub slots: Vec<String>,
}

/// A time of the day, in minutes after local midnight; may wrap around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First minute in it.
    pub from: u16,
    /// First minute behind it.
    pub to: u16,
}

impl Window {
    /// `minute` of the day lies in the window. A window of no length is the whole day.
    #[must_use]
    pub const fn contains(self, minute: u16) -> bool {
        if self.from < self.to {
            self.from <= minute && minute < self.to
        } else if self.from > self.to {
            minute >= self.from || minute < self.to
        } else {
            true
        }
    }
}
