//! The one place where otandem starts processes: health checks, hooks, job handlers, boot programs.
//!
//! A child gets exactly what its [`Spec`] says: its own session and process group, no inherited descriptor, default
//! signal handling, only the environment given. Both its outputs are read for as long as it lives, so that a verbose
//! child never blocks, and only their tails are kept, so that it costs no memory. When its time is up, the whole
//! group goes: SIGTERM, a grace, SIGKILL. (A descendant that makes a session of its own leaves the group; only a
//! control group of the service manager catches that one.)

mod child;
mod pump;

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use child::Running;

/// Bytes of names and values that an environment may have; far below what the kernel allows.
const MAX_ENV: usize = 128 * 1024;
/// Bytes of output that are kept at most, whatever a [`Spec`] asks for.
const MAX_TAIL: usize = 1024 * 1024;

/// What to start, and how.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Program and arguments. A program without `/` is searched in the `PATH` of `env`.
    pub argv: Vec<OsString>,
    /// Run as this user, with its groups; `None` = as otandem itself. Never falls back to root.
    pub user: Option<String>,
    /// Run with this primary group in place of the user's.
    pub group: Option<String>,
    /// Working directory; `None` = `/`.
    pub cwd: Option<PathBuf>,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
    /// Fed to standard input, then closed; `None` = `/dev/null`.
    pub stdin: Option<Vec<u8>>,
    /// From the start to SIGTERM; `None` = as long as it takes.
    pub time_limit: Option<Duration>,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Bytes kept of the end of each output, at most 1 MiB.
    pub output_tail: usize,
}

impl Spec {
    /// `argv` with an ordinary system path, no input, no time limit, 5 s of grace and 4 KiB of output.
    pub fn new<I>(argv: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            user: None,
            group: None,
            cwd: None,
            env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
            stdin: None,
            time_limit: None,
            grace: Duration::from_secs(5),
            output_tail: 4096,
        }
    }

    /// With the environment of otandem itself, and `variables` in the place of its own ones of those names. Without a `PATH`
    /// it has the ordinary one.
    #[must_use]
    pub fn in_own_environment(mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let given: Vec<_> = variables.into_iter().collect();
        let own = std::env::vars_os().filter(|(name, _)| !given.iter().any(|(ours, _)| ours == name));
        let mut env: Vec<_> = own.collect();
        if !env.iter().any(|(name, _)| name == "PATH") {
            env.append(&mut self.env);
        }
        env.extend(given);
        self.env = env;
        self
    }

    fn program(&self) -> String {
        self.argv.first().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn check(&self) -> Result<(), RunError> {
        let bad = |why| RunError::BadSpec { program: self.program(), why };
        if self.argv.first().is_none_or(|p| p.is_empty()) {
            return Err(bad("there is no program"));
        }
        let has_nul = |s: &OsString| s.as_encoded_bytes().contains(&0);
        if self.argv.iter().any(has_nul) || self.env.iter().any(|(k, v)| has_nul(k) || has_nul(v)) {
            return Err(bad("an argument or variable contains a NUL byte"));
        }
        if self.env.iter().any(|(k, _)| k.is_empty() || k.as_encoded_bytes().contains(&b'=')) {
            return Err(bad("an environment variable has no name or one with ="));
        }
        if self.env.iter().map(|(k, v)| k.len() + v.len() + 2).sum::<usize>() > MAX_ENV {
            return Err(bad("the environment is larger than 128 KiB"));
        }
        Ok(())
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal, which otandem did not send.
    Signaled(i32),
    /// Its time limit passed and it was ended.
    TimedOut,
    /// It was ended because otandem was asked to stop.
    Stopped,
}

/// What a process left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The end of its standard output. Bytes that are no UTF-8 are replaced.
    pub stdout_tail: String,
    /// The end of its standard error. Bytes that are no UTF-8 are replaced.
    pub stderr_tail: String,
    /// Lines on standard error in all, an unfinished last one included.
    pub stderr_lines: u64,
}

impl Outcome {
    /// Exited with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.end == End::Exited(0)
    }

    /// What it printed, where it exited with code 0; else one line that says how it ended, with the last line of its
    /// standard error. `limit`: the time that it had.
    ///
    /// # Errors
    /// It ended in any other way.
    pub fn printed(self, limit: Duration) -> Result<String, String> {
        let last = self.stderr_tail.lines().last().unwrap_or_default();
        match self.end {
            End::Exited(0) => Ok(self.stdout_tail),
            End::Exited(code) => Err(format!("exit code {code}: {last}")),
            End::Signaled(signal) => Err(format!("ended by signal {signal}: {last}")),
            End::TimedOut => Err(format!("not done within {} s, and ended", limit.as_secs_f32())),
            End::Stopped => Err("ended with the agent".into()),
        }
    }
}

/// The process could not be started or waited for. A program that ran and failed is an [`Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The specification makes no sense.
    #[error("cannot start {program:?}: {why}")]
    BadSpec {
        /// The program.
        program: String,
        /// What is wrong.
        why: &'static str,
    },
    /// There is no such user.
    #[error("cannot start {program}: there is no user {user:?}; create it or change the configuration")]
    UnknownUser {
        /// The program.
        program: String,
        /// The user asked for.
        user: String,
    },
    /// There is no such group.
    #[error("cannot start {program}: there is no group {group:?}; create it or change the configuration")]
    UnknownGroup {
        /// The program.
        program: String,
        /// The group asked for.
        group: String,
    },
    /// The kernel did not let us become that user.
    #[error("cannot start {program} as another user: {source}; run otandem as root or drop the user setting")]
    Identity {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The working directory is not there or not accessible to the user.
    #[error("cannot start {program} in {cwd}: {source}", cwd = cwd.display())]
    Directory {
        /// The program.
        program: String,
        /// The directory.
        cwd: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such program.
    #[error("cannot start {program}: there is no such program")]
    NotFound {
        /// The program.
        program: String,
    },
    /// It may not be executed.
    #[error(
        "cannot start {program}: no permission to execute it; is it `chmod +x`, on a file system without noexec?"
    )]
    NoPermission {
        /// The program.
        program: String,
    },
    /// It is there and cannot be executed.
    #[error(
        "cannot start {program}: its interpreter (#! line) is missing, or it is no program for this machine"
    )]
    NotExecutable {
        /// The program.
        program: String,
    },
    /// Anything else that keeps a process from being started or watched.
    #[error("cannot run {program}: {source}")]
    System {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
}

/// Asks running processes to end; clones are the same request. It wakes whoever waits for a process.
#[derive(Debug, Clone)]
pub struct Stop(Arc<Request>);

#[derive(Debug)]
struct Request {
    asked: AtomicBool,
    /// Readable from the request on.
    reader: PipeReader,
    writer: PipeWriter,
}

impl Stop {
    /// A request that nobody has made yet.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self(Arc::new(Request { asked: AtomicBool::new(false), reader, writer })))
    }

    /// Makes the request. It cannot be taken back.
    pub fn stop(&self) {
        if !self.0.asked.swap(true, Ordering::SeqCst) {
            // One byte always fits into an empty pipe.
            let _ = (&self.0.writer).write_all(&[1]);
        }
    }

    /// Was the request made?
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// Waits for the request, at most this long; `true` = it was made.
    ///
    /// # Errors
    /// The kernel does not let us wait.
    pub fn wait(&self, longest: Duration) -> io::Result<bool> {
        let until = Instant::now().checked_add(longest);
        while !self.is_set() {
            pump::poll([None, Some(self.0.reader.as_fd())], until)?;
            if until.is_some_and(|at| Instant::now() >= at) {
                break;
            }
        }
        Ok(self.is_set())
    }

    /// The request as a flag for code that looks at it now and then. To make the request use [`Stop::stop`], which
    /// also wakes.
    #[must_use]
    pub fn flag(&self) -> &AtomicBool {
        &self.0.asked
    }
}

/// Starts a process and waits until it has ended.
///
/// # Errors
/// It could not be started, or not be waited for.
pub fn run(spec: Spec, stop: &Stop) -> Result<Outcome, RunError> {
    Running::start(spec)?.wait(stop)
}

#[cfg(test)]
mod tests;
