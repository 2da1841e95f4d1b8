//! What the configuration says about a bootloader, checked.

use otandem_core::boot::SetId;

use crate::BootError;

/// Longest name a bootloader variable is made of.
const MAX_NAME: usize = 32;

/// What the bootloader calls the two sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootNames {
    a: String,
    b: String,
}

impl Default for BootNames {
    fn default() -> Self {
        Self { a: "A".into(), b: "B".into() }
    }
}

impl BootNames {
    /// Names of set A and set B, made of letters, digits, `.`, `_` and `-`.
    ///
    /// # Errors
    /// A name that no bootloader variable can have, or names that do not tell the sets apart.
    pub fn new(a: &str, b: &str) -> Result<Self, BootError> {
        let usable = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        for name in [a, b] {
            if name.is_empty() || name.len() > MAX_NAME || name.starts_with('-') || !name.chars().all(usable)
            {
                let why = "use up to 32 letters, digits, dots, dashes and underscores";
                return Err(BootError::Config(format!("boot-name {name:?} cannot be used: {why}")));
            }
        }
        if a == b || a == "B" || b == "A" {
            return Err(BootError::Config(format!(
                "boot-name {a:?} of set A and {b:?} of set B can be mixed up"
            )));
        }
        Ok(Self { a: a.into(), b: b.into() })
    }

    /// The bootloader's name of `set`.
    #[must_use]
    pub fn name(&self, set: SetId) -> &str {
        match set {
            SetId::A => &self.a,
            SetId::B => &self.b,
        }
    }

    /// The set that the bootloader calls `name`.
    #[must_use]
    pub fn set(&self, name: &str) -> Option<SetId> {
        SetId::BOTH.into_iter().find(|set| self.name(*set) == name)
    }
}

/// How often an armed set is tried before the bootloader goes back: 1 to 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tries(u8);

impl Tries {
    /// Once.
    pub const ONE: Self = Self(1);

    /// Checks the number.
    ///
    /// # Errors
    /// It is not 1, 2 or 3.
    pub fn new(tries: u8) -> Result<Self, BootError> {
        match tries {
            1..=3 => Ok(Self(tries)),
            _ => Err(BootError::Config(format!("trial-boots = {tries} is out of range: use 1, 2 or 3"))),
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// What every back end needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What the bootloader calls the sets.
    pub names: BootNames,
    /// Tries of an armed set, where the back end sets them.
    pub trial_tries: Tries,
}

impl Default for Config {
    fn default() -> Self {
        Self { names: BootNames::default(), trial_tries: Tries::ONE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_variables_or_can_be_mixed_up_are_refused() {
        let names = BootNames::new("system0", "system1").unwrap();
        assert_eq!(names.set("system1"), Some(SetId::B));
        assert_eq!(names.set("A"), None);
        assert_eq!(names.name(SetId::A), "system0");
        let long = "x".repeat(33);
        for (a, b) in
            [("A", "A"), ("B", "A"), ("", "B"), ("a b", "B"), ("-x", "B"), ("A\n", "B"), (&long, "B")]
        {
            assert!(BootNames::new(a, b).is_err(), "{a:?} {b:?}");
        }
    }

    #[test]
    fn trial_tries_are_one_to_three() {
        assert!(Tries::new(0).is_err() && Tries::new(4).is_err());
        assert_eq!(Tries::new(1).unwrap(), Tries::ONE);
        assert_eq!(Tries::new(3).unwrap().get(), 3);
    }
}
