//! `otandem config import aws-iot-device-client`, and the agent under that client's name with its command line and files.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{complain, run as daemon};
use crate::cli::Import;
use crate::config::device_client::flags::{self, Line, Order};
use crate::config::device_client::keys::PROXY;
use crate::config::device_client::{Given, NAME, Place, Translation, translate};
use crate::config::fragments::Fragment;
use crate::config::{Finding, Kind, Settings, Sources, owned_by_us};
use crate::exit::Exit;

/// Bytes that are read of a file: more than it may have, so that too much is seen as such.
const MOST: u64 = 1 << 20;
/// Where the client looks, in this order, below the home directory and below `/etc`.
const DIRECTORY: &str = ".aws-iot-device-client";
const CONFIG: &str = "aws-iot-device-client.conf";
const RUNTIME: &str = "aws-iot-device-client-runtime.conf";
const HTTP_PROXY: &str = "http-proxy.conf";

type Refusal = (Exit, String);

/// `config import`: our configuration on standard output; what does not come with it, and what is wrong, on standard error.
pub(super) fn import(import: &Import) -> Exit {
    let given = match import_files(import) {
        Ok(given) => given,
        Err((exit, why)) => return complain(exit, &why),
    };
    let home = import.home.clone().or_else(std::env::home_dir);
    let made = translate(&given, Place { home: home.as_deref(), cwd: None });
    tell(&made.told);
    tell(&made.wrong);
    if !made.wrong.is_empty() {
        return complain(Exit::Data, "nothing was written: mend these in the file, or take them out");
    }
    let text = made.toml();
    if let Err(e) = std::io::stdout().write_all(text.as_bytes()) {
        return complain(Exit::Io, &format!("standard output: {e}"));
    }
    tell(&made.missing);
    let (fragment, mut findings) = Fragment::parse(Path::new("the result"), &text);
    let _ = Settings::from_fragment(fragment, &mut findings);
    tell(&findings);
    if made.missing.is_empty() && findings.is_empty() {
        return Exit::Ok;
    }
    complain(Exit::Config, "the configuration is not complete: see above, then try otandem config check")
}

fn import_files(import: &Import) -> Result<Given, Refusal> {
    let mut given = read(&import.file, "")?;
    for (file, prefix) in [(&import.runtime_config, ""), (&import.proxy, PROXY)] {
        if let Some(file) = file {
            given.extend(read(file, prefix)?);
        }
    }
    Ok(given)
}

fn tell(findings: &[Finding]) {
    for finding in findings {
        let _ = writeln!(std::io::stderr(), "{finding}");
    }
}

/// One of the client's files; `-`: standard input.
fn read(file: &Path, prefix: &str) -> Result<Given, Refusal> {
    let mut bytes = Vec::new();
    let (name, done) = if file.as_os_str() == "-" {
        ("standard input".into(), std::io::stdin().take(MOST).read_to_end(&mut bytes))
    } else {
        (file.display().to_string(), fs::File::open(file).and_then(|f| f.take(MOST).read_to_end(&mut bytes)))
    };
    done.map_err(|e| (Exit::NoInput, format!("{name}: {e}")))?;
    Given::json(&bytes, prefix).map_err(|e| (Exit::Data, format!("{name}: {e}")))
}

/// The agent, told what to do in the client's way.
pub(super) fn run(sources: Sources, args: &[OsString]) -> Exit {
    let line = match flags::parse(args) {
        Ok(Order::Run(line)) => line,
        Ok(Order::Help) => return print(&flags::help()),
        Ok(Order::Version) => return print(&format!("otandem {} as {NAME}\n", env!("CARGO_PKG_VERSION"))),
        Ok(Order::Export(file)) => return export(&file),
        Err(e) => return complain(Exit::Usage, &e.to_string()),
    };
    let sources = Sources {
        explicit: line.our_config.clone().or(sources.explicit),
        state_dir: line.state_dir.clone().or(sources.state_dir),
        ..sources
    };
    match settings(&sources, line) {
        Ok((settings, findings)) => daemon::run(&settings, &findings, daemon::Restarted::Never),
        Err((exit, why)) => complain(exit, &why),
    }
}

fn print(text: &str) -> Exit {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Exit::Ok,
        Err(e) => complain(Exit::Io, &format!("standard output: {e}")),
    }
}

/// What is there is not overwritten: it may be the device's configuration.
fn export(file: &Path) -> Exit {
    let open = fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(file);
    match open.and_then(|mut out| out.write_all(flags::TEMPLATE.as_bytes())) {
        Ok(()) => Exit::Ok,
        Err(e) => complain(Exit::CannotCreate, &format!("{}: {e}", file.display())),
    }
}

/// The settings of our own files between what the client does by itself and what it was told.
fn settings(sources: &Sources, line: Line) -> Result<(Settings, Vec<Finding>), Refusal> {
    let made = given(line).map(|given| {
        let (home, cwd) = (std::env::home_dir(), std::env::current_dir().ok());
        translate(&given, Place { home: home.as_deref(), cwd: cwd.as_deref() })
    });
    if let Ok(made) = &made
        && made.wrong_flags
    {
        tell(&made.wrong);
        return Err((Exit::Usage, "the command line asks for what cannot be had: see above".into()));
    }
    let load = |below, above| {
        Settings::load_between(below, sources, above).map_err(|e| (Exit::Config, e.to_string()))
    };
    match made {
        Ok(made) if made.wrong.is_empty() => {
            let (below, above) = made.layers();
            let (settings, mut findings) = load(below, above)?;
            if settings.cloud.on().is_none() {
                findings.extend(made.missing);
            }
            if settings.cloud.on().is_none() && settings.updates.is_err() {
                tell(&findings);
                return Err((Exit::Config, "there is nothing to run with: see above".into()));
            }
            findings.extend(made.told);
            Ok((settings, findings))
        }
        other => {
            let (exit, wrong) = reasons(other);
            let (settings, mut findings) = load(Fragment::default(), Fragment::default())?;
            if settings.updates.is_err() {
                tell(&wrong);
                return Err((exit, format!("the configuration of {NAME} cannot be used: see above")));
            }
            // A device with two sets must settle its trial and keep its way back, whatever a file says.
            findings.extend(wrong);
            Ok((settings, findings))
        }
    }
}

fn reasons(made: Result<Translation, Refusal>) -> (Exit, Vec<Finding>) {
    match made {
        Ok(made) => (Exit::Config, made.wrong),
        Err((exit, problem)) => {
            (exit, vec![Finding { file: None, key: String::new(), problem, kind: Kind::Idle }])
        }
    }
}

/// Files and flags, in the client's order: its configuration, flags, what provisioning left behind, the proxy.
fn given(line: Line) -> Result<Given, Refusal> {
    let home = std::env::home_dir().map(|home| home.join(DIRECTORY));
    let mut all = match line.config_file {
        Some(file) => read_ours(&file, "")?,
        None => {
            let places = home.iter().cloned().chain([Path::new("/etc").join(DIRECTORY)]);
            first(places.map(|dir| dir.join(CONFIG)), "")?
        }
    };
    all.extend(line.given);
    all.extend(first(home.iter().map(|dir| dir.join(RUNTIME)), "")?);
    all.extend(match line.proxy_file {
        Some(file) => read_ours(&file, PROXY)?,
        None => first(home.iter().map(|dir| dir.join(HTTP_PROXY)), PROXY)?,
    });
    Ok(all)
}

/// The first of these files that is there.
fn first(mut files: impl Iterator<Item = PathBuf>, prefix: &str) -> Result<Given, Refusal> {
    let there =
        |file: &PathBuf| fs::metadata(file).map_or_else(|e| e.kind() != ErrorKind::NotFound, |_| true);
    files.find(there).map_or_else(|| Ok(Given::default()), |file| read_ours(&file, prefix))
}

/// A file that says which handlers run with our rights: nobody else may write it.
fn read_ours(file: &Path, prefix: &str) -> Result<Given, Refusal> {
    owned_by_us(file).map_err(|e| {
        let exit = if e.kind() == ErrorKind::NotFound { Exit::NoInput } else { Exit::Config };
        (exit, format!("{}: {e}", file.display()))
    })?;
    read(file, prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ThingName;

    const SLOTS: &str = "[slots.A]\nrootfs = '/dev/a'\n[slots.B]\nrootfs = '/dev/b'\n";
    const OURS: &str =
        "[cloud]\nendpoint = 'ours'\nthing-name = 'ours'\ncert = '/c'\nkey = '/k'\nport = 8884\n";
    const THEIRS: &str = r#"{"endpoint": "theirs", "cert": "/c", "key": "/k", "thing-name": "theirs"}"#;

    /// With this as our own configuration and that as the client's.
    fn loaded(ours: &str, theirs: &str) -> Result<(Settings, Vec<Finding>), Refusal> {
        let dir = tempfile::tempdir().unwrap();
        let (config, client) = (dir.path().join("otandem.toml"), dir.path().join("dc.json"));
        fs::write(&config, ours).unwrap();
        fs::write(&client, theirs).unwrap();
        let line = Line { config_file: Some(client), ..Line::default() };
        settings(&Sources { explicit: Some(config), ..Sources::default() }, line)
    }

    #[test]
    fn the_clients_file_goes_over_our_cloud_and_leaves_the_rest() {
        let (settings, _) = loaded(&format!("{SLOTS}{OURS}"), THEIRS).unwrap();
        let cloud = settings.cloud.on().unwrap();
        assert_eq!((cloud.endpoint.as_str(), cloud.port), ("theirs", 8884));
        assert_eq!(cloud.thing, ThingName::Name("theirs".into()));
        assert!(settings.updates.is_ok());
        assert!(loaded("", THEIRS).unwrap().0.updates.is_err());
    }

    #[test]
    fn a_file_that_cannot_be_used_ends_a_device_without_slots_and_no_other() {
        for (theirs, exit) in [("{", Exit::Data), (r#"{"cert": 7}"#, Exit::Config)] {
            assert_eq!(loaded("", theirs).unwrap_err().0, exit);
            let (settings, findings) = loaded(&format!("{SLOTS}{OURS}"), theirs).unwrap();
            assert_eq!(settings.cloud.on().unwrap().endpoint, "ours");
            assert!(settings.updates.is_ok() && !findings.is_empty(), "it is told");
        }
        // With nothing wrong and nothing to do.
        assert_eq!(loaded("", "{}").unwrap_err().0, Exit::Config);
        let (settings, findings) = loaded(SLOTS, "{}").unwrap();
        assert!(settings.updates.is_ok() && findings.iter().any(|f| f.key == "endpoint"), "{findings:?}");
    }
}
