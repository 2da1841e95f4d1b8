//! What people ask for on the device. Every verb is an event of the machine; between arming and the end only
//! confirm and rollback are taken (UPDATE-RULES 2.6).

use super::{Action, Machine, Now};
use crate::boot::SetId;
use crate::record::{SlotStatuses, State};
use crate::update::{Cause, Origin, Then, Update};

/// A request of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// Make the running set permanent now.
    Confirm,
    /// Go back to the other set.
    Rollback,
    /// `mark good` on the running set is [`Verb::Confirm`]; on the other one it adopts what was verified there.
    Adopt {
        /// The set.
        set: SetId,
        /// What its slots were found to hold.
        slots: SlotStatuses,
    },
    /// `mark bad`.
    MarkBad(SetId),
    /// `mark active`, `fota test`, and rollback from a settled set: boot this one next.
    Activate {
        /// The set.
        set: SetId,
        /// Reboot at once.
        reboot: bool,
    },
    /// `reboot`, `fota reset`.
    Reboot,
}

impl Machine {
    pub(super) fn user(&mut self, verb: Verb, now: Now) -> Vec<Action> {
        let Some(booted) = self.booted() else { return refuse("which set runs is not known") };
        match (&self.record.state, verb) {
            (State::Trial { .. }, Verb::Confirm) => self.confirm(),
            (State::Trial { update, .. }, Verb::Rollback) if !self.way_back(update) => {
                refuse("there is no other set that is good and complete")
            }
            (State::Trial { .. }, Verb::Rollback) => {
                let mut actions = self.roll_back(Cause::Asked, "asked for on the device".into());
                actions.push(answer("going back to the other set"));
                actions
            }
            (State::Written { .. }, Verb::Rollback) => {
                self.end(Some(crate::update::Outcome::failed("dropped on the device before it was tried")))
            }
            (State::Arming { .. } | State::Armed { .. }, Verb::Rollback) => {
                let mut actions =
                    self.drop_armed(Cause::Dropped, "dropped on the device before it was tried");
                actions.push(answer("the armed set is dropped"));
                actions
            }
            (State::Armed { .. } | State::Written { .. }, Verb::Reboot) => self.reboot_for_update(now),
            (State::Idle, Verb::Confirm) if self.run.kept => {
                vec![answer("the running set is permanent already")]
            }
            (State::Idle, Verb::Confirm) => {
                vec![
                    Action::StopHealth,
                    Action::Confirm(booted),
                    answer("the running set is permanent"),
                    Action::Continue,
                ]
            }
            (State::Idle, Verb::Rollback) => self.activate(booted.other(), true),
            (State::Idle, Verb::Activate { set, .. }) if set == booted => {
                vec![Action::Disarm(set.other()), answer("the running set stays first; the other one is bad")]
            }
            (State::Idle, Verb::Activate { set, reboot }) => self.activate(set, reboot),
            (State::Idle, Verb::MarkBad(set)) if set == booted => {
                refuse("the running set cannot be marked bad: use rollback")
            }
            (State::Idle, Verb::MarkBad(set)) => {
                self.record.slots_mut(set).clear();
                vec![Action::Save, Action::MarkBad(set), answer(&format!("set {set} is bad"))]
            }
            (State::Idle, Verb::Adopt { set, .. }) if set == booted => {
                refuse("use confirm for the running set")
            }
            (State::Idle, Verb::Adopt { set, slots }) => {
                *self.record.slots_mut(set) = slots;
                vec![
                    Action::Save,
                    answer(&format!("set {set} is recorded as complete; `mark active {set}` boots it")),
                ]
            }
            (State::Idle, Verb::Reboot) => {
                let mut actions = vec![answer("rebooting")];
                actions.extend(self.reboot(now));
                actions
            }
            (state, _) => refuse(&format!(
                "an update is under way ({}): only confirm, rollback and status are possible",
                state.name()
            )),
        }
    }

    /// Boot a set that is recorded complete: an update without images, with a trial like any other.
    fn activate(&mut self, set: SetId, reboot: bool) -> Vec<Action> {
        if !self.ready() {
            return refuse(&self.not_ready().unwrap_or_default());
        }
        if !self.record.complete(set, self.rules.slots.iter().map(String::as_str)) {
            return refuse(&format!(
                "set {set} is not recorded as complete: install it, or `mark good {set} --verify SHA256`"
            ));
        }
        let written = self.record.slots(set).values().map(|s| s.sha256).collect();
        let version = self.record.slots(set).values().find_map(|s| s.version.clone());
        let update = Update {
            origin: Origin::Local,
            from: set.other(),
            target: set,
            images: vec![],
            version,
            then: if reboot { Then::Reboot } else { Then::Arm },
            require_cloud: false,
            retry: true,
            written,
        };
        self.accept(update)
    }

    /// A person's reboot is due at once: no window, no hook.
    fn reboot_for_update(&mut self, now: Now) -> Vec<Action> {
        if let Some(update) = self.record.state.update_mut() {
            update.then = Then::Reboot;
        }
        let mut actions = vec![Action::Save, answer("rebooting into the other set")];
        if matches!(self.record.state, State::Written { .. }) {
            self.run.wait = None;
            actions.extend(self.arm());
        } else {
            actions.extend(self.reboot_when_told(now));
        }
        actions
    }
}

fn answer(text: &str) -> Action {
    Action::Answer(Ok(text.to_owned()))
}

fn refuse(why: &str) -> Vec<Action> {
    vec![Action::Answer(Err(why.to_owned()))]
}
