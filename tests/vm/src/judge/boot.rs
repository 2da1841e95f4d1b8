//! What the loader of a chain reads and writes, as bytes; what it does with them at a reset; and our back end, the real
//! one, working on a copy of them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use otandem_boot::booted::Seen;
use otandem_boot::systemd_boot::model::{EntryFile, Partition};
use otandem_boot::{BootControl, Config, grub, systemd_boot, uboot};
use otandem_core::boot::{Facts, SetId};
use tempfile::TempDir;

/// Offset and length of each copy of U-Boot's environment, as the virtual device has them.
const COPIES: [(u64, usize); 2] = [(0, 0x4000), (0x8000, 0x4000)];
/// How far they reach.
pub(super) const AREA: usize = 0xC000;
/// One call of `fw_setenv`.
const PROGRAM: Duration = Duration::from_secs(60);

/// The memory of a loader.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Memory {
    /// Both copies of the environment.
    UBoot(Vec<u8>),
    /// The block; empty: there is no such file.
    Grub(Vec<u8>),
    /// The entries.
    SystemdBoot(Entries),
}

/// What systemd-boot reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entries {
    /// Both sets have theirs on the ESP.
    pub shared: bool,
    /// Volume (0: ESP), name and content of each file in `loader/entries`, in order.
    pub files: Vec<(usize, String, Vec<u8>)>,
    /// `loader.conf`
    pub conf: String,
}

/// What our back end is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Only to look.
    Facts,
    /// As [`BootControl::arm`].
    Arm(SetId),
    /// As [`BootControl::keep`].
    Keep(SetId),
    /// As [`BootControl::disarm`].
    Disarm(SetId),
    /// As [`BootControl::confirm`].
    Confirm(SetId),
    /// As [`BootControl::mark_bad`].
    MarkBad(SetId),
}

impl Memory {
    /// One reset: what runs then, if anything; the loader's own writes are made.
    pub fn reset(&mut self, loadable: impl Fn(SetId) -> bool) -> Option<SetId> {
        match self {
            Self::UBoot(area) => {
                let decision = uboot::model::decide(area, &COPIES, loadable);
                for (offset, copy) in decision.writes.iter().flatten() {
                    let at = usize::try_from(*offset).unwrap_or(usize::MAX);
                    if let Some(place) = area.get_mut(at..at.saturating_add(copy.len())) {
                        place.copy_from_slice(copy);
                    }
                }
                decision.booted
            }
            Self::Grub(block) => {
                let decision = grub::model::decide(block, loadable);
                if let Some(written) = decision.writes {
                    *block = written;
                }
                decision.booted
            }
            Self::SystemdBoot(entries) => entries.reset(loadable),
        }
    }
}

impl Entries {
    fn reset(&mut self, loadable: impl Fn(SetId) -> bool) -> Option<SetId> {
        const VOLUMES: [Partition; 2] = [Partition::Esp, Partition::Xbootldr];
        let file = |(volume, name, content): &(usize, String, Vec<u8>)| EntryFile {
            partition: VOLUMES[*volume],
            name: name.clone(),
            content: content.clone(),
        };
        let files: Vec<EntryFile> = self.files.iter().map(file).collect();
        let decision = systemd_boot::model::decide(&files, &self.conf, None, loadable);
        for rename in decision.renames {
            let of = |(volume, name, _): &&mut (usize, String, Vec<u8>)| {
                VOLUMES[*volume] == rename.partition && *name == rename.from
            };
            if let Some((_, name, _)) = self.files.iter_mut().find(of) {
                name.clone_from(&rename.to);
            }
        }
        decision.booted
    }

    /// Puts the files into a folder as they lie on the device. Names that no file system gives out are left out.
    fn unfold(&self, folder: &Path) -> io::Result<()> {
        for volume in 0..2 {
            let entries = self.folder(folder, volume).join("loader/entries");
            fs::create_dir_all(&entries)?;
            if volume == 0 {
                fs::write(self.folder(folder, 0).join("loader/loader.conf"), &self.conf)?;
            }
            for (_, name, content) in self.files.iter().filter(|(at, ..)| *at == volume) {
                if !name.contains(['/', '\0']) {
                    fs::write(entries.join(name), content)?;
                }
            }
        }
        Ok(())
    }

    fn fold(&mut self, folder: &Path) -> io::Result<()> {
        let mut files = Vec::new();
        for volume in 0..2 {
            if volume == 1 && self.shared {
                break;
            }
            let mut names = Vec::new();
            for entry in fs::read_dir(self.folder(folder, volume).join("loader/entries"))? {
                names.push(entry?.path());
            }
            names.sort();
            for path in names {
                let name =
                    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                files.push((volume, name, fs::read(&path)?));
            }
        }
        self.files = files;
        Ok(())
    }

    fn folder(&self, folder: &Path, volume: usize) -> PathBuf {
        folder.join(if volume == 0 || self.shared { "esp" } else { "xbootldr" })
    }
}

/// What it is asked, of which memory, in which set.
type Question = (Memory, SetId, Verb);
/// What the memory is afterwards, and what it said.
type Answer = (Memory, Result<Facts, String>);

/// Our back end on copies of the memory. What it was asked once it need not be asked again.
#[derive(Debug)]
pub struct BackEnd {
    folder: TempDir,
    seen: HashMap<Question, Answer>,
}

impl BackEnd {
    /// A back end that was asked nothing yet.
    ///
    /// # Errors
    /// There is no room for the copies.
    pub fn new() -> io::Result<Self> {
        // In memory where there is such a place: it syncs after every change.
        let shm = Path::new("/dev/shm");
        let folder = if shm.is_dir() { tempfile::tempdir_in(shm)? } else { tempfile::tempdir()? };
        Ok(Self { folder, seen: HashMap::new() })
    }

    /// Asks it while `running` runs. The facts are those after the verb; their boot id is empty.
    ///
    /// # Errors
    /// What it says.
    pub fn ask(&mut self, memory: &mut Memory, running: SetId, verb: Verb) -> Result<Facts, String> {
        let question = (memory.clone(), running, verb);
        if !self.seen.contains_key(&question) {
            let mut after = memory.clone();
            let answer = self.work(&mut after, running, verb);
            self.seen.insert(question.clone(), (after, answer));
        }
        let (after, answer) = &self.seen[&question];
        memory.clone_from(after);
        answer.clone()
    }

    fn work(&self, memory: &mut Memory, running: SetId, verb: Verb) -> Result<Facts, String> {
        let folder = self.folder.path().join("copy");
        let text = |e: io::Error| format!("a copy of the loader's memory: {e}");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(text)?;
        let seen = Seen { cmdline: format!("otandem.set={running}"), ..Seen::default() };
        let mut control = open(memory, &folder, seen)?;
        let done = match verb {
            Verb::Facts => Ok(()),
            Verb::Arm(set) => control.arm(set),
            Verb::Keep(set) => control.keep(set),
            Verb::Disarm(set) => control.disarm(set),
            Verb::Confirm(set) => control.confirm(set),
            Verb::MarkBad(set) => control.mark_bad(set),
        };
        let facts = control.facts();
        match memory {
            Memory::UBoot(area) => *area = fs::read(folder.join("env")).map_err(text)?,
            Memory::Grub(block) => *block = fs::read(folder.join("grubenv")).map_err(text)?,
            Memory::SystemdBoot(entries) => entries.fold(&folder).map_err(text)?,
        }
        done.and(facts).map_err(|e| e.to_string())
    }
}

/// The back end on a memory that is put into a folder.
fn open(memory: &Memory, folder: &Path, seen: Seen) -> Result<Box<dyn BootControl>, String> {
    let config = Config::default();
    let text = |e: io::Error| format!("a copy of the loader's memory: {e}");
    let opened = match memory {
        Memory::UBoot(area) => {
            let (env, list) = (folder.join("env"), folder.join("fw_env.config"));
            fs::write(&env, area).map_err(text)?;
            let lines = COPIES.map(|(at, len)| format!("{} {at:#x} {len:#x}\n", env.display()));
            fs::write(&list, lines.concat()).map_err(text)?;
            tools(&list)
                .and_then(|tools| uboot::UBoot::open(tools, config, seen))
                .map(|control| Box::new(control) as Box<dyn BootControl>)
        }
        Memory::Grub(block) => {
            let path = folder.join("grubenv");
            fs::write(&path, block).map_err(text)?;
            grub::Grub::open(path, config, seen).map(|control| Box::new(control) as _)
        }
        Memory::SystemdBoot(entries) => {
            entries.unfold(folder).map_err(text)?;
            let place = |volume| entries.folder(folder, volume).join("loader/entries");
            let setup =
                systemd_boot::Setup { entries: [place(0), place(1)], efivars: folder.join("no-efivars") };
            systemd_boot::SystemdBoot::open(setup, config, seen).map(|control| Box::new(control) as _)
        }
    };
    opened.map_err(|e| e.to_string())
}

/// The programs of this machine, which need not have an environment of its own.
fn tools(list: &Path) -> Result<uboot::Tools, otandem_boot::BootError> {
    let program = |name: &str| {
        let folders = ["/usr/bin", "/usr/sbin", "/sbin", "/bin"];
        let mut paths = folders.iter().map(|folder| Path::new(folder).join(name));
        let found = paths.find(|path| path.is_file());
        found.ok_or_else(|| otandem_boot::BootError::Config(format!("{name} is not installed")))
    };
    Ok(uboot::Tools {
        printenv: program("fw_printenv")?,
        setenv: program("fw_setenv")?,
        fw_env_config: list.into(),
        timeout: PROGRAM,
    })
}
