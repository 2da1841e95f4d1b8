//! Which set runs: every source is asked, and they must agree.
//!
//! Sources are the kernel command line, what a boot program says, and the block device under `/`. One that says nothing
//! does not count; two that differ, or one that says something that fits neither set, make the answer
//! [`Booted::Unknown`], which forbids every write: better no update than one onto the running set.

use std::path::PathBuf;

use otandem_core::boot::{Booted, SetId};
use otandem_device::machine::{self, Dev, cmdline_values};

use crate::{BootError, BootNames};

/// What one source says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The source, in words for a person.
    pub source: String,
    /// Its answer.
    pub says: Says,
}

/// An answer about the running set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// This set.
    Set(SetId),
    /// Something that fits neither set, for this reason.
    Unclear(String),
}

/// The answer of all sources together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The running set.
    pub booted: Booted,
    /// Why it is unknown; empty if it is known.
    pub reason: String,
}

impl Verdict {
    /// The running set, for something that may only be done when it is known.
    ///
    /// # Errors
    /// It is unknown.
    pub fn running(self, action: &'static str) -> Result<SetId, BootError> {
        self.booted.set().ok_or(BootError::BootedUnknown { action, reason: self.reason })
    }

    /// For what is done to the running set only.
    ///
    /// # Errors
    /// `set` is not the running one, or that is unknown.
    pub fn must_run(self, action: &'static str, set: SetId) -> Result<(), BootError> {
        if self.running(action)? == set { Ok(()) } else { Err(BootError::NotRunning { action, set }) }
    }

    /// For what is done to the other set only.
    ///
    /// # Errors
    /// `set` is the running one, or that is unknown.
    pub fn must_not_run(self, action: &'static str, set: SetId) -> Result<(), BootError> {
        if self.running(action)? == set { Err(BootError::Running { action, set }) } else { Ok(()) }
    }
}

/// All sources together.
#[must_use]
pub fn combine(claims: &[Claim]) -> Verdict {
    let unknown = |reason: String| Verdict { booted: Booted::Unknown, reason };
    for claim in claims {
        if let Says::Unclear(why) = &claim.says {
            return unknown(format!("{} {why}", claim.source));
        }
    }
    let mut sets = claims.iter().filter_map(|claim| match claim.says {
        Says::Set(set) => Some((set, &claim.source)),
        Says::Unclear(_) => None,
    });
    let Some((set, source)) = sets.next() else {
        return unknown(
            "neither the kernel command line nor the device under / tells; add otandem.set=A or B".into(),
        );
    };
    match sets.find(|(other, _)| *other != set) {
        Some((other, second)) => unknown(format!("{source} says {set} and {second} says {other}")),
        None => Verdict { booted: Booted::Set(set), reason: String::new() },
    }
}

/// One slot as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The set that it belongs to.
    pub set: SetId,
    /// Its name on a RAUC command line, such as `rootfs.0`, or its own name.
    pub name: String,
    /// Its device node or file.
    pub path: PathBuf,
}

/// What this boot looks like from inside; it does not change until the next one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The kernel command line.
    pub cmdline: String,
    /// The kernel's identity of this boot.
    pub boot_id: String,
    /// The devices under `/`.
    pub root: Vec<Dev>,
    /// Set, name and, for block devices, number of each slot.
    pub slots: Vec<(SetId, String, Option<Dev>)>,
}

impl Seen {
    /// Looks at this machine.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn on_this_machine(slots: &[Slot]) -> Result<Self, BootError> {
        let look = |slot: &Slot| (slot.set, slot.name.clone(), machine::block_device(&slot.path));
        Ok(Self {
            cmdline: machine::cmdline()?,
            boot_id: machine::boot_id()?,
            root: machine::root_devices()?,
            slots: slots.iter().map(look).collect(),
        })
    }

    /// What the command line and the root device say.
    #[must_use]
    pub fn claims(&self, names: &BootNames) -> Vec<Claim> {
        let mut claims = Vec::new();
        let mut claim = |source: String, says| claims.push(Claim { source, says });
        for value in cmdline_values(&self.cmdline, "otandem.set") {
            let set = value.parse().ok().or_else(|| names.set(&value));
            claim(format!("otandem.set={}", short(&value)), fits(set));
        }
        for value in cmdline_values(&self.cmdline, "rauc.slot") {
            let set = names.set(&value).or_else(|| self.slot_named(&value));
            claim(format!("rauc.slot={}", short(&value)), fits(set));
        }
        if !cmdline_values(&self.cmdline, "rauc.external").is_empty() {
            claim("rauc.external".into(), Says::Unclear("says that neither set runs".into()));
        }
        let is_root = |dev: &Option<Dev>| dev.is_some_and(|d| self.root.contains(&d));
        let mut under: Vec<SetId> =
            self.slots.iter().filter(|(_, _, dev)| is_root(dev)).map(|s| s.0).collect();
        under.sort_unstable();
        under.dedup();
        for set in under {
            claim("the device under /".into(), Says::Set(set));
        }
        claims
    }

    /// The set of the one slot of that name.
    fn slot_named(&self, name: &str) -> Option<SetId> {
        let mut sets = self.slots.iter().filter(|(_, n, _)| n == name).map(|(set, _, _)| *set);
        let set = sets.next()?;
        sets.all(|other| other == set).then_some(set)
    }
}

fn fits(set: Option<SetId>) -> Says {
    set.map_or_else(|| Says::Unclear("names no configured set".into()), Says::Set)
}

/// Enough of a foreign text for a message.
fn short(text: &str) -> String {
    text.chars().take(40).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(cmdline: &str, root: &str) -> Seen {
        let dev = |text: &str| text.parse().ok();
        Seen {
            cmdline: cmdline.into(),
            boot_id: "x".into(),
            root: dev(root).into_iter().collect(),
            slots: vec![
                (SetId::A, "rootfs.0".into(), dev("179:2")),
                (SetId::A, "boot".into(), dev("179:1")),
                (SetId::B, "rootfs.1".into(), dev("179:3")),
                (SetId::B, "boot".into(), None),
            ],
        }
    }

    fn verdict(cmdline: &str, root: &str) -> Verdict {
        combine(&seen(cmdline, root).claims(&BootNames::new("sysA", "sysB").unwrap()))
    }

    #[test]
    fn any_single_source_is_enough() {
        let a = Booted::Set(SetId::A);
        for (cmdline, root) in [
            ("otandem.set=A", ""),
            ("otandem.set=sysA", ""),
            ("quiet rauc.slot=sysA", ""),
            ("rauc.slot=rootfs.0", ""),
            ("", "179:2"),
            ("otandem.set=A rauc.slot=rootfs.0 otandem.set=sysA", "179:1"),
            ("otandem.set=A", "8:1"),
        ] {
            let verdict = verdict(cmdline, root);
            assert_eq!(verdict.booted, a, "{cmdline:?} {root:?}: {}", verdict.reason);
        }
    }

    #[test]
    fn two_sources_that_differ_are_unknown_with_both_in_the_reason() {
        for (cmdline, root, reason) in [
            ("otandem.set=A", "179:3", "otandem.set=A says A and the device under / says B"),
            ("otandem.set=A otandem.set=B", "", "otandem.set=A says A and otandem.set=B says B"),
            ("otandem.set=B rauc.slot=sysA", "", "otandem.set=B says B and rauc.slot=sysA says A"),
        ] {
            assert_eq!(verdict(cmdline, root), Verdict { booted: Booted::Unknown, reason: reason.into() });
        }
    }

    #[test]
    fn what_fits_neither_set_is_unknown_even_when_others_agree() {
        for cmdline in [
            "otandem.set=C",
            "otandem.set",
            "otandem.set=",
            "otandem.set=A rauc.slot=recovery",
            "rauc.slot=boot",
            "otandem.set=A rauc.external",
        ] {
            let verdict = verdict(cmdline, "179:2");
            assert_eq!(verdict.booted, Booted::Unknown, "{cmdline}");
            assert!(!verdict.reason.is_empty());
        }
    }

    #[test]
    fn no_source_at_all_is_unknown_and_says_what_to_add() {
        for root in ["", "8:1"] {
            let verdict = verdict("console=ttyS0", root);
            assert_eq!(verdict.booted, Booted::Unknown);
            assert!(verdict.reason.contains("otandem.set="), "{}", verdict.reason);
        }
    }

    #[test]
    fn a_root_made_of_devices_of_both_sets_is_unknown() {
        let mut both = seen("", "179:2");
        both.root.push("179:3".parse().unwrap());
        assert_eq!(combine(&both.claims(&BootNames::default())).booted, Booted::Unknown);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let slot = Slot { set: SetId::A, name: "rootfs".into(), path: "/no/such/device".into() };
        let seen = Seen::on_this_machine(&[slot]).unwrap();
        assert_eq!(seen.slots, [(SetId::A, "rootfs".to_owned(), None)]);
    }

    proptest! {
        #[test]
        fn any_command_line_gives_a_set_only_if_one_is_named(line in "[ A-Ba-z.=\"]{0,40}", tail in any::<String>()) {
            for cmdline in [line.clone(), format!("otandem.set={tail}"), format!("rauc.slot={tail}")] {
                let verdict = verdict(&cmdline, "");
                prop_assert_eq!(verdict.booted == Booted::Unknown, !verdict.reason.is_empty());
                if verdict.booted != Booted::Unknown {
                    prop_assert!(cmdline.contains("otandem.set") || cmdline.contains("rauc.slot"));
                }
            }
        }
    }
}
