//! Packed bytes in, raw bytes out, and the places at which decoding can begin anew.

use otandem_core::image::{Compression, Image};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::Limits;
use super::error::Fault;
use crate::features;

/// Bytes of a source that are looked at before anything is written: more than any header of the formats needs.
pub(crate) const PROBE: usize = 4096;

/// What one call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Bytes of the input that are used up.
    pub(crate) consumed: usize,
    /// Bytes of the output that are filled.
    pub(crate) produced: usize,
    /// Decoding can begin anew exactly here: after this much input and output.
    pub(crate) boundary: bool,
}

/// A decoder of one format. Never holds back output that its caller cannot get by calling again.
pub(crate) trait Decode: Send {
    /// Decodes what fits. An empty input asks for output that is still held back.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Problem>;

    /// The source has ended: was that a place where it may?
    fn end(&self) -> Result<(), &'static str>;
}

/// What a decoder can say.
#[derive(Debug)]
pub(crate) enum Problem {
    /// It needs more memory than allowed.
    Memory,
    /// The data make no sense.
    Corrupt(String),
}

/// How `image` is packed, given its first bytes.
pub(crate) fn recognise(image: &Image, first: &[u8]) -> Result<Compression, Fault> {
    if let Some(named) = image.compression {
        return Ok(named);
    }
    let seen = magic(first);
    // A digest proves that it is this image which was meant, packed or not. Without one a file system that
    // happens to begin like an archive, or an archive written as it is, would be somebody's brick.
    let proven = image.raw.sha256.is_some() || image.file.sha256.is_some();
    if seen != Compression::None && !proven {
        return Err(Fault::UnnamedCompression(seen));
    }
    Ok(seen)
}

/// The format that begins with these bytes.
fn magic(first: &[u8]) -> Compression {
    match first {
        [0x1f, 0x8b, 8, ..] => Compression::Gzip,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// A decoder for `format`. `resumed`: the source begins at a restart point and may hold nothing more.
pub(crate) fn decoder(format: Compression, limits: &Limits, resumed: bool) -> Result<Box<dyn Decode>, Fault> {
    let found = match format {
        Compression::None => Some(Box::new(AsIs) as Box<dyn Decode>),
        Compression::Zstd => Some(Box::new(Zstd::new(limits.zstd_window, resumed)) as Box<dyn Decode>),
        Compression::Gzip => features::gzip(resumed),
        Compression::Xz => features::xz(limits.xz_memory, resumed),
    };
    found.ok_or(Fault::Unsupported(format))
}

/// Puts a decoder's words into a fault of the image.
pub(crate) fn fault(problem: Problem, format: Compression, at: u64, limits: &Limits) -> Fault {
    match problem {
        Problem::Corrupt(reason) => Fault::Corrupt { format, at, reason },
        Problem::Memory => {
            let cap = if format == Compression::Xz { limits.xz_memory } else { limits.zstd_window };
            Fault::Memory { format, cap }
        }
    }
}

/// Tries the first bytes of a source, so that what can be refused is refused before the slot is touched. Gives the
/// least size that the image must have as far as its first header tells.
pub(crate) fn probe(format: Compression, first: &[u8], limits: &Limits, resumed: bool) -> Result<u64, Fault> {
    let mut decoder = decoder(format, limits, resumed)?;
    let (mut at, mut scratch) = (0, [0; 256]);
    while at < first.len() {
        let step =
            decoder.step(&first[at..], &mut scratch).map_err(|p| fault(p, format, at as u64, limits))?;
        at += step.consumed;
        if step.produced > 0 || step.consumed == 0 {
            break;
        }
    }
    // Only a hint, and only a lower bound, since more frames may follow.
    let hint = match format {
        Compression::Zstd => zstd_safe::get_frame_content_size(first).ok().flatten(),
        _ => None,
    };
    Ok(hint.unwrap_or(0))
}

/// Not packed: any offset is a restart point.
struct AsIs;

impl Decode for AsIs {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Problem> {
        let n = input.len().min(output.len());
        output[..n].copy_from_slice(&input[..n]);
        Ok(Step { consumed: n, produced: n, boundary: true })
    }

    fn end(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// Zstandard: any number of frames, skippable ones included.
struct Zstd {
    context: DCtx<'static>,
    whole: bool,
}

impl Zstd {
    /// zstd's own bounds for the logarithm of the window.
    const WINDOW_LOG: std::ops::RangeInclusive<u32> = 10..=30;

    fn new(window: u64, resumed: bool) -> Self {
        let mut context = DCtx::create();
        let log =
            window.checked_ilog2().unwrap_or(0).clamp(*Self::WINDOW_LOG.start(), *Self::WINDOW_LOG.end());
        context.set_parameter(DParameter::WindowLogMax(log)).expect("a window between zstd's own bounds");
        Self { context, whole: resumed }
    }

    /// `ZSTD_error_frameParameter_windowTooLarge`, as the library returns it: negated.
    const WINDOW_TOO_LARGE: usize = 0usize.wrapping_sub(16);
}

impl Decode for Zstd {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Problem> {
        let mut source = InBuffer::around(input);
        let mut target = OutBuffer::around(output);
        let left = self.context.decompress_stream(&mut target, &mut source).map_err(|code| match code {
            Self::WINDOW_TOO_LARGE => Problem::Memory,
            _ => Problem::Corrupt(zstd_safe::get_error_name(code).to_owned()),
        })?;
        let (consumed, produced) = (source.pos(), target.pos());
        // Without progress zstd only says what it would like to read next.
        let boundary = (consumed > 0 || produced > 0) && left == 0;
        if consumed > 0 || produced > 0 {
            self.whole = boundary;
        }
        Ok(Step { consumed, produced, boundary })
    }

    fn end(&self) -> Result<(), &'static str> {
        if self.whole { Ok(()) } else { Err("the last zstd frame is not complete") }
    }
}
