//! failed/: what could have no effect, each with its reason, kept up to a number and a size. The oldest go first.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::SpoolError;
use super::folder::{Folder, Identity};

const REASON: &str = ".reason";
/// Bytes of a name at most, on all usual file systems.
const NAME_MAX: usize = 255;

/// How much is kept in failed/.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Files.
    pub files: usize,
    /// Their bytes together.
    pub bytes: u64,
}

#[derive(Debug)]
struct Item {
    name: OsString,
    size: u64,
}

#[derive(Debug)]
pub(super) struct Failed {
    folder: Folder,
    keep: Keep,
    /// The oldest first.
    items: VecDeque<Item>,
    bytes: u64,
}

impl Failed {
    /// Looks at what is there, and removes what is too much of it.
    pub(super) fn open(folder: Folder, keep: Keep) -> Result<Self, SpoolError> {
        let unreadable = |e| SpoolError::new("read", folder.path(), e);
        let mut newest: Vec<(i64, Item)> = vec![];
        let names = folder.names().map_err(unreadable)?;
        for name in names.filter(|name| !is_reason(&folder, name)) {
            let Ok(stat) = folder.stat(&name) else { continue };
            newest.push((stat.changed, Item { name, size: stat.identity.size() }));
            // Never much more in memory than is kept.
            if newest.len() > 2 * keep.files + 64 {
                newest.sort_unstable_by_key(|(age, _)| *age);
                let many = newest.len() - keep.files;
                newest.drain(..many).for_each(|(_, item)| remove(&folder, &item.name));
            }
        }
        newest.sort_unstable_by_key(|(age, _)| *age);
        let items: VecDeque<Item> = newest.into_iter().map(|(_, item)| item).collect();
        let bytes = items.iter().map(|item| item.size).sum();
        let mut failed = Self { folder, keep, items, bytes };
        failed.prune();
        Ok(failed)
    }

    pub(super) const fn folder(&self) -> &Folder {
        &self.folder
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Moves `aside` of `from` in under `name`, in place of an older one of that name.
    pub(super) fn take(
        &mut self,
        from: &Folder,
        aside: &OsStr,
        name: &OsStr,
        identity: Identity,
        reason: &str,
    ) -> Result<(), SpoolError> {
        let path = self.folder.path().join(name);
        // The reason first: without its file it is overwritten at the next try.
        let told = self.write_reason(name, reason);
        let too_large = identity.size() > self.keep.bytes;
        let moved = if too_large { from.remove(aside) } else { from.rename(aside, &self.folder, name) };
        if let Err(e) = moved {
            let _ = self.folder.remove(&reason_name(name));
            return Err(SpoolError::new("move into", &path, e));
        }
        if let Err(e) = told {
            tracing::warn!("{e}");
        }
        if let Some(at) = self.items.iter().position(|item| item.name == name) {
            self.bytes -= self.items.remove(at).map_or(0, |item| item.size);
        }
        let size = if too_large { 0 } else { identity.size() };
        self.bytes += size;
        self.items.push_back(Item { name: name.to_owned(), size });
        self.prune();
        Ok(())
    }

    fn write_reason(&self, name: &OsStr, reason: &str) -> Result<(), SpoolError> {
        let name = reason_name(name);
        // Never opened: it may be a link, or a file of somebody else.
        let _ = self.folder.remove(&name);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let written = openat(self.folder.fd(), name.as_os_str(), flags, Mode::from_bits_truncate(0o640))
            .map_err(std::io::Error::from)
            .and_then(|fd| writeln!(File::from(fd), "{reason}"));
        written.map_err(|e| SpoolError::new("write", &self.folder.path().join(name), e))
    }

    fn prune(&mut self) {
        while self.items.len() > self.keep.files || self.bytes > self.keep.bytes {
            let Some(item) = self.items.pop_front() else { break };
            self.bytes -= item.size;
            remove(&self.folder, &item.name);
        }
    }
}

/// `NAME.reason`; of a name that leaves no room for it, only the beginning.
fn reason_name(name: &OsStr) -> OsString {
    use std::os::unix::ffi::OsStrExt;
    let room = name.len().min(NAME_MAX - REASON.len());
    let mut reason = OsStr::from_bytes(&name.as_bytes()[..room]).to_owned();
    reason.push(REASON);
    reason
}

/// Whether it is the reason of a file that is there.
fn is_reason(folder: &Folder, name: &OsStr) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let of = name.as_bytes().strip_suffix(REASON.as_bytes());
    of.is_some_and(|of| !of.is_empty() && folder.stat(OsStr::from_bytes(of)).is_ok())
}

fn remove(folder: &Folder, name: &OsStr) {
    let _ = folder.remove(&reason_name(name));
    match folder.remove(name) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {e}", folder.path().join(name).display());
        }
        _ => {}
    }
}
