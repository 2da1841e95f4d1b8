//! The line with which a guest says that it is up.

use std::time::Duration;

/// What a guest says once it is up: `GUEST-UP set=A version=1.0 boot_id=... uptime=12.3`.
#[derive(Debug, Clone, PartialEq)]
pub struct Up {
    /// The set that runs.
    pub set: String,
    /// The version of its image.
    pub version: String,
    /// The kernel's name for this boot.
    pub boot_id: String,
    /// By the guest's clock.
    pub uptime: Duration,
}

/// With what the line begins.
pub(crate) const GREETING: &str = "GUEST-UP ";

impl Up {
    /// Reads the line from [`GREETING`] on. Fields that are not known are passed over; one that is missing, empty or
    /// there twice makes it no greeting.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let fields = line.strip_prefix(GREETING)?;
        let field = |name: &str| {
            let mut values =
                fields.split_whitespace().filter_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            let value = values.next().filter(|value| !value.is_empty())?;
            values.next().is_none().then(|| value.to_owned())
        };
        let uptime = Duration::try_from_secs_f64(field("uptime")?.parse().ok()?).ok()?;
        Some(Self { set: field("set")?, version: field("version")?, boot_id: field("boot_id")?, uptime })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_greeting_is_read_and_what_is_new_in_it_is_passed_over() {
        let up = Up::parse("GUEST-UP set=B version=2.0-rc1 boot_id=ab-c mood=fine uptime=12.34").unwrap();
        assert_eq!((up.set.as_str(), up.version.as_str(), up.boot_id.as_str()), ("B", "2.0-rc1", "ab-c"));
        assert_eq!(up.uptime, Duration::from_millis(12_340));
    }

    #[test]
    fn half_a_greeting_is_none() {
        for line in [
            "GUEST-UP set=A version=1 boot_id=x",
            "GUEST-UP set= version=1 boot_id=x uptime=1",
            "GUEST-UP set=A set=B version=1 boot_id=x uptime=1",
            "GUEST-UP set=A version=1 boot_id=x uptime=-1",
            "GUEST-UP set=A version=1 boot_id=x uptime=inf",
            " GUEST-UP set=A version=1 boot_id=x uptime=1",
        ] {
            assert_eq!(Up::parse(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in "(GUEST-UP )?([a-z_]{0,8}=?[ -~]{0,6} ?){0,8}") {
            if let Some(up) = Up::parse(&line) {
                prop_assert!(!up.set.is_empty() && !up.version.is_empty() && !up.boot_id.is_empty());
            }
        }
    }
}
