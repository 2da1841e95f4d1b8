//! Opens the slots that are to be written, and refuses those that must not be.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::block::BlockSlot;
use super::error::{Fault, InstallError};
use super::file::{self, FileSlot};
use super::in_place::InPlaceSlot;
use super::mounts::InUse;
use super::slot::Slot;
use super::{OtherDisk, Plan};
use crate::machine::Dev;

/// What a path stands for, so that two names of one thing are seen as one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Block(Dev),
    /// Directory and name, and the file there if it exists: device and inode.
    File {
        path: PathBuf,
        inode: Option<(u64, u64)>,
    },
}

impl Place {
    fn same(&self, other: &Self, in_use: &InUse) -> bool {
        match (self, other) {
            (Self::Block(a), Self::Block(b)) => in_use.overlap(*a, *b),
            (Self::File { path: a, inode: i }, Self::File { path: b, inode: j }) => {
                a == b || (i.is_some() && i == j)
            }
            _ => false,
        }
    }
}

/// Opens the slot of each image, in order.
pub(crate) fn open_all(plan: &Plan<'_>, in_use: &InUse) -> Result<Vec<Box<dyn Slot>>, InstallError> {
    let places = plan.targets.iter().map(|(slot, path)| {
        let place = place(path).map_err(|source| InstallError::at(slot, cannot_open(path, source)))?;
        Ok((slot.as_str(), path.as_path(), place))
    });
    let places: Vec<_> = places.collect::<Result<_, InstallError>>()?;
    let mut forbidden = Vec::with_capacity(plan.forbidden.len());
    for path in plan.forbidden {
        // A slot of the running set that cannot be found could be any of the targets.
        let place = place(path).map_err(|source| InstallError::Machine { path: path.clone(), source })?;
        forbidden.push((path, place));
    }
    let mut open = Vec::with_capacity(plan.images.len());
    for image in plan.images {
        let found = places.iter().find(|(slot, ..)| *slot == image.slot);
        let Some((slot, path, place)) = found else {
            return Err(InstallError::at(&image.slot, Fault::UnknownSlot));
        };
        let opened = (|| {
            for (other, at, taken) in places.iter().filter(|(other, ..)| other != slot) {
                if taken.same(place, in_use) {
                    return Err(not_safe(path, format!("it is also slot {other} ({})", at.display())));
                }
            }
            if let Some((running, _)) = forbidden.iter().find(|(_, p)| p.same(place, in_use)) {
                return Err(not_safe(path, format!("it belongs to the running set ({})", running.display())));
            }
            open_one(path, place, plan.in_place.contains(*slot), plan.other_disk, in_use)
        })();
        open.push(opened.map_err(|fault| InstallError::at(slot, fault))?);
    }
    Ok(open)
}

fn open_one(
    path: &Path,
    place: &Place,
    in_place: bool,
    other_disk: OtherDisk,
    in_use: &InUse,
) -> Result<Box<dyn Slot>, Fault> {
    let failed = |source| cannot_open(path, source);
    match place {
        Place::Block(number) => {
            if let Some(why) = in_use.refusal(*number) {
                return Err(not_safe(path, why));
            }
            if other_disk == OtherDisk::Refuse && !in_use.beside_root(*number) {
                return Err(not_safe(path, "it is not on the disk of /, and that is not allowed".to_owned()));
            }
            let flags = libc::O_EXCL | libc::O_CLOEXEC;
            let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
            let file = match open(flags | libc::O_DIRECT) {
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => open(flags),
                other => other,
            };
            let file = file.map_err(|e| match e.raw_os_error() {
                Some(libc::EBUSY) => not_safe(path, "the kernel says that something uses it".to_owned()),
                _ => failed(e),
            })?;
            // The name may have been given to something else since it was looked at.
            unchanged(&file, *number).map_err(|why| not_safe(path, why))?;
            Ok(Box::new(BlockSlot::new(file, path).map_err(failed)?))
        }
        Place::File { path: real, .. } => {
            if let Some(why) = in_use.file_refusal(real) {
                return Err(not_safe(path, why));
            }
            Ok(if in_place {
                Box::new(InPlaceSlot::open(real).map_err(failed)?)
            } else {
                Box::new(FileSlot::open(real).map_err(failed)?)
            })
        }
    }
}

fn unchanged(file: &File, number: Dev) -> Result<(), String> {
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if block_number(&meta) == Some(number) {
        Ok(())
    } else {
        Err("its name changed while it was opened".to_owned())
    }
}

/// Links lead to block devices only (`/dev/disk/by-partlabel`): a file that is named by one would be replaced by a
/// rename where the bootloader may not look.
fn place(path: &Path) -> io::Result<Place> {
    if !path.is_absolute() {
        return Err(io::Error::other("not an absolute path"));
    }
    let link = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return file_place(path, None),
        Err(e) => return Err(e),
    };
    let meta = std::fs::metadata(path)?;
    match block_number(&meta) {
        Some(number) => Ok(Place::Block(number)),
        None if link.is_file() => file_place(path, Some((meta.dev(), meta.ino()))),
        None if link.is_symlink() => Err(io::Error::other("a link that does not lead to a block device")),
        None => Err(io::Error::other("neither a block device nor a file")),
    }
}

fn file_place(path: &Path, inode: Option<(u64, u64)>) -> io::Result<Place> {
    let path = real(path)?;
    // A partition that is not there must not turn into a file in memory of the same name.
    if path.starts_with("/dev") && !path.starts_with("/dev/shm") {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no such block device"));
    }
    Ok(Place::File { path, inode })
}

/// The path of a file with every link on the way to it followed.
fn real(path: &Path) -> io::Result<PathBuf> {
    let (parent, name) = file::split(path)?;
    Ok(std::fs::canonicalize(parent)?.join(name))
}

fn block_number(meta: &Metadata) -> Option<Dev> {
    meta.file_type().is_block_device().then(|| Dev::from_raw(meta.rdev()))
}

fn not_safe(path: &Path, why: String) -> Fault {
    Fault::Unsafe { path: path.to_owned(), why }
}

fn cannot_open(path: &Path, source: io::Error) -> Fault {
    if source.kind() == io::ErrorKind::Other {
        return not_safe(path, source.to_string());
    }
    Fault::Slot { what: "open", path: path.to_owned(), at: 0, source }
}
