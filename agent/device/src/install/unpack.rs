//! The second thread: decodes into large buffers, digests the source as it is used up and the image before it is handed
//! over, notes restart points.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use bytes::{Buf, Bytes};
use otandem_core::image::Compression;

use super::Limits;
use super::buffer::{BUFFER, Buffer};
use super::decode::{self, Decode};
use super::digest::Digests;
use super::error::Fault;
use super::receive::Piece;

/// How often a thread that waits for the source looks whether it still should.
const LOOK: Duration = Duration::from_millis(100);

/// A place at which decoding can begin anew.
#[derive(Clone)]
pub(crate) struct Restart {
    pub(crate) source: u64,
    pub(crate) raw: u64,
    /// Over the source up to here.
    pub(crate) digests: Digests,
}

/// A buffer for the writing thread.
pub(crate) struct Filled {
    pub(crate) buffer: Buffer,
    /// Offset in the raw image of the buffer's first byte.
    pub(crate) start: u64,
    /// Bytes in use.
    pub(crate) len: usize,
    /// The last restart point within.
    pub(crate) restart: Option<Restart>,
    /// Bytes of the source used up so far.
    pub(crate) source: u64,
}

/// What the source came to.
pub(crate) struct Unpacked {
    pub(crate) source: u64,
    pub(crate) raw: u64,
    /// Over the source.
    pub(crate) digests: Digests,
    /// Over the raw image.
    pub(crate) image: Digests,
}

/// Why the thread ended early.
pub(crate) enum Quit {
    Fault(Fault),
    /// A neighbour has gone, and knows why.
    Alone,
}

impl From<Fault> for Quit {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Everything that the decoding thread owns.
pub(crate) struct Unpacking<'a> {
    pub(crate) pieces: Receiver<Piece>,
    pub(crate) free: Receiver<Buffer>,
    pub(crate) full: SyncSender<Filled>,
    pub(crate) format: Compression,
    pub(crate) decoder: Box<dyn Decode>,
    pub(crate) limits: &'a Limits,
    /// Over the source, up to `source`.
    pub(crate) digests: Digests,
    /// Over the raw image, up to `raw`.
    pub(crate) image: Digests,
    pub(crate) source: u64,
    pub(crate) raw: u64,
    /// The raw image's bytes between the last whole block and `raw`.
    pub(crate) prefix: &'a [u8],
    /// The raw image may not be longer than this.
    pub(crate) limit: u64,
    pub(crate) stop: &'a AtomicBool,
    /// The writing thread has gone.
    pub(crate) abandoned: &'a AtomicBool,
}

/// The buffer that is being filled.
struct Open {
    buffer: Buffer,
    start: u64,
    /// Bytes at its beginning that are in the slot and in the digest already.
    skip: usize,
    /// Bytes in use, the skipped ones included.
    len: usize,
    room: usize,
    restart: Option<Restart>,
}

impl Unpacking<'_> {
    pub(crate) fn run(mut self) -> Result<Unpacked, Quit> {
        let mut open = self.open(self.prefix)?;
        while let Some(mut piece) = self.next()? {
            while piece.has_remaining() {
                open = self.step(&mut piece, open)?;
            }
        }
        // What the decoder still holds back.
        loop {
            let before = self.raw;
            open = self.step(&mut Bytes::new(), open)?;
            if self.raw == before {
                break;
            }
        }
        self.decoder
            .end()
            .map_err(|missing| Fault::Truncated { got: self.source, missing: missing.to_owned() })?;
        if open.len > open.skip {
            self.hand_over(open)?;
        }
        Ok(Unpacked { source: self.source, raw: self.raw, digests: self.digests, image: self.image })
    }

    /// One call of the decoder. Hands the buffer over when it is full.
    fn step(&mut self, piece: &mut Bytes, mut open: Open) -> Result<Open, Quit> {
        let output = &mut open.buffer.bytes_mut()[open.len..open.room];
        let step = self
            .decoder
            .step(piece, output)
            .map_err(|p| decode::fault(p, self.format, self.source, self.limits))?;
        if step.consumed == 0 && step.produced == 0 && piece.has_remaining() {
            let reason = "the decoder does not get on".to_owned();
            return Err(Fault::Corrupt { format: self.format, at: self.source, reason }.into());
        }
        self.digests.update(&piece[..step.consumed]);
        piece.advance(step.consumed);
        self.source += step.consumed as u64;
        self.raw += step.produced as u64;
        open.len += step.produced;
        if self.raw > self.limit {
            return Err(Fault::TooLong { what: "image", limit: self.limit }.into());
        }
        if step.boundary {
            open.restart =
                Some(Restart { source: self.source, raw: self.raw, digests: self.digests.clone() });
        }
        if open.len < open.room {
            return Ok(open);
        }
        self.hand_over(open)?;
        self.open(&[])
    }

    fn hand_over(&mut self, open: Open) -> Result<(), Quit> {
        let Open { buffer, start, skip, len, restart, .. } = open;
        // Here and not where it is written: while one buffer is on its way to the medium, the next is digested.
        self.image.update(&buffer.bytes()[skip..len]);
        let filled = Filled { buffer, start, len, restart, source: self.source };
        self.full.send(filled).map_err(|_| Quit::Alone)
    }

    /// A free buffer that begins with `prefix` and ends where the next whole buffer of the image begins.
    fn open(&mut self, prefix: &[u8]) -> Result<Open, Quit> {
        let mut buffer = self.free.recv().map_err(|_| Quit::Alone)?;
        let start = self.raw - prefix.len() as u64;
        buffer.bytes_mut()[..prefix.len()].copy_from_slice(prefix);
        let into = usize::try_from(start % BUFFER as u64).unwrap_or(0);
        Ok(Open { buffer, start, skip: prefix.len(), len: prefix.len(), room: BUFFER - into, restart: None })
    }

    /// The next piece of the source; `None` at its end. Does not outwait the caller or the writing thread.
    fn next(&mut self) -> Result<Option<Bytes>, Quit> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Fault::Stopped.into());
            }
            if self.abandoned.load(Ordering::Relaxed) {
                return Err(Quit::Alone);
            }
            match self.pieces.recv_timeout(LOOK) {
                Ok(Piece::Bytes(piece)) => return Ok(Some(piece)),
                Ok(Piece::End) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Quit::Alone),
            }
        }
    }
}
