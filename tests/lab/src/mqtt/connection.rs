//! One MQTT connection: framing, CONNECT first, keep-alive. What a packet means is the world's business.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use mqttbytes::v4::{ConnAck, ConnectReturnCode, Packet, read};
use mqttbytes::{Error, Protocol};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_cert::der::Decode as _;

use crate::world::{Closing, Link, Shared};

/// Time for the handshake and CONNECT.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest keep-alive of AWS IoT, which also stands for "none".
const LONGEST_KEEP_ALIVE: u16 = 1200;
/// Room for what surrounds a payload in a packet.
const OVERHEAD: usize = 70_000;

/// Serves a connection to its end.
pub(crate) async fn serve(shared: Arc<Shared>, acceptor: TlsAcceptor, socket: TcpStream) {
    let stream = match timeout(PATIENCE, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return handshake_failed(&shared, &error.to_string()),
        Err(_) => return handshake_failed(&shared, "no handshake in time"),
    };
    let Some(name) = common_name(&stream) else {
        return handshake_failed(&shared, "the certificate has no common name");
    };
    let Some(name) = shared.with(|world| world.thing_of(&name)) else {
        return handshake_failed(&shared, &format!("certificate of {name:?} is not active"));
    };
    let mut reader = Reader { stream, buffer: BytesMut::new(), largest: 0 };
    reader.largest = shared.with(|world| world.limits.payload) + OVERHEAD;
    match timeout(PATIENCE, reader.packet()).await {
        Ok(Ok(Packet::Connect(connect))) if connect.protocol == Protocol::V4 => {
            connected(shared, name, connect, reader).await;
        }
        Ok(Ok(Packet::Connect(_)) | Err(Some(Error::InvalidProtocolLevel(_)))) => {
            shared.with(|world| world.offence(&name, "protocol level other than 4"));
            let _ = reader.stream.write_all(&connack(ConnectReturnCode::RefusedProtocolVersion)).await;
            let _ = reader.stream.shutdown().await;
        }
        Ok(Ok(_)) => shared.with(|world| world.offence(&name, "first packet is not CONNECT")),
        Ok(Err(Some(error))) => {
            shared.with(|world| world.offence(&name, &format!("{error:?} before CONNECT")))
        }
        Ok(Err(None)) | Err(_) => shared.with(|world| world.event(&name, "close", "no CONNECT came")),
    }
}

fn handshake_failed(shared: &Shared, why: &str) {
    shared.with(|world| {
        world.record.counters.failed_handshakes.push(why.to_owned());
        world.event("", "handshake", why);
    });
}

/// Subject of the client's certificate, which the verifier has found good.
fn common_name(stream: &TlsStream<TcpStream>) -> Option<String> {
    let der = stream.get_ref().1.peer_certificates()?.first()?;
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    let name = certificate.tbs_certificate().subject().common_name().ok()??;
    Some(name.value().into_owned())
}

fn connack(code: ConnectReturnCode) -> Vec<u8> {
    vec![0x20, 2, 0, ConnAck::new(code, false).code as u8]
}

async fn connected(
    shared: Arc<Shared>,
    thing: String,
    connect: mqttbytes::v4::Connect,
    mut reader: Reader<TlsStream<TcpStream>>,
) {
    let (sender, mut outbox) = mpsc::unbounded_channel::<Vec<u8>>();
    let close = Arc::new(Notify::new());
    let link = match shared.with(|world| world.connect(&thing, &connect, sender, Arc::clone(&close))) {
        Ok(link) => link,
        Err(code) => {
            if let Some(code) = code {
                let _ = reader.stream.write_all(&[0x20, 2, 0, code]).await;
                let _ = reader.stream.shutdown().await;
            }
            return;
        }
    };
    let (read_half, mut write_half) = tokio::io::split(reader.stream);
    // A task of its own, so that a client that does not read cannot keep the lab from reading.
    let writer = tokio::spawn(async move {
        while let Some(bytes) = outbox.recv().await {
            if write_half.write_all(&bytes).await.is_err() || write_half.flush().await.is_err() {
                break;
            }
        }
    });
    let mut reader = Reader { stream: read_half, buffer: reader.buffer, largest: reader.largest };
    let keep_alive = match connect.keep_alive {
        0 => LONGEST_KEEP_ALIVE,
        seconds => seconds.min(LONGEST_KEEP_ALIVE),
    };
    let closing = converse(&shared, &link, &mut reader, &close, Duration::from_secs(keep_alive.into())).await;
    shared.with(|world| world.disconnect(&link, &closing));
    writer.abort();
}

/// Packets until the connection ends, and why it did.
async fn converse<S: AsyncRead + Unpin>(
    shared: &Shared,
    link: &Link,
    reader: &mut Reader<S>,
    close: &Notify,
    keep_alive: Duration,
) -> Closing {
    let silence = keep_alive.mul_f32(1.5);
    let mut deadline = Instant::now() + silence;
    loop {
        let packet = tokio::select! {
            packet = reader.packet() => packet,
            () = close.notified() => return Closing::ByLab,
            () = sleep_until(deadline) => return Closing::Offence("keep-alive passed".into()),
        };
        deadline = Instant::now() + silence;
        let served = match packet {
            Ok(Packet::Disconnect) => return Closing::ByClient,
            Ok(packet) => shared.with(|world| world.packet(link, packet)),
            Err(Some(error)) => return Closing::Offence(format!("{error:?}")),
            Err(None) => return Closing::Lost,
        };
        if let Err(closing) = served {
            return closing;
        }
    }
}

/// Cuts a stream into packets.
struct Reader<S> {
    stream: S,
    buffer: BytesMut,
    largest: usize,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    /// The next packet; `Err(None)` at the end of the stream. Nothing is lost when the future is dropped.
    async fn packet(&mut self) -> Result<Packet, Option<Error>> {
        loop {
            // The codec ignores the flags that the standard reserves.
            if self.buffer.first().is_some_and(|byte| !flags_are_good(*byte)) {
                return Err(Some(Error::MalformedPacket));
            }
            match read(&mut self.buffer, self.largest) {
                Ok(packet) => return Ok(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => return Err(Some(error)),
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(n) if n > 0 => {}
                _ => return Err(None),
            }
        }
    }
}

fn flags_are_good(byte: u8) -> bool {
    match byte >> 4 {
        3 => byte & 0b0110 != 0b0110,
        6 | 8 | 10 => byte & 0x0F == 2,
        _ => byte & 0x0F == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_packets_or_an_error(
            head in prop::option::of(any::<u8>()),
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0..8u8], 0..64),
        ) {
            // Half of the time framed, so that the bodies of packets are reached.
            let mut framed = head.map_or_else(Vec::new, |head| vec![head, u8::try_from(bytes.len()).unwrap()]);
            framed.extend(&bytes);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut reader = Reader { stream: &framed[..], buffer: BytesMut::new(), largest: 1000 };
            let mut packets = 0;
            while runtime.block_on(reader.packet()).is_ok() {
                packets += 1;
                prop_assert!(packets <= framed.len());
            }
        }
    }
}
