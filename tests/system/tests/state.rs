//! What lies on the device's disk: damaged, full, or of another device.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use otandem_core::boot::SetId;
use otandem_lab::{Direction, Status};
use otandem_system_tests::Health;
use otandem_system_tests::device::{Device, Heard, Reboots, Script};
use otandem_system_tests::pack::Packing;
use otandem_system_tests::world::{LIMIT, World};

/// What happens to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Deleted,
    Truncated,
    Noise,
}

fn damage(file: &PathBuf, how: Damage) {
    let size = fs::metadata(file).map_or(0, |meta| meta.len());
    match how {
        Damage::Deleted => fs::remove_file(file),
        Damage::Truncated => fs::File::options().write(true).open(file).and_then(|f| f.set_len(size / 3)),
        Damage::Noise => fs::write(file, (0..size).map(|n| (n * 31 % 251) as u8).collect::<Vec<_>>()),
    }
    .unwrap();
}

fn state_files(device: &Device) -> Vec<PathBuf> {
    let entries = fs::read_dir(device.folder().path("state")).unwrap();
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    files.sort();
    files
}

#[test]
fn any_damage_to_the_state_is_survived_and_said() {
    let world = World::new();
    let mut version = 2;
    for how in [Damage::Deleted, Damage::Truncated, Damage::Noise] {
        for which in ["each", "all"] {
            let files = state_files(&world.device);
            assert!(!files.is_empty());
            let rounds: Vec<Vec<PathBuf>> = match which {
                "all" => vec![files],
                _ => files.into_iter().map(|file| vec![file]).collect(),
            };
            for files in rounds {
                eprintln!("{how:?}: {files:?}");
                world.device.stop_agent().unwrap();
                files.iter().for_each(|file| damage(file, how));
                let connects = world.counters().connects[&world.thing];
                world.device.start_agent().unwrap();
                world.wait_connected(connects + 1);
            }
            let image = world.image(&format!("{version}.0"), Health::Good);
            version += 1;
            let document = world.publish(&image, Packing::Zstd).document;
            world.run(&format!("update-{version}"), &document, Status::Succeeded, "confirmed");
        }
    }
    world.finish();
}

#[test]
fn record_lost_while_armed_is_settled_by_what_the_cloud_was_told() {
    let world = World::new();
    world.device.reboots(Reboots::ByHand);
    let image = world.image("2.0", Health::Good);
    world.job("update", &world.publish(&image, Packing::Zstd).document);
    world.device.wait("the reboot", LIMIT, |heard| (heard.reboots_due > 0).then_some(())).unwrap();
    world.device.power_off().unwrap();
    for file in state_files(&world.device) {
        fs::remove_file(file).unwrap();
    }
    world.device.reboots(Reboots::AtOnce);
    world.device.power_on().unwrap();
    let (status, reason) = world.wait_end("update");
    assert!(
        status == Status::Succeeded,
        "{status:?} {reason}: the new set runs, is well and reaches the cloud"
    );
    world.finish();
}

#[test]
fn outcome_of_another_thing_is_never_sent() {
    let world = World::with(|spec| spec.with("update", "require-cloud", "false"));
    world.device.script(Script::Hook("post-confirm"), "tell confirmed\n").unwrap();
    world.device.reboots(Reboots::ByHand);
    let image = world.image("2.0", Health::Good);
    world.job("update", &world.publish(&image, Packing::Zstd).document);
    world.device.wait("the reboot", LIMIT, |heard| (heard.reboots_due > 0).then_some(())).unwrap();
    world.lab.deactivate(&world.thing);
    world.device.reboot().unwrap();
    // Settled without the cloud: the outcome waits.
    let confirmed = |heard: &Heard| heard.events.iter().any(|e| e == "confirmed").then_some(());
    world.device.wait("the confirmation", LIMIT, confirmed).unwrap();
    world.device.stop_agent().unwrap();
    let certs = world.device.folder().path("certs");
    let (_, files) = world.lab.write_identity("other", &certs).unwrap();
    let use_identity = |thing: &str, cert: &PathBuf, key: &PathBuf| {
        let text = |path: &PathBuf| format!("{:?}", path.display().to_string());
        world.device.configure("cloud", "thing-name", &format!("{thing:?}")).unwrap();
        world.device.configure("cloud", "cert", &text(cert)).unwrap();
        world.device.configure("cloud", "key", &text(key)).unwrap();
    };
    use_identity("other", &files.certificate, &files.key);
    world.device.start_agent().unwrap();
    world.wait_lab("start-next of the other thing", |lab| {
        lab.messages(Direction::In, "things/other/jobs/start-next").next().map(drop)
    });
    let foreign = world.lab.inspect(|lab| {
        lab.transcript.iter().filter(|e| e.thing == "other" && e.topic.ends_with("/update")).count()
    });
    assert_eq!(foreign, 0, "the outcome of one device was sent by another");
    world.device.stop_agent().unwrap();
    world.lab.activate(&world.thing);
    use_identity(&world.thing, &certs.join("device.cert.pem"), &certs.join("device.key.pem"));
    world.device.start_agent().unwrap();
    let (status, reason) = world.wait_end("update");
    assert!(status == Status::Succeeded, "{status:?} {reason}");
    world.finish();
}

/// A tmpfs that is gone with its value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, size: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let option = format!("size={size},mode=0700");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &option, "tmpfs"]).arg(&at).status();
        done.is_ok_and(|status| status.success()).then_some(Self(at))
    }
}

impl Tmpfs {
    fn remount(&self, how: &str) {
        let option = format!("remount,{how}");
        assert!(Command::new("mount").args(["-o", &option]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn full_state_partition_refuses_the_update_before_the_first_byte() {
    let world = World::off(|spec| spec);
    let state = world.device.folder().path("state");
    let Some(_tmpfs) = Tmpfs::mount(state.clone(), "2M") else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    world.device.power_on().unwrap();
    world.wait_connected(1);
    let full = fill(&state);
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    world.run("update", &published.document, Status::Failed, "no state space");
    assert_eq!(world.counters().path(&published.path).body_bytes, 0, "bytes were fetched for nothing");
    fs::remove_file(full).unwrap();
    world.run("again", &published.document, Status::Succeeded, "set B");
    world.device.power_off().unwrap();
    world.finish();
}

#[test]
fn read_only_state_refuses_the_job_before_the_first_byte_and_the_next_one_is_served() {
    let world = World::off(|spec| spec);
    let state = world.device.folder().path("state");
    let Some(tmpfs) = Tmpfs::mount(state, "8M") else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    world.device.power_on().unwrap();
    let first = world.image("1.1", Health::Good);
    world.run("first", &world.publish(&first, Packing::Zstd).document, Status::Succeeded, "set B");
    world.device.stop_agent().unwrap();
    tmpfs.remount("ro");
    world.device.start_agent().unwrap();
    world.wait_connected(3);
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    world.job("refused", &published.document);
    world.expect_end("refused", Status::Failed, "saved");
    let status = world.device.status().unwrap();
    assert!(status["attention"].to_string().contains("state"), "{status}");
    assert_eq!(world.counters().path(&published.path).body_bytes, 0, "bytes were fetched for nothing");
    world.device.stop_agent().unwrap();
    tmpfs.remount("rw");
    world.device.start_agent().unwrap();
    world.job("update", &published.document);
    world.expect_end("update", Status::Succeeded, "set A");
    world.device.power_off().unwrap();
    world.finish();
}

/// A device whose state is a file system of its own, an update of it armed, and its power off.
fn armed_and_off(size: &str) -> Option<(World, Tmpfs)> {
    let world = World::off(|spec| spec);
    let Some(tmpfs) = Tmpfs::mount(world.device.folder().path("state"), size) else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return None;
    };
    world.device.power_on().unwrap();
    world.device.reboots(Reboots::ByHand);
    let image = world.image("2.0", Health::Good);
    world.job("update", &world.publish(&image, Packing::Zstd).document);
    world.device.wait("the reboot", LIMIT, |heard| (heard.reboots_due > 0).then_some(())).unwrap();
    world.device.power_off().unwrap();
    world.device.reboots(Reboots::AtOnce);
    Some((world, tmpfs))
}

/// Writes until there is no space.
fn fill(folder: &std::path::Path) -> PathBuf {
    let full = folder.join("full");
    let mut file = fs::File::create(&full).unwrap();
    let error = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    full
}

#[test]
fn state_that_is_full_in_the_trial_still_holds_the_record_and_the_outcome_is_true() {
    let Some((world, tmpfs)) = armed_and_off("2M") else { return };
    let full = fill(&tmpfs.0);
    world.device.power_on().unwrap();
    // The record has its place since before the update: it is saved, and so the set may be made permanent.
    world.expect_end("update", Status::Succeeded, "set B (2.0) confirmed");
    let image = world.image("3.0", Health::Good);
    let document = world.publish(&image, Packing::Zstd).document;
    world.run("next", &document, Status::Failed, "no state space");
    fs::remove_file(full).unwrap();
    world.run("again", &document, Status::Succeeded, "set A (3.0)");
    world.device.power_off().unwrap();
    world.finish();
}

#[test]
fn state_that_is_full_and_has_lost_the_record_never_makes_the_trial_permanent() {
    let Some((world, tmpfs)) = armed_and_off("2M") else { return };
    for name in ["record.0", "record.1"] {
        fs::remove_file(tmpfs.0.join(name)).unwrap();
    }
    let full = fill(&tmpfs.0);
    world.device.power_on().unwrap();
    world.wait_log("cannot be settled yet");
    world.wait_session(true);
    assert!(world.device.env().unwrap().contains("BOOT_B_LEFT=0"), "{:?}", world.device.env());
    assert_eq!(world.device.reboot().unwrap(), SetId::A);
    fs::remove_file(full).unwrap();
    let (status, reason) = world.wait_end("update");
    assert!(status == Status::Failed && reason.contains("set B is not running"), "{status:?} {reason}");
    world.device.power_off().unwrap();
    world.finish();
}

#[test]
fn state_that_became_read_only_rolls_the_trial_back() {
    let Some((world, tmpfs)) = armed_and_off("8M") else { return };
    tmpfs.remount("ro");
    world.device.power_on().unwrap();
    world.wait_boot(SetId::A, 3);
    world.device.power_off().unwrap();
    assert!(world.device.env().unwrap().contains("BOOT_ORDER=A"), "{:?}", world.device.env());
    tmpfs.remount("rw");
    world.device.power_on().unwrap();
    let (status, reason) = world.wait_end("update");
    assert!(
        status == Status::Failed && reason.contains("set B is not bootable any more"),
        "{status:?} {reason}"
    );
    let image = world.image("3.0", Health::Good);
    world.run("next", &world.publish(&image, Packing::Zstd).document, Status::Succeeded, "set B (3.0)");
    world.device.power_off().unwrap();
    world.finish();
}

#[test]
fn a_job_that_fills_the_disk_of_the_state_ends_truly_and_the_next_one_runs() {
    let world = World::off(|spec| spec);
    let state = world.device.folder().path("state");
    let Some(tmpfs) = Tmpfs::mount(state, "2M") else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let full = tmpfs.0.join("full");
    let fills = format!("cat /dev/zero >'{}' || exit 3\n", full.display());
    world.device.script(Script::Handler("fills"), &fills).unwrap();
    world.device.script(Script::Handler("next"), "tell next\n").unwrap();
    world.device.power_on().unwrap();
    world.wait_connected(1);
    let job = |handler: &str| serde_json::json!({"operation": handler, "path": "default", "allowStdErr": 9});
    world.run("fills", &job("fills"), Status::Failed, "Job exited with status: 3, in step fills");
    assert!(fs::metadata(&full).unwrap().len() > 1 << 20);
    world.run("next", &job("next"), Status::Succeeded, "Job exited with status: 0");
    world.device.power_off().unwrap();
    world.finish();
}

#[test]
fn a_state_directory_that_is_refused_fails_every_job_and_the_next_one_is_served_when_it_is_right() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    world.device.script(Script::Handler("one"), "tell one\n").unwrap();
    let state = world.device.folder().path("state");
    let mode = |mode| fs::set_permissions(&state, fs::Permissions::from_mode(mode)).unwrap();
    world.device.stop_agent().unwrap();
    mode(0o777);
    world.device.start_agent().unwrap();
    world.wait_connected(2);
    let job = serde_json::json!({"operation": "one", "path": "default"});
    world.job("refused", &job);
    world.expect_end("refused", Status::Failed, "saved");
    let image = world.image("2.0", Health::Good);
    world.job("update", &world.publish(&image, Packing::Zstd).document);
    world.expect_end("update", Status::Failed, "saved");
    let ran = world.device.look(|heard| heard.events.iter().any(|e| e == "one"));
    assert!(!ran, "nobody could have remembered it");
    world.device.stop_agent().unwrap();
    mode(0o700);
    world.device.start_agent().unwrap();
    world.job("next", &job);
    world.expect_end("next", Status::Succeeded, "status: 0");
    world.finish();
}
