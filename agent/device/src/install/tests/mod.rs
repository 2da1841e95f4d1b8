//! The pipeline on a disk that fails and loses its power.

mod disk;
#[path = "../../../tests/install_support/mod.rs"]
mod support;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use nix::libc;
use otandem_core::image::{Checkpoint, Compression, Image};
use proptest::prelude::*;

use self::disk::{Disk, Luck, MARKS, SECTOR};
use self::support::{Bench, Log, MIB, MemFetch, image, image_bytes, zstd};
use super::slot::Slot;
use super::{Class, Fault, InstallError, ReadBack, Written, install_into};

static GO: AtomicBool = AtomicBool::new(false);

/// Two images, for `boot` (small, raw, its mark in the first sector, as a kernel's) and `rootfs` (frames, its mark in the
/// third sector, as ext4's), and the disks for them.
struct Machine {
    bench: Bench,
    images: Vec<Image>,
    raws: Vec<Vec<u8>>,
    disks: Vec<Disk>,
    olds: Vec<Vec<u8>>,
    sources: Vec<(&'static str, Vec<u8>)>,
}

impl Machine {
    fn new() -> Self {
        let like_ext4 = |mut bytes: Vec<u8>| {
            bytes[..MARKS[1]].fill(0);
            bytes
        };
        let raws = vec![image_bytes(MIB + 5000, 3), like_ext4(image_bytes(3 * MIB + 12_345, 7))];
        let images =
            vec![image("boot", "a", Some(Compression::None), &raws[0]), image("rootfs", "b", None, &raws[1])];
        let olds = vec![image_bytes(4 * MIB, 11), like_ext4(image_bytes(4 * MIB, 11))];
        let sources = vec![("a", raws[0].clone()), ("b", zstd(&raws[1], 200_000))];
        let disks: Vec<Disk> =
            images.iter().zip(&olds).map(|(i, old)| Disk::new(&i.slot, old.clone())).collect();
        // A kernel on FAT beside a partition.
        disks[0].with(|s| s.tail = true);
        Self { bench: Bench::new(&["boot", "rootfs"]), images, raws, disks, olds, sources }
    }

    fn run(
        &self,
        fetch: &mut MemFetch,
        log: &mut Log,
        resume: Option<&Checkpoint>,
        read_back: ReadBack,
    ) -> Result<Vec<Written>, InstallError> {
        let state = self.bench.state();
        let mut plan = self.bench.plan(&self.images, &state);
        plan.resume = resume;
        plan.boots_first = Some("boot");
        plan.read_back = read_back;
        let slots = self.disks.iter().map(|d| Box::new(d.clone()) as Box<dyn Slot>).collect();
        install_into(slots, &plan, fetch, log, &GO)
    }

    fn install(&self, fetch: &mut MemFetch, log: &mut Log) -> Result<Vec<Written>, InstallError> {
        self.run(fetch, log, None, ReadBack::WhereDue)
    }

    fn fetch(&self) -> MemFetch {
        MemFetch::new(self.sources.clone())
    }

    /// A slot can be mounted only with an image in it that is complete.
    fn assert_unmountable_or_complete(&self) {
        for (((disk, raw), old), mark) in self.disks.iter().zip(&self.raws).zip(&self.olds).zip(MARKS) {
            disk.with(|s| {
                let unmountable = s.durable[mark..mark + SECTOR].iter().all(|b| *b == 0);
                let complete = s.durable[..raw.len()] == raw[..];
                assert!(unmountable || complete || s.durable == *old, "{}: a torn image has a head", s.name);
            });
        }
    }

    fn assert_installed(&self) {
        for (disk, raw) in self.disks.iter().zip(&self.raws) {
            disk.with(|s| {
                assert!(s.durable[..raw.len()] == raw[..], "{} is not its image", s.name);
                let behind = &s.durable[raw.len()..];
                assert!(!s.tail || behind.iter().all(|b| *b == 0), "{}: an older image shows behind", s.name);
            });
        }
        assert_eq!(self.bench.names_in_state(), [""; 0], "nothing waits any more");
    }

    fn fault(&self, fetch: &mut MemFetch) -> Fault {
        match self.install(fetch, &mut Log::default()) {
            Err(InstallError::Image { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn both_images_are_written_and_what_boots_first_comes_last() {
    let machine = Machine::new();
    let order = Arc::new(Mutex::new(Vec::new()));
    for disk in &machine.disks {
        disk.with(|s| s.published = Some(order.clone()));
    }
    let mut fetch = machine.fetch();
    let written = machine.install(&mut fetch, &mut Log::default()).unwrap();
    machine.assert_installed();
    assert_eq!(*order.lock().unwrap(), ["rootfs", "boot"]);
    for (w, raw) in written.iter().zip(&machine.raws) {
        assert_eq!((w.size, w.sha256, w.resumed), (raw.len() as u64, support::sha256(raw), false));
    }
    let fetched: u64 = written.iter().map(|w| w.fetched).sum();
    assert_eq!(fetched, fetch.handed(), "every byte that was taken is told");
}

#[test]
fn heads_are_zero_before_the_first_byte_and_until_all_is_verified() {
    let machine = Machine::new();
    let mut log = Log { stop_after: Some(1), ..Log::default() };
    let error = machine.install(&mut machine.fetch(), &mut log).unwrap_err();
    assert_eq!(error.class(), Class::Stopped);
    for disk in &machine.disks {
        disk.with(|s| assert!(s.seen()[..MIB].iter().all(|b| *b == 0), "{}", s.name));
    }
}

#[test]
fn nothing_is_touched_when_the_caller_is_not_ready() {
    let machine = Machine::new();
    let mut log = Log { refuse_ready: true, ..Log::default() };
    assert_eq!(machine.install(&mut machine.fetch(), &mut log).unwrap_err().class(), Class::Stopped);
    for (disk, old) in machine.disks.iter().zip(&machine.olds) {
        disk.with(|s| assert!(s.seen() == *old && s.operations == 0));
    }
}

#[test]
fn a_disk_error_at_any_place_fails_the_job_and_hangs_nothing() {
    for (errno, at) in [(libc::EIO, 0), (libc::EIO, MIB), (libc::ENOSPC, 2 * MIB), (libc::EIO, 3 * MIB)] {
        let machine = Machine::new();
        machine.disks[1].with(|s| s.fail = Some((at, errno)));
        let fault = machine.fault(&mut machine.fetch());
        assert_eq!(fault.class(), Class::Failed);
        let Fault::Slot { source, .. } = &fault else { panic!("{fault}") };
        assert_eq!(source.raw_os_error(), Some(errno));
        machine.assert_unmountable_or_complete();
    }
}

#[test]
fn short_writes_go_on_where_they_stopped() {
    let machine = Machine::new();
    machine.disks[1].with(|s| s.short = Some(3 * SECTOR + 17));
    machine.install(&mut machine.fetch(), &mut Log::default()).unwrap();
    machine.assert_installed();
}

#[test]
fn a_disk_that_takes_nothing_is_an_error_not_a_loop() {
    let machine = Machine::new();
    machine.disks[1].with(|s| s.short = Some(100));
    assert_eq!(machine.fault(&mut machine.fetch()).class(), Class::Failed);
}

#[test]
fn a_disk_that_forgets_is_found_by_reading_back() {
    let machine = Machine::new();
    let disk = machine.disks[1].clone();
    struct Liar(Log, Disk);
    impl super::Observer for Liar {
        fn ready(&mut self) -> Result<(), super::Stopped> {
            self.0.ready()
        }
        fn progress(&mut self, p: super::Progress) {
            // Damages what has just been written.
            if p.image == 1 && p.phase == super::Phase::Writing {
                self.1.with(|s| s.damage(2 * MIB));
            }
        }
        fn checkpoint(&mut self, c: &Checkpoint) -> Result<(), super::Stopped> {
            self.0.checkpoint(c)
        }
    }
    let state = machine.bench.state();
    let mut plan = machine.bench.plan(&machine.images, &state);
    plan.read_back = ReadBack::Always;
    let slots = machine.disks.iter().map(|d| Box::new(d.clone()) as Box<dyn Slot>).collect();
    let error =
        install_into(slots, &plan, &mut machine.fetch(), &mut Liar(Log::default(), disk), &GO).unwrap_err();
    assert!(matches!(error, InstallError::Image { fault: Fault::ReadBack { .. }, .. }), "{error}");
    machine.assert_unmountable_or_complete();
}

#[test]
fn a_head_that_was_changed_while_it_waited_is_not_written() {
    let machine = Machine::new();
    let mut log = Log::default();
    let path = machine.bench.state().join("head.boot");
    // The last checkpoint comes after all is verified and before the heads.
    struct Vandal<'a>(&'a mut Log, std::path::PathBuf);
    impl super::Observer for Vandal<'_> {
        fn ready(&mut self) -> Result<(), super::Stopped> {
            self.0.ready()
        }
        fn progress(&mut self, _: super::Progress) {}
        fn checkpoint(&mut self, c: &Checkpoint) -> Result<(), super::Stopped> {
            if c.image == 2 {
                std::fs::write(&self.1, vec![1; MIB]).unwrap();
            }
            self.0.checkpoint(c)
        }
    }
    let state = machine.bench.state();
    let plan = machine.bench.plan(&machine.images, &state);
    let slots = machine.disks.iter().map(|d| Box::new(d.clone()) as Box<dyn Slot>).collect();
    let error =
        install_into(slots, &plan, &mut machine.fetch(), &mut Vandal(&mut log, path), &GO).unwrap_err();
    assert!(matches!(error, InstallError::Image { fault: Fault::ReadBack { .. }, .. }), "{error}");
    machine.assert_unmountable_or_complete();
}

#[test]
fn a_panic_in_any_thread_is_an_error() {
    let machine = Machine::new();
    let mut fetch = machine.fetch();
    fetch.object("b").panic_at = Some(300_000);
    assert!(matches!(machine.fault(&mut fetch), Fault::Panicked("receiving")));

    // On the disk, once its head is zeroed: that is done on the caller's own thread.
    struct Trap(Log, Disk);
    impl super::Observer for Trap {
        fn ready(&mut self) -> Result<(), super::Stopped> {
            self.0.ready()
        }
        fn progress(&mut self, p: super::Progress) {
            if p.image == 1 {
                self.1.with(|s| s.panic = true);
            }
        }
        fn checkpoint(&mut self, c: &Checkpoint) -> Result<(), super::Stopped> {
            self.0.checkpoint(c)
        }
    }
    let machine = Machine::new();
    let mut trap = Trap(Log::default(), machine.disks[1].clone());
    let state = machine.bench.state();
    let plan = machine.bench.plan(&machine.images, &state);
    let slots = machine.disks.iter().map(|d| Box::new(d.clone()) as Box<dyn Slot>).collect();
    let result = install_into(slots, &plan, &mut machine.fetch(), &mut trap, &GO);
    let Err(InstallError::Image { fault: Fault::Panicked("writing"), .. }) = result else {
        panic!("{result:?}")
    };
    machine.assert_unmountable_or_complete();
}

#[test]
fn a_source_that_hangs_does_not_keep_a_disk_error_waiting() {
    // The stream blocks until the test ends; the disk fails at once.
    let (release, hang) = std::sync::mpsc::channel::<()>();
    struct Hanging(Vec<bytes::Bytes>, std::sync::mpsc::Receiver<()>);
    impl super::ByteStream for Hanging {
        fn next(&mut self) -> Result<Option<bytes::Bytes>, super::FetchError> {
            match self.0.pop() {
                Some(piece) => Ok(Some(piece)),
                None => {
                    let _ = self.1.recv();
                    Ok(None)
                }
            }
        }
    }
    struct Once(Option<Hanging>);
    impl super::Fetch for Once {
        fn open(&mut self, _: &Image, _: u64, _: Option<&str>) -> Result<super::Opened, super::FetchError> {
            let stream = Box::new(self.0.take().unwrap());
            Ok(super::Opened { total: None, etag: None, stream })
        }
    }
    let machine = Machine::new();
    machine.disks[1].with(|s| s.fail = Some((MIB, libc::EIO)));
    let raw = &machine.raws[1];
    let pieces = vec![bytes::Bytes::copy_from_slice(&raw[..raw.len() - 100])];
    let images = vec![image("rootfs", "b", Some(Compression::None), raw)];
    let state = machine.bench.state();
    let plan = machine.bench.plan(&images, &state);
    let mut fetch = Once(Some(Hanging(pieces, hang)));
    let slots: Vec<Box<dyn Slot>> = vec![Box::new(machine.disks[1].clone())];
    let error = install_into(slots, &plan, &mut fetch, &mut Log::default(), &GO).unwrap_err();
    assert_eq!(error.class(), Class::Failed);
    drop(release);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// UPDATE-RULES 1.2 and 1.5: the power goes at any operation of either disk or at any byte of either source,
    /// again and again; in the end the images are there.
    #[test]
    fn power_cuts_leave_slots_unmountable_or_complete_and_the_update_goes_on(
        cuts in prop::collection::vec((0usize..70, 0usize..2, any::<u64>(), prop::bool::ANY), 1..5)
    ) {
        let machine = Machine::new();
        let mut last: Option<Checkpoint> = None;
        for (at, which, chance, network) in cuts {
            let mut fetch = machine.fetch();
            if network {
                let name = ["a", "b"][which];
                let len = fetch.object(name).bytes.len();
                fetch.object(name).cut = Some(len * at / 70);
            } else {
                machine.disks[which].with(|s| s.alive = Some(at));
            }
            let mut log = Log { last: last.clone(), ..Log::default() };
            let result = machine.run(&mut fetch, &mut log, last.as_ref(), ReadBack::WhereDue);
            last = log.last;
            for (i, disk) in machine.disks.iter().enumerate() {
                disk.with(|s| s.power_cut(Luck::Any(chance ^ i as u64)));
            }
            machine.assert_unmountable_or_complete();
            if result.is_ok() {
                machine.assert_installed();
            }
        }
        machine.run(&mut machine.fetch(), &mut Log::default(), last.as_ref(), ReadBack::WhereDue).unwrap();
        machine.assert_installed();
    }
}

#[test]
fn every_single_operation_may_be_the_last() {
    let whole = Machine::new();
    whole.install(&mut whole.fetch(), &mut Log::default()).unwrap();
    let counts = whole.disks.iter().enumerate().map(|(disk, d)| (disk, d.with(|s| s.operations)));
    let places = counts.flat_map(|(disk, count)| (0..count).map(move |at| (disk, at)));
    for (disk, at, luck) in
        places.flat_map(|(disk, at)| [(disk, at, Luck::OnlyTheMarks), (disk, at, Luck::AllButTheMarks)])
    {
        let machine = Machine::new();
        machine.disks[disk].with(|s| s.alive = Some(at));
        let mut log = Log::default();
        machine.install(&mut machine.fetch(), &mut log).unwrap_err();
        for disk in &machine.disks {
            disk.with(|s| s.power_cut(luck));
        }
        machine.assert_unmountable_or_complete();
        let mut fetch = machine.fetch();
        machine.run(&mut fetch, &mut Log::default(), log.last.as_ref(), ReadBack::WhereDue).unwrap();
        machine.assert_installed();
        if log.last.is_some_and(|c| c.image == 2) {
            assert_eq!(fetch.handed(), 0, "what is complete is not fetched again");
        }
    }
}

#[test]
fn a_finished_image_that_was_damaged_meanwhile_is_written_again() {
    let machine = Machine::new();
    // All is written and verified; the power goes before the heads.
    let mut last = None;
    for _ in 0..40 {
        let mut log = Log { stop_after: Some(1), ..Log::default() };
        machine.run(&mut machine.fetch(), &mut log, last.as_ref(), ReadBack::WhereDue).unwrap_err();
        last = log.last;
        if last.as_ref().is_some_and(|c| c.image == 2) {
            break;
        }
    }
    assert_eq!(last.as_ref().unwrap().image, 2);
    machine.disks[1].with(|s| s.damage(2 * MIB));
    let mut fetch = machine.fetch();
    let written = machine.run(&mut fetch, &mut Log::default(), last.as_ref(), ReadBack::WhereDue).unwrap();
    machine.assert_installed();
    assert_eq!(written.iter().map(|w| w.resumed).collect::<Vec<_>>(), [true, false]);
    assert_eq!(fetch.handed(), machine.sources[1].1.len() as u64, "the other one is kept");
}

#[test]
fn nothing_goes_on_from_an_image_that_is_wrong() {
    let mut machine = Machine::new();
    machine.images[1].raw.sha256 = Some(support::sha256(b"other"));
    let mut log = Log::default();
    machine.install(&mut machine.fetch(), &mut log).unwrap_err();
    assert!(log.last.as_ref().is_some_and(|c| c.image == 1 && c.raw_offset > 0));
    let names = machine.bench.names_in_state();
    assert!(names.iter().all(|name| !name.ends_with("rootfs")), "{names:?}");
    machine.assert_unmountable_or_complete();
    // The document is put right: the same checkpoint takes nothing over.
    machine.images[1].raw.sha256 = Some(support::sha256(&machine.raws[1]));
    let written = machine
        .run(&mut machine.fetch(), &mut Log::default(), log.last.as_ref(), ReadBack::WhereDue)
        .unwrap();
    assert_eq!(written.iter().map(|w| w.resumed).collect::<Vec<_>>(), [true, false]);
    machine.assert_installed();
}
