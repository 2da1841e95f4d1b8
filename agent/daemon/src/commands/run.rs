//! `otandem run`, and the same agent for the time of `fota handle`.

use std::path::PathBuf;
use std::time::Duration;

use otandem_core::update::Then;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ask::{self, Asked};
use super::parts::{Beside, OtherJobs, SessionUse, parts, runtime};
use crate::agent::{Agent, Ended, OpenError, Service, Until, unlocked};
use crate::config::{Finding, Settings};
use crate::control::{FotaCall, FotaRequest, Request, Server};
use crate::exit::Exit;
use crate::feature::Done;
use crate::feature::supervised::Supervised;

/// Requests that wait for the loop.
const CALLS: usize = 8;
/// How long the daemon waits for a command that has the state.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Between two looks whether it has gone.
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// `otandem fota handle`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handling {
    /// One document in place of the cloud's jobs.
    pub document: Option<String>,
    /// Ask for jobs although nothing is known to wait.
    pub force: bool,
    /// Leave the broker while an image is fetched.
    pub disconnect_mqtt: bool,
    /// Reboot when it is due.
    pub auto_reset: bool,
    /// Gets the document of every other job on its standard input.
    pub job_callback: Option<PathBuf>,
}

/// Who starts the daemon again when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restarted {
    /// Nobody needs to: it tries for ever.
    Never,
    /// A supervisor: it ends with [`Exit::Attention`] where it cannot connect.
    BySupervisor,
}

/// The daemon.
pub(super) fn run(settings: &Settings, findings: &[Finding], restarted: Restarted) -> Exit {
    crate::log::init(&settings.log);
    findings.iter().for_each(|finding| tracing::warn!("configuration: {finding}"));
    match runtime() {
        Ok(runtime) => runtime.block_on(serve(settings, restarted)),
        Err(e) => super::complain(Exit::System, &e.to_string()),
    }
}

async fn serve(settings: &Settings, restarted: Restarted) -> Exit {
    loop {
        // From the first moment on it must not end the process.
        let hangups = signal(SignalKind::hangup());
        let attempt = || {
            unlocked(settings)?;
            parts(settings, Some(SessionUse::DAEMON), Service::from_env())
        };
        // A daemon that has the state answers there; a command that has it does not, and is soon done.
        let is_daemon = || match ask::connect(settings) {
            Ok(client) => client.is_some_and(|client| client.is_alive()),
            Err(_) => true,
        };
        let mut parts = match patiently(attempt, is_daemon).await {
            Ok(parts) => parts,
            Err(e) => return super::complain(Exit::TempFail, &e.to_string()),
        };
        let (calls, inbox) = mpsc::channel(CALLS);
        let server = match Server::bind(&settings.control.socket, &settings.control.group) {
            Ok(server) => Some(tokio::spawn(server.run(calls.clone()))),
            // Updates are worth more than the socket.
            Err(e) => {
                tracing::error!("no control socket: {e}");
                None
            }
        };
        let mut causes = Causes { named: parts.named.take(), gave_up: None };
        if restarted == Restarted::BySupervisor {
            let (give_up, gave_up) = oneshot::channel();
            parts.features.push(Box::new(Supervised::new(give_up)));
            causes.gave_up = Some(gave_up);
        }
        let (stop, cause) = stop_signal(causes);
        let mut agent = Agent::new(parts);
        match hangups {
            Ok(hangups) => drop(tokio::spawn(refetch_at(hangups, agent.teller()))),
            Err(e) => tracing::warn!("SIGHUP ends the agent: {e}"),
        }
        let ended = agent.run(inbox, stop, Until::Stopped).await;
        let cause = cause.await.unwrap_or(Cause::Told);
        let anew = cause == Cause::Named && restarted == Restarted::Never;
        tracing::info!("{} ({ended:?})", if anew { "beginning anew with a name" } else { "stopping" });
        agent.stop();
        match cause {
            Cause::GaveUp => return Exit::Attention,
            _ if !anew => return Exit::Ok,
            _ => {}
        }
        drop(calls);
        if let Some(server) = server {
            server.abort();
            // Its socket is free then.
            let _ = server.await;
        }
    }
}

/// Tries again while a command has the state: one that began before the daemon had its socket acts by itself.
async fn patiently<T>(
    mut attempt: impl FnMut() -> Result<T, OpenError>,
    is_daemon: impl Fn() -> bool,
) -> Result<T, OpenError> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match attempt() {
            Err(OpenError::Locked(why)) if Instant::now() < until && !is_daemon() => {
                tracing::debug!("{why}: waiting for it");
                tokio::time::sleep(LOCK_RETRY).await;
            }
            other => return other,
        }
    }
}

/// SIGHUP: shadows are asked for again.
async fn refetch_at(mut hangups: Signal, teller: UnboundedSender<Done>) {
    while hangups.recv().await.is_some() && teller.send(Done::Refetch).is_ok() {
        tracing::info!("SIGHUP: shadows are asked for again");
    }
}

/// Why the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// SIGTERM or SIGINT.
    Told,
    /// This device has got a name.
    Named,
    /// It cannot connect, and is started again.
    GaveUp,
}

/// What may end the daemon beside signals.
#[derive(Default)]
struct Causes {
    named: Option<oneshot::Receiver<()>>,
    gave_up: Option<oneshot::Receiver<()>>,
}

/// Fires at the first cause, and then says which one it was.
fn stop_signal(causes: Causes) -> (oneshot::Receiver<()>, oneshot::Receiver<Cause>) {
    let ((stop, stopped), (tell, which)) = (oneshot::channel(), oneshot::channel());
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            // Without handlers the signals end the process by themselves.
            return std::future::pending().await;
        };
        let cause = tokio::select! {
            _ = term.recv() => Cause::Told,
            _ = int.recv() => Cause::Told,
            () = heard(causes.named) => Cause::Named,
            () = heard(causes.gave_up) => Cause::GaveUp,
        };
        let _ = (stop.send(()), tell.send(cause));
    });
    (stopped, which)
}

/// Ends when something is told; never, where nobody is left to tell it.
async fn heard(told: Option<oneshot::Receiver<()>>) {
    let told = match told {
        Some(told) => told.await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending().await
    }
}

/// From now on SIGTERM and SIGINT end the process with 0, whatever it does: for work that a power cut may interrupt too.
/// SIGHUP, which means refetch to a daemon, has nothing to do here and does not end it.
///
/// # Errors
/// No thread or descriptor is left.
pub(super) fn end_when_told() -> std::io::Result<()> {
    let runtime = runtime()?;
    let all = async {
        // Once it was asked for, it no longer ends the process, also when nobody listens.
        drop(signal(SignalKind::hangup())?);
        Ok::<_, std::io::Error>((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    };
    let (mut term, mut int) = runtime.block_on(all)?;
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        });
        std::process::exit(Exit::Ok.code().into())
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}

/// `fota handle`: settles what is pending, takes the next job, ends when nothing is under way or a reset is due.
///
/// # Errors
/// Exit code and one line.
pub fn handle(settings: &Settings, handling: Handling) -> Asked {
    let request = |document: Option<String>| {
        Request::Fota(FotaRequest {
            call: FotaCall::Handle,
            document,
            force: handling.force,
            auto_reset: handling.auto_reset,
            job_callback: handling.job_callback.clone(),
        })
    };
    if let Some(document) = handling.document.clone() {
        let (exit, data) = ask::ask(settings, request(Some(document)))?;
        let due = data.get("phase").is_some_and(|p| p == "armed") && !handling.auto_reset;
        return Ok((if due { Exit::ResetDue } else { exit }, data));
    }
    if ask::connect(settings)?.is_some() {
        if handling.job_callback.is_some() || !handling.auto_reset {
            let why =
                "it takes jobs as it is configured; stop it first to use --job-callback and --auto-reset";
            tracing::warn!("the daemon runs: {why}");
        }
        return ask::ask(settings, request(None));
    }
    let then = if handling.auto_reset { Then::Reboot } else { Then::Arm };
    let leave_while_fetching = handling.disconnect_mqtt;
    let others = handling.job_callback.clone().map_or(OtherJobs::Refuse, OtherJobs::Callback);
    let session = SessionUse { leave_while_fetching, then, others, beside: Beside::Nothing };
    let runtime = runtime().map_err(|e| (Exit::System, e.to_string()))?;
    runtime.block_on(once(settings, session, handling.force))
}

/// The agent, until nothing is under way or a reset is due.
async fn once(settings: &Settings, session: SessionUse, force: bool) -> Asked {
    let parts = parts(settings, Some(session), Service::none()).map_err(|e| ask::open_error(&e))?;
    if parts.link.is_none() {
        return Err((Exit::Config, "no cloud is configured: see [cloud]".into()));
    }
    let record = parts.opened.machine.record();
    if !force && record.state.update().is_none() && record.outbox.is_empty() {
        let message = "nothing is pending here; --force asks the cloud for jobs";
        return Ok((Exit::Ok, json!({ "message": message })));
    }
    let mut agent = Agent::new(parts);
    let (_calls, inbox) = mpsc::channel(1);
    let ended = agent.run(inbox, stop_signal(Causes::default()).0, Until::Quiet).await;
    let message = match (&agent.machine().record().last, ended) {
        (_, Ended::Rebooting) => "rebooting".to_owned(),
        (_, Ended::ResetDue) => "a reset is due".to_owned(),
        (Some(outcome), _) => outcome.reason().to_owned(),
        (None, _) => "no job".to_owned(),
    };
    agent.stop();
    let exit = match ended {
        Ended::ResetDue => Exit::ResetDue,
        Ended::Stopped => Exit::TempFail,
        Ended::Done | Ended::Rebooting => Exit::Ok,
    };
    Ok((exit, json!({ "message": message })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use otandem_device::state::StateDir;

    fn locked<T>() -> Result<T, OpenError> {
        Err(OpenError::Locked("process 7 has it".into()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_daemon_waits_for_a_command_that_has_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources { state_dir: Some(dir.path().join("state")), ..Sources::default() };
        let (settings, _) = Settings::load(&Sources { directories: vec![], ..sources }).unwrap();
        let mut command = Some(StateDir::open(&settings.state_dir).unwrap().lock().unwrap());
        let mut attempts = 0;
        let got = patiently(
            || {
                attempts += 1;
                if attempts == 5 {
                    drop(command.take());
                }
                unlocked(&settings)
            },
            || false,
        );
        assert!(got.await.is_ok());
        assert_eq!(attempts, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_does_not_end_is_not_waited_for_for_ever() {
        let begin = Instant::now();
        let got = patiently(locked::<()>, || false).await;
        assert!(got.unwrap_err().to_string().contains("process 7"));
        // The paused clock, which counts what was waited for.
        assert!(begin.elapsed() >= LOCK_WAIT && begin.elapsed() < LOCK_WAIT + 2 * LOCK_RETRY);
    }

    #[tokio::test(start_paused = true)]
    async fn another_daemon_is_not_waited_for() {
        let mut attempts = 0;
        let got = patiently(
            || {
                attempts += 1;
                locked::<()>()
            },
            || true,
        );
        assert!(got.await.is_err());
        assert_eq!(attempts, 1);
    }
}
