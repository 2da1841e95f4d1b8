//! One attempt, from the claim's session to the certificate in the store.

use std::time::Duration;

use otandem_core::provisioning::record::Record;
use otandem_core::provisioning::{ANSWER_LIMIT, Action, Event, Flow};
use otandem_device::certstore::StoreError;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, timeout_at};

use super::{Kit, ProvisionError, Provisioned};
use crate::cloud::channel::{Inbound, Outbound, Topics};
use crate::cloud::{connect, identity};

/// Beside the time that a connection may take: for the subscriptions.
const SUBSCRIBING: Duration = Duration::from_secs(30);

/// Makes one attempt; `tell` hears what it is doing.
///
/// # Errors
/// The first thing that goes wrong; the next attempt goes on from there.
pub(super) async fn attempt(
    kit: &Kit,
    tell: &(dyn Fn(&'static str) + Sync),
) -> Result<Provisioned, ProvisionError> {
    let record = match kit.record() {
        Some(record @ Record::Registered { .. }) => {
            return kit.finish(record).inspect_err(|e| {
                // Somebody has emptied the store.
                if matches!(e, ProvisionError::Store(StoreError::NoSuch { .. })) {
                    kit.forget();
                }
            });
        }
        // The certificate must be there with the token.
        Some(Record::Owned { .. }) if !kit.store.is_kept() => None,
        record => record,
    };
    let mut flow = Flow::new(kit.plan()?, record.as_ref(), kit.clock.now());
    tell(flow.step_name());
    // Said here, in one line, rather than by a session that tries again.
    kit.claim.tls().map_err(|e| ProvisionError::Setup(format!("provisioning.claim-store: {e}")))?;
    let (id, claim) = (kit.client_id.clone(), kit.claim.clone());
    let mut ends = connect::start(
        "claim session",
        &kit.claim_cloud,
        &kit.network,
        id,
        Topics::needed(flow.topics()),
        claim,
        kit.clock.clone(),
    );
    let mut deadline = Instant::now() + kit.cloud.connect_timeout + SUBSCRIBING;
    loop {
        let inbound = match timeout_at(deadline, ends.inbound.recv()).await {
            Ok(Some(inbound)) => inbound,
            Ok(None) => return Err(ProvisionError::Session("it ended".into())),
            Err(_) => return Err(ProvisionError::Late { step: flow.step_name(), limit: ANSWER_LIMIT }),
        };
        let actions = match &inbound {
            Inbound::Up => flow.step(Event::Up, kit.clock.now()),
            Inbound::Message { topic, payload } => {
                flow.step(Event::Message { topic, payload }, kit.clock.now())
            }
            Inbound::Granted(_) | Inbound::SetAside { .. } => vec![],
            Inbound::Down { reason } => return Err(ProvisionError::Session(reason.clone())),
            Inbound::Refused { topic, advice } => {
                return Err(ProvisionError::Session(format!("{topic} is refused: {advice}")));
            }
        };
        if let Some(done) = perform(kit, &mut flow, actions, &ends.outbound, &mut deadline)? {
            return Ok(done);
        }
        tell(flow.step_name());
    }
}

/// Carries out what the flow wants, and what follows from that at once.
fn perform(
    kit: &Kit,
    flow: &mut Flow,
    mut actions: Vec<Action>,
    outbound: &UnboundedSender<Outbound>,
    deadline: &mut Instant,
) -> Result<Option<Provisioned>, ProvisionError> {
    while !actions.is_empty() {
        let mut next = vec![];
        for action in actions {
            match action {
                Action::MakeRequest => {
                    let request = kit.store.request(&kit.subject)?;
                    next = flow.step(Event::Request(request), kit.clock.now());
                }
                Action::Publish { topic, payload } => {
                    tracing::debug!("claim session: asking on {topic}");
                    *deadline = Instant::now() + ANSWER_LIMIT;
                    let _ = outbound.send(Outbound::Publish { topic, payload: payload.into() });
                }
                Action::Keep(created, record) => {
                    // What an earlier attempt left is of no use beside this certificate.
                    kit.forget();
                    kit.store.keep(
                        &created.pem,
                        created.key.as_deref(),
                        kit.clock.now(),
                        identity::built(),
                    )?;
                    kit.save(&record)?;
                    next = flow.step(Event::Kept, kit.clock.now());
                }
                Action::Forget => kit.forget(),
                Action::Finish(record) => return kit.finish(record).map(Some),
                Action::Fail(failure) => return Err(failure.into()),
            }
        }
        actions = next;
    }
    Ok(None)
}
