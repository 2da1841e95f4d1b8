//! What lies in a device's folder: slots, scripts, configuration.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use otandem_core::boot::SetId;

use super::Spec;
use crate::Error;
use crate::error::file;
use crate::image::MARK;

/// The folder of one device.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
}

/// A script that the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// In `health.d`.
    Health,
    /// A hook, by its name.
    Hook(&'static str),
    /// A handler of general jobs, by its name.
    Handler(&'static str),
}

impl Folder {
    /// Makes the folder and everything in it that does not change.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn make(root: &Path) -> Result<Self, Error> {
        let root = root.canonicalize().map_err(file("open", root))?;
        for name in ["slots", "state", "run", "boot", "health.d", "hooks.d", "gates", "certs", "handlers"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(file("create", &path))?;
        }
        let folder = Self { root };
        make_fifo(&folder.events())?;
        folder.write_script(&folder.path("reboot"), "tell reboot\n")?;
        Ok(folder)
    }

    /// A path in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where scripts tell what they do.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.path("events")
    }

    /// Socket of the service manager.
    #[must_use]
    pub fn manager(&self) -> PathBuf {
        self.path("manager.sock")
    }

    /// What a script waits on until it is let go on.
    #[must_use]
    pub fn gate(&self, name: &str) -> PathBuf {
        self.root.join("gates").join(name)
    }

    /// The file of a slot.
    #[must_use]
    pub fn slot(&self, set: SetId, slot: &str) -> PathBuf {
        self.root.join("slots").join(format!("{slot}-{}.img", set.name().to_lowercase()))
    }

    /// The agent's configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path("otandem.toml")
    }

    /// Installs a script. Its body may call `tell WORDS` and `gate NAME`, which tells that it came there and waits.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn script(&self, script: Script, body: &str) -> Result<(), Error> {
        self.write_script(&self.script_path(script), body)
    }

    /// Takes a script away.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove_script(&self, script: Script) -> Result<(), Error> {
        let path = self.script_path(script);
        fs::remove_file(&path).map_err(file("remove", &path))
    }

    fn script_path(&self, script: Script) -> PathBuf {
        match script {
            Script::Health => self.path("health.d/10-image"),
            Script::Hook(name) => self.path("hooks.d").join(name),
            Script::Handler(name) => self.path("handlers").join(name),
        }
    }

    fn write_script(&self, path: &Path, body: &str) -> Result<(), Error> {
        let (events, gates) = (self.events(), self.path("gates"));
        let text = format!(
            "#!/bin/sh\n\
             PATH=$PATH:/usr/bin:/bin\n\
             tell() {{ echo \"$*\" > '{}'; }}\n\
             gate() {{ tell gate \"$1\" $$; read -r answer < '{}/'\"$1\"; }}\n\
             {body}",
            events.display(),
            gates.display()
        );
        // Replaced by renaming: a script that is being run must not change under the shell.
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, text).map_err(file("write", &temporary))?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))
            .map_err(file("change", &temporary))?;
        fs::rename(&temporary, path).map_err(file("rename", &temporary))
    }

    /// The check that lets an image judge itself: it reads the mark in the slot that booted.
    #[must_use]
    pub fn health_body(&self, slot: &str) -> String {
        let name = |set| self.slot(set, slot);
        format!(
            "set=$(cat '{boot}/booted')\n\
             case $set in A) slot='{a}' ;; *) slot='{b}' ;; esac\n\
             mark=$(LC_ALL=C grep -a -o '{MARK}[0-9]*' \"$slot\" | head -n 1)\n\
             mark=${{mark#{MARK}}}\n\
             tell health \"$mark\"\n\
             test \"$mark\" = 0 || echo \"the image in set $set says that it is not well\"\n\
             exit \"$mark\"\n",
            boot = self.path("boot").display(),
            a = name(SetId::A).display(),
            b = name(SetId::B).display(),
        )
    }

    /// Writes the configuration.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_config(&self, spec: &Spec) -> Result<(), Error> {
        let text = |path: PathBuf| format!("{:?}", path.display().to_string());
        let mut tables: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut set = |table: &str, key: &str, value: String| {
            tables.entry(table.to_owned()).or_default().insert(key.to_owned(), value);
        };
        for id in SetId::BOTH {
            for slot in &spec.slots {
                set(&format!("slots.{id}"), slot, text(self.slot(id, slot)));
            }
        }
        set("bootloader", "kind", "\"simulated\"".into());
        set("bootloader", "directory", text(self.path("boot")));
        set("device", "compatible", "\"otandem-test\"".into());
        set("update", "state-dir", text(self.path("state")));
        // The folder may well be on the disk of `/`, and both simulated sets do share it.
        set("update", "state-shared", "false".into());
        set("update", "run-dir", text(self.path("run")));
        set("update", "health-dir", text(self.path("health.d")));
        set("update", "hook-dir", text(self.path("hooks.d")));
        set("update", "reboot-command", format!("[{}]", text(self.path("reboot"))));
        set("control", "socket", text(self.path("run/control.sock")));
        set("jobs", "handler-directory", text(self.path("handlers")));
        set("log", "target", "\"stderr\"".into());
        if let Some(cloud) = &spec.cloud {
            set("cloud", "endpoint", "\"localhost\"".into());
            set("cloud", "port", cloud.port.to_string());
            set("cloud", "thing-name", format!("{:?}", cloud.thing));
            set("cloud", "ca", text(cloud.ca.clone()));
            set("cloud", "cert", text(cloud.certificate.clone()));
            set("cloud", "key", text(cloud.key.clone()));
            set("update", "ca", text(cloud.ca.clone()));
        }
        for ((table, key), value) in &spec.settings {
            set(table, key, value.clone());
        }
        let mut toml = String::new();
        for (table, keys) in &tables {
            toml += &format!("[{table}]\n");
            for (key, value) in keys {
                toml += &format!("{key} = {value}\n");
            }
        }
        let path = self.config();
        fs::write(&path, toml).map_err(file("write", &path))
    }
}

/// Makes a named pipe, in place of one that a dead script may still have open.
pub(super) fn make_fifo(path: &Path) -> Result<(), Error> {
    let _ = fs::remove_file(path);
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).map_err(|e| file("create", path)(e.into()))
}
