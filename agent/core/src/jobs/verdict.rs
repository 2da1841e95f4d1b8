//! What the end of a step means for its job, in words that are true.

use std::fmt;
use std::time::Duration;

use super::document::Step;

/// How the process of a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// The step's own time was over, and it was ended.
    TimedOut(Duration),
    /// The time of the whole job was over, and it was ended.
    JobTimedOut(Duration),
    /// It was ended because nobody wants it any more.
    Stopped,
    /// It did not run: one line that says why.
    NotStarted(String),
}

/// What it says in the status of the job.
impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "Job exited with status: {status}"),
            Self::Signaled(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "Job killed by signal: {signal} ({name})"),
                None => write!(f, "Job killed by signal: {signal}"),
            },
            Self::TimedOut(limit) => write!(f, "Job timed out: the step ran for {} s", limit.as_secs()),
            Self::JobTimedOut(limit) => write!(f, "Job timed out: all steps ran for {} s", limit.as_secs()),
            Self::Stopped => write!(f, "Job stopped"),
            Self::NotStarted(why) => write!(f, "Job not started: {why}"),
        }
    }
}

/// What becomes of the job after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The next one runs.
    Passed,
    /// It failed and the next one runs all the same; why it failed.
    Ignored(String),
    /// The job has failed; the reason that is told.
    Failed(String),
}

/// Judges a step. Lines on standard error count where the document says how many there may be.
#[must_use]
pub fn verdict(step: &Step, ended: &Ended, stderr_lines: u64) -> Verdict {
    let why = match (ended, step.allow_stderr) {
        (Ended::Exited(0), Some(most)) if stderr_lines > most => {
            format!("{ended}, with {stderr_lines} lines on standard error where {most} are allowed")
        }
        (Ended::Exited(0), _) => return Verdict::Passed,
        _ => ended.to_string(),
    };
    let why = format!("{why}, in step {}", step.name);
    // These two end the job, whatever the step says of itself.
    let ends_the_job = matches!(ended, Ended::Stopped | Ended::JobTimedOut(_));
    if step.ignore_failure && !ends_the_job { Verdict::Ignored(why) } else { Verdict::Failed(why) }
}

/// How the reason of a job reads that came to its end.
#[must_use]
pub fn succeeded() -> String {
    Ended::Exited(0).to_string()
}

/// Where a job stands: `step 2/5: name`. `index` counts from 0.
#[must_use]
pub fn progress(index: usize, steps: usize, name: &str) -> String {
    format!("step {}/{steps}: {name}", index.saturating_add(1))
}

/// As the C library calls it on the machines that Linux runs on, those with other numbers excepted.
fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [&str; 31] = [
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    NAMES.get(usize::try_from(signal.checked_sub(1)?).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::document::Action;

    fn step(allow_stderr: Option<u64>, ignore_failure: bool) -> Step {
        Step {
            name: "Fetch".into(),
            action: Action::Command { words: vec!["x".into()] },
            run_as_user: String::new(),
            ignore_failure,
            allow_stderr,
            time_limit: None,
        }
    }

    #[test]
    fn status_signal_time_and_a_start_that_failed_are_told_apart() {
        for (ended, reason) in [
            (Ended::Exited(1), "Job exited with status: 1, in step Fetch"),
            (Ended::Exited(127), "Job exited with status: 127, in step Fetch"),
            (Ended::Exited(255), "Job exited with status: 255, in step Fetch"),
            (Ended::Signaled(9), "Job killed by signal: 9 (SIGKILL), in step Fetch"),
            (Ended::Signaled(11), "Job killed by signal: 11 (SIGSEGV), in step Fetch"),
            (Ended::Signaled(13), "Job killed by signal: 13 (SIGPIPE), in step Fetch"),
            (Ended::Signaled(40), "Job killed by signal: 40, in step Fetch"),
            (Ended::TimedOut(Duration::from_secs(30)), "Job timed out: the step ran for 30 s, in step Fetch"),
            (Ended::NotStarted("no user \"x\"".into()), "Job not started: no user \"x\", in step Fetch"),
        ] {
            assert_eq!(verdict(&step(None, false), &ended, 7), Verdict::Failed(reason.into()));
            assert_eq!(verdict(&step(None, true), &ended, 7), Verdict::Ignored(reason.into()));
        }
        assert_eq!(signal_name(31), Some("SIGSYS"));
        assert_eq!((signal_name(0), signal_name(32)), (None, None));
    }

    #[test]
    fn lines_on_standard_error_count_where_the_document_says_how_many() {
        let lines = |allowed, lines| verdict(&step(allowed, false), &Ended::Exited(0), lines);
        assert_eq!(lines(None, 1000), Verdict::Passed);
        assert_eq!(lines(Some(2), 2), Verdict::Passed);
        assert!(
            matches!(lines(Some(2), 3), Verdict::Failed(why) if why.contains("3 lines on standard error where 2"))
        );
        assert!(matches!(lines(Some(0), 1), Verdict::Failed(_)));
    }

    #[test]
    fn lines_that_are_allowed_make_no_failure_a_success() {
        assert!(matches!(verdict(&step(Some(5), false), &Ended::Exited(1), 0), Verdict::Failed(_)));
    }

    #[test]
    fn no_step_can_ignore_the_end_of_its_job() {
        assert!(matches!(verdict(&step(None, true), &Ended::Stopped, 0), Verdict::Failed(_)));
        let over = Ended::JobTimedOut(Duration::from_secs(1));
        assert!(matches!(verdict(&step(None, true), &over, 0), Verdict::Failed(_)));
    }

    #[test]
    fn progress_counts_from_one() {
        assert_eq!(progress(1, 5, "Fetch"), "step 2/5: Fetch");
    }
}
