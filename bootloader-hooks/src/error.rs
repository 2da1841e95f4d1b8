//! What can go wrong between us and a bootloader.

use std::io;
use std::path::PathBuf;

use otandem_core::boot::SetId;
use otandem_device::machine::MachineError;
use otandem_device::run::{End, RunError};
use otandem_device::state::StateError;

/// A bootloader could not be asked or told something.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Nothing may be changed while it is not known which set runs.
    #[error("will not {action} while the running set is unknown: {reason}")]
    BootedUnknown {
        /// What was asked for.
        action: &'static str,
        /// Why it is unknown.
        reason: String,
    },
    /// Asked for the running set where the other one is meant.
    #[error("will not {action} set {set}: it is the running one")]
    Running {
        /// What was asked for.
        action: &'static str,
        /// The set.
        set: SetId,
    },
    /// Asked for the other set where the running one is meant.
    #[error("will not {action} set {set}: it is not the running one")]
    NotRunning {
        /// What was asked for.
        action: &'static str,
        /// The set.
        set: SetId,
    },
    /// It would leave nothing to boot.
    #[error("will not mark set {set} bad: set {} is not bootable either; `otandem mark good` it first", set.other())]
    NoFallback {
        /// The set that was to be marked bad.
        set: SetId,
    },
    /// The configuration asks for something that this bootloader cannot do.
    #[error("bootloader configuration: {0}")]
    Config(String),
    /// The program could not be run.
    #[error("boot program, {verb}: {source}")]
    Program {
        /// The verb it was called with.
        verb: String,
        /// Why.
        source: RunError,
    },
    /// The program ran and did not succeed.
    #[error("boot program {program} {verb} did not succeed ({end:?}): {output}", program = program.display())]
    Refused {
        /// The program.
        program: PathBuf,
        /// The verb and its arguments.
        verb: String,
        /// How it ended.
        end: End,
        /// The end of what it said.
        output: String,
    },
    /// The program's answer makes no sense.
    #[error("boot program {program} {verb} answered {answer:?}: expected {expected}", program = program.display())]
    Answer {
        /// The program.
        program: PathBuf,
        /// The verb and its arguments.
        verb: String,
        /// The beginning of what it answered.
        answer: String,
        /// What would have made sense.
        expected: String,
    },
    /// What was written is not what is there.
    #[error("the bootloader does not show what was written: {what} should be {wanted} and is {found}")]
    ReadBack {
        /// Which value.
        what: String,
        /// What was written.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// An operation on a file failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file could not be replaced.
    #[error(transparent)]
    State(#[from] StateError),
    /// A fact of the machine could not be read.
    #[error(transparent)]
    Machine(#[from] MachineError),
}
