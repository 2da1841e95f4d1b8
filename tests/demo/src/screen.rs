//! What the demo shows: a timeline, and on a terminal a progress bar below it.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Cells of the bar.
const BAR: usize = 32;
/// On something that is no terminal, progress is a line each so many per cent.
const STEP: u64 = 25;

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The lab, in place of AWS.
    Cloud,
    /// The agent, or what happens to the machine it runs on.
    Device,
    /// The simulated bootloader.
    Loader,
    /// The demo itself.
    Demo,
}

impl Who {
    const fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Device => "device",
            Self::Loader => "loader",
            Self::Demo => "demo",
        }
    }

    /// Colour, for terminals.
    const fn colour(self) -> &'static str {
        match self {
            Self::Cloud => "\x1b[34m",
            Self::Device => "\x1b[32m",
            Self::Loader => "\x1b[35m",
            Self::Demo => "\x1b[90m",
        }
    }
}

/// The screen.
pub struct Screen {
    start: Instant,
    terminal: bool,
    bar: Mutex<Bar>,
}

#[derive(Default)]
struct Bar {
    shown: bool,
    last: Option<u64>,
}

impl Screen {
    /// Times count from now.
    pub fn new() -> Self {
        let terminal = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { start: Instant::now(), terminal, bar: Mutex::default() }
    }

    fn bar(&self) -> MutexGuard<'_, Bar> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// A line of the timeline.
    pub fn line(&self, who: Who, text: &str) {
        let mut bar = self.bar();
        self.wipe(&mut bar);
        let (on, off) = if self.terminal { (who.colour(), "\x1b[0m") } else { ("", "") };
        print(&format!("{:6.1} s  {on}{:<7}{off} {text}\n", self.seconds(), who.name()));
    }

    /// A heading or a line of the table.
    pub fn plain(&self, text: &str) {
        let mut bar = self.bar();
        self.wipe(&mut bar);
        let (on, off) =
            if self.terminal && text.starts_with('\n') { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        print(&format!("{on}{text}{off}\n"));
    }

    /// How far a download is.
    pub fn progress(&self, done: u64, total: u64) {
        let percent = (done.min(total) * 100).checked_div(total).unwrap_or(0);
        let mut bar = self.bar();
        let step = if self.terminal { 1 } else { STEP };
        let due = bar.last.is_none_or(|last| percent < last || percent / step > last / step);
        if !due {
            return;
        }
        bar.last = Some(percent);
        let text = format!("{percent:3} %  {} of {} MiB", mib(done), mib(total));
        if self.terminal {
            let full = usize::try_from(percent).unwrap_or(0) * BAR / 100;
            let cells = format!("{}{}", "#".repeat(full), ".".repeat(BAR - full));
            print(&format!(
                "\r{:6.1} s  {}device \x1b[0m [{cells}] {text}\x1b[K",
                self.seconds(),
                Who::Device.colour()
            ));
            bar.shown = true;
        } else {
            print(&format!("{:6.1} s  device  fetched {text}\n", self.seconds()));
        }
    }

    /// The next download starts anew.
    pub fn forget_progress(&self) {
        let mut bar = self.bar();
        self.wipe(&mut bar);
        bar.last = None;
    }

    fn wipe(&self, bar: &mut Bar) {
        if bar.shown {
            print("\r\x1b[K");
            bar.shown = false;
        }
    }
}

/// MiB with one decimal.
pub fn mib(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// Whoever reads may have gone; that ends nothing.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
