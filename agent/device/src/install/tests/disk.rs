//! A disk with a volatile cache that can fail at any operation and lose its power.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::libc;

use crate::install::slot::{self, Slot};

/// The unit that the disk writes whole or not at all.
pub(crate) const SECTOR: usize = 512;
/// The sectors by which an image is recognised, the first of them or the second.
pub(crate) const MARKS: [usize; 2] = [0, 2 * SECTOR];

/// Which sectors of a cache outlive a power cut.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Luck {
    Any(u64),
    /// Those without which it cannot be mounted: the worst that can happen to a head that comes.
    OnlyTheMarks,
    /// The worst that can happen to a head that goes.
    AllButTheMarks,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) durable: Vec<u8>,
    /// Sectors in the cache, in the order in which they were written.
    cache: Vec<(usize, Vec<u8>)>,
    /// Operations until everything fails, as at a power cut.
    pub(crate) alive: Option<usize>,
    /// Bytes until writes fail with this error.
    pub(crate) fail: Option<(usize, i32)>,
    /// Writes take at most this much.
    pub(crate) short: Option<usize>,
    /// Zeroes what lies behind an image, as a file that is written in place does.
    pub(crate) tail: bool,
    /// Panics at the next write.
    pub(crate) panic: bool,
    pub(crate) operations: usize,
    /// Order in which heads came to all disks that share it.
    pub(crate) published: Option<Arc<Mutex<Vec<String>>>>,
    pub(crate) name: String,
}

impl State {
    fn operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        match &mut self.alive {
            Some(0) => Err(io::Error::other("power cut")),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn write(&mut self, bytes: &[u8], at: u64) {
        assert_eq!(bytes.len() % SECTOR, 0, "direct I/O takes whole blocks");
        assert_eq!(at % SECTOR as u64, 0, "direct I/O begins at blocks");
        let at = usize::try_from(at).unwrap();
        assert!(at + bytes.len() <= self.durable.len(), "beyond the end");
        let sectors = bytes.chunks(SECTOR).enumerate();
        self.cache.extend(sectors.map(|(i, sector)| (at + i * SECTOR, sector.to_vec())));
    }

    fn settle(&mut self) {
        for (at, sector) in std::mem::take(&mut self.cache) {
            self.durable[at..at + SECTOR].copy_from_slice(&sector);
        }
    }

    /// Power is gone, and some of the cache may have got to the disk.
    pub(crate) fn power_cut(&mut self, luck: Luck) {
        let mut chance = if let Luck::Any(seed) = luck { seed } else { 0 };
        for (at, sector) in std::mem::take(&mut self.cache) {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let survives = match luck {
                Luck::Any(_) => chance >> 63 == 1,
                Luck::OnlyTheMarks => MARKS.contains(&at),
                Luck::AllButTheMarks => !MARKS.contains(&at),
            };
            if survives {
                self.durable[at..at + SECTOR].copy_from_slice(&sector);
            }
        }
        self.alive = None;
    }

    /// Changes one byte behind everybody's back.
    pub(crate) fn damage(&mut self, at: usize) {
        self.settle();
        self.durable[at] = 0xee;
    }

    /// What the machine would read now.
    pub(crate) fn seen(&self) -> Vec<u8> {
        let mut seen = self.durable.clone();
        for (at, sector) in &self.cache {
            seen[*at..*at + SECTOR].copy_from_slice(sector);
        }
        seen
    }
}

/// Shared, so that it outlives the installation.
#[derive(Clone, Default)]
pub(crate) struct Disk(pub(crate) Arc<Mutex<State>>);

impl Disk {
    pub(crate) fn new(name: &str, content: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State { durable: content, name: name.to_owned(), ..State::default() })))
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Slot for Disk {
    fn path(&self) -> &Path {
        Path::new("/dev/test")
    }

    fn capacity(&self) -> u64 {
        self.with(|s| s.durable.len() as u64)
    }

    fn align(&self) -> usize {
        SECTOR
    }

    fn in_place(&self) -> bool {
        true
    }

    fn holds(&mut self, size: u64, _complete: bool) -> bool {
        size <= self.capacity()
    }

    fn spoil(&mut self) -> io::Result<()> {
        slot::spoil_in_place(self)
    }

    fn begin(&mut self, _keep: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.with(|s| {
            s.operation()?;
            assert!(!s.panic, "the test's own panic");
            let n = s.short.map_or(bytes.len(), |short| short.min(bytes.len()));
            if let Some((left, errno)) = &mut s.fail {
                if *left < n {
                    return Err(io::Error::from_raw_os_error(*errno));
                }
                *left -= n;
            }
            s.write(&bytes[..n - n % SECTOR], at);
            Ok(n)
        })
    }

    fn zero(&mut self, at: u64, len: u64) -> io::Result<()> {
        self.with(|s| {
            s.operation()?;
            s.write(&vec![0; usize::try_from(len).unwrap()], at);
            Ok(())
        })
    }

    fn read_at(&mut self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.with(|s| {
            if s.alive == Some(0) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let seen = s.seen();
            let at = usize::try_from(at).unwrap();
            let n = bytes.len().min(seen.len() - at);
            bytes[..n].copy_from_slice(&seen[at..at + n]);
            Ok(n)
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.with(|s| {
            s.operation()?;
            s.settle();
            Ok(())
        })
    }

    fn seal(&mut self, size: u64) -> io::Result<()> {
        if self.with(|s| s.tail) {
            slot::zero_tail(self, size)?;
        }
        self.sync()
    }

    fn publish(&mut self, head: &[u8]) -> io::Result<()> {
        slot::publish_in_place(self, head)?;
        self.with(|s| {
            if let Some(all) = &s.published {
                all.lock().unwrap().push(s.name.clone());
            }
        });
        Ok(())
    }

    fn discard(&mut self) {}
}
