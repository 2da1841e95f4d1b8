//! Against a scripted broker over mutual TLS; its codec is the client library's, its behaviour the script's.

use bytes::Bytes;
use bytes::BytesMut;
use rumqttc::QoS;
use rumqttc::mqttbytes::v4::{ConnAck, Connect, PubAck, Publish, SubAck};
use rumqttc::tokio_rustls::TlsAcceptor;
use rumqttc::tokio_rustls::server::TlsStream;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

mod optional;
mod posts;

/// How the broker treats one connection.
#[derive(Debug, Clone, Default)]
struct Rule {
    refuse_connect: bool,
    close_at_connect: bool,
    close_at_subscribe: bool,
    no_suback: bool,
    refuse_topic: Option<&'static str>,
    /// Closes the connection at a subscription to it.
    forbidden_topic: Option<&'static str>,
    /// Does not answer a subscription to it.
    ignored_topic: Option<&'static str>,
    /// Set: the three above are fine now.
    lifted: Arc<AtomicBool>,
    close_at_publish: bool,
    no_puback: bool,
    /// Closes the connection at a message on this topic.
    forbidden: Option<&'static str>,
    /// Sent as soon as a subscription was granted.
    greet: Option<(&'static str, usize)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Connect(Connect),
    Subscribe(Vec<String>),
    Publish(String, Bytes),
    Disconnect,
    Closed,
}

struct Broker {
    config: SessionConfig,
    roots: rustls::RootCertStore,
    seen: mpsc::UnboundedReceiver<Seen>,
}

fn identity(name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    (vec![cert.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

fn shows(
    (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    roots: rustls::RootCertStore,
    port: u16,
    clock: &Arc<Clock>,
) -> Arc<rustls::ClientConfig> {
    tls::mqtt(chain, key, roots, port, Arc::clone(clock), Arc::default()).unwrap()
}

impl Broker {
    /// The last rule is for all further connections.
    async fn start(rules: Vec<Rule>) -> Self {
        let (server, client) = (identity("127.0.0.1"), identity("device"));
        let roots = |chain: &[CertificateDer<'static>]| tls::roots(chain.to_vec(), "test").unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client_roots = Arc::new(roots(&client.0));
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(client_roots, Arc::clone(&provider))
                .build()
                .unwrap();
        let server_roots = roots(&server.0);
        let acceptor: TlsAcceptor = Arc::new(
            rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_client_cert_verifier(verifier)
                .with_single_cert(server.0, server.1)
                .unwrap(),
        )
        .into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for n in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let rule = rules[n.min(rules.len() - 1)].clone();
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream, rule, &sender).await;
                }
                let _ = sender.send(Seen::Closed);
            }
        });
        let clock = Clock::new(0);
        let config = SessionConfig {
            name: "session",
            host: "127.0.0.1".into(),
            port,
            client_id: "gateway-1".into(),
            keep_alive: Duration::from_secs(240),
            connect_timeout: Duration::from_secs(20),
            wallet: Wallet::ready(shows(client, server_roots.clone(), port, &clock)),
            clock,
            proxy: None,
            publish_rate: 0,
            in_flight: 100,
            last_will: None,
            retry_first: Duration::from_millis(1),
            retry_most: Duration::from_millis(2),
        };
        Self { config, roots: server_roots, seen }
    }

    async fn saw(&mut self) -> Seen {
        tokio::time::timeout(Duration::from_secs(30), self.seen.recv()).await.unwrap().unwrap()
    }

    async fn saw_connect(&mut self) {
        let seen = self.saw().await;
        assert!(matches!(seen, Seen::Connect(_)), "{seen:?}");
    }
}

async fn serve(mut stream: TlsStream<TcpStream>, rule: Rule, seen: &mpsc::UnboundedSender<Seen>) {
    let mut buffer = BytesMut::new();
    loop {
        let packet = match Packet::read(&mut buffer, 1 << 20) {
            Ok(packet) => packet,
            Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {
                match stream.read_buf(&mut buffer).await {
                    Ok(n) if n > 0 => continue,
                    _ => return,
                }
            }
            Err(e) => panic!("the client sent nonsense: {e}"),
        };
        let mut answers = Vec::new();
        match packet {
            Packet::Connect(connect) => {
                let _ = seen.send(Seen::Connect(connect));
                if rule.close_at_connect {
                    return;
                }
                let code = if rule.refuse_connect {
                    ConnectReturnCode::NotAuthorized
                } else {
                    ConnectReturnCode::Success
                };
                answers.push(Packet::ConnAck(ConnAck::new(code, false)));
            }
            Packet::Subscribe(s) => {
                let topics: Vec<_> = s.filters.iter().map(|f| f.path.clone()).collect();
                assert!(s.filters.iter().all(|f| f.qos == QoS::AtLeastOnce));
                let lifted = rule.lifted.load(Ordering::SeqCst);
                let is = |topic: Option<&str>| !lifted && topics.iter().any(|t| topic == Some(t));
                let codes = topics.iter().map(|t| {
                    if !lifted && rule.refuse_topic == Some(t) {
                        SubscribeReasonCode::Failure
                    } else {
                        SubscribeReasonCode::Success(QoS::AtLeastOnce)
                    }
                });
                if !rule.no_suback && !is(rule.ignored_topic) {
                    answers.push(Packet::SubAck(SubAck::new(s.pkid, codes.collect())));
                }
                if let Some((topic, size)) = rule.greet {
                    let mut message = Publish::new(topic, QoS::AtLeastOnce, vec![7; size]);
                    message.pkid = 1;
                    answers.push(Packet::Publish(message));
                }
                let close = rule.close_at_subscribe || is(rule.forbidden_topic);
                let _ = seen.send(Seen::Subscribe(topics));
                if close {
                    return;
                }
            }
            Packet::Publish(p) => {
                let topic = String::from_utf8(p.topic.to_vec()).unwrap();
                let close = rule.close_at_publish || rule.forbidden == Some(&topic);
                let _ = seen.send(Seen::Publish(topic, p.payload));
                if close {
                    return;
                }
                if !rule.no_puback && p.qos == QoS::AtLeastOnce {
                    answers.push(Packet::PubAck(PubAck::new(p.pkid)));
                }
            }
            Packet::Disconnect => {
                let _ = seen.send(Seen::Disconnect);
                return;
            }
            _ => {}
        }
        let mut out = BytesMut::new();
        for answer in answers {
            answer.write(&mut out, 1 << 20).unwrap();
        }
        if stream.write_all(&out).await.is_err() {
            return;
        }
    }
}

struct Feature {
    orders: mpsc::UnboundedSender<Outbound>,
    inbound: mpsc::Receiver<Inbound>,
    task: tokio::task::JoinHandle<()>,
}

impl Feature {
    fn start(config: SessionConfig, topics: &[&str]) -> Self {
        Self::start_with(config, topics, &[])
    }

    fn start_with(config: SessionConfig, needed: &[&str], optional: &[&[&str]]) -> Self {
        let owned = |topics: &[&str]| topics.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let optional = optional.iter().map(|group| owned(group)).collect();
        let topics = Topics { needed: owned(needed), optional };
        let (orders, orders_in) = mpsc::unbounded_channel();
        let (inbound_out, inbound) = mpsc::channel(4);
        Self { orders, inbound, task: tokio::spawn(run(config, topics, orders_in, inbound_out)) }
    }

    fn order(&self, order: Outbound) {
        self.orders.send(order).unwrap();
    }

    fn publish(&self, topic: &str, payload: impl Into<Bytes>) {
        self.order(Outbound::Publish { topic: topic.into(), payload: payload.into() });
    }

    async fn next(&mut self) -> Inbound {
        tokio::time::timeout(Duration::from_secs(30), self.inbound.recv()).await.unwrap().unwrap()
    }

    async fn down(&mut self) -> String {
        match self.next().await {
            Inbound::Down { reason } => reason,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_session_is_clean_has_its_client_id_and_is_up_after_the_last_suback() {
    let mut broker = Broker::start(vec![Rule { greet: Some(("t/1", 3)), ..Rule::default() }]).await;
    let mut feature = Feature::start(broker.config.clone(), &["t/1", "t/+/x", "t/1"]);
    let Seen::Connect(connect) = broker.saw().await else { panic!() };
    assert!(connect.clean_session);
    assert_eq!((connect.client_id.as_str(), connect.keep_alive), ("gateway-1", 240));
    assert_eq!(broker.saw().await, Seen::Subscribe(vec!["t/1".into(), "t/+/x".into()]));
    assert_eq!(feature.next().await, Inbound::Up);
    assert_eq!(feature.next().await, Inbound::Message { topic: "t/1".into(), payload: vec![7; 3].into() });
    feature.publish("out", "hello");
    assert_eq!(broker.saw().await, Seen::Publish("out".into(), "hello".into()));
}

#[tokio::test]
async fn the_last_will_goes_with_the_connection() {
    let mut broker = Broker::start(vec![Rule::default()]).await;
    let mut config = broker.config.clone();
    config.last_will = Some(("state".into(), "gone".into()));
    let mut feature = Feature::start(config, &[]);
    let Seen::Connect(connect) = broker.saw().await else { panic!() };
    let will = connect.last_will.unwrap();
    assert_eq!((&will.topic[..], &will.message[..]), ("state", &b"gone"[..]));
    assert_eq!((will.qos, will.retain), (QoS::AtLeastOnce, false));
    assert_eq!(feature.next().await, Inbound::Up);
}

#[tokio::test]
async fn subscriptions_go_in_eights_and_are_fifty_at_most() {
    let mut broker = Broker::start(vec![Rule::default()]).await;
    let topics: Vec<_> = (0..52).map(|n| format!("t/{n}")).collect();
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    let mut feature = Feature::start(broker.config.clone(), &topics);
    for late in ["t/50", "t/51"] {
        let Inbound::Refused { topic, advice } = feature.next().await else { panic!() };
        assert_eq!(topic, late);
        assert!(advice.contains("50 subscriptions"), "{advice}");
    }
    assert_eq!(feature.next().await, Inbound::Up);
    broker.saw_connect().await;
    let mut sizes = Vec::new();
    while let Ok(Seen::Subscribe(topics)) = broker.seen.try_recv() {
        sizes.push(topics.len());
    }
    assert_eq!(sizes, [8, 8, 8, 8, 8, 8, 2]);
}

#[tokio::test]
async fn a_refused_subscription_is_named_with_the_policy_to_add_and_never_up() {
    let refusing = Rule { refuse_topic: Some("$aws/things/t/jobs/+/get/accepted"), ..Rule::default() };
    let broker = Broker::start(vec![refusing]).await;
    let topics = ["$aws/things/t/jobs/+/update/accepted", "$aws/things/t/jobs/+/get/accepted"];
    let mut feature = Feature::start(broker.config.clone(), &topics);
    let Inbound::Refused { topic, advice } = feature.next().await else { panic!() };
    assert_eq!(topic, topics[1]);
    assert!(advice.contains("iot:Subscribe on topicfilter/$aws/things/t/jobs/*/get/accepted"), "{advice}");
    let reason = feature.down().await;
    assert!(reason.contains(topics[1]), "{reason}");
}

#[tokio::test]
async fn a_lost_connection_comes_back_with_all_subscriptions() {
    let dropping = Rule { close_at_publish: true, ..Rule::default() };
    let mut broker = Broker::start(vec![dropping, Rule::default()]).await;
    let mut feature = Feature::start(broker.config.clone(), &["a"]);
    assert_eq!(feature.next().await, Inbound::Up);
    feature.publish("foreign/topic", "x");
    let reason = feature.down().await;
    assert!(reason.contains("iot:Publish on foreign/topic"), "{reason}");
    assert_eq!(feature.next().await, Inbound::Up);
    feature.publish("t", "y");
    let mut seen = Vec::new();
    while seen.last() != Some(&Seen::Publish("t".into(), "y".into())) {
        seen.push(broker.saw().await);
    }
    // What was not acknowledged is not sent again: sessions are clean.
    assert_eq!(seen.iter().filter(|s| matches!(s, Seen::Publish(..))).count(), 2, "{seen:?}");
    assert_eq!(seen.iter().filter(|s| matches!(s, Seen::Subscribe(_))).count(), 2, "{seen:?}");
}

#[tokio::test]
async fn each_way_to_be_turned_away_says_what_to_check() {
    for (rule, text) in [
        (Rule { close_at_connect: true, ..Rule::default() }, "iot:Connect for client id gateway-1"),
        (Rule { refuse_connect: true, ..Rule::default() }, "iot:Connect for client id gateway-1"),
        (
            Rule { close_at_subscribe: true, no_suback: true, ..Rule::default() },
            "while subscribing to a; allow",
        ),
    ] {
        let broker = Broker::start(vec![rule.clone()]).await;
        let mut feature = Feature::start(broker.config.clone(), &["a"]);
        let reason = feature.down().await;
        assert!(reason.contains(text), "{rule:?}: {reason}");
    }
}

#[tokio::test]
async fn a_refused_device_certificate_and_an_untrusted_broker_are_told_apart() {
    let (one, two) = (Broker::start(vec![Rule::default()]).await, Broker::start(vec![Rule::default()]).await);
    // The right roots, but a certificate that this broker does not know.
    let (chain, key) = identity("stranger");
    let mut config = one.config.clone();
    config.wallet = Wallet::ready(shows((chain, key), one.roots.clone(), config.port, &config.clock));
    let reason = Feature::start(config, &["a"]).down().await;
    assert!(reason.contains("refused the device's certificate"), "{reason}");

    let mut config = two.config.clone();
    config.port = one.config.port;
    let reason = Feature::start(config, &["a"]).down().await;
    assert!(reason.contains("cloud.ca"), "{reason}");
}

#[tokio::test]
async fn a_suback_that_never_comes_is_not_waited_for_for_ever() {
    let mut broker = Broker::start(vec![Rule { no_suback: true, ..Rule::default() }]).await;
    broker.config.connect_timeout = Duration::from_millis(200);
    let reason = Feature::start(broker.config.clone(), &["a"]).down().await;
    assert!(reason.contains("did not acknowledge a subscription"), "{reason}");
}

#[tokio::test]
async fn disconnect_sends_what_waits_says_farewell_and_stays_away_until_told() {
    let mut broker = Broker::start(vec![Rule::default()]).await;
    broker.config.publish_rate = 1;
    let mut feature = Feature::start(broker.config.clone(), &["a"]);
    assert_eq!(feature.next().await, Inbound::Up);
    for n in 0..3 {
        feature.publish(&format!("t/{n}"), "x");
    }
    feature.order(Outbound::Disconnect);
    assert!(feature.down().await.contains("on request"));
    broker.saw_connect().await;
    assert_eq!(broker.saw().await, Seen::Subscribe(vec!["a".into()]));
    for n in 0..3 {
        assert_eq!(broker.saw().await, Seen::Publish(format!("t/{n}"), "x".into()));
    }
    assert_eq!(broker.saw().await, Seen::Disconnect);
    assert_eq!(broker.saw().await, Seen::Closed);
    feature.publish("lost", "x");
    feature.order(Outbound::Reconnect);
    assert_eq!(feature.next().await, Inbound::Up);
    broker.saw_connect().await;
    assert_eq!(broker.saw().await, Seen::Subscribe(vec!["a".into()]));
}

#[tokio::test]
async fn in_flight_publishes_are_limited() {
    let mut broker = Broker::start(vec![Rule { no_puback: true, ..Rule::default() }]).await;
    broker.config.in_flight = 2;
    let mut feature = Feature::start(broker.config.clone(), &["a"]);
    assert_eq!(feature.next().await, Inbound::Up);
    for n in 0..5 {
        feature.publish(&format!("t/{n}"), "x");
    }
    broker.saw_connect().await;
    assert_eq!(broker.saw().await, Seen::Subscribe(vec!["a".into()]));
    assert_eq!(broker.saw().await, Seen::Publish("t/0".into(), "x".into()));
    assert_eq!(broker.saw().await, Seen::Publish("t/1".into(), "x".into()));
    // All five are with the client by now; what it sent before its end would still arrive.
    drop(feature);
    assert_eq!(broker.saw().await, Seen::Closed);
}

#[tokio::test]
async fn messages_up_to_the_limit_pass_and_larger_ones_are_not_sent() {
    let mut broker = Broker::start(vec![Rule { greet: Some(("t", MAX_PAYLOAD)), ..Rule::default() }]).await;
    let mut feature = Feature::start(broker.config.clone(), &["t"]);
    assert_eq!(feature.next().await, Inbound::Up);
    assert!(matches!(feature.next().await, Inbound::Message { payload, .. } if payload.len() == MAX_PAYLOAD));
    feature.publish("large", vec![0; MAX_PAYLOAD + 1]);
    feature.publish("full", vec![0; MAX_PAYLOAD]);
    broker.saw_connect().await;
    assert_eq!(broker.saw().await, Seen::Subscribe(vec!["t".into()]));
    assert_eq!(broker.saw().await, Seen::Publish("full".into(), vec![0; MAX_PAYLOAD].into()));
}

#[tokio::test]
async fn a_message_above_the_limit_ends_the_connection_not_the_task() {
    let flood = Rule { greet: Some(("t", MAX_PAYLOAD + 2 * PACKET_OVERHEAD)), ..Rule::default() };
    let broker = Broker::start(vec![flood, Rule::default()]).await;
    let mut feature = Feature::start(broker.config.clone(), &["t"]);
    let mut ups = 0;
    let mut downs = 0;
    while ups == 0 || downs == 0 {
        match feature.next().await {
            Inbound::Up => ups += 1,
            Inbound::Down { .. } => downs += 1,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn without_orders_any_more_the_task_says_farewell_and_ends() {
    let mut broker = Broker::start(vec![Rule::default()]).await;
    let mut feature = Feature::start(broker.config.clone(), &["a"]);
    assert_eq!(feature.next().await, Inbound::Up);
    let Feature { orders, mut inbound, task } = feature;
    drop(orders);
    let last = inbound.recv().await;
    assert!(matches!(last, Some(Inbound::Down { .. })), "{last:?}");
    tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
    broker.saw_connect().await;
    assert_eq!(broker.saw().await, Seen::Subscribe(vec!["a".into()]));
    assert_eq!(broker.saw().await, Seen::Disconnect);
}

#[tokio::test]
async fn nobody_there_is_a_clear_reason_and_the_task_ends_when_nobody_listens() {
    let mut broker = Broker::start(vec![Rule::default()]).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    broker.config.port = free;
    let mut feature = Feature::start(broker.config.clone(), &["a"]);
    let reason = feature.down().await;
    assert!(reason.contains(&format!("127.0.0.1:{free}")) && reason.contains("refused"), "{reason}");
    let Feature { orders: _orders, inbound, task } = feature;
    drop(inbound);
    tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
}
