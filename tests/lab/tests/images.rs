//! The image server with an HTTP client library: ranges, conditions, presigned URLs, faults.

mod common;

use std::io::Write as _;
use std::time::Duration;

use common::{LIMIT, tls};
use otandem_lab::{Access, HttpFault, JobSpec, Lab, LabConfig, Position, Rule, Scheme};
use reqwest::header::{CONTENT_RANGE, ETAG, IF_MATCH, IF_RANGE, RANGE};
use reqwest::{Client, Response, redirect};

/// A lab with one public object of a thousand bytes, and a client.
struct Bench {
    lab: Lab,
    client: Client,
    runtime: tokio::runtime::Runtime,
    bytes: Vec<u8>,
}

const OBJECT: &str = "bucket/image";

impl Bench {
    fn new() -> Self {
        Self::with_access(Access::Public)
    }

    fn with_access(access: Access) -> Self {
        let lab = Lab::start(LabConfig::default()).unwrap();
        let bytes: Vec<u8> = (0..1000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        lab.put_image(OBJECT, bytes.clone(), access);
        let client = Client::builder()
            .tls_backend_preconfigured(tls(lab.authority(), None))
            .redirect(redirect::Policy::limited(5))
            .no_proxy()
            .timeout(LIMIT)
            .build()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { lab, client, runtime, bytes }
    }

    /// GET of the object with headers.
    fn get(&self, headers: &[(reqwest::header::HeaderName, &str)]) -> Response {
        self.fetch(&self.lab.url(OBJECT, Scheme::Http), headers)
    }

    fn fetch(&self, url: &str, headers: &[(reqwest::header::HeaderName, &str)]) -> Response {
        let mut request = self.client.get(url);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        self.send(request).unwrap()
    }

    /// The library wants its runtime already when it makes the future.
    fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<Response> {
        self.runtime.block_on(async { request.send().await })
    }

    /// Bytes until the end, or until the connection was cut.
    fn body(&self, mut response: Response) -> (Vec<u8>, bool) {
        self.runtime.block_on(async {
            let mut body = Vec::new();
            loop {
                match response.chunk().await {
                    Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                    Ok(None) => return (body, true),
                    Err(_) => return (body, false),
                }
            }
        })
    }

    fn whole(&self, response: Response) -> Vec<u8> {
        let (body, complete) = self.body(response);
        assert!(complete, "cut");
        body
    }
}

fn header(response: &Response, name: reqwest::header::HeaderName) -> String {
    response.headers()[name].to_str().unwrap().to_owned()
}

#[test]
fn whole_and_ranged_bodies_are_the_bytes_and_are_counted() {
    let b = Bench::new();
    assert_eq!(b.whole(b.get(&[])), b.bytes);
    let part = b.get(&[(RANGE, "bytes=100-199")]);
    assert_eq!((part.status().as_u16(), header(&part, CONTENT_RANGE)), (206, "bytes 100-199/1000".into()));
    assert_eq!(b.whole(part), &b.bytes[100..200]);
    assert_eq!(b.whole(b.get(&[(RANGE, "bytes=-10")])), &b.bytes[990..]);
    let outside = b.get(&[(RANGE, "bytes=1000-")]);
    assert_eq!((outside.status().as_u16(), header(&outside, CONTENT_RANGE)), (416, "bytes */1000".into()));
    let count = b.lab.inspect(|lab| lab.counters.path(OBJECT));
    assert_eq!((count.requests, count.body_bytes), (4, 1110));
    assert_eq!((count.offsets, count.statuses), (vec![0, 100, 0, 1000], vec![200, 206, 206, 416]));
}

#[test]
fn conditions_hold_for_the_same_object_only() {
    let b = Bench::new();
    let etag = header(&b.get(&[]), ETAG);
    assert!(etag.starts_with('"'), "strong");
    assert_eq!(b.get(&[(IF_MATCH, &etag), (RANGE, "bytes=5-")]).status(), 206);
    assert_eq!(b.get(&[(IF_RANGE, &etag), (RANGE, "bytes=5-")]).status(), 206);
    b.lab.put_image(OBJECT, vec![1; 1000], Access::Public);
    assert_eq!(b.get(&[(IF_MATCH, &etag), (RANGE, "bytes=5-")]).status(), 412);
    let changed = b.get(&[(IF_RANGE, &etag), (RANGE, "bytes=5-")]);
    assert_eq!(changed.status(), 200);
    assert_ne!(header(&changed, ETAG), etag);
}

#[test]
fn head_tells_the_length_of_public_objects_and_is_no_get_for_signed_ones() {
    let b = Bench::new();
    let head = |url: &str| b.send(b.client.head(url)).unwrap();
    let response = head(&b.lab.url(OBJECT, Scheme::Http));
    assert_eq!(
        (response.status().as_u16(), header(&response, reqwest::header::CONTENT_LENGTH)),
        (200, "1000".into())
    );
    b.lab.put_image(OBJECT, vec![1], Access::Signed);
    assert_eq!(head(&b.lab.signed_url(OBJECT, Scheme::Http, Duration::from_secs(60))).status(), 403);
}

#[test]
fn signed_url_ends_by_the_lab_s_clock_and_a_fresh_one_resumes() {
    let b = Bench::with_access(Access::Signed);
    let sign = || b.lab.signed_url(OBJECT, Scheme::Http, Duration::from_secs(60));
    let url = sign();
    assert_eq!(b.fetch(&url, &[]).status(), 200);
    b.lab.advance(Duration::from_secs(60));
    let expired = b.fetch(&url, &[(RANGE, "bytes=10-")]);
    assert_eq!(expired.status(), 403);
    assert!(String::from_utf8(b.whole(expired)).unwrap().contains("<Message>Request has expired</Message>"));
    assert_eq!(b.whole(b.fetch(&sign(), &[(RANGE, "bytes=10-")])), &b.bytes[10..]);
    let forged = sign().replace("X-Amz-Expires=60", "X-Amz-Expires=600");
    let text = String::from_utf8(b.whole(b.fetch(&forged, &[]))).unwrap();
    assert!(text.contains("SignatureDoesNotMatch"), "{text}");
    assert_eq!(b.fetch(&b.lab.url(OBJECT, Scheme::Http), &[]).status(), 403, "unsigned");
    b.lab.remove_image(OBJECT);
    assert_eq!(b.fetch(&sign(), &[]).status(), 404);
}

#[test]
fn document_is_handed_out_with_a_url_that_works_each_time() {
    let b = Bench::with_access(Access::Signed);
    let document = format!(r#"{{"url":"{}"}}"#, b.lab.placeholder(OBJECT, Scheme::Https));
    b.lab.create_job(&JobSpec::new("j1", "dev", &document)).unwrap();
    let mut device = common::Client::connect(&b.lab, "dev");
    let mut url = || {
        let (_, answer) = device.ask("dev", "start-next", serde_json::json!({}));
        answer["execution"]["jobDocument"]["url"].as_str().unwrap().to_owned()
    };
    let first = url();
    assert!(first.starts_with("https://127.0.0.1:"));
    assert_eq!(b.whole(b.fetch(&first, &[])), b.bytes);
    b.lab.expire_urls();
    assert_eq!(b.fetch(&first, &[]).status(), 403);
    assert_eq!(b.whole(b.fetch(&url(), &[])), b.bytes);
}

#[test]
fn files_are_served_from_where_they_are() {
    let b = Bench::new();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&b.bytes).unwrap();
    // Sparse: nobody could read that whole in a test.
    file.as_file().set_len(8 << 30).unwrap();
    b.lab.put_file("big", file.path(), Access::Public).unwrap();
    let part = b.fetch(&b.lab.url("big", Scheme::Https), &[(RANGE, "bytes=0-1999")]);
    assert_eq!(header(&part, CONTENT_RANGE), "bytes 0-1999/8589934592");
    let body = b.whole(part);
    assert_eq!((&body[..1000], &body[1000..]), (&b.bytes[..], &[0; 1000][..]));
    let far = b.fetch(&b.lab.url("big", Scheme::Https), &[(RANGE, "bytes=8589934591-")]);
    assert_eq!(b.whole(far), [0]);
    assert!(b.lab.put_file("none", std::path::Path::new("/nonexistent"), Access::Public).is_err());
}

#[test]
fn cut_at_a_byte_of_the_object_lets_a_resume_pass() {
    let b = Bench::new();
    b.lab.fault(Rule::once(HttpFault::CutAt(Position::Object(400))).path(OBJECT));
    let (body, complete) = b.body(b.get(&[]));
    assert_eq!((body.len(), complete), (400, false));
    let (rest, complete) = b.body(b.get(&[(RANGE, "bytes=400-")]));
    assert!(complete);
    assert_eq!([body, rest].concat(), b.bytes);
}

#[test]
fn cut_in_each_body_is_survived_piece_by_piece() {
    let b = Bench::new();
    b.lab.fault(Rule::always(HttpFault::CutAt(Position::Body(300))));
    let mut body = Vec::new();
    while body.len() < 1000 {
        body.extend(b.body(b.get(&[(RANGE, &format!("bytes={}-", body.len()))])).0);
    }
    assert_eq!(body, b.bytes);
    assert_eq!(b.lab.inspect(|lab| lab.counters.path(OBJECT).offsets), [0, 300, 600, 900]);
}

#[test]
fn stalled_body_goes_on_when_it_is_released() {
    let b = Bench::new();
    b.lab.fault(Rule::once(HttpFault::StallAt(Position::Object(500))));
    let lab = b.lab.clone();
    let releaser = std::thread::spawn(move || {
        let half = lab.wait_for(|lab| lab.counters.path(OBJECT).body_bytes == 500, LIMIT);
        let stuck = lab.inspect(|lab| lab.counters.path(OBJECT).body_bytes);
        lab.release_stalls();
        half.map(|()| stuck)
    });
    assert_eq!(b.whole(b.get(&[])), b.bytes);
    assert_eq!(releaser.join().unwrap().unwrap(), 500);
}

#[test]
fn wrong_bytes_wrong_range_and_too_many_bytes_are_sent() {
    let b = Bench::new();
    b.lab.fault(Rule::once(HttpFault::WrongByteAt(Position::Object(7))));
    let body = b.whole(b.get(&[]));
    let differing: Vec<_> = (0..1000).filter(|i| body[*i] != b.bytes[*i]).collect();
    assert_eq!(differing, [7]);
    b.lab.fault(Rule::once(HttpFault::WrongContentRange(3)));
    assert_eq!(header(&b.get(&[(RANGE, "bytes=10-19")]), CONTENT_RANGE), "bytes 13-22/1000");
    b.lab.fault(Rule::once(HttpFault::OverLong(50)));
    let long = b.get(&[]);
    assert_eq!(long.content_length(), None);
    assert_eq!(b.whole(long).len(), 1050);
    assert_eq!(b.whole(b.get(&[])), b.bytes, "each happened once");
}

#[test]
fn url_expires_in_mid_body() {
    let b = Bench::with_access(Access::Signed);
    b.lab.fault(Rule::once(HttpFault::ExpireAt(Position::Object(600))));
    let sign = || b.lab.signed_url(OBJECT, Scheme::Http, Duration::from_secs(3600));
    let url = sign();
    assert_eq!(b.body(b.fetch(&url, &[])).0.len(), 600);
    assert_eq!(b.fetch(&url, &[(RANGE, "bytes=600-")]).status(), 403);
    assert_eq!(b.whole(b.fetch(&sign(), &[(RANGE, "bytes=600-")])), &b.bytes[600..]);
    b.lab.fault(Rule::always(HttpFault::ExpireAfter(Duration::from_secs(30))));
    let url = sign();
    assert_eq!(b.fetch(&url, &[]).status(), 200);
    b.lab.advance(Duration::from_secs(30));
    assert_eq!(b.fetch(&url, &[]).status(), 403);
}

#[test]
fn errors_and_ignored_conditions_follow_their_rules() {
    let b = Bench::new();
    b.lab.fault(Rule::always(HttpFault::ErrorEvery { every: 3, status: 500 }).path(OBJECT));
    let statuses: Vec<_> = (0..6).map(|_| b.get(&[]).status().as_u16()).collect();
    assert_eq!(statuses, [200, 200, 500, 200, 200, 500]);
    b.lab.clear_faults();
    let ranged = (RANGE, "bytes=5-");
    b.lab.fault(Rule::once(HttpFault::IgnoreRange));
    assert_eq!(b.whole(b.get(std::slice::from_ref(&ranged))), b.bytes);
    let old = header(&b.get(&[]), ETAG);
    b.lab.put_image(OBJECT, vec![9; 1000], Access::Public);
    b.lab.fault(Rule::once(HttpFault::IgnoreIfRange));
    let changed = b.get(&[ranged.clone(), (IF_RANGE, &old)]);
    assert_eq!(changed.status(), 206);
    assert_ne!(header(&changed, ETAG), old, "the new object's tag tells");
    b.lab.fault(Rule::once(HttpFault::IgnoreIfMatch));
    assert_eq!(b.get(&[ranged.clone(), (IF_MATCH, &old)]).status(), 206);
    assert_eq!(b.get(&[ranged, (IF_MATCH, &old)]).status(), 412);
}

#[test]
fn redirects_lead_to_the_object_or_on_and_on() {
    let b = Bench::with_access(Access::Signed);
    b.lab.fault(Rule::once(HttpFault::Redirect { hops: 3, to: Scheme::Http }));
    let response = b.fetch(&b.lab.signed_url(OBJECT, Scheme::Https, Duration::from_secs(60)), &[]);
    assert_eq!(response.url().scheme(), "http", "downgraded by the last hop");
    assert_eq!(b.whole(response), b.bytes);
    b.lab.fault(Rule::once(HttpFault::Redirect { hops: 6, to: Scheme::Https }));
    let url = b.lab.signed_url(OBJECT, Scheme::Https, Duration::from_secs(60));
    assert!(b.send(b.client.get(url)).unwrap_err().is_redirect());
}

#[test]
fn slow_body_is_whole() {
    let b = Bench::new();
    b.lab.fault(Rule::once(HttpFault::Slow(10_000)));
    assert_eq!(b.whole(b.get(&[])), b.bytes);
}

#[test]
fn other_methods_and_nonsense_are_answered() {
    let b = Bench::new();
    let url = b.lab.url(OBJECT, Scheme::Http);
    assert_eq!(b.send(b.client.put(&url).body("x")).unwrap().status(), 405);
    let address = b.lab.origin(Scheme::Http).replace("http://", "");
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.write_all(b"nonsense\r\n\r\n").unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut socket, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[test]
fn one_connection_serves_request_after_request() {
    let b = Bench::new();
    let mut socket = std::net::TcpStream::connect(b.lab.origin(Scheme::Http).replace("http://", "")).unwrap();
    let ask = |range: &str, more: &str| {
        format!("GET /{OBJECT} HTTP/1.1\r\nHost: x\r\nRange: bytes={range}\r\n{more}\r\n")
    };
    // Both at once: the second waits in the buffer while the first is served.
    socket
        .write_all(format!("{}{}", ask("65-66", ""), ask("67-68", "Connection: close\r\n")).as_bytes())
        .unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut socket, &mut answer).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 206").count(), 2);
    assert!(answer.contains("\r\n\r\nABHTTP/1.1") && answer.ends_with("\r\n\r\nCD"), "{answer}");
}
