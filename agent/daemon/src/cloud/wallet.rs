//! The certificates of this device: which one is shown to the broker, connection by connection.
//!
//! The session asks before each connection and tells how each ended; the rule between the two is
//! [`otandem_core::provisioning::rotation`]. Whoever put a new certificate into the store asks for it to be tried, and
//! hears how that went.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use otandem_core::provisioning::rotation::{Rotation, Turn};
use otandem_device::cert;
use otandem_device::certstore::Store;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::identity::{from_store, load, roots};
use super::tls::{self, Clock};
use crate::config::{CloudSettings, Credentials};

/// How a certificate on trial did: its name, and whether it is the preferred one now.
pub type Verdict = Option<(String, bool)>;

/// Whether `preferred` follows what works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// A store of the device.
    Preference,
    /// The factory's store, in which nothing is written.
    Nothing,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The broker accepted the session.
    pub accepted: bool,
    /// What is needed was subscribed, and nothing was refused that another certificate was allowed.
    pub up: bool,
    /// The broker ended it, without or with a word.
    pub sent_away: bool,
}

/// See the module. Clones are the same wallet.
#[derive(Clone)]
pub struct Wallet(Arc<Mutex<Inner>>);

struct Inner {
    source: Source,
    ca: Option<PathBuf>,
    port: u16,
    clock: Arc<Clock>,
    keeping: Keeping,
    rotation: Rotation,
    /// Of the certificate that is shown: as long as it serves, sessions are resumed.
    tls: Option<Arc<ClientConfig>>,
    /// The broker of the connection under way has shown that it is the broker.
    verified: Arc<AtomicBool>,
    /// Certificates that could not be used, as it was told last.
    passed_over: Vec<String>,
    /// What the rule decided last, for people.
    last_turn: Option<String>,
    verdicts: watch::Sender<Verdict>,
}

enum Source {
    Files { cert: PathBuf, key: PathBuf },
    Store(Store),
    Ready(Arc<ClientConfig>),
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wallet")
    }
}

impl Wallet {
    /// Of a configured session. Nothing is read yet, but keys in a store of ours are made private.
    #[must_use]
    pub fn new(cloud: &CloudSettings, clock: Arc<Clock>, keeping: Keeping) -> Self {
        let source = match &cloud.credentials {
            Credentials::Files { cert, key } => Source::Files { cert: cert.clone(), key: key.clone() },
            Credentials::Store(dir) => Source::Store(Store::at(dir)),
        };
        if let (Source::Store(store), Keeping::Preference) = (&source, keeping) {
            store.tighten();
        }
        Self::of(source, cloud.ca.clone(), cloud.port, clock, keeping)
    }

    fn of(source: Source, ca: Option<PathBuf>, port: u16, clock: Arc<Clock>, keeping: Keeping) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            source,
            ca,
            port,
            clock,
            keeping,
            rotation: Rotation::default(),
            tls: None,
            verified: Arc::new(AtomicBool::new(false)),
            passed_over: vec![],
            last_turn: None,
            verdicts: watch::Sender::new(None),
        })))
    }

    /// Always shows the same, which is in memory.
    #[must_use]
    pub fn ready(tls: Arc<ClientConfig>) -> Self {
        Self::of(Source::Ready(tls), None, 0, Clock::new(0), Keeping::Nothing)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the next connection.
    ///
    /// # Errors
    /// One line: there is no certificate that can be used, or no root.
    pub fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        self.inner().tls()
    }

    /// The session is up, with everything that it can have.
    pub fn up(&self) {
        self.inner().up();
    }

    /// What is shown is tried out.
    #[must_use]
    pub fn on_trial(&self) -> bool {
        self.inner().rotation.trial().is_some()
    }

    /// The connection is over.
    pub fn ended(&self, how: Ended) {
        self.inner().ended(how);
    }

    /// Show this one from the next connection on; what was preferred comes back if it does not work. What is heard from
    /// then on is its verdict.
    #[must_use]
    pub fn try_out(&self, name: &str) -> watch::Receiver<Verdict> {
        let mut inner = self.inner();
        inner.rotation.try_out(name);
        inner.tls = None;
        inner.verdicts.send_replace(None);
        inner.verdicts.subscribe()
    }

    /// For the status; null where there is but one.
    #[must_use]
    pub fn show(&self) -> Value {
        let inner = self.inner();
        if !matches!(inner.source, Source::Store(_)) {
            return Value::Null;
        }
        json!({
            "name": inner.rotation.shown(),
            "on-trial": inner.rotation.trial(),
            "refusals": inner.rotation.refusals(),
            "last-change": inner.last_turn,
        })
    }
}

impl Inner {
    fn tls(&mut self) -> Result<Arc<ClientConfig>, String> {
        self.verified.store(false, Ordering::Relaxed);
        if let Some(tls) = &self.tls {
            return Ok(Arc::clone(tls));
        }
        let identity = match &self.source {
            Source::Ready(tls) => return Ok(Arc::clone(tls)),
            Source::Files { cert, key } => load(cert, key, &self.clock)?,
            Source::Store(store) => {
                let mut passed_over = vec![];
                let found = from_store(store, &self.rotation, &self.clock, &mut passed_over);
                if found.is_ok() && passed_over != self.passed_over {
                    passed_over.iter().for_each(|why| tracing::warn!("a certificate is passed over: {why}"));
                    self.passed_over = passed_over;
                }
                let (name, identity) = found?;
                if self.rotation.shown() != Some(&name) && self.keeping == Keeping::Preference {
                    tracing::info!("the certificate {name} is shown to the broker");
                }
                self.rotation.show(&name);
                identity
            }
        };
        let tls = self.with(identity)?;
        self.tls = Some(Arc::clone(&tls));
        Ok(tls)
    }

    fn with(&self, identity: cert::Identity) -> Result<Arc<ClientConfig>, String> {
        let roots = roots(self.ca.as_deref())?;
        let (clock, verified) = (Arc::clone(&self.clock), Arc::clone(&self.verified));
        tls::mqtt(identity.chain, identity.key, roots, self.port, clock, verified).map_err(|e| e.to_string())
    }

    fn up(&mut self) {
        let on_trial = self.rotation.trial().map(str::to_owned);
        let Some(name) = self.rotation.accepted().map(str::to_owned) else { return };
        let Source::Store(store) = &self.source else { return };
        let kept = match self.keeping {
            Keeping::Preference => store.prefer(&name),
            Keeping::Nothing => Ok(()),
        };
        if let Err(e) = &kept {
            tracing::error!("{name} works and cannot be made the preferred certificate: {e}");
        }
        if on_trial.is_some() {
            tracing::info!("the certificate {name} works: it is the preferred one now");
            // Another one than was to be tried came up: that one cannot even be read.
            let tried = on_trial.as_ref() == Some(&name);
            self.verdicts.send_replace(Some((on_trial.unwrap_or_default(), tried && kept.is_ok())));
        }
    }

    fn ended(&mut self, how: Ended) {
        if how.up {
            return;
        }
        // Read anew, since it may be replaced; and a session that is not resumed shows who the broker is.
        self.tls = None;
        let Source::Store(store) = &self.source else { return };
        let verified = self.verified.load(Ordering::Relaxed);
        let refused = !how.accepted && how.sent_away;
        // One on trial must do everything that the old one can.
        if !verified || !(refused || self.rotation.trial().is_some()) {
            return;
        }
        let names: Vec<_> = store.list().unwrap_or_default().into_iter().map(|pair| pair.name).collect();
        let said = match self.rotation.refused(&names) {
            Turn::Stay => return,
            Turn::Next { refused } => {
                format!(
                    "the broker refuses the certificate {refused}: {} is shown in its place",
                    self.rotation.shown().unwrap_or_default()
                )
            }
            Turn::Back { refused } => {
                self.verdicts.send_replace(Some((refused.clone(), false)));
                format!("the certificate {refused} does not work: what was preferred before stays so")
            }
        };
        tracing::warn!("{said}");
        self.last_turn = Some(said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use otandem_device::certstore::Pair;

    const AWAY: Ended = Ended { accepted: false, up: false, sent_away: true };

    fn put(store: &Store, name: &str, not_after: i32) -> Pair {
        let mut params = rcgen::CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(not_after, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap().pem();
        let dir = store.path().join(name);
        let pair = Pair {
            name: name.into(),
            cert: dir.join(format!("{name}-certificate.pem.crt")),
            key: dir.join(format!("{name}-private.pem.key")),
        };
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(&pair.cert, cert).unwrap();
        // As chariotd leaves them.
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }

    fn wallet(dir: &std::path::Path, keeping: Keeping) -> (Wallet, Store) {
        let store = Store::at(&dir.join("certs"));
        let a = put(&store, "a", 2090);
        put(&store, "b", 2090);
        put(&store, "expired", 2001);
        let source = Source::Store(store.clone());
        store.tighten();
        (Wallet::of(source, Some(a.cert), 8883, Clock::new(0), keeping), store)
    }

    /// A connection to a broker that has shown who it is, or to something else.
    fn connection(wallet: &Wallet, verified: bool, how: Ended) -> String {
        wallet.tls().unwrap();
        let name = wallet.show()["name"].as_str().unwrap().to_owned();
        wallet.inner().verified.store(verified, Ordering::Relaxed);
        if how.up {
            wallet.up();
        }
        wallet.ended(how);
        name
    }

    #[test]
    fn a_certificate_that_the_broker_refuses_thrice_gives_way_and_what_works_is_preferred() {
        let dir = tempfile::tempdir().unwrap();
        let (wallet, store) = wallet(dir.path(), Keeping::Preference);
        let shown: Vec<_> = (0..7).map(|_| connection(&wallet, true, AWAY)).collect();
        assert_eq!(shown, ["a", "a", "a", "b", "b", "b", "a"], "the expired one is passed over");
        assert_eq!(store.preferred(), None);
        assert!(wallet.show()["last-change"].as_str().unwrap().contains('b'));
        connection(&wallet, true, Ended { accepted: true, up: true, sent_away: true });
        assert_eq!(store.preferred().as_deref(), Some("a"));
    }

    #[test]
    fn a_network_that_is_down_and_a_server_that_is_not_the_broker_say_nothing_about_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let (wallet, _) = wallet(dir.path(), Keeping::Preference);
        for _ in 0..10 {
            assert_eq!(connection(&wallet, false, AWAY), "a");
            assert_eq!(connection(&wallet, true, Ended { sent_away: false, ..AWAY }), "a");
            assert_eq!(connection(&wallet, true, Ended { accepted: true, ..AWAY }), "a");
        }
    }

    #[test]
    fn a_certificate_on_trial_is_preferred_when_it_works_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let (wallet, store) = wallet(dir.path(), Keeping::Preference);
        connection(&wallet, true, Ended { accepted: true, up: true, sent_away: false });
        let verdict = wallet.try_out("b");
        assert_eq!(connection(&wallet, false, AWAY), "b");
        assert_eq!((store.preferred().as_deref(), &*verdict.borrow()), (Some("a"), &None));
        // It connects, and may not subscribe.
        for _ in 0..3 {
            assert_eq!(connection(&wallet, true, Ended { accepted: true, ..AWAY }), "b");
        }
        assert_eq!(*verdict.borrow(), Some(("b".into(), false)));
        assert_eq!(connection(&wallet, true, AWAY), "a");
        let verdict = wallet.try_out("b");
        connection(&wallet, true, Ended { accepted: true, up: true, sent_away: false });
        assert_eq!(*verdict.borrow(), Some(("b".into(), true)));
        assert_eq!(store.preferred().as_deref(), Some("b"));
    }

    #[test]
    fn a_trial_of_what_cannot_be_read_ends_when_the_old_one_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let (wallet, store) = wallet(dir.path(), Keeping::Preference);
        store.prefer("b").unwrap();
        let verdict = wallet.try_out("expired");
        assert_eq!(
            connection(&wallet, true, Ended { accepted: true, up: true, sent_away: false }),
            "b",
            "what was preferred"
        );
        assert_eq!(*verdict.borrow(), Some(("expired".into(), false)));
    }

    #[test]
    fn nothing_is_written_into_the_store_of_the_factory() {
        let dir = tempfile::tempdir().unwrap();
        let (wallet, store) = wallet(dir.path(), Keeping::Nothing);
        connection(&wallet, true, Ended { accepted: true, up: true, sent_away: false });
        assert_eq!(store.preferred(), None);
    }
}
