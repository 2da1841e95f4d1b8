//! One image from its source into its slot, verified and durable but for its head.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::thread::{self, Builder, JoinHandle};
use std::time::Instant;

use otandem_core::image::Checkpoint;

use super::buffer::Buffer;
use super::decode;
use super::digest::{self, Digests, Values, Wanted};
use super::error::Fault;
use super::heads::{Heads, Note};
use super::prepare::{Todo, Work, wanted_of_raw};
use super::receive::{Bucket, Piece, Receiving};
use super::unpack::{Quit, Unpacked, Unpacking};
use super::verify::{self, Reading};
use super::write::Writing;
use super::{Phase, ReadBack, Run, Written};

/// Pieces of the source that wait for the decoder, besides the one that it works on and the one that the receiving thread
/// holds out to it. Each can be half a MiB where the network is fast, and the kernel's buffers bridge the hiccups.
const PIECES: usize = 1;

/// Large buffers in turn: one is filled while one is written. A third makes nothing faster that was measured.
const BUFFERS: usize = 2;

/// A slot without a restart point gets a word in the log once it is past this many bytes.
const ONE_FRAME: u64 = 64 << 20;

/// Writes the image of `work` if that is still to be done.
pub(crate) fn image(work: &mut Work<'_>, run: &mut Run<'_, '_>) -> Result<(), Fault> {
    let Some(mut todo) = work.todo.take() else { return Ok(()) };
    let image = work.image;
    let mut raw = Digests::new(wanted_of_raw(image, todo.format));
    let prefix = begin(work, &todo, &mut raw, run)?;
    let copied = copy(work, &mut todo, &prefix, raw, run)?;
    let (size, sha256) = match check(work, &todo, &copied) {
        Ok(checked) => checked,
        Err(fault) => {
            // It can never become right: nothing may go on from it.
            run.heads.forget(&image.slot)?;
            work.slot.discard();
            return Err(fault);
        }
    };
    let fault = work.fault("sync", size);
    work.slot.seal(size).map_err(fault)?;
    let weak = image.raw.sha256.is_none() && image.file.sha256.is_none();
    let read_back = run.plan.read_back == ReadBack::Always || todo.start.resumed || weak;
    if read_back {
        let mut digests = Digests::new(Wanted { sha256: true, md5: false });
        let head = stored_head(work, &run.heads, size)?;
        let mut reading = Reading::new(work.index, Phase::ReadingBack, run);
        verify::feed(&mut *work.slot, head.as_deref(), size, &mut digests, &mut reading)?;
        if digests.values().sha256 != Some(sha256) {
            return Err(Fault::ReadBack { path: work.slot.path().to_owned() });
        }
    }
    if size >= ONE_FRAME && copied.durable == 0 {
        tracing::info!(
            slot = image.slot,
            "no restart points in this image: a power cut would have started it again"
        );
    }
    let written = Written {
        slot: image.slot.clone(),
        size,
        sha256,
        file_sha256: copied.source.sha256.or(image.file.sha256),
        md5: copied.raw.md5.or(copied.source.md5),
        resumed: todo.start.resumed,
        read_back,
        fetched: todo.probed + copied.used - todo.start.source,
    };
    finish(work, written, run)
}

/// Notes that the image is in its slot, so that an interrupted update need not write it again.
fn finish(work: &mut Work<'_>, written: Written, run: &mut Run<'_, '_>) -> Result<(), Fault> {
    let note = Note {
        version: Note::VERSION,
        size: written.size,
        sha256: written.sha256,
        file_sha256: written.file_sha256,
        md5: written.md5,
        raw: work.image.raw,
        file: work.image.file,
    };
    run.heads.note(&work.image.slot, &note)?;
    work.written = Some(written);
    let next = Checkpoint {
        image: work.index + 1,
        source_offset: 0,
        raw_offset: 0,
        source_digests: Vec::new(),
        etag: None,
    };
    Ok(run.observer.checkpoint(&next)?)
}

/// Makes the slot ready. After an interruption the digest of what is there is built again, and the bytes after its
/// last whole block are given.
fn begin(
    work: &mut Work<'_>,
    todo: &Todo,
    raw: &mut Digests,
    run: &mut Run<'_, '_>,
) -> Result<Vec<u8>, Fault> {
    let mut prefix = Vec::new();
    if todo.start.resumed {
        let head = stored_head(work, &run.heads, todo.start.raw)?;
        let mut reading = Reading::new(work.index, Phase::Resuming, run);
        prefix = verify::feed(&mut *work.slot, head.as_deref(), todo.start.raw, raw, &mut reading)?;
        work.head = head.map(|head| digest::sha256(&head));
    } else {
        run.heads.renew(&work.image.slot)?;
    }
    let fault = work.fault("prepare", todo.start.raw);
    work.slot.begin(todo.start.raw).map_err(fault)?;
    Ok(prefix)
}

fn stored_head(work: &Work<'_>, heads: &Heads<'_>, size: u64) -> Result<Option<Vec<u8>>, Fault> {
    let stored = work.slot.in_place().then(|| heads.load(&work.image.slot, Work::head_len(size)));
    stored.transpose()
}

/// What the three threads came to.
struct Copied {
    source: Values,
    raw: Values,
    /// Bytes of the source.
    used: u64,
    /// Bytes of the raw image.
    size: u64,
    /// As [`super::Progress::durable`].
    durable: u64,
}

/// Runs the three threads. The receiving one is not waited for when another fails: it may hang in the network for as
/// long as its source cares to try.
fn copy(
    work: &mut Work<'_>,
    todo: &mut Todo,
    prefix: &[u8],
    raw: Digests,
    run: &mut Run<'_, '_>,
) -> Result<Copied, Fault> {
    let limit = work.image.raw.size.unwrap_or_else(|| work.slot.capacity());
    let decoder = decode::decoder(todo.format, &run.plan.limits, todo.start.resumed)?;
    let (pieces, receiving) = receive(work, todo, run)?;
    let (full_in, full) = sync_channel(BUFFERS);
    let (free_in, free) = channel();
    for _ in 0..BUFFERS {
        // Cannot fail: the other end is here.
        let _ = free_in.send(Buffer::new());
    }
    let abandoned = AtomicBool::new(false);
    let unpacking = Unpacking {
        pieces,
        free,
        full: full_in,
        format: todo.format,
        decoder,
        limits: &run.plan.limits,
        digests: todo.start.digests.clone(),
        image: raw,
        source: todo.start.source,
        raw: todo.start.raw,
        prefix,
        limit,
        stop: run.stop,
        abandoned: &abandoned,
    };
    let mut writing = writing(work, todo, run);
    let (wrote, unpacked) = thread::scope(|scope| {
        let unpacking = named("otandem-unpack").spawn_scoped(scope, move || unpacking.run());
        let unpacking = unpacking.map_err(Fault::Thread)?;
        let wrote = catch_unwind(AssertUnwindSafe(|| writing.run(&full, &free_in)));
        abandoned.store(true, Ordering::Relaxed);
        drop((full, free_in));
        Ok::<_, Fault>((wrote.unwrap_or(Err(Fault::Panicked("writing"))), unpacking.join()))
    })?;
    wrote?;
    let unpacked = settle(unpacked, receiving)?;
    let (head, durable) = (writing.head, writing.durable);
    work.head = head;
    let (source, raw) = (unpacked.digests.values(), unpacked.image.values());
    Ok(Copied { source, raw, used: unpacked.source, size: unpacked.raw, durable })
}

/// The first thread, and what comes from it.
type Started = (Receiver<Piece>, JoinHandle<Result<(), Fault>>);

/// Starts the first thread.
fn receive(work: &Work<'_>, todo: &mut Todo, run: &mut Run<'_, '_>) -> Result<Started, Fault> {
    let source = todo.source(work.image, &mut *run.fetch)?;
    let (pieces_in, pieces) = sync_channel(PIECES);
    let receiving = Receiving {
        first: source.first,
        stream: source.opened.stream,
        name: work.image.source_for_log(),
        from: todo.start.source,
        total: todo.total,
        bucket: run.plan.limits.rate.map(Bucket::new),
    };
    let receiving = named("otandem-receive").spawn(move || receiving.run(&pieces_in));
    Ok((pieces, receiving.map_err(Fault::Thread)?))
}

/// The third thread's work; it is done on the thread of the caller.
fn writing<'a>(work: &'a mut Work<'_>, todo: &Todo, run: &'a mut Run<'_, '_>) -> Writing<'a> {
    Writing {
        index: work.index,
        name: &work.image.slot,
        slot: &mut *work.slot,
        heads: &run.heads,
        observer: &mut *run.observer,
        limits: &run.plan.limits,
        head: work.head,
        etag: todo.etag.clone(),
        source_total: todo.total,
        raw_total: work.image.raw.size,
        zeros: (0, 0),
        restart: None,
        durable: todo.start.raw,
        saved: Instant::now(),
        stop: run.stop,
    }
}

/// What the first two threads came to, once the third has ended well.
fn settle(
    unpacked: thread::Result<Result<Unpacked, Quit>>,
    receiving: JoinHandle<Result<(), Fault>>,
) -> Result<Unpacked, Fault> {
    match unpacked {
        Err(_) => Err(Fault::Panicked("unpacking")),
        Ok(Ok(unpacked)) => Ok(unpacked),
        Ok(Err(Quit::Fault(fault))) => Err(fault),
        // Its pieces ended, so it has.
        Ok(Err(Quit::Alone)) => match receiving.join() {
            Ok(Err(fault)) => Err(fault),
            Ok(Ok(())) | Err(_) => Err(Fault::Panicked("receiving")),
        },
    }
}

/// Sizes and digests, against what was promised.
fn check(work: &Work<'_>, todo: &Todo, copied: &Copied) -> Result<(u64, otandem_core::image::Sha256), Fault> {
    let image = work.image;
    let sizes = [("source", copied.used, image.file.size), ("image", copied.size, image.raw.size)];
    for (what, got, expected) in sizes {
        if let Some(expected) = expected.filter(|e| *e != got) {
            return Err(Fault::Size { what, got, expected });
        }
    }
    if copied.size == 0 {
        return Err(Fault::Empty);
    }
    verify::compare(image, todo.format, copied.source, copied.raw)?;
    let sha256 = copied.raw.sha256.ok_or(Fault::Panicked("writing"))?;
    Ok((copied.size, sha256))
}

fn named(name: &str) -> Builder {
    Builder::new().name(name.to_owned())
}
