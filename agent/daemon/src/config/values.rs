//! Durations, sizes and windows as people write them: text in, numbers out.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// The text is no value of the wanted kind; says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct NotAValue {
    text: String,
    wanted: &'static str,
}

impl NotAValue {
    fn new(text: &str, wanted: &'static str) -> Self {
        Self { text: text.chars().take(40).collect(), wanted }
    }
}

const A_DURATION: &str = "a duration: use \"30s\", \"10min\", \"1h30min\", \"1d\" or whole seconds";
const A_SIZE: &str = "a size: use \"512KiB\", \"16MiB\", \"1GiB\" or whole bytes";
const A_WINDOW: &str = "a time of day window: use \"01:00-05:00\"";

/// Reads `30s`, `10min`, `1h30min`, `1d`, `500ms`, or digits alone as seconds.
///
/// # Errors
/// Anything else, and what is longer than a `u64` of milliseconds.
pub fn duration(text: &str) -> Result<Duration, NotAValue> {
    let bad = || NotAValue::new(text, A_DURATION);
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(bad());
    }
    if let Ok(seconds) = rest.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let mut millis = 0u64;
    while !rest.is_empty() {
        let (number, after) = leading_number(rest).ok_or_else(bad)?;
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let factor: u64 = match unit {
            "ms" => 1,
            "s" | "sec" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let part = number.checked_mul(factor).ok_or_else(bad)?;
        millis = millis.checked_add(part).ok_or_else(bad)?;
        rest = after.trim_start();
    }
    Ok(Duration::from_millis(millis))
}

/// Reads `512KiB`, `16MiB`, `1GiB`, `5MB`, or digits alone as bytes.
///
/// # Errors
/// Anything else, and what does not fit in 63 bits.
pub fn size(text: &str) -> Result<u64, NotAValue> {
    let bad = || NotAValue::new(text, A_SIZE);
    let (number, unit) = leading_number(text.trim()).ok_or_else(bad)?;
    let factor = match unit.trim_start() {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(bad()),
    };
    number.checked_mul(factor).filter(|n| i64::try_from(*n).is_ok()).ok_or_else(bad)
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

pub use otandem_core::machine::Window;

/// Reads `01:00-05:00`.
///
/// # Errors
/// Anything else.
pub fn window(text: &str) -> Result<Window, NotAValue> {
    let bad = || NotAValue::new(text, A_WINDOW);
    let minute = |t: &str| -> Option<u16> {
        let (h, m) = t.trim().split_once(':')?;
        let digits =
            |s: &str| (s.len() <= 2 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse::<u16>().ok());
        let (h, m) = (digits(h)??, digits(m)??);
        (h < 24 && m < 60).then_some(h * 60 + m)
    };
    let (from, to) = text.split_once('-').ok_or_else(bad)?;
    Ok(Window { from: minute(from).ok_or_else(bad)?, to: minute(to).ok_or_else(bad)? })
}

/// A [`Duration`] in a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A size in bytes in a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected text or a whole number")]
enum TextOrInt {
    Int(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match TextOrInt::deserialize(d)? {
            TextOrInt::Int(n) => u32::try_from(n)
                .map(|s| Self(Duration::from_secs(s.into())))
                .map_err(|_| de::Error::custom(NotAValue::new(&n.to_string(), A_DURATION))),
            TextOrInt::Text(t) => duration(&t).map(Self).map_err(de::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match TextOrInt::deserialize(d)? {
            TextOrInt::Int(n) => u64::try_from(n)
                .map(Self)
                .map_err(|_| de::Error::custom(NotAValue::new(&n.to_string(), A_SIZE))),
            TextOrInt::Text(t) => size(&t).map(Self).map_err(de::Error::custom),
        }
    }
}

/// A [`Window`] as it is written, such as `01:00-05:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayWindow(pub Window);

impl<'de> Deserialize<'de> for DayWindow {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        window(&String::deserialize(d)?).map(Self).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_as_people_write_them() {
        let ms = |t: &str| duration(t).map(|d| d.as_millis()).ok();
        assert_eq!(ms("90"), Some(90_000));
        assert_eq!(ms("10min"), Some(600_000));
        assert_eq!(ms("1h30min"), Some(5_400_000));
        assert_eq!(ms("1h 30min"), Some(5_400_000));
        assert_eq!(ms("2d"), Some(172_800_000));
        assert_eq!(ms("250ms"), Some(250));
        for bad in ["", "-1", "1.5h", "10 parsecs", "min", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(size("16MiB"), Ok(16 << 20));
        assert_eq!(size("5 MB"), Ok(5_000_000));
        assert_eq!(size("0"), Ok(0));
        for bad in ["", "MiB", "-1", "16TiBs", "9223372036854775808", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_window_may_span_midnight() {
        let night = window("23:00-05:30").unwrap();
        assert!(night.contains(23 * 60) && night.contains(0) && night.contains(5 * 60 + 29));
        assert!(!night.contains(5 * 60 + 30) && !night.contains(12 * 60));
        assert!(window("00:00-00:00").unwrap().contains(77));
        for bad in ["", "1-5", "24:00-01:00", "01:60-02:00", "01:00", "+1:00-02:00"] {
            assert!(window(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(t in ".{0,40}") {
            let _ = (duration(&t), size(&t), window(&t));
        }

        #[test]
        fn whole_units_round_trip(n in 0u64..1_000_000) {
            prop_assert_eq!(duration(&format!("{n}min")).unwrap(), Duration::from_secs(n * 60));
            prop_assert_eq!(size(&format!("{n}KiB")).unwrap(), n << 10);
        }
    }
}
