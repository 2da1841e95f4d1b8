//! The validated configuration: what the rest of the code sees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

pub use otandem_boot::detect::{Kind as BootKind, Places};
use otandem_core::boot::SetId;
use otandem_core::filter::Filter;
use otandem_core::formats::Format;
use otandem_core::jobs::document::OldSchema;
use otandem_core::messages::{Order, Pace, Reserved};
use otandem_core::provisioning::KeyOrigin;
pub use otandem_core::provisioning::is_thing_name;
use otandem_core::shadow::merge::EmptyList;
use otandem_device::jobs::HandlerUser;
use otandem_device::jobs::place::Rule;
use otandem_device::spool::Keep;
use url::Url;

use super::fragments::Fragment;
use super::provisioning::Parameter;
use super::values::Window;
use super::{Finding, Kind};

/// The one mistake of a device that does not want updates.
pub(super) const NO_SLOTS: &str = "no slots are configured: name them in [slots.A] and [slots.B]";
/// Where handlers are that a job asks for by `"path": "default"`.
pub const DEFAULT_HANDLER_DIRECTORY: &str = "/usr/lib/otandem/handlers";
pub(super) const DEFAULT_STATE_DIR: &str = "/var/lib/otandem";

/// The whole configuration, valid.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where the record, the outbox and the heads of slots live.
    pub state_dir: PathBuf,
    /// What must not outlive a reboot: the control socket, `settled`.
    pub run_dir: PathBuf,
    /// Slots, bootloader and rules of an update; or why updates are refused.
    pub updates: Result<UpdateSettings, Finding>,
    /// The cloud session. Off: an offline device.
    pub cloud: Feature<CloudSettings>,
    /// Jobs from the cloud.
    pub jobs: Feature<JobsSettings>,
    /// Directories whose files become messages.
    pub messages: Feature<Vec<MessagesSettings>>,
    /// Topics whose messages go to files and programs.
    pub subscribe: Feature<Vec<SubscribeSettings>>,
    /// A directory whose files are commands.
    pub commands: Feature<CommandsSettings>,
    /// Shadows, the files of their services, and directories with updates of them.
    pub services: Feature<Vec<ServicesSettings>>,
    /// A certificate of its own, by a claim.
    pub provisioning: Feature<ProvisioningSettings>,
    /// Proxy and timeouts; broken: nothing may go out, since going direct is not what was asked for.
    pub network: Result<NetworkSettings, Finding>,
    /// Where logs go.
    pub log: LogSettings,
    /// The control socket.
    pub control: ControlSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self::from_fragment(Fragment::default(), &mut Vec::new())
    }
}

impl Settings {
    /// This device takes no firmware because it was told so.
    #[must_use]
    pub fn without_slots(&self) -> bool {
        self.updates.as_ref().is_err_and(|finding| finding.kind == Kind::Idle)
    }

    /// Nothing is wrong but that there are no slots: updates are not what this device wants, or its configuration is
    /// not there.
    #[must_use]
    pub fn no_slots(&self) -> bool {
        self.updates.as_ref().is_err_and(|finding| finding.problem == NO_SLOTS)
    }
}

/// A function that the configuration may turn off, on purpose or by a mistake.
#[derive(Debug, Clone, PartialEq)]
pub enum Feature<T> {
    /// Not configured.
    Off,
    /// On, with these settings.
    On(T),
    /// Off because of this mistake.
    Broken(Finding),
}

impl<T> Feature<T> {
    /// The settings, if it is on.
    pub const fn on(&self) -> Option<&T> {
        match self {
            Self::On(settings) => Some(settings),
            Self::Off | Self::Broken(_) => None,
        }
    }
}

/// One slot set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotSet {
    /// What `bc_idx` of a job calls it.
    pub index: u32,
    /// What the bootloader calls it.
    pub boot_name: String,
    /// Slot name to device or file; both sets have the same names.
    pub slots: BTreeMap<String, PathBuf>,
    /// The slots that are files overwritten in place: a bootloader reads them, and may not see a rename.
    pub in_place: BTreeSet<String>,
}

/// The boot control back end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootloader {
    /// Which one; `None`: found out at start.
    pub kind: Option<BootKind>,
    /// Where its tools and files are. A custom one has its program, a simulated one its directory.
    pub places: Places,
}

/// What to do with a slot of the target set that a job does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfMissing {
    /// Copy it from the booted set and verify.
    Copy,
}

/// Everything an update needs.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // one field per key; the commented example file says what each is for
pub struct UpdateSettings {
    pub compatible: Option<String>,
    pub version_file: PathBuf,
    pub version_key: String,
    pub a: SlotSet,
    pub b: SlotSet,
    pub bootloader: Bootloader,
    pub state_shared: bool,
    pub health_dir: PathBuf,
    pub health_timeout: Duration,
    pub health_check_timeout: Duration,
    /// `None`: true for jobs, false for local installs.
    pub require_cloud: Option<bool>,
    pub cloud_timeout: Duration,
    pub trial_boots: u8,
    pub reboot_command: Vec<String>,
    pub reboot_window: Option<Window>,
    pub retry_interval: Duration,
    pub defer_limit: Duration,
    pub reboot_reserve: Duration,
    pub hook_dir: PathBuf,
    pub hook_timeout: Duration,
    /// Bytes per second of the source; `None`: no limit.
    pub rate_limit: Option<u64>,
    /// Roots for downloads; `None`: the system's.
    pub ca: Option<PathBuf>,
    pub read_back: bool,
    pub download_timeout: Duration,
    pub zstd_window: u64,
    pub xz_memory: u64,
    pub allow_other_disk: bool,
    pub if_missing: BTreeMap<String, IfMissing>,
    /// The slot that the bootloader reads first: its head is written last.
    pub boots_first: String,
    pub watchdog: Option<PathBuf>,
    pub checkpoint_bytes: u64,
    pub checkpoint_interval: Duration,
}

impl UpdateSettings {
    /// The set `id`.
    #[must_use]
    pub const fn set(&self, id: SetId) -> &SlotSet {
        match id {
            SetId::A => &self.a,
            SetId::B => &self.b,
        }
    }
}

/// Where the device's certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A directory of certificates and their keys; see [`otandem_device::certstore`].
    Store(PathBuf),
    /// Two PEM files.
    Files {
        /// Chain, the device's own first.
        cert: PathBuf,
        /// Private key.
        key: PathBuf,
    },
}

/// The name under which the cloud knows the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ThingName {
    /// As configured.
    Name(String),
    /// The first line of this file, read when the session starts.
    File(PathBuf),
}

/// The cloud session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudSettings {
    /// Host name.
    pub endpoint: String,
    /// 8883, or 443 (then ALPN tells the broker that this is MQTT).
    pub port: u16,
    /// Thing name.
    pub thing: ThingName,
    /// `None`: the thing name.
    pub client_id: Option<String>,
    /// Between two signs of life.
    pub keep_alive: Duration,
    /// Longest time to connect: TCP, proxy, TLS and MQTT together.
    pub connect_timeout: Duration,
    /// Roots for the endpoint; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Certificate and key.
    pub credentials: Credentials,
    /// Publishes per second; 0 = no limit.
    pub publish_rate: u32,
    /// Publishes that wait for their acknowledgement; 0 = no limit.
    pub in_flight: u16,
    /// What the broker publishes when the session breaks: topic and payload.
    pub last_will: Option<(String, String)>,
}

/// Jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobsSettings {
    /// Where handlers of general jobs are.
    pub handler_directory: PathBuf,
    /// Sent as `stepTimeoutInMinutes`; covers reboot and trial. `None`: not sent.
    pub step_timeout: Option<Duration>,
    /// For a step that says nothing of its time. `None`: as long as it takes.
    pub handler_timeout: Option<Duration>,
    /// For a job that says nothing of its time. `None`: as long as it takes.
    pub job_timeout: Option<Duration>,
    /// As whom handlers run.
    pub handler_user: HandlerUser,
    /// Which files may be handlers.
    pub permissions: Rule,
    /// How documents of the old schema are read.
    pub old_schema: OldSchema,
    /// What conditions of documents may ask for beside what the agent knows by itself.
    pub attributes: BTreeMap<String, String>,
}

/// What goes when more waits than may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Excess {
    /// Those modified first are deleted.
    Oldest,
    /// Those modified last are deleted.
    Newest,
    /// Those modified last are moved to failed/.
    #[default]
    Refuse,
}

/// How much may wait; 0 = as much as comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Files.
    pub files: u64,
    /// Their bytes together.
    pub bytes: u64,
    /// What goes of more.
    pub excess: Excess,
}

/// A directory whose files become messages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // one field per key; the commented example file says what each is for
pub struct MessagesSettings {
    /// Of its table, for status and log.
    pub name: String,
    pub directory: PathBuf,
    pub pace: Pace,
    pub order: Order,
    pub topic_prefix: String,
    pub topic_suffix: String,
    pub letterhead_file: Option<PathBuf>,
    pub letterhead_generator: Option<PathBuf>,
    pub priorities: bool,
    pub reserved: Reserved,
    /// Of failed/.
    pub keep: Keep,
    /// Of new/.
    pub bounds: Limits,
}

/// Where messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Into this file, pipe or device.
    Write(PathBuf),
    /// To this command line, for `/bin/sh -c`.
    Exec(String),
}

/// Topics whose messages go to a file or program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeSettings {
    /// Of its table, for status and log.
    pub name: String,
    /// Which topics.
    pub filter: Filter,
    /// Where their messages go.
    pub target: Target,
    /// What one message may take.
    pub timeout: Duration,
    /// Messages that may wait.
    pub queue: usize,
}

/// A directory whose files are commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandsSettings {
    /// Where it is.
    pub directory: PathBuf,
    /// Of failed/.
    pub keep: Keep,
}

/// Shadows of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // one field per key; the commented example file says what each is for
pub struct ServicesSettings {
    /// Of its table, for status and log.
    pub name: String,
    /// `None`: the device's own.
    pub thing: Option<String>,
    /// Of everything that names none; `None`: the classic one.
    pub shadow: Option<String>,
    pub directory: Option<PathBuf>,
    pub updates: Option<PathBuf>,
    pub default_shadow: Option<String>,
    pub empty_list: EmptyList,
    /// Of failed/.
    pub keep: Keep,
}

/// How the device gets a certificate of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisioningSettings {
    /// The store with the factory's certificate.
    pub claim_store: PathBuf,
    /// Name of the provisioning template.
    pub template: String,
    /// What the template is told of this device.
    pub parameters: BTreeMap<String, Parameter>,
    /// Where keys are made.
    pub key: KeyOrigin,
    /// Gets `{thing, configuration}` when the device was provisioned.
    pub outfile: Option<(PathBuf, Format)>,
    /// Runs then, for `/bin/sh -c`.
    pub notify_command: Option<String>,
    /// How long it may.
    pub notify_timeout: Duration,
    /// How long before the end of a certificate the next one is asked for; `None`: never.
    pub renew_before: Option<Duration>,
    /// Of the claim's session. `None`: the device's, with `-fp` behind it.
    pub client_id: Option<String>,
}

/// The way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSettings {
    /// HTTP CONNECT proxy for MQTT and downloads; may carry user and password, so never log it.
    pub proxy: Option<Url>,
    /// Longest time to open a connection for a download.
    pub connect_timeout: Duration,
    /// Longest silence in a download before it is tried again.
    pub read_timeout: Duration,
}

/// Where logs go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogTarget {
    /// journald's stderr if there, else syslog where stderr is no terminal, else stderr.
    Auto,
    /// stderr.
    Stderr,
    /// `/dev/log`.
    Syslog,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// `info`, or per module: `info,otandem::cloud=debug`.
    pub level: String,
    /// Where to.
    pub target: LogTarget,
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlSettings {
    /// Its path.
    pub socket: PathBuf,
    /// Members may give orders, as root may.
    pub group: String,
}
