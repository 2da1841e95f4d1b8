//! What goes into the machine and what comes out of it.

use std::time::Duration;

use super::Verb;
use crate::boot::{Facts, SetId};
use crate::image::{Checkpoint, Image, Md5, Sha256};
use crate::jobs::document::JobPlan;
use crate::jobs::running::RunningJob;
use crate::jobs::wire::Details;
use crate::seal::Seal;
use crate::time::Boottime;
use crate::update::{JobKey, Outcome, Update};

/// The time of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Monotonic, since the kernel started.
    pub boot: Boottime,
    /// Local time of the day in minutes; only for the reboot window.
    pub minute: u16,
}

/// What a start finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// What the bootloader says; `None` with a reason where it cannot be asked.
    pub facts: Result<Facts, String>,
    /// Each set's slots begin with something other than zeros: A, B.
    pub heads: [bool; 2],
    /// There is no record to be seen, and a trial may be pending all the same: where it would lie cannot be read, or
    /// is not known.
    pub unread: bool,
}

/// Scripts of the product that an update passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Before the first byte; may say "not now".
    PreInstall,
    /// Before arming and reboot; may say "not now".
    PreReboot,
    /// After the new set became permanent.
    PostConfirm,
    /// Before the reboot that leaves a bad set.
    OnRollback,
}

impl Hook {
    /// File name in the hook directory.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreInstall => "pre-install",
            Self::PreReboot => "pre-reboot",
            Self::PostConfirm => "post-confirm",
            Self::OnRollback => "on-rollback",
        }
    }
}

/// What a hook answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookAnswer {
    /// Exit 0, or there is no such hook.
    Done,
    /// Exit 75.
    NotNow,
    /// Anything else.
    Failed(String),
}

/// What the health checks say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Every check passed in one round.
    Passed,
    /// Not yet; they go on by themselves.
    NotYet(String),
    /// Exit 100: no use in waiting.
    Hopeless(String),
}

/// An image that is in its slot, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenImage {
    /// SHA-256 of the raw image, computed over what was written.
    pub sha256: Sha256,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of the source, where it was computed.
    pub file_sha256: Option<Sha256>,
    /// MD5 of the source, where it was computed.
    pub md5: Option<Md5>,
}

/// What the cloud said about the job of this update, or about us. The driver passes on only what is about this very
/// execution, and asks again by itself until it has an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cloud {
    /// An accepted answer to start-next: the trial's proof that the cloud is in reach.
    Accepted,
    /// The job lives, and these are its images with fresh URLs; `None` where the answer had no document.
    Alive(Option<Vec<Image>>),
    /// The cloud ended the job.
    Closed(String),
    /// The seal of phase `armed` was acknowledged.
    SealAcknowledged,
    /// The job times out in this time.
    TimeLeft(Duration),
    /// An acknowledged outcome: it leaves the outbox.
    Acknowledged(JobKey),
    /// The job is under way, carries a seal, and the record knows nothing of it; see [`Seal`]. Not taken in every
    /// state: whoever asks for the next job comes upon it again.
    Sealed {
        /// The update as the job describes it.
        update: Box<Update>,
        /// What the device had told the cloud.
        seal: Seal,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All actions before [`Action::Continue`] are done. No other event comes in between.
    Continue,
    /// An action could not be done; those behind it were not tried. No other event comes in between.
    Failed(Box<Action>, String),
    /// In place of [`Event::Failed`] where [`Action::Disarm`] of the running set is refused, since the bootloader would
    /// then have nothing to boot.
    NoFallback(String),
    /// An update, validated; only while [`super::Machine::ready`].
    Offer(Box<Update>),
    /// A job that ends here without being an update: refused, or done by another function. Taken while
    /// [`super::Machine::ready`]; and, since such a device takes no job at all, while the record cannot be saved.
    JobEnded(JobKey, Outcome),
    /// The images can be had, fit, and decode; nothing was written.
    Ready,
    /// Bytes of the raw images written, and of how many, where that is known.
    Progress {
        /// Written so far.
        done: u64,
        /// In all.
        total: Option<u64>,
    },
    /// Writing can go on from here after a power cut.
    Checkpoint(Checkpoint),
    /// All images are complete and verified, heads included.
    Written(Vec<WrittenImage>),
    /// The images cannot be had or written.
    FetchEnded(Outcome),
    /// From the health checks.
    Health(Health),
    /// From a hook.
    Hook(Hook, HookAnswer),
    /// From the cloud.
    Cloud(Cloud),
    /// About a general job.
    Job(JobEvent),
    /// From a person.
    User(Verb),
    /// Time passed; see [`super::Machine::next_wake`].
    Tick,
}

/// What happened to a general job: steps that run beside the update machine. It only keeps what must outlive a power
/// cut, so that a job ends in exactly one outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// A start looks at the job that ran before it: the boot that this is, and whether its last step had said that it
    /// reboots the device.
    Found {
        /// The boot.
        boot_id: String,
        /// See there.
        asked_for_reboot: bool,
    },
    /// Run this, from the step that the job names; only while [`super::Machine::takes_jobs`], or for the job that
    /// [`super::Machine::interrupted_job`] names.
    Start(Box<RunningJob>, Box<JobPlan>),
    /// This step is next.
    Step {
        /// Counted from 0.
        step: usize,
        /// Its name.
        name: String,
    },
    /// It is over.
    Ended {
        /// Which one.
        key: JobKey,
        /// How.
        outcome: Outcome,
        /// More for the cloud.
        details: Details,
    },
    /// Its next step installs images, and is the update machine's to do. Ends in a further step that is next, or in
    /// the end of the job.
    Install(Box<InstallStep>),
    /// As [`Cloud::Sealed`], for a job whose step the update is.
    Sealed {
        /// The job, at that step.
        job: Box<RunningJob>,
        /// The update as its document describes it.
        update: Box<Update>,
        /// What the device had told the cloud.
        seal: Seal,
    },
    /// The cloud ended it.
    Closed(JobKey, String),
}

/// A step of a general job that installs images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallStep {
    /// Which job.
    pub key: JobKey,
    /// Counted from 0.
    pub step: usize,
    /// Its name.
    pub name: String,
    /// The job goes on even where it fails.
    pub ignore_failure: bool,
    /// The update, or how it ends without one.
    pub update: Result<Box<Update>, Outcome>,
    /// What the programs of the steps before wrote.
    pub details: Details,
}

/// What to do. Nothing else in the program has an effect on an update. `Save`, the five boot actions and `Reboot`
/// may fail; the others are requests that are always taken, and say how they ended by an event of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write the record.
    Save,
    /// The target is about to be written.
    MarkBad(SetId),
    /// Try this set at the next boot.
    Arm(SetId),
    /// Restore the running set's counter.
    Keep(SetId),
    /// The other set first again, good and full; this one, which may be the running one, bad.
    Disarm(SetId),
    /// Make this set permanent.
    Confirm(SetId),
    /// Open the images and look at their beginnings; ends in [`Event::Ready`] or [`Event::FetchEnded`].
    Fetch {
        /// Where to go on.
        resume: Option<Checkpoint>,
    },
    /// Begin to write; ends in [`Event::Written`] or [`Event::FetchEnded`].
    Write,
    /// Give the images up; no event comes from them any more.
    StopFetch,
    /// Run the health checks until all pass; answers with [`Event::Health`]. Nothing to do where they run already.
    CheckHealth,
    /// No more of them.
    StopHealth,
    /// Answers once with [`Event::Hook`].
    RunHook(Hook),
    /// Run the steps of a general job; each is told with [`JobEvent::Step`], the end with [`JobEvent::Ended`].
    RunJob(Box<RunningJob>, Box<JobPlan>),
    /// End its processes; it still ends in [`JobEvent::Ended`].
    StopJob,
    /// Restart the device.
    Reboot,
    /// Tell the cloud where the job stands: phase, progress and [`super::Machine::seal`], as soon as there is a session.
    Report,
    /// Send what waits in the outbox.
    Flush,
    /// Ask the cloud whether the job lives; in a trial, whether the cloud is there; else for work. Asked until there is
    /// an answer, across sessions.
    AskCloud,
    /// The booted set is settled: nothing about this boot is open.
    Settled,
    /// Tell the person who asked, if there is one.
    Answer(Result<String, String>),
    /// Into the log.
    Say(String),
    /// Comes back as [`Event::Continue`]; always the last of a list.
    Continue,
}
