//! The QEMU process: its arguments, and that it never outlives the test.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::serial::Listener;
use super::{Definition, PowerOn};

/// The emulator; found by `PATH`.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// The disk as QMP knows it.
pub(crate) const DISK: &str = "/machine/peripheral/disk0/virtio-backend";
/// The node below which a fault can be put, and the one that it then stands on.
const TOP: &str = "disk";
/// The network card's other end.
pub(crate) const NETWORK: &str = "net0";

/// The node that stands directly below the device's disk when nothing is broken.
pub(crate) fn sound(how: &PowerOn) -> &'static str {
    if how.write_log { "log" } else { "file" }
}

/// The disk, standing on a node: for `blockdev-reopen`, which wants all options again.
pub(crate) fn top(on: &str) -> Value {
    json!({ "driver": "raw", "node-name": TOP, "file": on })
}

/// All arguments: those of the definition between what every device has in common.
pub(crate) fn arguments(definition: &Definition, how: &PowerOn, log: &Path) -> Vec<OsString> {
    let mut all: Vec<OsString> = Vec::new();
    let mut add = |arguments: &[&str]| all.extend(arguments.iter().map(OsString::from));
    // TCG always: /dev/kvm may open and still be unable to run a stock guest. Held back until the faults are in place.
    add(&["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "1", "-S"]);
    add(&["-m", &definition.memory_mib.clamp(64, 1024).to_string(), "-nodefaults", "-display", "none"]);
    // It cannot start other programs nor gain rights.
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]);
    // Standard input and output are sockets: no path can be too long, and they end with us.
    add(&["-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control"]);
    add(&["-chardev", "socket,id=serial,fd=1", "-serial", "chardev:serial"]);
    add(&["-rtc", &how.clock.base()]);
    add(&["-netdev", &format!("user,id={NETWORK}"), "-device", "virtio-net-pci,netdev=net0,romfile="]);
    for node in nodes(&definition.disk, how, log) {
        add(&["-blockdev", &node.to_string()]);
    }
    // An error is the guest's to handle, not a reason to stop it. No discard and no write-zeroes: of QEMU 7.2 a write
    // of zeros beside another write spoils the write log; a guest then writes the zeros. No merging of requests: one of
    // as many pieces as a system call takes has no room for the log's own and fails (4 MiB of zeros are enough).
    let disk = format!(
        "virtio-blk-pci,id=disk0,drive={TOP},bootindex=1,write-cache=on,discard=off,write-zeroes=off,\
         request-merging=off"
    );
    add(&["-device", &format!("{disk},werror=report,rerror=report")]);
    all.extend(definition.args.iter().cloned());
    all
}

/// The disk from the file up. `no-flush`: what the machine has in its page cache survives the death of QEMU, so a flush
/// need not wait for the machine's own disk, and in the log it covers exactly what stands before it.
fn nodes(disk: &Path, how: &PowerOn, log: &Path) -> Vec<Value> {
    let file = |name: &str, path: &Path| json!({ "driver": "file", "node-name": name, "filename": path.to_string_lossy(), "cache": { "no-flush": true } });
    let mut nodes = vec![file("file", disk)];
    if how.write_log {
        nodes.push(file("log-file", log));
        let (below, into) = ("file", "log-file");
        let driver = "blklogwrites";
        nodes.push(json!({
            "driver": driver, "node-name": "log", "file": below, "log": into, "log-sector-size": 512,
        }));
    }
    nodes.push(top(sound(how)));
    nodes
}

/// Starts QEMU in a thread that then listens to its serial line.
///
/// The kernel kills QEMU when the *thread* that started it ends. That is the listener's: it lives as long as QEMU, or
/// as long as this process.
pub(crate) fn start(
    arguments: Vec<OsString>,
    (qmp, serial, errors): (UnixStream, UnixStream, File),
    listener: Listener,
) -> io::Result<(Child, JoinHandle<()>)> {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    command.stdin(Stdio::from(OwnedFd::from(qmp))).stdout(Stdio::from(OwnedFd::from(serial)));
    command.stderr(Stdio::from(errors));
    // SAFETY: between fork and exec only one system call is made, which needs neither memory nor a lock.
    unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)) };
    let (tell, told) = mpsc::channel();
    let thread = thread::Builder::new().name("serial".into()).spawn(move || {
        let child = command.spawn();
        // It holds our copies of QEMU's ends: with them open, nobody would see QEMU end.
        drop(command);
        let started = child.is_ok();
        if tell.send(child).is_ok() && started {
            listener.run();
        }
    })?;
    let child = told.recv().map_err(io::Error::other)??;
    Ok((child, thread))
}
