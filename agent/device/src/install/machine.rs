//! Reads what [`super::mounts`] judges, from `/proc` and `/sys`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::error::InstallError;
use super::mounts::{self, DevNum, Device, Evidence, InUse};

/// What is in use on this machine now.
pub(crate) fn in_use() -> Result<InUse, InstallError> {
    let mountinfo = read("/proc/self/mountinfo")?;
    // A kernel without swap has no such file.
    let swaps = match read("/proc/swaps") {
        Err(InstallError::Machine { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Vec::new()
        }
        other => other?,
    };
    let named = mounts::sources(&mountinfo).into_iter().chain(mounts::swaps(&swaps));
    let nodes: BTreeMap<PathBuf, DevNum> =
        named.filter_map(|path| block_number(&path).map(|number| (path, number))).collect();
    Ok(InUse::new(Evidence { mountinfo, swaps, devices: devices(Path::new("/sys/dev/block"))?, nodes }))
}

/// The number that the kernel gives in one word.
#[allow(clippy::useless_conversion, reason = "the types differ between 32 and 64 bits")]
pub(crate) fn number(raw: u64) -> DevNum {
    DevNum { major: major(raw).into(), minor: minor(raw).into() }
}

fn block_number(path: &Path) -> Option<DevNum> {
    let meta = fs::metadata(path).ok()?;
    meta.file_type().is_block_device().then(|| number(meta.rdev()))
}

fn read(path: &str) -> Result<Vec<u8>, InstallError> {
    fs::read(path).map_err(|source| InstallError::Machine { path: path.into(), source })
}

/// All block devices. One that goes away while it is looked at is left out.
fn devices(directory: &Path) -> Result<Vec<Device>, InstallError> {
    let entries = fs::read_dir(directory)
        .map_err(|source| InstallError::Machine { path: directory.to_owned(), source })?;
    Ok(entries.filter_map(|entry| device(&entry.ok()?.path())).collect())
}

fn device(link: &Path) -> Option<Device> {
    let directory = fs::canonicalize(link).ok()?;
    let of = |directory: &Path| {
        let text = fs::read_to_string(directory.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some(DevNum { major: major.parse().ok()?, minor: minor.parse().ok()? })
    };
    let slaves = fs::read_dir(directory.join("slaves")).into_iter().flatten();
    let backing = fs::read_to_string(directory.join("loop/backing_file"))
        .or_else(|_| fs::read_to_string(directory.join("../loop/backing_file")))
        .ok();
    Some(Device {
        number: of(&directory)?,
        // The directory of a partition lies in that of its disk; so do those of eMMC boot partitions.
        parent: directory.parent().and_then(of),
        slaves: slaves.filter_map(|entry| of(&entry.ok()?.path())).collect(),
        backing: backing.map(|text| PathBuf::from(text.trim_end_matches('\n'))),
    })
}
