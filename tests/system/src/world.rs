//! A device and a lab, for tests: what happens in every scenario, and what must hold in every scenario.

use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use otandem_core::boot::SetId;
use otandem_lab::{Access, Lab, LabConfig, Scheme};
use serde_json::json;
use tempfile::TempDir;

use crate::cloud::CloudSide;
pub use crate::cloud::Published;
use crate::device::{Cloud, Device, Heard, Spec};
use crate::image::{Health, Image, sha256};
use crate::pack::{self, Packing};

/// Only a failure takes this long.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Size of the images of the tests.
pub const SIZE: usize = 4 << 20;
/// What the packed images of the tests are made of: four pieces for an image of [`SIZE`].
pub const PIECE: usize = 1 << 20;

/// A lab with one device. It panics where something does not go as it must: it is a test.
pub struct World {
    /// Its cloud.
    pub cloud: CloudSide,
    /// The device.
    pub device: Device,
    folder: Option<TempDir>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// A device with one slot, switched on and connected.
    #[must_use]
    pub fn new() -> Self {
        Self::with(|spec| spec)
    }

    /// A device made as `change` says, switched on and connected.
    #[must_use]
    pub fn with(change: impl FnOnce(Spec) -> Spec) -> Self {
        let world = Self::off(change);
        world.device.power_on().unwrap();
        world.wait_connected(1);
        world
    }

    /// A device that is not switched on yet.
    #[must_use]
    pub fn off(change: impl FnOnce(Spec) -> Spec) -> Self {
        let folder = tempfile::Builder::new().prefix("otandem-").tempdir().unwrap();
        let lab = Lab::start(LabConfig::default()).unwrap();
        let thing = "device".to_owned();
        let certs = folder.path().join("certs");
        std::fs::create_dir_all(&certs).unwrap();
        let (ca, files) = lab.write_identity(&thing, &certs).unwrap();
        let cloud = Cloud {
            port: lab.mqtt_port(),
            thing: thing.clone(),
            ca,
            certificate: files.certificate,
            key: files.key,
        };
        let spec = Spec { cloud: Some(cloud), ..Spec::default() }
            .with("update", "health-timeout", "\"20s\"")
            .with("update", "cloud-timeout", "\"30s\"")
            .with("update", "checkpoint-bytes", "\"1MiB\"")
            .with("update", "checkpoint-interval", "\"0s\"")
            .with("log", "level", "\"info,otandem=debug\"");
        let factory = Image::plain("factory", Health::Good, 2 << 20);
        let device = Device::make(folder.path(), change(spec), &factory).unwrap();
        Self { cloud: CloudSide { lab, thing, limit: LIMIT }, device, folder: Some(folder) }
    }

    /// Makes a good image of the usual size.
    #[must_use]
    pub fn image(&self, version: &str, health: Health) -> Image {
        let image = Image::plain(version, health, SIZE);
        self.device.know(&image);
        image
    }

    /// Puts an image on the server, packed in pieces.
    #[must_use]
    pub fn publish(&self, image: &Image, packing: Packing) -> Published {
        self.publish_in(image, packing, PIECE, Scheme::Https)
    }

    /// Puts an image on the server, with every choice there is.
    #[must_use]
    pub fn publish_in(&self, image: &Image, packing: Packing, piece: usize, scheme: Scheme) -> Published {
        let bytes = pack::pack(&image.bytes, packing, piece).unwrap();
        let path = format!("images/{}.{}", image.version, packing.name());
        let file_sha256 = sha256(&bytes);
        let file_size = bytes.len();
        self.lab.put_image(&path, bytes, Access::Signed);
        let document = json!({"operation": "fota", "image": {
            "url": self.lab.placeholder(&path, scheme), "sha256": image.sha256, "size": image.bytes.len(),
            "compression": packing.name(), "version": image.version, "compatible": "otandem-test",
        }});
        Published { path, file_sha256, file_size, document }
    }

    /// Waits for a line of the agent's log.
    pub fn wait_log(&self, text: &str) {
        self.device
            .wait(&format!("log line {text:?}"), LIMIT, |heard| heard.lines(text).next().map(drop))
            .unwrap();
    }

    /// Waits until scripts told this so often, and not more: what they tell comes by a way of its own, so that it may be
    /// heard after the end of whatever ran them.
    pub fn wait_told(&self, what: &str, times: usize) {
        let told = |heard: &Heard| heard.events.iter().filter(|event| *event == what).count();
        let enough = |heard: &Heard| (told(heard) >= times).then_some(());
        self.device.wait(&format!("{what:?}, told {times} times"), LIMIT, enough).unwrap();
        assert_eq!(self.device.look(told), times, "{what}");
    }

    /// Waits until a script stands at this gate.
    pub fn wait_gate(&self, name: &str) {
        self.device.wait_gate(name, LIMIT).unwrap();
    }

    /// Waits until this set has booted, the so-manieth boot at least.
    pub fn wait_boot(&self, set: SetId, number: usize) {
        self.device
            .wait(&format!("boot {number}: set {set}"), LIMIT, |heard| {
                let boot = heard.boots.get(number - 1..)?.last()?;
                (boot.set == Some(set)).then_some(())
            })
            .unwrap();
    }

    /// What must hold at the end of every scenario, and then the end.
    pub fn finish(self) {
        self.assert_kept_the_rules();
        let (crashes, stubborn) = self.device.look(|heard| (heard.crashes.clone(), heard.stubborn));
        assert_eq!(crashes, [] as [String; 0], "the agent ended by itself");
        assert_eq!(stubborn, 0, "the agent did not end when it was told to");
    }
}

impl Deref for World {
    type Target = CloudSide;

    fn deref(&self) -> &CloudSide {
        &self.cloud
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept: Option<PathBuf> = self.folder.take().map(TempDir::keep);
            eprintln!("the agent's log, in {}", self.device.tail());
            eprintln!("everything is kept in {}", kept.unwrap_or_default().display());
            eprintln!("the end of what was said to the cloud:\n{}", self.said(40));
        }
    }
}
