//! Messages: files that others move into a directory are published, and leave it when the broker has them.
//!
//! Each directory has a thread of its own ([`worker`]), which talks to the session's task without the loop between them:
//! neither a slow disk nor a thousand messages a second hold up an update. The loop tells the threads when the session
//! comes and goes, and asks them how they are.

mod bounds;
mod generator;
mod priority;
#[cfg(test)]
mod tests;
mod worker;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use otandem_device::run::Stop;
use otandem_device::spool::Bell;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::{Context, Feature, Reach};
use crate::cloud::channel::{Fates, Outbound};
use crate::config::MessagesSettings;
use worker::{Order, Shown, Worker};

/// The directories of this device.
pub struct Messages {
    settings: Vec<MessagesSettings>,
    threads: Vec<Thread>,
}

/// The loop's end of a thread.
struct Thread {
    name: String,
    directory: PathBuf,
    orders: mpsc::Sender<Order>,
    bell: Bell,
    shown: Arc<Mutex<Shown>>,
    /// Ends a program that makes a letterhead.
    stop: Stop,
}

impl Messages {
    /// Nothing happens before the session's other end is there.
    #[must_use]
    pub const fn new(settings: Vec<MessagesSettings>) -> Self {
        Self { settings, threads: vec![] }
    }
}

impl Thread {
    fn start(settings: MessagesSettings, outbound: UnboundedSender<Outbound>) -> std::io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let bell = Bell::new()?;
        let shown = Arc::new(Mutex::new(Shown::default()));
        let (name, directory) = (settings.name.clone(), settings.directory.clone());
        let (told, rung) = (orders.clone(), bell.clone());
        let fates = Fates::new(move |fate| {
            // Without a thread there is nobody who wants to know.
            let _ = told.send(Order::Fate(fate));
            rung.ring();
        });
        let stop = Stop::new()?;
        let seen = Arc::clone(&shown);
        let worker = Worker::new(settings, outbound, fates, inbox, bell.clone(), seen, stop.clone());
        std::thread::Builder::new().name("messages".into()).spawn(move || worker.run())?;
        Ok(Self { name, directory, orders, bell, shown, stop })
    }

    fn tell(&self, order: Order) {
        let _ = self.orders.send(order);
        self.bell.ring();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop.stop();
        self.tell(Order::Stop);
    }
}

impl Feature for Messages {
    fn attach(&mut self, reach: &Reach) {
        for settings in self.settings.drain(..) {
            let name = settings.name.clone();
            match Thread::start(settings, reach.outbound.clone()) {
                Ok(thread) => self.threads.push(thread),
                Err(e) => tracing::error!("messages.{name} are not sent: no thread or descriptor left: {e}"),
            }
        }
    }

    fn on_session(&mut self, _: &mut Context<'_>, up: bool) {
        self.threads.iter().for_each(|thread| thread.tell(Order::Session { up }));
    }

    fn show(&self, status: &mut Value, attention: &mut Vec<String>) {
        let mut all = serde_json::Map::new();
        for Thread { name, directory, shown, .. } in &self.threads {
            let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(trouble) = &shown.trouble {
                attention.push(format!("messages.{name}: {trouble}"));
            }
            let one = json!({
                "directory": directory.display().to_string(),
                "waiting": shown.waiting,
                "failed": shown.failed,
                "sent": shown.sent,
                "dropped": shown.dropped,
                "stuck": shown.stuck,
                "last-error": shown.last_error,
            });
            all.insert(name.clone(), one);
        }
        status["messages"] = Value::Object(all);
    }
}
