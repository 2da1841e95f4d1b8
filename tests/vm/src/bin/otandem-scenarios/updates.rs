//! Updates as they should go, and a device that nobody updates.

use std::process::Command;

use otandem_images::Chain;
use otandem_lab::Status;
use otandem_vm::Link;
use otandem_vm::boot_files::{self, BootFiles};
use otandem_vm::stage::{Offer, Setup, Stage, release};

/// Boots without an update.
const ORDINARY_BOOTS: usize = 20;
/// Boots by a script that always counts: more than its counter has.
const COUNTED_BOOTS: usize = 5;

/// A job moves the device from A to B; the outcome is true and the loader goes on with B.
pub fn good_update(chain: Chain) {
    let mut stage = Stage::up(chain);
    let offer = stage.good("2.0");
    stage.update("good", &offer, "B");
    let status = stage.status();
    assert_eq!(status["confirmed"], "B", "{status}");
    assert_eq!(status["bootloader"]["primary"], "B", "{status}");
    stage.sh("sync");
    stage.vm.reset().unwrap();
    stage.expect_up("B", "2.0");
    stage.vm.power_cut();
    stage.assert_factory_untouched();
    stage.finish();
}

/// An image of an older version is an update like any other, and stays.
pub fn downgrade(chain: Chain) {
    let mut stage = Stage::with(Setup::new(chain).factory(release("3.0")));
    stage.power_on();
    let older = stage.good("2.9");
    stage.update("downgrade", &older, "B");
    stage.sh("sync");
    stage.vm.reset().unwrap();
    stage.expect_up("B", "2.9");
    stage.wait_settled();
    let status = stage.status();
    assert_eq!(status["confirmed"], "B", "{status}");
    stage.finish();
}

/// A -> B -> A, five times in a row, up and down.
pub fn there_and_back_five_times(chain: Chain) {
    let mut stage = Stage::up(chain);
    let (even, odd) = (stage.good("2.0"), stage.good("3.0"));
    for round in 1..=5 {
        stage.update(&format!("there-{round}"), &even, "B");
        stage.update(&format!("back-{round}"), &odd, "A");
    }
    let status = stage.status();
    assert_eq!(status["confirmed"], "A", "{status}");
    assert_eq!(status["bootloader"]["primary"], "A", "{status}");
    stage.finish();
}

/// A job for what runs already is a success without a download and without a boot.
pub fn same_good_image_again(chain: Chain) {
    let mut stage = Stage::up(chain);
    let offer = stage.good("2.0");
    stage.update("first", &offer, "B");
    let (boot, sent) = (boot_id(&mut stage), sent(&stage, &offer));
    stage.run("second", &offer.document, Status::Succeeded, "already running");
    assert_eq!(self::sent(&stage, &offer), sent, "bytes of an image that runs already");
    assert_eq!(boot_id(&mut stage), boot, "a boot for nothing");
    stage.finish();
}

/// Twenty boots without an update and without a network, half of them by the reset button: always the same set, and
/// nothing that the loader reads is written.
pub fn twenty_boots_without_an_update(chain: Chain) {
    let mut stage = Stage::up(chain);
    stage.vm.network(Link::Down).unwrap();
    stage.sh("sync");
    let before = stage.boot_files();
    for boot in 1..=ORDINARY_BOOTS {
        if boot % 2 == 0 {
            // Wherever the start of the agent is by now.
            stage.vm.reset().unwrap();
        } else {
            stage.wait_settled();
            // Whether it still gets its answer is a race with the end of everything.
            stage.vm.send("otandem reboot\n").unwrap();
        }
        stage.expect_up("A", "1.0");
    }
    stage.wait_settled();
    let status = stage.status();
    assert_eq!(status["confirmed"], "A", "{status}");
    assert_eq!(status["late-fallback"], false, "{status}");
    stage.sh("sync");
    stage.vm.power_cut();
    assert_same(&before, &stage.boot_files());
    stage.assert_factory_untouched();
    stage.finish();
}

/// A boot script that counts every boot, as that of a device that had another update agent before: the counter is
/// refreshed at each start, so the device stays where it is, and an update is tried and confirmed.
pub fn script_that_always_counts(chain: Chain) {
    let mut stage = Stage::off(chain);
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    match chain {
        Chain::UBoot => {
            compile(include_str!("scripts/always-counts.cmd"), &script);
            boot_files::replace(stage.disk(), stage.partition("boot"), "boot.scr", &script).unwrap();
        }
        Chain::Grub => {
            std::fs::write(&script, include_str!("scripts/always-counts.cfg")).unwrap();
            boot_files::replace(stage.disk(), stage.partition("esp"), "grub/grub.cfg", &script).unwrap();
        }
        Chain::SystemdBoot | Chain::SystemdBootShared => panic!("no script chooses the set in systemd-boot"),
    }
    stage.power_on();
    let boot = |stage: &mut Stage, set: &str, version: &str| {
        // Such a script leaves a set that is reset three times before its agent was heard.
        stage.wait_ready();
        stage.sh("sync");
        stage.vm.reset().unwrap();
        stage.expect_up(set, version);
    };
    (1..COUNTED_BOOTS).for_each(|_| boot(&mut stage, "A", "1.0"));
    let counted = stage.vm.transcript().matches("always counts: set A, ").count();
    assert_eq!(counted, COUNTED_BOOTS, "boots by the script that always counts");
    let offer = stage.good("2.0");
    stage.update("good", &offer, "B");
    (0..COUNTED_BOOTS).for_each(|_| boot(&mut stage, "B", "2.0"));
    stage.finish();
}

/// Makes a U-Boot script out of its selection part, with the board part of the virtual device.
fn compile(selection: &str, out: &std::path::Path) {
    let source = out.with_extension("cmd");
    std::fs::write(&source, selection).unwrap();
    let make = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bootloader-hooks/uboot/make-boot-script");
    // In this order: another one is refused.
    let made =
        Command::new("sh").arg(make).args(["--virtual", "--source"]).arg(&source).arg(out).status().unwrap();
    assert!(made.success(), "make-boot-script: {made}");
}

/// Bytes of the root file system that the server sent.
pub fn sent(stage: &Stage, offer: &Offer) -> u64 {
    stage.counters().path(&offer.path).body_bytes
}

/// The name of the boot that runs.
pub fn boot_id(stage: &mut Stage) -> String {
    stage.sh("cat /proc/sys/kernel/random/boot_id")
}

fn assert_same(before: &BootFiles, after: &BootFiles) {
    let names = |files: &BootFiles| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(before), names(after), "files of the boot chain");
    for (name, bytes) in before {
        assert!(after.get(name) == Some(bytes), "{name} was written");
    }
}
