//! The one MQTT session that all features share: a task with a channel in each direction.
//!
//! The task keeps itself connected. It says [`Inbound::Up`] when the broker has granted every needed subscription,
//! and [`Inbound::Down`] with a reason in plain words whenever an attempt or a session ended. What it can do without comes
//! after that, group by group, and costs no more than itself where the broker does not allow it. Sessions are clean:
//! what was published and not acknowledged before a `Down` may be lost, so who needs an answer asks again after the
//! next `Up` (the outbox does), and who posts is told which posts were lost.
//!
//! Limits of the broker that are kept: 8 filters per SUBSCRIBE, 50 subscriptions, publishes per second and in
//! flight as configured, 128 KiB of payload.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions, NetworkOptions,
    Outgoing, Packet, QoS, StateError, SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use url::Url;

pub use super::channel::{Fate, Inbound, MAX_PAYLOAD, Outbound, Topics};
use super::dial::dial;
use super::tls::{self, Clock};
use super::wallet::{Ended, Wallet};
use crate::backoff::Backoff;

mod groups;
mod link;
mod optional;
mod posts;
#[cfg(test)]
mod tests;

use groups::Groups;
use link::{Link, advice};

const MAX_FILTERS: usize = 8;
const MAX_SUBSCRIPTIONS: usize = 50;
/// Packets that wait for the session's turn.
const PACKETS: usize = 64;
/// Messages that are written to the connection at once.
const BATCH: usize = 32;
/// Topic and headers beside the payload.
const PACKET_OVERHEAD: usize = 1 << 10;
/// Until a certificate is looked for again where there is none.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// A session that lasted this long was a good one: after it, back-off begins anew. A broker that accepts a device and
/// drops it at its first publish would otherwise be called every second.
const GOOD_SESSION: Duration = Duration::from_secs(30);

/// How to reach the broker.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// For the log.
    pub name: &'static str,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// MQTT client id.
    pub client_id: String,
    /// Between two signs of life; whole seconds count.
    pub keep_alive: Duration,
    /// TCP, proxy, TLS and MQTT together; also for each acknowledgement of a subscription.
    pub connect_timeout: Duration,
    /// What the device shows.
    pub wallet: Wallet,
    /// The wallet's clock, for clear errors.
    pub clock: Arc<Clock>,
    /// HTTP CONNECT proxy.
    pub proxy: Option<Url>,
    /// Publishes per second; 0 = no limit.
    pub publish_rate: u32,
    /// Publishes that wait for their acknowledgement; 0 = no limit.
    pub in_flight: u16,
    /// What the broker publishes when the session breaks: topic and payload.
    pub last_will: Option<(String, String)>,
    /// Ceiling of the first wait after a failure; doubles with each further one.
    pub retry_first: Duration,
    /// Ceiling of all waits.
    pub retry_most: Duration,
}

/// Keeps the session until every sender of `orders` or the receiver of `inbound` is gone.
///
/// `orders` has no bound so that a feature can always give one while the session waits for that feature to take a
/// message; `inbound` should be short.
pub async fn run(
    config: SessionConfig,
    topics: Topics,
    orders: mpsc::UnboundedReceiver<Outbound>,
    inbound: mpsc::Sender<Inbound>,
) {
    let backoff = Backoff::new(config.retry_first, config.retry_most);
    let pause = (config.retry_first, config.retry_most);
    let (groups, never) = Groups::new(&topics.needed, topics.optional, pause);
    let mut session = Session { config, orders, inbound, needed: Vec::new(), groups, backoff, careful: 0 };
    // The only error is that nobody listens any more.
    let _ = session.serve(topics.needed, never).await;
}

/// Nobody listens any more.
struct Gone;

struct Session {
    config: SessionConfig,
    orders: mpsc::UnboundedReceiver<Outbound>,
    inbound: mpsc::Sender<Inbound>,
    needed: Vec<String>,
    groups: Groups,
    backoff: Backoff,
    /// Posts that go one by one, since the broker may have closed the last connection because of one of them.
    careful: usize,
}

/// What comes after a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Later,
    /// Without a certificate there was no connection.
    Soon,
    AtOnce,
    WhenTold,
    Never,
}

struct End {
    reason: String,
    next: Next,
    good: bool,
}

impl Session {
    async fn serve(&mut self, needed: Vec<String>, never: Vec<groups::Never>) -> Result<(), Gone> {
        self.need(needed).await?;
        for (topics, why) in never {
            self.go_on_without(topics, why).await?;
        }
        self.keep().await
    }

    async fn keep(&mut self) -> Result<(), Gone> {
        let mut last = String::new();
        loop {
            let end = match self.config.wallet.tls() {
                Ok(tls) => self.connection(tls).await?,
                Err(reason) => End { reason, next: Next::Soon, good: false },
            };
            if end.next == Next::Never {
                tracing::info!("{}: {}", self.config.name, end.reason);
            } else if end.next != Next::Soon || end.reason != last {
                tracing::warn!("{}: {}", self.config.name, end.reason);
                last.clone_from(&end.reason);
            }
            if end.good {
                self.backoff.reset();
            }
            self.tell(Inbound::Down { reason: end.reason }).await?;
            match end.next {
                Next::Later => {
                    let wait = self.backoff.wait();
                    tracing::info!("{}: next attempt in {:.1} s", self.config.name, wait.as_secs_f32());
                    self.rest(Some(wait)).await?;
                }
                Next::Soon => self.rest(Some(LOOK_AGAIN)).await?,
                Next::AtOnce => {}
                Next::WhenTold => self.rest(None).await?,
                Next::Never => return Ok(()),
            }
        }
    }

    /// Waits, for ever without a time, unless told to reconnect.
    async fn rest(&mut self, wait: Option<Duration>) -> Result<(), Gone> {
        let mut until = wait.map(|w| Instant::now() + w);
        loop {
            tokio::select! {
                () = at(until) => return Ok(()),
                order = self.orders.recv() => match order {
                    None => return Err(Gone),
                    Some(Outbound::Retry) => self.groups.retry(Instant::now()),
                    Some(Outbound::Publish { topic, .. }) => tracing::debug!("not connected, dropped: {topic}"),
                    Some(Outbound::Post(posts, fates)) => {
                        let ids = posts.into_iter().map(|post| post.id).collect();
                        fates.tell(Fate::Lost { ids, suspect: None });
                    }
                    Some(Outbound::Disconnect) => until = None,
                    Some(Outbound::Reconnect) => return Ok(()),
                },
                () = self.inbound.closed() => return Err(Gone),
            }
        }
    }

    async fn tell(&self, what: Inbound) -> Result<(), Gone> {
        self.inbound.send(what).await.map_err(|_| Gone)
    }

    /// What can never be had is refused at once.
    async fn need(&mut self, topics: Vec<String>) -> Result<(), Gone> {
        for topic in topics {
            let advice = if self.needed.contains(&topic) {
                continue;
            } else if !rumqttc::valid_filter(&topic) {
                "not a valid topic filter".to_owned()
            } else if self.needed.len() == MAX_SUBSCRIPTIONS {
                format!("the broker allows {MAX_SUBSCRIPTIONS} subscriptions; turn a feature off")
            } else {
                self.needed.push(topic);
                continue;
            };
            self.tell(Inbound::Refused { topic, advice }).await?;
        }
        Ok(())
    }

    /// One connection, from the first packet to the last.
    async fn connection(&mut self, tls: Arc<rustls::ClientConfig>) -> Result<End, Gone> {
        let (client, events) = self.client(tls);
        let (packets_in, mut packets) = mpsc::channel(PACKETS);
        // Never cancelled half-way: select polls it by reference until it ends by itself.
        let pump = pump(events, packets_in);
        tokio::pin!(pump);
        let mut link = Link::new(client, &self.config, &self.needed, self.careful);
        self.groups.begin();
        let error = loop {
            if packets.is_empty() {
                link.posts.tell();
            }
            self.optional(&mut link).await?;
            tokio::select! {
                biased;
                Some(seen) = packets.recv() => self.on_traffic(&mut link, seen).await?,
                error = &mut pump => break error,
                () = at(link.due()) => if link.on_time(&self.config) { break None },
                order = self.orders.recv(), if link.closing.is_none() => {
                    if self.on_order(&mut link, order) { break None }
                }
                () = self.inbound.closed() => return Err(Gone),
            }
        };
        while let Ok(seen) = packets.try_recv() {
            self.on_traffic(&mut link, seen).await?;
        }
        let by_peer = link.closing.is_none() && error.as_ref().is_some_and(closed_by_peer);
        self.careful = link.posts.lose(by_peer);
        let sent_away = by_peer || link.closing.is_none() && error.as_ref().is_some_and(refused);
        let at_group = link.trying.filter(|_| sent_away || link.unanswered);
        if let Some(group) = at_group {
            self.ended_at(&mut link, group).await?;
        }
        let up = link.up_since.is_some() && !link.blamed;
        self.config.wallet.ended(Ended { accepted: link.accepted, up, sent_away });
        // How soon the next group is tried has its own limits.
        let good = at_group.is_some() || link.up_since.is_some_and(|t| t.elapsed() >= GOOD_SESSION);
        let (reason, next) = match link.closing.take() {
            Some(closing) => (closing.reason, closing.next),
            None => (self.in_words(&link, error.as_ref()), Next::Later),
        };
        Ok(End { reason, next, good })
    }

    fn client(&self, tls: Arc<rustls::ClientConfig>) -> (AsyncClient, EventLoop) {
        let c = &self.config;
        let mut options = MqttOptions::new(c.client_id.clone(), (c.host.clone(), c.port));
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)))
            .set_keep_alive(u16::try_from(c.keep_alive.as_secs()).unwrap_or(u16::MAX))
            .set_clean_session(true)
            .set_max_packet_size(MAX_PAYLOAD + PACKET_OVERHEAD, MAX_PAYLOAD + PACKET_OVERHEAD)
            .set_max_request_batch(BATCH)
            .set_inflight(if c.in_flight == 0 { u16::MAX } else { c.in_flight });
        if let Some((topic, payload)) = &c.last_will {
            options.set_last_will(LastWill::new(topic, payload.as_str(), QoS::AtLeastOnce, false));
        }
        let (host, port, proxy, limit) = (c.host.clone(), c.port, c.proxy.clone(), c.connect_timeout);
        options.set_socket_connector(move |_, _| {
            let (host, proxy) = (host.clone(), proxy.clone());
            async move { dial(&host, port, proxy.as_ref(), limit).await }
        });
        let (client, mut events) = AsyncClient::builder(options).unbounded().build();
        let mut network = NetworkOptions::new();
        network.set_connection_timeout(c.connect_timeout.as_secs().max(1));
        events.set_network_options(network);
        (client, events)
    }

    async fn on_traffic(&mut self, link: &mut Link, seen: Traffic) -> Result<(), Gone> {
        match seen {
            Traffic::In(packet) => self.on_packet(link, packet).await,
            Traffic::Sent(packet_id) => {
                link.posts.sent(packet_id);
                link.flush(Instant::now());
                Ok(())
            }
        }
    }

    async fn on_packet(&mut self, link: &mut Link, packet: Packet) -> Result<(), Gone> {
        match packet {
            Packet::ConnAck(_) => {
                link.accepted = true;
                self.subscribe(link).await
            }
            Packet::SubAck(ack) => self.on_suback(link, ack.return_codes).await,
            Packet::Publish(message) => {
                // The codec has refused topics that are not UTF-8.
                let topic = String::from_utf8_lossy(&message.topic).into_owned();
                self.tell(Inbound::Message { topic, payload: message.payload }).await
            }
            Packet::PubAck(ack) => {
                link.posts.acknowledged(ack.pkid);
                link.flush(Instant::now());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn on_suback(&mut self, link: &mut Link, codes: Vec<SubscribeReasonCode>) -> Result<(), Gone> {
        let Some(topics) = link.awaiting.take() else { return Ok(()) };
        let group = link.trying.take();
        let mut refused = false;
        for (topic, code) in topics.into_iter().zip(codes) {
            if code != SubscribeReasonCode::Failure {
                link.granted.push(topic);
                continue;
            }
            refused = true;
            if group.is_none() {
                let advice = advice(&topic);
                tracing::error!("the broker refuses the subscription to {topic}: {advice}");
                link.refused.push(format!("{topic}: {advice}"));
                self.tell(Inbound::Refused { topic, advice }).await?;
            }
        }
        let Some(group) = group else { return self.subscribe(link).await };
        // What waited for this.
        link.flush(Instant::now());
        self.tried(link, group, refused).await
    }

    /// Sends the next SUBSCRIBE for what is needed, or says that all is granted.
    async fn subscribe(&mut self, link: &mut Link) -> Result<(), Gone> {
        if link.closing.is_some() {
            return Ok(());
        }
        if !link.missing.is_empty() {
            let batch = link.missing.drain(..link.missing.len().min(MAX_FILTERS)).collect();
            link.send_subscribe(batch, self.config.connect_timeout);
        } else if let Some(first) = link.refused.first() {
            let reason =
                format!("the broker refuses {} of the subscriptions, such as {first}", link.refused.len());
            link.close(reason, Next::Later);
        } else {
            link.up_since = Some(Instant::now());
            tracing::info!("{}: up, {} subscriptions", self.config.name, link.granted.len());
            self.tell(Inbound::Up).await?;
        }
        Ok(())
    }

    /// `true`: the connection is not worth a farewell.
    fn on_order(&mut self, link: &mut Link, order: Option<Outbound>) -> bool {
        match order {
            Some(Outbound::Retry) => self.groups.retry(Instant::now()),
            Some(Outbound::Publish { topic, payload }) => link.publish(topic, payload),
            Some(Outbound::Post(posts, fates)) => link.post(posts, &fates),
            Some(Outbound::Disconnect) => link.close("disconnected on request".into(), Next::WhenTold),
            Some(Outbound::Reconnect) => link.close("connecting anew on request".into(), Next::AtOnce),
            None => link.close("over".into(), Next::Never),
        }
        link.closing.is_some() && !link.accepted
    }

    fn in_words(&self, link: &Link, error: Option<&ConnectionError>) -> String {
        let broker = format!("{}:{}", self.config.host, self.config.port);
        let Some(error) = error else { return format!("{broker}: the connection ended") };
        if let Some(text) = tls::explain(error, &self.config.clock) {
            return format!("{broker}: {text}");
        }
        let text = match error {
            ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized) => {
                link.hint(&self.config.client_id)
            }
            ConnectionError::ConnectionRefused(code) => format!("the broker refuses the session: {code:?}"),
            ConnectionError::NetworkTimeout if link.accepted => "the broker does not answer any more".into(),
            ConnectionError::NetworkTimeout => {
                format!("no connection within {} s", self.config.connect_timeout.as_secs())
            }
            ConnectionError::MqttState(StateError::AwaitPingResp) => {
                "the broker did not answer a sign of life; the connection is dead".into()
            }
            e if closed_by_peer(e) => link.hint(&self.config.client_id),
            e => tls::chain(e),
        };
        format!("{broker}: {text}")
    }
}

/// What passes on a connection, as far as it matters here.
enum Traffic {
    In(Packet),
    /// A PUBLISH was written, with this packet id; 0 for QoS 0.
    Sent(u16),
}

/// Drives the connection until it ends; `None` after a farewell.
async fn pump(mut events: EventLoop, traffic: mpsc::Sender<Traffic>) -> Option<ConnectionError> {
    loop {
        let seen = match events.poll().await {
            Ok(Event::Outgoing(Outgoing::Disconnect)) => return None,
            Ok(event) => event,
            Err(e) => {
                // What came with the end was before it.
                while let Some(event) = events.state.events.pop_front() {
                    if let Some(seen) = relevant(event) {
                        traffic.send(seen).await.ok()?;
                    }
                }
                return Some(e);
            }
        };
        if let Some(seen) = relevant(seen) {
            traffic.send(seen).await.ok()?;
        }
    }
}

fn relevant(event: Event) -> Option<Traffic> {
    match event {
        Event::Incoming(packet) => Some(Traffic::In(packet)),
        Event::Outgoing(Outgoing::Publish(packet_id)) => Some(Traffic::Sent(packet_id)),
        Event::Outgoing(_) => None,
    }
}

/// The broker said no: to the certificate in the handshake, or to the session.
fn refused(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized))
        || tls::is_alert(error)
}

fn closed_by_peer(error: &ConnectionError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    if matches!(error, ConnectionError::MqttState(StateError::ConnectionAborted)) {
        return true;
    }
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(e) = next {
        if let Some(e) = e.downcast_ref::<io::Error>() {
            return matches!(e.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe);
        }
        next = e.source();
    }
    false
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
