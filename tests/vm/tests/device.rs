//! The device, for real: QEMU with the smallest guest.

mod guest;

use std::fs;
use std::thread;
use std::time::Duration;

use otandem_vm::disk::Sectors;
use otandem_vm::vm::limits;
use otandem_vm::{
    BlockDigests, Clock, Definition, DiskError, DiskFile, Image, Line, Link, Model, Models, PowerOn, Replay,
    Request, Vm, VmError, Workplace, sample,
};

const MIB: u64 = 1 << 20;
const BOOT: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(20);

macro_rules! device {
    ($name:expr, $size:expr) => {
        match guest::device($name, $size) {
            Ok(device) => device,
            Err(why) => {
                println!("skipped: {why}");
                return;
            }
        }
    };
}

/// What the guest reads at a place of its disk, without its cache.
fn digest_in_guest(vm: &mut Vm, mib: u64) -> String {
    let command = format!(
        "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip={mib} count=1 2>/dev/null | sha256sum"
    );
    vm.ok(&command, SOON).unwrap()
}

fn bytes(disk: &impl Sectors, mib: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(MIB).unwrap()];
    disk.read(mib * MIB, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_recording_ends_in_the_disk_itself_and_no_cut_loses_what_was_synced() {
    let mut vm = device!("recording", 8 * MIB);
    vm.power_on(&PowerOn { write_log: true, ..PowerOn::default() }).unwrap();
    let up = vm.up(BOOT).unwrap();
    assert_eq!((up.set.as_str(), up.version.as_str()), ("A", "1.0"));
    // A whole MiB, synced; again in small steps, each synced; and one that is sent and never flushed: the kernel
    // writes back when the last user closes the disk.
    let step = "dd if=/dev/urandom of=/dev/vda bs=4k seek=$((512 + n)) count=1 conv=fsync 2>&1";
    vm.ok("dd if=/dev/urandom of=/dev/vda bs=1M seek=1 count=1 conv=fsync 2>&1", SOON).unwrap();
    vm.ok(&format!("n=0; while [ $n -lt 8 ]; do {step} || exit; n=$((n + 1)); done"), SOON).unwrap();
    vm.ok("dd if=/dev/urandom of=/dev/vda bs=1M seek=3 count=1 2>&1", SOON).unwrap();
    let told: Vec<String> = (1..4).map(|mib| digest_in_guest(&mut vm, mib)).collect();
    vm.power_cut();

    let recording = vm.recording().unwrap().clone();
    let replay = Replay::open(&recording.base, &recording.log).unwrap();
    assert!(replay.flushes() >= 9, "{} flushes for nine syncs", replay.flushes());
    let disk = DiskFile::open(vm.disk()).unwrap();
    let mut walk = replay.walk();
    let last = walk.go_to(replay.last(Model::Prefix)).unwrap();
    let all = vec![Image::read("the disk", &disk, 0, 8 * MIB).unwrap()];
    let mut digests = BlockDigests::new(&last, 0, 8 * MIB, all).unwrap();
    assert!(digests.is("the disk"));
    for model in
        [Model::DropSinceFlush, Model::ReorderSinceFlush { seed: 1 }, Model::ReorderSinceFlush { seed: 2 }]
    {
        let state = walk.go_to(replay.last(model)).unwrap();
        assert!(bytes(&state, 1) == bytes(&disk, 1) && bytes(&state, 2) == bytes(&disk, 2), "{model:?}");
    }
    let dropped = walk.go_to(replay.last(Model::DropSinceFlush)).unwrap();
    assert!(
        bytes(&dropped, 3).iter().all(|byte| *byte == 0),
        "it was flushed, or the log has a flush too many"
    );
    digests.update(&dropped, dropped.changed()).unwrap();
    assert!(!digests.is("the disk"));

    // A state can be booted: this one, and any of a sample.
    let cuts = replay.cuts(Models::default());
    assert!(sample(&cuts, 20, 1).len() == 20);
    fs::remove_file(vm.disk()).unwrap();
    replay.materialize(replay.last(Model::DropSinceFlush), vm.disk()).unwrap();
    vm.power_on(&PowerOn::default()).unwrap();
    assert_ne!(vm.up(BOOT).unwrap().boot_id, up.boot_id);
    assert_eq!(digest_in_guest(&mut vm, 1), told[0]);
    assert_eq!(digest_in_guest(&mut vm, 2), told[1]);
    assert_ne!(digest_in_guest(&mut vm, 3), told[2]);
}

/// Writes a page; whether the disk took it.
fn writes_page(vm: &mut Vm, page: u64) -> bool {
    let command = format!("dd if=/dev/urandom of=/dev/vda bs=4k seek={page} count=1 conv=fsync 2>&1");
    let output = vm.sh(&command, SOON).unwrap();
    assert!(output.status == 0 || output.text.contains("Input/output error"), "{output:?}");
    output.status == 0
}

#[test]
fn disk_network_clock_and_reset_do_to_the_guest_what_they_say() {
    let mut vm = device!("faults", 4 * MIB);
    let broken = DiskError::pages(Request::Write, 8 * 4096..10 * 4096);
    // The log stays in place below a broken disk.
    let how = PowerOn { clock: Clock::Epoch, disk_error: Some(broken), write_log: true };
    vm.power_on(&how).unwrap();
    let up = vm.up(BOOT).unwrap();
    assert_eq!(vm.ok("date -u +%Y", SOON).unwrap(), "1970");

    assert_eq!([7, 8, 9, 10].map(|page| writes_page(&mut vm, page)), [true, false, false, true]);
    vm.disk_error(None).unwrap();
    assert!(writes_page(&mut vm, 8));
    vm.disk_error(Some(&DiskError::everywhere(Request::Write))).unwrap();
    assert!(!writes_page(&mut vm, 7));
    vm.disk_error(None).unwrap();
    assert!(writes_page(&mut vm, 7));

    let limit_of_disk =
        |vm: &mut Vm| vm.qmp("query-block", serde_json::json!({})).unwrap()[0]["inserted"]["bps_wr"].clone();
    vm.slow_disk(Some(1_000_000)).unwrap();
    assert_eq!(limit_of_disk(&mut vm), 1_000_000);
    assert!(writes_page(&mut vm, 6));
    vm.slow_disk(None).unwrap();
    assert_eq!(limit_of_disk(&mut vm), 0);

    for (link, carrier) in [(Link::Down, 0), (Link::Up, 1)] {
        vm.network(link).unwrap();
        let wait =
            format!("until [ \"$(cat /sys/class/net/eth0/carrier)\" = {carrier} ]; do sleep 0.1; done");
        vm.ok(&wait, SOON).unwrap();
    }

    assert_eq!(vm.sh("echo one; echo two; (exit 7)", SOON).unwrap().text, "one\ntwo");
    assert!(
        matches!(vm.ok("echo words; (exit 7)", SOON), Err(VmError::Failed { status: 7, text, .. }) if text == "words")
    );
    vm.reset().unwrap();
    vm.event("RESET", SOON).unwrap();
    assert_ne!(vm.up(BOOT).unwrap().boot_id, up.boot_id);

    vm.disk_error(Some(&DiskError::everywhere(Request::Flush))).unwrap();
    assert!(!writes_page(&mut vm, 7));
    assert!(matches!(vm.disk_error(None), Err(VmError::Qmp(_))), "QEMU flushes before it changes the disk");
    vm.send("echo last; sleep 1000\n").unwrap();
    vm.expect(Line("last"), SOON).unwrap();
    vm.power_cut();
    let gone = vm.expect("more", Duration::from_secs(3600)).unwrap_err();
    assert!(gone.to_string().contains("ended before"), "{gone}");
    assert!(matches!(vm.reset(), Err(VmError::Power { is: "off", .. })));
    let recording = vm.recording().unwrap();
    let replay = Replay::open(&recording.base, &recording.log).unwrap();
    let disk = DiskFile::open(vm.disk()).unwrap();
    let mut walk = replay.walk();
    let last = walk.go_to(replay.last(Model::Prefix)).unwrap();
    assert!((0..4).all(|mib| bytes(&last, mib) == bytes(&disk, mib)), "a write that failed is in the log");
}

#[test]
fn what_qemu_refuses_is_told_in_its_own_words() {
    // Where a guest cannot run, neither can this.
    drop(device!("refused", MIB));
    let workplace = Workplace::new("refused").unwrap();
    let disk = workplace.path().join("disk");
    fs::write(&disk, [0; 512]).unwrap();
    let args = vec!["-machine".into(), "toaster".into()];
    let mut vm = Vm::new(workplace, Definition { args, disk, memory_mib: 64 });
    let refused = vm.power_on(&PowerOn::default()).unwrap_err();
    assert!(
        matches!(&refused, VmError::Refused { words, .. } if words.contains("unsupported machine type")),
        "{refused}"
    );
}

#[test]
fn a_test_that_panics_leaves_the_serial_log_and_a_good_one_leaves_nothing() {
    let made = |name| {
        let workplace = Workplace::new(name).unwrap();
        assert!(workplace.path().starts_with(limits::workplace()));
        let disk = workplace.path().join("disk");
        fs::write(&disk, "x").unwrap();
        fs::write(workplace.path().join("serial.log"), "last words").unwrap();
        Vm::new(workplace, Definition { args: Vec::new(), disk, memory_mib: 64 })
    };
    let good = made("good");
    let folder = good.folder().to_path_buf();
    drop(good);
    assert!(!folder.exists());

    let bad = made("bad");
    let folder = bad.folder().to_path_buf();
    let panics = thread::spawn(move || {
        let _bad = bad;
        panic!("as a failed assertion does");
    });
    assert!(panics.join().is_err());
    assert_eq!(fs::read_to_string(folder.join("serial.log")).unwrap(), "last words");
    assert!(!folder.join("disk").exists());
    fs::remove_dir_all(folder).unwrap();
}
