//! Updates that go well: every form of image and document, and what the cloud and the device say on the way.

use otandem_core::boot::SetId;
use otandem_lab::{Direction, Scheme, Status};
use otandem_system_tests::pack::Packing;
use otandem_system_tests::world::{PIECE, World};
use otandem_system_tests::{Health, Image};
use serde_json::{Value, json};

#[test]
fn good_update_runs_through_its_phases_and_is_made_permanent() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    let running = world.device.digest(SetId::A, "rootfs");
    world.run("update", &published.document, Status::Succeeded, "set B (2.0) confirmed");
    assert_eq!(world.device.digest(SetId::B, "rootfs"), image.sha256);
    assert_eq!(world.device.digest(SetId::A, "rootfs"), running, "the running set was written");
    let boots: Vec<_> = world.device.look(|heard| heard.boots.iter().map(|boot| boot.set).collect());
    assert_eq!(boots, [Some(SetId::A), Some(SetId::B)]);
    assert!(world.device.env().unwrap().contains("BOOT_ORDER=B A"), "{:?}", world.device.env());
    assert!(world.device.env().unwrap().contains("BOOT_B_LEFT=3"), "{:?}", world.device.env());
    // Each byte once, and every phase that a person wants to see was told.
    let count = world.counters().path(&published.path);
    assert_eq!((count.body_bytes, count.requests), (published.file_size as u64, 1));
    let said: Vec<String> = world.lab.inspect(|lab| {
        let seals = lab.messages(Direction::In, "/update").map(|entry| entry.json());
        seals
            .filter_map(|v| Some(v["statusDetails"]["otandem"].as_str()?.split(';').nth(1)?.to_owned()))
            .collect()
    });
    for phase in ["accepted", "writing", "written", "armed"] {
        assert!(said.iter().any(|s| s == phase), "phase {phase} was not told: {said:?}");
    }
    world.finish();
}

#[test]
fn every_packing_and_scheme_and_the_old_documents_install_the_same_image() {
    let world = World::new();
    let mut index = 1;
    for (version, packing, scheme, piece) in [
        ("zstd", Packing::Zstd, Scheme::Http, PIECE),
        ("zstd-one", Packing::Zstd, Scheme::Https, usize::MAX),
        ("gzip", Packing::Gzip, Scheme::Https, PIECE),
        ("xz", Packing::Xz, Scheme::Https, PIECE),
        ("raw", Packing::Raw, Scheme::Http, PIECE),
    ] {
        let image = world.image(version, Health::Good);
        let published = world.publish_in(&image, packing, piece, scheme);
        world.run(version, &published.document, Status::Succeeded, version);
        index = 1 - index;
    }
    // Recognised by its first bytes, known by the digest of the packed file alone.
    let image = world.image("unnamed", Health::Good);
    let published = world.publish(&image, Packing::Gzip);
    let mut document = published.document.clone();
    let fields = document["image"].as_object_mut().unwrap();
    for name in ["compression", "sha256", "size"] {
        fields.remove(name);
    }
    fields.insert("file-sha256".into(), json!(published.file_sha256));
    world.run("unnamed", &document, Status::Succeeded, "unnamed");
    index = 1 - index;
    for (name, operation) in [("seed", json!("fota")), ("published", Value::Null)] {
        let image = world.image(name, Health::Good);
        let published = world.publish(&image, Packing::Raw);
        let mut document = json!({"bc_idx": index, "bc_crc": image.md5(), "bc_size": image.bytes.len(),
            "bc_url": published.document["image"]["url"]});
        if operation != Value::Null {
            document["operation"] = operation;
        }
        world.run(name, &document, Status::Succeeded, "confirmed");
        let set = if index == 0 { SetId::A } else { SetId::B };
        assert_eq!(world.device.digest(set, "rootfs"), image.sha256, "{name}");
        index = 1 - index;
    }
    world.finish();
}

#[test]
fn both_slots_of_a_set_are_updated_together() {
    let world = World::with(|mut spec| {
        spec.slots = vec!["rootfs".into(), "boot".into()];
        spec
    });
    let (rootfs, boot) = (world.image("2.0", Health::Good), world.image("2.0-boot", Health::Good));
    let mut images = Vec::new();
    for (slot, image) in [("rootfs", &rootfs), ("boot", &boot)] {
        let mut entry = world.publish(image, Packing::Zstd).document["image"].clone();
        entry["slot"] = json!(slot);
        images.push(entry);
    }
    world.run("both", &json!({"operation": "fota", "images": images}), Status::Succeeded, "set B");
    assert_eq!(world.device.digest(SetId::B, "rootfs"), rootfs.sha256);
    assert_eq!(world.device.digest(SetId::B, "boot"), boot.sha256);
    // One slot alone would make a set of two that do not belong together.
    let alone = world.image("3.0", Health::Good);
    let mut document = world.publish(&alone, Packing::Zstd).document;
    document["image"]["slot"] = json!("rootfs");
    world.run("alone", &document, Status::Rejected, "does not name slot \"boot\"");
    world.finish();
}

#[test]
fn an_image_that_runs_already_is_not_fetched_again_unless_forced() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    world.run("first", &published.document, Status::Succeeded, "confirmed");
    let once = world.counters().path(&published.path).requests;
    world.run("second", &published.document, Status::Succeeded, "already running");
    assert_eq!(world.counters().path(&published.path).requests, once, "it was fetched for nothing");
    let mut forced = published.document.clone();
    forced["force"] = json!(true);
    world.run("forced", &forced, Status::Succeeded, "set A (2.0) confirmed");
    assert_eq!(world.device.booted(), Some(SetId::A));
    world.finish();
}

#[test]
fn jobs_that_wait_in_the_queue_are_done_one_after_the_other() {
    let world = World::off(|spec| spec);
    for version in ["2.0", "3.0"] {
        let image = world.image(version, Health::Good);
        world.job(&format!("update-{}", &version[..1]), &world.publish(&image, Packing::Zstd).document);
    }
    world.device.power_on().unwrap();
    world.expect_end("update-2", Status::Succeeded, "set B (2.0)");
    world.expect_end("update-3", Status::Succeeded, "set A (3.0)");
    world.finish();
}

#[test]
fn a_real_file_system_image_is_installed() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let image = Image::real("2.0", Health::Good, folder.path()).unwrap();
    world.device.know(&image);
    let published = world.publish_in(&image, Packing::Zstd, 16 << 20, Scheme::Https);
    world.run("real", &published.document, Status::Succeeded, "set B (2.0)");
    assert_eq!(world.device.digest(SetId::B, "rootfs"), image.sha256);
    world.finish();
}
