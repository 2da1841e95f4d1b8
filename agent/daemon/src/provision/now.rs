//! `otandem provision`: one attempt, now, by hand, and the first connection with what came of it.

use std::sync::Arc;
use std::time::Duration;

use otandem_core::provisioning::Failure;
use otandem_core::provisioning::record::Record;
use otandem_device::state::StateDir;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::attempt::attempt;
use super::{Kit, ProvisionError, Provisioned};
use crate::cloud::channel::{Inbound, Topics};
use crate::cloud::wallet::{Keeping, Wallet};
use crate::cloud::{connect, identity};
use crate::config::Settings;
use crate::exit::Exit;

/// For the first connection with a new certificate; the cloud may need a moment until it knows it.
const TRIAL: Duration = Duration::from_secs(120);

/// Makes the attempt. A certificate that an earlier one left untried is tried in place of it.
///
/// # Errors
/// How the command ends, and one line.
pub fn provision(settings: &Settings) -> Result<Value, (Exit, String)> {
    let dir = StateDir::open(&settings.state_dir).map_err(|e| (Exit::NoPermission, e.to_string()))?;
    let _lock = dir.lock().map_err(|e| (Exit::TempFail, e.to_string()))?;
    let clock = identity::clock(0);
    let me = settings.cloud.on().and_then(|cloud| identity::identity(cloud, settings).ok());
    let kit = Kit::new(settings, me.as_ref().map(|me| me.thing.as_str()), clock)
        .map_err(|why| (Exit::Config, why))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| (Exit::System, e.to_string()))?;
    let done = runtime.block_on(async {
        let done = match kit.record() {
            Some(Record::Untried { certificate }) => Provisioned {
                certificate,
                thing: me.map(|me| me.thing).ok_or_else(|| ProvisionError::Setup("no thing name".into()))?,
            },
            _ => attempt(&kit, &|step| tracing::info!("{step}")).await?,
        };
        connects(&kit, &done).await.map(|()| done)
    });
    kit.wait_for_command();
    match done {
        Ok(Provisioned { certificate, thing }) => Ok(json!({ "thing": thing, "certificate": certificate })),
        Err(e) => Err((exit(&e), e.to_string())),
    }
}

/// As the device will, with the new certificate alone.
async fn connects(kit: &Kit, done: &Provisioned) -> Result<(), ProvisionError> {
    let wallet = Wallet::new(&kit.cloud, Arc::clone(&kit.clock), Keeping::Preference);
    let verdict = wallet.try_out(&done.certificate);
    let id = kit.cloud.client_id.clone().unwrap_or_else(|| done.thing.clone());
    let (topics, clock) = (Topics::default(), Arc::clone(&kit.clock));
    let mut ends = connect::start("cloud session", &kit.cloud, &kit.network, id, topics, wallet, clock);
    let mut last = String::new();
    let deadline = Instant::now() + TRIAL;
    while verdict.borrow().is_none() {
        match timeout_at(deadline, ends.inbound.recv()).await {
            Ok(Some(Inbound::Down { reason })) => last = reason,
            Ok(Some(_)) => {}
            // A broker that cannot be reached says nothing about a certificate: the daemon tries it later.
            Ok(None) | Err(_) => return Err(ProvisionError::Session(last)),
        }
    }
    let works = matches!(&*verdict.borrow(), Some((_, true)));
    kit.forget();
    if works { Ok(()) } else { Err(ProvisionError::Untried(done.certificate.clone())) }
}

fn exit(e: &ProvisionError) -> Exit {
    match e {
        ProvisionError::Setup(_) | ProvisionError::Parameter { .. } => Exit::Config,
        ProvisionError::Session(_) | ProvisionError::Untried(_) => Exit::Unavailable,
        ProvisionError::Late { .. } => Exit::TempFail,
        ProvisionError::Cloud(Failure::Rejected { .. }) => Exit::Data,
        ProvisionError::Cloud(Failure::Answer { .. }) => Exit::Protocol,
        ProvisionError::Store(_)
        | ProvisionError::State(_)
        | ProvisionError::Outfile(_)
        | ProvisionError::Format(_) => Exit::CannotCreate,
    }
}
