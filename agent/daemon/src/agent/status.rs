//! `otandem status`: where everything stands, as JSON whose members are only ever added.

use otandem_boot::View;
use otandem_core::agreement::differences;
use otandem_core::boot::{Facts, SetId};
use otandem_core::machine::{Machine, UNSAVED};
use otandem_core::update::{Origin, Outcome};
use otandem_device::machine::now as boottime;
use serde_json::{Value, json};

use super::Agent;
use super::world::rivals;
use crate::cloud::channel::in_short;
use crate::cloud::tls::wall;
use crate::config::BootKind;
use crate::control::Progress;

const DAY: u64 = 24 * 3600;
/// A certificate that ends sooner than this wants attention.
const EXPIRY_WARNING: u64 = 30 * DAY;

/// What is known of the session.
#[derive(Debug, Default)]
pub(super) struct SessionView {
    up: bool,
    /// Why it is away.
    reason: Option<String>,
    /// Wall time of the last accepted answer, in seconds since 1970.
    last_contact: Option<u64>,
    /// Subscriptions that it goes on without, in groups, and why.
    set_aside: Vec<(Vec<String>, String)>,
}

impl SessionView {
    /// What an operator should look at. `certificate`: the end of its validity or what is wrong with it; `None` where no
    /// cloud is configured.
    fn attention(&self, certificate: Option<&Result<u64, String>>, now: u64, outbox: usize) -> Vec<String> {
        let mut attention = vec![];
        if certificate.is_some() && !self.up {
            let why = self.reason.as_deref().unwrap_or("not connected yet");
            attention.push(format!("no cloud session: {why}"));
            if outbox > 0 {
                attention.push(format!("{outbox} outcomes wait for the cloud"));
            }
        }
        for (topics, why) in &self.set_aside {
            attention.push(format!("no subscription to {}: {why}", in_short(topics)));
        }
        match certificate {
            Some(Err(why)) => attention.push(why.clone()),
            Some(Ok(end)) if *end < now + EXPIRY_WARNING => {
                attention
                    .push(format!("the device certificate ends in {} days", end.saturating_sub(now) / DAY));
            }
            _ => {}
        }
        attention
    }

    pub(super) fn up(&mut self) {
        (self.up, self.reason) = (true, None);
    }

    pub(super) fn down(&mut self, reason: String) {
        (self.up, self.reason) = (false, Some(reason));
    }

    pub(super) fn granted(&mut self, topics: &[String]) {
        self.set_aside.retain(|(group, _)| group != topics);
    }

    pub(super) fn set_aside(&mut self, topics: Vec<String>, why: String) {
        self.granted(&topics);
        self.set_aside.push((topics, why));
    }

    fn shown_aside(&self) -> Value {
        self.set_aside.iter().map(|(topics, why)| json!({ "topics": topics, "why": why })).collect()
    }

    pub(super) const fn answered(&mut self, wall: u64) {
        self.last_contact = Some(wall);
    }
}

impl Agent {
    /// Tells whoever waits for the update.
    pub(super) fn show_progress(&self, done: u64, total: Option<u64>) {
        if let Some(asker) = &self.asker {
            asker.progress(Progress { phase: self.machine.phase().to_owned(), done, total });
        }
    }

    /// The whole status.
    #[must_use]
    pub fn status(&mut self) -> Value {
        // The bootloader is asked anew: somebody else may have told it something.
        let (facts, view) = (self.performer.facts(), self.performer.view());
        if self.machine.untouchable().is_some() && facts.is_ok() {
            // It answers: no need to wait any longer.
            self.look.due = boottime();
        }
        let kind = self.performer.boot_kind();
        let rivals = kind.map(rivals).unwrap_or_default();
        let certificate = self.performer.certificate();
        let machine = &self.machine;
        let record = machine.record();
        let mut attention: Vec<String> = vec![];
        if record.late_fallback {
            attention.push("late fallback: the set confirmed last does not boot any more".into());
        }
        match machine.facts() {
            None if self.performer.without_slots() => {}
            None => {
                attention.push(machine.not_ready().unwrap_or_else(|| "the bootloader cannot be asked".into()))
            }
            Some(_) if machine.booted().is_none() => attention.push("which set runs is not known".into()),
            Some(_) => attention.extend(boot_attention(machine, &facts, &view)),
        }
        attention.extend(rivals);
        if machine.unsaved() {
            attention.push(UNSAVED.into());
        }
        attention.extend(self.performer.missing_slots());
        attention.extend(self.performer.refusal().map(|why| format!("updates are refused: {why}")));
        if let Some(update) = record.state.update().filter(|_| machine.phase() == "trial") {
            let lacks = machine.waits_for().unwrap_or_default();
            attention.push(format!("set {} is on trial and waits for {lacks}", update.target));
        }
        attention.extend(self.session.attention(certificate.as_ref(), wall(), record.outbox.len()));
        let mut status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "features": crate::features::list(),
            "phase": machine.phase(),
            "waits-for": machine.waits_for(),
            "settled": machine.settled(),
            "ready": machine.ready(),
            "booted": machine.booted().map(SetId::name),
            "confirmed": record.confirmed.map(SetId::name),
            "bootloader": bootloader(facts.as_ref().ok().or(machine.facts()), view.ok().as_ref(), kind),
            "sets": { "A": record.slots_a, "B": record.slots_b },
            "update": self.update(),
            "job": self.job(),
            "last-outcome": record.last.as_ref().map(outcome),
            "late-fallback": record.late_fallback,
            "banned": record.bans.iter().filter(|b| b.why.is_some()).collect::<Vec<_>>(),
            "cloud": {
                "configured": certificate.is_some(),
                "connected": self.session.up,
                "reason": self.session.reason,
                "last-contact": self.session.last_contact,
                "set-aside": self.session.shown_aside(),
                "certificate-ends": certificate.as_ref().and_then(|c| c.as_ref().ok()),
                "outbox": record.outbox.len(),
            },
        });
        if let Some(link) = &self.link {
            status["cloud"]["certificate"] = link.wallet.show();
        }
        self.features.iter().for_each(|feature| feature.show(&mut status, &mut attention));
        status["attention"] = json!(attention);
        status
    }

    /// The general job under way. `since`: seconds since 1970, by this device's clock.
    fn job(&self) -> Option<Value> {
        let job = self.machine.record().job.as_ref()?;
        let state = if self.machine.installing_job().is_some() {
            "installing"
        } else if self.machine.running_job().is_some() {
            "running"
        } else if job.waits {
            "waiting"
        } else {
            "interrupted"
        };
        Some(json!({
            "id": job.key.job, "execution": job.key.execution, "state": state,
            "step": job.step + 1, "steps": job.steps, "name": job.name, "since": job.since,
        }))
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

/// What we make of the bootloader, and beside it its own view.
fn bootloader(facts: Option<&Facts>, view: Option<&View>, kind: Option<BootKind>) -> Value {
    let Some(kind) = kind else { return Value::Null };
    let mut shown = json!({ "kind": kind.name() });
    if let Some(f) = facts {
        shown["primary"] = json!(f.primary.map(SetId::name));
        (shown["A"], shown["B"]) = (json!(f.a), json!(f.b));
        shown["boot-id"] = json!(f.boot_id);
    }
    shown["view"] = json!(view.map(|view| {
        // A list: the order is the bootloader's, and nothing keeps it from having a name twice.
        let value = |(name, value): &(String, String)| json!({ "name": name, "value": value });
        json!({ "loader": view.loader, "values": view.values.iter().map(value).collect::<Vec<_>>() })
    }));
    shown
}

/// Where the bootloader cannot be read now, or does not hold what the record expects of it.
fn boot_attention(
    machine: &Machine,
    facts: &Result<Facts, String>,
    view: &Result<View, String>,
) -> Vec<String> {
    match (facts, view) {
        (Err(why), _) => vec![format!("the bootloader cannot be read any more: {why}")],
        (Ok(facts), view) => {
            let mut attention = differences(machine.record(), facts, machine.kept());
            attention.extend(view.as_ref().err().map(|why| format!("the bootloader's own view: {why}")));
            attention
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offline_device_has_nothing_to_say_about_the_cloud() {
        assert!(SessionView::default().attention(None, 0, 3).is_empty());
    }

    #[test]
    fn a_certificate_that_ends_soon_or_is_broken_wants_attention() {
        let mut view = SessionView::default();
        view.up();
        let ends = Ok(100 * DAY);
        assert!(view.attention(Some(&ends), 60 * DAY, 0).is_empty());
        assert_eq!(view.attention(Some(&ends), 90 * DAY, 0), ["the device certificate ends in 10 days"]);
        assert_eq!(view.attention(Some(&ends), 200 * DAY, 0), ["the device certificate ends in 0 days"]);
        assert_eq!(view.attention(Some(&Err("key.pem: not there".into())), 0, 0), ["key.pem: not there"]);
    }

    #[test]
    fn the_bootloaders_own_view_stands_beside_ours_in_its_order() {
        let facts = Facts {
            booted: otandem_core::boot::Booted::Set(SetId::A),
            boot_id: "x".into(),
            primary: Some(SetId::B),
            a: otandem_core::boot::SetState::Good,
            b: otandem_core::boot::SetState::Untried,
        };
        let value = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let values = vec![value("ORDER", "B A"), value("A_OK", "1")];
        let view = View { loader: "GRUB".into(), values };
        let shown = bootloader(Some(&facts), Some(&view), Some(BootKind::Grub));
        assert_eq!(
            (&shown["kind"], &shown["primary"], &shown["B"]),
            (&json!("grub"), &json!("B"), &json!("untried"))
        );
        let values = json!([{ "name": "ORDER", "value": "B A" }, { "name": "A_OK", "value": "1" }]);
        assert_eq!(shown["view"], json!({ "loader": "GRUB", "values": values }));
        assert_eq!(bootloader(None, None, Some(BootKind::Grub)), json!({ "kind": "grub", "view": null }));
        assert_eq!(bootloader(None, None, None), Value::Null);
    }

    #[test]
    fn outcomes_that_wait_without_a_session_want_attention() {
        let good = Ok(u64::MAX - EXPIRY_WARNING);
        let mut view = SessionView::default();
        view.down("refused".into());
        let lines = view.attention(Some(&good), 0, 2);
        assert_eq!(lines, ["no cloud session: refused", "2 outcomes wait for the cloud"]);
        view.up();
        assert!(view.attention(Some(&good), 0, 2).is_empty());
    }
}
