//! The posts of one connection: which wait, which are on their way, and what became of them.
//!
//! The client library says in which order it wrote messages and under which packet ids; that ties an acknowledgement
//! to its post.
//!
//! A broker closes the connection without a word at what it does not allow, and acknowledgements that it gave before may
//! be lost with it. Which post was the reason is only known of one that was on its way alone: so what was lost in
//! company goes one by one in the next connection, and a post that was suspected goes alone.

use std::collections::VecDeque;

use otandem_core::messages::Qos;
use rumqttc::{AsyncClient, PublishOptions};

use crate::cloud::channel::{Fate, Fates, Post};

const CLOSED: &str = "the broker closed the connection before it acknowledged this message: check that the device's \
                      policy allows iot:Publish on its topic";

/// Whom to tell; nobody where it is a publish.
type Owner = Option<(u64, Fates)>;

/// See the module.
pub(super) struct Posts {
    waiting: VecDeque<(Post, Fates)>,
    /// Given to the client and not yet written: QoS 0, QoS 1.
    handed: [VecDeque<Owner>; 2],
    /// Written and not acknowledged, in that order, which mostly is that of their acknowledgements; with packet ids.
    flying: VecDeque<(u16, Owner)>,
    /// Posts that may be on their way at once.
    most: usize,
    on_their_way: usize,
    /// The next so many go one by one.
    careful: usize,
    /// One that goes alone is on its way.
    alone: bool,
    /// Something that nobody acknowledges was written since the last acknowledgement.
    unsure: bool,
    published: Vec<(u64, Fates)>,
}

impl Posts {
    /// `in_flight`: what the connection may have on its way, publishes included; 0 = no limit. `careful`: posts that go
    /// one by one, from the last connection.
    pub(super) fn new(in_flight: u16, careful: usize) -> Self {
        let most = match usize::from(in_flight) {
            0 => usize::from(u16::MAX) / 2,
            // A tenth is for publishes alone: jobs do not wait until files have been acknowledged.
            n => (n - n.div_ceil(10)).max(1),
        };
        Self {
            waiting: VecDeque::new(),
            handed: [VecDeque::new(), VecDeque::new()],
            flying: VecDeque::new(),
            most,
            on_their_way: 0,
            careful,
            alone: false,
            unsure: false,
            published: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, posts: Vec<Post>, fates: &Fates) {
        self.waiting.extend(posts.into_iter().map(|post| (post, fates.clone())));
    }

    /// One could be handed on now.
    pub(super) fn may_go(&self) -> bool {
        let Some((next, _)) = self.waiting.front() else { return false };
        if self.careful > 0 || next.alone {
            return self.none_out();
        }
        self.on_their_way < self.most && !self.alone
    }

    /// Nothing that the client has waits for an acknowledgement, publishes included.
    pub(super) fn none_out(&self) -> bool {
        self.flying.is_empty() && self.handed.iter().all(VecDeque::is_empty)
    }

    /// Hands one on to the client; `false` if there is none, or no room.
    pub(super) fn hand_one(&mut self, client: &AsyncClient, last_topic: &mut Option<String>) -> bool {
        if !self.may_go() {
            return false;
        }
        let Some((Post { id, topic, payload, qos, retain, alone }, fates)) = self.waiting.pop_front() else {
            return false;
        };
        last_topic.clone_from(&Some(topic.clone()));
        let options = match qos {
            Qos::AtMostOnce => PublishOptions::at_most_once(),
            Qos::AtLeastOnce => PublishOptions::at_least_once(),
        };
        match client.try_publish(topic, payload, options.retain(retain)) {
            Ok(()) => {
                self.on_their_way += 1;
                self.alone = alone;
                self.handed[usize::from(qos == Qos::AtLeastOnce)].push_back(Some((id, fates)));
            }
            Err(e) => fates.tell(Fate::Refused(id, format!("it cannot be sent: {e}"))),
        }
        true
    }

    /// A publish, of which nobody hears, was given to the client.
    pub(super) fn handed_publish(&mut self) {
        self.handed[1].push_back(None);
    }

    /// The client has written a message.
    pub(super) fn sent(&mut self, packet_id: u16) {
        if packet_id == 0 {
            let owner = self.handed[0].pop_front().flatten();
            self.finished(owner);
            self.unsure = true;
        } else if let Some(owner) = self.handed[1].pop_front() {
            self.flying.push_back((packet_id, owner));
        }
    }

    /// The broker has a message.
    pub(super) fn acknowledged(&mut self, packet_id: u16) {
        let at = self.flying.iter().position(|(id, _)| *id == packet_id);
        let owner = at.and_then(|at| self.flying.remove(at)).and_then(|(_, owner)| owner);
        self.finished(owner);
        self.unsure = false;
    }

    fn finished(&mut self, owner: Owner) {
        if let Some(owner) = owner {
            self.on_their_way -= 1;
            self.alone = false;
            self.careful = self.careful.saturating_sub(1);
            self.published.push(owner);
        }
    }

    /// Tells what was published since the last call.
    pub(super) fn tell(&mut self) {
        for (fates, ids) in by_owner(self.published.drain(..)) {
            fates.tell(Fate::Published(ids));
        }
    }

    /// The connection is over. `by_peer`: the broker closed it without a word, as it does at what it does not allow.
    /// Returns how many posts are to go one by one in the next connection.
    pub(super) fn lose(&mut self, by_peer: bool) -> usize {
        self.tell();
        let written = self.flying.iter().filter(|(_, owner)| owner.is_some()).count();
        let first = self.flying.front().and_then(|(_, owner)| owner.clone());
        let suspect = first.filter(|_| by_peer && written == 1 && !self.unsure);
        if by_peer && suspect.is_none() {
            self.careful = self.careful.max(written);
        }
        let waiting = self.waiting.drain(..).map(|(post, fates)| (post.id, fates));
        let handed = self.handed.iter_mut().flat_map(|queue| queue.drain(..)).flatten();
        let flying = self.flying.drain(..).filter_map(|(_, owner)| owner);
        for (fates, ids) in by_owner(flying.chain(handed).chain(waiting)) {
            let suspect = suspect.as_ref().filter(|(_, owner)| *owner == fates);
            let suspect = suspect.map(|(id, _)| (*id, CLOSED.to_owned()));
            fates.tell(Fate::Lost { ids, suspect });
        }
        self.careful
    }
}

/// There are only a few owners.
fn by_owner(all: impl Iterator<Item = (u64, Fates)>) -> Vec<(Fates, Vec<u64>)> {
    let mut owners: Vec<(Fates, Vec<u64>)> = vec![];
    for (id, fates) in all {
        match owners.iter_mut().find(|(owner, _)| *owner == fates) {
            Some((_, ids)) => ids.push(id),
            None => owners.push((fates, vec![id])),
        }
    }
    owners
}
