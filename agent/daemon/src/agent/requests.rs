//! What people ask for, turned into events of the update machine.

use otandem_core::boot::SetId;
use otandem_core::fota::{self, Document, DocumentImage};
use otandem_core::image::{Compression, Expect, Sha256};
use otandem_core::machine::{Event, Verb};
use otandem_core::plan::{Device, Request as PlanRequest, plan};
use otandem_core::update::{Origin, Outcome, Then};
use serde_json::json;

use super::Agent;
use super::hold::begins;
use crate::cli::{Target, Verdict};
use crate::control::{Call, FotaCall, FotaRequest, InstallRequest, Reply, Request};
use crate::exit::Exit;
use crate::feature::Done;

/// Why a request is not taken: exit code and one line.
type Refusal = (Exit, String);

impl Agent {
    pub(super) fn call(&mut self, call: Call) {
        let Call { request, reply } = call;
        if matches!(request, Request::Status) {
            return reply.done(Exit::Ok, self.status());
        }
        if matches!(request, Request::HoldJobs) {
            return self.hold(reply);
        }
        if matches!(request, Request::Provision) {
            self.tell_features(&Done::Reprovision);
            let message = "the agent asks for a certificate; see `otandem status`";
            return reply.done(Exit::Ok, json!({ "message": message }));
        }
        if self.hold.is_held() && begins(&request) {
            return reply.failed(Exit::TempFail, "a job is run by hand: try again when it is over");
        }
        if self.asker.as_ref().is_some_and(|a| !a.is_closed()) {
            return reply
                .failed(Exit::TempFail, "another request is being carried out: try again when it is done");
        }
        if self.machine.settling() && waits(&request) {
            return self.postponed.push_back(Call { request, reply });
        }
        let taken = match request {
            Request::Status | Request::HoldJobs | Request::Provision => return,
            Request::Confirm => Ok(Some(Event::User(Verb::Confirm))),
            Request::Rollback => Ok(Some(Event::User(Verb::Rollback))),
            Request::Reboot => Ok(Some(Event::User(Verb::Reboot))),
            Request::Mark { verdict, target, verify } => self.mark(verdict, target, verify),
            Request::Install(install) => self.install(&install).map(Some),
            Request::Fota(FotaRequest { call: FotaCall::Handle, document: None, force, .. }) => {
                return self.handle_jobs(force, reply);
            }
            Request::Fota(fota) => self.fota(&fota).map(Some),
        };
        match taken {
            Ok(event) => {
                self.asker = Some(reply);
                event.into_iter().for_each(|event| self.event(event));
            }
            // Nothing to do is no failure.
            Err((Exit::Ok, reason)) => {
                reply.done(Exit::Ok, json!({ "message": reason, "phase": self.machine.phase() }));
            }
            Err((exit, reason)) => reply.failed(exit, reason),
        }
    }

    /// The machine's answer to whoever asked.
    pub(super) fn answer(&mut self, answer: &Result<String, String>) {
        let Some(asker) = self.asker.take() else { return };
        match answer {
            Ok(text) => asker.done(Exit::Ok, json!({ "message": text, "phase": self.machine.phase() })),
            Err(reason) => asker.failed(Exit::Data, reason.clone()),
        }
    }

    /// The daemon takes jobs by itself; this only makes it look now.
    fn handle_jobs(&mut self, force: bool, reply: Reply) {
        if force {
            self.tell_features(&Done::AskCloud);
        }
        let exit = if self.machine.reset_due() { Exit::ResetDue } else { Exit::Ok };
        reply.done(
            exit,
            json!({ "message": "the agent runs and takes jobs by itself", "phase": self.machine.phase() }),
        );
    }

    fn booted(&self) -> Result<SetId, Refusal> {
        self.machine.booted().ok_or_else(|| {
            (
                Exit::Unavailable,
                self.machine.not_ready().unwrap_or_else(|| "which set runs is not known".into()),
            )
        })
    }

    /// `None`: a thread looks first.
    fn mark(
        &self,
        verdict: Verdict,
        target: Target,
        verify: Option<Sha256>,
    ) -> Result<Option<Event>, Refusal> {
        let booted = self.booted()?;
        let set = match target {
            Target::Booted => booted,
            Target::Other => booted.other(),
            Target::Set(set) => set,
        };
        let verb = match (verdict, verify) {
            (Verdict::Good, None) if set == booted => Verb::Confirm,
            (Verdict::Good, None) => {
                let why = "say what it holds: mark good other --verify SHA256";
                return Err((
                    Exit::Usage,
                    format!("set {set} does not run, so that its health is not known: {why}"),
                ));
            }
            (Verdict::Good, Some(wanted)) => {
                self.verify(set, wanted)?;
                return Ok(None);
            }
            (Verdict::Bad, _) => Verb::MarkBad(set),
            (Verdict::Active, _) => Verb::Activate { set, reboot: false },
        };
        Ok(Some(Event::User(verb)))
    }

    /// Only for sets of one slot: a digest says nothing about the others.
    fn verify(&self, set: SetId, wanted: Sha256) -> Result<(), Refusal> {
        let paths = self.rules()?.layout.set(set);
        let mut slots = paths.iter();
        let (Some((slot, path)), None) = (slots.next(), slots.next()) else {
            return Err((
                Exit::Usage,
                "a set of several slots cannot be adopted by one digest: install it".into(),
            ));
        };
        self.performer.verify(set, slot.clone(), path.into(), wanted).map_err(|e| (Exit::System, e))
    }

    fn rules(&self) -> Result<&otandem_core::jobs::intake::JobRules, Refusal> {
        self.rules.as_ref().ok_or_else(|| {
            (Exit::Config, self.machine.not_ready().unwrap_or_else(|| "updates are not configured".into()))
        })
    }

    fn install(&mut self, install: &InstallRequest) -> Result<Event, Refusal> {
        let document = match &install.document {
            Some(text) => {
                fota::parse_text(text.as_bytes()).map_err(|o| (Exit::Data, o.reason().to_owned()))?
            }
            None => document(install)?,
        };
        self.performer.no_digest(install.no_digest);
        let then = if install.reboot { Then::Reboot } else { Then::Arm };
        self.offer(&document, install.set, then)
    }

    fn fota(&mut self, fota: &FotaRequest) -> Result<Event, Refusal> {
        let document = || {
            let text = fota
                .document
                .as_deref()
                .ok_or_else(|| (Exit::NoInput, "a job document is needed".to_owned()))?;
            fota::parse_text(text.as_bytes()).map_err(|o| (Exit::Data, o.reason().to_owned()))
        };
        match fota.call {
            FotaCall::Confirm => Ok(Event::User(Verb::Confirm)),
            FotaCall::Reset => Ok(Event::User(Verb::Reboot)),
            FotaCall::Update => {
                self.performer.no_digest(false);
                self.offer(&document()?, None, Then::Hold)
            }
            FotaCall::Test => self.test(&document()?),
            FotaCall::Handle => {
                self.performer.no_digest(false);
                let then = if fota.auto_reset { Then::Reboot } else { Then::Arm };
                self.offer(&document()?, None, then)
            }
        }
    }

    /// Arms what `fota update` wrote, if it is what the document names.
    fn test(&self, document: &Document) -> Result<Event, Refusal> {
        let set = self.booted()?.other();
        let held = self.machine.record().slots(set);
        for image in &document.images {
            let slot = image.slot.clone().or_else(|| held.keys().next().cloned()).unwrap_or_default();
            let status = held.get(&slot).filter(|held| {
                image.raw.sha256.is_none_or(|d| d == held.sha256)
                    && image.file.sha256.is_none_or(|d| held.file_sha256 == Some(d))
                    && image.file.md5.is_none_or(|d| held.md5 == Some(d))
            });
            if status.is_none() {
                let why = format!(
                    "set {set} does not hold the image of this document: run `otandem fota update` first"
                );
                return Err((Exit::Data, why));
            }
        }
        Ok(Event::User(Verb::Activate { set, reboot: false }))
    }

    fn offer(&self, document: &Document, set: Option<SetId>, then: Then) -> Result<Event, Refusal> {
        let booted = self.booted()?;
        if let Some(why) = self.machine.not_ready() {
            return Err((Exit::TempFail, why));
        }
        let rules = self.rules()?;
        let device = Device {
            booted,
            layout: &rules.layout,
            record: self.machine.record(),
            compatible: rules.compatible.as_deref(),
        };
        let request = PlanRequest {
            origin: Origin::Local,
            set,
            then,
            require_cloud: self.performer.local_require_cloud(),
        };
        match plan(document, &device, request) {
            Ok(update) => Ok(Event::Offer(Box::new(update))),
            Err(Outcome::Succeeded { reason }) => Err((Exit::Ok, reason)),
            Err(outcome) => Err((Exit::Data, outcome.reason().to_owned())),
        }
    }
}

/// Requests that need a settled set, and so wait for it where that is soon.
const fn waits(request: &Request) -> bool {
    matches!(request, Request::Install(_) | Request::Fota(_) | Request::Mark { .. } | Request::Rollback)
}

/// An image without a document: a file or URL and what was said on the command line.
fn document(install: &InstallRequest) -> Result<Document, Refusal> {
    if install.sha256.is_none() && install.file_sha256.is_none() && !install.no_digest {
        let why = "no digest: use --sha256, put a .sha256 file beside it, or say --no-digest";
        return Err((Exit::Data, why.to_owned()));
    }
    let remote = install.source.starts_with("http://") || install.source.starts_with("https://");
    if !remote && !install.source.starts_with('/') {
        return Err((Exit::Data, "the source is neither an http(s) URL nor an absolute path".into()));
    }
    // Packed or not is seen from the first bytes, where there is a digest to trust them.
    let image = DocumentImage {
        slot: install.slot.clone(),
        source: install.source.clone(),
        compression: install.no_digest.then_some(Compression::None),
        raw: Expect { sha256: install.sha256, ..Expect::default() },
        file: Expect { sha256: install.file_sha256, ..Expect::default() },
        version: None,
        compatible: None,
    };
    Ok(Document { index: None, images: vec![image], retry: true, force: true })
}
