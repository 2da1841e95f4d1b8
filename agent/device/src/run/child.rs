//! Between fork and exec: what a child inherits, and as whom it runs.

use std::ffi::{CString, OsString};
use std::io::{self, PipeReader};
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{
    AccessFlags, Gid, Group, Pid, Uid, User, access, getegid, geteuid, getgrouplist, setgroups, setresgid,
    setresuid, setsid,
};

use super::pump::{Pump, Tail};
use super::{End, MAX_TAIL, Outcome, RunError, Spec, Stop};

/// Errors between fork and exec reach the parent as bare numbers; these offsets tell which step failed.
const SETUP_STEP: i32 = 10_000;
const IDENTITY_STEP: i32 = 20_000;
const DIRECTORY_STEP: i32 = 30_000;
const EXEC_STEP: i32 = 40_000;
/// Enough for a thread that only waits.
const WAITER_STACK: usize = 64 * 1024;
/// Descriptors that are closed one by one where the kernel lacks `close_range` (before 5.11).
const MAX_DESCRIPTORS: u64 = 65_536;

/// A process that was started. Dropping it without [`Running::wait`] kills its group.
#[derive(Debug)]
pub struct Running {
    program: String,
    spec: Spec,
    child: Child,
    group: Pid,
    started: Instant,
    /// At its end once the process has ended (and is not yet reaped, so that its number is still its own).
    ended: PipeReader,
    reaping: Arc<Mutex<Reaping>>,
}

/// Who takes the exit status. Exactly one does, since afterwards the number may belong to another process.
#[derive(Debug, PartialEq, Eq)]
enum Reaping {
    /// [`Running`] will.
    Ours,
    /// It is done.
    Done,
    /// The waiter will, whenever the process ends.
    Left,
}

/// The lock guards one word that is whole whatever panicked.
fn lock(reaping: &Mutex<Reaping>) -> MutexGuard<'_, Reaping> {
    reaping.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    /// Starts a process.
    ///
    /// # Errors
    /// Anything that keeps it from being started; then nothing runs.
    pub fn start(spec: Spec) -> Result<Self, RunError> {
        spec.check()?;
        let program = spec.program();
        let system = |source| RunError::System { program: program.clone(), source };
        let cwd = spec.cwd.clone().unwrap_or_else(|| PathBuf::from("/"));
        let identity = Identity::of(&spec, &program)?;
        let path = find_program(&spec).ok_or_else(|| RunError::NotFound { program: program.clone() })?;
        let mut entry = Entry::new(&spec, &path, &cwd, identity).map_err(system)?;
        // Only its fork, pipes and error report are used: the entry does the exec.
        let mut command = Command::new(&path);
        command
            .env_clear()
            .stdin(if spec.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: the closure only makes system calls on values prepared before the fork; it neither allocates nor
        // takes a lock.
        unsafe { command.pre_exec(move || Err(entry.run())) };
        let (ended, ends) = io::pipe().map_err(system)?;
        let started = Instant::now();
        let mut child = command.spawn().map_err(|e| start_error(e, &program, &path, &cwd))?;
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let reaping = Arc::new(Mutex::new(Reaping::Ours));
        let waiters = Arc::clone(&reaping);
        let waiter =
            std::thread::Builder::new().name("waiter".into()).stack_size(WAITER_STACK).spawn(move || {
                // Without reaping: the number stays taken until the group was dealt with.
                while waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR)
                {
                }
                drop(ends);
                let mut reaping = lock(&waiters);
                if *reaping == Reaping::Left {
                    let _ = waitpid(group, None);
                    *reaping = Reaping::Done;
                }
            });
        if let Err(e) = waiter {
            let _ = killpg(group, Signal::SIGKILL);
            let _ = child.wait();
            return Err(system(e));
        }
        Ok(Self { program, spec, child, group, started, ended, reaping })
    }

    /// Its process id, which is also that of its group and session.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended, its time limit has passed, or `stop` was asked for.
    ///
    /// # Errors
    /// The kernel does not let us wait; the group is killed.
    pub fn wait(mut self, stop: &Stop) -> Result<Outcome, RunError> {
        let tail = self.spec.output_tail.min(MAX_TAIL);
        let mut pump = Pump {
            stdin: self.child.stdin.take().zip(self.spec.stdin.take()),
            stdout: self.child.stdout.take().map(Into::into),
            stderr: self.child.stderr.take().map(Into::into),
            stdout_tail: Tail::new(tail),
            stderr_tail: Tail::new(tail),
        };
        let deadline = self.spec.time_limit.and_then(|limit| self.started.checked_add(limit));
        let forced = pump
            .until_end(&self.ended, stop, deadline, self.spec.grace, &|signal| {
                // A group that is gone already needs no signal.
                let _ = killpg(self.group, signal);
            })
            .map_err(|source| RunError::System { program: self.program.clone(), source })?;
        let end = match forced {
            Some(end) => end,
            None => {
                pump.leave_behind();
                self.reap().map_err(|source| RunError::System { program: self.program.clone(), source })?
            }
        };
        Ok(Outcome {
            end,
            stderr_lines: pump.stderr_tail.lines(),
            stdout_tail: pump.stdout_tail.finish(),
            stderr_tail: pump.stderr_tail.finish(),
        })
    }

    fn reap(&mut self) -> io::Result<End> {
        let status = self.child.wait()?;
        *lock(&self.reaping) = Reaping::Done;
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, signal) => End::Signaled(signal.unwrap_or(0)),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut reaping = lock(&self.reaping);
        if *reaping == Reaping::Ours {
            let _ = killpg(self.group, Signal::SIGKILL);
            // Not waited for: a process that hangs in a driver would hold us.
            *reaping =
                if matches!(self.child.try_wait(), Ok(Some(_))) { Reaping::Done } else { Reaping::Left };
        }
    }
}

/// Whom the child becomes.
struct Identity {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Identity {
    fn of(spec: &Spec, program: &str) -> Result<Option<Self>, RunError> {
        let program = || program.to_owned();
        let refused = |e: Errno| RunError::Identity { program: program(), source: e.into() };
        let gid = match &spec.group {
            None => None,
            Some(name) => {
                let found = Group::from_name(name).map_err(refused)?;
                let unknown = || RunError::UnknownGroup { program: program(), group: name.clone() };
                Some(found.ok_or_else(unknown)?.gid)
            }
        };
        let identity = match &spec.user {
            None => match gid {
                None => return Ok(None),
                Some(gid) => Self { uid: geteuid(), gid, groups: vec![gid] },
            },
            Some(name) => {
                let unknown = || RunError::UnknownUser { program: program(), user: name.clone() };
                let user = User::from_name(name).map_err(refused)?.ok_or_else(unknown)?;
                let c_name = CString::new(name.as_str()).map_err(|_| unknown())?;
                let gid = gid.unwrap_or(user.gid);
                Self { uid: user.uid, gid, groups: getgrouplist(&c_name, gid).map_err(refused)? }
            }
        };
        // Without rights nothing can be changed; nothing needs to be where we are that user already.
        let already = identity.uid == geteuid() && identity.gid == getegid();
        Ok(if already && !geteuid().is_root() { None } else { Some(identity) })
    }
}

/// The file to execute: the program as given, or the first executable of that name in the `PATH` of the child.
fn find_program(spec: &Spec) -> Option<PathBuf> {
    let program = Path::new(spec.argv.first()?);
    if program.as_os_str().as_encoded_bytes().contains(&b'/') {
        return Some(program.into());
    }
    let (_, path) = spec.env.iter().find(|(key, _)| key == "PATH")?;
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(program))
        .find(|file| access(file.as_path(), AccessFlags::X_OK).is_ok() && file.is_file())
}

/// Everything that happens in the child until it is the program. We execute it ourselves, since the C library's search
/// hands whatever the kernel does not know (a program for another machine) to a shell.
struct Entry {
    path: CString,
    argv: CStrings,
    env: CStrings,
    cwd: CString,
    identity: Option<Identity>,
    descriptors: libc::c_int,
}

/// An array as `execve` wants it.
struct CStrings {
    _owned: Vec<CString>,
    /// Into `_owned`, and a null at the end.
    pointers: Vec<*const libc::c_char>,
}

// SAFETY: the pointers lead to memory on the heap that this value owns and nobody changes.
unsafe impl Send for CStrings {}
// SAFETY: as above.
unsafe impl Sync for CStrings {}

impl CStrings {
    fn new(strings: impl Iterator<Item = Vec<u8>>) -> io::Result<Self> {
        let owned = strings.map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let pointers = owned.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(Self { _owned: owned, pointers })
    }
}

impl Entry {
    fn new(spec: &Spec, path: &Path, cwd: &Path, identity: Option<Identity>) -> io::Result<Self> {
        #[allow(clippy::useless_conversion, reason = "the limit is narrower on 32-bit machines")]
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(MAX_DESCRIPTORS, |(soft, _)| u64::from(soft));
        let assignment = |(key, value): &(OsString, OsString)| {
            [key.as_encoded_bytes(), b"=", value.as_encoded_bytes()].concat()
        };
        Ok(Self {
            path: CString::new(path.as_os_str().as_encoded_bytes())?,
            argv: CStrings::new(spec.argv.iter().map(|a| a.as_encoded_bytes().to_vec()))?,
            env: CStrings::new(spec.env.iter().map(assignment))?,
            cwd: CString::new(cwd.as_os_str().as_encoded_bytes())?,
            identity,
            descriptors: libc::c_int::try_from(limit.min(MAX_DESCRIPTORS)).unwrap_or(libc::c_int::MAX),
        })
    }

    /// Runs after fork: system calls only. Returns only if a step failed.
    fn run(&mut self) -> io::Error {
        let Err(e) = self.prepare() else {
            // SAFETY: a path and two arrays that end with a null, all alive.
            unsafe {
                libc::execve(self.path.as_ptr(), self.argv.pointers.as_ptr(), self.env.pointers.as_ptr())
            };
            return io::Error::from_raw_os_error(EXEC_STEP + Errno::last_raw());
        };
        e
    }

    fn prepare(&self) -> io::Result<()> {
        let at = |step: i32| move |e: Errno| io::Error::from_raw_os_error(step + e as i32);
        setsid().map_err(at(SETUP_STEP))?;
        for signal in 1..=libc::SIGRTMAX() {
            // SAFETY: sets a default disposition; refused, harmlessly, for signals that have no other.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        SigSet::empty().thread_set_mask().map_err(at(SETUP_STEP))?;
        self.close_on_exec();
        if let Some(id) = &self.identity {
            setgroups(&id.groups).map_err(at(IDENTITY_STEP))?;
            setresgid(id.gid, id.gid, id.gid).map_err(at(IDENTITY_STEP))?;
            setresuid(id.uid, id.uid, id.uid).map_err(at(IDENTITY_STEP))?;
        }
        // As the user that it runs as, who may see less than root.
        nix::unistd::chdir(self.cwd.as_c_str()).map_err(at(DIRECTORY_STEP))
    }

    fn close_on_exec(&self) {
        let flags: libc::c_uint = libc::CLOSE_RANGE_CLOEXEC;
        // SAFETY: plain system calls on descriptor numbers of this process.
        unsafe {
            if libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, flags) != 0 {
                for fd in 3..self.descriptors {
                    libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                }
            }
        }
    }
}

fn start_error(e: io::Error, program: &str, path: &Path, cwd: &Path) -> RunError {
    let program = program.to_owned();
    let Some(code) = e.raw_os_error().filter(|code| *code >= SETUP_STEP) else {
        return RunError::System { program, source: e };
    };
    let step = code - code % SETUP_STEP;
    let source = io::Error::from_raw_os_error(code % SETUP_STEP);
    match (step, Errno::from_raw(code % SETUP_STEP)) {
        (IDENTITY_STEP, _) => RunError::Identity { program, source },
        (DIRECTORY_STEP, _) => RunError::Directory { program, cwd: cwd.into(), source },
        // The kernel says "no such file" for a missing interpreter as well.
        (EXEC_STEP, Errno::ENOENT) if cwd.join(path).exists() => RunError::NotExecutable { program },
        (EXEC_STEP, Errno::ENOENT | Errno::ENOTDIR) => RunError::NotFound { program },
        (EXEC_STEP, Errno::EACCES | Errno::EPERM) => RunError::NoPermission { program },
        (EXEC_STEP, Errno::ENOEXEC) => RunError::NotExecutable { program },
        _ => RunError::System { program, source },
    }
}
