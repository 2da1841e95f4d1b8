//! A blocking MQTT client that says whatever it is told, also what no library would.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use mqttbytes::QoS;
use mqttbytes::v4::{Connect, Packet, Publish, Subscribe, SubscribeFilter, read};
use otandem_lab::{Authority, Identity, Lab};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// Nothing in these tests takes longer.
pub const LIMIT: Duration = Duration::from_secs(20);

/// TLS for `identity`, trusting `root`.
pub fn tls(root: &Authority, identity: Option<&Identity>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(root.der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let certificate = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    }
}

/// Why nothing more came.
#[derive(Debug)]
pub struct Closed;

/// A connection.
pub struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: BytesMut,
    packet_id: u16,
}

impl Client {
    /// TLS only.
    pub fn open(lab: &Lab, identity: &Identity) -> Self {
        Self::with_tls(lab, tls(lab.authority(), Some(identity)))
    }

    /// TLS only, with another configuration.
    pub fn with_tls(lab: &Lab, config: ClientConfig) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", lab.mqtt_port())).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        Self { stream: StreamOwned::new(connection, socket), buffer: BytesMut::new(), packet_id: 0 }
    }

    /// TLS and CONNECT, with the thing name as client id.
    pub fn connect(lab: &Lab, thing: &str) -> Self {
        let mut client = Self::open(lab, &lab.identity(thing).unwrap());
        client.hello(thing);
        assert_eq!(client.bytes(4).unwrap(), [0x20, 2, 0, 0]);
        client
    }

    /// CONNECT.
    pub fn hello(&mut self, client_id: &str) {
        self.send(|b| Connect::new(client_id).write(b));
    }

    /// Any bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        // A lab that has closed already is noticed by reading.
        let _ = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
    }

    fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> Result<usize, mqttbytes::Error>) {
        let mut bytes = BytesMut::new();
        write(&mut bytes).unwrap();
        self.raw(&bytes);
    }

    /// PUBLISH, without waiting for anything.
    pub fn publish(&mut self, topic: &str, qos: QoS, payload: impl Into<Vec<u8>>) {
        self.packet_id += 1;
        let mut publish = Publish::new(topic, qos, payload);
        publish.pkid = self.packet_id;
        self.send(|b| publish.write(b));
    }

    /// SUBSCRIBE, without waiting for anything.
    pub fn subscribe(&mut self, filters: &[&str]) {
        self.packet_id += 1;
        let filters = filters.iter().map(|f| SubscribeFilter::new((*f).to_owned(), QoS::AtLeastOnce));
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = self.packet_id;
        self.send(|b| subscribe.write(b));
    }

    /// SUBSCRIBE, and its SUBACK.
    pub fn subscribed(&mut self, filters: &[&str]) {
        self.subscribe(filters);
        let packet = self.packet().unwrap();
        assert!(
            matches!(&packet, Packet::SubAck(ack) if ack.return_codes.len() == filters.len()),
            "{packet:?}"
        );
    }

    /// The five filters of the minimum policy.
    pub fn subscribed_to_jobs(&mut self, thing: &str) {
        let of = |suffix: &str| format!("$aws/things/{thing}/jobs/{suffix}");
        let filters = [
            "start-next/accepted",
            "start-next/rejected",
            "+/update/accepted",
            "+/update/rejected",
            "notify-next",
        ]
        .map(of);
        self.subscribed(&filters.each_ref().map(String::as_str));
    }

    /// The next bytes as they are.
    pub fn bytes(&mut self, n: usize) -> Result<Vec<u8>, Closed> {
        while self.buffer.len() < n {
            self.fill()?;
        }
        Ok(self.buffer.split_to(n).to_vec())
    }

    fn fill(&mut self) -> Result<(), Closed> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(n) if n > 0 => {
                self.buffer.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("nothing came within {LIMIT:?}"),
            _ => Err(Closed),
        }
    }

    /// The next packet.
    pub fn packet(&mut self) -> Result<Packet, Closed> {
        loop {
            match read(&mut self.buffer, 1 << 20) {
                Ok(packet) => return Ok(packet),
                Err(mqttbytes::Error::InsufficientBytes(_)) => self.fill()?,
                Err(error) => panic!("the lab sent {error:?}"),
            }
        }
    }

    /// The next message, skipping acknowledgements.
    pub fn message(&mut self) -> (String, Value) {
        loop {
            if let Packet::Publish(publish) = self.packet().expect("closed while waiting for a message") {
                let json = serde_json::from_slice(&publish.payload).unwrap_or_default();
                return (publish.topic, json);
            }
        }
    }

    /// Publishes a request of the Jobs service and takes the next message for its answer.
    pub fn ask(&mut self, thing: &str, suffix: &str, payload: Value) -> (String, Value) {
        let topic = format!("$aws/things/{thing}/jobs/{suffix}");
        self.publish(&topic, QoS::AtLeastOnce, payload.to_string());
        let (answer, json) = self.message();
        let kind = answer.strip_prefix(&format!("{topic}/")).unwrap_or(&answer).to_owned();
        (kind, json)
    }

    /// Reads until the lab closes.
    pub fn closed(&mut self) {
        while self.packet().is_ok() {}
    }
}
