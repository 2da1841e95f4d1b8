//! Reads slots back, and compares what came with what was promised.

use std::sync::atomic::{AtomicBool, Ordering};

use otandem_core::image::{Compression, Hex, Image};

use super::buffer::{BUFFER, Buffer};
use super::digest::{Digests, Values};
use super::error::Fault;
use super::slot::{self, HEAD, Slot};
use super::{Observer, Phase, Progress, Run};

/// Who is told while a slot is read, and who can end it.
pub(crate) struct Reading<'a> {
    image: usize,
    phase: Phase,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(image: usize, phase: Phase, run: &'a mut Run<'_, '_>) -> Self {
        Self { image, phase, observer: &mut *run.observer, stop: run.stop }
    }
}

/// Feeds the first `size` bytes of an image to `digests`: its `head` from there where it waits elsewhere, the rest
/// from the slot. Gives the bytes after the last whole block, which whoever goes on writing has to repeat.
pub(crate) fn feed(
    slot: &mut dyn Slot,
    head: Option<&[u8]>,
    size: u64,
    digests: &mut Digests,
    reading: &mut Reading<'_>,
) -> Result<Vec<u8>, Fault> {
    let align = slot.align();
    let path = slot.path().to_owned();
    let mut buffer = Buffer::new();
    let mut at = 0;
    if let Some(head) = head {
        digests.update(head);
        at = HEAD as u64;
    }
    let mut rest = Vec::new();
    while at < size {
        if reading.stop.load(Ordering::Relaxed) {
            return Err(Fault::Stopped);
        }
        let need = usize::try_from(size - at).map_or(BUFFER, |left| left.min(BUFFER));
        let bytes = &mut buffer.bytes_mut()[..slot::align_up(need, align)];
        slot::read_all(slot, bytes, need, at).map_err(|source| Fault::Slot {
            what: "read",
            path: path.clone(),
            at,
            source,
        })?;
        digests.update(&bytes[..need]);
        rest = bytes[need - need % align..need].to_vec();
        at += need as u64;
        reading.observer.progress(Progress {
            image: reading.image,
            phase: reading.phase,
            source: 0,
            source_total: None,
            raw: at,
            raw_total: Some(size),
            durable: 0,
        });
    }
    Ok(rest)
}

/// Compares the digests of what was written with all that were promised.
pub(crate) fn compare(image: &Image, format: Compression, source: Values, raw: Values) -> Result<(), Fault> {
    let packed = format != Compression::None;
    // What is not packed is the same at the source and in the slot, and digested once.
    let (file_sha256, raw_md5) = if packed { (source.sha256, raw.md5) } else { (raw.sha256, source.md5) };
    same("sha256 of the image", raw.sha256, image.raw.sha256)?;
    same("sha256 of the file at the source", file_sha256, image.file.sha256)?;
    same("md5 of the image", raw_md5, image.raw.md5)?;
    same("md5 of the file at the source", source.md5, image.file.md5)
}

fn same<const N: usize>(
    what: &'static str,
    got: Option<Hex<N>>,
    expected: Option<Hex<N>>,
) -> Result<(), Fault> {
    let Some(expected) = expected.filter(|e| got != Some(*e)) else { return Ok(()) };
    let got = got.map_or_else(|| "absent".to_owned(), |got| got.to_string());
    Err(Fault::Digest { what, got, expected: expected.to_string() })
}
