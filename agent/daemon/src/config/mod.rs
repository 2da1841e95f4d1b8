//! The configuration, in three stages: what each file says ([`fragments`]), merged, and the validated [`Settings`]
//! that the rest of the code sees.
//!
//! A mistake never stops the daemon. A key that is not known has no effect and is told. A mistake in the table of
//! one feature turns that feature off. A mistake in what an update needs (`[update]`, `[bootloader]`, `[slots]`,
//! `[device]`, or a file that is no TOML at all) makes updates refused: the daemon still starts and says so. That
//! matters after a rollback, when an older agent meets a newer configuration.

pub mod chariotd;
mod check;
pub mod device_client;
pub mod fragments;
mod messages;
mod provisioning;
mod services;
pub mod settings;
mod sources;
mod subscribe;
mod updates;
pub mod values;

use std::fmt;
use std::path::PathBuf;

pub use provisioning::Parameter;
pub use settings::{
    BootKind, Bootloader, CloudSettings, CommandsSettings, ControlSettings, Credentials, Excess, Feature,
    IfMissing, JobsSettings, Limits, LogSettings, LogTarget, MessagesSettings, NetworkSettings,
    ProvisioningSettings, ServicesSettings, Settings, SlotSet, SubscribeSettings, Target, ThingName,
    UpdateSettings,
};
pub(crate) use sources::owned_by_us;
pub use sources::{ConfigError, Sources};
pub use values::Window;

/// What a mistake turns off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// Updates as a whole.
    Update,
    /// The cloud session, and with it jobs.
    Cloud,
    /// The proxy: downloads and the cloud session.
    Network,
    /// Nothing: the default log settings rule.
    Log,
    /// Nothing: the default socket is used.
    Control,
    /// Jobs.
    Jobs,
    /// Messages, of all directories.
    Messages,
    /// Subscriptions, all of them.
    Subscribe,
    /// The directory of commands.
    Commands,
    /// Shadows and their services, of all tables.
    Services,
    /// Certificates of the device's own.
    Provisioning,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Update => "updates are refused",
            Self::Cloud => "the cloud session is off",
            Self::Network => "the network is not used",
            Self::Log => "logging uses its defaults",
            Self::Control => "the control socket uses its defaults",
            Self::Jobs => "jobs are off",
            Self::Messages => "no messages are sent",
            Self::Subscribe => "nothing is subscribed to",
            Self::Commands => "no commands are taken",
            Self::Services => "shadows are left alone",
            Self::Provisioning => "no certificate is asked for",
        })
    }
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A key that is not known; it has no effect.
    Unknown,
    /// A key that is known and has no effect beside the others, such as one of another bootloader.
    Idle,
    /// A mistake, and what it turns off.
    Invalid(Area),
}

/// One thing wrong with the configuration: an error for `config check`, a warning for `run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, where one file is to blame.
    pub file: Option<PathBuf>,
    /// Full name of the key, such as `update.health-timeout`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what would be right.
    pub problem: String,
    /// How bad it is.
    pub kind: Kind,
}

impl Finding {
    /// A mistake that is no single file's.
    pub(crate) fn of(key: &str, problem: impl Into<String>, area: Area) -> Self {
        Self { file: None, key: key.to_owned(), problem: problem.into(), kind: Kind::Invalid(area) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        match self.kind {
            Kind::Invalid(area) => write!(f, " ({area})"),
            Kind::Unknown | Kind::Idle => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
