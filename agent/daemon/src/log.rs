//! Logs: lines with a priority for journald, datagrams for syslog, plain lines for people.
//!
//! The last guard of secrets is here: whatever a message holds, a URL in it loses its query, its fragment and its
//! credentials, and control characters cannot forge a second line.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::config::{LogSettings, LogTarget};

const SYSLOG: &str = "/dev/log";
const FACILITY_DAEMON: u8 = 3;
/// No line is longer: syslog's datagrams end there, and a hostile document must not fill a disk.
const MAX_MESSAGE: usize = 2000;
/// Names of our own crates; all others may only warn, since they would log whole URLs at finer levels.
const OURS: [&str; 4] = ["otandem", "otandem_core", "otandem_device", "otandem_boot"];

/// Where lines go.
#[derive(Debug)]
enum Sink {
    /// Standard error, which journald reads: `<N>` before each line is its priority.
    Journal,
    /// Standard error, for people.
    Stderr,
    /// A syslog daemon.
    Syslog(PathBuf, Option<UnixDatagram>),
}

/// Starts logging for the whole process. A second call has no effect.
pub fn init(settings: &LogSettings) {
    let journal = stderr_is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref());
    let has_syslog = std::fs::metadata(SYSLOG).is_ok_and(|m| m.file_type().is_socket());
    let sink = choose(settings.target, journal, io::stderr().is_terminal(), has_syslog);
    let subscriber = Lines::new(sink, filter(&settings.level));
    // Fails only if logging was started before.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

fn choose(target: LogTarget, journal: bool, terminal: bool, has_syslog: bool) -> Sink {
    match target {
        LogTarget::Auto | LogTarget::Stderr if journal => Sink::Journal,
        LogTarget::Auto if !terminal && has_syslog => Sink::Syslog(SYSLOG.into(), None),
        LogTarget::Auto | LogTarget::Stderr => Sink::Stderr,
        LogTarget::Syslog => Sink::Syslog(SYSLOG.into(), None),
    }
}

/// `JOURNAL_STREAM` is inherited, so it counts only if it names what standard error really is.
fn stderr_is_journal(stream: Option<&str>) -> bool {
    let Some((device, inode)) = stream.and_then(|s| s.split_once(':')) else { return false };
    let Ok(stat) = nix::sys::stat::fstat(io::stderr()) else { return false };
    device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino)
}

/// The configured level for our own crates, and for others only where they are named.
fn filter(level: &str) -> Targets {
    let parsed = level.parse::<Targets>().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let default = parsed.default_level().unwrap_or(LevelFilter::INFO);
    let named: Vec<(String, LevelFilter)> = parsed.iter().map(|(t, l)| (t.to_owned(), l)).collect();
    let base =
        Targets::new().with_default(default.min(LevelFilter::WARN)).with_targets(OURS.map(|t| (t, default)));
    base.with_targets(named.into_iter().filter(|(t, _)| !t.is_empty()))
}

/// Writes each event as one line. Spans are not kept: nothing here opens one, and a registry of them takes more memory
/// than all else that logging needs.
struct Lines {
    sink: std::sync::Mutex<Sink>,
    filter: Targets,
}

impl Lines {
    const fn new(sink: Sink, filter: Targets) -> Self {
        Self { sink: std::sync::Mutex::new(sink), filter }
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && self.filter.would_enable(metadata.target(), metadata.level())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.filter.iter().map(|(_, level)| level).chain(self.filter.default_level()).max()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Message::default();
        event.record(&mut text);
        let level = *event.metadata().level();
        let message = text.finish();
        let mut sink = self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sink.write(level, &message);
    }
}

impl Sink {
    fn write(&mut self, level: Level, message: &str) {
        let line = match self {
            Self::Journal => format!("<{}>{message}\n", priority(level)),
            Self::Stderr => format!("{level:>5} {message}\n"),
            Self::Syslog(path, socket) => {
                let id = std::process::id();
                // Without a time stamp: the daemon adds the time at which it got the line.
                let line = format!("<{}>otandem[{id}]: {message}", FACILITY_DAEMON * 8 + priority(level));
                if to_syslog(path, socket, line.as_bytes()).is_ok() {
                    return;
                }
                format!("{level:>5} {message}\n")
            }
        };
        // Nobody can be told that standard error is gone.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Connects anew once, since syslog daemons are restarted.
fn to_syslog(path: &Path, socket: &mut Option<UnixDatagram>, line: &[u8]) -> io::Result<()> {
    if let Some(open) = socket
        && open.send(line).is_ok()
    {
        return Ok(());
    }
    *socket = None;
    let fresh = UnixDatagram::unbound()?;
    fresh.connect(path)?;
    // A log that is full must not stop an update.
    fresh.set_nonblocking(true)?;
    fresh.send(line)?;
    *socket = Some(fresh);
    Ok(())
}

const fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// The message of an event, then its fields.
#[derive(Default)]
struct Message {
    text: String,
    fields: String,
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = match field.name() {
            "message" => write!(self.text, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
    }
}

impl Message {
    fn finish(self) -> String {
        let whole = format!("{}{}", self.text, self.fields);
        let mut line: String =
            scrub(&whole).chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect();
        line.truncate(line.trim_end().len());
        line
    }
}

/// `text` with every http(s) URL in it cut down to scheme, host and path.
#[must_use]
pub fn scrub(text: &str) -> Cow<'_, str> {
    let lower = text.to_ascii_lowercase();
    let find = |from: usize| {
        let rest = lower.get(from..)?;
        let at = ["http://", "https://"].iter().filter_map(|s| rest.find(s).map(|i| (i, s.len()))).min()?;
        Some((from + at.0, at.1))
    };
    let Some(mut found) = find(0) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    loop {
        let (start, scheme) = found;
        let end = text[start..].find(url_ends).map_or(text.len(), |i| start + i);
        out.push_str(&text[copied..start + scheme]);
        let rest = &text[start + scheme..end];
        let plain = rest.find(['?', '#']).map_or(rest, |i| &rest[..i]);
        // Credentials end at the last @ before the path.
        let authority = plain.find('/').unwrap_or(plain.len());
        let host = plain[..authority].rfind('@').map_or(0, |i| i + 1);
        out.push_str(&plain[host..]);
        if plain.len() < rest.len() {
            out.push_str("?...");
        }
        copied = end;
        match find(end) {
            Some(next) => found = next,
            None => break,
        }
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// What cannot be inside a URL. Quotes and brackets can in practice, but end it where logs quote it.
fn url_ends(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '"' | '<' | '>' | '`')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn presigned_queries_and_passwords_never_reach_a_log() {
        for (text, clean) in [
            ("GET https://b.s3.eu/k.zst?X-Amz-Signature=abc: 403", "GET https://b.s3.eu/k.zst?... 403"),
            ("\"http://user:pa@ss@h:80/x#frag\" failed", "\"http://h:80/x?...\" failed"),
            ("HTTPS://U:P@H/?a=b and http://h2/y", "HTTPS://H/?... and http://h2/y"),
            ("nothing here", "nothing here"),
            ("https://", "https://"),
            ("url=http://a?s=1,http://b?s=2 end", "url=http://a?... end"),
        ] {
            assert_eq!(scrub(text), clean);
        }
    }

    fn syslog() -> (tempfile::TempDir, PathBuf, UnixDatagram) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        (dir, path, daemon)
    }

    fn received(daemon: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let n = daemon.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    #[test]
    fn an_event_is_one_syslog_line_with_priority_and_fields_and_without_secrets() {
        let (_dir, path, daemon) = syslog();
        let subscriber = Lines::new(Sink::Syslog(path, None), filter("info"));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("too fine");
            tracing::warn!(
                slot = "rootfs",
                bytes = 7,
                "cannot read https://u:p@h/i?sig=secret\nforged: line"
            );
            tracing::error!(target: "hyper::client", "of others");
            tracing::info!(target: "hyper::client", "of others, too fine");
            tracing::info!("last");
        });
        let id = std::process::id();
        assert_eq!(
            received(&daemon),
            format!("<28>otandem[{id}]: cannot read https://h/i?... forged: line slot=rootfs bytes=7")
        );
        assert_eq!(received(&daemon), format!("<27>otandem[{id}]: of others"));
        assert_eq!(received(&daemon), format!("<30>otandem[{id}]: last"));
    }

    #[test]
    fn a_syslog_daemon_that_was_restarted_gets_the_next_line() {
        let (_dir, path, daemon) = syslog();
        let mut socket = None;
        to_syslog(&path, &mut socket, b"one").unwrap();
        assert_eq!(received(&daemon), "one");
        drop(daemon);
        std::fs::remove_file(&path).unwrap();
        assert!(to_syslog(&path, &mut socket, b"lost").is_err());
        let daemon = UnixDatagram::bind(&path).unwrap();
        to_syslog(&path, &mut socket, b"two").unwrap();
        assert_eq!(received(&daemon), "two");
    }

    #[test]
    fn the_target_follows_where_the_process_runs() {
        use LogTarget::{Auto, Stderr, Syslog};
        let chosen = |target, journal, terminal, syslog| match choose(target, journal, terminal, syslog) {
            Sink::Journal => "journal",
            Sink::Stderr => "stderr",
            Sink::Syslog(..) => "syslog",
        };
        assert_eq!(chosen(Auto, true, false, true), "journal");
        assert_eq!(chosen(Auto, false, true, true), "stderr");
        assert_eq!(chosen(Auto, false, false, true), "syslog");
        assert_eq!(chosen(Auto, false, false, false), "stderr");
        assert_eq!(chosen(Stderr, false, false, true), "stderr");
        assert_eq!(chosen(Stderr, true, false, true), "journal");
        assert_eq!(chosen(Syslog, true, true, false), "syslog");
    }

    #[test]
    fn an_inherited_journal_variable_is_not_believed() {
        assert!(!stderr_is_journal(None));
        assert!(!stderr_is_journal(Some("1:1")));
        assert!(!stderr_is_journal(Some("x")));
        let stat = nix::sys::stat::fstat(io::stderr()).unwrap();
        assert!(stderr_is_journal(Some(&format!("{}:{}", stat.st_dev, stat.st_ino))));
    }

    #[test]
    fn levels_are_for_our_crates_and_others_only_where_named() {
        let f = filter("info,otandem::cloud=trace,rumqttc=debug");
        assert!(f.would_enable("otandem::fetch", &Level::INFO));
        assert!(!f.would_enable("otandem::fetch", &Level::DEBUG));
        assert!(f.would_enable("otandem::cloud::session", &Level::TRACE));
        assert!(f.would_enable("otandem_device::install", &Level::INFO));
        assert!(f.would_enable("rumqttc::state", &Level::DEBUG));
        assert!(!f.would_enable("hyper", &Level::INFO));
        assert!(!filter("error").would_enable("hyper", &Level::WARN));
        assert!(filter("debug").would_enable("otandem", &Level::DEBUG));
    }

    proptest! {
        #[test]
        fn no_query_survives(before in "\\PC{0,20}", secret in "[a-zA-Z0-9]{12}", after in "\\PC{0,20}") {
            let text = format!("{before} http://me:{secret}@h/p?s={secret}&t={secret} {after}");
            prop_assert!(!scrub(&text).contains(&secret));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}", tail in prop::sample::select(vec!["http://", "https://", "http://é?", ""])) {
            let _ = scrub(&format!("{text}{tail}"));
            let _ = scrub(&format!("{tail}{text}"));
        }
    }
}
