//! The handle: starts the servers on a thread of their own and drives them from any thread, without async.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::ca::{Authority, CaError, Identity, IdentityFiles, Validity, write_file};
use crate::clock::{Clock, ClockMode};
use crate::faults::Rule;
use crate::images::{Access, Images, Object, ObjectError, Scheme, sign};
use crate::jobs::{Force, JobError, JobSpec};
use crate::mqtt::Limits;
use crate::policy::Policy;
use crate::provisioning::{CERTIFICATES, Provisioner, TEMPLATES};
use crate::record::Snapshot;
use crate::servers::{Servers, https_tls, listen, mqtt_tls, port};
use crate::world::{Hook, Shared, World, sign_url};

/// Transcript lines in the text of a failed wait.
const TAIL: usize = 30;

/// What a lab starts with.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Things whose certificates may connect from the start; more come with [`Lab::identity`].
    pub things: Vec<String>,
    /// What devices may do.
    pub policy: Policy,
    /// The broker's limits.
    pub limits: Limits,
    /// Whether time passes by itself.
    pub clock: ClockMode,
    /// The address under which devices find the lab, for URLs and server certificates. It listens on 127.0.0.1 all the
    /// same; a virtual device behind a network of its own reaches that under another address.
    pub address: IpAddr,
}

impl Default for LabConfig {
    /// The minimum policy, the limits of AWS, a clock that stands still.
    fn default() -> Self {
        Self {
            things: Vec::new(),
            policy: Policy::jobs(),
            limits: Limits::default(),
            clock: ClockMode::Standing,
            address: Ipv4Addr::LOCALHOST.into(),
        }
    }
}

/// The lab could not start or do something.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Certificates.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS.
    #[error("cannot set up TLS for {what}: {cause}; this is a defect of the lab")]
    Tls {
        /// Which server.
        what: &'static str,
        /// What the library said.
        cause: String,
    },
    /// Sockets or threads.
    #[error("cannot {what}: {source}; are there free ports and file descriptors?")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What was waited for did not happen.
#[derive(Debug, thiserror::Error)]
#[error("not seen within {limit:?}; the end of the transcript:\n{tail}")]
pub struct WaitError {
    /// How long it was waited.
    pub limit: Duration,
    /// The last transcript lines.
    pub tail: String,
}

struct Inner {
    shared: Arc<Shared>,
    authority: Authority,
    mqtt_port: u16,
    stop: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let stop = self.stop.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((sender, thread)) = stop {
            let _ = sender.send(());
            let _ = thread.join();
        }
    }
}

/// A running lab. Clones are the same lab; it ends with the last of them.
#[derive(Clone)]
pub struct Lab(Arc<Inner>);

impl Lab {
    /// Starts the servers on free ports of 127.0.0.1. When it returns, they accept connections.
    ///
    /// # Errors
    /// [`LabError`] when certificates, sockets or the thread cannot be had.
    pub fn start(config: LabConfig) -> Result<Self, LabError> {
        let authority = Authority::new("otandem lab root")?;
        let mqtt_tls = mqtt_tls(&authority, config.address)?;
        let https_tls = https_tls(&authority, config.address)?;
        let (mqtt, http, https) = (listen()?, listen()?, listen()?);
        let ports = [port(&mqtt)?, port(&http)?, port(&https)?];
        let images = Images::new(config.address, ports[1], ports[2]);
        let mut world = World::new(Clock::new(config.clock), images, config.policy, config.limits);
        world.things.extend(config.things.into_iter().map(|thing| (thing, true)));
        let shared = Arc::new(Shared::new(world));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| LabError::System { what: "start the runtime", source })?;
        let (sender, stopped) = oneshot::channel();
        let servers = Servers { shared: Arc::clone(&shared), mqtt, http, https, mqtt_tls, https_tls };
        let running = config.clock == ClockMode::Running;
        let thread = std::thread::Builder::new()
            .name("lab".into())
            .spawn(move || runtime.block_on(servers.run(running, stopped)))
            .map_err(|source| LabError::System { what: "start the thread", source })?;
        let stop = Mutex::new(Some((sender, thread)));
        Ok(Self(Arc::new(Inner { shared, authority, mqtt_port: ports[0], stop })))
    }

    fn world<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        self.0.shared.with(work)
    }

    /// Port of the broker, on 127.0.0.1 and `localhost`.
    #[must_use]
    pub fn mqtt_port(&self) -> u16 {
        self.0.mqtt_port
    }

    /// `http://<address>:<port>` or `https://...` of the image server.
    #[must_use]
    pub fn origin(&self, scheme: Scheme) -> String {
        self.world(|world| world.images.origin(scheme))
    }

    /// The authority whose certificates the broker accepts and whose root signs the servers.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// Registers a thing and makes a good certificate for it.
    ///
    /// # Errors
    /// [`LabError::Ca`].
    pub fn identity(&self, thing: &str) -> Result<Identity, LabError> {
        let identity = self.0.authority.device(thing, Validity::Now)?;
        self.activate(thing);
        Ok(identity)
    }

    /// Lets certificates with this common name connect.
    pub fn activate(&self, common_name: &str) {
        self.world(|world| world.things.insert(common_name.to_owned(), true));
    }

    /// Refuses certificates with this common name from now on and closes what is open.
    pub fn deactivate(&self, common_name: &str) {
        self.world(|world| {
            world.things.insert(common_name.to_owned(), false);
            world.kick(common_name);
        });
    }

    /// Writes `ca.pem` and an identity for `thing` into `folder`; the root's path comes first.
    ///
    /// # Errors
    /// [`LabError::Ca`] with the file that could not be written.
    pub fn write_identity(&self, thing: &str, folder: &Path) -> Result<(PathBuf, IdentityFiles), LabError> {
        let root = folder.join("ca.pem");
        write_file(&root, self.0.authority.pem(), 0o644)?;
        Ok((root, self.identity(thing)?.write(folder)?))
    }

    /// Replaces the policy; open connections are judged by it from their next packet on.
    pub fn set_policy(&self, policy: Policy) {
        self.world(|world| world.policy = policy);
    }

    /// Serves requests on topics that match `filter`: the seam for further services.
    pub fn hook(&self, filter: &str, hook: Hook) {
        self.world(|world| world.hooks.push((filter.to_owned(), hook)));
    }

    /// Lets a certificate be that of a thing, beside others.
    pub fn register(&self, common_name: &str, thing: &str) {
        let registered = self.world(|world| Arc::clone(&world.registered));
        let mut registered = registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.insert(common_name.to_owned(), thing.to_owned());
    }

    /// Serves fleet provisioning with this template from now on; policies must allow it.
    #[must_use]
    pub fn provisioning(&self, template: &str) -> Arc<Mutex<Provisioner>> {
        let registered = self.world(|world| Arc::clone(&world.registered));
        let provisioner = Provisioner::new(self.0.authority.clone(), registered, template);
        let provisioner = Arc::new(Mutex::new(provisioner));
        for filter in [CERTIFICATES, TEMPLATES] {
            let service = Arc::clone(&provisioner);
            let serve =
                move |request: &_| service.lock().unwrap_or_else(PoisonError::into_inner).serve(request);
            self.hook(filter, Box::new(serve));
        }
        provisioner
    }

    /// Creates a job and tells the devices.
    ///
    /// # Errors
    /// [`JobError`], as the service refuses it.
    pub fn create_job(&self, spec: &JobSpec) -> Result<(), JobError> {
        self.jobs(|world, now| world.jobs.create(spec, now))
    }

    /// Creates a job that AWS would refuse for its document.
    ///
    /// # Errors
    /// [`JobError`] for a bad name or a taken id.
    pub fn create_job_unchecked(&self, spec: &JobSpec) -> Result<(), JobError> {
        self.jobs(|world, now| world.jobs.create_unchecked(spec, now))
    }

    /// Cancels a job.
    ///
    /// # Errors
    /// [`JobError`], as the service refuses it.
    pub fn cancel_job(&self, id: &str, force: Force) -> Result<(), JobError> {
        self.jobs(|world, now| world.jobs.cancel(id, force, now))
    }

    /// Cancels what one thing has of a job.
    ///
    /// # Errors
    /// [`JobError`], as the service refuses it.
    pub fn cancel_execution(&self, thing: &str, id: &str, force: Force) -> Result<(), JobError> {
        self.jobs(|world, now| world.jobs.cancel_execution(thing, id, force, now))
    }

    /// Deletes a job.
    ///
    /// # Errors
    /// [`JobError`], as the service refuses it.
    pub fn delete_job(&self, id: &str, force: Force) -> Result<(), JobError> {
        self.jobs(|world, _| world.jobs.delete(id, force))
    }

    fn jobs<T>(&self, work: impl FnOnce(&mut World, Duration) -> T) -> T {
        self.world(|world| {
            let now = world.clock.now();
            let result = work(world, now);
            world.settle();
            result
        })
    }

    /// The lab's time, since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.world(|world| world.clock.now())
    }

    /// Puts the clock forward; jobs time out and URLs expire by it.
    pub fn advance(&self, by: Duration) {
        self.world(|world| {
            world.clock.advance(by);
            world.settle();
        });
    }

    /// Puts an object on the image server, as `bucket/key`. What is being fetched stays what it was.
    pub fn put_image(&self, path: &str, bytes: impl Into<Bytes>, access: Access) {
        let object = Object::in_memory(bytes.into(), access);
        self.world(|world| world.images.put(path, object));
    }

    /// Puts a file on the image server; it is read as it is sent, and must not change.
    ///
    /// # Errors
    /// [`ObjectError`] when it cannot be opened.
    pub fn put_file(&self, path: &str, file: &Path, access: Access) -> Result<(), ObjectError> {
        let object = Object::in_file(file, access)?;
        self.world(|world| world.images.put(path, object));
        Ok(())
    }

    /// Takes an object away.
    pub fn remove_image(&self, path: &str) {
        self.world(|world| world.images.remove(path));
    }

    /// URL of an object, unsigned: good for public ones, and what goes into a placeholder.
    #[must_use]
    pub fn url(&self, path: &str, scheme: Scheme) -> String {
        format!("{}/{}", self.origin(scheme), sign::encode(path.trim_start_matches('/')))
    }

    /// A URL signed now.
    #[must_use]
    pub fn signed_url(&self, path: &str, scheme: Scheme, valid_for: Duration) -> String {
        let url = self.url(path, scheme);
        self.world(|world| sign_url(&mut world.images, world.clock.now(), &url, valid_for))
    }

    /// The placeholder of a job document that the service replaces by a signed URL.
    #[must_use]
    pub fn placeholder(&self, path: &str, scheme: Scheme) -> String {
        format!("${{aws:iot:s3-presigned-url:{}}}", self.url(path, scheme))
    }

    /// Expires every URL signed so far.
    pub fn expire_urls(&self) {
        self.world(|world| world.images.signer.revoke());
    }

    /// Adds a fault.
    pub fn fault(&self, rule: Rule) {
        self.world(|world| world.faults.add(rule));
    }

    /// Takes all faults away; what has stalled goes on.
    pub fn clear_faults(&self) {
        self.world(|world| world.faults.clear());
        self.release_stalls();
    }

    /// Lets every answer that has stalled, or whose request has come in, go on.
    pub fn release_stalls(&self) {
        self.0.shared.stalls.send_modify(|released| *released += 1);
    }

    /// Closes the connections of a thing.
    pub fn kick(&self, thing: &str) {
        self.world(|world| world.kick(thing));
    }

    /// Sends any bytes to a thing, in the middle of its session.
    pub fn send_bytes(&self, thing: &str, bytes: &[u8]) {
        self.world(|world| world.send_bytes(thing, bytes));
    }

    /// Publishes any payload to whoever is subscribed.
    pub fn push(&self, topic: &str, payload: impl Into<Bytes>) {
        let payload = payload.into();
        self.world(|world| world.push(topic, &payload));
    }

    /// Publishes any payload as `notify-next` of a thing.
    pub fn push_notify_next(&self, thing: &str, payload: impl Into<Bytes>) {
        self.push(&format!("$aws/things/{thing}/jobs/notify-next"), payload);
    }

    /// Looks at the lab. Must not call it.
    pub fn inspect<T>(&self, look: impl FnOnce(&Snapshot<'_>) -> T) -> T {
        self.world(|world| world.inspect(look))
    }

    /// Waits, without polling, until `condition` holds. It is asked after every change and must not call the lab.
    ///
    /// # Errors
    /// [`WaitError`] with the end of the transcript, when it did not hold within `limit`.
    pub fn wait_for(
        &self,
        mut condition: impl FnMut(&Snapshot<'_>) -> bool,
        limit: Duration,
    ) -> Result<(), WaitError> {
        self.wait_map(|snapshot| condition(snapshot).then_some(()), limit)
    }

    /// Waits until `condition` finds something.
    ///
    /// # Errors
    /// [`WaitError`] with the end of the transcript, when it found nothing within `limit`.
    pub fn wait_map<T>(
        &self,
        condition: impl FnMut(&Snapshot<'_>) -> Option<T>,
        limit: Duration,
    ) -> Result<T, WaitError> {
        let report = |world: &World| {
            let lines = &world.record.transcript;
            let tail = lines[lines.len().saturating_sub(TAIL)..].iter().map(ToString::to_string);
            WaitError { limit, tail: tail.collect::<Vec<_>>().join("\n") }
        };
        self.0.shared.wait(condition, limit, report)
    }
}
