//! What reaches the features, and the loop, from threads, signals and the session.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Agent, Link};
use crate::cloud::channel::{Inbound, Outbound};
use crate::feature::{Done, Reach};

/// Both ends of what features are told.
pub(super) type Channel = (UnboundedSender<Done>, UnboundedReceiver<Done>);

impl Agent {
    /// Where features are told something from outside of the loop, such as by a signal.
    #[must_use]
    pub fn teller(&self) -> UnboundedSender<Done> {
        self.told.0.clone()
    }

    /// Features with threads get their ways out.
    pub(super) fn attach(&mut self) {
        let outbound = match &self.link {
            Some(link) => link.ends.outbound.clone(),
            // What a device without a cloud says to it goes nowhere.
            None => unbounded_channel().0,
        };
        let reach = Reach { outbound, done: self.teller() };
        self.features.iter_mut().for_each(|feature| feature.attach(&reach));
    }

    pub(super) fn told(&mut self, done: Done) {
        match done {
            Done::Status(to) => to.tell(self.status()),
            done => {
                if let (Done::Refetch, Some(link)) = (&done, &self.link) {
                    let _ = link.ends.outbound.send(Outbound::Retry);
                }
                self.tell_features(&done);
            }
        }
    }
}

pub(super) async fn next_inbound(link: &mut Option<Link>) -> Inbound {
    match link {
        Some(link) => link.ends.next().await,
        None => std::future::pending().await,
    }
}
