//! What this build contains: the one place, beside the crate's root, that knows about cargo features.

use std::sync::Arc;

use otandem_boot::booted::{Seen, Slot};
use otandem_boot::{BootControl, BootNames, Config, Tries};
use otandem_core::boot::SetId;
use otandem_core::jobs::Identity;
use otandem_core::jobs::intake::JobRules;

use crate::cloud::channel::Ends;
use crate::cloud::tls::Clock;
use crate::config::{Bootloader, CloudSettings, NetworkSettings, UpdateSettings};
use crate::feature::Feature;
use crate::feature::jobs::Others;

/// The functions of this build, for `--version` and for errors that say what to build.
#[must_use]
pub fn list() -> Vec<&'static str> {
    let all = [
        ("jobs", cfg!(feature = "jobs")),
        ("gzip", cfg!(feature = "gzip")),
        ("xz", cfg!(feature = "xz")),
        ("boot-custom", cfg!(feature = "boot-custom")),
        ("boot-simulated", cfg!(feature = "boot-simulated")),
    ];
    all.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}

/// The configured bootloader.
///
/// # Errors
/// One line: this build does not have it, or it does not take its configuration.
pub fn boot_control(updates: &UpdateSettings) -> Result<Box<dyn BootControl>, String> {
    let names = BootNames::new(&updates.a.boot_name, &updates.b.boot_name).map_err(|e| e.to_string())?;
    let trial_tries = Tries::new(updates.trial_boots).map_err(|e| e.to_string())?;
    let config = Config { names, trial_tries };
    match &updates.bootloader {
        Bootloader::Auto { .. } => Err("no bootloader is found by itself yet: set bootloader.kind".into()),
        #[cfg(feature = "boot-custom")]
        Bootloader::Custom { program, timeout } => {
            let seen = Seen::on_this_machine(&slots(updates)).map_err(|e| e.to_string())?;
            let custom = otandem_boot::custom::Custom::new(program.clone(), config, seen);
            let mut custom = custom.map_err(|e| e.to_string())?;
            custom.set_time_limit(*timeout);
            Ok(Box::new(custom))
        }
        #[cfg(feature = "boot-simulated")]
        Bootloader::Simulated { directory } => {
            let simulated = otandem_boot::simulated::Simulated::open(directory, config);
            simulated.map(|s| Box::new(s) as _).map_err(|e| e.to_string())
        }
        #[allow(unreachable_patterns)] // with every back end built in
        other => {
            let _ = (config, slots(updates), Seen::default());
            Err(format!("this build has no {} back end: build with --features boot-{0}", kind(other)))
        }
    }
}

const fn kind(bootloader: &Bootloader) -> &'static str {
    match bootloader {
        Bootloader::Auto { .. } => "auto",
        Bootloader::Custom { .. } => "custom",
        Bootloader::Simulated { .. } => "simulated",
    }
}

fn slots(updates: &UpdateSettings) -> Vec<Slot> {
    let of = |set: SetId| {
        let slots = updates.set(set).slots.iter();
        slots.map(move |(name, path)| Slot { set, name: name.clone(), path: path.clone() })
    };
    SetId::BOTH.into_iter().flat_map(of).collect()
}

/// Starts the cloud session; `None` where this build has none.
#[must_use]
#[cfg_attr(not(feature = "session"), allow(unused_variables, clippy::needless_pass_by_value))]
pub fn connect(
    cloud: CloudSettings,
    network: NetworkSettings,
    thing: &str,
    topics: Vec<String>,
    clock: Arc<Clock>,
) -> Option<Ends> {
    #[cfg(feature = "session")]
    return Some(crate::cloud::connect::start(cloud, network, thing, topics, clock));
    #[cfg(not(feature = "session"))]
    return None;
}

/// Everything that uses the cloud session, for this device.
#[must_use]
pub fn cloud(identity: Identity, rules: JobRules, others: Others) -> Vec<Box<dyn Feature>> {
    let mut features: Vec<Box<dyn Feature>> = vec![];
    if cfg!(feature = "jobs") {
        features.push(Box::new(crate::feature::jobs::Jobs::new(identity, rules, others, fastrand::u64(..))));
    }
    features
}
