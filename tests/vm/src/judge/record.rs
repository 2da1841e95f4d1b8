//! The record of the agent, read from the disk without a file system: its two files never move.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use otandem_core::frame;
use otandem_core::record::Record;

use crate::disk::{DiskFile, Sectors};

/// Bytes of a block of the data partition.
const BLOCK: u64 = 4096;
/// The two files.
const FILES: [&str; 2] = ["/otandem/record.0", "/otandem/record.1"];
/// How much is copied at once.
const CHUNK: usize = 1 << 20;

/// Where both copies lie on the disk, as ranges of bytes in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places([Vec<Range<u64>>; 2]);

impl Places {
    /// Asks `debugfs`, on a copy of the data partition whose journal was replayed: in `scratch`, which is removed.
    ///
    /// # Errors
    /// The disk cannot be read, the tools fail, or a copy of the record is not there.
    pub fn find(disk: &Path, data: Range<u64>, scratch: &Path) -> Result<Self, String> {
        let copied = copy(disk, &data, scratch);
        copied.map_err(|e| format!("a copy of the data partition: {e}"))?;
        let found = replay_journal(scratch).and_then(|()| {
            let [first, second] = FILES.map(|file| blocks(scratch, file, data.start));
            Ok(Self([first?, second?]))
        });
        let _ = fs::remove_file(scratch);
        found
    }

    /// Whether a change touches one of the copies.
    #[must_use]
    pub fn touched(&self, changed: &[Range<u64>]) -> bool {
        let mut places = self.0.iter().flatten();
        places.any(|place| changed.iter().any(|range| range.start < place.end && place.start < range.end))
    }

    /// What the newest readable copy holds; `None`: neither can be read.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn payload(&self, disk: &impl Sectors) -> io::Result<Option<Vec<u8>>> {
        let mut copies = [Vec::new(), Vec::new()];
        for (copy, places) in copies.iter_mut().zip(&self.0) {
            for place in places {
                let from = copy.len();
                let len = usize::try_from(place.end - place.start).map_err(io::Error::other)?;
                copy.resize(from + len, 0);
                disk.read(place.start, &mut copy[from..])?;
            }
        }
        let [first, second] = &copies;
        let newest = frame::newest(frame::decode(first).ok(), frame::decode(second).ok());
        Ok(newest.map(|frame| frame.payload.to_vec()))
    }
}

/// The record in a payload.
///
/// # Errors
/// There is none, or it makes no sense.
pub fn decode(payload: Option<&[u8]>) -> Result<Record, String> {
    let payload = payload.ok_or("the record is lost: neither copy can be read")?;
    Record::decode(payload).map_err(|e| e.to_string())
}

fn copy(disk: &Path, data: &Range<u64>, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (from, to) = (DiskFile::open(disk)?, fs::File::create(to)?);
    to.set_len(data.end - data.start)?;
    let mut chunk = vec![0; CHUNK];
    let mut at = data.start;
    while at < data.end {
        let len = usize::try_from(data.end - at).map_or(CHUNK, |len| len.min(CHUNK));
        from.read(at, &mut chunk[..len])?;
        if chunk[..len].iter().any(|byte| *byte != 0) {
            to.write_all_at(&chunk[..len], at - data.start)?;
        }
        at += len as u64;
    }
    Ok(())
}

fn run(command: &mut Command, fine: &[i32]) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name}: {e}; install e2fsprogs"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code().is_some_and(|code| fine.contains(&code)) {
        return Ok(said);
    }
    Err(format!("{name} ended with {}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

fn replay_journal(partition: &Path) -> Result<(), String> {
    // 1: it had something to correct, the journal.
    run(Command::new("/sbin/e2fsck").args(["-fp"]).arg(partition), &[0, 1]).map(drop)
}

/// The blocks of a file, as ranges of bytes of the disk.
fn blocks(partition: &Path, file: &str, start: u64) -> Result<Vec<Range<u64>>, String> {
    let said =
        run(Command::new("/sbin/debugfs").arg("-R").arg(format!("blocks {file}")).arg(partition), &[0])?;
    parse(&said, start).ok_or_else(|| format!("{file} is not there: debugfs says {said:?}"))
}

fn parse(said: &str, start: u64) -> Option<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for word in said.split_whitespace() {
        let at = start + word.parse::<u64>().ok().filter(|block| *block > 0)? * BLOCK;
        match ranges.last_mut() {
            Some(last) if last.end == at => last.end += BLOCK,
            _ => ranges.push(at..at + BLOCK),
        }
    }
    (!ranges.is_empty()).then_some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_ranges_of_the_disk() {
        assert_eq!(parse("10 11 12 20 \n", 4096), Some(vec![11 * 4096..14 * 4096, 21 * 4096..22 * 4096]));
        for said in ["", "no such file", "0 0"] {
            assert_eq!(parse(said, 0), None, "{said:?}");
        }
    }
}
