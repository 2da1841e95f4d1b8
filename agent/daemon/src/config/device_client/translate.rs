//! From what was said to the client to lines of our configuration.

use std::path::Path;

use serde_json::Value;
use url::Url;

use super::Given;
use super::keys::{CARRIED, DROPPED, Function, PROVISIONING, TUNNELING};
use crate::config::fragments::Fragment;
use crate::config::{Finding, Kind};

/// The client's SDK goes to this port, by ALPN, wherever it can: on every Linux.
const PORT: u16 = 443;
/// The client's own directory, in the home directory of its user.
const HANDLERS: &str = ".aws-iot-device-client/jobs";
/// The tables in the order in which they are written.
const TABLES: [&str; 5] = ["cloud", "network", "log", "jobs", "update"];
/// What a shell would do something with, and the client has one look at its paths.
const SHELL: &str = "$`*?[]{}()<>|&;\"'\\";

/// Where paths of the client begin.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// What `~` stands for.
    pub home: Option<&'a Path>,
    /// What relative paths are relative to; `None`: not known, they are refused.
    pub cwd: Option<&'a Path>,
}

/// One line of our configuration.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    table: &'static str,
    key: &'static str,
    value: Value,
    /// Nobody said it, but the client does so; and why.
    keeps: Option<&'static str>,
}

/// What becomes of the client's settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Translation {
    lines: Vec<Line>,
    /// What is not carried over or else worth to know, by its name.
    pub told: Vec<Finding>,
    /// What the client's user meant and cannot be had.
    pub wrong: Vec<Finding>,
    /// Some of [`Translation::wrong`] came from the command line.
    pub wrong_flags: bool,
    /// What the client itself cannot do without, and was not said.
    pub missing: Vec<Finding>,
}

impl Translation {
    /// Our configuration, as text.
    #[must_use]
    pub fn toml(&self) -> String {
        let head = "# From the configuration of an AWS IoT Device Client, by \"otandem config import\".\n";
        format!("{head}{}", self.render(None))
    }

    /// The same in two layers: what the client does unless told (for below our own files), and what was said (for above).
    #[must_use]
    pub fn layers(&self) -> (Fragment, Fragment) {
        let layer = |keeps: bool| {
            let text = self.render(Some(keeps));
            Fragment::parse(Path::new("aws-iot-device-client.conf"), &text).0
        };
        (layer(true), layer(false))
    }

    /// All lines, or those alone that the client's habits gave, or that were said.
    fn render(&self, keeps: Option<bool>) -> String {
        let wanted = |line: &Line| keeps.is_none_or(|keeps| line.keeps.is_some() == keeps);
        let mut text = String::new();
        for table in TABLES {
            let mut lines = self.lines.iter().filter(|line| line.table == table && wanted(line)).peekable();
            if lines.peek().is_some() {
                text += &format!("\n[{table}]\n");
            }
            for line in lines {
                if let Some(why) = line.keeps {
                    text += &format!("# {why}\n");
                }
                // What JSON escapes TOML reads, but for one more character.
                let value = line.value.to_string().replace('\u{7f}', "\\u007f");
                text += &format!("{} = {value}\n", line.key);
            }
        }
        text
    }
}

/// Translates.
#[must_use]
pub fn translate(given: &Given, place: Place<'_>) -> Translation {
    let mut translator = Translator { given, place, out: Translation::default(), provisioned: false };
    translator.cloud();
    translator.proxy();
    translator.log();
    translator.jobs();
    translator.keep(
        "update",
        "without-slots",
        true.into(),
        "For the time without slot sets; it has no effect once [slots.A] and [slots.B] name them.",
    );
    translator.rest();
    translator.out
}

struct Translator<'a> {
    given: &'a Given,
    place: Place<'a>,
    out: Translation,
    /// Fleet provisioning is done, and its outcome used.
    provisioned: bool,
}

fn finding(key: &str, problem: impl Into<String>) -> Finding {
    Finding { file: None, key: key.to_owned(), problem: problem.into(), kind: Kind::Idle }
}

impl Translator<'_> {
    fn put(&mut self, table: &'static str, key: &'static str, value: Value) {
        self.out.lines.push(Line { table, key, value, keeps: None });
    }

    fn keep(&mut self, table: &'static str, key: &'static str, value: Value, why: &'static str) {
        self.out.lines.push(Line { table, key, value, keeps: Some(why) });
    }

    fn tell(&mut self, path: &str, problem: impl Into<String>) {
        let finding = finding(self.name(path), problem);
        self.out.told.push(finding);
    }

    fn wrong(&mut self, path: &str, problem: impl Into<String>) {
        let finding = finding(self.name(path), problem);
        self.out.wrong.push(finding);
        self.out.wrong_flags |= self.given.flag(path).is_some();
    }

    /// A key as its user wrote it: the flag, if it was one.
    fn name<'b>(&self, path: &'b str) -> &'b str {
        self.given.flag(path).unwrap_or(path)
    }

    fn text(&mut self, path: &str) -> Option<String> {
        match self.given.get(path)? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::String(_) => None,
            _ => {
                self.wrong(path, "must be a string");
                None
            }
        }
    }

    fn boolean(&mut self, path: &str) -> Option<bool> {
        let value = match self.given.get(path)? {
            Value::Bool(value) => Some(*value),
            Value::String(text) if self.given.flag(path).is_some() => text.parse().ok(),
            _ => None,
        };
        if value.is_none() {
            self.wrong(path, "must be true or false (without quotes in a file)");
        }
        value
    }

    /// A path as the client would open it.
    fn path(&mut self, path: &str) -> Option<Value> {
        let text = self.text(path)?;
        match self.place.expand(&text) {
            Ok(expanded) => Some(Value::String(expanded)),
            Err(why) => {
                self.wrong(path, why);
                None
            }
        }
    }

    fn cloud(&mut self) {
        match self.text("endpoint") {
            Some(endpoint) => self.put("cloud", "endpoint", endpoint.into()),
            None => self.missing("endpoint", "endpoint"),
        }
        self.keep("cloud", "port", PORT.into(), "The client connects to this port.");
        if let Some([cert, key, thing]) = self.runtime() {
            self.put("cloud", "thing-name", thing);
            self.put("cloud", "cert", cert);
            self.put("cloud", "key", key);
            self.provisioned = true;
        } else if PROVISIONING.is_on(self.given) {
            // What is configured is a claim, with which a device can do nothing but provision itself.
            let what = "the certificate is a claim, not the device's own, and there is no runtime-config of a device that was";
            self.out.missing.push(finding(PROVISIONING.switch, format!("{what}: {}", PROVISIONING.instead)));
        } else {
            for (path, key) in [("thing-name", "thing-name"), ("cert", "cert"), ("key", "key")] {
                let value =
                    if key == "thing-name" { self.text(path).map(Value::String) } else { self.path(path) };
                match value {
                    Some(value) => self.put("cloud", key, value),
                    None => self.missing(path, key),
                }
            }
        }
        if let Some(ca) = self.path("root-ca") {
            self.put("cloud", "ca", ca);
        }
    }

    /// What is there and wrong is not missing.
    fn missing(&mut self, path: &'static str, key: &str) {
        if self.given.get(path).is_none() {
            let problem = format!("not there, and the client needs it (or --{path}): write cloud.{key}");
            self.out.missing.push(finding(path, problem));
        }
    }

    /// Certificate, key and thing name that the client got by provisioning. It uses all of them or none.
    fn runtime(&mut self) -> Option<[Value; 3]> {
        if !self.boolean("runtime-config.completed-fp")? {
            return None;
        }
        let cert = self.path("runtime-config.cert");
        let key = self.path("runtime-config.key");
        let thing = self.text("runtime-config.thing-name").map(Value::String);
        if let (Some(cert), Some(key), Some(thing)) = (cert, key, thing) {
            return Some([cert, key, thing]);
        }
        self.tell(
            "runtime-config.completed-fp",
            "not used, since cert, key and thing-name are not all there",
        );
        None
    }

    fn proxy(&mut self) {
        if self.boolean("proxy:http-proxy-enabled") != Some(true) {
            return;
        }
        let host = self.text("proxy:http-proxy-host");
        let port = match self.given.get("proxy:http-proxy-port") {
            Some(Value::String(port)) => port.parse::<u16>().ok(),
            Some(Value::Number(port)) => port.as_u64().and_then(|port| port.try_into().ok()),
            _ => None,
        };
        let login = match self.text("proxy:http-proxy-auth-method").as_deref() {
            Some("UserNameAndPassword") => {
                Some((self.text("proxy:http-proxy-username"), self.text("proxy:http-proxy-password")))
            }
            None | Some("None") => None,
            Some(_) => return self.wrong("proxy:http-proxy-auth-method", "use UserNameAndPassword or None"),
        };
        let Some(proxy) = host.zip(port).and_then(|(host, port)| address(&host, port, login.as_ref())) else {
            let needs = "needs http-proxy-host, http-proxy-port (1 to 65535) and, with UserNameAndPassword, both of those";
            return self.wrong("proxy:http-proxy-enabled", needs);
        };
        self.put("network", "proxy", proxy.into());
        if login.is_some() {
            self.tell("proxy:http-proxy-password", "is in network.proxy now: nobody else may read that file");
        }
    }

    fn log(&mut self) {
        if let Some(level) = self.text("logging.level") {
            let level = level.to_ascii_lowercase();
            if ["debug", "info", "warn", "error"].contains(&level.as_str()) {
                self.put("log", "level", level.into());
            } else {
                self.wrong("logging.level", "use DEBUG, INFO, WARN or ERROR");
            }
        }
        match self.text("logging.type").map(|kind| kind.to_ascii_lowercase()).as_deref() {
            None => {}
            Some("stdout") => self.put("log", "target", "stderr".into()),
            Some("file") => {
                self.tell("logging.type", "not carried over: no log files are written, see logging.file")
            }
            Some(_) => self.wrong("logging.type", "use STDOUT or FILE"),
        }
    }

    fn jobs(&mut self) {
        if let Some(enabled) = self.boolean("jobs.enabled") {
            self.put("jobs", "enabled", enabled.into());
        }
        if self.given.get("jobs.handler-directory").is_some() {
            if let Some(directory) = self.path("jobs.handler-directory") {
                self.put("jobs", "handler-directory", directory);
            }
        } else if let Some(home) =
            self.place.home.and_then(|home| home.join(HANDLERS).to_str().map(str::to_owned))
        {
            self.keep(
                "jobs",
                "handler-directory",
                home.into(),
                "The client looks there unless told otherwise.",
            );
        }
        self.keep(
            "jobs",
            "old-schema-stderr",
            "ignore".into(),
            "The client never counted the lines on standard error of documents with \"operation\".",
        );
    }

    /// What has no counterpart.
    fn rest(&mut self) {
        let given = self.given;
        for path in given.paths().filter(|path| !CARRIED.contains(path)) {
            if let Some(function) = Function::of(path) {
                self.function(function, path, given.flag(path).is_some());
            } else if let Some((_, why)) = DROPPED.iter().find(|(dropped, _)| dropped == &path) {
                self.tell(path, format!("not carried over: {why}"));
            } else {
                self.tell(path, "not carried over: the AWS IoT Device Client has no such key either");
            }
        }
        if given.get(TUNNELING.switch).is_none() {
            let why = format!("not carried over: on there by default. {}", lost(&TUNNELING));
            self.tell(TUNNELING.switch, why);
        }
    }

    fn function(&mut self, function: &'static Function, path: &str, by_flag: bool) {
        let done = self.provisioned && function.block == PROVISIONING.block;
        let on = function.is_on(self.given) && !done;
        match (on, by_flag) {
            // A person asked for it just now.
            (true, true) => self.wrong(path, lost(function)),
            (true, false) => self.tell(path, format!("not carried over: {}", lost(function))),
            (false, _) if done => {
                self.tell(path, "not carried over: the device is provisioned, see runtime-config");
            }
            // Off there, off here.
            (false, _) if path == function.switch => {}
            (false, _) => {
                self.tell(path, "not carried over: its function is off there as well");
            }
        }
    }
}

fn lost(function: &Function) -> String {
    format!("otandem has no {}: {}", function.name, function.instead)
}

/// `network.proxy`; `None` if it cannot be made of these.
fn address(host: &str, port: u16, login: Option<&(Option<String>, Option<String>)>) -> Option<String> {
    let host =
        if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    if port == 0 || host.contains(['/', '@', '?', '#', '\\']) {
        return None;
    }
    let mut url = Url::parse(&format!("http://{host}:{port}")).ok()?;
    if let Some((user, password)) = login {
        url.set_username(user.as_deref()?).ok()?;
        url.set_password(Some(password.as_deref()?)).ok()?;
    }
    Some(url.to_string())
}

impl Place<'_> {
    /// `text` as an absolute path. The client has a shell's expansion; of that `~` alone is done here.
    fn expand(self, text: &str) -> Result<String, &'static str> {
        if text.contains(|c: char| SHELL.contains(c) || c.is_whitespace() || c.is_control()) {
            return Err(
                "holds characters that the client's shell expansion takes: write the path that it makes of them",
            );
        }
        let whole = match text.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                let home =
                    self.home.ok_or("begins with ~, and there is no home directory: write the whole path")?;
                home.join(rest.trim_start_matches('/'))
            }
            Some(_) => return Err("is in the home directory of a user: write the whole path"),
            None if text.starts_with('/') => text.into(),
            None => {
                let cwd = self.cwd.ok_or("is no absolute path, and nothing tells where the client is started: write the whole path")?;
                cwd.join(text)
            }
        };
        whole.into_os_string().into_string().map_err(|_| "lies in a directory whose name is not UTF-8")
    }
}
