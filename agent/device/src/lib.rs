//! Everything of otandem that touches the machine: images into slots, state files, processes, certificates, kernel
//! facts.
//!
//! Blocking code on purpose, without a runtime: the asynchronous edge calls it from threads of its own. It takes no
//! decision about an update; those are made in `otandem-core`.
//!
//! Start reading at [`install`], the way of an image into its slot, at [`state`], where what must survive a power cut
//! is kept, and at [`run`], the one place where processes are started.
#![deny(clippy::cast_possible_truncation)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

#[cfg(test)]
extern crate self as otandem_device;

pub mod cert;
pub mod certstore;
pub mod delivery;
mod features;
pub mod install;
pub mod jobs;
pub mod machine;
pub mod memory;
pub mod run;
pub mod services;
pub mod spool;
pub mod state;
