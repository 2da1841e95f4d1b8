//! Waiting longer after each failure, at a random point of the interval: a fleet that lost the same server does not
//! come back in step.

use std::time::Duration;

/// Full-jitter exponential back-off.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait is at most `first`, none is longer than `most`.
    #[must_use]
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// The longest that the next wait can be.
    #[must_use]
    pub fn ceiling(&self) -> Duration {
        // 2^31 times a second is far above any ceiling in use.
        self.first.saturating_mul(1 << self.failures.min(31)).min(self.most)
    }

    /// Counts a failure and says how long to wait after it.
    pub fn wait(&mut self) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(fastrand::u64(..=nanos))
    }

    /// Begins anew after a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_limit_and_falls_back_after_success() {
        let mut b = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        let mut seen = Vec::new();
        for _ in 0..12 {
            seen.push(b.ceiling().as_secs());
            let ceiling = b.ceiling();
            assert!(b.wait() <= ceiling);
        }
        assert_eq!(seen, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        for _ in 0..100 {
            b.wait();
        }
        assert_eq!(b.ceiling(), Duration::from_secs(300));
        b.reset();
        assert_eq!(b.ceiling(), Duration::from_secs(1));
    }

    #[test]
    fn waits_are_spread_over_the_whole_interval() {
        let mut b = Backoff::new(Duration::from_secs(100), Duration::from_secs(100));
        let waits: Vec<_> = (0..400).map(|_| b.wait().as_secs()).collect();
        assert!(waits.iter().any(|w| *w < 25) && waits.iter().any(|w| *w >= 75));
    }
}
