//! The model of `grub.cfg` against the real GRUB, in a virtual machine.
//!
//! Slow, so not run unless asked for: `cargo test -p otandem-boot --test grub -- --ignored`. Needs the Debian packages
//! `qemu-system-x86 qemu-utils ovmf grub-efi-amd64-bin grub-common mtools dosfstools fdisk e2fsprogs`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use otandem_boot::BootNames;
use otandem_boot::grub::block;
use otandem_boot::grub::model::{Decision, decide_named};
use otandem_core::boot::SetId::{self, A, B};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const GRUB_CFG: &str = include_str!("../grub/grub.cfg");
const EARLY_CFG: &str = include_str!("../grub/early.cfg");
const MODULES: &str = "part_gpt fat ext2 normal linux loadenv test search search_fs_file regexp eval testspeed echo \
                       reboot halt sleep serial terminal configfile";
/// How the shipped script ends, after its functions.
const END: &str = "\notandem_choose\notandem_reset \"no set can be loaded\"\n";
const TOOLS: [&str; 7] =
    ["qemu-system-x86_64", "grub-mkstandalone", "mkfs.vfat", "mcopy", "mmd", "sfdisk", "mke2fs"];
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// A boot takes 10 s of an idle machine.
const LIMIT: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;
/// Where the partitions begin and how long they are, in MiB.
const PARTITIONS: [(&str, char, u64, u64); 3] =
    [("esp", 'U', 1, 40), ("root-a", 'L', 41, 4), ("root-b", 'L', 45, 4)];

fn missing_tool() -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |tool: &str| std::env::split_paths(&path).any(|d| d.join(tool).exists()) || has_sbin(tool);
    TOOLS
        .iter()
        .find(|tool| !found(tool))
        .map(|tool| (*tool).to_owned())
        .or_else(|| (!Path::new(FIRMWARE).exists()).then(|| FIRMWARE.to_owned()))
}

fn has_sbin(tool: &str) -> bool {
    Path::new("/usr/sbin").join(tool).exists()
}

fn run(command: &mut Command) {
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let output = command.env("MTOOLS_SKIP_CHECK", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

/// A disk with a boot partition and two slots, and the machine that boots it.
struct Machine(tempfile::TempDir);

impl Machine {
    /// With these files, by their path on the boot partition; the slots hold a kernel that is none.
    fn new(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        let at = |name: &str| machine.at(name);
        std::fs::write(at("early.cfg"), EARLY_CFG).unwrap();
        let image = format!("boot/grub/grub.cfg={}", at("early.cfg").display());
        let modules = [format!("--modules={MODULES}"), format!("--install-modules={MODULES}")];
        let none = ["--locales=", "--fonts=", "--themes="];
        let mut standalone = Command::new("grub-mkstandalone");
        run(standalone
            .args(["-O", "x86_64-efi", "-o"])
            .arg(at("boot.efi"))
            .args(modules)
            .args(none)
            .arg(image));

        let (disk, esp) = (at("disk"), at("esp"));
        blank(&esp, PARTITIONS[0].3);
        run(Command::new("mkfs.vfat").args(["-F", "32"]).arg(&esp));
        let folders = ["::/EFI", "::/EFI/BOOT", "::/grub", "::/cases"];
        run(Command::new("mmd").arg("-i").arg(&esp).args(folders));
        let copy = |from: &Path, to: &str| {
            run(Command::new("mcopy").arg("-i").arg(&esp).arg(from).arg(format!("::{to}")));
        };
        copy(&at("boot.efi"), "/EFI/BOOT/BOOTX64.EFI");
        for (path, bytes) in files {
            std::fs::write(at("file"), bytes).unwrap();
            copy(&at("file"), path);
        }
        std::fs::create_dir_all(at("tree/boot")).unwrap();
        std::fs::write(at("tree/boot/vmlinuz"), "no kernel").unwrap();
        std::fs::write(at("tree/boot/initrd"), "readable").unwrap();
        blank(&at("slot"), PARTITIONS[1].3);
        let plain = ["-q", "-t", "ext4", "-O", "^metadata_csum,^64bit", "-d"];
        run(Command::new("mke2fs").args(plain).arg(at("tree")).arg(at("slot")));
        machine.partition(&disk);
        for ((_, _, start, _), source) in PARTITIONS.iter().zip(["esp", "slot", "slot"]) {
            let seek = format!("seek={start}");
            let (from, to) = (format!("if={}", at(source).display()), format!("of={}", disk.display()));
            run(Command::new("dd").args([&from, &to, &seek]).args(["bs=1M", "conv=notrunc,sparse"]));
        }
        std::fs::copy(FIRMWARE_VARIABLES, at("variables")).unwrap();
        machine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn partition(&self, disk: &Path) {
        blank(disk, 50);
        let mut table = "label: gpt\n".to_owned();
        for (name, kind, start, size) in PARTITIONS {
            writeln!(table, "start={start}MiB, size={size}MiB, type={kind}, name={name}").unwrap();
        }
        std::fs::write(self.at("table"), table).unwrap();
        let table = std::fs::File::open(self.at("table")).unwrap();
        run(Command::new("sfdisk").arg("-q").arg(disk).stdin(table));
    }

    /// Starts it and returns what it said on the serial line until it reset itself or went off.
    fn boot(&self) -> Vec<String> {
        let drive = |n: &str, more: &str| format!("file={},format=raw,{more}", self.at(n).display());
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-m", "256"]);
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-drive"]);
        qemu.arg(format!("if=pflash,format=raw,readonly=on,file={FIRMWARE}"));
        qemu.args(["-drive", &drive("variables", "if=pflash"), "-drive", &drive("disk", "if=none,id=hd0")]);
        qemu.args(["-device", "virtio-blk-pci,drive=hd0,bootindex=0"]);
        let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (send, said) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stdout.read_to_end(&mut text);
            let _ = send.send(text);
        });
        let said = said.recv_timeout(LIMIT);
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap();
        plain(&said.expect("GRUB ends in a reset, not in a prompt"))
    }

    /// A file of the boot partition as it is now.
    fn file(&self, path: &str) -> Vec<u8> {
        let image = format!("{}@@{}", self.at("disk").display(), PARTITIONS[0].2 * MIB);
        let to = self.at("read");
        run(Command::new("mcopy").args(["-n", "-o", "-i", &image, &format!("::{path}")]).arg(&to));
        std::fs::read(to).unwrap()
    }
}

fn blank(path: &Path, mib: u64) {
    std::fs::File::create(path).unwrap().set_len(mib * MIB).unwrap();
}

/// The lines of a terminal without its control sequences.
fn plain(said: &[u8]) -> Vec<String> {
    let mut text = String::new();
    let mut bytes = said.iter().copied().map(char::from);
    while let Some(c) = bytes.next() {
        match c {
            '\u{1b}' => {
                let _ = bytes.by_ref().skip(1).find(|c| c.is_ascii_alphabetic());
            }
            '\n' => text.push('\n'),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// One content of `grubenv` and what can be loaded.
#[derive(Debug, Clone)]
struct Case {
    block: Option<Vec<u8>>,
    other_names: bool,
    loadable: [bool; 2],
}

fn names(other: bool) -> BootNames {
    if other { BootNames::new("system0", "s_1").unwrap() } else { BootNames::default() }
}

fn block_of(lines: &str) -> Vec<u8> {
    let mut bytes = [block::SIGNATURE, lines.as_bytes()].concat();
    bytes.resize(block::SIZE.max(bytes.len()), b'#');
    bytes
}

/// States with a story, each with every combination of what can be loaded.
fn chosen() -> Vec<Case> {
    let full = format!("OTANDEM_TRIAL=A\nx={}\n", "y".repeat(block::SIZE - 25 - 16 - 3));
    let texts = [
        "",
        "ORDER=A B\nA_OK=1\nA_TRY=0\nB_OK=1\nB_TRY=0\nOTANDEM_TRIAL=\n",
        "ORDER=B A\nA_OK=1\nA_TRY=0\nB_OK=1\nB_TRY=0\nOTANDEM_TRIAL=B\n",
        "ORDER=B A\nA_OK=1\nA_TRY=0\nB_OK=1\nB_TRY=1\nOTANDEM_TRIAL=B\n",
        "ORDER=A\nA_OK=1\nA_TRY=0\nB_OK=0\nB_TRY=0\nOTANDEM_TRIAL=\n",
        "ORDER=A B\nA_OK=1\nA_TRY=1\nB_OK=1\nB_TRY=1\nOTANDEM_TRIAL=\n",
        "ORDER=A B\nA_OK=0\nB_OK=0\n",
        "ORDER=\n",
        "ORDER=B\n",
        "ORDER=R\tB\\\nA  B\r\nOTANDEM_TRIAL=A\n",
        "ORDER=* ? \\\\A B\n",
        "ORDER=(hd0) -f ! B\nA_OK=!\nB_OK=(\n",
        "ORDER=B A\nB_TRY=\\0\nOTANDEM_TRIAL=B\n",
        "OTANDEM_TRIAL=B\nORDER=B A\nB_TRY=0\nB_TRY=0\n",
        "OTANDEM_TRIAL=A\nOTANDEM_TRIAL=B\nORDER=B\nORDER=A B\n",
        "OTANDEM_TRIAL=A\nA_TRY=12",
        "OTANDEM_TRIAL=A\n#A_TRY=1\\\nA_OK=0\n",
        "garbage\nORDER=B A\nA_OK=0\n",
        "root=nowhere\nprefix=(x)\notandem_name_a=B\notandem_env=(x)/y\nORDER=B A\n",
        "OTANDEM_TRIAL=A\nA_OK=$B_OK\n",
        "OTANDEM_TRIAL=A\0x\nB_OK\0=0\nORDER=B\0A\n",
        &full,
    ];
    let mut blocks: Vec<Option<Vec<u8>>> = texts.iter().map(|text| Some(block_of(text))).collect();
    let armed = block_of(texts[2]);
    blocks.extend([
        None,
        Some(vec![]),
        Some(vec![0; block::SIZE]),
        Some(armed[..25].to_vec()),
        Some(armed[..26].to_vec()),
        Some(armed[..60].to_vec()),
        Some(armed[..512].to_vec()),
        Some([&armed[..512], &[0; 512]].concat()),
        Some([&[0; 512], &armed[512..]].concat()),
        Some([&armed, b"\nORDER=A\n".as_slice()].concat()),
        Some([&armed, &armed[..]].concat()),
    ]);
    let every = [[true, true], [true, false], [false, true], [false, false]];
    let case =
        |block: &Option<Vec<u8>>, loadable| Case { block: block.clone(), other_names: false, loadable };
    blocks.iter().flat_map(|block| every.map(|loadable| case(block, loadable))).collect()
}

/// States by chance, the same at every run.
fn random(count: usize) -> Vec<Case> {
    let line = prop_oneof![
        "ORDER=(A|B|R|system0|s_1| ){0,5}\n",
        "(A|B|system0|s_1)_(OK|TRY)=[01]?\n",
        "OTANDEM_TRIAL=(A|B|system0|s_1)\n",
        "[a-zA-Z#=\\\\\n]{0,9}\n",
    ];
    let block = proptest::collection::vec(line, 0..9).prop_map(|lines| block_of(&lines.concat()));
    let case = (block, any::<bool>(), any::<[bool; 2]>()).prop_map(|(block, other_names, loadable)| Case {
        block: Some(block),
        other_names,
        loadable,
    });
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| case.new_tree(&mut runner).unwrap().current()).collect()
}

/// The shipped script, with the loading of a kernel replaced, over all cases; then off.
fn script(cases: &[Case]) -> String {
    let shipped = GRUB_CFG.strip_suffix(END).unwrap();
    let mut text = shipped.to_owned();
    text += "\nfunction otandem_load {\n  echo \"LOAD $1\"\n";
    text += "  if [ \"$1\" = A ]; then return $load_a; fi\n  return $load_b\n}\n";
    for (number, case) in cases.iter().enumerate() {
        let names = names(case.other_names);
        let [a, b] = case.loadable.map(|loadable| u8::from(!loadable));
        writeln!(text, "set load_a={a}\nset load_b={b}").unwrap();
        let [a, b] = SetId::BOTH.map(|set| names.name(set));
        writeln!(text, "set otandem_name_a={a}\nset otandem_name_b={b}").unwrap();
        writeln!(text, "set otandem_env=($otandem_esp)/cases/{number}").unwrap();
        writeln!(text, "echo CASE {number}\notandem_choose\necho END").unwrap();
    }
    text + "echo DONE\nhalt\n"
}

/// What GRUB did with the case of this number.
fn observed(machine: &Machine, said: &[String], number: usize, case: &Case) -> Decision {
    let begin = said.iter().position(|line| *line == format!("CASE {number}")).expect("case was reached") + 1;
    let length = said[begin..].iter().position(|line| line == "END").expect("case ended");
    let loads = said[begin..begin + length].iter().filter_map(|line| line.strip_prefix("LOAD "));
    let tried: Vec<SetId> = loads.map(|set| set.parse().unwrap()).collect();
    let loadable = |set: &SetId| case.loadable[usize::from(*set == B)];
    let booted = tried.last().copied().filter(loadable);
    let now = case.block.as_ref().map(|_| machine.file(&format!("/cases/{number}")));
    // A write of the same bytes cannot be seen.
    let writes = now.filter(|now| Some(now) != case.block.as_ref());
    Decision { tried, booted, writes }
}

#[test]
#[ignore = "boots a virtual machine"]
fn the_model_decides_as_the_real_grub_over_hundreds_of_states() {
    if let Some(tool) = missing_tool() {
        println!("skipped: {tool} is not installed");
        return;
    }
    let cases = [chosen(), random(250)].concat();
    let mut files = BTreeMap::from([("/grub/grub.cfg".to_owned(), script(&cases).into_bytes())]);
    let blocks =
        cases.iter().enumerate().filter_map(|(n, c)| Some((format!("/cases/{n}"), c.block.clone()?)));
    files.extend(blocks);
    let machine = Machine::new(&files);
    let said = machine.boot();
    assert_eq!(said.last().map(String::as_str), Some("DONE"), "{said:#?}");
    let mut different = String::new();
    for (number, case) in cases.iter().enumerate() {
        let block = case.block.as_deref().unwrap_or_default();
        let loadable = |set| case.loadable[usize::from(set == B)];
        let mut model = decide_named(block, &names(case.other_names), loadable);
        model.writes = model.writes.filter(|after| after != block);
        let real = observed(&machine, &said, number, case);
        if real != model {
            writeln!(different, "{number} {case:?} {}", block.escape_ascii()).unwrap();
            writeln!(different, "  real  {:?} {:?}", real.tried, real.booted).unwrap();
            writeln!(different, "  model {:?} {:?}", model.tried, model.booted).unwrap();
        }
    }
    println!("{} states compared", cases.len());
    assert!(different.is_empty(), "{different}");
}

#[test]
#[ignore = "boots a virtual machine"]
fn with_no_kernel_anywhere_grub_notes_the_try_goes_through_both_sets_and_resets() {
    if let Some(tool) = missing_tool() {
        println!("skipped: {tool} is not installed");
        return;
    }
    let armed = block_of("ORDER=B A\nA_OK=1\nA_TRY=0\nB_OK=1\nB_TRY=0\nOTANDEM_TRIAL=B\n");
    let files = BTreeMap::from([
        ("/grub/grub.cfg".to_owned(), GRUB_CFG.into()),
        ("/grub/grubenv".to_owned(), armed.clone()),
    ]);
    let machine = Machine::new(&files);
    for (boot, tried) in [(1, vec![B, A, A, B]), (2, vec![A, A, B])] {
        let said = machine.boot();
        let loads = said.iter().filter_map(|line| line.strip_prefix("otandem: loading set "));
        let loads: Vec<SetId> = loads.map(|rest| rest[..1].parse().unwrap()).collect();
        assert_eq!(loads, tried, "boot {boot}: {said:#?}");
        assert!(said.iter().any(|line| line.starts_with("otandem: no set can be loaded")), "{said:#?}");
        let after = decide_named(&armed, &BootNames::default(), |_| false).writes;
        assert_eq!(Some(machine.file("/grub/grubenv")), after, "boot {boot}");
    }
}
