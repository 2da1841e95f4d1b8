//! The scenarios on the virtual device, each on each boot chain.
//!
//! One line for each: `ok`, `FAIL` or `skip`, the scenario, its seconds. Devices run side by side, as many as the machine
//! has cores.

mod gates;
mod power;
mod replay;
mod states;
mod trials;
mod updates;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use otandem_images::Chain;

/// One scenario.
struct Scenario {
    name: &'static str,
    run: fn(Chain),
    /// The chains on which it runs in the quick set.
    quick: &'static [Chain],
}

/// Scenarios that one chain does not have.
const NOT_ON: &[(&str, Chain)] = &[
    ("script-that-always-counts", Chain::SystemdBoot),
    ("efivars-read-only", Chain::UBoot),
    ("efivars-read-only", Chain::Grub),
];

const fn anywhere(name: &'static str, run: fn(Chain)) -> Scenario {
    Scenario { name, run, quick: &[] }
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "good-update",
        run: updates::good_update,
        quick: &[Chain::UBoot, Chain::Grub, Chain::SystemdBoot],
    },
    Scenario { name: "health-check-fails", run: trials::health_check_fails, quick: &[Chain::UBoot] },
    Scenario {
        name: "kernel-garbage",
        run: trials::kernel_garbage,
        quick: &[Chain::Grub, Chain::SystemdBoot],
    },
    anywhere("downgrade", updates::downgrade),
    anywhere("there-and-back-five-times", updates::there_and_back_five_times),
    anywhere("same-good-image-again", updates::same_good_image_again),
    anywhere("twenty-boots-without-an-update", updates::twenty_boots_without_an_update),
    anywhere("script-that-always-counts", updates::script_that_always_counts),
    anywhere("agent-killed-and-reset-in-the-trial", trials::agent_killed_and_reset_in_the_trial),
    anywhere("agent-stopped-and-rebooted-in-the-trial", trials::agent_stopped_and_rebooted_in_the_trial),
    anywhere("initrd-garbage", trials::initrd_garbage),
    anywhere("root-garbage", trials::root_garbage),
    anywhere("no-init", trials::no_init),
    anywhere("hopeless-image-is-refused-from-then-on", trials::hopeless_image_is_refused_from_then_on),
    anywhere("two-trials-without-a-verdict", trials::two_trials_without_a_verdict),
    anywhere("new-image-cannot-reach-the-cloud", trials::new_image_cannot_reach_the_cloud),
    anywhere("agent-missing", trials::agent_missing),
    anywhere("agent-crashes", trials::agent_crashes),
    anywhere("bad-configuration", trials::bad_configuration),
    anywhere("hangs-early", trials::hangs_early),
    anywhere("hangs-late", trials::hangs_late),
    Scenario { name: "power-cut-writing", run: power::power_cut_while_writing, quick: &[Chain::UBoot] },
    anywhere("power-cut-armed", power::power_cut_when_armed),
    anywhere("power-cut-trial", power::power_cut_in_the_trial),
    anywhere("power-cut-confirmed", power::power_cut_when_confirmed),
    anywhere("disk-error", power::disk_error_while_writing),
    anywhere("network-lost", power::network_lost_while_downloading),
    anywhere("cancelled-downloading", power::cancelled_while_downloading),
    anywhere("cancelled-written", power::cancelled_while_a_hook_runs),
    anywhere("cancelled-armed", power::cancelled_while_armed),
    anywhere("cancelled-trial", power::cancelled_in_the_trial),
    anywhere("environment-lost-idle", states::environment_lost_when_idle),
    anywhere("environment-lost-writing", states::environment_lost_while_writing),
    anywhere("environment-lost-armed", states::environment_lost_when_armed),
    anywhere("environment-lost-trial", states::environment_lost_in_the_trial),
    anywhere("environment-lost-confirmed", states::environment_lost_when_confirmed),
    anywhere("environment-lost-running", states::environment_lost_in_the_running_system),
    anywhere("environment-makes-no-sense", states::environment_makes_no_sense),
    anywhere("tries-used-up", states::tries_used_up),
    anywhere("environment-refuses-update", states::environment_refuses_the_update),
    anywhere("environment-refuses-confirmation", states::environment_refuses_the_confirmation),
    anywhere("efivars-read-only", states::efivars_read_only),
    anywhere("state-lost", states::state_lost_when_armed),
    anywhere("state-and-environment-lost", states::state_and_environment_lost_when_armed),
    anywhere("data-lost", states::data_lost),
    anywhere("data-read-only", states::data_read_only),
    anywhere("slot-missing", states::slot_missing),
    anywhere("clock-1970", states::clock_in_1970),
    anywhere("clock-2060", states::clock_beyond_the_certificates),
    Scenario {
        name: "power-cut-replay",
        run: |chain| replay::power_cuts(chain, QUICK.load(Ordering::Relaxed)),
        quick: &[Chain::UBoot],
    },
];
/// Those that run with both sets' boot files on one FAT, too: it is their point where these lie.
const ON_SHARED: &[&str] = &["power-cut-replay"];
/// Fewer states are switched on.
static QUICK: AtomicBool = AtomicBool::new(false);

const CHAINS: [Chain; 4] = Chain::ALL;
const USAGE: &str = "usage: otandem-scenarios [--quick] [--chain u-boot|grub|systemd-boot|systemd-boot-shared]... [--only PART-OF-NAME]... \
                     [--jobs N] [--list]";

struct Choice {
    quick: bool,
    list: bool,
    chains: Vec<Chain>,
    only: Vec<String>,
    jobs: usize,
}

impl Choice {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let jobs = std::thread::available_parallelism().map_or(2, Into::into);
        let mut choice = Self { quick: false, list: false, chains: vec![], only: vec![], jobs };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value\n{USAGE}"));
            match word.as_str() {
                "--quick" => choice.quick = true,
                "--list" => choice.list = true,
                "--chain" => choice.chains.push(value()?.parse().map_err(|e| format!("{e}\n{USAGE}"))?),
                "--only" => choice.only.push(value()?),
                "--jobs" => choice.jobs = value()?.parse().map_err(|e| format!("--jobs: {e}\n{USAGE}"))?,
                _ => return Err(format!("what is {word:?}?\n{USAGE}")),
            }
        }
        if choice.chains.is_empty() {
            choice.chains = CHAINS.to_vec();
        }
        Ok(choice)
    }

    fn takes(&self, scenario: &Scenario, chain: Chain) -> bool {
        let name = format!("{}/{}", chain.name(), scenario.name);
        self.chains.contains(&chain)
            && (chain != Chain::SystemdBootShared || ON_SHARED.contains(&scenario.name))
            && !NOT_ON.contains(&(scenario.name, chain))
            && (!self.quick || scenario.quick.contains(&chain))
            && (self.only.is_empty() || self.only.iter().any(|part| name.contains(part)))
    }
}

fn main() -> ExitCode {
    let choice = match Choice::parse(std::env::args().skip(1)) {
        Ok(choice) => choice,
        Err(why) => {
            eprintln!("otandem-scenarios: {why}");
            return ExitCode::from(2);
        }
    };
    QUICK.store(choice.quick, Ordering::Relaxed);
    // Last first taken: the longest runs of one chain are spread over the workers.
    let mut due: Vec<(&Scenario, Chain)> = SCENARIOS
        .iter()
        .flat_map(|scenario| CHAINS.map(|chain| (scenario, chain)))
        .filter(|(scenario, chain)| choice.takes(scenario, *chain))
        .collect();
    if choice.list {
        due.iter().for_each(|(scenario, chain)| println!("{}/{}", chain.name(), scenario.name));
        return ExitCode::SUCCESS;
    }
    if due.is_empty() {
        eprintln!("otandem-scenarios: nothing is called so; --list shows what there is");
        return ExitCode::from(2);
    }
    due.reverse();
    let (due, failed) = (Mutex::new(due), Mutex::new(0_usize));
    std::thread::scope(|scope| {
        for _ in 0..choice.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = due.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let Some((scenario, chain)) = next else { break };
                    if !run(scenario, chain) {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    ExitCode::from(u8::from(failed > 0))
}

/// Runs one; a panic is its failure and nobody else's.
fn run(scenario: &Scenario, chain: Chain) -> bool {
    let begin = Instant::now();
    let end = catch_unwind(AssertUnwindSafe(|| (scenario.run)(chain)));
    let word = if end.is_ok() { "ok  " } else { "FAIL" };
    println!("{word} {}/{} {} s", chain.name(), scenario.name, begin.elapsed().as_secs());
    end.is_ok()
}
