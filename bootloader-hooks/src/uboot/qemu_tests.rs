//! The model against the real U-Boot: the virtual device's boot script in a virtual machine.
//!
//! The "kernel" is a program of 32 bytes that prints its command line and ends the machine; so the real script, the real
//! loads and the real start are tried in half a second for each state.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::*;

const FIRMWARE: &str = "/usr/lib/u-boot/qemu-x86/u-boot.rom";
const BLOCK: u64 = 512;
/// First blocks of the partitions; the environment's is where a disk of 128 MiB of other things would have it.
const BOOT: u64 = 0x800;
const ENV: u64 = 0x4_0800;
const ROOTS: [u64; 2] = [0x4_1000, 0x4_6000];
/// A state that does not end by then is a failure.
const LIMIT: Duration = Duration::from_secs(60);

/// A bzImage that prints its command line on the serial line and ends the machine through isa-debug-exit.
fn kernel() -> Vec<u8> {
    let mut image = vec![0; 512 * 5];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]);
    put(0x1f4, &2_u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS\x0c\x02");
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x1000_u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x10_0000_u64.to_le_bytes());
    put(0x260, &0x1_0000_u32.to_le_bytes());
    image.extend([0x8b, 0xb6, 0x28, 2, 0, 0]); // mov esi, [esi + cmd_line_ptr]
    image.extend([0xba, 0xf8, 3, 0, 0]); // mov edx, COM1
    image.extend([0xac, 0x84, 0xc0, 0x74, 3, 0xee, 0xeb, 0xf8]); // lodsb; until 0: out dx, al
    image.extend([0xb0, 0x0a, 0xee]); // newline
    image.extend([0x66, 0xba, 1, 5, 0xb0, 0, 0xee]); // out 0x501, 0
    image.extend([0xf4, 0xeb, 0xfd]); // hlt
    image
}

fn run(program: &str, args: &[&str], stdin: &str) {
    let mut child = Command::new(program);
    let child = child.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What is in the slots.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Slot {
    Whole,
    NoInitrd,
    GarbageKernel,
    Erased,
}

struct Board {
    dir: tempfile::TempDir,
    disk: File,
}

impl Board {
    fn new() -> Option<Self> {
        let tools =
            ["/usr/bin/qemu-system-x86_64", FIRMWARE, "/usr/bin/mkimage", "/usr/bin/mcopy", "/sbin/sfdisk"];
        let tools = [&tools[..], &["/sbin/mke2fs", "/sbin/mkfs.vfat"]].concat();
        if let Some(missing) = tools.iter().find(|path| !Path::new(path).exists()) {
            println!("skipped: {missing} is not there");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let disk = File::options().read(true).write(true).create_new(true).open(path("disk")).unwrap();
        disk.set_len(256 << 20).unwrap();
        let table = format!(
            "label: gpt\nstart={BOOT}, size=32768, name=boot, attrs=LegacyBIOSBootable\nstart={ENV}, size=2048, \
             name=uboot-env\nstart={}, size=20480, name=root-a\nstart={}, size=20480, name=root-b\n",
            ROOTS[0], ROOTS[1]
        );
        run("/sbin/sfdisk", &["-q", &path("disk")], &table);
        let make = concat!(env!("CARGO_MANIFEST_DIR"), "/uboot/make-boot-script");
        run(make, &["--virtual", &path("boot.scr")], "");
        File::create(path("fat")).unwrap().set_len(16 << 20).unwrap();
        run("/sbin/mkfs.vfat", &["-F", "16", &path("fat")], "");
        run("/usr/bin/mcopy", &["-i", &path("fat"), &path("boot.scr"), "::/boot.scr"], "");
        disk.write_all_at(&std::fs::read(path("fat")).unwrap(), BOOT * BLOCK).unwrap();
        Some(Self { dir, disk })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn fill(&self, set: usize, slot: Slot) {
        let tree = self.path("tree");
        let _ = std::fs::remove_dir_all(&tree);
        std::fs::create_dir_all(tree.join("boot")).unwrap();
        let kernel = if slot == Slot::GarbageKernel { vec![0x5a; 4096] } else { kernel() };
        std::fs::write(tree.join("boot/vmlinuz"), kernel).unwrap();
        if slot != Slot::NoInitrd {
            std::fs::write(tree.join("boot/initrd"), "initrd\n").unwrap();
        }
        let image = self.path("ext4");
        let _ = std::fs::remove_file(&image);
        let args = ["-q", "-t", "ext4", "-O", "^metadata_csum,^64bit", "-d", tree.to_str().unwrap()];
        run("/sbin/mke2fs", &[&args[..], &[image.to_str().unwrap(), "8M"]].concat(), "");
        let mut bytes = std::fs::read(&image).unwrap();
        if slot == Slot::Erased {
            bytes[..1 << 20].fill(0);
        }
        self.disk.write_all_at(&bytes, ROOTS[set] * BLOCK).unwrap();
    }

    /// One reset: the serial line until a kernel was started or the board resets.
    fn boot(&self) -> String {
        let drive = format!("file={},format=raw,if=none,id=hd0", self.path("disk").display());
        let mut machine = Command::new("/usr/bin/qemu-system-x86_64");
        machine.args(["-machine", "pc", "-bios", FIRMWARE, "-accel", "tcg,thread=single", "-cpu", "max"]);
        machine.args(["-m", "256", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        machine.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=hd0", "-device", "isa-debug-exit"]);
        let machine = machine.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut machine = machine.unwrap();
        let (mut keys, mut serial) = (machine.stdin.take().unwrap(), machine.stdout.take().unwrap());
        let (done, wait) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let (mut all, mut some) = (Vec::new(), [0; 4096]);
            let mut stopped = false;
            loop {
                match serial.read(&mut some) {
                    Ok(n) if n > 0 => all.extend_from_slice(&some[..n]),
                    _ => break,
                }
                let text = String::from_utf8_lossy(&all);
                // Without waiting for the two seconds of grace. A key stops the count, `boot` goes on.
                if !stopped && text.contains("autoboot") {
                    stopped = true;
                    let _ = keys.write_all(b" ");
                }
                if text.ends_with("=> ") {
                    let _ =
                        keys.write_all(if text.contains("## Executing") { b"reset\n" } else { b"boot\n" });
                }
            }
            let _ = done.send(());
            all
        });
        let begun = Instant::now();
        let ended = wait.recv_timeout(LIMIT);
        let _ = machine.kill();
        machine.wait().unwrap();
        let text = String::from_utf8_lossy(&reader.join().unwrap()).replace('\r', "");
        assert!(ended.is_ok(), "no end after {:?}:\n{text}", begun.elapsed());
        text
    }
}

/// What the serial line tells: the sets that were tried and the one whose kernel printed its command line.
fn told(serial: &str) -> (Vec<SetId>, Option<SetId>) {
    let set = |line: &str, before: &str| line.strip_prefix(before)?.get(..1)?.parse().ok();
    let tried = serial.lines().filter_map(|line| set(line, "otandem: trying "));
    // The kernel, not U-Boot, is what prints this at the beginning of a line.
    let booted = serial.lines().rev().find_map(|line| set(line, "otandem.set="));
    (tried.collect(), booted)
}

/// Foreign data behind a true checksum.
fn raw(flags: u8, data: &[u8]) -> Vec<u8> {
    let mut copy = vec![0; SIZE];
    copy[5..5 + data.len()].copy_from_slice(data);
    let sum = crc32(&copy[5..]).to_le_bytes();
    copy[..4].copy_from_slice(&sum);
    copy[4] = flags;
    copy
}

fn states() -> Vec<(&'static str, Vec<u8>)> {
    let one = |order, a, b| area(Some(copy(1, env(order, a, b))), None);
    let two = |f, s| area(Some(copy(f, env("B A", "3", "1"))), Some(copy(s, env("A B", "2", "0"))));
    let mut torn = copy(9, env("B A", "3", "1"));
    torn[512..1024].fill(0xff);
    let mut states = vec![
        ("blank", area(None, None)),
        ("erased flash", vec![0xff; SECOND + SIZE]),
        ("torn, older whole", area(Some(torn.clone()), Some(copy(8, env("A", "3", "0"))))),
        ("both torn", area(Some(torn.clone()), Some(torn))),
        ("only the second", area(None, Some(copy(200, env("B A", "3", "1"))))),
        ("no variables of ours", area(Some(copy(1, variables(&[("bootdelay", "3")]))), None)),
        ("only the order", area(Some(copy(1, variables(&[("BOOT_ORDER", "B A")]))), None)),
        (
            "only the counters",
            area(Some(copy(1, variables(&[("BOOT_A_LEFT", "0"), ("BOOT_B_LEFT", "3")]))), None),
        ),
        ("confirmed", one("A B", "3", "3")),
        ("armed", one("B A", "3", "1")),
        ("two tries", one("B A", "3", "2")),
        ("tried", one("B A", "3", "0")),
        ("used up", one("A B", "0", "0")),
        ("bad fallback", one("B", "0", "2")),
        ("hexadecimal", one("A B", "0x2", "3")),
        ("too many", one("A B", "4", "3")),
        ("garbage", one("B A", "x", "%$!")),
        ("two digits", one("A B", "03", "3")),
        ("twice", one("B B A A", "2", "1")),
        ("foreign names", one("R B C A", "3", "1")),
        ("only foreign names", one("R C", "3", "1")),
        ("blanks", one("  ", "3", "1")),
        ("wide", one(" B   A ", "3", "1")),
        ("small letters", one("a b", "3", "3")),
        ("first of two", raw_pair(b"BOOT_ORDER=B A\0BOOT_A_LEFT=3\0BOOT_B_LEFT=1\0BOOT_B_LEFT=3\0\0junk")),
        ("blank before", raw_pair(b"  BOOT_ORDER=B A\0\tBOOT_A_LEFT=3\0#BOOT_B_LEFT=3\0BOOT_B_LEFT=1\0\0")),
        ("no value", raw_pair(b"BOOT_ORDER=\0BOOT_A_LEFT\0BOOT_B_LEFT=3\0\0")),
        ("no name", raw_pair(b"BOOT_ORDER=B A\0=x\0BOOT_A_LEFT=3\0BOOT_B_LEFT=3\0\0")),
        ("no name, and no other", area(Some(raw(5, b"BOOT_ORDER=B A\0=x\0\0")), None)),
        (
            "no name in the second",
            area(Some(copy(4, env("A", "2", "0"))), Some(raw(5, b"BOOT_ORDER=B A\0=x\0\0"))),
        ),
        ("backslash", raw_pair(b"BOOT_ORDER=B\\ A\0BOOT_A_LEFT=\\3\0BOOT_B_LEFT=\\1\0\0")),
    ];
    let flags =
        [(0, 255), (255, 0), (255, 254), (1, 2), (2, 1), (7, 7), (127, 128), (128, 127), (15, 16), (0, 128)];
    states.extend(flags.map(|(first, second)| ("flags", two(first, second))));
    states
}

fn raw_pair(data: &[u8]) -> Vec<u8> {
    area(Some(raw(5, data)), Some(copy(4, env("A", "2", "0"))))
}

fn judge(board: &Board, name: &str, state: &[u8], slots: [Slot; 2]) {
    board.disk.write_all_at(state, ENV * BLOCK).unwrap();
    let serial = board.boot();
    let decision = decide(state, &COPIES, |set| slots[usize::from(set == SetId::B)] == Slot::Whole);
    let what = format!("{name} with {slots:?}:\n{serial}");
    assert_eq!(told(&serial), (decision.tried.clone(), decision.booted), "{what}");
    let mut found = vec![0; SECOND + SIZE];
    board.disk.read_exact_at(&mut found, ENV * BLOCK).unwrap();
    assert!(found == after(state, &decision), "{:?} was not what was written: {what}", decision.writes);
    assert_eq!(serial.contains("blocks written"), decision.writes.is_some(), "{what}");
}

#[test]
#[ignore = "starts a virtual machine for each state, a minute in all"]
fn the_real_u_boot_decides_and_writes_as_the_model_says_in_every_state() {
    let Some(board) = Board::new() else { return };
    (0..2).for_each(|set| board.fill(set, Slot::Whole));
    for (name, state) in states() {
        judge(&board, name, &state, [Slot::Whole; 2]);
    }
}

#[test]
#[ignore = "starts a virtual machine for each state, a minute in all"]
fn the_real_u_boot_passes_over_what_does_not_load_as_the_model_says() {
    let Some(board) = Board::new() else { return };
    use Slot::{Erased, NoInitrd, Whole};
    for slots in [[Whole, Erased], [Erased, Whole], [NoInitrd, Whole], [Whole, NoInitrd], [Erased, NoInitrd]]
    {
        (0..2).for_each(|set| board.fill(set, slots[set]));
        for (order, a, b) in
            [("A B", "3", "3"), ("B A", "3", "1"), ("B A", "1", "2"), ("A", "3", "0"), ("", "x", "y")]
        {
            judge(&board, "one", &area(None, Some(copy(255, env(order, a, b)))), slots);
        }
        judge(&board, "blank", &area(None, None), slots);
    }
}

#[test]
#[ignore = "starts a virtual machine for each state, a minute in all"]
fn the_real_u_boot_goes_back_when_a_kernel_does_not_start_and_the_command_line_is_as_promised() {
    let Some(board) = Board::new() else { return };
    [Slot::Whole, Slot::GarbageKernel].into_iter().enumerate().for_each(|(set, slot)| board.fill(set, slot));
    let state = area(Some(copy(1, env("B A", "3", "1"))), None);
    board.disk.write_all_at(&state, ENV * BLOCK).unwrap();
    let serial = board.boot();
    assert_eq!(told(&serial), (vec![SetId::B, SetId::A], Some(SetId::A)), "{serial}");
    let line =
        "\notandem.set=A root=PARTLABEL=root-a ro rootwait=30 panic=3 console=ttyS0 quiet no_timer_check\n";
    assert!(serial.contains(line), "{serial}");
}
