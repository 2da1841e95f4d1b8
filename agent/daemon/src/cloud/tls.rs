//! TLS: one configuration for MQTT (the device shows its certificate), one for downloads (it does not), and errors
//! in words that tell the operator what to do.
//!
//! The crypto provider is named here and handed over; no process-wide default is set or looked at.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::crypto;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{
    AlertDescription, CertificateError, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme,
    WantsVerifier,
};

/// On port 443 the broker speaks MQTT only to clients that ask for it by this name.
const MQTT_ALPN: &[u8] = b"x-amzn-mqtt-ca";
const MQTT_ALPN_PORT: u16 = 443;
/// Servers whose sessions are remembered: one broker; one place for images and where it redirects to. The room for them
/// is taken at once.
const SESSIONS: usize = 8;

/// A TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// None of the given roots is a certificate that can be used.
    #[error("no usable root certificate in {from}; it must hold at least one CA certificate in PEM form")]
    NoRoots {
        /// Where the roots came from.
        from: String,
    },
    /// The system has no roots.
    #[error("the system has no root certificates{why}; install ca-certificates or set update.ca")]
    NoSystemRoots {
        /// What the loader said, or nothing.
        why: String,
    },
    /// rustls refused the certificate or the key.
    #[error("the device certificate and its key cannot be used: {source}; check cloud.cert and cloud.key")]
    Identity {
        /// What rustls said.
        source: rustls::Error,
    },
    /// No protocol version is supported by the provider.
    #[error("TLS cannot be set up: {source}")]
    Setup {
        /// What rustls said.
        source: rustls::Error,
    },
}

/// The wall clock, taken as at least a known-past time: a device without a battery starts in 1970, and every
/// certificate would be "not yet valid" until the network has told the time, for which it may need TLS.
#[derive(Debug)]
pub struct Clock {
    floor: AtomicU64,
}

impl Clock {
    /// A clock that never shows less than `floor` (Unix seconds: the greater of build time and time of the last connection).
    #[must_use]
    pub fn new(floor: u64) -> Arc<Self> {
        Arc::new(Self { floor: AtomicU64::new(floor) })
    }

    /// Raises the floor; a lower one is ignored.
    pub fn raise(&self, floor: u64) {
        self.floor.fetch_max(floor, Ordering::Relaxed);
    }

    /// Unix seconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        wall().max(self.floor.load(Ordering::Relaxed))
    }

    /// Whether the wall clock shows a time that is known to be past.
    #[must_use]
    pub fn is_set(&self) -> bool {
        wall() >= self.floor.load(Ordering::Relaxed)
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now())))
    }
}

/// The wall clock as it is, in Unix seconds.
pub(crate) fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The roots given as `certificates`; `from` names their place in errors.
///
/// # Errors
/// None of them can be used.
pub fn roots(certificates: Vec<CertificateDer<'_>>, from: &str) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let (_, ignored) = store.add_parsable_certificates(certificates);
    if ignored > 0 {
        tracing::warn!("{ignored} certificates in {from} cannot be used as roots and are left out");
    }
    if store.is_empty() { Err(TlsError::NoRoots { from: from.to_owned() }) } else { Ok(store) }
}

/// The roots of the system.
///
/// # Errors
/// There are none.
pub fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let why = found.errors.first().map(|e| format!(": {e}")).unwrap_or_default();
    roots(found.certs, "the system's store").map_err(|_| TlsError::NoSystemRoots { why })
}

/// For MQTT: the device shows `chain`, and on port 443 asks for MQTT by ALPN. `verified` is set when a server has shown
/// that it is the broker, which it does in every handshake that resumes no session.
///
/// # Errors
/// The key does not fit, or is of a kind that cannot be used.
pub fn mqtt(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
    port: u16,
    clock: Arc<Clock>,
    verified: Arc<AtomicBool>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(crypto::provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| TlsError::Setup { source: rustls::Error::General(e.to_string()) })?;
    // Nothing dangerous: all that it does is done by the one inside.
    let mut config = builder(clock)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Witness { inner, verified }))
        .with_client_auth_cert(chain, key)
        .map_err(|source| TlsError::Identity { source })?;
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    if port == MQTT_ALPN_PORT {
        config.alpn_protocols = vec![MQTT_ALPN.to_vec()];
    }
    Ok(Arc::new(config))
}

/// For downloads: the device shows nothing, since the server is not the broker and has no business knowing it.
///
/// # Errors
/// TLS cannot be set up at all.
pub fn downloads(roots: RootCertStore, clock: Arc<Clock>) -> Result<ClientConfig, TlsError> {
    let mut config = builder(clock)?.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Verifies as ever, and remembers that it did.
#[derive(Debug)]
struct Witness {
    inner: Arc<WebPkiServerVerifier>,
    verified: Arc<AtomicBool>,
}

impl Witness {
    /// The server has the key of a certificate that was in order.
    fn saw(&self, signature: &Result<HandshakeSignatureValid, rustls::Error>) {
        if signature.is_ok() {
            self.verified.store(true, Ordering::Relaxed);
        }
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(own, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = self.inner.verify_tls12_signature(message, certificate, signed);
        self.saw(&valid);
        valid
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = self.inner.verify_tls13_signature(message, certificate, signed);
        self.saw(&valid);
        valid
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn builder(clock: Arc<Clock>) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    let provider = Arc::new(crypto::provider());
    ClientConfig::builder_with_details(provider, clock)
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Setup { source })
}

/// The TLS error behind `error`, however deep it lies, in clear words; `None` if TLS is not to blame.
#[must_use]
pub fn explain(error: &(dyn StdError + 'static), clock: &Clock) -> Option<String> {
    behind(error).map(|tls| in_words(tls, clock.is_set()))
}

/// Whether the other side ended the handshake.
#[must_use]
pub fn is_alert(error: &(dyn StdError + 'static)) -> bool {
    matches!(behind(error), Some(rustls::Error::AlertReceived(_)))
}

fn behind<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(tls) = e.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // An io::Error hides what it wraps from source().
        let wrapped = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => e.source(),
        };
    }
    None
}

/// Every error of the chain once, from the outside in: `connection failed: timed out`.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        let part = e.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        next = e.source();
    }
    text
}

fn in_words(error: &rustls::Error, clock_is_set: bool) -> String {
    use CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) if !clock_is_set => {
            "clock not set: the server's certificate is not yet valid, and the device's clock shows a time before \
             this software was built; set the clock (NTP, RTC)"
                .into()
        }
        rustls::Error::InvalidCertificate(reason) => certificate(reason),
        rustls::Error::AlertReceived(alert) => refused(*alert),
        rustls::Error::NoApplicationProtocol => {
            "the server does not speak MQTT on this port; on port 443 it must know x-amzn-mqtt-ca".into()
        }
        other => format!("TLS: {other}"),
    }
}

fn certificate(reason: &CertificateError) -> String {
    use CertificateError as C;
    let days = |t: &UnixTime| Date(t.as_secs());
    match reason {
        C::NotValidYetContext { time, not_before } => format!(
            "the server's certificate is valid only from {} on, the device's clock says {}; check the clock",
            days(not_before),
            days(time)
        ),
        C::NotValidYet => "the server's certificate is not yet valid; check the device's clock".into(),
        C::ExpiredContext { time, not_after } => format!(
            "the server's certificate expired on {}, the device's clock says {}; check the clock, else renew it",
            days(not_after),
            days(time)
        ),
        C::Expired => "the server's certificate expired; check the device's clock, else renew it".into(),
        // A bad signature is what a CA of the same name with another key looks like.
        C::UnknownIssuer | C::BadSignature => {
            "the server's certificate comes from a CA that is not among the roots; check cloud.ca or update.ca".into()
        }
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            "the server's certificate is for another host name; check the endpoint or the URL".into()
        }
        other => format!("the server's certificate is refused: {other}"),
    }
}

fn refused(alert: AlertDescription) -> String {
    use AlertDescription as A;
    match alert {
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied
        | A::CertificateRequired => format!(
            "the server refused the device's certificate ({alert:?}); check that it is registered, active and has a \
             policy attached"
        ),
        A::NoApplicationProtocol => {
            "the server does not speak MQTT on this port (no x-amzn-mqtt-ca); check cloud.endpoint and cloud.port".into()
        }
        other => format!("the server ended the TLS handshake: {other:?}"),
    }
}

/// A day, from Unix seconds.
struct Date(u64);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days to civil date: Gregorian years of 400-year eras that begin on 1 March.
        let days = i64::try_from(self.0 / 86_400).unwrap_or_default() + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let of_year = day - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let of_month = of_year - (153 * month + 2) / 5 + 1;
        let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        write!(f, "{:04}-{month:02}-{of_month:02}", era * 400 + year + carry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn dates_are_right_over_leap_years() {
        for (seconds, text) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_709_164_800, "2024-02-29"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(Date(seconds).to_string(), text);
        }
    }

    #[test]
    fn the_clock_is_never_before_its_floor() {
        let clock = Clock::new(u64::MAX / 2);
        assert_eq!(clock.now(), u64::MAX / 2);
        assert!(!clock.is_set());
        clock.raise(5);
        assert_eq!(clock.now(), u64::MAX / 2);
        assert!(Clock::new(1_000).is_set());
    }

    #[test]
    fn an_unset_clock_is_told_as_such_however_deep_the_error_lies() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::NotValidYet);
        let deep = io::Error::other(io::Error::other(tls));
        let unset = Clock::new(u64::MAX / 2);
        assert!(explain(&deep, &unset).unwrap().starts_with("clock not set"));
        assert!(!explain(&deep, &Clock::new(0)).unwrap().contains("not set"));
        assert_eq!(explain(&io::Error::other("plain"), &unset), None);
    }

    #[test]
    fn a_refused_device_certificate_says_what_to_check() {
        let text = in_words(&rustls::Error::AlertReceived(AlertDescription::CertificateUnknown), true);
        assert!(text.contains("registered, active"), "{text}");
    }

    fn identity() -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let made = rcgen::generate_simple_self_signed(vec!["device".into()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        (vec![made.cert.der().clone()], key)
    }

    #[test]
    fn mqtt_asks_by_alpn_on_443_only_and_downloads_never_show_the_device_certificate() {
        let (chain, key) = identity();
        let store = roots(chain.clone(), "test").unwrap();
        let clock = Clock::new(0);
        let at = |port| {
            mqtt(chain.clone(), key.clone_key(), store.clone(), port, clock.clone(), Arc::default()).unwrap()
        };
        assert_eq!(at(443).alpn_protocols, [b"x-amzn-mqtt-ca".to_vec()]);
        assert!(at(8883).alpn_protocols.is_empty());
        assert!(at(8883).client_auth_cert_resolver.has_certs());
        let downloads = downloads(store, clock.clone()).unwrap();
        assert_eq!(downloads.alpn_protocols, [b"http/1.1".to_vec()]);
        assert!(!downloads.client_auth_cert_resolver.has_certs());
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let ((chain, _), (_, other)) = (identity(), identity());
        let store = roots(chain.clone(), "test").unwrap();
        let error = mqtt(chain, other, store, 8883, Clock::new(0), Arc::default()).unwrap_err();
        assert!(matches!(error, TlsError::Identity { .. }), "{error}");
    }

    #[test]
    fn roots_without_a_certificate_are_refused_by_name() {
        let error = roots(vec![CertificateDer::from(vec![1, 2, 3])], "/etc/x.pem").unwrap_err();
        assert!(error.to_string().contains("/etc/x.pem"), "{error}");
    }
}
