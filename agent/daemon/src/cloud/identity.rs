//! Who this device is, what time it may believe, and how it downloads.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use otandem_core::jobs::Identity;
use otandem_core::provisioning::rotation::Rotation;
use otandem_device::cert::{self, CertError};
use otandem_device::certstore::{FLAT, Store};

use super::tls::{self, Clock};
use crate::config::{CloudSettings, Credentials, Settings, ThingName};
use crate::fetch::HttpConfig;

/// First and longest wait between two attempts to connect or to download.
pub const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Seconds since 1970 when this program was built: no clock is right that shows less.
#[must_use]
pub fn built() -> u64 {
    option_env!("OTANDEM_BUILT").and_then(|s| s.parse().ok()).unwrap_or(0)
}

/// The clock for certificates: not below the build time, nor below the last time that was saved.
#[must_use]
pub fn clock(last_saved: u64) -> Arc<Clock> {
    Clock::new(built().max(last_saved))
}

/// Who this device is to its cloud.
///
/// # Errors
/// One line: the file with the name is not there, or holds no thing name.
pub fn identity(cloud: &CloudSettings, settings: &Settings) -> Result<Identity, String> {
    let thing = match &cloud.thing {
        ThingName::Name(name) => name.clone(),
        ThingName::File(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|e| format!("cloud.thing-name-file {}: {e}", path.display()))?;
            text.lines().next().unwrap_or_default().trim().to_owned()
        }
    };
    if !crate::config::settings::is_thing_name(&thing) {
        return Err(format!("{thing:?} is not a thing name: use 1 to 128 letters, digits, ':', '_' and '-'"));
    }
    let minutes = settings.jobs.on().and_then(|j| j.step_timeout).map(|t| t.as_secs().div_ceil(60));
    let step_timeout = minutes.and_then(|m| u32::try_from(m).ok());
    Ok(Identity { endpoint: cloud.endpoint.clone(), thing, step_timeout })
}

/// The device's certificate and key, checked.
///
/// # Errors
/// One line: what is wrong with which file.
pub fn certificate(cloud: &CloudSettings, clock: &Clock) -> Result<cert::Identity, String> {
    match &cloud.credentials {
        Credentials::Files { cert, key } => load(cert, key, clock),
        Credentials::Store(dir) => {
            from_store(&Store::at(dir), &Rotation::default(), clock, &mut vec![]).map(|(_, own)| own)
        }
    }
}

/// A certificate and its key, checked.
pub(super) fn load(cert: &Path, key: &Path, clock: &Clock) -> Result<cert::Identity, String> {
    cert::load_identity(cert, key, clock.now(), built()).map_err(|e| e.to_string())
}

/// The same, also where its validity has not begun by our clock.
pub(crate) fn load_ahead(cert: &Path, key: &Path, clock: &Clock) -> Result<cert::Identity, CertError> {
    match cert::load_identity(cert, key, clock.now(), built()) {
        Err(CertError::NotYetValid { not_before, .. } | CertError::ClockNotSet { not_before, .. }) => {
            cert::load_identity(cert, key, not_before, built())
        }
        other => other,
    }
}

/// The certificate that `rotation` shows next, with its name. `passed_over`: gets a line for each that cannot be used.
pub(super) fn from_store(
    store: &Store,
    rotation: &Rotation,
    clock: &Clock,
    passed_over: &mut Vec<String>,
) -> Result<(String, cert::Identity), String> {
    let pairs = store.list().map_err(|e| e.to_string())?;
    let names: Vec<_> = pairs.iter().map(|pair| pair.name.clone()).collect();
    for name in rotation.order(&names, store.preferred().as_deref()) {
        let Some(pair) = pairs.iter().find(|pair| pair.name == name) else { continue };
        let loaded = match name.as_str() {
            FLAT => cert::load_identity(&pair.cert, &pair.key, clock.now(), built()),
            // It may have been made a moment ago by a clock that is ahead of ours; the broker goes by its own.
            _ => load_ahead(&pair.cert, &pair.key, clock),
        };
        match loaded {
            Ok(identity) => return Ok((name, identity)),
            Err(e) => passed_over.push(e.to_string()),
        }
    }
    let none = || {
        format!(
            "{} holds no certificate: neither ID/ID-certificate.pem.crt with ID/ID-private.pem.key, nor cert.pem \
             with key.pem",
            store.path().display()
        )
    };
    Err(passed_over.first().cloned().unwrap_or_else(none))
}

/// The configured roots, or the system's where none are.
///
/// # Errors
/// One line: they cannot be read, or there are none.
pub fn roots(configured: Option<&Path>) -> Result<rustls::RootCertStore, String> {
    match configured {
        Some(path) => cert::load_roots(path).map_err(|e| e.to_string()),
        None => tls::system_roots().map_err(|e| e.to_string()),
    }
}

/// How downloads are made.
///
/// # Errors
/// One line: a configured CA cannot be read, the network settings have a mistake. Nothing is downloaded then.
pub fn downloads(settings: &Settings, clock: &Arc<Clock>) -> Result<HttpConfig, String> {
    let updates = settings.updates.as_ref().map_err(ToString::to_string)?;
    let network = settings.network.as_ref().map_err(ToString::to_string)?;
    let roots = match roots(updates.ca.as_deref()) {
        // A device that only ever downloads over http has no roots, and needs none.
        Err(e) if updates.ca.is_none() => {
            tracing::info!("no https downloads: {e}");
            rustls::RootCertStore::empty()
        }
        roots => roots?,
    };
    Ok(HttpConfig {
        tls: tls::downloads(roots, Arc::clone(clock)).map_err(|e| e.to_string())?,
        clock: Arc::clone(clock),
        proxy: network.proxy.clone(),
        connect_timeout: network.connect_timeout,
        read_timeout: network.read_timeout,
        download_timeout: updates.download_timeout,
        retry_first: RETRY.0,
        retry_most: RETRY.1,
    })
}
