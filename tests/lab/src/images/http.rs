//! Requests of the image server as text: head and range.

/// Longest request head, bytes.
pub const MAX_HEAD: usize = 16 * 1024;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;

/// A request without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// GET, HEAD, ...
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// Range.
    pub range: Option<String>,
    /// If-Range.
    pub if_range: Option<String>,
    /// If-Match.
    pub if_match: Option<String>,
    /// The client wants no further request on this connection, or its request has a body, which is not read here.
    pub close: bool,
}

/// What the bytes received so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// Not yet a whole head.
    Partial,
    /// A request and the length of its head.
    Complete(Request, usize),
    /// Not HTTP, or too large.
    Bad,
}

/// Reads the head of a request.
#[must_use]
pub fn read_head(bytes: &[u8]) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Head::Partial,
        _ => return Head::Bad,
    };
    let header = |name: &str| {
        let found = parsed.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok().map(|v| v.trim().to_owned())
    };
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else { return Head::Bad };
    let asks_close = header("connection").is_some_and(|c| c.to_ascii_lowercase().contains("close"));
    let has_body =
        header("content-length").is_some_and(|l| l != "0") || header("transfer-encoding").is_some();
    let request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        range: header("range"),
        if_range: header("if-range"),
        if_match: header("if-match"),
        close: asks_close || has_body || parsed.version == Some(0),
    };
    Head::Complete(request, length)
}

/// What a Range header asks of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// No range, several, or nothing we understand: the whole object.
    Whole,
    /// First byte and the byte after the last.
    Part(u64, u64),
    /// Nothing of the object: 416.
    Outside,
}

/// Resolves a Range header against the length of the object.
#[must_use]
pub fn resolve_range(header: &str, length: u64) -> Range {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')) else {
        return Range::Whole;
    };
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    match (first, last) {
        ("", suffix) => match number(suffix) {
            Some(0) => Range::Outside,
            Some(_) if length == 0 => Range::Outside,
            Some(n) => Range::Part(length.saturating_sub(n), length),
            None => Range::Whole,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), _) if last.is_empty() => part(first, length, length),
            (Some(first), Some(last)) if first <= last => {
                part(first, last.saturating_add(1).min(length), length)
            }
            _ => Range::Whole,
        },
    }
}

fn part(first: u64, end: u64, length: u64) -> Range {
    if first < length { Range::Part(first, end) } else { Range::Outside }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_those_of_the_standard() {
        for (header, expected) in [
            ("bytes=0-0", Range::Part(0, 1)),
            ("bytes=5-", Range::Part(5, 10)),
            ("bytes=5-99", Range::Part(5, 10)),
            ("bytes=-3", Range::Part(7, 10)),
            ("bytes=-30", Range::Part(0, 10)),
            ("bytes=10-", Range::Outside),
            ("bytes=-0", Range::Outside),
            ("bytes=5-4", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("lines=0-1", Range::Whole),
            ("bytes=", Range::Whole),
            ("bytes=-", Range::Whole),
        ] {
            assert_eq!(resolve_range(header, 10), expected, "{header}");
        }
        assert_eq!(resolve_range("bytes=-1", 0), Range::Outside);
    }

    #[test]
    fn head_is_read_when_it_is_whole() {
        let text = b"GET /b/k?x=1 HTTP/1.1\r\nHost: a\r\nrange: bytes=1-\r\nIf-Match: \"e\"\r\n\r\nrest";
        assert_eq!(read_head(&text[..30]), Head::Partial);
        let Head::Complete(request, length) = read_head(text) else { panic!("not read") };
        assert_eq!(length, text.len() - 4);
        assert_eq!((request.target.as_str(), request.range.as_deref()), ("/b/k?x=1", Some("bytes=1-")));
        assert_eq!((request.if_match.as_deref(), request.close), (Some("\"e\""), false));
        assert_eq!(read_head(b"\x16\x03\x01 not http\r\n\r\n"), Head::Bad);
    }

    proptest! {
        #[test]
        fn any_range_stays_within_the_object(header in "(bytes=)?[0-9,-]{0,30}", length in any::<u64>()) {
            if let Range::Part(first, end) = resolve_range(&header, length) {
                prop_assert!(first < end && end <= length);
            }
        }

        #[test]
        fn any_head_is_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_head(&bytes);
        }
    }
}
