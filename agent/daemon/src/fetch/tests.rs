//! Against a scripted server: each connection gets one request and the next line of the script.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use proptest::prelude::*;
use rustls::pki_types::PrivateKeyDer;

use super::*;

/// What a request said, as far as the tests look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    path: String,
    range: Option<String>,
    if_match: Option<String>,
}

fn plain(path: &str) -> Seen {
    Seen { path: path.into(), range: None, if_match: None }
}

fn ranged(path: &str, from: u64) -> Seen {
    Seen { path: path.into(), range: Some(format!("bytes={from}-")), if_match: Some(TAG.into()) }
}

/// What the server does with one connection.
#[derive(Debug, Clone)]
enum Act {
    /// Serves the object, honouring Range; closes after this many bytes of body.
    Serve { cut: Option<usize> },
    /// Serves the whole object whatever is asked for.
    IgnoreRange,
    /// Serves with another tag.
    OtherTag,
    /// Serves without tag.
    NoTag,
    /// These bytes, as they are.
    Raw(String),
    /// Serves `0` bytes of body and then nothing until the client leaves.
    Stall(usize),
    /// Accepts the request and never answers.
    Silent,
}

const TAG: &str = "\"v1\"";
const WHOLE: Act = Act::Serve { cut: None };

struct Server {
    port: u16,
    requests: mpsc::Receiver<Seen>,
    scheme: &'static str,
}

impl Server {
    fn start(object: &[u8], script: Vec<Act>) -> Self {
        Self::with_tls(object, script, None)
    }

    fn with_tls(object: &[u8], script: Vec<Act>, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, requests) = mpsc::channel();
        let object = object.to_vec();
        let scheme = if tls.is_some() { "https" } else { "http" };
        thread::spawn(move || {
            for act in script {
                let Ok((stream, _)) = listener.accept() else { return };
                let stream = stream;
                if let Some(tls) = &tls {
                    let session = rustls::ServerConnection::new(Arc::clone(tls)).unwrap();
                    serve(rustls::StreamOwned::new(session, stream), &object, &act, &sender);
                } else {
                    serve(stream, &object, &act, &sender);
                }
            }
        });
        Self { port, requests, scheme }
    }

    fn url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.port)
    }

    fn seen(&self) -> Vec<Seen> {
        self.requests.try_iter().collect()
    }
}

fn serve(mut stream: impl Read + Write, object: &[u8], act: &Act, sender: &mpsc::Sender<Seen>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let header = |name: &str| {
        let line = head.lines().find(|l| l.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
        Some(line[name.len() + 1..].trim().to_owned())
    };
    assert_eq!(header("accept-encoding").as_deref(), Some("identity"));
    assert_eq!(header("cookie"), None);
    let seen = Seen {
        path: head.split(' ').nth(1).unwrap().to_owned(),
        range: header("range"),
        if_match: header("if-match"),
    };
    let _ = sender.send(seen.clone());
    let from = seen.range.as_deref().map(|r| r[6..].trim_end_matches('-').parse::<usize>().unwrap());
    let answer = |from: Option<usize>, tag: &str| {
        let tag = if tag.is_empty() { String::new() } else { format!("ETag: {tag}\r\n") };
        match from {
            Some(from) if from >= object.len() => (
                format!(
                    "HTTP/1.1 416 Nope\r\nContent-Range: bytes */{}\r\nContent-Length: 0\r\n\r\n",
                    object.len()
                ),
                &[][..],
            ),
            Some(from) => (
                format!(
                    "HTTP/1.1 206 Part\r\n{tag}Content-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\n\r\n",
                    object.len() - 1,
                    object.len(),
                    object.len() - from
                ),
                &object[from..],
            ),
            None => (format!("HTTP/1.1 200 OK\r\n{tag}Content-Length: {}\r\n\r\n", object.len()), object),
        }
    };
    let mut send = |(head, body): (String, &[u8]), cut: usize| {
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&body[..cut.min(body.len())]);
        let _ = stream.flush();
    };
    match act {
        Act::Serve { cut } => send(answer(from, TAG), cut.unwrap_or(usize::MAX)),
        Act::IgnoreRange => send(answer(None, TAG), usize::MAX),
        Act::OtherTag => send(answer(from, "\"v2\""), usize::MAX),
        Act::NoTag => send(answer(from, ""), usize::MAX),
        Act::Raw(text) => send((text.clone(), &[]), 0),
        Act::Stall(bytes) => {
            send(answer(from, TAG), *bytes);
            let _ = stream.read(&mut byte);
        }
        Act::Silent => {
            let _ = stream.read(&mut byte);
        }
    }
}

fn status(line: &str) -> Act {
    Act::Raw(format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n"))
}

fn config(roots: rustls::RootCertStore) -> HttpConfig {
    let clock = Clock::new(0);
    HttpConfig {
        tls: tls::downloads(roots, Arc::clone(&clock)).unwrap(),
        clock,
        proxy: None,
        connect_timeout: Duration::from_secs(20),
        read_timeout: Duration::from_secs(20),
        download_timeout: Duration::from_secs(60),
        retry_first: Duration::from_millis(1),
        retry_most: Duration::from_millis(2),
    }
}

fn source_with(config: HttpConfig, stop: Arc<AtomicBool>, renew: Renew) -> HttpSource {
    HttpSource::new(config, stop, renew).unwrap()
}

fn no_renewal() -> Renew {
    Box::new(|_| Refresh::Gone("the test has none".into()))
}

fn source() -> HttpSource {
    source_with(config(rustls::RootCertStore::empty()), Arc::default(), no_renewal())
}

fn read_all(opened: Opened) -> Result<Vec<u8>, FetchError> {
    let mut stream = opened.stream;
    let mut out = Vec::new();
    while let Some(bytes) = stream.next_bytes()? {
        assert!(!bytes.is_empty());
        out.extend_from_slice(&bytes);
    }
    assert_eq!(stream.next_bytes(), Ok(None), "the end stays the end");
    Ok(out)
}

fn fetch(source: &mut HttpSource, url: &str) -> Result<Vec<u8>, FetchError> {
    read_all(source.open("rootfs", url, 0, None)?)
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
}

#[test]
fn an_undisturbed_download_is_one_request_without_range() {
    let object = bytes(300_000);
    let server = Server::start(&object, vec![WHOLE]);
    let mut source = source();
    let opened = source.open("rootfs", &server.url("/image?X-Sig=secret"), 0, None).unwrap();
    assert_eq!((opened.total, opened.etag.as_deref()), (Some(300_000), Some(TAG)));
    assert_eq!(read_all(opened).unwrap(), object);
    assert_eq!(server.seen(), [plain("/image?X-Sig=secret")]);
}

#[test]
fn each_cut_goes_on_at_exactly_the_byte_where_it_was() {
    let object = bytes(1000);
    let server = Server::start(
        &object,
        vec![
            Act::Serve { cut: Some(100) },
            Act::Serve { cut: Some(0) },
            Act::Serve { cut: Some(250) },
            WHOLE,
        ],
    );
    assert_eq!(fetch(&mut source(), &server.url("/i")).unwrap(), object);
    assert_eq!(server.seen(), [plain("/i"), ranged("/i", 100), ranged("/i", 100), ranged("/i", 350)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_is_cut_the_bytes_are_those_of_the_object(cuts in prop::collection::vec(0usize..400, 0..6), from in 0u64..=1000) {
        let object = bytes(1000);
        let mut script: Vec<_> = cuts.iter().map(|c| Act::Serve { cut: Some(*c) }).collect();
        script.push(WHOLE);
        let server = Server::start(&object, script);
        let opened = source().open("rootfs", &server.url("/i"), from, Some(TAG)).unwrap();
        prop_assert_eq!(read_all(opened).unwrap(), &object[usize::try_from(from).unwrap()..]);
    }
}

#[test]
fn a_resume_at_the_end_of_the_object_is_an_empty_stream() {
    let server = Server::start(&bytes(10), vec![WHOLE]);
    let opened = source().open("rootfs", &server.url("/i"), 10, Some(TAG)).unwrap();
    assert_eq!(opened.total, Some(10));
    assert_eq!(read_all(opened).unwrap(), b"");
    assert_eq!(server.seen(), [ranged("/i", 10)]);
}

#[test]
fn a_resume_beyond_the_end_is_a_changed_object() {
    let server = Server::start(&bytes(10), vec![WHOLE]);
    let error = source().open("rootfs", &server.url("/i"), 11, Some(TAG)).unwrap_err();
    assert!(matches!(error, FetchError::Changed { .. }), "{error}");
}

#[test]
fn a_server_without_ranges_is_read_again_and_skipped() {
    let object = bytes(100_000);
    let server = Server::start(&object, vec![Act::Serve { cut: Some(70_000) }, Act::IgnoreRange]);
    assert_eq!(fetch(&mut source(), &server.url("/i")).unwrap(), object);
    assert_eq!(server.seen(), [plain("/i"), ranged("/i", 70_000)]);
}

#[test]
fn an_object_with_another_tag_or_none_is_changed_and_nothing_of_it_is_delivered() {
    for second in [Act::OtherTag, Act::NoTag, status("412 Changed")] {
        let server = Server::start(&bytes(1000), vec![Act::Serve { cut: Some(10) }, second.clone()]);
        let error = fetch(&mut source(), &server.url("/i?sig=secret")).unwrap_err();
        assert!(matches!(error, FetchError::Changed { .. }), "{second:?}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn an_object_that_never_had_a_tag_still_resumes() {
    let object = bytes(1000);
    let cut = Act::Raw(format!("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}", "\0"));
    let server = Server::start(&object, vec![cut, Act::NoTag]);
    assert_eq!(fetch(&mut source(), &server.url("/i")).unwrap(), object);
    assert_eq!(server.seen()[1], Seen { if_match: None, ..ranged("/i", 1) });
}

#[test]
fn chunked_bodies_without_length_end_where_they_end_and_a_torn_one_goes_on() {
    let head = format!("HTTP/1.1 200 OK\r\nETag: {TAG}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let server = Server::start(&[], vec![Act::Raw(format!("{head}5\r\nhello\r\n0\r\n\r\n"))]);
    let opened = source().open("rootfs", &server.url("/i"), 0, None).unwrap();
    assert_eq!(opened.total, None);
    assert_eq!(read_all(opened).unwrap(), b"hello");

    let server = Server::start(b"hello", vec![Act::Raw(format!("{head}3\r\nhel\r\n")), WHOLE]);
    assert_eq!(fetch(&mut source(), &server.url("/i")).unwrap(), b"hello");
    assert_eq!(server.seen(), [plain("/i"), ranged("/i", 3)]);
}

#[test]
fn lying_lengths_never_deliver_a_byte_too_many() {
    // Negative, absurd, contradictory: an answer that cannot be read is an outage like any other.
    let bad = |length: &str| Act::Raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nxxxxx"));
    let server = Server::start(
        b"hello",
        vec![bad("-5"), bad("99999999999999999999999"), bad("5\r\nContent-Length: 6"), WHOLE],
    );
    assert_eq!(fetch(&mut source(), &server.url("/i")).unwrap(), b"hello");

    let server = Server::start(b"hello", vec![bad("9223372036854775808")]);
    let error = fetch(&mut source(), &server.url("/i")).unwrap_err();
    assert!(matches!(error, FetchError::Rejected { .. }), "{error}");

    let long = "HTTP/1.1 206 P\r\nETag: \"v1\"\r\nContent-Range: bytes 2-4/5\r\nTransfer-Encoding: chunked\r\n\r\n\
                9\r\nlloXXXXXX\r\n0\r\n\r\n";
    let server = Server::start(b"hello", vec![Act::Serve { cut: Some(2) }, Act::Raw(long.into())]);
    let error = fetch(&mut source(), &server.url("/i")).unwrap_err();
    assert!(error.to_string().contains("more bytes than promised"), "{error}");
}

#[test]
fn missing_files_fail_at_once() {
    for line in ["404 Not Found", "410 Gone"] {
        let server = Server::start(&[], vec![status(line), WHOLE]);
        let error = fetch(&mut source(), &server.url("/i?sig=secret")).unwrap_err();
        assert!(error.to_string().contains(&line[..3]) && !error.to_string().contains("secret"), "{error}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[test]
fn outages_are_tried_again() {
    let script =
        vec![status("500 Oops"), status("429 Slow\r\nRetry-After: 0"), Act::Raw(String::new()), WHOLE];
    let server = Server::start(b"hello", script);
    assert_eq!(fetch(&mut source(), &server.url("/i")).unwrap(), b"hello");
    assert_eq!(server.seen().len(), 4);
}

#[test]
fn a_stalled_connection_is_given_up_and_the_download_goes_on() {
    let server = Server::start(&bytes(1000), vec![Act::Stall(10), Act::Silent, WHOLE]);
    let mut config = config(rustls::RootCertStore::empty());
    config.read_timeout = Duration::from_millis(30);
    let mut source = source_with(config, Arc::default(), no_renewal());
    assert_eq!(fetch(&mut source, &server.url("/i")).unwrap(), bytes(1000));
    assert_eq!(server.seen(), [plain("/i"), ranged("/i", 10), ranged("/i", 10)]);
}

#[test]
fn without_a_new_byte_the_download_ends_at_its_timeout() {
    let server = Server::start(&bytes(10), vec![Act::Serve { cut: Some(3) }]); // then nobody listens
    let mut config = config(rustls::RootCertStore::empty());
    config.download_timeout = Duration::from_millis(40);
    let mut source = source_with(config, Arc::default(), no_renewal());
    let error = fetch(&mut source, &server.url("/i?sig=secret")).unwrap_err();
    assert!(error.to_string().contains("no new byte"), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn an_expired_url_is_renewed_and_the_download_goes_on_at_its_byte() {
    let object = bytes(1000);
    let script = vec![Act::Serve { cut: Some(500) }, status("403 Expired"), WHOLE];
    let server = Server::start(&object, script);
    let fresh = server.url("/fresh?sig=2");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let renew: Renew = Box::new(move |slot| {
        log.lock().unwrap().push(slot.to_owned());
        Refresh::NewUrl(fresh.clone())
    });
    let mut source = source_with(config(rustls::RootCertStore::empty()), Arc::default(), renew);
    assert_eq!(fetch(&mut source, &server.url("/old")).unwrap(), object);
    assert_eq!(server.seen(), [plain("/old"), ranged("/old", 500), ranged("/fresh?sig=2", 500)]);
    assert_eq!(*asked.lock().unwrap(), ["rootfs"]);
}

#[test]
fn three_fresh_urls_without_a_new_byte_are_enough() {
    let mut script = vec![status("401 No"); 3];
    script.extend([
        Act::Serve { cut: Some(1) },
        status("403 No"),
        status("403 No"),
        status("400 No"),
        status("403 No"),
    ]);
    let server = Server::start(&bytes(1000), script);
    let url = server.url("/i");
    let again = url.clone();
    let renew: Renew = Box::new(move |_| Refresh::NewUrl(again.clone()));
    let mut source = source_with(config(rustls::RootCertStore::empty()), Arc::default(), renew);
    let error = fetch(&mut source, &url).unwrap_err();
    assert!(error.to_string().contains("3 fresh URLs"), "{error}");
    assert_eq!(server.seen().len(), 8, "the new byte in the middle began the count anew");
}

#[test]
fn a_renewal_may_end_the_download() {
    type Expected = fn(&FetchError) -> bool;
    let cases: [(Refresh, Expected); 3] = [
        (Refresh::Stop, |e| *e == FetchError::Stopped),
        (Refresh::Gone("the job was cancelled".into()), |e| e.to_string().contains("the job was cancelled")),
        (Refresh::NewUrl("ftp://x/y".into()), |e| matches!(e, FetchError::Rejected { .. })),
    ];
    for (answer, expected) in cases {
        let server = Server::start(&[], vec![status("403 No")]);
        let told = answer.clone();
        let renew: Renew = Box::new(move |_| told.clone());
        let mut source = source_with(config(rustls::RootCertStore::empty()), Arc::default(), renew);
        let error = fetch(&mut source, &server.url("/i")).unwrap_err();
        assert!(expected(&error), "{answer:?}: {error}");
    }
}

#[test]
fn the_stop_flag_ends_a_download_that_hangs_in_any_place() {
    for act in [Act::Stall(10), Act::Silent, status("503 Later\r\nRetry-After: 600")] {
        let server = Server::start(&bytes(1000), vec![act.clone()]);
        let stop = Arc::new(AtomicBool::new(false));
        let mut source = source_with(config(rustls::RootCertStore::empty()), Arc::clone(&stop), no_renewal());
        let url = server.url("/i");
        let download = thread::spawn(move || fetch(&mut source, &url));
        server.requests.recv_timeout(Duration::from_secs(30)).unwrap();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(download.join().unwrap(), Err(FetchError::Stopped), "{act:?}");
    }
}

#[test]
fn redirects_are_followed_five_times_and_no_further() {
    let hops = |n: usize| {
        let hop = |i| status(&format!("302 Found\r\nLocation: /hop{i}"));
        let mut script: Vec<_> = (1..=n).map(hop).collect();
        script.push(WHOLE);
        Server::start(b"hello", script)
    };
    let server = hops(5);
    assert_eq!(fetch(&mut source(), &server.url("/i")).unwrap(), b"hello");
    assert_eq!(server.seen().last(), Some(&plain("/hop5")));
    let server = hops(6);
    let error = fetch(&mut source(), &server.url("/i?sig=secret")).unwrap_err();
    assert!(error.to_string().contains("redirects") && !error.to_string().contains("secret"), "{error}");
    assert_eq!(server.seen().len(), 6);
}

#[test]
fn a_redirect_to_what_is_no_web_server_is_refused() {
    let server = Server::start(b"", vec![status("302 Found\r\nLocation: file:///etc/shadow")]);
    let error = fetch(&mut source(), &server.url("/i")).unwrap_err();
    assert!(error.to_string().contains("neither http nor https"), "{error}");
}

#[test]
fn a_server_gets_the_login_of_the_url_and_is_asked_by_its_name() {
    let listener = TcpListener::bind(("::1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let n = stream.read(&mut head).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        String::from_utf8_lossy(&head[..n]).into_owned()
    });
    let url = format!("http://me:pass%20word@[::1]:{port}/i?a=%20b#part");
    assert_eq!(fetch(&mut source(), &url).unwrap(), b"hello");
    let head = server.join().unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /i?a=%20b http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: [::1]:{port}\r\n")), "{head}");
    assert!(head.contains("\r\nauthorization: basic bwu6cgfzcyb3b3jk\r\n"), "{head}");
}

fn tls_server(object: &[u8], script: Vec<Act>) -> (Server, rustls::RootCertStore) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let chain = vec![made.cert.der().clone()];
    let roots = tls::roots(chain.clone(), "test").unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    (Server::with_tls(object, script, Some(Arc::new(config))), roots)
}

#[test]
fn https_works_and_never_falls_back_to_http() {
    let bait = Server::start(b"evil", vec![WHOLE]);
    let down = status(&format!("302 Found\r\nLocation: {}", bait.url("/i?sig=secret")));
    let (server, roots) = tls_server(b"hello", vec![WHOLE, down]);
    let mut source = source_with(config(roots), Arc::default(), no_renewal());
    assert_eq!(fetch(&mut source, &server.url("/i")).unwrap(), b"hello");
    let error = fetch(&mut source, &server.url("/i")).unwrap_err();
    assert!(error.to_string().contains("unprotected") && !error.to_string().contains("secret"), "{error}");
    assert_eq!(bait.seen(), []);
}

#[test]
fn an_untrusted_server_is_named_as_such() {
    let (server, _) = tls_server(b"hello", vec![WHOLE]);
    let (_, other_roots) = tls_server(&[], vec![]);
    let mut config = config(other_roots);
    config.download_timeout = Duration::ZERO;
    let mut source = source_with(config, Arc::default(), no_renewal());
    let error = fetch(&mut source, &server.url("/i")).unwrap_err();
    assert!(error.to_string().contains("update.ca"), "{error}");
}

#[test]
fn downloads_go_through_the_proxy_with_its_password() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let proxy = Url::parse(&format!("http://me:pass%20word@{}", listener.local_addr().unwrap())).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _): (TcpStream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let n = stream.read(&mut head).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        String::from_utf8_lossy(&head[..n]).to_ascii_lowercase()
    });
    let mut config = config(rustls::RootCertStore::empty());
    config.proxy = Some(proxy);
    let mut source = source_with(config, Arc::default(), no_renewal());
    assert_eq!(fetch(&mut source, "http://images.invalid/i").unwrap(), b"hello");
    let head = server.join().unwrap();
    assert!(head.starts_with("get http://images.invalid/i "), "{head}");
    // me:pass word
    assert!(head.contains("proxy-authorization: basic bwu6cgfzcyb3b3jk"), "{head}");
}

#[test]
fn other_schemes_are_rejected_before_any_traffic() {
    for url in
        ["ftp://h/x", "file:///etc/passwd", "s3://b/k", "x", "", "http://", "${aws:iot:s3-presigned-url:x}"]
    {
        let error = source().open("rootfs", url, 0, None).unwrap_err();
        assert!(matches!(error, FetchError::Rejected { .. }), "{url}: {error}");
    }
}
