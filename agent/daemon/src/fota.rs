//! The five FOTA calls as functions, for programs that drive updates themselves: download and check, arm, make final,
//! reset, and the whole flow. While the daemon runs they ask it; otherwise the calling process does the work, under
//! the same state lock.
//!
//! They block; do not call them from an asynchronous task. `examples/fota.rs` shows them.

use std::path::PathBuf;

use crate::commands::{Asked, Handling, ask, handle};
use crate::config::Settings;
use crate::control::{FotaCall, FotaRequest, Request};
use crate::exit::Exit;

/// A call was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct FotaError {
    /// What the command of the same name would exit with.
    pub exit: Exit,
    /// What happened and what to do.
    pub reason: String,
}

/// How [`handle_fota_jobs`] works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Ask for pending and queued jobs although nothing is known to wait.
    pub force: bool,
    /// Leave the broker while an image is fetched: two TLS connections at once are much for a small device.
    pub disconnect_mqtt: bool,
    /// Reset the device when the flow needs it. Otherwise `true` is returned and the caller resets.
    pub auto_reset: bool,
    /// Gets the document of every job that is no FOTA job on its standard input; exit 0 = SUCCEEDED, else FAILED.
    pub job_callback: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { force: false, disconnect_mqtt: true, auto_reset: true, job_callback: None }
    }
}

/// Downloads the images of a job document into the set that does not run, and checks them.
///
/// # Errors
/// The document is refused, or the images cannot be had, are not what it says, or do not fit.
pub fn update(settings: &Settings, document: &str) -> Result<(), FotaError> {
    call(settings, FotaCall::Update, Some(document))
}

/// Arms what [`update`] wrote for the same document: the next reset tries it.
///
/// # Errors
/// The other set does not hold these images, or the bootloader cannot be told.
pub fn test(settings: &Settings, document: &str) -> Result<(), FotaError> {
    call(settings, FotaCall::Test, Some(document))
}

/// Makes the running set final.
///
/// # Errors
/// Not known which set runs, or the bootloader cannot be told.
pub fn confirm(settings: &Settings) -> Result<(), FotaError> {
    call(settings, FotaCall::Confirm, None)
}

/// Resets the device, into an armed set if there is one.
///
/// # Errors
/// The reset command did not work.
pub fn reset(settings: &Settings) -> Result<(), FotaError> {
    call(settings, FotaCall::Reset, None)
}

/// The whole flow: settles and reports an update that was tried, takes the next job. `true` = a reset is due.
///
/// # Errors
/// No cloud is configured, or another process is at work. How a job ended is no error of this call.
pub fn handle_fota_jobs(settings: &Settings, options: Options) -> Result<bool, FotaError> {
    let Options { force, disconnect_mqtt, auto_reset, job_callback } = options;
    let handling = Handling { document: None, force, disconnect_mqtt, auto_reset, job_callback };
    done(handle(settings, handling)).map(|exit| exit == Exit::ResetDue)
}

fn call(settings: &Settings, call: FotaCall, document: Option<&str>) -> Result<(), FotaError> {
    let request = FotaRequest::new(call, document.map(str::to_owned));
    done(ask(settings, Request::Fota(request))).map(|_| ())
}

fn done(asked: Asked) -> Result<Exit, FotaError> {
    asked.map(|(exit, _)| exit).map_err(|(exit, reason)| FotaError { exit, reason })
}
