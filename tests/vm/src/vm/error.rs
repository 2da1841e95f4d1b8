//! Why a device did not do what a test wanted.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::LONGEST_COMMAND;
use super::qmp::QmpError;

/// Why the device did not do what the test wanted.
#[derive(Debug, Error)]
pub enum VmError {
    /// A file of the device.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// All seats are taken.
    #[error("{seats} devices ran all the time for {limit:?}; set OTANDEM_VM_SEATS to run more at once")]
    NoSeat {
        /// How many there are.
        seats: usize,
        /// How long was waited.
        limit: Duration,
    },
    /// QEMU could not be started.
    #[error("{program} does not start: {source}; Debian has it in qemu-system-x86")]
    Start {
        /// What was started.
        program: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// QEMU started and refused its arguments.
    #[error("QEMU ended at once: {source}; its words:\n{words}")]
    Refused {
        /// Its standard error.
        words: String,
        /// How it was noticed.
        source: QmpError,
    },
    /// The device is off, or already on.
    #[error("the device is {is}; {next}")]
    Power {
        /// Off or on.
        is: &'static str,
        /// What to do.
        next: &'static str,
    },
    /// The control line.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Something was not said in time, or the device ended before.
    #[error("waited for {what}: {why}; the serial line ended with:\n{tail}")]
    Unheard {
        /// What was waited for.
        what: String,
        /// Too late, or the end.
        why: String,
        /// Its last lines.
        tail: String,
    },
    /// The guest does not read its serial line.
    #[error("the guest does not take what is typed: {source}; it hangs, or its console is another one")]
    Deaf {
        /// What the system says.
        source: io::Error,
    },
    /// A command that a terminal cannot take.
    #[error(
        "a command of {len} bytes is too long for a serial line ({LONGEST_COMMAND}); put it into a file of the image"
    )]
    TooLong {
        /// In bytes.
        len: usize,
    },
    /// The guest said something that is not what it should have been.
    #[error(
        "the guest said {said:?} for {what}; the kernel may have spoken in between: boot it with `quiet`"
    )]
    Garbled {
        /// What was expected.
        what: String,
        /// What came.
        said: String,
    },
    /// A command of the guest failed that had to succeed.
    #[error("in the guest `{command}` ended with {status}: {text}")]
    Failed {
        /// What was run.
        command: String,
        /// Its exit status.
        status: i32,
        /// What it said.
        text: String,
    },
}
