//! What must survive a power cut, and the directory where it lies.
//!
//! [`StateDir`] is the directory, [`Lock`] the right to write in it, [`RecordStore`] the one file pair that is written
//! in place, [`atomic_write`] the way in which every other file is written, and [`shared_with_root`] the check that
//! the directory outlives an update. What the bytes mean is known to `otandem-core` alone.

mod place;
mod record;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;

pub use place::{Why, shared_with_root};
pub use record::{Loaded, RecordStore};

/// Something about the state directory is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// An operation on a file failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The path is there and is no directory.
    #[error("{path} is not a directory: remove it, or set another update.state-dir", path = path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else could change the state.
    #[error(
        "{path} belongs to user {owner} with mode {mode:03o}, so others could change what otandem trusts: \
         make it `chown {me}` and `chmod 700`", path = path.display()
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
        /// The user that otandem runs as.
        me: u32,
    },
    /// Another process has the lock.
    #[error("{path} is in use by {holder}: let it finish, or ask the running daemon", path = path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, as far as known.
        holder: String,
    },
    /// The record does not fit into its preallocated place.
    #[error("cannot save the record: {0}")]
    TooLarge(#[from] otandem_core::frame::TooLarge),
    /// The file system takes no writes.
    #[error("cannot prepare {path}: {source}; free space or make the file system writable", path = path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A fact of the machine could not be read.
    #[error(transparent)]
    Machine(#[from] crate::machine::MachineError),
}

/// Shorthand for `map_err`: the error of `action` on `path`.
fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io { action, path: path.to_owned(), source }
}

/// The state directory: it exists and nobody else can write into it.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Opens the directory, creating it (mode 700) and its parents where they are missing.
    ///
    /// # Errors
    /// It cannot be created, is no directory, or others than its owner, who must be this process's user, may write
    /// into it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        match std::fs::metadata(path) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).map_err(failed("create", parent))?;
                }
                std::fs::DirBuilder::new().mode(0o700).create(path).map_err(failed("create", path))?;
            }
            Err(e) => return Err(failed("open", path)(e)),
        }
        let meta = std::fs::metadata(path).map_err(failed("open", path))?;
        if !meta.is_dir() {
            return Err(StateError::NotADirectory { path: path.into() });
        }
        let (owner, mode, me) = (meta.uid(), meta.mode() & 0o7777, nix::unistd::geteuid().as_raw());
        if owner != me || mode & 0o022 != 0 {
            return Err(StateError::NotPrivate { path: path.into(), owner, mode, me });
        }
        Ok(Self { path: path.into() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock, without waiting.
    ///
    /// # Errors
    /// Somebody else has it, or the lock file cannot be opened.
    pub fn lock(&self) -> Result<Lock, StateError> {
        let path = self.path.join("lock");
        let open = |write: bool| {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            OpenOptions::new()
                .read(true)
                .write(write)
                .create(write)
                .mode(0o600)
                .custom_flags(flags)
                .open(&path)
        };
        let file = match open(true) {
            // On a read-only file system the lock still works; where no lock file is, the directory serves as one.
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                open(false).or_else(|_| File::open(&self.path))
            }
            other => other,
        };
        let mut file = file.map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::Locked { holder: holder(&mut file), path });
            }
            Err(TryLockError::Error(e)) => return Err(failed("lock", &path)(e)),
        }
        // Only for the message that the next one gets: that it cannot be written must not keep us from working.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Lock { _held: Arc::new(Held(file)) })
    }
}

/// Who wrote the lock file.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.take(16).read_to_string(&mut text);
    match text.trim().parse::<u32>() {
        Ok(pid) => format!("process {pid}"),
        Err(_) => "another process".to_owned(),
    }
}

/// The right to write state. Held as long as this value or any clone of it lives, and given up by the kernel when the
/// process dies.
#[derive(Debug, Clone)]
pub struct Lock {
    _held: Arc<Held>,
}

#[derive(Debug)]
struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        // Closing alone would leave the lock with a process that is just being started and has not closed it yet.
        let _ = self.0.unlock();
    }
}

/// Writes a file so that at every instant either the old or the new content is there, whole: temporary in the same
/// directory, fsync, rename, fsync of the directory. `mode` are the permission bits of the new file.
///
/// # Errors
/// Any step failed; the old content is then still there.
pub fn atomic_write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StateError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let temporary = parent.join(name);
    // Left behind by a power cut, or put there as a trap: never opened, always made anew.
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &temporary)(e)),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The mode asked for, whatever the umask says.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if let Err(e) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(failed("write", path)(e));
    }
    sync_dir(parent)
}

/// Makes renames and new names in `dir` durable.
fn sync_dir(dir: &Path) -> Result<(), StateError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn temp() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_missing_directory_is_made_for_its_owner_alone() {
        let root = temp();
        let path = root.path().join("var/lib/otandem");
        StateDir::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused_with_what_to_do() {
        let root = temp();
        std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o770)).unwrap();
        let e = StateDir::open(root.path()).unwrap_err();
        assert!(matches!(e, StateError::NotPrivate { mode: 0o770, .. }), "{e}");
        assert!(e.to_string().contains("chmod 700"), "{e}");
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can make a directory of another user");
            return;
        }
        let root = temp();
        std::os::unix::fs::chown(root.path(), Some(1), None).unwrap();
        let e = StateDir::open(root.path()).unwrap_err();
        assert!(matches!(e, StateError::NotPrivate { owner: 1, .. }), "{e}");
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_refused() {
        let root = temp();
        let path = root.path().join("state");
        std::fs::write(&path, "").unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateError::NotADirectory { .. })));
    }

    #[test]
    fn the_second_lock_is_refused_and_names_the_holder_until_the_first_is_gone() {
        let root = temp();
        let dir = StateDir::open(root.path()).unwrap();
        let lock = dir.lock().unwrap();
        let copy = lock.clone();
        drop(lock);
        let e = dir.lock().unwrap_err();
        assert!(e.to_string().contains(&format!("process {}", std::process::id())), "{e}");
        drop(copy);
        dir.lock().unwrap();
    }

    #[test]
    fn noise_in_the_lock_file_changes_nothing() {
        let root = temp();
        let dir = StateDir::open(root.path()).unwrap();
        std::fs::write(root.path().join("lock"), [0xff; 3000]).unwrap();
        let _held = dir.lock().unwrap();
        std::fs::write(root.path().join("lock"), [0xff; 3000]).unwrap();
        assert!(dir.lock().unwrap_err().to_string().contains("another process"));
    }

    #[test]
    fn atomic_write_replaces_content_and_mode_and_leaves_nothing_else() {
        let root = temp();
        let path = root.path().join("f");
        std::fs::write(root.path().join(".f.new"), "left by a power cut").unwrap();
        atomic_write(&path, b"one", 0o600).unwrap();
        atomic_write(&path, b"two", 0o644).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn atomic_write_that_fails_keeps_what_was_there() {
        let root = temp();
        let path = root.path().join("f");
        std::fs::create_dir(&path).unwrap();
        let e = atomic_write(&path, b"x", 0o600).unwrap_err();
        assert!(e.to_string().contains(path.to_str().unwrap()), "{e}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
