//! Health checks, hooks and programs of features: what runs beside the loop and answers through the channel.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc as blocking;
use std::time::Duration;

use otandem_core::boot::SetId;
use otandem_core::image::Sha256;
use otandem_core::machine::{Event, Health, Hook, HookAnswer, Verb};
use otandem_core::record::{SlotStatus, SlotStatuses};
use otandem_device::install;
use otandem_device::run::{self, End, Outcome, Spec, Stop};
use tokio::sync::mpsc;

use super::install::Work;

/// Between two rounds of health checks that did not all pass.
const PAUSE: Duration = Duration::from_secs(2);
/// Exit code of a check that sees no use in waiting.
const HOPELESS: i32 = 100;
/// Exit code of a hook that wants to be asked again (EX_TEMPFAIL).
const NOT_NOW: i32 = 75;
/// Bytes of a script's last words that go into a reason.
const LAST_WORDS: usize = 300;

/// What scripts are told about the update, as environment variables.
pub type Environment = Vec<(OsString, OsString)>;

/// A thread that runs programs and can be ended.
pub struct Runner {
    stop: Stop,
    thread: std::thread::JoinHandle<()>,
    /// Dropped to end a pause.
    _wake: blocking::Sender<()>,
}

impl Runner {
    /// It has told what it had to tell.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends what runs; nothing is told any more.
    pub fn stop(self) {
        self.stop.stop();
    }
}

fn spawn(
    name: &str,
    work: impl FnOnce(&Stop, &blocking::Receiver<()>) -> Option<Work> + Send + 'static,
    tell: mpsc::UnboundedSender<Work>,
) -> Result<Runner, String> {
    let stop = Stop::new().map_err(|e| format!("no descriptor left to run programs: {e}"))?;
    let (wake, woken) = blocking::channel();
    let seen = stop.clone();
    let thread = std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let done = work(&seen, &woken);
            if let Some(done) = done.filter(|_| !seen.is_set()) {
                let _ = tell.send(done);
            }
        })
        .map_err(|e| format!("no thread to run programs: {e}"))?;
    Ok(Runner { stop, thread, _wake: wake })
}

/// Runs the checks of `dir`, in the order of their names, until all pass in one round.
///
/// # Errors
/// No thread can be had.
pub fn health(
    dir: PathBuf,
    limit: Duration,
    env: Environment,
    tell: mpsc::UnboundedSender<Work>,
) -> Result<Runner, String> {
    let teller = tell.clone();
    spawn(
        "health",
        move |stop, woken| {
            loop {
                let health = round(&dir, limit, &env, stop);
                let last = matches!(health, Health::Passed | Health::Hopeless(_));
                let work = Work::Event(Box::new(Event::Health(health)));
                if last || stop.is_set() {
                    return Some(work);
                }
                let _ = teller.send(work);
                if woken.recv_timeout(PAUSE) != Err(blocking::RecvTimeoutError::Timeout) {
                    return None;
                }
            }
        },
        tell,
    )
}

fn round(dir: &Path, limit: Duration, env: &Environment, stop: &Stop) -> Health {
    let checks = match executables(dir) {
        Ok(checks) => checks,
        Err(why) => return Health::NotYet(why),
    };
    for check in checks {
        let name = check.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match run_script(&check, limit, env.clone(), stop) {
            Ok(outcome) if outcome.success() => {}
            Ok(outcome) if outcome.end == End::Exited(HOPELESS) => {
                return Health::Hopeless(format!("{name}: {}", last_words(&outcome)));
            }
            Ok(outcome) => return Health::NotYet(format!("{name}: {}", last_words(&outcome))),
            Err(why) => return Health::NotYet(format!("{name}: {why}")),
        }
    }
    Health::Passed
}

/// The executables of a directory by name. A directory that is not there has none.
fn executables(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(format!("{}: {e}", dir.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", dir.display()))?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        if !hidden && meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A script that somebody else may change is not run: it would give them our rights.
fn check_owner(path: &Path) -> Result<(), String> {
    let meta = std::fs::metadata(path).map_err(|e| e.to_string())?;
    let me = nix::unistd::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != me {
        return Err(format!("{} belongs to user {}: chown it to root", path.display(), meta.uid()));
    }
    if meta.permissions().mode() & 0o002 != 0 {
        return Err(format!("{} may be changed by everybody: chmod o-w", path.display()));
    }
    Ok(())
}

fn run_script(path: &Path, limit: Duration, env: Environment, stop: &Stop) -> Result<Outcome, String> {
    check_owner(path)?;
    let mut spec = Spec::new([path.as_os_str()]);
    spec.env.extend(env);
    spec.time_limit = Some(limit);
    run::run(spec, stop).map_err(|e| e.to_string())
}

/// How it ended, and the end of what it said.
fn last_words(outcome: &Outcome) -> String {
    let said = [&outcome.stderr_tail, &outcome.stdout_tail]
        .into_iter()
        .find_map(|s| s.lines().map(str::trim).rfind(|l| !l.is_empty()))
        .map(|line| line.chars().take(LAST_WORDS).collect::<String>());
    let end = match outcome.end {
        End::Exited(code) => format!("exit {code}"),
        End::Signaled(signal) => format!("killed by signal {signal}"),
        End::TimedOut => "took too long".to_owned(),
        End::Stopped => "stopped".to_owned(),
    };
    match said {
        Some(said) => format!("{said} ({end})"),
        None => end,
    }
}

/// Runs one hook; one that is not there is done.
///
/// # Errors
/// No thread can be had.
pub fn hook(
    hook: Hook,
    dir: &Path,
    limit: Duration,
    mut env: Environment,
    tell: mpsc::UnboundedSender<Work>,
) -> Result<Runner, String> {
    let path = dir.join(hook.name());
    env.push(("OTANDEM_HOOK".into(), hook.name().into()));
    spawn(
        "hook",
        move |stop, _| {
            let answer = if path.exists() {
                match run_script(&path, limit, env, stop) {
                    Ok(outcome) if outcome.success() => HookAnswer::Done,
                    Ok(outcome) if outcome.end == End::Exited(NOT_NOW) => HookAnswer::NotNow,
                    Ok(outcome) => HookAnswer::Failed(last_words(&outcome)),
                    Err(why) => HookAnswer::Failed(why),
                }
            } else {
                HookAnswer::Done
            };
            Some(Work::Event(Box::new(Event::Hook(hook, answer))))
        },
        tell,
    )
}

/// Runs a program of a feature; `Err` in the answer unless it exits 0.
///
/// # Errors
/// No thread can be had.
pub fn program(
    name: String,
    argv: Vec<String>,
    stdin: Vec<u8>,
    env: Environment,
    tell: mpsc::UnboundedSender<Work>,
) -> Result<Runner, String> {
    spawn(
        "program",
        move |stop, _| {
            let mut spec = Spec::new(argv);
            spec.env.extend(env);
            spec.stdin = Some(stdin);
            let result = match run::run(spec, stop) {
                Ok(outcome) if outcome.success() => Ok(()),
                Ok(outcome) => Err(last_words(&outcome)),
                Err(e) => Err(e.to_string()),
            };
            Some(Work::Program(name, result))
        },
        tell,
    )
}

/// Reads a slot whole, beside the loop: a device may be large. Ends in [`Verb::Adopt`] if it holds what is wanted.
///
/// # Errors
/// No thread can be had.
pub fn verify(
    set: SetId,
    slot: String,
    path: PathBuf,
    wanted: Sha256,
    wall: u64,
    tell: mpsc::UnboundedSender<Work>,
) -> Result<(), String> {
    let read = move || match install::sha256_of(&path) {
        Ok((sha256, size)) if sha256 == wanted => {
            let status = SlotStatus {
                sha256,
                size,
                file_sha256: None,
                md5: None,
                version: None,
                installed_at: wall,
                installs: 0,
            };
            let slots = SlotStatuses::from([(slot, status)]);
            Work::Event(Box::new(Event::User(Verb::Adopt { set, slots })))
        }
        Ok((sha256, _)) => Work::Refused(format!("slot {slot} of set {set} holds {sha256}, not {wanted}")),
        Err(e) => Work::Refused(format!("{}: {e}", path.display())),
    };
    let spawned = std::thread::Builder::new().name("verify".into()).spawn(move || {
        let _ = tell.send(read());
    });
    spawned.map(|_| ()).map_err(|e| format!("no thread to read the slot: {e}"))
}
