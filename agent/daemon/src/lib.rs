//! otandem's edge to the world: configuration, command line, logs, cloud session, downloads, control socket.
//!
//! Everything asynchronous of the agent is in this crate, on one thread. It decides nothing about an update: the
//! decisions are `otandem-core`'s, the work on the machine `otandem-device`'s. Start reading at [`config`], which
//! names every knob.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod agent;
pub mod backoff;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod exit;
pub mod feature;
pub mod features;
pub mod fetch;
#[cfg(feature = "services")]
pub mod formats;
pub mod fota;
mod general;
pub mod log;
pub mod notify;
pub mod progress;

/// The way to the cloud: TLS for MQTT and for downloads, and the one MQTT session that all features share.
pub mod cloud {
    pub mod channel;
    #[cfg(feature = "session")]
    pub mod connect;
    mod crypto;
    pub(crate) mod dial;
    pub mod identity;
    #[cfg(feature = "session")]
    pub mod session;
    pub mod tls;
}
