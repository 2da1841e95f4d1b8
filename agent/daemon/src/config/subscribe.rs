//! `[subscribe.NAME]`, where messages of the cloud go, and `[commands]`, the directory whose files are commands.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use otandem_core::filter::{Filter, widest};
use otandem_device::spool::Keep;

use super::Area;
use super::check::Check;
use super::fragments;
use super::settings::{CommandsSettings, Feature, SubscribeSettings, Target};

const AREA: Area = Area::Subscribe;
/// What the broker allows a connection; what jobs and others need is told when the session begins.
const MAX_SUBSCRIPTIONS: usize = 50;
/// Bytes that failed/ of commands keeps.
const KEEP_FAILED_BYTES: u64 = 1 << 20;

impl Check<'_> {
    /// Those with a topic; a table without one is not in use (yet).
    pub(super) fn subscriptions(
        &mut self,
        all: BTreeMap<String, fragments::Subscribe>,
    ) -> Feature<Vec<SubscribeSettings>> {
        let (mut rules, mut written, mut used) = (vec![], BTreeSet::new(), false);
        for (name, f) in all {
            let Some(topic) = f.topic.clone().filter(|t| !t.is_empty()) else { continue };
            used = true;
            let rule = self.subscription(name, &topic, f);
            if let Some(Target::Write(path)) = rule.as_ref().map(|rule| &rule.target)
                && !written.insert(path.clone())
            {
                let key = format!("subscribe.{}.write", rule.as_ref().map_or("", |rule| &rule.name));
                self.wrong(&key, "is written by another table too: use one file for each", AREA);
            }
            rules.extend(rule);
        }
        if widest(rules.iter().map(|rule| &rule.filter)).len() > MAX_SUBSCRIPTIONS {
            let problem = format!("the broker allows {MAX_SUBSCRIPTIONS} subscriptions: use wildcards");
            self.wrong("subscribe", problem, AREA);
        }
        match self.first(AREA) {
            Some(finding) => Feature::Broken(finding),
            None if !used => Feature::Off,
            None => Feature::On(rules),
        }
    }

    /// `None` after a mistake that leaves nothing to stand in.
    fn subscription(
        &mut self,
        name: String,
        topic: &str,
        f: fragments::Subscribe,
    ) -> Option<SubscribeSettings> {
        let key = |key: &str| format!("subscribe.{name}.{key}");
        let filter = Filter::new(topic);
        if let Err(why) = &filter {
            self.wrong(&key("topic"), format!("{topic:?} {why}"), AREA);
        }
        let target = match (f.write, f.exec.filter(|command| !command.trim().is_empty())) {
            (Some(path), None) => self.some_absolute(&key("write"), Some(path), AREA).map(Target::Write),
            (None, Some(command)) if command.contains('\0') => {
                self.wrong(&key("exec"), "has a NUL character", AREA);
                None
            }
            (None, Some(command)) => Some(Target::Exec(command)),
            _ => {
                self.wrong(&key("write"), "give exactly one of write and exec", AREA);
                None
            }
        };
        let timeout = self.positive(&key("timeout"), f.timeout, Duration::from_secs(5), AREA);
        let queue = f.queue.unwrap_or(100);
        if queue == 0 {
            self.wrong(&key("queue"), "must be at least 1", AREA);
        }
        Some(SubscribeSettings { filter: filter.ok()?, target: target?, timeout, queue: queue.into(), name })
    }

    /// Without a directory there are none.
    pub(super) fn commands(&mut self, f: fragments::Commands) -> Feature<CommandsSettings> {
        let directory = f.directory.filter(|d| !d.as_os_str().is_empty());
        let directory = self.some_absolute("commands.directory", directory, Area::Commands);
        let keep = Keep { files: f.keep_failed.unwrap_or(10) as usize, bytes: KEEP_FAILED_BYTES };
        match (self.first(Area::Commands), directory) {
            (Some(finding), _) => Feature::Broken(finding),
            (None, None) => Feature::Off,
            (None, Some(directory)) => Feature::On(CommandsSettings { directory, keep }),
        }
    }
}
