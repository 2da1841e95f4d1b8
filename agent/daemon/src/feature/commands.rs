//! Commands: files that others move into a directory, whose name says what is to be done.
//!
//! The directory has a thread of its own, so that the loop waits for no disk. It tells the features what is asked, gets the
//! status from the loop, and writes it.

#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, chown};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use otandem_core::messages::{Order, Queue};
use otandem_core::time::Boottime;
use otandem_device::machine::now as boottime;
use otandem_device::spool::{After, Bell, Entry, Found, Loaded, Spool, SpoolError, Watch};
use otandem_device::state::atomic_write;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::{Done, Feature, Reach, StatusFor};
use crate::config::CommandsSettings;

/// Bytes of a file at most: what it holds is not looked at.
const MAX_FILE: u64 = 4096;
/// Until a directory that cannot be used is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// Until something that the system was short of is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks whether everything is still where it was, and what was stuck still is.
const LOOK: Duration = Duration::from_secs(60);
/// The name of the status, in the directory.
const STATUS: &str = "status.json";
/// The status is for those who may give commands.
const STATUS_MODE: u32 = 0o640;

/// What may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Refetch,
    Reprovision,
    JobsRefresh,
    Status,
}

impl Command {
    const ALL: [(&'static str, Self); 4] = [
        ("refetch", Self::Refetch),
        ("reprovision", Self::Reprovision),
        ("jobs-refresh", Self::JobsRefresh),
        ("status", Self::Status),
    ];

    /// The name up to its first dot, so that several files of one command can wait.
    fn of(name: &OsStr) -> Result<Self, String> {
        let name = name.to_string_lossy();
        let word = name.split('.').next().unwrap_or_default();
        let found = Self::ALL.into_iter().find(|(known, _)| *known == word);
        found.map(|(_, command)| command).ok_or_else(|| {
            let known = Self::ALL.map(|(known, _)| known).join(", ");
            format!("{word:?} is no command: name the file {known}, or one of these with a dot and anything behind it")
        })
    }
}

/// What the thread lets be seen.
#[derive(Debug, Default)]
struct Shown {
    done: u64,
    failed: usize,
    stuck: usize,
    last_error: Option<String>,
    trouble: Option<String>,
}

/// The directory of this device.
pub struct Commands {
    settings: CommandsSettings,
    thread: Option<Thread>,
}

/// The loop's end of the thread.
struct Thread {
    over: Arc<AtomicBool>,
    bell: Bell,
    shown: Arc<Mutex<Shown>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.bell.ring();
    }
}

impl Commands {
    /// Nothing happens before the thread can be started.
    #[must_use]
    pub const fn new(settings: CommandsSettings) -> Self {
        Self { settings, thread: None }
    }

    fn start(&mut self, reach: &Reach) -> std::io::Result<()> {
        let bell = Bell::new()?;
        let (over, shown) = (Arc::default(), Arc::default());
        let thread = Thread { over: Arc::clone(&over), bell: bell.clone(), shown: Arc::clone(&shown) };
        let (settings, done) = (self.settings.clone(), reach.done.clone());
        let worker = Worker {
            settings,
            done,
            over,
            bell,
            shown,
            looked: Boottime::default(),
            count: 0,
            last_error: None,
        };
        std::thread::Builder::new().name("commands".into()).spawn(move || worker.run())?;
        self.thread = Some(thread);
        Ok(())
    }
}

impl Feature for Commands {
    fn attach(&mut self, reach: &Reach) {
        if let Err(e) = self.start(reach) {
            tracing::error!("no commands are taken: no thread or descriptor left: {e}");
        }
    }

    fn show(&self, status: &mut Value, attention: &mut Vec<String>) {
        let Some(thread) = &self.thread else { return };
        let shown = thread.shown.lock().unwrap_or_else(PoisonError::into_inner);
        attention.extend(shown.trouble.as_ref().map(|why| format!("commands: {why}")));
        status["commands"] = json!({
            "directory": self.settings.directory.display().to_string(),
            "done": shown.done,
            "failed": shown.failed,
            "stuck": shown.stuck,
            "last-error": shown.last_error,
        });
    }
}

/// Why a directory is not served any more.
enum Over {
    Stopped,
    /// It is not there any more, or not readable: to be opened anew.
    Gone(String),
}

/// What a walk through the directory left.
enum Left {
    /// Nothing, as far as is known.
    Nothing,
    /// More than was remembered, or what came meanwhile.
    More,
    /// What could not be read now.
    Later,
}

/// The thread of the directory.
struct Worker {
    settings: CommandsSettings,
    done: UnboundedSender<Done>,
    over: Arc<AtomicBool>,
    bell: Bell,
    shown: Arc<Mutex<Shown>>,
    looked: Boottime,
    count: u64,
    last_error: Option<String>,
}

impl Worker {
    fn run(mut self) {
        let mut last = String::new();
        loop {
            let why = match self.open() {
                Ok((mut spool, watch)) => {
                    last.clear();
                    match self.serve(&mut spool, &watch) {
                        Ok(never) => match never {},
                        Err(Over::Stopped) => return,
                        Err(Over::Gone(why)) => why,
                    }
                }
                Err(e) => {
                    let why = e.to_string();
                    self.seen(|shown| shown.trouble = Some(why.clone()));
                    if self.pause(TRY_AGAIN) {
                        return;
                    }
                    why
                }
            };
            if why != last {
                tracing::warn!("commands: {why}; trying to open the directory again");
                last = why;
            }
            if self.pause(AGAIN) {
                return;
            }
        }
    }

    fn open(&self) -> Result<(Spool, Watch), SpoolError> {
        let spool = Spool::open(&self.settings.directory, MAX_FILE, self.settings.keep)?;
        let watch = Watch::new(&spool)?;
        Ok((spool, watch))
    }

    /// Waits a while; `true`: stop.
    fn pause(&self, how_long: Duration) -> bool {
        let until = boottime().after(how_long);
        loop {
            self.bell.hear();
            let left = until.since(boottime());
            if self.over.load(Ordering::SeqCst) || left.is_zero() {
                return self.over.load(Ordering::SeqCst);
            }
            self.bell.wait(Some(left));
        }
    }

    fn serve(&mut self, spool: &mut Spool, watch: &Watch) -> Result<std::convert::Infallible, Over> {
        self.looked = boottime();
        loop {
            // Before the looks: what comes after them rings again.
            self.bell.hear();
            if self.over.load(Ordering::SeqCst) {
                return Err(Over::Stopped);
            }
            while let found = watch.read()
                && !found.is_empty()
            {
                // Whatever it was, the directory is read; only its loss says more than that.
                if found.contains(&Found::Gone) && !spool.is_there() {
                    return Err(Over::Gone("the directory is gone".into()));
                }
            }
            let now = boottime();
            if now.since(self.looked) >= LOOK {
                self.looked = now;
                if !spool.is_there() {
                    return Err(Over::Gone("the directory was replaced".into()));
                }
                spool.retry_stuck();
            }
            let left = self.walk(spool)?;
            self.show(spool);
            let wait = match left {
                Left::More => continue,
                Left::Later => AGAIN,
                Left::Nothing => LOOK,
            };
            watch.wait(&self.bell, Some(self.looked.after(LOOK).since(boottime()).min(wait)));
        }
    }

    /// Obeys what lies there, in the order of names. What is asked for by several files, all of which were there before it is
    /// done, is done once.
    fn walk(&mut self, spool: &mut Spool) -> Result<Left, Over> {
        if spool.is_blocked() {
            return Ok(Left::Nothing);
        }
        let mut names = Queue::new(Queue::MOST);
        names.clear();
        let read = spool.scan(false, |name, _| names.put(Order::Lexical.place(name, 0)));
        let count = read.map_err(|e| Over::Gone(e.to_string()))?;
        let mut left = if count > Queue::MOST as u64 { Left::More } else { Left::Nothing };
        let mut obeyed: Vec<Command> = vec![];
        while let Some(place) = names.take() {
            let (entry, refusal) = match spool.load(place.name()) {
                Loaded::Gone => continue,
                Loaded::Later(e) => {
                    self.last_error = Some(format!("a file cannot be read now: {e}"));
                    left = Left::Later;
                    continue;
                }
                Loaded::Refused(entry, why) => (entry, Some(why)),
                Loaded::Content(entry, _) => {
                    let refusal = match Command::of(place.name()) {
                        Ok(command) if obeyed.contains(&command) => None,
                        Ok(command) => {
                            obeyed.push(command);
                            self.obey(command)?.err()
                        }
                        Err(why) => Some(why),
                    };
                    (entry, refusal)
                }
            };
            if self.settle(spool, &entry, refusal) == After::Another {
                left = Left::More;
            }
        }
        Ok(left)
    }

    fn settle(&mut self, spool: &mut Spool, entry: &Entry, refusal: Option<String>) -> After {
        match refusal {
            None => {
                self.count += 1;
                spool.done(entry)
            }
            Some(why) => {
                let line = format!("{:?}: {why}", entry.name);
                tracing::warn!("commands: refused: {line}");
                self.last_error = Some(line);
                spool.fail(entry, &why)
            }
        }
    }

    /// What comes back is why the command has no effect.
    fn obey(&self, command: Command) -> Result<Result<(), String>, Over> {
        tracing::info!("commands: {command:?}");
        let done = match command {
            Command::Refetch => Done::Refetch,
            Command::Reprovision => Done::Reprovision,
            Command::JobsRefresh => Done::AskCloud,
            Command::Status => return self.write_status(),
        };
        // Without a loop the agent is about to end; the file stays for the next start.
        self.done.send(done).map_err(|_| Over::Stopped)?;
        Ok(Ok(()))
    }

    fn write_status(&self) -> Result<Result<(), String>, Over> {
        let (answer, status) = mpsc::channel();
        let to = StatusFor::new(move |status| drop(answer.send(status)));
        self.done.send(Done::Status(to)).map_err(|_| Over::Stopped)?;
        let status = status.recv().map_err(|_| Over::Stopped)?;
        let path = self.settings.directory.join(STATUS);
        let written = atomic_write(&path, format!("{status:#}\n").as_bytes(), STATUS_MODE);
        // Of the group that may give commands; where that cannot be, its owner reads it.
        if let Ok(meta) = std::fs::metadata(self.settings.directory.join("new")) {
            let _ = chown(&path, None, Some(meta.gid()));
        }
        Ok(written.map_err(|e| e.to_string()))
    }

    fn seen(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn show(&self, spool: &Spool) {
        let (stuck, why) = spool.stuck();
        let trouble = (stuck > 0).then(|| format!("{stuck} files that are done with stay in new/: {why}"));
        self.seen(|shown| {
            (shown.done, shown.failed, shown.stuck) = (self.count, spool.failed(), stuck);
            shown.last_error.clone_from(&self.last_error);
            shown.trouble = trouble;
        });
    }
}
