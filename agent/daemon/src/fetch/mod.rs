//! Images over HTTP and HTTPS, for the installer's receive thread: a blocking source that resumes itself.
//!
//! The installer asks for bytes and gets them in order; cuts, stalls, server errors and expired URLs happen in here.
//! An error that comes out is final. What each answer of a server means is the table in `answer.rs`.
//!
//! The source has a runtime of its own, so it must not be called from an asynchronous task. The stop flag is looked
//! at every 100 ms, also while nothing arrives.

mod answer;
mod client;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::{self, HeaderName};
use otandem_core::image::source_for_log;
use otandem_device::install::{ByteStream, FetchError};
use tokio::runtime::{self, Runtime};
use url::Url;

use crate::backoff::Backoff;
use crate::cloud::tls::{self, Clock};
use answer::{Answer, Object, Verdict, judge};
use client::{Client, GetError, Response};

/// How often the stop flag is looked at.
const STOP_POLL: Duration = Duration::from_millis(100);
/// Fresh URLs in a row that gave no new byte.
const MAX_RENEWALS: u32 = 3;

/// The answer to the wish for a fresh URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refresh {
    /// Go on with this one.
    NewUrl(String),
    /// There is none and will be none: the job ended, or changed, or has no way to renew.
    Gone(String),
    /// The caller wants the download to end.
    Stop,
}

/// Asks for a fresh URL of the image for the named slot. May block; must return soon once the stop flag is set.
pub type Renew = Box<dyn FnMut(&str) -> Refresh + Send>;

/// How to reach servers.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// From [`tls::downloads`].
    pub tls: rustls::ClientConfig,
    /// The same clock as in `tls`, for clear errors.
    pub clock: Arc<Clock>,
    /// HTTP proxy, with user and password if it needs them.
    pub proxy: Option<Url>,
    /// Longest time to open a connection.
    pub connect_timeout: Duration,
    /// Longest silence on a connection.
    pub read_timeout: Duration,
    /// Longest time without a new byte, all attempts together.
    pub download_timeout: Duration,
    /// First wait after a failure, at most; the following ones double.
    pub retry_first: Duration,
    /// Longest wait after a failure.
    pub retry_most: Duration,
}

/// The HTTP(S) source of one update.
pub struct HttpSource {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    config: HttpConfig,
    stop: Arc<AtomicBool>,
    renew: Mutex<Renew>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The plain drop would panic when the last owner is an asynchronous task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An open object.
#[derive(Debug)]
pub struct Opened {
    /// Bytes of the whole object, if the server tells.
    pub total: Option<u64>,
    /// Its `ETag`, as the server wrote it.
    pub etag: Option<String>,
    /// Its bytes from the wanted offset on.
    pub stream: HttpStream,
}

impl HttpSource {
    /// A source that ends when `stop` is set and asks `renew` when a URL has expired.
    ///
    /// # Errors
    /// The client or its runtime cannot be made.
    pub fn new(config: HttpConfig, stop: Arc<AtomicBool>, renew: Renew) -> Result<Self, FetchError> {
        let broken =
            |what: String| FetchError::Failed { reason: format!("downloads cannot be set up: {what}") };
        let client = Client::new(&config);
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build().map_err(|e| broken(e.to_string()))?;
        let shared = Shared { client, config, stop, renew: Mutex::new(renew), runtime: Some(runtime) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Opens the image for `slot` at `url`, from byte `from` on. With `etag`, only the object that has it.
    ///
    /// # Errors
    /// Final: see [`FetchError`].
    pub fn open(
        &mut self,
        slot: &str,
        url: &str,
        from: u64,
        etag: Option<&str>,
    ) -> Result<Opened, FetchError> {
        let mut stream = HttpStream {
            url: checked(url)?,
            slot: slot.to_owned(),
            object: Object { etag: etag.map(str::to_owned), ..Object::default() },
            position: from,
            body: None,
            ended: false,
            renewals: 0,
            backoff: Backoff::new(self.shared.config.retry_first, self.shared.config.retry_most),
            last_byte: Instant::now(),
            shared: Arc::clone(&self.shared),
        };
        stream.connect()?;
        Ok(Opened { total: stream.object.total, etag: stream.object.etag.clone(), stream })
    }
}

/// The bytes of an object in order, whatever happens to the connections.
pub struct HttpStream {
    shared: Arc<Shared>,
    url: Url,
    slot: String,
    object: Object,
    /// Bytes of the object that the caller has.
    position: u64,
    body: Option<Body>,
    ended: bool,
    renewals: u32,
    backoff: Backoff,
    last_byte: Instant,
}

impl std::fmt::Debug for HttpStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpStream").field("position", &self.position).finish_non_exhaustive()
    }
}

struct Body {
    response: Response,
    /// Bytes to leave out first.
    skip: u64,
    /// Bytes to come after them, if known.
    left: Option<u64>,
}

impl HttpStream {
    /// The next bytes; `None` at the end of the object.
    ///
    /// # Errors
    /// Final: see [`FetchError`].
    pub fn next_bytes(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            if self.shared.stop.load(Ordering::Relaxed) {
                return Err(FetchError::Stopped);
            }
            if self.ended || self.object.total == Some(self.position) {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                self.connect()?;
                continue;
            };
            match self.shared.until_stopped(body.response.chunk())? {
                Ok(Some(bytes)) => {
                    if let Some(bytes) = self.take(bytes)? {
                        return Ok(Some(bytes));
                    }
                }
                Ok(None) => self.body_ended()?,
                Err(e) => {
                    let reason = self.shared.in_words(e);
                    self.failed(&format!("the connection broke at byte {}: {reason}", self.position), None)?;
                }
            }
        }
    }

    /// Accounts for received bytes; `None` if all of them were to be left out.
    fn take(&mut self, mut bytes: Bytes) -> Result<Option<Bytes>, FetchError> {
        let Some(body) = &mut self.body else { return Ok(None) };
        let skipped = body.skip.min(bytes.len() as u64);
        body.skip -= skipped;
        let _ = bytes.split_to(usize::try_from(skipped).unwrap_or(bytes.len()));
        if bytes.is_empty() {
            return Ok(None);
        }
        let count = bytes.len() as u64;
        if let Some(left) = &mut body.left {
            *left = left
                .checked_sub(count)
                .ok_or_else(|| self.shared.gave_up(&self.url, "more bytes than promised"))?;
        }
        self.position += count;
        self.renewals = 0;
        self.backoff.reset();
        self.last_byte = Instant::now();
        Ok(Some(bytes))
    }

    fn body_ended(&mut self) -> Result<(), FetchError> {
        let Some(body) = self.body.take() else { return Ok(()) };
        match (body.left, self.object.total) {
            // Neither length nor total was promised: the end of the body is the end of the object.
            (None, None) if body.skip == 0 => {
                self.ended = true;
                Ok(())
            }
            // A part that ends where it should, before the end of the object: go on with the next part.
            (Some(0), Some(_)) => Ok(()),
            (Some(0), None) => {
                self.ended = true;
                Ok(())
            }
            _ => self.failed(&format!("the answer ended early, at byte {}", self.position), None),
        }
    }

    /// Requests the bytes from here on until there is a body, or the end, or no hope.
    fn connect(&mut self) -> Result<(), FetchError> {
        loop {
            let headers = self.headers();
            let response = match self.shared.until_stopped(self.shared.client.get(&self.url, &headers))? {
                Ok(response) => response,
                Err(GetError::Final(why)) => {
                    return Err(self.shared.gave_up(&self.url, &why.to_string()));
                }
                Err(e) => {
                    let reason = self.shared.in_words(e);
                    self.failed(&reason, None)?;
                    continue;
                }
            };
            match judge(self.position, &self.object, &read_head(&response)) {
                Verdict::Body { skip, left, object } => {
                    if self.position > 0 {
                        tracing::info!(
                            from = self.position,
                            skip,
                            "download goes on: {}",
                            source_for_log(self.url.as_str())
                        );
                    }
                    self.object = object;
                    self.body = Some(Body { response, skip, left });
                    return Ok(());
                }
                Verdict::End(object) => {
                    self.object = object;
                    self.ended = true;
                    return Ok(());
                }
                Verdict::Renew(reason) => self.renew(&reason)?,
                Verdict::Retry(reason, after) => self.failed(&reason, after)?,
                Verdict::Final(e) => return Err(self.shared.with_url(&self.url, e)),
            }
        }
    }

    fn headers(&self) -> Vec<(HeaderName, String)> {
        let mut headers = vec![(header::ACCEPT_ENCODING, "identity".to_owned())];
        if self.position > 0 {
            headers.push((header::RANGE, format!("bytes={}-", self.position)));
            // If-Match, not If-Range: many servers ignore the latter. A weak tag never matches by definition.
            let tag = self.object.etag.clone().filter(|tag| !tag.starts_with("W/"));
            headers.extend(tag.map(|tag| (header::IF_MATCH, tag)));
        }
        headers
    }

    fn renew(&mut self, reason: &str) -> Result<(), FetchError> {
        if self.renewals == MAX_RENEWALS {
            let reason = format!("{reason} to {MAX_RENEWALS} fresh URLs in a row");
            return Err(self.shared.gave_up(&self.url, &reason));
        }
        self.renewals += 1;
        tracing::info!("{reason}; asking for a fresh URL: {}", source_for_log(self.url.as_str()));
        let answer = {
            let mut renew = self.shared.renew.lock().unwrap_or_else(PoisonError::into_inner);
            renew(&self.slot)
        };
        match answer {
            Refresh::NewUrl(url) => {
                self.url = checked(&url)?;
                Ok(())
            }
            Refresh::Gone(why) => {
                Err(self.shared.gave_up(&self.url, &format!("{reason}, and there is no fresh URL: {why}")))
            }
            Refresh::Stop => Err(FetchError::Stopped),
        }
    }

    /// Counts a failure and waits, unless it has lasted too long.
    fn failed(&mut self, reason: &str, at_least: Option<Duration>) -> Result<(), FetchError> {
        self.body = None;
        let limit = self.shared.config.download_timeout;
        let Some(left) = limit.checked_sub(self.last_byte.elapsed()).filter(|d| !d.is_zero()) else {
            let reason = format!("no new byte for {} s: {reason}", limit.as_secs());
            return Err(self.shared.gave_up(&self.url, &reason));
        };
        let wait = self.backoff.wait().max(at_least.unwrap_or_default()).min(left);
        tracing::warn!(
            "{reason}; next attempt in {:.1} s: {}",
            wait.as_secs_f32(),
            source_for_log(self.url.as_str())
        );
        self.shared.until_stopped(async { tokio::time::sleep(wait).await })
    }
}

impl Shared {
    /// Runs `work` to its end unless the stop flag is set.
    fn until_stopped<F: Future>(&self, work: F) -> Result<F::Output, FetchError> {
        let Some(runtime) = &self.runtime else { return Err(FetchError::Stopped) };
        runtime.block_on(async {
            tokio::pin!(work);
            loop {
                tokio::select! {
                    biased;
                    out = &mut work => return Ok(out),
                    () = tokio::time::sleep(STOP_POLL) => {
                        if self.stop.load(Ordering::Relaxed) {
                            return Err(FetchError::Stopped);
                        }
                    }
                }
            }
        })
    }

    fn in_words(&self, error: GetError) -> String {
        match error {
            GetError::Final(why) => why.to_string(),
            GetError::Passing(why) => {
                tls::explain(&*why, &self.config.clock).unwrap_or_else(|| tls::chain(&*why))
            }
        }
    }

    fn gave_up(&self, url: &Url, reason: &str) -> FetchError {
        FetchError::Failed { reason: format!("{}: {reason}", source_for_log(url.as_str())) }
    }

    fn with_url(&self, url: &Url, error: FetchError) -> FetchError {
        let named = |reason: String| format!("{}: {reason}", source_for_log(url.as_str()));
        match error {
            FetchError::Stopped => FetchError::Stopped,
            FetchError::Failed { reason } => FetchError::Failed { reason: named(reason) },
            FetchError::Rejected { reason } => FetchError::Rejected { reason: named(reason) },
            FetchError::Changed { reason } => FetchError::Changed { reason: named(reason) },
        }
    }
}

fn checked(text: &str) -> Result<Url, FetchError> {
    let bad = |why: &str| FetchError::Rejected { reason: format!("{}: {why}", source_for_log(text)) };
    let url = Url::parse(text).map_err(|e| bad(&format!("not a URL: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("only http and https URLs can be downloaded"));
    }
    Ok(url)
}

fn read_head(response: &Response) -> Answer {
    let text = |name: HeaderName| response.headers.get(name)?.to_str().ok().map(str::to_owned);
    Answer {
        status: response.status.as_u16(),
        length: response.length(),
        content_range: text(header::CONTENT_RANGE),
        etag: text(header::ETAG),
        modified: text(header::LAST_MODIFIED),
        retry_after: text(header::RETRY_AFTER),
    }
}

impl ByteStream for HttpStream {
    fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        self.next_bytes()
    }
}
