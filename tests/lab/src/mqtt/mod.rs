//! The broker's wire: MQTT 3.1.1 over mutual TLS, and the limits of AWS IoT.
//!
//! The codec is a library's; what it lets through (reserved flags, empty lists, QoS 3) and what it does not do (filters
//! that start with `$`) is done here. Sessions are always clean: AWS would keep one for a client that asks for it,
//! the lab forgets it on disconnect and says so in CONNACK (session present = 0). Wills and the retain flag are taken and not acted upon.

pub(crate) mod connection;
mod packets;
pub mod topics;

/// Limits per connection; breaking one closes the connection, except where it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Filters in one SUBSCRIBE.
    pub filters_per_subscribe: usize,
    /// Filters that a connection may hold.
    pub subscriptions: usize,
    /// Publishes per second, in real time. Above it a request is not served but answered RequestThrottled; any
    /// other message is acknowledged and dropped.
    pub publishes_per_second: u32,
    /// Bytes of a payload.
    pub payload: usize,
    /// Bytes of a topic.
    pub topic: usize,
    /// Slashes in a topic, without the three of `$aws/things/<thing>/`.
    pub slashes: usize,
}

impl Default for Limits {
    /// Those of AWS IoT.
    fn default() -> Self {
        Self {
            filters_per_subscribe: 8,
            subscriptions: 50,
            publishes_per_second: 100,
            payload: 128 * 1024,
            topic: 256,
            slashes: 7,
        }
    }
}
