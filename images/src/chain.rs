//! The boot chains: what each of them needs on the disk beside the slots.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::ImageError;
use crate::error::file;
use crate::fat::Width;
use crate::files::uuid;
use crate::tools::{self, Need};
use crate::tree::Tree;

/// How a virtual device gets from its firmware to a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chain {
    /// Debian's U-Boot for QEMU in place of a BIOS, a boot script on a FAT, the environment twice on a raw partition.
    UBoot,
    /// UEFI and GRUB on the EFI system partition.
    Grub,
    /// UEFI and systemd-boot; set A's kernel on the EFI system partition, set B's on an extended boot partition.
    SystemdBoot,
    /// The same, but both sets' kernels on the EFI system partition: one torn write to it may reach both.
    SystemdBootShared,
}

const MIB: u64 = 1 << 20;
/// Partition type "EFI system".
const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
/// Partition type "extended boot loader".
const XBOOTLDR: &str = "BC13C2FF-59E6-4262-A352-B275FD6F7172";
/// Partition type "basic data".
const BASIC: &str = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7";
/// Partition type "Linux file system".
pub(crate) const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// Bytes of one copy of U-Boot's environment.
const ENV_SIZE: u64 = 0x4000;
/// Where the second copy begins.
const ENV_SECOND: usize = 0x8000;

/// A partition that a chain has before the slots.
pub(crate) struct BootPart {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) size: u64,
    pub(crate) content: Content,
}

/// What such a partition holds.
pub(crate) enum Content {
    Fat(Width, &'static str, Tree),
    Raw(Vec<u8>),
}

/// Bytes of the preallocated files of set's kernel and initial RAM file system, where they are file slots: more than
/// today's, since they are overwritten in place.
const KERNEL_SLOT: (u64, u64) = (16 * MIB, 4 * MIB);
/// What `grub.cfg` and `early.cfg` use of GRUB; their README has the same list.
const GRUB_MODULES: &str = "part_gpt fat ext2 normal linux loadenv test search search_fs_file regexp eval testspeed echo \
                            reboot halt sleep serial terminal configfile";
/// Bytes of an entry file, which are changed in one write.
const ENTRY: usize = 512;

/// What the boot partitions of a device with systemd-boot need of a set.
pub(crate) struct Kernels<'a> {
    pub(crate) kernel: &'a [u8],
    pub(crate) initrd: &'a [u8],
}

impl Chain {
    /// Every chain.
    pub const ALL: [Self; 4] = [Self::UBoot, Self::Grub, Self::SystemdBoot, Self::SystemdBootShared];

    /// As it is called on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SystemdBootShared => "systemd-boot-shared",
            _ => self.kind(),
        }
    }

    /// The `bootloader.kind` of the agent's configuration.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::UBoot => "u-boot",
            Self::Grub => "grub",
            Self::SystemdBoot | Self::SystemdBootShared => "systemd-boot",
        }
    }

    /// Where the volume is mounted that holds kernel and entry of set A, and of set B.
    const fn boot_volumes(self) -> [&'static str; 2] {
        match self {
            Self::SystemdBoot => ["/efi", "/xbootldr"],
            _ => ["/efi", "/efi"],
        }
    }

    /// Whether the firmware is UEFI.
    #[must_use]
    pub const fn is_efi(self) -> bool {
        !matches!(self, Self::UBoot)
    }

    /// Whether kernel and initrd lie inside the root file system, and not in file slots of their own.
    #[must_use]
    pub const fn kernel_in_root(self) -> bool {
        !matches!(self, Self::SystemdBoot | Self::SystemdBootShared)
    }

    /// What must be on the building machine for disks and images of this chain.
    pub(crate) const fn needs(self) -> &'static [Need] {
        match self {
            Self::UBoot => &[
                ("mkimage", "u-boot-tools"),
                ("mkenvimage", "u-boot-tools"),
                ("fw_setenv", "libubootenv-tool"),
                ("/usr/lib/u-boot/qemu-x86/u-boot.rom", "u-boot-qemu"),
            ],
            Self::Grub => &[
                ("grub-mkimage", "grub-common"),
                ("tar", "tar"),
                ("grub-editenv", "grub-common"),
                ("/usr/lib/grub/x86_64-efi/linux.mod", "grub-efi-amd64-bin"),
                ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
            ],
            Self::SystemdBoot | Self::SystemdBootShared => &[
                ("/usr/lib/systemd/boot/efi/systemd-bootx64.efi", "systemd-boot-efi"),
                ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
            ],
        }
    }

    /// Programs of the bootloader that go into the slots.
    pub(crate) const fn guest_programs(self) -> &'static [&'static str] {
        match self {
            Self::UBoot => &["fw_printenv", "fw_setenv"],
            Self::Grub => &["grub-editenv"],
            Self::SystemdBoot | Self::SystemdBootShared => &[],
        }
    }

    /// The `[slots]` of the device's configuration.
    pub(crate) fn slots(self) -> String {
        let mut text = String::new();
        let [boot_a, boot_b] = self.boot_volumes();
        for (set, lower, boot) in [("A", "a", boot_a), ("B", "b", boot_b)] {
            text += &format!("[slots.{set}]\nrootfs = \"/dev/disk/by-partlabel/root-{lower}\"\n");
            if !self.kernel_in_root() {
                for (slot, name) in [("kernel", "vmlinuz"), ("initrd", "initrd")] {
                    text += &format!(
                        "{slot} = {{ path = \"{boot}/otandem/{lower}/{name}\", in-place = true }}\n"
                    );
                }
            }
            text.push('\n');
        }
        text
    }

    /// The `[bootloader]` of the device's configuration.
    pub(crate) fn bootloader(self) -> String {
        let kind = format!("kind = \"{}\"\n", self.kind());
        let [boot_a, boot_b] = self.boot_volumes();
        kind + &match self {
            Self::UBoot => "fw-env-config = \"/etc/fw_env.config\"".to_owned(),
            Self::Grub => "grubenv = \"/efi/grub/grubenv\"".to_owned(),
            Self::SystemdBoot | Self::SystemdBootShared => {
                format!("entries-a = \"{boot_a}/loader/entries\"\nentries-b = \"{boot_b}/loader/entries\"")
            }
        }
    }

    /// Names and sizes of the partitions before the slots.
    pub(crate) fn boot_sizes(self) -> Vec<(&'static str, u64)> {
        match self {
            Self::UBoot => vec![("boot", 16 * MIB), ("uboot-env", MIB)],
            Self::Grub => vec![("esp", 40 * MIB)],
            Self::SystemdBoot => vec![("esp", 48 * MIB), ("xbootldr", 48 * MIB)],
            Self::SystemdBootShared => vec![("esp", 72 * MIB)],
        }
    }

    /// The partitions before the slots.
    ///
    /// # Errors
    /// A tool of the bootloader that fails, or a kernel that does not fit.
    pub(crate) fn boot_parts(self, kernels: &[Kernels<'_>; 2]) -> Result<Vec<BootPart>, ImageError> {
        match self {
            Self::UBoot => u_boot(),
            Self::Grub => grub(),
            Self::SystemdBoot | Self::SystemdBootShared => self.systemd_boot(kernels),
        }
    }

    fn systemd_boot(self, kernels: &[Kernels<'_>; 2]) -> Result<Vec<BootPart>, ImageError> {
        let mut esp = Tree::default();
        esp.copy("EFI/BOOT/BOOTX64.EFI", 0o644, "/usr/lib/systemd/boot/efi/systemd-bootx64.efi".as_ref())?;
        esp.copy("loader/loader.conf", 0o644, &hook("systemd-boot/loader.conf")?)?;
        esp.copy("startup.nsh", 0o644, &hook("systemd-boot/startup.nsh")?)?;
        let mut boot = Tree::default();
        let shared = self == Self::SystemdBootShared;
        for (set, kernels) in [("a", &kernels[0]), ("b", &kernels[1])] {
            let volume = if set == "a" || shared { &mut esp } else { &mut boot };
            let entry = entry(set)?;
            volume.file(&format!("loader/entries/otandem-{set}.conf"), 0o644, entry.clone());
            volume.file(&format!("loader/entries/otandem-{set}.template"), 0o644, entry);
            for (name, bytes, size) in
                [("vmlinuz", kernels.kernel, KERNEL_SLOT.0), ("initrd", kernels.initrd, KERNEL_SLOT.1)]
            {
                volume.file(&format!("otandem/{set}/{name}"), 0o644, padded(name, bytes, size)?);
            }
        }
        let mut parts = Vec::new();
        for ((name, size), tree) in self.boot_sizes().into_iter().zip([esp, boot]) {
            let (kind, label) = if name == "esp" { (ESP, "ESP") } else { (XBOOTLDR, "XBOOTLDR") };
            parts.push(BootPart { name, kind, size, content: Content::Fat(Width::Fat32, label, tree) });
        }
        Ok(parts)
    }
}

/// The entry file of a set: one sector, filled with empty lines, as the back end keeps it.
fn entry(set: &str) -> Result<Vec<u8>, ImageError> {
    let template = hook(&format!("systemd-boot/otandem-{set}.template"))?;
    let mut text = quiet(&template, "\n")?.into_bytes();
    let used = text.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| last + 2);
    if used > ENTRY {
        let what = template.display().to_string();
        return Err(ImageError::TooSmall { what, size: ENTRY as u64, needed: used as u64 });
    }
    text.resize(ENTRY, b'\n');
    Ok(text)
}

/// What the kernel of an emulated device wants to be told: a serial line takes its time, and on a busy machine the timer of
/// an emulated interrupt controller may come too late for the kernel's test of it, which then panics.
const EMULATED: &str = "quiet no_timer_check";

/// A boot script with [`EMULATED`] on the kernel's command line. `end` follows the kernel's command line.
fn quiet(script: &Path, end: &str) -> Result<String, ImageError> {
    let text = std::fs::read_to_string(script).map_err(file("read", script))?;
    let (before, after) = (format!(" console=ttyS0{end}"), format!(" console=ttyS0 {EMULATED}{end}"));
    if !text.contains(&before) {
        let why = "no kernel command line that ends in console=ttyS0";
        return Err(ImageError::Recipe(format!("{}: {why}", script.display())));
    }
    Ok(text.replace(&before, &after))
}

/// A file slot of `size` bytes with this content.
fn padded(name: &str, bytes: &[u8], size: u64) -> Result<Vec<u8>, ImageError> {
    let needed = bytes.len() as u64;
    let size_in_memory = usize::try_from(size).unwrap_or(usize::MAX);
    if needed > size {
        return Err(ImageError::TooSmall { what: format!("file slot {name}"), size, needed });
    }
    let mut bytes = bytes.to_vec();
    bytes.resize(size_in_memory, 0);
    Ok(bytes)
}

impl FromStr for Chain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|chain| chain.name() == text).ok_or_else(|| {
            format!("no boot chain is called {text:?}: use u-boot, grub, systemd-boot or systemd-boot-shared")
        })
    }
}

fn u_boot() -> Result<Vec<BootPart>, ImageError> {
    let folder = tempfile::tempdir().map_err(file("create a folder for", "boot.scr".as_ref()))?;
    let script = folder.path().join("boot.scr");
    tools::run(tools::command("sh").arg(hook("uboot/make-boot-script")?).arg("--virtual").arg(&script))?;
    let mut tree = Tree::default();
    tree.copy("boot.scr", 0o644, &script)?;
    let (text, copy) = (folder.path().join("env.txt"), folder.path().join("env"));
    std::fs::write(&text, "BOOT_ORDER=A B\nBOOT_A_LEFT=3\nBOOT_B_LEFT=3\n").map_err(file("write", &text))?;
    let size = ENV_SIZE.to_string();
    tools::run(tools::command("mkenvimage").args(["-r", "-s", &size, "-o"]).arg(&copy).arg(&text))?;
    let copy = std::fs::read(&copy).map_err(file("read", &copy))?;
    let mut environment = copy.clone();
    environment.resize(ENV_SECOND, 0);
    environment.extend(copy);
    let boot = Content::Fat(Width::Fat16, "BOOT", tree);
    Ok(vec![
        BootPart { name: "boot", kind: BASIC, size: 16 * MIB, content: boot },
        BootPart { name: "uboot-env", kind: LINUX, size: MIB, content: Content::Raw(environment) },
    ])
}

fn grub() -> Result<Vec<BootPart>, ImageError> {
    let folder = tempfile::tempdir().map_err(file("create a folder for", "GRUB".as_ref()))?;
    let (program, block) = (folder.path().join("grub.efi"), folder.path().join("grubenv"));
    // As grub-mkstandalone does, but for the times that it takes from the clock into its archive.
    let (tree, archive) = (folder.path().join("tree"), folder.path().join("memdisk.tar"));
    let mut memdisk = Tree::default();
    memdisk.copy("boot/grub/grub.cfg", 0o644, &hook("grub/early.cfg")?)?;
    std::fs::create_dir(&tree).map_err(file("create", &tree))?;
    memdisk.unfold(&tree)?;
    let mut pack = tools::command("tar");
    pack.args(["--format=ustar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    pack.arg(format!("--mtime=@{}", tools::EPOCH)).arg("-C").arg(&tree).arg("-cf").arg(&archive).arg("boot");
    tools::run(&mut pack)?;
    let mut make = tools::command("grub-mkimage");
    make.args(["-O", "x86_64-efi", "-p", "(memdisk)/boot/grub", "-m"]).arg(&archive).arg("-o").arg(&program);
    make.args(["memdisk", "tar"]).args(GRUB_MODULES.split_whitespace());
    tools::run(&mut make)?;
    tools::run(tools::command("grub-editenv").arg(&block).arg("create"))?;
    let mut tree = Tree::default();
    tree.copy("EFI/BOOT/BOOTX64.EFI", 0o644, &program)?;
    tree.copy("grub/grubenv", 0o644, &block)?;
    tree.text("grub/grub.cfg", &quiet(&hook("grub/grub.cfg")?, "\"")?);
    let content = Content::Fat(Width::Fat32, "ESP", tree);
    Ok(vec![BootPart { name: "esp", kind: ESP, size: 40 * MIB, content }])
}

/// A file beside the back ends: the one that products copy, not another one.
fn hook(name: &str) -> Result<PathBuf, ImageError> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../bootloader-hooks")).join(name);
    std::fs::metadata(&path).map_err(file("find", &path))?;
    Ok(path)
}

/// The UUID of a partition of that name.
pub(crate) fn part_uuid(name: &str) -> String {
    uuid(&format!("partition {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chain_is_found_by_its_name() {
        for chain in Chain::ALL {
            assert_eq!(chain.name().parse::<Chain>().unwrap(), chain);
        }
        assert!("lilo".parse::<Chain>().unwrap_err().contains("u-boot, grub, systemd-boot"));
    }
}
