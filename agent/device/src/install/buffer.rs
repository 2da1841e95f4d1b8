//! The few large buffers through which every byte of an image goes.

/// Bytes of one buffer, of one write and of a slot's head. Large enough that the cost of a call does not show,
/// small enough that two of them fit the memory budget.
pub(crate) const BUFFER: usize = 1 << 20;

/// Memory and offsets for direct I/O are multiples of this; it covers every logical block size in use.
pub(crate) const ALIGN: usize = 4096;

/// `BUFFER` zeroed bytes at an address that direct I/O accepts.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    from: usize,
}

impl Buffer {
    pub(crate) fn new() -> Self {
        // A larger vector and an offset instead of an aligned allocation: no unsafe code for 4 KiB.
        let bytes = vec![0; BUFFER + ALIGN];
        let from = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, from }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.from..self.from + BUFFER]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + BUFFER]
    }
}

/// Whether all bytes are zero. By the library's comparison, which is fast and gives up early on data.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; ALIGN] = [0; ALIGN];
    bytes.chunks(ALIGN).all(|piece| piece == &ZEROS[..piece.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_suit_direct_io() {
        let mut buffer = Buffer::new();
        assert_eq!(buffer.bytes().as_ptr().align_offset(ALIGN), 0);
        assert_eq!(buffer.bytes_mut().len(), BUFFER);
    }

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        for len in [1, 255, 256, 257, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in [0, len / 2, len - 1] {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
