//! What a request gets: status, headers, and which bytes go wrong on the way.

use std::sync::Arc;
use std::time::Duration;

use super::http::{Range, Request, resolve_range};
use super::sign::{Refusal, decode, encode};
use super::{Access, Images, Object, Scheme};
use crate::faults::{Faults, HttpFault, Position};

/// Where a chain of redirects stands is part of the path: `/_hop/<left>/<last scheme>/<object>`.
const HOP: &str = "_hop/";
/// Marks the URL at the end of a chain of redirects, which is not redirected again.
const ARRIVED: &str = "X-Lab-Arrived=1";

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
}

/// What follows the headers.
#[derive(Debug)]
pub(crate) enum Body {
    /// So many bytes are announced and, as for HEAD, none comes.
    Announced(u64),
    /// A text.
    Text(String),
    /// Part of an object.
    Part(Part),
}

/// A part of an object and its faults; positions are bytes of the object.
#[derive(Debug)]
pub(crate) struct Part {
    pub object: Arc<Object>,
    pub start: u64,
    pub end: u64,
    /// Bytes that come after the end, for bodies of unannounced length.
    pub extra: u64,
    pub cut: Option<(u64, Cut)>,
    pub stall: Option<u64>,
    pub wrong: Vec<u64>,
    /// Bytes per second.
    pub rate: Option<u64>,
}

/// What else a cut does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nothing.
    Only,
    /// All URLs expire.
    AndExpire,
}

/// An answer and what the counters say of it.
pub(crate) struct Planned {
    pub response: Response,
    /// The object that was meant.
    pub path: String,
    /// First byte that was asked for.
    pub offset: u64,
}

/// Decides about one request.
pub(crate) fn plan(
    images: &Images,
    faults: &mut Faults,
    now: Duration,
    scheme: Scheme,
    request: &Request,
) -> Planned {
    let target = request.target.strip_prefix('/').unwrap_or(&request.target);
    let (raw, query) = target.split_once('?').unwrap_or((target, ""));
    let path = decode(raw);
    if let Some(rest) = path.strip_prefix(HOP) {
        let response = next_hop(images, scheme, rest, query);
        return Planned { response, path, offset: 0 };
    }
    let offset = request.range.as_deref().and_then(first_byte).unwrap_or(0);
    let response = answer(images, faults, now, scheme, request, &path, query);
    Planned { response, path, offset }
}

fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.split_once('-')?.0.parse().ok()
}

fn answer(
    images: &Images,
    faults: &mut Faults,
    now: Duration,
    scheme: Scheme,
    request: &Request,
    path: &str,
    query: &str,
) -> Response {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return error(405, "MethodNotAllowed", "The specified method is not allowed against this resource.");
    }
    if !query.contains(ARRIVED) {
        let redirect = faults.http(path, |f| matches!(f, HttpFault::Redirect { .. }));
        if let Some(HttpFault::Redirect { hops, to }) = redirect.first() {
            return hop(images, scheme, *hops, *to, path, query);
        }
    }
    let failure = faults.http(path, |f| matches!(f, HttpFault::ErrorEvery { .. }));
    if let Some(HttpFault::ErrorEvery { status, .. }) = failure.first() {
        return error(*status, "InternalError", "We encountered an internal error. Please try again.");
    }
    let object = images.get(path);
    if object.as_ref().is_none_or(|o| o.access == Access::Signed) {
        match images.signer.check(&request.method, path, query, now) {
            Err(refusal) => return refuse(refusal),
            Ok(age) => {
                let late = |f: &HttpFault| matches!(f, HttpFault::ExpireAfter(limit) if age >= *limit);
                if !faults.http(path, late).is_empty() {
                    return refuse(Refusal::Expired);
                }
            }
        }
    }
    let Some(object) = object else {
        return error(404, "NoSuchKey", "The specified key does not exist.");
    };
    serve(object, faults, request, path)
}

/// The object is there and may be fetched.
fn serve(object: Arc<Object>, faults: &mut Faults, request: &Request, path: &str) -> Response {
    let mut happens = |fault: HttpFault| !faults.http(path, |f| *f == fault).is_empty();
    let length = object.len();
    let mut headers = vec![("ETag", object.etag.clone()), ("Accept-Ranges", "bytes".to_owned())];
    headers.push(("Content-Type", "application/octet-stream".to_owned()));
    if let Some(wanted) = &request.if_match {
        let matches = wanted == "*" || wanted.split(',').any(|tag| tag.trim() == object.etag);
        if !matches && !happens(HttpFault::IgnoreIfMatch) {
            return error(
                412,
                "PreconditionFailed",
                "At least one of the pre-conditions you specified did not hold",
            );
        }
    }
    let asked = request.range.as_deref().filter(|_| request.method == "GET");
    let mut range = asked.map_or(Range::Whole, |header| resolve_range(header, length));
    if range != Range::Whole {
        let other_object = request.if_range.as_ref().is_some_and(|tag| *tag != object.etag);
        if (other_object && !happens(HttpFault::IgnoreIfRange)) || happens(HttpFault::IgnoreRange) {
            range = Range::Whole;
        }
    }
    let (status, start, end) = match range {
        Range::Whole => (200, 0, length),
        Range::Part(start, end) => (206, start, end),
        Range::Outside => {
            let mut response = error(416, "InvalidRange", "The requested range is not satisfiable");
            response.headers.push(("Content-Range", format!("bytes */{length}")));
            return response;
        }
    };
    if status == 206 {
        let wrong = faults.http(path, |f| matches!(f, HttpFault::WrongContentRange(_)));
        let shift =
            wrong.first().map_or(0, |f| if let HttpFault::WrongContentRange(by) = f { *by } else { 0 });
        headers.push(("Content-Range", format!("bytes {}-{}/{length}", start + shift, end - 1 + shift)));
    }
    let body = if request.method == "HEAD" {
        Body::Announced(length)
    } else {
        Body::Part(with_faults(object, start, end, faults, path))
    };
    Response { status, headers, body }
}

fn with_faults(object: Arc<Object>, start: u64, end: u64, faults: &mut Faults, path: &str) -> Part {
    let place = |position: Position| match position {
        Position::Object(n) => n,
        Position::Body(n) => start.saturating_add(n),
    };
    let within = |position: Position| (start..end).contains(&place(position));
    let hit = faults.http(path, |f| match f {
        HttpFault::CutAt(p) | HttpFault::StallAt(p) | HttpFault::WrongByteAt(p) | HttpFault::ExpireAt(p) => {
            within(*p)
        }
        HttpFault::Slow(_) | HttpFault::OverLong(_) => true,
        _ => false,
    });
    let mut part =
        Part { object, start, end, extra: 0, cut: None, stall: None, wrong: Vec::new(), rate: None };
    for fault in hit {
        match fault {
            HttpFault::CutAt(p) => part.cut = Some((place(p), Cut::Only)),
            HttpFault::ExpireAt(p) => part.cut = Some((place(p), Cut::AndExpire)),
            HttpFault::StallAt(p) => part.stall = Some(place(p)),
            HttpFault::WrongByteAt(p) => part.wrong.push(place(p)),
            HttpFault::Slow(rate) => part.rate = Some(rate.max(1)),
            HttpFault::OverLong(extra) => part.extra = extra,
            _ => {}
        }
    }
    part
}

/// The first or next redirect of a chain.
fn hop(images: &Images, scheme: Scheme, left: u32, last: Scheme, path: &str, query: &str) -> Response {
    let path = encode(path);
    let location = if left <= 1 {
        let joint = if query.is_empty() { "" } else { "&" };
        format!("{}/{path}?{query}{joint}{ARRIVED}", images.origin(last))
    } else {
        format!("{}/{HOP}{}/{}/{path}?{query}", images.origin(scheme), left - 1, last.name())
    };
    Response { status: 302, headers: vec![("Location", location)], body: Body::Text(String::new()) }
}

fn next_hop(images: &Images, scheme: Scheme, rest: &str, query: &str) -> Response {
    let mut parts = rest.splitn(3, '/');
    let (left, last, path) = (parts.next(), parts.next(), parts.next());
    let last = match last {
        Some("https") => Scheme::Https,
        _ => Scheme::Http,
    };
    match (left.and_then(|n| n.parse().ok()), path) {
        (Some(left), Some(path)) => hop(images, scheme, left, last, path, query),
        _ => error(404, "NoSuchKey", "The specified key does not exist."),
    }
}

fn refuse(refusal: Refusal) -> Response {
    match refusal {
        Refusal::Unsigned => error(403, "AccessDenied", "Access Denied"),
        Refusal::Mismatch => error(
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided.",
        ),
        Refusal::Expired => error(403, "AccessDenied", "Request has expired"),
    }
}

fn error(status: u16, code: &str, message: &str) -> Response {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    Response { status, headers: vec![("Content-Type", "application/xml".to_owned())], body: Body::Text(text) }
}
