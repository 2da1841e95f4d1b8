//! Skeleton.
#![deny(clippy::cast_possible_truncation)]

#[cfg(test)]
extern crate self as otandem_device;

mod features;
pub mod install;
