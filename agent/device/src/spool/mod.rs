//! An action directory: files that others move in, each of which is to have one effect.
//!
//! ```text
//! DIR/tmp/      where they are written
//! DIR/new/      where they are moved to when they are complete, and lie until their effect is certain
//! DIR/failed/   those that can have none, each with NAME.reason beside it; bounded, the oldest go first
//! ```
//!
//! Whoever writes here need not be trusted: every name is looked up in a directory that is held open, links are not
//! followed, nothing but regular files is read, and of those not more than a limit. What is read is known by its
//! [`Identity`]; when the file is done, exactly that file is removed. The same name moved in meanwhile stays.
//!
//! [`Spool`] is the directory, [`Watch`] says when something came, [`Bell`] wakes the one who waits for that.

mod failed;
mod folder;
#[cfg(test)]
mod tests;
mod watch;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use failed::Failed;
pub use failed::Keep;
pub use folder::Identity;
use folder::{Folder, Kind, Stat};
pub use watch::{Bell, Found, Watch};

/// Files in new/ that could not be removed or moved, and are remembered.
const MAX_STUCK: usize = 4096;
/// What an action directory consists of.
const PARTS: [&str; 3] = ["tmp", "new", "failed"];
/// How a file is opened: a writer of a pipe is not waited for, a link is not followed.
const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);
/// Where a file goes on its way out, under its own name: after a power cut it goes back.
const LEAVING: &str = ".otandem-leaving";

/// An action directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}", path = path.display())]
pub struct SpoolError {
    /// What was tried, as a verb.
    action: &'static str,
    /// The file or directory.
    path: PathBuf,
    /// Why it failed.
    source: io::Error,
}

impl SpoolError {
    fn new(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { action, path: path.to_owned(), source: source.into() }
    }
}

/// A file that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name in new/.
    pub name: OsString,
    /// Which file that was.
    pub identity: Identity,
}

/// What a look at a name gave.
#[derive(Debug)]
pub enum Loaded {
    /// A file and its content.
    Content(Entry, Vec<u8>),
    /// Nothing that may be read, and why.
    Refused(Entry, String),
    /// The name is gone, or was dealt with before and could not be removed.
    Gone,
    /// Not now: the system is short of something.
    Later(io::Error),
}

/// What is under a name after a file was dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Nothing,
    /// Another file, moved in meanwhile.
    Another,
    /// The same file, which cannot be removed or moved. It is remembered and passed over.
    Stuck,
}

/// What is to become of a file that is still there.
#[derive(Debug, Clone)]
enum Due {
    Removal,
    Failure(String),
}

/// An action directory.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    tmp: Folder,
    new: Folder,
    leaving: Folder,
    failed: Failed,
    /// Bytes of a file that is read, at most.
    most: u64,
    /// In the order of their names.
    stuck: Vec<(Entry, Due)>,
    stuck_why: String,
}

/// Makes [`LEAVING`], unless it is there.
fn leaving(tmp: &Folder) -> Result<Folder, SpoolError> {
    tmp.make(OsStr::new(LEAVING), 0o700)
}

impl Spool {
    /// Opens the directory; what is missing of it is made: for everybody to see, for its owner and group to write.
    /// `most`: bytes of a file at most.
    ///
    /// # Errors
    /// It cannot be made or opened, or a part of it is no directory.
    pub fn open(path: &Path, most: u64, keep: Keep) -> Result<Self, SpoolError> {
        let root = Folder::make_root(path)?;
        let tmp = root.make(OsStr::new(PARTS[0]), 0o770)?;
        let new = root.make(OsStr::new(PARTS[1]), 0o770)?;
        let failed = Failed::open(root.make(OsStr::new(PARTS[2]), 0o750)?, keep)?;
        let leaving = leaving(&tmp)?;
        let recover = |e| SpoolError::new("recover", &path.join("tmp").join(LEAVING), e);
        // Left by a power cut in the middle of a removal. What was moved in since is newer, and stays.
        for name in leaving.names().map_err(recover)? {
            leaving.give_back(&name, &new, &name).map_err(recover)?;
        }
        let (stuck, stuck_why) = (Vec::new(), String::new());
        Ok(Self { path: path.to_owned(), tmp, new, leaving, failed, most, stuck, stuck_why })
    }

    /// Whether this is still what is found under its path.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let is = |(folder, name): (&Folder, &str)| {
            std::fs::symlink_metadata(self.path.join(name)).is_ok_and(|meta| folder.is(&meta))
        };
        [&self.tmp, &self.new, self.failed.folder()].into_iter().zip(PARTS).all(is)
    }

    /// Calls `each` with every name in new/ and its time of modification (nanoseconds since 1970; 0 unless `times`).
    /// What is stuck is left out. Returns their number.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn scan(&self, times: bool, mut each: impl FnMut(OsString, i64)) -> Result<u64, SpoolError> {
        let mut count = 0;
        for name in self.new.names().map_err(|e| SpoolError::new("read", &self.path.join("new"), e))? {
            if self.find_stuck(&name).is_ok() {
                continue;
            }
            let modified = if times { self.modified(&name) } else { 0 };
            count += 1;
            each(name, modified);
        }
        Ok(count)
    }

    /// When the file was modified, in nanoseconds since 1970; 0 if it is not there.
    #[must_use]
    pub fn modified(&self, name: &OsStr) -> i64 {
        self.new.stat(name).map_or(0, |stat| stat.identity.modified())
    }

    /// The file that has this name now.
    #[must_use]
    pub fn entry(&self, name: &OsStr) -> Option<Entry> {
        let identity = self.new.stat(name).ok()?.identity;
        Some(Entry { name: name.to_owned(), identity })
    }

    /// Number of files in failed/.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failed.len()
    }

    /// Number of files that are done and cannot be removed or moved, and why the last one cannot.
    #[must_use]
    pub fn stuck(&self) -> (usize, &str) {
        (self.stuck.len(), &self.stuck_why)
    }

    /// No more files that are stuck can be remembered: nothing may be taken, or it would be taken again and again.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.stuck.len() >= MAX_STUCK
    }

    /// Reads a file, without ever waiting for a writer.
    #[must_use]
    pub fn load(&mut self, name: &OsStr) -> Loaded {
        let opened = nix::fcntl::openat(self.new.fd(), name, READ, Mode::empty());
        let file = match opened {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => {
                self.unstick(name);
                return Loaded::Gone;
            }
            Err(e @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EINTR)) => {
                return Loaded::Later(e.into());
            }
            Err(e) => return self.unreadable(name, e),
        };
        let stat = match Stat::of(&file) {
            Ok(stat) => stat,
            Err(e) => return Loaded::Later(e),
        };
        if self.passed_over(name, stat.identity) {
            return Loaded::Gone;
        }
        let entry = Entry { name: name.to_owned(), identity: stat.identity };
        if stat.kind != Kind::File {
            return Loaded::Refused(entry, stat.kind.to_string());
        }
        let size = stat.identity.size();
        if size > self.most {
            return Loaded::Refused(entry, format!("it has {size} bytes; at most {} are taken", self.most));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        match file.take(self.most).read_to_end(&mut bytes) {
            Ok(_) => Loaded::Content(entry, bytes),
            Err(e) => Loaded::Refused(entry, format!("it cannot be read: {e}")),
        }
    }

    /// The content of a file that may be read, for a look at it before its turn comes.
    #[must_use]
    pub fn peek(&self, name: &OsStr) -> Option<Vec<u8>> {
        let file = File::from(nix::fcntl::openat(self.new.fd(), name, READ, Mode::empty()).ok()?);
        let stat = Stat::of(&file).ok()?;
        if stat.kind != Kind::File || stat.identity.size() > self.most {
            return None;
        }
        let mut bytes = Vec::with_capacity(usize::try_from(stat.identity.size()).unwrap_or_default());
        file.take(self.most).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// What cannot be opened: a link, a socket, no permission.
    fn unreadable(&mut self, name: &OsStr, why: Errno) -> Loaded {
        let Ok(stat) = self.new.stat(name) else { return Loaded::Gone };
        if self.passed_over(name, stat.identity) {
            return Loaded::Gone;
        }
        let entry = Entry { name: name.to_owned(), identity: stat.identity };
        let reason = match stat.kind {
            Kind::File => format!("it cannot be opened: {}", io::Error::from(why)),
            other => other.to_string(),
        };
        Loaded::Refused(entry, reason)
    }

    fn passed_over(&mut self, name: &OsStr, identity: Identity) -> bool {
        let same = self.find_stuck(name).is_ok_and(|at| self.stuck[at].0.identity == identity);
        if !same {
            self.unstick(name);
        }
        same
    }

    fn find_stuck(&self, name: &OsStr) -> Result<usize, usize> {
        self.stuck.binary_search_by(|(entry, _)| entry.name.as_os_str().cmp(name))
    }

    fn unstick(&mut self, name: &OsStr) {
        if let Ok(at) = self.find_stuck(name) {
            self.stuck.remove(at);
        }
    }

    /// The file had its effect: it is removed.
    pub fn done(&mut self, entry: &Entry) -> After {
        self.settle(entry, Due::Removal)
    }

    /// The file can have no effect: it goes to failed/, with the reason beside it.
    pub fn fail(&mut self, entry: &Entry, reason: &str) -> After {
        self.settle(entry, Due::Failure(reason.to_owned()))
    }

    fn settle(&mut self, entry: &Entry, due: Due) -> After {
        match self.try_settle(entry, &due) {
            Ok(after) => {
                self.unstick(&entry.name);
                after
            }
            Err(why) => {
                self.stuck_why = why.to_string();
                match self.find_stuck(&entry.name) {
                    Ok(at) => self.stuck[at] = (entry.clone(), due),
                    Err(at) if self.stuck.len() < MAX_STUCK => self.stuck.insert(at, (entry.clone(), due)),
                    Err(_) => {}
                }
                After::Stuck
            }
        }
    }

    fn try_settle(&mut self, entry: &Entry, due: &Due) -> Result<After, SpoolError> {
        let failed = |e: io::Error| SpoolError::new("remove", &self.path.join("new").join(&entry.name), e);
        let name = &entry.name;
        // Moved aside before it is looked at: then nobody can put another file in its place.
        match self.new.rename(name, &self.leaving, name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.new.stat(name).is_err() => {
                return Ok(After::Nothing);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Somebody has tidied up tmp/.
                self.leaving = leaving(&self.tmp)?;
                self.new.rename(name, &self.leaving, name).map_err(failed)?;
            }
            moved => moved.map_err(failed)?,
        }
        let ours = self.leaving.stat(name).is_ok_and(|stat| stat.identity == entry.identity);
        if !ours {
            self.leaving.give_back(name, &self.new, name).map_err(failed)?;
            return Ok(After::Another);
        }
        let settled = match due {
            Due::Removal => self.leaving.remove(name).map_err(failed),
            Due::Failure(reason) => self.failed.take(&self.leaving, name, name, entry.identity, reason),
        };
        if let Err(e) = settled {
            // It stays where it was, and is passed over from now on.
            self.leaving.give_back(name, &self.new, name).map_err(failed)?;
            return Err(e);
        }
        Ok(After::Nothing)
    }

    /// Tries to remove or move what is stuck once more.
    pub fn retry_stuck(&mut self) {
        for (entry, due) in std::mem::take(&mut self.stuck) {
            self.settle(&entry, due);
        }
    }
}
