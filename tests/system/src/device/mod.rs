//! A device in a folder, and what can happen to one.

mod command;
mod folder;
pub(crate) mod supervise;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use otandem_core::boot::SetId;

pub use folder::{Folder, Script};
use supervise::Shared;
pub use supervise::{Boot, Gate, Heard};

use crate::error::file;
use crate::image::{Image, sha256};
use crate::{Error, binary, loader};

/// How long an agent may take to end when it is told to.
const STOP: Duration = Duration::from_secs(10);

/// How the device reaches the cloud.
#[derive(Debug, Clone)]
pub struct Cloud {
    /// Of the broker on localhost.
    pub port: u16,
    /// Thing name.
    pub thing: String,
    /// Root of broker and image server.
    pub ca: PathBuf,
    /// The device's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What a device is made of.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Names of the slots of a set; the first one holds the image that judges itself.
    pub slots: Vec<String>,
    /// Absent: an offline device.
    pub cloud: Option<Cloud>,
    /// Configuration beyond what the harness needs, in TOML: (table, key) to value.
    pub settings: BTreeMap<(String, String), String>,
    /// A command that becomes the agent, whose own command line is put behind it. Empty: nothing stands before it.
    pub wrapper: Vec<String>,
}

impl Default for Spec {
    fn default() -> Self {
        Self { slots: vec!["rootfs".into()], cloud: None, settings: BTreeMap::new(), wrapper: vec![] }
    }
}

impl Spec {
    /// Sets one key of the configuration; the value is TOML.
    #[must_use]
    pub fn with(mut self, table: &str, key: &str, value: &str) -> Self {
        self.settings.insert((table.to_owned(), key.to_owned()), value.to_owned());
        self
    }

    /// Starts the agent by this command.
    #[must_use]
    pub fn started_by(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }
}

/// Who plays the reboots that the agent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reboots {
    /// The device, at once.
    AtOnce,
    /// The test, by [`Device::reboot`] or [`Device::power_cut`].
    ByHand,
}

struct Inner {
    folder: Folder,
    shared: Arc<Shared>,
    spec: Mutex<Spec>,
    /// Every complete image that may be in a slot: digest, length, version.
    images: Mutex<Vec<(String, usize, String)>>,
    reboots: Mutex<Reboots>,
    /// Gates, held open so that what is written waits for the script.
    gates: Mutex<BTreeMap<String, File>>,
    /// One reboot, cut, start or stop at a time; `false` once the device is given up.
    power: Mutex<bool>,
}

/// A device. It ends with its value; its folder is the caller's.
pub struct Device {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// Makes a device in `folder`: set A holds `factory` in every slot, set B nothing. It is not switched on.
    ///
    /// # Errors
    /// [`Error`] when a file cannot be written.
    pub fn make(folder: &Path, spec: Spec, factory: &Image) -> Result<Self, Error> {
        let folder = Folder::make(folder)?;
        for slot in &spec.slots {
            for (set, bytes) in [(SetId::A, &factory.bytes[..]), (SetId::B, &[0; 4096][..])] {
                let path = folder.slot(set, slot);
                fs::write(&path, bytes).map_err(file("write", &path))?;
            }
        }
        folder.script(Script::Health, &folder.health_body(&spec.slots[0]))?;
        folder.write_config(&spec)?;
        let events = folder.events();
        let pipe = OpenOptions::new().read(true).write(true).open(&events).map_err(file("open", &events))?;
        let shared = Arc::new(Shared::new(folder.path("otandem.log")));
        let inner = Arc::new(Inner {
            folder,
            shared: Arc::clone(&shared),
            spec: Mutex::new(spec),
            images: Mutex::default(),
            reboots: Mutex::new(Reboots::AtOnce),
            gates: Mutex::default(),
            power: Mutex::new(true),
        });
        let hearing = supervise::hear_scripts(Arc::clone(&shared), pipe);
        let manager = inner.folder.manager();
        let socket = UnixDatagram::bind(&manager).map_err(file("bind", &manager))?;
        let noticing = supervise::hear_notices(shared, socket);
        let rebooting = Arc::clone(&inner);
        let rebooting = std::thread::spawn(move || rebooting.play_reboots());
        let device = Self { inner, threads: vec![hearing, noticing, rebooting] };
        device.know(factory);
        Ok(device)
    }

    /// Tells the device that this is a complete image, so that booting it is right.
    pub fn know(&self, image: &Image) {
        let entry = (image.sha256.clone(), image.bytes.len(), image.version.clone());
        locked(&self.inner.images).push(entry);
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.inner.folder
    }

    /// Changes the configuration, for the next start.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn configure(&self, table: &str, key: &str, value: &str) -> Result<(), Error> {
        let mut spec = locked(&self.inner.spec);
        *spec = spec.clone().with(table, key, value);
        self.inner.folder.write_config(&spec)
    }

    /// Installs a script; see [`Folder::script`].
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn script(&self, script: Script, body: &str) -> Result<(), Error> {
        self.inner.folder.script(script, body)
    }

    /// The check that lets an image judge itself, after the given lines of shell.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn health_after(&self, lines: &str) -> Result<(), Error> {
        let body = self.inner.folder.health_body(&locked(&self.inner.spec).slots[0]);
        self.script(Script::Health, &format!("{lines}\n{body}"))
    }

    /// Switches the device on.
    ///
    /// # Errors
    /// [`Error::Wrong`] when nothing boots or what boots is not complete; [`Error::Program`].
    pub fn power_on(&self) -> Result<SetId, Error> {
        let _power = locked(&self.inner.power);
        self.inner.boot()
    }

    /// `kill -9` of everything, without a warning: the power is gone.
    ///
    /// # Errors
    /// [`Error::NotSeen`] when the process cannot be killed.
    pub fn power_off(&self) -> Result<(), Error> {
        let _power = locked(&self.inner.power);
        supervise::cut(&self.inner.shared)
    }

    /// The end: everything is killed, and nothing starts any more.
    pub fn give_up(&self) {
        *locked(&self.inner.power) = false;
        // What cannot be killed now goes with its folder.
        let _ = supervise::cut(&self.inner.shared);
    }

    /// The power is gone, and comes back.
    ///
    /// # Errors
    /// As [`Device::power_on`].
    pub fn power_cut(&self) -> Result<SetId, Error> {
        let _power = locked(&self.inner.power);
        supervise::cut(&self.inner.shared)?;
        self.inner.boot()
    }

    /// An orderly reboot, whoever asked for it.
    ///
    /// # Errors
    /// As [`Device::power_on`].
    pub fn reboot(&self) -> Result<SetId, Error> {
        self.inner.reboot()
    }

    /// `kill -9` of the agent and what waits for it; the device goes on, and after `meanwhile` so does the agent.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::NotSeen`].
    pub fn kill_agent(&self, meanwhile: impl FnOnce()) -> Result<(), Error> {
        let _power = locked(&self.inner.power);
        supervise::cut(&self.inner.shared)?;
        meanwhile();
        self.inner.start()
    }

    /// Ends the agent in order; the device goes on without it.
    ///
    /// # Errors
    /// [`Error::NotSeen`].
    pub fn stop_agent(&self) -> Result<(), Error> {
        let _power = locked(&self.inner.power);
        supervise::stop(&self.inner.shared, STOP)
    }

    /// Starts the agent of a device that is on.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn start_agent(&self) -> Result<(), Error> {
        let _power = locked(&self.inner.power);
        self.inner.start()
    }

    /// Who plays reboots from now on.
    pub fn reboots(&self, who: Reboots) {
        *locked(&self.inner.reboots) = who;
        self.inner.shared.with(|_| ());
    }

    /// Waits until `condition` finds something in what was heard.
    ///
    /// # Errors
    /// [`Error::NotSeen`] with the end of the log.
    pub fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        condition: impl FnMut(&Heard) -> Option<T>,
    ) -> Result<T, Error> {
        self.inner.shared.wait(what, limit, condition)
    }

    /// Looks at what was heard.
    pub fn look<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        self.inner.shared.look(look)
    }

    /// Waits until the agent that runs has told that it is ready: the running set is settled.
    ///
    /// # Errors
    /// [`Error::NotSeen`].
    pub fn wait_ready(&self, limit: Duration) -> Result<(), Error> {
        self.wait("a ready agent", limit, |heard| heard.ready.then_some(()))
    }

    /// Waits until a script stands at this gate.
    ///
    /// # Errors
    /// [`Error::NotSeen`].
    pub fn wait_gate(&self, name: &str, limit: Duration) -> Result<(), Error> {
        let there = |heard: &Heard| heard.gates.iter().any(|gate| gate.name == name).then_some(());
        self.wait(&format!("a script at gate {name}"), limit, there)
    }

    /// Makes a gate: scripts that come to it wait. Also empties one that was made.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn make_gate(&self, name: &str) -> Result<(), Error> {
        let path = self.inner.folder.gate(name);
        folder::make_fifo(&path)?;
        let pipe = OpenOptions::new().read(true).write(true).open(&path).map_err(file("open", &path))?;
        locked(&self.inner.gates).insert(name.to_owned(), pipe);
        Ok(())
    }

    /// Lets the script at this gate go on.
    ///
    /// # Errors
    /// [`Error::Wrong`] if none is there, [`Error::File`].
    pub fn open_gate(&self, name: &str) -> Result<(), Error> {
        let path = self.inner.folder.gate(name);
        let taken = self.inner.shared.with(|heard| {
            let at = heard.gates.iter().position(|gate| gate.name == name)?;
            Some(heard.gates.remove(at))
        });
        match (taken, locked(&self.inner.gates).get_mut(name)) {
            (Some(_), Some(pipe)) => pipe.write_all(b"go\n").map_err(file("write", &path)),
            _ => Err(Error::Wrong(format!("no script stands at gate {name}"))),
        }
    }

    /// An orderly reboot after which nobody starts the agent.
    ///
    /// # Errors
    /// As [`Device::power_on`].
    pub fn reboot_without_agent(&self) -> Result<SetId, Error> {
        let _power = locked(&self.inner.power);
        supervise::stop(&self.inner.shared, STOP)?;
        supervise::cut(&self.inner.shared)?;
        self.inner.load()
    }

    /// What runs.
    #[must_use]
    pub fn booted(&self) -> Option<SetId> {
        self.look(|heard| heard.boots.last().and_then(|boot| boot.set))
    }

    /// SHA-256 of a slot's file, in hex; of nothing if there is no file.
    #[must_use]
    pub fn digest(&self, set: SetId, slot: &str) -> String {
        sha256(&fs::read(self.inner.folder.slot(set, slot)).unwrap_or_default())
    }

    /// The loader's variables, as text.
    ///
    /// # Errors
    /// [`Error::Loader`].
    pub fn env(&self) -> Result<String, Error> {
        loader::env_text(&self.inner.folder.path("boot"))
    }

    /// Loses the loader's variables.
    ///
    /// # Errors
    /// [`Error::Loader`].
    pub fn reset_env(&self) -> Result<(), Error> {
        loader::reset_env(&self.inner.folder.path("boot"))
    }

    /// The end of the agent's log, and where all of it is.
    #[must_use]
    pub fn tail(&self) -> String {
        format!("{}:\n{}", self.inner.shared.log().display(), self.inner.shared.tail())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.give_up();
        let events = self.inner.folder.events();
        let told = OpenOptions::new().read(true).write(true).open(&events);
        let told = told.and_then(|mut pipe| pipe.write_all(b"quit\n"));
        self.inner.shared.with(|heard| heard.reboots_due = u32::MAX);
        let manager = self.inner.folder.manager();
        let noticed = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"quit", &manager));
        if told.is_ok() && noticed.is_ok() {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
        end_scripts_of(&self.inner.folder.path(""));
    }
}

impl Inner {
    /// The loader's part, then the agent's start.
    fn boot(&self) -> Result<SetId, Error> {
        let set = self.load()?;
        self.start()?;
        Ok(set)
    }

    /// The loader's part: what boots, which must be complete.
    fn load(&self) -> Result<SetId, Error> {
        let slots = locked(&self.spec).slots.clone();
        let of_set = |set| slots.iter().map(|slot| self.folder.slot(set, slot)).collect::<Vec<_>>();
        // /run does not outlive a boot.
        let run = self.folder.path("run");
        let _ = fs::remove_dir_all(&run);
        fs::create_dir_all(&run).map_err(file("create", &run))?;
        let set = loader::boot(&self.folder.path("boot"), of_set)?;
        let images: Vec<_> =
            set.map(of_set).unwrap_or_default().iter().map(|slot| self.recognise(slot)).collect();
        let boot = Boot { set, images };
        self.shared.with(|heard| heard.boots.push(boot.clone()));
        let Some(set) = set else { return Err(Error::Wrong("nothing boots any more".into())) };
        if boot.images.contains(&None) {
            return Err(Error::Wrong(format!("set {set} was booted and is not complete: {boot:?}")));
        }
        Ok(set)
    }

    fn recognise(&self, slot: &Path) -> Option<String> {
        let bytes = fs::read(slot).ok()?;
        let images = locked(&self.images);
        // A slot may be larger than its image.
        let mut lengths: Vec<usize> = images.iter().map(|(_, length, _)| *length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths.into_iter().filter(|length| *length <= bytes.len()).find_map(|length| {
            let digest = sha256(&bytes[..length]);
            images
                .iter()
                .find(|(d, l, _)| *l == length && *d == digest)
                .map(|(_, _, version)| version.clone())
        })
    }

    /// The caller holds the power.
    fn start(&self) -> Result<(), Error> {
        let agent = binary::otandem()?;
        let wrapper = locked(&self.spec).wrapper.clone();
        let mut command = match wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(agent);
                command
            }
            None => Command::new(agent),
        };
        command.arg("--config").arg(self.folder.config()).arg("run");
        // Not what this process happens to run in.
        for name in ["WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM"] {
            command.env_remove(name);
        }
        command.env("NOTIFY_SOCKET", self.folder.manager());
        supervise::start(&self.shared, command)
    }

    fn reboot(&self) -> Result<SetId, Error> {
        let power = locked(&self.power);
        if !*power {
            return Err(Error::Wrong("the device is given up".into()));
        }
        supervise::stop(&self.shared, STOP)?;
        // What a script was doing ends with the machine.
        supervise::cut(&self.shared)?;
        self.boot()
    }

    /// Plays reboots until the device is given up.
    fn play_reboots(&self) {
        loop {
            let due =
                self.shared.wait("a reboot", Duration::from_secs(3600), |heard| match heard.reboots_due {
                    u32::MAX => Some(false),
                    0 => None,
                    _ => (*locked(&self.reboots) == Reboots::AtOnce).then_some(true),
                });
            match due {
                Ok(true) => {
                    if let Err(error) = self.reboot() {
                        self.shared.with(|heard| heard.crashes.push(format!("reboot: {error}")));
                    }
                }
                Ok(false) => break,
                Err(_) => {}
            }
        }
    }
}

/// Ends scripts of this device that outlived an agent that was killed, and wait for what nobody will tell them.
fn end_scripts_of(folder: &Path) {
    let of_this =
        |cmdline: &[u8]| cmdline.split(|b| *b == 0).any(|arg| arg.starts_with(folder.as_os_str().as_bytes()));
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if std::fs::read(process.path().join("cmdline")).is_ok_and(|cmdline| of_this(&cmdline)) {
            let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}
