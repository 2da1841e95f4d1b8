//! What is read of a certificate beside what TLS reads: its version, its validity, the name in it (RFC 5280, section 4.1).
//!
//! A walk along the DER of X.690, definite lengths alone. Signatures, extensions and everything that decides about trust
//! are the TLS library's.

const INTEGER: u8 = 0x02;
const OBJECT_ID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0]`, around the version.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// UTF8String, PrintableString, T61String, IA5String.
const TEXTS: [u8; 4] = [0x0c, 0x13, 0x14, 0x16];
/// 2.5.4.3, id-at-commonName.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
/// The version field of an X.509 version 3 certificate.
const V3: [u8; 1] = [2];

/// What is read of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Whether it is one of version 3.
    pub is_v3: bool,
    /// Its validity, in seconds since 1970, first and last.
    pub validity: (u64, u64),
    /// The common name of its subject, if it has one.
    pub common_name: Option<String>,
}

/// Elements one after the other.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// Tag and content of the next element; `None` at the end, and where there is none.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first >= 0x80 {
            let count = usize::from(first & 0x7f);
            // More than 16 MiB are in no certificate; zero would be a length that is found at the end.
            let (bytes, after) = rest.split_at_checked(count).filter(|_| (1..=3).contains(&count))?;
            length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            rest = after;
        }
        let (content, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some((tag, content))
    }

    /// The content of the next element, if it has this tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }
}

/// Reads a certificate; `None` if it is none.
pub(super) fn facts(der: &[u8]) -> Option<Facts> {
    let mut certificate = Elements(Elements(der).expect(SEQUENCE)?);
    let mut signed = Elements(certificate.expect(SEQUENCE)?);
    let mut is_v3 = false;
    let mut serial = signed.next()?;
    if serial.0 == VERSION {
        is_v3 = Elements(serial.1).expect(INTEGER)? == V3;
        serial = signed.next()?;
    }
    if serial.0 != INTEGER {
        return None;
    }
    let _algorithm = signed.expect(SEQUENCE)?;
    let _issuer = signed.expect(SEQUENCE)?;
    let mut validity = Elements(signed.expect(SEQUENCE)?);
    let validity = (time(validity.next()?)?, time(validity.next()?)?);
    let common_name = common_name(signed.expect(SEQUENCE)?);
    let _key = signed.expect(SEQUENCE)?;
    Some(Facts { is_v3, validity, common_name })
}

/// The first common name of a subject.
fn common_name(subject: &[u8]) -> Option<String> {
    let mut sets = Elements(subject);
    while let Some(set) = sets.expect(SET) {
        let mut attributes = Elements(set);
        while let Some(attribute) = attributes.expect(SEQUENCE) {
            let mut attribute = Elements(attribute);
            if attribute.expect(OBJECT_ID) == Some(&COMMON_NAME)
                && let Some((tag, text)) = attribute.next()
            {
                return TEXTS.contains(&tag).then(|| String::from_utf8_lossy(text).into_owned());
            }
        }
    }
    None
}

/// `YYMMDDHHMMSSZ` of the years 1950 to 2049, or `YYYYMMDDHHMMSSZ`; a time before 1970 is 1970.
fn time((tag, text): (u8, &[u8])) -> Option<u64> {
    let digits = text.strip_suffix(b"Z").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let number = |digits: &[u8]| digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => (number(&digits[..2]), &digits[2..]),
        (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let year = match tag {
        UTC_TIME if year < 50 => 2000 + year,
        UTC_TIME => 1900 + year,
        _ => year,
    };
    let mut fields = rest.chunks_exact(2).map(number);
    let mut field = |range: std::ops::RangeInclusive<u64>| fields.next().filter(|n| range.contains(n));
    let (month, day) = (field(1..=12)?, field(1..=31)?);
    let (hour, minute, second) = (field(0..=23)?, field(0..=59)?, field(0..=59)?);
    if year < 1970 {
        return Some(0);
    }
    // The year from March on, so that the leap day is its last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    // 1970 began 719 468 days after 1 March of the year 0.
    Some(((days - 719_468) * 24 + hour) * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use x509_cert::der::Decode;

    fn utc(text: &str) -> Option<u64> {
        time((UTC_TIME, text.as_bytes()))
    }

    fn long(text: &str) -> Option<u64> {
        time((GENERALIZED_TIME, text.as_bytes()))
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        // date -u -d '...' +%s
        for (text, seconds) in [
            ("700101000000Z", 0),
            ("000229235959Z", 951_868_799),
            ("000301000000Z", 951_868_800),
            ("491231235959Z", 2_524_607_999),
            ("261122123456Z", 1_795_350_896),
        ] {
            assert_eq!(utc(text), Some(seconds), "{text}");
        }
        assert_eq!(long("20500101000000Z"), Some(2_524_608_000));
        assert_eq!(long("99991231235959Z"), Some(253_402_300_799));
        assert_eq!(utc("500101000000Z"), Some(0), "1950");
        for text in
            ["", "Z", "261122123456", "261322123456Z", "260022123456Z", "261100123456Z", "261122243456Z"]
        {
            assert_eq!(utc(text), None, "{text}");
        }
        for text in ["2611221234+6Z", "20261122123456Z", "26112212345Z"] {
            assert_eq!(utc(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_reads_what_a_library_reads(
            name in "[a-zA-Z0-9 äß_-]{1,30}", first in 0i64..2_400_000_000, lasts in 0i64..8_000_000_000, named: bool,
        ) {
            let mut asked = rcgen::CertificateParams::new(vec!["host.example".into()]).unwrap();
            asked.distinguished_name = rcgen::DistinguishedName::new();
            asked.distinguished_name.push(rcgen::DnType::OrganizationName, "otandem");
            if named {
                asked.distinguished_name.push(rcgen::DnType::CommonName, name.as_str());
            }
            let epoch = rcgen::date_time_ymd(1970, 1, 1);
            asked.not_before = epoch + std::time::Duration::from_secs(first.unsigned_abs());
            asked.not_after = asked.not_before + std::time::Duration::from_secs(lasts.unsigned_abs());
            let key = rcgen::KeyPair::generate().unwrap();
            let made = asked.self_signed(&key).unwrap();
            let read = x509_cert::Certificate::from_der(made.der()).unwrap();
            let validity = read.tbs_certificate().validity();
            let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs();
            let common_name = read.tbs_certificate().subject().common_name().unwrap().map(|name| name.value().into_owned());
            let expected = Facts {
                is_v3: true,
                validity: (seconds(validity.not_before), seconds(validity.not_after)),
                common_name,
            };
            prop_assert_eq!(facts(made.der()), Some(expected));
            // Cut anywhere, it is none.
            for cut in 0..made.der().len() {
                prop_assert_eq!(facts(&made.der()[..cut]), None);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = facts(&bytes);
        }
    }
}
