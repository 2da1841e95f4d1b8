//! The seal: what the device told the cloud about an update, so that it can settle it after its own record is lost.
//!
//! One entry of the job's statusDetails: `otandem` = `v1;phase;target;from;digest;boot_id`.

use std::fmt;
use std::str::FromStr;

use crate::boot::SetId;

/// Name of the entry in statusDetails.
pub const DETAIL: &str = "otandem";

/// The seal, in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// State of the machine, as [`crate::record::State::name`] gives it.
    pub phase: String,
    /// The set that was to be tried.
    pub target: SetId,
    /// The set that ran.
    pub from: SetId,
    /// [`crate::update::Update::digest`].
    pub digest: String,
    /// The boot in which it was written.
    pub boot_id: String,
}

impl Seal {
    /// The target had been armed when this was told.
    #[must_use]
    pub fn armed(&self) -> bool {
        matches!(self.phase.as_str(), "armed" | "trial" | "confirming" | "rolling-back")
    }
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1;{};{};{};{};{}", self.phase, self.target, self.from, self.digest, self.boot_id)
    }
}

/// The text is no seal of a version that this agent reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a seal of version 1")]
pub struct NotASeal;

impl FromStr for Seal {
    type Err = NotASeal;
    fn from_str(s: &str) -> Result<Self, NotASeal> {
        let parts: Vec<&str> = s.split(';').collect();
        let ["v1", phase, target, from, digest, boot_id] = parts[..] else { return Err(NotASeal) };
        let set = |s: &str| s.parse::<SetId>().map_err(|_| NotASeal);
        let (target, from) = (set(target)?, set(from)?);
        if target == from {
            return Err(NotASeal);
        }
        Ok(Self { phase: phase.into(), target, from, digest: digest.into(), boot_id: boot_id.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_it_writes() {
        let seal = Seal {
            phase: "armed".into(),
            target: SetId::B,
            from: SetId::A,
            digest: "ab".repeat(32),
            boot_id: "2c1d".into(),
        };
        assert_eq!(seal.to_string().parse(), Ok(seal));
    }

    #[test]
    fn a_seal_from_a_set_to_itself_is_none() {
        assert_eq!("v1;armed;A;A;x;y".parse::<Seal>(), Err(NotASeal));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(s in ".{0,200}") {
            let _ = s.parse::<Seal>();
        }
    }
}
