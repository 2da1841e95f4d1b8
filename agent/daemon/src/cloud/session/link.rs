//! The state of one connection: what is subscribed, what waits for its turn, how it ends.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::{AsyncClient, PublishOptions, QoS, SubscribeFilterInput};
use tokio::time::Instant;

use super::posts::Posts;
use super::{Fate, MAX_PAYLOAD, Next, SessionConfig};
use crate::cloud::channel::{Fates, Post};

/// Messages that wait for their turn under the publish rate; above, something is broken.
const MAX_QUEUE: usize = 1000;
/// Until outstanding acknowledgements are given up at a disconnect.
const FAREWELL: Duration = Duration::from_secs(5);

/// The policy that a refused subscription needs; `*` stands for the wildcards of a filter.
pub(super) fn advice(topic: &str) -> String {
    let any = topic.replace(['+', '#'], "*");
    format!("allow iot:Subscribe on topicfilter/{any} and iot:Receive on topic/{any} in the device's policy")
}

pub(super) struct Closing {
    pub(super) reason: String,
    pub(super) next: Next,
    by: Instant,
}

/// One connection's state.
pub(super) struct Link {
    client: AsyncClient,
    /// The broker has accepted the session.
    pub(super) accepted: bool,
    pub(super) up_since: Option<Instant>,
    /// Needed topics to subscribe; topics sent and not yet acknowledged, granted, and needed ones refused, with advice.
    pub(super) missing: Vec<String>,
    pub(super) awaiting: Option<Vec<String>>,
    pub(super) granted: Vec<String>,
    pub(super) refused: Vec<String>,
    /// The group that was sent and is not yet acknowledged: nothing else is sent.
    pub(super) trying: Option<usize>,
    /// A group waits until nothing is on its way: posts wait for it.
    group_waits: bool,
    /// When the next one is due.
    group_due: Option<Instant>,
    /// All that can be had is granted.
    pub(super) complete: bool,
    /// The certificate does not allow what another one did.
    pub(super) blamed: bool,
    acknowledged_by: Option<Instant>,
    /// A subscription was not acknowledged in time.
    pub(super) unanswered: bool,
    queue: VecDeque<(String, Bytes)>,
    pub(super) posts: Posts,
    pacer: Pacer,
    last_topic: Option<String>,
    pub(super) closing: Option<Closing>,
}

impl Link {
    pub(super) fn new(
        client: AsyncClient,
        config: &SessionConfig,
        needed: &[String],
        careful: usize,
    ) -> Self {
        Self {
            client,
            accepted: false,
            up_since: None,
            missing: needed.to_vec(),
            awaiting: None,
            granted: Vec::new(),
            refused: Vec::new(),
            trying: None,
            group_waits: false,
            group_due: None,
            complete: false,
            blamed: false,
            acknowledged_by: None,
            unanswered: false,
            queue: VecDeque::new(),
            posts: Posts::new(config.in_flight, careful),
            pacer: Pacer::new(config.publish_rate),
            last_topic: None,
            closing: None,
        }
    }

    /// `waits`: a group is to be sent; otherwise it is `due` later, if ever.
    pub(super) fn wait_for_group(&mut self, waits: bool, due: Option<Instant>) {
        self.group_due = due.filter(|_| !waits);
        if std::mem::replace(&mut self.group_waits, waits) && !waits {
            self.flush(Instant::now());
        }
    }

    /// Nothing waits for its turn or for its acknowledgement, but posts that wait for a group.
    pub(super) fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.posts.none_out()
    }

    pub(super) fn send_subscribe(&mut self, batch: Vec<String>, timeout: Duration) {
        let filters = batch.iter().map(|t| SubscribeFilterInput::new(t.clone(), QoS::AtLeastOnce));
        if let Err(e) = self.client.try_subscribe_many(filters) {
            // Only invalid filters, which were refused before, and a connection that has already ended.
            tracing::error!("SUBSCRIBE could not be sent: {e}");
        }
        self.acknowledged_by = Some(Instant::now() + timeout);
        self.awaiting = Some(batch);
    }

    pub(super) fn publish(&mut self, topic: String, payload: Bytes) {
        if self.up_since.is_none() {
            tracing::debug!("not up, dropped: {topic}");
        } else if payload.len() > MAX_PAYLOAD {
            tracing::error!(
                "{topic}: {} bytes are more than the broker takes ({MAX_PAYLOAD}), dropped",
                payload.len()
            );
        } else if self.queue.len() == MAX_QUEUE {
            tracing::error!("{MAX_QUEUE} messages wait to be sent already, dropped: {topic}");
        } else {
            self.queue.push_back((topic, payload));
            self.flush(Instant::now());
        }
    }

    /// Takes messages whose fates are told.
    pub(super) fn post(&mut self, posts: Vec<Post>, fates: &Fates) {
        if self.up_since.is_none() {
            let ids = posts.into_iter().map(|post| post.id).collect();
            return fates.tell(Fate::Lost { ids, suspect: None });
        }
        self.posts.take(posts, fates);
        self.flush(Instant::now());
    }

    /// Sends what is due, publishes before posts.
    pub(super) fn flush(&mut self, now: Instant) {
        if self.trying.is_some() && self.closing.is_none() {
            return;
        }
        while !self.queue.is_empty() && (self.closing.is_some() || self.pacer.may(now)) {
            let Some((topic, payload)) = self.queue.pop_front() else { return };
            self.pacer.sent(now);
            self.last_topic = Some(topic.clone());
            match self.client.try_publish(topic, payload, PublishOptions::at_least_once()) {
                Ok(()) => self.posts.handed_publish(),
                Err(e) => tracing::error!("PUBLISH could not be sent: {e}"),
            }
        }
        while self.closing.is_none() && !self.group_waits && self.queue.is_empty() && self.pacer.may(now) {
            if !self.posts.hand_one(&self.client, &mut self.last_topic) {
                return;
            }
            self.pacer.sent(now);
        }
    }

    /// Sends what waits, then DISCONNECT.
    pub(super) fn close(&mut self, reason: String, next: Next) {
        let now = Instant::now();
        // Twice, since the client needs some time of its own after its deadline.
        self.closing = Some(Closing { reason, next, by: now + 2 * FAREWELL });
        self.flush(now);
        if let Err(e) = self.client.try_disconnect_with_timeout(FAREWELL) {
            tracing::debug!("DISCONNECT could not be sent: {e}");
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        let waits = !self.queue.is_empty() || !self.group_waits && self.posts.may_go();
        let turn = if waits && self.trying.is_none() { self.pacer.next } else { None };
        let answer = self.awaiting.as_ref().and(self.acknowledged_by);
        match &self.closing {
            Some(closing) => Some(closing.by),
            None => turn.into_iter().chain(answer).chain(self.group_due).min(),
        }
    }

    /// `true`: the connection is to be dropped.
    pub(super) fn on_time(&mut self, config: &SessionConfig) -> bool {
        let now = Instant::now();
        if let Some(closing) = &self.closing {
            return now >= closing.by;
        }
        self.flush(now);
        if self.awaiting.is_some() && self.acknowledged_by.is_some_and(|t| now >= t) {
            let seconds = config.connect_timeout.as_secs();
            let reason = format!("the broker did not acknowledge a subscription within {seconds} s");
            // A farewell would wait for the same acknowledgement.
            self.closing = Some(Closing { reason, next: Next::Later, by: now });
            self.unanswered = true;
            return true;
        }
        false
    }

    /// Brokers close the connection without a word at whatever a policy does not allow; say what it probably was.
    pub(super) fn hint(&self, client_id: &str) -> String {
        if !self.accepted {
            return format!(
                "the broker closed the connection before it accepted the session; check that the certificate is \
                 active and that its policy allows iot:Connect for client id {client_id}"
            );
        }
        if let Some(topic) = self.awaiting.as_ref().and_then(|t| t.first()) {
            return format!(
                "the broker closed the connection while subscribing to {topic}; {}",
                advice(topic)
            );
        }
        match &self.last_topic {
            Some(topic) => format!(
                "the broker closed the connection; if this repeats, the policy may not allow iot:Publish on {topic}, \
                 or another device uses client id {client_id}"
            ),
            None => format!(
                "the broker closed the connection; if this repeats, another device may use client id {client_id}"
            ),
        }
    }
}

/// Spaces publishes evenly, so that no second holds more than the broker allows.
struct Pacer {
    gap: Option<Duration>,
    next: Option<Instant>,
}

impl Pacer {
    pub(super) fn new(per_second: u32) -> Self {
        Self { gap: Duration::from_secs(1).checked_div(per_second), next: None }
    }

    pub(super) fn may(&self, now: Instant) -> bool {
        self.next.is_none_or(|t| now >= t)
    }

    pub(super) fn sent(&mut self, now: Instant) {
        self.next = self.gap.map(|gap| now + gap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_holds_more_publishes_than_the_rate() {
        let start = Instant::now();
        let mut pacer = Pacer::new(100);
        let mut sent = Vec::new();
        for millis in 0..3000 {
            let now = start + Duration::from_millis(millis);
            while pacer.may(now) {
                pacer.sent(now);
                sent.push(millis);
            }
        }
        for window in 0..2000 {
            let count = sent.iter().filter(|t| (window..window + 1000).contains(*t)).count();
            assert!((99..=100).contains(&count), "{count} from {window} ms on");
        }
    }

    #[test]
    fn a_rate_of_zero_is_no_limit() {
        let now = Instant::now();
        let mut pacer = Pacer::new(0);
        for _ in 0..1000 {
            assert!(pacer.may(now));
            pacer.sent(now);
        }
    }
}
