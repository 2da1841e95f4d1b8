//! What happens when nothing goes wrong any more: every run must come to its end.

use std::time::Duration;

use otandem_core::machine::{Event, Health, HookAnswer};
use otandem_core::record::State;
use otandem_core::update::{Origin, Then};

use super::{FULL, Pipeline, Status, World};

/// Rounds in which everything must have ended.
const ROUNDS: u32 = 600;

impl World {
    /// One thing that the device waits for comes, as it should. `false` if it waits for nothing.
    pub fn goes_on(&mut self) -> bool {
        if self.rebooting {
            self.reset();
            return true;
        }
        let Some(running) = self.running().filter(|_| self.machine.is_some()) else {
            let settled = self.settled;
            self.dead_man();
            return !settled;
        };
        if self.hook.is_some() {
            self.answer_hook(HookAnswer::Done);
        } else if self.pipeline != Pipeline::No {
            self.pipeline_goes_on();
        } else if self.runner.is_some() {
            self.steps_go_on();
        } else if self.checking && running.healthy {
            self.checking = false;
            self.feed(Event::Health(Health::Passed));
        } else if !self.talk() {
            return self.time_goes_on();
        }
        true
    }

    fn time_goes_on(&mut self) -> bool {
        if self.agent().next_wake().is_some() {
            if self.checking {
                self.feed(Event::Health(Health::NotYet("not well".into())));
            }
            self.wait();
            return true;
        }
        let by_hand = match self.state() {
            State::Armed { update, .. } => update.then != Then::Reboot,
            _ => false,
        };
        if by_hand {
            // Whoever asked for the arming reboots.
            self.reset();
        } else if !self.settled {
            self.pass(Duration::from_secs(3600));
            self.dead_man();
        } else {
            return false;
        }
        true
    }

    /// Everything is over: no outcome waits, no job is under way, the next one can come.
    pub fn is_over(&self) -> bool {
        self.machine.as_ref().is_some_and(otandem_core::machine::Machine::ready)
            && self.record().outbox.is_empty()
            && !self.jobs.iter().any(super::Job::live)
    }

    /// No faults any more. Everything must end, or stand in one of the places from which only a person, or another
    /// image, can help.
    pub fn calm_down(&mut self) {
        self.note(|_| "=== calm".into());
        self.fault = None;
        (self.disk_broken, self.bootloader_broken, self.loses_answers) = (false, false, false);
        if std::mem::take(&mut self.blind) > 0 || self.machine.as_ref().is_some_and(|m| m.booted().is_none())
        {
            // An agent that was blind looks again when it starts.
            self.start_agent();
        }
        self.resets = 0;
        let mut alive_after = self.machine.as_ref().map(|_| 0);
        for _ in 0..ROUNDS {
            if self.is_over() || !self.goes_on() {
                break;
            }
            alive_after = alive_after.or_else(|| self.machine.as_ref().map(|_| self.resets));
            if alive_after.is_none() && self.resets > 20 {
                break;
            }
        }
        self.judge_end(alive_after);
    }

    fn judge_end(&self, alive_after: Option<u32>) {
        let running = self.running().expect("a complete set runs");
        let booted = self.booted.expect("something runs");
        let Some(resets) = alive_after.filter(|_| self.machine.is_some()) else {
            // An image that kills the agent, in a set that the bootloader holds confirmed: nothing on the device can
            // know better. Only another tool, or a lost environment, brings that about.
            assert!(running.crashes_agent, "no agent runs");
            let excused = self.tampered || self.stale;
            assert!(excused && self.env.left(booted) >= FULL, "a set without an agent stays: {:?}", self.env);
            return;
        };
        assert!(resets <= 2 + 3, "{resets} resets until an agent ran");
        if self.is_over() {
            return;
        }
        let state = self.state();
        let adopted = matches!(state, State::Trial { update, .. } if update.origin == Origin::Adopted);
        if !running.healthy {
            // The only set that is left is not well: nothing is written from it, and it says so.
            assert!(*state == State::Idle || adopted, "not well, and hangs in {}", state.name());
            assert!(self.settled, "not well, and reset for ever");
            return;
        }
        // Without a cloud nothing can be told to it, nor a job gone on with.
        assert!(!running.reaches_cloud, "hangs in {}, jobs {:?}", state.name(), self.statuses());
        let waits = match state {
            State::Idle => true,
            State::Accepted { update }
            | State::Writing { update, .. }
            | State::Written { update }
            | State::Armed { update, .. } => update.origin.open_job().is_some(),
            _ => false,
        };
        assert!(waits, "without a cloud, and hangs in {}", state.name());
    }

    pub fn statuses(&self) -> Vec<Status> {
        self.jobs.iter().map(|j| j.status).collect()
    }
}
