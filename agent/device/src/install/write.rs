//! The third thread: writes the raw image, makes checkpoints.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use otandem_core::image::{Checkpoint, Sha256};

use super::buffer::{self, Buffer};
use super::digest;
use super::error::Fault;
use super::heads::Heads;
use super::slot::{self, HEAD, Slot};
use super::unpack::{Filled, Restart};
use super::{Limits, Observer, Phase, Progress};

/// Zeros are looked for in pieces of this size: smaller holes cost more calls than they save writes.
const HOLE: usize = 64 << 10;

/// Everything that the writing thread works on.
pub(crate) struct Writing<'a> {
    pub(crate) index: usize,
    pub(crate) name: &'a str,
    pub(crate) slot: &'a mut dyn Slot,
    pub(crate) heads: &'a Heads<'a>,
    pub(crate) observer: &'a mut dyn Observer,
    pub(crate) limits: &'a Limits,
    /// Digest of the head that waits.
    pub(crate) head: Option<Sha256>,
    pub(crate) etag: Option<String>,
    pub(crate) source_total: Option<u64>,
    pub(crate) raw_total: Option<u64>,
    /// Zero bytes that are not in the slot yet: first and length.
    pub(crate) zeros: (u64, u64),
    pub(crate) restart: Option<Restart>,
    /// Raw offset and time of the last checkpoint.
    pub(crate) durable: u64,
    pub(crate) saved: Instant,
    pub(crate) stop: &'a AtomicBool,
}

impl Writing<'_> {
    /// Writes what comes until nothing does.
    pub(crate) fn run(&mut self, full: &Receiver<Filled>, free: &Sender<Buffer>) -> Result<(), Fault> {
        while let Ok(mut filled) = full.recv() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Fault::Stopped);
            }
            self.place(&mut filled)?;
            if filled.restart.is_some() {
                self.restart = filled.restart;
            }
            let (source, raw) = (filled.source, filled.start + filled.len as u64);
            // If the other thread has gone, the end of its buffers says so.
            let _ = free.send(filled.buffer);
            self.checkpoint()?;
            self.observer.progress(Progress {
                image: self.index,
                phase: Phase::Writing,
                source,
                source_total: self.source_total,
                raw,
                raw_total: self.raw_total,
                durable: self.durable,
            });
        }
        self.flush_zeros()
    }

    /// Puts one buffer where it belongs.
    fn place(&mut self, filled: &mut Filled) -> Result<(), Fault> {
        if self.slot.in_place() && filled.start == 0 {
            let head = &filled.buffer.bytes()[..filled.len];
            self.head = Some(digest::sha256(head));
            return self.heads.store(self.name, head);
        }
        let padded = slot::align_up(filled.len, self.slot.align());
        filled.buffer.bytes_mut()[filled.len..padded].fill(0);
        self.write(&filled.buffer.bytes()[..padded], filled.start)
    }

    /// Writes runs of data, and gathers runs of zeros.
    fn write(&mut self, bytes: &[u8], start: u64) -> Result<(), Fault> {
        let mut data = 0;
        let mut at = 0;
        for piece in bytes.chunks(HOLE) {
            if buffer::is_zero(piece) {
                self.write_data(&bytes[data..at], start + data as u64)?;
                let from = start + at as u64;
                // A run that goes on; any data in between has flushed it.
                if self.zeros.1 == 0 {
                    self.zeros.0 = from;
                }
                self.zeros.1 += piece.len() as u64;
                data = at + piece.len();
            }
            at += piece.len();
        }
        self.write_data(&bytes[data..], start + data as u64)
    }

    fn write_data(&mut self, bytes: &[u8], at: u64) -> Result<(), Fault> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.flush_zeros()?;
        slot::write_all(self.slot, bytes, at).map_err(|e| self.fault("write", at, e))
    }

    fn flush_zeros(&mut self) -> Result<(), Fault> {
        let (at, len) = std::mem::take(&mut self.zeros);
        if len == 0 {
            return Ok(());
        }
        self.slot.zero(at, len).map_err(|e| self.fault("write", at, e))
    }

    /// Makes a checkpoint at the last restart point, if it is time.
    fn checkpoint(&mut self) -> Result<(), Fault> {
        let due = |r: &&Restart| {
            r.raw >= HEAD as u64
                && r.raw >= self.durable.saturating_add(self.limits.checkpoint_bytes)
                && self.saved.elapsed() >= self.limits.checkpoint_every
        };
        let Some(restart) = self.restart.as_ref().filter(due) else { return Ok(()) };
        let checkpoint = Checkpoint {
            image: self.index,
            source_offset: restart.source,
            raw_offset: restart.raw,
            source_digests: restart.digests.save(),
            etag: self.etag.clone(),
        };
        self.flush_zeros()?;
        let at = checkpoint.raw_offset;
        self.slot.sync().map_err(|e| self.fault("sync", at, e))?;
        self.observer.checkpoint(&checkpoint)?;
        self.durable = at;
        self.saved = Instant::now();
        Ok(())
    }

    fn fault(&self, what: &'static str, at: u64, source: io::Error) -> Fault {
        Fault::Slot { what, path: self.slot.path().to_owned(), at, source }
    }
}
