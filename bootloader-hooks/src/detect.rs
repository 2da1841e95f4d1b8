//! Which bootloader a device has: signs gathered once, then one decision without any file.
//!
//! | sign | bootloader |
//! |---|---|
//! | the EFI variable `LoaderInfo` begins with `systemd-boot` | systemd-boot |
//! | a grubenv with GRUB's signature, and `LoaderInfo` absent or GRUB's own, or `BOOT_IMAGE=` on the command line | GRUB |
//! | a grubenv that lost its signature, `BOOT_IMAGE=` on the command line, and not started by systemd-boot | GRUB |
//! | `fw_env.config` is there, and `fw_printenv` is found and reads what it names | U-Boot |
//! | a boot program is configured | custom |
//!
//! Exactly one of them must fit: a wrong guess would write into an environment that no loader reads, and a device that
//! trusts it would never come back from a bad image. The simulated one is never guessed.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use otandem_core::boot::SetId;
use otandem_device::machine::cmdline_values;
use otandem_device::run::{End, Spec, Stop, run};

use crate::BootNames;

/// Where the EFI variables are.
pub const EFIVARS: &str = "/sys/firmware/efi/efivars";
const LOADER_INFO: &str = "LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Bytes of a variable or block that are looked at.
const MAX_READ: u64 = 4096;
const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

const GRUBENVS: [&str; 3] = ["boot/efi/grub/grubenv", "efi/grub/grubenv", "boot/grub/grubenv"];
const ENTRIES: [&str; 3] = ["efi/loader/entries", "boot/efi/loader/entries", "boot/loader/entries"];
const PROGRAMS: [&str; 6] = ["usr/bin", "usr/sbin", "bin", "sbin", "usr/local/bin", "usr/local/sbin"];
const FW_ENV_CONFIG: &str = "etc/fw_env.config";

/// A kind of bootloader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// U-Boot, by `fw_printenv` and `fw_setenv`.
    UBoot,
    /// GRUB, by its environment block.
    Grub,
    /// systemd-boot, by its entries.
    SystemdBoot,
    /// A program with RAUC's verbs.
    Custom,
    /// A directory that plays the bootloader: demonstrations and tests.
    Simulated,
}

impl Kind {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::UBoot, Self::Grub, Self::SystemdBoot, Self::Custom, Self::Simulated];

    /// As the configuration names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UBoot => "u-boot",
            Self::Grub => "grub",
            Self::SystemdBoot => "systemd-boot",
            Self::Custom => "custom",
            Self::Simulated => "simulated",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where the bootloaders keep what we need. `None`: in the usual place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The boot program.
    pub program: Option<PathBuf>,
    /// The directory of the simulated bootloader.
    pub directory: Option<PathBuf>,
    /// Tells U-Boot's tools where its environment lies.
    pub fw_env_config: Option<PathBuf>,
    /// Reads U-Boot's environment.
    pub fw_printenv: Option<PathBuf>,
    /// Writes it.
    pub fw_setenv: Option<PathBuf>,
    /// GRUB's environment block.
    pub grubenv: Option<PathBuf>,
    /// The directories with the boot entries of set A and set B.
    pub entries: [Option<PathBuf>; 2],
    /// Longest run of a program.
    pub timeout: Duration,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            program: None,
            directory: None,
            fw_env_config: None,
            fw_printenv: None,
            fw_setenv: None,
            grubenv: None,
            entries: [None, None],
            timeout: Duration::from_secs(30),
        }
    }
}

impl Places {
    /// GRUB's environment block; `root` is `/` but for tests.
    #[must_use]
    pub fn grubenv(&self, root: &Path) -> Option<PathBuf> {
        self.grubenv.clone().or_else(|| GRUBENVS.iter().map(|p| root.join(p)).find(|p| p.exists()))
    }

    /// The configuration of U-Boot's tools.
    #[must_use]
    pub fn fw_env_config(&self, root: &Path) -> PathBuf {
        self.fw_env_config.clone().unwrap_or_else(|| root.join(FW_ENV_CONFIG))
    }

    /// `fw_printenv`.
    #[must_use]
    pub fn fw_printenv(&self, root: &Path) -> Option<PathBuf> {
        self.fw_printenv.clone().or_else(|| program(root, "fw_printenv"))
    }

    /// `fw_setenv`.
    #[must_use]
    pub fn fw_setenv(&self, root: &Path) -> Option<PathBuf> {
        self.fw_setenv.clone().or_else(|| program(root, "fw_setenv"))
    }

    /// The directories with the entries of set A and set B: of the usual ones that which holds an entry of the set, else
    /// the first that is there.
    #[must_use]
    pub fn entries(&self, root: &Path, names: &BootNames) -> Option<[PathBuf; 2]> {
        let of = |set: SetId| {
            let configured = self.entries[usize::from(set == SetId::B)].clone();
            let usual = || ENTRIES.iter().map(|p| root.join(p)).filter(|p| p.is_dir());
            configured
                .or_else(|| usual().find(|dir| holds_entry(dir, names.name(set))))
                .or_else(|| usual().next())
        };
        Some([of(SetId::A)?, of(SetId::B)?])
    }
}

fn program(root: &Path, name: &str) -> Option<PathBuf> {
    PROGRAMS.iter().map(|dir| root.join(dir).join(name)).find(|p| p.is_file())
}

/// `otandem-NAME.conf`, or with a counter, `otandem-NAME+1-2.conf`.
fn holds_entry(dir: &Path, name: &str) -> bool {
    let stem = format!("otandem-{}", name.to_ascii_lowercase());
    let is_ours = |file: &str| {
        file.strip_prefix(&stem).is_some_and(|rest| rest.ends_with(".conf") && rest.starts_with(['.', '+']))
    };
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.flatten().any(|e| e.file_name().to_str().is_some_and(is_ours))
}

/// What was found of U-Boot's tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Printenv {
    /// There is no configuration for them.
    NoConfig,
    /// There is one, and no `fw_printenv`.
    NoTool,
    /// It does not read what it is told to read, for this reason.
    Silent(String),
    /// It reads the place of the environment, whatever is in there.
    Answers,
}

/// What was found on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signs {
    /// The EFI variable `LoaderInfo`: name and version of the loader that started the kernel.
    pub loader_info: Option<String>,
    /// `BOOT_IMAGE=` on the kernel's command line, as GRUB puts it there.
    pub boot_image: bool,
    /// A configured or usual grubenv is there; whether it has GRUB's signature.
    pub grubenv: Option<bool>,
    /// U-Boot's tools.
    pub printenv: Printenv,
    /// A boot program is configured.
    pub program: bool,
}

/// The bootloader is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DetectError {
    /// Nothing fits.
    #[error("no bootloader is found: {looked}; set bootloader.kind")]
    None {
        /// What was looked for, and what was found of it.
        looked: String,
    },
    /// More than one fits.
    #[error("more than one bootloader is found ({}); set bootloader.kind", names(kinds))]
    Several {
        /// Those that fit.
        kinds: Vec<Kind>,
    },
}

fn names(kinds: &[Kind]) -> String {
    kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(" and ")
}

/// The table of the module's documentation.
///
/// # Errors
/// None fits, or more than one.
pub fn decide(signs: &Signs) -> Result<Kind, DetectError> {
    let loader = signs.loader_info.as_deref();
    let systemd_boot = loader.is_some_and(|l| l.starts_with("systemd-boot"));
    let grub = match signs.grubenv {
        None => false,
        Some(true) => signs.boot_image || loader.is_none_or(|l| l.starts_with("GRUB")),
        Some(false) => signs.boot_image && !systemd_boot,
    };
    let fits = [
        (Kind::SystemdBoot, systemd_boot),
        (Kind::Grub, grub),
        (Kind::UBoot, signs.printenv == Printenv::Answers),
        (Kind::Custom, signs.program),
    ];
    let kinds: Vec<Kind> = fits.into_iter().filter_map(|(kind, fits)| fits.then_some(kind)).collect();
    match kinds[..] {
        [kind] => Ok(kind),
        [] => Err(DetectError::None { looked: looked(signs) }),
        _ => Err(DetectError::Several { kinds }),
    }
}

fn looked(signs: &Signs) -> String {
    let loader = signs.loader_info.as_deref().map_or_else(
        || "no EFI variable LoaderInfo".into(),
        |l| format!("LoaderInfo says {:?}", l.chars().take(40).collect::<String>()),
    );
    let grub = match (signs.grubenv, signs.boot_image) {
        (None, _) => "no grubenv",
        (Some(true), _) => "a grubenv, but another loader ran",
        (Some(false), _) => "a grubenv without GRUB's signature",
    };
    let uboot = match &signs.printenv {
        Printenv::NoConfig => "no fw_env.config".into(),
        Printenv::NoTool => "fw_env.config, but no fw_printenv".into(),
        Printenv::Silent(why) => format!("fw_printenv does not read the environment ({why})"),
        Printenv::Answers => "fw_printenv".into(),
    };
    format!("{loader}, {grub}, {uboot}, no bootloader.program")
}

/// Looks at this machine; `root` is `/` but for tests.
#[must_use]
pub fn signs(places: &Places, root: &Path, cmdline: &str) -> Signs {
    let efi = read(&root.join(EFIVARS.trim_start_matches('/')).join(LOADER_INFO));
    let grubenv = places.grubenv(root).filter(|p| p.is_file());
    Signs {
        loader_info: efi.and_then(|bytes| efi_text(&bytes)),
        boot_image: !cmdline_values(cmdline, "BOOT_IMAGE").is_empty(),
        grubenv: grubenv.map(|p| read(&p).is_some_and(|bytes| bytes.starts_with(SIGNATURE))),
        printenv: printenv(places, root),
        program: places.program.is_some(),
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_READ).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The text of an EFI variable as efivarfs shows it: four bytes of attributes, then UTF-16LE up to a NUL.
#[must_use]
pub fn efi_text(bytes: &[u8]) -> Option<String> {
    let units = bytes.get(4..)?.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let text: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16(&text).ok().filter(|text| !text.is_empty())
}

fn printenv(places: &Places, root: &Path) -> Printenv {
    let config = places.fw_env_config(root);
    if !config.is_file() {
        return Printenv::NoConfig;
    }
    let Some(tool) = places.fw_printenv(root) else { return Printenv::NoTool };
    let silent = |why: String| Printenv::Silent(why);
    let Ok(never) = Stop::new() else { return silent("no descriptor left to run it".into()) };
    let mut spec = Spec::new([tool.as_os_str(), "-c".as_ref(), config.as_os_str()]);
    spec.env.push(("LC_ALL".into(), "C".into()));
    spec.time_limit = Some(places.timeout);
    match run(spec, &never) {
        Ok(outcome) if outcome.success() => Printenv::Answers,
        // The place is readable and holds no environment: libubootenv fails then, and the device is one with U-Boot.
        Ok(outcome)
            if matches!(outcome.end, End::Exited(_)) && outcome.stderr_tail.contains("using default") =>
        {
            Printenv::Answers
        }
        Ok(outcome) => {
            let said = outcome.stderr_tail.lines().rfind(|l| !l.trim().is_empty()).unwrap_or_default();
            silent(format!("{:?}: {}", outcome.end, said.trim().chars().take(80).collect::<String>()))
        }
        Err(e) => silent(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn signs_of(loader: &str, boot_image: bool, grubenv: Option<bool>, uboot: bool, program: bool) -> Signs {
        Signs {
            loader_info: (!loader.is_empty()).then(|| loader.to_owned()),
            boot_image,
            grubenv,
            printenv: if uboot { Printenv::Answers } else { Printenv::NoConfig },
            program,
        }
    }

    #[test]
    fn exactly_one_bootloader_that_fits_is_taken() {
        let sd = "systemd-boot 252.39";
        for (loader, boot_image, grubenv, uboot, program, expected) in [
            (sd, false, None, false, false, Kind::SystemdBoot),
            (sd, false, Some(true), false, false, Kind::SystemdBoot),
            (sd, true, Some(false), false, false, Kind::SystemdBoot),
            ("", false, Some(true), false, false, Kind::Grub),
            ("", true, Some(true), false, false, Kind::Grub),
            ("GRUB 2.12", false, Some(true), false, false, Kind::Grub),
            ("", true, Some(false), false, false, Kind::Grub),
            ("", false, None, true, false, Kind::UBoot),
            ("", false, Some(false), true, false, Kind::UBoot),
            ("other", false, Some(true), true, false, Kind::UBoot),
            ("", true, None, false, true, Kind::Custom),
        ] {
            let signs = signs_of(loader, boot_image, grubenv, uboot, program);
            assert_eq!(decide(&signs), Ok(expected), "{signs:?}");
        }
    }

    #[test]
    fn several_that_fit_are_named_and_refused() {
        for (loader, boot_image, grubenv, uboot, program, named) in [
            ("systemd-boot 252", true, Some(true), false, false, "systemd-boot and grub"),
            ("systemd-boot 252", false, None, true, false, "systemd-boot and u-boot"),
            ("", true, Some(true), true, false, "grub and u-boot"),
            ("", false, None, true, true, "u-boot and custom"),
            ("systemd-boot 252", true, Some(true), true, true, "systemd-boot and grub and u-boot and custom"),
        ] {
            let signs = signs_of(loader, boot_image, grubenv, uboot, program);
            let why = decide(&signs).unwrap_err().to_string();
            assert!(why.contains(named) && why.contains("set bootloader.kind"), "{signs:?}: {why}");
        }
    }

    #[test]
    fn none_that_fits_says_what_was_looked_for() {
        for (signs, named) in [
            (signs_of("", true, None, false, false), "no grubenv, no fw_env.config"),
            (signs_of("", false, Some(false), false, false), "without GRUB's signature"),
            (signs_of("rEFInd", false, Some(true), false, false), "\"rEFInd\", a grubenv, but another"),
            (
                Signs { printenv: Printenv::NoTool, ..signs_of("", false, None, false, false) },
                "no fw_printenv",
            ),
            (
                Signs {
                    printenv: Printenv::Silent("gone".into()),
                    ..signs_of("", false, None, false, false)
                },
                "does not read the environment (gone)",
            ),
        ] {
            let why = decide(&signs).unwrap_err().to_string();
            assert!(why.contains(named) && why.contains("set bootloader.kind"), "{signs:?}: {why}");
        }
    }

    fn put(root: &Path, path: &str, bytes: &[u8]) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn found(root: &Path, cmdline: &str) -> Result<Kind, DetectError> {
        decide(&signs(&Places::default(), root, cmdline))
    }

    fn efi_variable(text: &str) -> Vec<u8> {
        [7, 0, 0, 0].into_iter().chain(text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes)).collect()
    }

    #[test]
    fn each_kind_is_found_by_what_lies_on_the_device() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert!(found(root, "quiet").is_err());
        let grubenv = put(root, "efi/grub/grubenv", &[SIGNATURE, &[b'#'; 999]].concat());
        assert_eq!(found(root, "quiet"), Ok(Kind::Grub));
        fs::write(&grubenv, b"").unwrap();
        assert_eq!(found(root, "BOOT_IMAGE=/boot/vmlinuz ro"), Ok(Kind::Grub), "its block was torn");
        let info = put(root, &format!("{EFIVARS}/{LOADER_INFO}")[1..], &efi_variable("systemd-boot 252.39"));
        assert_eq!(found(root, "ro"), Ok(Kind::SystemdBoot));
        fs::remove_file(info).unwrap();
        put(root, FW_ENV_CONFIG, b"/dev/vda2 0 0x4000\n");
        assert!(found(root, "ro").is_err());
        for (script, answers) in [
            ("echo BOOT_ORDER=A B", true),
            ("echo Cannot read environment, using default >&2; exit 255", true),
            ("echo Cannot access MTD device /dev/mtd1 >&2; exit 1", false),
            ("kill -9 $$", false),
        ] {
            let tool = put(root, "usr/bin/fw_printenv", format!("#!/bin/sh\n{script}\n").as_bytes());
            fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
            let found = found(root, "ro");
            assert_eq!(found == Ok(Kind::UBoot), answers, "{script}: {found:?}");
        }
    }

    #[test]
    fn entries_are_looked_for_where_the_set_has_one() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let (names, places) = (BootNames::default(), Places::default());
        assert_eq!(places.entries(root, &names), None);
        put(root, "boot/loader/entries/otandem-b+1.conf", b"");
        let boot = root.join("boot/loader/entries");
        assert_eq!(places.entries(root, &names), Some([boot.clone(), boot.clone()]));
        put(root, "efi/loader/entries/other.conf", b"");
        let efi = root.join("efi/loader/entries");
        assert_eq!(places.entries(root, &names), Some([efi.clone(), boot]));
        let configured = Places { entries: [None, Some("/x".into())], ..Places::default() };
        assert_eq!(configured.entries(root, &names), Some([efi, "/x".into()]));
    }

    proptest! {
        #[test]
        fn no_efi_variable_panics_and_text_comes_back(bytes in any::<Vec<u8>>(), text in "[^\0]{1,40}") {
            let _ = efi_text(&bytes);
            prop_assert_eq!(efi_text(&efi_variable(&text)), Some(text));
        }
    }
}
