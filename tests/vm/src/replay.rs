//! The disks that a power cut could have left, one after the other, from a recording.
//!
//! A recording is the disk as it was and the log of what was then sent to it. A [`Cut`] is a moment (after how many
//! entries of the log) and a [`Model`] of what the disk does to writes that it has accepted and not yet flushed. A
//! [`Walk`] goes through cuts in their order; the disk of a cut is not made, it is a view: for each range, from which
//! file its bytes come. Stepping costs as much as was written since the last flush, whatever the size of the disk.
//!
//! What is assumed: an entry stands in the log when its write is complete, and a flush covers all that stands before
//! it. That is exact for virtio-blk over `blklogwrites` as [`crate::Vm`] sets it up (the flush of the file below is a
//! no-op, so nothing can complete while it runs). A sector of 512 bytes is written whole or not at all.

mod models;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use otandem_images::copy_sparse;
use thiserror::Error;

pub use models::{Cut, Model, Models, sample};

use models::{Window, reordered, shortened, torn};

use crate::disk::{DiskFile, Piece, Sectors, Source};
use crate::extents::Extents;
use crate::write_log::{Act, WriteLog, WriteLogError};

/// What a medium writes whole or not at all, in bytes.
pub const SECTOR: u64 = 512;
/// How much is read at once when a state becomes a file.
const CHUNK: u64 = 1 << 20;

/// Why a recording cannot be replayed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// A file of the recording, or the one to be made.
    #[error("{path}: {source}; a recording needs its base image and its log as they were")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The log itself.
    #[error("{path}: {source}")]
    Log {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        source: WriteLogError,
    },
    /// A write beyond the end of the base image.
    #[error(
        "entry {index} writes up to byte {end} of a disk of {size} bytes; the log is that of another disk"
    )]
    OtherDisk {
        /// Of the entry, counted from 0.
        index: u64,
        /// Where the write ends, in bytes.
        end: u64,
        /// Of the base image, in bytes.
        size: u64,
    },
    /// A cut that the recording does not have.
    #[error("there is no entry {after} to cut after: the log has {entries}")]
    NoSuchCut {
        /// What was asked for.
        after: u64,
        /// How many there are.
        entries: u64,
    },
}

/// An entry of the log, as far as it changes the disk.
#[derive(Debug, Clone, Copy)]
struct Step {
    start: u64,
    len: u64,
    source: Source,
    flush: bool,
    fua: bool,
}

impl Step {
    fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }
}

/// A recording, opened.
#[derive(Debug)]
pub struct Replay {
    base_path: PathBuf,
    base: DiskFile,
    log: File,
    steps: Vec<Step>,
    torn: bool,
}

impl Replay {
    /// Reads what the log says of each entry (some 40 bytes of memory for each; the data stay on disk).
    ///
    /// # Errors
    /// A file cannot be read, or the log is damaged or that of another disk.
    pub fn open(base: &Path, log: &Path) -> Result<Self, ReplayError> {
        let in_file = |path: &Path| {
            let path = path.to_path_buf();
            |source| ReplayError::File { path, source }
        };
        let in_log = |source| ReplayError::Log { path: log.into(), source };
        let disk = DiskFile::open(base).map_err(in_file(base))?;
        let file = File::open(log).map_err(in_file(log))?;
        let mut entries = WriteLog::open(BufReader::new(&file)).map_err(in_log)?;
        let mut steps = Vec::new();
        while let Some(entry) = entries.read_entry().map_err(in_log)? {
            let end = entry.offset.saturating_add(entry.len);
            if end > disk.size() {
                return Err(ReplayError::OtherDisk { index: entry.index, end, size: disk.size() });
            }
            let source = match entry.act {
                Act::Write(at) => Source::Log(at),
                Act::Discard | Act::Nothing => Source::Zero,
            };
            let (flush, fua) = (entry.flush, entry.fua);
            steps.push(Step { start: entry.offset, len: entry.len, source, flush, fua });
        }
        let torn = entries.torn();
        Ok(Self { base_path: base.into(), base: disk, log: file, steps, torn })
    }

    /// How many entries the log has.
    pub fn entries(&self) -> u64 {
        self.steps.len() as u64
    }

    /// How many of them are flushes.
    pub fn flushes(&self) -> u64 {
        self.steps.iter().filter(|step| step.flush).count() as u64
    }

    /// Whether the log ends in the middle of an entry, which is left out.
    pub fn torn(&self) -> bool {
        self.torn
    }

    /// The cut after the last entry.
    pub fn last(&self, model: Model) -> Cut {
        Cut { after: self.entries(), model, repeat: false }
    }

    /// All cuts of some models, in the order in which a walk is cheapest. A state that one model makes of the same
    /// bytes as another is there once, except for [`Model::DropSinceFlush`], see [`Cut::repeat`].
    pub fn cuts(&self, models: Models) -> Vec<Cut> {
        let mut cuts = vec![Cut { after: 0, model: Model::Prefix, repeat: false }];
        let (mut pending, mut any_fua, mut flushed) = (0_u64, false, 0);
        let mut window = Window::default();
        for (at, step) in self.steps.iter().enumerate() {
            if step.flush {
                (pending, any_fua, flushed) = (0, false, at);
                window = Window::default();
            }
            if step.len == 0 {
                continue;
            }
            pending += 1;
            any_fua |= step.fua;
            let after = at as u64 + 1;
            let mut add = |model, repeat| cuts.push(Cut { after, model, repeat });
            add(Model::Prefix, false);
            if models.torn {
                torn(step.len / SECTOR).into_iter().for_each(|model| add(model, false));
            }
            let window_ends = self.steps.get(at + 1).is_none_or(|next| next.flush);
            if models.drop && (any_fua || window_ends) && !(step.fua && pending == 1) {
                add(Model::DropSinceFlush, !any_fua);
            }
            if pending > 1 {
                // Each moment has seeds of its own, so that a write is not always lost or always kept.
                let seeds = after * models.reorder..(after + 1) * models.reorder;
                for seed in window.orders(&self.steps[flushed..=at], seeds) {
                    add(Model::ReorderSinceFlush { seed }, false);
                }
            }
        }
        cuts
    }

    /// Starts a walk before the first entry.
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            replay: self,
            full: 0,
            flushed: 0,
            prefix: Extents::default(),
            durable: Extents::default(),
            overlay: Extents::default(),
            differs: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// Makes the disk of a cut, as a file to boot from.
    ///
    /// # Errors
    /// There is no such cut, or a file cannot be read or written.
    pub fn materialize(&self, cut: Cut, to: &Path) -> Result<(), ReplayError> {
        let mut walk = self.walk();
        let state = walk.go_to(cut)?;
        let make = || -> io::Result<()> {
            copy_sparse(&self.base_path, to)?;
            let target = OpenOptions::new().write(true).open(to)?;
            for at in (0..state.size()).step_by(usize::try_from(CHUNK).unwrap_or(usize::MAX)) {
                state.write_over_base(&target, at..(at + CHUNK).min(state.size()))?;
            }
            Ok(())
        };
        make().map_err(|source| {
            let _ = fs::remove_file(to);
            ReplayError::File { path: to.into(), source }
        })
    }
}

/// Goes from cut to cut. Forward is cheap; going back starts again.
#[derive(Debug)]
pub struct Walk<'a> {
    replay: &'a Replay,
    /// So many steps are in `prefix`.
    full: usize,
    /// The steps before this one are durable.
    flushed: usize,
    prefix: Extents,
    durable: Extents,
    /// What the state has over one of the two.
    overlay: Extents,
    /// Where the last state differs from `prefix`.
    differs: Vec<Range<u64>>,
    changed: Vec<Range<u64>>,
}

/// The disk of a cut.
#[derive(Debug)]
pub struct State<'a> {
    replay: &'a Replay,
    lower: &'a Extents,
    overlay: &'a Extents,
    changed: &'a [Range<u64>],
    /// Which one.
    pub cut: Cut,
}

impl Walk<'_> {
    /// The disk of a cut.
    ///
    /// # Errors
    /// The recording has no such cut.
    pub fn go_to(&mut self, cut: Cut) -> Result<State<'_>, ReplayError> {
        let entries = self.replay.entries();
        let after = usize::try_from(cut.after).ok().filter(|&after| after <= self.replay.steps.len());
        let Some(after) = after else {
            return Err(ReplayError::NoSuchCut { after: cut.after, entries });
        };
        // The last entry is laid over the others: it may be there in part only.
        let full = after.saturating_sub(1);
        self.changed = std::mem::take(&mut self.differs);
        if full < self.full {
            self.restart();
        }
        self.advance(full, after);
        let steps = &self.replay.steps;
        let pending = &steps[self.flushed..after];
        self.overlay.clear();
        let onto_durable = match cut.model {
            Model::DropSinceFlush => Some(pending.iter().filter(|step| step.fua).copied().collect()),
            Model::ReorderSinceFlush { seed } => Some(reordered(pending, seed)),
            _ => None,
        };
        let lower = match onto_durable {
            Some(kept) => {
                kept.iter().for_each(|step| self.overlay.insert(step.start, step.len, step.source));
                self.differs.extend(pending.iter().map(Step::range));
                &self.durable
            }
            None => {
                if let Some(last) = steps[full..after].first() {
                    let last = shortened(last, cut.model);
                    self.overlay.insert(last.start, last.len, last.source);
                    self.differs.push(last.range());
                }
                &self.prefix
            }
        };
        self.changed.extend(self.differs.iter().cloned());
        join(&mut self.changed);
        Ok(State { replay: self.replay, lower, overlay: &self.overlay, changed: &self.changed, cut })
    }

    fn restart(&mut self) {
        self.prefix.clear();
        self.durable.clear();
        (self.full, self.flushed) = (0, 0);
        self.changed = std::iter::once(0..self.replay.base.size()).collect();
    }

    /// Takes the steps before `full` into the prefix, and all that a flush before `after` covers into what is durable.
    fn advance(&mut self, full: usize, after: usize) {
        let steps = &self.replay.steps;
        for step in &steps[self.full..full] {
            self.prefix.insert(step.start, step.len, step.source);
            self.changed.push(step.range());
        }
        for at in self.full.max(self.flushed)..after {
            if steps[at].flush {
                for step in &steps[self.flushed..at] {
                    self.durable.insert(step.start, step.len, step.source);
                    self.changed.push(step.range());
                }
                self.flushed = at;
            }
        }
        self.full = full;
    }
}

/// Sorts ranges and makes one of those that touch; empty ones go.
fn join(ranges: &mut Vec<Range<u64>>) {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, before| {
        let touches = next.start <= before.end;
        if touches {
            before.end = before.end.max(next.end);
        }
        touches
    });
}

impl State<'_> {
    /// Where it may differ from the state that the walk was at before, in order and apart. For the first state of a
    /// walk: from the base image.
    pub fn changed(&self) -> &[Range<u64>] {
        self.changed
    }

    /// Calls `each` for consecutive ranges, which together cover `range`.
    fn pieces(&self, range: Range<u64>, mut each: impl FnMut(Range<u64>, Source)) {
        self.overlay.pieces(range, |range, source| match source {
            Some(source) => each(range, source),
            None => self.lower.pieces(range, |range, source| {
                let base = Source::Base(range.start);
                each(range, source.unwrap_or(base));
            }),
        });
    }

    fn fill(&self, source: Source, buf: &mut [u8]) -> io::Result<()> {
        match source {
            Source::Base(at) => self.replay.base.read(at, buf),
            Source::Log(at) => self.replay.log.read_exact_at(buf, at),
            Source::Zero => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    fn write_over_base(&self, target: &File, range: Range<u64>) -> io::Result<()> {
        let mut result = Ok(());
        self.pieces(range, |range, source| {
            if result.is_ok() && !matches!(source, Source::Base(_)) {
                result = usize::try_from(range.end - range.start).map_err(io::Error::other).and_then(|len| {
                    let mut bytes = vec![0; len];
                    self.fill(source, &mut bytes)?;
                    target.write_all_at(&bytes, range.start)
                });
            }
        });
        result
    }
}

impl Sectors for State<'_> {
    fn size(&self) -> u64 {
        self.replay.base.size()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.size());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (mut result, mut rest) = (Ok(()), buf);
        self.pieces(offset..end, |range, source| {
            // Cannot be too long: the pieces cover the buffer.
            let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX).min(rest.len());
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
            if result.is_ok() {
                result = self.fill(source, part);
            }
            rest = behind;
        });
        result
    }

    fn recipe(&self, offset: u64, len: u64) -> Option<Vec<Piece>> {
        let mut recipe: Vec<Piece> = Vec::new();
        self.pieces(offset..offset.checked_add(len)?, |range, source| {
            let len = range.end - range.start;
            if let Some(last) = recipe.last_mut() {
                let goes_on = match (last.source, source) {
                    (Source::Base(a), Source::Base(b)) | (Source::Log(a), Source::Log(b)) => {
                        a + last.len == b
                    }
                    (Source::Zero, Source::Zero) => true,
                    _ => false,
                };
                if goes_on {
                    last.len += len;
                    return;
                }
            }
            recipe.push(Piece { len, source });
        });
        Some(recipe)
    }
}

#[cfg(test)]
mod tests;
