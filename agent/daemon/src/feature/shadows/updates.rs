//! The directory of a table whose files are updates: which of them are held by their shadow, and which leave when.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use otandem_core::formats::MAX_TEXT;
use otandem_core::messages::{Order, Queue};
use otandem_core::time::Boottime;
use otandem_device::spool::{After, Bell, Entry, Found, Keep, Loaded, Spool, Watch};
use serde_json::{Value, json};

use crate::feature::sparing::Sparing;

/// Until a directory that cannot be used is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// Until a file that cannot be read now is tried again, and a directory that went away is opened again.
const SOON: Duration = Duration::from_secs(1);
/// Between two looks whether everything is still where it was, and what was stuck still is.
const LOOK: Duration = Duration::from_secs(60);
/// Lists of news that are read before updates are taken again.
const NEWS: usize = 16;
/// Files that wait for their report in memory, of a few KiB each; all others wait in the directory.
const HELD: usize = 256;

/// An update.
pub(super) struct Update {
    pub(super) file: u64,
    /// Of the shadow.
    pub(super) key: String,
    pub(super) text: Vec<u8>,
}

/// See the module.
pub(super) struct Updates {
    table: String,
    directory: PathBuf,
    keep: Keep,
    open: Option<(Spool, Watch)>,
    /// What keeps it from being open.
    trouble: Option<String>,
    /// Nothing is opened, or read, before.
    rest: Boottime,
    looked: Boottime,
    queue: Queue,
    /// Files in the directory beyond those.
    beyond: u64,
    held: BTreeMap<u64, Entry>,
    files: u64,
    last_error: Option<String>,
    refusals: Sparing,
}

impl Updates {
    pub(super) fn new(table: String, directory: PathBuf, keep: Keep) -> Self {
        Self {
            table,
            directory,
            keep,
            open: None,
            trouble: None,
            rest: Boottime(Duration::ZERO),
            looked: Boottime(Duration::ZERO),
            queue: Queue::new(Queue::MOST),
            beyond: 0,
            held: BTreeMap::new(),
            files: 0,
            last_error: None,
            refusals: Sparing::default(),
        }
    }

    /// Opens the directory, and hears what came into it.
    pub(super) fn look(&mut self, now: Boottime) {
        if self.open.is_none() && (now < self.rest || !self.try_open(now)) {
            return;
        }
        if let Err(why) = self.news(now) {
            tracing::warn!("services.{}: {why}; opening it again", self.table);
            (self.open, self.rest) = (None, now.after(SOON));
        }
    }

    fn try_open(&mut self, now: Boottime) -> bool {
        let opened = Spool::open(&self.directory, MAX_TEXT as u64, self.keep)
            .and_then(|spool| Watch::new(&spool).map(|watch| (spool, watch)));
        match opened {
            Ok(open) => {
                self.open = Some(open);
                (self.trouble, self.looked, self.queue) = (None, now, Queue::new(Queue::MOST));
                true
            }
            Err(e) => {
                let why = e.to_string();
                if self.trouble.as_ref() != Some(&why) {
                    tracing::error!("services.{}: {why}", self.table);
                }
                (self.trouble, self.rest) = (Some(why), now.after(TRY_AGAIN));
                false
            }
        }
    }

    fn news(&mut self, now: Boottime) -> Result<(), String> {
        let Some((spool, watch)) = &mut self.open else { return Ok(()) };
        for _ in 0..NEWS {
            let found = watch.read();
            if found.is_empty() {
                break;
            }
            for found in found {
                match found {
                    Found::Name(name) => self.queue.offer(Order::Lexical.place(name, 0)),
                    Found::Missed => self.queue.missed(),
                    Found::Gone if spool.is_there() => {}
                    Found::Gone => return Err("the directory of updates is gone".into()),
                }
            }
        }
        if now.since(self.looked) >= LOOK {
            self.looked = now;
            if !spool.is_there() {
                return Err("the directory of updates was replaced".into());
            }
            spool.retry_stuck();
        }
        if self.queue.wants_scan() {
            self.scan()?;
        }
        Ok(())
    }

    fn scan(&mut self) -> Result<(), String> {
        let Some((spool, _)) = &self.open else { return Ok(()) };
        let (queue, held) = (&mut self.queue, &self.held);
        queue.clear();
        let mut known = 0;
        let all = spool.scan(false, |name, _| {
            if is_held(held, spool, &name) {
                known += 1;
            } else {
                queue.put(Order::Lexical.place(name, 0));
            }
        });
        let all = all.map_err(|e| e.to_string())?;
        self.beyond = all.saturating_sub(known + queue.len() as u64);
        Ok(())
    }

    /// The next one in order, if one more can be held.
    pub(super) fn next(&mut self, now: Boottime) -> Option<Update> {
        while self.held.len() < HELD && now >= self.rest {
            let (spool, _) = self.open.as_mut().filter(|(spool, _)| !spool.is_blocked())?;
            let place = self.queue.take()?;
            if is_held(&self.held, spool, place.name()) {
                continue;
            }
            match spool.load(place.name()) {
                Loaded::Gone => {}
                Loaded::Refused(entry, why) => self.refuse(&entry, &why),
                Loaded::Later(e) => {
                    self.last_error = Some(format!("a file cannot be read now: {e}"));
                    self.queue.put(place);
                    self.rest = now.after(SOON);
                }
                Loaded::Content(entry, text) => match key(&entry.name) {
                    None => self.refuse(&entry, "its name is no UTF-8, so it names no key of the shadow"),
                    Some(key) => {
                        self.files += 1;
                        self.held.insert(self.files, entry);
                        return Some(Update { file: self.files, key, text });
                    }
                },
            }
        }
        None
    }

    /// A file had its effect, or can have none. Where the directory is not open it stays, and is taken again.
    pub(super) fn leave(&mut self, file: u64, outcome: Result<(), String>) {
        let Some(entry) = self.held.remove(&file) else { return };
        match outcome {
            Err(why) => self.refuse(&entry, &why),
            Ok(()) => {
                let Some((spool, _)) = &mut self.open else { return };
                let after = spool.done(&entry);
                self.after(&entry, after);
            }
        }
    }

    fn refuse(&mut self, entry: &Entry, why: &str) {
        let Some((spool, _)) = &mut self.open else { return };
        let after = spool.fail(entry, why);
        let line = format!("{:?}: {why}", entry.name);
        if let Some(others) = self.refusals.again(otandem_device::machine::now()) {
            tracing::warn!("services.{}: refused{others}: {line}", self.table);
        }
        self.last_error = Some(line);
        self.after(entry, after);
    }

    fn after(&mut self, entry: &Entry, after: After) {
        if after == After::Another {
            self.queue.offer(Order::Lexical.place(entry.name.clone(), 0));
        }
    }

    /// When to look again, at the latest.
    pub(super) fn next_wake(&self) -> Boottime {
        let may_take = !self.queue.is_empty() && self.held.len() < HELD;
        match &self.open {
            Some((spool, _)) if spool.is_blocked() || !may_take => self.looked.after(LOOK),
            _ => self.rest,
        }
    }

    /// Waits for news, the bell or time.
    pub(super) fn wait(&self, bell: &Bell, longest: Duration) {
        match &self.open {
            Some((_, watch)) => watch.wait(bell, Some(longest)),
            None => bell.wait(Some(longest)),
        }
    }

    /// For the status, and what wants attention.
    pub(super) fn show(&self) -> (Value, Option<String>) {
        let (stuck, why) = self.open.as_ref().map_or((0, ""), |(spool, _)| spool.stuck());
        let failed = self.open.as_ref().map_or(0, |(spool, _)| spool.failed());
        let stays = (stuck > 0).then(|| format!("{stuck} files that are done with stay in new/: {why}"));
        let status = json!({
            "directory": self.directory.display().to_string(),
            "waiting": (self.held.len() + self.queue.len()) as u64 + self.beyond,
            "failed": failed,
            "stuck": stuck,
            "last-error": self.last_error,
        });
        (status, self.trouble.clone().or(stays))
    }
}

/// Whether this very file waits for its report already.
fn is_held(held: &BTreeMap<u64, Entry>, spool: &Spool, name: &OsStr) -> bool {
    held.values().any(|entry| entry.name == name)
        && spool.entry(name).is_some_and(|entry| held.values().any(|held| *held == entry))
}

/// `foo` of `foo` and of `foo.20240704`.
fn key(name: &OsStr) -> Option<String> {
    let name = name.to_str()?;
    Some(name.split_once('.').map_or(name, |(key, _)| key).to_owned())
}
