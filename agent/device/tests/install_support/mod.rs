//! A source in memory that counts and fails, an observer that remembers, and images packed in every way.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use otandem_core::image::{Checkpoint, Compression, Expect, Hex, Image};
use otandem_device::install::{
    ByteStream, Fetch, FetchError, Limits, NoDigest, Observer, Opened, OtherDisk, Plan, Progress, ReadBack,
    Stopped,
};
use sha2::Digest as _;

pub const MIB: usize = 1 << 20;

static NONE: BTreeSet<String> = BTreeSet::new();

/// Deterministic bytes: data that does not pack, text that does, and holes.
pub fn image_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Five to a turn, so that every kind comes to lie at the end of some MiB.
        match (out.len() >> 16) % 5 {
            1 => out.extend_from_slice(&[0; 8]),
            2 => out.extend_from_slice(b"otandem "),
            _ => out.extend_from_slice(&state.to_le_bytes()),
        }
    }
    out.truncate(len);
    out
}

pub fn sha256(bytes: &[u8]) -> Hex<32> {
    Hex(sha2::Sha256::digest(bytes).into())
}

pub fn md5(bytes: &[u8]) -> Hex<16> {
    Hex(md5::Md5::digest(bytes).into())
}

/// Independent zstd frames of `frame` raw bytes each.
pub fn zstd(raw: &[u8], frame: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in raw.chunks(frame.max(1)) {
        let mut packed = Vec::with_capacity(zstd_safe::compress_bound(part.len()));
        zstd_safe::compress(&mut packed, part, 1).unwrap();
        out.extend(packed);
    }
    out
}

/// One frame with a window of `1 << log` bytes whose header does not tell the size.
pub fn zstd_window(raw: &[u8], log: u32) -> Vec<u8> {
    use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};
    let mut context = CCtx::create();
    context.set_parameter(CParameter::WindowLog(log)).unwrap();
    context.set_parameter(CParameter::CompressionLevel(1)).unwrap();
    let mut out = vec![0; zstd_safe::compress_bound(raw.len()) + 64];
    let mut target = OutBuffer::around(&mut out[..]);
    let mut source = InBuffer::around(raw);
    while source.pos() < raw.len() {
        context.compress_stream(&mut target, &mut source).unwrap();
    }
    while context.end_stream(&mut target).unwrap() > 0 {}
    let len = target.pos();
    out.truncate(len);
    out
}

/// An image of `raw` whose source is named `name`.
pub fn image(slot: &str, name: &str, compression: Option<Compression>, raw: &[u8]) -> Image {
    Image {
        slot: slot.to_owned(),
        source: name.to_owned(),
        compression,
        raw: Expect { size: Some(raw.len() as u64), sha256: Some(sha256(raw)), md5: None },
        file: Expect::default(),
    }
}

/// What happens to a source.
#[derive(Clone, Default)]
pub struct Object {
    pub bytes: Bytes,
    pub etag: Option<String>,
    /// The source gives up after this many bytes, counted over the whole object.
    pub cut: Option<usize>,
    /// The source ends well, but early.
    pub end: Option<usize>,
    pub panic_at: Option<usize>,
    /// Sets the stop flag at this byte.
    pub stop_at: Option<usize>,
    pub hide_total: bool,
}

/// Sources in memory.
pub struct MemFetch {
    pub objects: BTreeMap<String, Object>,
    pub piece: usize,
    /// Bytes handed out, of all sources.
    pub handed: Arc<AtomicU64>,
    /// Source and offset of each call.
    pub opened: Vec<(String, u64)>,
    pub stop: Arc<AtomicBool>,
}

impl MemFetch {
    pub fn new(objects: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Self {
        let object =
            |bytes: Vec<u8>| Object { bytes: bytes.into(), etag: Some("one".into()), ..Object::default() };
        Self {
            objects: objects.into_iter().map(|(name, bytes)| (name.to_owned(), object(bytes))).collect(),
            piece: 64 << 10,
            handed: Arc::default(),
            opened: Vec::new(),
            stop: Arc::default(),
        }
    }

    pub fn object(&mut self, name: &str) -> &mut Object {
        self.objects.get_mut(name).unwrap()
    }

    pub fn handed(&self) -> u64 {
        self.handed.load(Ordering::SeqCst)
    }
}

impl Fetch for MemFetch {
    fn open(&mut self, image: &Image, from: u64, etag: Option<&str>) -> Result<Opened, FetchError> {
        let Some(object) = self.objects.get(&image.source).cloned() else {
            return Err(FetchError::Failed { reason: "404".to_owned() });
        };
        self.opened.push((image.source.clone(), from));
        if etag.is_some() && object.etag.as_deref() != etag {
            return Err(FetchError::Changed { reason: "another tag".to_owned() });
        }
        let at = usize::try_from(from).unwrap().min(object.bytes.len());
        Ok(Opened {
            total: (!object.hide_total).then_some(object.bytes.len() as u64),
            etag: object.etag.clone(),
            stream: Box::new(MemStream {
                object,
                at,
                piece: self.piece,
                handed: self.handed.clone(),
                stop: self.stop.clone(),
            }),
        })
    }
}

struct MemStream {
    object: Object,
    at: usize,
    piece: usize,
    handed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl ByteStream for MemStream {
    fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let len = self.object.bytes.len();
        let mut to = (self.at + self.piece).min(self.object.end.unwrap_or(len)).min(len);
        if let Some(cut) = self.object.cut {
            if self.at >= cut {
                return Err(FetchError::Failed { reason: "network given up".to_owned() });
            }
            to = to.min(cut);
        }
        assert!(self.object.panic_at.is_none_or(|at| to < at), "the test's own panic");
        if self.object.stop_at.is_some_and(|at| to >= at) {
            self.stop.store(true, Ordering::SeqCst);
        }
        if to <= self.at {
            return Ok(None);
        }
        let piece = self.object.bytes.slice(self.at..to);
        self.handed.fetch_add(piece.len() as u64, Ordering::SeqCst);
        self.at = to;
        Ok(Some(piece))
    }
}

/// What an observer has seen. `stop_after` checkpoints it ends the installation.
#[derive(Default)]
pub struct Log {
    pub ready: usize,
    pub last: Option<Checkpoint>,
    pub all: Vec<Checkpoint>,
    pub progress: Vec<Progress>,
    pub refuse_ready: bool,
    pub stop_after: Option<usize>,
    pub panic_at_ready: bool,
    /// Runs when all is ready.
    pub at_ready: Option<Box<dyn FnMut() + Send>>,
}

impl Observer for Log {
    fn ready(&mut self) -> Result<(), Stopped> {
        self.ready += 1;
        if let Some(run) = &mut self.at_ready {
            run();
        }
        if self.refuse_ready { Err(Stopped) } else { Ok(()) }
    }

    fn progress(&mut self, progress: Progress) {
        self.progress.push(progress);
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), Stopped> {
        self.last = Some(checkpoint.clone());
        self.all.push(checkpoint.clone());
        if self.stop_after.is_some_and(|n| self.all.len() >= n) { Err(Stopped) } else { Ok(()) }
    }
}

/// A state directory, and slots as files beside it.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub targets: BTreeMap<String, PathBuf>,
}

impl Bench {
    pub fn new(slots: &[&str]) -> Self {
        Self::new_in(&std::env::temp_dir(), slots)
    }

    pub fn new_in(parent: &Path, slots: &[&str]) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let targets = slots.iter().map(|s| ((*s).to_owned(), dir.path().join(format!("{s}.img")))).collect();
        Self { dir, targets }
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn path(&self, slot: &str) -> &Path {
        &self.targets[slot]
    }

    pub fn names_in_state(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.state()).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A plan that makes a checkpoint wherever there can be one.
    pub fn plan<'a>(&'a self, images: &'a [Image], state: &'a Path) -> Plan<'a> {
        Plan {
            images,
            targets: &self.targets,
            in_place: &NONE,
            boots_first: None,
            state_dir: state,
            resume: None,
            limits: Limits { checkpoint_bytes: 0, checkpoint_every: Duration::ZERO, ..Limits::default() },
            read_back: ReadBack::WhereDue,
            other_disk: OtherDisk::Allow,
            no_digest: NoDigest::Refuse,
            forbidden: &[],
        }
    }
}
