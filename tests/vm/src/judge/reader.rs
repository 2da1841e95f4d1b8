//! Reads the loader's memory out of a state, and sees to it that nothing else that the loader needs was touched.

use std::io;
use std::ops::Range;

use otandem_images::{Chain, Partition};

use super::boot::{AREA, Entries, Memory};
use super::fat::{Entry, Fat, FatError};
use crate::disk::Sectors;

/// Bytes of the partition table at either end of the disk.
const TABLE: u64 = 1 << 20;
/// Where the entries are.
const ENTRIES: &str = "loader/entries";

/// A file that stays where it is.
#[derive(Debug, Clone)]
struct Fixed {
    /// Index of its volume.
    volume: usize,
    path: String,
    entry: Entry,
    place: Range<u64>,
}

/// Something that nobody may change.
#[derive(Debug)]
struct Untouched {
    what: String,
    range: Range<u64>,
    bytes: Vec<u8>,
    changed: bool,
}

/// The loader's part of the disk.
#[derive(Debug)]
pub struct Reader {
    chain: Chain,
    /// Where each FAT begins: ESP, XBOOTLDR.
    volumes: Vec<u64>,
    /// What has to be looked at again after a change.
    watched: Vec<Range<u64>>,
    fixed: Vec<Fixed>,
    untouched: Vec<Untouched>,
    memory: Result<Memory, String>,
}

fn meet(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn range(partition: &Partition) -> Range<u64> {
    partition.start..partition.start + partition.size
}

/// Files by volume and path.
type Files = Vec<(usize, String)>;

/// Files that only an installation of the loader changes, and those that are changed where they lie.
fn files(chain: Chain) -> (Files, Files) {
    let name = |volume: usize, path: &str| (volume, path.to_owned());
    match chain {
        Chain::UBoot => (vec![], vec![]),
        Chain::Grub => {
            (vec![name(0, "EFI/BOOT/BOOTX64.EFI"), name(0, "grub/grub.cfg")], vec![name(0, "grub/grubenv")])
        }
        Chain::SystemdBoot | Chain::SystemdBootShared => {
            let mut untouched: Vec<_> = ["EFI/BOOT/BOOTX64.EFI", "loader/loader.conf", "startup.nsh"]
                .map(|path| name(0, path))
                .into();
            let mut in_place = Vec::new();
            for (volume, set) in [0, usize::from(chain == Chain::SystemdBoot)].into_iter().zip(["a", "b"]) {
                untouched.push((volume, format!("{ENTRIES}/otandem-{set}.template")));
                for file in ["vmlinuz", "initrd"] {
                    in_place.push((volume, format!("otandem/{set}/{file}")));
                }
            }
            (untouched, in_place)
        }
    }
}

impl Reader {
    /// Learns what is where on the disk before the first write.
    ///
    /// # Errors
    /// The disk is not one of that chain.
    pub fn new(base: &impl Sectors, chain: Chain, layout: &[Partition]) -> Result<Self, FatError> {
        let part = |name: &str| layout.iter().find(|partition| partition.name == name).map(range);
        let watched: Vec<_> = ["boot", "uboot-env", "esp", "xbootldr"].into_iter().filter_map(part).collect();
        let volumes: Vec<u64> = ["esp", "xbootldr"].into_iter().filter_map(part).map(|r| r.start).collect();
        let (still, in_place) = files(chain);
        let mut untouched = vec![("partition table".to_owned(), 0..TABLE)];
        untouched.push(("second partition table".to_owned(), base.size() - TABLE..base.size()));
        untouched.extend(part("boot").map(|range| ("boot partition".to_owned(), range)));
        let mut fixed = Vec::new();
        let fats: Result<Vec<_>, _> = volumes.iter().map(|start| Fat::open(base, *start)).collect();
        for (volume, path) in still.iter().chain(&in_place) {
            let fat = &fats.as_ref().map_err(|_| FatError::Missing { path: path.clone() })?[*volume];
            let entry = fat.find(path)?;
            let chain = || FatError::Chain { what: path.clone() };
            let (start, len) = fat.extent(&entry).ok_or_else(chain)?;
            fixed.push(Fixed { volume: *volume, path: path.clone(), entry, place: start..start + len });
        }
        untouched.extend(fixed[..still.len()].iter().map(|f| (f.path.clone(), f.place.clone())));
        let read = |(what, range): (String, Range<u64>)| {
            let failed = |source| FatError::Disk { start: range.start, source };
            let bytes = bytes(base, &range).map_err(failed)?;
            Ok(Untouched { what, range, bytes, changed: false })
        };
        let untouched = untouched.into_iter().map(read).collect::<Result<_, FatError>>()?;
        let unread = Err("never read".into());
        let mut reader = Self { chain, volumes, watched, fixed, untouched, memory: unread };
        reader.memory = reader.read(base);
        Ok(reader)
    }

    /// Where a file lies that is written in place.
    #[must_use]
    pub fn place(&self, volume: usize, path: &str) -> Option<Range<u64>> {
        self.fixed.iter().find(|f| f.volume == volume && f.path == path).map(|f| f.place.clone())
    }

    /// The memory in this state; the error says what the loader would stumble over.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn update(
        &mut self,
        now: &impl Sectors,
        changed: &[Range<u64>],
    ) -> io::Result<&Result<Memory, String>> {
        for place in &mut self.untouched {
            if changed.iter().any(|range| meet(range, &place.range)) {
                place.changed = bytes(now, &place.range)? != place.bytes;
            }
        }
        // Kernels are large and many writes long: they are judged as slots.
        let slots: Vec<Range<u64>> = match self.chain {
            Chain::SystemdBoot | Chain::SystemdBootShared => self
                .fixed
                .iter()
                .filter(|f| f.path.starts_with("otandem/"))
                .map(|f| f.place.clone())
                .collect(),
            _ => vec![],
        };
        let inside =
            |range: &Range<u64>| slots.iter().any(|slot| slot.start <= range.start && range.end <= slot.end);
        let due = changed
            .iter()
            .any(|range| self.watched.iter().any(|watched| meet(watched, range)) && !inside(range));
        if due {
            self.memory = self.read(now);
        }
        if let Some(place) = self.untouched.iter().find(|place| place.changed) {
            self.memory = Err(format!("{} is not as it was", place.what));
        }
        Ok(&self.memory)
    }

    fn read(&self, now: &impl Sectors) -> Result<Memory, String> {
        if self.chain == Chain::UBoot {
            let start = self.watched.last().map_or(0, |range| range.start);
            let area = bytes(now, &(start..start + AREA as u64)).map_err(|e| e.to_string())?;
            return Ok(Memory::UBoot(area));
        }
        let fats: Result<Vec<_>, _> = self.volumes.iter().map(|start| Fat::open(now, *start)).collect();
        let fats = fats.map_err(|e| e.to_string())?;
        for fixed in &self.fixed {
            let fat = &fats[fixed.volume];
            let entry = fat.find(&fixed.path).map_err(|e| e.to_string())?;
            let place = fat.extent(&entry).map(|(start, len)| start..start + len);
            if (entry.len, place) != (fixed.entry.len, Some(fixed.place.clone())) {
                return Err(format!("{} is not where it was", fixed.path));
            }
        }
        if self.chain == Chain::Grub {
            let place = self.place(0, "grub/grubenv").ok_or("no grubenv")?;
            return Ok(Memory::Grub(bytes(now, &place).map_err(|e| e.to_string())?));
        }
        let conf = fats[0].find("loader/loader.conf").and_then(|file| fats[0].content(&file));
        let conf = String::from_utf8_lossy(&conf.map_err(|e| e.to_string())?).into_owned();
        let mut files = Vec::new();
        for (volume, fat) in fats.iter().enumerate() {
            for entry in fat.list(ENTRIES).map_err(|e| e.to_string())? {
                if !entry.directory {
                    // One whose clusters lead nowhere cannot be read by the loader either.
                    let content = fat.content(&entry).unwrap_or_default();
                    files.push((volume, entry.name, content));
                }
            }
        }
        Ok(Memory::SystemdBoot(Entries { shared: self.chain == Chain::SystemdBootShared, files, conf }))
    }
}

fn bytes(disk: &impl Sectors, range: &Range<u64>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
    disk.read(range.start, &mut bytes)?;
    Ok(bytes)
}
