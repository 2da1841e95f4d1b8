//! The settings of the AWS IoT Device Client ("the client"), for fleets that come from it: its JSON files and its command
//! line in, our configuration out.
//!
//! There is one way: files and flags become [`Given`], that becomes the lines of a [`Translation`], and these are read as any
//! file of ours. So what `config import` prints is what `otandem aws-iot-device-client` runs with. Nothing is dropped in
//! silence: what is not carried over is in [`Translation::told`], by its name and with what does that job here. Values are
//! never repeated, some are secrets.
//!
//! Start reading at [`translate`]; [`keys`] has what the client knows.

pub mod flags;
mod given;
pub mod keys;
mod translate;

pub use given::{Given, ReadError};
pub use translate::{Place, Translation, translate};

/// Its name, as a program and on our command line.
pub const NAME: &str = "aws-iot-device-client";

#[cfg(test)]
mod tests;
