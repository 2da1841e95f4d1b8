//! A device in a folder: the real `otandem` binary, supervised as a machine would run it, for the system tests and
//! the demo.
//!
//! Slots are files, the bootloader is simulated, a reboot ends the process and lets the loader choose what starts
//! next, a power cut is `kill -9`. Nothing in here knows how the agent works inside: it is driven by its command line,
//! its configuration, the scripts that it runs and the cloud (the lab). Nothing sleeps: a test waits for what the
//! scripts, the log, the loader or the lab tell, up to a limit that only a failure reaches.
//!
//! Start reading at [`device::Device`]; [`world::World`] puts a device and a lab together for the tests.

pub mod binary;
pub mod cloud;
pub mod desk;
pub mod device;
pub mod error;
pub mod image;
pub mod loader;
pub mod pack;
pub mod proxy;
pub mod scenario;
pub mod world;

pub use cloud::{CloudSide, Published};
pub use device::{Device, Spec};
pub use error::Error;
pub use image::{Health, Image};
pub use world::World;
