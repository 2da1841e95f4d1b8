//! How one copy of the record lies on disk, so that a reader can tell a whole copy from a torn one.
//!
//! ```text
//! magic "OTNDMREC" | format u32 | sequence u64 | payload length u32 | payload | CRC-32 of all before | zeros
//! ```
//!
//! All numbers are little-endian. Two copies alternate; the newest one that decodes is the record. This module knows
//! neither files nor what the payload means.

/// First bytes of every frame.
const MAGIC: [u8; 8] = *b"OTNDMREC";
/// Version of this layout. The payload has a version of its own.
const FORMAT: u32 = 1;
/// Bytes before the payload.
const HEADER: usize = 24;
/// Bytes of the checksum behind the payload.
const CHECKSUM: usize = 4;

/// One whole copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Grows by one with every save.
    pub seq: u64,
    /// What was saved.
    pub payload: &'a [u8],
}

/// The payload does not fit into one copy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a record of {payload} bytes does not fit into a copy of {copy_size} bytes")]
pub struct TooLarge {
    /// Bytes that were to be saved.
    pub payload: usize,
    /// Bytes that one copy has, header and checksum included.
    pub copy_size: usize,
}

/// Why the bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Nothing was ever written here.
    #[error("never written")]
    Blank,
    /// The copy ends before its frame does.
    #[error("truncated")]
    Truncated,
    /// It does not begin like a frame.
    #[error("not a record")]
    Magic,
    /// Another layout than the one that this version knows.
    #[error("layout version {0} is not known to this version of otandem")]
    Format(u32),
    /// The checksum is wrong: a torn write or a broken medium.
    #[error("checksum does not match")]
    Checksum,
    /// The last sequence number there is, which no save reaches: nothing could follow it.
    #[error("impossible sequence number")]
    Sequence,
}

/// Bytes of a frame around `payload` bytes, without padding.
#[must_use]
pub const fn frame_len(payload: usize) -> usize {
    payload.saturating_add(HEADER + CHECKSUM)
}

/// One copy of `copy_size` bytes: the frame, then zeros.
///
/// # Errors
/// The payload does not fit.
pub fn encode(seq: u64, payload: &[u8], copy_size: usize) -> Result<Vec<u8>, TooLarge> {
    let too_large = || TooLarge { payload: payload.len(), copy_size };
    let len = u32::try_from(payload.len()).map_err(|_| too_large())?;
    if frame_len(payload.len()) > copy_size {
        return Err(too_large());
    }
    let mut copy = Vec::with_capacity(copy_size);
    copy.extend_from_slice(&MAGIC);
    copy.extend_from_slice(&FORMAT.to_le_bytes());
    copy.extend_from_slice(&seq.to_le_bytes());
    copy.extend_from_slice(&len.to_le_bytes());
    copy.extend_from_slice(payload);
    copy.extend_from_slice(&crate::crc::crc32(&copy).to_le_bytes());
    copy.resize(copy_size, 0);
    Ok(copy)
}

/// The frame at the beginning of `copy`; whatever lies behind it is ignored.
///
/// # Errors
/// Anything that is not one whole frame.
pub fn decode(copy: &[u8]) -> Result<Frame<'_>, FrameError> {
    if copy.iter().all(|b| *b == 0) {
        return Err(FrameError::Blank);
    }
    let (magic, rest) = take::<8>(copy)?;
    if magic != MAGIC {
        return Err(FrameError::Magic);
    }
    let (format, rest) = take::<4>(rest)?;
    let format = u32::from_le_bytes(format);
    if format != FORMAT {
        return Err(FrameError::Format(format));
    }
    let (seq, rest) = take::<8>(rest)?;
    let (len, rest) = take::<4>(rest)?;
    let seq = u64::from_le_bytes(seq);
    let len = usize::try_from(u32::from_le_bytes(len)).map_err(|_| FrameError::Truncated)?;
    let (payload, rest) = rest.split_at_checked(len).ok_or(FrameError::Truncated)?;
    let (checksum, _) = take::<4>(rest)?;
    if crate::crc::crc32(&copy[..HEADER + len]) != u32::from_le_bytes(checksum) {
        return Err(FrameError::Checksum);
    }
    if seq == u64::MAX {
        return Err(FrameError::Sequence);
    }
    Ok(Frame { seq, payload })
}

/// The newer of two copies, of which each may be unreadable; the first where they are equally old.
#[must_use]
pub fn newest<'a>(a: Option<Frame<'a>>, b: Option<Frame<'a>>) -> Option<Frame<'a>> {
    match (a, b) {
        (Some(a), Some(b)) if b.seq > a.seq => Some(b),
        (a, b) => a.or(b),
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), FrameError> {
    bytes.split_first_chunk::<N>().map(|(head, rest)| (*head, rest)).ok_or(FrameError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COPY: usize = 256;

    #[test]
    fn a_payload_that_exactly_fits_comes_back_and_one_byte_more_is_refused() {
        let payload = vec![7; COPY - frame_len(0)];
        let copy = encode(1, &payload, COPY).unwrap();
        assert_eq!(decode(&copy), Ok(Frame { seq: 1, payload: &payload }));
        let more = vec![7; payload.len() + 1];
        assert_eq!(encode(1, &more, COPY), Err(TooLarge { payload: more.len(), copy_size: COPY }));
    }

    #[test]
    fn each_kind_of_damage_is_told_by_its_name() {
        let copy = encode(5, b"hello", COPY).unwrap();
        let damaged = |at: usize, value: u8| {
            let mut c = copy.clone();
            c[at] = value;
            decode(&c).unwrap_err()
        };
        assert_eq!(decode(&[]), Err(FrameError::Blank));
        assert_eq!(decode(&[0; COPY]), Err(FrameError::Blank));
        assert_eq!(damaged(0, b'x'), FrameError::Magic);
        assert_eq!(damaged(8, 9), FrameError::Format(9));
        assert_eq!(damaged(23, 0xff), FrameError::Truncated);
        assert_eq!(damaged(24, b'j'), FrameError::Checksum);
        assert_eq!(decode(&copy[..frame_len(5) - 1]), Err(FrameError::Truncated));
        assert_eq!(decode(&encode(u64::MAX, b"", COPY).unwrap()), Err(FrameError::Sequence));
    }

    #[test]
    fn the_newest_readable_copy_is_the_record() {
        let frame = |seq| Some(Frame { seq, payload: b"" });
        assert_eq!(newest(frame(1), frame(2)), frame(2));
        assert_eq!(newest(frame(2), frame(1)), frame(2));
        assert_eq!(newest(frame(2), None), frame(2));
        assert_eq!(newest(None, frame(1)), frame(1));
        assert_eq!(newest(None, None), None);
    }

    proptest! {
        #[test]
        fn noise_never_panics_and_never_passes(noise in proptest::collection::vec(any::<u8>(), 0..COPY)) {
            prop_assert!(decode(&noise).is_err());
        }

        #[test]
        fn noise_behind_a_true_header_never_panics(
            len in any::<u32>(), seq in any::<u64>(), noise in proptest::collection::vec(any::<u8>(), 0..COPY)
        ) {
            let mut copy = encode(seq, b"", frame_len(0)).unwrap();
            copy[20..24].copy_from_slice(&len.to_le_bytes());
            copy.truncate(HEADER);
            copy.extend_from_slice(&noise);
            prop_assert!(decode(&copy).is_err());
        }

        #[test]
        fn a_torn_write_leaves_the_old_frame_or_the_new_one_or_none(
            old in proptest::collection::vec(any::<u8>(), 0..200),
            new in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0..=COPY,
        ) {
            let mut copy = encode(1, &old, COPY).unwrap();
            copy[..cut].copy_from_slice(&encode(3, &new, COPY).unwrap()[..cut]);
            if let Ok(frame) = decode(&copy) {
                let whole = [Frame { seq: 1, payload: &old }, Frame { seq: 3, payload: &new }];
                prop_assert!(whole.contains(&frame));
            }
        }
    }
}
