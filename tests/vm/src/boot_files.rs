//! What a boot chain keeps beside the slots, read from the disk of a device and put there: environment, scripts, entries,
//! kernels on FAT.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use otandem_images::{Disk, Partition};

/// Partitions with a FAT, as they are called.
const FATS: &[&str] = &["boot", "esp", "xbootldr"];
/// Partitions that are bytes and nothing more.
const RAW: &[&str] = &["uboot-env"];

/// Everything, by partition and path, such as `esp/grub/grubenv`.
pub type BootFiles = BTreeMap<String, Vec<u8>>;

/// Reads it. What a guest that runs has not sent to its disk is not there yet.
///
/// # Errors
/// As the file system says, or mtools.
pub fn read(disk: &Disk) -> io::Result<BootFiles> {
    let mut all = BootFiles::new();
    for partition in &disk.layout {
        if FATS.contains(&partition.name) {
            let folder = tempfile::tempdir()?;
            // -b: in one piece, as there may be many; -Q: the first file that cannot be read is the end of it.
            let copy = mtool("mcopy", disk, partition, &["-s", "-b", "-Q", "-n"])
                .arg("::")
                .arg(folder.path())
                .output()?;
            succeeded("mcopy", &copy)?;
            collect(folder.path(), partition.name, &mut all)?;
        } else if RAW.contains(&partition.name) {
            all.insert(partition.name.into(), bytes(disk, partition)?);
        }
    }
    Ok(all)
}

/// Puts a file in the place of one that is on a FAT, such as `grub/grub.cfg` on `esp`. The device must be off.
///
/// # Errors
/// As mtools say.
pub fn replace(disk: &Disk, partition: &Partition, path: &str, from: &Path) -> io::Result<()> {
    let copy = mtool("mcopy", disk, partition, &["-o"]).arg(from).arg(format!("::/{path}")).output()?;
    succeeded("mcopy", &copy)
}

/// The bytes of a partition.
///
/// # Errors
/// As the file system says.
pub fn bytes(disk: &Disk, partition: &Partition) -> io::Result<Vec<u8>> {
    let size = usize::try_from(partition.size).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    fs::File::open(&disk.image)?.read_exact_at(&mut bytes, partition.start)?;
    Ok(bytes)
}

fn mtool(name: &str, disk: &Disk, partition: &Partition, options: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(options).arg("-i").arg(format!("{}@@{}", disk.image.display(), partition.start));
    // A file system that was not unmounted is no reason not to look at it.
    command.env("MTOOLS_SKIP_CHECK", "1");
    command
}

fn succeeded(name: &str, output: &std::process::Output) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn collect(folder: &Path, name: &str, all: &mut BootFiles) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &name, all)?;
        } else {
            all.insert(name, fs::read(entry.path())?);
        }
    }
    Ok(())
}
