//! How much may wait in new/, and what goes when it is more. Without bounds nothing is counted, and nothing goes.

use std::ffi::OsStr;
use std::time::Duration;

use otandem_core::messages::{Order, Queue};
use otandem_core::time::Boottime;
use otandem_device::machine::now as boottime;
use otandem_device::spool::{Entry, Spool, SpoolError};

use crate::config::{Excess, Limits};

/// The count may be wrong where files are overwritten or taken away; it is renewed at most this often.
const RECOUNT: Duration = Duration::from_secs(1);

/// The count of what waits.
#[derive(Debug)]
pub(super) struct Bounds {
    limits: Limits,
    files: u64,
    bytes: u64,
    counted: Option<Boottime>,
    dropped: u64,
}

impl Bounds {
    pub(super) const fn new(limits: Limits) -> Self {
        Self { limits, files: 0, bytes: 0, counted: None, dropped: 0 }
    }

    /// Files dropped so far.
    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    const fn are_set(&self) -> bool {
        self.limits.files > 0 || self.limits.bytes > 0
    }

    const fn exceeded(&self) -> bool {
        let Limits { files, bytes, .. } = self.limits;
        (files > 0 && self.files > files) || (bytes > 0 && self.bytes > bytes)
    }

    /// A file has come. What comes back is to be refused.
    pub(super) fn came(&mut self, spool: &mut Spool, name: &OsStr) -> Option<(Entry, String)> {
        if !self.are_set() {
            return None;
        }
        let entry = spool.entry(name)?;
        self.files += 1;
        self.bytes += entry.identity.size();
        if !self.exceeded() {
            return None;
        }
        if self.counted.is_none_or(|then| boottime().since(then) >= RECOUNT) {
            self.count(spool).ok()?;
            if !self.exceeded() {
                return None;
            }
        }
        match self.limits.excess {
            Excess::Oldest => {
                // Some more than must go, so that not every file that comes is a reason to read the directory.
                let room = |limit: u64| limit - limit / 10;
                let (files, bytes) = (room(self.limits.files), room(self.limits.bytes));
                let _ = self.trim(spool, files, bytes);
                None
            }
            Excess::Newest => {
                self.delete(spool, &entry);
                None
            }
            Excess::Refuse => Some((entry, self.reason())),
        }
    }

    /// A file is about to leave.
    pub(super) const fn left(&mut self, entry: &Entry) {
        self.files = self.files.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(entry.identity.size());
    }

    /// Counts what waits, and drops what is too much. What comes back is to be refused.
    pub(super) fn survey(&mut self, spool: &mut Spool) -> Result<Vec<(Entry, String)>, SpoolError> {
        if !self.are_set() {
            return Ok(vec![]);
        }
        self.count(spool)?;
        self.trim(spool, self.limits.files, self.limits.bytes)
    }

    fn count(&mut self, spool: &Spool) -> Result<(), SpoolError> {
        let mut bytes = 0;
        self.files = spool.scan(false, |name, _| {
            bytes += spool.entry(&name).map_or(0, |entry| entry.identity.size());
        })?;
        (self.bytes, self.counted) = (bytes, Some(boottime()));
        Ok(())
    }

    /// Until what waits is within these bounds: deletes, or gives back what is to be refused.
    fn trim(
        &mut self,
        spool: &mut Spool,
        files: u64,
        bytes: u64,
    ) -> Result<Vec<(Entry, String)>, SpoolError> {
        let over = |of: &Self| (files > 0 && of.files > files) || (bytes > 0 && of.bytes > bytes);
        let mut refused = vec![];
        while over(self) {
            let mut victims = self.victims(spool)?;
            if victims.is_empty() {
                break;
            }
            while over(self)
                && let Some(victim) = victims.take()
            {
                let Some(entry) = spool.entry(victim.name()) else { continue };
                if self.limits.excess == Excess::Refuse {
                    self.left(&entry);
                    refused.push((entry, self.reason()));
                } else {
                    self.delete(spool, &entry);
                }
            }
            if !refused.is_empty() {
                // The rest is found when these are gone.
                break;
            }
        }
        Ok(refused)
    }

    /// The first of those that go, in that order.
    fn victims(&self, spool: &Spool) -> Result<Queue, SpoolError> {
        let order =
            if self.limits.excess == Excess::Oldest { Order::OldestFirst } else { Order::NewestFirst };
        let mut first = Queue::new(Queue::MOST);
        first.clear();
        spool.scan(true, |name, modified| first.put(order.place(name, modified)))?;
        Ok(first)
    }

    fn delete(&mut self, spool: &mut Spool, entry: &Entry) {
        self.left(entry);
        self.dropped += 1;
        tracing::debug!("{}: dropped, {}", entry.name.display(), self.reason());
        let _ = spool.done(entry);
    }

    fn reason(&self) -> String {
        let Limits { files, bytes, .. } = self.limits;
        format!("too much waits in new/ (at most {files} files and {bytes} bytes may; 0: any)")
    }
}
