//! Whether the bootloader and the record tell the same story. Nothing is decided here: what differs is told to people,
//! and the verdict at the next start settles it.

use crate::boot::{Facts, SetId, SetState};
use crate::record::{Record, State};

/// One line for each point in which the bootloader, asked now, differs from what the record expects of it. `kept`: the
/// running set's counter was refreshed in this boot; before that it may well be counted down.
#[must_use]
pub fn differences(record: &Record, facts: &Facts, kept: bool) -> Vec<String> {
    let Some(booted) = facts.booted.set() else { return vec![] };
    let mut found = match &record.state {
        State::Idle | State::Accepted { .. } | State::Writing { .. } | State::Written { .. } => {
            not_armed(record, facts, booted, kept)
        }
        State::Armed { update, .. } if booted == update.from => armed(facts, update.target),
        _ => vec![],
    };
    found.extend(fallback(record, facts, booted));
    found
}

/// The confirmed set boots, first and for ever.
fn not_armed(record: &Record, facts: &Facts, booted: SetId, kept: bool) -> Vec<String> {
    let Some(confirmed) = record.confirmed else { return vec![] };
    let mut found = vec![];
    match facts.primary {
        Some(primary) if primary == confirmed => {}
        Some(primary) => found.push(format!(
            "set {confirmed} is confirmed, but the bootloader tries set {primary} first; `otandem mark active \
             {confirmed}` puts it first again"
        )),
        None => found.push(format!("set {confirmed} is confirmed, but the bootloader has no set to boot")),
    }
    let state = facts.state(confirmed);
    if kept && booted == confirmed && state != SetState::Good {
        found.push(format!("set {confirmed} runs and is confirmed, but {}", held(state)));
    }
    found
}

/// The next reset tries the target.
fn armed(facts: &Facts, target: SetId) -> Vec<String> {
    let state = facts.state(target);
    let mut found = vec![];
    if facts.primary != Some(target) {
        let first = facts.primary.map_or("no set", SetId::name);
        found.push(format!(
            "set {target} is armed, but the bootloader tries {first} first: the next reset does not try it"
        ));
    } else if state != SetState::Untried {
        found.push(format!("set {target} is armed, but {}", held(state)));
    }
    found
}

/// Where something is to fall back to, it boots: the old set while the new one is not confirmed; else the other set, if
/// something was installed there.
fn fallback(record: &Record, facts: &Facts, booted: SetId) -> Option<String> {
    let unbootable = |set: SetId| facts.state(set) == SetState::Bad;
    match &record.state {
        State::Armed { update, .. } | State::Trial { update, .. } => {
            let from = update.from;
            unbootable(from)
                .then(|| format!("the bootloader does not boot set {from}: the trial has no way back"))
        }
        State::Idle => {
            let other = booted.other();
            let holds = !record.slots(other).is_empty();
            (holds && unbootable(other)).then(|| {
                format!(
                    "the bootloader does not boot set {other}: there is no fallback until the next update"
                )
            })
        }
        _ => None,
    }
}

fn held(state: SetState) -> &'static str {
    match state {
        SetState::Good => "the bootloader holds it as good for ever",
        SetState::Bad => "the bootloader holds it as bad and does not boot it again",
        SetState::Untried => "the bootloader holds it as a set to be tried",
        SetState::Tried => "the bootloader has counted it down",
        SetState::Unknown => "the bootloader does not say whether it boots it again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Booted;
    use crate::record::{Millis, SlotStatus};
    use crate::update::{Origin, Update};

    fn update() -> Update {
        Update::switch_to(SetId::B, Origin::Local)
    }

    fn idle() -> Record {
        Record { confirmed: Some(SetId::A), ..Record::default() }
    }

    fn in_state(state: State) -> Record {
        Record { state, ..idle() }
    }

    fn with_b(mut record: Record) -> Record {
        let status = SlotStatus {
            sha256: "ab".repeat(32).parse().expect("a digest"),
            size: 1,
            file_sha256: None,
            md5: None,
            version: None,
            installed_at: 0,
            installs: 1,
        };
        record.slots_mut(SetId::B).insert("rootfs".into(), status);
        record
    }

    fn facts(booted: SetId, primary: Option<SetId>, a: SetState, b: SetState) -> Facts {
        Facts { booted: Booted::Set(booted), boot_id: "x".into(), primary, a, b }
    }

    #[test]
    fn what_differs_is_told_and_nothing_else() {
        use SetState::{Bad, Good, Tried, Unknown, Untried};
        let (a, b) = (SetId::A, SetId::B);
        let armed = || in_state(State::Armed { update: update(), boot_id: "x".into() });
        let trial = || in_state(State::Trial { update: update(), boot_id: "x".into(), started: Millis(0) });
        let writing = || in_state(State::Writing { update: update(), checkpoint: None });
        let none: &[&str] = &[];
        for (record, facts, kept, told) in [
            (idle(), facts(a, Some(a), Good, Bad), true, none),
            (idle(), facts(a, Some(a), Good, Good), true, none),
            (Record::default(), facts(a, Some(b), Tried, Good), true, none),
            (idle(), facts(a, Some(b), Good, Good), true, &["tries set B first"]),
            (idle(), facts(a, None, Bad, Bad), true, &["no set to boot", "bad and does not boot"]),
            (idle(), facts(a, Some(a), Tried, Good), true, &["counted it down"]),
            (idle(), facts(a, Some(a), Tried, Good), false, none),
            (idle(), facts(a, Some(a), Unknown, Good), true, &["does not say"]),
            (idle(), facts(b, Some(a), Good, Good), true, none),
            (with_b(idle()), facts(a, Some(a), Good, Bad), true, &["no fallback until the next update"]),
            (with_b(idle()), facts(a, Some(a), Good, Good), true, none),
            (with_b(writing()), facts(a, Some(a), Good, Bad), true, none),
            (writing(), facts(a, Some(b), Good, Good), true, &["tries set B first"]),
            (armed(), facts(a, Some(b), Good, Untried), true, none),
            (armed(), facts(a, Some(a), Good, Untried), true, &["does not try it"]),
            (armed(), facts(a, None, Good, Bad), true, &["tries no set first"]),
            (armed(), facts(a, Some(b), Good, Good), true, &["good for ever"]),
            (armed(), facts(a, Some(b), Bad, Untried), true, &["the trial has no way back"]),
            (armed(), facts(b, Some(a), Good, Tried), false, none),
            (trial(), facts(b, Some(a), Good, Tried), false, none),
            (trial(), facts(b, Some(b), Bad, Tried), false, &["the trial has no way back"]),
        ] {
            let found = differences(&record, &facts, kept);
            let fits = found.len() == told.len() && found.iter().zip(told).all(|(f, t)| f.contains(t));
            assert!(fits, "{} {facts:?}: {found:?}, not {told:?}", record.state.name());
        }
    }

    #[test]
    fn an_unknown_running_set_is_compared_with_nothing() {
        let facts = Facts { booted: Booted::Unknown, ..facts(SetId::A, None, SetState::Bad, SetState::Bad) };
        assert!(differences(&idle(), &facts, true).is_empty());
    }
}
