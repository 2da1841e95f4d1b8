//! The feature: attempts beside the device's session, and the trial of what came of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use otandem_core::provisioning::record::Record;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::attempt::attempt;
use super::{Kit, ProvisionError};
use crate::backoff::Backoff;
use crate::cloud::channel::Outbound;
use crate::cloud::wallet::{Verdict, Wallet};
use crate::feature::{Context, Done, Feature, Reach};

/// First and longest wait between two attempts: each costs the cloud a certificate.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3600));
/// Between two looks at the end of the certificate.
const DAILY: Duration = Duration::from_secs(24 * 3600);

/// What the status shows.
#[derive(Debug, Default)]
struct Shown {
    /// Under way; `None`: nothing.
    step: Option<&'static str>,
    attempts: u64,
    last_error: Option<String>,
}

type Board = Arc<Mutex<Shown>>;

fn on(board: &Board) -> MutexGuard<'_, Shown> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Certificates of this device.
pub struct Provisioning {
    /// Until the session's other end is there.
    kit: Option<Worker>,
    orders: mpsc::UnboundedSender<()>,
    board: Board,
}

impl Provisioning {
    /// `named`: hears when a device that did not know its name has one. Nothing is asked for before the session's other
    /// end is there; but what waits to be tried is shown from the first connection on.
    #[must_use]
    pub fn new(kit: Kit, wallet: Wallet, named: Option<oneshot::Sender<()>>) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let board = Board::default();
        let record = kit.record();
        let waiting = match &record {
            // One that waits for a name is tried by the session that has it.
            Some(Record::Untried { certificate }) if named.is_none() => {
                Some((certificate.clone(), wallet.try_out(certificate)))
            }
            _ => None,
        };
        let begun = matches!(record, Some(Record::Owned { .. } | Record::Registered { .. }));
        let due = begun || named.is_some() || !kit.has_certificate();
        let backoff = Backoff::new(RETRY.0, RETRY.1);
        let board_of_worker = Arc::clone(&board);
        let worker =
            Worker { kit, wallet, named, inbox, board: board_of_worker, waiting, due, backoff, last: None };
        Self { kit: Some(worker), orders, board }
    }
}

impl Feature for Provisioning {
    fn attach(&mut self, reach: &Reach) {
        if let Some(worker) = self.kit.take() {
            tokio::spawn(worker.run(reach.outbound.clone()));
        }
    }

    fn on_done(&mut self, _: &mut Context<'_>, done: &Done) {
        if *done == Done::Reprovision {
            let _ = self.orders.send(());
        }
    }

    fn idle(&self) -> bool {
        on(&self.board).step.is_none()
    }

    fn show(&self, status: &mut Value, attention: &mut Vec<String>) {
        let shown = on(&self.board);
        if let Some(error) = &shown.last_error {
            attention.push(format!("provisioning: {error}"));
        }
        status["provisioning"] = json!({
            "step": shown.step, "attempts": shown.attempts, "last-error": shown.last_error,
        });
    }
}

type Verdicts = watch::Receiver<Verdict>;

struct Worker {
    kit: Kit,
    wallet: Wallet,
    named: Option<oneshot::Sender<()>>,
    inbox: mpsc::UnboundedReceiver<()>,
    board: Board,
    /// On trial since the start.
    waiting: Option<(String, Verdicts)>,
    /// A certificate is to be asked for at once.
    due: bool,
    backoff: Backoff,
    /// What was tried last for a renewal, and did not work.
    last: Option<String>,
}

impl Worker {
    async fn run(mut self, outbound: mpsc::UnboundedSender<Outbound>) {
        if let Some((name, verdict)) = self.waiting.take() {
            self.hear(&name, verdict).await;
        }
        let mut look = Instant::now();
        loop {
            if self.due {
                if !self.provision(&outbound).await {
                    return;
                }
                self.due = false;
            }
            tokio::select! {
                order = self.inbox.recv() => match order {
                    Some(()) => self.due = true,
                    None => return,
                },
                () = sleep_until(look) => {
                    look = Instant::now() + DAILY;
                    self.look(&outbound).await;
                }
            }
        }
    }

    /// Whether the end of the certificate is near; one that lasts longer may be there already.
    async fn look(&mut self, outbound: &mpsc::UnboundedSender<Outbound>) {
        let Some(before) = self.kit.settings.renew_before else { return };
        let until = self.kit.clock.now().saturating_add(before.as_secs());
        let Some(ends) = self.kit.preferred_ends() else { return };
        if ends > until {
            return;
        }
        tracing::info!(
            "the device's certificate ends in {} days",
            ends.saturating_sub(self.kit.clock.now()) / 86_400
        );
        match self.kit.ends() {
            Some((other, name)) if other > until && self.last.as_ref() != Some(&name) => {
                self.try_out(&name, outbound).await;
            }
            _ => self.due = true,
        }
    }

    /// Asks until there is a certificate; `false`: nobody needs one any more.
    async fn provision(&mut self, outbound: &mpsc::UnboundedSender<Outbound>) -> bool {
        self.backoff.reset();
        let done = loop {
            on(&self.board).attempts += 1;
            let board = Arc::clone(&self.board);
            let attempt = attempt(&self.kit, &move |step| on(&board).step = Some(step)).await;
            match attempt {
                Ok(done) => break done,
                Err(e) => self.failed(&e),
            }
            let wait = self.backoff.wait();
            tracing::info!("provisioning: next attempt in {:.1} s", wait.as_secs_f32());
            tokio::select! {
                () = sleep(wait) => {}
                order = self.inbox.recv() => if order.is_none() { return false },
            }
        };
        self.clear();
        // Whoever asked meanwhile has what he asked for.
        while self.inbox.try_recv().is_ok() {}
        match self.named.take() {
            // The agent begins anew, now that it knows who it is; what waits to be tried is on disk.
            Some(named) => {
                let _ = named.send(());
                return false;
            }
            None => self.try_out(&done.certificate, outbound).await,
        }
        true
    }

    /// The session shows it, once; its verdict decides.
    async fn try_out(&mut self, name: &str, outbound: &mpsc::UnboundedSender<Outbound>) {
        let verdict = self.wallet.try_out(name);
        let _ = outbound.send(Outbound::Reconnect);
        self.hear(name, verdict).await;
    }

    async fn hear(&mut self, name: &str, mut verdict: Verdicts) {
        on(&self.board).step = Some("connecting with the new certificate");
        let heard = verdict.wait_for(|v| v.as_ref().is_some_and(|(tried, _)| tried == name)).await;
        let works = heard.is_ok_and(|verdict| verdict.as_ref().is_some_and(|(_, works)| *works));
        self.clear();
        self.kit.forget();
        if works {
            self.last = None;
        } else {
            self.last = Some(name.to_owned());
            self.failed(&ProvisionError::Untried(name.to_owned()));
        }
    }

    fn failed(&self, e: &ProvisionError) {
        tracing::error!("provisioning: {e}");
        let mut shown = on(&self.board);
        (shown.step, shown.last_error) = (None, Some(e.to_string()));
    }

    fn clear(&self) {
        let mut shown = on(&self.board);
        (shown.step, shown.last_error) = (None, None);
    }
}
