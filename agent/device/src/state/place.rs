//! Does the state directory outlive what an update replaces?

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};

use super::{StateError, failed};
use crate::machine::{self, Dev};

/// ramfs has no constant in the C library.
const RAMFS_MAGIC: u32 = 0x8584_58f6;

/// Why state would be lost or shared with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It lies on the device of `/`, which an update replaces.
    RootDevice(Dev),
    /// It lies in memory.
    Memory,
    /// It lies in the upper directory of an overlay, which may belong to one set.
    Overlay,
    /// It lies in a slot.
    Slot(PathBuf),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootDevice(dev) => write!(f, "it is on the device of / ({dev})"),
            Self::Memory => f.write_str("it is in memory (tmpfs)"),
            Self::Overlay => f.write_str("it is on an overlay"),
            Self::Slot(path) => write!(f, "it is in the slot {}", path.display()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fs {
    Memory,
    Overlay,
    Other,
}

/// What is known of the place, for the pure decision.
struct Place {
    dir: PathBuf,
    /// Number of the file system, valid where no block device lies under it.
    file_system: Dev,
    fs: Fs,
    devices: Vec<Dev>,
    root_file_system: Dev,
    root_devices: Vec<Dev>,
    /// Path and, for block devices, number of every slot of both sets.
    slots: Vec<(PathBuf, Option<Dev>)>,
}

/// The reason for which updates must be refused with the state in `dir` (unless the operator says otherwise), given
/// the paths of all slots of both sets.
///
/// # Errors
/// The directory, `/proc` or `/` cannot be looked at.
pub fn shared_with_root(dir: &Path, slots: &[PathBuf]) -> Result<Option<Why>, StateError> {
    let real = dir.canonicalize().map_err(failed("open", dir))?;
    let number = |p: &Path| std::fs::metadata(p).map(|m| Dev::from_raw(m.dev())).map_err(failed("stat", p));
    let kind = statfs(&real).map_err(|e| failed("statfs", dir)(e.into()))?.filesystem_type();
    let fs = match kind {
        TMPFS_MAGIC => Fs::Memory,
        OVERLAYFS_SUPER_MAGIC => Fs::Overlay,
        // The width and sign of the magic number differ by architecture; its 32 bits do not.
        k if k.0.to_le_bytes()[..4] == RAMFS_MAGIC.to_le_bytes() => Fs::Memory,
        _ => Fs::Other,
    };
    let slots = slots.iter().map(|p| {
        let real = p.canonicalize().unwrap_or_else(|_| p.clone());
        let dev = machine::block_device(&real);
        (real, dev)
    });
    Ok(decide(&Place {
        file_system: number(&real)?,
        fs,
        devices: machine::devices_of(&real)?,
        root_file_system: number(Path::new("/"))?,
        root_devices: machine::root_devices()?,
        slots: slots.collect(),
        dir: real,
    }))
}

fn decide(p: &Place) -> Option<Why> {
    match p.fs {
        Fs::Memory => return Some(Why::Memory),
        Fs::Overlay => return Some(Why::Overlay),
        Fs::Other => {}
    }
    if let Some((path, _)) = p
        .slots
        .iter()
        .find(|(path, dev)| p.dir.starts_with(path) || dev.is_some_and(|d| p.devices.contains(&d)))
    {
        return Some(Why::Slot(path.clone()));
    }
    if let Some(dev) = p.devices.iter().find(|d| p.root_devices.contains(d)) {
        return Some(Why::RootDevice(*dev));
    }
    (p.file_system == p.root_file_system).then_some(Why::RootDevice(p.file_system))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dev(text: &str) -> Dev {
        text.parse().unwrap()
    }

    /// A device as it should be: `/` on mmcblk0p2, state on mmcblk0p5.
    fn good() -> Place {
        Place {
            dir: "/data/otandem".into(),
            file_system: dev("179:5"),
            fs: Fs::Other,
            devices: vec![dev("179:5")],
            root_file_system: dev("179:2"),
            root_devices: vec![dev("179:2")],
            slots: vec![
                ("/dev/mmcblk0p2".into(), Some(dev("179:2"))),
                ("/dev/mmcblk0p3".into(), Some(dev("179:3"))),
            ],
        }
    }

    #[test]
    fn a_partition_of_its_own_is_accepted() {
        assert_eq!(decide(&good()), None);
    }

    #[test]
    fn each_place_that_does_not_outlive_an_update_is_told() {
        let why = |change: fn(&mut Place)| {
            let mut place = good();
            change(&mut place);
            decide(&place)
        };
        assert_eq!(why(|p| p.fs = Fs::Memory), Some(Why::Memory));
        assert_eq!(why(|p| p.fs = Fs::Overlay), Some(Why::Overlay));
        assert_eq!(why(|p| p.devices = vec![dev("179:3")]), Some(Why::Slot("/dev/mmcblk0p3".into())));
        assert_eq!(why(|p| p.dir = "/slots/b/state".into()), None);
        assert_eq!(
            why(|p| {
                p.dir = "/slots/b/state".into();
                p.slots.push(("/slots/b".into(), None));
            }),
            Some(Why::Slot("/slots/b".into()))
        );
        assert_eq!(
            why(|p| {
                p.slots.clear();
                p.devices = vec![dev("253:0"), dev("179:2")];
            }),
            Some(Why::RootDevice(dev("179:2")))
        );
        assert_eq!(
            why(|p| {
                (p.devices, p.root_devices) = (vec![], vec![]);
                (p.file_system, p.root_file_system) = (dev("0:31"), dev("0:31"));
            }),
            Some(Why::RootDevice(dev("0:31")))
        );
    }

    #[test]
    fn memory_and_the_root_of_this_machine_are_recognised() {
        if Path::new("/dev/shm").is_dir() {
            assert_eq!(shared_with_root(Path::new("/dev/shm"), &[]).unwrap(), Some(Why::Memory));
        }
        assert!(shared_with_root(Path::new("/"), &[]).unwrap().is_some());
    }
}
