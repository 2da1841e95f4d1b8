//! The command of a service.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::OutfileError;
use crate::run::{self, End, Spec, Stop};

/// Starts of a command for one change without an end: one that ends the agent each time is not run for ever.
const MOST_STARTS: u64 = 3;

/// How a command ended; called in a thread of its own.
pub type Ran = Arc<dyn Fn(Result<(), String>) + Send + Sync>;

/// Runs the command of one service. That it is due is on disk before the change that it is about, and until it has
/// ended: after a power cut in between it runs again. A command that fails has run.
#[derive(Clone)]
pub struct Notifier(Arc<Inner>);

struct Inner {
    /// For `/bin/sh -c`.
    command: String,
    time_limit: Duration,
    /// Says on disk that the command is due.
    mark: PathBuf,
    ran: Ran,
    stop: Stop,
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// Asked for since the command began.
    due: bool,
    /// Marked since the command began: a change comes.
    marked: bool,
    running: bool,
}

impl Notifier {
    /// Nothing runs yet, but what a mark says is due is so at once; unless it began so often already and never came to
    /// its end.
    #[must_use]
    pub fn new(command: String, time_limit: Duration, mark: PathBuf, stop: Stop, ran: Ran) -> Self {
        let state = Mutex::new(State::default());
        let idle = Condvar::new();
        let begun = fs::metadata(&mark).map(|mark| mark.len());
        let notifier = Self(Arc::new(Inner { command, time_limit, mark, ran, stop, state, idle }));
        match begun {
            Ok(MOST_STARTS..) => {
                notifier.unmark();
                let why = format!("it began {MOST_STARTS} times and the agent ended before it did; given up");
                (notifier.0.ran)(Err(why));
            }
            Ok(_) => notifier.notify(),
            Err(_) => {}
        }
        notifier
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before a change: the command will be due.
    ///
    /// # Errors
    /// That cannot be put on disk, so the change must not be made.
    pub fn mark(&self) -> Result<(), OutfileError> {
        let mut state = self.lock();
        let Inner { mark, .. } = &*self.0;
        let made = File::create(mark).and_then(|file| file.sync_all());
        made.and_then(|()| sync_parent(mark)).map_err(OutfileError::of("write", mark))?;
        state.marked = true;
        Ok(())
    }

    /// The change was not made.
    pub fn unmark(&self) {
        let mut state = self.lock();
        state.marked = false;
        if !state.running && !state.due {
            let _ = fs::remove_file(&self.0.mark);
        }
    }

    /// The command is to run: now, or once more when the one that runs has ended.
    pub fn notify(&self) {
        let mut state = self.lock();
        (state.due, state.marked) = (true, false);
        if std::mem::replace(&mut state.running, true) {
            return;
        }
        let own = self.clone();
        let started = std::thread::Builder::new().name("notify".into()).spawn(move || own.run());
        if let Err(e) = started {
            state.running = false;
            drop(state);
            (self.0.ran)(Err(format!("no thread left for it: {e}")));
        }
    }

    /// Waits until nothing runs and nothing is due.
    pub fn wait(&self) {
        let state = self.lock();
        drop(self.0.idle.wait_while(state, |state| state.running));
    }

    fn run(&self) {
        let Inner { command, mark, ran, stop, .. } = &*self.0;
        loop {
            {
                let mut state = self.lock();
                if !state.due || stop.is_set() {
                    if !state.due && !state.marked {
                        let _ = fs::remove_file(mark);
                    }
                    state.running = false;
                    self.0.idle.notify_all();
                    return;
                }
                state.due = false;
            }
            let result = self.once(command);
            if stop.is_set() {
                // Ended by us: it is due at the next start.
                self.lock().due = true;
            }
            ran(result);
        }
    }

    fn once(&self, command: &str) -> Result<(), String> {
        // A byte for each start; a new change begins with none.
        if let Ok(mut mark) = OpenOptions::new().append(true).open(&self.0.mark) {
            let _ = mark.write_all(b"x");
        }
        shell(command, None, self.0.time_limit, SAID, &self.0.stop).map(drop)
    }
}

/// Bytes of what a command says that are kept for people.
const SAID: usize = 4096;

/// What a command prints whose answer is wanted, less than `most` bytes; `stdin` is all of its input.
///
/// # Errors
/// One line: it failed, took too long, or printed too much or no UTF-8.
pub fn output(
    command: &str,
    stdin: &str,
    time_limit: Duration,
    most: usize,
    stop: &Stop,
) -> Result<String, String> {
    let text = shell(command, Some(stdin.into()), time_limit, most, stop)?;
    if text.len() >= most {
        return Err(format!("it printed {most} bytes or more; print less"));
    }
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err("what it printed is no UTF-8".into());
    }
    Ok(text)
}

/// Runs a command line as chariotd does: by the shell, in `/`, with the environment of the agent.
fn shell(
    command: &str,
    stdin: Option<Vec<u8>>,
    time_limit: Duration,
    output_tail: usize,
    stop: &Stop,
) -> Result<String, String> {
    let mut spec = Spec::new(["/bin/sh", "-c", command]).in_own_environment([]);
    (spec.stdin, spec.output_tail, spec.time_limit) = (stdin, output_tail, Some(time_limit));
    let outcome = run::run(spec, stop).map_err(|e| e.to_string())?;
    let again = if outcome.end == End::Stopped { "; it runs again" } else { "" };
    outcome.printed(time_limit).map_err(|why| why + again)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent).and_then(|directory| directory.sync_all()))
}
