//! gzip: one or more members.

use flate2::{Decompress, FlushDecompress, Status};

use crate::install::decode::{Decode, Problem, Step};

/// gzip allows windows up to 32 KiB; its memory needs no further limit.
const WINDOW_BITS: u8 = 15;

/// Decoder of any number of members.
pub(crate) struct Gzip {
    member: Option<Decompress>,
    whole: bool,
}

impl Gzip {
    pub(crate) fn new(resumed: bool) -> Self {
        Self { member: None, whole: resumed }
    }
}

impl Decode for Gzip {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Problem> {
        let none = Step { consumed: 0, produced: 0, boundary: false };
        if self.member.is_none() && input.is_empty() {
            return Ok(none);
        }
        self.whole = false;
        let member = self.member.get_or_insert_with(|| Decompress::new_gzip(WINDOW_BITS));
        let (before_in, before_out) = (member.total_in(), member.total_out());
        let status = member
            .decompress(input, output, FlushDecompress::None)
            .map_err(|e| Problem::Corrupt(e.message().unwrap_or("not gzip data").to_owned()))?;
        let step = Step {
            consumed: usize::try_from(member.total_in() - before_in).unwrap_or(usize::MAX),
            produced: usize::try_from(member.total_out() - before_out).unwrap_or(usize::MAX),
            boundary: status == Status::StreamEnd,
        };
        if step.boundary {
            self.member = None;
            self.whole = true;
        }
        Ok(step)
    }

    fn end(&self) -> Result<(), &'static str> {
        if self.whole { Ok(()) } else { Err("the last gzip member is not complete") }
    }
}
