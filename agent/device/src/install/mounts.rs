//! Which block devices must not be written because something uses them. A pure function of what the kernel says;
//! [`super::machine`] reads it.
//!
//! In use is what is mounted or swapped to, what lies below it (slaves of device-mapper and RAID, the lower and
//! upper directory of an overlay), a disk one of whose partitions is in use, and a partition of a disk that is in
//! use as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use otandem_core::gather::Gather as _;

use crate::machine::{self, Dev};

/// One block device, as `/sys/dev/block` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) number: Dev,
    /// The disk that it is a partition of.
    pub(crate) parent: Option<Dev>,
    /// What it is made of: device-mapper, RAID.
    pub(crate) slaves: Vec<Dev>,
    /// The file behind a loop device.
    pub(crate) backing: Option<PathBuf>,
}

/// What the kernel says, unread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    /// `/proc/self/mountinfo`.
    pub(crate) mountinfo: Vec<u8>,
    /// `/proc/swaps`.
    pub(crate) swaps: Vec<u8>,
    pub(crate) devices: Vec<Device>,
    /// Device nodes named as the source of a mount or of swap.
    pub(crate) nodes: BTreeMap<PathBuf, Dev>,
}

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    device: Dev,
    point: PathBuf,
    source: PathBuf,
    /// `lowerdir`, `upperdir`, `workdir` of an overlay.
    layers: Vec<PathBuf>,
}

/// What is in use, and why.
#[derive(Debug, Default)]
pub(crate) struct InUse {
    devices: BTreeMap<Dev, Device>,
    used: BTreeMap<Dev, String>,
    swap_files: Vec<PathBuf>,
    /// The disks below `/`; empty if they cannot be told.
    root_disks: BTreeSet<Dev>,
}

impl InUse {
    pub(crate) fn new(evidence: Evidence) -> Self {
        let mounts: Vec<Mount> = lines(&evidence.mountinfo).filter_map(parse_mount).collect();
        let devices: BTreeMap<_, _> = evidence.devices.into_iter().map(|d| (d.number, d)).gather();
        let mut all = Self { devices, ..Self::default() };
        for mount in &mounts {
            let below = below(mount, &mounts, &evidence.nodes);
            let point = mount.point.display();
            for device in all.parts(&below, &mounts, &evidence.nodes) {
                let why = if below.contains(&device) {
                    format!("it is mounted at {point}")
                } else {
                    format!("what is mounted at {point} lies on it")
                };
                all.used.entry(device).or_insert(why);
            }
        }
        for swap in swaps(&evidence.swaps) {
            match evidence.nodes.get(&swap) {
                Some(device) => {
                    for part in all.parts(&[*device].into_iter().gather(), &mounts, &evidence.nodes) {
                        all.used.entry(part).or_insert_with(|| "it is used as swap".to_owned());
                    }
                }
                None => all.swap_files.push(swap),
            }
        }
        // The last mount on a place is the one that is seen.
        if let Some(root) = mounts.iter().rev().find(|m| m.point == Path::new("/")) {
            let below = below(root, &mounts, &evidence.nodes);
            let parts = all.parts(&below, &mounts, &evidence.nodes);
            all.root_disks = parts.into_iter().map(|d| all.disk(d)).gather();
            // Of a stack only the bottom is a disk: what has parts of its own is not.
            let stacked =
                |d: &Dev| all.devices.get(d).is_some_and(|d| !d.slaves.is_empty() || d.backing.is_some());
            all.root_disks = all.root_disks.iter().copied().filter(|d| !stacked(d)).gather();
        }
        all
    }

    /// Why `target` must not be written; `None` if nothing uses it.
    pub(crate) fn refusal(&self, target: Dev) -> Option<String> {
        if let Some(why) = self.used.get(&target) {
            return Some(why.clone());
        }
        for (device, why) in &self.used {
            if self.above(*device).contains(&target) {
                return Some(format!("of a partition of it: {why}"));
            }
            if self.above(target).contains(device) {
                return Some(format!("of its whole disk: {why}"));
            }
        }
        None
    }

    /// Whether writing one changes bytes of the other.
    pub(crate) fn overlap(&self, a: Dev, b: Dev) -> bool {
        let below = |d| self.parts(&[d].into_iter().gather(), &[], &BTreeMap::new());
        let (a, b) = (below(a), below(b));
        a.iter().any(|a| b.iter().any(|b| a == b || self.above(*a).contains(b) || self.above(*b).contains(a)))
    }

    /// Whether all of `target` is on the disks of `/`.
    pub(crate) fn beside_root(&self, target: Dev) -> bool {
        let parts = self.parts(&[target].into_iter().gather(), &[], &BTreeMap::new());
        let bottom = |d: &Dev| self.devices.get(d).is_none_or(|d| d.slaves.is_empty());
        let mut disks = parts.iter().filter(|d| bottom(d)).map(|d| self.disk(*d)).peekable();
        disks.peek().is_some() && disks.all(|d| self.root_disks.contains(&d))
    }

    /// Whether `file` is used as swap or lies behind a loop device in use.
    pub(crate) fn file_refusal(&self, file: &Path) -> Option<String> {
        if self.swap_files.iter().any(|s| s == file) {
            return Some("it is used as swap".to_owned());
        }
        let behind = |d: &&Device| d.backing.as_deref() == Some(file);
        self.devices.values().filter(behind).find_map(|d| self.refusal(d.number))
    }

    /// The disks and partitions that `device` is a partition of.
    fn above(&self, device: Dev) -> Vec<Dev> {
        let mut above = Vec::new();
        let mut at = device;
        while let Some(parent) = self.devices.get(&at).and_then(|d| d.parent) {
            if above.contains(&parent) {
                break;
            }
            above.push(parent);
            at = parent;
        }
        above
    }

    fn disk(&self, device: Dev) -> Dev {
        self.above(device).last().copied().unwrap_or(device)
    }

    /// `devices` and everything that they are made of.
    fn parts(
        &self,
        devices: &BTreeSet<Dev>,
        mounts: &[Mount],
        nodes: &BTreeMap<PathBuf, Dev>,
    ) -> BTreeSet<Dev> {
        let mut seen = BTreeSet::new();
        let mut todo: Vec<Dev> = devices.iter().copied().collect();
        while let Some(number) = todo.pop() {
            if !seen.insert(number) {
                continue;
            }
            // A partition of a RAID or mapped disk is made of what the disk is made of.
            let whole = std::iter::once(number).chain(self.above(number));
            for device in whole.filter_map(|n| self.devices.get(&n)) {
                todo.extend(&device.slaves);
                let holder = device.backing.as_deref().and_then(|file| holder(file, mounts));
                todo.extend(holder.map(|m| below(m, mounts, nodes)).unwrap_or_default());
            }
        }
        seen
    }
}

/// The devices directly below a mount, through overlays.
fn below(mount: &Mount, mounts: &[Mount], nodes: &BTreeMap<PathBuf, Dev>) -> BTreeSet<Dev> {
    let mut found = BTreeSet::new();
    let (mut todo, mut seen) = (vec![mount], BTreeSet::new());
    while let Some(mount) = todo.pop() {
        if !seen.insert((&mount.point, &mount.layers)) {
            continue;
        }
        if mount.device.major != 0 {
            found.insert(mount.device);
        }
        // btrfs and some others have a number of their own, and name the device.
        found.extend(nodes.get(&mount.source));
        todo.extend(mount.layers.iter().filter_map(|layer| {
            // The overlay itself may hide what its layers are on.
            holder_but(layer, mounts, Some(mount))
        }));
    }
    found
}

/// The mount that `path` is on.
fn holder<'a>(path: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
    holder_but(path, mounts, None)
}

fn holder_but<'a>(path: &Path, mounts: &'a [Mount], but: Option<&Mount>) -> Option<&'a Mount> {
    let candidates = mounts.iter().filter(|m| path.starts_with(&m.point) && but != Some(*m));
    // Of equal length the later one covers the earlier one.
    candidates.max_by_key(|m| m.point.components().count())
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n').filter(|line| !line.is_empty())
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|b| *b == b' ');
    let device = std::str::from_utf8(words.nth(2)?).ok()?.parse().ok()?;
    let point = unescape(words.nth(1)?);
    let mut rest = words.skip_while(|w| *w != b"-").skip(1);
    let kind = rest.next()?;
    let source = unescape(rest.next()?);
    let options = rest.next().unwrap_or_default();
    let layers = if kind == b"overlay" || kind == b"aufs" { layers(options) } else { Vec::new() };
    Some(Mount { device, point, source, layers })
}

/// The directories of an overlay. A `:` inside of a name is written as `\:`, but no such name matters: what is cut
/// there finds the same mount or a directory further up.
fn layers(options: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for option in options.split(|b| *b == b',') {
        for key in [&b"lowerdir="[..], b"lowerdir+=", b"datadir+=", b"upperdir=", b"workdir="] {
            if let Some(value) = option.strip_prefix(key) {
                found.extend(value.split(|b| *b == b':').filter(|v| !v.is_empty()).map(unescape));
            }
        }
    }
    found
}

/// The names in `/proc/swaps`, below its heading.
pub(crate) fn swaps(text: &[u8]) -> Vec<PathBuf> {
    let first = |line: &[u8]| line.split(|b| b.is_ascii_whitespace()).next().map(unescape);
    lines(text).skip(1).filter_map(first).filter(|p| p.is_absolute()).collect()
}

/// The sources of all mounts that look like device nodes.
pub(crate) fn sources(mountinfo: &[u8]) -> Vec<PathBuf> {
    lines(mountinfo).filter_map(parse_mount).map(|m| m.source).filter(|s| s.starts_with("/dev")).collect()
}

fn unescape(text: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(machine::unescape(text)))
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
