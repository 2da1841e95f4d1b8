//! What the client knows: its keys, its flags, and those of its functions that this agent does not have.

use serde_json::Value;

use super::Given;

/// Keys that have a meaning here.
pub(super) const CARRIED: [&str; 19] = [
    "endpoint",
    "cert",
    "key",
    "root-ca",
    "thing-name",
    "logging.level",
    "logging.type",
    "jobs.enabled",
    "jobs.handler-directory",
    "runtime-config.completed-fp",
    "runtime-config.cert",
    "runtime-config.key",
    "runtime-config.thing-name",
    "proxy:http-proxy-enabled",
    "proxy:http-proxy-host",
    "proxy:http-proxy-port",
    "proxy:http-proxy-auth-method",
    "proxy:http-proxy-username",
    "proxy:http-proxy-password",
];

/// Before the keys of the proxy's file, which is one of its own.
pub const PROXY: &str = "proxy:";

const LOG_FILE: &str =
    "lines go to the journal, to syslog or to standard error ([log] target); a log daemon writes files";
const SDK_LOG: &str =
    "there is no other log: [log] level can name modules, as in \"info,otandem::cloud=debug\"";

/// Keys without a counterpart whose loss turns nothing off, and what to do instead.
pub(super) const DROPPED: [(&str, &str); 5] = [
    ("logging.file", LOG_FILE),
    ("logging.enable-sdk-logging", SDK_LOG),
    ("logging.sdk-log-level", SDK_LOG),
    ("logging.sdk-log-file", SDK_LOG),
    ("runtime-config.device-config", "nothing here reads what the provisioning template answered"),
];

/// A function that the client has and this agent has not.
pub(super) struct Function {
    /// The block of its keys.
    pub block: &'static str,
    /// The key that turns it on.
    pub switch: &'static str,
    /// Whether it is on where nothing is said.
    pub by_default: bool,
    /// What people call it.
    pub name: &'static str,
    /// What does that job.
    pub instead: &'static str,
}

pub(super) const TUNNELING: Function = Function {
    block: "tunneling",
    switch: "tunneling.enabled",
    by_default: true,
    name: "secure tunneling",
    instead: "run AWS's localproxy from a job handler of yours",
};

pub(super) const PROVISIONING: Function = Function {
    block: "fleet-provisioning",
    switch: "fleet-provisioning.enabled",
    by_default: false,
    name: "fleet provisioning",
    instead: "provision the device first, with the client or in the factory, and import its runtime configuration too",
};

pub(super) const FUNCTIONS: [Function; 8] = [
    TUNNELING,
    PROVISIONING,
    Function {
        block: "device-defender",
        switch: "device-defender.enabled",
        by_default: false,
        name: "Device Defender metrics",
        instead: "send them by a program of yours under a client id of its own; \"otandem status --check\" tells of the agent",
    },
    Function {
        block: "samples.pub-sub",
        switch: "samples.pub-sub.enabled",
        by_default: false,
        name: "pub/sub sample",
        instead: "publish by a program of yours under a client id of its own",
    },
    Function {
        block: "config-shadow",
        switch: "config-shadow.enabled",
        by_default: false,
        name: "configuration by a shadow",
        instead: "a job may write a file into /etc/otandem/conf.d and restart the agent",
    },
    Function {
        block: "sample-shadow",
        switch: "sample-shadow.enabled",
        by_default: false,
        name: "shadow sample",
        instead: "use shadows by a program of yours under a client id of its own",
    },
    Function {
        block: "secure-element",
        switch: "secure-element.enabled",
        by_default: false,
        name: "key in a secure element",
        instead: "the key is a file: [cloud] key",
    },
    Function {
        block: "sensor-publish",
        switch: "sensor-publish.sensors",
        by_default: false,
        name: "sensor publishing",
        instead: "publish by a program of yours under a client id of its own",
    },
];

impl Function {
    /// The function that a key is of.
    pub(super) fn of(path: &str) -> Option<&'static Self> {
        let in_block = |f: &&Self| path.strip_prefix(f.block).is_some_and(|rest| rest.starts_with('.'));
        FUNCTIONS.iter().find(in_block)
    }

    /// Whether the client would run it.
    pub(super) fn is_on(&self, given: &Given) -> bool {
        match given.get(self.switch).map(|value| (value, given.flag(self.switch))) {
            None => self.by_default,
            Some((Value::Bool(on), _)) => *on,
            Some((Value::String(text), Some(_))) => text == "true",
            Some((Value::Array(list), _)) => !list.is_empty(),
            // In a file, what is no boolean is false.
            Some(_) => false,
        }
    }
}
