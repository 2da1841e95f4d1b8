//! Brings the cloud session up: certificates, TLS, the task that keeps it. What is missing now (a certificate that is
//! provisioned later, a clock that is set later) is looked for again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::channel::{Ends, Inbound};
use super::identity::{RETRY, certificate, roots};
use super::session::{self, SessionConfig};
use super::tls::{self, Clock};
use crate::config::{CloudSettings, NetworkSettings};

/// Between two attempts to find what the session needs.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Messages that wait for the loop.
const INBOUND: usize = 16;

/// Starts the task. It ends when the returned ends are dropped.
#[must_use]
pub fn start(
    cloud: CloudSettings,
    network: NetworkSettings,
    thing: &str,
    topics: Vec<String>,
    clock: Arc<Clock>,
) -> Ends {
    let (tell, inbound) = mpsc::channel(INBOUND);
    let (outbound, orders) = mpsc::unbounded_channel();
    let client_id = cloud.client_id.clone().unwrap_or_else(|| thing.to_owned());
    tokio::spawn(async move {
        let mut last = String::new();
        let tls = loop {
            match tls(&cloud, &clock) {
                Ok(tls) => break tls,
                Err(reason) => {
                    if reason != last {
                        tracing::warn!("no cloud session: {reason}");
                        last.clone_from(&reason);
                    }
                    if tell.send(Inbound::Down { reason }).await.is_err() {
                        return;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = tell.closed() => return,
            }
        };
        let config = SessionConfig {
            host: cloud.endpoint.clone(),
            port: cloud.port,
            client_id,
            keep_alive: cloud.keep_alive,
            connect_timeout: cloud.connect_timeout,
            tls,
            clock,
            proxy: network.proxy,
            publish_rate: cloud.publish_rate,
            in_flight: cloud.in_flight,
            last_will: cloud.last_will,
            retry_first: RETRY.0,
            retry_most: RETRY.1,
        };
        session::run(config, topics, orders, tell).await;
    });
    Ends { inbound, outbound }
}

fn tls(cloud: &CloudSettings, clock: &Arc<Clock>) -> Result<Arc<rustls::ClientConfig>, String> {
    let identity = certificate(cloud, clock)?;
    let roots = roots(cloud.ca.as_deref())?;
    tls::mqtt(identity.chain, identity.key, roots, cloud.port, Arc::clone(clock)).map_err(|e| e.to_string())
}
