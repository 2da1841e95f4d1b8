//! What people ask for on the device. Every verb is an event of the machine; between arming and the end only
//! confirm and rollback are taken (UPDATE-RULES 2.6), and the reboot that a person was left to ask for.

use super::{Action, Health, Machine, Now, Reboot};
use crate::boot::SetId;
use crate::record::{SlotStatuses, State};
use crate::update::{Cause, Origin, Outcome, Then, Update};

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
            (State::Idle, Verb::Confirm) => self.confirm_running(booted),
            (State::Idle, _) if self.run.restoring || self.run.reboot != Reboot::No => {
                refuse("the device is about to reboot")
            }
            (State::Idle, verb) => self.idle_verb(verb, booted, now),

            (State::Accepted { .. } | State::Writing { .. } | State::Written { .. }, Verb::Rollback) => {
                let mut actions = vec![answer("the update is dropped")];
                actions.extend(self.end(Some(Outcome::failed(DROPPED))));
                actions
            }
            (State::Arming { .. } | State::Armed { .. }, Verb::Rollback) => {
                let mut actions = vec![answer("the armed set is dropped")];
                actions.extend(self.drop_armed(Cause::Dropped, DROPPED));
                actions
            }
            (State::Armed { .. } | State::Written { .. }, Verb::Reboot) => self.reboot_for_update(now),

            (State::Trial { update, .. }, Verb::Confirm) => {
                // Of a job the cloud is told that the image passed: that is not for a person to say.
                let well = matches!(self.run.health, Some(Health::Passed));
                if update.origin.open_job().is_some() && !well {
                    return refuse("the health checks have not passed, and a job waits for them: see status");
                }
                self.confirm()
            }
            (State::Trial { update, .. }, Verb::Rollback) if !self.way_back(update) => {
                refuse("there is no other set that is good and complete")
            }
            (State::Trial { .. }, Verb::Rollback) => {
                let mut actions = vec![answer("going back to the other set")];
                actions.extend(self.roll_back(Cause::Asked, "asked for on the device"));
                actions
            }
            (state, _) => refuse(&format!(
                "an update is under way ({}): only confirm, rollback and status are possible",
                state.name()
            )),
        }
    }

    fn confirm_running(&mut self, booted: SetId) -> Vec<Action> {
        if self.run.kept {
            return vec![answer("the running set is permanent already")];
        }
        self.run.restoring = false;
        vec![
            Action::StopHealth,
            Action::Confirm(booted),
            answer("the running set is permanent"),
            Action::Continue,
        ]
    }

    fn idle_verb(&mut self, verb: Verb, booted: SetId, now: Now) -> Vec<Action> {
        match verb {
            Verb::Confirm => self.confirm_running(booted),
            Verb::Rollback => self.activate(booted.other(), true, now),
            // It runs: what is left to do is to put it first in the bootloader's order again.
            Verb::Activate { set, .. } if set == booted && self.run.kept => {
                vec![Action::Confirm(set), answer("the running set is the first one")]
            }
            Verb::Activate { set, .. } if set == booted => self.confirm_running(booted),
            Verb::Activate { set, reboot } => self.activate(set, reboot, now),
            Verb::MarkBad(set) if set == booted => {
                refuse("the running set cannot be marked bad: use rollback")
            }
            Verb::MarkBad(set) => {
                self.record.slots_mut(set).clear();
                vec![Action::Save, Action::MarkBad(set), answer(&format!("set {set} is bad"))]
            }
            Verb::Adopt { set, .. } if set == booted => refuse("use confirm for the running set"),
            Verb::Adopt { set, slots } => {
                *self.record.slots_mut(set) = slots;
                self.set_head(set, true);
                vec![
                    Action::Save,
                    answer(&format!("set {set} is recorded as complete; `mark active {set}` boots it")),
                ]
            }
            Verb::Reboot => {
                let mut actions = vec![answer("rebooting")];
                actions.extend(self.reboot(now));
                actions
            }
        }
    }

    /// Boot a set that is recorded complete: an update without images, with a trial like any other.
    fn activate(&mut self, set: SetId, reboot: bool, now: Now) -> Vec<Action> {
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
            then: if reboot { Then::Reboot } else { Then::Arm },
            version,
            retry: true,
            written,
            ..Update::switch_to(set, Origin::Local)
        };
        self.accept(update, now)
    }

    /// A person's reboot is due at once: no window, no hook.
    fn reboot_for_update(&mut self, now: Now) -> Vec<Action> {
        let written = matches!(self.record.state, State::Written { .. });
        if written && !(self.run.kept && self.known_to_live()) {
            return refuse(
                "the update goes on when the running set is settled and the cloud says that the job lives",
            );
        }
        if let Some(update) = self.record.state.update_mut() {
            update.then = Then::Reboot;
        }
        let mut actions = vec![answer("rebooting into the other set")];
        if written {
            actions.extend(self.arm(now));
        } else {
            // A person could as well pull the plug: nothing is won by letting them wait for the cloud, and without a
            // session it would never come.
            actions.push(Action::Save);
            actions.extend(self.reboot(now));
        }
        actions
    }
}

const DROPPED: &str = "dropped on the device before it was tried";

fn answer(text: &str) -> Action {
    Action::Answer(Ok(text.to_owned()))
}

fn refuse(why: &str) -> Vec<Action> {
    vec![Action::Answer(Err(why.to_owned()))]
}
