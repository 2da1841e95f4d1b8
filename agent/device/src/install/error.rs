//! Why an installation ended, in words for the job and in the class that the job's status needs.

use std::io;
use std::path::PathBuf;

use otandem_core::image::Compression;

/// What the caller does with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The caller asked for the end; nothing is wrong with the image.
    Stopped,
    /// Went wrong, and may go right at another time: a job's FAILED.
    Failed,
    /// Will never go right as it was asked for: a job's REJECTED.
    Rejected,
}

/// The caller asked for the end of the installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stopped on request")]
pub struct Stopped;

/// The source has given up. Network sources retry and resume by themselves, so this is final.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The stop flag was seen.
    #[error("stopped on request")]
    Stopped,
    /// The bytes could not be had.
    #[error("{reason}")]
    Failed {
        /// What happened, for people, without secrets of the URL.
        reason: String,
    },
    /// The source will never be read: a scheme that is not known, a path that is no file.
    #[error("{reason}")]
    Rejected {
        /// Why, for people, without secrets of the URL.
        reason: String,
    },
    /// The object is no longer the one that was begun.
    #[error("the source changed while it was read: {reason}; start the update again")]
    Changed {
        /// What differs (size, `ETag`, time of change).
        reason: String,
    },
}

/// Why one image could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The caller asked for the end.
    #[error("stopped on request")]
    Stopped,
    /// The source has given up.
    #[error("source {from}: {source}")]
    Fetch {
        /// The source, without secrets.
        from: String,
        /// What it said.
        source: FetchError,
    },
    /// The document names no digest, and the caller does not allow that.
    #[error("no digest is given: add the sha256 of the image")]
    NoDigest,
    /// The slot's name cannot be used.
    #[error("not a slot name: use letters, digits, '-', '_' and '.', at most 64")]
    BadName,
    /// The target set has no such slot.
    #[error("the target set has no slot of this name: see [slots] in the configuration")]
    UnknownSlot,
    /// Two images are for one slot.
    #[error("named by two images")]
    NamedTwice,
    /// The target must not be written.
    #[error("{path} is not written: {why}")]
    Unsafe {
        /// The configured path.
        path: PathBuf,
        /// The rule that it breaks, and by what.
        why: String,
    },
    /// The image is larger than the slot.
    #[error("image of {size} bytes does not fit into {capacity} bytes")]
    DoesNotFit {
        /// Bytes of the image (a lower bound where it does not tell).
        size: u64,
        /// Bytes of the slot.
        capacity: u64,
    },
    /// The file system of a file slot is too full.
    #[error(
        "image of {size} bytes does not fit into the {free} bytes that are free: make room and try again"
    )]
    NoSpace {
        /// Bytes of the image (a lower bound where it does not tell).
        size: u64,
        /// Bytes that may be used.
        free: u64,
    },
    /// The image is packed in a way that this build cannot open.
    #[error("this build has no {} support", format_name(*.0))]
    Unsupported(Compression),
    /// The image looks packed, nobody said so, and there is no SHA-256 that would tell.
    #[error("looks like {} but no compression is named: name it, or give a sha256", format_name(*.0))]
    UnnamedCompression(Compression),
    /// Opening the image takes more memory than allowed.
    #[error("{} needs more decoder memory than the {cap} bytes allowed: pack it with a smaller window",
        format_name(*.format))]
    Memory {
        /// How it is packed.
        format: Compression,
        /// The limit in bytes.
        cap: u64,
    },
    /// The packed stream is damaged.
    #[error("damaged {} data at byte {at}: {reason}", format_name(*.format))]
    Corrupt {
        /// How it is packed.
        format: Compression,
        /// Bytes of the source before the damage.
        at: u64,
        /// What the decoder said.
        reason: String,
    },
    /// The source ended early.
    #[error("the source ended after {got} bytes: {missing}")]
    Truncated {
        /// Bytes that came.
        got: u64,
        /// What is missing.
        missing: String,
    },
    /// More bytes than the image may have.
    #[error("the {what} goes on beyond its {limit} bytes")]
    TooLong {
        /// `image` (raw) or `source`.
        what: &'static str,
        /// Bytes allowed.
        limit: u64,
    },
    /// A size is not the one that was promised.
    #[error("the {what} has {got} bytes instead of {expected}")]
    Size {
        /// `image` (raw) or `source`.
        what: &'static str,
        /// Bytes that came.
        got: u64,
        /// Bytes promised.
        expected: u64,
    },
    /// A digest is not the one that was promised.
    #[error("{what} is {got} instead of {expected}")]
    Digest {
        /// Which digest, over what.
        what: &'static str,
        /// In hex.
        got: String,
        /// In hex.
        expected: String,
    },
    /// The image has no bytes at all.
    #[error("the image is empty")]
    Empty,
    /// The slot does not hold what was written to it.
    #[error("{path} does not hold what was written to it: the disk may be failing")]
    ReadBack {
        /// The slot.
        path: PathBuf,
    },
    /// The slot failed.
    #[error("cannot {what} {path} at byte {at}: {source}")]
    Slot {
        /// `open`, `write`, `read`, `sync`, ...
        what: &'static str,
        /// The slot.
        path: PathBuf,
        /// Where in the slot.
        at: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The state directory failed.
    #[error("cannot {what} {path}: {source}; the update needs 1 MiB for each slot there")]
    State {
        /// `write`, `read`, ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A defect of ours.
    #[error("the {0} thread panicked: this is a defect of otandem, please report it")]
    Panicked(&'static str),
}

impl Fault {
    /// What the caller does with it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Stopped | Self::Fetch { source: FetchError::Stopped, .. } => Class::Stopped,
            Self::Fetch { source: FetchError::Rejected { .. }, .. }
            | Self::NoDigest
            | Self::BadName
            | Self::UnknownSlot
            | Self::NamedTwice
            | Self::Unsafe { .. }
            | Self::DoesNotFit { .. }
            | Self::Unsupported(_)
            | Self::UnnamedCompression(_)
            | Self::Memory { .. } => Class::Rejected,
            Self::Fetch { .. }
            | Self::NoSpace { .. }
            | Self::Corrupt { .. }
            | Self::Truncated { .. }
            | Self::TooLong { .. }
            | Self::Size { .. }
            | Self::Digest { .. }
            | Self::Empty
            | Self::ReadBack { .. }
            | Self::Slot { .. }
            | Self::State { .. }
            | Self::Thread(_)
            | Self::Panicked(_) => Class::Failed,
        }
    }
}

impl From<Stopped> for Fault {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// Why an installation ended. Its text is the reason that the job shows.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The caller asked for the end.
    #[error("stopped on request")]
    Stopped,
    /// There is nothing to install.
    #[error("no image is named")]
    NoImages,
    /// One image failed; no head was written, so no slot of the set can boot.
    #[error("slot {slot}: {fault}")]
    Image {
        /// The slot that the image is for.
        slot: String,
        /// What went wrong.
        #[source]
        fault: Fault,
    },
    /// What the machine has mounted could not be learnt, so nothing is safe to write.
    #[error("cannot tell what is in use: {path}: {source}")]
    Machine {
        /// What was read.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl InstallError {
    /// Stopped, FAILED or REJECTED.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Stopped => Class::Stopped,
            Self::NoImages => Class::Rejected,
            Self::Image { fault, .. } => fault.class(),
            Self::Machine { .. } => Class::Failed,
        }
    }

    /// Puts the slot's name to what happened there.
    pub(crate) fn at(slot: &str, fault: Fault) -> Self {
        if fault.class() == Class::Stopped {
            return Self::Stopped;
        }
        Self::Image { slot: slot.to_owned(), fault }
    }
}

const fn format_name(format: Compression) -> &'static str {
    match format {
        Compression::None => "raw",
        Compression::Gzip => "gzip",
        Compression::Xz => "xz",
        Compression::Zstd => "zstd",
    }
}
