//! General jobs on this machine: the steps of a plan, one after the other, in the calling thread.
//!
//! What to run was decided in [`otandem_core::jobs::document`], what its end means is decided in
//! [`otandem_core::jobs::verdict`]. Here a handler is found and may be run at all ([`mod@place`]), the user is
//! changed, and the process is run. Nothing that a process does keeps the next job waiting for longer than its time.

pub mod place;

use std::ffi::OsString;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::{User, geteuid};
use otandem_core::jobs::document::{Action, JobPlan, Step};
use otandem_core::jobs::output::{KEPT, Output};
use otandem_core::jobs::verdict::{Ended, Verdict, succeeded, verdict};
use otandem_core::jobs::wire::Details;
use otandem_core::update::Outcome;

use crate::run::{self, End, RunError, Spec, Stop};
use place::{Rule, find};

/// Runs what has no `#!` line and is no program, as every shell does.
const SHELL: &str = "/bin/sh";
/// How often, and after which pause, a file is tried that somebody still writes to.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// From SIGTERM to SIGKILL.
pub const GRACE: Duration = Duration::from_secs(10);
/// How long a reboot that a step asked for may take to begin.
pub const REBOOT_WAIT: Duration = Duration::from_secs(600);

/// As whom handlers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HandlerUser {
    /// As the agent; `runAsUser` is their first argument, and what they make of it is theirs.
    #[default]
    Agent,
    /// As `runAsUser`.
    RunAsUser,
}

/// How jobs run on this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Where handlers with the path `default` are.
    pub handler_directory: PathBuf,
    /// Searched after the system's directories for handlers without a path.
    pub search: Vec<PathBuf>,
    /// Which files may be handlers.
    pub rule: Rule,
    /// As whom they run.
    pub handler_user: HandlerUser,
    /// For a step that says nothing of its time.
    pub step_timeout: Option<Duration>,
    /// For a job that says nothing of its time.
    pub job_timeout: Option<Duration>,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Working directory of what runs as the agent.
    pub cwd: PathBuf,
    /// `jobId`, for the programs.
    pub job: String,
    /// Thing name, for the programs.
    pub thing: String,
    /// The file by which a step says that it reboots the device. `None`: nobody wants to know.
    pub reboot_mark: Option<PathBuf>,
    /// How long such a reboot is waited for.
    pub reboot_wait: Duration,
}

/// How a job left the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// It is over.
    Ended(Outcome, Details),
    /// The device reboots because the job asked for it: the next start goes on.
    Rebooting,
    /// The next step installs images: the update machine's to do, and to go on from.
    Installs(Box<Installs>),
}

/// A step that installs images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installs {
    /// Its place, counted from 0.
    pub index: usize,
    /// It.
    pub step: Step,
    /// What the steps before it wrote.
    pub details: Details,
}

/// Runs the steps of `plan` from `from` on, up to the end or a step that installs images. `begins` hears of each before
/// it runs.
pub fn execute(
    plan: &JobPlan,
    from: usize,
    terms: &Terms,
    stop: &Stop,
    begins: &mut dyn FnMut(usize, &str),
) -> Finish {
    let mut output = Output::default();
    let limit = plan.time_limit.or(terms.job_timeout);
    let clock = JobClock { limit, deadline: limit.and_then(|limit| Instant::now().checked_add(limit)) };
    let steps = plan.all_steps().enumerate().skip(from);
    let over = (|| {
        for (index, step) in steps {
            if let Action::Install { .. } = step.action {
                return Over::Installs(index, step);
            }
            begins(index, &step.name);
            terms.clear_mark();
            let (ended, stderr_lines) = run_step(step, terms, &clock, stop, &mut output);
            tracing::info!("job {}: step {}: {ended}", terms.job, step.name);
            let reboots = matches!(ended, Ended::Exited(0) | Ended::Signaled(_) | Ended::Stopped);
            if reboots && terms.is_marked() {
                return wait_for_reboot(step, terms, stop);
            }
            match verdict(step, &ended, stderr_lines) {
                Verdict::Passed => {}
                Verdict::Ignored(why) => tracing::info!("job {}: ignored: {why}", terms.job),
                Verdict::Failed(why) => return Over::Ended(Outcome::failed(why)),
            }
        }
        Over::Ended(Outcome::succeeded(succeeded()))
    })();
    let details = output.details(plan.include_stdout);
    match over {
        Over::Ended(outcome) => Finish::Ended(outcome, details),
        Over::Reboots => Finish::Rebooting,
        Over::Installs(index, step) => {
            Finish::Installs(Box::new(Installs { index, step: step.clone(), details }))
        }
    }
}

/// Why no further step runs.
enum Over<'a> {
    Ended(Outcome),
    Reboots,
    Installs(usize, &'a Step),
}

fn wait_for_reboot<'a>(step: &Step, terms: &Terms, stop: &Stop) -> Over<'a> {
    tracing::info!("job {}: step {} reboots the device", terms.job, step.name);
    if stop.wait(terms.reboot_wait).unwrap_or(true) {
        return Over::Reboots;
    }
    terms.clear_mark();
    Over::Ended(Outcome::failed(format!("the reboot that step {} asked for did not happen", step.name)))
}

/// The time of the whole job.
struct JobClock {
    limit: Option<Duration>,
    deadline: Option<Instant>,
}

impl JobClock {
    /// How long a step may run that is allowed `own`, and how it is said that it did not come to its end.
    fn allow(&self, own: Option<Duration>) -> (Option<Duration>, Ended) {
        let left = self.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match (own, left) {
            (Some(own), Some(left)) if left < own => (Some(left), self.over()),
            (None, Some(left)) => (Some(left), self.over()),
            (Some(own), _) => (Some(own), Ended::TimedOut(own)),
            (None, None) => (None, Ended::Stopped),
        }
    }

    fn over(&self) -> Ended {
        Ended::JobTimedOut(self.limit.unwrap_or_default())
    }
}

impl Terms {
    fn is_marked(&self) -> bool {
        let Some(mark) = &self.reboot_mark else { return false };
        asked_for_reboot(mark, &self.job)
    }

    fn clear_mark(&self) {
        if let Some(mark) = &self.reboot_mark {
            let _ = std::fs::remove_file(mark);
        }
    }
}

/// Whether this file says that `job` asked for a reboot.
#[must_use]
pub fn asked_for_reboot(mark: &Path, job: &str) -> bool {
    let mut text = String::new();
    let read = std::fs::File::open(mark).and_then(|file| file.take(256).read_to_string(&mut text));
    read.is_ok() && text.trim_end() == job
}

/// How it ended, and its lines on standard error.
fn run_step(step: &Step, terms: &Terms, clock: &JobClock, stop: &Stop, output: &mut Output) -> (Ended, u64) {
    let (time_limit, over) = clock.allow(step.time_limit.or(terms.step_timeout));
    let spec = match prepare(step, terms) {
        Ok(spec) => Spec { time_limit, grace: terms.grace, output_tail: KEPT, ..spec },
        Err(why) => return (Ended::NotStarted(why), 0),
    };
    match run_program(spec, stop) {
        Ok(outcome) => {
            output.add(&outcome.stdout_tail, &outcome.stderr_tail);
            let ended = match outcome.end {
                End::Exited(status) => Ended::Exited(status),
                End::Signaled(signal) => Ended::Signaled(signal),
                End::TimedOut => over,
                End::Stopped => Ended::Stopped,
            };
            (ended, outcome.stderr_lines)
        }
        Err(e) => (Ended::NotStarted(e.to_string()), 0),
    }
}

/// A script without a first line that names its interpreter is one for the shell. A file that is still being written
/// (a handler that is replaced just now) is waited for a little.
fn run_program(spec: Spec, stop: &Stop) -> Result<run::Outcome, RunError> {
    let again = spec.clone();
    let mut result = run::run(spec, stop);
    for _ in 0..BUSY_TRIES {
        if !matches!(&result, Err(RunError::System { source, .. }) if source.kind() == ErrorKind::ExecutableFileBusy)
            || stop.wait(BUSY_PAUSE).unwrap_or(true)
        {
            break;
        }
        result = run::run(again.clone(), stop);
    }
    match result {
        Err(RunError::NotExecutable { .. }) if again.argv.first().is_some_and(is_text) => {
            let argv = [OsString::from(SHELL)].into_iter().chain(again.argv.clone()).collect();
            run::run(Spec { argv, ..again }, stop)
        }
        other => other,
    }
}

fn is_text(file: &OsString) -> bool {
    let mut head = Vec::new();
    let path = Path::new(file);
    let read = std::fs::File::open(path).and_then(|file| file.take(256).read_to_end(&mut head));
    path.is_absolute()
        && read.is_ok()
        && !head.starts_with(b"#!")
        && !head.contains(&0)
        && !head.starts_with(b"\x7fELF")
}

/// What to run, as whom, with which environment.
fn prepare(step: &Step, terms: &Terms) -> Result<Spec, String> {
    let mut argv: Vec<OsString> = step.argv().into_iter().map(Into::into).collect();
    let switch = match &step.action {
        Action::Handler { handler, place, .. } => {
            let file = find(handler, place, terms)?;
            if let Some(program) = argv.first_mut() {
                *program = file.into();
            }
            terms.handler_user == HandlerUser::RunAsUser
        }
        Action::Command { .. } => true,
        // `execute` ends before it.
        Action::Install { .. } => return Err("images are not installed by this".into()),
    };
    let mut spec = Spec::new(argv);
    spec.cwd = Some(terms.cwd.clone());
    let mut home = own_home();
    if switch && !step.run_as_user.is_empty() {
        home = become_user(&step.run_as_user, &mut spec)?;
    }
    spec.env = environment(step, terms, home);
    Ok(spec)
}

/// Never goes on as who we are where another user was asked for. Gives that user's home.
fn become_user(name: &str, spec: &mut Spec) -> Result<Option<PathBuf>, String> {
    let user = User::from_name(name).map_err(|e| format!("user {name:?}: {e}"))?;
    let user = user.ok_or_else(|| format!("there is no user {name:?} on this device"))?;
    if user.uid == geteuid() {
        return Ok(Some(user.dir));
    }
    // Where the agent works that user may see nothing.
    spec.cwd = None;
    if geteuid().is_root() {
        spec.user = Some(name.to_owned());
    } else {
        let sudo = ["sudo", "-u", name, "-n"].map(OsString::from);
        spec.argv.splice(0..0, sudo);
    }
    Ok(Some(user.dir))
}

fn own_home() -> Option<PathBuf> {
    User::from_uid(geteuid()).ok().flatten().map(|user| user.dir)
}

/// Nothing of our own is handed on.
fn environment(step: &Step, terms: &Terms, home: Option<PathBuf>) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = vec![("PATH".into(), place::search_path(terms))];
    let mut put = |name: &str, value: OsString| env.push((name.into(), value));
    put("OTANDEM_JOB_ID", terms.job.clone().into());
    put("OTANDEM_THING_NAME", terms.thing.clone().into());
    put("OTANDEM_STEP_NAME", step.name.clone().into());
    if let Some(mark) = &terms.reboot_mark {
        put("OTANDEM_REBOOT_MARK", mark.clone().into());
    }
    if let Some(home) = home {
        put("HOME", home.into());
    }
    env
}

#[cfg(test)]
mod tests;
