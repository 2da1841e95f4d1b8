//! `otandem convert`: settings from one file format to another, standard input to standard output.

use std::io::{Read, Write};

use otandem_core::formats::MAX_TEXT;

use crate::cli::Convert;
use crate::exit::Exit;
use crate::features;

/// Reads everything, then writes everything: what is refused leaves no half of a file behind.
pub fn convert(convert: &Convert) -> Result<(), (Exit, String)> {
    let mut text = Vec::new();
    // One byte more than is taken, so that too much is seen as such.
    let read = std::io::stdin().take(MAX_TEXT as u64 + 1).read_to_end(&mut text);
    read.map_err(|e| (Exit::NoInput, format!("standard input: {e}")))?;
    let text = features::convert(convert.from, convert.to, convert.array_style, &text)?;
    let mut out = std::io::stdout();
    let written = out.write_all(&text).and_then(|()| out.flush());
    written.map_err(|e| (Exit::CannotCreate, format!("standard output: {e}")))
}
