//! What a disk can do to the writes that it has accepted and not yet flushed.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use fastrand::Rng;

use super::{SECTOR, Step};
use crate::disk::Source;
use crate::extents::Extents;

/// What the disk does at the cut to the writes that it has accepted since the last flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Model {
    /// All are there: a disk without a volatile cache, or a crash of the machine without a loss of power.
    Prefix,
    /// All are gone, except those with FUA: a volatile cache that had written nothing back.
    DropSinceFlush,
    /// A subset of them is there, as if written in an order of its own: a volatile cache that writes back as it likes.
    /// A write that overlaps a later FUA write is never there over it.
    ReorderSinceFlush {
        /// Chooses the subset and the order.
        seed: u64,
    },
    /// All but the last are there, and of the last only its first sectors.
    TornFirst {
        /// How many of 512 bytes.
        sectors: u64,
    },
    /// All but the last are there, and of the last only its last sectors.
    TornLast {
        /// How many of 512 bytes.
        sectors: u64,
    },
}

/// A moment and what the disk does then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cut {
    /// After so many entries of the log (writes, discards and flushes alike).
    pub after: u64,
    /// What became of the unflushed writes.
    pub model: Model,
    /// The same bytes as those of an earlier cut of the list: not counted as a state of its own, and still worth
    /// judging where it matters what the device had said to others by this moment.
    pub repeat: bool,
}

/// Which cuts a list has. [`Model::Prefix`] is always among them.
#[derive(Debug, Clone, Copy)]
pub struct Models {
    /// [`Model::DropSinceFlush`] at the last moment before each flush (with FUA writes: after each write).
    pub drop: bool,
    /// At most so many seeds of [`Model::ReorderSinceFlush`] after each write that has others to be reordered with:
    /// those that make different disks.
    pub reorder: u64,
    /// [`Model::TornFirst`] and [`Model::TornLast`], each with 1, 2, 4, 8 and so on, half of, and all but one of the
    /// sectors. (With none of them, or all, it is a prefix.)
    pub torn: bool,
}

impl Default for Models {
    /// All models, two orders each.
    fn default() -> Self {
        Self { drop: true, reorder: 2, torn: true }
    }
}

/// How a write of so many sectors can be torn: not into all of it, and not into nothing.
pub(super) fn torn(sectors: u64) -> Vec<Model> {
    let mut kept: Vec<u64> = (0..16).map(|power| 1 << power).collect();
    kept.extend([sectors / 2, sectors.saturating_sub(1)]);
    kept.retain(|&k| k > 0 && k < sectors);
    kept.sort_unstable();
    kept.dedup();
    let first = kept.iter().map(|&sectors| Model::TornFirst { sectors });
    first.chain(kept.iter().map(|&sectors| Model::TornLast { sectors })).collect()
}

/// Some of the cuts, without repeats, in their order: what to boot for real.
pub fn sample(cuts: &[Cut], count: usize, seed: u64) -> Vec<Cut> {
    let distinct: Vec<Cut> = cuts.iter().copied().filter(|cut| !cut.repeat).collect();
    let mut chosen = Rng::with_seed(seed).choose_multiple(distinct, count);
    chosen.sort_unstable();
    chosen
}

/// What of the last write is there.
pub(super) fn shortened(step: &Step, model: Model) -> Step {
    let kept = |sectors: u64| sectors.saturating_mul(SECTOR).min(step.len);
    match model {
        Model::TornFirst { sectors } => Step { len: kept(sectors), ..*step },
        Model::TornLast { sectors } => {
            let gone = step.len - kept(sectors);
            let source = match step.source {
                Source::Log(at) => Source::Log(at + gone),
                other => other,
            };
            Step { start: step.start + gone, len: kept(sectors), source, ..*step }
        }
        _ => *step,
    }
}

/// The disks that were made of the unflushed writes of one window: no two are alike.
#[derive(Debug, Default)]
pub(super) struct Window(HashSet<u64>);

impl Window {
    /// Whether these writes over what is durable make a disk that was not there yet.
    fn is_new(&mut self, kept: &[Step]) -> bool {
        let mut extents = Extents::default();
        kept.iter().for_each(|step| extents.insert(step.start, step.len, step.source));
        let end = kept.iter().map(|step| step.range().end).max().unwrap_or(0);
        let mut hasher = DefaultHasher::new();
        extents.pieces(0..end, |range, source| {
            if let Some(source) = source {
                (range, source).hash(&mut hasher);
            }
        });
        self.0.insert(hasher.finish())
    }

    /// Seeds that make disks of these unflushed writes which are neither a prefix nor were made before.
    pub(super) fn orders(&mut self, pending: &[Step], seeds: Range<u64>) -> Vec<u64> {
        let durable: Vec<Step> = pending.iter().filter(|step| step.fua).copied().collect();
        self.is_new(&durable);
        for len in 0..=pending.len() {
            self.is_new(&pending[..len]);
        }
        seeds.filter(|seed| self.is_new(&reordered(pending, *seed))).collect()
    }
}

/// A subset of the unflushed writes in an order of its own. FUA writes are always there and divide the others: what
/// came before one cannot land on top of it.
pub(super) fn reordered(pending: &[Step], seed: u64) -> Vec<Step> {
    let mut rng = Rng::with_seed(seed);
    let mut kept = Vec::new();
    for part in pending.split_inclusive(|step| step.fua) {
        let from = kept.len();
        kept.extend(part.iter().filter(|step| !step.fua && rng.bool()).copied());
        rng.shuffle(&mut kept[from..]);
        kept.extend(part.last().filter(|step| step.fua).copied());
    }
    kept
}
