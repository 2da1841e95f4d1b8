//! systemd-boot, by what it does itself: boot counting in file names, and the order of versions.
//!
//! Each set has one entry file, `otandem-NAME[+LEFT[-DONE]].conf` (NAME in lower case), in the directory
//! `loader/entries` of its own partition (ESP and XBOOTLDR), or both in that of the ESP, which is weaker: see the README
//! in `systemd-boot/`. The loader counts LEFT down and DONE up by a rename before every try; it sorts what is exhausted
//! last, and of the others the newest `version` first. So the `version` is the number of the arming, not that of the
//! software: a downgrade has to be chosen, too.
//!
//! | file of a set | its version | state |
//! |---|---|---|
//! | `otandem-x.conf` | a number | Good |
//! | `otandem-x+N.conf`, N > 0 | above the other's | Untried |
//! | `otandem-x+N-D.conf`, D > 0 | above the other's | Tried; exhausted with N = 0 |
//! | `otandem-x+0.conf` | `~bad`, below any | Bad: behind the other one even where counters are not heeded |
//! | none, empty, or another set's | | Bad; `arm`, `keep` and `confirm` make it anew from `otandem-x.template` |
//! | more than one | | that of the one which the loader tries first; the others are put aside by the next change |
//!
//! The primary set is what [`model::decide`] boots. What is done:
//!
//! | call | on the file of the set | after |
//! |---|---|---|
//! | `mark_bad` | version `~bad`, then named `+0` | |
//! | `arm` | as `mark_bad`; then a version above all (still exhausted), then named `+N`; last, `LoaderEntryOneShot` | the running set's file has no counter |
//! | `keep` | named without a counter | |
//! | `confirm` | a version above the other's if it is not, then named without a counter | |
//!
//! So only the file of one set changes while the other one's is as it was, each step is a sector or a rename, and
//! whatever a power cut leaves of a step, a complete set is booted. `LoaderEntryOneShot` is an addition for loaders in
//! which something else is set as default for good; it names the file with its counter, so a set that was marked bad
//! is not what it names any more, and without efivarfs nothing is missing.

mod dir;
mod efivars;
mod entry;
pub mod model;
mod order;

use std::cmp::Ordering;
use std::path::PathBuf;

use dir::{EntryDir, FatDir};
use efivars::EfiVars;
use entry::{BAD, Entry, SECTOR, SUFFIX, Tries, split, with_version};
use model::{EntryFile, Partition, Variables, decide_named, set_of, stem};
use otandem_core::boot::{Facts, SetId, SetState};

use crate::booted::{Seen, Verdict, combine};
use crate::{BootControl, BootError, Config, View};

/// Names under which files that are in the way are put aside.
const MAX_ASIDE: u32 = 99;
const ONE_SHOT: &str = "LoaderEntryOneShot";
const DEFAULT: &str = "LoaderEntryDefault";
/// What the loader says about itself and this boot, for people.
const TOLD: [&str; 2] = ["LoaderEntrySelected", "LoaderBootCountPath"];

/// Where the files of the loader are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// The directory `loader/entries` with the entry of set A, and that with the entry of set B; may be the same.
    pub entries: [PathBuf; 2],
    /// `/sys/firmware/efi/efivars`; may be missing or read-only.
    pub efivars: PathBuf,
}

/// A device with systemd-boot.
pub struct SystemdBoot {
    dirs: [Box<dyn EntryDir>; 2],
    /// Both sets share a directory.
    shared: bool,
    vars: EfiVars,
    config: Config,
    seen: Seen,
}

/// A file of a set that the loader takes for an entry.
struct OwnFile {
    name: String,
    tries: Option<Tries>,
    content: Vec<u8>,
    version: String,
}

const fn index(set: SetId) -> usize {
    match set {
        SetId::A => 0,
        SetId::B => 1,
    }
}

impl SystemdBoot {
    /// A back end for these directories, which need not be mounted yet.
    ///
    /// # Errors
    /// A path is not absolute, or the names of the sets differ in nothing that FAT keeps apart.
    pub fn open(setup: Setup, config: Config, seen: Seen) -> Result<Self, BootError> {
        for path in setup.entries.iter().chain([&setup.efivars]) {
            if !path.is_absolute() {
                return Err(BootError::Config(format!("{path:?} must be an absolute path")));
            }
        }
        if stem(&config.names, SetId::A) == stem(&config.names, SetId::B) {
            let why = "boot-names that differ in capitals only are one file on FAT: use others";
            return Err(BootError::Config(why.into()));
        }
        let shared = setup.entries[0] == setup.entries[1];
        let dirs = setup.entries.map(|path| Box::new(FatDir::new(path)) as Box<dyn EntryDir>);
        Ok(Self { dirs, shared, vars: EfiVars::new(setup.efivars), config, seen })
    }

    fn booted(&self) -> Verdict {
        combine(&self.seen.claims(&self.config.names))
    }

    fn dir(&self, set: SetId) -> &dyn EntryDir {
        &*self.dirs[index(set)]
    }

    fn name(&self, set: SetId, counter: &str) -> String {
        format!("{}{counter}{SUFFIX}", stem(&self.config.names, set))
    }

    /// All entry files of both directories. Set A's stands for the ESP: it makes no difference to our own entries.
    fn files(&self) -> Result<Vec<EntryFile>, BootError> {
        let mut files = Vec::new();
        for (dir, partition) in self.dirs.iter().zip([Partition::Esp, Partition::Xbootldr]) {
            if self.shared && partition == Partition::Xbootldr {
                break;
            }
            let file = |(name, content)| EntryFile { partition, name, content };
            files.extend(dir.list()?.into_iter().map(file));
        }
        Ok(files)
    }

    /// The entry files of `set`, in the order in which the loader tries them.
    fn own(&self, set: SetId) -> Result<Vec<OwnFile>, BootError> {
        let (files, names) = (self.files()?, &self.config.names);
        let at = if self.shared || set == SetId::A { Partition::Esp } else { Partition::Xbootldr };
        let listed = model::listed(&files).into_iter().map(|l| &files[l.file]);
        let own = listed.filter(|f| {
            f.partition == at
                && model::set_named(names, &f.name) == Some(set)
                && set_of(names, f) == Some(set)
        });
        let own = own.map(|f| OwnFile {
            name: f.name.clone(),
            tries: split(&f.name).and_then(|(_, tries)| tries),
            content: f.content.clone(),
            version: Entry::parse(&f.content).version().to_owned(),
        });
        Ok(own.collect())
    }

    fn state(&self, set: SetId) -> Result<SetState, BootError> {
        let own = self.own(set)?;
        Ok(own.first().map_or(SetState::Bad, |file| match file.tries {
            // Half marked bad: the counter comes after the version.
            _ if file.version.starts_with('~') => SetState::Bad,
            None => SetState::Good,
            Some(Tries { left: 0, done: 0 }) => SetState::Bad,
            Some(Tries { done: 0, .. }) => SetState::Untried,
            Some(_) => SetState::Tried,
        }))
    }

    /// `loader.conf`, which lies on the ESP only, beside the entries.
    fn loader_conf(&self) -> Option<(PathBuf, String)> {
        self.dirs.iter().find_map(|dir| {
            let path = dir.path().parent()?.join("loader.conf");
            let content = dir::read(&path).ok()?;
            Some((path, String::from_utf8_lossy(&content).into_owned()))
        })
    }

    /// What the next reset boots, with `loadable` sets. `once`: with the one-shot.
    fn next(&self, once: bool, loadable: impl Fn(SetId) -> bool) -> Result<Option<SetId>, BootError> {
        let conf = self.loader_conf().map(|(_, text)| text).unwrap_or_default();
        // Where they cannot be read, nothing is known to be set.
        let [oneshot, default] = [ONE_SHOT, DEFAULT].map(|name| self.vars.read(name).ok().flatten());
        let oneshot = oneshot.as_deref().filter(|_| once);
        let variables = Variables { oneshot, default: default.as_deref() };
        Ok(decide_named(&self.config.names, &self.files()?, &conf, variables, loadable).booted)
    }

    /// Is the order of entries what decides? Otherwise a set could be chosen for ever, however bad it is.
    fn must_heed_the_order(&self) -> Result<(), BootError> {
        let names = SetId::BOTH.map(|set| ["", "+1"].map(|counter| self.name(set, counter)));
        // All of them or none at all.
        let chooses = |pattern: &String| {
            let pattern = pattern.to_lowercase();
            let mut fits = names.iter().flatten().map(|name| order::matches(&pattern, name));
            let first = fits.next();
            pattern.starts_with('@') || fits.any(|other| Some(other) != first)
        };
        if let Some((path, text)) = self.loader_conf()
            && let Some(pattern) = model::default_pattern(&text).filter(chooses)
        {
            let what = format!("{}: default {pattern} fits some of our entries only", path.display());
            return Err(BootError::Config(format!("{what}; use default otandem-*")));
        }
        match self.vars.read(DEFAULT).ok().flatten().filter(chooses) {
            Some(pattern) => Err(BootError::Config(format!(
                "the EFI variable {DEFAULT} chooses {pattern:?} at every boot; remove it: bootctl set-default ''"
            ))),
            None => Ok(()),
        }
    }

    /// A version that is above those of both sets.
    fn next_version(&self) -> Result<String, BootError> {
        let mut highest = 0_u64;
        let mut versions = Vec::new();
        for set in SetId::BOTH {
            versions.extend(self.own(set)?.into_iter().map(|file| file.version));
        }
        for version in &versions {
            let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            highest = highest.max(digits.parse().unwrap_or(0));
        }
        let next = highest.saturating_add(1).to_string();
        match versions.iter().find(|version| order::compare(version, &next) != Ordering::Less) {
            Some(version) => {
                let why = format!("no version is above {version:?} of an entry; use a small number");
                Err(BootError::Config(why))
            }
            None => Ok(next),
        }
    }

    fn set_version(&self, set: SetId, file: &mut OwnFile, version: &str) -> Result<(), BootError> {
        if file.version == version {
            return Ok(());
        }
        let path = self.dir(set).path().join(&file.name);
        let Some(sector) = with_version(&file.content, version) else {
            let what = format!("{} is longer than {SECTOR} bytes or no text", path.display());
            return Err(BootError::Config(format!("{what}: shorten it")));
        };
        self.dir(set).rewrite(&file.name, &sector)?;
        (file.content, file.version) = (sector.to_vec(), version.to_owned());
        Ok(())
    }

    /// Gives a file of `set` the name with this counter, and puts aside what has it.
    fn set_counter(&self, set: SetId, file: &mut OwnFile, counter: &str) -> Result<(), BootError> {
        let name = self.name(set, counter);
        if file.name.eq_ignore_ascii_case(&name) {
            return Ok(());
        }
        self.put_aside(set, |other| other.eq_ignore_ascii_case(&name))?;
        self.dir(set).rename(&file.name, &name)?;
        file.name = name;
        Ok(())
    }

    /// Gives files of `set` names that the loader does not look at.
    fn put_aside(&self, set: SetId, which: impl Fn(&str) -> bool) -> Result<(), BootError> {
        let own = |name: &str| model::set_named(&self.config.names, name) == Some(set);
        let mut taken: Vec<String> = self.dir(set).list()?.into_iter().map(|(name, _)| name).collect();
        for name in taken.clone().iter().filter(|name| own(name) && which(name)) {
            let free = (1..=MAX_ASIDE).map(|n| format!("{}.old{n}", stem(&self.config.names, set)));
            let mut free = free.filter(|aside| !taken.iter().any(|t| t.eq_ignore_ascii_case(aside)));
            let Some(aside) = free.next() else {
                let at = self.dir(set).path().display();
                let what = format!("{at} has {MAX_ASIDE} files .old: check this file system and remove them");
                return Err(BootError::Config(what));
            };
            self.dir(set).rename(name, &aside)?;
            taken.push(aside);
        }
        Ok(())
    }

    /// The first of a set's files; made from the template, not bootable, if it is lost.
    fn first(&self, set: SetId) -> Result<OwnFile, BootError> {
        if let Some(file) = self.own(set)?.into_iter().next() {
            return Ok(file);
        }
        let dir = self.dir(set);
        let template = format!("{}.template", stem(&self.config.names, set));
        let found = dir.list()?.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(&template));
        let sector = found.and_then(|(_, content)| with_version(&content, BAD));
        let Some(sector) = sector.filter(|sector| self.is_entry_of(set, sector)) else {
            let what = format!("{} has no usable entry of set {set}", dir.path().display());
            return Err(BootError::Config(format!(
                "{what} and no {template} to make it from: copy it there"
            )));
        };
        let name = self.name(set, "+0");
        self.put_aside(set, |other| other.eq_ignore_ascii_case(&name))?;
        tracing::warn!(%set, "its entry is lost: made anew from {template}");
        dir.create(&name, &sector)?;
        let tries = Some(Tries { left: 0, done: 0 });
        Ok(OwnFile { name, tries, content: sector.to_vec(), version: BAD.into() })
    }

    fn is_entry_of(&self, set: SetId, content: &[u8]) -> bool {
        let file =
            EntryFile { partition: Partition::Esp, name: self.name(set, ""), content: content.to_vec() };
        Entry::parse(content).loader && set_of(&self.config.names, &file) == Some(set)
    }

    /// `set` without a counter, and with a version above the other's if `first_choice`.
    fn make_good(&self, set: SetId, first_choice: bool) -> Result<(), BootError> {
        let mut file = self.first(set)?;
        let below = match self.own(set.other())?.first() {
            Some(other) => order::compare(&file.version, &other.version) != Ordering::Greater,
            None => false,
        };
        if file.version.starts_with('~') || (first_choice && below) {
            let version = self.next_version()?;
            self.set_version(set, &mut file, &version)?;
        }
        self.set_counter(set, &mut file, "")?;
        self.put_aside(set, |name| !name.eq_ignore_ascii_case(&file.name))?;
        self.expect(set, SetState::Good)
    }

    /// `set` behind the other one, whatever counts. A set without an entry is that already.
    fn exclude(&self, set: SetId) -> Result<(), BootError> {
        self.forget_one_shot(set);
        let mut own = self.own(set)?;
        // All that could be booted first: after this the other set is in front.
        for file in own.iter_mut().filter(|file| file.tries.is_none_or(|t| t.left > 0)) {
            self.set_version(set, file, BAD)?;
        }
        let named = self.name(set, "+0");
        let at = own.iter().position(|file| file.name.eq_ignore_ascii_case(&named)).unwrap_or(0);
        if let Some(file) = own.get_mut(at) {
            self.set_version(set, file, BAD)?;
            self.set_counter(set, file, "+0")?;
            self.put_aside(set, |name| !name.eq_ignore_ascii_case(&file.name))?;
        }
        self.expect(set, SetState::Bad)
    }

    /// Makes `set`, which is excluded, the next to be tried.
    fn offer(&self, set: SetId) -> Result<(), BootError> {
        let counter = format!("+{}", self.config.trial_tries.get());
        let mut file = self.first(set)?;
        let version = self.next_version()?;
        // Exhausted as it is, it stays last with any version.
        self.set_version(set, &mut file, &version)?;
        self.set_counter(set, &mut file, &counter)?;
        self.expect(set, SetState::Untried)?;
        if let Err(e) = self.vars.write(ONE_SHOT, &file.name) {
            tracing::info!("{ONE_SHOT} was not set: {e}; boot counting alone tries set {set}");
        }
        Ok(())
    }

    /// A one-shot that names an entry of `set` must not outlive its mark. Its name would not fit any more, but a
    /// variable that is not there is better.
    fn forget_one_shot(&self, set: SetId) {
        let names = |value: &String| model::set_named(&self.config.names, value) == Some(set);
        if self.vars.read(ONE_SHOT).ok().flatten().is_some_and(|value| names(&value))
            && let Err(e) = self.vars.delete(ONE_SHOT)
        {
            tracing::warn!("{ONE_SHOT} could not be removed: {e}; it names no entry any more");
        }
    }

    fn expect(&self, set: SetId, wanted: SetState) -> Result<(), BootError> {
        let found = self.state(set)?;
        if found == wanted {
            return Ok(());
        }
        let what = format!("entry of set {set} in {}", self.dir(set).path().display());
        Err(BootError::ReadBack { what, wanted: format!("{wanted:?}"), found: format!("{found:?}") })
    }

    fn expect_primary(&self, set: SetId) -> Result<(), BootError> {
        match self.next(false, |_| true)? {
            Some(found) if found == set => Ok(()),
            found => Err(BootError::ReadBack {
                what: "first entry in the order of the loader".into(),
                wanted: format!("that of set {set}"),
                found: found.map_or_else(|| "another one".into(), |set| format!("that of set {set}")),
            }),
        }
    }

    /// Whether the loader would try `set` by itself.
    fn bootable(&self, set: SetId) -> Result<bool, BootError> {
        let tried = |file: &OwnFile| file.tries.is_none_or(|tries| tries.left > 0);
        Ok(self.own(set)?.iter().any(|file| tried(file) && !file.version.starts_with('~')))
    }
}

impl BootControl for SystemdBoot {
    fn facts(&mut self) -> Result<Facts, BootError> {
        Ok(Facts {
            booted: self.booted().booted,
            boot_id: self.seen.boot_id.clone(),
            primary: self.next(true, |_| true)?,
            a: self.state(SetId::A)?,
            b: self.state(SetId::B)?,
        })
    }

    fn view(&mut self) -> Result<View, BootError> {
        let mut values = Vec::new();
        values.push(match self.loader_conf() {
            Some((path, text)) => {
                let pattern = model::default_pattern(&text).unwrap_or_else(|| "first entry".into());
                (path.display().to_string(), format!("default {pattern}"))
            }
            None => ("loader.conf".into(), "not found beside the entries: default is the first entry".into()),
        });
        let files = self.files()?;
        for listed in model::listed(&files) {
            let file = &files[listed.file];
            let dir = if file.partition == Partition::Esp { SetId::A } else { SetId::B };
            let path = self.dir(dir).path().join(&file.name);
            let version = Entry::parse(&file.content).version().to_owned();
            values.push((path.display().to_string(), format!("version {version}")));
        }
        for set in SetId::BOTH {
            if self.own(set)?.is_empty() {
                let path = self.dir(set).path().join(self.name(set, ""));
                values.push((path.display().to_string(), "missing or not usable".into()));
            }
        }
        for name in [ONE_SHOT, DEFAULT].into_iter().chain(TOLD) {
            match self.vars.read(name) {
                Ok(Some(value)) => values.push((name.into(), value)),
                Ok(None) => {}
                Err(e) => values.push((name.into(), format!("cannot be read: {e}"))),
            }
        }
        values.extend(self.vars.obstacle().map(|why| ("EFI variables".to_owned(), why)));
        let loader = self.vars.read("LoaderInfo").ok().flatten();
        Ok(View { loader: loader.unwrap_or_else(|| "systemd-boot".into()), values })
    }

    fn arm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_not_run("arm", set)?;
        self.must_heed_the_order()?;
        self.make_good(set.other(), false)?;
        let own = self.own(set)?;
        let counter = format!("+{}", self.config.trial_tries.get());
        let armed = own.len() == 1 && own[0].name.eq_ignore_ascii_case(&self.name(set, &counter));
        if !armed || self.next(false, |_| true)? != Some(set) {
            self.exclude(set)?;
            self.offer(set)?;
        }
        self.expect_primary(set)?;
        match self.next(false, |s| s != set)? {
            Some(fallback) if fallback != set => Ok(()),
            _ => Err(BootError::ReadBack {
                what: "fallback in the order of the loader".into(),
                wanted: format!("set {}", set.other()),
                found: "nothing".into(),
            }),
        }
    }

    fn keep(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_run("keep", set)?;
        self.make_good(set, false)
    }

    fn disarm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_not_run("disarm", set)?;
        self.make_good(set.other(), false)?;
        self.exclude(set)?;
        self.expect_primary(set.other())
    }

    fn confirm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_run("confirm", set)?;
        self.must_heed_the_order()?;
        self.make_good(set, true)?;
        self.expect_primary(set)
    }

    fn mark_bad(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().running("mark bad")?;
        if !self.bootable(set.other())? {
            return Err(BootError::NoFallback { set });
        }
        self.exclude(set)?;
        self.expect_primary(set.other())
    }
}

#[cfg(test)]
mod tests;
