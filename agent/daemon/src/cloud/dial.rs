//! TCP connections, for the MQTT session and for downloads: straight, or through an HTTP proxy by CONNECT.

use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use url::{Host, Url};

/// A proxy's answer to CONNECT is a line and a few headers.
const MAX_HEAD: usize = 8 << 10;
const DEFAULT_PROXY_PORT: u16 = 80;

/// Connects to `host:port`, through `proxy` if there is one; each address gets a fair part of `limit`.
///
/// # Errors
/// No address can be reached, or the proxy refuses; the text says which and what to check, without the password.
pub(crate) async fn dial(
    host: &str,
    port: u16,
    proxy: Option<&Url>,
    limit: Duration,
) -> io::Result<TcpStream> {
    let Some(proxy) = proxy else { return connect(host, port, limit).await };
    let mut stream = to_proxy(proxy, limit).await?;
    tunnel(&mut stream, host, port, proxy).await.map_err(|e| of_proxy(proxy, &e))?;
    Ok(stream)
}

/// Connects to the proxy itself, which is asked for http URLs without a tunnel.
///
/// # Errors
/// As [`dial`].
pub(crate) async fn to_proxy(proxy: &Url, limit: Duration) -> io::Result<TcpStream> {
    let Some(host) = host(proxy) else { return Err(io::Error::other("network.proxy names no host")) };
    let port = proxy.port().unwrap_or(DEFAULT_PROXY_PORT);
    connect(&host, port, limit).await.map_err(|e| of_proxy(proxy, &e))
}

/// Of another kind than what the broker does: a proxy that hangs up says nothing about certificate and policy.
fn of_proxy(proxy: &Url, error: &io::Error) -> io::Error {
    let port = proxy.port().unwrap_or(DEFAULT_PROXY_PORT);
    io::Error::other(format!("proxy {}:{port}: {error}", host(proxy).unwrap_or_default()))
}

/// The host of a URL as a resolver takes it.
pub(crate) fn host(url: &Url) -> Option<String> {
    Some(match url.host()? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(ip) => ip.to_string(),
        Host::Ipv6(ip) => ip.to_string(),
    })
}

/// What a header says of the user and password in a URL.
pub(crate) fn login(url: &Url) -> Option<String> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut login = percent_decoded(url.username());
    login.push(b':');
    login.extend(percent_decoded(url.password().unwrap_or_default()));
    Some(format!("Basic {}", STANDARD.encode(login)))
}

async fn connect(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let addresses: Vec<_> = lookup_host((host, port))
        .await
        .map_err(|e| io::Error::new(e.kind(), format!("cannot resolve {host}: {e}")))?
        .collect();
    // An address family without a route may swallow packets: the other one must still get its turn.
    let share = limit / u32::try_from(addresses.len().clamp(1, 4)).unwrap_or(1);
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in addresses {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(e)) => last = io::Error::new(e.kind(), format!("cannot connect to {address}: {e}")),
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(last)
}

async fn tunnel(stream: &mut TcpStream, host: &str, port: u16, proxy: &Url) -> io::Result<()> {
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(login) = login(proxy) {
        request += &format!("Proxy-Authorization: {login}\r\n");
    }
    request += "\r\n";
    stream.write_all(request.as_bytes()).await?;

    // Byte by byte: what follows the head belongs to TLS.
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD {
            return Err(io::Error::other("its answer to CONNECT is too long"));
        }
        head.push(
            stream
                .read_u8()
                .await
                .map_err(|e| io::Error::new(e.kind(), "closed the connection at CONNECT"))?,
        );
    }
    match status(&head) {
        Some(200..=299) => Ok(()),
        Some(407) => Err(io::Error::other("wants a user and password (407): write them into network.proxy")),
        Some(code) => Err(io::Error::other(format!("refuses the connection to {target} ({code})"))),
        None => Err(io::Error::other("did not answer CONNECT with HTTP: is it an HTTP proxy?")),
    }
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A proxy that answers `reply` and gives back the head that it got.
    async fn through(
        bind: &str,
        login: &str,
        host: &str,
        reply: &'static [u8],
    ) -> (io::Result<Vec<u8>>, String) {
        let listener = TcpListener::bind(bind).await.unwrap();
        let proxy = Url::parse(&format!("http://{login}{}", listener.local_addr().unwrap())).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 1024];
            let n = stream.read(&mut head).await.unwrap();
            stream.write_all(reply).await.unwrap();
            drop(stream);
            head.truncate(n);
            String::from_utf8(head).unwrap()
        };
        let client = async {
            let mut stream = dial(host, 8883, Some(&proxy), LIMIT).await?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await?;
            Ok(rest)
        };
        tokio::join!(client, server)
    }

    #[tokio::test]
    async fn a_proxy_is_asked_by_connect_with_its_login_and_the_tunnel_loses_no_byte() {
        let (got, head) = through(
            "127.0.0.1:0",
            "us%3Aer:p%40ss@",
            "broker.example",
            b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nfirst",
        )
        .await;
        assert_eq!(got.unwrap(), b"first");
        assert!(
            head.starts_with("CONNECT broker.example:8883 HTTP/1.1\r\nHost: broker.example:8883\r\n"),
            "{head}"
        );
        // us:er:p@ss
        assert!(head.contains("Proxy-Authorization: Basic dXM6ZXI6cEBzcw==\r\n"), "{head}");
        assert!(head.ends_with("\r\n\r\n"));
    }

    #[tokio::test]
    async fn ipv6_works_for_the_proxy_and_for_the_endpoint() {
        let (got, head) = through("[::1]:0", "", "fd00::1", b"HTTP/1.1 200 OK\r\n\r\n").await;
        assert_eq!(got.unwrap(), b"");
        assert!(head.starts_with("CONNECT [fd00::1]:8883 HTTP/1.1\r\n"), "{head}");
        assert!(!head.contains("Authorization"));
    }

    #[tokio::test]
    async fn refusals_of_a_proxy_are_clear_and_never_show_the_password() {
        for (reply, text) in [
            (&b"HTTP/1.1 407 Auth\r\n\r\n"[..], "network.proxy"),
            (b"HTTP/1.1 403 No\r\n\r\n", "refuses the connection to broker.example:8883 (403)"),
            (b"SSH-2.0-x\r\n\r\n", "is it an HTTP proxy?"),
            (b"", "closed the connection"),
        ] {
            let (got, _) = through("127.0.0.1:0", "u:hunter2@", "broker.example", reply).await;
            let error = got.unwrap_err().to_string();
            assert!(error.contains(text) && !error.contains("hunter2"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_endless_head_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
        };
        let (got, ()) = tokio::join!(dial("h", 1, Some(&proxy), LIMIT), server);
        assert!(got.unwrap_err().to_string().contains("too long"));
    }

    proptest! {
        #[test]
        fn no_head_panics(head in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = status(&head);
        }

        #[test]
        fn percent_coding_is_undone(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let coded: String = bytes.iter().map(|b| format!("%{b:02X}")).collect();
            prop_assert_eq!(percent_decoded(&coded), bytes);
        }
    }
}
