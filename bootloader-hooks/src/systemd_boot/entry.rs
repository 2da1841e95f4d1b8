//! Names and contents of entry files.
//!
//! A name is `STEM[+LEFT[-DONE]].conf`: how often the loader may still try the entry, and how often it did. A content
//! is lines of a key and a value. Ours fill one sector of 512 bytes to the last byte, so that a change is one write
//! that leaves the length as it is, and have their `version` in the last line, so that even half a sector changes
//! nothing else.

use std::borrow::Cow;

/// Bytes of an entry file of ours.
pub(super) const SECTOR: usize = 512;
/// What every entry file ends with.
pub(super) const SUFFIX: &str = ".conf";
/// The version of a set that is not to be booted: below any that does not begin with `~`.
pub(super) const BAD: &str = "~bad";
/// Largest counter that the loader takes for one.
const MAX_TRIES: u32 = i32::MAX as u32;

/// The counter in a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tries {
    pub(super) left: u32,
    pub(super) done: u32,
}

/// Splits `STEM[+LEFT[-DONE]].conf`; what only looks like a counter belongs to the stem. `None` if it does not end in
/// `.conf`.
pub(super) fn split(name: &str) -> Option<(&str, Option<Tries>)> {
    let cut = name.len().checked_sub(SUFFIX.len())?;
    let stem = name.get(..cut).filter(|_| name[cut..].eq_ignore_ascii_case(SUFFIX))?;
    // The loader finds no counter in front of a suffix in capitals.
    let counted = stem.rsplit_once('+').filter(|_| name.ends_with(SUFFIX));
    Some(match counted.and_then(|(short, counter)| Some((short, tries(counter)?))) {
        Some((short, tries)) => (short, Some(tries)),
        None => (stem, None),
    })
}

fn tries(text: &str) -> Option<Tries> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|n| digits && *n <= MAX_TRIES)
    };
    match text.split_once('-') {
        None => Some(Tries { left: number(text)?, done: 0 }),
        Some((left, done)) => Some(Tries { left: number(left)?, done: number(done)? }),
    }
}

/// What the loader renames an entry to when it tries it; `None` without a counter.
pub(super) fn after_a_try(name: &str) -> Option<String> {
    let (stem, Some(tries)) = split(name)? else { return None };
    let done = tries.done.saturating_add(1).min(MAX_TRIES);
    Some(format!("{stem}+{}-{done}{SUFFIX}", tries.left.saturating_sub(1)))
}

/// What of a content decides about the boot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Entry {
    /// There is something to load.
    pub(super) loader: bool,
    pub(super) sort_key: Option<String>,
    pub(super) machine_id: Option<String>,
    pub(super) version: Option<String>,
    pub(super) options: String,
}

/// The lines of a file that the loader reads, as key and value. It stops at the first NUL.
pub(super) fn lines(content: &[u8]) -> Vec<(String, String)> {
    let end = content.iter().position(|b| *b == 0).unwrap_or(content.len());
    let text: Cow<'_, str> = String::from_utf8_lossy(&content[..end]);
    let blank = [' ', '\t'];
    let lines = text.split(['\n', '\r']).map(|line| line.trim_matches(blank));
    let pairs = lines.filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(blank));
    pairs
        .map(|(key, value)| {
            let value = value.trim_start_matches(blank);
            let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
            (key.to_owned(), quoted.unwrap_or(value).to_owned())
        })
        .collect()
}

impl Entry {
    /// Reads a content; anything is one.
    pub(super) fn parse(content: &[u8]) -> Self {
        let mut entry = Self::default();
        for (key, value) in lines(content) {
            match key.as_str() {
                "linux" | "efi" => entry.loader = true,
                "sort-key" => entry.sort_key = Some(value),
                "machine-id" => entry.machine_id = Some(value),
                "version" => entry.version = Some(value),
                "options" if entry.options.is_empty() => entry.options = value,
                "options" => entry.options = format!("{} {value}", entry.options),
                _ => {}
            }
        }
        entry
    }

    /// The version; nothing if there is none.
    pub(super) fn version(&self) -> &str {
        self.version.as_deref().unwrap_or_default()
    }
}

/// The same content with another version, filling a sector. `None` if it does not fit, or is no text.
pub(super) fn with_version(content: &[u8], version: &str) -> Option<[u8; SECTOR]> {
    let end = content.iter().position(|b| *b == 0).unwrap_or(content.len());
    let text = std::str::from_utf8(&content[..end]).ok()?;
    let is_version = |line: &str| line.trim().split([' ', '\t']).next() == Some("version");
    let kept = text.split(['\n', '\r']).filter(|line| !line.trim().is_empty() && !is_version(line));
    let mut lines: Vec<&str> = kept.collect();
    let version = format!("version {version}");
    lines.push(&version);
    let text = lines.join("\n") + "\n";
    let mut sector = [b'\n'; SECTOR];
    sector.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(sector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_split_and_counted_down_as_the_loader_does() {
        let tries = |left, done| Some(Tries { left, done });
        for (name, stem, counter, next) in [
            ("a.conf", "a", None, None),
            ("a+3.conf", "a", tries(3, 0), Some("a+2-1.conf")),
            ("a+3-0.conf", "a", tries(3, 0), Some("a+2-1.conf")),
            ("a+1-2.conf", "a", tries(1, 2), Some("a+0-3.conf")),
            ("a+0-3.conf", "a", tries(0, 3), Some("a+0-4.conf")),
            ("a+0.conf", "a", tries(0, 0), Some("a+0-1.conf")),
            ("a+b+1.conf", "a+b", tries(1, 0), Some("a+b+0-1.conf")),
            ("a+x.conf", "a+x", None, None),
            ("a+.conf", "a+", None, None),
            ("a+1-.conf", "a+1-", None, None),
            ("a++1.conf", "a+", tries(1, 0), Some("a++0-1.conf")),
            ("a+1.CONF", "a+1", None, None),
            ("a+2147483648.conf", "a+2147483648", None, None),
        ] {
            assert_eq!(split(name), Some((stem, counter)), "{name}");
            assert_eq!(after_a_try(name).as_deref(), next, "{name}");
        }
        for name in ["", "conf", "a", "a.con", "a.conf.old", "\u{e4}\u{f6}\u{fc}"] {
            assert_eq!(split(name), None, "{name}");
        }
    }

    #[test]
    fn contents_are_read_as_the_loader_does() {
        let text = "# title x\ntitle\tA b\r\nsort-key  otandem\nversion \"7 \"\nlinux /k\n\n noise\n  options a\noptions b=c\n\0version 9";
        let entry = Entry::parse(text.as_bytes());
        assert!(entry.loader);
        assert_eq!((entry.sort_key.as_deref(), entry.version()), (Some("otandem"), "7 "));
        assert_eq!(entry.options, "a b=c");
        assert_eq!(Entry::parse(b""), Entry::default());
    }

    #[test]
    fn a_new_version_changes_the_version_alone_and_fills_the_sector() {
        let text = "title x\nversion 1\nlinux /k\noptions root=PARTLABEL=root-a\n";
        let sector = with_version(text.as_bytes(), "12").unwrap();
        let wanted = Entry { version: Some("12".into()), ..Entry::parse(text.as_bytes()) };
        assert_eq!(Entry::parse(&sector), wanted);
        assert_eq!(with_version(&sector, "12"), Some(sector), "doing it again changes nothing");
        let long = format!("linux /k\noptions {}\n", "x".repeat(SECTOR));
        assert_eq!(with_version(long.as_bytes(), "1"), None);
    }

    #[test]
    fn a_torn_sector_is_an_entry_with_some_version() {
        let text = "title x\nlinux /k\nsort-key s\nversion 9\noptions otandem.set=A\n";
        let old = with_version(text.as_bytes(), "41").unwrap();
        let new = with_version(text.as_bytes(), BAD).unwrap();
        for cut in 0..SECTOR {
            let torn = [&new[..cut], &old[cut..]].concat();
            let entry = Entry::parse(&torn);
            assert_eq!(
                Entry { version: None, ..entry },
                Entry { version: None, ..Entry::parse(&old) },
                "{cut}"
            );
        }
    }

    proptest! {
        #[test]
        fn nothing_from_outside_makes_a_panic(name: String, content: Vec<u8>, counter in "[0-9+-]{0,12}", version in "[0-9a-z~]{1,9}") {
            for name in [name, format!("a+{counter}.conf")] {
                if let Some((stem, _)) = split(&name) {
                    prop_assert!(name.starts_with(stem));
                }
                if let Some(next) = after_a_try(&name) {
                    prop_assert!(matches!(split(&next), Some((_, Some(_)))), "{}", next);
                }
            }
            Entry::parse(&content);
            if let Some(sector) = with_version(&content, &version) {
                let entry = Entry::parse(&sector);
                prop_assert_eq!(entry.version(), version);
            }
        }
    }
}
