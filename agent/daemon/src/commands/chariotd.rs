//! The agent under the name of chariotd: its options, its exit codes, its way with certificates.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use otandem_core::provisioning::rotation::next;
use otandem_device::certstore::Store;
use serde_json::Value;

use super::{complain, run as daemon};
use crate::config::chariotd::options::{self, Options, Order};
use crate::config::chariotd::{NAME, Translation, translate};
use crate::config::{Feature, Finding, Kind, Settings, Sources};
use crate::exit::Exit;

/// Bytes of the file of `--fleetprov`.
const MOST: u64 = 64 * 1024;
/// How long chariotd waits before it ends after an attempt that failed.
const PAUSE: Duration = Duration::from_secs(30);
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
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map(|()| Exit::Ok).map_err(|e| format!("standard output: {e}"))
}

fn serve(sources: Sources, options: &Options) -> Result<Exit, String> {
    let cwd = std::env::current_dir().map_err(|e| format!("the current directory: {e}"))?;
    let store = Store::at(&cwd.join(options.last("certstore").unwrap_or_default()));
    let endpoint = store.endpoint().map_err(|e| e.to_string())?;
    let (host, port) = endpoint.ok_or_else(|| format!("no endpoint.txt in {}", store.path().display()))?;
    let fleet = options.last("fleetprov").map(|file| fleet(&cwd.join(file))).transpose()?;
    let made = translate(options, &cwd, (&host, port), fleet.as_ref())?;
    if options.last("print-config").is_some() {
        return print(&made.toml());
    }
    present(&made, &cwd.join(options.last("cacert").unwrap_or_default()))?;
    let names = names(&store)?;
    let provisioned = !names.is_empty();
    if !provisioned && fleet.is_none() {
        return Err(format!(
            "no certificate in {}; put one there, or give --fleetprov",
            store.path().display()
        ));
    }
    let sources = Sources {
        explicit: options.path("config").or(sources.explicit),
        state_dir: options.path("state-dir").map(|dir| cwd.join(dir)).or(sources.state_dir),
        ..sources
    };
    let (settings, findings) = settings(&sources, &made)?;
    state(&settings.state_dir)?;
    if !provisioned {
        return provision(&settings);
    }
    // From the start on there is one that is preferred.
    if !store.preferred().is_some_and(|preferred| names.contains(&preferred)) {
        store.prefer(&names[0]).map_err(|e| e.to_string())?;
    }
    let exit = daemon::run(&settings, &findings, daemon::Restarted::BySupervisor);
    if exit == FAILED {
        rotate(&store)?;
    }
    Ok(exit)
}

/// The certificates that there are.
fn names(store: &Store) -> Result<Vec<String>, String> {
    let pairs = store.list().map_err(|e| e.to_string())?;
    Ok(pairs.into_iter().map(|pair| pair.name).collect())
}

/// One attempt to get a certificate. However it ends, chariotd ends with it, to be started again.
fn provision(settings: &Settings) -> Result<Exit, String> {
    crate::log::init(&settings.log);
    daemon::end_when_told().map_err(|e| e.to_string())?;
    match crate::features::provision(settings) {
        Ok(got) => {
            tracing::info!("provisioned: {got}");
            Ok(Exit::Ok)
        }
        Err((_, why)) => {
            tracing::error!("not provisioned: {why}");
            std::thread::sleep(PAUSE);
            Ok(FAILED)
        }
    }
}

/// The certificate behind the preferred one is preferred from now on, if there is another.
fn rotate(store: &Store) -> Result<(), String> {
    let names = names(store)?;
    if names.len() < 2 {
        return Ok(());
    }
    let Some(next) = next(&names, &store.preferred().unwrap_or_default()) else { return Ok(()) };
    tracing::info!("the next start uses the certificate {next}");
    store.prefer(next).map_err(|e| e.to_string())
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
    // A file may turn one function off and leave the others; a wrong command line is nobody's intention.
    let wrong = findings.iter().find(|found| matches!(found.kind, Kind::Invalid(_)) && made.gave(&found.key));
    if let Some(Finding { key, problem, .. }) = wrong {
        return Err(format!("{key}, of the options: {problem}"));
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
