//! How long to wait on a machine that is busy, and how many devices it runs at once.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::VmError;

/// The most that a limit is stretched: a wait that takes longer is for something that will not come.
const MOST: f64 = 6.0;
/// How often a wait looks at the clock and the load.
pub(crate) const TICK: Duration = Duration::from_millis(500);
/// How long to wait for a seat, before the load is considered: the others are tests that take minutes.
const SEAT_LIMIT: Duration = Duration::from_secs(1800);
/// How many devices run at once; unset: as many as there are cores.
const SEATS: &str = "OTANDEM_VM_SEATS";
/// A factor on all limits, for a machine that is slow in a way that does not show in its load; 1 to 20.
const PATIENCE: &str = "OTANDEM_VM_PATIENCE";

/// A wait that may take so long, stretched by how busy the machine is while it lasts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    started: Instant,
    limit: Duration,
    stretch: f64,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self { started: Instant::now(), limit, stretch: stretch() }
    }

    /// What is left at the load of now; `None`: nothing.
    pub(crate) fn left(&mut self) -> Option<Duration> {
        // Load that came and went had its effect: the limit never shrinks.
        self.stretch = self.stretch.max(stretch());
        self.limit.mul_f64(self.stretch).checked_sub(self.started.elapsed()).filter(|left| !left.is_zero())
    }

    /// The limit as it is by now.
    pub(crate) fn limit(&self) -> Duration {
        self.limit.mul_f64(self.stretch)
    }
}

/// How much longer things take than on an idle machine: 1 to 6, times the patience asked for.
pub fn stretch() -> f64 {
    static PROBED: OnceLock<f64> = OnceLock::new();
    static PATIENT: OnceLock<f64> = OnceLock::new();
    let patience = PATIENT.get_or_init(|| {
        env::var(PATIENCE).ok().and_then(|text| text.parse().ok()).unwrap_or(1.0_f64).clamp(1.0, 20.0)
    });
    let by_load = fs::read_to_string("/proc/loadavg").ok().and_then(|text| load_per_core(&text, cores()));
    by_load.unwrap_or(1.0).max(*PROBED.get_or_init(wall_per_cpu)).clamp(1.0, MOST) * patience
}

fn cores() -> usize {
    thread::available_parallelism().map_or(2, Into::into)
}

/// The load of the last minute for each core.
fn load_per_core(loadavg: &str, cores: usize) -> Option<f64> {
    let load: f64 = loadavg.split_whitespace().next()?.parse().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "a machine has fewer than 2^52 cores")]
    let cores = cores.max(1) as f64;
    Some(load / cores).filter(|load| load.is_finite())
}

/// The time that passes while this thread gets 20 ms of the processor: sees a quota, which the load does not.
fn wall_per_cpu() -> f64 {
    const WORK: Duration = Duration::from_millis(20);
    let used = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let (wall, Ok(start)) = (Instant::now(), used()) else { return 1.0 };
    while used().is_ok_and(|now| now - start < WORK) && wall.elapsed() < WORK * 10 {}
    wall.elapsed().as_secs_f64() / WORK.as_secs_f64()
}

/// Where devices have their files: `vm` in the target folder of the build, or the folder for temporary files.
pub fn workplace() -> PathBuf {
    let program = env::current_exe().unwrap_or_default();
    let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    target.map_or_else(env::temp_dir, Path::to_path_buf).join("vm")
}

/// The right to run one device; given back when dropped, or when the process ends, however it does.
#[derive(Debug)]
pub(crate) struct Seat {
    _lock: File,
}

impl Seat {
    /// Waits for a free one.
    pub(crate) fn take() -> Result<Self, VmError> {
        let folder = workplace();
        fs::create_dir_all(&folder).map_err(|source| VmError::File { path: folder.clone(), source })?;
        let asked = env::var(SEATS).ok().and_then(|text| text.parse().ok());
        Self::take_in(&folder, asked.unwrap_or_else(cores).clamp(1, 64), Deadline::after(SEAT_LIMIT))
    }

    fn take_in(folder: &Path, seats: usize, mut deadline: Deadline) -> Result<Self, VmError> {
        loop {
            for seat in 0..seats {
                if let Some(lock) = Self::try_lock(&folder.join(format!("seat-{seat}.lock")))? {
                    return Ok(Self { _lock: lock });
                }
            }
            // A lock tells nobody that it is free, except one who waits for it alone.
            let Some(left) = deadline.left() else {
                return Err(VmError::NoSeat { seats, limit: deadline.limit() });
            };
            thread::sleep(left.min(TICK));
        }
    }

    fn try_lock(path: &Path) -> Result<Option<File>, VmError> {
        let failed = |source| VmError::File { path: path.into(), source };
        let file = File::options().create(true).append(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_is_given_more_time_and_an_idle_one_no_less() {
        assert_eq!(load_per_core("5.00 1.00 0.50 2/94 32567\n", 2), Some(2.5));
        assert_eq!(load_per_core("", 2), None);
        assert_eq!(load_per_core("nan 1 1", 2), None);
        assert!(stretch() >= 1.0);
    }

    #[test]
    fn no_more_devices_run_than_there_are_seats() {
        let folder = tempfile::tempdir().unwrap();
        let now = || Deadline::after(Duration::ZERO);
        let first = Seat::take_in(folder.path(), 2, now()).unwrap();
        let _second = Seat::take_in(folder.path(), 2, now()).unwrap();
        assert!(matches!(Seat::take_in(folder.path(), 2, now()), Err(VmError::NoSeat { seats: 2, .. })));
        drop(first);
        Seat::take_in(folder.path(), 2, now()).unwrap();
    }
}
