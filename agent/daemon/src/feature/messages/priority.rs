//! Messages that overtake others: which file goes ahead, where a directory has `priorities`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use otandem_core::messages::{Ahead, Order, Place};
use otandem_device::spool::Spool;

/// Slots that are remembered; in more than these nothing goes ahead.
const MAX_SLOTS: usize = 1024;

/// What is known of the files that go ahead.
#[derive(Debug)]
pub(super) struct Priorities {
    on: bool,
    order: Order,
    /// The newest file of each slot: its time of modification and its name.
    slots: BTreeMap<String, (i64, OsString)>,
}

impl Priorities {
    pub(super) const fn new(on: bool, order: Order) -> Self {
        Self { on, order, slots: BTreeMap::new() }
    }

    /// Where a file stands. With priorities it is read for that, and once more when it is sent.
    pub(super) fn place(&mut self, spool: &Spool, name: OsString) -> Place {
        let modified = if self.on || self.order.by_time() { spool.modified(&name) } else { 0 };
        let place = self.order.place(name, modified);
        match self.ahead(spool, place.name(), modified) {
            Some(priority) => place.ahead(priority),
            None => place,
        }
    }

    fn ahead(&mut self, spool: &Spool, name: &OsStr, modified: i64) -> Option<i64> {
        if !self.on {
            return None;
        }
        // What cannot be read is refused when its turn comes.
        let Ahead { priority, slot } = Ahead::of(&spool.peek(name)?)?;
        if let Some(slot) = slot {
            match self.slots.get(&slot) {
                Some((newest, holder)) if (*newest, holder.as_os_str()) > (modified, name) => return None,
                None if self.slots.len() >= MAX_SLOTS => return None,
                _ => drop(self.slots.insert(slot, (modified, name.to_owned()))),
            }
        }
        Some(priority)
    }

    /// Whether a file that was ahead, and whose turn has come, has lost its slot to a newer one since.
    pub(super) fn fell_back(&self, place: &Place, content: &[u8]) -> bool {
        let slot = || Ahead::of(content)?.slot;
        let holder = |slot: String| self.slots.get(&slot).map(|(_, holder)| holder.as_os_str());
        place.is_ahead() && slot().and_then(holder).is_some_and(|holder| holder != place.name())
    }

    /// A file is gone.
    pub(super) fn left(&mut self, name: &OsStr) {
        if !self.slots.is_empty() {
            self.slots.retain(|_, (_, holder)| holder != name);
        }
    }
}
