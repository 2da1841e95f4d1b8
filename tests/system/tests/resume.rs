//! Downloads that are interrupted: what is fetched twice, and what is not.

use bytes::Bytes;
use otandem_core::boot::SetId;
use otandem_lab::{Access, Direction, HttpFault, Position, Rule, Status};
use otandem_system_tests::device::Heard;
use otandem_system_tests::pack::Packing;
use otandem_system_tests::world::{LIMIT, PIECE, Published, World};
use otandem_system_tests::{Health, Image};
use serde_json::json;

/// The image, its job begun and standing still after `at` of 100 parts of the download.
fn stalled(packing: Packing, piece: usize, at: usize) -> (World, Image, Published) {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish_in(&image, packing, piece, otandem_lab::Scheme::Https);
    world.job_stalled("update", &published, at);
    (world, image, published)
}

/// Raw bytes that the last checkpoint covers.
fn saved(heard: &Heard) -> u64 {
    let last =
        heard.lines("checkpoint saved").last().and_then(|line| line.split("checkpoint saved at ").nth(1));
    last.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn power_cut_in_the_download_costs_at_most_the_piece_that_was_begun() {
    for (packing, at) in [
        (Packing::Zstd, 30),
        (Packing::Zstd, 60),
        (Packing::Zstd, 95),
        (Packing::Gzip, 60),
        (Packing::Xz, 60),
        (Packing::Raw, 60),
    ] {
        let (world, image, published) = stalled(packing, PIECE, at);
        let pieces = (4 * at / 100) as u64;
        let durable = |heard: &Heard| (saved(heard) >= pieces << 20).then_some(());
        world.device.wait(&format!("{pieces} pieces on disk"), LIMIT, durable).unwrap();
        world.device.power_cut().unwrap();
        world.lab.release_stalls();
        world.expect_end("update", Status::Succeeded, "set B");
        assert_eq!(world.device.digest(SetId::B, "rootfs"), image.sha256);
        let count = world.counters().path(&published.path);
        let again = count.body_bytes - published.file_size as u64;
        // A piece, and what may be looked at of the file's beginning.
        let most = published.file_size as u64 * 30 / 100 + (128 << 10);
        assert!(
            again <= most,
            "{packing:?} at {at} %: {again} of {} bytes twice: {count:?}",
            published.file_size
        );
        assert!(count.offsets.last().unwrap() > &0, "{packing:?} at {at} %: {count:?}");
        world.finish();
    }
}

#[test]
fn one_frame_begins_again_after_a_power_cut_and_says_so() {
    let (world, image, published) = stalled(Packing::Zstd, usize::MAX, 60);
    world.device.power_cut().unwrap();
    world.lab.release_stalls();
    world.expect_end("update", Status::Succeeded, "set B");
    assert_eq!(world.device.digest(SetId::B, "rootfs"), image.sha256);
    let count = world.counters().path(&published.path);
    assert_eq!(count.offsets, [0, 0], "{count:?}");
    world.finish();
}

#[test]
fn one_frame_goes_on_at_the_byte_while_the_agent_lives() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish_in(&image, Packing::Zstd, usize::MAX, otandem_lab::Scheme::Https);
    let cut = (published.file_size / 2) as u64;
    world.lab.fault(Rule::once(HttpFault::CutAt(Position::Object(cut))).path(&published.path));
    world.run("update", &published.document, Status::Succeeded, "set B");
    let count = world.counters().path(&published.path);
    assert_eq!(count.offsets, [0, cut], "{count:?}");
    assert_eq!(count.body_bytes, published.file_size as u64, "no byte twice");
    world.finish();
}

#[test]
fn expired_url_is_renewed_by_one_update_and_the_download_goes_on() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    let cut = (published.file_size / 2) as u64;
    world.lab.fault(Rule::once(HttpFault::ExpireAt(Position::Object(cut))).path(&published.path));
    world.run("update", &published.document, Status::Succeeded, "set B");
    let count = world.counters().path(&published.path);
    assert_eq!(count.statuses, [200, 403, 206], "{count:?}");
    assert_eq!((count.offsets[2], count.body_bytes), (cut, published.file_size as u64), "{count:?}");
    let asked = world.lab.inspect(|lab| {
        let before_arming = |v: &serde_json::Value| {
            v["includeJobDocument"] == true
                && v["statusDetails"]["otandem"].as_str().is_some_and(|s| s.contains(";writing;"))
        };
        lab.messages(Direction::In, "/update").map(|entry| entry.json()).filter(before_arming).count()
    });
    assert_eq!(asked, 1, "one update asks for the document");
    world.finish();
}

#[test]
fn changed_object_ends_the_update_and_the_next_one_takes_it() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let other = world.image("2.1", Health::Good);
    let published = world.publish(&image, Packing::Raw);
    let cut = (published.file_size / 2) as u64;
    world.lab.fault(Rule::once(HttpFault::CutAt(Position::Object(cut))).path(&published.path));
    // Until the object is another one, nobody gets any of it.
    world
        .lab
        .fault(Rule::always(HttpFault::ErrorEvery { every: 1, status: 503 }).after(1).path(&published.path));
    world.job("update", &published.document);
    world.wait_sent(&published.path, cut);
    world.lab.put_image(&published.path, Bytes::clone(&other.bytes), Access::Signed);
    world.lab.clear_faults();
    world.expect_end("update", Status::Failed, "changed");
    let mut document = published.document.clone();
    document["image"]["sha256"] = json!(other.sha256);
    world.run("again", &document, Status::Succeeded, "set B");
    world.finish();
}

#[test]
fn servers_that_fail_now_and_then_or_know_no_ranges_only_cost_time() {
    let world = World::new();
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    let at = |percent: usize| Position::Object((published.file_size / 100 * percent) as u64);
    world.lab.fault(Rule::once(HttpFault::ErrorEvery { every: 1, status: 500 }).path(&published.path));
    world.lab.fault(Rule::once(HttpFault::CutAt(at(40))).path(&published.path));
    world.lab.fault(Rule::once(HttpFault::IgnoreRange).path(&published.path));
    world.lab.fault(Rule::once(HttpFault::CutAt(at(70))).path(&published.path));
    world.run("update", &published.document, Status::Succeeded, "set B");
    assert_eq!(world.device.digest(SetId::B, "rootfs"), image.sha256);
    world.finish();
}

#[test]
fn losing_the_broker_does_not_stop_the_download() {
    let (world, image, published) = stalled(Packing::Zstd, PIECE, 50);
    world.lab.kick(&world.thing);
    world.wait_connected(2);
    world.lab.release_stalls();
    world.expect_end("update", Status::Succeeded, "set B");
    assert_eq!(world.device.digest(SetId::B, "rootfs"), image.sha256);
    assert_eq!(world.counters().path(&published.path).requests, 1);
    world.finish();
}
