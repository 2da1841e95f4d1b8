//! Jobs: the glue between the session's topics, the jobs desk and the update machine.

use std::collections::VecDeque;

use otandem_core::fota;
use otandem_core::jobs::intake::{GeneralRules, Intake, JobRules, fresh_images, general, intake, time_left};
use otandem_core::jobs::running::PROGRESS;
use otandem_core::jobs::wire::{Details, Execution, detail, subscriptions};
use otandem_core::jobs::{Desk, Identity, Output, PHASE};
use otandem_core::machine::{Cloud, Event, JobEvent, Machine};
use otandem_core::record::State;
use otandem_core::seal;
use otandem_core::time::Boottime;
use otandem_core::update::{JobKey, Outcome};

use super::{Context, Done, Feature, Program};

/// What is done with jobs that are no firmware jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Others {
    /// They are refused.
    Refuse,
    /// This program gets their document on its standard input.
    Callback(String),
    /// Their steps run here.
    Run(GeneralRules),
}

/// Firmware jobs for the update machine, other jobs as [`Others`] says.
pub struct Jobs {
    desk: Desk,
    rules: JobRules,
    others: Others,
    /// The job that the callback has.
    running: Option<JobKey>,
    up: bool,
    /// Asked for a job and has not heard yet.
    asking: bool,
}

impl Jobs {
    /// `seed` makes tokens and back-off of this run its own.
    #[must_use]
    pub fn new(identity: Identity, rules: JobRules, others: Others, seed: u64) -> Self {
        let desk = Desk::new(identity, seed);
        Self { desk, rules, others, running: None, up: false, asking: false }
    }

    fn open_job(machine: &Machine) -> Option<JobKey> {
        let update = machine.record().state.update().and_then(|u| u.origin.open_job());
        update.or(machine.record().job.as_ref().filter(|job| !job.closed).map(|job| &job.key)).cloned()
    }

    /// Up to the reboot the job must live; from the trial on the device's facts win.
    fn before_reboot(machine: &Machine) -> bool {
        !matches!(
            machine.record().state,
            State::Trial { .. } | State::Confirming { .. } | State::RollingBack { .. }
        )
    }

    fn report(&mut self, context: &mut Context<'_>) {
        let Some(key) = Self::open_job(context.machine) else { return };
        let armed = matches!(context.machine.record().state, State::Armed { .. });
        let out = self.desk.report(key, details(context.machine), armed, context.now.boot);
        self.take(context, out);
    }

    fn ask(&mut self, context: &mut Context<'_>) {
        if context.leaving {
            return;
        }
        let now = context.now.boot;
        let trial = matches!(context.machine.record().state, State::Trial { .. });
        let out = match Self::open_job(context.machine) {
            // Goes on when its document is here again; the cloud gives what is in progress first.
            Some(_) if context.machine.interrupted_job().is_some() => {
                self.asking = true;
                self.desk.ask_next(now)
            }
            Some(key) if Self::before_reboot(context.machine) => {
                self.desk.ask_alive(key, details(context.machine), now)
            }
            // A device that cannot save asks as well: its job is told why, rather than left waiting.
            _ if trial
                || ((context.machine.takes_jobs() || context.machine.unsaved())
                    && self.running.is_none()) =>
            {
                self.asking = true;
                self.desk.ask_next(now)
            }
            _ => vec![],
        };
        self.take(context, out);
    }

    fn flush(&mut self, context: &mut Context<'_>) {
        let out = self.desk.flush(context.machine.sendable(), context.now.boot);
        self.take(context, out);
    }

    /// Carries out what the desk wants.
    fn take(&mut self, context: &mut Context<'_>, outputs: Vec<Output>) {
        let mut todo = VecDeque::from(outputs);
        while let Some(output) = todo.pop_front() {
            match output {
                Output::Publish { topic, payload } => context.publish.push((topic, payload)),
                Output::Accepted => {
                    self.asking = false;
                    context.events.push(Event::Cloud(Cloud::Accepted));
                    let next = match todo.front() {
                        Some(Output::Job(execution)) => Some(&execution.key),
                        _ => None,
                    };
                    self.accepted(context, next.cloned().as_ref());
                }
                Output::Job(execution) => self.job(context, &execution),
                Output::NextChanged(next) => self.hint(context, next.as_ref()),
                Output::Alive(key, document) => self.alive(context, &key, document.as_ref()),
                Output::Closed(key, why) => self.closed(context, &key, why),
                Output::Acknowledged(key) => {
                    context.events.push(Event::Cloud(Cloud::Acknowledged(key)));
                    // The end of one job makes room for the next; the hint to ask may have come before.
                    if context.machine.takes_jobs() && self.running.is_none() && !context.leaving {
                        self.asking = true;
                        todo.extend(self.desk.ask_next(context.now.boot));
                    }
                }
                Output::SealAcknowledged(key) if Self::open_job(context.machine) == Some(key.clone()) => {
                    context.events.push(Event::Cloud(Cloud::SealAcknowledged));
                }
                Output::SealAcknowledged(_) => {}
                Output::Warn(text) => tracing::warn!("{text}"),
            }
        }
    }

    /// In a trial start-next gives the job of the trial again: it is in progress, and those come first. Another one,
    /// or none, means that the cloud ended ours.
    fn accepted(&mut self, context: &mut Context<'_>, next: Option<&JobKey>) {
        if let Some(ours) = Self::open_job(context.machine).filter(|ours| next != Some(ours)) {
            self.closed(context, &ours, "start-next does not give it any more".into());
        }
    }

    fn job(&mut self, context: &mut Context<'_>, execution: &Execution) {
        let key = &execution.key;
        let taken = intake(execution, context.machine, &self.rules);
        match taken {
            Intake::Event(event) if context.leaving && matches!(*event, Event::Offer(_)) => {
                tracing::info!("{key}: waits");
            }
            Intake::Event(event) => {
                tracing::info!("{key}: taken");
                context.events.push(*event);
                self.tell_time(context, execution);
            }
            Intake::Known(key) => {
                tracing::info!("{key}: ended here before, answering again");
                // What is known of it goes out again, whatever is said here.
                let outcome = Outcome::failed("ended on this device before");
                context.events.push(Event::JobEnded(key, outcome));
            }
            Intake::Ours => {
                self.tell_time(context, execution);
                self.alive(context, key, Some(&execution.document));
            }
            // It is in progress now, so that start-next gives it again, with fresh URLs, when we ask next.
            Intake::Later => tracing::info!("{key}: waits until the device is ready"),
            Intake::Other => self.other(context, execution),
        }
    }

    fn tell_time(&self, context: &mut Context<'_>, execution: &Execution) {
        context.events.extend(time_left(execution).map(|left| Event::Cloud(Cloud::TimeLeft(left))));
    }

    fn other(&mut self, context: &mut Context<'_>, execution: &Execution) {
        let key = execution.key.clone();
        let program = match &self.others {
            Others::Run(rules) => return self.general(context, execution, rules),
            // Begun by the daemon, which goes on with it.
            _ if context.machine.interrupted_job().is_some_and(|job| job.key == key) => return,
            Others::Callback(program) => program,
            Others::Refuse => {
                let reason =
                    "no firmware job (operation is not \"fota\"), and nothing else is set up to take it";
                return context.events.push(Event::JobEnded(key, Outcome::rejected(reason)));
            }
        };
        let argv = vec![program.clone()];
        let stdin = execution.document.to_string().into_bytes();
        context.programs.push(Program { name: format!("job {}", key.job), argv, stdin });
        self.running = Some(key);
    }

    fn general(&self, context: &mut Context<'_>, execution: &Execution, rules: &GeneralRules) {
        if context.leaving {
            return;
        }
        let goes_on = context.machine.interrupted_job().is_some_and(|job| job.key == execution.key);
        let event = match general(execution, context.machine, &context.boot_id, rules, &self.rules) {
            // Asked for again when there is room.
            Ok(None) => return,
            Ok(Some(event)) => {
                tracing::info!("{}: taken", execution.key);
                Event::Job(event)
            }
            Err(outcome) if goes_on => {
                let (key, details) = (execution.key.clone(), Details::new());
                Event::Job(JobEvent::Ended { key, outcome, details })
            }
            Err(outcome) => Event::JobEnded(execution.key.clone(), outcome),
        };
        context.events.push(event);
        self.tell_time(context, execution);
    }

    /// A hint to ask: for the next job, or whether ours was ended.
    fn hint(&mut self, context: &mut Context<'_>, next: Option<&JobKey>) {
        let renamed = |ours: &JobKey| {
            next.is_some_and(|next| {
                next != ours && (&next.job, next.execution) == (&ours.job, ours.execution)
            })
        };
        match Self::open_job(context.machine) {
            _ if context.leaving => {}
            Some(ours) if renamed(&ours) && Self::before_reboot(context.machine) => {
                let out = self.desk.replaced(&ours, context.now.boot);
                self.take(context, out);
            }
            Some(ours) if next != Some(&ours) && Self::before_reboot(context.machine) => self.ask(context),
            Some(_) => {}
            None if next.is_some() => self.ask(context),
            None => {}
        }
    }

    fn alive(&mut self, context: &mut Context<'_>, key: &JobKey, document: Option<&serde_json::Value>) {
        let ours = context.machine.record().state.update().and_then(|u| u.origin.job()) == Some(key);
        if !ours || !Self::before_reboot(context.machine) {
            return;
        }
        let step = context.machine.installing_job().is_some();
        let event = match document.filter(|d| step || fota::is_fota(d)) {
            None => {
                // No document in the answer: start-next has one.
                let out = self.desk.ask_next(context.now.boot);
                return self.take(context, out);
            }
            Some(document) => match fresh_images(document, context.machine, &self.rules) {
                Ok(images) => Event::Cloud(Cloud::Alive(Some(images))),
                Err(outcome) => Event::FetchEnded(outcome),
            },
        };
        context.events.push(event);
    }

    fn closed(&mut self, context: &mut Context<'_>, key: &JobKey, why: String) {
        if Self::open_job(context.machine).as_ref() != Some(key) {
            return;
        }
        let general = context.machine.record().job.as_ref().is_some_and(|job| job.key == *key);
        context.events.push(if general {
            Event::Job(JobEvent::Closed(key.clone(), why))
        } else {
            Event::Cloud(Cloud::Closed(why))
        });
    }
}

impl Feature for Jobs {
    fn topics(&self) -> Vec<String> {
        subscriptions(&self.desk.identity().thing)
    }

    fn on_session(&mut self, context: &mut Context<'_>, up: bool) {
        self.up = up;
        if !up {
            self.desk.down();
            return;
        }
        let out = self.desk.up(context.machine.sendable(), context.now.boot);
        self.take(context, out);
        self.ask(context);
        // A trial begins before there is a session: what it told the cloud was told to nobody.
        if matches!(context.machine.record().state, State::Armed { .. } | State::Trial { .. }) {
            self.report(context);
        }
    }

    fn on_message(&mut self, context: &mut Context<'_>, topic: &str, payload: &[u8]) {
        let out = self.desk.message(topic, payload, context.now.boot);
        self.take(context, out);
    }

    fn on_wake(&mut self, context: &mut Context<'_>) {
        let out = self.desk.tick(context.now.boot);
        self.take(context, out);
    }

    fn next_wake(&self) -> Option<Boottime> {
        self.desk.next_wake()
    }

    fn on_done(&mut self, context: &mut Context<'_>, done: &Done) {
        match done {
            Done::Report => self.report(context),
            Done::Flush => self.flush(context),
            Done::AskCloud | Done::Renew => self.ask(context),
            Done::Refetch | Done::Reprovision => {}
            Done::Program(name, result) => {
                let Some(key) = self.running.take_if(|k| format!("job {}", k.job) == *name) else { return };
                let outcome = match result {
                    Ok(()) => Outcome::succeeded("done"),
                    Err(why) => Outcome::failed(why.clone()),
                };
                context.events.push(Event::JobEnded(key, outcome));
            }
        }
    }

    fn idle(&self) -> bool {
        self.up && !self.asking && self.running.is_none() && self.desk.next_wake().is_none()
    }
}

/// statusDetails of an update under way. An update replaces all of them, so this is all of them.
fn details(machine: &Machine) -> Details {
    let mut details = Details::new();
    let mut put = |name: &str, value: String| {
        details.insert(name.to_owned(), detail(&value));
    };
    if let Some(job) = &machine.record().job {
        put(PROGRESS, job.progress());
        if machine.installing_job().is_none() {
            return details;
        }
    }
    put(PHASE, machine.phase().to_owned());
    if let Some(seal) = machine.seal() {
        put(seal::DETAIL, seal.to_string());
        put("set", seal.target.to_string());
    }
    if let Some((bytes, _)) = machine.progress() {
        put("bytes", bytes.to_string());
    }
    if let Some(percent) = machine.percent() {
        put("percent", percent.to_string());
    }
    if let Some(why) = machine.waits_for() {
        put("waits-for", why);
    }
    details
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::patient_rules;
    use otandem_core::boot::{Booted, Facts, SetId, SetState};
    use otandem_core::jobs::wire::{start_next_topic, update_topic};
    use otandem_core::machine::{Evidence, Health, Now};
    use otandem_core::plan::Layout;
    use otandem_core::record::Record;
    use otandem_core::update::{Origin, Then, Update};
    use serde_json::{Value, json};

    fn key() -> JobKey {
        JobKey { endpoint: "e".into(), thing: "t".into(), job: "j".into(), execution: 1, queued_at: 0 }
    }

    /// A device that was restarted while the job was accepted.
    fn machine() -> Machine {
        let update = Update {
            require_cloud: true,
            ..Update::switch_to(SetId::B, Origin::Job { key: key(), closed: false })
        };
        let state = State::Accepted { update };
        let record = Record { state, confirmed: Some(SetId::A), ..Record::default() };
        let (a, b) = (SetState::Good, SetState::Bad);
        let booted = Booted::Set(SetId::A);
        let facts = Facts { booted, boot_id: "x".into(), primary: Some(SetId::A), a, b };
        let evidence = Evidence { facts: Ok(facts), heads: [true, false], unread: false };
        Machine::start(Some(record), evidence, patient_rules(), Now::default()).0
    }

    fn context(machine: &Machine) -> Context<'_> {
        Context {
            machine,
            now: Now::default(),
            boot_id: "boot".into(),
            leaving: false,
            publish: vec![],
            events: vec![],
            programs: vec![],
        }
    }

    /// What one call publishes.
    fn published(machine: &Machine, call: impl FnOnce(&mut Context<'_>)) -> Vec<(String, Value)> {
        let mut context = context(machine);
        call(&mut context);
        context.publish.into_iter().map(|(t, p)| (t, serde_json::from_slice(&p).unwrap())).collect()
    }

    fn jobs() -> Jobs {
        let identity = Identity { endpoint: "e".into(), thing: "t".into(), step_timeout: None };
        let paths = |set: &str| [("rootfs".to_owned(), format!("/dev/{set}"))].into();
        let layout = Layout { index: [0, 1], paths: [paths("a"), paths("b")], copy_if_missing: vec![] };
        let rules = JobRules { layout, compatible: None, require_cloud: true, then: Then::Reboot };
        Jobs::new(identity, rules, Others::Run(GeneralRules::default()), 1)
    }

    #[test]
    fn nothing_is_begun_while_the_agent_ends_or_a_person_runs_a_job() {
        let facts = Facts {
            booted: Booted::Set(SetId::A),
            boot_id: "x".into(),
            primary: Some(SetId::A),
            a: SetState::Good,
            b: SetState::Bad,
        };
        let record = Record { confirmed: Some(SetId::A), ..Record::default() };
        let evidence = Evidence { facts: Ok(facts), heads: [true, false], unread: false };
        let mut ready = Machine::start(Some(record), evidence, patient_rules(), Now::default()).0;
        ready.step(Event::Health(Health::Passed), Now::default());
        ready.step(Event::Continue, Now::default());
        let image = json!({"url": "https://h/i", "sha256": "ab".repeat(32)});
        let fota = json!({"operation": "fota", "image": image});
        let general = json!({"version": "1.0", "steps": [
            {"action": {"name": "n", "type": "runCommand", "input": {"command": "true"}}}]});
        for document in [fota, general] {
            for leaving in [false, true] {
                let mut jobs = jobs();
                let asked = published(&ready, |context| jobs.on_session(context, true));
                let execution =
                    json!({"jobId": "j", "executionNumber": 1, "queuedAt": 1, "jobDocument": document});
                let answer =
                    json!({"clientToken": asked[0].1["clientToken"], "execution": execution}).to_string();
                let mut context = Context { leaving, ..context(&ready) };
                jobs.on_message(
                    &mut context,
                    &format!("{}/accepted", start_next_topic("t")),
                    answer.as_bytes(),
                );
                let begins = |e: &Event| matches!(e, Event::Offer(_) | Event::Job(JobEvent::Start(..)));
                assert_eq!(context.events.iter().any(begins), !leaving, "{leaving} {:?}", context.events);
            }
        }
    }

    #[test]
    fn an_answer_without_a_fresh_document_leads_to_start_next() {
        let machine = machine();
        let mut jobs = jobs();
        let asked = published(&machine, |context| jobs.on_session(context, true));
        let [(topic, update)] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(*topic, update_topic("t", "j"));
        assert_eq!(update["includeJobDocument"], true, "{update}");
        let answer = json!({ "clientToken": update["clientToken"] }).to_string();
        let topic = format!("{topic}/accepted");
        let next = published(&machine, |context| jobs.on_message(context, &topic, answer.as_bytes()));
        assert_eq!(next.iter().map(|(t, _)| t.as_str()).collect::<Vec<_>>(), [start_next_topic("t")]);
    }
}
