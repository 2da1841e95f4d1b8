//! What the bootloader says, in words that do not depend on the bootloader.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of the two slot sets: the slots that boot together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SetId {
    /// Set A.
    A,
    /// Set B.
    B,
}

impl SetId {
    /// Both sets, A first.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The set that this one is not.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// `"A"` or `"B"`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is neither `A` nor `B`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a slot set: use A or B")]
pub struct NotASet(pub String);

impl FromStr for SetId {
    type Err = NotASet;
    fn from_str(s: &str) -> Result<Self, NotASet> {
        match s {
            "A" => Ok(Self::A),
            "B" => Ok(Self::B),
            _ => Err(NotASet(s.chars().take(32).collect())),
        }
    }
}

/// What the bootloader holds of one set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetState {
    /// Bootable for ever, its counter full.
    Good,
    /// Will not be booted.
    Bad,
    /// Armed: has trial tries left and none was used.
    Untried,
    /// Armed and at least one trial try was used.
    Tried,
    /// The bootloader cannot say, or what it says makes no sense.
    Unknown,
}

/// Which set runs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Booted {
    /// Every source agrees on this set.
    Set(SetId),
    /// No source, or two that disagree. Forbids every write, arm and confirm.
    Unknown,
}

impl Booted {
    /// The set, if it is known.
    #[must_use]
    pub const fn set(self) -> Option<SetId> {
        match self {
            Self::Set(s) => Some(s),
            Self::Unknown => None,
        }
    }
}

/// Everything that the update machine knows about the boot, read in one go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Facts {
    /// The running set.
    pub booted: Booted,
    /// Changes at every boot: the kernel's `/proc/sys/kernel/random/boot_id`, or the simulator's own.
    pub boot_id: String,
    /// The set that the next reset tries first.
    pub primary: Option<SetId>,
    /// State of set A.
    pub a: SetState,
    /// State of set B.
    pub b: SetState,
}

impl Facts {
    /// The state of `set`.
    #[must_use]
    pub const fn state(&self, set: SetId) -> SetState {
        match set {
            SetId::A => self.a,
            SetId::B => self.b,
        }
    }
}
