//! Brings the cloud session up: the task that keeps it, and how it reaches the broker. What is missing now (a certificate
//! that is provisioned later, a clock that is set later) is looked for again.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::channel::{Ends, Topics};
use super::identity::RETRY;
use super::session::{self, SessionConfig};
use super::tls::Clock;
use super::wallet::Wallet;
use crate::config::{CloudSettings, NetworkSettings};

/// Messages that wait for the loop.
const INBOUND: usize = 16;

/// Starts the task. It ends when the returned ends are dropped.
#[must_use]
pub fn start(
    name: &'static str,
    cloud: &CloudSettings,
    network: &NetworkSettings,
    client_id: String,
    topics: Topics,
    wallet: Wallet,
    clock: Arc<Clock>,
) -> Ends {
    let (tell, inbound) = mpsc::channel(INBOUND);
    let (outbound, orders) = mpsc::unbounded_channel();
    let config = SessionConfig {
        name,
        host: cloud.endpoint.clone(),
        port: cloud.port,
        client_id,
        keep_alive: cloud.keep_alive,
        connect_timeout: cloud.connect_timeout,
        wallet,
        clock,
        proxy: network.proxy.clone(),
        publish_rate: cloud.publish_rate,
        in_flight: cloud.in_flight,
        last_will: cloud.last_will.clone(),
        retry_first: RETRY.0,
        retry_most: RETRY.1,
    };
    tokio::spawn(session::run(config, topics, orders, tell));
    Ends { inbound, outbound }
}
