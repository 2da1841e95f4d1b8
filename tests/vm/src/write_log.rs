//! Reads the log of writes that QEMU's `blklogwrites` driver makes (the on-disk form of the kernel's dm-log-writes).
//!
//! All numbers are little-endian 64-bit. A superblock of one log sector: magic, version, count of entries, and the size
//! of a log sector (32 bits). Then one entry after the other: a sector with first sector, count of sectors, flags and
//! length of a mark, followed by the data in as many sectors; a discard and a flush have none.
//!
//! The count in the superblock is brought up to date at a flush only. After a killed QEMU there are more entries behind
//! it: the reader goes on to the end of the file and stops at the first thing there that cannot be an entry. Before the
//! first flush there is no superblock at all: the file is empty, or begins with a hole.

use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const HEADER: u64 = 32;
/// Log sectors: what a disk can have. (The driver would take up to 16 MiB, nobody needs that.)
const SECTOR_SIZES: std::ops::RangeInclusive<u64> = 512..=4096;

/// Log sectors of a log that has no superblock yet: what [`crate::Vm`] asks for.
const UNSAID: u64 = 512;

const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const METADATA: u64 = 16;
const KNOWN_FLAGS: u64 = FLUSH | FUA | DISCARD | MARK | METADATA;

/// Why a log cannot be read.
#[derive(Debug, Error)]
pub enum WriteLogError {
    /// The file of the log.
    #[error("the write log cannot be read at byte {at}: {source}; was it moved while the device still runs?")]
    Read {
        /// Where, in bytes.
        at: u64,
        /// What the system says.
        source: io::Error,
    },
    /// No superblock.
    #[error(
        "this is no write log: it begins with {found:#x}, not with {MAGIC:#x}; was the device powered on with one?"
    )]
    NotALog {
        /// The first eight bytes.
        found: u64,
    },
    /// A version that is not known, or a sector size that no disk has.
    #[error(
        "a write log of version {version} with sectors of {sector_size} bytes is not understood; set log-sector-size=512"
    )]
    Unsupported {
        /// 1 is known.
        version: u64,
        /// 512 to 4096 are.
        sector_size: u64,
    },
    /// An entry that the superblock vouches for is none.
    #[error("entry {index} of the write log (byte {at}) is damaged: {why}; record again")]
    Damaged {
        /// Counted from 0.
        index: u64,
        /// Where it begins, in bytes.
        at: u64,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What an entry did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Data went to the disk; they lie in the log at this offset (bytes).
    Write(u64),
    /// The content was given up: it reads as zeros.
    Discard,
    /// No content: a flush alone, or a mark.
    Nothing,
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Counted from 0.
    pub index: u64,
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// How much, in bytes; 0 for a flush alone.
    pub len: u64,
    /// What it did there.
    pub act: Act,
    /// All that was written before it was on the medium when it was done.
    pub flush: bool,
    /// It was itself on the medium when it was done.
    pub fua: bool,
}

/// Reads entries one by one; the data stay in the log.
#[derive(Debug)]
pub struct WriteLog<R> {
    reader: R,
    size: u64,
    sector_size: u64,
    /// What the superblock vouches for.
    vouched: u64,
    next: u64,
    at: u64,
    /// Whether what lies behind the last entry is no entry.
    torn: bool,
    done: bool,
}

impl<R: Read + Seek> WriteLog<R> {
    /// Reads the superblock.
    ///
    /// # Errors
    /// It is no log, or cannot be read.
    pub fn open(mut reader: R) -> Result<Self, WriteLogError> {
        let size = reader.seek(SeekFrom::End(0)).map_err(|source| WriteLogError::Read { at: 0, source })?;
        let mut block = [0; 28];
        if size >= 28 {
            read_at(&mut reader, 0, &mut block)?;
        }
        if block == [0; 28] && (size == 0 || size >= UNSAID) {
            let (sector_size, at) = (UNSAID, UNSAID);
            return Ok(Self { reader, size, sector_size, vouched: 0, next: 0, at, torn: false, done: false });
        }
        let (found, version, vouched) = (number(&block, 0), number(&block, 8), number(&block, 16));
        if found != MAGIC {
            return Err(WriteLogError::NotALog { found });
        }
        let sector_size = u64::from(u32::from_le_bytes([block[24], block[25], block[26], block[27]]));
        if version != VERSION || !SECTOR_SIZES.contains(&sector_size) || !sector_size.is_power_of_two() {
            return Err(WriteLogError::Unsupported { version, sector_size });
        }
        Ok(Self { reader, size, sector_size, vouched, next: 0, at: sector_size, torn: false, done: false })
    }

    /// Whether the log ended in the middle of something, as it may when QEMU is killed. Known once all entries were read.
    pub fn torn(&self) -> bool {
        self.torn
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// An entry that must be there is damaged, or the file cannot be read.
    pub fn read_entry(&mut self) -> Result<Option<Entry>, WriteLogError> {
        if self.done {
            return Ok(None);
        }
        let rest = self.size.saturating_sub(self.at);
        let found = if rest < self.sector_size {
            Err(if rest == 0 { "the file ends before it" } else { "the file ends within it" })
        } else {
            let mut header = [0; 32];
            read_at(&mut self.reader, self.at, &mut header)?;
            self.entry(&header, rest)
        };
        match found {
            Ok((entry, used)) => {
                self.next += 1;
                self.at += used;
                Ok(Some(entry))
            }
            Err(why) if self.next < self.vouched => {
                self.done = true;
                Err(WriteLogError::Damaged { index: self.next, at: self.at, why })
            }
            Err(_) => {
                self.done = true;
                self.torn = rest > 0;
                Ok(None)
            }
        }
    }

    /// What a header says, with `rest` bytes of file from it on; and how many of them it takes.
    fn entry(&self, header: &[u8; 32], rest: u64) -> Result<(Entry, u64), &'static str> {
        let [sector, count, flags, mark] = [0, 8, 16, 24].map(|at| number(header, at));
        let bytes = |sectors: u64| sectors.checked_mul(self.sector_size).filter(|&n| n <= u64::MAX >> 1);
        let (Some(offset), Some(len)) = (bytes(sector), bytes(count)) else {
            return Err("it lies beyond what any disk has");
        };
        if flags & !KNOWN_FLAGS != 0 {
            return Err("it has flags that do not exist");
        }
        if flags & MARK != 0 {
            // A mark has its text in its own sector, and none of its other numbers count.
            return if mark <= self.sector_size - HEADER {
                let (flush, fua) = (false, false);
                let act = Act::Nothing;
                Ok((Entry { index: self.next, offset: 0, len: 0, act, flush, fua }, self.sector_size))
            } else {
                Err("its mark is longer than a sector")
            };
        }
        if mark != 0 {
            return Err("it has the text of a mark and is none");
        }
        if len == 0 && flags & FLUSH == 0 {
            return Err("it does nothing");
        }
        let data = if flags & DISCARD == 0 { len } else { 0 };
        if data > rest - self.sector_size {
            return Err("the file ends within its data");
        }
        let act = match (len, flags & DISCARD) {
            (0, _) => Act::Nothing,
            (_, 0) => Act::Write(self.at + self.sector_size),
            _ => Act::Discard,
        };
        let (flush, fua) = (flags & FLUSH != 0, flags & FUA != 0);
        Ok((Entry { index: self.next, offset, len, act, flush, fua }, self.sector_size + data))
    }
}

impl<R: Read + Seek> Iterator for WriteLog<R> {
    type Item = Result<Entry, WriteLogError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_entry().transpose()
    }
}

fn read_at<R: Read + Seek>(reader: &mut R, at: u64, buf: &mut [u8]) -> Result<(), WriteLogError> {
    reader
        .seek(SeekFrom::Start(at))
        .and_then(|_| reader.read_exact(buf))
        .map_err(|source| WriteLogError::Read { at, source })
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

/// Logs made by hand, for tests.
#[cfg(test)]
pub(crate) mod made {
    use super::{DISCARD, FLUSH, FUA, MAGIC};

    /// A log with sectors of 512 bytes; its superblock vouches for `vouched` entries.
    pub(crate) struct Log(Vec<u8>);

    impl Log {
        pub(crate) fn new(vouched: u64) -> Self {
            let mut log = Vec::new();
            for n in [MAGIC, 1, vouched] {
                log.extend(n.to_le_bytes());
            }
            log.extend(512_u32.to_le_bytes());
            log.resize(512, 0);
            Self(log)
        }

        fn header(&mut self, sector: u64, count: u64, flags: u64) {
            let end = self.0.len() + 512;
            for n in [sector, count, flags, 0] {
                self.0.extend(n.to_le_bytes());
            }
            self.0.resize(end, 0);
        }

        /// `count` sectors full of `fill`.
        pub(crate) fn write(mut self, sector: u64, count: u64, fill: u8) -> Self {
            self.header(sector, count, 0);
            self.0.resize(self.0.len() + usize::try_from(count * 512).unwrap(), fill);
            self
        }

        pub(crate) fn fua(mut self, sector: u64, count: u64, fill: u8) -> Self {
            self.header(sector, count, FUA);
            self.0.resize(self.0.len() + usize::try_from(count * 512).unwrap(), fill);
            self
        }

        pub(crate) fn flush(mut self) -> Self {
            self.header(0, 0, FLUSH);
            self
        }

        pub(crate) fn discard(mut self, sector: u64, count: u64) -> Self {
            self.header(sector, count, DISCARD);
            self
        }

        pub(crate) fn bytes(self) -> Vec<u8> {
            self.0
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::made::Log;
    use super::*;

    fn read(log: Vec<u8>) -> (Vec<Entry>, bool) {
        let mut log = WriteLog::open(Cursor::new(log)).unwrap();
        let entries = log.by_ref().map(Result::unwrap).collect();
        (entries, log.torn())
    }

    #[test]
    fn entries_behind_a_stale_count_are_read_too() {
        let log = Log::new(1).write(8, 2, 1).flush().discard(4, 4).fua(0, 1, 2).bytes();
        let (entries, torn) = read(log);
        assert!(!torn);
        let act: Vec<_> = entries.iter().map(|e| (e.offset, e.len, e.act, e.flush, e.fua)).collect();
        assert_eq!(
            act,
            [
                (4096, 1024, Act::Write(1024), false, false),
                (0, 0, Act::Nothing, true, false),
                (2048, 2048, Act::Discard, false, false),
                (0, 512, Act::Write(3584), false, true),
            ]
        );
    }

    #[test]
    fn a_log_that_ends_in_a_write_ends_before_it() {
        let log = Log::new(0).write(0, 1, 1).write(1, 8, 2).bytes();
        for cut in 1..9 * 512 {
            let (entries, torn) = read(log[..log.len() - cut].to_vec());
            assert_eq!((entries.len(), torn), (1, cut != 9 * 512));
        }
    }

    #[test]
    fn a_damaged_entry_that_the_superblock_vouches_for_is_an_error() {
        let mut log = Log::new(2).write(0, 1, 1).write(1, 8, 2).bytes();
        log.truncate(log.len() - 512);
        let mut log = WriteLog::open(Cursor::new(log)).unwrap();
        assert!(log.read_entry().unwrap().is_some());
        assert!(matches!(log.read_entry(), Err(WriteLogError::Damaged { index: 1, at: 1536, .. })));
        assert!(log.read_entry().unwrap().is_none(), "and then it is over");
    }

    #[test]
    fn zeros_behind_the_last_entry_are_no_entry() {
        let mut log = Log::new(1).write(0, 1, 1).bytes();
        log.extend([0; 2048]);
        let (entries, torn) = read(log);
        assert_eq!((entries.len(), torn), (1, true));
    }

    #[test]
    fn a_device_that_never_flushed_has_a_log_without_a_superblock() {
        assert_eq!(read(Vec::new()), (vec![], false));
        let mut log = Log::new(0).write(3, 1, 1).bytes();
        log[..512].fill(0);
        let (entries, torn) = read(log);
        assert_eq!((entries.len(), entries[0].offset, torn), (1, 1536, false));
    }

    #[test]
    fn something_else_is_no_log() {
        assert!(matches!(WriteLog::open(Cursor::new(vec![0; 27])), Err(WriteLogError::NotALog { .. })));
        assert!(matches!(WriteLog::open(Cursor::new(vec![1; 512])), Err(WriteLogError::NotALog { .. })));
        let mut log = Log::new(0).bytes();
        log[24] = 3;
        assert!(matches!(WriteLog::open(Cursor::new(log)), Err(WriteLogError::Unsupported { .. })));
    }

    proptest! {
        #[test]
        fn garbage_is_read_to_an_end_and_never_beyond_the_file(
            garbage in prop::collection::vec(any::<u8>(), 0..8192),
            headers in prop::collection::vec((0..16_usize, prop::array::uniform4(0..20_u64)), 0..16),
            vouched in 0..4_u64,
        ) {
            let mut log = Log::new(vouched).bytes();
            log.extend(garbage);
            // Random bytes are hardly ever near an entry: small numbers where headers may lie are.
            for (sector, numbers) in headers {
                let at = (sector + 1) * 512;
                if at + 32 <= log.len() {
                    for (n, number) in numbers.into_iter().enumerate() {
                        log[at + 8 * n..at + 8 * n + 8].copy_from_slice(&number.to_le_bytes());
                    }
                }
            }
            let size = log.len() as u64;
            for (n, entry) in WriteLog::open(Cursor::new(log)).unwrap().enumerate() {
                let Ok(entry) = entry else { continue };
                prop_assert_eq!(entry.index, n as u64);
                prop_assert!(n < 20, "no end");
                if let Act::Write(at) = entry.act {
                    prop_assert!(at + entry.len <= size);
                }
            }
        }
    }
}
