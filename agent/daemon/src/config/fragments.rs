//! What one file says: every key optional, every table read key by key, so that one mistake costs one key and is
//! told by its full name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Value;

use super::provisioning::Parameter;
use super::values::{Bytes, DayWindow, Span};
use super::{Area, Finding, Kind};

/// Declares a table: its struct of optional fields, its list of keys, how it takes a key, how a later file wins.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($field:ident : $ty:ty = $key:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq)]
        #[allow(missing_docs)] // each key is documented in the commented example file, which the tests hold complete
        pub struct $name { $(pub $field: Option<$ty>,)* }

        impl Table for $name {
            const KEYS: &'static [&'static str] = &[$($key,)*];

            fn take(&mut self, key: &str, value: Value) -> Result<bool, toml::de::Error> {
                match key {
                    $($key => self.$field = Some(<$ty>::deserialize(value)?),)*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            fn merge(&mut self, later: Self) {
                $(if later.$field.is_some() { self.$field = later.$field; })*
            }
        }
    };
}

/// A table of optional keys.
pub(super) trait Table: Default {
    /// Every key that it knows; the tests hold the example file complete with it.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the test of the example file"))]
    const KEYS: &'static [&'static str];
    /// Takes `key`; `false` if it is not known.
    fn take(&mut self, key: &str, value: Value) -> Result<bool, toml::de::Error>;
    /// Every key that `later` has wins.
    fn merge(&mut self, later: Self);
}

table! {
    /// `[device]`
    Device {
        compatible: String = "compatible",
        version_file: PathBuf = "version-file",
        version_key: String = "version-key",
    }
}
table! {
    /// `[update]`
    Update {
        state_dir: PathBuf = "state-dir",
        state_shared: bool = "state-shared",
        without_slots: bool = "without-slots",
        run_dir: PathBuf = "run-dir",
        health_dir: PathBuf = "health-dir",
        health_timeout: Span = "health-timeout",
        health_check_timeout: Span = "health-check-timeout",
        require_cloud: bool = "require-cloud",
        cloud_timeout: Span = "cloud-timeout",
        trial_boots: u8 = "trial-boots",
        reboot_command: Vec<String> = "reboot-command",
        reboot_window: DayWindow = "reboot-window",
        retry_interval: Span = "retry-interval",
        defer_limit: Span = "defer-limit",
        reboot_reserve: Span = "reboot-reserve",
        hook_dir: PathBuf = "hook-dir",
        hook_timeout: Span = "hook-timeout",
        rate_limit: Bytes = "rate-limit",
        ca: PathBuf = "ca",
        read_back: bool = "read-back",
        download_timeout: Span = "download-timeout",
        zstd_window: Bytes = "zstd-window",
        xz_memory: Bytes = "xz-memory",
        allow_other_disk: bool = "allow-other-disk",
        if_missing: BTreeMap<String, String> = "if-missing",
        boots_first: String = "boots-first",
        watchdog: PathBuf = "watchdog",
        checkpoint_bytes: Bytes = "checkpoint-bytes",
        checkpoint_interval: Span = "checkpoint-interval",
    }
}
table! {
    /// `[bootloader]`
    Bootloader {
        kind: String = "kind",
        program: PathBuf = "program",
        timeout: Span = "timeout",
        directory: PathBuf = "directory",
        fw_env_config: PathBuf = "fw-env-config",
        fw_printenv: PathBuf = "fw-printenv",
        fw_setenv: PathBuf = "fw-setenv",
        grubenv: PathBuf = "grubenv",
        entries_a: PathBuf = "entries-a",
        entries_b: PathBuf = "entries-b",
    }
}
table! {
    /// `[cloud]`
    Cloud {
        kind: String = "kind",
        endpoint: String = "endpoint",
        port: u16 = "port",
        thing_name: String = "thing-name",
        thing_name_file: PathBuf = "thing-name-file",
        client_id: String = "client-id",
        keep_alive: Span = "keep-alive",
        connect_timeout: Span = "connect-timeout",
        ca: PathBuf = "ca",
        cert_store: PathBuf = "cert-store",
        cert: PathBuf = "cert",
        key: PathBuf = "key",
        publish_rate: u32 = "publish-rate",
        in_flight: u16 = "in-flight",
        last_will_topic: String = "last-will-topic",
        last_will_payload: String = "last-will-payload",
    }
}
table! {
    /// `[network]`
    Network {
        proxy: String = "proxy",
        connect_timeout: Span = "connect-timeout",
        read_timeout: Span = "read-timeout",
    }
}
table! {
    /// `[log]`
    Log {
        level: String = "level",
        target: String = "target",
    }
}
table! {
    /// `[control]`
    Control {
        socket: PathBuf = "socket",
        group: String = "group",
    }
}
table! {
    /// `[jobs]`
    Jobs {
        enabled: bool = "enabled",
        handler_directory: PathBuf = "handler-directory",
        step_timeout: Span = "step-timeout",
        handler_timeout: Span = "handler-timeout",
        job_timeout: Span = "job-timeout",
        run_handlers_as_user: bool = "run-handlers-as-user",
        strict_permissions: bool = "strict-permissions",
        old_schema_stderr: String = "old-schema-stderr",
        old_schema_user_argument: bool = "old-schema-user-argument",
        attributes: BTreeMap<String, String> = "attributes",
    }
}

table! {
    /// `[messages.NAME]`
    Messages {
        directory: PathBuf = "directory",
        rate: u32 = "rate",
        concurrency: u16 = "concurrency",
        retries: u32 = "retries",
        order: String = "order",
        topic_prefix: String = "topic-prefix",
        topic_suffix: String = "topic-suffix",
        letterhead_file: PathBuf = "letterhead-file",
        letterhead_generator: PathBuf = "letterhead-generator",
        priorities: bool = "priorities",
        reserved_topics: bool = "reserved-topics",
        keep_failed: u32 = "keep-failed",
        keep_failed_bytes: Bytes = "keep-failed-bytes",
        max_files: u32 = "max-files",
        max_bytes: Bytes = "max-bytes",
        drop: String = "drop",
    }
}

table! {
    /// `[subscribe.NAME]`
    Subscribe {
        topic: String = "topic",
        write: PathBuf = "write",
        exec: String = "exec",
        timeout: Span = "timeout",
        queue: u16 = "queue",
    }
}
table! {
    /// `[commands]`
    Commands {
        directory: PathBuf = "directory",
        keep_failed: u32 = "keep-failed",
    }
}
table! {
    /// `[services.NAME]`
    Services {
        thing: String = "thing",
        shadow: String = "shadow",
        directory: PathBuf = "directory",
        updates: PathBuf = "updates",
        default_shadow: String = "default-shadow",
        empty_list_deletes: bool = "empty-list-deletes",
        keep_failed: u32 = "keep-failed",
    }
}
table! {
    /// `[provisioning]`
    Provisioning {
        claim_store: PathBuf = "claim-store",
        template: String = "template",
        parameters: BTreeMap<String, Parameter> = "parameters",
        key: String = "key",
        outfile: PathBuf = "outfile",
        outformat: String = "outformat",
        notify_command: String = "notify-command",
        notify_timeout: Span = "notify-timeout",
        renew_before: Span = "renew-before",
        client_id: String = "client-id",
    }
}

/// Where a slot is: a path, or a table that says more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The device or file.
    pub path: PathBuf,
    /// A file that is overwritten where it lies, in place of one that is written beside it and renamed.
    pub in_place: bool,
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        struct Table {
            path: PathBuf,
            #[serde(default)]
            in_place: bool,
        }
        let wrong = |why: &str| {
            let form = "expected a path or { path = \"...\", in-place = true }";
            serde::de::Error::custom(format!("{form}: {why}"))
        };
        match Value::deserialize(d)? {
            Value::String(path) => Ok(Self { path: path.into(), in_place: false }),
            // A struct could also be read from a list.
            value @ Value::Table(_) => {
                let table = Table::deserialize(value).map_err(|e| wrong(&one_line(e.message())))?;
                Ok(Self { path: table.path, in_place: table.in_place })
            }
            other => Err(wrong(&format!("found {}", other.type_str()))),
        }
    }
}

/// `[slots.A]` or `[slots.B]`: two fixed keys, every other one is a slot name with its place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Slots {
    /// The number that `bc_idx` names it by.
    pub index: Option<u32>,
    /// The bootloader's name for it.
    pub boot_name: Option<String>,
    /// Slot name to place.
    pub places: BTreeMap<String, Place>,
}

impl Table for Slots {
    const KEYS: &'static [&'static str] = &["index", "boot-name"];

    fn take(&mut self, key: &str, value: Value) -> Result<bool, toml::de::Error> {
        match key {
            "index" => self.index = Some(u32::deserialize(value)?),
            "boot-name" => self.boot_name = Some(String::deserialize(value)?),
            slot => {
                let place = Place::deserialize(value)?;
                self.places.insert(slot.to_owned(), place);
            }
        }
        Ok(true)
    }

    fn merge(&mut self, later: Self) {
        self.index = later.index.or(self.index);
        if later.boot_name.is_some() {
            self.boot_name = later.boot_name;
        }
        self.places.extend(later.places);
    }
}

/// Everything that one file, or all of them merged, says.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)] // named as the tables are
pub struct Fragment {
    pub device: Device,
    pub update: Update,
    pub bootloader: Bootloader,
    pub slots_a: Slots,
    pub slots_b: Slots,
    pub cloud: Cloud,
    pub network: Network,
    pub log: Log,
    pub control: Control,
    pub jobs: Jobs,
    pub messages: BTreeMap<String, Messages>,
    pub subscribe: BTreeMap<String, Subscribe>,
    pub commands: Commands,
    pub services: BTreeMap<String, Services>,
    pub provisioning: Provisioning,
}

impl Fragment {
    /// Reads `text` of `file`; what cannot be read is left out and told.
    #[must_use]
    pub fn parse(file: &Path, text: &str) -> (Self, Vec<Finding>) {
        let mut fragment = Self::default();
        let mut findings = Vec::new();
        let tables = match text.parse::<toml::Table>() {
            Ok(tables) => tables,
            Err(e) => {
                // Which tables the file holds cannot be known, so neither can what its author wanted of updates.
                findings.push(Finding {
                    file: Some(file.to_owned()),
                    key: String::new(),
                    problem: format!("not TOML: {}{}", one_line(e.message()), line(text, e.span())),
                    kind: Kind::Invalid(Area::Update),
                });
                return (fragment, findings);
            }
        };
        for (name, value) in tables {
            fragment.take_table(file, &name, value, &mut findings);
        }
        (fragment, findings)
    }

    fn take_table(&mut self, file: &Path, name: &str, value: Value, findings: &mut Vec<Finding>) {
        let mut to = Reader { file, findings };
        match name {
            "device" => to.table(&mut self.device, name, Area::Update, value),
            "update" => to.table(&mut self.update, name, Area::Update, value),
            "bootloader" => to.table(&mut self.bootloader, name, Area::Update, value),
            "cloud" => to.table(&mut self.cloud, name, Area::Cloud, value),
            "network" => to.table(&mut self.network, name, Area::Network, value),
            "log" => to.table(&mut self.log, name, Area::Log, value),
            "control" => to.table(&mut self.control, name, Area::Control, value),
            "jobs" => to.table(&mut self.jobs, name, Area::Jobs, value),
            "commands" => to.table(&mut self.commands, name, Area::Commands, value),
            "messages" => to.tables(&mut self.messages, name, Area::Messages, value),
            "subscribe" => to.tables(&mut self.subscribe, name, Area::Subscribe, value),
            "services" => to.tables(&mut self.services, name, Area::Services, value),
            "provisioning" => to.table(&mut self.provisioning, name, Area::Provisioning, value),
            "slots" => match value {
                Value::Table(sets) => {
                    for (set, value) in sets {
                        let path = format!("slots.{set}");
                        match set.as_str() {
                            "A" => to.table(&mut self.slots_a, &path, Area::Update, value),
                            "B" => to.table(&mut self.slots_b, &path, Area::Update, value),
                            _ => to.invalid(path, "there are two slot sets, A and B", Area::Update),
                        }
                    }
                }
                _ => to.invalid(
                    name.to_owned(),
                    "must be a table: write [slots.A] and [slots.B]",
                    Area::Update,
                ),
            },
            _ => to.unknown(name.to_owned()),
        }
    }

    /// Every key that `later` has wins.
    pub fn merge(&mut self, later: Self) {
        self.device.merge(later.device);
        self.update.merge(later.update);
        self.bootloader.merge(later.bootloader);
        self.slots_a.merge(later.slots_a);
        self.slots_b.merge(later.slots_b);
        self.cloud.merge(later.cloud);
        self.network.merge(later.network);
        self.log.merge(later.log);
        self.control.merge(later.control);
        self.jobs.merge(later.jobs);
        self.provisioning.merge(later.provisioning);
        for (name, directory) in later.messages {
            self.messages.entry(name).or_default().merge(directory);
        }
        for (name, rule) in later.subscribe {
            self.subscribe.entry(name).or_default().merge(rule);
        }
        self.commands.merge(later.commands);
        for (name, services) in later.services {
            self.services.entry(name).or_default().merge(services);
        }
    }
}

impl Fragment {
    /// As [`Fragment::merge`], and where `later` says something in one way it is not said in the other way any more.
    pub(super) fn replace(&mut self, later: Self) {
        if later.cloud.thing_name.is_some() {
            self.cloud.thing_name_file = None;
        }
        if later.cloud.cert.is_some() || later.cloud.key.is_some() {
            self.cloud.cert_store = None;
        }
        if later.cloud.cert_store.is_some() {
            (self.cloud.cert, self.cloud.key) = (None, None);
        }
        self.merge(later);
    }
}

/// Every key of every table that has fixed keys, as `table.key`.
#[cfg(test)]
pub(super) fn all_keys() -> Vec<String> {
    fn of<T: Table>(table: &str) -> impl Iterator<Item = String> {
        T::KEYS.iter().map(move |k| format!("{table}.{k}"))
    }
    of::<Device>("device")
        .chain(of::<Update>("update"))
        .chain(of::<Bootloader>("bootloader"))
        .chain(of::<Slots>("slots.A"))
        .chain(of::<Slots>("slots.B"))
        .chain(of::<Cloud>("cloud"))
        .chain(of::<Network>("network"))
        .chain(of::<Log>("log"))
        .chain(of::<Control>("control"))
        .chain(of::<Jobs>("jobs"))
        .chain(of::<Messages>("messages.telemetry"))
        .chain(of::<Subscribe>("subscribe.alarm"))
        .chain(of::<Commands>("commands"))
        .chain(of::<Services>("services.device"))
        .chain(of::<Provisioning>("provisioning"))
        .collect()
}

struct Reader<'a> {
    file: &'a Path,
    findings: &'a mut Vec<Finding>,
}

impl Reader<'_> {
    /// A table for each name that its author gave.
    fn tables<T: Table>(&mut self, into: &mut BTreeMap<String, T>, name: &str, area: Area, value: Value) {
        let Value::Table(tables) = value else {
            let problem = format!("must be a table under a name of yours: write [{name}.NAME]");
            return self.invalid(name.to_owned(), &problem, area);
        };
        for (key, value) in tables {
            let path = format!("{name}.{key}");
            self.table(into.entry(key).or_default(), &path, area, value);
        }
    }

    fn table<T: Table>(&mut self, into: &mut T, path: &str, area: Area, value: Value) {
        let Value::Table(keys) = value else {
            return self.invalid(path.to_owned(), &format!("must be a table: write [{path}]"), area);
        };
        for (key, value) in keys {
            match into.take(&key, value) {
                Ok(true) => {}
                Ok(false) => self.unknown(format!("{path}.{key}")),
                Err(e) => self.invalid(format!("{path}.{key}"), &one_line(e.message()), area),
            }
        }
    }

    fn unknown(&mut self, key: String) {
        let problem = "not a key that otandem knows; it has no effect".to_owned();
        self.findings.push(Finding { file: Some(self.file.to_owned()), key, problem, kind: Kind::Unknown });
    }

    fn invalid(&mut self, key: String, problem: &str, area: Area) {
        let kind = Kind::Invalid(area);
        self.findings.push(Finding {
            file: Some(self.file.to_owned()),
            key,
            problem: problem.to_owned(),
            kind,
        });
    }
}

/// Where the mistake is. The line itself is not shown: it may hold a password.
fn line(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let before = span.and_then(|s| text.get(..s.start));
    before.map(|t| format!(" in line {}", t.matches('\n').count() + 1)).unwrap_or_default()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
