//! The process and everything that is heard of it: one lock, one bell, no polling.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use otandem_core::boot::SetId;

use crate::Error;
use crate::error::file;

/// Lines of the log in the text of a failure.
const TAIL: usize = 60;

/// One boot, as the loader did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// What booted; `None` = nothing could be loaded.
    pub set: Option<SetId>,
    /// The version of the image in each slot of that set; `None` = not a complete image that was ever made.
    pub images: Vec<Option<String>>,
}

/// A script that waits to be let go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// Its name.
    pub name: String,
    /// The process that waits.
    pub pid: i32,
}

/// Everything heard so far.
#[derive(Debug, Default)]
pub struct Heard {
    /// Lines of the agent's log, all its processes one after the other, with the seconds since the device was made.
    pub log: Vec<String>,
    /// What scripts told, gates and reboots too.
    pub events: Vec<String>,
    /// Scripts that wait.
    pub gates: Vec<Gate>,
    /// Boots so far.
    pub boots: Vec<Boot>,
    /// Ends of the agent's process that nobody asked for.
    pub crashes: Vec<String>,
    /// Times that the agent had to be killed since it did not end by itself.
    pub stubborn: u32,
    /// Reboots that were asked for and not yet played.
    pub reboots_due: u32,
    /// Starts of the agent so far.
    pub starts: u32,
    /// The agent that runs has told the service manager that it is ready: the running set is settled.
    pub ready: bool,
    /// The agent that runs has told the service manager that it ends; the manager waits for that from then on.
    pub stopping: bool,
    /// What it told the service manager in words.
    pub said: Vec<String>,
    pub(super) child: Option<i32>,
    pub(super) ending: bool,
}

impl Heard {
    /// The process runs.
    #[must_use]
    pub fn running(&self) -> bool {
        self.child.is_some()
    }

    /// The number of the process that runs.
    #[must_use]
    pub fn process(&self) -> Option<i32> {
        self.child
    }

    /// Lines of the log with this text.
    pub fn lines<'s>(&'s self, text: &'s str) -> impl Iterator<Item = &'s str> {
        self.log.iter().map(String::as_str).filter(move |line| line.contains(text))
    }
}

/// The lock and the bell.
pub(super) struct Shared {
    heard: Mutex<Heard>,
    changed: Condvar,
    log: PathBuf,
    began: Instant,
}

impl Shared {
    pub fn new(log: PathBuf) -> Self {
        Self { heard: Mutex::default(), changed: Condvar::new(), log, began: Instant::now() }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn with<T>(&self, work: impl FnOnce(&mut Heard) -> T) -> T {
        let result = work(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Looks without waking anybody.
    pub fn look<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        look(&self.lock())
    }

    /// Waits until `condition` finds something, at most `limit`.
    pub fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Heard) -> Option<T>,
    ) -> Result<T, Error> {
        let end = Instant::now() + limit;
        let mut heard = self.lock();
        loop {
            if let Some(found) = condition(&heard) {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let tail = tail(&heard);
                return Err(Error::NotSeen { what: what.to_owned(), limit, log: self.log.clone(), tail });
            }
            heard = self.changed.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn tail(&self) -> String {
        tail(&self.lock())
    }
}

fn tail(heard: &Heard) -> String {
    let lines = heard.log[heard.log.len().saturating_sub(TAIL)..].join("\n");
    let last = heard.events.len().saturating_sub(10);
    format!("{lines}\nlast told by scripts: {:?}; boots: {:?}", &heard.events[last..], heard.boots)
}

/// Starts the agent. Its output goes to the log file and is heard; its end is heard.
pub(super) fn start(shared: &Arc<Shared>, mut command: Command) -> Result<(), Error> {
    let log = OpenOptions::new().create(true).append(true).open(&shared.log);
    let log = log.map_err(file("open", &shared.log))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |why: String| Error::Program { program: program.clone(), why };
    let mut child = spawn(&mut command).map_err(|e| failed(e.to_string()))?;
    let pid = i32::try_from(child.id()).map_err(|e| failed(e.to_string()))?;
    shared.with(|heard| {
        heard.starts += 1;
        heard.log.push(format!("---- start {}: process {pid} ----", heard.starts));
        heard.child = Some(pid);
        heard.ending = false;
        heard.ready = false;
        heard.stopping = false;
    });
    for stream in [child.stdout.take().map(boxed), child.stderr.take().map(boxed)].into_iter().flatten() {
        let (shared, log) = (Arc::clone(shared), log.try_clone().map_err(file("open", &shared.log))?);
        std::thread::spawn(move || listen(&shared, stream, log));
    }
    let shared = Arc::clone(shared);
    std::thread::spawn(move || reap(&shared, child, pid));
    Ok(())
}

/// Starts a program with no signal blocked, whatever this thread has blocked: children inherit that.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let mine = SigSet::thread_get_mask()?;
    SigSet::empty().thread_set_mask()?;
    let child = command.spawn();
    mine.thread_set_mask()?;
    child
}

fn boxed(stream: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(stream)
}

fn listen(shared: &Shared, stream: Box<dyn Read + Send>, mut log: File) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
        // The file is for people; a full disk there is not what is tested.
        let _ = log.write_all(&line);
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        let text = format!("{:7.2} {text}", shared.began.elapsed().as_secs_f64());
        shared.with(|heard| heard.log.push(text));
        line.clear();
    }
}

/// Waits for the end of the process. It is taken off the list before its number can be given to another one.
fn reap(shared: &Shared, mut child: Child, pid: i32) {
    let _ = waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    shared.with(|heard| {
        let status = child.wait();
        if heard.child == Some(pid) {
            heard.child = None;
            if !heard.ending {
                heard.crashes.push(describe(&status));
            }
        }
    });
}

fn describe(status: &std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(e) => e.to_string(),
    }
}

/// Sends a signal to the process, if it runs: not to its scripts.
pub(super) fn signal(shared: &Shared, signal: Signal) {
    shared.with(|heard| {
        heard.ending = true;
        if let Some(pid) = heard.child {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    });
}

/// Ends the process as a machine does that shuts down, and waits for its end.
pub(super) fn stop(shared: &Shared, limit: Duration) -> Result<(), Error> {
    signal(shared, Signal::SIGTERM);
    if shared.wait("the end of the agent", limit, |heard| (!heard.running()).then_some(())).is_err() {
        shared.with(|heard| heard.stubborn += 1);
        cut(shared)?;
    }
    Ok(())
}

/// Ends the process and the scripts that wait as a power cut does.
pub(super) fn cut(shared: &Shared) -> Result<(), Error> {
    signal(shared, Signal::SIGKILL);
    shared.with(|heard| {
        for gate in heard.gates.drain(..) {
            // Each script leads a group of its own; where it does not, the script alone has to do.
            let pid = Pid::from_raw(gate.pid);
            if killpg(pid, Signal::SIGKILL).is_err() {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        heard.reboots_due = 0;
    });
    let gone = |heard: &Heard| (!heard.running()).then_some(());
    shared.wait("the end of a killed process", Duration::from_secs(20), gone)
}

/// The service manager: hears what the agent notifies it of until it is told `quit`.
pub(super) fn hear_notices(shared: Arc<Shared>, socket: UnixDatagram) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text == "quit" {
                break;
            }
            shared.with(|heard| {
                for line in text.lines() {
                    match line.split_once('=') {
                        Some(("READY", "1")) => heard.ready = true,
                        Some(("STOPPING", "1")) => heard.stopping = true,
                        Some(("STATUS", status)) => heard.said.push(status.to_owned()),
                        _ => {}
                    }
                }
            });
        }
    })
}

/// Hears what scripts tell until it is told `quit`.
pub(super) fn hear_scripts(shared: Arc<Shared>, pipe: File) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words == ["quit"] {
                break;
            }
            shared.with(|heard| {
                match words.as_slice() {
                    ["reboot"] => heard.reboots_due += 1,
                    ["gate", name, pid] => {
                        let pid = pid.parse().unwrap_or_default();
                        heard.gates.push(Gate { name: (*name).to_owned(), pid });
                    }
                    _ => {}
                }
                heard.events.push(line.clone());
            });
        }
    })
}
