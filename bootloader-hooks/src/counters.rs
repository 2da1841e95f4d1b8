//! RAUC's variables for U-Boot, and what a loader makes of them, without any file.
//!
//! `BOOT_ORDER` lists the sets that may be booted, the first one first; `BOOT_x_LEFT` is how often the loader still
//! tries one. Three means confirmed: the loader then counts nothing and writes nothing. Below that it counts down before
//! every boot. A counter that is missing or makes no sense stands for a new set: it has three tries, and they are
//! counted, so that an image that hangs cannot keep a device whose environment was lost.

use otandem_core::boot::{Booted, Facts, SetId, SetState};

use crate::booted::Verdict;
use crate::{BootControl, BootError, BootNames, Tries, View};

/// The counter of a confirmed set.
pub const FULL: u8 = 3;

/// `BOOT_ORDER` and the counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    /// Each set at most once.
    order: Vec<SetId>,
    /// `None` = as new.
    left: [Option<u8>; 2],
}

impl Default for Env {
    /// What the loader uses when it has no environment: both sets are as new.
    fn default() -> Self {
        Self { order: SetId::BOTH.to_vec(), left: [None; 2] }
    }
}

/// When the loader tries a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// Because the variables list it.
    Listed,
    /// Because nothing that is listed boots: all variables are forgotten.
    Last,
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
        Self { order: unique, left: [Some(left_a), Some(left_b)] }
    }

    /// What the boot script makes of values as they stand, whoever wrote them; `None` = there is no such variable.
    ///
    /// A missing or empty order lists both sets. Names in it that are none of the two and repetitions are passed over.
    /// A counter is one of `0` to `3`, written so; anything else is as new.
    #[must_use]
    pub fn from_values(order: Option<&str>, left: [Option<&str>; 2], names: &BootNames) -> Self {
        let mut env = Self::default();
        if let Some(order) = order.filter(|order| !order.is_empty()) {
            let listed: Vec<SetId> =
                order.split_ascii_whitespace().filter_map(|name| names.set(name)).collect();
            env.order = Self::new(&listed, 0, 0).order;
        }
        env.left = left.map(|value| match value?.as_bytes() {
            [digit @ b'0'..=b'3'] => Some(digit - b'0'),
            _ => None,
        });
        env
    }

    /// Reads the lines `NAME=value`; `None` if the order is missing or lists nothing, or one of the variables makes no
    /// sense. Other variables are not ours.
    #[must_use]
    pub fn parse(text: &str, names: &BootNames) -> Option<Self> {
        let value = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        let left = |set| match value(&format!("BOOT_{}_LEFT", names.name(set))) {
            Some(left) => u8::from_str_radix(left, 16).ok().map(Some),
            None => Some(None),
        };
        let order = value("BOOT_ORDER")?.split_whitespace();
        let order = order.map(|name| names.set(name)).collect::<Option<Vec<_>>>()?;
        let left = [left(SetId::A)?, left(SetId::B)?];
        (!order.is_empty()).then(|| Self { left, ..Self::new(&order, 0, 0) })
    }

    /// The lines that [`Env::parse`] reads.
    #[must_use]
    pub fn format(&self, names: &BootNames) -> String {
        let order: Vec<&str> = self.order.iter().map(|set| names.name(*set)).collect();
        let mut text = format!("BOOT_ORDER={}\n", order.join(" "));
        for set in SetId::BOTH {
            if let Some(left) = self.left[index(set)] {
                text += &format!("BOOT_{}_LEFT={left:x}\n", names.name(set));
            }
        }
        text
    }

    /// The sets that may be booted, the first one first.
    #[must_use]
    pub fn order(&self) -> &[SetId] {
        &self.order
    }

    /// Tries left of `set`.
    #[must_use]
    pub fn left(&self, set: SetId) -> u8 {
        self.left[index(set)].unwrap_or(FULL)
    }

    /// The counter as it is stored; `None` = as new.
    #[must_use]
    pub const fn stored(&self, set: SetId) -> Option<u8> {
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

    /// The state of `set`, given how many tries [`Env::arm`] gives and which set runs.
    ///
    /// The running set was counted when it was booted. That leaves a trial fewer tries than it was given; with that many
    /// or more it is a confirmed set of a loader that counts at every boot, as RAUC's own script does.
    #[must_use]
    pub fn state(&self, set: SetId, running: Option<SetId>, tries: Tries) -> SetState {
        match self.left(set) {
            _ if !self.order.contains(&set) => SetState::Bad,
            FULL.. => SetState::Good,
            left if left < tries.get() => SetState::Tried,
            _ if running == Some(set) => SetState::Good,
            _ => SetState::Untried,
        }
    }

    /// `set` is tried next; the other one is its full fallback.
    pub fn arm(&mut self, set: SetId, tries: Tries) {
        self.order = vec![set, set.other()];
        self.left[index(set)] = Some(tries.get());
        self.left[index(set.other())] = Some(FULL);
    }

    /// The counter of `set` is full again.
    pub fn keep(&mut self, set: SetId) {
        self.left[index(set)] = Some(FULL);
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
        self.left[index(set)] = Some(FULL);
    }

    /// `set` is neither listed nor has it tries left.
    pub fn mark_bad(&mut self, set: SetId) {
        self.order.retain(|s| *s != set);
        self.left[index(set)] = Some(0);
    }

    /// What the loader does at a reset, when it can save its environment. Returns what it booted.
    pub fn next_boot(&mut self, can_load: impl FnMut(SetId) -> bool) -> Option<SetId> {
        self.boot(can_load, |_, _| true)
    }

    /// What the boot script does at a reset, step by step, as `uboot/boot.cmd` has it. Returns what it booted.
    ///
    /// The sets of the order that have tries left are counted down (unless confirmed), saved and loaded, the first one
    /// first. What cannot be saved is not tried, what cannot be loaded is passed over. When nothing is left, both sets
    /// are tried as new ones; then saving comes after loading, and it need not succeed.
    pub fn boot(
        &mut self,
        mut load: impl FnMut(SetId) -> bool,
        mut save: impl FnMut(&Self, Round) -> bool,
    ) -> Option<SetId> {
        for set in self.order.clone() {
            let left = &mut self.left[index(set)];
            let ready = match *left {
                Some(0) => false,
                Some(FULL..) => true,
                counted => {
                    *left = Some(counted.unwrap_or(FULL) - 1);
                    save(self, Round::Listed)
                }
            };
            if ready && load(set) {
                return Some(set);
            }
        }
        for set in SetId::BOTH {
            if load(set) {
                *self = Self::default();
                self.left[index(set)] = Some(FULL - 1);
                save(self, Round::Last);
                return Some(set);
            }
        }
        None
    }
}
/// A bootloader whose choice is an [`Env`]: what each has of its own. All of them are [`BootControl`] in the same way.
pub(crate) trait ByCounters: Send {
    /// Which set runs.
    fn booted(&self) -> Verdict;
    /// The same as a fact.
    fn running(&self) -> Booted {
        self.booted().booted
    }
    /// The identity of this boot; empty if there is none.
    fn boot_id(&self) -> String;
    /// Tries of an armed set.
    fn tries(&self) -> Tries;
    /// The choice, read anew.
    fn env(&mut self) -> Result<Env, BootError>;
    /// Changes it in one write, if there is anything to change, and reads it back.
    fn change(&mut self, change: impl FnOnce(&mut Env)) -> Result<(), BootError>;
    /// As [`BootControl::view`].
    fn as_stored(&mut self) -> Result<View, BootError>;
}

impl<T: ByCounters> BootControl for T {
    fn facts(&mut self) -> Result<Facts, BootError> {
        let env = self.env()?;
        let (booted, boot_id, tries) = (self.running(), self.boot_id(), self.tries());
        Ok(Facts {
            booted,
            boot_id,
            primary: env.primary(),
            a: env.state(SetId::A, booted.set(), tries),
            b: env.state(SetId::B, booted.set(), tries),
        })
    }

    fn view(&mut self) -> Result<View, BootError> {
        self.as_stored()
    }

    fn arm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_not_run("arm", set)?;
        let tries = self.tries();
        self.change(|env| env.arm(set, tries))
    }

    fn keep(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_run("keep", set)?;
        self.change(|env| env.keep(set))
    }

    fn disarm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_not_run("disarm", set)?;
        self.change(|env| env.disarm(set))
    }

    fn confirm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_run("confirm", set)?;
        self.change(|env| env.confirm(set))
    }

    fn mark_bad(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().running("mark bad")?;
        if !self.env()?.bootable(set.other()) {
            return Err(BootError::NoFallback { set });
        }
        self.change(|env| env.mark_bad(set))
    }
}
