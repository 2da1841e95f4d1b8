//! Waiting for files: inotify on new/, and a bell for everybody else who wants the waiting thread.

use std::ffi::{OsStr, OsString};
use std::fs::symlink_metadata;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::folder::Folder;
use super::{PARTS, Spool, SpoolError};

/// Wakes a thread that waits in [`Watch::wait`] or [`Bell::wait`]; clones are the same bell.
#[derive(Debug, Clone)]
pub struct Bell(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    event: EventFd,
    /// It was rung and not heard yet: there is no need to ring again.
    rung: AtomicBool,
}

impl Bell {
    /// A bell.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Inner { event, rung: AtomicBool::new(false) })))
    }

    /// Wakes the waiting thread, or lets it not fall asleep.
    pub fn ring(&self) {
        if !self.0.rung.swap(true, Ordering::SeqCst) {
            // The only error is a counter of 2^64 that is full, which wakes as well.
            let _ = self.0.event.write(1);
        }
    }

    /// Takes the ringing back, before one looks at what it was about.
    pub fn hear(&self) {
        if self.0.rung.load(Ordering::SeqCst) {
            let _ = self.0.event.read();
            self.0.rung.store(false, Ordering::SeqCst);
        }
    }

    /// Waits until it rings, at most `longest`.
    pub fn wait(&self, longest: Option<Duration>) {
        wait(&mut [PollFd::new(self.0.event.as_fd(), PollFlags::POLLIN)], longest);
    }
}

/// What a [`Watch`] saw.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Something of this name is complete: moved in, written here and closed, or no file that anybody could write
    /// (a further link to one that was written elsewhere, a directory, a pipe).
    Name(OsString),
    /// Something was lost: the directory must be read.
    Missed,
    /// The directory was removed or moved away.
    Gone,
}

/// Says what comes into new/.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    new: Folder,
}

impl Watch {
    /// Begins now: what comes from here on is told. What was there before is seen by [`Spool::scan`] after this.
    ///
    /// # Errors
    /// The kernel allows no more watches: raise `fs.inotify.max_user_instances` or `max_user_watches`.
    pub fn new(spool: &Spool) -> Result<Self, SpoolError> {
        let failed = |e: Errno| SpoolError::new("watch", spool.new.path(), e);
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        let what = AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(&spool.new.by_number(), what).map_err(failed)?;
        // An open directory that was removed says so only when it is closed: its parent knows at once.
        let parent = AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(&spool.path, parent).map_err(failed)?;
        let new = spool.new.again().map_err(|e| SpoolError::new("watch", spool.new.path(), e))?;
        Ok(Self { inotify, new })
    }

    /// What came since the last call, some of it: an empty list says that there is nothing more now.
    #[must_use]
    pub fn read(&self) -> Vec<Found> {
        let events = match self.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => return vec![],
            Err(_) => return vec![Found::Gone],
        };
        let found = events.into_iter().filter_map(|event| {
            let is = |what| event.mask.intersects(what);
            if is(AddWatchFlags::IN_Q_OVERFLOW) {
                return Some(Found::Missed);
            }
            if is(AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM) {
                // Of the parent, in which others may do what they like.
                return event.name.filter(|name| PARTS.iter().any(|part| name == part)).map(|_| Found::Gone);
            }
            match event.name {
                Some(name) if is(AddWatchFlags::IN_CREATE) => {
                    self.nobody_closes(&name).then_some(Found::Name(name))
                }
                Some(name) => Some(Found::Name(name)),
                None => Some(Found::Gone),
            }
        });
        found.collect()
    }

    /// Whether what was made under this name is not a file that somebody writes now, which is told when it is closed.
    /// `link()`, with which a maildir delivers, never says more than that a name was made.
    fn nobody_closes(&self, name: &OsStr) -> bool {
        let meta = symlink_metadata(self.new.by_number().join(name));
        meta.is_ok_and(|meta| !meta.is_file() || meta.nlink() > 1)
    }

    /// Waits until there is something to read, or the bell rings, at most `longest`.
    pub fn wait(&self, bell: &Bell, longest: Option<Duration>) {
        let (watch, bell) = (self.inotify.as_fd(), bell.0.event.as_fd());
        wait(&mut [PollFd::new(watch, PollFlags::POLLIN), PollFd::new(bell, PollFlags::POLLIN)], longest);
    }
}

fn wait(fds: &mut [PollFd<'_>], longest: Option<Duration>) {
    // Rounded up, so that what is due is due when we look.
    let millis = longest.map(|d| d.as_nanos().div_ceil(1_000_000));
    let timeout =
        millis.map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX));
    // Errors are signals and bad luck: one looks, and waits again.
    let _ = poll(fds, timeout);
}
