//! What a device is worth after a power cut, told for each of tens of thousands of states without switching it on.
//!
//! A state is read as its loader and the agent would read it: the loader's memory ([`reader`], [`fat`]), what the slots
//! hold ([`slots`]) and the record ([`record`]). Then its life is lived ([`life`]): the loader's decision as a function of
//! bytes, our back ends themselves, the update machine itself. What must hold:
//!
//! - A set that its loader would take is whole; nothing of the loader itself was touched.
//! - Within trial boots + 3 resets a whole set runs, whether or not anybody ever settles the boot.
//! - The record can be read, and each job comes to one end and stays with it: never SUCCEEDED unless the new set is
//!   permanent, never "rolled back" unless it was tried.
//! - At the end the device waits for its next job, in a set that each further reset leads to.
//!
//! The loaders' models are held to the real loaders by the tests of the back ends, and by [`Judge::expected`]: what a real
//! device does with some of the states is compared with it.

pub mod boot;
pub mod fat;
pub mod life;
pub mod reader;
pub mod record;
pub mod slots;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use otandem_core::boot::{SetId, SetState};
use otandem_core::machine::Rules;
use otandem_core::record::State as Phase;
use otandem_images::{Chain, Partition};
use sha2::{Digest as _, Sha256};

use crate::digests::Image;
use crate::disk::Sectors;
use crate::replay::{Cut, Model, Replay, State};
use boot::{BackEnd, Memory, Verb};
use life::{Course, Device, End, Fate, end_of};
use reader::Reader;
use record::Places;
use slots::{Content, EXT4, KERNEL, Place, Slots};

/// More failures than anybody reads.
const KEPT: usize = 20;

/// A version of the whole set.
#[derive(Debug, Clone)]
pub struct Version {
    /// As the guest greets with it.
    pub name: String,
    /// SHA-256 of its root file system, in hex.
    pub rootfs: String,
    /// By slot name: what it must hold.
    pub images: BTreeMap<&'static str, Image>,
}

/// What a recording is of.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The boot chain.
    pub chain: Chain,
    /// The partitions.
    pub layout: &'a [Partition],
    /// All versions that a slot may hold.
    pub versions: Vec<Version>,
}

/// What became of the states.
#[derive(Debug, Default)]
pub struct Report {
    /// How many by kind of model.
    pub states: BTreeMap<&'static str, u64>,
    /// How many of them differ in what loader, agent or slots would see.
    pub distinct: usize,
    /// Failures, the first ones with cut and reason.
    pub failed: u64,
    /// Those.
    pub failures: Vec<(Cut, String)>,
}

impl Report {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.states.values().sum()
    }

    fn fail(&mut self, cut: Cut, why: String) {
        self.failed += 1;
        if self.failures.len() < KEPT {
            self.failures.push((cut, why));
        }
    }
}

/// What a state comes to, whatever moment it is of.
#[derive(Debug, Clone, Default)]
struct Finding {
    /// Ends of jobs in the record of this state.
    ends: BTreeMap<String, End>,
    /// The job under way, and whether the loader notes a try of its target.
    job: Option<(String, bool)>,
    /// Its life by each fate.
    courses: Vec<Course>,
}

/// What a loader does first with a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The set that runs.
    pub set: SetId,
    /// Its version.
    pub version: String,
}

/// Judges the states of a recording, in the order of a walk.
pub struct Judge<'a> {
    versions: Vec<Version>,
    digests: Vec<String>,
    reader: Reader,
    slots: [Slots; 2],
    places: &'a Places,
    payload: Option<Vec<u8>>,
    back_end: BackEnd,
    rules: Rules,
    seen: HashMap<[u8; 32], Result<Finding, String>>,
    past: Past,
}

/// What was before a moment of a recording, as far as later ones must not contradict it.
#[derive(Debug, Default)]
struct Past {
    /// The first moment at which the loader's memory showed a try of a job's target.
    tried: BTreeMap<String, u64>,
    /// Outcomes that were durable at some moment: they may have been told.
    told: BTreeMap<String, End>,
}

impl Past {
    /// A state at its moment: what was told stays true, and what is told is.
    fn add(&mut self, cut: Cut, finding: &Finding) -> Result<(), String> {
        if let Some((job, true)) = &finding.job {
            let first = self.tried.entry(job.clone()).or_insert(cut.after);
            *first = cut.after.min(*first);
        }
        for (job, told) in &self.told {
            if finding.ends.get(job) != Some(told) {
                let now = finding.ends.get(job);
                return Err(format!("job {job} was told to have ended as {told:?}, and now it is {now:?}"));
            }
        }
        for course in &finding.courses {
            if let Some((job, _)) = finding.job.as_ref().filter(|(job, _)| !course.ends.contains_key(job)) {
                return Err(format!("job {job} has no end"));
            }
            for (job, (_, rolled_back)) in &course.ends {
                let tried =
                    course.ran == [true, true] || self.tried.get(job).is_some_and(|at| *at <= cut.after);
                if *rolled_back && !tried {
                    return Err(format!("job {job} is told to be rolled back, and was never tried"));
                }
            }
        }
        // What only a flush makes certain is told after it.
        if cut.model == Model::DropSinceFlush {
            self.told.extend(finding.ends.clone());
        }
        Ok(())
    }
}

impl<'a> Judge<'a> {
    /// A judge who begins at the disk before the first write.
    ///
    /// # Errors
    /// The disk cannot be read or is not what the scene says.
    pub fn new(base: &impl Sectors, scene: &Scene<'_>, places: &'a Places) -> io::Result<Self> {
        let reader = Reader::new(base, scene.chain, scene.layout).map_err(io::Error::other)?;
        let slots_of = |set| slots_of(base, scene, &reader, set);
        let slots = [slots_of(SetId::A)?, slots_of(SetId::B)?];
        let names = scene.versions.first().map(|v| v.images.keys().map(|&name| name.to_owned()).collect());
        Ok(Self {
            versions: scene.versions.clone(),
            digests: scene.versions.iter().map(|version| version.rootfs.clone()).collect(),
            reader,
            slots,
            places,
            payload: places.payload(base)?,
            back_end: BackEnd::new()?,
            rules: rules(names.unwrap_or_default()),
            seen: HashMap::new(),
            past: Past::default(),
        })
    }

    /// Judges every cut of a list, which is in the order of [`Replay::cuts`].
    ///
    /// # Errors
    /// The recording cannot be read.
    pub fn all(&mut self, replay: &Replay, cuts: &[Cut]) -> io::Result<Report> {
        let mut report = Report::default();
        let mut walk = replay.walk();
        for &cut in cuts {
            let state = walk.go_to(cut).map_err(io::Error::other)?;
            if !cut.repeat {
                *report.states.entry(kind(cut.model)).or_default() += 1;
            }
            if let Err(why) = self.state(&state)? {
                report.fail(cut, why);
            }
        }
        report.distinct = self.seen.len();
        Ok(report)
    }

    /// Takes over what changed.
    fn look(&mut self, state: &State<'_>) -> io::Result<Result<Memory, String>> {
        let changed = state.changed();
        for slots in &mut self.slots {
            slots.update(state, changed)?;
        }
        if self.places.touched(changed) {
            self.payload = self.places.payload(state)?;
        }
        self.reader.update(state, changed).cloned()
    }

    fn state(&mut self, state: &State<'_>) -> io::Result<Result<(), String>> {
        let memory = self.look(state)?;
        for slots in &self.slots {
            if let Content::Torn(why) = slots.content() {
                return Ok(Err(why.clone()));
            }
        }
        let memory = match memory {
            Ok(memory) => memory,
            Err(why) => return Ok(Err(why)),
        };
        let key = key(&memory, &self.slots, self.payload.as_deref());
        if !self.seen.contains_key(&key) {
            let finding = self.find(&memory);
            self.seen.insert(key, finding);
        }
        Ok(match &self.seen[&key] {
            Err(why) => Err(why.clone()),
            Ok(finding) => self.past.add(state.cut, finding),
        })
    }

    /// A state whatever its moment.
    fn find(&mut self, memory: &Memory) -> Result<Finding, String> {
        let record = record::decode(self.payload.as_deref())?;
        let mut finding = Finding::default();
        for finished in &record.finished {
            finding.ends.extend(end_of(finished).map(|end| (finished.key.job.clone(), end)));
        }
        let sets = self.slots.each_ref().map(|slots| slots.content().clone());
        if let Some(update) = record.state.update()
            && let Some(key) = update.origin.job()
        {
            let facts = self.back_end.ask(&mut memory.clone(), update.from, Verb::Facts)?;
            let armed = !matches!(
                record.state,
                Phase::Accepted { .. } | Phase::Writing { .. } | Phase::Written { .. }
            );
            let tried = armed && facts.state(update.target) == SetState::Tried;
            finding.job = Some((key.job.clone(), tried));
        }
        for fate in Fate::ALL {
            let mut device = Device {
                memory: memory.clone(),
                sets: sets.clone(),
                disk: Some(record.clone()),
                back_end: &mut self.back_end,
                digests: &self.digests,
                rules: &self.rules,
            };
            let course =
                device.live(fate).map_err(|why| format!("{} ({fate:?}): {why}", record.state.name()))?;
            finding.courses.push(course);
            let mut device = Device { memory: memory.clone(), sets: sets.clone(), disk: None, ..device };
            device.never_settled().map_err(|why| format!("{}: {why}", record.state.name()))?;
        }
        Ok(finding)
    }

    /// What a real device must do first with a state, by the loader's model.
    ///
    /// # Errors
    /// The recording cannot be read; nothing would run.
    pub fn expected(&mut self, state: &State<'_>) -> io::Result<Expected> {
        let mut memory = self.look(state)?.map_err(io::Error::other)?;
        let contents = self.slots.each_ref().map(|slots| slots.content().clone());
        let loadable = |set: SetId| contents[usize::from(set == SetId::B)] != Content::Dead;
        let booted = (0..life::MOST_RESETS).find_map(|_| memory.reset(loadable));
        let set = booted.ok_or_else(|| io::Error::other("nothing would run"))?;
        let version = contents[usize::from(set == SetId::B)].version();
        let version = version.and_then(|version| self.versions.get(version));
        let version = version.ok_or_else(|| io::Error::other("what would run is not whole"))?;
        Ok(Expected { set, version: version.name.clone() })
    }
}

/// The model of a cut, in a word.
#[must_use]
pub const fn kind(model: Model) -> &'static str {
    match model {
        Model::Prefix => "prefix",
        Model::DropSinceFlush => "drop",
        Model::ReorderSinceFlush { .. } => "reorder",
        Model::TornFirst { .. } | Model::TornLast { .. } => "torn",
    }
}

fn key(memory: &Memory, slots: &[Slots; 2], payload: Option<&[u8]>) -> [u8; 32] {
    let mut digest = Sha256::new();
    let contents = slots.each_ref().map(Slots::content);
    digest.update(format!("{memory:?} {contents:?} {}", payload.is_some()));
    digest.update(payload.unwrap_or_default());
    digest.finalize().into()
}

/// The slots of a set; what the loader reads first comes first.
fn slots_of(base: &impl Sectors, scene: &Scene<'_>, reader: &Reader, set: SetId) -> io::Result<Slots> {
    let lower = set.name().to_lowercase();
    let missing = |what: String| io::Error::other(format!("{what} is not on the disk"));
    let partition = format!("root-{lower}");
    let root = scene.layout.iter().find(|part| part.name == partition).ok_or_else(|| missing(partition))?;
    let mut places: Vec<(&'static str, Range<u64>)> = Vec::new();
    let mark = if scene.chain.kernel_in_root() { EXT4 } else { KERNEL };
    if !scene.chain.kernel_in_root() {
        let volume = usize::from(set == SetId::B && scene.chain == Chain::SystemdBoot);
        for (slot, file) in [("kernel", "vmlinuz"), ("initrd", "initrd")] {
            let path = format!("otandem/{lower}/{file}");
            let place = reader.place(volume, &path).ok_or_else(|| missing(path))?;
            places.push((slot, place));
        }
    }
    places.push(("rootfs", root.start..root.start + root.size));
    let images = |slot: &str| scene.versions.iter().filter_map(|v| v.images.get(slot).cloned()).collect();
    let places = places.into_iter().map(|(name, range)| Place { name, range, images: images(name) });
    Slots::new(base, set, mark, places.collect())
}

/// The device's configuration, as far as the update machine asks for it.
fn rules(slots: Vec<String>) -> Rules {
    Rules {
        health_timeout: Duration::from_secs(60),
        cloud_timeout: Duration::from_secs(60),
        retry_interval: Duration::from_secs(300),
        defer_limit: Duration::from_secs(3600),
        reboot_window: None,
        record_shared: true,
        reboot_reserve: Duration::from_secs(60),
        slots,
    }
}

/// Finds the copies of the record on the disk before the first write, and sees that they are there at the end, too.
///
/// # Errors
/// They are not there, or they moved.
pub fn places(base: &Path, end: &Path, data: &Partition, scratch: &Path) -> Result<Places, String> {
    let range = data.start..data.start + data.size;
    let places = Places::find(base, range.clone(), scratch)?;
    if Places::find(end, range, scratch)? == places {
        Ok(places)
    } else {
        Err("the record moved on the data partition: it must be written in place".into())
    }
}

#[cfg(test)]
mod tests;
