//! Facts of the running machine: its clock, the kernel command line, and which block device lies under `/`.
//!
//! Devices are compared by major:minor alone. Labels and UUIDs are useless here, since two slots that hold the same
//! image share them. The parsers are pure; the few functions that read `/proc` and `/sys` only feed them.

use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::sys::stat::{major, minor};
use nix::time::{ClockId, clock_gettime};
use otandem_core::time::Boottime;

/// Levels of device-mapper below a device that are followed; more is a loop in a broken sysfs.
const MAX_DEPTH: usize = 8;

/// A kernel file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Reading failed.
    #[error("cannot read {path}: {source}; is it mounted?", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was read makes no sense.
    #[error("{path} holds nothing usable: {why}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is missing in it.
        why: &'static str,
    },
}

/// A block device by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dev {
    /// The driver's number; 0 = no block device under this file system.
    pub major: u64,
    /// The driver's own numbering.
    pub minor: u64,
}

impl Dev {
    /// From `st_dev` or `st_rdev`.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self { major: major(raw), minor: minor(raw) }
    }
}

impl fmt::Display for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The text is not `major:minor`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a device number such as 179:2")]
pub struct NotADevice(String);

impl FromStr for Dev {
    type Err = NotADevice;
    fn from_str(s: &str) -> Result<Self, NotADevice> {
        s.trim()
            .split_once(':')
            .and_then(|(a, b)| Some(Self { major: a.parse().ok()?, minor: b.parse().ok()? }))
            .ok_or_else(|| NotADevice(s.chars().take(32).collect()))
    }
}

/// `CLOCK_BOOTTIME`: the `now` of the update machine.
#[must_use]
pub fn now() -> Boottime {
    // The clock exists since Linux 2.6.39 and reading it has no other way to fail.
    Boottime(clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from))
}

/// Local time of the day in whole minutes; 0 where the clock cannot be read.
#[must_use]
pub fn local_minute() -> u16 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |t| t.tv_sec());
    // SAFETY: both pointers are to live values of the right type, and `localtime_r` keeps neither.
    let tm = unsafe {
        let mut tm = std::mem::zeroed::<nix::libc::tm>();
        if nix::libc::localtime_r(&raw const now, &raw mut tm).is_null() {
            return 0;
        }
        tm
    };
    u16::try_from(tm.tm_hour * 60 + tm.tm_min).unwrap_or(0)
}

/// The kernel's identity of this boot.
///
/// # Errors
/// `/proc` is not there.
pub fn boot_id() -> Result<String, MachineError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let id = read(path)?.trim().to_owned();
    if id.is_empty() {
        return Err(MachineError::Content { path: path.into(), why: "it is empty" });
    }
    Ok(id)
}

/// The kernel command line, as it is.
///
/// # Errors
/// `/proc` is not there.
pub fn cmdline() -> Result<String, MachineError> {
    Ok(read(Path::new("/proc/cmdline"))?.trim_end_matches('\n').to_owned())
}

/// All values of `key=value` in a kernel command line, in their order and without quotes; a bare `key` counts as an
/// empty value.
#[must_use]
pub fn cmdline_values(cmdline: &str, key: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in cmdline.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => words.push(String::new()),
            c => {
                if let Some(word) = words.last_mut() {
                    word.push(c);
                }
            }
        }
    }
    words
        .iter()
        .filter_map(|word| match word.split_once('=') {
            Some((k, value)) => (k == key).then(|| value.to_owned()),
            None => (word == key).then(String::new),
        })
        .collect()
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Number of the file system; major 0 where no single block device lies under it.
    pub dev: Dev,
    /// Where it is mounted.
    pub at: PathBuf,
    /// Type of the file system.
    pub fs: String,
    /// What was mounted: often a device node, which need not exist any more.
    pub source: PathBuf,
    /// Options of the file system itself.
    pub options: String,
}

impl Mount {
    /// Directories below an overlay, from top to bottom; empty for other file systems.
    #[must_use]
    pub fn lower_dirs(&self) -> Vec<PathBuf> {
        if self.fs != "overlay" {
            return Vec::new();
        }
        let values = self
            .options
            .split(',')
            .filter_map(|o| o.strip_prefix("lowerdir=").or_else(|| o.strip_prefix("lowerdir+=")));
        values.flat_map(split_colons).filter(|p| !p.is_empty()).map(PathBuf::from).collect()
    }
}

/// Splits at `:`, where `\:` is a colon in a name.
fn split_colons(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            ':' => {
                parts.push(String::new());
                continue;
            }
            '\\' => chars.next().unwrap_or('\\'),
            c => c,
        };
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

/// The mounts of a `mountinfo` text; lines that make no sense are left out.
#[must_use]
pub fn parse_mountinfo(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let mut right = right.split(' ');
    Some(Mount {
        dev: left.get(2)?.parse().ok()?,
        at: text(left.get(4)?).into(),
        fs: right.next()?.to_owned(),
        source: text(right.next()?).into(),
        options: right.next().map(text).unwrap_or_default(),
    })
}

fn text(escaped: &str) -> String {
    String::from_utf8_lossy(&unescape(escaped.as_bytes())).into_owned()
}

/// Undoes the `\040` that the kernel writes for bytes which would break its lists.
pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| first == b'\\' && d.iter().all(|d| (b'0'..=b'7').contains(d)));
        let value = octal.map(|d| d.iter().fold(0u32, |n, d| n * 8 + u32::from(d - b'0')));
        match value.and_then(|v| u8::try_from(v).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// The mount on which `path` lies: the deepest, and of those the last, which hides the earlier ones.
#[must_use]
pub fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().filter(|m| path.starts_with(&m.at)).max_by_key(|m| m.at.components().count())
}

/// The block device under `path` and all devices that it is made of (device-mapper), itself first. Empty where
/// no block device can be named: network, memory, an overlay.
///
/// # Errors
/// `path` or `/proc` cannot be read.
pub fn devices_of(path: &Path) -> Result<Vec<Dev>, MachineError> {
    let real = path.canonicalize().map_err(|source| MachineError::Read { path: path.into(), source })?;
    Ok(device_in(&mounts()?, &real).map_or_else(Vec::new, |dev| chain(Path::new("/sys"), dev)))
}

/// The devices under `/`, as [`devices_of`]; through an overlay those of its lower directories, since that is where
/// the image lies.
///
/// # Errors
/// `/proc` cannot be read.
pub fn root_devices() -> Result<Vec<Dev>, MachineError> {
    let mounts = mounts()?;
    let root = Path::new("/");
    let lower = mount_of(&mounts, root).map(Mount::lower_dirs).unwrap_or_default();
    let dirs = if lower.is_empty() { vec![root.to_owned()] } else { lower };
    // A lower directory named in the initramfs may not exist here any more: then nothing is known of it.
    let devs = dirs.iter().filter_map(|d| device_in(&mounts, &d.canonicalize().ok()?));
    Ok(devs.flat_map(|dev| chain(Path::new("/sys"), dev)).collect())
}

/// The number of the block device node at `path`, symbolic links followed; `None` if it is no block device.
#[must_use]
pub fn block_device(path: &Path) -> Option<Dev> {
    let meta = std::fs::metadata(path).ok()?;
    meta.file_type().is_block_device().then(|| Dev::from_raw(meta.rdev()))
}

fn mounts() -> Result<Vec<Mount>, MachineError> {
    Ok(parse_mountinfo(&read(Path::new("/proc/self/mountinfo"))?))
}

fn device_in(mounts: &[Mount], real: &Path) -> Option<Dev> {
    let mount = mount_of(mounts, real)?;
    if mount.dev.major != 0 {
        return Some(mount.dev);
    }
    // btrfs and friends number each mount by themselves; what was mounted still names the device.
    block_device(&mount.source)
}

/// `dev` and, level by level, what device-mapper built it from.
fn chain(sys: &Path, dev: Dev) -> Vec<Dev> {
    let mut found = vec![dev];
    let mut level = vec![dev];
    for _ in 0..MAX_DEPTH {
        level = level.iter().flat_map(|d| slaves(sys, *d)).filter(|d| !found.contains(d)).collect();
        if level.is_empty() {
            break;
        }
        found.extend(&level);
    }
    found
}

fn slaves(sys: &Path, dev: Dev) -> Vec<Dev> {
    let Ok(entries) = std::fs::read_dir(sys.join("dev/block").join(dev.to_string()).join("slaves")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("dev")).ok()?.parse().ok())
        .collect()
}

fn read(path: &Path) -> Result<String, MachineError> {
    let bytes = std::fs::read(path).map_err(|source| MachineError::Read { path: path.into(), source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: &str = "22 1 179:2 / / ro,relatime shared:1 - ext4 /dev/root ro\n\
                         23 22 0:5 / /dev rw - devtmpfs devtmpfs rw\n\
                         30 22 179:5 / /data rw shared:3 master:2 - ext4 /dev/mmcblk0p5 rw\n\
                         31 30 179:6 / /data/with\\040space rw - vfat /dev/mmcblk0p6 rw\n";

    #[test]
    fn command_line_values_come_with_quotes_removed_and_in_order() {
        let line = "console=ttyS0 otandem.set=A \"rauc.slot=a b\" x=\"c d\" quiet otandem.set=B\n";
        assert_eq!(cmdline_values(line, "otandem.set"), ["A", "B"]);
        assert_eq!(cmdline_values(line, "rauc.slot"), ["a b"]);
        assert_eq!(cmdline_values(line, "x"), ["c d"]);
        assert_eq!(cmdline_values(line, "quiet"), [""]);
        assert!(cmdline_values(line, "otandem").is_empty());
    }

    #[test]
    fn a_path_belongs_to_the_deepest_and_last_mount() {
        let mounts = parse_mountinfo(&format!("{PLAIN}40 22 8:1 / /data rw - ext4 /dev/sda1 rw\n"));
        let dev = |path: &str| mount_of(&mounts, Path::new(path)).unwrap().dev.to_string();
        assert_eq!(dev("/"), "179:2");
        assert_eq!(dev("/data/with space/x"), "179:6");
        assert_eq!(dev("/data/otandem"), "8:1");
        assert_eq!(dev("/database"), "179:2");
    }

    #[test]
    fn an_overlay_names_its_lower_directories() {
        let line =
            "22 1 0:30 / / rw - overlay overlay rw,lowerdir=/run/a\\134:b:/run/base,upperdir=/run/up\n";
        let mounts = parse_mountinfo(line);
        assert_eq!(mounts[0].lower_dirs(), [Path::new("/run/a:b"), Path::new("/run/base")]);
        assert!(parse_mountinfo(PLAIN)[0].lower_dirs().is_empty());
    }

    #[test]
    fn devices_below_device_mapper_are_found_and_a_loop_ends() {
        let sys = tempfile::tempdir().unwrap();
        let slave = |of: &str, name: &str, dev: &str| {
            let dir = sys.path().join("dev/block").join(of).join("slaves").join(name);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("dev"), format!("{dev}\n")).unwrap();
        };
        slave("253:1", "dm-0", "253:0");
        slave("253:0", "sda2", "8:2");
        slave("8:2", "dm-1", "253:1");
        let names: Vec<String> =
            chain(sys.path(), "253:1".parse().unwrap()).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["253:1", "253:0", "8:2"]);
    }

    #[test]
    fn this_machine_can_be_read() {
        assert_eq!(boot_id().unwrap().len(), 36);
        assert!(now() > Boottime::default());
        cmdline().unwrap();
        root_devices().unwrap();
        assert_eq!(devices_of(Path::new("/proc")).unwrap(), []);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in any::<String>(), bits in "[\\\\0-9:=\", a/-]{0,60}") {
            for t in [&text, &bits] {
                let _ = cmdline_values(t, "otandem.set");
                let _ = parse_mountinfo(t);
                split_colons(t);
                unescape(t.as_bytes());
                let _ = t.parse::<Dev>();
            }
        }

        #[test]
        fn a_mount_line_of_any_fields_never_panics(fields in proptest::collection::vec("[0-9:/\\\\a]{0,5}", 0..9)) {
            let line = format!("{} - {}", fields.join(" "), fields.join(" "));
            for mount in parse_mountinfo(&line) {
                let _ = mount.lower_dirs();
            }
        }
    }
}
