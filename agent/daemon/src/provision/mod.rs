//! A certificate of its own for this device, by fleet provisioning: at the first start, when somebody asks for one, and
//! ahead of the end of the present one.
//!
//! `attempt` is one attempt over a session of its own, with the claim; [`worker`] the feature that makes attempts
//! beside the device's session and has the new certificate tried by it; [`now`] the command. The decisions are
//! [`otandem_core::provisioning`]'s, what is on disk is [`otandem_device::certstore`]'s.

mod attempt;
pub mod now;
pub mod worker;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use otandem_core::formats::{ArrayStyle, FormatError, print};
use otandem_core::provisioning::record::{MAX_RECORD, Record};
use otandem_core::provisioning::{Failure, Plan};
use otandem_device::certstore::{Store, StoreError};
use otandem_device::run::Stop;
use otandem_device::services::{self, Notifier, OutfileError};
use otandem_device::state::{StateError, atomic_write};
use serde_json::json;

use crate::cloud::tls::Clock;
use crate::cloud::wallet::{Keeping, Wallet};
use crate::config::{
    CloudSettings, Credentials, NetworkSettings, Parameter, ProvisioningSettings, Settings, ThingName,
};

/// In the state directory: how far an attempt came.
const RECORD: &str = "provisioning.json";
/// In the state directory: the command after provisioning is due.
const NOTIFY_MARK: &str = "provisioning-notify";
/// Of a file that holds a parameter.
const MAX_PARAMETER: u64 = 4096;

/// Why a device got no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// Something is missing on the device.
    #[error("{0}")]
    Setup(String),
    /// A parameter's file cannot be read.
    #[error("provisioning.parameters.{name}: cannot read {path}: {source}", path = path.display())]
    Parameter {
        /// Which one.
        name: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The claim's session does not come up, or ended.
    #[error("no session with the claim: {0}")]
    Session(String),
    /// No answer.
    #[error("{step}: no answer within {} s; check that the claim's policy allows it", limit.as_secs())]
    Late {
        /// What was asked for.
        step: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The cloud said no.
    #[error(transparent)]
    Cloud(#[from] Failure),
    /// The certificate cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// State cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The outfile cannot be written.
    #[error("provisioning.outfile: {0}")]
    Outfile(#[from] OutfileError),
    /// The outfile's format does not take what the template sent.
    #[error("provisioning.outfile: {0}")]
    Format(#[from] FormatError),
    /// There is a certificate now, and it does not connect.
    #[error("the new certificate {0} does not connect: what was preferred before stays so")]
    Untried(String),
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    /// The certificate: its name in the store.
    pub certificate: String,
    /// The thing that the cloud knows it as.
    pub thing: String,
}

/// Everything that attempts need.
pub struct Kit {
    settings: ProvisioningSettings,
    cloud: CloudSettings,
    network: NetworkSettings,
    state_dir: PathBuf,
    clock: Arc<Clock>,
    /// The device's store.
    store: Store,
    /// Shows the claim.
    claim: Wallet,
    claim_cloud: CloudSettings,
    client_id: String,
    /// Of requests.
    subject: String,
    notifier: Option<Notifier>,
}

impl Kit {
    /// For a device with a cloud and a claim. `thing`: its name, as far as it is known.
    ///
    /// # Errors
    /// One line: the configuration does not fit together, or a descriptor is missing.
    pub fn new(settings: &Settings, thing: Option<&str>, clock: Arc<Clock>) -> Result<Self, String> {
        let Some(own) = settings.provisioning.on() else { return Err("there is no [provisioning]".into()) };
        let Some(cloud) = settings.cloud.on() else {
            return Err(
                "no cloud is configured: set cloud.endpoint, or put endpoint.txt into the store".into()
            );
        };
        let network = settings.network.as_ref().map_err(ToString::to_string)?.clone();
        let Credentials::Store(dir) = &cloud.credentials else {
            return Err("cloud.cert-store is not set".into());
        };
        let claim = Store::at(&own.claim_store);
        // Nobody may say of a device that it is gone because its claim's session ended.
        let mut claim_cloud = CloudSettings {
            credentials: Credentials::Store(own.claim_store.clone()),
            last_will: None,
            ..cloud.clone()
        };
        if let Some((host, port)) = claim.endpoint().map_err(|e| e.to_string())? {
            claim_cloud.endpoint = host;
            claim_cloud.port = port.unwrap_or(cloud.port);
        }
        let base = cloud.client_id.as_deref().or(thing).map(str::to_owned);
        let base = base.unwrap_or_else(|| format!("otandem-{:016x}", fastrand::u64(..)));
        let notifier = notifier(own, &settings.state_dir)?;
        Ok(Self {
            client_id: own.client_id.clone().unwrap_or_else(|| format!("{base}-fp")),
            subject: base,
            settings: own.clone(),
            cloud: cloud.clone(),
            network,
            state_dir: settings.state_dir.clone(),
            store: Store::at(dir),
            claim: Wallet::new(&claim_cloud, Arc::clone(&clock), Keeping::Nothing),
            claim_cloud,
            clock,
            notifier,
        })
    }

    /// What an earlier attempt left.
    fn record(&self) -> Option<Record> {
        let path = self.state_dir.join(RECORD);
        let mut bytes = vec![];
        let read =
            fs::File::open(&path).and_then(|file| file.take(MAX_RECORD as u64 + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => {
                let record = Record::from_bytes(&bytes);
                if record.is_none() {
                    tracing::warn!(
                        "{} says nothing that can be used: provisioning begins anew",
                        path.display()
                    );
                }
                record
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                tracing::warn!("{}: {e}: provisioning begins anew", path.display());
                None
            }
        }
    }

    fn save(&self, record: &Record) -> Result<(), StateError> {
        // The device's first action may be this.
        otandem_device::state::StateDir::open(&self.state_dir)?;
        atomic_write(&self.state_dir.join(RECORD), &record.to_bytes(), 0o600)
    }

    /// The attempt is over, or its token of no use.
    fn forget(&self) {
        let path = self.state_dir.join(RECORD);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {e}", path.display());
            }
            _ => {}
        }
    }

    /// What the template is told.
    fn plan(&self) -> Result<Plan, ProvisionError> {
        let read = |(name, parameter): (&String, &Parameter)| {
            let value =
                match parameter {
                    Parameter::Text(text) => text.clone(),
                    Parameter::File(path) => first_line(path).map_err(|source| {
                        ProvisionError::Parameter { name: name.clone(), path: path.clone(), source }
                    })?,
                };
            Ok::<_, ProvisionError>((name.clone(), value))
        };
        let mut parameters = BTreeMap::new();
        for parameter in self.settings.parameters.iter().map(read) {
            let (name, value) = parameter?;
            parameters.insert(name, value);
        }
        Ok(Plan { template: self.settings.template.clone(), parameters, key: self.settings.key })
    }

    /// Everything that follows from a registration; can be done again after a power cut at any point of it.
    fn finish(&self, record: Record) -> Result<Provisioned, ProvisionError> {
        self.save(&record)?;
        let Record::Registered { certificate, thing, configuration } = record else {
            return Err(ProvisionError::Setup("no registration".into()));
        };
        self.store.admit(&certificate)?;
        self.name(&thing)?;
        if let Some((path, format)) = &self.settings.outfile {
            let told = json!({ "thing": thing, "configuration": configuration });
            let text = print(*format, &told, ArrayStyle::default());
            // The device is provisioned whatever comes of a file that is for others.
            if let Err(e) =
                text.map_err(ProvisionError::from).and_then(|text| Ok(services::write(path, &text)?))
            {
                tracing::error!("{e}");
            }
        }
        if let Some(notifier) = &self.notifier {
            if let Err(e) = notifier.mark() {
                tracing::warn!("provisioning.notify-command does not run again after a power cut: {e}");
            }
            notifier.notify();
        }
        self.save(&Record::Untried { certificate: certificate.clone() })?;
        tracing::info!("this device is the thing {thing}, with the certificate {certificate}");
        Ok(Provisioned { certificate, thing })
    }

    /// Keeps the name that the template gave, where no other one is configured.
    fn name(&self, thing: &str) -> Result<(), ProvisionError> {
        let known = match &self.cloud.thing {
            ThingName::Name(name) => name.clone(),
            ThingName::File(path) => match first_line(path) {
                Ok(name) => name,
                Err(e) if e.kind() == io::ErrorKind::NotFound && path.starts_with(&self.state_dir) => {
                    return Ok(atomic_write(path, format!("{thing}\n").as_bytes(), 0o644)?);
                }
                Err(source) => {
                    let (name, path) = ("thing-name".to_owned(), path.clone());
                    return Err(ProvisionError::Parameter { name, path, source });
                }
            },
        };
        if known != thing {
            tracing::warn!("the cloud calls this device {thing}, here it is called {known}: {known} stays");
        }
        Ok(())
    }

    /// Waits until no command runs.
    fn wait_for_command(&self) {
        if let Some(notifier) = &self.notifier {
            notifier.wait();
        }
    }

    /// Whether the device has a certificate that it can show, now or when its clock is set.
    fn has_certificate(&self) -> bool {
        self.ends().is_some()
    }

    /// When the certificate ends that lasts longest, in seconds since 1970, with its name; `None` without one.
    fn ends(&self) -> Option<(u64, String)> {
        let pairs = self.store.list().unwrap_or_default();
        let ends = pairs.into_iter().filter_map(|pair| {
            let loaded = crate::cloud::identity::load_ahead(&pair.cert, &pair.key, &self.clock);
            loaded.ok().map(|identity| (identity.not_after, pair.name))
        });
        ends.max()
    }

    /// When the certificate ends that is shown first, in seconds since 1970.
    fn preferred_ends(&self) -> Option<u64> {
        crate::cloud::identity::certificate(&self.cloud, &self.clock).ok().map(|identity| identity.not_after)
    }
}

fn notifier(own: &ProvisioningSettings, state_dir: &Path) -> Result<Option<Notifier>, String> {
    let Some(command) = own.notify_command.clone() else { return Ok(None) };
    let stop = Stop::new().map_err(|e| e.to_string())?;
    let ran = Arc::new(|result: Result<(), String>| match result {
        Ok(()) => tracing::info!("provisioning.notify-command is done"),
        Err(e) => tracing::error!("provisioning.notify-command: {e}; the certificate stays"),
    });
    Ok(Some(Notifier::new(command, own.notify_timeout, state_dir.join(NOTIFY_MARK), stop, ran)))
}

/// Without what devices put behind a serial number.
fn first_line(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_PARAMETER).read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().trim_matches(['\0', ' ', '\t', '\r']).to_owned())
}
