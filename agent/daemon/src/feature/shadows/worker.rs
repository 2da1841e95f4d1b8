//! The thread of one table: waits for messages, files, commands and time, and does what its
//! [`Shadow`]s decide.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use otandem_core::gather::Gather as _;
use otandem_core::messages::Qos;
use otandem_core::services::definition::Definition;
use otandem_core::shadow::{Action, Answer, Name, Shadow};
use otandem_core::time::Boottime;
use otandem_device::machine::now as boottime;
use otandem_device::run::Stop;
use otandem_device::services::module::Engine;
use otandem_device::services::{self, Notifier, Ran};
use otandem_device::spool::Bell;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::load::{Table, shown};
use super::updates::Updates;
use crate::cloud::channel::{Fate, Fates, Outbound, Post};
use crate::formats::read_toml;

/// Updates that are taken before something else is heard.
const BATCH: usize = 16;
/// Without anything to do.
const IDLE: Duration = Duration::from_secs(3600);
/// First and longest pause of a shadow whose messages seem to end the connection: jobs need it too.
const BARRED: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// Time and bytes that the command for a default shadow has, of which a shadow is 8 KiB.
const DEFAULT_TIME: Duration = Duration::from_secs(5);
const DEFAULT_BYTES: usize = 64 << 10;

/// What the thread is told.
pub(super) enum Order {
    /// The session is up, and answers to this shadow are subscribed to.
    Up(usize),
    /// The session is gone.
    Down,
    /// A message of a shadow.
    Message { shadow: usize, answer: Answer, payload: Vec<u8> },
    /// All shadows are to be asked for again.
    Refetch,
    /// What became of requests.
    Fate(Fate),
    /// The command of a service ended.
    Ran { shadow: usize, service: usize, result: Result<(), String> },
    /// The command for a default shadow ended.
    Made { shadow: usize, result: Result<String, String> },
    /// The end.
    Stop,
}

/// Where the thread is told something.
#[derive(Clone)]
pub(super) struct Tell {
    orders: Sender<Order>,
    bell: Bell,
}

impl Tell {
    pub(super) const fn new(orders: Sender<Order>, bell: Bell) -> Self {
        Self { orders, bell }
    }

    /// Without the thread there is nobody who wants to know.
    pub(super) fn tell(&self, order: Order) {
        let _ = self.orders.send(order);
        self.bell.ring();
    }
}

/// What the thread lets be seen.
#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) status: Value,
    pub(super) attention: Vec<String>,
}

/// Whom the thread speaks with.
pub(super) struct Ends {
    pub(super) outbound: UnboundedSender<Outbound>,
    pub(super) fates: Fates,
    pub(super) orders: Receiver<Order>,
    pub(super) tell: Tell,
    pub(super) bell: Bell,
    /// Ends commands.
    pub(super) stop: Stop,
    /// Bytes of messages that wait.
    pub(super) pending: Arc<AtomicUsize>,
    pub(super) shown: Arc<Mutex<Shown>>,
}

/// One shadow, and what surrounds it.
struct Served {
    shadow: Shadow,
    /// It has a session, and is asked where it is not barred.
    up: bool,
    notifiers: Vec<Notifier>,
    /// How the command of each service failed last.
    failures: Vec<Option<String>>,
    /// The request that was posted last.
    posted: Option<u64>,
    posted_get: bool,
    /// How often the connection ended at one, without an answer to one of its kind in between.
    suspected: u32,
    suspected_get: bool,
    /// It is left alone until then, and why.
    barred: Option<(Boottime, String)>,
    /// The command for a default runs.
    making: Option<JoinHandle<()>>,
}

/// See the module.
pub(super) struct Worker {
    table: Table,
    served: Vec<Served>,
    /// Of what names no shadow.
    home: Option<usize>,
    updates: Option<Updates>,
    ends: Ends,
    posts: u64,
}

impl Worker {
    /// Commands that a mark says are due run at once.
    pub(super) fn new(mut table: Table, marks: &Path, ends: Ends) -> Self {
        if let Err(e) = std::fs::create_dir_all(marks) {
            // Each write that notifies says so too, and is not made.
            tracing::error!("{}: {e}", marks.display());
        }
        let home = table.home();
        let shadows = std::mem::take(&mut table.shadows);
        let served: Vec<_> = shadows
            .into_iter()
            .enumerate()
            .map(|(at, (name, definitions))| Served::new(at, name, definitions, &table, marks, &ends))
            .collect();
        let home = served.iter().position(|served| *served.shadow.name() == home);
        let settings = &table.settings;
        let updates = settings.updates.clone().filter(|_| home.is_some());
        let updates = updates.map(|directory| Updates::new(settings.name.clone(), directory, settings.keep));
        Self { table, served, home, updates, ends, posts: 0 }
    }

    /// Until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            // Before the looks: what comes after them rings again.
            self.ends.bell.hear();
            while let Ok(order) = self.ends.orders.try_recv() {
                if matches!(order, Order::Stop) {
                    return self.end();
                }
                self.obey(order);
            }
            let more = self.take_updates();
            for at in 0..self.served.len() {
                self.tick(at);
            }
            self.show();
            let longest = if more { Duration::ZERO } else { self.next_wake().since(boottime()) };
            match &self.updates {
                Some(updates) => updates.wait(&self.ends.bell, longest),
                None => self.ends.bell.wait(Some(longest)),
            }
        }
    }

    /// No command outlives the agent.
    fn end(self) {
        for served in self.served {
            served.notifiers.iter().for_each(Notifier::wait);
            if let Some(making) = served.making {
                let _ = making.join();
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Up(at) => self.session(at, true),
            Order::Down => (0..self.served.len()).for_each(|at| self.session(at, false)),
            Order::Message { shadow: at, answer, payload } => {
                self.ends.pending.fetch_sub(payload.len(), Ordering::Relaxed);
                self.served[at].answered(answer);
                self.told(at, |shadow, now| shadow.message(answer, &payload, now));
            }
            Order::Refetch => {
                for at in 0..self.served.len() {
                    self.told(at, Shadow::refetch);
                }
            }
            Order::Fate(fate) => self.fate(fate),
            Order::Ran { shadow, service, result } => {
                if let Err(why) = &result {
                    tracing::warn!(
                        "services.{}: {}",
                        self.table.settings.name,
                        self.command(shadow, service, why)
                    );
                }
                self.served[shadow].failures[service] = result.err();
            }
            Order::Made { shadow: at, result } => {
                self.served[at].making = None;
                let made = result.map(String::into_bytes);
                self.told(at, |shadow, now| shadow.default_made(made, now));
            }
            Order::Stop => {}
        }
    }

    fn session(&mut self, at: usize, up: bool) {
        let served = &mut self.served[at];
        served.up = up;
        let up = up && served.barred.is_none();
        self.told(at, |shadow, now| shadow.session(up, now));
    }

    /// Tells a shadow what its files hold, then something else; then does what it wants.
    fn told(&mut self, at: usize, tell: impl FnOnce(&mut Shadow, Boottime)) {
        let shadow = &mut self.served[at].shadow;
        let files: Vec<_> = shadow.definitions().map(outfile).collect();
        for (service, path) in files.into_iter().enumerate() {
            let text = path.and_then(|path| {
                let text = services::read(&path);
                text.inspect_err(|e| tracing::debug!("{e}; it is taken for missing")).ok().flatten()
            });
            shadow.look(service, text);
        }
        tell(shadow, boottime());
        self.act(at);
    }

    fn act(&mut self, at: usize) {
        while let Some(action) = self.served[at].shadow.next_action() {
            match action {
                Action::Publish { topic, payload } => self.post(at, topic, payload),
                Action::Write { service, text, notify } => self.served[at].write(service, &text, notify),
                Action::Notify(service) => self.served[at].notify(service),
                Action::Leave(file, outcome) => {
                    if let Some(updates) = &mut self.updates {
                        updates.leave(file, outcome);
                    }
                }
                Action::MakeDefault => self.make_default(at),
            }
        }
    }

    // --- requests ----------------------------------------------------------------------------------------------------

    fn post(&mut self, at: usize, topic: String, payload: Vec<u8>) {
        self.posts += 1;
        let id = self.posts;
        let served = &mut self.served[at];
        (served.posted, served.posted_get) = (Some(id), topic.ends_with("/get"));
        let (qos, alone) = (Qos::AtLeastOnce, served.suspected > 0);
        let post = Post { id, topic, payload: payload.into(), qos, retain: false, alone };
        // Without a session's task the agent is about to end.
        let _ = self.ends.outbound.send(Outbound::Post(vec![post], self.ends.fates.clone()));
    }

    /// Who waits for an answer hears of most by its absence.
    fn fate(&mut self, fate: Fate) {
        let (id, why) = match fate {
            Fate::Published(_) | Fate::Lost { suspect: None, .. } => return,
            Fate::Lost { suspect: Some(suspect), .. } => suspect,
            Fate::Refused(_, why) => return tracing::warn!("services.{}: {why}", self.table.settings.name),
        };
        let Some(at) = self.served.iter().position(|served| served.posted == Some(id)) else { return };
        let served = &mut self.served[at];
        served.suspected += 1;
        served.suspected_get = served.posted_get;
        // Once it may have been chance.
        if served.suspected > 1 {
            let pause = BARRED.0.saturating_mul(1 << (served.suspected - 2).min(9)).min(BARRED.1);
            tracing::error!("{}: {why}; left alone for {} s", shown(served.shadow.name()), pause.as_secs());
            served.barred = Some((boottime().after(pause), why));
            self.told(at, |shadow, now| shadow.session(false, now));
        }
    }

    fn tick(&mut self, at: usize) {
        let now = boottime();
        let served = &mut self.served[at];
        if served.barred.take_if(|(until, _)| *until <= now).is_some() && served.up {
            self.session(at, true);
        }
        if self.served[at].shadow.next_wake().is_some_and(|wake| wake <= now) {
            self.told(at, Shadow::tick);
        }
    }

    fn next_wake(&self) -> Boottime {
        let shadows = self.served.iter().filter_map(|served| served.shadow.next_wake());
        let bars = self.served.iter().filter_map(|served| served.barred.as_ref().map(|(until, _)| *until));
        let updates = self.updates.as_ref().map(Updates::next_wake);
        shadows.chain(bars).chain(updates).min().unwrap_or_else(|| boottime().after(IDLE))
    }

    // --- files and commands ------------------------------------------------------------------------------------------

    /// Whether there are more.
    fn take_updates(&mut self) -> bool {
        let now = boottime();
        let Some(updates) = &mut self.updates else { return false };
        updates.look(now);
        for _ in 0..BATCH {
            let Some(update) = self.updates.as_mut().and_then(|updates| updates.next(now)) else {
                return false;
            };
            let at = self.shadow_of(&update.key);
            self.told(at, |shadow, now| shadow.update(update.file, &update.key, &update.text, now));
        }
        true
    }

    /// The table's own shadow, unless only another one has a service of that key.
    fn shadow_of(&self, key: &str) -> usize {
        let has = |at: usize| self.served[at].shadow.definitions().any(|definition| definition.key == key);
        let home = self.home.unwrap_or_default();
        if has(home) { home } else { (0..self.served.len()).find(|at| has(*at)).unwrap_or(home) }
    }

    /// One at a time, in a thread of its own; how it ends is told.
    fn make_default(&mut self, at: usize) {
        if self.served[at].making.is_some() {
            return;
        }
        let command = self.table.settings.default_shadow.clone().unwrap_or_default();
        let (thing, stop, tell) = (self.table.thing.clone(), self.ends.stop.clone(), self.ends.tell.clone());
        let told = tell.clone();
        let started = std::thread::Builder::new().name("default".into()).spawn(move || {
            let result = services::output(&command, &thing, DEFAULT_TIME, DEFAULT_BYTES, &stop);
            tell.tell(Order::Made { shadow: at, result });
        });
        match started {
            Ok(thread) => self.served[at].making = Some(thread),
            Err(e) => {
                let result = Err(format!("no thread left for it: {e}"));
                told.tell(Order::Made { shadow: at, result });
            }
        }
    }

    // --- for people --------------------------------------------------------------------------------------------------

    fn command(&self, shadow: usize, service: usize, why: &str) -> String {
        let definition = self.served[shadow].shadow.definition(service);
        format!("the command of {:?} failed: {why}", definition.map_or("", |d| d.key.as_str()))
    }

    fn show(&self) {
        let mut attention = self.table.problems.clone();
        let mut shadows = vec![];
        for (at, served) in self.served.iter().enumerate() {
            let standing = served.shadow.standing();
            let name = served.shadow.name();
            let refused: Map<_, _> =
                standing.refused.iter().map(|(key, why)| (key.clone(), Value::from(why.as_str()))).gather();
            attention.extend(standing.refused.iter().map(|(key, why)| format!("{key:?} is refused: {why}")));
            let failed = served.failures.iter().enumerate();
            attention
                .extend(failed.filter_map(|(service, why)| Some(self.command(at, service, why.as_deref()?))));
            let waits = served.up && !standing.settled;
            attention.extend(
                standing.last_error.iter().filter(|_| waits).map(|why| format!("{}: {why}", shown(name))),
            );
            attention.extend(served.barred.iter().map(|(_, why)| format!("{}: {why}", shown(name))));
            shadows.push(json!({
                "shadow": name.shadow,
                "version": standing.version,
                "settled": standing.settled,
                "refused": refused,
                "last-error": standing.last_error,
            }));
        }
        let mut status = json!({
            "thing": self.table.thing,
            "shadows": shadows,
            "services": self.served.iter().map(|served| served.notifiers.len()).sum::<usize>(),
            "problems": self.table.problems,
        });
        if let Some(updates) = &self.updates {
            let (shown, trouble) = updates.show();
            status["updates"] = shown;
            attention.extend(trouble);
        }
        *self.ends.shown.lock().unwrap_or_else(PoisonError::into_inner) = Shown { status, attention };
    }
}

impl Served {
    fn new(
        at: usize,
        name: Name,
        definitions: Vec<Definition>,
        table: &Table,
        marks: &Path,
        ends: &Ends,
    ) -> Self {
        let notifiers: Vec<_> = definitions
            .iter()
            .enumerate()
            .map(|(service, definition)| {
                let tell = ends.tell.clone();
                let ran: Ran = Arc::new(move |result| tell.tell(Order::Ran { shadow: at, service, result }));
                let mark = mark(marks, &name, &definition.key);
                let command = definition.notifycmd.clone();
                Notifier::new(command, definition.timeout, mark, ends.stop.clone(), ran)
            })
            .collect();
        let is_home = name == table.home();
        let empty = table.settings.empty_list;
        let mut shadow = Shadow::new(name, definitions, empty, read_toml, fastrand::u64(..));
        if is_home && table.settings.default_shadow.is_some() {
            shadow.make_default();
        }
        for service in 0..notifiers.len() {
            let module = shadow.definition(service).and_then(|definition| definition.validate.clone());
            if let Some(module) = module {
                shadow.set_validator(service, Engine::installed(ends.stop.clone()).validator(&module));
            }
        }
        let failures = vec![None; notifiers.len()];
        Self {
            shadow,
            up: false,
            notifiers,
            failures,
            posted: None,
            posted_get: false,
            suspected: 0,
            suspected_get: false,
            barred: None,
            making: None,
        }
    }

    /// What the broker let through is not what it closes connections at.
    fn answered(&mut self, answer: Answer) {
        let to_get = matches!(answer, Answer::Got | Answer::NotGot);
        if answer != Answer::Delta && self.barred.is_none() && (!to_get || self.suspected_get) {
            self.suspected = 0;
        }
    }

    /// That the command is due is on disk before the change.
    fn write(&mut self, service: usize, text: &[u8], notify: bool) {
        let notifier = self.notifiers.get(service).filter(|_| notify);
        let path = self.shadow.definition(service).and_then(outfile).unwrap_or_default();
        let marked = notifier.map_or(Ok(()), Notifier::mark);
        let written = marked.and_then(|()| services::write(&path, text)).map_err(|e| e.to_string());
        if let Some(notifier) = notifier {
            if written.is_ok() { notifier.notify() } else { notifier.unmark() }
        }
        if let Err(why) = &written {
            tracing::warn!("{why}");
        }
        self.shadow.written(written, boottime());
    }

    fn notify(&self, service: usize) {
        let Some(notifier) = self.notifiers.get(service) else { return };
        if let Err(e) = notifier.mark() {
            tracing::warn!("{e}; the command runs, and not again after a power cut");
        }
        notifier.notify();
    }
}

/// The file of a service, where it has one that holds something.
fn outfile(definition: &Definition) -> Option<PathBuf> {
    definition.outfile.as_ref().filter(|file| !file.is_null()).map(|file| file.path.clone())
}

/// Where it is remembered that a command is due: a key may be any text, a file name may not.
fn mark(marks: &Path, name: &Name, key: &str) -> PathBuf {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{}\0{key}", name.get()).as_bytes());
    let hex: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    marks.join(hex)
}
