//! What passes between the session and the features: plain data, so that everything but the session itself builds and
//! is tested without one.

use bytes::Bytes;
use tokio::sync::mpsc;

/// Bytes of the payload of one message at most.
pub const MAX_PAYLOAD: usize = 128 << 10;

/// From the session to the features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// Connected, and every wanted subscription is granted (also after each [`Outbound::Subscribe`]).
    Up,
    /// Not connected, and why. The session tries again by itself unless told to disconnect.
    Down {
        /// For people.
        reason: String,
    },
    /// A wanted topic that cannot be had. Unless it is taken out of the wish, the session stays `Down` and tries again.
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
    /// All topics that are wanted from now on, at QoS 1. New ones are subscribed at once, topics that are gone stay
    /// until the next connection.
    Subscribe(Vec<String>),
    /// At QoS 1; dropped while the session is not up.
    Publish {
        /// Topic.
        topic: String,
        /// At most [`MAX_PAYLOAD`] bytes.
        payload: Bytes,
    },
    /// Say farewell and stay away until [`Outbound::Reconnect`].
    Disconnect,
    /// Connect anew, at once.
    Reconnect,
}

/// The features' ends of the two channels. The session ends when they are dropped.
#[derive(Debug)]
pub struct Ends {
    /// From the broker.
    pub inbound: mpsc::Receiver<Inbound>,
    /// To the broker.
    pub outbound: mpsc::UnboundedSender<Outbound>,
}
