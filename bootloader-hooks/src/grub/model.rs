//! What the shipped `grub.cfg` does with a block, as a function of its bytes.
//!
//! Made to judge what a power cut may leave behind, without starting a machine. It is checked against the real GRUB
//! 2.06, byte for byte, by `tests/grub.rs`. It follows the script step by step on purpose and shares with the back end only
//! the reading of a block.

use otandem_core::boot::SetId;

use super::block;
use super::vars::{ORDER, TRIAL, value, words};
use crate::BootNames;

/// What one reset comes to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// The sets that it set about to load, in their order.
    pub tried: Vec<SetId>,
    /// The set that runs then. `None`: nothing could be loaded, the next reset follows.
    pub booted: Option<SetId>,
    /// The block as it is afterwards, if GRUB wrote it.
    pub writes: Option<Vec<u8>>,
}

/// One reset with this content of `grubenv` (no bytes: no file either) and the boot names `A` and `B`. `loadable` tells
/// whether kernel and initrd of a set can be loaded.
#[must_use]
pub fn decide(block: &[u8], loadable: impl Fn(SetId) -> bool) -> Decision {
    decide_named(block, &BootNames::default(), loadable)
}

/// [`decide`] for other boot names.
#[must_use]
pub fn decide_named(block: &[u8], names: &BootNames, loadable: impl Fn(SetId) -> bool) -> Decision {
    let loaded = block::variables(block);
    let both = SetId::BOTH.map(|set| names.name(set)).join(" ").into_bytes();
    let order = value(&loaded, ORDER).map_or(both, <[u8]>::to_vec);
    let get = |set: SetId, what: &str, default: &[u8]| {
        value(&loaded, &format!("{}_{what}", names.name(set))).unwrap_or(default).to_vec()
    };
    let mut tries = SetId::BOTH.map(|set| get(set, "TRY", b"0"));
    let mut decision = Decision::default();
    let set_of = |word: &[u8]| SetId::BOTH.into_iter().find(|s| names.name(*s).as_bytes() == word);
    for set in words(&order).filter_map(set_of) {
        let tried = &mut tries[usize::from(set == SetId::B)];
        if get(set, "OK", b"1") != b"1" || *tried != b"0" {
            continue;
        }
        if value(&loaded, TRIAL) == Some(names.name(set).as_bytes()) {
            *tried = count(&mut decision, block, &format!("{}_TRY", names.name(set)));
            if *tried != b"1" {
                continue;
            }
        }
        if decision.load(set, &loadable) {
            return decision;
        }
    }
    for set in SetId::BOTH {
        if decision.load(set, &loadable) {
            return decision;
        }
    }
    decision
}

impl Decision {
    fn load(&mut self, set: SetId, loadable: impl Fn(SetId) -> bool) -> bool {
        self.tried.push(set);
        if loadable(set) {
            self.booted = Some(set);
        }
        self.booted.is_some()
    }
}

/// Notes a try: the value that the variable has in the script afterwards.
fn count(decision: &mut Decision, block: &[u8], name: &str) -> Vec<u8> {
    let now = decision.writes.as_deref().unwrap_or(block);
    let Some(saved) = block::save(now, name.as_bytes(), b"1") else {
        // `save_env` refused; the variable keeps the value that was to be saved, but nothing is booted.
        return b"1 unsaved".to_vec();
    };
    let read = value(&block::variables(&saved), name).unwrap_or(b"0").to_vec();
    decision.writes = Some(saved);
    read
}
