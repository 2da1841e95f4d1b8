//! Services: parts of a device shadow that become files of settings, and commands that are told of a change.

pub mod definition;
pub mod literal;
