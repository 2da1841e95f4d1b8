//! The virtual device: bootable disks with two slot sets, and the images that update them.
//!
//! A disk is a GPT on a sparse file, made without root, mounts or loop devices, with a real bootloader, Debian's cloud
//! kernel, a small BusyBox system and the agent in each slot. The same input makes the same bytes, and what was made
//! once is kept by the hash of its input. Nothing of the product depends on this crate, and it decides nothing about an
//! update: what a device does with these images is for the tests on the virtual device (and for a person at its
//! console) to find out.
//!
//! Start reading at [`Workshop`], which makes slot images ([`Workshop::release`]) and disks ([`Workshop::disk`]) out of
//! a [`Root`]; [`Disk::arguments`] says how QEMU starts one. The scripts that run in the guest lie in `images/guest`,
//! the boot scripts beside the back ends in `bootloader-hooks`.

mod cache;
mod chain;
mod cpio;
mod debian;
mod disk;
mod error;
mod ext4;
mod fat;
mod files;
mod guest;
mod modinfo;
mod packed;
mod qemu;
mod tools;
mod tree;
mod workshop;

pub use chain::Chain;
pub use disk::{Console, Device, Disk, Firmware, Partition};
pub use error::ImageError;
pub use files::copy_sparse;
pub use guest::{Defect, Root};
pub use workshop::{Release, SlotImage, Workshop, bare_guest};
