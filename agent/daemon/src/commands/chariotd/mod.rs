//! The agent under the name of chariotd: its options, its exit codes, its certificate store.

mod store;

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::{complain, run as daemon};
use crate::config::chariotd::options::{self, Options, Order};
use crate::config::chariotd::{NAME, Translation, translate};
use crate::config::{Feature, Finding, Kind, Settings, Sources};
use crate::exit::Exit;
use store::Store;

/// Bytes of the file of `--fleetprov`.
const MOST: u64 = 64 * 1024;

/// Whatever goes wrong, chariotd ends with 1.
const FAILED: Exit = Exit::Attention;

/// The agent, told what to do in chariotd's way.
pub(super) fn run(sources: Sources, args: &[OsString]) -> Exit {
    let done = match options::parse(args) {
        Ok(Order::Run(options)) => serve(sources, &options),
        Ok(Order::Help) => print(&options::help()),
        Ok(Order::Version) => print(&format!("otandem {} as {NAME}\n", env!("CARGO_PKG_VERSION"))),
        Err(e) => Err(e.to_string()),
    };
    match done {
        Ok(Exit::Ok) => Exit::Ok,
        Ok(_) => FAILED,
        Err(why) => complain(FAILED, &why),
    }
}

fn print(text: &str) -> Result<Exit, String> {
    use std::io::Write;
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map(|()| Exit::Ok).map_err(|e| format!("standard output: {e}"))
}

fn serve(sources: Sources, options: &Options) -> Result<Exit, String> {
    let cwd = std::env::current_dir().map_err(|e| format!("the current directory: {e}"))?;
    let directory = cwd.join(options.last("certstore").unwrap_or_default());
    let store = Store::open(&directory)?;
    let fleet = options.last("fleetprov").map(|file| fleet(&cwd.join(file))).transpose()?;
    let made = translate(options, &cwd, &store.endpoint, fleet.as_ref())?;
    if options.last("print-config").is_some() {
        return print(&made.toml());
    }
    present(&made, &cwd.join(options.last("cacert").unwrap_or_default()))?;
    let none = || format!("no certificate in {}; put one there, or give --fleetprov", directory.display());
    let credentials = store.preferred()?.ok_or_else(none)?;
    let sources = Sources {
        explicit: options.path("config").or(sources.explicit),
        state_dir: options.path("state-dir").map(|dir| cwd.join(dir)).or(sources.state_dir),
        ..sources
    };
    let (mut settings, findings) = settings(&sources, &made)?;
    if let Feature::On(cloud) = &mut settings.cloud {
        cloud.credentials = credentials;
    }
    state(&settings.state_dir)?;
    let exit = daemon::run(&settings, &findings, daemon::Restarted::BySupervisor);
    if exit == FAILED
        && let Some(next) = store.rotate()?
    {
        tracing::info!("the next start uses the certificate {next}");
    }
    Ok(exit)
}

/// chariotd does not start without these.
fn present(made: &Translation, roots: &Path) -> Result<(), String> {
    fs::File::open(roots).map_err(|e| format!("--cacert: {}: {e}", roots.display()))?;
    for directory in &made.directories {
        let there = fs::metadata(directory).map_err(|e| format!("{directory}: {e}; make it"))?;
        if !there.is_dir() {
            return Err(format!("{directory}: no directory"));
        }
    }
    Ok(())
}

/// chariotd needs no such place, so who runs it as another user than root has none.
fn state(directory: &Path) -> Result<(), String> {
    let made = fs::create_dir_all(directory).and_then(|()| {
        nix::unistd::access(directory, nix::unistd::AccessFlags::W_OK).map_err(std::io::Error::from)
    });
    made.map_err(|e| {
        format!("no place for state: {}: {e}; give --state-dir=DIR that can be written", directory.display())
    })
}

/// What the file of `--fleetprov` says.
fn fleet(file: &Path) -> Result<Value, String> {
    let fail = |e: &dyn std::fmt::Display| format!("--fleetprov: {}: {e}", file.display());
    let mut bytes = Vec::new();
    fs::File::open(file).and_then(|f| f.take(MOST + 1).read_to_end(&mut bytes)).map_err(|e| fail(&e))?;
    if bytes.len() as u64 > MOST {
        return Err(fail(&format!("larger than {MOST} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|e| fail(&e))
}

/// The settings of our own files between what chariotd does by itself and what it was told.
fn settings(sources: &Sources, made: &Translation) -> Result<(Settings, Vec<Finding>), String> {
    let (below, above) = made.layers();
    let (settings, mut findings) =
        Settings::load_between(below, sources, above).map_err(|e| e.to_string())?;
    if let Feature::Broken(finding) = &settings.cloud {
        return Err(finding.to_string());
    }
    let told = |problem: &String| Finding {
        file: None,
        key: String::new(),
        problem: problem.clone(),
        kind: Kind::Idle,
    };
    findings.extend(made.told.iter().map(told));
    Ok((settings, findings))
}
