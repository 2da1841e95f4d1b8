//! The agent: one loop that turns what happens into events of the update machine, and its actions into effects.
//!
//! `perform` has the effects, one arm each; `install` and `checks` are the threads behind the long ones; `world`
//! reads what the machine starts from; `requests` turns what people ask into events, `status` shows them where it
//! stands; `general` runs the steps of general jobs, `hold` waits for one that a person runs; `told` is how threads and
//! signals reach the features. This file is the loop.

mod checks;
mod general;
mod hold;
mod install;
mod perform;
mod requests;
mod service;
mod status;
mod told;
mod world;

use std::collections::VecDeque;
use std::time::Duration;

use otandem_core::jobs::intake::JobRules;
use otandem_core::machine::{Action, Cloud, Event, JobEvent, Machine, Now};
use otandem_core::time::Boottime;
use otandem_core::update::Origin;
use otandem_device::machine::{local_minute, now as boottime};
use otandem_device::memory;
use tokio::sync::{mpsc, oneshot};

use crate::backoff::Backoff;
use crate::cloud::channel::{Ends, Inbound, Outbound};
use crate::cloud::tls::wall;
use crate::cloud::wallet::Wallet;
use crate::control::{Call, Reply};
use crate::feature::{Context, Done, Feature, Program};
use install::{Renewal, Work};

use perform::NotDone;
pub use perform::Performer;
pub use service::Service;
pub use world::{OpenError, Opened, open, permitted, unlocked};

/// When the loop ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Never: the daemon.
    Stopped,
    /// When every request has its answer.
    Answered,
    /// When nothing is under way any more, or a reset is due.
    Quiet,
}

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The signal to stop.
    Stopped,
    /// What was waited for came.
    Done,
    /// The device restarts.
    Rebooting,
    /// A reset is due and is the caller's to do.
    ResetDue,
}

/// The way to the cloud, as the agent holds it.
pub struct Link {
    /// The session's channels.
    pub ends: Ends,
    /// Leave the broker while an image is fetched.
    pub leave_while_fetching: bool,
    /// What is shown to the broker.
    pub wallet: Wallet,
}

/// What the agent is put together from.
pub struct Parts {
    /// What the start gave.
    pub opened: Opened,
    /// What uses the session.
    pub features: Vec<Box<dyn Feature>>,
    /// The session, where a cloud is configured.
    pub link: Option<Link>,
    /// The service manager.
    pub service: Service,
    /// How documents are read on this device; `None` where updates are misconfigured.
    pub rules: Option<JobRules>,
    /// For whoever runs the agent: this device has a name now, put it together anew.
    pub named: Option<oneshot::Receiver<()>>,
}

/// The agent.
pub struct Agent {
    machine: Machine,
    performer: Performer,
    features: Vec<Box<dyn Feature>>,
    link: Option<Link>,
    service: Service,
    rules: Option<JobRules>,
    first: Vec<Action>,
    /// Gets the update machine's next answer.
    asker: Option<Reply>,
    /// Requests that wait until the running set is settled.
    postponed: VecDeque<Call>,
    /// A download waits for a fresh URL.
    renewal: Option<Renewal>,
    /// The session: when it came or went, and why it is away.
    session: status::SessionView,
    rebooting: bool,
    /// The bootloader could not be asked so far: when it is asked again.
    look: Look,
    /// Told to stop: nothing new is begun.
    leaving: bool,
    /// A job is run by hand: nothing else is begun meanwhile.
    hold: hold::Hold,
    /// What features are told from elsewhere: both ends of the channel.
    told: told::Channel,
}

/// First and longest wait until a bootloader that did not answer is asked again.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// When a bootloader that did not answer is asked again.
struct Look {
    due: Boottime,
    backoff: Backoff,
}

impl Agent {
    /// Puts the parts together; nothing happens before [`Agent::run`].
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { opened: Opened { machine, first, performer }, features, link, service, rules, .. } =
            parts;
        let session = status::SessionView::default();
        let (asker, postponed, renewal, rebooting) = (None, VecDeque::new(), None, false);
        let mut backoff = Backoff::new(LOOK_AGAIN.0, LOOK_AGAIN.1);
        let look = Look { due: boottime().after(backoff.wait()), backoff };
        Self {
            machine,
            performer,
            features,
            link,
            service,
            rules,
            first,
            asker,
            postponed,
            renewal,
            session,
            rebooting,
            look,
            leaving: false,
            hold: hold::Hold::default(),
            told: mpsc::unbounded_channel(),
        }
    }

    /// The machine, to read.
    #[must_use]
    pub const fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Runs until told otherwise.
    pub async fn run(
        &mut self,
        mut calls: mpsc::Receiver<Call>,
        mut stop: oneshot::Receiver<()>,
        until: Until,
    ) -> Ended {
        self.attach();
        let first = std::mem::take(&mut self.first);
        self.begin(first);
        self.find_job();
        loop {
            if let Some(ended) = self.ended(until, &calls) {
                return ended;
            }
            let wake = self.next_wake();
            tokio::select! {
                biased;
                _ = &mut stop => return self.leave().await,
                work = self.performer.next_work() => self.work(work),
                inbound = told::next_inbound(&mut self.link) => self.inbound(inbound),
                Some(call) = calls.recv() => self.call(call),
                Some(done) = self.told.1.recv() => self.told(done),
                () = self.hold.released() => self.released(),
                () = tokio::time::sleep(wake) => {}
            }
            self.wake();
            if !self.machine.settling() {
                while let Some(call) = self.postponed.pop_front() {
                    self.call(call);
                }
            }
        }
    }

    /// The machine's first step: nothing is settled before it.
    fn begin(&mut self, first: Vec<Action>) {
        self.performer.unsettle();
        if self.machine.phase() == "trial" {
            self.performer.take_watchdog();
        }
        self.carry_out(first);
    }

    /// A bootloader that could not be asked is asked again.
    fn look_again(&mut self) {
        let wait = self.look.backoff.wait();
        let Ok(evidence) = self.performer.look() else {
            return self.look.due = boottime().after(LOOK_AGAIN.1);
        };
        let now = Self::now();
        self.look.due = now.boot.after(wait);
        let actions = self.machine.look_again(evidence, now);
        if self.machine.untouchable().is_some() {
            return self.carry_out(actions);
        }
        tracing::info!("the bootloader answers now");
        self.begin(actions);
    }

    /// The process is about to end: threads and programs are told, the session is left.
    pub fn stop(&mut self) {
        self.performer.stop();
        self.service.stopping();
        if let Some(link) = &self.link {
            let _ = link.ends.outbound.send(Outbound::Disconnect);
        }
    }

    fn ended(&self, until: Until, calls: &mpsc::Receiver<Call>) -> Option<Ended> {
        let asked =
            self.asker.is_some() || !self.postponed.is_empty() || !calls.is_empty() || !calls.is_closed();
        match until {
            Until::Stopped => None,
            _ if self.rebooting => Some(Ended::Rebooting),
            Until::Answered => (!asked).then_some(Ended::Done),
            Until::Quiet if self.asker.is_some() => None,
            Until::Quiet => {
                let told = self.machine.record().outbox.is_empty();
                let idle = self.features.iter().all(|f| f.idle());
                if told && self.machine.reset_due() {
                    Some(Ended::ResetDue)
                } else {
                    // A general job that goes on is the daemon's.
                    let waits = self.machine.kept() && self.machine.interrupted_job().is_some();
                    (told && idle && (self.machine.ready() || waits)).then_some(Ended::Done)
                }
            }
        }
    }

    fn now() -> Now {
        Now { boot: boottime(), minute: local_minute() }
    }

    fn next_wake(&self) -> Duration {
        let now = Self::now();
        let look = self.machine.untouchable().map(|_| self.look.due);
        let features = self.features.iter().filter_map(|f| f.next_wake());
        let due = features.chain(self.machine.next_wake()).chain(look).min();
        // Rounded up, so that what is due is due when we look.
        let until = due.map_or(Duration::from_secs(3600), |t| t.since(now.boot) + Duration::from_millis(1));
        let feed = self.performer.next_feed().unwrap_or(until);
        until.min(feed).min(self.service.next().unwrap_or(until))
    }

    /// Whatever is due by now.
    fn wake(&mut self) {
        self.service.alive();
        self.performer.feed_watchdog();
        let now = Self::now();
        let due = |t: Option<Boottime>| t.is_some_and(|t| t <= now.boot);
        if self.machine.untouchable().is_some() && due(Some(self.look.due)) {
            self.look_again();
        }
        if due(self.machine.next_wake()) {
            self.event(Event::Tick);
        }
        for i in 0..self.features.len() {
            if due(self.features[i].next_wake()) {
                self.feature(i, |feature, context| feature.on_wake(context));
            }
        }
    }

    // --- events in, actions out -------------------------------------------------------------------------------

    /// One event, and everything that follows from it at once.
    fn event(&mut self, event: Event) {
        let now = Self::now();
        self.machine.note_wall(wall());
        let was_ready = self.machine.takes_jobs();
        let actions = self.machine.step(event, now);
        self.carry_out(actions);
        // The end of an update makes room for the next job.
        if !was_ready && self.machine.takes_jobs() && !self.leaving {
            self.tell_features(&Done::AskCloud);
        }
    }

    /// Actions in order. The first that fails ends the list; `Continue` takes the next step.
    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut lists = VecDeque::from([actions]);
        while let Some(actions) = lists.pop_front() {
            for action in actions {
                let event = match self.perform(&action) {
                    Ok(()) if action == Action::Continue => Event::Continue,
                    Ok(()) => continue,
                    Err(NotDone::Failed(why)) => {
                        tracing::warn!("{action:?}: {why}");
                        Event::Failed(Box::new(action), why)
                    }
                    Err(NotDone::NoFallback(why)) => Event::NoFallback(why),
                };
                let now = Self::now();
                lists.push_front(self.machine.step(event, now));
                break;
            }
        }
        let status = self.machine.phase();
        self.service.status(status);
    }

    /// What needs the loop is done here, everything else by the performer.
    fn perform(&mut self, action: &Action) -> Result<(), NotDone> {
        match action {
            Action::Report => self.tell_features(&Done::Report),
            Action::Flush => self.tell_features(&Done::Flush),
            Action::AskCloud => self.tell_features(&Done::AskCloud),
            Action::Answer(answer) => self.answer(answer),
            Action::Settled => {
                if let Err(why) = self.performer.settled(&self.machine) {
                    tracing::warn!("the dead-man cannot be told that this boot is settled: {why}");
                }
                self.service.ready();
            }
            Action::Reboot => {
                self.performer.perform(action, &self.machine)?;
                // Whoever waits for the end of an update that reboots by itself would only see the connection break.
                self.answer(&Ok("rebooting".into()));
                self.rebooting = true;
            }
            Action::Fetch { .. } => {
                self.session_while_fetching(Outbound::Disconnect);
                self.performer.perform(action, &self.machine)?;
            }
            other => self.performer.perform(other, &self.machine)?,
        }
        Ok(())
    }

    // --- features ---------------------------------------------------------------------------------------------

    fn tell_features(&mut self, done: &Done) {
        self.each_feature(|feature, context| feature.on_done(context, done));
    }

    fn each_feature(&mut self, call: impl Fn(&mut dyn Feature, &mut Context<'_>)) {
        for i in 0..self.features.len() {
            self.feature(i, &call);
        }
    }

    /// One call of one feature, then what it asked for.
    fn feature(&mut self, i: usize, call: impl FnOnce(&mut dyn Feature, &mut Context<'_>)) {
        let now = Self::now();
        let boot_id = self.boot_id();
        let machine = &self.machine;
        let mut context = Context {
            machine,
            now,
            boot_id,
            leaving: self.leaving || self.hold.is_held(),
            publish: vec![],
            events: vec![],
            programs: vec![],
        };
        call(self.features[i].as_mut(), &mut context);
        let Context { publish, events, programs, .. } = context;
        for (topic, payload) in publish {
            if let Some(link) = &self.link {
                let _ = link.ends.outbound.send(Outbound::Publish { topic, payload: payload.into() });
            }
        }
        for Program { name, argv, stdin } in programs {
            self.performer.run_program(name, argv, stdin);
        }
        for event in events {
            if event == Event::Cloud(Cloud::Accepted) {
                self.session.answered(wall());
            }
            let fresh = matches!(event, Event::Cloud(Cloud::Alive(_)));
            self.event(event);
            if fresh {
                self.renew();
            }
        }
    }

    fn inbound(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Up => {
                tracing::info!("connected to the cloud");
                // TLS has just found both sides' certificates valid at this time.
                self.machine.trust_wall(wall());
                self.session.up();
                // Of what the start and the handshake needed, nothing is needed any more.
                memory::give_back();
                self.each_feature(|feature, context| feature.on_session(context, true));
            }
            Inbound::Granted(topics) => {
                self.session.granted(&topics);
                self.each_feature(|feature, context| feature.on_granted(context, &topics));
            }
            Inbound::SetAside { topics, why } => self.session.set_aside(topics, why),
            Inbound::Down { reason } => {
                self.session.down(reason);
                self.each_feature(|feature, context| feature.on_session(context, false));
            }
            Inbound::Refused { topic, advice } => {
                tracing::error!("{topic} is refused by the broker: {advice}")
            }
            Inbound::Message { topic, payload } => {
                self.each_feature(|feature, context| feature.on_message(context, &topic, &payload));
            }
        }
    }

    /// `--disconnect-mqtt`: no session while an image is fetched.
    fn session_while_fetching(&self, order: Outbound) {
        if let Some(link) = self.link.as_ref().filter(|l| l.leave_while_fetching) {
            let _ = link.ends.outbound.send(order);
        }
    }

    // --- threads ----------------------------------------------------------------------------------------------

    fn work(&mut self, work: Work) {
        match work {
            Work::Event(event) => {
                if let Event::Progress { done, total } = *event {
                    self.show_progress(done, total);
                }
                if matches!(*event, Event::Written(_) | Event::FetchEnded(_)) {
                    self.renewal = None;
                    self.session_while_fetching(Outbound::Reconnect);
                    memory::give_back();
                }
                self.event(*event);
            }
            Work::Checkpoint(checkpoint, reply) => {
                let at = checkpoint.raw_offset;
                self.event(Event::Checkpoint(checkpoint));
                tracing::debug!("checkpoint saved at {at} bytes");
                // The thread goes on in any case: a save that failed has ended the update, which stops it.
                let _ = reply.send(());
            }
            Work::Renew(renewal) => {
                let job = self.machine.record().state.update().map(|u| &u.origin);
                if matches!(job, Some(Origin::Job { .. })) && self.link.is_some() {
                    self.renewal = Some(renewal);
                    self.session_while_fetching(Outbound::Reconnect);
                    self.tell_features(&Done::Renew);
                } else {
                    renewal.refuse("the server refuses it, and there is no job to ask for a fresh URL");
                }
            }
            Work::JobStep(step, name, reply) => {
                self.event(Event::Job(JobEvent::Step { step, name }));
                let _ = reply.send(());
            }
            Work::JobOver(key, finish) => self.job_over(key, finish),
            Work::Refused(why) => self.answer(&Err(why)),
            Work::Program(name, result) => self.tell_features(&Done::Program(name, result)),
        }
    }

    /// Fresh URLs came: the download that waits for one goes on with it.
    fn renew(&mut self) {
        let Some(renewal) = self.renewal.take() else { return };
        let images = self.machine.record().state.update().map(|u| u.images.as_slice()).unwrap_or_default();
        match images.iter().find(|i| i.slot == renewal.slot) {
            Some(image) => renewal.answer(image.source.clone()),
            None => renewal.refuse("the update is over"),
        }
        self.session_while_fetching(Outbound::Disconnect);
    }
}

#[cfg(test)]
pub(crate) mod tests;
