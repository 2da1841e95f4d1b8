//! Which files the configuration comes from, in which order.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::fragments::Fragment;
use super::settings::{DEFAULT_STATE_DIR, Settings};
use super::{Area, Finding, Kind};

/// The directories of the configuration; later wins.
const DIRECTORIES: [&str; 3] = ["/usr/lib/otandem", "/etc/otandem", "/run/otandem"];
/// In each directory, before `conf.d`.
const MAIN_FILE: &str = "otandem.toml";
/// In the state directory: what differs per device.
const DEVICE_FILE: &str = "device.toml";
/// No configuration file is larger; more is a mistake or an attack.
const MAX_FILE: u64 = 1 << 20;

/// The command line named a configuration that is not there.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `--config` cannot be read.
    #[error("cannot read the configuration {}: {source}; check the path given with --config", path.display())]
    Explicit {
        /// The path that was given.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
}

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Directories with `otandem.toml` and `conf.d/*.toml`; later wins.
    pub directories: Vec<PathBuf>,
    /// `--config`: a file, or one such directory; replaces everything else, `device.toml` included.
    pub explicit: Option<PathBuf>,
    /// `--state-dir`: wins over the configuration.
    pub state_dir: Option<PathBuf>,
}

impl Default for Sources {
    fn default() -> Self {
        Self { directories: DIRECTORIES.map(PathBuf::from).to_vec(), explicit: None, state_dir: None }
    }
}

impl Settings {
    /// Reads, merges and validates. Everything that is wrong with the contents is in the findings (also those that
    /// are inside the settings, so that listing them lists all).
    ///
    /// # Errors
    /// Only for a `--config` that cannot be read: the person who gave it is there to be told.
    pub fn load(sources: &Sources) -> Result<(Self, Vec<Finding>), ConfigError> {
        Self::load_between(Fragment::default(), sources, Fragment::default())
    }

    /// As [`Settings::load`], with one layer below all files, and one above them.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn load_between(
        below: Fragment,
        sources: &Sources,
        above: Fragment,
    ) -> Result<(Self, Vec<Finding>), ConfigError> {
        let mut findings = Vec::new();
        let by_habit = below.cloud.thing_name.clone();
        let mut merged = below;
        if let Some(path) = &sources.explicit {
            let explicit = |source| ConfigError::Explicit { path: path.clone(), source };
            if fs::metadata(path).map_err(explicit)?.is_dir() {
                fs::read_dir(path).map_err(explicit)?;
                read_directory(path, &mut merged, &mut findings);
            } else {
                let text = read_bounded(path).map_err(explicit)?;
                take(path, &text, &mut merged, &mut findings);
            }
        } else {
            for directory in &sources.directories {
                read_directory(directory, &mut merged, &mut findings);
            }
        }
        if let Some(dir) = &sources.state_dir {
            merged.update.state_dir = Some(dir.clone());
        }
        if sources.explicit.is_none() {
            read_device_file(&mut merged, &mut findings);
        }
        if merged.cloud.thing_name_file.is_some() && merged.cloud.thing_name == by_habit {
            merged.cloud.thing_name = None;
        }
        merged.replace(above);
        let settings = Self::from_fragment(merged, &mut findings);
        Ok((settings, findings))
    }
}

fn read_device_file(merged: &mut Fragment, findings: &mut Vec<Finding>) {
    let state_dir = merged.update.state_dir.clone().unwrap_or_else(|| DEFAULT_STATE_DIR.into());
    let file = state_dir.join(DEVICE_FILE);
    let text = match read_bounded(&file).and_then(|text| owned_by_us(&file).map(|()| text)) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(e) => return findings.push(unreadable(&file, &e, Area::Cloud)),
    };
    let before = merged.update.state_dir.clone();
    take(&file, &text, merged, findings);
    if merged.update.state_dir != before {
        merged.update.state_dir = before;
        findings.push(Finding {
            file: Some(file),
            key: "update.state-dir".into(),
            problem: "has no effect in the state directory itself; set it in /etc/otandem".into(),
            kind: Kind::Unknown,
        });
    }
}

/// A thing name or endpoint that any user may change would hand the device to that user.
pub(crate) fn owned_by_us(file: &Path) -> io::Result<()> {
    let meta = fs::metadata(file)?;
    let us = nix::unistd::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != us {
        return Err(io::Error::other(format!("belongs to user {}, must belong to root", meta.uid())));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(io::Error::other("others than its owner may write it; run chmod go-w on it"));
    }
    Ok(())
}

fn read_directory(directory: &Path, merged: &mut Fragment, findings: &mut Vec<Finding>) {
    let mut files = vec![directory.join(MAIN_FILE)];
    let dropins = directory.join("conf.d");
    match fs::read_dir(&dropins) {
        Ok(entries) => {
            let mut found: Vec<_> = entries
                .filter_map(|e| e.ok().map(|e| e.path()))
                .filter(|p| p.extension().is_some_and(|e| e == "toml"))
                .collect();
            found.sort_unstable();
            files.extend(found);
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(e) => findings.push(unreadable(&dropins, &e, Area::Update)),
    }
    for file in files {
        match read_bounded(&file) {
            Ok(text) => take(&file, &text, merged, findings),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => findings.push(unreadable(&file, &e, Area::Update)),
        }
    }
}

fn take(file: &Path, text: &str, merged: &mut Fragment, findings: &mut Vec<Finding>) {
    let (fragment, found) = Fragment::parse(file, text);
    merged.merge(fragment);
    findings.extend(found);
}

fn unreadable(file: &Path, e: &io::Error, area: Area) -> Finding {
    Finding {
        file: Some(file.to_owned()),
        key: String::new(),
        problem: format!("cannot be read: {e}"),
        kind: Kind::Invalid(area),
    }
}

fn read_bounded(file: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    fs::File::open(file)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}
