//! The verdict: what a start means, given the record and what the bootloader says (UPDATE-RULES 2.4).
//!
//! One table, and nothing else decides. Each row has a test of its own below.

use crate::boot::{Facts, SetState};
use crate::record::{Record, State};
use crate::update::{Cause, Reason};

/// Arming is asked for at most this often.
pub const ARM_ATTEMPTS: u32 = 2;
/// Going back is asked for at most this often before the device stays up where it is.
pub const ROLL_BACK_ATTEMPTS: u32 = 2;
/// The order is restored at most this often after the boot environment was reset.
pub const RESTORE_ATTEMPTS: u32 = 1;

/// What to do about a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing about the boot is pending: go on where the record stands.
    GoOn,
    /// Touch nothing and say so: which set runs is not known.
    Untouchable,
    /// No record: settle the booted set as a trial without a job.
    Adopt,
    /// The request reached the bootloader but not the record: save `Armed`, then reboot.
    WasArmed,
    /// Ask the bootloader again.
    ArmAgain,
    /// Armed in this very boot: the reboot is still due.
    RebootAgain,
    /// The target runs: try it.
    Trial,
    /// The target runs and passed: confirm (again, if it needs that).
    Confirm,
    /// The old set runs: settle there for this reason.
    Back(Reason),
    /// The target runs though it was given up: go back again.
    RollBackAgain,
    /// The target runs and cannot be left.
    CannotGoBack,
    /// The update belongs to another running set than this one: give it up.
    WrongSet,
    /// The boot environment was reset: restore the order and reboot.
    Restore,
    /// The confirmed set does not boot any more: stay here and say so.
    LateFallback,
}

fn back(cause: Cause, text: impl Into<String>) -> Verdict {
    Verdict::Back(Reason { cause, text: text.into() })
}

/// The table. `record` = `None` where it was lost or never was.
#[must_use]
pub fn verdict(record: Option<&Record>, facts: &Facts) -> Verdict {
    let Some(booted) = facts.booted.set() else { return Verdict::Untouchable };
    let Some(record) = record else { return Verdict::Adopt };
    let Some(update) = record.state.update() else { return idle(record, facts) };
    let on_target = booted == update.target;
    let tried = facts.state(update.target);
    match &record.state {
        State::Idle | State::Accepted { .. } | State::Writing { .. } if on_target => Verdict::WrongSet,
        State::Idle | State::Accepted { .. } | State::Writing { .. } => Verdict::GoOn,
        // Complete and verified, and the bootloader chose it by itself (its environment was reset): it must prove
        // itself like any other.
        State::Written { .. } if on_target => Verdict::Trial,
        State::Written { .. } => Verdict::GoOn,
        State::Arming { .. } | State::Armed { .. } if on_target => Verdict::Trial,
        State::Arming { attempt, .. } => match tried {
            SetState::Untried if facts.primary == Some(update.target) => Verdict::WasArmed,
            SetState::Tried => {
                back(Cause::NoVerdict, format!("set {} was tried and did not stay up", update.target))
            }
            _ if *attempt < ARM_ATTEMPTS => Verdict::ArmAgain,
            _ => back(
                Cause::NotArmed,
                format!("the bootloader does not take set {} as its next", update.target),
            ),
        },
        State::Armed { boot_id, .. } if *boot_id == facts.boot_id => Verdict::RebootAgain,
        State::Armed { .. } => match tried {
            SetState::Tried => {
                back(Cause::NoVerdict, format!("set {} was tried and did not stay up", update.target))
            }
            // Armed it was bootable. Either the target gave up and could not save why, or arming was taken back and that
            // could not be saved: neither is claimed, and the image is not at fault.
            SetState::Bad => back(
                Cause::NotTried,
                format!("set {} is not bootable any more, and no record says why", update.target),
            ),
            _ => back(Cause::NotTried, format!("bootloader did not try set {}", update.target)),
        },
        State::Trial { .. } if on_target => Verdict::Trial,
        // A counter that is full again was not emptied by this trial: somebody reset the environment, and the image is
        // not to blame.
        State::Trial { .. } => match tried {
            SetState::Good | SetState::Untried => back(Cause::Device, "trial ended without a verdict"),
            _ => back(Cause::NoVerdict, "trial ended without a verdict"),
        },
        State::Confirming { .. } if on_target => Verdict::Confirm,
        State::Confirming { .. } => {
            // It had passed: this is no trial without a verdict.
            back(Cause::Device, "the device left the set while it was being confirmed")
        }
        // An attempt of this very boot has not failed yet: its reboot is still due.
        State::RollingBack { attempt, boot_id, .. }
            if on_target && (*attempt < ROLL_BACK_ATTEMPTS || *boot_id == facts.boot_id) =>
        {
            Verdict::RollBackAgain
        }
        State::RollingBack { .. } if on_target => Verdict::CannotGoBack,
        State::RollingBack { reason, .. } => Verdict::Back(reason.clone()),
    }
}

fn idle(record: &Record, facts: &Facts) -> Verdict {
    match (record.confirmed, facts.booted.set()) {
        (None, _) | (_, None) => Verdict::Adopt,
        (Some(confirmed), Some(booted)) if confirmed == booted => Verdict::GoOn,
        (Some(confirmed), Some(_)) => match facts.state(confirmed) {
            SetState::Good | SetState::Untried if record.restores < RESTORE_ATTEMPTS => Verdict::Restore,
            _ => Verdict::LateFallback,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{Booted, SetId};
    use crate::update::{Origin, Update};

    fn update() -> Update {
        Update::switch_to(SetId::B, Origin::Local)
    }

    fn in_state(state: State) -> Record {
        Record { state, confirmed: Some(SetId::A), ..Record::default() }
    }

    fn facts(booted: SetId, boot_id: &str, primary: SetId, b: SetState) -> Facts {
        Facts {
            booted: Booted::Set(booted),
            boot_id: boot_id.into(),
            primary: Some(primary),
            a: SetState::Good,
            b,
        }
    }

    fn on_a(primary: SetId, b: SetState) -> Facts {
        facts(SetId::A, "boot-2", primary, b)
    }

    fn on_b() -> Facts {
        facts(SetId::B, "boot-2", SetId::B, SetState::Tried)
    }

    fn arming(attempt: u32) -> Record {
        in_state(State::Arming { update: update(), attempt })
    }

    fn armed(boot_id: &str) -> Record {
        in_state(State::Armed { update: update(), boot_id: boot_id.into() })
    }

    fn rolling_back(attempt: u32) -> Record {
        let reason = Reason { cause: Cause::Health, text: "no".into() };
        in_state(State::RollingBack { update: update(), reason, attempt, boot_id: "boot-1".into() })
    }

    fn cause(v: Verdict) -> Cause {
        match v {
            Verdict::Back(reason) => reason.cause,
            other => panic!("not a way back: {other:?}"),
        }
    }

    #[test]
    fn arming_old_set_target_untried_and_primary_was_armed() {
        assert_eq!(verdict(Some(&arming(1)), &on_a(SetId::B, SetState::Untried)), Verdict::WasArmed);
    }

    #[test]
    fn arming_old_set_target_not_primary_arms_again_at_most_twice() {
        assert_eq!(verdict(Some(&arming(1)), &on_a(SetId::A, SetState::Bad)), Verdict::ArmAgain);
        assert_eq!(verdict(Some(&arming(1)), &on_a(SetId::A, SetState::Untried)), Verdict::ArmAgain);
        assert_eq!(cause(verdict(Some(&arming(2)), &on_a(SetId::A, SetState::Bad))), Cause::NotArmed);
    }

    #[test]
    fn arming_old_set_target_tried_was_a_trial() {
        assert_eq!(cause(verdict(Some(&arming(1)), &on_a(SetId::B, SetState::Tried))), Cause::NoVerdict);
    }

    #[test]
    fn arming_or_armed_target_booted_is_the_trial() {
        assert_eq!(verdict(Some(&arming(1)), &on_b()), Verdict::Trial);
        assert_eq!(verdict(Some(&armed("boot-1")), &on_b()), Verdict::Trial);
    }

    #[test]
    fn armed_old_set_same_boot_reboots_again() {
        assert_eq!(verdict(Some(&armed("boot-2")), &on_a(SetId::B, SetState::Untried)), Verdict::RebootAgain);
    }

    #[test]
    fn armed_old_set_new_boot_target_tried_is_rolled_back() {
        assert_eq!(
            cause(verdict(Some(&armed("boot-1")), &on_a(SetId::B, SetState::Tried))),
            Cause::NoVerdict
        );
    }

    #[test]
    fn armed_old_set_new_boot_target_untried_was_not_tried() {
        for state in [SetState::Untried, SetState::Good, SetState::Unknown] {
            let v = verdict(Some(&armed("boot-1")), &on_a(SetId::B, state));
            assert_eq!(v, back(Cause::NotTried, "bootloader did not try set B"));
        }
    }

    #[test]
    fn armed_old_set_new_boot_target_bad_claims_neither_a_trial_nor_none() {
        let v = verdict(Some(&armed("boot-1")), &on_a(SetId::A, SetState::Bad));
        assert_eq!(v, back(Cause::NotTried, "set B is not bootable any more, and no record says why"));
    }

    #[test]
    fn trial_old_set_ended_without_a_verdict() {
        let trial =
            State::Trial { update: update(), boot_id: "boot-1".into(), started: crate::record::Millis(0) };
        let v = verdict(Some(&in_state(trial.clone())), &on_a(SetId::A, SetState::Tried));
        assert_eq!(v, back(Cause::NoVerdict, "trial ended without a verdict"));
        assert_eq!(verdict(Some(&in_state(trial)), &on_b()), Verdict::Trial);
    }

    #[test]
    fn trial_old_set_after_a_reset_of_the_environment_does_not_blame_the_image() {
        let started = crate::record::Millis(0);
        let trial = in_state(State::Trial { update: update(), boot_id: "boot-1".into(), started });
        assert_eq!(cause(verdict(Some(&trial), &on_a(SetId::A, SetState::Good))), Cause::Device);
    }

    #[test]
    fn rolling_back_target_booted_in_the_same_boot_is_no_failed_attempt() {
        let here = Facts { boot_id: "boot-1".into(), ..on_b() };
        assert_eq!(verdict(Some(&rolling_back(2)), &here), Verdict::RollBackAgain);
    }

    #[test]
    fn confirming_target_booted_confirms_and_old_set_is_rolled_back() {
        let confirming = in_state(State::Confirming { update: update() });
        assert_eq!(verdict(Some(&confirming), &on_b()), Verdict::Confirm);
        assert_eq!(cause(verdict(Some(&confirming), &on_a(SetId::A, SetState::Tried))), Cause::Device);
    }

    #[test]
    fn rolling_back_target_booted_tries_twice_then_cannot_go_back() {
        assert_eq!(verdict(Some(&rolling_back(1)), &on_b()), Verdict::RollBackAgain);
        assert_eq!(verdict(Some(&rolling_back(2)), &on_b()), Verdict::CannotGoBack);
    }

    #[test]
    fn rolling_back_old_set_keeps_its_reason() {
        assert_eq!(cause(verdict(Some(&rolling_back(1)), &on_a(SetId::A, SetState::Bad))), Cause::Health);
    }

    #[test]
    fn booted_unknown_touches_nothing_in_any_state() {
        let unknown = Facts { booted: Booted::Unknown, ..on_b() };
        for record in [None, Some(&arming(1)), Some(&armed("boot-1")), Some(&Record::default())] {
            assert_eq!(verdict(record, &unknown), Verdict::Untouchable);
        }
    }

    #[test]
    fn no_record_adopts_the_booted_set() {
        assert_eq!(verdict(None, &on_b()), Verdict::Adopt);
        assert_eq!(verdict(Some(&Record::default()), &on_b()), Verdict::Adopt);
    }

    #[test]
    fn idle_on_another_set_restores_the_order_once_and_then_stays() {
        let mut record = Record { confirmed: Some(SetId::B), ..Record::default() };
        let reset = facts(SetId::A, "boot-2", SetId::A, SetState::Good);
        assert_eq!(verdict(Some(&record), &reset), Verdict::Restore);
        record.restores = 1;
        assert_eq!(verdict(Some(&record), &reset), Verdict::LateFallback);
        record.restores = 0;
        assert_eq!(verdict(Some(&record), &on_a(SetId::B, SetState::Tried)), Verdict::LateFallback);
    }

    #[test]
    fn idle_on_the_confirmed_set_goes_on() {
        let record = Record { confirmed: Some(SetId::A), ..Record::default() };
        assert_eq!(verdict(Some(&record), &on_a(SetId::A, SetState::Bad)), Verdict::GoOn);
    }

    #[test]
    fn before_arming_the_old_set_goes_on_and_another_set_gives_up() {
        let accepted = in_state(State::Accepted { update: update() });
        let writing = in_state(State::Writing { update: update(), checkpoint: None });
        let written = in_state(State::Written { update: update() });
        for record in [&accepted, &writing, &written] {
            assert_eq!(verdict(Some(record), &on_a(SetId::A, SetState::Bad)), Verdict::GoOn);
        }
        assert_eq!(verdict(Some(&accepted), &on_b()), Verdict::WrongSet);
        assert_eq!(verdict(Some(&writing), &on_b()), Verdict::WrongSet);
        assert_eq!(verdict(Some(&written), &on_b()), Verdict::Trial);
    }
}
