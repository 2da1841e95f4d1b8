//! What one update is, where it came from and how it can end.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::boot::SetId;
use crate::image::{Image, Sha256};

/// Identity of one execution of one job: a re-created job with the same name, or a retry of it, is another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobKey {
    /// Host name of the cloud that gave the job.
    pub endpoint: String,
    /// Thing that the job was given to.
    pub thing: String,
    /// `jobId`.
    pub job: String,
    /// `executionNumber`.
    pub execution: i64,
    /// `queuedAt`, in the service's own unit: compared, never computed with.
    pub queued_at: i64,
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {} (execution {})", self.job, self.execution)
    }
}

/// Who asked for an update, and so who is told how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Origin {
    /// A cloud job.
    Job {
        /// Which one.
        key: JobKey,
        /// The cloud ended the job by itself: what the device does next is told to nobody.
        #[serde(default)]
        closed: bool,
    },
    /// A person or a program on the device.
    Local,
    /// Nobody that is still known: the record was lost, or this is the first start of a new device.
    Adopted,
}

impl Origin {
    /// The job that waits for an answer.
    #[must_use]
    pub const fn open_job(&self) -> Option<&JobKey> {
        match self {
            Self::Job { key, closed: false } => Some(key),
            _ => None,
        }
    }

    /// The job, whether or not it still waits.
    #[must_use]
    pub const fn job(&self) -> Option<&JobKey> {
        match self {
            Self::Job { key, .. } => Some(key),
            _ => None,
        }
    }
}

/// How far an update goes by itself once its images are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// Stop there; `fota test` arms it.
    Hold,
    /// Arm it; whoever asked reboots.
    Arm,
    /// Arm it and reboot.
    Reboot,
}

/// One update, validated: everything that is decided before the first byte is fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Update {
    /// Who asked.
    pub origin: Origin,
    /// The set that runs while the images are written.
    pub from: SetId,
    /// The set that is written and tried.
    pub target: SetId,
    /// The images, in the order in which they are fetched. Empty for a switch to a set that is complete already.
    pub images: Vec<Image>,
    /// The version that the document names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How far to go.
    pub then: Then,
    /// The trial must reach the cloud.
    pub require_cloud: bool,
    /// The document overrides a ban of its digest.
    #[serde(default)]
    pub retry: bool,
    /// SHA-256 of each image as written, in the order of `images`; empty until then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<Sha256>,
}

impl Update {
    /// A switch to `target` as it is: nothing to fetch, then the reboot, without the cloud.
    #[must_use]
    pub const fn switch_to(target: SetId, origin: Origin) -> Self {
        Self {
            origin,
            from: target.other(),
            target,
            images: Vec::new(),
            version: None,
            then: Then::Reboot,
            require_cloud: false,
            retry: false,
            written: Vec::new(),
        }
    }

    /// The digest that names this update to people and in the seal: the written one if known, else what the
    /// document asks for.
    #[must_use]
    pub fn digest(&self) -> String {
        if let Some(sha256) = self.written.first() {
            return sha256.to_string();
        }
        let Some(image) = self.images.first() else { return "-".to_owned() };
        match (image.raw.sha256, image.file.sha256, image.file.md5) {
            (Some(d), _, _) | (None, Some(d), _) => d.to_string(),
            (None, None, Some(md5)) => md5.to_string(),
            (None, None, None) => "-".to_owned(),
        }
    }

    /// The raw digests of all images, if every one is known: what a ban remembers.
    #[must_use]
    pub fn raw_digests(&self) -> Option<Vec<Sha256>> {
        if self.written.len() == self.images.len() && !self.written.is_empty() {
            return Some(self.written.clone());
        }
        let known: Vec<_> = self.images.iter().filter_map(|i| i.raw.sha256).collect();
        (known.len() == self.images.len() && !known.is_empty()).then_some(known)
    }
}

/// Characters of a reason that are kept.
const REASON_KEPT: usize = 512;

fn clip(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_KEPT).collect()
}

/// How an update ended. The jobs module alone turns this into a job status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Outcome {
    /// The new set ran, was found well and is permanent; or it was running already.
    Succeeded {
        /// One line for people.
        reason: String,
    },
    /// Not done, but another attempt may do it.
    Failed {
        /// One line for people.
        reason: String,
    },
    /// Can never be done on this device.
    Rejected {
        /// One line for people.
        reason: String,
    },
}

impl Outcome {
    /// `Failed` with this reason.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self::Failed { reason: reason.into() }
    }

    /// `Rejected` with this reason.
    pub fn rejected(reason: impl Into<String>) -> Self {
        Self::Rejected { reason: reason.into() }
    }

    /// `Succeeded` with this reason.
    pub fn succeeded(reason: impl Into<String>) -> Self {
        Self::Succeeded { reason: reason.into() }
    }

    /// With its reason bounded and on one line: reasons come from scripts and servers.
    #[must_use]
    pub fn clipped(self) -> Self {
        match self {
            Self::Succeeded { reason } => Self::Succeeded { reason: clip(&reason) },
            Self::Failed { reason } => Self::Failed { reason: clip(&reason) },
            Self::Rejected { reason } => Self::Rejected { reason: clip(&reason) },
        }
    }

    /// The reason, whatever the kind.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Succeeded { reason } | Self::Failed { reason } | Self::Rejected { reason } => reason,
        }
    }
}

/// Why the machine goes back to the old set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reason {
    /// What follows from it.
    pub cause: Cause,
    /// One line for people, without the words "rolled back".
    pub text: String,
}

/// What makes the machine go back, as far as something follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A health check said no: the digest is banned.
    Health,
    /// The trial ended and nobody knows why; the second time bans the digest.
    NoVerdict,
    /// The cloud was out of reach for the whole trial.
    Cloud,
    /// Somebody on the device asked for it during the trial.
    Asked,
    /// The device could not go on with the trial: storage broken, agent died.
    Device,
    /// The bootloader came back without having tried the new set.
    NotTried,
    /// The set could not be armed.
    NotArmed,
    /// Given up on the old set, before the new one was tried.
    Dropped,
    /// The cloud ended the job before the new set was tried; nothing is reported.
    Closed,
}

impl Cause {
    /// The new set has run: only then are the words "rolled back" true.
    #[must_use]
    pub const fn was_tried(self) -> bool {
        matches!(self, Self::Health | Self::NoVerdict | Self::Cloud | Self::Asked | Self::Device)
    }
}

impl Reason {
    /// A reason, its text bounded and on one line.
    #[must_use]
    pub fn new(cause: Cause, text: &str) -> Self {
        Self { cause, text: clip(text) }
    }

    /// How an update ends that went back for this reason; `None` where nobody waits for an answer.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match self.cause {
            Cause::Closed => None,
            cause if cause.was_tried() => Some(Outcome::failed(format!("rolled back: {}", self.text))),
            _ => Some(Outcome::failed(self.text.clone())),
        }
    }
}
