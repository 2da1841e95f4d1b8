//! What can go wrong while a virtual device is made.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why there is no image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Programs or files of other packages are not on this machine.
    #[error("missing on this machine: {}; install them with: apt-get install --no-install-recommends {}",
        missing.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>().join(", "), packages(missing))]
    Missing {
        /// What is not there, and the Debian package that has it.
        missing: Vec<(String, &'static str)>,
    },
    /// A file or folder.
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program that said no.
    #[error("{program} failed ({status}): {said}")]
    Tool {
        /// The program with its first words.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// More content than room.
    #[error("{what} of {size} bytes is too small: its content needs {} bytes more; enlarge it or leave something out",
        needed.saturating_sub(*size))]
    TooSmall {
        /// The slot or file.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// The size that would do, in bytes.
        needed: u64,
    },
    /// The Debian kernel package is not to be had or not as expected.
    #[error("the Debian kernel: {0}")]
    Kernel(String),
    /// What was asked for cannot be built.
    #[error("{0}")]
    Recipe(String),
}

/// For those who copy a disk among files of their own.
impl From<ImageError> for io::Error {
    fn from(error: ImageError) -> Self {
        Self::other(error)
    }
}

/// For `map_err` on anything that was done to a file.
pub(crate) fn file(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::File { verb, path, source }
}

fn packages(missing: &[(String, &'static str)]) -> String {
    let mut names: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    names.sort_unstable();
    names.dedup();
    // Installed alone, this one takes away a newer qemu-utils of another suite.
    if names.contains(&"qemu-system-x86") {
        names.push("qemu-utils");
    }
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_error_names_all_that_is_missing_and_each_package_once() {
        let missing = vec![("mcopy".into(), "mtools"), ("mmd".into(), "mtools"), ("sfdisk".into(), "fdisk")];
        let text = ImageError::Missing { missing }.to_string();
        assert!(text.contains("mcopy, mmd, sfdisk"), "{text}");
        assert!(text.ends_with("--no-install-recommends fdisk mtools"), "{text}");
    }

    #[test]
    fn qemu_is_never_asked_for_without_its_utils() {
        let missing = vec![("qemu-system-x86_64".into(), "qemu-system-x86")];
        assert!(ImageError::Missing { missing }.to_string().ends_with("qemu-system-x86 qemu-utils"));
    }

    #[test]
    fn a_slot_too_small_says_by_how_much() {
        let text = ImageError::TooSmall { what: "slot".into(), size: 1000, needed: 1500 }.to_string();
        assert!(text.contains("500 bytes more"), "{text}");
    }
}
