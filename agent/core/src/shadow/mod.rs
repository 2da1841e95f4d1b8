//! The parts of a device shadow that are settings of services: how they are merged, compared and restricted.

pub mod merge;
