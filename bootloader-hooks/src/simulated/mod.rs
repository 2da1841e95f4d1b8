//! A bootloader in a directory, for demonstrations and tests.
//!
//! [`Simulated`] is the side of the running system, [`Simulator`] plays the loader at a reset. Between them lies the
//! directory: `env` (the loader's environment), `booted` (boot name of the set that runs) and `boot_id`.
//!
//! `env` is two sectors of 512 bytes that are written by turns, in place, as U-Boot keeps a redundant environment: a
//! torn write costs only what it was to write. With neither readable the loader uses [`Env::default`].

mod store;

use std::path::{Path, PathBuf};

pub use crate::counters::{Env, FULL};
use otandem_core::boot::{Booted, SetId};
use otandem_device::state::atomic_write;
use store::{EnvFile, io_error};
pub use store::{Fault, Faults};

use crate::booted::{Claim, Says, Verdict, combine};
use crate::counters::ByCounters;
use crate::{BootError, BootNames, Config, Tries, View};

/// The running system's view of the simulated bootloader.
pub struct Simulated {
    dir: PathBuf,
    config: Config,
    env: EnvFile,
}

impl Simulated {
    /// Opens the directory that a [`Simulator`] made.
    ///
    /// # Errors
    /// It cannot be read, or more tries are configured than this kind of environment can tell from confirmed.
    pub fn open(dir: &Path, config: Config) -> Result<Self, BootError> {
        if config.trial_tries.get() >= FULL {
            let why = format!("trial-boots = {FULL} means confirmed in BOOT_x_LEFT: use 1 or 2");
            return Err(BootError::Config(why));
        }
        let env = EnvFile::open(dir, config.names.clone())?;
        Ok(Self { dir: dir.into(), config, env })
    }

    /// Lets every write of the environment from here on end as `faults` says, given its number from 0.
    pub fn set_faults(&mut self, faults: Faults) {
        self.env.set_faults(faults);
    }
}

impl ByCounters for Simulated {
    fn booted(&self) -> Verdict {
        let path = self.dir.join("booted");
        let source = path.display().to_string();
        let says = match std::fs::read_to_string(&path) {
            Ok(text) => self.config.names.set(text.trim()).map(Says::Set),
            Err(_) => None,
        };
        let says = says.unwrap_or_else(|| Says::Unclear("does not name the set that was booted".into()));
        combine(&[Claim { source, says }])
    }

    fn running(&self) -> Booted {
        // Without an identity of the boot nobody could tell whether there was a reset.
        if self.boot_id().is_empty() { Booted::Unknown } else { self.booted().booted }
    }

    fn boot_id(&self) -> String {
        std::fs::read_to_string(self.dir.join("boot_id")).unwrap_or_default().trim().to_owned()
    }

    fn tries(&self) -> Tries {
        self.config.trial_tries
    }

    fn env(&mut self) -> Result<Env, BootError> {
        self.env.read()
    }

    fn change(&mut self, change: impl FnOnce(&mut Env)) -> Result<(), BootError> {
        let before = self.env.read()?;
        let mut wanted = before.clone();
        change(&mut wanted);
        if wanted == before {
            return Ok(());
        }
        self.env.write(&wanted)?;
        let found = self.env.read()?;
        if found == wanted {
            return Ok(());
        }
        let text = |env: &Env| env.format(&self.config.names).trim().replace('\n', ", ");
        Err(BootError::ReadBack { what: "env".into(), wanted: text(&wanted), found: text(&found) })
    }

    fn as_stored(&mut self) -> Result<View, BootError> {
        let env = self.env.read()?.format(&self.config.names);
        let values = env.lines().filter_map(|line| line.split_once('='));
        Ok(View {
            loader: "simulated".into(),
            values: values.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        })
    }
}

/// The loader: what happens at a reset.
pub struct Simulator {
    dir: PathBuf,
    names: BootNames,
    env: EnvFile,
}

impl Simulator {
    /// Opens the directory, making it and an empty environment where they are missing.
    ///
    /// # Errors
    /// They cannot be made or read.
    pub fn open(dir: &Path, names: BootNames) -> Result<Self, BootError> {
        std::fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let env = EnvFile::open(dir, names.clone())?;
        Ok(Self { dir: dir.into(), names, env })
    }

    /// One reset: boots the set that the environment says, if `can_load` finds something to load in it, else the next.
    /// The running system then has a new boot id. `None`: nothing could be loaded.
    ///
    /// # Errors
    /// A file of the directory cannot be written.
    pub fn boot(&mut self, can_load: impl FnMut(SetId) -> bool) -> Result<Option<SetId>, BootError> {
        let booted = self.dir.join("booted");
        match std::fs::remove_file(&booted) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io_error("remove", &booted)(e)),
            _ => {}
        }
        let before = self.env.read()?;
        let mut env = before.clone();
        let set = env.next_boot(can_load);
        if env != before {
            self.env.write(&env)?;
        }
        if let Some(set) = set {
            let source = Path::new("/proc/sys/kernel/random/uuid");
            let id = std::fs::read(source).map_err(io_error("read", source))?;
            atomic_write(&self.dir.join("boot_id"), &id, 0o644)?;
            atomic_write(&booted, format!("{}\n", self.names.name(set)).as_bytes(), 0o644)?;
        }
        Ok(set)
    }

    /// The environment as the loader sees it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn env(&mut self) -> Result<Env, BootError> {
        self.env.read()
    }

    /// Changes the environment, as another tool would.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_env(&mut self, env: &Env) -> Result<(), BootError> {
        self.env.write(env)
    }

    /// Loses the environment: the loader is back to its defaults.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn reset_env(&mut self) -> Result<(), BootError> {
        self.env.erase()
    }
}

#[cfg(test)]
mod tests;
