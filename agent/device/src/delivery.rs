//! A message of the cloud for a file or a program of this device.
//!
//! [`write`] puts it where a path leads: in place of what a file holds, or into a pipe or device. [`exec`] hands it to a
//! command. Both end within a time that the caller gives.

use std::fs::{self, FileType, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::run::{self, Spec, Stop};
use crate::services::{self, OutfileError};

/// From SIGTERM to SIGKILL of a command that is over its time.
const GRACE: Duration = Duration::from_secs(1);
/// The variable in which a command finds the topic.
const TOPIC: &str = "MESSAGE_TOPIC";

/// A message did not get where it should.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The file was not replaced.
    #[error(transparent)]
    File(#[from] OutfileError),
    /// A pipe that nobody reads.
    #[error("nobody reads {path}: the message is dropped", path = .0.display())]
    NoReader(PathBuf),
    /// A pipe or device that did not take everything in time.
    #[error(
        "{path} took {written} of {of} bytes within {seconds} s, and the rest is dropped: its reader is too slow",
        path = path.display(), seconds = limit.as_secs_f32()
    )]
    Slow {
        /// The pipe or device.
        path: PathBuf,
        /// Bytes that it took.
        written: usize,
        /// Bytes of the message.
        of: usize,
        /// The time it had.
        limit: Duration,
    },
    /// A pipe or device that cannot be written.
    #[error("cannot write into {path}: {source}", path = path.display())]
    Stream {
        /// The pipe or device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The command was not started.
    #[error(transparent)]
    Start(#[from] run::RunError),
    /// The command ended, and not well: how, and the last line of its standard error.
    #[error("{0}")]
    Command(String),
}

/// Puts a message where `path` leads.
///
/// A file is replaced whole, as [`services::write`] does it; one that is not there is made. A pipe without a reader is not
/// waited for; one whose reader is slow, and a device, may take `limit` for all of it. A disk is never written: slots are
/// disks.
///
/// # Errors
/// See [`DeliveryError`]. Of a pipe or device, part of the message may have been written.
pub fn write(path: &Path, message: &[u8], limit: Duration) -> Result<(), DeliveryError> {
    match fs::metadata(path) {
        Ok(meta) if is_stream(meta.file_type()) => pour(path, message, limit),
        _ => Ok(services::write(path, message)?),
    }
}

fn is_stream(kind: FileType) -> bool {
    kind.is_fifo() || kind.is_char_device()
}

fn pour(path: &Path, message: &[u8], limit: Duration) -> Result<(), DeliveryError> {
    let failed = |source| DeliveryError::Stream { path: path.to_owned(), source };
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut stream = match OpenOptions::new().write(true).custom_flags(flags).open(path) {
        Ok(stream) => stream,
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => {
            return Err(DeliveryError::NoReader(path.to_owned()));
        }
        Err(e) => return Err(failed(e)),
    };
    // Somebody may have put something else there meanwhile; nothing of it has changed yet.
    if !is_stream(stream.metadata().map_err(failed)?.file_type()) {
        return Err(failed(io::Error::other("it was replaced while it was opened")));
    }
    let until = Instant::now().checked_add(limit);
    let mut written = 0;
    while written < message.len() {
        match stream.write(&message[written..]) {
            Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
            Ok(bytes) => written += bytes,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let left = until.map_or(limit, |until| until.saturating_duration_since(Instant::now()));
                if left.is_zero() {
                    let (path, of) = (path.to_owned(), message.len());
                    return Err(DeliveryError::Slow { path, written, of, limit });
                }
                // Rounded up, so that the time is over when we look.
                let millis = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
                // Errors are signals and bad luck: one looks again.
                let _ = poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], millis);
            }
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                return Err(DeliveryError::NoReader(path.to_owned()));
            }
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}

/// Hands a message to `/bin/sh -c COMMAND`: the payload on standard input, the topic in `MESSAGE_TOPIC`, beside the agent's
/// own environment. After `limit` the whole process group is ended. Of its output only the last line of standard error is
/// looked at, where it fails.
///
/// # Errors
/// It was not started, took too long, or ended with something else than 0.
pub fn exec(
    command: &str,
    topic: &str,
    message: &[u8],
    limit: Duration,
    stop: &Stop,
) -> Result<(), DeliveryError> {
    let own = [(TOPIC.into(), topic.into())];
    let mut spec = Spec::new(["/bin/sh", "-c", command]).in_own_environment(own);
    spec.stdin = Some(message.to_vec());
    spec.time_limit = Some(limit);
    spec.grace = GRACE;
    run::run(spec, stop)?.printed(limit).map(drop).map_err(DeliveryError::Command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    const LONG: Duration = Duration::from_secs(60);

    fn pipe(dir: &tempfile::TempDir) -> PathBuf {
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, b"a longer message", LONG).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        write(&path, b"short", LONG).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        write(&path, b"", LONG).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert!(write(&dir.path().join("gone/file"), b"x", LONG).is_err());
        assert!(write(dir.path(), b"x", LONG).is_err());
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = pipe(&dir);
        let why = write(&path, b"x", Duration::MAX).unwrap_err();
        assert!(matches!(why, DeliveryError::NoReader(_)), "{why}");
        assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
    }

    #[test]
    fn a_reader_gets_a_message_that_is_larger_than_the_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = pipe(&dir);
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let message: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let got = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(&path, &message, LONG));
            let mut got = vec![];
            let mut part = vec![0; 1 << 16];
            while got.len() < message.len() {
                match reader.read(&mut part) {
                    Ok(bytes) => got.extend_from_slice(&part[..bytes]),
                    Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
                }
            }
            writer.join().unwrap().unwrap();
            got
        });
        assert_eq!(got, message);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_the_limit_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = pipe(&dir);
        let _reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let why = write(&path, &[0; 1 << 20], Duration::from_millis(1)).unwrap_err();
        assert!(
            matches!(why, DeliveryError::Slow { written, of, .. } if written > 0 && written < of),
            "{why}"
        );
    }

    #[test]
    fn a_device_takes_a_message_and_a_disk_does_not() {
        write(Path::new("/dev/null"), b"x", LONG).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let disks = fs::read_dir("/dev").unwrap().flatten().map(|e| e.path());
        let Some(disk) =
            disks.into_iter().find(|p| fs::metadata(p).is_ok_and(|m| m.file_type().is_block_device()))
        else {
            return println!("skipped: no block device here");
        };
        // Nothing would be written even if it were tried.
        let why = write(&disk, b"", LONG).unwrap_err();
        assert!(matches!(why, DeliveryError::File(_)), "{why}");
    }

    #[test]
    fn a_command_gets_the_payload_the_topic_and_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let command =
            format!("printf %s \"$MESSAGE_TOPIC:\" > {0}; cat >> {0}; test -n \"$PATH\"", out.display());
        let stop = Stop::new().unwrap();
        exec(&command, "a/'$(b)\n", b"\0pay\xff", LONG, &stop).unwrap();
        assert_eq!(fs::read(&out).unwrap(), b"a/'$(b)\n:\0pay\xff");
        // What is not read is no mistake.
        exec("true", "a", &vec![0; 1 << 20], LONG, &stop).unwrap();
    }

    #[test]
    fn a_command_that_fails_or_hangs_says_so_and_leaves_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let stop = Stop::new().unwrap();
        let fails = |command: &str, limit| exec(command, "t", b"", limit, &stop).unwrap_err().to_string();
        assert_eq!(fails("echo first >&2; echo sad >&2; exit 3", LONG), "exit code 3: sad");
        let path = pipe(&dir);
        // A grandchild that holds the pipe open, deaf to SIGTERM.
        let hangs = format!("trap '' TERM; (exec 3<>{}; sleep 1000) & sleep 1000", path.display());
        assert!(fails(&hangs, Duration::from_millis(50)).contains("not done within 0.05 s"));
        let gone = write(&path, b"x", LONG).unwrap_err();
        assert!(matches!(gone, DeliveryError::NoReader(_)), "{gone}");
        stop.stop();
        assert!(fails("sleep 1000", LONG).contains("ended with the agent"));
    }
}
