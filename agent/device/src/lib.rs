//! Everything of otandem that touches the machine: state files, processes, certificates, kernel facts.
//!
//! Blocking code on purpose, without a runtime: the asynchronous edge calls it from threads of its own. It takes no
//! decision about an update; those are made in `otandem-core`.
//!
//! Start reading at [`state`], where what must survive a power cut is kept, and at [`run`], the one place where
//! processes are started.
#![deny(clippy::cast_possible_truncation)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod cert;
pub mod machine;
pub mod run;
pub mod state;
