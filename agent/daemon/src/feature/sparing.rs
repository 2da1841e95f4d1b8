//! Lines in the log about what may happen a thousand times a second.

use std::time::Duration;

use otandem_core::time::Boottime;

/// Between two lines.
const QUIET: Duration = Duration::from_secs(1);

/// Counts what was not told.
#[derive(Debug, Default)]
pub(super) struct Sparing {
    last: Option<Boottime>,
    untold: u64,
}

impl Sparing {
    /// It happened again. Where it is time for a line: what this says of the others, nothing if there are none.
    pub(super) fn again(&mut self, now: Boottime) -> Option<String> {
        if self.last.is_some_and(|last| now.since(last) < QUIET) {
            self.untold += 1;
            return None;
        }
        self.last = Some(now);
        let others = std::mem::take(&mut self.untold);
        Some(if others > 0 { format!(" ({others} others before it)") } else { String::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_second_tells_of_all() {
        let at = |millis| Boottime(Duration::from_millis(millis));
        let mut sparing = Sparing::default();
        assert_eq!(sparing.again(at(0)).as_deref(), Some(""));
        assert_eq!((sparing.again(at(1)), sparing.again(at(999))), (None, None));
        assert_eq!(sparing.again(at(1000)).as_deref(), Some(" (2 others before it)"));
        assert_eq!(sparing.again(at(2000)).as_deref(), Some(""));
    }
}
