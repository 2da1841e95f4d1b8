//! The decisions of otandem, and nothing else.
//!
//! Everything here is a function of its arguments: no clock, no file, no socket, no thread, no runtime. Time comes
//! in as [`time::Boottime`], effects go out as data. That makes every interleaving of an update (power cuts
//! included) something that a test can walk through in microseconds.
//!
//! Start reading at [`machine`], the update machine; [`boot`] is the vocabulary it shares with the bootloader
//! back ends, [`image`] the one it shares with the install pipeline.
#![deny(clippy::cast_possible_truncation)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod agreement;
pub mod boot;
pub mod crc;
pub mod filter;
pub mod formats;
pub mod fota;
pub mod frame;
pub mod gather;
pub mod image;
pub mod jobs;
pub mod machine;
pub mod messages;
pub mod plan;
pub mod provisioning;
pub mod record;
pub mod seal;
pub mod services;
pub mod shadow;
pub mod time;
pub mod update;
pub mod verdict;
