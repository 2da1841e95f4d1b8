//! A device made of QEMU: real boot loaders, real reboots, real power cuts, and every state that a power cut could
//! have left on its disk.
//!
//! Two halves that meet in one file:
//!
//! - [`vm`] runs the device. [`Vm`] has a power button, a reset button, a network cable, a disk that can be slow or
//!   broken, and a serial line on which a test waits and types. Powered on with a write log it records every write and
//!   flush that the guest sends to its disk: a [`Recording`].
//! - [`replay`] takes a recording apart: it walks through the disks that a power cut at any moment could have left, by
//!   one [`Model`] of a failing disk or another, most in a tenth of a millisecond. [`write_log`] reads the log,
//!   [`digests`] tells cheaply whether a partition holds a known image, [`disk`] holds what can be read like a disk.
//!
//! None of the two knows a boot loader or the agent. What a state is worth is for [`judge`] to say, and [`stage`] puts a
//! device beside its cloud. It is a library for tests: it runs programs of the machine, writes below the build's target folder, and is not shipped.
//!
//! Start reading at [`Vm`], then at [`Replay`].
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod boot_files;
pub mod chain;
pub mod digests;
pub mod disk;
mod extents;
pub mod judge;
pub mod replay;
pub mod stage;
pub mod vm;
pub mod write_log;

pub use digests::{BlockDigests, Image};
pub use disk::{DiskFile, Sectors};
pub use replay::{Cut, Model, Models, Replay, sample};
pub use vm::{
    Clock, Definition, DiskError, Line, Link, PowerOn, Recording, Request, Up, Vm, VmError, Workplace,
};
