//! `cargo demo`: a device in a folder and a cloud on the loopback, and what an update promises, shown.
//!
//! Everything is real but the machine: the agent's binary, MQTT over mutual TLS, HTTPS with ranges, a disk image, a
//! process that is killed and started again. A bootloader is simulated, slots are files.

mod acts;
mod screen;
mod stage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal};
use otandem_system_tests::binary;
use tempfile::TempDir;

use acts::Line;
use screen::{Screen, Who};
use stage::{Stage, Tellers};

const USAGE: &str = "\
usage: cargo demo [--keep]

Shows a good update, a power cut in the middle of one, a corrupted image and an image that is not well.
  --keep   leaves the device's folder and says where it is";

/// What Ctrl-C has to clean up.
type Cleanup = Arc<Mutex<Option<(PathBuf, Arc<otandem_system_tests::Device>)>>>;

fn main() -> ExitCode {
    let keep = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--keep" => true,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    let cleanup = Cleanup::default();
    clean_up_on_signals(&cleanup, keep);
    match run(keep, &cleanup) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("the demo could not go on: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C and friends end the device and remove the folder. Blocked in all threads, waited for in one; child processes
/// start with nothing blocked.
fn clean_up_on_signals(cleanup: &Cleanup, keep: bool) {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    if signals.thread_block().is_err() {
        return;
    }
    let cleanup = Arc::clone(cleanup);
    std::thread::spawn(move || {
        let signal = signals.wait();
        if let Some((folder, device)) = cleanup.lock().unwrap_or_else(PoisonError::into_inner).take() {
            device.give_up();
            if !keep {
                let _ = std::fs::remove_dir_all(folder);
            }
        }
        std::process::exit(128 + signal.map_or(2, |signal| signal as i32));
    });
}

fn run(keep: bool, cleanup: &Cleanup) -> Result<bool, String> {
    println!("building the agent ...");
    binary::find_or_build(binary::Show::Progress).map_err(|e| e.to_string())?;
    let folder = tempfile::Builder::new().prefix("otandem-demo-").tempdir();
    let folder = folder.map_err(|e| format!("no folder for temporary files: {e}"))?;
    let screen = Arc::new(Screen::new());
    screen.plain("\notandem: one device with the slot sets A and B, and its cloud, both on this machine\n");
    let stage = Stage::set(folder.path(), Arc::clone(&screen))?;
    *cleanup.lock().unwrap_or_else(PoisonError::into_inner) =
        Some((folder.path().to_owned(), Arc::clone(&stage.device)));
    let lines = {
        let _tellers = Tellers::start(&stage);
        acts::all(&stage, folder.path())
    };
    let good = summary(&screen, &lines);
    if !good {
        eprintln!("\nthe end of the agent's log, {}", stage.device.tail());
    }
    // From here on there is nothing left to be killed.
    cleanup.lock().unwrap_or_else(PoisonError::into_inner).take();
    stage.device.give_up();
    farewell(&screen, folder, keep || !good);
    Ok(good)
}

/// The table; true if every line ended as told.
fn summary(screen: &Screen, lines: &[Line]) -> bool {
    screen.plain("\n                        job        what it shows");
    for line in lines {
        let verdict = if line.result.is_ok() { "as told" } else { "NOT AS TOLD" };
        let (status, text) = match &line.result {
            Ok(end) => (end.status, end.text.as_str()),
            Err(why) => ("", why.as_str()),
        };
        screen.plain(&format!("{:<11} {:<11} {status:<10} {text}", line.name, verdict));
    }
    screen.plain(&format!("\n{:.0} s", screen.seconds()));
    lines.iter().all(|line| line.result.is_ok())
}

fn farewell(screen: &Screen, folder: TempDir, keep: bool) {
    if !keep {
        return;
    }
    let folder = folder.keep();
    let shown = |name: &str| Path::new(&folder).join(name).display().to_string();
    screen.line(Who::Demo, &format!("kept: {}", folder.display()));
    screen.line(Who::Demo, &format!("      configuration {}", shown("otandem.toml")));
    screen.line(Who::Demo, &format!("      the agent's log {}", shown("otandem.log")));
}
