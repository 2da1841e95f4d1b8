//! Time as the machine sees it: monotonic, counted from the start of the kernel.

use std::time::Duration;

/// `CLOCK_BOOTTIME`: time since the kernel started, suspend included. Never stored across boots, since it means
/// nothing there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Boottime(pub Duration);

impl Boottime {
    /// This instant and `d` more, saturating.
    #[must_use]
    pub fn after(self, d: Duration) -> Self {
        Self(self.0.saturating_add(d))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
