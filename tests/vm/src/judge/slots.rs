//! What the slots of a set hold in a state: a whole image of a known version, or nothing that a loader would take.

use std::io;
use std::ops::Range;

use otandem_core::boot::SetId;

use crate::digests::{BlockDigests, Image};
use crate::disk::Sectors;

/// What the slots of a set are, all together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Content {
    /// All of this version (index into the versions of the recording).
    Complete(usize),
    /// What the loader reads first is not there, so it passes over the set.
    Dead,
    /// The loader would take it, and it is not whole: this must never be.
    Torn(String),
}

impl Content {
    /// The version, of a whole set.
    #[must_use]
    pub const fn version(&self) -> Option<usize> {
        match self {
            Self::Complete(version) => Some(*version),
            _ => None,
        }
    }
}

/// The bytes without which a loader sees nothing in a slot.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// From the beginning of the slot, in bytes.
    pub offset: u64,
    /// What stands there.
    pub bytes: [u8; 2],
}

/// The superblock of an ext4.
pub const EXT4: Mark = Mark { offset: 0x438, bytes: [0x53, 0xEF] };
/// A kernel that is an EFI program.
pub const KERNEL: Mark = Mark { offset: 0, bytes: *b"MZ" };

/// Where a slot lies, and what it may hold.
#[derive(Debug)]
pub struct Place {
    /// As in the configuration.
    pub name: &'static str,
    /// On the disk, in bytes.
    pub range: Range<u64>,
    /// One image for each version, in their order.
    pub images: Vec<Image>,
}

/// One slot of a set, watched.
#[derive(Debug)]
struct Slot {
    name: &'static str,
    range: Range<u64>,
    digests: BlockDigests,
    names: Vec<String>,
}

/// The slots of a set, watched.
#[derive(Debug)]
pub struct Slots {
    set: SetId,
    /// The one that the loader reads first is the first.
    slots: Vec<Slot>,
    mark: Mark,
    content: Content,
}

impl Slots {
    /// The slots of a set on the disk as it is now; the first place is what the loader reads first, by its mark.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn new(now: &impl Sectors, set: SetId, mark: Mark, places: Vec<Place>) -> io::Result<Self> {
        let mut slots = Vec::new();
        for Place { name, range, images } in places {
            let names = images.iter().map(|image| image.name().to_owned()).collect();
            let digests = BlockDigests::new(now, range.start, range.end - range.start, images)?;
            slots.push(Slot { name, range, digests, names });
        }
        let mut slots = Self { set, slots, mark, content: Content::Dead };
        slots.content = slots.judged(now)?;
        Ok(slots)
    }

    /// Looks at what changed.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn update(&mut self, now: &impl Sectors, changed: &[Range<u64>]) -> io::Result<()> {
        let mut touched = false;
        for slot in &mut self.slots {
            if changed.iter().any(|range| range.start < slot.range.end && slot.range.start < range.end) {
                slot.digests.update(now, changed)?;
                touched = true;
            }
        }
        if touched {
            self.content = self.judged(now)?;
        }
        Ok(())
    }

    /// What they are.
    #[must_use]
    pub const fn content(&self) -> &Content {
        &self.content
    }

    fn judged(&self, now: &impl Sectors) -> io::Result<Content> {
        let versions = self.slots.first().map_or(0, |slot| slot.names.len());
        let whole = |version: &usize| {
            self.slots.iter().all(|slot| slot.names.get(*version).is_some_and(|name| slot.digests.is(name)))
        };
        if let Some(version) = (0..versions).find(whole) {
            return Ok(Content::Complete(version));
        }
        let Some(first) = self.slots.first() else { return Ok(Content::Dead) };
        let mut found = [0; 2];
        now.read(first.range.start + self.mark.offset, &mut found)?;
        if found != self.mark.bytes {
            return Ok(Content::Dead);
        }
        let hold =
            |slot: &Slot| format!("{} holds {}", slot.name, slot.digests.holds().unwrap_or("no image"));
        let what: Vec<String> = self.slots.iter().map(hold).collect();
        Ok(Content::Torn(format!("set {} can be loaded and is not whole: {}", self.set, what.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Bytes;

    const SIZE: usize = 200_000;

    fn image(fill: u8) -> Vec<u8> {
        let mut bytes = vec![fill; SIZE];
        bytes[..1024].fill(0);
        bytes[0x438..0x43A].copy_from_slice(&EXT4.bytes);
        bytes
    }

    fn all() -> Vec<Range<u64>> {
        std::iter::once(0..SIZE as u64).collect()
    }

    #[test]
    fn a_slot_is_whole_or_has_no_mark_or_is_found_torn() {
        let images = [("1.0", 1), ("2.0", 2)]
            .map(|(name, fill)| Image::read(name, &Bytes(image(fill)), 0, SIZE as u64).unwrap());
        let place = Place { name: "rootfs", range: 0..SIZE as u64, images: images.into() };
        let mut disk = Bytes(image(1));
        let mut slots = Slots::new(&disk, SetId::B, EXT4, vec![place]).unwrap();
        assert_eq!(*slots.content(), Content::Complete(0));
        // The mark is gone, then the rest changes, then the mark comes.
        disk.0[0x438..0x43A].fill(0);
        slots.update(&disk, &all()).unwrap();
        assert_eq!(*slots.content(), Content::Dead);
        disk.0[1536..].fill(2);
        slots.update(&disk, &all()).unwrap();
        assert_eq!(*slots.content(), Content::Dead);
        disk.0[1024..1536].copy_from_slice(&image(2)[1024..1536]);
        slots.update(&disk, &all()).unwrap();
        assert_eq!(*slots.content(), Content::Complete(1));
        // One byte is wrong and the mark is there.
        disk.0[SIZE - 1] = 1;
        slots.update(&disk, &all()).unwrap();
        assert!(matches!(slots.content(), Content::Torn(why) if why.contains("set B")), "{slots:?}");
    }
}
