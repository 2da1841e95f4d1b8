//! A forward proxy on loopback: passes CONNECT and plain HTTP on, remembers what it was asked for, and fails on demand.

use std::io::{self, Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// No head is longer.
const MAX_HEAD: usize = 16 << 10;
/// No more connections in one life.
const MAX_CONNECTIONS: usize = 1000;

/// What the proxy does with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Passes it on.
    Pass,
    /// Passes it on if it has these credentials (in Base64), else answers 407.
    Login(String),
    /// Answers with this status.
    Refuse(u16),
    /// Hangs up without a word.
    Dead,
}

/// One request, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `CONNECT`, `GET`.
    pub method: String,
    /// `host:port`, or a URL.
    pub target: String,
    /// It was passed on.
    pub passed: bool,
}

struct State {
    mode: Mode,
    asked: Vec<Asked>,
    open: Vec<TcpStream>,
    ending: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The proxy. It ends with its value.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts it.
    ///
    /// # Errors
    /// No port can be had.
    pub fn start(mode: Mode) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = State { mode, asked: vec![], open: vec![], ending: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&shared, &listener))
        };
        Ok(Self { shared, address, accepting: Some(accepting) })
    }

    /// For the configuration; `login` is `user:password` as it stands in a URL.
    #[must_use]
    pub fn url(&self, login: Option<&str>) -> String {
        let login = login.map(|login| format!("{login}@")).unwrap_or_default();
        format!("http://{login}{}", self.address)
    }

    /// What it does from now on. Open connections stay.
    pub fn set(&self, mode: Mode) {
        self.shared.lock().mode = mode;
    }

    /// Cuts every open connection.
    pub fn cut(&self) {
        for stream in self.shared.lock().open.drain(..) {
            // What is closed already cannot be closed again.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Every request so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.lock().asked.clone()
    }

    /// Waits until it was asked so often for a target that ends so; whether that came.
    #[must_use]
    pub fn wait_asked(&self, target: &str, times: usize, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            if state.asked.iter().filter(|asked| asked.target.ends_with(target)).count() >= times {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.cut();
        // Wakes the thread that accepts.
        if TcpStream::connect(self.address).is_ok() {
            let _ = self.accepting.take().map(JoinHandle::join);
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    for client in listener.incoming().take(MAX_CONNECTIONS) {
        if shared.lock().ending {
            return;
        }
        let Ok(client) = client else { return };
        let shared = Arc::clone(shared);
        // A connection that breaks is what is tested.
        std::thread::spawn(move || drop(serve(&shared, client)));
    }
}

fn serve(shared: &Shared, mut client: TcpStream) -> io::Result<()> {
    let head = read_head(&mut client)?;
    let mut words = head.lines().next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let connect = method == "CONNECT";
    let authority = target.strip_prefix("http://").unwrap_or(&target);
    let (authority, path) = authority.find('/').map_or((authority, ""), |at| authority.split_at(at));
    let answer = {
        let mut state = shared.lock();
        let answer = match &state.mode {
            Mode::Pass => None,
            Mode::Login(login) if head.contains(&format!("Basic {login}\r\n")) => None,
            Mode::Login(_) => Some(
                "HTTP/1.1 407 Login\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n".to_owned(),
            ),
            Mode::Refuse(code) => Some(format!("HTTP/1.1 {code} No\r\nContent-Length: 0\r\n\r\n")),
            Mode::Dead => Some(String::new()),
        };
        state.asked.push(Asked { method: method.clone(), target: target.clone(), passed: answer.is_none() });
        answer
    };
    shared.changed.notify_all();
    if let Some(answer) = answer {
        return client.write_all(answer.as_bytes());
    }
    let mut server = dial(authority)?;
    if connect {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    } else {
        server.write_all(head.replacen(&target, path, 1).as_bytes())?;
    }
    shared.lock().open.extend([client.try_clone()?, server.try_clone()?]);
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let up = std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    let _ = up.join();
    Ok(())
}

/// Nothing but this machine.
fn dial(authority: &str) -> io::Result<TcpStream> {
    let loopback =
        authority.to_socket_addrs()?.find(|address| address.ip().is_loopback() && address.is_ipv4());
    TcpStream::connect(loopback.ok_or_else(|| io::Error::other("not on loopback"))?)
}

fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD {
            return Err(io::Error::other("a head without end"));
        }
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    String::from_utf8(head).map_err(io::Error::other)
}
