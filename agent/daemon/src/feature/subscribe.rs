//! Subscriptions: messages of the cloud that go to a file, a pipe or a program of this device.
//!
//! Each rule has a thread of its own and a queue in front of it: the loop only puts a message there, so neither a slow
//! disk nor a command that hangs holds up an update, a job or another rule. A rule takes one message at a time, in the
//! order of their coming; of more than its queue holds the oldest go.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use otandem_core::filter::{Filter, widest};
use otandem_device::delivery;
use otandem_device::machine::now as boottime;
use otandem_device::run::Stop;
use serde_json::{Value, json};

use super::sparing::Sparing;
use super::{Context, Feature, Reach};
use crate::config::{SubscribeSettings, Target};

/// Bytes of payloads that wait for one rule; a single one may be larger.
const QUEUE_BYTES: usize = 512 << 10;
/// How long the end of the agent waits for commands that are being ended.
const FAREWELL: Duration = Duration::from_secs(3);

/// The rules of this device.
pub struct Subscribe {
    rules: Vec<Arc<Rule>>,
    /// What is subscribed to.
    granted: Vec<Filter>,
    stop: Option<Stop>,
    /// Closed when the last thread has ended.
    ended: Option<Receiver<()>>,
}

/// One rule, as the loop and its thread share it.
struct Rule {
    settings: SubscribeSettings,
    state: Mutex<State>,
    /// Something waits, or the end has come.
    news: Condvar,
}

/// A message that waits; rules that mean the same one share it.
#[derive(Clone)]
struct Message {
    topic: Arc<str>,
    payload: Arc<[u8]>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Message>,
    bytes: usize,
    /// Since the queue was empty last, some were dropped.
    overflows: bool,
    over: bool,
    received: u64,
    dropped: u64,
    done: u64,
    failed: u64,
    last_error: Option<String>,
}

impl Subscribe {
    /// Nothing happens before the threads can be started.
    #[must_use]
    pub fn new(rules: Vec<SubscribeSettings>) -> Self {
        let rule =
            |settings| Arc::new(Rule { settings, state: Mutex::new(State::default()), news: Condvar::new() });
        let rules = rules.into_iter().map(rule).collect();
        Self { rules, granted: vec![], stop: None, ended: None }
    }

    /// A message for whoever means its topic.
    fn deal(&self, topic: &str, payload: &[u8]) {
        let mut copy: Option<Message> = None;
        for rule in self.rules.iter().filter(|rule| rule.settings.filter.matches(topic)) {
            let message =
                copy.get_or_insert_with(|| Message { topic: topic.into(), payload: payload.into() });
            rule.put(message.clone());
        }
    }

    fn start(&mut self) -> io::Result<()> {
        let stop = Stop::new()?;
        let (alive, ended) = channel();
        self.ended = Some(ended);
        self.stop = Some(stop.clone());
        for rule in &self.rules {
            let (rule, stop, alive) = (Arc::clone(rule), stop.clone(), alive.clone());
            std::thread::Builder::new().name("subscribe".into()).spawn(move || rule.run(&stop, &alive))?;
        }
        Ok(())
    }
}

impl Rule {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, message: Message) {
        let SubscribeSettings { name, queue, .. } = &self.settings;
        let mut state = self.lock();
        state.received += 1;
        let fits = |state: &State| {
            state.queue.is_empty()
                || (state.queue.len() < *queue && state.bytes + message.payload.len() <= QUEUE_BYTES)
        };
        while !fits(&state) {
            let Some(oldest) = state.queue.pop_front() else { break };
            state.bytes -= oldest.payload.len();
            state.dropped += 1;
            if !std::mem::replace(&mut state.overflows, true) {
                tracing::warn!(
                    "subscribe.{name}: more comes than is handed on: the oldest messages are dropped"
                );
            }
        }
        state.bytes += message.payload.len();
        state.queue.push_back(message);
        self.news.notify_one();
    }

    /// The next message; `None`: the end has come.
    fn next(&self) -> Option<Message> {
        let state = self.lock();
        let nothing = |state: &mut State| !state.over && state.queue.is_empty();
        let mut state = self.news.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner);
        if state.over {
            return None;
        }
        let message = state.queue.pop_front()?;
        state.bytes -= message.payload.len();
        state.overflows &= !state.queue.is_empty();
        Some(message)
    }

    /// The thread. `_alive` is closed at its end.
    fn run(&self, stop: &Stop, _alive: &Sender<()>) {
        let SubscribeSettings { name, target, timeout, .. } = &self.settings;
        let mut failures = Sparing::default();
        while let Some(Message { topic, payload }) = self.next() {
            let result = match target {
                Target::Write(path) => delivery::write(path, &payload, *timeout),
                Target::Exec(command) => delivery::exec(command, &topic, &payload, *timeout, stop),
            };
            if stop.is_set() {
                return;
            }
            let mut state = self.lock();
            let Err(why) = result else {
                state.done += 1;
                continue;
            };
            state.failed += 1;
            let line = format!("{:?}: {why}", &*topic);
            state.last_error = Some(line.clone());
            drop(state);
            if let Some(others) = failures.again(boottime()) {
                tracing::warn!("subscribe.{name}: not handed on{others}: {line}");
            }
        }
    }
}

impl Drop for Subscribe {
    /// Commands that run are ended with the agent.
    fn drop(&mut self) {
        if let Some(stop) = &self.stop {
            stop.stop();
        }
        for rule in &self.rules {
            rule.lock().over = true;
            rule.news.notify_all();
        }
        if let Some(ended) = &self.ended {
            // Nothing is ever sent: it is closed, or the time is over.
            let _ = ended.recv_timeout(FAREWELL);
        }
    }
}

impl Feature for Subscribe {
    fn optional(&self) -> Vec<Vec<String>> {
        let filters = widest(self.rules.iter().map(|rule| &rule.settings.filter));
        filters.into_iter().map(|filter| vec![filter.as_str().to_owned()]).collect()
    }

    fn attach(&mut self, _: &Reach) {
        if let Err(e) = self.start() {
            tracing::error!("subscribe: no thread or descriptor left, so that messages only wait: {e}");
        }
    }

    fn on_session(&mut self, _: &mut Context<'_>, _: bool) {
        self.granted.clear();
    }

    fn on_granted(&mut self, _: &mut Context<'_>, topics: &[String]) {
        self.granted.extend(topics.iter().filter_map(|topic| Filter::new(topic).ok()));
    }

    fn on_message(&mut self, _: &mut Context<'_>, topic: &str, payload: &[u8]) {
        self.deal(topic, payload);
    }

    fn show(&self, status: &mut Value, _: &mut Vec<String>) {
        let mut all = serde_json::Map::new();
        for rule in &self.rules {
            let state = rule.lock();
            let filter = &rule.settings.filter;
            let one = json!({
                "topic": filter.as_str(),
                "subscribed": self.granted.iter().any(|granted| granted.covers(filter)),
                "received": state.received,
                "waiting": state.queue.len(),
                "dropped": state.dropped,
                "done": state.done,
                "failed": state.failed,
                "last-error": state.last_error,
            });
            all.insert(rule.settings.name.clone(), one);
        }
        status["subscribe"] = Value::Object(all);
    }
}
