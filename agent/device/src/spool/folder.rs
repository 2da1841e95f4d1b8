//! A directory that is held open: names in it mean the same until the end, whoever puts links in the way.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{DirBuilder, File, Metadata, ReadDir};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::libc;
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::SpoolError;

/// Which file was under a name: device and inode, time of modification, size. Another one moved over it differs in
/// at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    dev: u64,
    inode: u64,
    /// Nanoseconds since 1970.
    modified: i64,
    size: u64,
}

impl Identity {
    /// Time of modification, in nanoseconds since 1970.
    pub(super) const fn modified(self) -> i64 {
        self.modified
    }

    /// Size in bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.size
    }
}

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Link,
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "it is a file",
            Self::Directory => "it is a directory; only files are taken",
            Self::Link => "it is a symbolic link; those are not followed",
            Self::Other => "it is a pipe, a socket or a device; only files are taken",
        })
    }
}

/// What is known of a name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stat {
    pub(super) kind: Kind,
    pub(super) identity: Identity,
    /// When anything about it changed, moving it included: nanoseconds since 1970.
    pub(super) changed: i64,
}

impl Stat {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|meta| Self::from(&meta))
    }
}

impl From<&Metadata> for Stat {
    fn from(meta: &Metadata) -> Self {
        let kind = match meta.file_type() {
            kind if kind.is_file() => Kind::File,
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Link,
            _ => Kind::Other,
        };
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        let identity = Identity {
            dev: meta.dev(),
            inode: meta.ino(),
            modified: nanos(meta.mtime(), meta.mtime_nsec()),
            // What a directory or a link says of itself is nobody's content.
            size: if kind == Kind::File { meta.size() } else { 0 },
        };
        Self { kind, identity, changed: nanos(meta.ctime(), meta.ctime_nsec()) }
    }
}

/// A directory.
#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    /// For messages.
    path: PathBuf,
}

const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Folder {
    /// The directory at `path`, which its owner has chosen: links on the way are followed.
    pub(super) fn make_root(path: &Path) -> Result<Self, SpoolError> {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
        made.map_err(|e| SpoolError::new("create", path, e))?;
        let fd =
            nix::fcntl::open(path, FLAGS, Mode::empty()).map_err(|e| SpoolError::new("open", path, e))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// A directory in this one, made where it is missing.
    pub(super) fn make(&self, name: &OsStr, mode: libc::mode_t) -> Result<Self, SpoolError> {
        let path = self.path.join(name);
        let mode = Mode::from_bits_truncate(mode);
        let made = match mkdirat(&self.fd, name, mode) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(e) => return Err(SpoolError::new("create", &path, e)),
        };
        let fd = openat(&self.fd, name, FLAGS | OFlag::O_NOFOLLOW, Mode::empty())
            .map_err(|e| SpoolError::new("open", &path, e))?;
        if made {
            // Whatever the umask says.
            fchmod(&fd, mode).map_err(|e| SpoolError::new("set the mode of", &path, e))?;
        }
        Ok(Self { fd, path })
    }

    /// The same directory once more, for somebody who has it for as long as he needs it.
    pub(super) fn again(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, path: self.path.clone() })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to this very directory, whatever was renamed meanwhile.
    pub(super) fn by_number(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd()).into()
    }

    /// Whether this is what `meta` was found of.
    pub(super) fn is(&self, meta: &Metadata) -> bool {
        let own = std::fs::metadata(self.by_number());
        own.is_ok_and(|own| (own.dev(), own.ino()) == (meta.dev(), meta.ino()))
    }

    pub(super) fn names(&self) -> io::Result<impl Iterator<Item = OsString> + use<>> {
        let entries: ReadDir = std::fs::read_dir(self.by_number())?;
        Ok(entries.map_while(Result::ok).map(|entry| entry.file_name()))
    }

    pub(super) fn stat(&self, name: &OsStr) -> io::Result<Stat> {
        // By a path, since only this knows large numbers on small processors.
        std::fs::symlink_metadata(self.by_number().join(name)).map(|meta| Stat::from(&meta))
    }

    pub(super) fn rename(&self, name: &OsStr, to: &Self, new_name: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.fd, name, &to.fd, new_name)?)
    }

    /// As [`Folder::rename`], unless there is something under the new name: that is newer, and stays.
    pub(super) fn give_back(&self, name: &OsStr, to: &Self, new_name: &OsStr) -> io::Result<()> {
        match linkat(&self.fd, name, &to.fd, new_name, AtFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => self.remove(name),
            // A directory, or a file system without hard links.
            Err(_) if to.stat(new_name).is_err() => self.rename(name, to, new_name),
            Err(_) => self.remove(name),
        }
    }

    /// Removes a file, or a directory that is empty.
    pub(super) fn remove(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => Ok(unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)?),
            other => Ok(other?),
        }
    }
}
