//! QEMU's control line (QMP): one JSON object for each line, answers in order, events in between.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;

use super::limits::{Deadline, TICK};

/// The longest line that QEMU may send, in bytes: the largest known answer has some hundred kilobytes.
const MOST: usize = 4 << 20;
/// How many events are kept that nobody asked for.
const EVENTS: usize = 1000;

/// Why QEMU was not controlled.
#[derive(Debug, Error)]
pub enum QmpError {
    /// The line itself.
    #[error("the control line of QEMU broke at {command}: {source}; QEMU has probably ended")]
    Line {
        /// What it was used for.
        command: String,
        /// What the system says.
        source: io::Error,
    },
    /// No answer.
    #[error("QEMU did not answer {command} in {limit:?}")]
    TooLate {
        /// What it was asked.
        command: String,
        /// How long was waited.
        limit: Duration,
    },
    /// Something that is no JSON object.
    #[error("QEMU answered {command} with what is no QMP: {line}")]
    Garbled {
        /// What it was asked.
        command: String,
        /// The begin of what came.
        line: String,
    },
    /// It refused.
    #[error("QEMU refused {command} with {arguments}: {reason}")]
    Refused {
        /// What it was asked.
        command: String,
        /// How.
        arguments: Value,
        /// Its own words.
        reason: String,
    },
}

/// The control line of one QEMU process.
#[derive(Debug)]
pub(crate) struct Qmp {
    line: UnixStream,
    buf: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Says hello.
    pub(crate) fn open(line: UnixStream, limit: Duration) -> Result<Self, QmpError> {
        let failed = |source| QmpError::Line { command: "the greeting".into(), source };
        line.set_read_timeout(Some(TICK)).map_err(failed)?;
        line.set_write_timeout(Some(limit)).map_err(failed)?;
        let mut qmp = Self { line, buf: Vec::new(), events: VecDeque::new() };
        let greeting = qmp.read("the greeting", &mut Deadline::after(limit))?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Garbled { command: "the greeting".into(), line: greeting.to_string() });
        }
        qmp.command("qmp_capabilities", json!({}), limit)?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returns.
    pub(crate) fn command(
        &mut self,
        name: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let request = format!("{}\n", json!({ "execute": name, "arguments": arguments }));
        let failed = |source| QmpError::Line { command: name.into(), source };
        self.line.write_all(request.as_bytes()).map_err(failed)?;
        let mut deadline = Deadline::after(limit);
        loop {
            let mut answer = self.read(name, &mut deadline)?;
            if let Some(found) = answer.get_mut("return") {
                return Ok(found.take());
            }
            if let Some(error) = answer.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("without a reason").into();
                return Err(QmpError::Refused { command: name.into(), arguments, reason });
            }
            self.keep(answer);
        }
    }

    /// Waits for an event that was not asked for before.
    pub(crate) fn event(&mut self, name: &str, limit: Duration) -> Result<Value, QmpError> {
        let mut deadline = Deadline::after(limit);
        loop {
            let is_it = |event: &Value| event.get("event").and_then(Value::as_str) == Some(name);
            if let Some(at) = self.events.iter().position(is_it) {
                return Ok(self.events.remove(at).unwrap_or_default());
            }
            let came = self.read(name, &mut deadline)?;
            self.keep(came);
        }
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn read(&mut self, command: &str, deadline: &mut Deadline) -> Result<Value, QmpError> {
        let failed = |source| QmpError::Line { command: command.into(), source };
        loop {
            if let Some(end) = self.buf.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buf.drain(..=end).collect();
                return object(&line).ok_or_else(|| garbled(command, &line));
            }
            if self.buf.len() > MOST {
                return Err(garbled(command, &self.buf));
            }
            if deadline.left().is_none() {
                return Err(QmpError::TooLate { command: command.into(), limit: deadline.limit() });
            }
            let mut chunk = [0; 4096];
            match self.line.read(&mut chunk) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(came) => self.buf.extend_from_slice(&chunk[..came]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Err(failed(e)),
            }
        }
    }
}

fn garbled(command: &str, line: &[u8]) -> QmpError {
    let line = String::from_utf8_lossy(&line[..line.len().min(200)]).trim().into();
    QmpError::Garbled { command: command.into(), line }
}

fn object(line: &[u8]) -> Option<Value> {
    serde_json::from_slice(line).ok().filter(Value::is_object)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::thread;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A QEMU that greets and then answers each line with the next of `answers`.
    fn qemu(answers: &'static [&'static str]) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            theirs.write_all(b"{\"QMP\": {}}\n").unwrap();
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            for answer in ["{\"return\": {}}\n"].iter().chain(answers) {
                if lines.next().is_none() || theirs.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
        ours
    }

    #[test]
    fn events_between_question_and_answer_are_kept_for_later() {
        let mut qmp =
            Qmp::open(qemu(&["{\"event\": \"RESET\", \"n\": 1}\n{\"return\": 5}\n"]), LIMIT).unwrap();
        assert_eq!(qmp.command("x", json!({}), LIMIT).unwrap(), 5);
        assert_eq!(qmp.event("RESET", LIMIT).unwrap()["n"], 1);
    }

    #[test]
    fn a_refusal_has_qemus_own_words_and_the_next_command_works() {
        let answers = &[
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such node\"}}\n",
            "{\"return\": {}}\n",
        ];
        let mut qmp = Qmp::open(qemu(answers), LIMIT).unwrap();
        let refused = qmp.command("x", json!({ "node": 1 }), LIMIT).unwrap_err();
        assert!(refused.to_string().contains("no such node"), "{refused}");
        qmp.command("y", json!({}), LIMIT).unwrap();
    }

    #[test]
    fn what_is_no_qmp_and_a_qemu_that_ends_are_errors() {
        let mut qmp = Qmp::open(qemu(&["[1]\n"]), LIMIT).unwrap();
        assert!(matches!(qmp.command("x", json!({}), LIMIT), Err(QmpError::Garbled { .. })));
        let mut qmp = Qmp::open(qemu(&["{\"retu"]), LIMIT).unwrap();
        assert!(matches!(qmp.command("x", json!({}), LIMIT), Err(QmpError::Line { .. })));
    }
}
