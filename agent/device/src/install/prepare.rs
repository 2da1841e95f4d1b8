//! Everything that is found out before the first byte is written: names, digests, sources, headers, sizes, room,
//! and what an interrupted installation left that is of use.

use std::collections::BTreeSet;

use bytes::Bytes;
use otandem_core::image::{Checkpoint, Compression, Image, Sha256};

use super::decode::{self, PROBE};
use super::digest::{self, Digests, Wanted};
use super::error::{Fault, FetchError, InstallError};
use super::heads::Heads;
use super::slot::{HEAD, Slot};
use super::source::{Fetch, Opened};
use super::verify::{self, Reading};
use super::{NoDigest, Phase, Plan, Run, Written};

/// One image on its way into its slot.
pub(crate) struct Work<'a> {
    pub(crate) image: &'a Image,
    pub(crate) index: usize,
    pub(crate) slot: Box<dyn Slot>,
    /// What is still to be fetched; `None` once the image is written.
    pub(crate) todo: Option<Todo>,
    /// Filled when the image is written and verified but for its head.
    pub(crate) written: Option<Written>,
    /// Digest of the head that waits.
    pub(crate) head: Option<Sha256>,
}

/// How an image is fetched.
pub(crate) struct Todo {
    pub(crate) format: Compression,
    /// Bytes of the whole source, if anything tells.
    pub(crate) total: Option<u64>,
    pub(crate) etag: Option<String>,
    /// The open source; `None` where it was closed again after its header was seen, so that servers are not kept
    /// waiting while other images are written.
    pub(crate) open: Option<Source>,
    pub(crate) start: Start,
    /// Bytes taken from the source so far that are not in `open`.
    pub(crate) probed: u64,
}

/// A source of which the first pieces are here.
pub(crate) struct Source {
    pub(crate) opened: Opened,
    pub(crate) first: Vec<Bytes>,
}

/// Where writing starts.
#[derive(Clone, Default)]
pub(crate) struct Start {
    pub(crate) source: u64,
    pub(crate) raw: u64,
    /// Over the source up to there.
    pub(crate) digests: Digests,
    pub(crate) resumed: bool,
}

impl Work<'_> {
    /// A fault of this slot.
    pub(crate) fn fault(&self, what: &'static str, at: u64) -> impl FnOnce(std::io::Error) -> Fault + use<> {
        let path = self.slot.path().to_owned();
        move |source| Fault::Slot { what, path, at, source }
    }

    pub(crate) fn spoil(&mut self) -> Result<(), Fault> {
        let fault = self.fault("zero the head of", 0);
        self.slot.spoil().map_err(fault)
    }

    /// Bytes of the image's head.
    pub(crate) fn head_len(size: u64) -> usize {
        usize::try_from(size).map_or(HEAD, |size| size.min(HEAD))
    }

    pub(crate) fn publish(&mut self, heads: &Heads<'_>) -> Result<(), Fault> {
        let mut head = Vec::new();
        if self.slot.in_place() {
            let size = self.written.as_ref().map_or(0, |w| w.size);
            head = heads.load(&self.image.slot, Self::head_len(size))?;
            if self.head != Some(digest::sha256(&head)) {
                return Err(Fault::ReadBack { path: self.slot.path().to_owned() });
            }
        }
        let fault = self.fault("write the head of", 0);
        self.slot.publish(&head).map_err(fault)
    }
}

/// Digests over the source that are wanted: not those that the raw image answers as well.
pub(crate) fn wanted_of_source(image: &Image, format: Compression) -> Wanted {
    let packed = format != Compression::None;
    Wanted {
        sha256: packed && image.file.sha256.is_some(),
        md5: image.file.md5.is_some() || (!packed && image.raw.md5.is_some()),
    }
}

/// Digests over the raw image: always the SHA-256, by which the slot is known later.
pub(crate) fn wanted_of_raw(image: &Image, format: Compression) -> Wanted {
    Wanted { sha256: true, md5: format != Compression::None && image.raw.md5.is_some() }
}

/// What the plan itself shows.
pub(crate) fn check(plan: &Plan<'_>) -> Result<(), InstallError> {
    let mut names = BTreeSet::new();
    for image in plan.images {
        let name = &image.slot;
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        // It becomes part of file names.
        let fault = if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(word)
        {
            Some(Fault::BadName)
        } else if !names.insert(name) {
            Some(Fault::NamedTwice)
        } else if !has_digest(image) && plan.no_digest == NoDigest::Refuse {
            Some(Fault::NoDigest)
        } else {
            None
        };
        if let Some(fault) = fault {
            return Err(InstallError::at(name, fault));
        }
    }
    if names.is_empty() { Err(InstallError::NoImages) } else { Ok(()) }
}

fn has_digest(image: &Image) -> bool {
    [image.raw, image.file].iter().any(|e| e.sha256.is_some() || e.md5.is_some())
}

/// Prepares all images. Nothing is written but room for heads in the state directory.
pub(crate) fn all<'p>(
    slots: Vec<Box<dyn Slot>>,
    run: &mut Run<'_, 'p>,
) -> Result<Vec<Work<'p>>, InstallError> {
    let plan = run.plan;
    let resume = plan.resume.filter(|c| c.image <= plan.images.len());
    if plan.resume.is_some() && resume.is_none() {
        tracing::warn!("the stored checkpoint is not of these images: starting again");
    }
    let mut works = Vec::with_capacity(slots.len());
    let mut streaming = false;
    for (index, (image, slot)) in plan.images.iter().zip(slots).enumerate() {
        let mut work = Work { image, index, slot, todo: None, written: None, head: None };
        let at = |fault| InstallError::at(&image.slot, fault);
        let begun = resume.filter(|c| index <= c.image);
        if begun.is_some_and(|c| index < c.image) {
            adopt(&mut work, run).map_err(at)?;
        }
        if work.written.is_none() {
            let checkpoint = begun.filter(|c| c.image == index && c.source_offset > 0);
            let mut todo = open(&mut work, checkpoint, run).map_err(at)?;
            if streaming {
                let source = todo.open.take();
                todo.probed += source.map_or(0, |s| s.first.iter().map(|p| p.len() as u64).sum());
            }
            streaming = true;
            if work.slot.in_place() && !todo.start.resumed {
                run.heads.reserve(&image.slot).map_err(at)?;
            }
            work.todo = Some(todo);
        }
        works.push(work);
    }
    Ok(works)
}

/// Takes over an image that an interrupted installation had finished, if what it left reads back as noted.
fn adopt(work: &mut Work<'_>, run: &mut Run<'_, '_>) -> Result<(), Fault> {
    let (image, heads) = (work.image, &run.heads);
    let again = |why: &str| tracing::warn!(slot = image.slot, "{why}: writing this image again");
    let Some(note) = heads.read_note(&image.slot).filter(|n| n.raw == image.raw && n.file == image.file)
    else {
        again("there is no note of what was written");
        return Ok(());
    };
    let mut head = None;
    if work.slot.in_place() {
        match heads.load(&image.slot, Work::head_len(note.size)) {
            Ok(stored) => head = Some(stored),
            Err(fault) => {
                again(&fault.to_string());
                return Ok(());
            }
        }
    }
    if !work.slot.holds(note.size, true) {
        again("the slot does not hold it any more");
        return Ok(());
    }
    let mut digests = Digests::new(Wanted { sha256: true, md5: false });
    let mut reading = Reading::new(work.index, Phase::Resuming, run);
    verify::feed(&mut *work.slot, head.as_deref(), note.size, &mut digests, &mut reading)?;
    if digests.values().sha256 != Some(note.sha256) {
        again("what was written does not read back");
        return Ok(());
    }
    work.head = head.map(|head| digest::sha256(&head));
    work.written = Some(Written {
        slot: image.slot.clone(),
        size: note.size,
        sha256: note.sha256,
        file_sha256: note.file_sha256,
        md5: note.md5,
        resumed: true,
        read_back: true,
        fetched: 0,
    });
    Ok(())
}

/// Opens the source at `checkpoint`, or at its beginning, and looks at its header.
fn open(work: &mut Work<'_>, checkpoint: Option<&Checkpoint>, run: &mut Run<'_, '_>) -> Result<Todo, Fault> {
    let (image, plan, fetch) = (work.image, run.plan, &mut *run.fetch);
    let mut probed = 0;
    if let Some(checkpoint) = checkpoint {
        // Any bytes may follow a checkpoint of a raw image: how it is packed only its beginning tells.
        let named = image.compression;
        let format = match named {
            Some(format) => format,
            None => {
                let source = peek(image, 0, checkpoint.etag.as_deref(), fetch)?;
                probed += source.first.iter().map(|p| p.len() as u64).sum::<u64>();
                decode::recognise(image, &joined(&source.first))?
            }
        };
        match resume_point(work, checkpoint, format, &run.heads) {
            Ok(start) => {
                let source = peek(image, checkpoint.source_offset, checkpoint.etag.as_deref(), fetch)?;
                if source.opened.total.is_none_or(|total| total >= checkpoint.source_offset) {
                    return todo(work, source, format, start, plan, probed);
                }
                tracing::warn!(slot = image.slot, "the checkpoint lies beyond the source: starting again");
            }
            Err(why) => {
                tracing::warn!(slot = image.slot, "cannot go on at the checkpoint, {why}: starting again")
            }
        }
    }
    let source = peek(image, 0, None, fetch)?;
    let format = decode::recognise(image, &joined(&source.first))?;
    let digests = Digests::new(wanted_of_source(image, format));
    todo(work, source, format, Start { digests, ..Start::default() }, plan, probed)
}

/// The state in which `checkpoint` was made, or why it cannot be had.
fn resume_point(
    work: &mut Work<'_>,
    checkpoint: &Checkpoint,
    format: Compression,
    heads: &Heads<'_>,
) -> Result<Start, String> {
    let (source, raw) = (checkpoint.source_offset, checkpoint.raw_offset);
    if raw < HEAD as u64 {
        return Err("it lies in the head".to_owned());
    }
    if work.image.raw.size.is_some_and(|size| raw > size) || (format == Compression::None && source != raw) {
        return Err("it is not of this image".to_owned());
    }
    let digests = Digests::restore(wanted_of_source(work.image, format), &checkpoint.source_digests)
        .ok_or("its digests are of another version")?;
    if work.slot.in_place() {
        heads.load(&work.image.slot, HEAD).map_err(|fault| fault.to_string())?;
    }
    if !work.slot.holds(raw, false) {
        return Err("the slot does not hold so much".to_owned());
    }
    Ok(Start { source, raw, digests, resumed: true })
}

/// Compares what the source and its header tell with what the image may be.
fn todo(
    work: &Work<'_>,
    source: Source,
    format: Compression,
    start: Start,
    plan: &Plan<'_>,
    probed: u64,
) -> Result<Todo, Fault> {
    let image = work.image;
    if source.first.iter().all(Bytes::is_empty) && !start.resumed {
        return Err(Fault::Empty);
    }
    let hint = decode::probe(format, &joined(&source.first), &plan.limits, start.resumed)?;
    let total = source.opened.total.or(image.file.size);
    let raw_of_total = total.filter(|_| format == Compression::None);
    for (what, got, expected) in
        [("source", source.opened.total, image.file.size), ("image", raw_of_total, image.raw.size)]
    {
        if let (Some(got), Some(expected)) = (got, expected)
            && got != expected
        {
            return Err(Fault::Size { what, got, expected });
        }
    }
    if start.raw == 0 && image.raw.size.is_some_and(|size| size < hint) {
        return Err(Fault::TooLong { what: "image", limit: image.raw.size.unwrap_or(hint) });
    }
    let size = image.raw.size.or(raw_of_total).unwrap_or(0).max(start.raw.saturating_add(hint));
    let capacity = work.slot.capacity();
    if size > capacity {
        return Err(if work.slot.in_place() {
            Fault::DoesNotFit { size, capacity }
        } else {
            Fault::NoSpace { size, free: capacity }
        });
    }
    // A raw image of which only the raw size is known ends there.
    let total = total.or(image.raw.size.filter(|_| format == Compression::None));
    let etag = source.opened.etag.clone();
    Ok(Todo { format, total, etag, open: Some(source), start, probed })
}

/// Opens the source and takes enough of it to see a header.
fn peek(image: &Image, from: u64, etag: Option<&str>, fetch: &mut dyn Fetch) -> Result<Source, Fault> {
    let mut opened = fetch.open(image, from, etag).map_err(|source| fetch_fault(image, source))?;
    let (mut first, mut len) = (Vec::new(), 0);
    while len < PROBE {
        match opened.stream.next().map_err(|source| fetch_fault(image, source))? {
            Some(piece) => {
                len += piece.len();
                first.push(piece);
            }
            None => break,
        }
    }
    Ok(Source { opened, first })
}

impl Todo {
    /// The open source, opened again if it was closed.
    pub(crate) fn source(&mut self, image: &Image, fetch: &mut dyn Fetch) -> Result<Source, Fault> {
        if let Some(source) = self.open.take() {
            return Ok(source);
        }
        let opened = fetch
            .open(image, self.start.source, self.etag.as_deref())
            .map_err(|source| fetch_fault(image, source))?;
        let same = opened.total.is_none() || self.total.is_none() || opened.total == self.total;
        if !same || (self.etag.is_some() && opened.etag != self.etag) {
            let reason = "its size or tag is another than a moment ago".to_owned();
            return Err(fetch_fault(image, FetchError::Changed { reason }));
        }
        Ok(Source { opened, first: Vec::new() })
    }
}

fn fetch_fault(image: &Image, source: FetchError) -> Fault {
    Fault::Fetch { from: image.source_for_log(), source }
}

/// The first bytes in one piece; a long one is cut, since only headers are looked at.
fn joined(first: &[Bytes]) -> Vec<u8> {
    first.iter().flat_map(|piece| piece.iter().copied()).take(PROBE).collect()
}
