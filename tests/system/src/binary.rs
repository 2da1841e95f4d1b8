//! Finds the agent's binary, or builds it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::Error;
use crate::device::supervise::spawn;

/// Names a binary to test in place of the one that is built.
const OVERRIDE: &str = "OTANDEM_BIN";

/// Whether cargo's own progress is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Only what went wrong, in the error.
    Nothing,
    /// All of it, on standard error.
    Progress,
}

/// The `otandem` binary: the one that `OTANDEM_BIN` names, else built (once for each process) with the profile and
/// into the folder of the program that asks.
///
/// # Errors
/// [`Error::Program`] when cargo does not build it.
pub fn otandem() -> Result<&'static Path, Error> {
    find_or_build(Show::Nothing)
}

/// As [`otandem`], for a program that a person waits for.
///
/// # Errors
/// [`Error::Program`] when cargo does not build it.
pub fn find_or_build(show: Show) -> Result<&'static Path, Error> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BINARY.get_or_init(|| find(show)) {
        Ok(path) => Ok(path),
        Err(why) => Err(Error::Program { program: "cargo build --package otandem".into(), why: why.clone() }),
    }
}

fn find(show: Show) -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("{OVERRIDE}={}: no file", path.display()))
        };
    }
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    // <target>/<profile>/program or <target>/<profile>/deps/test
    let mut folder = own.parent().ok_or("this program is in no folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().ok_or("this program is in no folder")?;
    }
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(other) => other,
        None => return Err(format!("{} names no profile", folder.display())),
    };
    let target = folder.parent().ok_or("the profile's folder is in no folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // What cargo tells the program that it runs would make it build everything anew that looks at such variables.
    let told = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
        "CARGO_TARGET_TMPDIR",
    ];
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| told.iter().any(|start| name.starts_with(start))) {
            command.env_remove(name);
        }
    }
    let quiet: &[&str] = if show == Show::Progress { &[] } else { &["--quiet"] };
    command
        .args(["build", "--package", "otandem", "--bin", "otandem", "--profile", profile])
        .args(quiet)
        .arg("--target-dir")
        .arg(target)
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(if show == Show::Progress { Stdio::inherit() } else { Stdio::piped() });
    let output = spawn(&mut command)
        .and_then(Child::wait_with_output)
        .map_err(|e| format!("{e}; install Rust, or name a binary by {OVERRIDE}"))?;
    if !output.status.success() {
        return Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(folder.join("otandem"))
}
