//! The program that makes a letterhead for each message: it is told of the message in its environment, and prints a JSON
//! object.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use otandem_core::messages::{Brief, Letterhead, MAX_PAYLOAD};
use otandem_device::run::{self, End, Spec, Stop};

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
    let mut spec = Spec::new([program]);
    let own = std::env::vars_os().filter(|(name, _)| !variables.iter().any(|(ours, _)| name == ours));
    let mut env: Vec<_> = own.collect();
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.append(&mut spec.env);
    }
    env.extend(variables.map(|(name, value)| (name.into(), value)));
    spec.env = env;
    spec.time_limit = Some(LIMIT);
    spec.grace = GRACE;
    // What is longer is no JSON any more.
    spec.output_tail = MAX_PAYLOAD;
    let outcome = run::run(spec, stop).map_err(|e| told(&e))?;
    let last = outcome.stderr_tail.lines().last().unwrap_or_default();
    match outcome.end {
        End::Exited(0) => Letterhead::read(outcome.stdout_tail.as_bytes()).map_err(|e| told(&e)),
        End::Exited(code) => Err(told(&format!("exit code {code}: {last}"))),
        End::Signaled(signal) => Err(told(&format!("ended by signal {signal}: {last}"))),
        End::TimedOut => Err(told(&format!("not done within {} s, and ended", LIMIT.as_secs()))),
        End::Stopped => Err(told(&"ended with the agent")),
    }
}
