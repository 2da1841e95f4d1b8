//! What a device must live through that nobody planned: a boot environment, a record, a clock, a partition that is lost
//! or wrong.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use otandem_images::Chain;
use otandem_lab::Status;
use otandem_vm::chain::{self, Environment};
use otandem_vm::stage::{Setup, Stage};
use otandem_vm::{Clock, PowerOn};

use crate::gates::{self, Moment};

/// The device is held at this moment, its boot environment is lost, and then its power; with the digest of set A from
/// before.
fn environment_and_power_lost(chain: Chain, moment: Moment) -> (Stage, String) {
    let (mut stage, _) = gates::held(gates::setup(chain), moment);
    let before = stage.digest("root-a");
    lose(&mut stage, Environment::Lost);
    (stage, before)
}

/// Brings the boot environment into that state and cuts the power; the next boot, which the loader makes of it by itself,
/// is of A.
fn lose(stage: &mut Stage, how: Environment) {
    stage.sh(&how.command(stage.chain));
    stage.vm.power_cut();
    stage.lab.clear_faults();
    let met = |stage: &Stage| {
        let said = stage.vm.transcript();
        how.sign(stage.chain).map(|sign| said.matches(sign).count())
    };
    let before = met(stage);
    stage.boot("A", "1.0");
    assert!(before.is_none() || met(stage) > before, "the loader has not met {how:?}");
}

/// The running set is the confirmed one, settled and first in the loader's order, and nothing wants attention.
fn in_order(stage: &mut Stage, set: &str) {
    stage.wait_settled();
    stage.wait_sh("otandem status --check >/dev/null 2>&1");
    let status = stage.status();
    for said in [&status["booted"], &status["confirmed"], &status["bootloader"]["primary"]]
        .map(serde_json::Value::as_str)
    {
        assert_eq!(said, Some(set), "{status}");
    }
    assert_eq!(status["bootloader"][set], "good", "{status}");
    assert_eq!(status["late-fallback"], false, "{status}");
}

/// Nothing goes on: on A nothing changes; from B the device goes to A by its loader's defaults, and back by one reboot.
pub fn environment_lost_when_idle(chain: Chain) {
    let mut stage = Stage::up(chain);
    lose(&mut stage, Environment::Lost);
    in_order(&mut stage, "A");
    let offer = stage.good("2.0");
    stage.update("update", &offer, "B");
    lose(&mut stage, Environment::Lost);
    stage.expect_up("B", "2.0");
    in_order(&mut stage, "B");
    stage.vm.reset().unwrap();
    stage.expect_up("B", "2.0");
    in_order(&mut stage, "B");
    stage.expect_end("update", Status::Succeeded, "");
    stage.finish();
}

/// While the slot is written: the half set is not booted, the download goes on.
pub fn environment_lost_while_writing(chain: Chain) {
    let (mut stage, _) = environment_and_power_lost(chain, Moment::Writing);
    stage.expect_up("B", "2.0");
    stage.expect_end("update", Status::Succeeded, "");
    in_order(&mut stage, "B");
    stage.finish();
}

/// When armed: the loader does not know of it, and the job says so.
pub fn environment_lost_when_armed(chain: Chain) {
    let (mut stage, before) = environment_and_power_lost(chain, Moment::Armed);
    gates::back_on_a(&mut stage, "bootloader did not try set B", &before);
    gates::next_update_succeeds(stage, "B");
}

/// In the trial: the loader goes back to A, and the job says that it got no verdict.
pub fn environment_lost_in_the_trial(chain: Chain) {
    let (mut stage, before) = environment_and_power_lost(chain, Moment::Trial);
    gates::back_on_a(&mut stage, "trial ended without a verdict", &before);
    // Nobody found fault with the image: it is not banned.
    let offer = stage.good("2.0");
    stage.update("again", &offer, "B");
    in_order(&mut stage, "B");
    stage.finish();
}

/// As soon as B is confirmed: one reboot from A brings it back, and the job has succeeded.
pub fn environment_lost_when_confirmed(chain: Chain) {
    let (mut stage, _) = environment_and_power_lost(chain, Moment::Confirmed);
    stage.expect_up("B", "2.0");
    stage.expect_end("update", Status::Succeeded, "");
    in_order(&mut stage, "B");
    stage.finish();
}

/// Torn or somebody else's: the device boots, and the agent puts it in order.
pub fn environment_makes_no_sense(chain: Chain) {
    let mut stage = Stage::up(chain);
    for how in [Environment::Torn, Environment::Foreign] {
        lose(&mut stage, how);
        in_order(&mut stage, "A");
    }
    gates::next_update_succeeds(stage, "B");
}

/// No set has a try left: the loader boots one all the same, and the agent gives it its tries back.
pub fn tries_used_up(chain: Chain) {
    let mut stage = Stage::up(chain);
    lose(&mut stage, Environment::Exhausted);
    in_order(&mut stage, "A");
    gates::next_update_succeeds(stage, "B");
}

/// It is lost while the system runs: an update either puts it in order or is refused with the way back, which is a reset.
pub fn environment_lost_in_the_running_system(chain: Chain) {
    let mut stage = gates::up(gates::setup(chain));
    let before = stage.digest("root-a");
    stage.sh(&Environment::Lost.command(chain));
    let offer = stage.good("2.0");
    if chain == Chain::UBoot {
        stage.job("update", &offer.document);
        gates::back_on_a(&mut stage, "the environment is lost", &before);
        let view = stage.status()["bootloader"]["view"].to_string();
        assert!(view.contains("lost, nothing valid in it"), "{view}");
        stage.vm.reset().unwrap();
        stage.expect_up("A", "1.0");
        in_order(&mut stage, "A");
    } else {
        stage.update("update", &offer, "B");
        in_order(&mut stage, "B");
    }
    let next = if chain == Chain::UBoot { "B" } else { "A" };
    gates::next_update_succeeds(stage, next);
}

/// The record, the heads and all else that the agent keeps; what belongs to the device stays.
const FORGET: &str = "find /data/otandem -type f ! -name device.toml -exec rm {} + && sync";

/// The record is lost between arming and the trial: what the cloud was told settles it.
pub fn state_lost_when_armed(chain: Chain) {
    let (mut stage, _) = gates::held(gates::setup(chain), Moment::Armed);
    stage.sh(FORGET);
    stage.vm.power_cut();
    stage.boot("B", "2.0");
    stage.expect_end("update", Status::Succeeded, "");
    in_order(&mut stage, "B");
    gates::next_update_succeeds(stage, "A");
}

/// Record and boot environment are both lost then: the old set runs, and the job says that the new one does not.
pub fn state_and_environment_lost_when_armed(chain: Chain) {
    let (mut stage, _) = gates::held(gates::setup(chain), Moment::Armed);
    let before = stage.digest("root-a");
    stage.sh(FORGET);
    lose(&mut stage, Environment::Lost);
    gates::back_on_a(&mut stage, "state lost; set B is not running", &before);
    gates::next_update_succeeds(stage, "B");
}

/// A clock without a battery: the time is taken as at least that of the build, and the update goes its way.
pub fn clock_in_1970(chain: Chain) {
    // EFI firmware puts a year of before 1998 into the next century, so the clock of the machine would not do.
    let mut stage = Stage::with(Setup::new(chain).data("clock", "1970-01-01 00:00:10\n"));
    stage.power_on();
    assert_eq!(stage.sh("date -u +%Y"), "1970");
    let offer = stage.good("2.0");
    stage.update("update", &offer, "B");
    assert_eq!(stage.sh("date -u +%Y"), "1970");
    in_order(&mut stage, "B");
    stage.finish();
}

/// A clock that is past every certificate: the status says what is wrong, and all is well once somebody sets it.
pub fn clock_beyond_the_certificates(chain: Chain) {
    let mut stage = Stage::with(Setup::new(chain).with("update", "cloud-timeout", "\"4min\""));
    let clock = Clock::At("2060-01-01T00:00:00".into());
    stage.vm.power_on(&PowerOn { clock, ..PowerOn::default() }).unwrap();
    stage.expect_up("A", "1.0");
    stage.wait_settled();
    assert_eq!(stage.sh("date -u +%Y"), "2060");
    let offer = stage.good("2.0");
    stage.job("update", &offer.document);
    stage.wait_sh("otandem status --json | grep -q 'no cloud session: .*clock'");
    stage.sh("date -u -s '2030-01-01 00:00:00'");
    stage.expect_up("B", "2.0");
    // No clock keeps what it was set to here: the trial waits for it to be set again.
    stage.sh("date -u -s '2030-01-01 00:00:00'");
    stage.expect_end("update", Status::Succeeded, "");
    stage.finish();
}

/// The partition of the other set is gone: the device is up, and an update is refused by the name of what is missing.
pub fn slot_missing(chain: Chain) {
    let mut stage = Stage::up(chain);
    stage.vm.power_cut();
    let number = 1 + stage.partitions().iter().position(|p| p.name == "root-b").unwrap();
    let tables = Table::remember(&stage);
    let done = std::process::Command::new("sfdisk")
        .args(["-q", "--no-reread", "--no-tell-kernel", "--delete"])
        .arg(stage.vm.disk())
        .arg(number.to_string())
        .status();
    assert!(done.unwrap().success(), "sfdisk");
    stage.boot("A", "1.0");
    stage.wait_settled();
    let offer = stage.good("2.0");
    stage.run("update", &offer.document, Status::Failed, "root-b");
    let status = stage.status();
    assert!(status["attention"].to_string().contains("root-b"), "{status}");
    assert_eq!(status["booted"], "A", "{status}");
    stage.sh("sync");
    stage.vm.reset().unwrap();
    stage.expect_up("A", "1.0");
    stage.wait_settled();
    stage.vm.power_cut();
    tables.put_back(&stage);
    stage.boot("A", "1.0");
    gates::next_update_succeeds(stage, "B");
}

/// Both copies of a partition table.
struct Table {
    first: Vec<u8>,
    last: Vec<u8>,
}

impl Table {
    const SIZE: usize = 34 * 512;

    fn at_the_end(disk: &File) -> u64 {
        disk.metadata().unwrap().len() - Self::SIZE as u64
    }

    fn remember(stage: &Stage) -> Self {
        let disk = File::open(stage.vm.disk()).unwrap();
        let (mut first, mut last) = (vec![0; Self::SIZE], vec![0; Self::SIZE]);
        disk.read_exact_at(&mut first, 0).unwrap();
        disk.read_exact_at(&mut last, Self::at_the_end(&disk)).unwrap();
        Self { first, last }
    }

    fn put_back(&self, stage: &Stage) {
        let disk = File::options().read(true).write(true).open(stage.vm.disk()).unwrap();
        disk.write_all_at(&self.first, 0).unwrap();
        disk.write_all_at(&self.last, Self::at_the_end(&disk)).unwrap();
    }
}

/// EFI variables that take nothing: the loader's own counting does without, and the status tells.
pub fn efivars_read_only(chain: Chain) {
    let mut stage = Stage::up(chain);
    stage.sh("mount -o remount,ro /sys/firmware/efi/efivars");
    let view = stage.status()["bootloader"]["view"].to_string();
    assert!(view.contains("EFI variables"), "{view}");
    let offer = stage.good("2.0");
    stage.update("update", &offer, "B");
    in_order(&mut stage, "B");
    stage.finish();
}

/// A boot environment that takes nothing, or only seems to: nothing is written to either set, and the job says why.
pub fn environment_refuses_the_update(chain: Chain) {
    let mut stage = gates::up(gates::setup(chain));
    let before = [stage.digest("root-a"), stage.digest("root-b")];
    let offer = stage.good("2.0");
    for (job, command) in [("sealed", Some(chain::seal(chain))), ("lied-to", chain::lie(chain))] {
        let Some(command) = command else { continue };
        stage.sh(command);
        stage.run(job, &offer.document, Status::Failed, "cannot be marked in the bootloader");
        assert_eq!([stage.digest("root-a"), stage.digest("root-b")], before, "a set was written");
        let status = stage.status();
        assert!(status["last-outcome"].to_string().contains("bootloader"), "{status}");
        stage.sh(chain::unseal(chain));
    }
    gates::next_update_succeeds(stage, "B");
}

/// It takes nothing in the trial: what cannot be made permanent is left again.
pub fn environment_refuses_the_confirmation(chain: Chain) {
    let (mut stage, _) = gates::held(gates::setup(chain), Moment::Trial);
    let before = stage.digest("root-a");
    stage.sh(chain::lie(chain).unwrap_or(chain::seal(chain)));
    gates::open(&mut stage, Moment::Trial);
    stage.expect_up("A", "1.0");
    gates::back_on_a(&mut stage, "cannot be made permanent", &before);
    gates::next_update_succeeds(stage, "B");
}

/// The data partition cannot be mounted: the device stays up where it is, takes no update, and says why.
pub fn data_lost(chain: Chain) {
    let mut stage = Stage::up(chain);
    stage.vm.power_cut();
    let disk = File::options().read(true).write(true).open(stage.vm.disk()).unwrap();
    let at = stage.partition("data").start;
    let mut head = vec![0; 64 << 10];
    disk.read_exact_at(&mut head, at).unwrap();
    disk.write_all_at(&vec![0; head.len()], at).unwrap();
    stage.boot("A", "1.0");
    stage.wait_settled();
    let status = stage.status();
    let attention = status["attention"].to_string();
    assert!(attention.contains("updates are refused") && attention.contains("/data/otandem"), "{status}");
    assert_eq!(status["bootloader"]["primary"], "A", "{status}");
    let said = stage.sh("otandem install /bin/busybox --no-digest 2>&1; echo ended $?");
    assert!(!said.contains("ended 0") && said.contains("state"), "{said}");
    stage.vm.reset().unwrap();
    stage.expect_up("A", "1.0");
    stage.wait_settled();
    stage.vm.power_cut();
    disk.write_all_at(&head, at).unwrap();
    stage.boot("A", "1.0");
    gates::next_update_succeeds(stage, "B");
}

/// The data partition takes no write any more: no update begins, and the agent says why; writable again, all is well.
pub fn data_read_only(chain: Chain) {
    let mut stage = Stage::up(chain);
    let before = [stage.digest("root-a"), stage.digest("root-b")];
    let agent = "kill $(pidof otandem); until [ -z \"$(pidof otandem)\" ]; do sleep 0.1; done";
    stage.sh(agent);
    stage.sh("mount -o remount,ro /data");
    let connects = stage.counters().connects[&stage.thing];
    stage.wait_connected(connects + 1);
    let offer = stage.good("2.0");
    stage.run("update", &offer.document, Status::Failed, "saved");
    assert_eq!([stage.digest("root-a"), stage.digest("root-b")], before, "a set was written");
    let status = stage.status();
    assert!(status["attention"].to_string().contains("state"), "{status}");
    stage.sh("mount -o remount,rw /data");
    stage.wait_sh("otandem status --check >/dev/null 2>&1");
    gates::next_update_succeeds(stage, "B");
}
