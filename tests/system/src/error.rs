//! What can go wrong with the device in a folder, as opposed to the agent on it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The harness could not do something, or did not see what it waited for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    File {
        /// A verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program that is needed.
    #[error("cannot run {program}: {why}")]
    Program {
        /// Its name and arguments.
        program: String,
        /// What it or the system said.
        why: String,
    },
    /// Compression.
    #[error("cannot pack the image: {0}")]
    Pack(String),
    /// The simulated bootloader.
    #[error("simulated bootloader: {0}")]
    Loader(String),
    /// What was waited for did not happen.
    #[error("{what}: not seen within {limit:?}; the end of {log}:\n{tail}", log = log.display())]
    NotSeen {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The agent's log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// What was seen is not what should be.
    #[error("{0}")]
    Wrong(String),
}

/// Puts the name of a file to what the system said.
pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { what, path: path.to_owned(), source }
}
