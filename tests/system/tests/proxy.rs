//! A device behind an HTTP proxy: everything goes through it, and nothing past it when it fails.

use otandem_core::boot::SetId;
use otandem_lab::{Scheme, Status};
use otandem_system_tests::Health;
use otandem_system_tests::pack::Packing;
use otandem_system_tests::proxy::{Mode, Proxy};
use otandem_system_tests::world::{LIMIT, PIECE, Published, World};

/// A device that knows of the proxy; not switched on yet.
fn behind(proxy: &Proxy, login: Option<&str>) -> World {
    World::off(|spec| spec.with("network", "proxy", &format!("{:?}", proxy.url(login))))
}

fn sessions(world: &World) -> u64 {
    world.counters().connects.get(&world.thing).copied().unwrap_or_default()
}

fn broker(world: &World) -> String {
    format!("localhost:{}", world.lab.mqtt_port())
}

/// Where the image server is, as a proxy is asked for it.
fn images(world: &World) -> String {
    let origin = world.lab.origin(Scheme::Https);
    origin.trim_start_matches("https://").trim_end_matches('/').to_owned()
}

fn published(world: &World) -> Published {
    let image = world.image("2.0", Health::Good);
    world.publish_in(&image, Packing::Zstd, PIECE, Scheme::Https)
}

/// As many sessions and downloads as the proxy has passed on, and so none past it.
fn assert_all_through(world: &World, proxy: &Proxy, published: &Published) {
    let passed = |target: &str| {
        proxy.asked().iter().filter(|asked| asked.passed && asked.target == target).count() as u64
    };
    assert_eq!(sessions(world), passed(&broker(world)), "sessions: {:?}", proxy.asked());
    let requests = world.counters().path(&published.path).requests;
    assert!(requests <= passed(&images(world)), "{requests} requests: {:?}", proxy.asked());
}

#[test]
fn session_and_downloads_go_through_the_proxy_with_and_without_a_login() {
    // me:p@ss
    for (mode, login) in [(Mode::Pass, None), (Mode::Login("bWU6cEBzcw==".into()), Some("me:p%40ss"))] {
        let proxy = Proxy::start(mode).unwrap();
        let world = behind(&proxy, login);
        world.device.power_on().unwrap();
        world.wait_connected(1);
        let published = published(&world);
        world.run("update", &published.document, Status::Succeeded, "set B");
        assert!(proxy.asked().iter().all(|asked| asked.method == "CONNECT" && asked.passed));
        assert_all_through(&world, &proxy, &published);
        world.finish();
    }
}

#[test]
fn plain_http_goes_through_the_proxy_too() {
    let proxy = Proxy::start(Mode::Pass).unwrap();
    let world = behind(&proxy, None);
    world.device.power_on().unwrap();
    let image = world.image("2.0", Health::Good);
    let published = world.publish_in(&image, Packing::Zstd, PIECE, Scheme::Http);
    world.run("update", &published.document, Status::Succeeded, "set B");
    let passed = proxy.asked().iter().filter(|asked| asked.target.contains(&published.path)).count() as u64;
    assert_eq!(world.counters().path(&published.path).requests, passed, "{:?}", proxy.asked());
    world.finish();
}

#[test]
fn a_proxy_that_refuses_keeps_the_device_offline_and_the_log_says_why_without_the_password() {
    let login = Mode::Login("bWU6cEBzcw==".into());
    for (mode, login, said) in [
        (login, Some("me:hunter2"), "407"),
        (Mode::Refuse(503), Some("me:hunter2"), "503"),
        (Mode::Dead, None, "closed the connection at CONNECT"),
    ] {
        let proxy = Proxy::start(mode).unwrap();
        let world = behind(&proxy, login);
        world.device.power_on().unwrap();
        assert!(proxy.wait_asked(&broker(&world), 2, LIMIT), "{said}: it is not asked again");
        world.wait_log(said);
        assert_eq!(sessions(&world), 0, "{said}: past the proxy");
        let status = world.device.status().unwrap();
        assert!(status["cloud"]["reason"].as_str().unwrap().contains("proxy"), "{status}");
        let told = world.device.look(|heard| heard.lines("hunter2").count());
        assert_eq!((told, status.to_string().contains("hunter2")), (0, false), "the password is shown");
        // Nothing has to be restarted when it is in order again.
        proxy.set(Mode::Pass);
        world.wait_connected(1);
        world.finish();
    }
}

#[test]
fn a_download_waits_for_a_proxy_that_fails_and_does_not_go_past_it() {
    for mode in [Mode::Refuse(503), Mode::Dead] {
        let proxy = Proxy::start(Mode::Pass).unwrap();
        let world = behind(&proxy, None);
        world.device.power_on().unwrap();
        world.wait_connected(1);
        let published = published(&world);
        // The session stays as it is; new connections fail.
        proxy.set(mode.clone());
        world.job("update", &published.document);
        assert!(proxy.wait_asked(&images(&world), 2, LIMIT), "{mode:?}: it is not asked again");
        assert_eq!(world.counters().path(&published.path).requests, 0, "{mode:?}: past the proxy");
        proxy.set(Mode::Pass);
        world.expect_end("update", Status::Succeeded, "set B");
        assert_all_through(&world, &proxy, &published);
        world.finish();
    }
}

#[test]
fn a_download_goes_on_where_it_was_when_the_proxy_is_back() {
    let proxy = Proxy::start(Mode::Pass).unwrap();
    let world = behind(&proxy, None);
    world.device.power_on().unwrap();
    world.wait_connected(1);
    let image = world.image("2.0", Health::Good);
    let published = world.publish(&image, Packing::Zstd);
    world.job_stalled("update", &published, 50);
    world.wait_log("checkpoint saved");
    let before = proxy.asked().len();
    proxy.set(Mode::Dead);
    proxy.cut();
    assert!(proxy.wait_asked("", before + 2, LIMIT), "neither session nor download tries again");
    assert_eq!((sessions(&world), world.counters().path(&published.path).requests), (1, 1), "past the proxy");
    proxy.set(Mode::Pass);
    world.lab.release_stalls();
    world.expect_end("update", Status::Succeeded, "set B");
    assert_eq!(world.device.digest(SetId::B, "rootfs"), image.sha256);
    let count = world.counters().path(&published.path);
    assert_eq!(count.statuses, [200, 206], "{count:?}");
    assert!(count.offsets[1] > 0, "it began again: {count:?}");
    assert_all_through(&world, &proxy, &published);
    world.finish();
}
