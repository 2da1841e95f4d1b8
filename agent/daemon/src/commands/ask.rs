//! Asks the running daemon, or is the agent for the time of one request.

use std::time::Instant;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::parts;
use crate::agent::{Agent, Ended, OpenError, Service, Until, permitted};
use crate::config::Settings;
use crate::control::{Answer, Call, Client, ClientError, Reply, Request};
use crate::exit::Exit;
use crate::progress::Display;

/// How it ended: exit code and data, or exit code and reason.
pub type Asked = Result<(Exit, Value), (Exit, String)>;

/// Asks the daemon, else does it here.
///
/// # Errors
/// Exit code and one line.
pub fn ask(settings: &Settings, request: Request) -> Asked {
    match connect(settings)? {
        Some(mut client) => {
            let mut display = Display::stderr();
            let answer = client.call(&request, &mut |progress| display.show(progress, Instant::now()));
            display.end_line();
            answered(answer.map_err(|e| refused(&e))?)
        }
        None => here(settings, request),
    }
}

/// The daemon, if one runs.
pub(super) fn connect(settings: &Settings) -> Result<Option<Client>, (Exit, String)> {
    Client::connect(&settings.control.socket).map_err(|e| refused(&e))
}

pub(super) fn refused(e: &ClientError) -> (Exit, String) {
    let exit = match e {
        ClientError::Denied { .. } => Exit::NoPermission,
        ClientError::Protocol { .. } => Exit::Protocol,
        ClientError::TooLarge { .. } => Exit::Data,
        ClientError::Broken { .. } => Exit::Unavailable,
    };
    (exit, e.to_string())
}

fn answered(answer: Answer) -> Asked {
    match answer {
        Answer::Done { exit, data } => Ok((exit, data)),
        Answer::Failed { exit, reason } => Err((exit, reason)),
    }
}

/// No daemon runs: this process is the agent until the request is answered. The state lock keeps two from being it.
fn here(settings: &Settings, request: Request) -> Asked {
    // Anybody may look; what cannot be seen is then said in the status.
    if !matches!(request, Request::Status) {
        permitted(settings).map_err(|why| (Exit::NoPermission, why))?;
    }
    let runtime = parts::runtime().map_err(|e| (Exit::System, e.to_string()))?;
    runtime.block_on(async {
        let parts = parts::parts(settings, None, Service::none()).map_err(|e| open_error(&e))?;
        let mut agent = Agent::new(parts);
        let (reply, mut progress, mut answer) = Reply::channel();
        let (calls, inbox) = mpsc::channel(1);
        let _ = calls.try_send(Call { request, reply });
        drop(calls);
        let mut display = Display::stderr();
        let (stop, stopped) = oneshot::channel();
        let mut stop = Some(stop);
        let ended = {
            let running = agent.run(inbox, stopped, Until::Answered);
            tokio::pin!(running);
            loop {
                tokio::select! {
                    ended = &mut running => break ended,
                    Some(p) = progress.recv() => display.show(&p, Instant::now()),
                    // An interrupt ends the request and leaves what it began to go on from.
                    _ = tokio::signal::ctrl_c() => drop(stop.take().map(|s| s.send(()))),
                }
            }
        };
        display.end_line();
        agent.stop();
        match (answer.try_recv(), ended) {
            (Ok(answer), _) => answered(answer),
            (Err(_), Ended::Stopped) => Err((Exit::TempFail, "interrupted".into())),
            (Err(_), _) => Err((Exit::Software, "no answer: this is a defect".into())),
        }
    })
}

/// Somebody else has the state.
pub(super) fn open_error(e: &OpenError) -> (Exit, String) {
    (Exit::TempFail, format!("{e}; no daemon answers on the control socket, so another command is at work"))
}
