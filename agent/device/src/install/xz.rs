//! xz: one or more streams, with the padding that the format allows between them.

use liblzma::stream::{Action, Error, Status, Stream};

use crate::install::decode::{Decode, Problem, Step};

/// Decoder of any number of streams, each within the memory limit.
pub(crate) struct Xz {
    stream: Option<Stream>,
    memory: u64,
    whole: bool,
    /// Zero bytes since the last stream: the format wants a multiple of four.
    padding: u64,
}

impl Xz {
    pub(crate) fn new(memory: u64, resumed: bool) -> Self {
        Self { stream: None, memory, whole: resumed, padding: 0 }
    }

    /// Passes over padding. A place between streams, so decoding can begin there.
    fn pad(&mut self, input: &[u8]) -> Option<Step> {
        let zeros = input.iter().take_while(|b| **b == 0).count();
        self.padding += zeros as u64;
        let boundary = self.padding.is_multiple_of(4);
        (zeros > 0).then_some(Step { consumed: zeros, produced: 0, boundary })
    }
}

impl Decode for Xz {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Problem> {
        if self.stream.is_none() {
            if self.whole
                && let Some(step) = self.pad(input)
            {
                return Ok(step);
            }
            if input.is_empty() {
                return Ok(Step { consumed: 0, produced: 0, boundary: false });
            }
            if !self.padding.is_multiple_of(4) {
                return Err(Problem::Corrupt("padding between streams is not a multiple of four".to_owned()));
            }
            self.padding = 0;
            self.whole = false;
            self.stream = Some(Stream::new_stream_decoder(self.memory, 0).map_err(problem)?);
        }
        let Some(stream) = &mut self.stream else { unreachable!("made above") };
        let (before_in, before_out) = (stream.total_in(), stream.total_out());
        let status = stream.process(input, output, Action::Run).map_err(problem)?;
        let step = Step {
            consumed: usize::try_from(stream.total_in() - before_in).unwrap_or(usize::MAX),
            produced: usize::try_from(stream.total_out() - before_out).unwrap_or(usize::MAX),
            boundary: status == Status::StreamEnd,
        };
        if step.boundary {
            self.stream = None;
            self.whole = true;
        }
        Ok(step)
    }

    fn end(&self) -> Result<(), &'static str> {
        match (self.whole, self.padding.is_multiple_of(4)) {
            (true, true) => Ok(()),
            (true, false) => Err("padding after the last xz stream is not complete"),
            (false, _) => Err("the last xz stream is not complete"),
        }
    }
}

fn problem(e: Error) -> Problem {
    match e {
        Error::MemLimit | Error::Mem => Problem::Memory,
        e => Problem::Corrupt(e.to_string()),
    }
}
