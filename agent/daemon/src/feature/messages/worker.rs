//! The thread of one directory: waits for files, acknowledgements and time, and does what the
//! [`Sender`](otandem_core::messages::Sender) decides.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use otandem_core::messages::{
    self, Brief, Letterhead, MAX_FILE, MAX_PAYLOAD, Place, Rules, Sender, Verdicts,
};
use otandem_core::time::Boottime;
use otandem_device::machine::now as boottime;
use otandem_device::run::Stop;
use otandem_device::spool::{After, Bell, Entry, Found, Loaded, Spool, Watch};
use tokio::sync::mpsc::UnboundedSender;

use super::bounds::Bounds;
use super::generator;
use super::priority::Priorities;
use crate::cloud::channel::{Fate, Fates, Outbound, Post};
use crate::config::MessagesSettings;
use crate::feature::sparing::Sparing;

/// Until a directory that cannot be used is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// Until a directory that went away soon after it was opened is opened again.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks whether everything is still where it was, and what was stuck still is.
const LOOK: Duration = Duration::from_secs(60);
/// Lists of news that are read before messages are sent again.
const NEWS: usize = 16;
/// Messages that are handed on together.
const BATCH: usize = 16;
/// Bytes of files that are held by messages on their way; a single one may be larger.
const HELD: u64 = 2 << 20;

/// What the thread is told.
pub(super) enum Order {
    /// The session came or went.
    Session { up: bool },
    /// What became of messages.
    Fate(Fate),
    /// The end.
    Stop,
}

/// What the thread lets be seen.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// Files in new/.
    pub waiting: u64,
    /// Files in failed/.
    pub failed: usize,
    /// Messages that arrived since the start.
    pub sent: u64,
    /// Files that were dropped for want of room since the start.
    pub dropped: u64,
    /// Files that are done and cannot be removed.
    pub stuck: usize,
    /// Why the last file was refused.
    pub last_error: Option<String>,
    /// What keeps the directory as a whole from working.
    pub trouble: Option<String>,
}

/// Why a directory is not served any more.
enum Over {
    Stopped,
    /// It is not there any more, or not readable: to be opened anew.
    Gone(String),
}

/// See the module.
pub(super) struct Worker {
    settings: MessagesSettings,
    rules: Rules,
    outbound: UnboundedSender<Outbound>,
    fates: Fates,
    orders: Receiver<Order>,
    bell: Bell,
    shown: Arc<Mutex<Shown>>,
    stop: Stop,
    sender: Sender,
    priorities: Priorities,
    bounds: Bounds,
    /// The files of messages on their way, by id, which only grows.
    held: VecDeque<(u64, Entry)>,
    held_bytes: u64,
    /// Files beyond those that the sender knows.
    beyond: u64,
    sent: u64,
    last_error: Option<String>,
    refusals: Sparing,
    looked: Boottime,
}

impl Worker {
    pub(super) fn new(
        settings: MessagesSettings,
        outbound: UnboundedSender<Outbound>,
        fates: Fates,
        orders: Receiver<Order>,
        bell: Bell,
        shown: Arc<Mutex<Shown>>,
        stop: Stop,
    ) -> Self {
        let rules = Rules {
            prefix: settings.topic_prefix.clone(),
            suffix: settings.topic_suffix.clone(),
            letterhead: None,
            reserved: settings.reserved,
        };
        Self {
            sender: Sender::new(settings.pace),
            priorities: Priorities::new(settings.priorities, settings.order),
            bounds: Bounds::new(settings.bounds),
            settings,
            rules,
            outbound,
            fates,
            orders,
            bell,
            shown,
            stop,
            held: VecDeque::new(),
            held_bytes: 0,
            beyond: 0,
            sent: 0,
            last_error: None,
            refusals: Sparing::default(),
            looked: Boottime::default(),
        }
    }

    /// Until it is told to stop.
    pub(super) fn run(mut self) {
        let mut last = String::new();
        loop {
            let trouble = match self.open() {
                Ok((mut spool, watch)) => {
                    last.clear();
                    let begin = boottime();
                    match self.serve(&mut spool, &watch) {
                        Over::Stopped => return,
                        // Not at once again and again.
                        Over::Gone(_) if boottime().since(begin) < TRY_AGAIN && self.pause(AGAIN) => return,
                        Over::Gone(why) => why,
                    }
                }
                Err(why) => {
                    if why != last {
                        tracing::error!("messages.{}: {why}", self.settings.name);
                        last.clone_from(&why);
                    }
                    self.seen(|shown| shown.trouble = Some(why.clone()));
                    if self.pause(TRY_AGAIN) {
                        return;
                    }
                    continue;
                }
            };
            tracing::warn!("messages.{}: {trouble}; opening it again", self.settings.name);
        }
    }

    fn open(&mut self) -> Result<(Spool, Watch), String> {
        let MessagesSettings { directory, keep, letterhead_file, .. } = &self.settings;
        self.rules.letterhead = letterhead_file.as_deref().map(letterhead).transpose()?;
        let spool = Spool::open(directory, MAX_FILE, *keep).map_err(|e| e.to_string())?;
        let watch = Watch::new(&spool).map_err(|e| e.to_string())?;
        Ok((spool, watch))
    }

    /// Waits a while, hearing of the session; `true`: stop.
    fn pause(&mut self, how_long: Duration) -> bool {
        let until = boottime().after(how_long);
        loop {
            match self.orders.recv_timeout(until.since(boottime())) {
                Ok(Order::Session { up }) => self.sender.session(up),
                Ok(Order::Fate(fate)) => self.fate(None, fate, boottime()),
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    fn serve(&mut self, spool: &mut Spool, watch: &Watch) -> Over {
        self.looked = boottime();
        // What came while it was not watched.
        if let Err(why) = self.scan(spool) {
            return Over::Gone(why);
        }
        loop {
            // Before the looks: what comes after them rings again.
            self.bell.hear();
            let now = boottime();
            while let Ok(order) = self.orders.try_recv() {
                match order {
                    Order::Session { up } => self.sender.session(up),
                    Order::Fate(fate) => self.fate(Some(&mut *spool), fate, now),
                    Order::Stop => return Over::Stopped,
                }
            }
            if let Some(over) = self.news(spool, watch) {
                return over;
            }
            if self.bounds.exceeded()
                && let Err(why) = self.bound(spool)
            {
                return Over::Gone(why);
            }
            let verdicts = self.sender.tick(now);
            self.obey(Some(&mut *spool), verdicts);
            if now.since(self.looked) >= LOOK {
                self.looked = now;
                if !spool.is_there() {
                    return Over::Gone("the directory was replaced".into());
                }
                spool.retry_stuck();
            }
            if self.sender.wants_scan()
                && let Err(why) = self.scan(spool)
            {
                return Over::Gone(why);
            }
            self.publish(spool, now);
            self.show(spool);
            // Otherwise an acknowledgement, or the next look, changes something.
            let may_send = !spool.is_blocked() && !self.is_full();
            let wake = self.sender.next_wake().filter(|_| may_send);
            let wake = if self.sender.wants_scan() { Some(now) } else { wake };
            let look = self.looked.after(LOOK);
            watch.wait(&self.bell, Some(wake.unwrap_or(look).min(look).since(boottime())));
        }
    }

    /// What came into the directory.
    fn news(&mut self, spool: &mut Spool, watch: &Watch) -> Option<Over> {
        for _ in 0..NEWS {
            let found = watch.read();
            if found.is_empty() {
                break;
            }
            for found in found {
                match found {
                    Found::Name(name) => self.came(spool, &name),
                    Found::Missed => self.sender.missed(),
                    Found::Gone if spool.is_there() => {}
                    Found::Gone => return Some(Over::Gone("the directory is gone".into())),
                }
            }
        }
        None
    }

    fn came(&mut self, spool: &Spool, name: &OsStr) {
        self.bounds.came(spool, name);
        let place = self.priorities.place(spool, name.to_owned());
        self.sender.came(place);
    }

    /// Drops what is too much.
    fn bound(&mut self, spool: &mut Spool) -> Result<(), String> {
        loop {
            let held = &self.held;
            let too_much = self.bounds.survey(spool, |name| held.iter().any(|(_, entry)| entry.name == name));
            let too_much = too_much.map_err(|e| e.to_string())?;
            if too_much.is_empty() {
                return Ok(());
            }
            too_much.iter().for_each(|(entry, why)| self.refuse(spool, entry, why));
        }
    }

    /// Reads the whole directory, of which the sender remembers the beginning.
    fn scan(&mut self, spool: &mut Spool) -> Result<(), String> {
        self.bound(spool)?;
        let (priorities, sender) = (&mut self.priorities, &mut self.sender);
        sender.scan();
        let all = spool.scan(false, |name, _| sender.seen(priorities.place(spool, name)));
        let all = all.map_err(|e| e.to_string())?;
        self.beyond = all.saturating_sub(self.sender.waiting() as u64);
        Ok(())
    }

    /// Sends what may be sent now.
    fn publish(&mut self, spool: &mut Spool, now: Boottime) {
        let mut batch = Vec::new();
        while !spool.is_blocked() && !self.is_full() {
            let Some(place) = self.sender.next(now) else { break };
            match spool.load(place.name()) {
                Loaded::Gone => {}
                Loaded::Refused(entry, why) => self.refuse(spool, &entry, &why),
                Loaded::Later(e) => {
                    self.last_error = Some(format!("a file cannot be read now: {e}"));
                    self.sender.rest(place, now);
                }
                Loaded::Content(_, bytes) if self.priorities.fell_back(&place, &bytes) => {
                    // It waits for its usual turn.
                    self.sender.came(place.usual());
                }
                Loaded::Content(entry, bytes) => match self.message(spool, &entry, &bytes, &place) {
                    // What was interrupted by the end of the agent is not to blame.
                    Err(_) if self.stop.is_set() => break,
                    Err(refusal) => self.refuse(spool, &entry, &refusal),
                    Ok(message) => {
                        let alone = self.sender.is_suspect(&place);
                        let id = self.sender.sent(place, now);
                        self.held_bytes += entry.identity.size();
                        self.held.push_back((id, entry));
                        let messages::Message { topic, payload, qos, retain } = message;
                        batch.push(Post { id, topic, payload: payload.into(), qos, retain, alone });
                    }
                },
            }
            if batch.len() == BATCH {
                self.hand_on(std::mem::take(&mut batch));
            }
        }
        self.hand_on(batch);
    }

    /// What a file says, with its letterhead.
    fn message(
        &mut self,
        spool: &Spool,
        entry: &Entry,
        bytes: &[u8],
        place: &Place,
    ) -> Result<messages::Message, String> {
        let MessagesSettings { directory, letterhead_file, letterhead_generator, .. } = &self.settings;
        if let (Some(program), None) = (letterhead_generator, letterhead_file) {
            let mut brief = Brief::of(bytes, &self.rules).map_err(|refusal| refusal.to_string())?;
            brief.prioritised = place.is_ahead();
            let file = directory.join("new").join(&entry.name);
            let modified = spool.modified(&entry.name);
            let made = generator::letterhead(program, &file, modified, brief, &self.stop)?;
            self.rules.letterhead = Some(made);
        }
        messages::read(bytes, &self.rules).map_err(|refusal| refusal.to_string())
    }

    /// As much is on its way as may be in memory.
    fn is_full(&self) -> bool {
        self.held_bytes >= HELD
    }

    fn hand_on(&self, batch: Vec<Post>) {
        if !batch.is_empty() {
            // Without a session's task the agent is about to end.
            let _ = self.outbound.send(Outbound::Post(batch, self.fates.clone()));
        }
    }

    /// Without a spool, since it cannot be opened now, files stay: they are sent again.
    fn fate(&mut self, mut spool: Option<&mut Spool>, fate: Fate, now: Boottime) {
        match fate {
            Fate::Published(ids) => {
                for id in ids {
                    self.sender.published(id, now);
                    self.sent += 1;
                    let entry = self.release(id);
                    if let (Some(spool), Some(entry)) = (spool.as_deref_mut(), entry) {
                        self.left(&entry);
                        let after = spool.done(&entry);
                        self.after(spool, &entry, after);
                    }
                }
            }
            Fate::Lost { ids, suspect } => {
                let verdicts = self.sender.lost(&ids, suspect.as_ref(), now);
                self.obey(spool, verdicts);
                ids.into_iter().for_each(|id| drop(self.release(id)));
            }
            Fate::Refused(id, why) => {
                self.sender.refused(id);
                self.obey(spool, Verdicts { given_up: vec![(id, why)], reconnect: false });
            }
        }
    }

    fn release(&mut self, id: u64) -> Option<Entry> {
        let at = self.held.binary_search_by_key(&id, |(held, _)| *held).ok()?;
        let (_, entry) = self.held.remove(at)?;
        self.held_bytes -= entry.identity.size();
        Some(entry)
    }

    fn obey(&mut self, mut spool: Option<&mut Spool>, verdicts: Verdicts) {
        for (id, why) in verdicts.given_up {
            if let (Some(spool), Some(entry)) = (spool.as_deref_mut(), self.release(id)) {
                self.refuse(spool, &entry, &why);
            }
        }
        if verdicts.reconnect {
            tracing::warn!(
                "messages.{}: the broker acknowledges nothing; connecting anew",
                self.settings.name
            );
            let _ = self.outbound.send(Outbound::Reconnect);
        }
    }

    /// A file is about to leave.
    fn left(&mut self, entry: &Entry) {
        self.bounds.left(entry);
        self.priorities.left(&entry.name);
    }

    fn refuse(&mut self, spool: &mut Spool, entry: &Entry, why: &str) {
        self.left(entry);
        let after = spool.fail(entry, why);
        let line = format!("{:?}: {why}", entry.name);
        if let Some(others) = self.refusals.again(boottime()) {
            tracing::warn!("messages.{}: refused{others}: {line}", self.settings.name);
        }
        self.last_error = Some(line);
        self.after(spool, entry, after);
    }

    fn after(&mut self, spool: &mut Spool, entry: &Entry, after: After) {
        match after {
            After::Nothing => {}
            After::Another => self.came(spool, &entry.name),
            After::Stuck => tracing::debug!("{:?}: {}", entry.name, spool.stuck().1),
        }
    }

    fn seen(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn show(&self, spool: &Spool) {
        let (stuck, why) = spool.stuck();
        let trouble = (stuck > 0).then(|| format!("{stuck} files that are done with stay in new/: {why}"));
        let waiting = self.sender.waiting() as u64 + self.beyond;
        self.seen(|shown| {
            (shown.waiting, shown.failed, shown.stuck) = (waiting, spool.failed(), stuck);
            (shown.sent, shown.dropped) = (self.sent, self.bounds.dropped());
            if shown.last_error != self.last_error {
                shown.last_error.clone_from(&self.last_error);
            }
            shown.trouble = trouble;
        });
    }
}

/// Reads the file that lies under every message.
fn letterhead(path: &Path) -> Result<Letterhead, String> {
    let told = |e: &dyn std::fmt::Display| format!("letterhead-file {}: {e}", path.display());
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| told(&e))?;
    file.take(MAX_PAYLOAD as u64).read_to_end(&mut bytes).map_err(|e| told(&e))?;
    Letterhead::read(&bytes).map_err(|e| told(&e))
}
