//! What is in a slot: the system of the virtual device, the agent, and what is wrong with it on purpose.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::debian::{self, Kernel};
use crate::disk::NOBODY;
use crate::tree::Tree;
use crate::{Chain, ImageError, cpio, tools};

/// Modules that the initial RAM file system loads: the disk and the watchdog.
const EARLY_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "softdog"];
/// Modules that the system loads.
const MODULES: &[&str] = &["virtio_net", "nls_cp437", "nls_ascii", "nls_utf8", "vfat"];
/// Modules that the system loads where the firmware is UEFI; elsewhere it could not be loaded.
const EFI_MODULES: &[&str] = &["efivarfs"];
/// Applets of BusyBox in the initial RAM file system.
const EARLY_APPLETS: &[&str] = &["sh", "mount", "insmod", "grep", "sleep", "switch_root"];
/// Where a root file system of a device is empty until something is mounted.
const FOLDERS: &[&str] = &[
    "bin",
    "sbin",
    "usr/bin",
    "usr/sbin",
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "data",
    "efi",
    "xbootldr",
    "mnt",
    "root",
    "boot",
    "var",
    "etc/otandem/hooks.d",
];
/// Where the roots for cloud and downloads lie, the same for both sets.
const CA: &str = "/data/certs/ca.pem";

/// The content of a slot set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// What it says of itself.
    pub version: String,
    /// The agent's binary on this machine; none: a system without one.
    pub agent: Option<PathBuf>,
    /// Its health check, a script (`#!` in front).
    pub health: String,
    /// Files to add or replace, by their path; one that begins with `#!` can be run.
    pub overlay: BTreeMap<String, String>,
    /// What is wrong with it, on purpose.
    pub defects: Vec<Defect>,
}

/// Something wrong with an image, on purpose. Where several touch the same file, the last one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Defect {
    /// The kernel is noise of the same size.
    KernelGarbage,
    /// The initial RAM file system is noise of the same size; the kernel starts and panics.
    InitrdGarbage,
    /// The root file system is noise from its first byte to its last.
    RootGarbage,
    /// There is no `/sbin/init`; the kernel panics.
    NoInit,
    /// There is no agent.
    AgentMissing,
    /// The agent ends at once, each time.
    AgentCrashes,
    /// The agent's configuration is no TOML.
    BadConfiguration,
    /// The CA certificate has signed nothing: neither cloud nor downloads are reached.
    WrongCa,
    /// The start of the system hangs before the dead-man runs; only the watchdog that was started before helps.
    HangsEarly,
    /// The agent hangs in its trial and feeds no watchdog.
    HangsLate,
    /// The health check says no, each time.
    HealthFails,
    /// The health check says no, and that there is no use in asking again.
    HealthHopeless,
}

/// The three things that a set is made of.
pub(crate) struct Parts {
    pub(crate) root: Tree,
    /// Noise instead of [`Parts::root`].
    pub(crate) root_is_noise: bool,
    pub(crate) kernel: Vec<u8>,
    pub(crate) initrd: Vec<u8>,
}

impl Root {
    /// A sound system with this agent.
    #[must_use]
    pub fn new(version: &str, agent: Option<&Path>) -> Self {
        Self {
            version: version.to_owned(),
            agent: agent.map(Path::to_owned),
            health: "#!/bin/sh\nexit 0\n".to_owned(),
            overlay: BTreeMap::new(),
            defects: Vec::new(),
        }
    }

    /// The same with something wrong.
    #[must_use]
    pub fn with(mut self, defect: Defect) -> Self {
        self.defects.push(defect);
        self
    }

    /// The same with a file added or replaced.
    #[must_use]
    pub fn with_file(mut self, path: &str, text: &str) -> Self {
        self.overlay.insert(path.to_owned(), text.to_owned());
        self
    }

    fn has(&self, defect: Defect) -> bool {
        self.defects.contains(&defect)
    }

    /// Puts it together.
    ///
    /// # Errors
    /// Something that goes into it is not there.
    pub(crate) fn parts(&self, chain: Chain, kernel: &Kernel) -> Result<Parts, ImageError> {
        if self.version.is_empty()
            || self.version.contains(|c: char| c.is_whitespace() || "'\"\\$`".contains(c))
        {
            let why = "a version of a virtual device has neither spaces nor quotes";
            return Err(ImageError::Recipe(format!("{:?}: {why}", self.version)));
        }
        let mut root = Tree::default();
        system(&mut root, chain, kernel, &self.version)?;
        self.product(&mut root, chain)?;
        for (path, text) in &self.overlay {
            root.text(path, text);
        }
        let mut parts = Parts {
            root,
            root_is_noise: self.has(Defect::RootGarbage),
            kernel: kernel.image()?,
            initrd: initrd(kernel)?,
        };
        for defect in &self.defects {
            defect.apply(&mut parts);
        }
        if chain.kernel_in_root() {
            parts.root.file("boot/vmlinuz", 0o644, parts.kernel.clone());
            parts.root.file("boot/initrd", 0o644, parts.initrd.clone());
        }
        Ok(parts)
    }

    /// The agent and what a distribution installs with it.
    fn product(&self, root: &mut Tree, chain: Chain) -> Result<(), ImageError> {
        if let Some(agent) = &self.agent {
            debian::program(root, "usr/bin/otandem", agent)?;
        }
        root.text("etc/init.d/otandem", include_str!("../../agent/dist/etc/init.d/otandem"));
        root.text("usr/lib/otandem/dead-man", include_str!("../../agent/dist/usr/lib/otandem/dead-man"));
        let configuration = include_str!("../guest/otandem.toml")
            .replace("@SLOTS@\n", &chain.slots())
            .replace("@BOOTLOADER@", &chain.bootloader())
            .replace("@CA@", CA);
        root.text("etc/otandem/otandem.toml", &configuration);
        root.text("etc/otandem/health.d/10-device", &self.health);
        // Above health-timeout + cloud-timeout of the configuration, and a start.
        root.text("etc/default/otandem", "deadline=300\n");
        Ok(())
    }
}

impl Defect {
    fn apply(self, parts: &mut Parts) {
        let root = &mut parts.root;
        match self {
            Self::KernelGarbage => parts.kernel = noise(parts.kernel.len()),
            Self::InitrdGarbage => parts.initrd = noise(parts.initrd.len()),
            Self::RootGarbage => {}
            Self::NoInit => {
                root.remove("sbin/init");
            }
            Self::AgentMissing => {
                root.remove("usr/bin/otandem");
            }
            Self::AgentCrashes => {
                root.text(
                    "usr/bin/otandem",
                    "#!/bin/sh\necho 'defect: the agent crashes' >&2\nkill -SEGV $$\n",
                );
            }
            Self::BadConfiguration => {
                root.text("etc/otandem/otandem.toml", "[slots.A\nrootfs = \n");
            }
            Self::WrongCa => {
                let name = "/etc/otandem/wrong-ca.pem";
                let text = root.bytes("etc/otandem/otandem.toml").unwrap_or_default();
                let text = String::from_utf8_lossy(text).replace(CA, name);
                root.text("etc/otandem/otandem.toml", &text);
                root.text(name, NOBODY);
            }
            Self::HangsEarly => {
                root.text("etc/init.d/defect", include_str!("../guest/defect-hangs-early"));
            }
            Self::HangsLate => {
                if let Some(agent) = root.bytes("usr/bin/otandem").map(<[u8]>::to_vec) {
                    root.file("usr/lib/device/otandem-sound", 0o755, agent);
                    root.text("usr/bin/otandem", include_str!("../guest/defect-hangs-late"));
                }
            }
            Self::HealthFails => {
                root.text("etc/otandem/health.d/10-device", "#!/bin/sh\necho not well >&2\nexit 1\n");
            }
            Self::HealthHopeless => {
                root.text("etc/otandem/health.d/10-device", "#!/bin/sh\necho not well >&2\nexit 100\n");
            }
        }
    }
}

/// BusyBox, drivers, libraries and the scripts that start it all.
fn system(root: &mut Tree, chain: Chain, kernel: &Kernel, version: &str) -> Result<(), ImageError> {
    for folder in FOLDERS {
        root.folder(folder);
    }
    let busybox = busybox()?;
    root.copy("bin/busybox", 0o755, &busybox)?;
    for applet in tools::run(std::process::Command::new(&busybox).arg("--list-full"))?.lines() {
        if !applet.is_empty() && !["bin/busybox", "linuxrc"].contains(&applet) {
            root.link(applet, "/bin/busybox");
        }
    }
    for program in chain.guest_programs() {
        let found = tools::find(program).ok_or_else(|| ImageError::Recipe(format!("no {program}")))?;
        debian::program(root, &format!("usr/bin/{program}"), &found)?;
    }
    let wanted = [MODULES, if chain.is_efi() { EFI_MODULES } else { &[] }].concat();
    modules(root, "lib/modules", kernel, &wanted, EARLY_MODULES)?;
    for (path, text) in [
        ("etc/inittab", include_str!("../guest/inittab")),
        ("etc/init.d/rcS", include_str!("../guest/rcS")),
        ("etc/motd", include_str!("../guest/motd")),
        ("usr/lib/device/agent", include_str!("../guest/agent")),
        ("usr/lib/device/console", include_str!("../guest/console")),
        ("usr/lib/device/dead-man", include_str!("../guest/dead-man")),
        ("usr/lib/device/stop", include_str!("../guest/stop")),
        ("etc/passwd", "root::0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\notandem:x:990:\n"),
        ("etc/hosts", "127.0.0.1 localhost\n10.0.2.2 host\n"),
        ("etc/fw_env.config", FW_ENV_CONFIG),
    ] {
        root.text(path, text);
    }
    root.text("etc/os-release", &format!("NAME=otandem-virtual\nID=otandem-virtual\nVERSION_ID={version}\n"));
    root.link("var/lock", "/run/lock").link("var/run", "/run").link("etc/mtab", "/proc/mounts");
    Ok(())
}

/// The environment of U-Boot, twice on one partition.
const FW_ENV_CONFIG: &str = "\
/dev/disk/by-partlabel/uboot-env 0x0000 0x4000
/dev/disk/by-partlabel/uboot-env 0x8000 0x4000
";

fn busybox() -> Result<PathBuf, ImageError> {
    tools::find("/bin/busybox").ok_or_else(|| ImageError::Recipe("no /bin/busybox".into()))
}

/// Puts modules and the order in which to load them below `folder`, without those that `loaded` brings in.
fn modules(
    tree: &mut Tree,
    folder: &str,
    kernel: &Kernel,
    wanted: &[&str],
    loaded: &[&str],
) -> Result<(), ImageError> {
    let there: Vec<String> = kernel.modules(loaded)?.into_iter().map(|(name, _)| name).collect();
    let mut order = String::new();
    for (name, bytes) in kernel.modules(wanted)? {
        if !there.contains(&name) {
            order += &format!("{name}\n");
            tree.file(&format!("{folder}/{name}.ko"), 0o644, bytes);
        }
    }
    tree.text(&format!("{folder}/order"), &order);
    Ok(())
}

fn initrd(kernel: &Kernel) -> Result<Vec<u8>, ImageError> {
    ram_disk(kernel, include_str!("../guest/initrd-init"), EARLY_MODULES, EARLY_APPLETS)
}

/// An initial RAM file system with BusyBox under the names of these applets, these modules with what they need
/// (`/modules/order` has the order in which to load them), and this first program.
pub(crate) fn ram_disk(
    kernel: &Kernel,
    init: &str,
    modules_wanted: &[&str],
    applets: &[&str],
) -> Result<Vec<u8>, ImageError> {
    let mut tree = Tree::default();
    for folder in ["dev", "proc", "sys", "root"] {
        tree.folder(folder);
    }
    tree.copy("bin/busybox", 0o755, &busybox()?)?;
    for applet in applets {
        tree.link(&format!("bin/{applet}"), "busybox");
    }
    modules(&mut tree, "modules", kernel, modules_wanted, &[])?;
    tree.text("init", init);
    cpio::initrd(&tree)
}

/// The same noise each time.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 8);
    let mut random: u64 = 0x9E37_79B9_7F4A_7C15;
    while bytes.len() < size {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        bytes.extend_from_slice(&random.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        let mut root = Tree::default();
        root.text("usr/bin/otandem", "agent").text("sbin/init", "init");
        Root::new("1", None).product(&mut root, Chain::UBoot).unwrap();
        Parts { root, root_is_noise: false, kernel: vec![1; 100], initrd: vec![2; 10] }
    }

    #[test]
    fn each_defect_changes_something() {
        for defect in [
            Defect::KernelGarbage,
            Defect::InitrdGarbage,
            Defect::NoInit,
            Defect::AgentMissing,
            Defect::AgentCrashes,
            Defect::BadConfiguration,
            Defect::WrongCa,
            Defect::HangsEarly,
            Defect::HangsLate,
            Defect::HealthFails,
            Defect::HealthHopeless,
        ] {
            let (before, mut after) = (parts(), parts());
            defect.apply(&mut after);
            let same =
                before.root == after.root && before.kernel == after.kernel && before.initrd == after.initrd;
            assert!(!same, "{defect:?}");
            assert_eq!((after.kernel.len(), after.initrd.len()), (100, 10));
        }
    }

    #[test]
    fn the_wrong_ca_is_used_for_cloud_and_downloads() {
        let mut parts = parts();
        Defect::WrongCa.apply(&mut parts);
        let text = String::from_utf8_lossy(parts.root.bytes("etc/otandem/otandem.toml").unwrap());
        assert_eq!(text.matches("ca = \"/etc/otandem/wrong-ca.pem\"").count(), 2, "{text}");
        assert!(!text.contains(CA));
    }

    #[test]
    fn the_configuration_has_nothing_left_to_fill_in() {
        for chain in Chain::ALL {
            let mut root = Tree::default();
            Root::new("1", None).product(&mut root, chain).unwrap();
            let text = String::from_utf8_lossy(root.bytes("etc/otandem/otandem.toml").unwrap()).into_owned();
            assert!(
                !text.contains('@') && text.contains(chain.kind()) && text.contains("[slots.B]"),
                "{text}"
            );
        }
    }
}
