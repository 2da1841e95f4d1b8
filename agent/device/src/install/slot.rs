//! What the pipeline needs of a place that holds an image, and the care that every such place needs.

use std::io;
use std::ops::Range;
use std::path::Path;

use super::buffer::{self, Buffer};

/// The first bytes of a slot, without which nothing in it can be mounted or loaded.
pub const HEAD: usize = super::buffer::BUFFER;

/// One open slot. A block device and a file do the same five things in different ways, and tests put a disk that
/// fails in their place: get unbootable, take bytes, give them back, get durable, get bootable.
///
/// Offsets and lengths of reads and writes are multiples of [`Slot::align`].
pub(crate) trait Slot: Send {
    /// For messages.
    fn path(&self) -> &Path;

    /// Bytes that an image in it may have.
    fn capacity(&self) -> u64;

    /// Unit of offsets and lengths.
    fn align(&self) -> usize;

    /// Whether the head waits in the state directory, since what is written here is in its final place at once.
    fn in_place(&self) -> bool;

    /// Whether `size` bytes of an earlier attempt can still be here. With `complete`, of a whole image that may
    /// have got its head already.
    fn holds(&mut self, size: u64, complete: bool) -> bool;

    /// Makes what the bootloader would find here unbootable, durably.
    fn spoil(&mut self) -> io::Result<()>;

    /// Gets ready to be written from `keep` on; what lies before it stays.
    fn begin(&mut self, keep: u64) -> io::Result<()>;

    /// Writes some bytes.
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<usize>;

    /// Zeroes `len` bytes; cheaper than writing them where it can be.
    fn zero(&mut self, at: u64, len: u64) -> io::Result<()>;

    /// Reads some bytes, from the disk itself where that is possible. 0 at the end.
    fn read_at(&mut self, bytes: &mut [u8], at: u64) -> io::Result<usize>;

    /// Everything written so far gets durable.
    fn sync(&mut self) -> io::Result<()>;

    /// The image is written but for its head and has `size` bytes: everything gets durable.
    fn seal(&mut self, size: u64) -> io::Result<()>;

    /// Makes the image bootable, durably: writes `head` (padded) where the head waits elsewhere, and checks that it
    /// is there.
    fn publish(&mut self, head: &[u8]) -> io::Result<()>;

    /// Gives up what was begun.
    fn discard(&mut self);
}

/// Writes everything, going on after short writes at the last whole block.
pub(crate) fn write_all(slot: &mut dyn Slot, bytes: &[u8], at: u64) -> io::Result<()> {
    let align = slot.align();
    let mut done = 0;
    while done < bytes.len() {
        match slot.write_at(&bytes[done..], at + done as u64) {
            Ok(n) if n >= bytes.len() - done => return Ok(()),
            Ok(n) if n >= align => done += n - n % align,
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads until at least `need` bytes of `bytes` are there.
pub(crate) fn read_all(slot: &mut dyn Slot, bytes: &mut [u8], need: usize, at: u64) -> io::Result<()> {
    let align = slot.align();
    let mut done = 0;
    while done < need {
        match slot.read_at(&mut bytes[done..], at + done as u64) {
            Ok(n) if done + n >= need => return Ok(()),
            Ok(n) if n >= align => done += n - n % align,
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Where the bytes lie by which anything is recognised: sector 0 (partition tables, squashfs, FAT, kernels, most others)
/// and sector 2 (ext4 and its kin). Each goes in a write of its own, the first one first to go and last to come, since a
/// medium may tear a write between any two of its blocks: what lacks a part has no mark.
const MARKS: [usize; 2] = [0, 1024];

/// The logical blocks of a head of `len` bytes that hold its marks, in their order.
fn marks(align: usize, len: usize) -> Vec<Range<usize>> {
    let mut blocks: Vec<_> = MARKS
        .iter()
        .map(|at| at - at % align)
        .filter(|start| *start < len)
        .map(|start| start..len.min(start + align))
        .collect();
    blocks.dedup();
    blocks
}

/// What lies between and behind the marks.
fn unmarked(marks: &[Range<usize>], len: usize) -> impl Iterator<Item = Range<usize>> {
    let ends = marks.iter().map(|mark| mark.end);
    let starts = marks.iter().skip(1).map(|mark| mark.start).chain([len]);
    ends.zip(starts).map(|(end, start)| end..start).filter(|gap| !gap.is_empty())
}

/// [`Slot::spoil`] for slots that are written in place. Written, not unmapped: some devices give back old data after
/// an unmap.
pub(crate) fn spoil_in_place(slot: &mut dyn Slot) -> io::Result<()> {
    let zeros = Buffer::new();
    let len = usize::try_from(slot.capacity()).map_or(HEAD, |c| c.min(HEAD));
    let marks = marks(slot.align(), len);
    for mark in &marks {
        write_all(slot, &zeros.bytes()[mark.clone()], mark.start as u64)?;
        slot.sync()?;
    }
    for gap in unmarked(&marks, len) {
        write_all(slot, &zeros.bytes()[gap.clone()], gap.start as u64)?;
    }
    slot.sync()
}

/// Writes zeros, where nothing does it cheaper.
pub(crate) fn write_zeros(slot: &mut dyn Slot, at: u64, len: u64) -> io::Result<()> {
    let zeros = Buffer::new();
    let mut done = 0;
    while done < len {
        let n = usize::try_from(len - done).map_or(HEAD, |n| n.min(HEAD));
        write_all(slot, &zeros.bytes()[..n], at + done)?;
        done += n as u64;
    }
    Ok(())
}

/// Zeroes what lies behind an image of `size` bytes, where it is not zero already: flash is not worn for nothing.
pub(crate) fn zero_tail(slot: &mut dyn Slot, size: u64) -> io::Result<()> {
    let mut buffer = Buffer::new();
    let mut at = size.next_multiple_of(slot.align() as u64);
    while at < slot.capacity() {
        let n = usize::try_from(slot.capacity() - at).map_or(HEAD, |n| n.min(HEAD));
        read_all(slot, &mut buffer.bytes_mut()[..n], n, at)?;
        if !buffer::is_zero(&buffer.bytes()[..n]) {
            slot.zero(at, n as u64)?;
        }
        at += n as u64;
    }
    Ok(())
}

/// [`Slot::publish`] for slots that are written in place. Reads the head back.
pub(crate) fn publish_in_place(slot: &mut dyn Slot, head: &[u8]) -> io::Result<()> {
    let mut buffer = Buffer::new();
    let len = align_up(head.len(), slot.align());
    let marks = marks(slot.align(), len);
    buffer.bytes_mut()[..head.len()].copy_from_slice(head);
    for gap in unmarked(&marks, len) {
        write_all(slot, &buffer.bytes()[gap.clone()], gap.start as u64)?;
    }
    slot.sync()?;
    for mark in marks.iter().rev() {
        write_all(slot, &buffer.bytes()[mark.clone()], mark.start as u64)?;
        slot.sync()?;
    }
    read_all(slot, &mut buffer.bytes_mut()[..len], len, 0)?;
    if &buffer.bytes()[..head.len()] == head {
        Ok(())
    } else {
        Err(io::Error::other("the head does not read back as it was written"))
    }
}

/// `n` rounded up to a multiple of `align`.
pub(crate) const fn align_up(n: usize, align: usize) -> usize {
    n.next_multiple_of(align)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_blocks_of_their_own_and_nothing_of_a_head_is_left_out() {
        for (align, len, wanted) in [
            (512, HEAD, &[(0, 512), (1024, 1536)][..]),
            (1024, HEAD, &[(0, 1024), (1024, 2048)]),
            (4096, HEAD, &[(0, 4096)]),
            (512, 1024, &[(0, 512)]),
            (512, 512, &[(0, 512)]),
        ] {
            let marks = marks(align, len);
            let ends: Vec<_> = marks.iter().map(|mark| (mark.start, mark.end)).collect();
            assert_eq!(ends, wanted, "{align} {len}");
            let mut all: Vec<_> = unmarked(&marks, len).chain(marks.clone()).collect();
            all.sort_unstable_by_key(|range| range.start);
            assert_eq!(all.iter().map(|r| r.len()).sum::<usize>(), len);
            assert!(all.windows(2).all(|two| two[0].end == two[1].start), "{all:?}");
            assert!(all.iter().all(|r| r.start % align == 0 && (r.end % align == 0 || r.end == len)));
        }
    }
}
