//! How far an installation is, for people: a bar where standard error is a terminal, else a line now and then.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::control::Progress;

/// A terminal is drawn at most this often.
const FRAME: Duration = Duration::from_millis(100);
/// A log gets a line at most this often, and at each phase.
const LINE: Duration = Duration::from_secs(10);
const BAR: usize = 30;

/// Shows progress on a writer.
pub struct Display<W: Write> {
    out: W,
    terminal: bool,
    began: Instant,
    shown: Option<(Instant, String)>,
    drawn: usize,
}

impl Display<io::Stderr> {
    /// On standard error.
    #[must_use]
    pub fn stderr() -> Self {
        let terminal = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        Self::new(io::stderr(), terminal, Instant::now())
    }
}

impl<W: Write> Display<W> {
    /// On `out`, which is a terminal or not.
    pub const fn new(out: W, terminal: bool, now: Instant) -> Self {
        Self { out, terminal, began: now, shown: None, drawn: 0 }
    }

    /// Shows `progress` if it is time to. What cannot be written is left out: it is not worth an update.
    pub fn show(&mut self, progress: &Progress, now: Instant) {
        let new_phase = self.shown.as_ref().is_none_or(|(_, phase)| *phase != progress.phase);
        if new_phase {
            self.end_line();
            self.began = now;
        }
        let pause = if self.terminal { FRAME } else { LINE };
        let finished = progress.total == Some(progress.done);
        let due = self.shown.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= pause);
        if !(new_phase || finished || due) {
            return;
        }
        let text = line(progress, now.saturating_duration_since(self.began), self.terminal);
        if self.terminal {
            // Blanks over what the last, longer line left.
            let width = text.chars().count();
            let _ = write!(self.out, "\r{text}{:1$}", "", self.drawn.saturating_sub(width));
            self.drawn = width;
        } else {
            let _ = writeln!(self.out, "{text}");
        }
        let _ = self.out.flush();
        self.shown = Some((now, progress.phase.clone()));
    }

    /// Leaves the cursor on a new line, for what is printed next.
    pub fn end_line(&mut self) {
        if self.drawn > 0 {
            let _ = writeln!(self.out);
            self.drawn = 0;
        }
    }
}

fn line(p: &Progress, elapsed: Duration, bar: bool) -> String {
    let phase: String = p.phase.chars().filter(|c| !c.is_control()).take(20).collect();
    let mut text = format!("{phase:<10}");
    match p.total.filter(|t| *t > 0) {
        Some(total) => {
            let done = p.done.min(total);
            let percent = u128::from(done) * 100 / u128::from(total);
            if bar {
                let filled =
                    usize::try_from(u128::from(done) * BAR as u128 / u128::from(total)).unwrap_or(BAR);
                let _ = write!(text, " [{}{}]", "#".repeat(filled), ".".repeat(BAR - filled));
            }
            let _ = write!(text, " {percent:>3} %  {} of {}", Size(done), Size(total));
        }
        None if p.done > 0 => {
            let _ = write!(text, " {}", Size(p.done));
        }
        None => {}
    }
    let millis = elapsed.as_millis();
    if millis >= 500 && p.done > 0 {
        let rate = u64::try_from(u128::from(p.done) * 1000 / millis).unwrap_or(u64::MAX);
        let _ = write!(text, "  {}/s", Size(rate));
        if let Some(left) = p.total.and_then(|t| t.checked_sub(p.done)).filter(|l| *l > 0)
            && let Some(seconds) = left.checked_div(rate)
        {
            let _ = write!(text, "  {}:{:02} left", seconds / 60, seconds % 60);
        }
    }
    text.trim_end().to_owned()
}

struct Size(u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut unit = "B";
        let mut tenths = u128::from(self.0) * 10;
        for next in ["KiB", "MiB", "GiB", "TiB"] {
            if tenths < 10_240 {
                break;
            }
            tenths /= 1024;
            unit = next;
        }
        match unit {
            "B" => write!(f, "{} B", self.0),
            _ => write!(f, "{}.{} {unit}", tenths / 10, tenths % 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(phase: &str, done: u64, total: Option<u64>) -> Progress {
        Progress { phase: phase.into(), done, total }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_bar_tells_percent_rate_and_time_left() {
        let text = line(&at("write", 25 * MIB, Some(100 * MIB)), Duration::from_secs(5), true);
        assert_eq!(
            text,
            "write      [#######.......................]  25 %  25.0 MiB of 100.0 MiB  5.0 MiB/s  0:15 left"
        );
        assert_eq!(line(&at("verify", 0, None), Duration::ZERO, true), "verify");
        assert_eq!(line(&at("write", 1536, None), Duration::ZERO, false), "write      1.5 KiB");
    }

    #[test]
    fn a_terminal_is_redrawn_in_place_and_a_log_gets_lines_seldom() {
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        let run = |terminal| {
            let mut out = Vec::new();
            let mut display = Display::new(&mut out, terminal, begin);
            for (ms, done) in [(0, 0), (50, 1), (200, 2), (9000, 5), (10_100, 6), (10_150, 10)] {
                display.show(&at("write", done, Some(10)), after(ms));
            }
            display.show(&at("verify", 0, Some(10)), after(10_200));
            display.end_line();
            String::from_utf8(out).unwrap()
        };
        let terminal = run(true);
        assert_eq!(terminal.matches('\n').count(), 2, "one line per phase: {terminal:?}");
        assert_eq!(terminal.matches('\r').count(), 6, "{terminal:?}");
        let log = run(false);
        assert!(!log.contains('\r') && !log.contains('['));
        assert_eq!(log.lines().count(), 4, "begin, after 10 s, end, new phase: {log}");
    }

    #[test]
    fn a_longer_line_leaves_nothing_behind() {
        let begin = Instant::now();
        let mut out = Vec::new();
        let mut display = Display::new(&mut out, true, begin);
        display.show(&at("write", 1023, None), begin);
        display.show(&at("write", 1, None), begin + FRAME);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.split('\r').skip(1).collect();
        assert_eq!(lines[0].len(), lines[1].len(), "{lines:?}");
    }

    proptest! {
        #[test]
        fn no_number_panics(done: u64, total: Option<u64>, ms: u32, phase in "\\PC{0,30}") {
            let text = line(&at(&phase, done, total), Duration::from_millis(ms.into()), true);
            prop_assert!(!text.contains('\n'));
        }
    }
}
