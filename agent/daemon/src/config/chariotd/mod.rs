//! The command line of chariotd, for devices that come from it: its options in, our configuration out.
//!
//! There is one way: options become the lines of a [`Translation`], and these are read as any file of ours. So what
//! `otandem chariotd --print-config` prints is what `otandem chariotd` runs with. An option that cannot be had is refused
//! with a line that says so.
//!
//! Start reading at [`translate`]; [`options`] has what chariotd knows.

pub mod options;
mod translate;

pub use options::{Options, Order};
pub use translate::{Translation, translate};

/// Its name, as a program and on our command line.
pub const NAME: &str = "chariotd";

#[cfg(test)]
mod tests;
