//! From what the files say to what is valid: every mistake told once, with a stand-in in its place.

use std::path::{Path, PathBuf};
use std::time::Duration;

use otandem_core::jobs::document::{OldSchema, OldStderr, UserArgument};
use otandem_device::jobs::HandlerUser;
use otandem_device::jobs::place::Rule;
use url::Url;

use super::fragments::{self, Fragment};
use super::settings::*;
use super::values::Span;
use super::{Area, Finding, Kind};

const DEFAULT_RUN_DIR: &str = "/run/otandem";
pub(super) const MIN: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
/// A job that hangs must not keep every later one from running.
const JOB_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

impl Settings {
    /// Validates what the files say. What is wrong is added to `findings`; mistakes found earlier are looked at too.
    #[must_use]
    pub fn from_fragment(f: Fragment, findings: &mut Vec<Finding>) -> Self {
        let mut check = Check { findings };
        let state_dir = check.absolute("update.state-dir", f.update.state_dir.clone(), DEFAULT_STATE_DIR);
        let run_dir = check.absolute("update.run-dir", f.update.run_dir.clone(), DEFAULT_RUN_DIR);
        let log = check.log(&f.log);
        let control = check.control(f.control, &run_dir);
        let network = check.network(&f.network);
        let network = check.first(Area::Network).map_or(Ok(network), Err);
        let claim = Check::claim(&f.provisioning, &state_dir);
        let cloud = check.cloud(f.cloud, claim);
        let cloud = match check.first(Area::Cloud) {
            Some(finding) => Feature::Broken(finding),
            None => cloud.map_or(Feature::Off, Feature::On),
        };
        let jobs = check.jobs(f.jobs);
        let jobs = match check.first(Area::Jobs) {
            Some(finding) => Feature::Broken(finding),
            None => jobs.map_or(Feature::Off, Feature::On),
        };
        let messages = check.messages(f.messages);
        let subscribe = check.subscriptions(f.subscribe);
        let commands = check.commands(f.commands);
        let services = check.services(f.services, &messages);
        let messages = check.tables(Area::Messages, messages);
        let services = check.tables(Area::Services, services);
        let provisioning = check.provisioning(f.provisioning, &cloud);
        let provisioning = match check.first(Area::Provisioning) {
            Some(finding) => Feature::Broken(finding),
            None => provisioning.map_or(Feature::Off, Feature::On),
        };
        let updates = check.updates(f.device, f.update, f.bootloader, f.slots_a, f.slots_b);
        let updates = match (check.first(Area::Update), updates) {
            (Some(finding), _) => Err(finding),
            (None, updates) => updates,
        };
        Self {
            state_dir,
            run_dir,
            updates,
            cloud,
            jobs,
            messages,
            provisioning,
            services,
            subscribe,
            commands,
            network,
            log,
            control,
        }
    }
}

/// Collects mistakes while the values are put together with stand-ins for the wrong ones.
pub(super) struct Check<'a> {
    pub(super) findings: &'a mut Vec<Finding>,
}

impl Check<'_> {
    pub(super) fn wrong(&mut self, key: &str, problem: impl Into<String>, area: Area) {
        self.findings.push(Finding::of(key, problem, area));
    }

    pub(super) fn first(&self, area: Area) -> Option<Finding> {
        self.findings.iter().find(|f| f.kind == Kind::Invalid(area)).cloned()
    }

    /// A function that has a table for each of its parts.
    fn tables<T>(&self, area: Area, all: Vec<T>) -> Feature<Vec<T>> {
        match self.first(area) {
            Some(finding) => Feature::Broken(finding),
            None if all.is_empty() => Feature::Off,
            None => Feature::On(all),
        }
    }

    pub(super) fn absolute(&mut self, key: &str, path: Option<PathBuf>, default: &str) -> PathBuf {
        match path {
            Some(path) if path.is_absolute() => path,
            Some(path) => {
                self.wrong(key, format!("{} is not an absolute path", path.display()), Area::Update);
                default.into()
            }
            None => default.into(),
        }
    }

    pub(super) fn some_absolute(&mut self, key: &str, path: Option<PathBuf>, area: Area) -> Option<PathBuf> {
        if let Some(path) = &path
            && !path.is_absolute()
        {
            self.wrong(key, format!("{} is not an absolute path", path.display()), area);
        }
        path
    }

    pub(super) fn positive(
        &mut self,
        key: &str,
        span: Option<Span>,
        default: Duration,
        area: Area,
    ) -> Duration {
        match span {
            Some(Span(d)) if d.is_zero() => {
                self.wrong(key, "must be more than zero", area);
                default
            }
            Some(Span(d)) => d,
            None => default,
        }
    }

    fn log(&mut self, f: &fragments::Log) -> LogSettings {
        let mut log = LogSettings { level: "info".into(), target: LogTarget::Auto };
        match &f.level {
            Some(level) if level.parse::<tracing_subscriber::filter::Targets>().is_err() => {
                self.wrong(
                    "log.level",
                    format!("{level:?}: use error, warn, info, debug or trace"),
                    Area::Log,
                );
            }
            Some(level) => log.level.clone_from(level),
            None => {}
        }
        match f.target.as_deref() {
            None | Some("auto") => {}
            Some("stderr") => log.target = LogTarget::Stderr,
            Some("syslog") => log.target = LogTarget::Syslog,
            Some(other) => {
                self.wrong("log.target", format!("{other:?}: use auto, stderr or syslog"), Area::Log)
            }
        }
        log
    }

    fn control(&mut self, f: fragments::Control, run_dir: &Path) -> ControlSettings {
        let default = run_dir.join("control.sock");
        let socket = match f.socket {
            Some(path) if !path.is_absolute() => {
                self.wrong(
                    "control.socket",
                    format!("{} is not an absolute path", path.display()),
                    Area::Control,
                );
                default
            }
            other => other.unwrap_or(default),
        };
        ControlSettings { socket, group: f.group.unwrap_or_else(|| "otandem".into()) }
    }

    fn network(&mut self, f: &fragments::Network) -> NetworkSettings {
        let proxy = f.proxy.as_deref().filter(|p| !p.is_empty()).and_then(|text| match Url::parse(text) {
            Ok(url) if url.scheme() == "http" && url.has_host() => Some(url),
            // The text may hold a password, so it is not repeated.
            _ => {
                self.wrong("network.proxy", "must look like http://[USER:PASSWORD@]HOST:PORT", Area::Network);
                None
            }
        });
        NetworkSettings {
            proxy,
            connect_timeout: self.positive(
                "network.connect-timeout",
                f.connect_timeout,
                Duration::from_secs(30),
                Area::Network,
            ),
            read_timeout: self.positive("network.read-timeout", f.read_timeout, MIN, Area::Network),
        }
    }

    /// `claim`: its store, and where the name is that the device gets when it is provisioned.
    fn cloud(&mut self, f: fragments::Cloud, claim: Option<(PathBuf, PathBuf)>) -> Option<CloudSettings> {
        // Not provisioned yet: the image may already carry the rest of the table.
        let (endpoint, port) = self.endpoint(&f, claim.as_ref().map(|(store, _)| store.as_path()))?;
        let area = Area::Cloud;
        if endpoint.contains(['/', ' '])
            || (endpoint.contains(':') && endpoint.parse::<std::net::Ipv6Addr>().is_err())
        {
            self.wrong("cloud.endpoint", format!("{endpoint:?}: give the host name alone"), area);
        }
        match f.kind.as_deref() {
            None | Some("aws") => {}
            Some(other) => self.wrong("cloud.kind", format!("{other:?} is not known: use aws"), area),
        }
        let thing = match (f.thing_name, f.thing_name_file) {
            (Some(name), None) => {
                if !is_thing_name(&name) {
                    self.wrong("cloud.thing-name", "1 to 128 of A-Z a-z 0-9 : _ - are allowed", area);
                }
                Some(ThingName::Name(name))
            }
            (None, Some(file)) => {
                self.some_absolute("cloud.thing-name-file", Some(file), area).map(ThingName::File)
            }
            (None, None) if claim.is_some() => claim.map(|(_, name)| ThingName::File(name)),
            _ => {
                self.wrong("cloud.thing-name", "give exactly one of thing-name and thing-name-file", area);
                None
            }
        };
        let credentials = match (f.cert_store, f.cert, f.key) {
            (Some(dir), None, None) => Some(Credentials::Store(dir)),
            (None, Some(cert), Some(key)) => Some(Credentials::Files { cert, key }),
            _ => {
                self.wrong("cloud.cert", "give either cert and key, or cert-store alone", area);
                None
            }
        };
        // The protocol has 16 bits of seconds for it, AWS takes 30 s to 20 min.
        let keep_alive = f.keep_alive.map_or(4 * MIN, |s| s.0);
        if keep_alive < Duration::from_secs(5) || keep_alive > 20 * MIN {
            self.wrong("cloud.keep-alive", "must be 5s to 20min", area);
        }
        let connect_timeout =
            self.positive("cloud.connect-timeout", f.connect_timeout, Duration::from_secs(30), area);
        Some(CloudSettings {
            endpoint,
            port: port.unwrap_or(8883),
            thing: thing?,
            client_id: f.client_id.filter(|id| !id.is_empty()),
            keep_alive,
            connect_timeout,
            ca: self.some_absolute("cloud.ca", f.ca, area),
            credentials: credentials?,
            publish_rate: f.publish_rate.unwrap_or(100),
            in_flight: f.in_flight.unwrap_or(100),
            last_will: self.last_will(f.last_will_topic, f.last_will_payload),
        })
    }

    fn jobs(&mut self, f: fragments::Jobs) -> Option<JobsSettings> {
        let step_timeout = f.step_timeout.map(|s| s.0);
        if step_timeout.is_some_and(|d| d < MIN || d > Duration::from_secs(10080 * 60)) {
            self.wrong("jobs.step-timeout", "must be 1min to 7d", Area::Jobs);
        }
        let old_schema = self.old_schema(&f);
        let directory = f.handler_directory.unwrap_or_else(|| DEFAULT_HANDLER_DIRECTORY.into());
        let handler_timeout = f.handler_timeout.map(|s| s.0);
        if handler_timeout.is_some_and(|d| d < Duration::from_secs(1)) {
            self.wrong("jobs.handler-timeout", "must be at least 1s", Area::Jobs);
        }
        let job_timeout = f.job_timeout.map_or(JOB_TIMEOUT, |s| s.0);
        let jobs = JobsSettings {
            handler_directory: directory,
            step_timeout,
            handler_timeout,
            job_timeout: (!job_timeout.is_zero()).then_some(job_timeout),
            handler_user: match f.run_handlers_as_user {
                Some(true) => HandlerUser::RunAsUser,
                _ => HandlerUser::Agent,
            },
            permissions: if f.strict_permissions == Some(true) { Rule::Strict } else { Rule::Safe },
            old_schema,
            attributes: f.attributes.unwrap_or_default(),
        };
        self.some_absolute("jobs.handler-directory", Some(jobs.handler_directory.clone()), Area::Jobs);
        f.enabled.unwrap_or(true).then_some(jobs)
    }

    fn old_schema(&mut self, f: &fragments::Jobs) -> OldSchema {
        let stderr = match f.old_schema_stderr.as_deref() {
            None | Some("strict") => OldStderr::Strict,
            Some("ignore") => OldStderr::Ignore,
            Some(other) => {
                self.wrong("jobs.old-schema-stderr", format!("{other:?}: use strict or ignore"), Area::Jobs);
                OldStderr::Strict
            }
        };
        let user_argument = match f.old_schema_user_argument {
            Some(false) => UserArgument::LeftOut,
            _ => UserArgument::Given,
        };
        OldSchema { user_argument, stderr }
    }
}
