//! RAUC's variables for U-Boot, and what a loader makes of them, without any file.
//!
//! `BOOT_ORDER` lists the sets that may be booted, the first one first; `BOOT_x_LEFT` is how often the loader still
//! tries one. Three means confirmed: the loader then counts nothing and writes nothing. Below that it counts down before
//! every boot.

use otandem_core::boot::{SetId, SetState};

use crate::{BootNames, Tries};

/// The counter of a confirmed set.
pub const FULL: u8 = 3;

/// `BOOT_ORDER` and the counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    /// Each set at most once.
    order: Vec<SetId>,
    left: [u8; 2],
}

impl Default for Env {
    /// What the loader uses when it has no environment.
    fn default() -> Self {
        Self { order: SetId::BOTH.to_vec(), left: [FULL; 2] }
    }
}

const fn index(set: SetId) -> usize {
    match set {
        SetId::A => 0,
        SetId::B => 1,
    }
}

impl Env {
    /// Any environment, as another tool may have left it; sets that are listed twice count once.
    #[must_use]
    pub fn new(order: &[SetId], left_a: u8, left_b: u8) -> Self {
        let mut unique = Vec::new();
        for set in order {
            if !unique.contains(set) {
                unique.push(*set);
            }
        }
        Self { order: unique, left: [left_a, left_b] }
    }

    /// Reads the lines `NAME=value`; `None` if one of the three variables is missing or makes no sense, or nothing is
    /// listed. Other variables are not ours.
    #[must_use]
    pub fn parse(text: &str, names: &BootNames) -> Option<Self> {
        let value = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        let left = |set| u8::from_str_radix(value(&format!("BOOT_{}_LEFT", names.name(set)))?, 16).ok();
        let order = value("BOOT_ORDER")?.split_whitespace();
        let order = order.map(|name| names.set(name)).collect::<Option<Vec<_>>>()?;
        (!order.is_empty()).then_some(Self::new(&order, left(SetId::A)?, left(SetId::B)?))
    }

    /// The lines that [`Env::parse`] reads.
    #[must_use]
    pub fn format(&self, names: &BootNames) -> String {
        let order: Vec<&str> = self.order.iter().map(|set| names.name(*set)).collect();
        let mut text = format!("BOOT_ORDER={}\n", order.join(" "));
        for set in SetId::BOTH {
            text += &format!("BOOT_{}_LEFT={:x}\n", names.name(set), self.left(set));
        }
        text
    }

    /// Tries left of `set`.
    #[must_use]
    pub const fn left(&self, set: SetId) -> u8 {
        self.left[index(set)]
    }

    /// Would the loader try `set`?
    #[must_use]
    pub fn bootable(&self, set: SetId) -> bool {
        self.order.contains(&set) && self.left(set) > 0
    }

    /// The set that the next reset tries first.
    #[must_use]
    pub fn primary(&self) -> Option<SetId> {
        self.order.iter().copied().find(|set| self.bootable(*set))
    }

    /// The state of `set`, given how many tries [`Env::arm`] gives.
    #[must_use]
    pub fn state(&self, set: SetId, tries: Tries) -> SetState {
        match self.left(set) {
            _ if !self.order.contains(&set) => SetState::Bad,
            FULL.. => SetState::Good,
            left if left >= tries.get() => SetState::Untried,
            _ => SetState::Tried,
        }
    }

    /// `set` is tried next; the other one is its full fallback.
    pub fn arm(&mut self, set: SetId, tries: Tries) {
        self.order = vec![set, set.other()];
        self.left[index(set)] = tries.get();
        self.left[index(set.other())] = FULL;
    }

    /// The counter of `set` is full again.
    pub fn keep(&mut self, set: SetId) {
        self.left[index(set)] = FULL;
        if !self.order.contains(&set) {
            self.order.insert(0, set);
        }
    }

    /// `set` is not tried any more, the other one is first and full.
    pub fn disarm(&mut self, set: SetId) {
        self.mark_bad(set);
        self.keep(set.other());
    }

    /// `set` is first and full.
    pub fn confirm(&mut self, set: SetId) {
        self.order.retain(|s| *s != set);
        self.order.insert(0, set);
        self.left[index(set)] = FULL;
    }

    /// `set` is neither listed nor has it tries left.
    pub fn mark_bad(&mut self, set: SetId) {
        self.order.retain(|s| *s != set);
        self.left[index(set)] = 0;
    }

    /// What the loader does at a reset: the first set of the order with tries left is counted down (unless it is
    /// confirmed) and loaded; if it cannot be loaded, the next one. When nothing is left, the defaults are tried once.
    /// Returns what it booted.
    pub fn next_boot(&mut self, mut can_load: impl FnMut(SetId) -> bool) -> Option<SetId> {
        for last_resort in [false, true] {
            if last_resort {
                *self = Self::default();
            }
            for set in self.order.clone() {
                let left = &mut self.left[index(set)];
                if *left == 0 {
                    continue;
                }
                if *left < FULL {
                    *left -= 1;
                }
                if can_load(set) {
                    return Some(set);
                }
            }
        }
        None
    }
}
