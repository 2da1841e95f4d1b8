//! Reads what [`super::mounts`] judges, from `/proc` and `/sys`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use otandem_core::gather::Gather as _;

use super::error::InstallError;
use super::mounts::{self, Device, Evidence, InUse};
use crate::machine::{Dev, block_device};

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
    let nodes: BTreeMap<PathBuf, Dev> =
        named.filter_map(|path| block_device(&path).map(|number| (path, number))).gather();
    Ok(InUse::new(Evidence { mountinfo, swaps, devices: devices(Path::new("/sys/dev/block"))?, nodes }))
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
    let of = |directory: &Path| fs::read_to_string(directory.join("dev")).ok()?.parse::<Dev>().ok();
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
