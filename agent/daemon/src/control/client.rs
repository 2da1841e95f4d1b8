//! The commands' side of the control socket: blocking, since a command does one thing.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

use super::{Answer, AnswerLine, MAX_LINE, Progress, Request, RequestLine, VERSION, What};

/// The daemon cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A daemon is there, but not for this user.
    #[error("{}: {source}; run this as root or as a member of group otandem", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the daemon at {} broke: {source}; see its log", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The request is larger than the daemon takes.
    #[error("the request has {size} bytes, the daemon takes {MAX_LINE}")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// What came back is not of this protocol.
    #[error("the daemon at {} speaks another language: {source}; use the otandem of the same version", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// A connection to the running daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    /// Connects; `None` if no daemon runs.
    ///
    /// # Errors
    /// One seems to run but cannot be reached.
    pub fn connect(path: &Path) -> Result<Option<Self>, ClientError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Some(Self { stream: BufReader::new(stream), path: path.to_owned() })),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(ClientError::Denied { path: path.to_owned(), source })
            }
            Err(source) => Err(ClientError::Broken { path: path.to_owned(), source }),
        }
    }

    /// Whether the process that made the socket is there: of one that was killed, a child that it was just starting may
    /// hold the socket and the state for another moment, and will never answer.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let maker = getsockopt(self.stream.get_ref(), PeerCredentials).map(|maker| maker.pid());
        // What cannot be told is taken for a daemon.
        maker.map_or(true, |pid| pid <= 0 || kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
    }

    /// Asks, and waits for the answer as long as it takes.
    ///
    /// # Errors
    /// The daemon could not be asked or did not answer. That it refused is in the [`Answer`].
    pub fn call(
        &mut self,
        request: &Request,
        on_progress: &mut dyn FnMut(&Progress),
    ) -> Result<Answer, ClientError> {
        // A daemon that refuses may close before it has read all; its reason is still there to be read.
        let mut sent = self.send(request)?;
        loop {
            match self.next(&mut sent)? {
                What::Progress(progress) => on_progress(&progress),
                What::Answer(answer) => return Ok(answer),
            }
        }
    }

    /// Asks the daemon to begin nothing as long as this connection stands. `Some`: it does not, and why.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn hold(&mut self) -> Result<Option<Answer>, ClientError> {
        let mut sent = self.send(&Request::HoldJobs)?;
        Ok(match self.next(&mut sent)? {
            What::Progress(_) => None,
            What::Answer(answer) => Some(answer),
        })
    }

    /// The error of writing, where the daemon did not read all.
    fn send(&mut self, request: &Request) -> Result<Option<io::Error>, ClientError> {
        let line = serde_json::to_vec(&RequestLine { v: VERSION, request: request.clone() });
        let mut line = line.map_err(|source| ClientError::Protocol { path: self.path.clone(), source })?;
        if line.len() > MAX_LINE {
            return Err(ClientError::TooLarge { size: line.len() });
        }
        line.push(b'\n');
        Ok(self.stream.get_mut().write_all(&line).err())
    }

    fn next(&mut self, sent: &mut Option<io::Error>) -> Result<What, ClientError> {
        let broken = |source| ClientError::Broken { path: self.path.clone(), source };
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX) + 1;
        let n = (&mut self.stream).take(limit).read_until(b'\n', &mut line).map_err(broken)?;
        if n == 0 {
            return Err(broken(sent.take().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())));
        }
        let line = serde_json::from_slice::<AnswerLine>(&line);
        line.map(|line| line.what).map_err(|source| ClientError::Protocol { path: self.path.clone(), source })
    }
}
