//! Images packed for a download: Zstandard in frames that can each be opened alone.

use crate::ImageError;

/// Frames of an image at least: a download that is cut goes on at one of them.
const FRAMES: usize = 4;
/// Longest frame, as the documentation of the product advises.
const LONGEST: usize = 16 << 20;

/// `raw` in independent frames, at least four where there are so many bytes.
///
/// # Errors
/// [`ImageError::Recipe`] when the library fails.
pub(crate) fn pack(raw: &[u8]) -> Result<Vec<u8>, ImageError> {
    let mut out = Vec::new();
    for part in raw.chunks(raw.len().div_ceil(FRAMES).clamp(1, LONGEST)) {
        out.extend(frame(part, 3)?);
    }
    Ok(out)
}

/// One frame that tells its size and ends in a checksum.
///
/// # Errors
/// [`ImageError::Recipe`] when the library fails.
pub(crate) fn frame(part: &[u8], level: i32) -> Result<Vec<u8>, ImageError> {
    let failed = |code| ImageError::Recipe(format!("zstd: {}", zstd_safe::get_error_name(code)));
    let mut context = zstd_safe::CCtx::create();
    context.set_parameter(zstd_safe::CParameter::CompressionLevel(level)).map_err(failed)?;
    context.set_parameter(zstd_safe::CParameter::ChecksumFlag(true)).map_err(failed)?;
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(part.len()));
    context.compress2(&mut out, part).map_err(failed)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_image_has_four_frames_or_more_and_opens_to_the_same_bytes() {
        for size in [4, 1000, 1 << 20] {
            let raw: Vec<u8> = (0..size).map(|n: u32| n.to_le_bytes()[1]).collect();
            let packed = pack(&raw).unwrap();
            let mut frames = 0;
            let mut rest = &packed[..];
            let mut out = Vec::new();
            while !rest.is_empty() {
                let length = zstd_safe::find_frame_compressed_size(rest).unwrap();
                let mut part = Vec::with_capacity(raw.len());
                zstd_safe::decompress(&mut part, &rest[..length]).unwrap();
                out.extend(part);
                rest = &rest[length..];
                frames += 1;
            }
            assert_eq!(out, raw);
            assert!(frames >= 4, "{frames}");
        }
        assert!(pack(&[]).unwrap().is_empty());
    }
}
