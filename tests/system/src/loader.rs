//! The loader of the device in a folder: the simulated bootloader, and what it takes for bootable.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use otandem_boot::BootNames;
use otandem_boot::simulated::{Env, Simulator};
use otandem_core::boot::SetId;

use crate::Error;

/// First bytes of the images that are made without any file system tool.
pub const PLAIN: &[u8] = b"otandem test image\n";

/// Whether a loader would find something in this slot: the beginning of a file system or of an image of our own.
/// That the rest is there is the agent's promise, which the device checks whenever it boots.
#[must_use]
pub fn can_load(slot: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(slot).and_then(|file| file.take(2048).read_to_end(&mut head));
    let ext4 = || head.get(1080..1082) == Some(&[0x53, 0xEF]);
    read.is_ok() && (ext4() || head.starts_with(b"hsqs") || head.starts_with(PLAIN))
}

/// One reset: what boots, if anything does.
///
/// # Errors
/// [`Error::Loader`] when the simulator's files cannot be used.
pub fn boot(
    folder: &Path,
    slots_of: impl Fn(SetId) -> Vec<std::path::PathBuf>,
) -> Result<Option<SetId>, Error> {
    let loads = |set| slots_of(set).iter().all(|slot| can_load(slot));
    simulator(folder)?.boot(loads).map_err(|e| Error::Loader(e.to_string()))
}

/// The variables.
///
/// # Errors
/// [`Error::Loader`] when the simulator's files cannot be used.
pub fn env(folder: &Path) -> Result<Env, Error> {
    simulator(folder)?.env().map_err(|e| Error::Loader(e.to_string()))
}

/// The variables as text, one a line.
///
/// # Errors
/// [`Error::Loader`] when the simulator's files cannot be used.
pub fn env_text(folder: &Path) -> Result<String, Error> {
    Ok(env(folder)?.format(&BootNames::default()))
}

/// Loses the variables, as a worn or replaced flash chip does.
///
/// # Errors
/// [`Error::Loader`] when the simulator's files cannot be used.
pub fn reset_env(folder: &Path) -> Result<(), Error> {
    simulator(folder)?.reset_env().map_err(|e| Error::Loader(e.to_string()))
}

fn simulator(folder: &Path) -> Result<Simulator, Error> {
    Simulator::open(folder, BootNames::default()).map_err(|e| Error::Loader(e.to_string()))
}
