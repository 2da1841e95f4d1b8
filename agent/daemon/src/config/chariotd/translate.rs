//! From the options of chariotd to lines of our configuration.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::options::Options;
use crate::config::fragments::Fragment;
use crate::config::settings::is_thing_name;

/// chariotd's signs of life: as seldom as AWS allows.
const KEEP_ALIVE: u64 = 1200;
/// Settings of a directory of messages: the option behind `message-`, our key, and whether it is a number.
const OF_MESSAGES: [(&str, &str, bool); 7] = [
    ("concurrency", "concurrency", true),
    ("retries", "retries", true),
    ("keep-failed", "keep-failed", true),
    ("order", "order", false),
    ("topic-prefix", "topic-prefix", false),
    ("topic-suffix", "topic-suffix", false),
    ("rate", "rate", true),
];

/// Our configuration: tables, each with its lines.
#[derive(Debug, Clone, Default, PartialEq)]
struct Tables(Vec<(String, String)>);

impl Tables {
    fn put(&mut self, table: &str, key: &str, value: impl Into<Value>) {
        // What JSON escapes TOML reads, but for one more character.
        let value = value.into().to_string().replace('\u{7f}', "\\u007f");
        let line = format!("{key} = {value}\n");
        match self.0.iter_mut().find(|(name, _)| name == table) {
            Some((_, lines)) => lines.push_str(&line),
            None => self.0.push((table.to_owned(), line)),
        }
    }

    fn text(&self) -> String {
        self.0.iter().map(|(table, lines)| format!("\n[{table}]\n{lines}")).collect()
    }
}

/// What becomes of the options.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Translation {
    /// What chariotd does by itself.
    habits: Tables,
    /// What it was told.
    said: Tables,
    /// Directories that chariotd does not start without.
    pub directories: Vec<String>,
    /// What has no effect, by the option.
    pub told: Vec<String>,
}

impl Translation {
    /// Whether an option gave the value of this key, named in full as `messages.mqtt.order`.
    #[must_use]
    pub fn gave(&self, key: &str) -> bool {
        self.said.0.iter().any(|(table, lines)| {
            let key = key.strip_prefix(table.as_str()).and_then(|rest| rest.strip_prefix('.'));
            key.is_some_and(|key| lines.lines().any(|line| line.split(" = ").next() == Some(key)))
        })
    }

    /// Our configuration, as text.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut all = self.said.clone();
        for (table, lines) in &self.habits.0 {
            match all.0.iter_mut().find(|(name, _)| name == table) {
                Some((_, there)) => *there += lines,
                None => all.0.push((table.clone(), lines.clone())),
            }
        }
        format!("# From the options of chariotd, by \"otandem chariotd --print-config\".\n{}", all.text())
    }

    /// The same in two layers: for below our own files, and for above.
    #[must_use]
    pub fn layers(&self) -> (Fragment, Fragment) {
        let layer = |tables: &Tables| Fragment::parse(Path::new("chariotd's options"), &tables.text()).0;
        (layer(&self.habits), layer(&self.said))
    }
}

/// Translates. Relative paths begin at `cwd`; `endpoint` is what the certificate store says, `fleet` what the file of `--fleetprov` holds.
///
/// # Errors
/// One line: an option with a value that it cannot have.
pub fn translate(
    options: &Options,
    cwd: &Path,
    endpoint: (&str, Option<u16>),
    fleet: Option<&Value>,
) -> Result<Translation, String> {
    let mut translator = Translator { options, cwd, out: Translation::default() };
    translator.cloud(endpoint)?;
    translator.things()?;
    translator.messages()?;
    if let Some(directory) = options.last("commands") {
        let directory = translator.directory(directory)?;
        translator.said("commands", "directory", directory);
    }
    translator.subscriptions()?;
    if let Some(fleet) = fleet {
        translator.provisioning(fleet)?;
    }
    let habits = &mut translator.out.habits;
    habits.put("jobs", "enabled", false);
    habits.put("update", "without-slots", true);
    habits.put("log", "target", "stderr");
    Ok(translator.out)
}

struct Translator<'a> {
    options: &'a Options,
    cwd: &'a Path,
    out: Translation,
}

impl Translator<'_> {
    fn said(&mut self, table: &str, key: &str, value: impl Into<Value>) {
        self.out.said.put(table, key, value);
    }

    fn path(&self, text: &str) -> Result<String, String> {
        if text.is_empty() {
            return Err("an option has an empty path".into());
        }
        let path = self.cwd.join(text).into_os_string();
        path.into_string().map_err(|_| "the current directory is not UTF-8: write whole paths".into())
    }

    fn directory(&mut self, text: &str) -> Result<String, String> {
        let path = self.path(text)?;
        self.out.directories.push(path.clone());
        Ok(path)
    }

    fn cloud(&mut self, (host, port): (&str, Option<u16>)) -> Result<(), String> {
        self.said("cloud", "endpoint", host);
        self.said("cloud", "port", port.unwrap_or(8883));
        let id = self.options.last("clientid").unwrap_or_default();
        self.said("cloud", "client-id", id);
        // Nothing is asked of the cloud by this name, unless our own files turn it on.
        let things = ["services", "updates", "defaultshadow"].map(|of| self.options.last(of));
        let things =
            things.into_iter().flatten().filter_map(|value| value.split_once(':')).map(|(thing, _)| thing);
        let name = things.chain([id]).find(|name| is_thing_name(name)).unwrap_or("chariotd");
        self.out.habits.put("cloud", "thing-name", name);
        for (option, key) in [("cacert", "ca"), ("certstore", "cert-store")] {
            let path = self.path(self.options.last(option).unwrap_or_default())?;
            self.said("cloud", key, path);
        }
        match self.options.last("keepalive") {
            None => self.out.habits.put("cloud", "keep-alive", KEEP_ALIVE),
            Some(text) => {
                let seconds = number("keepalive", text)?;
                self.said("cloud", "keep-alive", seconds.clamp(5, KEEP_ALIVE));
                if !(5..=KEEP_ALIVE).contains(&seconds) {
                    self.out.told.push(format!("--keepalive={seconds}: 5 to {KEEP_ALIVE} can be had"));
                }
            }
        }
        match (self.options.last("last-will-topic"), self.options.last("last-will-payload")) {
            (Some(topic), Some(payload)) => {
                self.said("cloud", "last-will-topic", topic);
                self.said("cloud", "last-will-payload", payload);
            }
            (None, None) => {}
            _ => self
                .out
                .told
                .push("--last-will-topic and --last-will-payload: no effect without the other".into()),
        }
        Ok(())
    }

    /// One table for each thing.
    fn things(&mut self) -> Result<(), String> {
        let mut things: Vec<(&str, String)> = Vec::new();
        for (option, key) in
            [("services", "directory"), ("updates", "updates"), ("defaultshadow", "default-shadow")]
        {
            let mut given = Map::new();
            for value in self.options.all(option) {
                let (thing, value) = pair(option, value)?;
                if !is_thing_name(thing) {
                    return Err(format!("--{option}: {thing:?} is no name of a thing"));
                }
                // The last one of a thing counts.
                given.insert(thing.to_owned(), value.into());
                if !things.iter().any(|(known, _)| *known == thing) {
                    let table = table("services", thing, things.iter().map(|(_, table)| table.as_str()));
                    self.said(&table, "thing", thing);
                    if self.options.last("empty-array-as-delete-request").is_some() {
                        self.said(&table, "empty-list-deletes", true);
                    }
                    things.push((thing, table));
                }
            }
            for (thing, table) in &things {
                let Some(value) = given.get(*thing).and_then(Value::as_str) else { continue };
                let value = if option == "defaultshadow" { value.to_owned() } else { self.directory(value)? };
                self.said(table, key, value);
            }
        }
        Ok(())
    }

    fn messages(&mut self) -> Result<(), String> {
        let trimmed = |text: &str| text.trim_end_matches('/').to_owned();
        let mut directories: Vec<(String, String)> = Vec::new();
        for text in self.options.all("messages") {
            let path = self.directory(text)?;
            if directories.iter().any(|(known, _)| *known == trimmed(text)) {
                continue;
            }
            let name = text.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            let table = table("messages", name, directories.iter().map(|(_, table)| table.as_str()));
            self.said(&table, "directory", path);
            // chariotd publishes to any topic, and looks at the priority of every message.
            self.said(&table, "reserved-topics", true);
            self.said(&table, "priorities", true);
            directories.push((trimmed(text), table));
        }
        for (setting, key, is_number) in OF_MESSAGES {
            let (all, one) = (format!("default-message-{setting}"), format!("message-{setting}"));
            self.of_messages(&directories, [&all, &one], |_, option, value| {
                let value = if is_number { number(option, value)?.into() } else { value.into() };
                Ok((key, value))
            })?;
        }
        if let Some(rate) = self.options.last("default-message-rate") {
            let rate = number("default-message-rate", rate)?;
            self.said("cloud", "publish-rate", rate);
        }
        for key in ["letterhead-file", "letterhead-generator"] {
            self.of_messages(&directories, [&format!("default-{key}"), key], |own, _, value| {
                Ok((key, own.path(value)?.into()))
            })?;
        }
        for jam in ["default-message-jam-timeout", "message-jam-timeout"] {
            if self.options.last(jam).is_some() {
                self.out.told.push(format!(
                    "--{jam}: no effect; a directory that cannot be sent holds up nothing else"
                ));
            }
        }
        Ok(())
    }

    /// An option for all directories, and the same for one of them.
    fn of_messages(
        &mut self,
        directories: &[(String, String)],
        [all, one]: [&str; 2],
        line: impl Fn(&Self, &str, &str) -> Result<(&'static str, Value), String>,
    ) -> Result<(), String> {
        let mut given = Map::new();
        for value in self.options.all(one) {
            let (directory, value) = pair(one, value)?;
            let directory = directory.trim_end_matches('/');
            if !directories.iter().any(|(known, _)| known == directory) {
                return Err(format!("--{one}: {directory:?} is in no --messages"));
            }
            given.insert(directory.to_owned(), value.into());
        }
        let default = self.options.last(all);
        for (directory, table) in directories {
            if let Some(value) = given.get(directory).and_then(Value::as_str).or(default) {
                let (key, value) = line(self, one, value)?;
                self.said(table, key, value);
            }
        }
        Ok(())
    }

    fn subscriptions(&mut self) -> Result<(), String> {
        for (option, key) in [("subscribe-write", "write"), ("subscribe-exec", "exec")] {
            for (at, value) in self.options.all(option).enumerate() {
                let (topic, value) = pair(option, value)?;
                let table = format!("subscribe.{key}-{}", at + 1);
                let value = if key == "write" { self.path(value)? } else { value.to_owned() };
                self.said(&table, "topic", topic);
                self.said(&table, key, value);
            }
        }
        Ok(())
    }

    /// What `--fleetprov` names.
    fn provisioning(&mut self, fleet: &Value) -> Result<(), String> {
        let text = |key: &str| fleet.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let needed =
            |key: &str| text(key).ok_or_else(|| format!("--fleetprov: {key} is missing, or no text"));
        let store = self.path(needed("claimstore")?)?;
        self.said("provisioning", "claim-store", store);
        self.said("provisioning", "template", needed("template")?);
        // As chariotd does it, and its policies allow it.
        self.said("provisioning", "key", "cloud");
        self.said(
            "provisioning",
            "client-id",
            format!("{}-fp", self.options.last("clientid").unwrap_or_default()),
        );
        if let Some(file) = text("outfile") {
            let file = self.path(file)?;
            self.said("provisioning", "outfile", file);
            self.said("provisioning", "outformat", needed("outformat")?);
        }
        if let Some(command) = text("notifycmd") {
            self.said("provisioning", "notify-command", command);
        }
        let parameters = fleet.get("parameters").and_then(Value::as_object);
        for (key, value) in parameters.ok_or("--fleetprov: parameters is missing, or no object")? {
            let value = match value {
                Value::String(text) => text.clone(),
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                _ => return Err(format!("--fleetprov: parameters.{key} is no text")),
            };
            self.said("provisioning.parameters", &json!(key).to_string(), value);
        }
        Ok(())
    }
}

/// A name of a table that is not taken yet, made of `name`.
fn table<'a>(kind: &str, name: &str, taken: impl Iterator<Item = &'a str> + Clone) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '-' };
    let mut name: String = name.chars().take(64).map(plain).collect();
    if name.is_empty() {
        name.push_str(kind);
    }
    let first = format!("{kind}.{name}");
    let free = |name: &String| !taken.clone().any(|taken| taken == name);
    let others = (2..).map(|n| format!("{first}-{n}"));
    std::iter::once(first.clone()).chain(others).find(free).unwrap_or(first)
}

/// `A:B`, divided at the first colon.
fn pair<'a>(option: &str, value: &'a str) -> Result<(&'a str, &'a str), String> {
    let pair = value.split_once(':').filter(|(first, second)| !first.is_empty() && !second.is_empty());
    pair.ok_or_else(|| format!("--{option}={value}: two parts with a colon between them belong here"))
}

fn number(option: &str, text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|e| format!("--{option}: {text:?}: {e}"))
}
