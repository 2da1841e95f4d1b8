//! Images as a job names them: where they are, what they must be, where they go.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A digest of `N` bytes, written in lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hex<const N: usize>(pub [u8; N]);

/// A SHA-256.
pub type Sha256 = Hex<32>;
/// An MD5: only ever an additional check, see `docs/security.md`.
pub type Md5 = Hex<16>;

/// The text is not a digest of the wanted length in hex.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a digest of {} hex digits", .0 * 2)]
pub struct NotADigest(pub usize);

impl<const N: usize> FromStr for Hex<N> {
    type Err = NotADigest;
    fn from_str(s: &str) -> Result<Self, NotADigest> {
        let digits = s.as_bytes();
        if digits.len() != N * 2 {
            return Err(NotADigest(N));
        }
        let nibble = |c: u8| (c as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let mut out = [0; N];
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            let (Some(hi), Some(lo)) = (nibble(pair[0]), nibble(pair[1])) else { return Err(NotADigest(N)) };
            *byte = hi << 4 | lo;
        }
        Ok(Self(out))
    }
}

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How the bytes at the source are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// As they come.
    None,
    /// gzip, one or more members.
    Gzip,
    /// xz, one or more streams.
    Xz,
    /// Zstandard, one or more frames.
    Zstd,
}

/// What one byte stream must be. A check that is absent is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Expect {
    /// Its length in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Its SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// Its MD5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<Md5>,
}

/// One image of an update, validated: what to fetch, what it must be, and the slot it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// Slot name inside the set, such as `rootfs`.
    pub slot: String,
    /// http(s) URL, or an absolute path for local installs. Presigned URLs carry secrets: never log it whole,
    /// use [`Image::source_for_log`].
    pub source: String,
    /// How it is packed; `None` = recognise from the first bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// The image as it is written to the slot.
    pub raw: Expect,
    /// The bytes at the source. Equal to `raw` in meaning where nothing is packed.
    pub file: Expect,
}

impl Image {
    /// The source without query, fragment and credentials, for logs and job details.
    #[must_use]
    pub fn source_for_log(&self) -> String {
        source_for_log(&self.source)
    }
}

/// Parses a URL whose host is written in ASCII: the parser knows no other letters, and what it does with a mixture of
/// both depends on how it was built.
///
/// # Errors
/// In words, without the URL.
pub fn parse_url(text: &str) -> Result<url::Url, String> {
    const BLANK: [char; 3] = ['\t', '\n', '\r'];
    let after = text.split_once(':').map_or("", |(_, after)| after);
    let authority = after.trim_start_matches(|c| matches!(c, '/' | '\\') || BLANK.contains(&c));
    let authority = authority.split(['/', '\\', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if !host.is_ascii() || host.contains('%') {
        return Err("not a URL: write its host in ASCII (xn--...), and not in percent codes".into());
    }
    url::Url::parse(text).map_err(|e| format!("not a URL: {e}"))
}

/// A URL without query, fragment and credentials; any other text as it is.
#[must_use]
pub fn source_for_log(source: &str) -> String {
    match parse_url(source) {
        Ok(mut url) if url.has_host() => {
            url.set_query(None);
            url.set_fragment(None);
            // Fails only for URLs that cannot have credentials, and those have none.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.to_string()
        }
        _ => source.split(['?', '#']).next().unwrap_or_default().to_owned(),
    }
}

/// The state of a digest over the source, so that it goes on after a restart without the bytes being fetched
/// again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DigestState {
    /// `sha256` or `md5`.
    pub algorithm: String,
    /// Version of the encoding of `state`; another version than the reader's own is not used.
    pub version: u32,
    /// The state, in hex.
    pub state: String,
}

/// Where an interrupted image can go on: all bytes before `raw_offset` are in the slot and durable, and decoding
/// can begin at `source_offset`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Checkpoint {
    /// Index into the update's images; images before it are written and verified but for their heads.
    pub image: usize,
    /// Bytes of the source before this point.
    pub source_offset: u64,
    /// Bytes of the raw image before this point.
    pub raw_offset: u64,
    /// Digests over the source up to here; empty where the job asks for none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_digests: Vec<DigestState>,
    /// The object that the offset belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}
