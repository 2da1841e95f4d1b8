//! What passes between the session and the features: plain data, so that everything but the session itself builds and
//! is tested without one.
//!
//! A feature whose every message asks for an answer publishes and waits for that answer. One that must know whether a
//! message arrived sends a [`Post`], and hears its [`Fate`].

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
pub use otandem_core::messages::MAX_PAYLOAD;
use otandem_core::messages::Qos;
use tokio::sync::mpsc;

/// What is subscribed to, at QoS 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topics {
    /// Filters without which a session is of no use.
    pub needed: Vec<String>,
    /// Filters that it can do without, in groups of what belongs together: at most eight each.
    pub optional: Vec<Vec<String>>,
}

impl Topics {
    /// Nothing optional.
    #[must_use]
    pub const fn needed(needed: Vec<String>) -> Self {
        Self { needed, optional: vec![] }
    }
}

/// From the session to the features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// Connected, and every needed subscription is granted.
    Up,
    /// An optional group is granted, until the next `Down`.
    Granted(Vec<String>),
    /// The session goes on without an optional group. Where it can help, it is tried again at times.
    SetAside {
        /// The group.
        topics: Vec<String>,
        /// Why, and what to do, such as the policy to add.
        why: String,
    },
    /// Not connected, and why. The session tries again by itself unless told to disconnect.
    Down {
        /// For people.
        reason: String,
    },
    /// A needed topic that cannot be had. Where it is the broker who refuses it, the session stays `Down` and tries again.
    Refused {
        /// The topic filter.
        topic: String,
        /// What to do, such as the policy to add.
        advice: String,
    },
    /// A message.
    Message {
        /// Its topic.
        topic: String,
        /// Its payload.
        payload: Bytes,
    },
}

/// From the features to the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outbound {
    /// At QoS 1; dropped while the session is not up.
    Publish {
        /// Topic.
        topic: String,
        /// At most [`MAX_PAYLOAD`] bytes.
        payload: Bytes,
    },
    /// Messages whose fates are told. Publishes go before them, so they may be as many as they like.
    Post(Vec<Post>, Fates),
    /// Say farewell and stay away until [`Outbound::Reconnect`].
    Disconnect,
    /// Connect anew, at once.
    Reconnect,
    /// Groups that were set aside are tried again now: somebody may have changed the policy.
    Retry,
}

/// A message whose fate is told: one [`Fate`] for each id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// Its sender's name for it.
    pub id: u64,
    /// Topic.
    pub topic: String,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Bytes,
    /// Quality of service.
    pub qos: Qos,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
    /// It was suspected before: nothing else is on its way with it.
    pub alone: bool,
}

/// What became of [`Post`]s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The broker acknowledged them; of QoS 0: they were written to the connection.
    Published(Vec<u64>),
    /// There was no session, or it ended before they were acknowledged. Nothing is worth sending before the next
    /// [`Inbound::Up`].
    Lost {
        /// Which ones.
        ids: Vec<u64>,
        /// The only one on its way when the broker closed the connection: it may have been the reason; and a line about
        /// that.
        suspect: Option<(u64, String)>,
    },
    /// It can never be sent, and why.
    Refused(u64, String),
}

/// Where fates are told; called in the session's task, so it only passes them on.
#[derive(Clone)]
pub struct Fates(Arc<dyn Fn(Fate) + Send + Sync>);

impl Fates {
    /// Tells them to `tell`.
    #[must_use]
    pub fn new(tell: impl Fn(Fate) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Tells one.
    pub fn tell(&self, fate: Fate) {
        (self.0)(fate);
    }
}

impl fmt::Debug for Fates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fates")
    }
}

impl PartialEq for Fates {
    /// Whether both tell the same one.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Fates {}

/// The features' ends of the two channels. The session ends when they are dropped.
#[derive(Debug)]
pub struct Ends {
    /// From the broker.
    pub inbound: mpsc::Receiver<Inbound>,
    /// To the broker.
    pub outbound: mpsc::UnboundedSender<Outbound>,
}

impl Ends {
    /// What comes next from the broker; waits for ever where the session is gone.
    pub async fn next(&mut self) -> Inbound {
        match self.inbound.recv().await {
            Some(inbound) => inbound,
            None => std::future::pending().await,
        }
    }

    /// Of no session: nothing comes, and what is sent is gone.
    #[must_use]
    pub fn nowhere() -> Self {
        Self { inbound: mpsc::channel(1).1, outbound: mpsc::unbounded_channel().0 }
    }
}

/// A group of filters, for people.
#[must_use]
pub fn in_short(topics: &[String]) -> String {
    match topics {
        [] => String::new(),
        [one] => one.clone(),
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    }
}
