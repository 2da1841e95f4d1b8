//! A bootloader in a few lines: `BOOT_ORDER` and `BOOT_x_LEFT`, counting as the shipped boot scripts do.

use otandem_core::boot::{SetId, SetState};

/// The counter of a set that is not counted down.
pub const FULL: u8 = 3;

/// The boot environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    pub order: Vec<SetId>,
    left: [u8; 2],
    /// Tries that arming gives.
    tries: u8,
}

const fn at(set: SetId) -> usize {
    match set {
        SetId::A => 0,
        SetId::B => 1,
    }
}

impl Env {
    pub fn new(tries: u8) -> Self {
        Self { order: SetId::BOTH.to_vec(), left: [FULL; 2], tries }
    }

    pub fn reset(&mut self) {
        *self = Self::new(self.tries);
    }

    pub fn listed(&self, set: SetId) -> bool {
        self.order.contains(&set)
    }

    pub fn bootable(&self, set: SetId) -> bool {
        self.listed(set) && self.left(set) > 0
    }

    pub fn left(&self, set: SetId) -> u8 {
        self.left[at(set)]
    }

    pub fn set_left(&mut self, set: SetId, left: u8) {
        self.left[at(set)] = left;
    }

    pub fn put_first(&mut self, set: SetId) {
        self.order.retain(|s| *s != set);
        self.order.insert(0, set);
    }

    pub fn primary(&self) -> Option<SetId> {
        self.order.iter().copied().find(|s| self.left(*s) > 0)
    }

    pub fn state(&self, set: SetId) -> SetState {
        match self.left(set) {
            _ if !self.listed(set) => SetState::Bad,
            FULL.. => SetState::Good,
            left if left >= self.tries => SetState::Untried,
            _ => SetState::Tried,
        }
    }

    pub fn arm(&mut self, set: SetId) {
        self.order = vec![set, set.other()];
        self.left[at(set)] = self.tries;
        self.left[at(set.other())] = FULL;
    }

    pub fn keep(&mut self, set: SetId) {
        self.left[at(set)] = FULL;
        if !self.listed(set) {
            self.order.insert(0, set);
        }
    }

    pub fn disarm(&mut self, set: SetId) {
        self.mark_bad(set);
        self.keep(set.other());
    }

    pub fn confirm(&mut self, set: SetId) {
        self.put_first(set);
        self.left[at(set)] = FULL;
    }

    pub fn mark_bad(&mut self, set: SetId) {
        self.order.retain(|s| *s != set);
        self.left[at(set)] = 0;
    }

    /// One reset: the sets that were tried, in order; the last of them booted if it loads. With nothing left the
    /// defaults get one more round.
    pub fn reset_device(&mut self, loads: impl Fn(SetId) -> bool) -> (Vec<SetId>, Option<SetId>) {
        let mut tried = Vec::new();
        for defaults in [false, true] {
            if defaults {
                self.reset();
            }
            for set in self.order.clone() {
                if self.left(set) == 0 {
                    continue;
                }
                if self.left(set) < FULL {
                    self.left[at(set)] -= 1;
                }
                tried.push(set);
                if loads(set) {
                    return (tried, Some(set));
                }
            }
        }
        (tried, None)
    }
}
