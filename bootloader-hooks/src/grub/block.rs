//! The environment block: 1024 bytes that begin with a signature, then lines `NAME=value`, filled up with `#`.
//!
//! Bytes in, bytes out. [`variables`] and [`save`] do with a block what GRUB 2.06 does (`load_env`, `save_env`), also with
//! one that nobody would write on purpose; [`encode`] makes the only form that we write.
//!
//! That form keeps everything of ours within the first 512-byte sector, and everything of others at a fixed place behind
//! it: no change of ours ever changes the second sector, so that a medium which writes whole sectors holds the old block
//! or the new one at every instant.

use std::ops::Range;

/// Bytes of a block.
pub const SIZE: usize = 1024;
/// What a medium writes at once.
pub const SECTOR: usize = 512;
/// The first line.
pub const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";
/// A line of padding needs this much: an empty line would become a part of the next name.
const LEAST_PADDING: usize = 2;

/// Why GRUB does not take a file as an environment block, or why none can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// No bytes.
    #[error("is empty")]
    Empty,
    /// The signature does not stand at its beginning.
    #[error("does not begin with the signature of an environment block")]
    Signature,
    /// Our variables do not fit into the first sector.
    #[error(
        "our variables take {needed} bytes and must lie in the first {SECTOR}: \
         shorten ORDER or the boot names"
    )]
    Sector {
        /// What they take, with the signature.
        needed: usize,
    },
    /// The variables of others leave too little room.
    #[error(
        "variables of other programs take {foreign} bytes and only {room} are left: \
         remove some (grub-editenv FILE unset NAME)"
    )]
    Room {
        /// What they take.
        foreign: usize,
        /// What is there for them.
        room: usize,
    },
}

/// One variable as `load_env` sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name, up to the first NUL byte.
    pub name: Vec<u8>,
    /// Its value without escapes, up to the first NUL byte.
    pub value: Vec<u8>,
    /// Where it stands in the block, its line end included.
    pub place: Range<usize>,
}

/// Is this an environment block for GRUB? It asks for the signature and one more byte, not for a size.
///
/// # Errors
/// Why not.
pub fn check(bytes: &[u8]) -> Result<(), BlockError> {
    if bytes.is_empty() {
        return Err(BlockError::Empty);
    }
    if bytes.len() <= SIGNATURE.len() || !bytes.starts_with(SIGNATURE) {
        return Err(BlockError::Signature);
    }
    Ok(())
}

/// The position behind the line end that follows `at`, escapes respected; may lie beyond the end.
fn next_line(bytes: &[u8], at: usize) -> usize {
    line_end(bytes, at) + 1
}

/// The position of the next line end that is not escaped; at or beyond the end if there is none.
fn line_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'\n' => break,
            _ => at += 1,
        }
    }
    at
}

fn up_to_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().take_while(|b| *b != 0).collect()
}

fn unescape(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        out.push(if *byte == b'\\' { *rest.next().unwrap_or(byte) } else { *byte });
    }
    out
}

fn escape(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    for byte in value {
        if matches!(byte, b'\\' | b'\n') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out
}

/// All variables of a block in their order; where a name stands twice GRUB takes the last. What follows a place that
/// makes no sense is not read, and nothing of a file that is no block.
#[must_use]
pub fn variables(bytes: &[u8]) -> Vec<Variable> {
    let mut found = Vec::new();
    if check(bytes).is_err() {
        return found;
    }
    let mut at = SIGNATURE.len();
    while at < bytes.len() {
        if bytes[at] == b'#' {
            at = next_line(bytes, at);
            continue;
        }
        let Some(name) = bytes[at..].iter().position(|b| *b == b'=') else { break };
        let value = at + name + 1;
        let end = line_end(bytes, value);
        if end >= bytes.len() {
            break;
        }
        found.push(Variable {
            name: up_to_nul(&bytes[at..at + name]),
            value: up_to_nul(&unescape(&bytes[value..end])),
            place: at..end + 1,
        });
        at = end + 1;
    }
    found
}

/// What `save_env` makes of a block for one variable that has a value. `None`: it refuses. Unlike [`variables`] it takes
/// the first line of that name.
#[must_use]
pub fn save(bytes: &[u8], name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    check(bytes).ok()?;
    let mut block = bytes.to_vec();
    let end = block.len();
    let space = block.iter().rposition(|b| *b != b'#')? + 1;
    if block[space - 1] != b'\n' {
        return None;
    }
    let value = escape(value);
    let mut at = SIGNATURE.len();
    while at + name.len() + 1 < space {
        let begin = at + name.len() + 1;
        if block[at..].starts_with(name) && block[begin - 1] == b'=' {
            // An escape is two bytes, whatever it escapes.
            let old = line_end(&block, begin);
            if old >= end || end - space < value.len().saturating_sub(old - begin) {
                return None;
            }
            let rest = block.split_off(old);
            block.truncate(begin);
            block.extend_from_slice(&value);
            block.extend_from_slice(&rest);
            block.resize(end, b'#');
            return Some(block);
        }
        at = next_line(&block, at);
    }
    let line = [name, b"=", &value, b"\n"].concat();
    (line.len() <= end - space).then(|| {
        block[space..space + line.len()].copy_from_slice(&line);
        block
    })
}

/// A block of [`SIZE`] bytes: `ours` first, padded so that what follows begins at `region` whatever our values are, then
/// `foreign`, lines as they stood in another block.
///
/// # Errors
/// Ours do not fit into `region` or the first sector, or the others not behind them.
pub fn encode(ours: &[(String, Vec<u8>)], region: usize, foreign: &[u8]) -> Result<Vec<u8>, BlockError> {
    let mut block = SIGNATURE.to_vec();
    for (name, value) in ours {
        block.extend_from_slice(name.as_bytes());
        block.push(b'=');
        block.extend(escape(value));
        block.push(b'\n');
    }
    let needed = region.max(block.len() + LEAST_PADDING);
    if needed > SECTOR {
        return Err(BlockError::Sector { needed });
    }
    block.resize(needed - 1, b'#');
    block.push(b'\n');
    let room = SIZE - needed;
    if foreign.len() > room {
        return Err(BlockError::Room { foreign: foreign.len(), room });
    }
    block.extend_from_slice(foreign);
    block.resize(SIZE, b'#');
    Ok(block)
}

/// Where [`encode`] lets the lines of others begin, so that no values of these `(name, longest value)` move them.
#[must_use]
pub fn region<'a>(ours: impl IntoIterator<Item = (&'a str, usize)>) -> usize {
    let lines: usize = ours.into_iter().map(|(name, longest)| name.len() + longest + 2).sum();
    SIGNATURE.len() + lines + LEAST_PADDING
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
