//! The record: everything that the update machine must still know after a power cut.
//!
//! One value, saved as one unit, so that "outcome decided" and "outcome waits to be sent" can never be apart. The
//! on-disk form is JSON inside the frame of the record store; this module turns it into bytes and back and bounds
//! its size.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::boot::SetId;
use crate::image::{Checkpoint, Md5, Sha256};
use crate::jobs::running::RunningJob;
use crate::jobs::wire::Details;
use crate::time::Boottime;
use crate::update::{JobKey, Origin, Outcome, Reason, Update};

/// The version of the on-disk form that this build writes by itself.
pub const CURRENT_FORMAT: u32 = 1;
/// Finished executions that are remembered.
pub const FINISHED_KEPT: usize = 16;
/// Banned digests that are remembered.
pub const BANS_KEPT: usize = 16;
/// Outcomes that wait for the cloud. More cannot pile up in practice, since no new job is taken while one waits.
pub const OUTBOX_KEPT: usize = 16;
/// Outcomes in the outbox that keep what the programs of their jobs wrote.
pub const DETAILS_KEPT: usize = 4;
/// Bytes of the encoded record at most; the store preallocates for this.
pub const MAX_ENCODED: usize = 192 * 1024;

/// Where the update machine stands. Each variant holds only what is valid in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub enum State {
    /// Nothing to do.
    Idle,
    /// An update is taken; nothing was touched.
    Accepted {
        /// It.
        update: Update,
    },
    /// The target set is marked bad and is being written.
    Writing {
        /// It.
        update: Update,
        /// Where writing can go on.
        #[serde(default)]
        checkpoint: Option<Checkpoint>,
    },
    /// The target set is complete and verified, and not armed.
    Written {
        /// It.
        update: Update,
    },
    /// The bootloader is being asked to try the target.
    Arming {
        /// It.
        update: Update,
        /// 1 for the first attempt.
        attempt: u32,
    },
    /// The bootloader was seen to hold the request.
    Armed {
        /// It.
        update: Update,
        /// The boot in which that happened.
        boot_id: String,
    },
    /// The target runs and is on trial.
    Trial {
        /// It.
        update: Update,
        /// The boot in which `started` means something.
        boot_id: String,
        /// When the trial began in that boot.
        started: Millis,
    },
    /// The trial ended well; the bootloader is being told to keep the target.
    Confirming {
        /// It.
        update: Update,
    },
    /// Going back to the old set.
    RollingBack {
        /// It.
        update: Update,
        /// Why.
        reason: Reason,
        /// 1 for the first attempt.
        attempt: u32,
        /// The boot in which that attempt was made: another one means that it failed.
        #[serde(default)]
        boot_id: String,
    },
}

/// A [`Boottime`] in whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl From<Boottime> for Millis {
    fn from(t: Boottime) -> Self {
        Self(u64::try_from(t.0.as_millis()).unwrap_or(u64::MAX))
    }
}

impl From<Millis> for Boottime {
    fn from(m: Millis) -> Self {
        Self(std::time::Duration::from_millis(m.0))
    }
}

impl State {
    /// One word for people, logs and job details.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Accepted { .. } => "accepted",
            Self::Writing { .. } => "writing",
            Self::Written { .. } => "written",
            Self::Arming { .. } => "arming",
            Self::Armed { .. } => "armed",
            Self::Trial { .. } => "trial",
            Self::Confirming { .. } => "confirming",
            Self::RollingBack { .. } => "rolling-back",
        }
    }

    /// The update under way.
    #[must_use]
    pub const fn update(&self) -> Option<&Update> {
        match self {
            Self::Idle => None,
            Self::Accepted { update }
            | Self::Writing { update, .. }
            | Self::Written { update }
            | Self::Arming { update, .. }
            | Self::Armed { update, .. }
            | Self::Trial { update, .. }
            | Self::Confirming { update }
            | Self::RollingBack { update, .. } => Some(update),
        }
    }

    pub(crate) const fn update_mut(&mut self) -> Option<&mut Update> {
        match self {
            Self::Idle => None,
            Self::Accepted { update }
            | Self::Writing { update, .. }
            | Self::Written { update }
            | Self::Arming { update, .. }
            | Self::Armed { update, .. }
            | Self::Trial { update, .. }
            | Self::Confirming { update }
            | Self::RollingBack { update, .. } => Some(update),
        }
    }
}

/// What a slot is known to hold, complete and verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SlotStatus {
    /// SHA-256 of the raw image.
    pub sha256: Sha256,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of the file it came from, where that was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_sha256: Option<Sha256>,
    /// MD5 of the file it came from, where that was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<Md5>,
    /// The version that the document named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When it was written, in seconds since 1970 by the device's clock; for display only.
    #[serde(default)]
    pub installed_at: u64,
    /// How often this slot was written.
    #[serde(default)]
    pub installs: u32,
}

/// The slots of one set, by slot name. A slot that is not listed holds something unknown.
pub type SlotStatuses = BTreeMap<String, SlotStatus>;

/// An execution that ended, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finished {
    /// Which one.
    pub key: JobKey,
    /// How; `None` where the cloud ended it by itself.
    pub outcome: Option<Outcome>,
    /// The seal that goes with the outcome.
    #[serde(default)]
    pub seal: Option<String>,
    /// More that goes with it: what the programs of a general job wrote. Kept until it was told.
    #[serde(default, skip_serializing_if = "Details::is_empty")]
    pub details: Details,
}

/// A set of raw digests that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ban {
    /// The digests of all images of the update.
    pub digests: Vec<Sha256>,
    /// Trials that ended without a verdict; the second one bans.
    pub silent_trials: u32,
    /// Why it is refused; `None` while it is only counted.
    pub why: Option<String>,
}

/// Everything that outlives a power cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// Version of the on-disk form in which this record was found and is written.
    pub format: u32,
    /// Where the machine stands.
    pub state: State,
    /// The set that was last made permanent.
    #[serde(default)]
    pub confirmed: Option<SetId>,
    /// Times that a pending step was taken up again without progress.
    #[serde(default)]
    pub resumes: u32,
    /// Times that the order was restored after the boot environment was reset.
    #[serde(default)]
    pub restores: u32,
    /// The device fell back to an older set long after the newer one was confirmed.
    #[serde(default)]
    pub late_fallback: bool,
    /// Outcomes that the cloud has not acknowledged, oldest first.
    #[serde(default)]
    pub outbox: Vec<Finished>,
    /// Executions that ended, oldest first.
    #[serde(default)]
    pub finished: Vec<Finished>,
    /// Refused digests, oldest first.
    #[serde(default)]
    pub bans: Vec<Ban>,
    /// What the slots of set A hold.
    #[serde(default)]
    pub slots_a: SlotStatuses,
    /// What the slots of set B hold.
    #[serde(default)]
    pub slots_b: SlotStatuses,
    /// How often each slot was written, by `set.slot`: outlives what the slot held.
    #[serde(default)]
    pub installs: BTreeMap<String, u32>,
    /// The general job under way. Where `state` is an update of this very job, that is its step; what it installed stands
    /// in `set`. Members that older agents do not write have defaults that mean what they did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<RunningJob>,
    /// How the last update ended, for `status`.
    #[serde(default)]
    pub last: Option<Outcome>,
    /// The latest wall time at which certificates were found valid, in seconds since 1970: a floor for a clock that
    /// starts in 1970.
    #[serde(default)]
    pub wall: u64,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            format: CURRENT_FORMAT,
            state: State::Idle,
            confirmed: None,
            resumes: 0,
            restores: 0,
            late_fallback: false,
            outbox: Vec::new(),
            finished: Vec::new(),
            bans: Vec::new(),
            slots_a: SlotStatuses::new(),
            slots_b: SlotStatuses::new(),
            installs: BTreeMap::new(),
            job: None,
            last: None,
            wall: 0,
        }
    }
}

/// The bytes are no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not the JSON of a record.
    #[error("the record is not readable: {0}")]
    Unreadable(#[source] serde_json::Error),
    /// It would not fit the store.
    #[error("the record is {0} bytes, more than the {MAX_ENCODED} that the store holds")]
    TooLarge(usize),
}

impl Record {
    /// Reads what [`Record::encode`] or a newer agent wrote; members that are not known are ignored.
    ///
    /// # Errors
    /// `Unreadable` where the bytes are no record: the caller sets them aside.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        serde_json::from_slice(bytes).map_err(RecordError::Unreadable)
    }

    /// The bytes to save, in the format version that the record was found in.
    ///
    /// # Errors
    /// `TooLarge` above [`MAX_ENCODED`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let bytes = serde_json::to_vec(self).map_err(RecordError::Unreadable)?;
        if bytes.len() > MAX_ENCODED { Err(RecordError::TooLarge(bytes.len())) } else { Ok(bytes) }
    }

    /// What is known of the slots of `set`.
    #[must_use]
    pub const fn slots(&self, set: SetId) -> &SlotStatuses {
        match set {
            SetId::A => &self.slots_a,
            SetId::B => &self.slots_b,
        }
    }

    /// The same, to change.
    pub const fn slots_mut(&mut self, set: SetId) -> &mut SlotStatuses {
        match set {
            SetId::A => &mut self.slots_a,
            SetId::B => &mut self.slots_b,
        }
    }

    /// Every slot in `names` holds a complete, verified image.
    #[must_use]
    pub fn complete<'a>(&self, set: SetId, mut names: impl Iterator<Item = &'a str>) -> bool {
        names.all(|name| self.slots(set).contains_key(name))
    }

    /// How the execution ended, if it did here.
    #[must_use]
    pub fn finished(&self, key: &JobKey) -> Option<&Finished> {
        self.finished.iter().rev().find(|f| f.key == *key)
    }

    /// Why these digests are refused.
    #[must_use]
    pub fn ban(&self, digests: &[Sha256]) -> Option<&str> {
        self.bans.iter().find(|b| b.digests == digests).and_then(|b| b.why.as_deref())
    }

    /// Forgets the jobs of another thing or endpoint, and says whether there were any: a cloned card must not answer
    /// for the device that it was cloned from (UPDATE-RULES 5.1). What is known of the slots stays, they were cloned
    /// with it; so does an update that the bootloader may know of, but nobody is told how it ends.
    pub fn disown(&mut self, endpoint: &str, thing: &str) -> bool {
        let foreign = |key: &JobKey| key.endpoint != endpoint || key.thing != thing;
        let before = (self.outbox.len(), self.finished.len());
        self.outbox.retain(|f| !foreign(&f.key));
        self.finished.retain(|f| !foreign(&f.key));
        let mut found = before != (self.outbox.len(), self.finished.len());
        if self.job.take_if(|job| foreign(&job.key)).is_some() {
            found = true;
        }
        if self.state.update().and_then(|u| u.origin.open_job()).is_some_and(foreign) {
            found = true;
            match &mut self.state {
                State::Accepted { .. } | State::Writing { .. } | State::Written { .. } => {
                    self.state = State::Idle;
                    self.resumes = 0;
                }
                state => {
                    if let Some(Origin::Job { closed, .. }) = state.update_mut().map(|u| &mut u.origin) {
                        *closed = true;
                    }
                }
            }
        }
        found
    }

    /// One more time that this slot was written; how often that makes.
    pub(crate) fn count_install(&mut self, set: SetId, slot: &str) -> u32 {
        let count = self.installs.entry(format!("{set}.{slot}")).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// Remembers how an execution ended; with `tell`, the cloud is told until it acknowledges.
    pub(crate) fn finish(&mut self, finished: Finished, tell: bool) {
        if tell {
            self.outbox.retain(|f| f.key != finished.key);
            self.outbox.push(finished.clone());
            keep_last(&mut self.outbox, OUTBOX_KEPT);
            // What programs wrote is much; of more than the last few only the outcome is kept.
            let old = self.outbox.len().saturating_sub(DETAILS_KEPT);
            self.outbox.iter_mut().take(old).for_each(|f| f.details.clear());
        }
        self.finished.retain(|f| f.key != finished.key);
        self.finished.push(Finished { details: Details::new(), ..finished });
        keep_last(&mut self.finished, FINISHED_KEPT);
    }

    /// Bans the digests, or counts a trial without a verdict and bans at the second.
    pub(crate) fn note_bad_trial(&mut self, digests: &[Sha256], said_no: bool, why: &str) {
        if digests.is_empty() {
            return;
        }
        let old = self.bans.iter().position(|b| b.digests == digests).map(|i| self.bans.remove(i));
        let mut ban = old.unwrap_or(Ban { digests: digests.to_vec(), silent_trials: 0, why: None });
        if said_no {
            ban.why = Some(why.to_owned());
        } else {
            ban.silent_trials = ban.silent_trials.saturating_add(1);
            if ban.silent_trials >= 2 {
                ban.why = Some(why.to_owned());
            }
        }
        self.bans.push(ban);
        keep_last(&mut self.bans, BANS_KEPT);
    }

    /// A digest that was confirmed is no longer suspect.
    pub(crate) fn lift_ban(&mut self, digests: &[Sha256]) {
        self.bans.retain(|b| b.digests != digests);
    }
}

fn keep_last<T>(list: &mut Vec<T>, most: usize) {
    let surplus = list.len().saturating_sub(most);
    list.drain(..surplus);
}
