//! `otandem status`: where everything stands, as JSON whose members are only ever added.

use otandem_core::boot::SetId;
use otandem_core::update::{Origin, Outcome};
use serde_json::{Value, json};

use super::Agent;

/// What is known of the session.
#[derive(Debug)]
pub(super) struct SessionView {
    configured: bool,
    up: bool,
    /// Why it is away.
    reason: Option<String>,
    /// Wall time of the last accepted answer, in seconds since 1970.
    last_contact: Option<u64>,
}

impl SessionView {
    pub(super) const fn new(configured: bool) -> Self {
        Self { configured, up: false, reason: None, last_contact: None }
    }

    pub(super) fn up(&mut self) {
        (self.up, self.reason) = (true, None);
    }

    pub(super) fn down(&mut self, reason: String) {
        (self.up, self.reason) = (false, Some(reason));
    }

    pub(super) const fn answered(&mut self, wall: u64) {
        self.last_contact = Some(wall);
    }
}

impl Agent {
    /// The whole status.
    #[must_use]
    pub fn status(&self) -> Value {
        let machine = &self.machine;
        let record = machine.record();
        let mut attention: Vec<String> = vec![];
        if record.late_fallback {
            attention.push("late fallback: the set confirmed last does not boot any more".into());
        }
        match machine.facts() {
            None => {
                attention.push(machine.not_ready().unwrap_or_else(|| "the bootloader cannot be asked".into()))
            }
            Some(_) if machine.booted().is_none() => attention.push("which set runs is not known".into()),
            Some(_) => {}
        }
        if machine.unsaved() {
            attention.push("the record cannot be saved: check the state directory".into());
        }
        attention.extend(self.performer.refusal().map(|why| format!("updates are refused: {why}")));
        if self.session.configured && !self.session.up {
            let why = self.session.reason.clone().unwrap_or_else(|| "connecting".into());
            attention.push(format!("no cloud session: {why}"));
        }
        if !record.outbox.is_empty() && !self.session.up {
            attention.push(format!("{} outcomes wait for the cloud", record.outbox.len()));
        }
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "features": crate::features::list(),
            "phase": machine.phase(),
            "waits-for": machine.waits_for(),
            "settled": machine.settled(),
            "ready": machine.ready(),
            "booted": machine.booted().map(SetId::name),
            "confirmed": record.confirmed.map(SetId::name),
            "bootloader": machine.facts().map(|f| json!({
                "primary": f.primary.map(SetId::name), "A": f.a, "B": f.b, "boot-id": f.boot_id,
            })),
            "sets": { "A": record.slots_a, "B": record.slots_b },
            "update": self.update(),
            "last-outcome": record.last.as_ref().map(outcome),
            "late-fallback": record.late_fallback,
            "banned": record.bans.iter().filter(|b| b.why.is_some()).collect::<Vec<_>>(),
            "cloud": {
                "configured": self.session.configured,
                "connected": self.session.up,
                "reason": self.session.reason,
                "last-contact": self.session.last_contact,
                "outbox": record.outbox.len(),
            },
            "attention": attention,
        })
    }

    fn update(&self) -> Option<Value> {
        let update = self.machine.record().state.update()?;
        let origin = match &update.origin {
            Origin::Job { key, .. } => json!({ "job": key.job, "execution": key.execution }),
            Origin::Local => json!("local"),
            Origin::Adopted => json!("adopted"),
        };
        let (done, total) = self.machine.progress().map_or((None, None), |(done, total)| (Some(done), total));
        Some(json!({
            "origin": origin,
            "from": update.from.name(),
            "target": update.target.name(),
            "version": update.version,
            "images": update.images.iter().map(|i| json!({
                "slot": i.slot, "source": i.source_for_log(), "sha256": i.raw.sha256,
            })).collect::<Vec<_>>(),
            "bytes": done,
            "size": total,
            "percent": self.machine.percent(),
        }))
    }
}

fn outcome(outcome: &Outcome) -> Value {
    let kind = match outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Failed { .. } => "failed",
        Outcome::Rejected { .. } => "rejected",
    };
    json!({ "outcome": kind, "reason": outcome.reason() })
}
