//! Asking the bootloader, and telling it, which slot set to boot.
//!
//! [`BootControl`] is all that the update machine knows of a bootloader: set ids in, [`Facts`] out. Each back end
//! speaks to one kind of bootloader and reads back whatever it writes. None of them decides anything about an update,
//! and none writes while it is not certain which set is running.
//!
//! Start reading at [`BootControl`]; [`booted`] finds out which set runs. The boot scripts and programs that go with
//! the back ends lie in folders beside this crate.
#![deny(clippy::cast_possible_truncation)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod booted;
mod config;
pub mod counters;
#[cfg(feature = "custom")]
pub mod custom;
pub mod detect;
mod error;
#[cfg(feature = "grub")]
pub mod grub;
pub mod rivals;
#[cfg(feature = "simulated")]
pub mod simulated;
#[cfg(feature = "systemd-boot")]
pub mod systemd_boot;
#[cfg(feature = "u-boot")]
pub mod uboot;

pub use config::{BootNames, Config, Tries};
pub use error::BootError;
use otandem_core::boot::{Facts, SetId};

/// The bootloader in its own words, for a person who has its manual open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Which one it is, with its version or program where that is known.
    pub loader: String,
    /// Its variables or files as they stand, in the order in which it reads them: name, value. What is missing or
    /// cannot be read stands there too, with the reason as its value.
    pub values: Vec<(String, String)>,
}

/// One bootloader. Every write is read back before the call returns; `Ok` means that the bootloader will do it.
///
/// All writes are refused while the running set is unknown. An error leaves the bootloader with the old choice, the new
/// one, or (where the medium tears) its defaults: each boots one of the two sets.
pub trait BootControl: Send {
    /// Everything that is known about the boot, read anew.
    ///
    /// # Errors
    /// The bootloader's storage cannot be read or makes no sense.
    fn facts(&mut self) -> Result<Facts, BootError>;

    /// What the bootloader itself has stored, read anew; for `status`.
    ///
    /// # Errors
    /// Nothing of it can be read.
    fn view(&mut self) -> Result<View, BootError>;

    /// Makes the next reset try `set`, which is not running, as often as configured; the running set is made good and
    /// full, so that it is the fallback.
    ///
    /// # Errors
    /// Refused, not written, or not as written when read back.
    fn arm(&mut self, set: SetId) -> Result<(), BootError>;

    /// Refreshes the counter of `set`, which is running and confirmed.
    ///
    /// # Errors
    /// Refused, not written, or not as written when read back.
    fn keep(&mut self, set: SetId) -> Result<(), BootError>;

    /// Takes back [`BootControl::arm`]: the running set is booted next, `set` is bad.
    ///
    /// # Errors
    /// Refused, not written, or not as written when read back.
    fn disarm(&mut self, set: SetId) -> Result<(), BootError>;

    /// Makes `set`, which is running, permanent.
    ///
    /// # Errors
    /// Refused, not written, or not as written when read back.
    fn confirm(&mut self, set: SetId) -> Result<(), BootError>;

    /// Makes sure that `set` is not booted again, and the other one is: before a slot is written, and to roll back.
    /// Refused if that would leave nothing to boot.
    ///
    /// # Errors
    /// Refused, not written, or not as written when read back.
    fn mark_bad(&mut self, set: SetId) -> Result<(), BootError>;
}
