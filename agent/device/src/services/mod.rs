//! The files of services, and their commands.
//!
//! [`read`] and [`write`] are for files of settings that other programs read at any time: what they find is the old text
//! or the new one, whole, with the mode and owner that the file had. [`Notifier`] runs the command of a service: one at a
//! time, many changes at once as one, and again after a power cut in the middle. [`module`] reads definitions, also those
//! that must be run.

pub mod module;
mod notify;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use otandem_core::formats::MAX_TEXT;

pub use notify::{Notifier, Ran, output};

/// Of a file that was not there: services are other users than the agent. Who wants less makes the file first.
const NEW_MODE: u32 = 0o644;

/// A file of a service cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}", path = path.display())]
pub struct OutfileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl OutfileError {
    fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// The text of a file; `None` if there is none.
///
/// # Errors
/// It cannot be read, is no file, or has more bytes than any format takes.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, OutfileError> {
    // A writer of a pipe is not waited for.
    let opened =
        OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(OutfileError::of("read", path)(e)),
    };
    let fail = OutfileError::of("read", path);
    let mut text = Vec::new();
    let read = file.metadata().and_then(|meta| {
        if !meta.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        file.take(MAX_TEXT as u64 + 1).read_to_end(&mut text)
    });
    match read {
        Ok(bytes) if bytes <= MAX_TEXT => Ok(Some(text)),
        Ok(_) => Err(fail(io::Error::other(format!("it has more than {MAX_TEXT} bytes")))),
        Err(e) => Err(fail(e)),
    }
}

/// Puts `text` in place of what the file holds. Where `path` is a symbolic link, the file behind it is replaced and the
/// link stays: integrators point from a read-only root to where settings can be written.
///
/// # Errors
/// Any step failed; the old text is then still there.
pub fn write(path: &Path, text: &[u8]) -> Result<(), OutfileError> {
    // A link to nothing is replaced itself.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let fail = |e| OutfileError::of("write", path)(e);
    let old = match fs::symlink_metadata(&target) {
        Ok(meta) if meta.is_file() => Some(meta),
        Ok(meta) if meta.is_symlink() => None,
        Ok(_) => return Err(fail(io::Error::other("it is no file, and nothing else is replaced by one"))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(fail(e)),
    };
    let Some((parent, name)) = target.parent().zip(target.file_name()) else {
        return Err(fail(io::Error::other("it is no name of a file")));
    };
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(".otandem-new");
    let beside = parent.join(beside);
    // Left by a power cut, or put there as a trap: never opened, always made anew.
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
        _ => {}
    }
    let written = (|| {
        // Nobody else reads what is not his to read, not even for a moment.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text)?;
        if let Some(old) = &old {
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
        }
        let mode = old.as_ref().map_or(NEW_MODE, |old| old.mode() & 0o7777);
        file.set_permissions(PermissionsExt::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&beside, &target)
    })();
    if let Err(e) = written {
        let _ = fs::remove_file(&beside);
        return Err(fail(e));
    }
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(fail)
}
