//! Feeding and draining a child while waiting for its end, by `poll` alone: no busy loop, no thread per stream.

use std::io::{self, PipeReader, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::ChildStdin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::Signal;

use super::{End, Stop};

/// How long output is still read after the process has ended. What it wrote itself is in the pipe already; only a
/// descendant in the background keeps the pipe open longer, and is not waited for.
const DRAIN: Duration = Duration::from_millis(200);
/// How long a killed process may take to vanish before it is left behind (it hangs in a driver).
const KILLED: Duration = Duration::from_secs(10);
/// Bytes taken from a pipe at once.
const CHUNK: usize = 16 * 1024;

/// The streams of one child.
pub(super) struct Pump {
    pub stdin: Option<(ChildStdin, Vec<u8>)>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub stdout_tail: Tail,
    pub stderr_tail: Tail,
}

/// How far the end of the child has come.
enum Phase {
    Runs,
    /// SIGTERM was sent because of this; SIGKILL follows then.
    Terminated(End, Instant),
    /// SIGKILL was sent; given up then.
    Killed(End, Instant),
    /// It ended; output is read until then.
    Ended(Option<End>, Instant),
}

/// Pipes that are emptied for processes in the background; more are closed, and who writes to them then ends.
const LEFT_BEHIND: usize = 32;
/// Enough for a thread that only reads and forgets.
const DRAIN_STACK: usize = 64 * 1024;
static DRAINS: AtomicUsize = AtomicUsize::new(0);

impl Pump {
    /// The child has ended and something that it left in the background still has its streams: they are read for ever,
    /// or it would be killed by its next line.
    pub fn leave_behind(&mut self) {
        let streams = [self.stdout.take(), self.stderr.take()];
        if streams.iter().all(Option::is_none) {
            return;
        }
        let room = |n: usize| (n < LEFT_BEHIND).then(|| n + 1);
        if DRAINS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            return tracing::warn!(
                "{LEFT_BEHIND} processes in the background write already: one more may not"
            );
        }
        let thread = std::thread::Builder::new().name("drain".into()).stack_size(DRAIN_STACK);
        let spawned = thread.spawn(move || {
            let [mut stdout, mut stderr] = streams;
            while stdout.is_some() || stderr.is_some() {
                let fds = [None, stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
                let Ok([_, out, err]) = poll(fds, None) else { break };
                if out {
                    drain(&mut stdout, &mut Tail::new(0));
                }
                if err {
                    drain(&mut stderr, &mut Tail::new(0));
                }
            }
            DRAINS.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            DRAINS.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns how the child was made to end, `None` if it ended by itself. `kill` sends a signal to its group.
    pub fn until_end(
        &mut self,
        ended: &PipeReader,
        stop: &Stop,
        deadline: Option<Instant>,
        grace: Duration,
        kill: &dyn Fn(Signal),
    ) -> io::Result<Option<End>> {
        for fd in [&self.stdout, &self.stderr].into_iter().flatten() {
            do_not_block(fd.as_fd())?;
        }
        if let Some((stdin, _)) = &self.stdin {
            do_not_block(stdin.as_fd())?;
        }
        let mut fed = 0;
        let mut phase = Phase::Runs;
        let mut gone = false;
        let after = |d: Duration| Instant::now().checked_add(d).unwrap_or_else(Instant::now);
        loop {
            let wake = match &phase {
                Phase::Runs => deadline,
                Phase::Terminated(_, at) | Phase::Killed(_, at) | Phase::Ended(_, at) => Some(*at),
            };
            let fds = [
                self.stdin.as_ref().map(|(fd, _)| fd.as_fd()),
                self.stdout.as_ref().map(AsFd::as_fd),
                self.stderr.as_ref().map(AsFd::as_fd),
                (!gone).then_some(ended.as_fd()),
                matches!(phase, Phase::Runs).then_some(stop.0.reader.as_fd()),
            ];
            let [writable, out, err, end_seen, stop_seen] = poll(fds, wake)?;
            if writable {
                self.feed(&mut fed);
            }
            if out {
                drain(&mut self.stdout, &mut self.stdout_tail);
            }
            if err {
                drain(&mut self.stderr, &mut self.stderr_tail);
            }
            gone |= end_seen;
            let silent = self.stdout.is_none() && self.stderr.is_none();
            let late = wake.is_some_and(|at| Instant::now() >= at);
            phase = match phase {
                // Asked first: who ended in time has ended in time.
                Phase::Runs if gone => Phase::Ended(None, after(DRAIN)),
                Phase::Runs if stop_seen || late => {
                    kill(Signal::SIGTERM);
                    Phase::Terminated(if stop_seen { End::Stopped } else { End::TimedOut }, after(grace))
                }
                // The group has its grace even when its leader has gone; closed pipes tell that all of it has.
                Phase::Terminated(end, _) if late || gone && silent => {
                    kill(Signal::SIGKILL);
                    if gone {
                        Phase::Ended(Some(end), after(DRAIN))
                    } else {
                        Phase::Killed(end, after(KILLED))
                    }
                }
                Phase::Killed(end, _) if gone => Phase::Ended(Some(end), after(DRAIN)),
                Phase::Killed(end, _) if late => return Ok(Some(end)),
                Phase::Ended(end, _) if late => return Ok(end),
                same => same,
            };
            if let (Phase::Ended(end, _), true) = (&phase, silent) {
                return Ok(*end);
            }
        }
    }

    fn feed(&mut self, fed: &mut usize) {
        let Some((stdin, bytes)) = &mut self.stdin else { return };
        match stdin.write(bytes.get(*fed..).unwrap_or_default()) {
            Ok(n) => *fed += n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            // A child need not read what it is given.
            Err(_) => *fed = bytes.len(),
        }
        if *fed >= bytes.len() {
            self.stdin = None;
        }
    }
}

fn drain(stream: &mut Option<OwnedFd>, tail: &mut Tail) {
    let mut chunk = [0; CHUNK];
    let Some(fd) = stream else { return };
    match nix::unistd::read(fd, &mut chunk) {
        Ok(n) if n > 0 => tail.push(&chunk[..n]),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
        _ => *stream = None,
    }
}

fn do_not_block(fd: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop).map_err(Into::into)
}

/// Waits until one of `fds` can be used or `until`. The first one is waited for to be written to, the others to be
/// read from or closed.
pub(super) fn poll<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    until: Option<Instant>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| libc::pollfd {
        // Negative ones are ignored by the kernel.
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    polled[0].events = libc::POLLOUT;
    let left = until.map(|at| at.saturating_duration_since(Instant::now()));
    // Rounded up, so that what is due is due when it wakes.
    let timeout = left.map_or(-1, |d| i32::try_from(d.as_millis().saturating_add(1)).unwrap_or(i32::MAX));
    let timeout = if left == Some(Duration::ZERO) { 0 } else { timeout };
    let count = libc::nfds_t::try_from(N).map_err(io::Error::other)?;
    // SAFETY: the array has `count` valid entries and lives through the call.
    let found = unsafe { libc::poll(polled.as_mut_ptr(), count, timeout) };
    if found < 0 {
        let e = io::Error::last_os_error();
        return if e.kind() == io::ErrorKind::Interrupted { Ok([false; N]) } else { Err(e) };
    }
    Ok(polled.map(|p| p.revents != 0))
}

/// The end of a stream of any length.
pub(super) struct Tail {
    limit: usize,
    bytes: Vec<u8>,
    cut: bool,
    newlines: u64,
    unfinished: bool,
}

impl Tail {
    pub fn new(limit: usize) -> Self {
        Self { limit, bytes: Vec::new(), cut: false, newlines: 0, unfinished: false }
    }

    pub fn push(&mut self, more: &[u8]) {
        for byte in more {
            self.newlines += u64::from(*byte == b'\n');
        }
        self.unfinished = more.last().map_or(self.unfinished, |b| *b != b'\n');
        self.bytes.extend_from_slice(more);
        if self.bytes.len() > self.limit.saturating_add(CHUNK) {
            self.trim();
        }
    }

    fn trim(&mut self) {
        let surplus = self.bytes.len().saturating_sub(self.limit);
        self.cut |= surplus > 0;
        self.bytes.drain(..surplus);
    }

    /// Lines so far, an unfinished last one included.
    pub fn lines(&self) -> u64 {
        self.newlines + u64::from(self.unfinished)
    }

    /// The last `limit` bytes, beginning with a whole character.
    pub fn finish(mut self) -> String {
        self.trim();
        let partial =
            if self.cut { self.bytes.iter().take(3).take_while(|b| **b & 0xc0 == 0x80).count() } else { 0 };
        String::from_utf8_lossy(&self.bytes[partial..]).into_owned()
    }
}
