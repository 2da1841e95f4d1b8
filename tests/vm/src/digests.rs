//! Whether a partition holds a known image, told for each of thousands of states without reading it each time.
//!
//! A partition is digested in blocks. From one state to the next only blocks in changed ranges are looked at, and one
//! whose bytes come from where they came from before in any state is not read again. For each known image the count of
//! blocks that differ is kept, so `is` is one comparison.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use sha2::{Digest as _, Sha256};

use crate::disk::{Piece, Sectors};

/// What one digest covers, in bytes.
pub const BLOCK: u64 = 64 << 10;
/// So many blocks that were once seen are remembered; some hundred bytes each.
const MEMORY: usize = 100_000;

/// SHA-256.
pub type Digest = [u8; 32];

/// A known image: the digests of its blocks.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    len: u64,
    blocks: Vec<Digest>,
}

impl Image {
    /// Digests `len` bytes of a disk from `start` on; the last block may be shorter.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(name: &str, disk: &impl Sectors, start: u64, len: u64) -> io::Result<Self> {
        let mut buf = Vec::new();
        let blocks = (0..len.div_ceil(BLOCK)).map(|block| {
            let range = block_range(block, len);
            digest(disk, start + range.start, range.end - range.start, &mut buf)
        });
        Ok(Self { name: name.into(), len, blocks: blocks.collect::<io::Result<_>>()? })
    }

    /// As it was given.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Where a block lies in something of `len` bytes.
fn block_range(block: u64, len: u64) -> Range<u64> {
    block * BLOCK..((block + 1) * BLOCK).min(len)
}

fn digest(disk: &impl Sectors, offset: u64, len: u64, buf: &mut Vec<u8>) -> io::Result<Digest> {
    // At most BLOCK: every caller comes from block_range.
    buf.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
    disk.read(offset, buf)?;
    Ok(Sha256::digest(&*buf).into())
}

/// A known image and how far the partition is from it.
#[derive(Debug)]
struct Known {
    image: Image,
    /// Block by block; counted in `count`.
    differs: Vec<bool>,
    count: usize,
}

/// The digests of a partition, kept up to date.
#[derive(Debug)]
pub struct BlockDigests {
    start: u64,
    len: u64,
    blocks: Vec<Digest>,
    known: Vec<Known>,
    /// Offset and recipe -> digest.
    seen: HashMap<(u64, Vec<Piece>), Digest>,
    buf: Vec<u8>,
}

impl BlockDigests {
    /// Digests a partition (start and length in bytes) as it is now; `known` are the images that it may hold from its
    /// start on. One that is longer than the partition is never there.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn new(now: &impl Sectors, start: u64, len: u64, known: Vec<Image>) -> io::Result<Self> {
        let blocks = vec![[0; 32]; usize::try_from(len.div_ceil(BLOCK)).map_err(io::Error::other)?];
        let known = known.into_iter().map(|image| {
            // All of them differ until they were looked at.
            let count = image.blocks.len();
            Known { differs: vec![true; count], count, image }
        });
        let (seen, buf) = (HashMap::new(), Vec::new());
        let mut digests = Self { start, len, blocks, known: known.collect(), seen, buf };
        digests.update(now, std::slice::from_ref(&(start..start.saturating_add(len))))?;
        Ok(digests)
    }

    /// Looks at what changed since the last time (ranges of the whole disk, in order, see `State::changed`). Returns
    /// how many blocks had to be read.
    ///
    /// # Errors
    /// The disk cannot be read; the digests are then of no use.
    pub fn update(&mut self, now: &impl Sectors, changed: &[Range<u64>]) -> io::Result<u64> {
        let (mut next, mut read) = (0, 0);
        for range in changed {
            let from = range.start.max(self.start);
            let to = range.end.min(self.start + self.len);
            if from >= to {
                continue;
            }
            // Two ranges may touch one block.
            for block in ((from - self.start) / BLOCK).max(next)..(to - self.start).div_ceil(BLOCK) {
                read += self.look(now, block)?;
                next = block + 1;
            }
        }
        Ok(read)
    }

    fn look(&mut self, now: &impl Sectors, block: u64) -> io::Result<u64> {
        let index = usize::try_from(block).map_err(io::Error::other)?;
        let (whole, mut read) = self.digest_of(now, block_range(block, self.len))?;
        self.blocks[index] = whole;
        for which in 0..self.known.len() {
            let image = &self.known[which].image;
            let Some(&wanted) = image.blocks.get(index) else { continue };
            let range = block_range(block, image.len);
            let differs = if range.end > self.len {
                true
            } else if range == block_range(block, self.len) {
                whole != wanted
            } else {
                // The image ends within this block, and what lies behind it in the partition does not count.
                let (found, more) = self.digest_of(now, range)?;
                read += more;
                found != wanted
            };
            let known = &mut self.known[which];
            let before = std::mem::replace(&mut known.differs[index], differs);
            known.count = known.count - usize::from(before) + usize::from(differs);
        }
        Ok(read)
    }

    /// The digest of a range of the partition, and how many blocks were read for it (0 or 1).
    fn digest_of(&mut self, now: &impl Sectors, range: Range<u64>) -> io::Result<(Digest, u64)> {
        let (offset, len) = (self.start + range.start, range.end - range.start);
        let recipe = now.recipe(offset, len);
        let key = recipe.map(|recipe| (offset, recipe));
        if let Some(found) = key.as_ref().and_then(|key| self.seen.get(key)) {
            return Ok((*found, 0));
        }
        let found = digest(now, offset, len, &mut self.buf)?;
        if let Some(key) = key {
            if self.seen.len() >= MEMORY {
                self.seen.clear();
            }
            self.seen.insert(key, found);
        }
        Ok((found, 1))
    }

    /// Whether the partition begins with the image of this name.
    pub fn is(&self, name: &str) -> bool {
        self.known.iter().any(|known| known.image.name == name && known.count == 0)
    }

    /// The first known image that the partition holds.
    pub fn holds(&self) -> Option<&str> {
        self.known.iter().find(|known| known.count == 0).map(|known| known.image.name())
    }

    /// One digest of the whole partition: that of the digests of its blocks.
    pub fn whole(&self) -> Digest {
        Sha256::digest(self.blocks.as_flattened()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::disk::Bytes;
    use crate::replay::{Model, Models, Replay};
    use crate::write_log::made::Log;

    fn bytes(len: u64, fill: u8) -> Bytes {
        Bytes(vec![fill; usize::try_from(len).unwrap()])
    }

    #[test]
    fn an_image_that_ends_within_a_block_is_found_whatever_lies_behind_it() {
        let image = Image::read("a", &bytes(BLOCK + 700, 5), 0, BLOCK + 700).unwrap();
        let mut disk = bytes(3 * BLOCK, 5);
        let at = usize::try_from(BLOCK + 700).unwrap();
        disk.0[at + 512] = 9;
        let mut digests = BlockDigests::new(&disk, 512, 2 * BLOCK, vec![image]).unwrap();
        assert!(digests.is("a"));
        disk.0[at + 511] = 9;
        digests.update(&disk, std::slice::from_ref(&(BLOCK..2 * BLOCK))).unwrap();
        assert!(!digests.is("a"));
        assert_eq!(digests.holds(), None);
    }

    #[test]
    fn an_image_longer_than_the_partition_is_never_there() {
        for longer in [1, BLOCK, BLOCK + 1] {
            let image = Image::read("a", &bytes(2 * BLOCK + longer, 5), 0, 2 * BLOCK + longer).unwrap();
            let digests = BlockDigests::new(&bytes(4 * BLOCK, 5), 0, 2 * BLOCK, vec![image]).unwrap();
            assert!(!digests.is("a"), "{longer}");
        }
    }

    /// 8 blocks of 0xBB at 64 KiB of a disk; an image of 1s is written there in pieces of 4 KiB with two flushes.
    fn recording(folder: &Path) -> Replay {
        let (base, log) = (folder.join("base"), folder.join("log"));
        fs::write(&base, vec![0xBB; usize::try_from(10 * BLOCK).unwrap()]).unwrap();
        let mut writes = Log::new(0);
        for n in 0..8 * 16 {
            writes = writes.write(128 + 8 * n, 8, 1);
            if n % 64 == 63 {
                writes = writes.flush();
            }
        }
        fs::write(&log, writes.bytes()).unwrap();
        Replay::open(&base, &log).unwrap()
    }

    #[test]
    fn digests_kept_up_to_date_are_those_of_a_fresh_look_in_every_state() {
        let folder = tempfile::tempdir().unwrap();
        let replay = recording(folder.path());
        let known = || {
            vec![
                Image::read("old", &bytes(8 * BLOCK, 0xBB), 0, 8 * BLOCK).unwrap(),
                Image::read("new", &bytes(8 * BLOCK, 1), 0, 8 * BLOCK).unwrap(),
            ]
        };
        let cuts = replay.cuts(Models::default());
        let mut walk = replay.walk();
        let state = walk.go_to(cuts[0]).unwrap();
        let mut digests = BlockDigests::new(&state, BLOCK, 8 * BLOCK, known()).unwrap();
        let mut found = Vec::new();
        for (n, cut) in cuts.iter().enumerate() {
            let state = walk.go_to(*cut).unwrap();
            digests.update(&state, state.changed()).unwrap();
            if n % 50 == 0 {
                let fresh = BlockDigests::new(&state, BLOCK, 8 * BLOCK, known()).unwrap();
                assert_eq!(digests.whole(), fresh.whole(), "{cut:?}");
            }
            found.push((cut.model, digests.holds().map(str::to_owned)));
        }
        let prefixes: Vec<_> = found.iter().filter(|(model, _)| *model == Model::Prefix).collect();
        assert_eq!(prefixes[0].1.as_deref(), Some("old"));
        assert!(prefixes[1..prefixes.len() - 1].iter().all(|(_, holds)| holds.is_none()));
        assert_eq!(prefixes[prefixes.len() - 1].1.as_deref(), Some("new"));
    }

    #[test]
    fn what_was_seen_before_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let replay = recording(folder.path());
        let mut walk = replay.walk();
        let state = walk.go_to(replay.last(Model::Prefix)).unwrap();
        let mut digests = BlockDigests::new(&state, BLOCK, 8 * BLOCK, Vec::new()).unwrap();
        let whole = digests.whole();
        let back = crate::Cut { after: 0, model: Model::Prefix, repeat: false };
        let state = walk.go_to(back).unwrap();
        assert_eq!(digests.update(&state, state.changed()).unwrap(), 8);
        assert_ne!(digests.whole(), whole);
        let state = walk.go_to(replay.last(Model::Prefix)).unwrap();
        assert_eq!(digests.update(&state, state.changed()).unwrap(), 0);
        assert_eq!(digests.whole(), whole);
    }
}
