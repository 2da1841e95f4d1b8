//! What systemd-boot does at a reset, as a pure function of what lies on its partitions. Behaviour of version 252,
//! checked against the real one.
//!
//! It reads the entries of the ESP and of XBOOTLDR and sorts them: exhausted ones (`+0`) last; then by `sort-key`,
//! `machine-id`, `version` (newest first) and file name. It takes the first that `LoaderEntryOneShot` (once), else
//! `LoaderEntryDefault`, else the `default` of `loader.conf` matches, else the first of all. Before it loads an entry
//! with a counter it renames it, an exhausted one too. When it cannot load the kernel it gives up; what comes next
//! (`startup.nsh`, the firmware, a watchdog) is taken to be a reset.
//!
//! Not modelled: an entry whose kernel *file* does not exist is no entry at all (leave it out of `files`), unified
//! kernels in `EFI/Linux`, `architecture` lines, and `@saved`.

use std::cmp::Ordering;

use otandem_core::boot::SetId;
use otandem_device::machine::cmdline_values;

use super::entry::{Entry, after_a_try, lines, split};
use super::order;
use crate::BootNames;

/// What the file names of our entries begin with.
pub(super) const PREFIX: &str = "otandem-";

/// Resets that are followed. A counter in a file name can say two thousand million; no set is waited for that long.
const MAX_RESETS: usize = 256;

/// A partition that the loader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Partition {
    /// The one that the firmware starts the loader from.
    Esp,
    /// The extended boot loader partition.
    Xbootldr,
}

/// One file of `loader/entries`, in the order of its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryFile {
    /// Where it lies; its kernel lies there too.
    pub partition: Partition,
    /// Its name, without directory.
    pub name: String,
    /// All of it.
    pub content: Vec<u8>,
}

/// One entry that the loader tried to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// Where it lies.
    pub partition: Partition,
    /// Its name before it was counted.
    pub name: String,
    /// The set that it loads; `None` if it is not one of ours.
    pub set: Option<SetId>,
}

/// A file that the loader renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    /// Where it lies.
    pub partition: Partition,
    /// Its name before.
    pub from: String,
    /// Its name after.
    pub to: String,
}

/// What happens from a reset on until a set runs, or nothing changes any more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// All entries that were tried, each but the first after a reset.
    pub tried: Vec<Tried>,
    /// The set that runs at the end; `None`: nothing to load, the same one fails for ever or hundreds of times, or it is
    /// not ours.
    pub booted: Option<SetId>,
    /// What the loader changed on the way.
    pub renames: Vec<Rename>,
}

/// What happens with sets that are called A and B. `oneshot` is `LoaderEntryOneShot`; `loadable` says whether the
/// kernel of a set is one.
#[must_use]
pub fn decide(
    files: &[EntryFile],
    loader_conf: &str,
    oneshot: Option<&str>,
    loadable: impl Fn(SetId) -> bool,
) -> Decision {
    decide_named(&BootNames::default(), files, loader_conf, Variables { oneshot, default: None }, loadable)
}

/// The variables of the firmware that the loader heeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Variables<'a> {
    /// `LoaderEntryOneShot`: for one boot.
    pub oneshot: Option<&'a str>,
    /// `LoaderEntryDefault`: overrules `loader.conf`.
    pub default: Option<&'a str>,
}

/// [`decide`] for sets of any name.
#[must_use]
pub fn decide_named(
    names: &BootNames,
    files: &[EntryFile],
    loader_conf: &str,
    variables: Variables<'_>,
    loadable: impl Fn(SetId) -> bool,
) -> Decision {
    let mut files = files.to_vec();
    let mut decision = Decision::default();
    let conf = default_pattern(loader_conf);
    let mut oneshot = variables.oneshot;
    loop {
        let listed = listed(&files);
        let once = oneshot.take();
        let Some(at) = choose(&listed, &[once, variables.default, conf.as_deref()]) else { return decision };
        let EntryFile { partition, name, .. } = files[at].clone();
        let set = set_of(names, &files[at]);
        let left = split(&name).and_then(|(_, tries)| tries).map_or(0, |tries| tries.left);
        decision.tried.push(Tried { partition, name: name.clone(), set });
        if let Some(to) = after_a_try(&name) {
            files[at].name.clone_from(&to);
            decision.renames.push(Rename { partition, from: name, to });
        }
        match set {
            Some(set) if loadable(set) => {
                decision.booted = Some(set);
                return decision;
            }
            // After the reset there is one try or the one-shot less, so it may be another one's turn.
            Some(_) if (left > 0 || once.is_some()) && decision.tried.len() < MAX_RESETS => {}
            _ => return decision,
        }
    }
}

/// An entry as the loader lists it.
pub(super) struct Listed {
    /// Index of the file.
    pub(super) file: usize,
    id: String,
    left: Option<u32>,
    done: u32,
    entry: Entry,
}

/// The entries in the loader's order.
pub(super) fn listed(files: &[EntryFile]) -> Vec<Listed> {
    let mut sorted: Vec<Listed> = Vec::new();
    // All of the ESP are read first.
    for partition in [Partition::Esp, Partition::Xbootldr] {
        for (file, f) in files.iter().enumerate().filter(|(_, f)| f.partition == partition) {
            let Some(new) = list(file, f) else { continue };
            // Not a library's sort: the loader's order is not total where names are equal.
            let behind = sorted.iter().rposition(|old| compare(old, &new) != Ordering::Greater);
            sorted.insert(behind.map_or(0, |i| i + 1), new);
        }
    }
    sorted
}

fn list(file: usize, f: &EntryFile) -> Option<Listed> {
    let (_, tries) = split(&f.name)?;
    let entry = Entry::parse(&f.content);
    let hidden = f.name.starts_with('.') || f.name.starts_with("auto-") || !entry.loader;
    let listed = Listed {
        file,
        id: f.name.to_lowercase(),
        left: tries.map(|t| t.left),
        done: tries.map_or(0, |t| t.done),
        entry,
    };
    (!hidden).then_some(listed)
}

/// Less is tried first.
fn compare(a: &Listed, b: &Listed) -> Ordering {
    let exhausted = |l: &Listed| l.left == Some(0);
    let keyed = |l: &Listed| l.entry.sort_key.is_none();
    let order = exhausted(a).cmp(&exhausted(b)).then(keyed(a).cmp(&keyed(b)));
    let by_key = || {
        let (a, b) = (&a.entry, &b.entry);
        let keys = a.sort_key.cmp(&b.sort_key).then_with(|| a.machine_id.cmp(&b.machine_id));
        keys.then_with(|| order::compare(b.version(), a.version()))
    };
    let order = if a.entry.sort_key.is_some() && b.entry.sort_key.is_some() {
        order.then_with(by_key)
    } else {
        order
    };
    order.then_with(|| order::compare(&b.id, &a.id)).then_with(|| match (a.left, b.left) {
        (Some(left_a), Some(left_b)) => left_b.cmp(&left_a).then(a.done.cmp(&b.done)),
        _ => Ordering::Equal,
    })
}

/// The index of the file that is booted, given patterns by rank.
fn choose(listed: &[Listed], patterns: &[Option<&str>]) -> Option<usize> {
    let find = |pattern: &&str| {
        let pattern = pattern.to_lowercase();
        listed.iter().find(|l| order::matches(&pattern, &l.id))
    };
    let found = patterns.iter().flatten().find_map(find);
    found.or_else(|| listed.first()).map(|l| l.file)
}

/// The `default` of a `loader.conf`.
pub(super) fn default_pattern(loader_conf: &str) -> Option<String> {
    let values = lines(loader_conf.as_bytes()).into_iter().filter(|(key, _)| key == "default");
    values.map(|(_, value)| value).rfind(|value| !value.starts_with('@'))
}

/// The set that an entry loads: what its kernel is told, else what its name says.
pub(super) fn set_of(names: &BootNames, file: &EntryFile) -> Option<SetId> {
    let options = Entry::parse(&file.content).options;
    match cmdline_values(&options, "otandem.set").last() {
        Some(told) => told.parse().ok().or_else(|| names.set(told)),
        None => set_named(names, &file.name),
    }
}

/// The set whose entry has this file name.
pub(super) fn set_named(names: &BootNames, name: &str) -> Option<SetId> {
    let (found, _) = split(name)?;
    SetId::BOTH.into_iter().find(|set| found.eq_ignore_ascii_case(&stem(names, *set)))
}

/// What the file name of a set's entry begins with.
pub(super) fn stem(names: &BootNames, set: SetId) -> String {
    format!("{PREFIX}{}", names.name(set).to_lowercase())
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
