//! Where a handler is, and whether it may be run: a file that somebody else may change would give them our rights.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, getegid, geteuid};
use otandem_core::jobs::document::Place;

use super::Terms;

/// The system's directories, searched first.
const SYSTEM: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// What a directory and the handlers in it should have.
const RECOMMENDED: u32 = 0o700;

/// Which files may be handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rule {
    /// File and directory belong to root or to the agent's user, and nobody else may write to them.
    #[default]
    Safe,
    /// In the handler directory also: mode 700 exactly, both.
    Strict,
}

/// The directories that are searched after the system's, for an agent of this home and working directory: those of the
/// AWS IoT Device Client, then the configured one.
#[must_use]
pub fn search(home: Option<&Path>, cwd: &Path, handler_directory: &Path) -> Vec<PathBuf> {
    let old = home.map(|home| home.join(".aws-iot-device-client"));
    let old = old.into_iter().flat_map(|dir| [dir.clone(), dir.join("jobs")]);
    old.chain([cwd.to_owned(), cwd.join("jobs"), handler_directory.to_owned()]).collect()
}

fn directories(terms: &Terms) -> impl Iterator<Item = PathBuf> {
    // A colon would make two directories of one.
    let whole = |dir: &PathBuf| dir.is_absolute() && !dir.as_os_str().as_encoded_bytes().contains(&b':');
    SYSTEM.iter().map(PathBuf::from).chain(terms.search.iter().filter(move |dir| whole(dir)).cloned())
}

/// `PATH` of a step.
pub(super) fn search_path(terms: &Terms) -> OsString {
    std::env::join_paths(directories(terms)).unwrap_or_else(|_| SYSTEM.join(":").into())
}

/// The file of a handler.
pub(super) fn find(handler: &str, place: &Place, terms: &Terms) -> Result<PathBuf, String> {
    let file = match place {
        Place::Default => terms.handler_directory.join(handler),
        Place::Directory(dir) => Path::new(dir).join(handler),
        Place::Search => {
            let runs = |file: &PathBuf| access(file.as_path(), AccessFlags::X_OK).is_ok() && file.is_file();
            let found = directories(terms).map(|dir| dir.join(handler)).find(runs);
            found.ok_or_else(|| {
                format!(
                    "there is no handler {handler:?} that can be executed in {}",
                    search_path(terms).display()
                )
            })?
        }
    };
    check(&file, terms)?;
    Ok(file)
}

fn check(file: &Path, terms: &Terms) -> Result<(), String> {
    let told = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => format!("there is no handler {}", file.display()),
        _ => format!("{}: {e}", file.display()),
    };
    let real = std::fs::canonicalize(file).map_err(told)?;
    let about = std::fs::metadata(&real).map_err(told)?;
    if !about.is_file() {
        return Err(format!("{} is no file", file.display()));
    }
    safe(file, &about)?;
    let dirs = [file.parent(), real.parent()];
    for dir in dirs.into_iter().flatten() {
        let about = std::fs::metadata(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        safe(dir, &about)?;
    }
    if terms.rule == Rule::Strict && file.parent() == Some(terms.handler_directory.as_path()) {
        exact(file, &about)?;
        let dir = &terms.handler_directory;
        exact(dir, &std::fs::metadata(dir).map_err(|e| format!("{}: {e}", dir.display()))?)?;
    }
    Ok(())
}

fn safe(path: &Path, about: &Metadata) -> Result<(), String> {
    let path = path.display();
    if about.uid() != 0 && about.uid() != geteuid().as_raw() {
        return Err(format!("{path} belongs to user {}: chown it to root", about.uid()));
    }
    if about.mode() & 0o002 != 0 {
        return Err(format!("{path} may be changed by everybody: chmod go-w it"));
    }
    if about.mode() & 0o020 != 0 && about.gid() != 0 && about.gid() != getegid().as_raw() {
        return Err(format!("{path} may be changed by group {}: chmod go-w it", about.gid()));
    }
    Ok(())
}

fn exact(path: &Path, about: &Metadata) -> Result<(), String> {
    let mode = about.mode() & 0o777;
    if mode == RECOMMENDED {
        return Ok(());
    }
    Err(format!("{} has mode {mode:o}, not 700, and jobs.strict-permissions is set", path.display()))
}
