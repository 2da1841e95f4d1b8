//! A whole device: its parts put in their places on one disk.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::chain::{LINUX, part_uuid};
use crate::error::file;
use crate::tree::Tree;
use crate::{Chain, ImageError, Root, files, tools};

const MIB: u64 = 1 << 20;
/// Bytes of a sector in the partition table.
const SECTOR: u64 = 512;

/// A certificate that has signed nothing.
pub(crate) const NOBODY: &str = include_str!("../guest/wrong-ca.pem");

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its boot chain.
    pub chain: Chain,
    /// Bytes of each root file system, whole MiB.
    pub slot_size: u64,
    /// Bytes of the data partition, whole MiB.
    pub data_size: u64,
    /// What leaves the factory in set A.
    pub factory: Root,
    /// What leaves the factory in set B; none: the same.
    pub other: Option<Root>,
    /// Files of the data partition by their path in it, such as `otandem/device.toml` (the device's configuration) and
    /// `certs/ca.pem`. Those whose name ends in `.key` are for their owner alone.
    pub data: BTreeMap<String, Vec<u8>>,
    /// Who is at the serial line.
    pub console: Console,
}

/// Who talks to the device on its serial line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// A program: no echo, no prompt, no carriage returns.
    Machine,
    /// Somebody at a terminal.
    Person,
}

impl Device {
    /// A device of that chain in its usual sizes: slots of 48 MiB, 64 MiB of data.
    #[must_use]
    pub fn new(chain: Chain, factory: Root) -> Self {
        Self {
            chain,
            slot_size: 48 * MIB,
            data_size: 64 * MIB,
            factory,
            other: None,
            data: BTreeMap::new(),
            console: Console::Machine,
        }
    }

    /// The content of the data partition.
    pub(crate) fn data_tree(&self) -> Tree {
        let mut tree = Tree::default();
        let console = if self.console == Console::Person { "person\n" } else { "machine\n" };
        tree.folder("otandem").text("device/console", console);
        // Trusted until the device is given somebody to trust: nobody. Without any file, no download would begin.
        tree.text("certs/ca.pem", NOBODY);
        for (path, bytes) in &self.data {
            let mode = if path.ends_with(".key") { 0o600 } else { 0o644 };
            tree.file(path, mode, bytes.clone());
        }
        tree
    }
}

/// A device that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its boot chain.
    pub chain: Chain,
    /// The whole disk, a raw and sparse file.
    pub image: PathBuf,
    /// What starts before the bootloader.
    pub firmware: Firmware,
    /// The kind of machine, as QEMU calls it: `pc` or `q35`.
    pub machine: &'static str,
    /// What is where, in the order of the disk; the first one has number 1.
    pub layout: Vec<Partition>,
}

/// What starts first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    /// In place of the BIOS.
    Bios(PathBuf),
    /// UEFI: its program, and its variables, which belong to the device as its disk does.
    Ovmf {
        /// Read-only.
        code: PathBuf,
        /// Written by firmware and bootloader.
        vars: PathBuf,
    },
}

/// A partition of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its GPT name.
    pub name: &'static str,
    /// Where it begins on the disk, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub size: u64,
}

impl Disk {
    /// The partition of that GPT name.
    #[must_use]
    pub fn partition(&self, name: &str) -> Option<&Partition> {
        self.layout.iter().find(|partition| partition.name == name)
    }
}

/// A partition with the file that it is filled with and its GPT type.
pub(crate) struct Filled {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) size: u64,
    pub(crate) from: PathBuf,
}

impl Filled {
    pub(crate) fn linux(name: &'static str, size: u64, from: PathBuf) -> Self {
        Self { name, kind: LINUX, size, from }
    }
}

/// Places of partitions of these names and sizes, one after the other, on whole MiB; and the size of the disk.
pub(crate) fn layout(sizes: impl Iterator<Item = (&'static str, u64)>) -> (Vec<Partition>, u64) {
    let mut start = MIB;
    let mut partitions = Vec::new();
    for (name, size) in sizes {
        partitions.push(Partition { name, start, size });
        start += size.next_multiple_of(MIB);
    }
    // The second copy of the table is at the end.
    (partitions, start + MIB)
}

/// Places of the partitions of these names on a disk that is there, in its order; others are not named.
///
/// # Errors
/// [`ImageError::Recipe`] when one of them is not on it, else what sfdisk says.
pub(crate) fn read_layout(image: &Path, names: &[&'static str]) -> Result<Vec<Partition>, ImageError> {
    let dump = tools::run(tools::command("sfdisk").arg("-d").arg(image))?;
    let found: Vec<_> = dump.lines().filter_map(|line| partition_in(line, names)).collect();
    match names.iter().find(|name| found.iter().all(|partition| partition.name != **name)) {
        None => Ok(found),
        Some(name) => Err(ImageError::Recipe(format!("{}: no partition is called {name}", image.display()))),
    }
}

/// The partition of a line of sfdisk's dump, such as `disk.img1 : start= 2048, size= 4096, ..., name="esp"`.
fn partition_in(line: &str, names: &[&'static str]) -> Option<Partition> {
    let (_, fields) = line.split_once(" : ")?;
    let field = |key: &str| {
        let mut values = fields.split(',').filter_map(|field| field.trim().split_once('='));
        values.find(|(name, _)| *name == key).map(|(_, value)| value.trim().trim_matches('"'))
    };
    let bytes = |key: &str| field(key)?.parse::<u64>().ok()?.checked_mul(SECTOR);
    let name = names.iter().find(|name| field("name") == Some(**name))?;
    Some(Partition { name, start: bytes("start")?, size: bytes("size")? })
}

/// Writes a disk with these partitions to `out`.
///
/// # Errors
/// [`ImageError::TooSmall`] when a file is larger than its partition, else what sfdisk or the files say.
pub(crate) fn assemble(filled: &[Filled], out: &Path) -> Result<(), ImageError> {
    let (partitions, size) = layout(filled.iter().map(|part| (part.name, part.size)));
    let disk = File::create(out).map_err(file("create", out))?;
    disk.set_len(size).map_err(file("enlarge", out))?;
    let mut table = format!("label: gpt\nlabel-id: {}\nfirst-lba: 2048\n", part_uuid("disk"));
    for (part, place) in filled.iter().zip(&partitions) {
        let _ = writeln!(
            table,
            "start={}, size={}, type={}, name={}, uuid={}",
            place.start / SECTOR,
            place.size / SECTOR,
            part.kind,
            part.name,
            part_uuid(part.name)
        );
    }
    tools::feed(tools::command("sfdisk").arg("-q").arg(out), &table)?;
    for (part, place) in filled.iter().zip(&partitions) {
        let needed = std::fs::metadata(&part.from).map_err(file("read", &part.from))?.len();
        if needed > part.size {
            return Err(ImageError::TooSmall {
                what: format!("partition {}", part.name),
                size: part.size,
                needed,
            });
        }
        files::place(&part.from, &disk, out, place.start)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn sfdisk_reads_the_table_and_the_bytes_are_in_their_places() {
        if tools::find("sfdisk").is_none() {
            println!("skipped: no sfdisk");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (one, out, again) =
            (folder.path().join("one"), folder.path().join("out"), folder.path().join("again"));
        fs::write(&one, b"content").unwrap();
        let filled = [Filled::linux("root-a", MIB, one.clone()), Filled::linux("data", 2 * MIB, one)];
        assemble(&filled, &out).unwrap();
        let json = tools::run(tools::command("sfdisk").arg("-J").arg(&out)).unwrap();
        for part in [
            "\"label\": \"gpt\"",
            "\"name\": \"root-a\"",
            "\"start\": 2048",
            "\"start\": 4096",
            "\"size\": 4096",
        ] {
            assert!(json.contains(part), "{part}: {json}");
        }
        tools::run(tools::command("sfdisk").arg("-V").arg(&out)).unwrap();
        let bytes = fs::read(&out).unwrap();
        assert_eq!(&bytes[1 << 20..(1 << 20) + 8], b"content\0");
        assert_eq!(&bytes[2 << 20..(2 << 20) + 8], b"content\0");
        assemble(&filled, &again).unwrap();
        assert!(bytes == fs::read(&again).unwrap(), "not the same bytes");
        let place = |name, start, size| Partition { name, start, size };
        let there = read_layout(&out, &["data", "root-a"]).unwrap();
        assert_eq!(there, [place("root-a", MIB, MIB), place("data", 2 * MIB, 2 * MIB)]);
        let missing = read_layout(&out, &["root-b"]).unwrap_err().to_string();
        assert!(missing.contains("no partition is called root-b"), "{missing}");
    }

    #[test]
    fn a_file_larger_than_its_partition_is_refused() {
        if tools::find("sfdisk").is_none() {
            println!("skipped: no sfdisk");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let one = folder.path().join("one");
        fs::write(&one, vec![1; (1 << 20) + 3]).unwrap();
        let error = assemble(&[Filled::linux("root-a", MIB, one)], &folder.path().join("out")).unwrap_err();
        assert!(error.to_string().contains("needs 3 bytes more"), "{error}");
    }

    #[test]
    fn keys_on_the_data_partition_are_for_their_owner() {
        let mut device = Device::new(Chain::UBoot, Root::new("1", None));
        device.data.insert("certs/device.key".into(), b"k".to_vec());
        let tree = device.data_tree();
        let key = tree.nodes().find(|(path, _)| *path == "certs/device.key").unwrap().1;
        assert!(matches!(key, crate::tree::Node::File { mode: 0o600, .. }));
    }
}
