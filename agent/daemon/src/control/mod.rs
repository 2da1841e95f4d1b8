//! The control socket: how the commands reach the running daemon.
//!
//! A line of JSON each way, with a version. One request at a time on a connection; its answer is any number of
//! progress lines and one last line. Only root, the daemon's own user and members of one group may speak, since who
//! can install an image owns the device. The server hands each [`Request`] with a [`Reply`] to the daemon and decides
//! nothing.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use otandem_core::boot::SetId;
use otandem_core::image::Sha256;
use serde::{Deserialize, Serialize};

use crate::cli::{Target, Verdict};
use crate::exit::Exit;

pub use client::{Client, ClientError};
pub use server::{Call, ControlError, Reply, Server};

/// Version of the protocol; another one is refused.
pub const VERSION: u32 = 1;
/// No line is longer, in either direction.
pub const MAX_LINE: usize = 64 << 10;

/// What the daemon can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Request {
    /// The status, as JSON in [`Answer::Done`].
    Status,
    /// A job is run by hand: begin nothing else. Granted by a line of progress, and held until the caller leaves.
    HoldJobs,
    /// Install an image.
    Install(InstallRequest),
    /// Make the running set permanent.
    Confirm,
    /// Go back to the other set.
    Rollback,
    /// Tell the bootloader what a set is worth.
    Mark {
        /// Its worth.
        verdict: Verdict,
        /// Which one.
        target: Target,
        /// Adopt it if it has this digest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        verify: Option<Sha256>,
    },
    /// Reboot.
    Reboot,
    /// Ask for a new certificate.
    Provision,
    /// One of the FOTA calls.
    Fota(FotaRequest),
}

/// `install`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InstallRequest {
    /// http(s) URL, or an absolute path: the daemon has another working directory than the caller.
    pub source: String,
    /// The job document, where the source is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Slot for the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// SHA-256 of the raw image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// SHA-256 of the bytes at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_sha256: Option<Sha256>,
    /// Set to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetId>,
    /// Try it at once.
    #[serde(default)]
    pub reboot: bool,
    /// Go without a digest.
    #[serde(default)]
    pub no_digest: bool,
}

/// `fota ...`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FotaRequest {
    /// Which one.
    pub call: FotaCall,
    /// The job document, as it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// `handle`: ask for jobs even if none was announced.
    #[serde(default)]
    pub force: bool,
    /// `handle`: reset when one is due.
    #[serde(default)]
    pub auto_reset: bool,
    /// `handle`: program for every other job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_callback: Option<PathBuf>,
}

impl FotaRequest {
    /// A call with what a person who says nothing else means.
    #[must_use]
    pub const fn new(call: FotaCall, document: Option<String>) -> Self {
        Self { call, document, force: false, auto_reset: true, job_callback: None }
    }
}

/// The FOTA calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FotaCall {
    /// Download and check.
    Update,
    /// Arm.
    Test,
    /// Make final.
    Confirm,
    /// Reset.
    Reset,
    /// All of it.
    Handle,
}

/// How far something has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Progress {
    /// What is being done, in one or two words.
    pub phase: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "kebab-case")]
pub enum Answer {
    /// As asked.
    Done {
        /// Exit code of the command; not always 0.
        exit: Exit,
        /// What the command prints.
        #[serde(default)]
        data: serde_json::Value,
    },
    /// Not done.
    Failed {
        /// Exit code of the command.
        exit: Exit,
        /// Why, and what to do.
        reason: String,
    },
}

/// A request on the wire.
#[derive(Debug, Serialize, Deserialize)]
struct RequestLine {
    v: u32,
    request: Request,
}

/// One line of an answer on the wire.
#[derive(Debug, Serialize, Deserialize)]
struct AnswerLine {
    v: u32,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    Progress(Progress),
    Answer(Answer),
}
