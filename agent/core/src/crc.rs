//! CRC-32 as in zlib and Ethernet (reflected, polynomial 0xEDB88320), for pieces of a few kilobytes: tables that make it
//! fast would be 16 kB of program.

/// What four bits add.
const NIBBLES: [u32; 16] = nibbles();

const fn nibbles() -> [u32; 16] {
    let mut table = [0; 16];
    let (mut at, mut value) = (0, 0);
    while at < table.len() {
        let mut crc: u32 = value;
        let mut bit = 0;
        while bit < 4 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[at] = crc;
        (at, value) = (at + 1, value + 1);
    }
    table
}

/// The checksum of `bytes`.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    let nibble = |crc: u32| crc >> 4 ^ NIBBLES[(crc & 0xf) as usize];
    !bytes.iter().fold(!0, |crc, byte| nibble(nibble(crc ^ u32::from(*byte))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_check_value_is_that_of_the_catalogue() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    proptest! {
        #[test]
        fn it_is_the_one_that_everybody_has(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(crc32(&bytes), crc32fast::hash(&bytes));
        }
    }
}
