//! The model of systemd-boot beside the real one, in a virtual machine with UEFI firmware.
//!
//! Kernels are garbage, so every try ends in a message that names it and, by `startup.nsh`, in a reset: the messages are
//! the sequence of tries, and what the loader renamed lies on the disk afterwards. Slow (a minute or more for each
//! group), so only on demand: `cargo test -p otandem-boot --test systemd_boot_loader -- --ignored`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use otandem_boot::systemd_boot::model::{EntryFile, Partition, decide};

const LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const PLAIN: &str = "default otandem-*\ntimeout 0\neditor no\n";
/// First sector of each partition; both are 40 MiB.
const STARTS: [(Partition, u64); 2] = [(Partition::Esp, 2048), (Partition::Xbootldr, 83968)];

/// A state of the disk and the firmware.
struct Case {
    /// Partition, name, version; the letter in the name is the set.
    files: &'static [(Partition, &'static str, &'static str)],
    conf: &'static str,
    oneshot: Option<&'static str>,
}

use Partition::{Esp, Xbootldr};

const fn case(files: &'static [(Partition, &'static str, &'static str)]) -> Case {
    Case { files, conf: PLAIN, oneshot: None }
}

const ORDER: &[Case] = &[
    case(&[(Esp, "otandem-a.conf", "1"), (Xbootldr, "otandem-b+1.conf", "2")]),
    case(&[(Esp, "otandem-a.conf", "10"), (Xbootldr, "otandem-b.conf", "9")]),
    case(&[(Esp, "otandem-a.conf", "1"), (Xbootldr, "otandem-b+0.conf", "~bad")]),
    // Marked bad but for its name; the other one has the lowest version that there is.
    case(&[(Esp, "otandem-a.conf", "0"), (Xbootldr, "otandem-b.conf", "~bad")]),
    case(&[(Esp, "otandem-a+0-1.conf", "8"), (Xbootldr, "otandem-b.conf", "7")]),
];

const COUNTING: &[Case] = &[
    case(&[(Esp, "otandem-a+2.conf", "2"), (Xbootldr, "otandem-b.conf", "1")]),
    case(&[(Esp, "otandem-a.conf", "1"), (Xbootldr, "otandem-b+2-1.conf", "2")]),
    // Everything exhausted.
    case(&[(Esp, "otandem-a+0-1.conf", "1"), (Xbootldr, "otandem-b+0-1.conf", "2")]),
    // One name each that a power cut left: in marking bad, in arming, in confirming.
    case(&[
        (Esp, "otandem-a.conf", "1"),
        (Xbootldr, "otandem-b+0.conf", "2"),
        (Xbootldr, "otandem-b+1.conf", "2"),
    ]),
    case(&[
        (Esp, "otandem-a.conf", "1"),
        (Xbootldr, "otandem-b+1-1.conf", "2"),
        (Xbootldr, "otandem-b.conf", "2"),
    ]),
];

const CHOICE: &[Case] = &[
    // A pattern for one set boots what is exhausted.
    Case {
        conf: "default otandem-b*\n",
        ..case(&[(Esp, "otandem-a.conf", "1"), (Esp, "otandem-b+0-1.conf", "2")])
    },
    Case { conf: "", ..case(&[(Esp, "otandem-a.conf", "1"), (Esp, "otandem-b+1.conf", "2")]) },
    Case {
        oneshot: Some("otandem-b.conf"),
        ..case(&[(Esp, "otandem-a.conf", "2"), (Xbootldr, "otandem-b.conf", "1")])
    },
    // The one-shot of an arming that was taken back.
    Case {
        oneshot: Some("otandem-b+1.conf"),
        ..case(&[(Esp, "otandem-a.conf", "2"), (Xbootldr, "otandem-b+0.conf", "~bad")])
    },
];

fn missing() -> Option<String> {
    let files = [LOADER, CODE, VARS].into_iter().find(|path| !Path::new(path).exists()).map(str::to_owned);
    let tools = ["qemu-system-x86_64", "sfdisk", "mkfs.vfat", "mcopy"];
    files.or_else(|| {
        tools.into_iter().find(|tool| command(tool).arg("--version").output().is_err()).map(str::to_owned)
    })
}

fn command(tool: &str) -> Command {
    let mut command = Command::new(tool);
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").env("MTOOLS_SKIP_CHECK", "1");
    command
}

fn run(command: &mut Command, input: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn letter(name: &str) -> char {
    name.chars().nth("otandem-".len()).unwrap()
}

fn entry(partition: Partition, name: &str, version: &str) -> EntryFile {
    let set = letter(name);
    let content = format!("title {set}\nsort-key otandem\nversion {version}\nlinux /otandem/{set}/vmlinuz\n");
    EntryFile { partition, name: name.into(), content: content.into() }
}

/// A disk with two FAT partitions, and the variables of the firmware.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::copy(VARS, machine.path("vars.fd")).unwrap();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new disk with `startup.nsh`, and with the loader if `case` is to be booted.
    fn make_disk(&self, case: Option<&Case>, startup: &str) {
        let disk = self.path("disk.img");
        let _ = std::fs::remove_file(&disk);
        std::fs::File::create(&disk).unwrap().set_len(100 << 20).unwrap();
        let table = "label: gpt\n\
            start=2048, size=81920, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
            start=83968, size=81920, type=BC13C2FF-59E6-4262-A352-B275FD6F7172\n";
        run(command("sfdisk").arg("-q").arg(&disk), table);
        for (_, start) in STARTS {
            let offset = start.to_string();
            run(command("mkfs.vfat").args(["-F", "32", "--offset", &offset]).arg(&disk).arg("40960"), "");
        }
        for (partition, _) in STARTS {
            for directory in
                ["EFI", "EFI/BOOT", "loader", "loader/entries", "otandem", "otandem/a", "otandem/b"]
            {
                run(command("mmd").arg("-i").arg(self.volume(partition)).arg(format!("::/{directory}")), "");
            }
            for set in ["a", "b"] {
                self.put(partition, &format!("otandem/{set}/vmlinuz"), b"garbage");
            }
        }
        self.put(Esp, "startup.nsh", startup.as_bytes());
        let Some(case) = case else { return };
        self.put(Esp, "EFI/BOOT/BOOTX64.EFI", &std::fs::read(LOADER).unwrap());
        self.put(Esp, "loader/loader.conf", case.conf.as_bytes());
        for (partition, name, version) in case.files {
            let file = entry(*partition, name, version);
            self.put(*partition, &format!("loader/entries/{name}"), &file.content);
        }
    }

    /// A partition in the words of mtools.
    fn volume(&self, partition: Partition) -> String {
        let (_, start) = STARTS.into_iter().find(|(p, _)| *p == partition).unwrap();
        format!("{}@@{}", self.path("disk.img").display(), start * 512)
    }

    fn put(&self, partition: Partition, to: &str, content: &[u8]) {
        let from = self.path("file");
        std::fs::write(&from, content).unwrap();
        run(command("mcopy").arg("-i").arg(self.volume(partition)).arg(&from).arg(format!("::/{to}")), "");
    }

    fn entries(&self, partition: Partition) -> Vec<String> {
        let list = run(command("mdir").args(["-b", "-i", &self.volume(partition), "::/loader/entries"]), "");
        let mut names: Vec<_> =
            list.lines().filter_map(|l| l.rsplit('/').next()).map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Runs until `done` says so of what the serial line said.
    fn run(&self, done: impl Fn(&str) -> bool) -> String {
        let drive =
            |kind: &str, name: &str| format!("format=raw,file={},if={kind}", self.path(name).display());
        let child = command("timeout")
            .args([
                "300",
                "qemu-system-x86_64",
                "-accel",
                "tcg",
                "-machine",
                "q35",
                "-cpu",
                "max",
                "-m",
                "256",
            ])
            .args(["-nodefaults", "-display", "none", "-net", "none", "-serial", "stdio"])
            .args(["-drive", &format!("if=pflash,format=raw,readonly=on,file={CODE}")])
            .args(["-drive", &drive("pflash", "vars.fd")])
            .args([
                "-drive",
                &drive("none,id=d", "disk.img"),
                "-device",
                "virtio-blk-pci,drive=d,bootindex=0",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut vm = Vm(child.unwrap());
        let (mut keys, mut serial) = (vm.0.stdin.take().unwrap(), vm.0.stdout.take().unwrap());
        let (mut raw, mut answered, mut buffer) = (Vec::new(), 0, [0; 4096]);
        loop {
            let n = serial.read(&mut buffer).unwrap();
            assert!(n > 0, "the machine ended early:\n{}", plain(&raw));
            raw.extend(&buffer[..n]);
            let said = plain(&raw);
            if done(&said) {
                return said;
            }
            // The shell waits for a key before it runs the script. One key: at another the loader would show its menu.
            let asked = said.matches("ESC in 5 seconds").count();
            if asked > answered {
                answered = asked;
                keys.write_all(b"\n").unwrap();
            }
        }
    }
}

/// Ends when it is dropped.
struct Vm(Child);

impl Drop for Vm {
    fn drop(&mut self) {
        // `timeout` passes this on; killed, it would leave the machine behind.
        let _ = command("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// Without the sequences that place and colour text.
fn plain(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        all + part
            .trim_start_matches(|c: char| c.is_ascii_digit() || ";?=".contains(c))
            .get(1..)
            .unwrap_or_default()
    })
}

/// The sets whose kernel could not be loaded, in order.
fn failures(said: &str) -> Vec<char> {
    let parts = said.split("Error loading \\otandem\\").skip(1);
    parts.filter(|part| part.contains("\\vmlinuz")).filter_map(|part| part.chars().next()).collect()
}

fn check(cases: &[Case]) {
    if let Some(what) = missing() {
        println!("skipped: {what} is not installed");
        return;
    }
    for (i, case) in cases.iter().enumerate() {
        let machine = Machine::new();
        if let Some(name) = case.oneshot {
            let variable = "setvar LoaderEntryOneShot -guid 4a67b082-0a4c-41cf-b6c7-440b29bb8c4f -nv -bs -rt";
            // In bytes, NUL and all: the shell takes quotation marks away.
            let units = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
            let value: String = units.map(|byte| format!("{byte:02x}")).collect();
            machine.make_disk(None, &format!("{variable} ={value}\necho IS-SET\n"));
            machine.run(|said| said.contains("\nIS-SET") || said.contains("\rIS-SET"));
        }
        let files: Vec<_> = case.files.iter().map(|(p, name, version)| entry(*p, name, version)).collect();
        let decision = decide(&files, case.conf, case.oneshot, |_| false);
        let wanted: Vec<char> = decision.tried.iter().map(|t| letter(&t.name)).collect();
        machine.make_disk(Some(case), "reset\n");
        // The shell comes after the loader has given up, and everything is on the disk by then.
        let said = machine.run(|said| failures(said).len() >= wanted.len() && in_shell(said));
        assert_eq!(failures(&said), wanted, "case {i}");
        for (partition, _) in STARTS {
            let mut names: Vec<_> =
                files.iter().filter(|f| f.partition == partition).map(|f| f.name.clone()).collect();
            for rename in decision.renames.iter().filter(|r| r.partition == partition) {
                let name = names.iter_mut().find(|name| **name == rename.from).unwrap();
                name.clone_from(&rename.to);
            }
            names.sort();
            assert_eq!(machine.entries(partition), names, "case {i}");
        }
    }
}

/// The shell has come after the last failure.
fn in_shell(said: &str) -> bool {
    let shell = said.rfind("to skip startup.nsh");
    said.rfind("Error loading").is_some_and(|error| shell > Some(error))
}

#[test]
#[ignore = "boots a virtual machine some ten times"]
fn the_real_loader_sorts_as_the_model_does() {
    check(ORDER);
}

#[test]
#[ignore = "boots a virtual machine some twelve times"]
fn the_real_loader_counts_as_the_model_does() {
    check(COUNTING);
}

#[test]
#[ignore = "boots a virtual machine some ten times"]
fn the_real_loader_chooses_as_the_model_does() {
    check(CHOICE);
}
