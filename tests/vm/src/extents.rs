//! Which bytes of a disk were written over, and by what: later writes hide earlier ones.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::disk::Source;

/// Ranges that do not overlap, each with the source of its bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extents {
    /// Start in bytes -> (length in bytes, source of the first byte).
    map: BTreeMap<u64, (u64, Source)>,
}

/// The source of what lies `by` bytes further.
fn further(source: Source, by: u64) -> Source {
    match source {
        Source::Base(at) => Source::Base(at + by),
        Source::Log(at) => Source::Log(at + by),
        Source::Zero => Source::Zero,
    }
}

impl Extents {
    /// Puts `len` bytes at `start` over what was there.
    pub(crate) fn insert(&mut self, start: u64, len: u64, source: Source) {
        if len == 0 {
            return;
        }
        let end = start + len;
        // One that begins before and reaches in: its head stays, and its tail if it reaches out behind.
        if let Some((&at, &(old_len, old))) = self.map.range(..start).next_back() {
            let old_end = at + old_len;
            if old_end > start {
                self.map.insert(at, (start - at, old));
            }
            if old_end > end {
                self.map.insert(end, (old_end - end, further(old, end - at)));
            }
        }
        while let Some((&at, &(old_len, old))) = self.map.range(start..end).next() {
            self.map.remove(&at);
            let old_end = at + old_len;
            if old_end > end {
                self.map.insert(end, (old_end - end, further(old, end - at)));
            }
        }
        self.map.insert(start, (len, source));
    }

    /// Covers `range` without a gap: what lies here, `None` where nothing does.
    pub(crate) fn pieces(&self, range: Range<u64>, mut each: impl FnMut(Range<u64>, Option<Source>)) {
        let mut at = range.start;
        let before = self.map.range(..=range.start).next_back();
        let behind =
            self.map.range(range.start.saturating_add(1)..range.end.max(range.start.saturating_add(1)));
        for (&start, &(len, source)) in before.into_iter().chain(behind) {
            let end = (start + len).min(range.end);
            let from = start.max(at);
            if end <= from {
                continue;
            }
            if from > at {
                each(at..from, None);
            }
            each(from..end, Some(further(source, from - start)));
            at = end;
        }
        if at < range.end {
            each(at..range.end, None);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.map.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 64;

    proptest! {
        #[test]
        fn extents_read_as_an_array_that_is_written_over(
            writes in prop::collection::vec((0..SIZE, 0..SIZE, any::<bool>()), 0..40),
            from in 0..SIZE,
            len in 0..SIZE,
        ) {
            let mut model = vec![None; usize::try_from(SIZE).unwrap()];
            let mut extents = Extents::default();
            for (n, (start, len, zero)) in writes.into_iter().enumerate() {
                let len = len.min(SIZE - start);
                let source = if zero { Source::Zero } else { Source::Log(n as u64 * 1000) };
                extents.insert(start, len, source);
                for by in 0..len {
                    model[usize::try_from(start + by).unwrap()] = Some(further(source, by));
                }
            }
            let to = (from + len).min(SIZE);
            let (mut seen, mut at) = (Vec::new(), from);
            extents.pieces(from..to, |range, source| {
                assert_eq!(range.start, at, "a gap, or one thing twice");
                assert!(!range.is_empty());
                at = range.end;
                seen.extend((0..range.end - range.start).map(|by| source.map(|source| further(source, by))));
            });
            prop_assert_eq!(at, to);
            prop_assert_eq!(&seen[..], &model[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()]);
        }
    }
}
