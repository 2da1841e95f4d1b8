//! The first thread: takes bytes from the source, counts them, keeps to the rate.

use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::{Fault, FetchError};
use super::source::ByteStream;

/// What goes to the decoding thread.
pub(crate) enum Piece {
    /// The next bytes of the source.
    Bytes(Bytes),
    /// The source has ended, and where it had to.
    End,
}

/// Everything that the receiving thread owns.
pub(crate) struct Receiving {
    /// Pieces that were taken already to look at the header.
    pub(crate) first: Vec<Bytes>,
    pub(crate) stream: Box<dyn ByteStream>,
    /// Name of the source for messages.
    pub(crate) name: String,
    /// Offset in the source of the first byte of `first`.
    pub(crate) from: u64,
    /// Bytes of the whole source, if anything tells.
    pub(crate) total: Option<u64>,
    pub(crate) bucket: Option<Bucket>,
}

impl Receiving {
    /// Hands the source over until it ends. Ends early, and well, when nobody takes the pieces any more.
    pub(crate) fn run(mut self, pieces: &SyncSender<Piece>) -> Result<(), Fault> {
        let mut got = self.from;
        let mut first = std::mem::take(&mut self.first).into_iter();
        loop {
            let next = match first.next() {
                Some(piece) => Some(piece),
                None => self.stream.next().map_err(|source| self.fault(source))?,
            };
            let Some(piece) = next else { break };
            got = got.saturating_add(piece.len() as u64);
            if let Some(total) = self.total
                && got > total
            {
                return Err(Fault::TooLong { what: "source", limit: total });
            }
            let wait = self.bucket.as_mut().map(|b| b.take(Instant::now(), piece.len()));
            if pieces.send(Piece::Bytes(piece)).is_err() {
                return Ok(());
            }
            if let Some(wait) = wait.filter(|w| !w.is_zero()) {
                std::thread::sleep(wait);
            }
        }
        if let Some(total) = self.total.filter(|total| got < *total) {
            return Err(Fault::Truncated { got, missing: format!("it has {total}") });
        }
        // If nobody listens, the others have failed and say why.
        let _ = pieces.send(Piece::End);
        Ok(())
    }

    fn fault(&self, source: FetchError) -> Fault {
        Fault::Fetch { from: self.name.clone(), source }
    }
}

/// Token bucket on source bytes, filled to a quarter of a second at most: an outage is not made up for in a burst.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    bytes_per_second: u64,
    paid: Option<Instant>,
}

impl Bucket {
    const BURST: Duration = Duration::from_millis(250);

    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid: None }
    }

    /// How long to wait after `len` bytes that came at `now`.
    fn take(&mut self, now: Instant, len: usize) -> Duration {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let per_byte = 1e9 / self.bytes_per_second as f64;
        let cost = Duration::try_from_secs_f64(f64::from(len) * per_byte / 1e9).unwrap_or(Duration::MAX);
        let earliest = now.checked_sub(Self::BURST).unwrap_or(now);
        let paid = self.paid.map_or(now, |paid| paid.max(earliest));
        // A price beyond the range of the clock is one that is never paid off.
        let paid = paid.checked_add(cost).unwrap_or_else(|| now + Duration::from_secs(86_400));
        self.paid = Some(paid);
        paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_holds_over_many_pieces() {
        let start = Instant::now();
        let (mut bucket, mut now) = (Bucket::new(1_000_000), start);
        for _ in 0..100 {
            now += bucket.take(now, 50_000);
        }
        // 5 MB at 1 MB/s, to the rounding of each wait.
        assert!((now - start).abs_diff(Duration::from_secs(5)) < Duration::from_micros(1));
    }

    #[test]
    fn an_outage_is_not_made_up_for() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1_000_000);
        bucket.take(start, 1);
        let later = start + Duration::from_secs(3600);
        // A quarter of a second's worth is free, the rest is not.
        assert!(bucket.take(later, 250_000).is_zero());
        assert_eq!(bucket.take(later, 1_000_000), Duration::from_secs(1));
    }
}
