//! The client's command line.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::Given;
use super::keys::{CARRIED, Function};

/// Its flags with the key that each stands for, then two of our own. Flags without a key in the client's files get a name in
/// their block. (One text: a table of so many words is twice as large in the program.)
const FLAGS: &str = "\
--endpoint endpoint
--cert cert
--key key
--root-ca root-ca
--thing-name thing-name
--enable-jobs jobs.enabled
--jobs-handler-dir jobs.handler-directory
--log-level logging.level
--log-type logging.type
--log-file logging.file
--enable-sdk-logging logging.enable-sdk-logging
--sdk-log-level logging.sdk-log-level
--sdk-log-file logging.sdk-log-file
--enable-tunneling tunneling.enabled
--tunneling-region tunneling.region
--tunneling-service tunneling.service
--tunneling-disable-notification tunneling.disable-notification
--enable-device-defender device-defender.enabled
--device-defender-interval device-defender.interval
--enable-fleet-provisioning fleet-provisioning.enabled
--fleet-provisioning-template-name fleet-provisioning.template-name
--fleet-provisioning-template-parameters fleet-provisioning.template-parameters
--csr-file fleet-provisioning.csr-file
--device-key fleet-provisioning.device-key
--enable-pub-sub samples.pub-sub.enabled
--publish-topic samples.pub-sub.publish-topic
--publish-file samples.pub-sub.publish-file
--subscribe-topic samples.pub-sub.subscribe-topic
--subscribe-file samples.pub-sub.subscribe-file
--enable-sample-shadow sample-shadow.enabled
--shadow-name sample-shadow.shadow-name
--shadow-input-file sample-shadow.shadow-input-file
--shadow-output-file sample-shadow.shadow-output-file
--enable-config-shadow config-shadow.enabled
--enable-secure-element secure-element.enabled
--pkcs11-lib secure-element.pkcs11-lib
--secure-element-pin secure-element.secure-element-pin
--secure-element-key-label secure-element.secure-element-key-label
--secure-element-slot-id secure-element.secure-element-slot-id
--secure-element-token-label secure-element.secure-element-token-label
--config-file =config-file
--http-proxy-config =http-proxy-config
--export-default-settings =export
--config =config
--state-dir =state-dir
";
/// Of the flags above those that take no value.
const ALONE: [&str; 2] = ["--enable-sdk-logging", "--tunneling-disable-notification"];

// No key of a file has these names: they stand for files.
const CONFIG_FILE: &str = "=config-file";
const PROXY_FILE: &str = "=http-proxy-config";
const EXPORT: &str = "=export";
const OUR_CONFIG: &str = "=config";
const STATE_DIR: &str = "=state-dir";

fn flags() -> impl Iterator<Item = (&'static str, &'static str)> {
    FLAGS.lines().filter_map(|line| line.split_once(' '))
}

/// A command line that the client would refuse as well.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Neither the client nor we know it.
    #[error("{0:?} is no flag of the AWS IoT Device Client; --help lists them")]
    Unknown(String),
    /// Given twice.
    #[error("{0} is given more than once: keep one")]
    Twice(&'static str),
    /// Without its value.
    #[error("{0} needs a value behind it")]
    NoValue(&'static str),
    /// Its value is not text.
    #[error("the value of {0} is not UTF-8; write it into a file in UTF-8")]
    NotText(&'static str),
}

/// What a command line asks for.
#[derive(Debug, PartialEq)]
pub enum Order {
    /// `--help`
    Help,
    /// `--version`
    Version,
    /// `--export-default-settings`: into this file.
    Export(PathBuf),
    /// To run.
    Run(Line),
}

/// A command line that runs the agent.
#[derive(Debug, Default, PartialEq)]
pub struct Line {
    /// Settings.
    pub given: Given,
    /// `--config-file`
    pub config_file: Option<PathBuf>,
    /// `--http-proxy-config`
    pub proxy_file: Option<PathBuf>,
    /// Our `--config`.
    pub our_config: Option<PathBuf>,
    /// Our `--state-dir`.
    pub state_dir: Option<PathBuf>,
}

/// Reads the arguments behind the program's name.
///
/// # Errors
/// See [`FlagError`].
pub fn parse(args: &[OsString]) -> Result<Order, FlagError> {
    let (mut line, mut export) = (Line::default(), None);
    let mut seen = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--help") => return Ok(Order::Help),
            Some("--version") => return Ok(Order::Version),
            _ => {}
        }
        let found = flags().find(|(flag, _)| arg == flag);
        let Some((flag, path)) = found else {
            return Err(FlagError::Unknown(arg.to_string_lossy().chars().take(64).collect()));
        };
        if seen.contains(&flag) {
            return Err(FlagError::Twice(flag));
        }
        seen.push(flag);
        if ALONE.contains(&flag) {
            line.given.take_flag(path, flag, "true".into());
            continue;
        }
        let value = args.next().ok_or(FlagError::NoValue(flag))?;
        let file = || Some(PathBuf::from(value));
        match path {
            EXPORT => export = file(),
            CONFIG_FILE => line.config_file = file(),
            PROXY_FILE => line.proxy_file = file(),
            OUR_CONFIG => line.our_config = file(),
            STATE_DIR => line.state_dir = file(),
            path => {
                let text = value.to_str().ok_or(FlagError::NotText(flag))?;
                line.given.take_flag(path, flag, text.to_owned());
            }
        }
    }
    Ok(export.map_or_else(|| Order::Run(line), Order::Export))
}

/// `--help`
#[must_use]
pub fn help() -> String {
    let mut text = String::from(
        "otandem in place of the AWS IoT Device Client: its command line and files, for the Jobs feature.\n\n\
         Usage: aws-iot-device-client [FLAG VALUE]...   (also: otandem aws-iot-device-client ...)\n\n\
         Files: --config-file FILE, else ~/.aws-iot-device-client/aws-iot-device-client.conf, else the same below /etc;\n\
         then ~/.aws-iot-device-client/aws-iot-device-client-runtime.conf and http-proxy.conf. Flags win over the first.\n\n\
         Taken over:\n",
    );
    let here = |path: &str| path.starts_with('=') || CARRIED.contains(&path);
    for (flag, _) in flags().filter(|(_, path)| here(path)) {
        let _ = writeln!(text, "  {flag} VALUE");
    }
    text.push_str("  --help, --version\n\nKnown, and not here (refused where they turn something on):\n");
    for (flag, path) in flags().filter(|(_, path)| !here(path)) {
        let what = Function::of(path).map_or("another log", |function| function.name);
        let _ = writeln!(text, "  {flag}: {what}");
    }
    text
}

/// What `--export-default-settings` writes: the settings that have a meaning here.
pub const TEMPLATE: &str = r#"{
    "endpoint": "<replace_with_endpoint_value>",
    "cert": "<replace_with_certificate_file_path>",
    "key": "<replace_with_private_key_file_path>",
    "root-ca": "<replace_with_root_ca_file_path>",
    "thing-name": "<replace_with_thing_name>",
    "logging": {
        "level": "INFO",
        "type": "STDOUT"
    },
    "jobs": {
        "enabled": true,
        "handler-directory": "<replace_with_job_handler_directory_path>"
    },
    "tunneling": {
        "enabled": false
    }
}
"#;
