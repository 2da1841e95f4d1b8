//! What this build contains: the one place, beside the crate's root, that knows about cargo features.

use crate::install::decode::Decode;

#[cfg(feature = "gzip")]
#[path = "install/gzip.rs"]
mod gzip;
#[cfg(feature = "xz")]
#[path = "install/xz.rs"]
mod xz;

/// A gzip decoder, if this build has one.
pub(crate) fn gzip(resumed: bool) -> Option<Box<dyn Decode>> {
    #[cfg(feature = "gzip")]
    return Some(Box::new(gzip::Gzip::new(resumed)));
    #[cfg(not(feature = "gzip"))]
    return absent(resumed);
}

/// An xz decoder limited to `memory` bytes, if this build has one.
pub(crate) fn xz(memory: u64, resumed: bool) -> Option<Box<dyn Decode>> {
    #[cfg(feature = "xz")]
    return Some(Box::new(xz::Xz::new(memory, resumed)));
    #[cfg(not(feature = "xz"))]
    return absent((memory, resumed));
}

#[cfg(not(all(feature = "gzip", feature = "xz")))]
fn absent<T>(_: T) -> Option<Box<dyn Decode>> {
    None
}
