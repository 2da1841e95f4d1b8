//! The stage: a lab, a device, and what happens on them told as it happens.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use otandem_core::boot::SetId;
use otandem_lab::{Access, ClockMode, HttpFault, JobSpec, Lab, LabConfig, Rule, Scheme, Snapshot, Status};
use otandem_system_tests::device::{Cloud, Heard};
use otandem_system_tests::image::sha256;
use otandem_system_tests::pack::{self, FRAME, Packing};
use otandem_system_tests::{Device, Health, Image, Spec};
use serde_json::json;

use crate::screen::{Screen, Who, mib};

/// The only device.
pub const THING: &str = "gateway-0001";
/// No step of the demo takes longer than this.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How often those who tell look whether the show is over.
const LOOK: Duration = Duration::from_millis(500);

/// Lab and device.
pub struct Stage {
    /// The cloud.
    pub lab: Lab,
    /// The device.
    pub device: Arc<Device>,
    /// What is shown.
    pub screen: Arc<Screen>,
    /// Length of each object on the image server.
    sizes: Arc<Mutex<BTreeMap<String, u64>>>,
}

/// An image on the image server.
pub struct Offer {
    /// The image.
    pub image: Image,
    /// `bucket/key`.
    pub path: String,
    /// Bytes to fetch.
    pub size: u64,
    /// The byte behind its first two frames.
    pub two_frames: u64,
}

impl Stage {
    /// Starts the lab and puts the device into `folder`, switched off.
    pub fn set(folder: &Path, screen: Arc<Screen>) -> Result<Self, String> {
        let config = LabConfig { clock: ClockMode::Running, ..LabConfig::default() };
        let lab = Lab::start(config).map_err(|e| e.to_string())?;
        let certs = folder.join("certs");
        std::fs::create_dir_all(&certs).map_err(|e| format!("{}: {e}", certs.display()))?;
        let (ca, files) = lab.write_identity(THING, &certs).map_err(|e| e.to_string())?;
        let cloud = Cloud {
            port: lab.mqtt_port(),
            thing: THING.to_owned(),
            ca,
            certificate: files.certificate,
            key: files.key,
        };
        let spec = Spec { cloud: Some(cloud), ..Spec::default() }
            .with("update", "checkpoint-interval", "\"200ms\"")
            .with("log", "level", "\"info,otandem=debug\"");
        let factory = Image::real("1.0", Health::Good, folder).map_err(|e| e.to_string())?;
        let kind = match factory.kind {
            "plain" => "deterministic bytes (mkfs.ext4 and mksquashfs are not there)".to_owned(),
            kind => format!("{kind} with files of this machine"),
        };
        screen.line(Who::Demo, &format!("images of {} MiB: {kind}", mib(factory.bytes.len() as u64)));
        let device = Device::make(folder, spec, &factory).map_err(|e| e.to_string())?;
        Ok(Self { lab, device: Arc::new(device), screen, sizes: Arc::default() })
    }

    /// Makes an image and puts it on the image server as the documentation says: independent zstd frames of 16 MiB.
    /// The server takes so many seconds to send it.
    pub fn offer(&self, version: &str, health: Health, folder: &Path, seconds: u64) -> Result<Offer, String> {
        let image = Image::real(version, health, folder).map_err(|e| e.to_string())?;
        self.device.know(&image);
        let packed = pack::pack(&image.bytes, Packing::Zstd, FRAME).map_err(|e| e.to_string())?;
        let two = image.bytes.get(..2 * FRAME).unwrap_or(&image.bytes);
        let two_frames = pack::pack(two, Packing::Zstd, FRAME).map_err(|e| e.to_string())?.len() as u64;
        let (path, size) = (format!("images/gateway-{version}.img.zst"), packed.len() as u64);
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone(), size);
        self.lab.put_image(&path, packed, Access::Signed);
        self.lab.fault(Rule::always(HttpFault::Slow(size / seconds)).path(&path));
        Ok(Offer { image, path, size, two_frames })
    }

    /// Creates the job that installs what is offered.
    pub fn create_job(&self, id: &str, offer: &Offer) -> Result<(), String> {
        let document = json!({"operation": "fota", "image": {
            "url": self.lab.placeholder(&offer.path, Scheme::Https),
            "sha256": offer.image.sha256, "size": offer.image.bytes.len(), "compression": "zstd",
            "version": offer.image.version, "compatible": "otandem-test",
        }});
        let spec = JobSpec::new(id, THING, &document.to_string());
        self.screen.line(Who::Cloud, &format!("job {id}: QUEUED"));
        self.lab.create_job(&spec).map_err(|e| e.to_string())
    }

    /// Waits for the end of a job: how it ended, and why.
    pub fn wait_end(&self, id: &str) -> Result<(Status, String), String> {
        let end = |lab: &Snapshot<'_>| {
            let execution = lab.jobs.execution(THING, id)?;
            let reason =
                execution.details.as_ref().and_then(|d| d.get("reason")).cloned().unwrap_or_default();
            execution.status.is_terminal().then_some((execution.status, reason))
        };
        self.lab
            .wait_map(end, LIMIT)
            .map_err(|e| format!("job {id} does not end: {e}\n{}", self.device.tail()))
    }

    /// Waits until the server has sent so many bytes of an object.
    pub fn wait_sent(&self, path: &str, bytes: u64) -> Result<(), String> {
        self.lab
            .wait_for(|lab| lab.counters.path(path).body_bytes >= bytes, LIMIT)
            .map_err(|e| format!("{e}\n{}", self.device.tail()))
    }

    /// Bytes of an object that the server has sent.
    pub fn sent(&self, path: &str) -> u64 {
        self.lab.inspect(|lab| lab.counters.path(path).body_bytes)
    }

    /// SHA-256 of what a set holds, as far as the image goes.
    pub fn slot_digest(&self, set: SetId) -> String {
        self.device.digest(set, "rootfs")
    }

    /// The set holds exactly this image.
    pub fn holds(&self, set: SetId, image: &Image) -> bool {
        self.slot_digest(set) == sha256(&image.bytes)
    }
}

/// Those who tell what happens, until they are dropped.
pub struct Tellers {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tellers {
    /// Begins to tell.
    pub fn start(stage: &Stage) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (lab, screen, end) = (stage.lab.clone(), Arc::clone(&stage.screen), Arc::clone(&over));
        let sizes = Arc::clone(&stage.sizes);
        let cloud = std::thread::spawn(move || tell_cloud(&lab, &sizes, &screen, &end));
        let (device, screen, end) = (Arc::clone(&stage.device), Arc::clone(&stage.screen), Arc::clone(&over));
        let machine = std::thread::spawn(move || tell_device(&device, &screen, &end));
        Self { over, threads: vec![cloud, machine] }
    }
}

impl Drop for Tellers {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What is known of one job: its status and its details without the seal.
type Seen = BTreeMap<String, String>;

fn tell_cloud(lab: &Lab, sizes: &Mutex<BTreeMap<String, u64>>, screen: &Screen, over: &AtomicBool) {
    let (mut jobs, mut sent, mut connects) = (Seen::new(), BTreeMap::new(), 0);
    let mut begun = BTreeMap::new();
    while !over.load(Ordering::Relaxed) {
        let news = lab.wait_map(
            |lab| {
                let now =
                    (jobs_of(lab), sent_of(lab), lab.counters.connects.get(THING).copied().unwrap_or(0));
                (now.0 != jobs || now.1 != sent || now.2 != connects).then_some(now)
            },
            LOOK,
        );
        let Ok((new_jobs, new_sent, new_connects)) = news else { continue };
        if new_connects != connects {
            screen.line(Who::Device, "connects with its certificate");
        }
        for (path, now) in new_sent.iter().filter(|(path, now)| sent.get(*path) != Some(*now)) {
            let total = sizes.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied();
            let (requests, from, bytes) = *now;
            // What the requests before this one had sent.
            let before = begun.entry(path.clone()).or_insert((0, 0));
            if before.0 != requests {
                *before = (requests, sent.get(path).map_or(0, |(_, _, bytes): &Sent| *bytes));
            }
            screen.progress(from + bytes - before.1, total.unwrap_or(0));
        }
        for (id, text) in &new_jobs {
            if jobs.get(id) != Some(text) && text != Status::Queued.name() {
                screen.line(Who::Cloud, &format!("job {id}: {text}"));
            }
        }
        (jobs, sent, connects) = (new_jobs, new_sent, new_connects);
    }
}

fn jobs_of(lab: &Snapshot<'_>) -> Seen {
    let text = |e: &otandem_lab::jobs::Execution| {
        let of = |key: &str| e.details.as_ref()?.get(key).cloned();
        let said = [
            of("phase"),
            of("percent").map(|percent| format!("{percent} %")),
            of("waits-for").map(|what| format!("waits for {what}")),
            of("reason"),
        ];
        format!("{:<11} {}", e.status.name(), said.into_iter().flatten().collect::<Vec<_>>().join(", "))
    };
    lab.jobs.executions().map(|e| (e.job.clone(), text(e).trim_end().to_owned())).collect()
}

/// Of one object: requests so far, the byte at which the last one began, and the bytes sent in all.
type Sent = (u64, u64, u64);

fn sent_of(lab: &Snapshot<'_>) -> BTreeMap<String, Sent> {
    let of = |count: &otandem_lab::record::PathCount| {
        (count.requests, count.offsets.last().copied().unwrap_or(0), count.body_bytes)
    };
    lab.counters.paths.iter().map(|(path, count)| (path.clone(), of(count))).collect()
}

fn tell_device(device: &Device, screen: &Screen, over: &AtomicBool) {
    let (mut boots, mut events) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let news = device.wait("news", LOOK, |heard: &Heard| {
            (heard.boots.len() > boots || heard.events.len() > events)
                .then(|| (heard.boots[boots..].to_vec(), heard.events[events..].to_vec()))
        });
        let Ok((new_boots, new_events)) = news else { continue };
        (boots, events) = (boots + new_boots.len(), events + new_events.len());
        for event in new_events {
            let text = match event.as_str() {
                "reboot" => "reboots",
                "health 0" => "health check: the image is well",
                event if event.starts_with("health") => "health check: the image is NOT well",
                _ => continue,
            };
            screen.line(Who::Device, text);
        }
        for boot in new_boots {
            let image = boot.images.iter().flatten().next().map_or("an incomplete image", String::as_str);
            let set = boot.set.map_or("no set", SetId::name);
            screen.line(Who::Loader, &format!("boots set {set}: version {image}"));
        }
    }
}
