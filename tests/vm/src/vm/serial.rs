//! The serial line: what the device said, all of it, and where the test has read up to.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::limits::{Deadline, TICK};

/// What is kept of a device that says too much, in bytes; what comes later is in the file only.
const MOST: usize = 32 << 20;
/// How many lines of it an error or a failed test shows.
pub(crate) const TAIL: usize = 40;
/// A guest that takes nothing for so long does not listen.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// Something to wait for on the serial line.
pub trait Pattern {
    /// Where in `text` it begins and ends, and which one it is, if there are several. What may still go on (a line
    /// without its end) is not found yet.
    fn find(&self, text: &[u8]) -> Option<Found>;
    /// For the message of a wait that was in vain.
    fn describe(&self) -> String;
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its begin and end, in bytes from where the search began.
    pub at: (usize, usize),
    /// Which of several patterns.
    pub which: usize,
}

fn position(text: &[u8], wanted: &[u8]) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    // By its first byte: a serial log is searched again with each piece that comes.
    let mut from = 0;
    while let Some(at) = text.get(from..)?.iter().position(|byte| *byte == wanted[0]) {
        if text[from + at..].starts_with(wanted) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

impl Pattern for &str {
    fn find(&self, text: &[u8]) -> Option<Found> {
        position(text, self.as_bytes()).map(|at| Found { at: (at, at + self.len()), which: 0 })
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
}

/// The one of these that comes first.
impl Pattern for &[&str] {
    fn find(&self, text: &[u8]) -> Option<Found> {
        let found = self
            .iter()
            .enumerate()
            .filter_map(|(which, one)| one.find(text).map(|found| Found { which, ..found }));
        found.min_by_key(|found| found.at.0)
    }
    fn describe(&self) -> String {
        format!("one of {self:?}")
    }
}

/// The rest of a line from this text on, once the line is complete.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a>(pub &'a str);

impl Pattern for Line<'_> {
    fn find(&self, text: &[u8]) -> Option<Found> {
        let at = position(text, self.0.as_bytes())?;
        let end = at + position(&text[at..], b"\n")?;
        Some(Found { at: (at, end), which: 0 })
    }
    fn describe(&self) -> String {
        format!("a line with {:?}", self.0)
    }
}

/// What a wait came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// What stood between the end of the last wait and the pattern.
    pub before: String,
    /// The pattern, as it was said.
    pub text: String,
    /// Which of several patterns.
    pub which: usize,
}

/// Why a wait was in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Not said in time.
    TooLate,
    /// QEMU ended without having said it.
    Ended,
}

#[derive(Debug, Default)]
struct Transcript {
    text: Vec<u8>,
    filter: Filter,
    /// Nothing comes any more from the device that was powered on last.
    ended: bool,
}

/// The transcript of a device over all its lives.
#[derive(Debug, Default)]
pub(crate) struct Serial {
    heard: Arc<(Mutex<Transcript>, Condvar)>,
    line: Option<UnixStream>,
    reader: Option<JoinHandle<()>>,
    cursor: usize,
}

fn lock(transcript: &Mutex<Transcript>) -> MutexGuard<'_, Transcript> {
    transcript.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes down what comes over the line, until it ends. The raw bytes go to `file`.
pub(crate) struct Listener {
    heard: Arc<(Mutex<Transcript>, Condvar)>,
    line: UnixStream,
    file: File,
}

impl Listener {
    pub(crate) fn run(mut self) {
        let mut buf = [0; 4096];
        loop {
            let came = match self.line.read(&mut buf) {
                Ok(0) => break,
                Ok(came) => came,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            // The file is for people; a full disk is no reason to stop the test.
            let _ = self.file.write_all(&buf[..came]);
            let transcript = &mut *lock(&self.heard.0);
            if transcript.text.len() < MOST {
                transcript.filter.feed(&buf[..came], &mut transcript.text);
            }
            self.heard.1.notify_all();
        }
        lock(&self.heard.0).ended = true;
        self.heard.1.notify_all();
    }
}

impl Serial {
    /// Begins a new life: what was not read of the last one is passed over. The listener has to be run in the thread
    /// that is then given to [`Self::listened_to_by`].
    pub(crate) fn plug_in(&mut self, line: UnixStream, file: File, title: &str) -> io::Result<Listener> {
        line.set_write_timeout(Some(SEND_LIMIT))?;
        let mut transcript = lock(&self.heard.0);
        transcript.text.extend_from_slice(title.as_bytes());
        transcript.filter = Filter::default();
        transcript.ended = false;
        self.cursor = transcript.text.len();
        let listener = Listener { heard: Arc::clone(&self.heard), line: line.try_clone()?, file };
        self.line = Some(line);
        Ok(listener)
    }

    pub(crate) fn listened_to_by(&mut self, reader: JoinHandle<()>) {
        self.reader = Some(reader);
    }

    /// Waits until all that the ended device said has been taken down.
    pub(crate) fn pull_out(&mut self) {
        self.line = None;
        if let Some(reader) = self.reader.take() {
            // It cannot panic in a way that matters: what it heard is kept.
            let _ = reader.join();
        }
    }

    pub(crate) fn expect(&mut self, what: &dyn Pattern, mut deadline: Deadline) -> Result<Heard, Silence> {
        let heard = Arc::clone(&self.heard);
        let mut transcript = lock(&heard.0);
        loop {
            let text = &transcript.text[self.cursor..];
            if let Some(Found { at: (start, end), which }) = what.find(text) {
                let string = |bytes| String::from_utf8_lossy(bytes).into_owned();
                let found = Heard { before: string(&text[..start]), text: string(&text[start..end]), which };
                self.cursor += end;
                return Ok(found);
            }
            if transcript.ended {
                return Err(Silence::Ended);
            }
            let left = deadline.left().ok_or(Silence::TooLate)?;
            let wait = heard.1.wait_timeout(transcript, left.min(TICK));
            transcript = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn send(&mut self, text: &str) -> io::Result<()> {
        let line = self.line.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        line.write_all(text.as_bytes())
    }

    /// All that was said, over all lives.
    pub(crate) fn transcript(&self) -> String {
        String::from_utf8_lossy(&lock(&self.heard.0).text).into_owned()
    }

    /// Its last lines.
    pub(crate) fn tail(&self) -> String {
        let text = self.transcript();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

/// Takes out of the stream what is not text: carriage returns, NULs, and the escape sequences with which firmware
/// paints its screens.
#[derive(Debug, Default, Clone, Copy)]
enum Filter {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC and `[`, until a letter.
    Control,
    /// After ESC and a bracket or `#`: one more byte.
    One,
}

impl Filter {
    fn feed(&mut self, bytes: &[u8], text: &mut Vec<u8>) {
        for &byte in bytes {
            *self = match (*self, byte) {
                (_, 0x1b) => Self::Escape,
                (Self::Text, b'\r' | 0) => Self::Text,
                (Self::Text, _) => {
                    text.push(byte);
                    Self::Text
                }
                (Self::Escape, b'[') => Self::Control,
                (Self::Escape, b'(' | b')' | b'#') => Self::One,
                (Self::Control, 0x20..=0x3f) => Self::Control,
                // A line's end is never part of a sequence: one that was cut off must not eat what follows.
                (_, b'\n') => {
                    text.push(byte);
                    Self::Text
                }
                (Self::Escape | Self::Control | Self::One, _) => Self::Text,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filtered(parts: &[&[u8]]) -> Vec<u8> {
        let (mut filter, mut text) = (Filter::default(), Vec::new());
        parts.iter().for_each(|part| filter.feed(part, &mut text));
        text
    }

    #[test]
    fn what_firmware_paints_is_read_as_text() {
        let painted = b"\x1b[2J\x1b[01;01H\x1b[=3hGUEST\x1b[0m-UP\r\n\x1b(B\x1b7ok\0\x1b[1\nnext";
        assert_eq!(filtered(&[painted]), b"GUEST-UP\nok\nnext");
    }

    #[test]
    fn a_line_is_found_only_once_it_is_complete() {
        assert_eq!(Line("UP ").find(b"x UP a=1"), None);
        assert_eq!(Line("UP ").find(b"x UP a=1\ny"), Some(Found { at: (2, 8), which: 0 }));
    }

    #[test]
    fn of_several_patterns_the_first_in_the_text_is_found() {
        let both: &[&str] = &["panic", "login"];
        assert_eq!(both.find(b"a login, a panic"), Some(Found { at: (2, 7), which: 1 }));
    }

    fn serial() -> (Serial, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut serial = Serial::default();
        let listener = serial.plug_in(ours, tempfile::tempfile().unwrap(), "").unwrap();
        serial.listened_to_by(std::thread::spawn(|| listener.run()));
        (serial, theirs)
    }

    #[test]
    fn a_wait_goes_on_where_the_last_one_ended_and_tells_what_came_before() {
        let (mut serial, mut device) = serial();
        let soon = || Deadline::after(Duration::from_secs(20));
        device.write_all(b"one tw").unwrap();
        assert_eq!(serial.expect(&"one", soon()).unwrap().before, "");
        device.write_all(b"o one").unwrap();
        let heard = serial.expect(&"one", soon()).unwrap();
        assert_eq!((heard.before.as_str(), heard.text.as_str()), (" two ", "one"));
        assert_eq!(serial.expect(&"one", Deadline::after(Duration::ZERO)), Err(Silence::TooLate));
    }

    #[test]
    fn a_device_that_ends_is_not_waited_for_and_what_it_said_stays() {
        let (mut serial, mut device) = serial();
        device.write_all(b"last words").unwrap();
        drop(device);
        assert_eq!(serial.expect(&"more", Deadline::after(Duration::from_secs(3600))), Err(Silence::Ended));
        serial.pull_out();
        assert_eq!(serial.transcript(), "last words");
        assert!(serial.send("x").is_err());
    }

    proptest! {
        #[test]
        fn the_text_does_not_depend_on_how_it_was_cut_up(bytes in prop::collection::vec(
            prop_oneof![Just(0x1b_u8), Just(b'['), Just(b'\n'), Just(b'('), any::<u8>()], 0..60), at in 0..60_usize,
        ) {
            let at = at.min(bytes.len());
            let text = filtered(&[&bytes]);
            prop_assert_eq!(&filtered(&[&bytes[..at], &bytes[at..]]), &text);
            prop_assert_eq!(text.iter().filter(|b| **b == b'\n').count(), bytes.iter().filter(|b| **b == b'\n').count());
        }

        #[test]
        fn a_text_is_found_where_it_first_stands(text in "[ab]{0,30}", wanted in "[ab]{0,4}") {
            prop_assert_eq!(position(text.as_bytes(), wanted.as_bytes()), text.find(&wanted));
        }
    }
}
