//! Commands of the agent, as a person or a script gives them.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::{Device, supervise};
use crate::{Error, binary};

impl Device {
    /// Runs one command of the agent to its end.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn command(&self, arguments: &[&str]) -> Result<Output, Error> {
        self.command_fed(arguments, b"")
    }

    /// Runs one command of the agent to its end, with this on its standard input.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn command_fed(&self, arguments: &[&str], input: &[u8]) -> Result<Output, Error> {
        let mut command = Command::new(binary::otandem()?);
        command.arg("--config").arg(self.inner.folder.config()).args(arguments);
        command.env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut run = || {
            let mut child = supervise::spawn(&mut command)?;
            if let Some(mut stdin) = child.stdin.take() {
                // A command that reads less than it is given has its reasons.
                let _ = stdin.write_all(input);
            }
            child.wait_with_output()
        };
        let program = format!("otandem {}", arguments.join(" "));
        run().map_err(|e| Error::Program { program, why: e.to_string() })
    }

    /// Runs one command of the agent, which must end with this exit code; everything that it printed.
    ///
    /// # Errors
    /// [`Error::Wrong`] for another exit code, [`Error::Program`].
    pub fn run(&self, arguments: &[&str], code: i32) -> Result<String, Error> {
        self.run_fed(arguments, b"", code)
    }

    /// As [`Device::run`], with this on standard input.
    ///
    /// # Errors
    /// As [`Device::run`].
    pub fn run_fed(&self, arguments: &[&str], input: &[u8], code: i32) -> Result<String, Error> {
        let output = self.command_fed(arguments, input)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let said = format!("{out}{err}");
        if output.status.code() == Some(code) {
            return Ok(said);
        }
        let command = arguments.join(" ");
        Err(Error::Wrong(format!(
            "otandem {command}: {}, not {code}: {said}\n{}",
            output.status,
            self.tail()
        )))
    }

    /// `otandem status --json`.
    ///
    /// # Errors
    /// [`Error::Wrong`] when its output is no JSON.
    pub fn status(&self) -> Result<Value, Error> {
        let output = self.command(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout).map_err(|e| {
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            Error::Wrong(format!("otandem status --json: {e}: {out}{err}"))
        })
    }
}
