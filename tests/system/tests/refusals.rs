//! Jobs that must be refused: with a status and a reason, nothing changed, and the next good job served.

use otandem_core::boot::SetId;
use otandem_lab::{Access, HttpFault, JobSpec, Position, Rule, Scheme, Status};
use otandem_system_tests::Health;
use otandem_system_tests::pack::{self, Packing};
use otandem_system_tests::scenario::{self, Row};
use otandem_system_tests::world::{Published, World};
use serde_json::{Value, json};

/// Makes the image server do what the row says.
fn serve(world: &World, row: &Row, published: &Published, raw: &[u8]) {
    let put = |bytes: Vec<u8>| world.lab.put_image(&published.path, bytes, Access::Signed);
    let fault = |fault: HttpFault| world.lab.fault(Rule::always(fault).path(&published.path));
    let half = Position::Object(published.file_size as u64 / 2);
    match row.serve.as_deref() {
        None => {}
        Some("missing") => world.lab.remove_image(&published.path),
        Some("byte-wrong") => fault(HttpFault::WrongByteAt(half)),
        Some("cut-short") => put(pack::pack(&raw[..raw.len() / 2], Packing::Zstd, 1 << 20).unwrap()),
        Some("over-long") => put([raw, &[1; 4096]].concat()),
        Some("bomb") => put(pack::bomb(256).unwrap()),
        Some("empty") => put(Vec::new()),
        Some("noise") => {
            put((0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect())
        }
        Some("large-window") => put(pack::zstd_with_window(raw, 27).unwrap()),
        Some("redirect-http") => fault(HttpFault::Redirect { hops: 1, to: Scheme::Http }),
        Some("redirect-loop") => fault(HttpFault::Redirect { hops: 40, to: Scheme::Https }),
        Some(other) => panic!("{}: the image server cannot do {other:?}", row.name),
    }
}

#[test]
fn every_row_of_the_table_is_refused_as_it_says_and_nothing_is_changed() {
    let world = World::new();
    let running = world.device.digest(SetId::A, "rootfs");
    let mut wrong = Vec::new();
    for row in scenario::rows() {
        let image = world.image(&row.name, Health::Good);
        let published = world.publish(&image, Packing::Zstd);
        serve(&world, &row, &published, &image.bytes);
        let mut document = published.document.clone();
        scenario::merge(&mut document, &row.patch);
        world.job(&row.name, &document);
        let (status, reason) = world.wait_end(&row.name);
        if status.name() != row.status || !reason.contains(&row.reason) {
            wrong.push(format!(
                "{}: {} {reason:?}, not {} {:?}",
                row.name,
                status.name(),
                row.status,
                row.reason
            ));
        }
        world.lab.clear_faults();
        assert_eq!(
            world.device.digest(SetId::A, "rootfs"),
            running,
            "{}: the running set was written",
            row.name
        );
        assert_eq!(world.device.look(|heard| heard.boots.len()), 1, "{}: the device was rebooted", row.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let image = world.image("good", Health::Good);
    world.run("good", &world.publish(&image, Packing::Zstd).document, Status::Succeeded, "set B (good)");
    world.finish();
}

/// Creates a job with a document that the real service would not take.
fn unchecked(world: &World, id: &str, document: &str) {
    world.lab.create_job_unchecked(&JobSpec::new(id, &world.thing, document)).unwrap();
}

#[test]
fn documents_that_no_service_should_send_are_refused_and_the_next_is_served() {
    let world = World::new();
    let fota = |image: Value| json!({"operation": "fota", "image": image}).to_string();
    let nested = |depth: usize| {
        format!("{{\"operation\":\"fota\",\"image\":{}1{}}}", "[".repeat(depth), "]".repeat(depth))
    };
    let many: Vec<Value> = (0..1000).map(|n| json!({"url": format!("https://h/{n}")})).collect();
    for (id, document) in [
        ("huge", fota(json!({"url": "https://h/x", "version": "v".repeat(40_000)}))),
        ("larger", fota(json!({"url": "https://h/x", "version": "v".repeat(100_000)}))),
        ("no-json", "this is not JSON".to_owned()),
        ("number", "7".to_owned()),
        ("list", "[]".to_owned()),
        ("nothing", "null".to_owned()),
        ("object", "{}".to_owned()),
        ("nested", nested(100)),
        ("deep", nested(1000)),
        ("many", json!({"operation": "fota", "images": many}).to_string()),
        ("control", fota(json!({"url": "https://h/x\u{7}\u{202e}", "sha256": "0".repeat(64)}))),
        ("operation", json!({"operation": ["fota"]}).to_string()),
    ] {
        unchecked(&world, id, &document);
        let (status, reason) = world.wait_end(id);
        assert!(matches!(status, Status::Rejected | Status::Failed), "{id}: {status:?} {reason}");
        assert!(!reason.is_empty(), "{id}: no reason is given");
    }
    let image = world.image("good", Health::Good);
    world.run("good", &world.publish(&image, Packing::Zstd).document, Status::Succeeded, "set B (good)");
    world.finish();
}
