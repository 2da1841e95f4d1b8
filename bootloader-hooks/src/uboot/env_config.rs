//! `fw_env.config`: where `fw_printenv` and `fw_setenv` find the environment, to tell a person whether it is redundant.

use std::path::PathBuf;

/// Characters of a line that a message repeats.
const QUOTED: usize = 60;

/// One copy of the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Device node or file; UBI volumes may stand there as `/dev/ubi0:env`.
    pub device: PathBuf,
    /// Byte of the device at which it begins; a negative one counts from its end.
    pub offset: i64,
    /// Bytes of it; 0 where the device tells (UBI).
    pub size: u64,
}

/// Whether a power cut during a write can lose the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copies {
    /// Two copies: one of them is always whole.
    Redundant([Place; 2]),
    /// One copy: a torn write loses it.
    Single(Place),
    /// The file is in no form that we know, for this reason. The tools may know it.
    Unclear(String),
}

/// Reads the classic form: lines of device, offset, size and what depends on the kind of flash; `#` begins a comment.
/// The tools use the first two lines.
#[must_use]
pub fn parse(text: &str) -> Copies {
    let mut places = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match place(line) {
            Some(place) => places.push(place),
            None => {
                let line: String = line.chars().filter(|c| !c.is_control()).take(QUOTED).collect();
                return Copies::Unclear(format!("{line:?} is not a line of device, offset and size"));
            }
        }
        if places.len() == 2 {
            break;
        }
    }
    let mut places = places.into_iter();
    match (places.next(), places.next()) {
        (Some(first), Some(second)) => Copies::Redundant([first, second]),
        (Some(only), None) => Copies::Single(only),
        (None, _) => Copies::Unclear("it has no line".into()),
    }
}

fn place(line: &str) -> Option<Place> {
    let mut words = line.split_ascii_whitespace();
    let device = words.next()?;
    if !device.starts_with('/') {
        return None;
    }
    let (offset, size) = match (words.next(), words.next()) {
        (Some(offset), Some(size)) => (signed(offset)?, u64::from_str_radix(without_0x(size).0, 16).ok()?),
        // A UBI volume knows its own size.
        (None, None) if device.contains("ubi") => (0, 0),
        _ => return None,
    };
    Some(Place { device: device.into(), offset, size })
}

fn without_0x(digits: &str) -> (&str, bool) {
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(rest) => (rest, true),
        None => (digits, false),
    }
}

/// As C reads a number whose base it is to find out.
fn signed(word: &str) -> Option<i64> {
    let (negative, digits) = match word.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, word),
    };
    let radix = match without_0x(digits) {
        (_, true) => 16,
        (octal, false) if octal.len() > 1 && octal.starts_with('0') => 8,
        _ => 10,
    };
    let value = u64::from_str_radix(without_0x(digits).0, radix).ok()?;
    let value = i64::try_from(value).ok()?;
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(device: &str, offset: i64, size: u64) -> Place {
        Place { device: device.into(), offset, size }
    }

    #[test]
    fn two_lines_are_a_redundant_environment_and_one_is_a_single_copy() {
        let two =
            "# comment\n\n/dev/mmcblk0 0x400000 0x4000\n/dev/mmcblk0\t0x408000   4000 # no sector size\n";
        let second = place("/dev/mmcblk0", 0x40_8000, 0x4000);
        assert_eq!(parse(two), Copies::Redundant([place("/dev/mmcblk0", 0x40_0000, 0x4000), second]));
        assert_eq!(parse("/boot/uboot.env 0 0x2000\n"), Copies::Single(place("/boot/uboot.env", 0, 0x2000)));
    }

    #[test]
    fn offsets_are_read_as_c_does() {
        for (word, offset) in [("0x10", 16), ("16", 16), ("020", 16), ("0", 0), ("-0x10", -16)] {
            assert_eq!(
                parse(&format!("/dev/x {word} 10")),
                Copies::Single(place("/dev/x", offset, 16)),
                "{word}"
            );
        }
        assert_eq!(parse("/dev/ubi0:env"), Copies::Single(place("/dev/ubi0:env", 0, 0)));
    }

    #[test]
    fn what_has_another_form_is_unclear_and_says_which_line() {
        for text in
            ["", "# nothing\n", "uboot:\n  size: 0x4000\n", "/dev/x 0x0\n", "/dev/x zero 1\n", "/dev/x 0 -1"]
        {
            let Copies::Unclear(why) = parse(text) else { panic!("{text:?} was understood") };
            assert!(!why.is_empty());
        }
        assert!(matches!(parse("uboot:\n"), Copies::Unclear(why) if why.contains("uboot:")));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in any::<String>(), a in "[ -~]{0,30}", b in "[-0-9a-fx]{0,24}") {
            let _ = parse(&text);
            let _ = parse(&format!("/dev/{a} {b} {b}\n{text}"));
        }

        #[test]
        fn what_is_written_as_usual_is_read(offset in 0..i64::MAX, size in any::<u64>(), lines in 1..4usize) {
            let line = format!("/dev/mtd3 {offset:#x} {size:#x} 0x1000 2\n");
            let expected = place("/dev/mtd3", offset, size);
            let copies = if lines > 1 { Copies::Redundant([expected.clone(), expected]) } else { Copies::Single(expected) };
            prop_assert_eq!(parse(&line.repeat(lines)), copies);
        }
    }
}
