//! U-Boot, by its variables `BOOT_ORDER` and `BOOT_x_LEFT`, with `fw_printenv` and `fw_setenv`.
//!
//! The scripts for U-Boot itself, and what a product has to set up, lie in `uboot/` beside this crate; [`model`] is what
//! they do, as a function. RAUC's own boot script, which counts at every boot, works as well.
//!
//! Every change is one call of `fw_setenv` with all three variables, made only if one differs, and read back.
//!
//! What the values mean ([`Env::state`]; *tries* is what [`BootControl::arm`] gives, 1 or 2):
//!
//! | `BOOT_x_LEFT` | in `BOOT_ORDER` | running | state | since |
//! |---|---|---|---|---|
//! | any | no | any | Bad | no loader boots it |
//! | 3 | yes | any | Good | confirmed |
//! | none, `""`, `9`, `0x2`, `x` | yes | any | Good | as new: three tries, which were not used |
//! | tries to 2 | yes | no | Untried | armed |
//! | tries to 2 | yes | yes | Good | a trial would have been counted down: the loader counts at every boot |
//! | below tries | yes | no | Tried | its trial, or what a loader that always counts left of it |
//! | below tries | yes | yes | Tried | its trial; or that loader counted several boots in which nothing was kept |
//!
//! No verdict depends on the state of the running set: whether it is confirmed is in the record, and `keep` fills its
//! counter after each start. A loader that always counts touches the set that it boots and no other, so what an armed set
//! and its fallback show is the same with both kinds. Names in the order that are neither set (a recovery system) are
//! kept, behind ours. An environment that cannot be read is what the boot script takes it for: order A B, both as new.

mod env_config;
pub mod model;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use env_config::{Copies, Place, parse as parse_env_config};
use otandem_core::boot::SetId;
use otandem_device::run::{End, Outcome, Spec, Stop, run};

use crate::booted::{Seen, Verdict, combine};
use crate::counters::{ByCounters, Env, FULL};
use crate::{BootError, Config, Tries, View};

/// Bytes of output that are looked at; three variables are far shorter.
const MAX_OUTPUT: usize = 16 * 1024;
/// Bytes of `fw_env.config` that are read.
const MAX_CONFIG: u64 = 64 * 1024;
/// Characters of a foreign text that are shown.
const QUOTED: usize = 200;
/// Foreign names in the order that are kept, and their longest.
const MAX_FOREIGN: (usize, usize) = (8, 32);
/// Where the programs may lie.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/sbin", "/bin"];

/// The programs that read and write U-Boot's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// `fw_printenv`.
    pub printenv: PathBuf,
    /// `fw_setenv`.
    pub setenv: PathBuf,
    /// The file that tells them where the environment lies.
    pub fw_env_config: PathBuf,
    /// How long one call may take.
    pub timeout: Duration,
}

impl Tools {
    /// The programs in the usual folders, and `/etc/fw_env.config`.
    ///
    /// # Errors
    /// One of the three is not there.
    pub fn find(timeout: Duration) -> Result<Self, BootError> {
        let program = |name: &str| {
            let mut paths = FOLDERS.iter().map(|folder| Path::new(folder).join(name));
            paths.find(|path| path.is_file()).ok_or_else(|| {
                let places = FOLDERS.join(", ");
                BootError::Config(format!(
                    "there is no {name} in {places}: install libubootenv or set its path"
                ))
            })
        };
        let config = PathBuf::from("/etc/fw_env.config");
        let tools = Self {
            printenv: program("fw_printenv")?,
            setenv: program("fw_setenv")?,
            fw_env_config: config,
            timeout,
        };
        tools.check()?;
        Ok(tools)
    }

    fn check(&self) -> Result<(), BootError> {
        for path in [&self.printenv, &self.setenv, &self.fw_env_config] {
            if !path.is_absolute() {
                return Err(BootError::Config(format!("{path:?} must be an absolute path")));
            }
            fs::metadata(path).map_err(|source| BootError::Io {
                action: "find",
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

/// How `fw_setenv -s` wants a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    /// libubootenv: `NAME=value`.
    Equals,
    /// U-Boot's own tools: `NAME value`; an older one takes `NAME=value` for a name.
    Blank,
}

/// The variables as they stand; empty ones count as missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Stored {
    order: Option<String>,
    left: [Option<String>; 2],
    /// The programs could not read the environment and used defaults of their own.
    lost: bool,
}

/// U-Boot.
#[derive(Debug)]
pub struct UBoot {
    tools: Tools,
    config: Config,
    seen: Seen,
    script: Option<Script>,
}

impl UBoot {
    /// A back end that uses these programs.
    ///
    /// # Errors
    /// One of them or their file is missing, or more tries are configured than `BOOT_x_LEFT` can tell from confirmed.
    pub fn open(tools: Tools, config: Config, seen: Seen) -> Result<Self, BootError> {
        if config.trial_tries.get() >= FULL {
            let why = format!("trial-boots = {FULL} means confirmed in BOOT_x_LEFT: use 1 or 2");
            return Err(BootError::Config(why));
        }
        tools.check()?;
        Ok(Self { tools, config, seen, script: None })
    }

    /// Where the environment lies, and in how many copies.
    ///
    /// # Errors
    /// `fw_env.config` cannot be read.
    pub fn copies(&self) -> Result<Copies, BootError> {
        let path = &self.tools.fw_env_config;
        let mut text = Vec::new();
        let read = fs::File::open(path).and_then(|file| file.take(MAX_CONFIG).read_to_end(&mut text));
        read.map_err(|source| BootError::Io { action: "read", path: path.clone(), source })?;
        Ok(parse_env_config(&String::from_utf8_lossy(&text)))
    }

    fn left_name(&self, set: SetId) -> String {
        format!("BOOT_{}_LEFT", self.config.names.name(set))
    }

    /// The three variables, the order first.
    fn names(&self) -> [String; 3] {
        ["BOOT_ORDER".into(), self.left_name(SetId::A), self.left_name(SetId::B)]
    }

    fn call(&self, program: &Path, args: &[&str], stdin: Option<String>) -> Result<Outcome, BootError> {
        let argv = std::iter::once(program.as_os_str()).chain(args.iter().map(AsRef::as_ref));
        let mut spec = Spec {
            time_limit: Some(self.tools.timeout),
            output_tail: MAX_OUTPUT,
            stdin: stdin.map(String::into_bytes),
            ..Spec::new(argv)
        };
        spec.env.push(("LC_ALL".into(), "C".into()));
        // Never stopped from outside: half a write is worse than a late one, and the time limit ends it.
        let never = Stop::new().map_err(|source| BootError::Io {
            action: "make a pipe for",
            path: program.into(),
            source,
        })?;
        run(spec, &never).map_err(|source| BootError::Program { verb: args.join(" "), source })
    }

    fn refused(program: &Path, args: &[&str], outcome: &Outcome, advice: &str) -> BootError {
        let said = if outcome.stderr_lines > 0 { &outcome.stderr_tail } else { &outcome.stdout_tail };
        BootError::Refused {
            program: program.into(),
            verb: args.join(" "),
            end: outcome.end,
            output: format!("{}{advice}", quoted(said)),
        }
    }

    fn config_path(&self) -> Result<&str, BootError> {
        let path = &self.tools.fw_env_config;
        path.to_str().ok_or_else(|| BootError::Config(format!("{path:?} is no UTF-8")))
    }

    fn read(&self) -> Result<Stored, BootError> {
        let names = self.names();
        let args = ["-c", self.config_path()?, &names[0], &names[1], &names[2]];
        let outcome = self.call(&self.tools.printenv, &args, None)?;
        if matches!(outcome.end, End::Exited(_)) && outcome.stderr_tail.contains("using default") {
            self.check_devices()?;
            return Ok(Stored { lost: true, ..Stored::default() });
        }
        // U-Boot's own fw_printenv prints what there is and fails for what is not.
        let missing = |line: &str| names.iter().any(|n| line.contains(&format!("\"{n}\" not defined")));
        let only_missing = matches!(outcome.end, End::Exited(_))
            && outcome.stderr_lines > 0
            && outcome.stderr_tail.lines().all(missing);
        if !outcome.success() && !only_missing {
            self.check_devices()?;
            return Err(Self::refused(&self.tools.printenv, &args, &outcome, ""));
        }
        let value = |name: &String| printed(&outcome.stdout_tail, name).map(str::to_owned);
        Ok(Stored { order: value(&names[0]), left: [value(&names[1]), value(&names[2])], lost: false })
    }

    /// The programs say the same of an environment that is empty and of one that is not there, or name no device.
    fn check_devices(&self) -> Result<(), BootError> {
        let places = match self.copies()? {
            Copies::Redundant(places) => places.to_vec(),
            Copies::Single(place) => vec![place],
            Copies::Unclear(_) => vec![],
        };
        // UBI volumes may be named in a way that only the tools understand.
        for Place { device, .. } in places.iter().filter(|p| !p.device.to_string_lossy().contains("ubi")) {
            fs::File::open(device).map_err(|source| BootError::Io {
                action: "open the boot environment on",
                path: device.clone(),
                source,
            })?;
        }
        Ok(())
    }

    fn meaning(&self, stored: &Stored) -> Env {
        let [a, b] = &stored.left;
        Env::from_values(stored.order.as_deref(), [a.as_deref(), b.as_deref()], &self.config.names)
    }

    /// What has a place in the order and is neither set, such as a recovery system.
    fn foreign<'a>(&self, stored: &'a Stored) -> Vec<&'a str> {
        let usable = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let mut foreign = Vec::new();
        for name in stored.order.as_deref().unwrap_or_default().split_ascii_whitespace() {
            let known = self.config.names.set(name).is_some() || foreign.contains(&name);
            if !known
                && name.len() <= MAX_FOREIGN.1
                && name.chars().all(usable)
                && foreign.len() < MAX_FOREIGN.0
            {
                foreign.push(name);
            }
        }
        foreign
    }

    /// The three variables with values for these meanings.
    fn values(&self, env: &Env, foreign: &[&str]) -> [(String, String); 3] {
        let order = env.order().iter().map(|set| self.config.names.name(*set));
        let order = order.chain(foreign.iter().copied()).collect::<Vec<_>>().join(" ");
        let [name, a, b] = self.names();
        [(name, order), (a, env.left(SetId::A).to_string()), (b, env.left(SetId::B).to_string())]
    }

    /// Which form of script `fw_setenv` understands.
    fn script(&mut self) -> Result<Script, BootError> {
        if let Some(script) = self.script {
            return Ok(script);
        }
        let outcome = self.call(&self.tools.setenv, &["-V"], None)?;
        let says_u_boot =
            [&outcome.stdout_tail, &outcome.stderr_tail].iter().any(|text| text.contains("U-Boot"));
        // Before it knew -V it was U-Boot's own, too.
        let own = says_u_boot || !outcome.success();
        let script = if own { Script::Blank } else { Script::Equals };
        self.script = Some(script);
        Ok(script)
    }

    fn expect(&self, values: &[(String, String); 3]) -> Result<(), BootError> {
        let found = self.read()?;
        let [a, b] = found.left;
        for ((name, wanted), found_value) in values.iter().zip([found.order, a, b]) {
            if found_value.as_ref() != Some(wanted) {
                let nothing = if found.lost { "lost" } else { "missing" };
                let found = found_value.map_or_else(|| nothing.into(), |value| quoted(&value));
                return Err(BootError::ReadBack { what: name.clone(), wanted: wanted.clone(), found });
            }
        }
        Ok(())
    }

    /// What `status` says of the medium.
    fn medium(&self, stored: &Stored) -> String {
        let place = |p: &Place| format!("{} at {:#x}", p.device.display(), p.offset);
        let copies = match self.copies() {
            Ok(Copies::Redundant([first, second])) => {
                format!("redundant: {}, {}", place(&first), place(&second))
            }
            Ok(Copies::Single(only)) => {
                format!("a single copy, which a power cut during a write loses: {}", place(&only))
            }
            Ok(Copies::Unclear(why)) => format!("not known whether redundant: {why}"),
            Err(e) => e.to_string(),
        };
        if stored.lost { format!("lost, nothing valid in it; {copies}") } else { copies }
    }
}

/// The value of a variable in what `fw_printenv` printed; `None` if it is not there or empty.
#[must_use]
pub fn printed<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    (!value.is_empty()).then_some(value)
}

/// Enough of a foreign text for a message.
fn quoted(text: &str) -> String {
    text.trim().chars().take(QUOTED).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl ByCounters for UBoot {
    fn booted(&self) -> Verdict {
        combine(&self.seen.claims(&self.config.names))
    }

    fn boot_id(&self) -> String {
        self.seen.boot_id.clone()
    }

    fn tries(&self) -> Tries {
        self.config.trial_tries
    }

    fn env(&mut self) -> Result<Env, BootError> {
        Ok(self.meaning(&self.read()?))
    }

    fn change(&mut self, change: impl FnOnce(&mut Env)) -> Result<(), BootError> {
        let stored = self.read()?;
        let before = self.meaning(&stored);
        let mut wanted = before.clone();
        change(&mut wanted);
        if wanted == before {
            return Ok(());
        }
        let values = self.values(&wanted, &self.foreign(&stored));
        let sign = match self.script()? {
            Script::Equals => '=',
            Script::Blank => ' ',
        };
        let script: String = values.iter().map(|(name, value)| format!("{name}{sign}{value}\n")).collect();
        let args = ["-c", self.config_path()?, "-s", "-"];
        let outcome = self.call(&self.tools.setenv, &args, Some(script))?;
        if !outcome.success() {
            let advice = match stored.lost {
                true => {
                    "; the environment is lost: boot once with the boot script, which saves a new one, or install /etc/u-boot-initial-env"
                }
                false => "",
            };
            return Err(Self::refused(&self.tools.setenv, &args, &outcome, advice));
        }
        self.expect(&values)
    }

    fn as_stored(&mut self) -> Result<View, BootError> {
        let stored = self.read()?;
        let env = self.meaning(&stored);
        let order = match &stored.order {
            None => "missing: the boot script takes both, A first".into(),
            Some(order) => match env.order().is_empty() {
                true => format!("{} (names neither set)", quoted(order)),
                false => quoted(order),
            },
        };
        let mut values = vec![("BOOT_ORDER".to_owned(), order)];
        for (set, value) in SetId::BOTH.into_iter().zip(&stored.left) {
            let value = match (value, env.stored(set)) {
                (None, _) => "missing: as new, three tries".into(),
                (Some(value), None) => format!("{} (makes no sense: as new, three tries)", quoted(value)),
                (Some(value), Some(_)) => value.clone(),
            };
            values.push((self.left_name(set), value));
        }
        if env.primary().is_none() {
            values.push((
                "next boot".into(),
                "nothing is left: the boot script starts anew with A, then B".into(),
            ));
        }
        values.push(("environment".into(), self.medium(&stored)));
        Ok(View { loader: "U-Boot".into(), values })
    }
}

#[cfg(test)]
mod tests;
