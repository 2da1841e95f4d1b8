//! Presigned-style URLs: an expiry and an HMAC over method, path and expiry, in the query as S3 has them.
//!
//! As with S3, a URL is signed for one method: a HEAD on a URL signed for GET is a wrong signature.

use std::time::Duration;

use ring::{hmac, rand};

/// Query keys, as S3 spells them; the serial number is the lab's own, so that two URLs are never the same.
const DATE: &str = "X-Amz-Date";
const EXPIRES: &str = "X-Amz-Expires";
const SERIAL: &str = "X-Lab-Serial";
const SIGNATURE: &str = "X-Amz-Signature";

/// Why a URL is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No signature at all.
    Unsigned,
    /// A signature that is not ours, or one for something else.
    Mismatch,
    /// Too late.
    Expired,
}

/// Signs and checks.
pub struct Signer {
    key: hmac::Key,
    serial: u64,
    /// URLs up to this serial number are expired whatever their time says.
    revoked: u64,
}

impl Default for Signer {
    fn default() -> Self {
        Self::new()
    }
}

impl Signer {
    /// With a key of its own.
    #[must_use]
    pub fn new() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new())
            .unwrap_or_else(|_| hmac::Key::new(hmac::HMAC_SHA256, b"no randomness, and nothing to protect"));
        Self { key, serial: 0, revoked: 0 }
    }

    /// The query that makes a GET of `path` good for `valid_for` from `now` on.
    pub fn query(&mut self, path: &str, now: Duration, valid_for: Duration) -> String {
        self.serial += 1;
        let (date, expires, serial) = (format_date(now.as_secs()), valid_for.as_secs(), self.serial);
        let tag = hmac::sign(&self.key, canonical("GET", path, &date, expires, serial).as_bytes());
        let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        format!(
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&{DATE}={date}&{EXPIRES}={expires}&X-Amz-SignedHeaders=host&\
             {SERIAL}={serial}&{SIGNATURE}={hex}"
        )
    }

    /// Expires every URL signed so far.
    pub fn revoke(&mut self) {
        self.revoked = self.serial;
    }

    /// Whether the query allows this request, and how old the URL is.
    ///
    /// # Errors
    /// The reason for which S3 would refuse it.
    pub fn check(&self, method: &str, path: &str, query: &str, now: Duration) -> Result<Duration, Refusal> {
        let field = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
                .map(|(_, v)| v)
        };
        let signature = field(SIGNATURE).ok_or(Refusal::Unsigned)?;
        let date = field(DATE).ok_or(Refusal::Mismatch)?;
        let expires: u64 = field(EXPIRES).and_then(|e| e.parse().ok()).ok_or(Refusal::Mismatch)?;
        let serial: u64 = field(SERIAL).and_then(|s| s.parse().ok()).ok_or(Refusal::Mismatch)?;
        let tag = unhex(signature).ok_or(Refusal::Mismatch)?;
        hmac::verify(&self.key, canonical(method, path, date, expires, serial).as_bytes(), &tag)
            .map_err(|_| Refusal::Mismatch)?;
        let signed = Duration::from_secs(parse_date(date).ok_or(Refusal::Mismatch)?);
        let age = now.saturating_sub(signed);
        if serial <= self.revoked || age >= Duration::from_secs(expires) {
            return Err(Refusal::Expired);
        }
        Ok(age)
    }
}

fn canonical(method: &str, path: &str, date: &str, expires: u64, serial: u64) -> String {
    format!("{method}\n{path}\n{date}\n{expires}\n{serial}")
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    // Bytes, not characters: a multi-byte character must not be cut in two.
    text.as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect()
}

/// `YYYYMMDDTHHMMSSZ`.
fn format_date(secs: u64) -> String {
    let (days, rest) = (secs / 86_400, secs % 86_400);
    // Days since 0000-03-01, in eras of 400 years (146 097 days); March is month 0.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let dom = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{:04}{month:02}{dom:02}T{h:02}{m:02}{s:02}Z", year + era * 400 + carry)
}

fn parse_date(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    if text.len() != 16 || text.get(8..9)? != "T" || !text.ends_with('Z') {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year) = (year / 400, year % 400);
    let day = (153 * month + 2) / 5 + day - 1 + year * 365 + year / 4 - year / 100;
    (era * 146_097 + day).checked_sub(719_468).map(|days| days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// The object that the URL of a placeholder names: `bucket/key` for path-style and virtual-hosted URLs, the path as it
/// is for any other host. The pinned version of the `-v2` form is cut off; the lab keeps one version.
#[must_use]
pub fn object_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let key = decode(path);
    let key = key.split_once("?versionId=").map_or(key.as_str(), |(key, _)| key);
    match host.split_once(".s3.").or_else(|| host.split_once(".s3-")) {
        Some((bucket, _)) => format!("{bucket}/{key}"),
        None => key.to_owned(),
    }
}

/// Takes percent-encoding away; what is no encoding stays.
#[must_use]
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let byte = code
            .filter(|code| code.iter().all(u8::is_ascii_hexdigit))
            .and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        out.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Percent-encodes a key for the path of a URL; slashes stay.
#[must_use]
pub fn encode(key: &str) -> String {
    key.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(1_700_000_000);

    #[test]
    fn url_is_good_until_it_expires_or_is_revoked_and_for_its_path_and_method_only() {
        let mut signer = Signer::new();
        let query = signer.query("b/k", DAY, Duration::from_secs(60));
        let at = |s| DAY + Duration::from_secs(s);
        assert_eq!(signer.check("GET", "b/k", &query, at(59)), Ok(Duration::from_secs(59)));
        assert_eq!(signer.check("GET", "b/k", &query, at(60)), Err(Refusal::Expired));
        assert_eq!(signer.check("GET", "b/other", &query, at(1)), Err(Refusal::Mismatch));
        assert_eq!(signer.check("HEAD", "b/k", &query, at(1)), Err(Refusal::Mismatch));
        let longer = query.replace("X-Amz-Expires=60", "X-Amz-Expires=6000");
        assert_eq!(signer.check("GET", "b/k", &longer, at(1)), Err(Refusal::Mismatch));
        assert_eq!(signer.check("GET", "b/k", "", at(1)), Err(Refusal::Unsigned));
        signer.revoke();
        assert_eq!(signer.check("GET", "b/k", &query, at(1)), Err(Refusal::Expired));
        let fresh = signer.query("b/k", DAY, Duration::from_secs(60));
        assert!(signer.check("GET", "b/k", &fresh, at(1)).is_ok());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(format_date(0), "19700101T000000Z");
        assert_eq!(format_date(951_782_400), "20000229T000000Z");
        assert_eq!(format_date(1_700_000_000), "20231114T221320Z");
    }

    #[test]
    fn placeholder_urls_name_their_object_in_every_style() {
        assert_eq!(object_of("https://s3.eu-west-1.amazonaws.com/b/dir/k"), "b/dir/k");
        assert_eq!(object_of("https://b.s3.eu-west-1.amazonaws.com/dir/k"), "b/dir/k");
        assert_eq!(object_of("https://s3.r.amazonaws.com/b/a%20k%3FversionId%3Dxyz"), "b/a k");
        assert_eq!(object_of("http://127.0.0.1:8080/b/k?q"), "b/k");
    }

    proptest! {
        #[test]
        fn dates_come_back(secs in 0..250_000_000_000u64) {
            prop_assert_eq!(parse_date(&format_date(secs)), Some(secs));
        }

        #[test]
        fn keys_come_back(key in "\\PC{0,40}") {
            prop_assert_eq!(decode(&encode(&key)), key);
        }

        #[test]
        fn any_query_is_judged(query in "(X-Amz-(Date|Expires|Signature)=\\PC{0,20}&?|\\PC){0,6}") {
            prop_assert!(Signer::new().check("GET", "b/k", &query, DAY).is_err());
        }

        #[test]
        fn any_url_names_some_object(url in "\\PC{0,80}") {
            let _ = object_of(&url);
        }
    }
}
