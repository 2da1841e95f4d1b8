//! What a start finds: the state directory with its record, the bootloader, and what the slots begin with.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use otandem_boot::BootControl;
use otandem_core::boot::{Facts, SetId};
use otandem_core::gather::Gather as _;
use otandem_core::jobs::Identity;
use otandem_core::machine::{Action, Evidence, Machine, Now, Rules};
use otandem_core::record::Record;
use otandem_device::install::HEAD;
use otandem_device::machine::{cmdline_values, now as boottime};
use otandem_device::state::{Lock, RecordStore, StateDir, StateError, atomic_write, shared_with_root};

use super::perform::Performer;
use crate::cloud::tls::Clock;
use crate::config::{BootKind, Settings, UpdateSettings};
use crate::features;

/// What the start gave.
pub struct Opened {
    /// The machine, its first step taken.
    pub machine: Machine,
    /// What that step wants done.
    pub first: Vec<Action>,
    /// Carries it out.
    pub performer: Performer,
}

/// The state directory cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another otandem has it.
    #[error("{0}")]
    Locked(String),
}

/// Opens everything. Only a lock that somebody else holds is an error: whatever else is missing or broken, the agent
/// starts, touches nothing that it does not understand, and says so.
///
/// # Errors
/// See [`OpenError`].
pub fn open(
    settings: &Settings,
    clock: Arc<Clock>,
    identity: Option<&Identity>,
) -> Result<Opened, OpenError> {
    let State { store, mut record, mut refusal, unread } = state(settings)?;
    if let (Some(record), Some(me)) = (&mut record, identity)
        && record.disown(&me.endpoint, &me.thing)
    {
        tracing::warn!("the record was of another thing or endpoint: its jobs are set aside");
    }
    let now = Now { boot: boottime(), minute: otandem_device::machine::local_minute() };
    let (boot, evidence, rules) = match &settings.updates {
        Ok(updates) => {
            refusal = refusal.or_else(|| not_shared(settings, updates));
            let (boot, facts) = bootloader(updates);
            let evidence = Evidence { facts, heads: heads(updates), unread };
            if let Some(boot) = &boot {
                for rival in rivals(boot.kind) {
                    tracing::warn!("{rival}");
                }
            }
            (boot, evidence, rules(updates))
        }
        Err(finding) => {
            let meant = settings.without_slots();
            let mistake = if meant { "" } else { "the configuration has a mistake: " };
            let facts = Err(format!("{mistake}{finding}"));
            // With a mistake the record may lie somewhere else.
            let unknown = !meant && (!settings.no_slots() || started_as_a_set());
            let unread = record.is_none() && unknown;
            (None, Evidence { facts, heads: [false; 2], unread }, no_rules())
        }
    };
    let (machine, first) = Machine::start(record, evidence, rules, now);
    let performer = Performer::new(settings.clone(), store, boot, clock, refusal);
    Ok(Opened { machine, first, performer })
}

/// Whether nobody else has the state now.
///
/// # Errors
/// Somebody has.
pub fn unlocked(settings: &Settings) -> Result<(), OpenError> {
    match StateDir::open(&settings.state_dir).and_then(|dir| dir.lock()) {
        Err(e @ StateError::Locked { .. }) => Err(OpenError::Locked(e.to_string())),
        // What else is wrong with it is told by [`open`].
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether this user may work with the state at all; what else is wrong with it is told by [`open`].
///
/// # Errors
/// The reason.
pub fn permitted(settings: &Settings) -> Result<(), String> {
    match StateDir::open(&settings.state_dir) {
        Err(e @ StateError::NotPrivate { .. }) => Err(e.to_string()),
        Err(StateError::Io { action, path, source }) if source.kind() == ErrorKind::PermissionDenied => {
            Err(format!("cannot {action} {}: {source}; run this as root", path.display()))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// What the state directory holds.
#[derive(Default)]
struct State {
    store: Option<RecordStore>,
    record: Option<Record>,
    /// Why no update is taken.
    refusal: Option<String>,
    /// There is no record, and it is not that there never was one.
    unread: bool,
}

/// Whoever started this kernel knows of sets, so a trial may be pending although no set is configured.
fn started_as_a_set() -> bool {
    let cmdline = otandem_device::machine::cmdline().unwrap_or_default();
    ["otandem.set", "rauc.slot"].iter().any(|key| !cmdline_values(&cmdline, key).is_empty())
}

fn state(settings: &Settings) -> Result<State, OpenError> {
    let opened = StateDir::open(&settings.state_dir).and_then(|dir| {
        let lock: Lock = dir.lock()?;
        RecordStore::open(&dir, &lock)
    });
    match opened {
        Ok((store, loaded)) => {
            loaded.notes.iter().for_each(|note| tracing::warn!("{note}"));
            let damaged = loaded.payload.is_some();
            let record = loaded.payload.and_then(|bytes| match Record::decode(&bytes) {
                Ok(record) => Some(record),
                Err(e) => {
                    let aside = settings.state_dir.join("record.bad");
                    tracing::error!("{e}: taken as lost, kept as {}", aside.display());
                    let _ = atomic_write(&aside, &bytes, 0o600);
                    None
                }
            });
            let unread = record.is_none() && (loaded.lost || damaged);
            Ok(State { store: Some(store), record, refusal: None, unread })
        }
        Err(e @ StateError::Locked { .. }) => Err(OpenError::Locked(e.to_string())),
        Err(e) => {
            tracing::error!("the state directory is not usable: {e}");
            let refusal = Some(format!("the state directory is not usable: {e}"));
            Ok(State { refusal, unread: true, ..State::default() })
        }
    }
}

/// UPDATE-RULES 4.3: a record that only one set sees cannot say to the other what happened.
fn not_shared(settings: &Settings, updates: &UpdateSettings) -> Option<String> {
    if !updates.state_shared {
        return None;
    }
    let slots: Vec<_> =
        SetId::BOTH.iter().flat_map(|set| updates.set(*set).slots.values().cloned()).collect();
    match shared_with_root(&settings.state_dir, &slots) {
        Ok(None) => None,
        Ok(Some(why)) => Some(format!(
            "the state directory {} is not shared by both sets: {why}; put it on a partition of its own, or set \
             update.state-shared = false",
            settings.state_dir.display()
        )),
        Err(e) => Some(format!("where the state directory lies is not known: {e}")),
    }
}

/// Which sets begin with something: A, B.
pub fn heads(updates: &UpdateSettings) -> [bool; 2] {
    SetId::BOTH.map(|set| updates.set(set).slots.values().all(|path| begins(path)))
}

/// The bootloader of this device.
pub struct Loader {
    /// Which one.
    pub kind: BootKind,
    /// How it is asked and told.
    pub control: Box<dyn BootControl>,
}

/// The bootloader, as far as it could be opened, and what it says.
pub type Boot = (Option<Loader>, Result<Facts, String>);

/// Opens the bootloader and asks it.
pub fn bootloader(updates: &UpdateSettings) -> Boot {
    match features::boot_control(updates) {
        Ok((kind, mut control)) => {
            let facts = control.facts().map_err(|e| e.to_string());
            (Some(Loader { kind, control }), facts)
        }
        Err(why) => (None, Err(why)),
    }
}

/// Services that would confirm a set of this bootloader behind our back.
pub fn rivals(kind: BootKind) -> Vec<String> {
    otandem_boot::rivals::rivals(Path::new("/"), kind)
}

fn rules(updates: &UpdateSettings) -> Rules {
    Rules {
        health_timeout: updates.health_timeout,
        cloud_timeout: updates.cloud_timeout,
        retry_interval: updates.retry_interval,
        defer_limit: updates.defer_limit,
        reboot_window: updates.reboot_window,
        record_shared: updates.state_shared,
        reboot_reserve: updates.reboot_reserve,
        slots: updates.a.slots.keys().cloned().gather(),
    }
}

/// For a machine that may touch nothing.
fn no_rules() -> Rules {
    Rules {
        health_timeout: std::time::Duration::MAX,
        cloud_timeout: std::time::Duration::MAX,
        retry_interval: std::time::Duration::MAX,
        defer_limit: std::time::Duration::MAX,
        reboot_window: None,
        record_shared: false,
        reboot_reserve: std::time::Duration::ZERO,
        slots: vec![],
    }
}

/// The slot begins with something other than zeros.
fn begins(path: &Path) -> bool {
    let mut buffer = vec![0; 64 * 1024];
    let Ok(mut file) = File::open(path) else { return false };
    let mut seen = 0;
    while seen < HEAD {
        match file.read(&mut buffer) {
            Ok(0) | Err(_) => return false,
            Ok(n) if buffer[..n].iter().any(|b| *b != 0) => return true,
            Ok(n) => seen += n,
        }
    }
    false
}
