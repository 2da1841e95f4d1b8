//! Files on a FAT, as firmware and loaders find them: read from a disk in any state, torn ones too.
//!
//! A name that was torn from its entry (a wrong checksum, a part missing) counts for nothing, and the file has its short
//! name only, as with UEFI's own driver. A directory that cannot be followed to its end is none: OVMF shows a loader
//! nothing of it, not even what lies before the gap. The first copy of the table is the one that counts.

use std::io;

use thiserror::Error;

use crate::disk::Sectors;

/// More clusters than any FAT of a virtual device has.
const MAX_CLUSTERS: u64 = 1 << 22;
/// More entries than any of its directories has.
const MAX_DIRECTORY: usize = 1 << 20;
const ENTRY: usize = 32;
/// Attributes of an entry: part of a long name, directory, label of the volume.
const LONG: u8 = 0x0F;
const DIRECTORY: u8 = 0x10;
const LABEL: u8 = 0x08;

/// Why there is nothing to be read.
#[derive(Debug, Error)]
pub enum FatError {
    /// The disk itself.
    #[error("the FAT at byte {start} of the disk: {source}")]
    Disk {
        /// Where the partition begins.
        start: u64,
        /// What the files behind the disk say.
        source: io::Error,
    },
    /// Its first sector makes no sense.
    #[error("at byte {start} of the disk is no FAT: {why}")]
    NoFat {
        /// Where the partition begins.
        start: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// A chain of clusters that leads nowhere.
    #[error("{what}: its clusters end too soon or go round in a circle")]
    Chain {
        /// Which file or directory.
        what: String,
    },
    /// No such file.
    #[error("{path} is not there")]
    Missing {
        /// Which.
        path: String,
    },
}

/// A FAT as it is in one state: its table is in memory.
#[derive(Debug)]
pub struct Fat<'a, S> {
    disk: &'a S,
    start: u64,
    /// Bytes of a cluster.
    cluster: u64,
    /// Where cluster 2 begins, in bytes from `start`.
    data: u64,
    /// Of each cluster the next one, the end marks as they stand.
    table: Vec<u32>,
    /// From here on a number is an end.
    end: u32,
    root: Root,
}

#[derive(Debug, Clone, Copy)]
enum Root {
    /// FAT16: from byte, of so many bytes.
    Fixed(u64, u64),
    /// FAT32: a chain.
    Chain(u32),
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The long name if it is whole, else the short one.
    pub name: String,
    /// It is a directory.
    pub directory: bool,
    /// Number of its first cluster; 0: it has none.
    pub first: u32,
    /// In bytes; 0 for directories.
    pub len: u32,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 2).map_or(0, |b| u32::from(u16::from_le_bytes([b[0], b[1]])))
}

fn long(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

impl<'a, S: Sectors> Fat<'a, S> {
    /// Reads the first sector and the table of the FAT that begins at this byte of the disk.
    ///
    /// # Errors
    /// It is none, or the disk cannot be read.
    pub fn open(disk: &'a S, start: u64) -> Result<Self, FatError> {
        let failed = |source| FatError::Disk { start, source };
        let none = |why| FatError::NoFat { start, why };
        let mut boot = [0; 512];
        disk.read(start, &mut boot).map_err(failed)?;
        if word(&boot, 510) != 0xAA55 || word(&boot, 11) != 512 {
            return Err(none("its first sector has no signature, or other sectors than of 512 bytes"));
        }
        let (per_cluster, copies) = (u64::from(boot[13]), u64::from(boot[16]));
        let (reserved, entries) = (u64::from(word(&boot, 14)), u64::from(word(&boot, 17)));
        let either = |short: usize, wide: usize| match word(&boot, short) {
            0 => u64::from(long(&boot, wide)),
            some => u64::from(some),
        };
        let (sectors, fat_sectors) = (either(19, 32), either(22, 36));
        let fixed = (reserved + copies * fat_sectors) * 512;
        let data = fixed + (entries * 32).next_multiple_of(512);
        let in_data = sectors.checked_sub(data / 512).ok_or_else(|| none("it is smaller than its table"))?;
        let clusters = in_data.checked_div(per_cluster).ok_or_else(|| none("its clusters have no size"))?;
        if !(4085..MAX_CLUSTERS).contains(&clusters) {
            return Err(none("it has too few clusters or too many"));
        }
        let wide = clusters >= 65525;
        let width = if wide { 4 } else { 2 };
        let len = (clusters + 2) * width;
        if len > fat_sectors * 512 {
            return Err(none("its table is too short"));
        }
        let mut raw = vec![0; usize::try_from(len).unwrap_or(0)];
        disk.read(start + reserved * 512, &mut raw).map_err(failed)?;
        let table = match wide {
            true => raw.chunks_exact(4).map(|b| long(b, 0) & 0x0FFF_FFFF).collect(),
            false => raw.chunks_exact(2).map(|b| word(b, 0)).collect(),
        };
        let root = if wide { Root::Chain(long(&boot, 44)) } else { Root::Fixed(fixed, entries * 32) };
        let end = if wide { 0x0FFF_FFF8 } else { 0xFFF8 };
        Ok(Self { disk, start, cluster: per_cluster * 512, data, table, end, root })
    }

    /// The clusters of a chain, at most so many bytes of them.
    fn chain(&self, first: u32, most: u64) -> Option<Vec<u32>> {
        let (mut all, mut at) = (Vec::new(), first);
        while at < self.end && all.len() as u64 * self.cluster < most {
            let next = *self.table.get(usize::try_from(at).ok()?).filter(|_| at >= 2)?;
            all.push(at);
            if all.len() > self.table.len() {
                return None;
            }
            at = next;
        }
        Some(all)
    }

    fn place(&self, cluster: u32) -> u64 {
        self.start + self.data + (u64::from(cluster) - 2) * self.cluster
    }

    fn bytes(&self, what: &str, first: u32, len: u64) -> Result<Vec<u8>, FatError> {
        let broken = || FatError::Chain { what: what.into() };
        let mut out = Vec::new();
        for cluster in self.chain(first, len).ok_or_else(broken)? {
            let from = out.len();
            out.resize(from + usize::try_from(self.cluster).unwrap_or(0), 0);
            let read = self.disk.read(self.place(cluster), &mut out[from..]);
            read.map_err(|source| FatError::Disk { start: self.start, source })?;
        }
        Ok(out)
    }

    /// The entries of a directory, in its order, without labels, `.` and `..`. `path` has no slash at its ends; empty: the
    /// root.
    ///
    /// # Errors
    /// There is no such directory, or it cannot be followed to its end.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, FatError> {
        let mut raw = match self.root {
            Root::Fixed(at, len) => {
                let mut raw = vec![0; usize::try_from(len).unwrap_or(0)];
                let read = self.disk.read(self.start + at, &mut raw);
                read.map_err(|source| FatError::Disk { start: self.start, source })?;
                raw
            }
            Root::Chain(first) => self.bytes("the root directory", first, MAX_DIRECTORY as u64)?,
        };
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let found = entries(&raw).into_iter().find(|e| e.directory && e.name.eq_ignore_ascii_case(name));
            let missing = || FatError::Missing { path: format!("{name} of {path}") };
            raw = self.bytes(path, found.ok_or_else(missing)?.first, MAX_DIRECTORY as u64)?;
        }
        Ok(entries(&raw))
    }

    /// A file by its path.
    ///
    /// # Errors
    /// It is not there.
    pub fn find(&self, path: &str) -> Result<Entry, FatError> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut files = self.list(folder)?.into_iter().filter(|entry| !entry.directory);
        let found = files.find(|entry| entry.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| FatError::Missing { path: path.into() })
    }

    /// The content of a file, as far as its clusters go.
    ///
    /// # Errors
    /// Its clusters lead nowhere, or the disk cannot be read.
    pub fn content(&self, file: &Entry) -> Result<Vec<u8>, FatError> {
        if file.len == 0 || file.first == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = self.bytes(&file.name, file.first, u64::from(file.len))?;
        bytes.truncate(usize::try_from(file.len).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// Where a file lies on the disk (first byte, length), if it lies there in one piece and whole.
    #[must_use]
    pub fn extent(&self, file: &Entry) -> Option<(u64, u64)> {
        let len = u64::from(file.len);
        let chain = self.chain(file.first, len).filter(|chain| chain.len() as u64 * self.cluster >= len)?;
        let one_piece = chain.windows(2).all(|two| two[1] == two[0] + 1);
        (one_piece && len > 0).then(|| (self.place(file.first), len))
    }
}

/// The entries in the bytes of a directory.
fn entries(raw: &[u8]) -> Vec<Entry> {
    let (mut found, mut parts): (Vec<Entry>, Vec<&[u8]>) = (Vec::new(), Vec::new());
    for entry in raw.chunks_exact(ENTRY) {
        match entry[0] {
            0 => break,
            0xE5 => parts.clear(),
            _ if entry[11] & 0x3F == LONG => parts.push(entry),
            _ => {
                let long_name = long_name(&parts, entry);
                parts.clear();
                if entry[11] & LABEL != 0 || entry[0] == b'.' {
                    continue;
                }
                found.push(Entry {
                    name: long_name.unwrap_or_else(|| short_name(entry)),
                    directory: entry[11] & DIRECTORY != 0,
                    first: word(entry, 20) << 16 | word(entry, 26),
                    len: long(entry, 28),
                });
            }
        }
    }
    found
}

/// The long name that stands before an entry, if all of it does and it is this one's.
fn long_name(parts: &[&[u8]], entry: &[u8]) -> Option<String> {
    let sum = entry[..11].iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut units = Vec::new();
    for (order, part) in (1..).zip(parts.iter().rev()) {
        let last = usize::from(order) == parts.len();
        let wanted: u8 = if last { order | 0x40 } else { order };
        if part[0] != wanted || part[13] != sum {
            return None;
        }
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain([28, 30]);
        units.extend(places.map(|at| u16::from_le_bytes([part[at], part[at + 1]])));
    }
    let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
    String::from_utf16(&units[..end]).ok().filter(|name| !name.is_empty())
}

fn short_name(entry: &[u8]) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (mut base, mut extension) = (text(&entry[..8]), text(&entry[8..11]));
    // Bits by which Windows and Linux keep a short name in small letters.
    if entry[12] & 0x08 != 0 {
        base.make_ascii_lowercase();
    }
    if entry[12] & 0x10 != 0 {
        extension.make_ascii_lowercase();
    }
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

#[cfg(test)]
#[path = "fat_tests.rs"]
mod tests;
