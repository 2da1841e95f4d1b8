//! The lab's sockets: TLS, listeners, one task per connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig, crypto::ring};

use crate::ca::{Authority, Validity};
use crate::images::Scheme;
use crate::lab::LabError;
use crate::mqtt;
use crate::world::{Shared, World};

/// ALPN name of MQTT with a client certificate on port 443; the lab takes it on its own port.
const ALPN_MQTT: &[u8] = b"x-amzn-mqtt-ca";
/// How often a running clock lets timers run out.
const TICK: Duration = Duration::from_millis(500);
/// Pause after an error of accept, so that it does not spin.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) fn listen() -> Result<StdListener, LabError> {
    let bound = StdListener::bind((Ipv4Addr::LOCALHOST, 0));
    bound
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|source| LabError::System { what: "listen on 127.0.0.1", source })
}

pub(crate) fn port(listener: &StdListener) -> Result<u16, LabError> {
    let address = listener.local_addr().map(|address: SocketAddr| address.port());
    address.map_err(|source| LabError::System { what: "read a listener's port", source })
}

pub(crate) fn mqtt_tls(authority: &Authority, address: IpAddr) -> Result<TlsAcceptor, LabError> {
    let failed = |e: &dyn std::fmt::Display| LabError::Tls { what: "MQTT", cause: e.to_string() };
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).map_err(|e| failed(&e))?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), ring::default_provider().into())
            .build()
            .map_err(|e| failed(&e))?;
    let (certificates, key) = server_pair(authority, "otandem lab broker", address)?;
    let mut config = builder()
        .map_err(|e| failed(&e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)
        .map_err(|e| failed(&e))?;
    config.alpn_protocols = vec![ALPN_MQTT.to_vec(), b"mqtt".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

pub(crate) fn https_tls(authority: &Authority, address: IpAddr) -> Result<TlsAcceptor, LabError> {
    let failed = |e: &dyn std::fmt::Display| LabError::Tls { what: "HTTPS", cause: e.to_string() };
    let (certificates, key) = server_pair(authority, "otandem lab images", address)?;
    let mut config = builder()
        .map_err(|e| failed(&e))?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|e| failed(&e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

type Builder = rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>;

fn builder() -> Result<Builder, rustls::Error> {
    ServerConfig::builder_with_provider(ring::default_provider().into()).with_safe_default_protocol_versions()
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn server_pair(authority: &Authority, name: &str, address: IpAddr) -> Result<Pair, LabError> {
    let identity = authority.server(name, Validity::Now, address)?;
    let failed = |cause: String| LabError::Tls { what: "a server certificate", cause };
    let certificate = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes());
    Ok((vec![certificate.map_err(|e| failed(e.to_string()))?], key.map_err(|e| failed(e.to_string()))?))
}

/// Sockets that wait for their runtime.
pub(crate) struct Servers {
    pub shared: Arc<Shared>,
    pub mqtt: StdListener,
    pub http: StdListener,
    pub https: StdListener,
    pub mqtt_tls: TlsAcceptor,
    pub https_tls: TlsAcceptor,
}

impl Servers {
    /// Serves until it is told to stop; whatever runs then ends with the runtime.
    pub async fn run(self, clock_runs: bool, stopped: oneshot::Receiver<()>) {
        let Self { shared, mqtt, http, https, mqtt_tls, https_tls } = self;
        let world = Arc::clone(&shared);
        accept(mqtt, move |socket| mqtt::connection::serve(Arc::clone(&world), mqtt_tls.clone(), socket));
        let world = Arc::clone(&shared);
        accept(http, move |socket| serve_http(Arc::clone(&world), socket));
        let world = Arc::clone(&shared);
        accept(https, move |socket| serve_https(Arc::clone(&world), https_tls.clone(), socket));
        if clock_runs {
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(TICK).await;
                    shared.with(World::settle);
                }
            });
        }
        let _ = stopped.await;
    }
}

async fn serve_http(shared: Arc<Shared>, socket: TcpStream) {
    crate::images::serve::connection(shared, Scheme::Http, socket).await;
}

async fn serve_https(shared: Arc<Shared>, acceptor: TlsAcceptor, socket: TcpStream) {
    match acceptor.accept(socket).await {
        Ok(stream) => crate::images::serve::connection(shared, Scheme::Https, stream).await,
        Err(error) => shared.with(|world| world.event("", "handshake", &format!("https: {error}"))),
    }
}

/// One task per connection. A listener that the runtime refuses ends its server alone; clients see it.
fn accept<F, T>(listener: StdListener, serve: F)
where
    F: Fn(TcpStream) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        loop {
            // Errors of accept are those of a client that is gone again, or of too many open files: both pass.
            match listener.accept().await {
                Ok((socket, _)) => {
                    let _ = socket.set_nodelay(true);
                    drop(tokio::spawn(serve(socket)));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    });
}
