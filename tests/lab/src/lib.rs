//! A cloud in one process, on loopback only: what otandem's tests, its demo and a curious person talk to in place
//! of AWS IoT and S3.
//!
//! It has an MQTT broker over mutual TLS that enforces an IoT policy as the real one does (by closing the
//! connection), the Jobs service as a pure state machine, an image server with ranges and presigned-style URLs, its
//! own certificate authority, faults by rule, and a record of everything that was said, on which tests wait.
//!
//! It never listens on anything but 127.0.0.1, keeps nothing on disk but the certificates that it was asked to write,
//! and knows nothing of devices: what it says comes from the documents of the service, so that agent and lab can
//! disagree.
//!
//! Start reading at [`lab::Lab`], the handle. [`jobs`] and [`policy`] are pure; `world` joins them to the wire.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod ca;
pub mod clock;
pub mod faults;
pub mod images;
pub mod jobs;
pub mod lab;
pub mod mqtt;
pub mod policy;
pub mod provisioning;
pub mod record;
mod servers;
pub mod shadow;
mod world;

pub use ca::{Authority, Identity, IdentityFiles, Validity};
pub use clock::ClockMode;
pub use faults::{Fault, HttpFault, MqttFault, Operation, Position, Rule};
pub use images::{Access, Scheme};
pub use jobs::{Force, JobSpec, Retries, Status};
pub use lab::{Lab, LabConfig, LabError, WaitError};
pub use mqtt::Limits;
pub use policy::{Action, Policy};
pub use record::{Counters, Direction, Entry, Snapshot};
pub use world::{Hook, Inbound, Outbound, To};
