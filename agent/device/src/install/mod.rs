//! Installs the images of an update into the slots of the set that does not run.
//!
//! Three threads in bounded hand-over: one receives, one decodes and digests, one writes. Whatever happens in
//! between, a slot is at every instant either unmountable (its first MiB zero) or complete: the *head* of every
//! image waits in the state directory until every image of the set is written, verified and durable. `docs/` has the
//! rules; each is kept in one file here: `mounts` (what must not be written), `slot`, `block`, `file` and `in_place`
//! (how a slot is written), `prepare` (everything that can be refused before the first byte), `pipeline` (one
//! image), `heads` (what waits, and what an interrupted update goes on with).
//!
//! This module knows nothing of jobs, boot loaders and networks: the caller marks the set bad in
//! [`Observer::ready`], stores the checkpoints, and brings the bytes ([`Fetch`]).
#![deny(clippy::cast_possible_truncation)]

mod block;
mod buffer;
pub(crate) mod decode;
mod digest;
mod error;
mod file;
mod heads;
mod in_place;
mod machine;
mod mounts;
mod pipeline;
mod prepare;
mod receive;
mod slot;
mod source;
mod target;
mod unpack;
mod verify;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use otandem_core::image::{Checkpoint, Hex, Image, Md5, Sha256};

pub use error::{Class, Fault, FetchError, InstallError, Stopped};
use heads::Heads;
use prepare::Work;
pub use slot::HEAD;
use slot::Slot;
pub use source::{ByteStream, Fetch, FileFetch, Opened};

/// What an installation tells its caller.
pub trait Observer: Send {
    /// All sources answer, headers make sense, sizes fit, targets are open and safe, and nothing is written yet.
    /// Blocks until the caller has marked the set bad and saved that.
    ///
    /// # Errors
    /// Ends the installation; no slot was touched.
    fn ready(&mut self) -> Result<(), Stopped>;

    /// How far it is; called for every MiB, so it must be cheap.
    fn progress(&mut self, progress: Progress);

    /// Everything before `checkpoint` is durable in the slot: it may be stored.
    ///
    /// # Errors
    /// Ends the installation, which can go on from this or an earlier checkpoint.
    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), Stopped>;
}

/// What an installation is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reads back what an interrupted attempt left, to go on with its digest.
    Resuming,
    /// Fetches and writes.
    Writing,
    /// Reads back what was written.
    ReadingBack,
}

/// How far an installation is with one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Index of the image.
    pub image: usize,
    /// What is done with it.
    pub phase: Phase,
    /// Bytes of the source that are used up.
    pub source: u64,
    /// Bytes of the whole source, if known.
    pub source_total: Option<u64>,
    /// Bytes of the raw image that are written (or read, in the other phases).
    pub raw: u64,
    /// Bytes of the whole raw image, if known.
    pub raw_total: Option<u64>,
    /// Bytes of the raw image that would survive a power cut now. Stays 0 for an image in one frame, which starts
    /// again after a power cut.
    pub durable: u64,
}

/// Bounds of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest zstd window in bytes (rounded down to a power of two).
    pub zstd_window: u64,
    /// Most memory of the xz decoder in bytes.
    pub xz_memory: u64,
    /// Most bytes per second taken from the source.
    pub rate: Option<u64>,
    /// Least raw bytes between two checkpoints.
    pub checkpoint_bytes: u64,
    /// Least time between two checkpoints.
    pub checkpoint_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            zstd_window: 8 << 20,
            xz_memory: 16 << 20,
            rate: None,
            checkpoint_bytes: 16 << 20,
            checkpoint_every: Duration::from_secs(2),
        }
    }
}

/// When a slot is read back after it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadBack {
    /// After a resume, and for images that have only an MD5.
    #[default]
    WhereDue,
    /// Always.
    Always,
}

/// Whether block slots may be on another disk than `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OtherDisk {
    /// They must be on the disks of `/`.
    #[default]
    Refuse,
    /// They may be anywhere.
    Allow,
}

/// What happens to an image without any digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoDigest {
    /// It is refused.
    #[default]
    Refuse,
    /// It is written: somebody said so in so many words.
    Allow,
}

/// What is to be installed, and where.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The images, each for another slot.
    pub images: &'a [Image],
    /// All slots of the target set: name to path. One that no image names is not touched.
    pub targets: &'a BTreeMap<String, PathBuf>,
    /// Names of slots that are preallocated files, overwritten where they lie; another file is replaced by a rename. A
    /// device is what it is.
    pub in_place: &'a BTreeSet<String>,
    /// The slot that the bootloader reads first; its head is written last.
    pub boots_first: Option<&'a str>,
    /// Where heads wait. Needs 1 MiB for each image, on no slot of either set.
    pub state_dir: &'a Path,
    /// Where an interrupted installation of the same images goes on.
    pub resume: Option<&'a Checkpoint>,
    /// Bounds.
    pub limits: Limits,
    /// Reading back.
    pub read_back: ReadBack,
    /// Other disks.
    pub other_disk: OtherDisk,
    /// Images without digest.
    pub no_digest: NoDigest,
    /// Paths of the running set.
    pub forbidden: &'a [PathBuf],
}

/// What became of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The slot.
    pub slot: String,
    /// Bytes of the raw image.
    pub size: u64,
    /// Digest of the raw image.
    pub sha256: Sha256,
    /// Digest of the bytes at the source, where it was asked for.
    pub file_sha256: Option<Sha256>,
    /// The MD5, where it was asked for.
    pub md5: Option<Md5>,
    /// Went on with what an interrupted installation had written.
    pub resumed: bool,
    /// Was read back after it was written, and is right.
    pub read_back: bool,
    /// Bytes taken from the source this time, those to look at headers included.
    pub fetched: u64,
}

/// Installs the images. When this returns `Ok`, every image is written, verified, durable and bootable.
///
/// # Errors
/// See [`InstallError::class`]. Unless the error came while the heads were written, no slot of the set can be
/// mounted. With the last checkpoint, a second call goes on; [`discard`] gives up what it would go on with.
pub fn install(
    plan: &Plan<'_>,
    fetch: &mut dyn Fetch,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Vec<Written>, InstallError> {
    prepare::check(plan)?;
    let slots = target::open_all(plan, &machine::in_use()?)?;
    install_into(slots, plan, fetch, observer, stop)
}

/// SHA-256 and length of a whole file or device, read with a small buffer.
///
/// # Errors
/// It cannot be opened or read.
pub fn sha256_of(path: &Path) -> std::io::Result<(Sha256, u64)> {
    use sha2::Digest as _;
    use std::io::Read as _;
    let mut file = std::fs::File::open(path)?;
    let mut digest = sha2::Sha256::new();
    let (mut buffer, mut size) = (vec![0; 256 << 10], 0);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        digest.update(&buffer[..n]);
        size += n as u64;
    }
    Ok((Hex(digest.finalize().into()), size))
}

/// Gives up an interrupted installation: removes heads that wait in `state_dir`, and what was begun beside file
/// slots.
///
/// # Errors
/// The first that could not be removed; the others are.
pub fn discard(state_dir: &Path, targets: &BTreeMap<String, PathBuf>) -> Result<(), InstallError> {
    let mut result = Ok(());
    for (slot, path) in targets {
        if let Err(fault) = Heads::new(state_dir).forget(slot) {
            result = result.and(Err(InstallError::at(slot, fault)));
        }
        let removed = file::temporary(path).and_then(std::fs::remove_file);
        match removed {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                let fault =
                    Fault::Slot { what: "remove what was begun for", path: path.clone(), at: 0, source };
                result = result.and(Err(InstallError::at(slot, fault)));
            }
            _ => {}
        }
    }
    result
}

/// What everything that happens during one installation needs.
struct Run<'r, 'p> {
    plan: &'r Plan<'p>,
    heads: Heads<'r>,
    fetch: &'r mut dyn Fetch,
    observer: &'r mut dyn Observer,
    stop: &'r AtomicBool,
}

/// [`install`] into slots that are open.
fn install_into(
    slots: Vec<Box<dyn Slot>>,
    plan: &Plan<'_>,
    fetch: &mut dyn Fetch,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Vec<Written>, InstallError> {
    let mut run = Run { plan, heads: Heads::new(plan.state_dir), fetch, observer, stop };
    let mut works = prepare::all(slots, &mut run)?;
    run.observer.ready().map_err(|Stopped| InstallError::Stopped)?;
    // All heads before the first byte: from here to the end no slot of the set can boot. What the bootloader reads first
    // goes first: a kernel that can be loaded must not be there without its root.
    for i in order(&works, plan, First::BootsFirst) {
        let work = &mut works[i];
        work.spoil().map_err(|fault| InstallError::at(&work.image.slot, fault))?;
    }
    for work in &mut works {
        pipeline::image(work, &mut run).map_err(|fault| InstallError::at(&work.image.slot, fault))?;
    }
    publish(works, plan, &run.heads)
}

/// What has its turn first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// The slot that the bootloader reads first.
    BootsFirst,
    /// All others.
    Others,
}

/// The order of works in which the slot that the bootloader reads first is the first one or the last one.
fn order(works: &[Work<'_>], plan: &Plan<'_>, first: First) -> Vec<usize> {
    let boots_first = |i: &usize| plan.boots_first == Some(works[*i].image.slot.as_str());
    let mut order: Vec<usize> = (0..works.len()).collect();
    order.sort_unstable_by_key(|i| (boots_first(i) == (first == First::Others), *i));
    order
}

/// Writes all heads, that of the slot which the bootloader reads first after all others.
fn publish(
    mut works: Vec<Work<'_>>,
    plan: &Plan<'_>,
    heads: &Heads<'_>,
) -> Result<Vec<Written>, InstallError> {
    for i in order(&works, plan, First::Others) {
        let work = &mut works[i];
        work.publish(heads).map_err(|fault| InstallError::at(&work.image.slot, fault))?;
    }
    for work in &works {
        if let Err(fault) = heads.forget(&work.image.slot) {
            // The set is complete; what stays behind is removed by the next installation.
            tracing::warn!(slot = work.image.slot, "{fault}");
        }
    }
    Ok(works.into_iter().filter_map(|work| work.written).collect())
}

#[cfg(test)]
#[path = "tests/mod.rs"]
mod tests;
