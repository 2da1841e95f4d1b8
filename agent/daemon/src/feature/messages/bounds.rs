//! How much may wait in new/, and what goes when it is more. Without bounds nothing is counted, and nothing goes.

use std::ffi::OsStr;

use otandem_core::messages::{Order, Queue};
use otandem_device::spool::{Entry, Spool, SpoolError};

use crate::config::{Excess, Limits};

/// The count of what waits.
#[derive(Debug)]
pub(super) struct Bounds {
    limits: Limits,
    /// At least as much as there is: what is overwritten or taken away by others is still in it.
    files: u64,
    bytes: u64,
    dropped: u64,
}

impl Bounds {
    pub(super) const fn new(limits: Limits) -> Self {
        Self { limits, files: 0, bytes: 0, dropped: 0 }
    }

    /// Files dropped so far.
    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    const fn are_set(&self) -> bool {
        self.limits.files > 0 || self.limits.bytes > 0
    }

    const fn above(&self, files: u64, bytes: u64) -> bool {
        (files > 0 && self.files > files) || (bytes > 0 && self.bytes > bytes)
    }

    /// More may wait than may: time for a [`Bounds::survey`].
    pub(super) const fn exceeded(&self) -> bool {
        self.above(self.limits.files, self.limits.bytes)
    }

    /// A file has come, or may have been there before.
    pub(super) fn came(&mut self, spool: &Spool, name: &OsStr) {
        if self.are_set() {
            self.files += 1;
            self.bytes += self.size(spool, name);
        }
    }

    /// A file is about to leave.
    pub(super) const fn left(&mut self, entry: &Entry) {
        self.files = self.files.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(entry.identity.size());
    }

    fn size(&self, spool: &Spool, name: &OsStr) -> u64 {
        if self.limits.bytes == 0 {
            return 0;
        }
        spool.entry(name).map_or(0, |entry| entry.identity.size())
    }

    /// Counts what waits, and deletes what is too much. What comes back is to be refused, and then this is to be called
    /// again. What `is_held` is on its way and stays.
    pub(super) fn survey(
        &mut self,
        spool: &mut Spool,
        is_held: impl Fn(&OsStr) -> bool,
    ) -> Result<Vec<(Entry, String)>, SpoolError> {
        if !self.are_set() {
            return Ok(vec![]);
        }
        self.count(spool)?;
        if !self.exceeded() {
            return Ok(vec![]);
        }
        let Limits { files, bytes, excess } = self.limits;
        // Some more than must go, so that not every file that comes is a reason to read the directory.
        let room = |limit: u64| if excess == Excess::Oldest { limit - limit / 10 } else { limit };
        let mut victims = self.victims(spool, is_held)?;
        let mut refused = vec![];
        while self.above(room(files), room(bytes))
            && let Some(victim) = victims.take()
        {
            let Some(entry) = spool.entry(victim.name()) else { continue };
            self.left(&entry);
            if excess == Excess::Refuse {
                refused.push((entry, self.reason()));
            } else {
                self.dropped += 1;
                tracing::debug!("{:?} is dropped: {}", entry.name, self.reason());
                let _ = spool.done(&entry);
            }
        }
        Ok(refused)
    }

    fn count(&mut self, spool: &Spool) -> Result<(), SpoolError> {
        let mut bytes = 0;
        self.files = spool.scan(false, |name, _| bytes += self.size(spool, &name))?;
        self.bytes = bytes;
        Ok(())
    }

    /// The first of those that go, in that order.
    fn victims(&self, spool: &Spool, is_held: impl Fn(&OsStr) -> bool) -> Result<Queue, SpoolError> {
        let order =
            if self.limits.excess == Excess::Oldest { Order::OldestFirst } else { Order::NewestFirst };
        let mut first = Queue::new(Queue::MOST);
        first.clear();
        spool.scan(true, |name, modified| {
            if !is_held(&name) {
                first.put(order.place(name, modified));
            }
        })?;
        Ok(first)
    }

    fn reason(&self) -> String {
        let Limits { files, bytes, .. } = self.limits;
        format!("too much waits in new/ (at most {files} files and {bytes} bytes may; 0: any)")
    }
}
