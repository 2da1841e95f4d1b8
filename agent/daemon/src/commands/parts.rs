//! Puts an agent together: what it starts from, what uses the session, and the session.

use std::path::PathBuf;
use std::sync::Arc;

use otandem_core::boot::SetId;
use otandem_core::gather::Gather as _;
use otandem_core::jobs::Identity;
use otandem_core::jobs::intake::JobRules;
use otandem_core::plan::Layout;
use otandem_core::update::Then;
use tokio::sync::oneshot;

use crate::agent::{Link, OpenError, Parts, Service, open};
use crate::cloud::channel::{Ends, Topics};
use crate::cloud::identity;
use crate::cloud::tls::Clock;
use crate::cloud::wallet::{Keeping, Wallet};
use crate::config::{Feature as Switch, IfMissing, Settings, UpdateSettings};
use crate::feature::Feature;
use crate::feature::jobs::Others;
use crate::{features, general};

/// Events of the kernel that are taken at once: there are few sockets. (The default is 1024, and takes room for them.)
const EVENTS: usize = 32;

/// What is done with jobs that are no firmware jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OtherJobs {
    /// Refused.
    Refuse,
    /// For this program.
    Callback(PathBuf),
    /// Run by the agent.
    Run,
}

/// How the session is used in one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionUse {
    /// Leave the broker while an image is fetched.
    pub leave_while_fetching: bool,
    /// How far a job goes by itself.
    pub then: Then,
    /// Gets every other job.
    pub others: OtherJobs,
    /// What else uses the session.
    pub beside: Beside,
}

/// What uses the session beside jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Nothing: the process ends soon.
    Nothing,
    /// All that is configured.
    All,
}

impl SessionUse {
    /// The daemon keeps its session and reboots by itself.
    pub(super) const DAEMON: Self =
        Self { leave_while_fetching: false, then: Then::Reboot, others: OtherJobs::Run, beside: Beside::All };
}

/// One thread is enough: everything slow has a thread of its own.
pub(super) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().max_io_events_per_tick(EVENTS).build()
}

/// Everything that an agent is put together from. `session` = `None`: without the cloud.
pub(super) fn parts(
    settings: &Settings,
    session: Option<SessionUse>,
    service: Service,
) -> Result<Parts, OpenError> {
    let cloud = settings.cloud.on().zip(settings.network.as_ref().ok());
    let me = cloud.and_then(|(cloud, _)| match identity::identity(cloud, settings) {
        Ok(me) => Some(me),
        Err(why) if settings.provisioning.on().is_some() => {
            tracing::info!("not provisioned yet: {why}");
            None
        }
        Err(why) => {
            tracing::error!("no cloud session: {why}");
            None
        }
    });
    let clock = identity::clock(0);
    let opened = open(settings, Arc::clone(&clock), me.as_ref())?;
    clock.raise(opened.machine.record().wall);
    let then = session.as_ref().map_or(Then::Reboot, |s| s.then);
    let rules = settings.updates.as_ref().ok().map(|u| job_rules(u, then, settings.cloud.on().is_some()));
    let (mut features, mut link, mut named) = (Vec::<Box<dyn Feature>>::new(), None, None);
    if session.as_ref().is_some_and(|session| session.beside == Beside::All) {
        // Also of a device without a cloud.
        features.extend(switched(&settings.commands, "commands are off", features::commands));
    }
    let wallet = |cloud| Wallet::new(cloud, Arc::clone(&clock), Keeping::Preference);
    if let (Some((cloud, _)), None, Some(SessionUse { beside: Beside::All, .. })) = (cloud, &me, &session) {
        let wallet = wallet(cloud);
        let (tell, told) = oneshot::channel();
        if let Some(first) = provisioning(settings, None, wallet.clone(), Arc::clone(&clock), Some(tell)) {
            features.push(first);
            named = Some(told);
            link = Some(Link { ends: Ends::nowhere(), leave_while_fetching: false, wallet });
        }
    }
    if let (Some((cloud, network)), Some(me), Some(session)) = (cloud, me, session) {
        let wallet = wallet(cloud);
        let others = match session.others {
            OtherJobs::Refuse => Others::Refuse,
            OtherJobs::Callback(program) => Others::Callback(program.to_string_lossy().into_owned()),
            OtherJobs::Run => Others::Run(general::rules(settings, &me.thing)),
        };
        features.extend(jobs(settings, &me, rules.clone(), others));
        if session.beside == Beside::All {
            features.extend(switched(&settings.messages, "messages are off", features::messages));
            features.extend(switched(&settings.subscribe, "subscriptions are off", features::subscribe));
            let shadows = |tables| features::shadows(tables, &me.thing, &settings.state_dir);
            features.extend(switched(&settings.services, "shadows are off", shadows));
            let (wallet, clock) = (wallet.clone(), Arc::clone(&clock));
            features.extend(provisioning(settings, Some(&me.thing), wallet, clock, None));
        }
        let topics = Topics {
            needed: features.iter().flat_map(|f| f.topics()).collect(),
            optional: features.iter().flat_map(|f| f.optional()).collect(),
        };
        let ends = features::connect(cloud, network, &me.thing, topics, wallet.clone(), clock);
        link = ends.map(|ends| Link { ends, leave_while_fetching: session.leave_while_fetching, wallet });
    }
    let service = if named.is_some() { service.without_farewell() } else { service };
    Ok(Parts { opened, features, link, service, rules, named })
}

fn jobs(
    settings: &Settings,
    me: &Identity,
    rules: Option<JobRules>,
    others: Others,
) -> Option<Box<dyn Feature>> {
    if !matches!(settings.jobs, Switch::On(_)) {
        tracing::warn!("jobs are off");
        return None;
    }
    // With a mistake in the update tables each firmware job is refused with that as its reason.
    features::jobs(me.clone(), rules.unwrap_or_else(no_rules), others)
}

/// A feature, if it is on and this build has it; `off` is told where its tables have a mistake.
fn switched<T: Clone>(
    switch: &Switch<T>,
    off: &str,
    make: impl FnOnce(T) -> Option<Box<dyn Feature>>,
) -> Option<Box<dyn Feature>> {
    match switch {
        Switch::Off => None,
        Switch::On(settings) => make(settings.clone()),
        Switch::Broken(_) => {
            tracing::warn!("{off}");
            None
        }
    }
}

/// `thing`: the device's name; who runs a device without one is told by `named` when it has got one.
fn provisioning(
    settings: &Settings,
    thing: Option<&str>,
    wallet: Wallet,
    clock: Arc<Clock>,
    named: Option<oneshot::Sender<()>>,
) -> Option<Box<dyn Feature>> {
    let make = |_| features::provisioning(settings, thing, wallet, clock, named);
    switched(&settings.provisioning, "provisioning is off", make)
}

fn no_rules() -> JobRules {
    JobRules { layout: Layout::default(), compatible: None, require_cloud: true, then: Then::Reboot }
}

fn job_rules(updates: &UpdateSettings, then: Then, cloud: bool) -> JobRules {
    let paths = |set: SetId| {
        let slots = updates.set(set).slots.iter();
        slots.map(|(name, path)| (name.clone(), path.to_string_lossy().into_owned())).gather()
    };
    let copied = |(slot, what): (&String, &IfMissing)| matches!(what, IfMissing::Copy).then(|| slot.clone());
    JobRules {
        layout: Layout {
            index: [u64::from(updates.a.index), u64::from(updates.b.index)],
            paths: [paths(SetId::A), paths(SetId::B)],
            copy_if_missing: updates.if_missing.iter().filter_map(copied).gather(),
        },
        compatible: updates.compatible.clone(),
        require_cloud: updates.require_cloud.unwrap_or(true) && cloud,
        then,
    }
}
