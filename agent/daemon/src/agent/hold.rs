//! A job that a person runs by hand: as long as its command is connected, nothing of the cloud is begun beside it.

use otandem_core::machine::Machine;
use otandem_core::update::Origin;

use super::Agent;
use crate::cli::Verdict;
use crate::control::{FotaCall, FotaRequest, Progress, Reply, Request};
use crate::exit::Exit;
use crate::feature::Done;

/// The command that has asked for it, if there is one.
#[derive(Debug, Default)]
pub(super) struct Hold(Option<Reply>);

impl Hold {
    /// Whether somebody holds it.
    pub(super) fn is_held(&self) -> bool {
        self.0.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    /// Waits until who holds it has left; without anybody for ever.
    pub(super) async fn released(&mut self) {
        match &mut self.0 {
            Some(reply) => reply.closed().await,
            None => std::future::pending().await,
        }
        self.0 = None;
    }
}

impl Agent {
    /// `job run` asks to be alone: granted by a line of progress, and held until it leaves.
    pub(super) fn hold(&mut self, reply: Reply) {
        let busy = if self.hold.is_held() {
            Some("another job is run by hand".to_owned())
        } else if self.asker.as_ref().is_some_and(|asker| !asker.is_closed()) {
            Some("another request is being carried out".to_owned())
        } else {
            under_way(&self.machine)
        };
        match busy {
            Some(why) => {
                let advice = "wait until that is over, or run it all the same with --beside";
                reply.failed(Exit::TempFail, format!("{why}: {advice}"));
            }
            None => {
                tracing::info!("a job is run by hand: nothing else is begun until it is over");
                reply.progress(Progress { phase: "held".into(), done: 0, total: None });
                self.hold = Hold(Some(reply));
            }
        }
    }

    /// The job that was run by hand is over.
    pub(super) fn released(&mut self) {
        tracing::info!("the job that was run by hand is over");
        self.tell_features(&Done::AskCloud);
    }
}

/// What a job by hand would run beside.
fn under_way(machine: &Machine) -> Option<String> {
    let record = machine.record();
    match (&record.job, record.state.update()) {
        (Some(job), _) => Some(format!("{} is under way: {}", job.key, job.progress())),
        (None, Some(update)) if update.origin != Origin::Adopted => {
            Some(format!("an update is under way ({})", machine.phase()))
        }
        _ => None,
    }
}

/// A request that begins something.
pub(super) const fn begins(request: &Request) -> bool {
    matches!(
        request,
        Request::Install(_)
            | Request::Mark { verdict: Verdict::Active, .. }
            | Request::Fota(
                FotaRequest { call: FotaCall::Update | FotaCall::Test, .. }
                    | FotaRequest { call: FotaCall::Handle, document: Some(_), .. }
            )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_held_as_long_as_the_caller_stays() {
        let (reply, progress, answer) = Reply::channel();
        let mut hold = Hold(Some(reply));
        assert!(hold.is_held() && !Hold::default().is_held());
        drop((progress, answer));
        assert!(!hold.is_held());
        hold.released().await;
        assert!(hold.0.is_none());
    }
}
