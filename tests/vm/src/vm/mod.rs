//! The device: power, reset, serial line, network cable, disk.
//!
//! A [`Workplace`] is a private folder for its files; put copies of a disk image and of firmware variables there. With
//! a [`Definition`] it becomes a [`Vm`], which can be powered on and cut off as often as a test wants; disk and
//! variables stay as the last life left them. Dropping a `Vm` kills it and removes the folder; if the test panics, the
//! serial log stays and is named.
//!
//! Every wait has a limit, which is stretched by the load of the machine. No more devices run at once than there are
//! cores, over all test programs of one target folder ([`limits`]).

mod error;
pub mod faults;
pub mod limits;
mod process;
mod qmp;
pub mod serial;
mod up;

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use otandem_images::copy_sparse;
use serde_json::{Value, json};
use tempfile::TempDir;

pub use error::VmError;
pub use faults::{Clock, DiskError, Link, Request};
pub use qmp::QmpError;
pub use serial::{Heard, Line, Pattern};
pub use up::Up;

use limits::{Deadline, Seat};
use qmp::Qmp;
use serial::{Serial, Silence};

/// QEMU answers its control line at once, or not at all.
const QMP_LIMIT: Duration = Duration::from_secs(20);
/// How long a guest may take from its greeting to its shell, for each attempt and altogether.
const SHELL_ATTEMPT: Duration = Duration::from_secs(2);
const SHELL_LIMIT: Duration = Duration::from_secs(30);
/// What a guest's terminal takes without a reader, in bytes; the rest would be lost without a word.
const LONGEST_COMMAND: usize = 3800;
/// Keeps the folder of a failed test with its disks, which are large.
const KEEP: &str = "OTANDEM_VM_KEEP";

/// A private folder for the files of one device.
#[derive(Debug)]
pub struct Workplace(TempDir);

impl Workplace {
    /// Makes one, below the target folder of the build; `name` is for people.
    ///
    /// # Errors
    /// As the file system says.
    pub fn new(name: &str) -> Result<Self, VmError> {
        let folder = limits::workplace();
        let make = || {
            fs::create_dir_all(&folder)?;
            tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(&folder)
        };
        make().map(Self).map_err(|source| VmError::File { path: folder.clone(), source })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// What the device is made of.
#[derive(Debug, Clone)]
pub struct Definition {
    /// QEMU's arguments for machine, firmware and kernel. Disk, serial line, network card, memory, clock and control
    /// line are the library's.
    pub args: Vec<OsString>,
    /// The image of the one disk (raw, virtio-blk). The device writes to it: give a copy, in the workplace.
    pub disk: PathBuf,
    /// 256 does; what is given is brought into 64 to 1024.
    pub memory_mib: u32,
}

/// What is particular to one life of the device.
#[derive(Debug, Clone, Default)]
pub struct PowerOn {
    /// Copy the disk first and log each write and flush; see [`Vm::recording`].
    pub write_log: bool,
    /// The disk is broken from the first instruction of the firmware on.
    pub disk_error: Option<DiskError>,
    /// The clock.
    pub clock: Clock,
}

/// What [`PowerOn::write_log`] left: what [`crate::Replay::open`] wants. The files go with the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// The disk before the first write.
    pub base: PathBuf,
    /// What was written.
    pub log: PathBuf,
}

/// What a command of the guest came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it said, both outputs, without the last line end.
    pub text: String,
}

/// One life.
#[derive(Debug)]
struct Life {
    process: Child,
    qmp: Qmp,
    how: PowerOn,
    /// How many faults the disk had: each is a node with a name of its own.
    faults: u32,
    fault: Option<String>,
    _seat: Seat,
}

/// The device.
#[derive(Debug)]
pub struct Vm {
    workplace: Workplace,
    definition: Definition,
    serial: Serial,
    life: Option<Life>,
    lives: u32,
    commands: u32,
    recording: Option<Recording>,
    last_boot: Option<String>,
}

impl Vm {
    /// A device that is off.
    pub fn new(workplace: Workplace, definition: Definition) -> Self {
        let serial = Serial::default();
        let (life, recording, last_boot) = (None, None, None);
        Self { workplace, definition, serial, life, lives: 0, commands: 0, recording, last_boot }
    }

    /// Its disk: for judges, while it is off.
    pub fn disk(&self) -> &Path {
        &self.definition.disk
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.workplace.path()
    }

    /// What the last life with a write log left.
    pub fn recording(&self) -> Option<&Recording> {
        self.recording.as_ref()
    }

    /// All that it said on the serial line, in all its lives.
    pub fn transcript(&self) -> String {
        self.serial.transcript()
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// It is on already, QEMU does not start or refuses its arguments, no seat becomes free.
    pub fn power_on(&mut self, how: &PowerOn) -> Result<(), VmError> {
        if self.life.is_some() {
            return Err(VmError::Power { is: "on", next: "cut its power first" });
        }
        let seat = Seat::take()?;
        self.lives += 1;
        let log = self.folder().join(format!("writes-{}.log", self.lives));
        if how.write_log {
            let base = self.folder().join(format!("disk-{}.base", self.lives));
            let file = |path: &Path| {
                let path = path.to_path_buf();
                |source| VmError::File { path, source }
            };
            copy_sparse(self.disk(), &base).map_err(|e| file(&base)(e.into()))?;
            File::create(&log).map_err(file(&log))?;
            self.recording = Some(Recording { base, log: log.clone() });
        }
        let (process, line) = self.start(how, &log)?;
        let qmp = match Qmp::open(line, QMP_LIMIT) {
            Ok(qmp) => qmp,
            Err(source) => return Err(self.refused(process, source)),
        };
        self.life = Some(Life { process, qmp, how: how.clone(), faults: 0, fault: None, _seat: seat });
        if how.disk_error.is_some() {
            self.disk_error(how.disk_error.as_ref())?;
        }
        self.qmp("cont", json!({}))?;
        Ok(())
    }

    fn start(&mut self, how: &PowerOn, log: &Path) -> Result<(Child, UnixStream), VmError> {
        let serial_log = self.serial_log();
        let errors = self.errors();
        let opened = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.map_err(|source| VmError::File { path: path.into(), source })
        };
        let (taken_down, words) = (opened(&serial_log)?, opened(&errors)?);
        let arguments = process::arguments(&self.definition, how, log);
        let title = format!("\n--- power on {} ---\n", self.lives);
        let start = || {
            let (qmp, its_qmp) = UnixStream::pair()?;
            let (line, its_line) = UnixStream::pair()?;
            let listener = self.serial.plug_in(line, taken_down, &title)?;
            let (process, reader) = process::start(arguments, (its_qmp, its_line, words), listener)?;
            self.serial.listened_to_by(reader);
            Ok((process, qmp))
        };
        start().map_err(|source| VmError::Start { program: process::PROGRAM, source })
    }

    fn refused(&mut self, mut process: Child, source: QmpError) -> VmError {
        // It may be dead already; what counts is that it is.
        let _ = process.kill();
        let _ = process.wait();
        self.serial.pull_out();
        let words = fs::read_to_string(self.errors()).unwrap_or_default();
        VmError::Refused { words: words.trim().into(), source }
    }

    fn serial_log(&self) -> PathBuf {
        self.folder().join("serial.log")
    }

    fn errors(&self) -> PathBuf {
        self.folder().join("qemu.err")
    }

    /// Waits for something on the serial line, from where the last wait ended.
    ///
    /// # Errors
    /// It is not said within `limit` (stretched by load), or the device ends before.
    pub fn expect(&mut self, what: impl Pattern, limit: Duration) -> Result<Heard, VmError> {
        let deadline = Deadline::after(limit);
        self.serial.expect(&what, deadline).map_err(|silence| VmError::Unheard {
            what: what.describe(),
            why: match silence {
                Silence::TooLate => format!("not in {limit:?}, nor when more time was given for the load"),
                Silence::Ended => "the device ended before".into(),
            },
            tail: self.serial.tail(),
        })
    }

    /// Types something; a line needs its `\n`.
    ///
    /// # Errors
    /// The device is off or takes nothing.
    pub fn send(&mut self, text: &str) -> Result<(), VmError> {
        self.serial.send(text).map_err(|source| VmError::Deaf { source })
    }

    /// Runs a command in the guest's shell. It must not end the shell. The kernel must not speak while it runs (boot
    /// with `quiet`), or its words stand in the output.
    ///
    /// # Errors
    /// It does not end within `limit` (stretched by load), is too long, or the device ends before.
    pub fn sh(&mut self, command: &str, limit: Duration) -> Result<Output, VmError> {
        let mark = self.mark();
        // The echo of what is typed has the quotes, so only what the shell says matches. The shell reads all of it
        // before it runs any, so its prompts for more lines come before the first mark.
        let typed = format!("echo S''{mark}; {{ {command}\n}}; echo E''{mark}=$?=\n");
        if typed.len() > LONGEST_COMMAND {
            return Err(VmError::TooLong { len: command.len() });
        }
        self.send(&typed)?;
        self.expect(format!("S{mark}\n").as_str(), limit)?;
        let heard = self.expect(Line(&format!("E{mark}=")), limit)?;
        let status = heard.text.split('=').nth(1).and_then(|status| status.parse().ok());
        let Some(status) = status else {
            return Err(VmError::Garbled { what: format!("the status of `{command}`"), said: heard.text });
        };
        let text = heard.before.strip_suffix('\n').unwrap_or(&heard.before).into();
        Ok(Output { status, text })
    }

    /// Runs a command that has to succeed, and gives what it said.
    ///
    /// # Errors
    /// As [`Self::sh`], or its status is not 0.
    pub fn ok(&mut self, command: &str, limit: Duration) -> Result<String, VmError> {
        let Output { status, text } = self.sh(command, limit)?;
        if status == 0 { Ok(text) } else { Err(VmError::Failed { command: command.into(), status, text }) }
    }

    /// Waits until a guest is up and its shell listens. What was up before is not meant: each boot is told once.
    ///
    /// # Errors
    /// Nothing comes up within `limit` (stretched by load), or it does not greet as it should.
    pub fn up(&mut self, limit: Duration) -> Result<Up, VmError> {
        loop {
            let said = self.expect(Line(up::GREETING), limit)?.text;
            let up = Up::parse(&said).ok_or(VmError::Garbled { what: "its greeting".into(), said })?;
            if self.last_boot.as_ref() != Some(&up.boot_id) {
                self.last_boot = Some(up.boot_id.clone());
                self.shell()?;
                return Ok(up);
            }
        }
    }

    /// Waits for the shell behind the greeting. What is typed before it has opened the line is lost: asked again.
    fn shell(&mut self) -> Result<(), VmError> {
        let mut deadline = Deadline::after(SHELL_LIMIT);
        loop {
            let mark = self.mark();
            self.send(&format!("\necho R''{mark}\n"))?;
            match self.expect(format!("R{mark}\n").as_str(), SHELL_ATTEMPT) {
                Err(VmError::Unheard { .. }) if deadline.left().is_some() => {}
                heard => return heard.map(drop),
            }
        }
    }

    /// A word that was never said before.
    fn mark(&mut self) -> String {
        self.commands += 1;
        format!("{:04x}-{}", fastrand::u16(..), self.commands)
    }

    fn life(&mut self) -> Result<&mut Life, VmError> {
        self.life.as_mut().ok_or(VmError::Power { is: "off", next: "power it on first" })
    }

    /// Gives QEMU a command.
    ///
    /// # Errors
    /// The device is off, or QEMU refuses.
    pub fn qmp(&mut self, command: &str, arguments: Value) -> Result<Value, VmError> {
        Ok(self.life()?.qmp.command(command, arguments, QMP_LIMIT)?)
    }

    /// Waits for an event of QEMU, such as `RESET`, `SHUTDOWN` or `BLOCK_IO_ERROR`. Each is told once; of those that
    /// nobody waited for the last thousand are kept.
    ///
    /// # Errors
    /// The device is off, or it does not come within `limit` (stretched by load).
    pub fn event(&mut self, name: &str, limit: Duration) -> Result<Value, VmError> {
        Ok(self.life()?.qmp.event(name, limit)?)
    }

    /// Cuts the power: nothing is flushed, written or said any more. What the guest had sent to its disk is there, so
    /// for a disk that loses its cache see [`crate::replay`]. A device that is off stays off.
    pub fn power_cut(&mut self) {
        if let Some(mut life) = self.life.take() {
            // It may have ended by itself; what counts is that it has.
            let _ = life.process.kill();
            let _ = life.process.wait();
            self.serial.pull_out();
        }
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// The device is off.
    pub fn reset(&mut self) -> Result<(), VmError> {
        self.qmp("system_reset", json!({})).map(drop)
    }

    /// Pulls out the network cable, or plugs it in.
    ///
    /// # Errors
    /// The device is off.
    pub fn network(&mut self, link: Link) -> Result<(), VmError> {
        self.qmp("set_link", json!({ "name": process::NETWORK, "up": link == Link::Up })).map(drop)
    }

    /// Makes the disk write so many bytes per second at most; `None`: as fast as it can.
    ///
    /// # Errors
    /// The device is off.
    pub fn slow_disk(&mut self, bytes_per_second: Option<u64>) -> Result<(), VmError> {
        let rate = bytes_per_second.unwrap_or(0);
        let (id, no) = (process::DISK, 0);
        let limits = json!({
            "id": id, "bps": no, "bps_rd": no, "bps_wr": rate, "iops": no, "iops_rd": no, "iops_wr": no,
        });
        self.qmp("block_set_io_throttle", limits).map(drop)
    }

    /// Breaks the disk from now on, in place of how it was broken before; `None`: it is whole again.
    ///
    /// # Errors
    /// The device is off, or QEMU refuses the rules.
    pub fn disk_error(&mut self, error: Option<&DiskError>) -> Result<(), VmError> {
        let life = self.life()?;
        let sound = process::sound(&life.how);
        let mut qmp = |command: &str, arguments| life.qmp.command(command, arguments, QMP_LIMIT);
        let next = error.map(|error| (format!("fault-{}", life.faults + 1), error.rules()));
        if let Some((node, rules)) = &next {
            let driver = "blkdebug";
            qmp(
                "blockdev-add",
                json!({ "driver": driver, "node-name": node, "image": sound, "inject-error": rules }),
            )?;
            life.faults += 1;
        }
        let next = next.map(|(node, _)| node);
        let on = next.as_deref().unwrap_or(sound);
        let changed = qmp("blockdev-reopen", json!({ "options": [process::top(on)] }));
        // The one that is not in use goes: the one before, or the new one if QEMU would not have it.
        let unused = if changed.is_ok() { std::mem::replace(&mut life.fault, next) } else { next };
        if let Some(node) = unused {
            qmp("blockdev-del", json!({ "node-name": node }))?;
        }
        changed?;
        Ok(())
    }

    /// Leaves the serial log and QEMU's words of a failed test, and all else only if asked.
    fn keep(&mut self) {
        self.workplace.0.disable_cleanup(true);
        if env::var_os(KEEP).is_none() {
            let kept = [self.serial_log(), self.errors()];
            for entry in fs::read_dir(self.folder()).into_iter().flatten().flatten() {
                if !kept.contains(&entry.path()) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        eprintln!("the device's serial log is {}; it ends with:", self.serial_log().display());
        eprintln!("{}", self.serial.tail());
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.power_cut();
        if std::thread::panicking() {
            self.keep();
        }
    }
}
