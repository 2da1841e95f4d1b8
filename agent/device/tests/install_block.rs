//! Block slots, on loop devices. Where a machine has none to give, each test says that it was skipped.

mod install_support;

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use install_support::{Bench, Log, MIB, MemFetch, image, image_bytes, zstd};
use otandem_core::image::{Compression, Expect, Image};
use otandem_device::install::{Class, Fault, FileFetch, InstallError, OtherDisk, Plan, ReadBack, install};

static GO: AtomicBool = AtomicBool::new(false);

fn fault(result: Result<Vec<otandem_device::install::Written>, InstallError>) -> Fault {
    match result {
        Err(InstallError::Image { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

/// A loop device, given back at the end.
struct Loop(PathBuf);

impl Loop {
    /// `None`, and a word why, where this machine has none to give.
    fn new(file: &Path, size: usize) -> Option<Self> {
        std::fs::File::create(file).unwrap().set_len(size as u64).unwrap();
        let output = Command::new("losetup").args(["--find", "--show", "--nooverlap"]).arg(file).output();
        match output {
            Ok(o) if o.status.success() => Some(Self(String::from_utf8(o.stdout).unwrap().trim().into())),
            other => {
                eprintln!("skipped: no loop device to be had: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

fn read_device(path: &Path, len: usize) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = vec![0; len];
    std::fs::File::open(path).unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

fn fill(path: &Path, byte: u8, len: usize) {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(&vec![byte; len]).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_state_directory_without_room_is_found_before_anything_is_touched() {
    let Some(machine) = Block::new(4 * MIB) else { return };
    let raw = image_bytes(2 * MIB, 3);
    let images = [image("rootfs", "x", None, &raw)];
    let missing = machine.bench.dir.path().join("missing");
    fill(&machine.device.0, 0x55, 4 * MIB);
    let mut log = Log::default();
    let plan = machine.bench.plan(&images, &missing);
    let fault = fault(install(&plan, &mut MemFetch::new([("x", raw)]), &mut log, &GO));
    assert!(matches!(fault, Fault::State { .. }) && fault.class() == Class::Failed, "{fault}");
    assert_eq!(log.ready, 0);
    assert!(read_device(&machine.device.0, 4 * MIB).iter().all(|b| *b == 0x55));
}

/// One block slot on a loop device.
struct Block {
    device: Loop,
    bench: Bench,
}

impl Block {
    fn new(size: usize) -> Option<Self> {
        let mut bench = Bench::new(&["rootfs"]);
        let device = Loop::new(&bench.dir.path().join("disk"), size)?;
        bench.targets.insert("rootfs".to_owned(), device.0.clone());
        Some(Self { device, bench })
    }
}

#[test]
fn every_frame_size_into_a_block_slot_and_through_a_cut() {
    let size = 6 * MIB;
    let Some(machine) = Block::new(size) else { return };
    let state = machine.bench.state();
    let raw = image_bytes(3 * MIB + 1234, 3);
    for (name, packed) in
        [("raw", raw.clone()), ("one", zstd(&raw, raw.len())), ("many", zstd(&raw, 100_000))]
    {
        fill(&machine.device.0, 0xaa, size);
        let images = [image("rootfs", "x", None, &raw)];
        let mut fetch = MemFetch::new([("x", packed.clone())]);
        fetch.object("x").cut = Some(packed.len() * 4 / 5);
        let mut log = Log::default();
        install(&machine.bench.plan(&images, &state), &mut fetch, &mut log, &GO).unwrap_err();
        assert!(read_device(&machine.device.0, MIB).iter().all(|b| *b == 0), "{name}: no head after a cut");

        fetch.object("x").cut = None;
        let plan = Plan { resume: log.last.as_ref(), ..machine.bench.plan(&images, &state) };
        let written = install(&plan, &mut fetch, &mut Log::default(), &GO).unwrap();
        assert_eq!(written[0].resumed, name != "one");
        let content = read_device(&machine.device.0, size);
        assert!(content[..raw.len()] == raw[..], "{name}");
        let padded = raw.len().next_multiple_of(512);
        assert!(content[raw.len()..padded].iter().all(|b| *b == 0), "{name}: the last block is padded");
        assert!(content[padded..].iter().all(|b| *b == 0xaa), "{name}: what lies behind is not touched");
        assert_eq!(machine.bench.names_in_state(), [""; 0]);
    }
}

#[test]
fn a_head_file_that_is_gone_starts_the_image_again() {
    let Some(machine) = Block::new(4 * MIB) else { return };
    let state = machine.bench.state();
    let raw = image_bytes(3 * MIB, 3);
    let images = [image("rootfs", "x", None, &raw)];
    for damage in [true, false] {
        let mut fetch = MemFetch::new([("x", raw.clone())]);
        fetch.object("x").cut = Some(2 * MIB + 5);
        let mut log = Log::default();
        install(&machine.bench.plan(&images, &state), &mut fetch, &mut log, &GO).unwrap_err();
        assert!(log.last.is_some());
        if damage {
            std::fs::write(state.join("head.rootfs"), b"short").unwrap();
        } else {
            std::fs::remove_file(state.join("head.rootfs")).unwrap();
        }
        fetch.object("x").cut = None;
        let plan = Plan { resume: log.last.as_ref(), ..machine.bench.plan(&images, &state) };
        assert!(!install(&plan, &mut fetch, &mut Log::default(), &GO).unwrap()[0].resumed);
        assert!(read_device(&machine.device.0, raw.len()) == raw);
    }
}

#[test]
fn slots_smaller_than_a_head_work() {
    for (slot, len) in [(64 << 10, 64 << 10), (64 << 10, 1000), (MIB + 512, MIB + 512)] {
        let Some(machine) = Block::new(slot) else { return };
        let state = machine.bench.state();
        fill(&machine.device.0, 0xaa, slot);
        let raw = image_bytes(len, 3);
        let images = [image("rootfs", "x", None, &raw)];
        let plan = Plan { read_back: ReadBack::Always, ..machine.bench.plan(&images, &state) };
        install(&plan, &mut MemFetch::new([("x", raw.clone())]), &mut Log::default(), &GO).unwrap();
        assert!(read_device(&machine.device.0, len) == raw);
    }
}

#[test]
fn runs_of_zeros_replace_what_was_there() {
    let Some(machine) = Block::new(8 * MIB) else { return };
    let state = machine.bench.state();
    fill(&machine.device.0, 0xff, 8 * MIB);
    let mut raw = vec![0; 8 * MIB];
    raw[0] = 1;
    raw[5 * MIB + 70_000] = 2;
    let images = [image("rootfs", "x", None, &raw)];
    let plan = Plan { read_back: ReadBack::Always, ..machine.bench.plan(&images, &state) };
    install(&plan, &mut MemFetch::new([("x", zstd(&raw, raw.len()))]), &mut Log::default(), &GO).unwrap();
    assert!(read_device(&machine.device.0, raw.len()) == raw);
}

#[test]
fn an_image_larger_than_the_slot_is_rejected_before_it_is_touched() {
    let Some(machine) = Block::new(2 * MIB) else { return };
    let state = machine.bench.state();
    fill(&machine.device.0, 0xaa, 2 * MIB);
    let raw = image_bytes(2 * MIB + 1, 3);
    let mut told = image("rootfs", "x", None, &raw);
    let packed = zstd(&raw, raw.len());
    // By the document, by the raw source, by the frame's header.
    let by_header = Image { raw: Expect { size: None, ..told.raw }, ..told.clone() };
    for (image, source) in
        [(told.clone(), packed.clone()), (by_header.clone(), raw.clone()), (by_header, packed)]
    {
        let mut log = Log::default();
        let images = [image];
        let mut fetch = MemFetch::new([("x", source)]);
        let fault = fault(install(&machine.bench.plan(&images, &state), &mut fetch, &mut log, &GO));
        assert!(matches!(fault, Fault::DoesNotFit { capacity: 0x20_0000, .. }), "{fault}");
        assert_eq!((fault.class(), log.ready), (Class::Rejected, 0));
    }
    assert!(read_device(&machine.device.0, 2 * MIB).iter().all(|b| *b == 0xaa));
    // Nobody tells: the stream is stopped at the end of the slot.
    told.raw.size = None;
    told.compression = Some(Compression::None);
    let mut fetch = MemFetch::new([("x", raw)]);
    fetch.object("x").hide_total = true;
    let images = [told];
    let fault = fault(install(&machine.bench.plan(&images, &state), &mut fetch, &mut Log::default(), &GO));
    assert!(matches!(fault, Fault::TooLong { limit: 0x20_0000, .. }), "{fault}");
}

#[test]
fn a_mounted_device_a_device_of_the_running_set_and_another_disk_are_refused() {
    let Some(machine) = Block::new(8 * MIB) else { return };
    let state = machine.bench.state();
    let raw = image_bytes(MIB, 3);
    let images = [image("rootfs", "x", None, &raw)];
    let run = |change: &dyn Fn(&mut Plan<'_>)| {
        let mut log = Log::default();
        let mut plan = machine.bench.plan(&images, &state);
        change(&mut plan);
        let fault = fault(install(&plan, &mut MemFetch::new([("x", raw.clone())]), &mut log, &GO));
        assert_eq!((fault.class(), log.ready), (Class::Rejected, 0), "{fault}");
        fault.to_string()
    };
    assert!(run(&|plan| plan.other_disk = OtherDisk::Refuse).contains("not on the disk of /"));
    let link = machine.bench.dir.path().join("running");
    symlink(&machine.device.0, &link).unwrap();
    let forbidden = [link];
    let running = |images: &[Image]| {
        let plan = Plan { forbidden: &forbidden, ..machine.bench.plan(images, &state) };
        fault(install(&plan, &mut MemFetch::new([("x", raw.clone())]), &mut Log::default(), &GO)).to_string()
    };
    assert!(running(&images).contains("running set"));
    // Held by someone who asked to be alone with it, as mkfs, device-mapper and mount do.
    use std::os::unix::fs::OpenOptionsExt;
    let mut alone = std::fs::OpenOptions::new();
    alone.read(true).custom_flags(nix::libc::O_EXCL);
    let held = alone.open(&machine.device.0).unwrap();
    assert!(run(&|_| {}).contains("something uses it"));
    drop(held);

    let point = machine.bench.dir.path().join("mnt");
    std::fs::create_dir(&point).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&machine.device.0).status();
    if !made.is_ok_and(|s| s.success()) {
        eprintln!("skipped: no mkfs.ext4");
        return;
    }
    if !Command::new("mount").arg(&machine.device.0).arg(&point).status().is_ok_and(|s| s.success()) {
        eprintln!("skipped: mount is not allowed");
        return;
    }
    let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&|_| {})));
    Command::new("umount").arg(&point).status().unwrap();
    assert!(said.unwrap().contains("mounted at"));
}

#[test]
fn a_link_to_a_block_device_is_followed() {
    let Some(mut machine) = Block::new(2 * MIB) else { return };
    let link = machine.bench.dir.path().join("by-partlabel");
    symlink(&machine.device.0, &link).unwrap();
    machine.bench.targets.insert("rootfs".to_owned(), link);
    let state = machine.bench.state();
    let raw = image_bytes(MIB + 4, 3);
    let images = [image("rootfs", "x", None, &raw)];
    install(
        &machine.bench.plan(&images, &state),
        &mut MemFetch::new([("x", raw.clone())]),
        &mut Log::default(),
        &GO,
    )
    .unwrap();
    assert!(read_device(&machine.device.0, raw.len()) == raw);
    // The same device under two names is one device.
    machine.bench.targets.insert("boot".to_owned(), machine.device.0.clone());
    let plan = machine.bench.plan(&images, &state);
    let fault = fault(install(&plan, &mut MemFetch::new([("x", raw)]), &mut Log::default(), &GO));
    assert!(fault.to_string().contains("also slot boot"), "{fault}");
}

#[test]
fn a_block_device_is_a_source_of_as_much_as_the_image_has() {
    let raw = image_bytes(2 * MIB, 3);
    let bench = Bench::new(&["rootfs"]);
    let state = bench.state();
    let Some(device) = Loop::new(&bench.dir.path().join("disk"), 4 * MIB) else { return };
    std::fs::write(&device.0, &raw).unwrap();
    let images = [image("rootfs", device.0.to_str().unwrap(), Some(Compression::None), &raw)];
    install(&bench.plan(&images, &state), &mut FileFetch, &mut Log::default(), &GO).unwrap();
    assert!(std::fs::read(bench.path("rootfs")).unwrap() == raw, "of the device as much as the image has");
}
