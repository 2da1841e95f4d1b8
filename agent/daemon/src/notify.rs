//! Telling the service manager how it goes: readiness, status, and that the main loop still turns.
//!
//! The protocol is a datagram of `KEY=VALUE` lines to the socket in `NOTIFY_SOCKET`; a name that begins with `@` is in
//! Linux's abstract namespace. Without that variable everything here does nothing.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::time::Duration;

/// systemd shows one line, and a datagram must stay small.
const MAX_STATUS: usize = 512;

/// The service manager cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// `NOTIFY_SOCKET` is neither an absolute path nor an abstract name.
    #[error(
        "NOTIFY_SOCKET={value:?} is not a socket; it is set by the service manager and must not be changed"
    )]
    Address {
        /// Its value.
        value: OsString,
    },
    /// The socket cannot be used.
    #[error("cannot use the notify socket {address:?}: {source}")]
    Socket {
        /// Its name.
        address: OsString,
        /// Why.
        source: io::Error,
    },
}

/// The way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr, OsString)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// From the environment of this process, which a service manager has set.
    ///
    /// # Errors
    /// A service manager is there but its socket cannot be used.
    pub fn from_env() -> Result<Self, NotifyError> {
        Self::new(
            std::env::var_os("NOTIFY_SOCKET").as_deref(),
            watchdog(
                std::env::var("WATCHDOG_USEC").ok().as_deref(),
                std::env::var("WATCHDOG_PID").ok().as_deref(),
                std::process::id(),
            ),
        )
    }

    /// To the socket named `address`; none: nothing is told. `watchdog`: how often a sign of life is expected.
    ///
    /// # Errors
    /// The address makes no sense, or no socket can be made.
    pub fn new(address: Option<&OsStr>, watchdog: Option<Duration>) -> Result<Self, NotifyError> {
        let Some(name) = address.filter(|a| !a.is_empty()) else {
            return Ok(Self { to: None, watchdog: None });
        };
        let failed = |source| NotifyError::Socket { address: name.to_owned(), source };
        let address = match name.as_bytes() {
            [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name),
            [b'/', ..] => SocketAddr::from_pathname(PathBuf::from(name)),
            _ => return Err(NotifyError::Address { value: name.to_owned() }),
        }
        .map_err(failed)?;
        let socket = UnixDatagram::unbound().map_err(failed)?;
        // A manager that hangs must not hang the agent.
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self { to: Some((socket, address, name.to_owned())), watchdog })
    }

    /// State is settled; the agent does its work.
    ///
    /// # Errors
    /// The socket does not take it.
    pub fn ready(&self) -> Result<(), NotifyError> {
        self.send("READY=1")
    }

    /// The agent ends.
    ///
    /// # Errors
    /// The socket does not take it.
    pub fn stopping(&self) -> Result<(), NotifyError> {
        self.send("STOPPING=1")
    }

    /// One line for people.
    ///
    /// # Errors
    /// The socket does not take it.
    pub fn status(&self, text: &str) -> Result<(), NotifyError> {
        // A line break would begin another variable, such as MAINPID.
        let line: String =
            text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_STATUS).collect();
        self.send(&format!("STATUS={line}"))
    }

    /// The main loop still turns.
    ///
    /// # Errors
    /// The socket does not take it.
    pub fn alive(&self) -> Result<(), NotifyError> {
        self.send("WATCHDOG=1")
    }

    /// How often [`Notifier::alive`] is to be called: half of what the manager allows. `None`: never.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|d| d / 2)
    }

    fn send(&self, text: &str) -> Result<(), NotifyError> {
        let Some((socket, address, name)) = &self.to else { return Ok(()) };
        socket
            .send_to_addr(text.as_bytes(), address)
            .map(|_| ())
            .map_err(|source| NotifyError::Socket { address: name.clone(), source })
    }
}

/// What the manager allows between two signs of life of process `us`; `None` where it wants none.
fn watchdog(usec: Option<&str>, pid: Option<&str>, us: u32) -> Option<Duration> {
    // Meant for another process, which has passed its environment on.
    if pid.is_some_and(|p| p.parse() != Ok(us)) {
        return None;
    }
    usec?.parse().ok().filter(|n| *n > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    fn tells_all(notifier: &Notifier, manager: &UnixDatagram) {
        notifier.ready().unwrap();
        notifier.status("trial of B: 2 of 3 checks\nMAINPID=1").unwrap();
        notifier.alive().unwrap();
        notifier.stopping().unwrap();
        assert_eq!(received(manager), "READY=1");
        assert_eq!(received(manager), "STATUS=trial of B: 2 of 3 checks MAINPID=1");
        assert_eq!(received(manager), "WATCHDOG=1");
        assert_eq!(received(manager), "STOPPING=1");
    }

    #[test]
    fn a_socket_with_a_path_hears_everything() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.as_os_str()), Some(Duration::from_secs(30))).unwrap();
        tells_all(&notifier, &manager);
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(15)));
    }

    #[test]
    fn an_abstract_socket_hears_everything() {
        let name = format!("otandem-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = Notifier::new(Some(OsStr::new(&format!("@{name}"))), None).unwrap();
        tells_all(&notifier, &manager);
        assert_eq!(notifier.watchdog_interval(), None);
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let notifier = Notifier::new(None, Some(Duration::from_secs(1))).unwrap();
        notifier.ready().unwrap();
        assert_eq!(notifier.watchdog_interval(), None);
    }

    #[test]
    fn a_manager_that_is_gone_or_full_is_an_error_and_never_a_hang() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let notifier = Notifier::new(Some(path.as_os_str()), None).unwrap();
        assert!(notifier.ready().unwrap_err().to_string().contains("notify"));
        let _manager = UnixDatagram::bind(&path).unwrap();
        assert!((0..100_000).any(|_| notifier.alive().is_err()));
        assert!(matches!(
            Notifier::new(Some(OsStr::new("vsock:2:1")), None),
            Err(NotifyError::Address { .. })
        ));
    }

    #[test]
    fn the_watchdog_is_for_this_process_only() {
        let us = 42;
        assert_eq!(watchdog(Some("2000000"), None, us), Some(Duration::from_secs(2)));
        assert_eq!(watchdog(Some("2000000"), Some("42"), us), Some(Duration::from_secs(2)));
        assert_eq!(watchdog(Some("2000000"), Some("43"), us), None);
        assert_eq!(watchdog(None, Some("42"), us), None);
        for bad in ["", "0", "-1", "x", "99999999999999999999999"] {
            assert_eq!(watchdog(Some(bad), None, us), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_environment_panics(usec in ".{0,24}", pid in ".{0,12}", address in ".{0,24}") {
            let _ = watchdog(Some(&usec), Some(&pid), 1);
            let _ = Notifier::new(Some(OsStr::new(&address)), None);
        }
    }
}
