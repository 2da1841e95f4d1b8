//! The scenarios on the virtual device, each on each boot chain.
//!
//! One line for each: `ok`, `FAIL` or `skip`, the scenario, its seconds. Devices run side by side, as many as the machine
//! has cores.

mod gates;
mod power;
mod states;
mod updates;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
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

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "good-update",
        run: updates::good_update,
        quick: &[Chain::UBoot, Chain::Grub, Chain::SystemdBoot],
    },
    Scenario { name: "power-cut-writing", run: power::power_cut_while_writing, quick: &[Chain::UBoot] },
    Scenario { name: "power-cut-armed", run: power::power_cut_when_armed, quick: &[] },
    Scenario { name: "power-cut-trial", run: power::power_cut_in_the_trial, quick: &[] },
    Scenario { name: "power-cut-confirmed", run: power::power_cut_when_confirmed, quick: &[] },
    Scenario { name: "disk-error", run: power::disk_error_while_writing, quick: &[] },
    Scenario { name: "network-lost", run: power::network_lost_while_downloading, quick: &[] },
    Scenario { name: "cancelled-downloading", run: power::cancelled_while_downloading, quick: &[] },
    Scenario { name: "cancelled-armed", run: power::cancelled_while_armed, quick: &[] },
    Scenario { name: "cancelled-trial", run: power::cancelled_in_the_trial, quick: &[] },
    Scenario { name: "environment-lost-idle", run: states::environment_lost_when_idle, quick: &[] },
    Scenario { name: "environment-lost-writing", run: states::environment_lost_while_writing, quick: &[] },
    Scenario { name: "environment-lost-armed", run: states::environment_lost_when_armed, quick: &[] },
    Scenario { name: "environment-lost-trial", run: states::environment_lost_in_the_trial, quick: &[] },
    Scenario { name: "environment-lost-confirmed", run: states::environment_lost_when_confirmed, quick: &[] },
    Scenario {
        name: "environment-lost-running",
        run: states::environment_lost_in_the_running_system,
        quick: &[],
    },
    Scenario { name: "environment-makes-no-sense", run: states::environment_makes_no_sense, quick: &[] },
    Scenario { name: "tries-used-up", run: states::tries_used_up, quick: &[] },
    Scenario { name: "environment-refuses-update", run: states::environment_refuses_the_update, quick: &[] },
    Scenario {
        name: "environment-refuses-confirmation",
        run: states::environment_refuses_the_confirmation,
        quick: &[],
    },
    Scenario { name: "efivars-read-only", run: states::efivars_read_only, quick: &[] },
    Scenario { name: "state-lost", run: states::state_lost_when_armed, quick: &[] },
    Scenario {
        name: "state-and-environment-lost",
        run: states::state_and_environment_lost_when_armed,
        quick: &[],
    },
    Scenario { name: "data-lost", run: states::data_lost, quick: &[] },
    Scenario { name: "data-read-only", run: states::data_read_only, quick: &[] },
    Scenario { name: "slot-missing", run: states::slot_missing, quick: &[] },
    Scenario { name: "clock-1970", run: states::clock_in_1970, quick: &[] },
    Scenario { name: "clock-2060", run: states::clock_beyond_the_certificates, quick: &[] },
];

const CHAINS: [Chain; 3] = [Chain::UBoot, Chain::Grub, Chain::SystemdBoot];
const USAGE: &str = "usage: otandem-scenarios [--quick] [--chain u-boot|grub|systemd-boot]... [--only PART-OF-NAME]... \
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
