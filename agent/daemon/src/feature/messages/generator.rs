//! The program that makes a letterhead for each message: it is told of the message in its environment, and prints a JSON
//! object.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use otandem_core::messages::{Brief, Letterhead, MAX_PAYLOAD};
use otandem_device::run::{self, Spec, Stop};

/// What one letterhead may take.
const LIMIT: Duration = Duration::from_secs(5);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(1);
/// Nanoseconds of a millisecond, and of a second.
const UNITS: (i64, i64) = (1_000_000, 1_000_000_000);

/// Runs `program`, without a shell and without arguments. `file`: the message file, `modified`: its time of modification
/// in nanoseconds since 1970.
pub(super) fn letterhead(
    program: &Path,
    file: &Path,
    modified: i64,
    brief: Brief,
    stop: &Stop,
) -> Result<Letterhead, String> {
    let told = |why: &dyn std::fmt::Display| format!("letterhead-generator {}: {why}", program.display());
    let (millis, rest) = (modified.div_euclid(UNITS.0), modified.rem_euclid(UNITS.0));
    let variables: [(&str, OsString); 7] = [
        ("MESSAGE_TOPIC", brief.topic.into()),
        ("MESSAGE_FILENAME", file.into()),
        ("MESSAGE_TIMESTAMP", format!("{millis}.{rest:06}").into()),
        ("MESSAGE_TIMESTAMP_S", modified.div_euclid(UNITS.1).to_string().into()),
        ("MESSAGE_PRIORITY", brief.priority.into()),
        ("MESSAGE_PRIORITY_SLOT", brief.priority_slot.into()),
        ("MESSAGE_WAS_PRIORITISED", if brief.prioritised { "1" } else { "" }.into()),
    ];
    let variables = variables.map(|(name, value)| (name.into(), value));
    let mut spec = Spec::new([program]).in_own_environment(variables);
    spec.time_limit = Some(LIMIT);
    spec.grace = GRACE;
    // What is longer is no JSON any more.
    spec.output_tail = MAX_PAYLOAD;
    let outcome = run::run(spec, stop).map_err(|e| told(&e))?;
    let printed = outcome.printed(LIMIT).map_err(|why| told(&why))?;
    Letterhead::read(printed.as_bytes()).map_err(|e| told(&e))
}
