//! A bootloader behind a program with RAUC's verbs, as its `bootloader-custom-backend`: a program that works there works
//! here unchanged.
//!
//! | call | prints |
//! |---|---|
//! | `get-primary` | boot name of the set that the next reset tries first; nothing if there is none |
//! | `set-primary NAME` | |
//! | `get-state NAME` | `good` or `bad`; our extension: also `untried` or `tried` |
//! | `set-state NAME good` or `bad` | |
//! | `get-current` | boot name of the running set; optional, a failure means that the program cannot tell |
//!
//! RAUC's two states are less than the update machine wants to know. What they mean here:
//!
//! | the program says | it means | since |
//! |---|---|---|
//! | bad | Bad | |
//! | good, running | Good | whether its counter is full cannot be seen |
//! | good, not running, primary, the running set is good | Untried | this is how an armed set looks |
//! | good, not running, primary, the running set is bad or tried | Good | the fallback of a last try or of a roll-back |
//! | good, not running, not primary | Good | |
//! | untried, tried | the same | |
//!
//! `Tried` is never guessed: a program without the extension shows a set whose tries are used up as `bad`, and that may
//! have other reasons. Such a program cannot be asked for a number of tries either; it gives what it gives.

use std::path::PathBuf;
use std::time::Duration;

use otandem_core::boot::{Booted, Facts, SetId, SetState};
use otandem_device::run::{End, Outcome, Spec, Stop, run};

use crate::booted::{Claim, Says, Seen, Verdict, combine};
use crate::{BootControl, BootError, Config, View};

/// Bytes of an answer that are looked at; a boot name is far shorter.
const MAX_ANSWER: usize = 4096;
/// Characters of an answer that a message repeats.
const QUOTED: usize = 80;

/// A bootloader behind a program.
#[derive(Debug)]
pub struct Custom {
    program: PathBuf,
    config: Config,
    seen: Seen,
    time_limit: Duration,
}

/// What `get-state` says of one set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Good,
    Bad,
    Untried,
    Tried,
}

impl Said {
    const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Untried => "untried",
            Self::Tried => "tried",
        }
    }
}

/// The table of the module's documentation, for `set`.
fn meaning(set: SetId, booted: Booted, primary: Option<SetId>, said: impl Fn(SetId) -> Said) -> SetState {
    match (said(set), booted.set()) {
        (Said::Bad, _) => SetState::Bad,
        (Said::Untried, _) => SetState::Untried,
        (Said::Tried, _) => SetState::Tried,
        (Said::Good, Some(running))
            if running != set && primary == Some(set) && said(running) == Said::Good =>
        {
            SetState::Untried
        }
        (Said::Good, _) => SetState::Good,
    }
}

impl Custom {
    /// A back end that calls `program` (an absolute path), which may take 30 s for each answer.
    ///
    /// # Errors
    /// The path is not absolute.
    pub fn new(program: PathBuf, config: Config, seen: Seen) -> Result<Self, BootError> {
        if !program.is_absolute() {
            let why = format!("program = {program:?} must be an absolute path");
            return Err(BootError::Config(why));
        }
        Ok(Self { program, config, seen, time_limit: Duration::from_secs(30) })
    }

    /// How long the program may take for one answer.
    pub fn set_time_limit(&mut self, limit: Duration) {
        self.time_limit = limit;
    }

    fn outcome(&self, args: &[&str]) -> Result<Outcome, BootError> {
        let verb = args.join(" ");
        let argv = std::iter::once(self.program.as_os_str()).chain(args.iter().map(AsRef::as_ref));
        let mut spec = Spec { time_limit: Some(self.time_limit), output_tail: MAX_ANSWER, ..Spec::new(argv) };
        spec.env.push(("LC_ALL".into(), "C".into()));
        // Never stopped from outside: half a write is worse than a late one, and the time limit ends it.
        let never = Stop::new().map_err(|source| BootError::Io {
            action: "make a pipe for",
            path: self.program.clone(),
            source,
        })?;
        run(spec, &never).map_err(|source| BootError::Program { verb, source })
    }

    /// What the program prints, trimmed.
    fn ask(&self, args: &[&str]) -> Result<String, BootError> {
        let outcome = self.outcome(args)?;
        if outcome.success() {
            return Ok(outcome.stdout_tail.trim().to_owned());
        }
        Err(BootError::Refused {
            program: self.program.clone(),
            verb: args.join(" "),
            end: outcome.end,
            output: quoted(if outcome.stderr_lines > 0 {
                &outcome.stderr_tail
            } else {
                &outcome.stdout_tail
            }),
        })
    }

    fn nonsense(&self, args: &[&str], answer: &str, expected: String) -> BootError {
        BootError::Answer {
            program: self.program.clone(),
            verb: args.join(" "),
            answer: quoted(answer),
            expected,
        }
    }

    fn names(&self) -> String {
        format!("{} or {}", self.config.names.name(SetId::A), self.config.names.name(SetId::B))
    }

    fn primary(&self) -> Result<Option<SetId>, BootError> {
        let answer = self.ask(&["get-primary"])?;
        match self.config.names.set(&answer) {
            None if !answer.is_empty() => Err(self.nonsense(&["get-primary"], &answer, self.names())),
            set => Ok(set),
        }
    }

    fn said(&self, set: SetId) -> Result<Said, BootError> {
        let args = ["get-state", self.config.names.name(set)];
        let answer = self.ask(&args)?;
        let all = [Said::Good, Said::Bad, Said::Untried, Said::Tried];
        let said = all.into_iter().find(|said| said.name() == answer);
        said.ok_or_else(|| self.nonsense(&args, &answer, "good or bad".into()))
    }

    /// The program's own view of the running set, if it has one.
    fn current(&self) -> Result<Option<Claim>, BootError> {
        let outcome = self.outcome(&["get-current"])?;
        let answer = outcome.stdout_tail.trim();
        let says = match (outcome.end, self.config.names.set(answer)) {
            (End::Exited(0), Some(set)) => Says::Set(set),
            (End::Exited(0), None) => Says::Unclear(format!("says {:?}, which names no set", quoted(answer))),
            // A program that does not know the verb; one that hangs or dies knows nothing certain.
            (End::Exited(_), _) => return Ok(None),
            (end, _) => Says::Unclear(format!("did not end ({end:?})")),
        };
        Ok(Some(Claim { source: "the boot program".into(), says }))
    }

    fn booted(&self) -> Result<Verdict, BootError> {
        let mut claims = self.seen.claims(&self.config.names);
        claims.extend(self.current()?);
        Ok(combine(&claims))
    }

    /// Writes a state, and reads it back: `good` may come back as any state in which the set is bootable.
    fn set_state(&self, set: SetId, said: Said) -> Result<(), BootError> {
        self.ask(&["set-state", self.config.names.name(set), said.name()])?;
        self.expect_state(set, |found| (found == Said::Bad) == (said == Said::Bad), said.name())
    }

    fn expect_state(&self, set: SetId, fits: impl Fn(Said) -> bool, wanted: &str) -> Result<(), BootError> {
        let found = self.said(set)?;
        if fits(found) {
            return Ok(());
        }
        let what = format!("state of {}", self.config.names.name(set));
        Err(BootError::ReadBack { what, wanted: wanted.into(), found: found.name().into() })
    }

    /// Writes the primary set and reads it back.
    fn set_primary(&self, set: SetId) -> Result<(), BootError> {
        self.ask(&["set-primary", self.config.names.name(set)])?;
        self.expect_primary(set)
    }

    fn expect_primary(&self, set: SetId) -> Result<(), BootError> {
        let found = self.primary()?;
        if found == Some(set) {
            return Ok(());
        }
        let name = |set: SetId| self.config.names.name(set).to_owned();
        let found = found.map_or_else(|| "none".into(), name);
        Err(BootError::ReadBack { what: "primary set".into(), wanted: name(set), found })
    }

    /// `fallback` first, `set` bad. In this order a power cut in between leaves both bootable.
    fn exclude(&self, set: SetId) -> Result<(), BootError> {
        let fallback = set.other();
        if self.primary()? != Some(fallback) {
            self.set_primary(fallback)?;
        }
        // Some programs count whatever they make primary as a new trial; a fallback is none.
        if self.said(fallback)? != Said::Good {
            self.set_state(fallback, Said::Good)?;
        }
        self.set_state(set, Said::Bad)?;
        self.expect_primary(fallback)?;
        self.expect_state(fallback, |found| found != Said::Bad, "good")
    }
}

/// Enough of a foreign text for a message.
fn quoted(text: &str) -> String {
    text.trim().chars().take(QUOTED).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl BootControl for Custom {
    fn facts(&mut self) -> Result<Facts, BootError> {
        let booted = self.booted()?.booted;
        let primary = self.primary()?;
        let (a, b) = (self.said(SetId::A)?, self.said(SetId::B)?);
        let said = |set| if set == SetId::A { a } else { b };
        Ok(Facts {
            booted,
            boot_id: self.seen.boot_id.clone(),
            primary,
            a: meaning(SetId::A, booted, primary, said),
            b: meaning(SetId::B, booted, primary, said),
        })
    }

    fn view(&mut self) -> Result<View, BootError> {
        let name = |set: SetId| self.config.names.name(set).to_owned();
        let mut values = vec![("primary".to_owned(), self.primary()?.map(name).unwrap_or_default())];
        for set in SetId::BOTH {
            values.push((format!("state {}", name(set)), self.said(set)?.name().to_owned()));
        }
        Ok(View { loader: format!("custom, {}", self.program.display()), values })
    }

    fn arm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted()?.must_not_run("arm", set)?;
        // The fallback first; the set that is to be tried becomes the first choice only at the very end.
        self.set_state(set.other(), Said::Good)?;
        self.set_state(set, Said::Good)?;
        self.set_primary(set)?;
        self.expect_state(set.other(), |found| found == Said::Good, "good")?;
        self.expect_state(set, |found| matches!(found, Said::Good | Said::Untried), "good or untried")
    }

    fn keep(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted()?.must_run("keep", set)?;
        // Always, since `good` does not tell whether the counter is full: the program compares, if it can.
        self.set_state(set, Said::Good)?;
        self.expect_state(set, |found| found == Said::Good, "good")
    }

    fn disarm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted()?.must_not_run("disarm", set)?;
        self.exclude(set)
    }

    fn confirm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted()?.must_run("confirm", set)?;
        self.set_state(set, Said::Good)?;
        if self.primary()? != Some(set) {
            self.set_primary(set)?;
        }
        // As above: permanent is what is meant here.
        if self.said(set)? != Said::Good {
            self.set_state(set, Said::Good)?;
        }
        self.expect_primary(set)?;
        self.expect_state(set, |found| found == Said::Good, "good")
    }

    fn mark_bad(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted()?.running("mark bad")?;
        if self.said(set.other())? == Said::Bad {
            return Err(BootError::NoFallback { set });
        }
        self.exclude(set)
    }
}

#[cfg(test)]
#[path = "custom_tests.rs"]
mod tests;
