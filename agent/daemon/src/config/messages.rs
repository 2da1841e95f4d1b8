//! `[messages.NAME]`: the directories whose files become messages.

use std::collections::{BTreeMap, BTreeSet};

use otandem_core::messages::{Order, Pace, Reserved, check_topic};
use otandem_device::spool::Keep;

use super::check::Check;
use super::fragments;
use super::settings::{Excess, Limits, MessagesSettings};
use super::{Area, values::Bytes};

const AREA: Area = Area::Messages;

impl Check<'_> {
    /// Those with a directory; a table without one is not in use (yet).
    pub(super) fn messages(&mut self, all: BTreeMap<String, fragments::Messages>) -> Vec<MessagesSettings> {
        let mut seen = BTreeSet::new();
        let mut settings = vec![];
        for (name, f) in all {
            if f.directory.as_ref().is_none_or(|d| d.as_os_str().is_empty()) {
                continue;
            }
            let one = self.directory(name, f);
            if !seen.insert(one.directory.clone()) {
                let key = format!("messages.{}.directory", one.name);
                self.wrong(&key, "is the directory of another table too", AREA);
            }
            settings.push(one);
        }
        settings
    }

    fn directory(&mut self, name: String, f: fragments::Messages) -> MessagesSettings {
        let key = |key: &str| format!("messages.{name}.{key}");
        let orders = [
            ("lexical", Order::Lexical),
            ("oldest-first", Order::OldestFirst),
            ("newest-first", Order::NewestFirst),
        ];
        let excesses = [("refuse", Excess::Refuse), ("oldest", Excess::Oldest), ("newest", Excess::Newest)];
        let concurrency = f.concurrency.unwrap_or(10);
        if !(1..=1000).contains(&concurrency) {
            self.wrong(&key("concurrency"), "must be 1 to 1000", AREA);
        }
        let reserved = if f.reserved_topics == Some(true) { Reserved::Allowed } else { Reserved::Refused };
        let bytes = |value: Option<Bytes>, default: u64| value.map_or(default, |b| b.0);
        MessagesSettings {
            directory: self.some_absolute(&key("directory"), f.directory, AREA).unwrap_or_default(),
            letterhead_file: self.some_absolute(&key("letterhead-file"), f.letterhead_file, AREA),
            letterhead_generator: self.some_absolute(
                &key("letterhead-generator"),
                f.letterhead_generator,
                AREA,
            ),
            pace: Pace {
                concurrency: usize::from(concurrency),
                rate: f.rate.unwrap_or(100),
                retries: f.retries.unwrap_or(2),
            },
            priorities: f.priorities.unwrap_or(false),
            order: self.one_of(&key("order"), f.order, orders),
            topic_prefix: self.affix(&key("topic-prefix"), f.topic_prefix, reserved),
            // Behind the beginning of a topic, where nothing is reserved.
            topic_suffix: self.affix(&key("topic-suffix"), f.topic_suffix, Reserved::Allowed),
            reserved,
            keep: Keep {
                files: f.keep_failed.unwrap_or(100) as usize,
                bytes: bytes(f.keep_failed_bytes, 16 << 20),
            },
            bounds: Limits {
                files: f.max_files.unwrap_or(0).into(),
                bytes: bytes(f.max_bytes, 0),
                excess: self.one_of(&key("drop"), f.drop, excesses),
            },
            name,
        }
    }

    fn one_of<T: Default + Copy>(&mut self, key: &str, given: Option<String>, all: [(&str, T); 3]) -> T {
        let Some(given) = given else { return T::default() };
        let found = all.iter().find(|(name, _)| *name == given);
        if found.is_none() {
            let names = all.map(|(name, _)| name).join(", ");
            self.wrong(key, format!("{given:?}: use one of {names}"), AREA);
        }
        found.map(|(_, value)| *value).unwrap_or_default()
    }

    /// What the broker publishes in the device's place.
    pub(super) fn last_will(
        &mut self,
        topic: Option<String>,
        payload: Option<String>,
    ) -> Option<(String, String)> {
        let (topic, payload) = match (topic, payload) {
            (None, None) => return None,
            (Some(topic), Some(payload)) => (topic, payload),
            _ => {
                self.wrong("cloud.last-will-topic", "give last-will-payload too, or neither", Area::Cloud);
                return None;
            }
        };
        if let Err(why) = check_topic(&topic, Reserved::Allowed) {
            self.wrong("cloud.last-will-topic", format!("{topic:?} {why}"), Area::Cloud);
        }
        Some((topic, payload))
    }

    fn affix(&mut self, key: &str, text: Option<String>, reserved: Reserved) -> String {
        let text = text.unwrap_or_default();
        if let Some(why) = check_topic(&text, reserved).err().filter(|_| !text.is_empty()) {
            self.wrong(key, format!("{text:?} {why}"), AREA);
        }
        text
    }
}
