//! Packs images as an image builder would: in one piece, or as pieces that can each be opened alone.

use std::io::{Read as _, Write as _};

use flate2::write::GzEncoder;
use liblzma::write::XzEncoder;

use crate::Error;

/// Frame size of the documented way to make images.
pub const FRAME: usize = 16 << 20;

/// How an image is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As it is.
    Raw,
    /// Zstandard.
    Zstd,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
}

impl Packing {
    /// Every packing.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Zstd, Self::Gzip, Self::Xz];

    /// As a job document names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "none",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
        }
    }
}

/// Packs `raw` in pieces of `piece` bytes, each of which can be opened alone; `usize::MAX` = in one piece.
///
/// # Errors
/// [`Error::Pack`] when the library fails.
pub fn pack(raw: &[u8], packing: Packing, piece: usize) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    for part in raw.chunks(piece.max(1)) {
        let failed = |e: std::io::Error| Error::Pack(e.to_string());
        match packing {
            Packing::Raw => out.extend_from_slice(part),
            Packing::Zstd => out.extend(zstd(part)?),
            Packing::Gzip => {
                let mut encoder = GzEncoder::new(&mut out, flate2::Compression::fast());
                encoder.write_all(part).and_then(|()| encoder.finish().map(drop)).map_err(failed)?;
            }
            Packing::Xz => {
                let mut encoder = XzEncoder::new(&mut out, 0);
                encoder.write_all(part).and_then(|()| encoder.finish().map(drop)).map_err(failed)?;
            }
        }
    }
    Ok(out)
}

/// One zstd frame that tells its size and ends in a checksum.
fn zstd(part: &[u8]) -> Result<Vec<u8>, Error> {
    let failed = |code| Error::Pack(format!("zstd: {}", zstd_safe::get_error_name(code)));
    let mut context = zstd_safe::CCtx::create();
    context.set_parameter(zstd_safe::CParameter::CompressionLevel(3)).map_err(failed)?;
    context.set_parameter(zstd_safe::CParameter::ChecksumFlag(true)).map_err(failed)?;
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(part.len()));
    context.compress2(&mut out, part).map_err(failed)?;
    Ok(out)
}

/// One zstd frame that can only be opened with a window of `2^log` bytes: it does not tell its size.
///
/// # Errors
/// [`Error::Pack`] when the library fails.
pub fn zstd_with_window(raw: &[u8], log: u32) -> Result<Vec<u8>, Error> {
    let failed = |code| Error::Pack(format!("zstd: {}", zstd_safe::get_error_name(code)));
    let mut context = zstd_safe::CCtx::create();
    context.set_parameter(zstd_safe::CParameter::WindowLog(log)).map_err(failed)?;
    let mut out = vec![0; zstd_safe::compress_bound(raw.len())];
    let mut output = zstd_safe::OutBuffer::around(&mut out[..]);
    let mut input = zstd_safe::InBuffer::around(raw);
    // In two calls, so that the library does not know the size and keeps to the window.
    context.compress_stream(&mut output, &mut input).map_err(failed)?;
    while context.end_stream(&mut output).map_err(failed)? != 0 {}
    let length = output.pos();
    out.truncate(length);
    Ok(out)
}

/// A gzip stream of a few bytes per MiB that opens to `mib` MiB of zeros: a bomb.
///
/// # Errors
/// [`Error::Pack`] when the library fails.
pub fn bomb(mib: u64) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let mut encoder = GzEncoder::new(&mut out, flate2::Compression::best());
    let copied = std::io::copy(&mut std::io::repeat(0).take(mib << 20), &mut encoder);
    copied.and_then(|_| encoder.finish().map(drop)).map_err(|e| Error::Pack(e.to_string()))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_open_to_what_was_packed() {
        let raw: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let gzip = pack(&raw, Packing::Gzip, 1 << 20).unwrap();
        let mut back = Vec::new();
        flate2::read::MultiGzDecoder::new(&gzip[..]).read_to_end(&mut back).unwrap();
        assert!(back == raw, "gzip");
        let xz = pack(&raw, Packing::Xz, 5 << 20).unwrap();
        back.clear();
        liblzma::read::XzDecoder::new_multi_decoder(&xz[..]).read_to_end(&mut back).unwrap();
        assert!(back == raw, "xz");
        let zstd = pack(&raw, Packing::Zstd, 5 << 20).unwrap();
        let mut back = Vec::with_capacity(raw.len());
        zstd_safe::decompress(&mut back, &zstd[..]).unwrap();
        assert!(back == raw, "zstd");
    }
}
