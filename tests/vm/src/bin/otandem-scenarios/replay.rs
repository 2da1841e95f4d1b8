//! Power cuts at every write of two updates, judged on the host; some of the states are switched on for real.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use otandem_images::{Chain, SlotImage, copy_sparse};
use otandem_lab::{Access, Scheme};
use otandem_vm::judge::{Expected, Judge, Report, Scene, Version, places};
use otandem_vm::stage::{BOOT, Offer, Setup, Stage, release};
use otandem_vm::{Cut, DiskFile, Image, Models, PowerOn, Recording, Replay, sample};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Orders of unflushed writes that are tried at each moment.
const ORDERS: u64 = 32;
/// States that are switched on.
const BOOTS: usize = 20;
const BOOTS_QUICK: usize = 2;
/// Chooses them.
const SAMPLE: u64 = 7;
/// Bytes by which the kernels of two versions differ, behind the program; and those of initrds.
const EXTRA: usize = 256 << 10;
/// The jobs of a recording with what they install where.
const JOBS: [(&str, &str, &str); 2] = [("first", "2.0", "B"), ("second", "3.0", "A")];

/// Names a folder in which recordings stay, to be judged again, by another judge, without making them again. What is
/// switched on then need only come up: its cloud is gone. With another agent the images are other ones, and new recordings
/// due.
const KEEP: &str = "OTANDEM_RECORDINGS";

/// A recording and what it is of.
struct Recorded {
    stage: Stage,
    versions: Vec<Version>,
    base: PathBuf,
    log: PathBuf,
    /// The disk after the last write.
    end: PathBuf,
    /// Made by an earlier run.
    old: bool,
    /// Firmware variables as they were, where there are any.
    vars: Option<PathBuf>,
}

/// A -> B -> A is recorded; every state that a power cut could have left is judged, and a sample of them switched on.
pub fn power_cuts(chain: Chain, quick: bool) {
    let begin = Instant::now();
    let mut recorded = record(chain);
    println!("{}: recorded in {} s", chain.name(), begin.elapsed().as_secs());
    let replay = Replay::open(&recorded.base, &recorded.log).unwrap();
    let data = recorded.stage.partition("data");
    let scratch = recorded.stage.vm.folder().join("data.part");
    let places = places(&recorded.base, &recorded.end, data, &scratch).unwrap();
    let layout = recorded.stage.layout().to_vec();
    let scene = Scene { chain, layout: &layout, versions: recorded.versions.clone() };
    let base = DiskFile::open(&recorded.base).unwrap();
    let cuts = replay.cuts(Models { reorder: ORDERS, ..Models::default() });
    let begin = Instant::now();
    let report = Judge::new(&base, &scene, &places).unwrap().all(&replay, &cuts).unwrap();
    tell(chain, &replay, &report, begin.elapsed());
    let wanted = if quick { BOOTS_QUICK } else { BOOTS };
    let sampled = if report.failed > 0 { vec![] } else { chosen(&report, &cuts, wanted) };
    let begin = Instant::now();
    for cut in &sampled {
        // A judge looks at what changed since its last state: one that starts anew sees all.
        let mut judge = Judge::new(&base, &scene, &places).unwrap();
        let mut walk = replay.walk();
        let expected = judge.expected(&walk.go_to(*cut).unwrap()).unwrap();
        replay.materialize(*cut, recorded.stage.vm.disk()).unwrap();
        println!("{}: {cut:?} must boot set {} {}", chain.name(), expected.set, expected.version);
        recorded.switch_on(&expected);
    }
    println!("{}: {} states booted in {} s", chain.name(), sampled.len(), begin.elapsed().as_secs());
    assert_eq!(report.failed, 0, "states that break a promise");
}

/// States to switch on: half of them each the first of its kind, and half of them any.
fn chosen(report: &Report, cuts: &[Cut], count: usize) -> Vec<Cut> {
    let mut chosen = sample(&report.distinct, count / 2, SAMPLE);
    chosen.extend(sample(cuts, count - chosen.len(), SAMPLE));
    chosen.sort_unstable();
    chosen
}

/// One line for a chain, and one for each failure.
fn tell(chain: Chain, replay: &Replay, report: &Report, time: Duration) {
    let models: Vec<String> = report.states.iter().map(|(model, count)| format!("{model} {count}")).collect();
    println!(
        "{}: {} entries, {} flushes; {} states ({}), {} distinct, {} failures, {} s",
        chain.name(),
        replay.entries(),
        replay.flushes(),
        report.total(),
        models.join(", "),
        report.distinct.len(),
        report.failed,
        time.as_secs()
    );
    for (why, (count, cut)) in &report.failures {
        println!(
            "{}: {count} states, the first after entry {}, {:?}: {why}",
            chain.name(),
            cut.after,
            cut.model
        );
    }
}

/// Two whole updates with the write log.
fn record(chain: Chain) -> Recorded {
    let mut stage = Stage::with(Setup::new(chain));
    let mut versions = vec![factory(&stage)];
    let kept = std::env::var_os(KEEP).map(|folder| PathBuf::from(folder).join(chain.name()));
    let paths = |folder: &Path| ["base", "log", "end"].map(|name| folder.join(name));
    if let Some([base, log, end]) = kept.as_deref().map(paths).filter(|[.., end]| end.exists()) {
        versions.extend(JOBS.map(|(_, version, _)| offer(&stage, version).1));
        let vars = keep_variables(stage.vm.folder());
        return Recorded { stage, versions, base, log, end, old: true, vars };
    }
    // What the first start makes is not part of the updates.
    stage.power_on();
    stage.sh("sync");
    stage.vm.power_cut();
    let vars = keep_variables(stage.vm.folder());
    stage.vm.power_on(&PowerOn { write_log: true, ..PowerOn::default() }).unwrap();
    stage.expect_up("A", "1.0");
    stage.wait_settled();
    for (job, version, set) in JOBS {
        let (offer, images) = offer(&stage, version);
        stage.update(job, &offer, set);
        versions.push(images);
        let settled =
            "until otandem status --json 2>/dev/null | grep -q '\"phase\": *\"idle\"'; do :; done; sync";
        stage.vm.ok(settled, BOOT).unwrap();
    }
    stage.vm.power_cut();
    let Recording { base, log } = stage.vm.recording().unwrap().clone();
    // The disk will be another one with each state that is switched on.
    let end = stage.vm.folder().join("disk.end");
    copy_sparse(stage.vm.disk(), &end).unwrap();
    if let Some(folder) = kept {
        fs::create_dir_all(&folder).unwrap();
        for (from, to) in [&base, &log, &end].into_iter().zip(paths(&folder)) {
            copy_sparse(from, &to).unwrap();
        }
    }
    Recorded { stage, versions, base, log, end, old: false, vars }
}

fn keep_variables(folder: &Path) -> Option<PathBuf> {
    let (vars, kept) = (folder.join("vars.fd"), folder.join("vars.kept"));
    vars.exists().then(|| {
        fs::copy(vars, &kept).unwrap();
        kept
    })
}

fn image(version: &str, path: &Path) -> Image {
    let disk = DiskFile::open(path).unwrap();
    let len = fs::metadata(path).unwrap().len();
    Image::read(version, &disk, 0, len).unwrap()
}

/// What leaves the factory.
fn factory(stage: &Stage) -> Version {
    let made = stage.release(&release("1.0"));
    let images = made.slots.iter().map(|slot| (slot.slot, image("1.0", &slot.path))).collect();
    Version { name: "1.0".into(), rootfs: made.rootfs().sha256.clone(), images }
}

/// A release on the server, and what it must look like in the slots. Kernel and initrd, where they are slots, differ from
/// those of other versions.
fn offer(stage: &Stage, version: &str) -> (Offer, Version) {
    let mut offer = stage.publish(&release(version));
    let mut images = BTreeMap::new();
    let listed = offer.document["images"].as_array_mut().unwrap();
    for (slot, entry) in offer.release.slots.iter().zip(listed) {
        if slot.slot == "rootfs" {
            images.insert(slot.slot, image(version, &slot.path));
            continue;
        }
        let bytes = varied(slot, version);
        let path = format!("images/{version}/{}.raw", slot.slot);
        let file = stage.vm.folder().join(format!("{}-{version}", slot.slot));
        fs::write(&file, &bytes).unwrap();
        images.insert(slot.slot, image(version, &file));
        entry["url"] = stage.lab.placeholder(&path, Scheme::Https).into();
        entry["size"] = bytes.len().into();
        entry["sha256"] = hex(&Sha256::digest(&bytes)).into();
        entry["compression"] = json!("none");
        stage.lab.put_image(&path, bytes, Access::Signed);
    }
    let rootfs = offer.release.rootfs().sha256.clone();
    (offer, Version { name: version.into(), rootfs, images })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same kernel or initrd for the machine, other bytes for a judge.
fn varied(slot: &SlotImage, version: &str) -> Vec<u8> {
    let mut bytes = fs::read(&slot.path).unwrap();
    let mut rng = fastrand::Rng::with_seed(version.bytes().map(u64::from).sum());
    let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(EXTRA).collect();
    if slot.slot == "kernel" {
        bytes.extend(noise);
    } else {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(archive("noise", &noise));
    }
    bytes
}

/// One file in an archive of its own, as a kernel takes it behind its first one.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let member = |name: &str, mode: usize, content: &[u8]| {
        let fields = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0]
            .map(|field| format!("{field:08x}"));
        let mut bytes = format!("070701{}{name}\0", fields.concat()).into_bytes();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    [member(name, 0o100_600, content), member("TRAILER!!!", 0, &[])].concat()
}

impl Recorded {
    /// The device with the disk as it lies there: it must do what the judge says, and come to rest.
    fn switch_on(&mut self, expected: &Expected) {
        let stage = &mut self.stage;
        if let Some(vars) = &self.vars {
            copy_sparse(vars, &stage.vm.folder().join("vars.fd")).unwrap();
        }
        stage.vm.power_on(&PowerOn::default()).unwrap();
        stage.expect_up(expected.set.name(), &expected.version);
        if self.old {
            stage.vm.power_cut();
            return;
        }
        let rest = "n=0; until otandem status --json 2>/dev/null | tr -d ' \\n' | \
                    grep -q '\"phase\":\"idle\".*\"ready\":true'; do sleep 0.2; n=$((n+1)); [ $n -lt 300 ] || exit 1; done";
        // It may have to reset once more: an arming that was cut is taken up again, or a trial ends.
        for _ in 0..3 {
            match stage.vm.ok(&format!("( {rest} )"), BOOT) {
                Ok(_) => break,
                Err(why) => {
                    println!("{}: not at rest in the first boot: {why}", stage.chain.name());
                    stage.vm.up(BOOT).unwrap();
                }
            }
        }
        let status = stage.status();
        let booted = &status["booted"];
        assert_eq!(&status["confirmed"], booted, "{status}");
        assert_eq!(&status["bootloader"]["primary"], booted, "{status}");
        assert_eq!(status["late-fallback"], json!(false), "{status}");
        stage.vm.power_cut();
    }
}
