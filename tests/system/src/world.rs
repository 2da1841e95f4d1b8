//! A device and a lab, for tests: what happens in every scenario, and what must hold in every scenario.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use otandem_core::boot::SetId;
use otandem_lab::{Access, Counters, HttpFault, JobSpec, Lab, LabConfig, Position, Rule, Scheme, Status};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::device::{Cloud, Device, Spec};
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
    /// The cloud.
    pub lab: Lab,
    /// The device.
    pub device: Device,
    /// Its name.
    pub thing: String,
    folder: Option<TempDir>,
}

/// An image on the image server.
#[derive(Debug, Clone)]
pub struct Published {
    /// `bucket/key`.
    pub path: String,
    /// Of the bytes on the server.
    pub file_sha256: String,
    /// Number of bytes on the server.
    pub file_size: usize,
    /// A job document that installs it, complete.
    pub document: Value,
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
        Self { lab, device, thing, folder: Some(folder) }
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

    /// Creates a job for the device.
    pub fn job(&self, id: &str, document: &Value) {
        self.lab.create_job(&JobSpec::new(id, &self.thing, &document.to_string())).unwrap();
    }

    /// Lets the next download of this image stand still after `percent` of the file; the byte where it does.
    #[must_use]
    pub fn stall(&self, published: &Published, percent: usize) -> u64 {
        let at = (published.file_size * percent / 100) as u64;
        self.lab.fault(Rule::once(HttpFault::StallAt(Position::Object(at))).path(&published.path));
        at
    }

    /// Creates a job whose download stands still after `percent` of the file, and waits until it does.
    pub fn job_stalled(&self, id: &str, published: &Published, percent: usize) {
        let at = self.stall(published, percent);
        self.job(id, &published.document);
        self.wait_sent(&published.path, at);
    }

    /// Waits until the job has this status.
    pub fn wait_status(&self, id: &str, status: Status) {
        self.wait_lab(&format!("job {id} {}", status.name()), |lab| {
            (lab.status(&self.thing, id) == Some(status)).then_some(())
        });
    }

    /// Waits until the job is at its end, however it ended: the status and the reason.
    pub fn wait_end(&self, id: &str) -> (Status, String) {
        self.wait_lab(&format!("the end of job {id}"), |lab| {
            let execution = lab.jobs.execution(&self.thing, id)?;
            let details = execution.details.clone().unwrap_or_default();
            let reason = details.get("reason").cloned().unwrap_or_default();
            execution.status.is_terminal().then_some((execution.status, reason))
        })
    }

    /// Waits until the job has ended so, with this in the reason.
    pub fn expect_end(&self, id: &str, status: Status, reason: &str) {
        let (got, why) = self.wait_end(id);
        assert!(
            got == status && why.contains(reason),
            "job {id} ended {} ({why}), not {} ({reason})",
            got.name(),
            status.name()
        );
    }

    /// Creates a job and waits until it ended so.
    pub fn run(&self, id: &str, document: &Value, status: Status, reason: &str) {
        self.job(id, document);
        self.expect_end(id, status, reason);
    }

    /// What the device said last about the job.
    #[must_use]
    pub fn details(&self, id: &str) -> BTreeMap<String, String> {
        self.lab.inspect(|lab| {
            lab.jobs.execution(&self.thing, id).and_then(|e| e.details.clone()).unwrap_or_default()
        })
    }

    /// Waits until the device has connected so many times.
    pub fn wait_connected(&self, times: u64) {
        self.wait_lab(&format!("connection {times}"), |lab| {
            (lab.counters.connects.get(&self.thing).copied().unwrap_or_default() >= times).then_some(())
        });
    }

    /// Waits until the device is in a session with the broker, or in none.
    pub fn wait_session(&self, there: bool) {
        self.wait_lab(if there { "a session" } else { "the end of the session" }, |lab| {
            (lab.connected.contains(&self.thing) == there).then_some(())
        });
    }

    /// Waits until the server has sent so many bytes of an object.
    pub fn wait_sent(&self, path: &str, bytes: u64) {
        self.wait_lab(&format!("{bytes} bytes of {path}"), |lab| {
            (lab.counters.path(path).body_bytes >= bytes).then_some(())
        });
    }

    /// Waits for something in the lab.
    pub fn wait_lab<T>(
        &self,
        what: &str,
        condition: impl FnMut(&otandem_lab::Snapshot<'_>) -> Option<T>,
    ) -> T {
        match self.lab.wait_map(condition, LIMIT) {
            Ok(found) => found,
            Err(error) => panic!("{what}: {error}"),
        }
    }

    /// The lab's totals.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lab.inspect(|lab| lab.counters.clone())
    }

    /// Waits for a line of the agent's log.
    pub fn wait_log(&self, text: &str) {
        self.device
            .wait(&format!("log line {text:?}"), LIMIT, |heard| heard.lines(text).next().map(drop))
            .unwrap();
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
        let counters = self.counters();
        assert_eq!(counters.violations, [], "the device left its policy");
        assert_eq!(counters.offences, [], "the device broke a limit of the broker");
        self.assert_one_end_for_each_job();
        let (crashes, stubborn) = self.device.look(|heard| (heard.crashes.clone(), heard.stubborn));
        assert_eq!(crashes, [] as [String; 0], "the agent ended by itself");
        assert_eq!(stubborn, 0, "the agent did not end when it was told to");
    }

    /// No execution got two different outcomes, and none went on after its outcome.
    fn assert_one_end_for_each_job(&self) {
        let mut ends: BTreeMap<(String, i64), Vec<String>> = BTreeMap::new();
        self.lab.inspect(|lab| {
            for entry in lab.messages(otandem_lab::Direction::In, "/update") {
                let job = entry.topic.rsplit('/').nth(1).unwrap_or_default().to_owned();
                let payload = entry.json();
                let key = (job, payload["executionNumber"].as_i64().unwrap_or_default());
                let status = payload["status"].as_str().unwrap_or_default().to_owned();
                let said = ends.entry(key).or_default();
                if said.last() != Some(&status) {
                    said.push(status);
                }
            }
        });
        for ((job, number), said) in ends {
            let end = said.iter().position(|status| status != "IN_PROGRESS");
            assert!(
                end.is_none_or(|end| end + 1 == said.len()),
                "job {job}, execution {number}: the device said {said:?}"
            );
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept: Option<PathBuf> = self.folder.take().map(TempDir::keep);
            eprintln!("the agent's log, in {}", self.device.tail());
            eprintln!("everything is kept in {}", kept.unwrap_or_default().display());
            let transcript: Vec<String> = self
                .lab
                .inspect(|lab| lab.transcript.iter().rev().take(40).rev().map(ToString::to_string).collect());
            eprintln!("the end of what was said to the cloud:\n{}", transcript.join("\n"));
        }
    }
}
