//! A virtual device with its cloud: what happens in every scenario on a boot chain, and what must hold at its end.
//!
//! The device is a disk of [`otandem_images`] in a [`Vm`]; the cloud is the lab of the other tests, which the guest
//! reaches at 10.0.2.2. Everything here panics where something does not go as it must: it is for tests.

#![allow(clippy::unwrap_used)] // see above: it is for tests

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Deref;
use std::time::Duration;

use otandem_images::{Chain, Console, Defect, Device, Disk, Partition, Release, Root, Workshop};
use otandem_lab::{Access, ClockMode, Lab, LabConfig, Scheme, Status};
use otandem_system_tests::{CloudSide, binary};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::boot_files::{self, BootFiles};
use crate::vm::limits::stretch;
use crate::{Definition, DiskFile, PowerOn, Sectors as _, Up, Vm, Workplace};

/// From power or reset to the shell: the slowest chain needs 15 s on an idle machine.
pub const BOOT: Duration = Duration::from_secs(90);
/// A command in the guest.
pub const COMMAND: Duration = Duration::from_secs(30);
/// An update from job to outcome, with its boots.
const UPDATE: Duration = Duration::from_secs(240);
/// Memory of a device.
const MEMORY_MIB: u32 = 256;
/// Names a disk to begin with in the place of ours: made elsewhere, with our factory image in both sets.
const DISK: &str = "OTANDEM_VM_DISK";
/// The device's name in the cloud.
const THING: &str = "gateway-0001";
/// This machine, as a guest sees it.
const HOST: [u8; 4] = [10, 0, 2, 2];

/// What a scenario begins with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The device as it leaves the factory.
    pub device: Device,
    /// Keys of `device.toml` by table and key, values in TOML.
    pub settings: BTreeMap<(String, String), String>,
}

impl Setup {
    /// The usual device: version 1.0 in both sets, with an agent, one minute for health and for the cloud.
    #[must_use]
    pub fn new(chain: Chain) -> Self {
        let mut device = Device::new(chain, release("1.0"));
        device.console = Console::Machine;
        Self { device, settings: BTreeMap::new() }
            .with("update", "health-timeout", "\"1min\"")
            .with("update", "cloud-timeout", "\"1min\"")
            .with("update", "checkpoint-bytes", "\"4MiB\"")
            .with("update", "checkpoint-interval", "\"0s\"")
            .with("log", "level", "\"info,otandem=debug\"")
    }

    /// The same with a key of `device.toml`.
    #[must_use]
    pub fn with(mut self, table: &str, key: &str, value: &str) -> Self {
        self.settings.insert((table.into(), key.into()), value.into());
        self
    }

    /// The same with another factory image.
    #[must_use]
    pub fn factory(mut self, root: Root) -> Self {
        self.device.factory = root;
        self
    }

    /// The same with a file on the data partition.
    #[must_use]
    pub fn data(mut self, path: &str, text: &str) -> Self {
        self.device.data.insert(path.into(), text.into());
        self
    }

    fn toml(&self) -> String {
        let mut tables: BTreeMap<&str, String> = BTreeMap::new();
        for ((table, key), value) in &self.settings {
            let _ = writeln!(tables.entry(table).or_default(), "{key} = {value}");
        }
        tables.iter().fold(String::new(), |text, (table, keys)| text + &format!("[{table}]\n{keys}\n"))
    }
}

/// A sound image of that version with the agent of this build.
#[must_use]
pub fn release(version: &str) -> Root {
    Root::new(version, Some(binary::otandem().unwrap()))
}

/// A release on the image server.
#[derive(Debug, Clone)]
pub struct Offer {
    /// What it is.
    pub release: Release,
    /// Path of the packed root file system on the server.
    pub path: String,
    /// Its length there.
    pub size: u64,
    /// A job document that installs all of it.
    pub document: Value,
}

/// A virtual device and its cloud.
pub struct Stage {
    /// The cloud.
    pub cloud: CloudSide,
    /// The device.
    pub vm: Vm,
    /// Its boot chain.
    pub chain: Chain,
    workshop: Workshop,
    disk: Disk,
    /// What left the factory, by the agent of then.
    factory: Release,
    slot_size: u64,
}

impl Deref for Stage {
    type Target = CloudSide;

    fn deref(&self) -> &CloudSide {
        &self.cloud
    }
}

impl Stage {
    /// The usual device, switched off.
    #[must_use]
    pub fn off(chain: Chain) -> Self {
        Self::with(Setup::new(chain))
    }

    /// The usual device, up in its factory image and connected.
    #[must_use]
    pub fn up(chain: Chain) -> Self {
        let mut stage = Self::off(chain);
        stage.power_on();
        stage
    }

    /// Any device, switched off.
    #[must_use]
    pub fn with(mut setup: Setup) -> Self {
        let chain = setup.device.chain;
        let workplace = Workplace::new(chain.name()).unwrap();
        let config = LabConfig { clock: ClockMode::Running, address: HOST.into(), ..LabConfig::default() };
        let lab = Lab::start(config).unwrap();
        let identity = lab.identity(THING).unwrap();
        let data = &mut setup.device.data;
        data.insert("certs/ca.pem".into(), lab.authority().pem().into());
        data.insert("certs/device.pem".into(), identity.certificate_pem.into());
        data.insert("certs/device.key".into(), identity.key_pem.into());
        let setup = setup
            .with("cloud", "endpoint", "\"10.0.2.2\"")
            .with("cloud", "port", &lab.mqtt_port().to_string())
            .with("cloud", "thing-name", &format!("{THING:?}"))
            .with("cloud", "cert", "\"/data/certs/device.pem\"")
            .with("cloud", "key", "\"/data/certs/device.key\"");
        let mut device = setup.device.clone();
        device.data.insert("otandem/device.toml".into(), setup.toml().into());
        let workshop = Workshop::in_target(chain).unwrap();
        let factory = workshop.release(&device.factory, device.slot_size).unwrap();
        let disk = match std::env::var_os(DISK) {
            Some(made) => workshop.adopt(&device, made.as_ref(), workplace.path()).unwrap(),
            None => workshop.disk(&device, workplace.path()).unwrap(),
        };
        let definition =
            Definition { args: disk.firmware_arguments(), disk: disk.image.clone(), memory_mib: MEMORY_MIB };
        let cloud = CloudSide { lab, thing: THING.into(), limit: UPDATE.mul_f64(stretch()) };
        let vm = Vm::new(workplace, definition);
        Self { cloud, vm, chain, workshop, disk, slot_size: device.slot_size, factory }
    }

    /// Presses the power button and waits for the factory image: up, in set A, settled.
    pub fn power_on(&mut self) {
        let version = self.factory.version.clone();
        self.boot("A", &version);
        self.wait_settled();
    }

    /// Presses the power button and waits for this set and version.
    pub fn boot(&mut self, set: &str, version: &str) {
        self.vm.power_on(&PowerOn::default()).unwrap();
        self.expect_up(set, version);
    }

    /// Waits for the next boot, which must be of this set and version.
    pub fn expect_up(&mut self, set: &str, version: &str) -> Up {
        let up = self.vm.up(BOOT).unwrap();
        assert_eq!((up.set.as_str(), up.version.as_str()), (set, version), "what booted");
        up
    }

    /// Waits until the agent says that the running image needs no verdict any more.
    pub fn wait_settled(&mut self) {
        let wait = "n=0; until [ -e /run/otandem/settled ] || [ $n = 600 ]; do sleep 0.1; n=$((n+1)); done; \
                    [ -e /run/otandem/settled ]";
        self.vm.ok(wait, BOOT).unwrap();
    }

    /// Waits until the agent says that its update is in this phase.
    pub fn wait_phase(&mut self, phase: &str) {
        self.wait_status_says(&format!("\"phase\": *\"{phase}\""));
    }

    /// Waits until the running set's counter is full again and the agent takes jobs.
    pub fn wait_ready(&mut self) {
        self.wait_status_says("\"ready\": *true");
    }

    fn wait_status_says(&mut self, pattern: &str) {
        let wait = format!(
            "n=0; until otandem status --json 2>/dev/null | grep -q '{pattern}' || [ $n = 300 ]; do sleep 0.1; \
             n=$((n+1)); done; [ $n -lt 300 ]"
        );
        self.vm.ok(&wait, BOOT).unwrap();
    }

    /// A command in the guest that has to succeed, and what it said.
    pub fn sh(&mut self, command: &str) -> String {
        let said = self.vm.ok(command, COMMAND).unwrap();
        // The agent's log is on the same line.
        let own: Vec<&str> = said.lines().filter(|line| !line.starts_with("agent: ")).collect();
        own.join("\n")
    }

    /// Waits until this command succeeds in the guest.
    pub fn wait_sh(&mut self, condition: &str) {
        let wait = format!("until {condition}; do sleep 0.2; done");
        self.vm.ok(&wait, BOOT).unwrap();
    }

    /// `otandem status --json`. The agent's log is on the same line: what it says meanwhile is left out, and where it
    /// speaks in the middle, the question is asked again.
    pub fn status(&mut self) -> Value {
        let mut asked = 0;
        loop {
            asked += 1;
            let text = self.sh("otandem status --json 2>/dev/null");
            let own: Vec<&str> = text.lines().filter(|line| !line.starts_with("agent: ")).collect();
            match serde_json::from_str(&own.join("\n")) {
                Ok(status) => return status,
                Err(e) => assert!(asked < 5, "status is no JSON ({e}): {text}"),
            }
        }
    }

    /// SHA-256 of what a partition holds now, in hex.
    #[must_use]
    pub fn digest(&self, name: &str) -> String {
        let Partition { start, size, .. } = *self.partition(name);
        let disk = DiskFile::open(self.vm.disk()).unwrap();
        let mut digest = Sha256::new();
        let mut chunk = vec![0; 1 << 20];
        for at in (start..start + size).step_by(chunk.len()) {
            let len = usize::try_from(start + size - at).unwrap_or(chunk.len()).min(chunk.len());
            disk.read(at, &mut chunk[..len]).unwrap();
            digest.update(&chunk[..len]);
        }
        digest.finalize().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    /// Builds a release for this device.
    #[must_use]
    pub fn release(&self, root: &Root) -> Release {
        self.workshop.release(root, self.slot_size).unwrap()
    }

    /// Puts a release on the image server.
    #[must_use]
    pub fn publish(&self, root: &Root) -> Offer {
        let release = self.release(root);
        let mut images = Vec::new();
        for slot in &release.slots {
            let path = format!("images/{}/{}.zst", release.version, slot.slot);
            self.lab.put_image(&path, std::fs::read(&slot.packed).unwrap(), Access::Signed);
            images.push(json!({
                "slot": slot.slot, "url": self.lab.placeholder(&path, Scheme::Https), "sha256": slot.sha256,
                "size": slot.size, "compression": "zstd", "version": release.version,
                "compatible": "otandem-virtual",
            }));
        }
        Offer {
            path: format!("images/{}/rootfs.zst", release.version),
            size: release.rootfs().packed_size,
            document: json!({ "operation": "fota", "images": images }),
            release,
        }
    }

    /// A good image of that version on the server.
    #[must_use]
    pub fn good(&self, version: &str) -> Offer {
        self.publish(&release(version))
    }

    /// An image with something wrong on the server.
    #[must_use]
    pub fn broken(&self, version: &str, defect: Defect) -> Offer {
        self.publish(&impatient(release(version)).with(defect))
    }

    /// One whole update: from the job to the outcome, in the set and version that then run.
    pub fn update(&mut self, job: &str, offer: &Offer, set: &str) {
        self.job(job, &offer.document);
        let version = offer.release.version.clone();
        self.expect_up(set, &version);
        self.expect_end(job, Status::Succeeded, "");
        self.wait_settled();
    }

    /// The partitions of the disk; the first one has number 1.
    #[must_use]
    pub fn partitions(&self) -> &[Partition] {
        &self.disk.layout
    }

    /// A partition of the disk.
    #[must_use]
    pub fn partition(&self, name: &str) -> &Partition {
        self.disk.partition(name).unwrap_or_else(|| panic!("no partition {name}"))
    }

    /// All partitions, in the order of the disk.
    #[must_use]
    pub fn layout(&self) -> &[Partition] {
        &self.disk.layout
    }

    /// The disk with its layout.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// What the boot chain keeps beside the slots, as far as the guest has sent it to its disk.
    #[must_use]
    pub fn boot_files(&self) -> BootFiles {
        boot_files::read(&self.disk).unwrap()
    }

    /// Set A is, byte for byte, as it left the factory. The device must be off.
    pub fn assert_factory_untouched(&self) {
        let release = &self.factory;
        let mut files = BootFiles::new();
        if !self.chain.kernel_in_root() {
            files = self.boot_files();
        }
        for slot in &release.slots {
            let expected = std::fs::read(&slot.path).unwrap();
            let found = match slot.slot {
                "rootfs" => boot_files::bytes(&self.disk, self.partition("root-a")).unwrap(),
                "kernel" => files.remove("esp/otandem/a/vmlinuz").unwrap(),
                "initrd" => files.remove("esp/otandem/a/initrd").unwrap(),
                other => panic!("where does slot {other} lie?"),
            };
            // A file slot may be larger than what it holds.
            let found = found.get(..expected.len()).unwrap_or_default();
            assert!(found == expected, "slot {} of set A was written", slot.slot);
        }
    }

    /// What must hold at the end of every scenario, and then the end.
    pub fn finish(mut self) {
        self.vm.power_cut();
        self.assert_kept_the_rules();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of what was said to the cloud:\n{}", self.cloud.said(30));
        }
    }
}

/// With a dead-man that does not wait long: for images in which nobody gives a verdict.
#[must_use]
pub fn impatient(root: Root) -> Root {
    root.with_file("etc/default/otandem", "deadline=60\n")
}
