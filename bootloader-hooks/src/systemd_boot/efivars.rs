//! The variables that systemd-boot shares with the system, as files of efivarfs: four bytes of attributes, then
//! UTF-16 with a NUL at the end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::libc::c_long;
use nix::sys::statvfs::{FsFlags, statvfs};

/// The vendor of all variables of systemd-boot.
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Non-volatile, for the loader and for the running system.
const ATTRIBUTES: [u8; 4] = [7, 0, 0, 0];
/// Longer ones are cut.
const MAX_VALUE: u64 = 4096;

mod ioctl {
    use super::c_long;
    nix::ioctl_write_ptr!(set_flags, b'f', 2, c_long);
}

/// efivarfs, which may be missing.
pub(super) struct EfiVars(PathBuf);

impl EfiVars {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}-{VENDOR}"))
    }

    /// Why variables cannot be set; `None` if they can, as far as one can tell.
    pub(super) fn obstacle(&self) -> Option<String> {
        let at = self.0.display();
        match statvfs(&self.0) {
            Err(e) => Some(format!("{at}: {e}; boot counting alone")),
            Ok(stat) if stat.flags().contains(FsFlags::ST_RDONLY) => {
                Some(format!("{at} is read-only; boot counting alone"))
            }
            Ok(_) => None,
        }
    }

    /// The value; `None` if it is not set.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<String>> {
        let mut bytes = Vec::new();
        match File::open(self.path(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
            Ok(file) => file.take(MAX_VALUE).read_to_end(&mut bytes)?,
        };
        Ok(decode(&bytes))
    }

    /// Sets a variable, and reads it back.
    pub(super) fn write(&self, name: &str, value: &str) -> io::Result<()> {
        self.delete(name)?;
        let mut file = OpenOptions::new().write(true).create_new(true).open(self.path(name))?;
        // All of it in one write: each is a value of its own to the firmware.
        let bytes = encode(value);
        if file.write(&bytes)? != bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        drop(file);
        match self.read(name)?.as_deref() == Some(value) {
            true => Ok(()),
            false => Err(io::Error::other("it does not read back as it was written")),
        }
    }

    /// Removes a variable, if it is set.
    pub(super) fn delete(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
            // The kernel protects variables it does not know against `rm -r`. Where there is no such flag, there is
            // nothing to take away.
            // SAFETY: the descriptor is open, and the kernel reads one number.
            Ok(file) => drop(unsafe { ioctl::set_flags(file.as_raw_fd(), &0) }),
        }
        std::fs::remove_file(path)
    }
}

fn encode(value: &str) -> Vec<u8> {
    let text = value.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
    ATTRIBUTES.into_iter().chain(text).collect()
}

fn decode(bytes: &[u8]) -> Option<String> {
    let units = bytes.get(ATTRIBUTES.len()..)?.chunks_exact(2);
    let units: Vec<u16> = units.map(|u| u16::from_le_bytes([u[0], u[1]])).take_while(|u| *u != 0).collect();
    Some(String::from_utf16_lossy(&units))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn variables_are_set_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let vars = EfiVars::new(dir.path().into());
        assert_eq!(vars.read("LoaderEntryOneShot").unwrap(), None);
        vars.delete("LoaderEntryOneShot").unwrap();
        vars.write("LoaderEntryOneShot", "a longer name.conf").unwrap();
        vars.write("LoaderEntryOneShot", "a.conf").unwrap();
        let file = dir.path().join("LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f");
        assert_eq!(std::fs::read(file).unwrap(), b"\x07\0\0\0a\0.\0c\0o\0n\0f\0\0\0");
        assert_eq!(vars.read("LoaderEntryOneShot").unwrap().as_deref(), Some("a.conf"));
        assert_eq!(vars.obstacle(), None);
        vars.delete("LoaderEntryOneShot").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_file_system_is_an_obstacle_with_a_name() {
        let vars = EfiVars::new("/nonexistent/efivars".into());
        assert!(vars.obstacle().unwrap().contains("/nonexistent/efivars"));
        assert!(vars.write("x", "y").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_text_or_nothing(bytes: Vec<u8>, text in "[^\0]*") {
            decode(&bytes);
            prop_assert_eq!(decode(&encode(&text)), Some(text));
        }
    }
}
