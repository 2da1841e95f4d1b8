//! The FOTA job document: bytes from the cloud in, a checked document or a refusal out.
//!
//! Nothing here knows the device: whether the document fits it is decided in [`crate::plan`].

use serde_json::{Map, Value};

use crate::image::{Compression, Expect, Hex, Md5, Sha256, parse_url};
use crate::update::Outcome;

/// Bytes of a job document at most; the service's own limit.
pub const MAX_DOCUMENT: usize = 32 * 1024;
/// Images of one document at most.
pub const MAX_IMAGES: usize = 16;
/// Characters of a URL at most.
const MAX_URL: usize = 8 * 1024;
/// Characters of a name, version or compatible string at most.
const MAX_WORD: usize = 128;

/// A checked document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// `bc_idx`: the index of the set that the image is for.
    pub index: Option<u64>,
    /// At least one.
    pub images: Vec<DocumentImage>,
    /// Install although the digest is banned.
    pub retry: bool,
    /// Install although it runs already.
    pub force: bool,
}

/// One image of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentImage {
    /// Slot name; absent where the device has only one that can be meant.
    pub slot: Option<String>,
    /// http or https URL, or a path for local installs.
    pub source: String,
    /// Absent = recognise it.
    pub compression: Option<Compression>,
    /// The raw image.
    pub raw: Expect,
    /// The bytes at the source.
    pub file: Expect,
    /// For people.
    pub version: Option<String>,
    /// The device that it is for.
    pub compatible: Option<String>,
}

/// Parses a document that came as text.
///
/// # Errors
/// The outcome to report: always a refusal, with the member at fault.
pub fn parse_text(text: &[u8]) -> Result<Document, Outcome> {
    if text.len() > MAX_DOCUMENT {
        return Err(reject(format!("job document: more than {MAX_DOCUMENT} bytes")));
    }
    let value: Value =
        serde_json::from_slice(text).map_err(|e| reject(format!("job document: not JSON: {e}")))?;
    if !is_fota(&value) {
        return Err(reject(
            "job document: not a FOTA document (no \"operation\":\"fota\" and not all of bc_idx, bc_crc, bc_size, bc_url)",
        ));
    }
    parse(&value)
}

/// This document asks for a firmware update: `operation` is `fota`, or is absent beside all four bc_ members.
#[must_use]
pub fn is_fota(document: &Value) -> bool {
    match document.get("operation") {
        Some(operation) => operation == "fota",
        None => ["bc_idx", "bc_crc", "bc_size", "bc_url"].iter().all(|m| document.get(m).is_some()),
    }
}

/// Parses a document that [`is_fota`].
///
/// # Errors
/// The outcome to report: always a refusal, with the member at fault.
pub fn parse(document: &Value) -> Result<Document, Outcome> {
    let Value::Object(top) = document else { return Err(reject("job document: not an object")) };
    refuse_placeholders(document)?;
    let top = Object { map: top, path: String::new() };
    let bc = Bytecode::read(&top)?;
    let mut images = match (top.get("image"), top.get("images")) {
        (Some(_), Some(_)) => return Err(reject("job document: image and images exclude each other")),
        (Some(_), None) => vec![image(&top.object("image")?)?],
        (None, Some(_)) => images_of(&top)?,
        (None, None) => vec![bc.image()?],
    };
    if top.get("image").is_some() || top.get("images").is_some() {
        bc.add_checks(&mut images)?;
    }
    for (n, image) in images.iter().enumerate() {
        check_trust(image).map_err(|why| reject(format!("job document: image {n}: {why}")))?;
    }
    Ok(Document { index: bc.index, images, retry: top.flag("retry")?, force: top.flag("force")? })
}

fn reject(why: impl Into<String>) -> Outcome {
    Outcome::rejected(why)
}

/// A placeholder that the service did not replace would be fetched or compared as it stands.
fn refuse_placeholders(value: &Value) -> Result<(), Outcome> {
    match value {
        Value::String(s) if s.contains("${aws:iot:") => Err(reject(
            "job document: a ${aws:iot:...} placeholder was not replaced by the service (is the presigning role set?)",
        )),
        Value::Array(list) => list.iter().try_for_each(refuse_placeholders),
        Value::Object(map) => map.values().try_for_each(refuse_placeholders),
        _ => Ok(()),
    }
}

/// The bc_ members.
struct Bytecode {
    index: Option<u64>,
    md5: Option<Md5>,
    size: Option<u64>,
    url: Option<String>,
}

impl Bytecode {
    fn read(top: &Object<'_>) -> Result<Self, Outcome> {
        Ok(Self {
            index: top.number("bc_idx")?,
            md5: top.digest("bc_crc")?,
            size: top.number("bc_size")?,
            url: top.url("bc_url")?,
        })
    }

    /// bc_ alone: written as it comes, never decompressed.
    fn image(&self) -> Result<DocumentImage, Outcome> {
        let missing = |what: &str| reject(format!("job document: {what}: missing"));
        let file = Expect {
            size: Some(self.size.ok_or_else(|| missing("bc_size"))?),
            sha256: None,
            md5: Some(self.md5.ok_or_else(|| missing("bc_crc"))?),
        };
        if self.index.is_none() {
            return Err(missing("bc_idx"));
        }
        Ok(DocumentImage {
            slot: None,
            source: self.url.clone().ok_or_else(|| missing("bc_url"))?,
            compression: Some(Compression::None),
            raw: Expect { size: self.size, ..Expect::default() },
            file,
            version: None,
            compatible: None,
        })
    }

    /// Beside `image`, bc_size and bc_crc are more checks of the same bytes.
    fn add_checks(&self, images: &mut [DocumentImage]) -> Result<(), Outcome> {
        if self.size.is_none() && self.md5.is_none() {
            return Ok(());
        }
        let [image] = images else {
            return Err(reject("job document: bc_size and bc_crc say nothing beside more than one image"));
        };
        if let (Some(a), Some(b)) = (image.file.size, self.size)
            && a != b
        {
            return Err(reject("job document: bc_size and image.file-size differ"));
        }
        image.file.size = image.file.size.or(self.size);
        image.file.md5 = self.md5;
        Ok(())
    }
}

fn images_of(top: &Object<'_>) -> Result<Vec<DocumentImage>, Outcome> {
    let Some(Value::Array(list)) = top.get("images") else {
        return Err(reject("job document: images: not a list"));
    };
    if list.is_empty() || list.len() > MAX_IMAGES {
        return Err(reject(format!("job document: images: {} entries, not 1 to {MAX_IMAGES}", list.len())));
    }
    let entry = |(n, value): (usize, &Value)| match value {
        Value::Object(map) => image(&Object { map, path: format!("images[{n}].") }),
        _ => Err(reject(format!("job document: images[{n}]: not an object"))),
    };
    list.iter().enumerate().map(entry).collect()
}

fn image(o: &Object<'_>) -> Result<DocumentImage, Outcome> {
    let compression = match o.word("compression")?.as_deref() {
        None => None,
        Some("none") => Some(Compression::None),
        Some("gzip") => Some(Compression::Gzip),
        Some("xz") => Some(Compression::Xz),
        Some("zstd") => Some(Compression::Zstd),
        Some(other) => {
            return Err(o.wrong("compression", &format!("{other:?} is not none, gzip, xz or zstd")));
        }
    };
    Ok(DocumentImage {
        slot: o.word("slot")?,
        source: o.url("url")?.ok_or_else(|| o.wrong("url", "missing"))?,
        compression,
        raw: Expect { size: o.number("size")?, sha256: o.digest("sha256")?, md5: None },
        file: Expect { size: o.number("file-size")?, sha256: o.digest("file-sha256")?, md5: None },
        version: o.word("version")?,
        compatible: o.word("compatible")?,
    })
}

/// http only with a SHA-256; an MD5 alone only over https.
fn check_trust(image: &DocumentImage) -> Result<(), String> {
    let sha256: Option<Sha256> = image.raw.sha256.or(image.file.sha256);
    match (sha256, image.file.md5, image.source.starts_with("https:")) {
        (Some(_), _, _) | (None, Some(_), true) => Ok(()),
        (None, Some(_), false) => Err("an MD5 alone needs https; add a sha256".into()),
        (None, None, _) => Err("no digest: add sha256 (raw image) or file-sha256 (bytes at the url)".into()),
    }
}

/// An object of the document and where it stands, so that each refusal names the member.
struct Object<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Object<'a> {
    /// A member; JSON null counts as absent.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    fn wrong(&self, name: &str, what: &str) -> Outcome {
        reject(format!("job document: {}{name}: {what}", self.path))
    }

    fn object(&self, name: &str) -> Result<Object<'a>, Outcome> {
        match self.get(name) {
            Some(Value::Object(map)) => Ok(Object { map, path: format!("{}{name}.", self.path) }),
            _ => Err(self.wrong(name, "not an object")),
        }
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Outcome> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => v.as_u64().map(Some).ok_or_else(|| self.wrong(name, "not a whole number from 0 up")),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, Outcome> {
        match self.get(name) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or_else(|| self.wrong(name, "neither true nor false")),
        }
    }

    fn text(&self, name: &str, most: usize) -> Result<Option<&'a str>, Outcome> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) if s.is_empty() => Err(self.wrong(name, "empty")),
            Some(Value::String(s)) if s.chars().count() > most => {
                Err(self.wrong(name, &format!("longer than {most} characters")))
            }
            Some(Value::String(s)) if s.chars().any(char::is_control) => {
                Err(self.wrong(name, "holds control characters"))
            }
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.wrong(name, "not a string")),
        }
    }

    fn word(&self, name: &str) -> Result<Option<String>, Outcome> {
        Ok(self.text(name, MAX_WORD)?.map(str::to_owned))
    }

    fn digest<const N: usize>(&self, name: &str) -> Result<Option<Hex<N>>, Outcome> {
        match self.text(name, MAX_WORD)? {
            None => Ok(None),
            Some(s) => s.parse().map(Some).map_err(|e| self.wrong(name, &format!("{e}"))),
        }
    }

    fn url(&self, name: &str) -> Result<Option<String>, Outcome> {
        let Some(text) = self.text(name, MAX_URL)? else { return Ok(None) };
        let url = parse_url(text).map_err(|e| self.wrong(name, &e))?;
        match url.scheme() {
            "http" | "https" if url.has_host() => Ok(Some(url.to_string())),
            "http" | "https" => Err(self.wrong(name, "has no host")),
            other => Err(self.wrong(name, &format!("scheme {other:?} is not http or https"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";
    const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn seed() -> Value {
        json!({"operation":"fota","bc_idx":1,"bc_crc":MD5,"bc_size":123,"bc_url":"https://h/fw?sig=1"})
    }

    fn with_image(image: Value) -> Value {
        json!({"operation":"fota","image":image})
    }

    fn refusal(document: &Value) -> String {
        match parse(document) {
            Err(Outcome::Rejected { reason }) => reason,
            other => panic!("not rejected: {other:?}"),
        }
    }

    #[test]
    fn a_host_beyond_ascii_is_refused_with_a_hint_and_taken_in_its_ascii_form() {
        let mut document = seed();
        // Upper case beside it, and percent codes, once ended the process instead.
        for host in ["bücher.example", "Bücher.example", "B%C3%BCcher.example"] {
            document["bc_url"] = json!(format!("https://{host}/fw"));
            let reason = refusal(&document);
            assert!(reason.contains("bc_url") && reason.contains("xn--"), "{reason}");
        }
        for (url, taken) in [
            ("https://xn--bcher-kva.example/fw", "https://xn--bcher-kva.example/fw"),
            ("https://h/bücher", "https://h/b%C3%BCcher"),
        ] {
            document["bc_url"] = json!(url);
            assert_eq!(parse(&document).unwrap().images[0].source, taken);
        }
    }

    #[test]
    fn the_seed_document_works_unchanged() {
        let d = parse(&seed()).unwrap();
        assert_eq!(d.index, Some(1));
        let image = &d.images[0];
        assert_eq!(image.compression, Some(Compression::None));
        assert_eq!((image.file.size, image.raw.size), (Some(123), Some(123)));
        assert_eq!(image.file.md5, Some(MD5.parse().unwrap()));
    }

    #[test]
    fn the_published_form_without_operation_is_recognised() {
        let mut d = seed();
        d.as_object_mut().unwrap().remove("operation");
        assert!(is_fota(&d));
        d.as_object_mut().unwrap().remove("bc_crc");
        assert!(!is_fota(&d));
        assert!(!is_fota(&json!({"operation":"reboot"})));
        assert!(!is_fota(&json!([1])));
    }

    #[test]
    fn image_rules_and_bc_members_are_more_checks_of_it() {
        let mut d = seed();
        d["image"] = json!({"url":"http://h/i.zst","sha256":SHA,"size":10,"compression":"zstd"});
        let d = parse(&d).unwrap();
        let image = &d.images[0];
        assert_eq!(image.source, "http://h/i.zst");
        assert_eq!((image.raw.size, image.file.size), (Some(10), Some(123)));
        assert!(image.file.md5.is_some());
    }

    #[test]
    fn md5_alone_needs_https() {
        let mut d = seed();
        d["bc_url"] = json!("http://h/fw");
        assert!(refusal(&d).contains("needs https"));
    }

    #[test]
    fn a_document_without_a_sha256_is_refused() {
        assert!(refusal(&with_image(json!({"url":"https://h/i"}))).contains("no digest"));
        assert!(
            refusal(&with_image(json!({"url":"https://h/i","sha256":""}))).contains("image.sha256: empty")
        );
    }

    #[test]
    fn each_refusal_names_the_member() {
        for (image, names) in [
            (json!({"sha256":SHA}), "image.url: missing"),
            (json!({"url":"ftp://h/i","sha256":SHA}), "image.url: scheme \"ftp\""),
            (json!({"url":"file:///etc/passwd","sha256":SHA}), "image.url: scheme \"file\""),
            (json!({"url":"nonsense","sha256":SHA}), "image.url: not a URL"),
            (json!({"url":"https://h/i","sha256":"zz"}), "image.sha256: not a digest of 64"),
            (json!({"url":"https://h/i","sha256":SHA,"size":-1}), "image.size: not a whole number"),
            (json!({"url":"https://h/i","sha256":SHA,"size":1.5}), "image.size: not a whole number"),
            (json!({"url":"https://h/i","sha256":SHA,"compression":"rar"}), "image.compression: \"rar\""),
            (json!({"url":"https://h/i","sha256":SHA,"slot":"a\nb"}), "image.slot: holds control"),
            (json!({"url":"https://h/i","sha256":SHA,"version":7}), "image.version: not a string"),
            (json!(7), "image: not an object"),
        ] {
            let why = refusal(&with_image(image));
            assert!(why.contains(names), "{why:?} does not name {names:?}");
        }
    }

    #[test]
    fn a_placeholder_that_was_not_replaced_is_refused_wherever_it_stands() {
        let d = with_image(json!({"url":"https://h/i","sha256":SHA,"version":"${aws:iot:parameter:v}"}));
        assert!(refusal(&d).contains("placeholder"));
    }

    #[test]
    fn huge_and_broken_text_is_refused() {
        assert!(parse_text(&vec![b' '; MAX_DOCUMENT + 1]).unwrap_err().reason().contains("more than"));
        assert!(parse_text(b"{").unwrap_err().reason().contains("not JSON"));
        assert!(parse_text("[".repeat(20_000).as_bytes()).unwrap_err().reason().contains("not JSON"));
        assert!(parse_text(b"{}").unwrap_err().reason().contains("not a FOTA document"));
    }

    #[test]
    fn too_many_images_are_refused() {
        let one = json!({"url":"https://h/i","sha256":SHA});
        let d = json!({"operation":"fota","images":vec![one; MAX_IMAGES + 1]});
        assert!(refusal(&d).contains("17 entries"));
        assert!(refusal(&json!({"operation":"fota","images":[]})).contains("0 entries"));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            Just(Value::from(SHA)),
            Just(Value::from(MD5)),
            Just(Value::from("https://h/i")),
            ".{0,12}".prop_map(Value::from),
        ];
        let name = prop_oneof![
            Just("operation"),
            Just("image"),
            Just("images"),
            Just("url"),
            Just("sha256"),
            Just("size"),
            Just("bc_idx"),
            Just("bc_crc"),
            Just("bc_size"),
            Just("bc_url"),
            Just("compression"),
            Just("retry"),
        ];
        leaf.prop_recursive(3, 24, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..8)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_document_is_read_or_rejected(d in any_json()) {
            match parse(&d) {
                Ok(document) => {
                    prop_assert!(!document.images.is_empty());
                    for image in &document.images {
                        prop_assert!(check_trust(image).is_ok());
                    }
                }
                Err(outcome) => {
                    let rejected = matches!(outcome, Outcome::Rejected { .. });
                    prop_assert!(rejected);
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_rejected(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_text(&text);
        }
    }
}
