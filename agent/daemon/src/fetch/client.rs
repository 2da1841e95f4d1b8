//! One GET over a connection of its own: http or https, straight or through the proxy, redirects followed.
//!
//! HTTP itself is hyper's. A download is one long answer, so connections are not kept for a next request.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use url::{Position, Url};

use super::HttpConfig;
use crate::cloud::dial::{self, dial};

const MAX_REDIRECTS: usize = 5;
const USER_AGENT: &str = concat!("otandem/", env!("CARGO_PKG_VERSION"));

/// Why there is no answer.
pub(super) enum GetError {
    /// It would be the same next time.
    Final(Refusal),
    /// It may pass.
    Passing(Box<dyn StdError + Send + Sync>),
}

/// What is not done, whoever asks for it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("more than {MAX_REDIRECTS} redirects")]
    TooMany,
    #[error("the server redirects from https to {0}, which would be unprotected")]
    Downgrade(String),
    #[error("the server redirects to {0}, which is neither http nor https")]
    Scheme(String),
    #[error("the URL cannot be asked for: {0}")]
    Url(String),
}

/// Nothing came in time.
#[derive(Debug, thiserror::Error)]
#[error("{what} within {} s", limit.as_secs())]
struct TooLate {
    what: &'static str,
    limit: Duration,
}

impl GetError {
    fn passing(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Passing(error.into())
    }

    fn url(why: impl ToString) -> Self {
        Self::Final(Refusal::Url(why.to_string()))
    }
}

/// How requests are made.
pub(super) struct Client {
    tls: TlsConnector,
    proxy: Option<Url>,
    connect_timeout: Duration,
    read_timeout: Duration,
}

/// The head of an answer, and its body as it comes.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Incoming,
    read_timeout: Duration,
    _connection: Connection,
}

/// The task that moves the bytes; it ends with whoever wants them.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Client {
    pub(super) fn new(config: &HttpConfig) -> Self {
        Self {
            tls: TlsConnector::from(Arc::new(config.tls.clone())),
            proxy: config.proxy.clone(),
            connect_timeout: config.connect_timeout,
            read_timeout: config.read_timeout,
        }
    }

    /// The answer to a GET of `url`, or of where its server sends us. To be called on a runtime.
    pub(super) async fn get(
        &self,
        url: &Url,
        headers: &[(HeaderName, String)],
    ) -> Result<Response, GetError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.once(&url, headers).await?;
            match response.leads_to(&url)? {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(GetError::Final(Refusal::TooMany))
    }

    async fn once(&self, url: &Url, headers: &[(HeaderName, String)]) -> Result<Response, GetError> {
        let request = self.request(url, headers)?;
        let what = "the connection was not there";
        let stream = in_time(self.connect_timeout, what, self.connect(url)).await??;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(GetError::passing)?;
        // What becomes of it is seen at the body.
        let connection = Connection(tokio::spawn(async { drop(connection.await) }).abort_handle());
        let answer = in_time(self.read_timeout, "no answer came", sender.send_request(request)).await?;
        let (head, body) = answer.map_err(GetError::passing)?.into_parts();
        let (status, headers, read_timeout) = (head.status, head.headers, self.read_timeout);
        Ok(Response { status, headers, body, read_timeout, _connection: connection })
    }

    fn request(&self, url: &Url, headers: &[(HeaderName, String)]) -> Result<Request<String>, GetError> {
        let path = &url[Position::BeforePath..Position::AfterQuery];
        let host = &url[Position::BeforeHost..Position::AfterPort];
        let proxy = self.proxy.as_ref().filter(|_| url.scheme() == "http");
        // A proxy is asked for all of the URL, a server for what is its part.
        let target = if proxy.is_some() { format!("http://{host}{path}") } else { path.to_owned() };
        let mut request = Request::new(String::new());
        *request.uri_mut() = target.parse::<Uri>().map_err(GetError::url)?;
        let login = dial::login(url).map(|login| (header::AUTHORIZATION, login));
        let to_proxy = proxy.and_then(dial::login).map(|login| (header::PROXY_AUTHORIZATION, login));
        let own = [(header::HOST, host.to_owned()), (header::USER_AGENT, USER_AGENT.to_owned())];
        for (name, value) in own.into_iter().chain(login).chain(to_proxy).chain(headers.iter().cloned()) {
            request.headers_mut().insert(name, HeaderValue::try_from(value).map_err(GetError::url)?);
        }
        Ok(request)
    }

    async fn connect(&self, url: &Url) -> Result<Box<dyn Stream>, GetError> {
        let host = dial::host(url).ok_or_else(|| GetError::url("it names no host"))?;
        let port = url.port_or_known_default().ok_or_else(|| GetError::url("it names no port"))?;
        let limit = self.connect_timeout;
        if url.scheme() == "http" {
            let tcp = match &self.proxy {
                Some(proxy) => dial::to_proxy(proxy, limit).await,
                None => dial(&host, port, None, limit).await,
            };
            return Ok(Box::new(tcp.map_err(GetError::passing)?));
        }
        let name = ServerName::try_from(host.clone()).map_err(GetError::url)?;
        let tcp = dial(&host, port, self.proxy.as_ref(), limit).await.map_err(GetError::passing)?;
        let tls = self.tls.connect(name, tcp).await.map_err(GetError::passing)?;
        Ok(Box::new(tls))
    }
}

async fn in_time<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, GetError> {
    tokio::time::timeout(limit, work).await.map_err(|_| GetError::passing(TooLate { what, limit }))
}

impl Response {
    /// Where it sends whoever asked for `url`.
    fn leads_to(&self, url: &Url) -> Result<Option<Url>, GetError> {
        if !matches!(self.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let location = self.headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
        let Some(next) = location.and_then(|location| url.join(location).ok()) else { return Ok(None) };
        match next.scheme() {
            "https" => Ok(Some(next)),
            "http" if url.scheme() == "http" => Ok(Some(next)),
            scheme if url.scheme() == "https" => Err(GetError::Final(Refusal::Downgrade(scheme.to_owned()))),
            scheme => Err(GetError::Final(Refusal::Scheme(scheme.to_owned()))),
        }
    }

    /// Bytes of the body, if the server tells.
    pub(super) fn length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// The next bytes of the body; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, GetError> {
        loop {
            let frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            let frame = match in_time(self.read_timeout, "no byte came", frame).await? {
                None => return Ok(None),
                Some(frame) => frame.map_err(GetError::passing)?,
            };
            // Anything else would be trailers.
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
    }
}
