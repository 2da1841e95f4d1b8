//! The daemon's side of the control socket.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User, chown, getgrouplist};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Answer, AnswerLine, MAX_LINE, Progress, Request, RequestLine, VERSION, What};
use crate::exit::Exit;

/// More callers at once are a mistake; they get an answer at once.
const MAX_CONNECTIONS: usize = 8;
/// Between two requests of one caller.
const IDLE: Duration = Duration::from_secs(30);
/// Until a caller that does not read is left.
const SLOW_READER: Duration = Duration::from_secs(10);
/// Progress lines under way to one caller; more are left out, the next one tells the same.
const PROGRESS_AHEAD: usize = 4;

/// The control socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another daemon answers on it.
    #[error("another otandem answers on {}; stop it first", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else than a socket is in its place.
    #[error("{} is there and is no socket; remove it or set control.socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be made or given away.
    #[error("cannot make the control socket {}: {source}; check that its directory can be written", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A request for the daemon, and the way to answer it.
#[derive(Debug)]
pub struct Call {
    /// What is wanted.
    pub request: Request,
    /// Answer here. Dropped without an answer, the caller is told of a defect.
    pub reply: Reply,
}

/// The way to answer one request.
#[derive(Debug)]
pub struct Reply {
    progress: mpsc::Sender<Progress>,
    answer: oneshot::Sender<Answer>,
}

impl Reply {
    /// A reply and its two ends, for tests and for commands that run without a daemon.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Progress>, oneshot::Receiver<Answer>) {
        let (progress, progress_out) = mpsc::channel(PROGRESS_AHEAD);
        let (answer, answer_out) = oneshot::channel();
        (Self { progress, answer }, progress_out, answer_out)
    }

    /// Tells how far it is; never waits, and leaves out what the caller does not read in time.
    pub fn progress(&self, progress: Progress) {
        let _ = self.progress.try_send(progress);
    }

    /// Whether the caller has left.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.answer.is_closed()
    }

    /// Waits until the caller has left.
    pub async fn closed(&mut self) {
        self.answer.closed().await;
    }

    /// Done; `data` is for the caller to print.
    pub fn done(self, exit: Exit, data: serde_json::Value) {
        let _ = self.answer.send(Answer::Done { exit, data });
    }

    /// Not done.
    pub fn failed(self, exit: Exit, reason: impl Into<String>) {
        let _ = self.answer.send(Answer::Failed { exit, reason: reason.into() });
    }
}

/// The listening socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    access: Arc<Access>,
}

impl Server {
    /// Listens on `path`, for root, this user and the members of `group` (which need not exist).
    ///
    /// # Errors
    /// Another daemon is there, or the socket cannot be made.
    pub fn bind(path: &Path, group: &str) -> Result<Self, ControlError> {
        let failed = |source: io::Error| ControlError::Io { path: path.to_owned(), source };
        clear(path)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let gid = Group::from_name(group).ok().flatten().map(|g| g.gid);
        if gid.is_none() {
            tracing::info!("no group {group}: only root and this user may use {}", path.display());
        }
        // The mode lets the group connect, the credentials of each caller are looked at as well.
        if let Some(gid) = gid
            && let Err(e) = chown(path, None, Some(gid))
        {
            tracing::warn!("{} cannot be given to group {group}: {e}", path.display());
        }
        fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
        let access = Arc::new(Access { us: Uid::effective(), group: gid });
        Ok(Self { listener, path: path.to_owned(), access })
    }

    /// Serves until `calls` has no receiver any more.
    pub async fn run(self, calls: mpsc::Sender<Call>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = calls.closed() => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of descriptors: the pause keeps this from becoming a busy loop.
                    tracing::warn!("control socket: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let place = Arc::clone(&places).try_acquire_owned();
            let (access, calls) = (Arc::clone(&self.access), calls.clone());
            tokio::spawn(async move {
                let refusal = match (place, access.refuses(&stream)) {
                    (_, Some(reason)) => Some((Exit::NoPermission, reason)),
                    (Err(_), None) => {
                        Some((Exit::TempFail, "too many callers at once; try again".to_owned()))
                    }
                    (Ok(place), None) => {
                        serve(stream, &calls).await;
                        drop(place);
                        return;
                    }
                };
                if let Some((exit, reason)) = refusal {
                    let (_, mut write) = stream.into_split();
                    let _ = send(&mut write, What::Answer(Answer::Failed { exit, reason })).await;
                }
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes what a daemon that died left behind, and nothing else.
fn clear(path: &Path) -> Result<(), ControlError> {
    let failed = |source: io::Error| ControlError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => Err(ControlError::NotASocket { path: path.to_owned() }),
        Ok(_) if StdStream::connect(path).is_ok() => Err(ControlError::InUse { path: path.to_owned() }),
        Ok(_) => fs::remove_file(path).map_err(failed),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

/// Who may speak.
#[derive(Debug)]
pub(super) struct Access {
    pub us: Uid,
    pub group: Option<Gid>,
}

impl Access {
    fn refuses(&self, stream: &UnixStream) -> Option<String> {
        let Ok(peer) = stream.peer_cred() else { return Some("the kernel does not tell who calls".into()) };
        let (uid, gid) = (Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()));
        if self.allows(uid, gid, groups_of) {
            return None;
        }
        tracing::warn!("control socket: user {uid} is refused");
        Some("only root and members of the control group (otandem) may do that".into())
    }

    pub(super) fn allows(&self, uid: Uid, gid: Gid, groups_of: impl Fn(Uid, Gid) -> Vec<Gid>) -> bool {
        uid.is_root()
            || uid == self.us
            || self.group.is_some_and(|group| gid == group || groups_of(uid, gid).contains(&group))
    }
}

/// From the user database: the kernel passes only the first group.
fn groups_of(uid: Uid, gid: Gid) -> Vec<Gid> {
    let user = User::from_uid(uid).ok().flatten();
    let name = user.and_then(|u| std::ffi::CString::new(u.name).ok());
    name.and_then(|n| getgrouplist(&n, gid).ok()).unwrap_or_default()
}

async fn serve(stream: UnixStream, calls: &mpsc::Sender<Call>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let line = match tokio::time::timeout(IDLE, next_line(&mut read)).await {
            Ok(Ok(Some(line))) => line,
            Ok(Err(refusal)) => {
                let _ = send(&mut write, What::Answer(refusal)).await;
                return;
            }
            Ok(Ok(None)) | Err(_) => return,
        };
        let request = match parse(&line) {
            Ok(request) => request,
            Err(refusal) => {
                let _ = send(&mut write, What::Answer(refusal)).await;
                return;
            }
        };
        if answer(request, &mut read, &mut write, calls).await.is_err() {
            return;
        }
    }
}

pub(super) fn parse(line: &[u8]) -> Result<Request, Answer> {
    #[derive(serde::Deserialize)]
    struct Version {
        v: u32,
    }
    let refused = |exit, reason: String| Answer::Failed { exit, reason };
    // The version first: a request of another version may not be readable otherwise.
    match serde_json::from_slice::<Version>(line) {
        Ok(Version { v: VERSION }) => {}
        Ok(Version { v }) => {
            let reason =
                format!("this daemon speaks version {VERSION}, not {v}; use the otandem of the same version");
            return Err(refused(Exit::Protocol, reason));
        }
        Err(e) => return Err(refused(Exit::Protocol, format!("not a request: {e}"))),
    }
    serde_json::from_slice::<RequestLine>(line)
        .map(|l| l.request)
        .map_err(|e| refused(Exit::Protocol, format!("not a request: {e}")))
}

/// The next line without its end; `None` when the caller has left.
async fn next_line(read: &mut BufReader<OwnedReadHalf>) -> Result<Option<Vec<u8>>, Answer> {
    let mut line = Vec::new();
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX) + 1;
    match read.take(limit).read_until(b'\n', &mut line).await {
        Ok(_) if line.last() == Some(&b'\n') => {
            line.pop();
            Ok(Some(line))
        }
        Ok(_) if line.len() > MAX_LINE => Err(Answer::Failed {
            exit: Exit::Data,
            reason: format!("a request of more than {MAX_LINE} bytes is refused"),
        }),
        Ok(_) | Err(_) => Ok(None),
    }
}

async fn answer(
    request: Request,
    read: &mut BufReader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    calls: &mpsc::Sender<Call>,
) -> io::Result<()> {
    let (reply, mut progress, mut answer) = Reply::channel();
    if calls.send(Call { request, reply }).await.is_err() {
        let reason = "the daemon is about to end; try again".to_owned();
        return send(write, What::Answer(Answer::Failed { exit: Exit::TempFail, reason })).await;
    }
    let answer = loop {
        tokio::select! {
            biased;
            Some(step) = progress.recv() => send(write, What::Progress(step)).await?,
            answer = &mut answer => break answer,
            // Nobody speaks out of turn, so this is the caller leaving; the request is then seen as closed.
            gone = read.fill_buf() => if gone?.is_empty() { return Err(io::ErrorKind::UnexpectedEof.into()) } else {
                return send(write, What::Answer(Answer::Failed {
                    exit: Exit::Protocol,
                    reason: "wait for the answer before the next request".into(),
                })).await.and(Err(io::ErrorKind::InvalidData.into()));
            },
        }
    };
    let answer = answer.unwrap_or_else(|_| Answer::Failed {
        exit: Exit::Software,
        reason: "the daemon gave no answer; see its log".into(),
    });
    send(write, What::Answer(answer)).await
}

async fn send(write: &mut OwnedWriteHalf, what: What) -> io::Result<()> {
    let mut line = serde_json::to_vec(&AnswerLine { v: VERSION, what })?;
    if line.len() > MAX_LINE {
        let reason = format!("the answer has {} bytes, more than {MAX_LINE}", line.len());
        let what = What::Answer(Answer::Failed { exit: Exit::Software, reason });
        line = serde_json::to_vec(&AnswerLine { v: VERSION, what })?;
    }
    line.push(b'\n');
    tokio::time::timeout(SLOW_READER, write.write_all(&line)).await.map_err(|_| io::ErrorKind::TimedOut)?
}
