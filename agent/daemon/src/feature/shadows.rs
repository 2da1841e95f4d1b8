//! Shadows: the files of services are kept as the shadow desires them, the shadow says what they hold, and files that
//! others move into a directory become updates of it.
//!
//! Each table of the configuration has a thread of its own ([`worker`]): a disk or a command that hangs for one thing
//! holds up neither another one nor an update of the device. The decisions are those of
//! [`otandem_core::shadow`]; a shadow belongs to one table, so that it has one mind.

mod load;
#[cfg(test)]
mod tests;
mod updates;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use otandem_core::shadow::Name;
use otandem_device::run::Stop;
use otandem_device::spool::Bell;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use super::{Context, Done, Feature, Reach};
use crate::cloud::channel::{Fates, Outbound};
use crate::config::ServicesSettings;
use load::Table;
use worker::{Order, Shown, Tell, Worker};

/// Bytes of messages that wait for a thread; of more it only hears that it must ask again.
const MAX_PENDING: usize = 1 << 20;
/// Where commands are remembered that are due, in the state directory.
const MARKS: &str = "services";

/// The shadows of this device.
pub struct Shadows {
    marks: PathBuf,
    tables: Vec<Table>,
    threads: Vec<Thread>,
}

/// The loop's end of a thread.
struct Thread {
    name: String,
    shadows: Vec<Name>,
    tell: Tell,
    stop: Stop,
    pending: Arc<AtomicUsize>,
    shown: Arc<Mutex<Shown>>,
    handle: Option<JoinHandle<()>>,
}

impl Shadows {
    /// Reads the definitions; nothing else happens before the session's other end is there. `thing`: the device's own.
    #[must_use]
    pub fn new(settings: Vec<ServicesSettings>, thing: &str, state_dir: &Path) -> Self {
        Self { marks: state_dir.join(MARKS), tables: load::load(settings, thing), threads: vec![] }
    }
}

impl Thread {
    fn start(table: Table, marks: &Path, outbound: UnboundedSender<Outbound>) -> std::io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (bell, stop) = (Bell::new()?, Stop::new()?);
        let tell = Tell::new(orders, bell.clone());
        let (pending, shown) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Shown::default())));
        let fated = tell.clone();
        let mut thread = Self {
            name: table.settings.name.clone(),
            shadows: table.shadows.iter().map(|(name, _)| name.clone()).collect(),
            tell: tell.clone(),
            stop: stop.clone(),
            pending: Arc::clone(&pending),
            shown: Arc::clone(&shown),
            handle: None,
        };
        let ends = worker::Ends {
            outbound,
            fates: Fates::new(move |fate| fated.tell(Order::Fate(fate))),
            orders: inbox,
            tell,
            bell,
            stop,
            pending,
            shown,
        };
        let marks = marks.to_owned();
        let run = move || Worker::new(table, &marks, ends).run();
        thread.handle = Some(std::thread::Builder::new().name("shadows".into()).spawn(run)?);
        Ok(thread)
    }

    /// Hands a message of one of its shadows on; `false` if it is none of them.
    fn message(&self, topic: &str, payload: &[u8]) -> bool {
        let found = self.shadows.iter().enumerate().find_map(|(at, name)| Some((at, name.answer(topic)?)));
        let Some((shadow, answer)) = found else { return false };
        if self.pending.load(Ordering::Relaxed) + payload.len() > MAX_PENDING {
            tracing::warn!("services.{}: messages come faster than they are worked off", self.name);
            self.tell.tell(Order::Refetch);
        } else {
            self.pending.fetch_add(payload.len(), Ordering::Relaxed);
            self.tell.tell(Order::Message { shadow, answer, payload: payload.to_vec() });
        }
        true
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop.stop();
        self.tell.tell(Order::Stop);
        if let Some(handle) = self.handle.take() {
            // As long as the commands that run take to end: they are asked to.
            let _ = handle.join();
        }
    }
}

impl Feature for Shadows {
    fn optional(&self) -> Vec<Vec<String>> {
        let waiting = self.tables.iter().flat_map(|table| table.shadows.iter().map(|(name, _)| name));
        let running = self.threads.iter().flat_map(|thread| &thread.shadows);
        waiting.chain(running).map(Name::topics).collect()
    }

    fn attach(&mut self, reach: &Reach) {
        for table in self.tables.drain(..) {
            let name = table.settings.name.clone();
            match Thread::start(table, &self.marks, reach.outbound.clone()) {
                Ok(thread) => self.threads.push(thread),
                Err(e) => tracing::error!("services.{name} is left alone: no thread or descriptor left: {e}"),
            }
        }
    }

    fn on_session(&mut self, _: &mut Context<'_>, up: bool) {
        if !up {
            self.threads.iter().for_each(|thread| thread.tell.tell(Order::Down));
        }
    }

    /// A shadow whose answers cannot be heard has no session.
    fn on_granted(&mut self, _: &mut Context<'_>, topics: &[String]) {
        for thread in &self.threads {
            if let Some(at) = thread.shadows.iter().position(|name| name.topics() == topics) {
                thread.tell.tell(Order::Up(at));
            }
        }
    }

    fn on_message(&mut self, _: &mut Context<'_>, topic: &str, payload: &[u8]) {
        let _ = self.threads.iter().any(|thread| thread.message(topic, payload));
    }

    fn on_done(&mut self, _: &mut Context<'_>, done: &Done) {
        if *done == Done::Refetch {
            self.threads.iter().for_each(|thread| thread.tell.tell(Order::Refetch));
        }
    }

    fn show(&self, status: &mut Value, attention: &mut Vec<String>) {
        let mut all = serde_json::Map::new();
        for Thread { name, shown, .. } in &self.threads {
            let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            attention.extend(shown.attention.iter().map(|line| format!("services.{name}: {line}")));
            all.insert(name.clone(), shown.status.clone());
        }
        status["services"] = Value::Object(all);
    }
}
