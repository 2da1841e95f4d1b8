//! What the two servers share, under one lock: sessions, services, faults, record.
//!
//! Nothing in here waits. The sockets call in with what they read; answers leave through the sessions' channels.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqttbytes::QoS;
use mqttbytes::v4::{Connect, Publish};
use tokio::sync::{Notify, mpsc, watch};

use crate::clock::Clock;
use crate::faults::{Faults, MqttFault};
use crate::images::{Images, Scheme, sign};
use crate::jobs::Jobs;
use crate::jobs::queue::Notice;
use crate::mqtt::{Limits, topics};
use crate::policy::{Action, Policy};
use crate::provisioning::Registered;
use crate::record::{Direction, Record, Snapshot};

/// A message from a device, as a hook sees it.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Thing of the connection.
    pub thing: String,
    /// Client id of the connection.
    pub client_id: String,
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// The lab's time, since the Unix epoch.
    pub now: Duration,
}

/// Who gets a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// Only the connection that asked, subscribed or not.
    Requester,
    /// Whoever is subscribed.
    Subscribers,
}

/// A message of a hook.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// Who gets it.
    pub to: To,
}

/// Serves the requests on some topics; runs under the lab's lock and must not call the lab.
pub type Hook = Box<dyn FnMut(&Inbound) -> Vec<Outbound> + Send>;

/// Names one connection; a client id that was taken over names another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub client_id: String,
    pub thing: String,
    number: u64,
}

/// Why a connection ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Closing {
    /// The policy forbids something.
    Violation(String),
    /// A limit or the protocol was broken.
    Offence(String),
    /// DISCONNECT.
    ByClient,
    /// Kicked, by a fault or taken over.
    ByLab,
    /// The stream ended.
    Lost,
}

pub(crate) struct Session {
    number: u64,
    thing: String,
    pub subscriptions: Vec<(String, QoS)>,
    pub outbox: mpsc::UnboundedSender<Vec<u8>>,
    close: Arc<Notify>,
    packet_id: u16,
    /// Publishes that may still come now, and when that was reckoned.
    pub allowance: f64,
    pub reckoned: Instant,
}

/// Everything under the lock.
pub(crate) struct World {
    pub clock: Clock,
    pub jobs: Jobs,
    pub images: Images,
    pub policy: Policy,
    pub limits: Limits,
    pub faults: Faults,
    pub record: Record,
    pub hooks: Vec<(String, Hook)>,
    /// Common names of certificates, and whether they are active.
    pub things: BTreeMap<String, bool>,
    /// Certificates that were registered by [`crate::provisioning`].
    pub registered: Registered,
    sessions: BTreeMap<String, Session>,
    connections: u64,
    held: BTreeMap<String, Notice>,
}

/// The world with its lock and its bell.
pub(crate) struct Shared {
    world: Mutex<World>,
    changed: Condvar,
    pub stalls: watch::Sender<u64>,
}

impl Shared {
    pub fn new(world: World) -> Self {
        Self { world: Mutex::new(world), changed: Condvar::new(), stalls: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        // A condition of a test that panicked under the lock has changed nothing.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the world, then wakes those who wait for it to change.
    pub fn with<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        let result = work(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until `condition` says something, at most `limit`; on failure what `report` makes of the world.
    pub fn wait<T, R>(
        &self,
        mut condition: impl FnMut(&Snapshot<'_>) -> Option<T>,
        limit: Duration,
        report: impl FnOnce(&World) -> R,
    ) -> Result<T, R> {
        let end = Instant::now() + limit;
        let mut world = self.lock();
        loop {
            if let Some(found) = world.inspect(&mut condition) {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(report(&world));
            }
            world = self.changed.wait_timeout(world, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl World {
    pub fn new(clock: Clock, images: Images, policy: Policy, limits: Limits) -> Self {
        Self {
            clock,
            jobs: Jobs::default(),
            images,
            policy,
            limits,
            faults: Faults::default(),
            record: Record::default(),
            hooks: Vec::new(),
            things: BTreeMap::new(),
            registered: Registered::default(),
            sessions: BTreeMap::new(),
            connections: 0,
            held: BTreeMap::new(),
        }
    }

    pub fn inspect<T>(&self, look: impl FnOnce(&Snapshot<'_>) -> T) -> T {
        let connected: Vec<_> = self.sessions.keys().cloned().collect();
        look(&Snapshot {
            now: self.clock.now(),
            transcript: &self.record.transcript,
            counters: &self.record.counters,
            jobs: &self.jobs,
            connected: &connected,
        })
    }

    pub fn event(&mut self, thing: &str, what: &str, text: &str) {
        self.record.event(self.clock.now(), thing, what, text);
    }

    pub fn offence(&mut self, thing: &str, text: &str) {
        self.record.counters.offences.push((thing.to_owned(), text.to_owned()));
        self.event(thing, "offence", text);
    }

    /// The thing of a certificate, if that is active.
    pub fn thing_of(&self, common_name: &str) -> Option<String> {
        match self.things.get(common_name) {
            Some(active) => active.then(|| common_name.to_owned()),
            None => self.registered.lock().unwrap_or_else(PoisonError::into_inner).get(common_name).cloned(),
        }
    }

    /// Opens a session, taking over one of the same client id. `Err` is the CONNACK code to refuse with; none closes
    /// without a word, as AWS does.
    pub fn connect(
        &mut self,
        thing: &str,
        connect: &Connect,
        outbox: mpsc::UnboundedSender<Vec<u8>>,
        close: Arc<Notify>,
    ) -> Result<Link, Option<u8>> {
        let client_id = connect.client_id.clone();
        if !self.policy.permits(thing, Action::Connect, &client_id) {
            let text = format!("connect as client id {client_id:?}");
            self.record.counters.violations.push((thing.to_owned(), text.clone()));
            self.event(thing, "violation", &text);
            return Err(None);
        }
        let connecting = |f: &MqttFault| matches!(f, MqttFault::RefuseConnect(_) | MqttFault::CloseConnect);
        if let Some(fault) = self.faults.mqtt(thing, None, connecting).first() {
            self.event(thing, "refuse", &format!("{fault:?}"));
            let MqttFault::RefuseConnect(code) = fault else { return Err(None) };
            return Err(Some(*code));
        }
        self.connections += 1;
        let number = self.connections;
        let _ = outbox.send(vec![0x20, 2, 0, 0]);
        let session = Session {
            number,
            thing: thing.to_owned(),
            subscriptions: Vec::new(),
            outbox,
            close,
            packet_id: 0,
            allowance: f64::from(self.limits.publishes_per_second),
            reckoned: Instant::now(),
        };
        if let Some(old) = self.sessions.insert(client_id.clone(), session) {
            old.close.notify_one();
            self.event(thing, "takeover", &client_id);
        }
        *self.record.counters.connects.entry(thing.to_owned()).or_default() += 1;
        self.event(thing, "connect", &client_id);
        Ok(Link { client_id, thing: thing.to_owned(), number })
    }

    pub fn disconnect(&mut self, link: &Link, closing: &Closing) {
        match closing {
            Closing::Violation(text) => {
                self.record.counters.violations.push((link.thing.clone(), text.clone()));
                self.event(&link.thing, "violation", text);
            }
            Closing::Offence(text) => self.offence(&link.thing, text),
            Closing::ByClient | Closing::ByLab | Closing::Lost => {}
        }
        if self.sessions.get(&link.client_id).is_some_and(|session| session.number == link.number) {
            self.sessions.remove(&link.client_id);
        }
        self.event(&link.thing, "close", &format!("{closing:?}"));
    }

    /// Closes every connection of a thing.
    pub fn kick(&mut self, thing: &str) {
        for session in self.sessions.values().filter(|session| session.thing == thing) {
            session.close.notify_one();
        }
    }

    /// Sends bytes that need not be MQTT.
    pub fn send_bytes(&mut self, thing: &str, bytes: &[u8]) {
        for session in self.sessions.values().filter(|session| session.thing == thing) {
            let _ = session.outbox.send(bytes.to_vec());
        }
    }

    /// To everyone who is subscribed.
    pub fn push(&mut self, topic: &str, payload: &Bytes) {
        let clients: Vec<_> = self.sessions.keys().cloned().collect();
        for client in clients {
            if let Some(qos) = self.subscribed(&client, topic) {
                self.deliver(&client, topic, payload.clone(), qos);
            }
        }
    }

    /// The QoS with which a client is subscribed to a topic, if it is.
    pub fn subscribed(&self, client_id: &str, topic: &str) -> Option<QoS> {
        let subscriptions = &self.sessions.get(client_id)?.subscriptions;
        let matching = subscriptions.iter().filter(|(filter, _)| topics::matches(filter, topic));
        matching.map(|(_, qos)| *qos).max_by_key(|qos| *qos as u8)
    }

    /// One message to one client, unless its policy forbids it to receive it.
    pub fn deliver(&mut self, client_id: &str, topic: &str, payload: Bytes, qos: QoS) {
        let Some(session) = self.sessions.get_mut(client_id) else { return };
        if !self.policy.permits(&session.thing, Action::Receive, topic) {
            return;
        }
        let mut publish = Publish::from_bytes(topic, qos, payload.clone());
        if qos != QoS::AtMostOnce {
            session.packet_id = session.packet_id.checked_add(1).unwrap_or(1);
            publish.pkid = session.packet_id;
        }
        let mut bytes = BytesMut::new();
        if publish.write(&mut bytes).is_ok() {
            let _ = session.outbox.send(bytes.to_vec());
            let thing = session.thing.clone();
            self.record.message(self.clock.now(), Direction::Out, &thing, topic, payload);
        }
    }

    /// The open session of a link; none once it was taken over: what is said after that is not heard.
    pub fn session(&mut self, link: &Link) -> Option<&mut Session> {
        self.sessions.get_mut(&link.client_id).filter(|session| session.number == link.number)
    }

    /// Lets timers run out, then tells devices what changed.
    pub fn settle(&mut self) {
        self.jobs.expire(self.clock.now());
        self.push_notices();
    }

    /// Tells devices what changed.
    pub fn push_notices(&mut self) {
        let now = self.clock.now();
        let images = &mut self.images;
        let notices = self.jobs.notices(now, &mut |url, life| sign_url(images, now, url, life));
        for notice in notices {
            if notice.topic.ends_with("/notify") {
                self.send_notice(&notice);
            } else {
                self.push_next(notice);
            }
        }
    }

    fn push_next(&mut self, notice: Notice) {
        let about = |f: &MqttFault| {
            matches!(
                f,
                MqttFault::DuplicateNotifyNext | MqttFault::HoldNotifyNext | MqttFault::DropNotifyNext
            )
        };
        let faults = self.faults.mqtt(&notice.thing, notice.job.as_deref(), about);
        if faults.contains(&MqttFault::DropNotifyNext) {
            return;
        }
        if faults.contains(&MqttFault::HoldNotifyNext) {
            self.held.insert(notice.thing.clone(), notice);
            return;
        }
        self.send_notice(&notice);
        if faults.contains(&MqttFault::DuplicateNotifyNext) {
            self.send_notice(&notice);
        }
        if let Some(held) = self.held.remove(&notice.thing) {
            self.send_notice(&held);
        }
    }

    fn send_notice(&mut self, notice: &Notice) {
        self.push(&notice.topic, &Bytes::from(notice.payload.to_string()));
    }
}

/// Signs the URL of a placeholder, on the server of its scheme.
pub(crate) fn sign_url(images: &mut Images, now: Duration, url: &str, valid_for: Duration) -> String {
    let scheme = if url.starts_with("http://") { Scheme::Http } else { Scheme::Https };
    let path = sign::object_of(url);
    let query = images.signer.query(&path, now, valid_for);
    format!("{}/{}?{query}", images.origin(scheme), sign::encode(&path))
}
