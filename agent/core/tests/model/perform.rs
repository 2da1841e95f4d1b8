//! The driver: performs actions in order, ends a list at the first failure, and feeds back what the machine waits for.

use otandem_core::boot::SetId;
use otandem_core::machine::{Action, Event, HookAnswer};
use otandem_core::record::State;

use super::{Content, Pipeline, World};

/// How one action that may fail ends otherwise than well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// It says that it failed, and did.
    NotDone,
    /// It says that it failed, and was done.
    DoneAlthough,
    /// As far as the storage tears: the record keeps its older copy, the boot environment is lost.
    Torn,
    /// Power fails before it.
    CutBefore,
    /// Power fails after it.
    CutAfter,
    /// Power fails in it.
    CutTorn,
}

/// One fault to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Actions that go well before it.
    pub after: u8,
    pub kind: FaultKind,
}

enum End {
    Done,
    Failed,
    NoFallback,
    PowerCut,
}

impl World {
    /// One event for the agent, if there is one.
    pub fn feed(&mut self, event: Event) {
        let now = self.now();
        self.note(|w| format!("    {} <- {event:?}", w.phase()));
        let Some(machine) = &mut self.machine else { return };
        let actions = machine.step(event, now);
        self.note(|w| format!("    {} -> {actions:?}", w.phase()));
        self.perform(actions);
    }

    pub fn perform(&mut self, actions: Vec<Action>) {
        let mut next = Some(actions);
        let mut lists = 0;
        while let Some(list) = next.take() {
            lists += 1;
            assert!(lists < 50, "the machine answers itself for ever: {list:?}");
            self.judge();
            let last = list.len();
            for (i, action) in list.into_iter().enumerate() {
                let now = self.now();
                if action == Action::Continue {
                    assert_eq!(i + 1, last, "Continue is the last action of its list");
                    next = Some(self.agent().step(Event::Continue, now));
                    self.note(|w| format!("    {} -> {next:?}", w.phase()));
                    break;
                }
                match self.act(&action) {
                    End::Done => {}
                    end @ (End::Failed | End::NoFallback) => {
                        let event = match end {
                            End::NoFallback => Event::NoFallback("nothing else boots".into()),
                            _ => Event::Failed(Box::new(action), "fault".into()),
                        };
                        self.note(|w| format!("    {} <- {event:?}", w.phase()));
                        next = Some(self.agent().step(event, now));
                        self.note(|w| format!("    {} -> {next:?}", w.phase()));
                        break;
                    }
                    End::PowerCut => {
                        self.note(|_| format!("    power cut at {action:?}"));
                        self.reset();
                        return;
                    }
                }
            }
        }
        self.judge();
        self.judge_sendable();
    }

    fn act(&mut self, action: &Action) -> End {
        self.judge_action(action);
        if self.writes_down {
            self.done.push(format!("{action:?}"));
        }
        let boot: fn(&mut super::Env, SetId) = match action {
            Action::Save => return self.save(),
            Action::Reboot => return self.fallible(false, |w| w.rebooting = true, |_| {}),
            Action::MarkBad(_) => super::Env::mark_bad,
            Action::Arm(_) => super::Env::arm,
            Action::Keep(_) => super::Env::keep,
            Action::Disarm(_) => super::Env::disarm,
            Action::Confirm(_) => super::Env::confirm,
            _ => {
                self.request(action);
                return End::Done;
            }
        };
        let (Action::MarkBad(set)
        | Action::Arm(set)
        | Action::Keep(set)
        | Action::Disarm(set)
        | Action::Confirm(set)) = *action
        else {
            return End::Done;
        };
        // As the back ends do, where they can be asked: what runs is not taken away where nothing else would boot.
        let leaves = matches!(action, Action::Disarm(_)) && self.booted == Some(set);
        if leaves && !self.bootloader_broken && !self.env.bootable(set.other()) {
            return End::NoFallback;
        }
        let torn = |w: &mut Self| {
            w.env.reset();
            w.tampered = true;
        };
        let end = self.fallible(self.bootloader_broken, |w| boot(&mut w.env, set), torn);
        if let End::Done = end {
            self.kept |= matches!(action, Action::Keep(_) | Action::Confirm(_));
            if let Action::Confirm(set) = action {
                self.confirmed = Some(*set);
            }
        }
        end
    }

    /// Does `effect`, unless a fault has its turn.
    fn fallible(
        &mut self,
        broken: bool,
        effect: impl FnOnce(&mut Self),
        torn: impl FnOnce(&mut Self),
    ) -> End {
        let kind = match &mut self.fault {
            Some(fault) if fault.after > 0 => {
                fault.after -= 1;
                None
            }
            _ => self.fault.take().map(|f| f.kind),
        };
        match kind {
            None if broken => End::Failed,
            None => {
                effect(self);
                End::Done
            }
            Some(FaultKind::NotDone) => End::Failed,
            Some(FaultKind::DoneAlthough) => {
                effect(self);
                End::Failed
            }
            Some(FaultKind::Torn) => {
                torn(self);
                End::Failed
            }
            Some(FaultKind::CutBefore) => End::PowerCut,
            Some(FaultKind::CutAfter) => {
                effect(self);
                End::PowerCut
            }
            Some(FaultKind::CutTorn) => {
                torn(self);
                End::PowerCut
            }
        }
    }

    fn save(&mut self) -> End {
        let record = self.record().clone();
        let broken = self.disk_broken;
        self.fallible(
            broken,
            |w| {
                for finished in &record.outbox {
                    w.has_ended(finished);
                    w.saved.insert(finished.key.clone());
                }
                if let Some(old) = w.disk.replace(record) {
                    w.history.push(old);
                }
            },
            |_| {},
        )
    }

    /// What is always taken, and answered later.
    fn request(&mut self, action: &Action) {
        match action {
            Action::Fetch { .. } => self.pipeline = Pipeline::Opening,
            Action::Write => {
                self.pipeline = Pipeline::Writing;
                let target = self.state().update().expect("an update is written").target;
                self.put(target, Content::Torn);
            }
            Action::StopFetch => self.pipeline = Pipeline::No,
            Action::CheckHealth => self.checking = true,
            Action::StopHealth => self.checking = false,
            Action::RunHook(hook) => self.hook = Some(*hook),
            Action::RunJob(job, _) => self.run_steps(job),
            Action::StopJob => self.runner.iter_mut().for_each(|runner| runner.stopped = true),
            Action::Report => self.reporting = true,
            Action::AskCloud => self.asking = true,
            Action::Settled => self.settled = true,
            Action::Answer(answer) => self.answers.push(answer.clone()),
            Action::Say(text) => self.said.push(text.clone()),
            _ => {}
        }
    }

    /// The hook that was asked for answers.
    pub fn answer_hook(&mut self, answer: HookAnswer) {
        if let Some(hook) = self.hook.take() {
            self.feed(Event::Hook(hook, answer));
        }
    }

    /// The pipeline comes to its next point: open, then written.
    pub fn pipeline_goes_on(&mut self) {
        match self.pipeline {
            Pipeline::No => {}
            Pipeline::Opening => self.feed(Event::Ready),
            Pipeline::Writing => {
                self.complete_slots();
                self.report_written();
            }
        }
    }

    /// All digests are right: the heads are written.
    pub fn complete_slots(&mut self) {
        let State::Writing { update, .. } = self.state() else { return };
        let (target, image) = (update.target, update.images[0].clone());
        let firmware = self.firmware_of(&image);
        self.put(target, Content::Complete(firmware));
    }

    fn report_written(&mut self) {
        let State::Writing { update, .. } = self.state() else { return };
        let Content::Complete(firmware) = self.content(update.target) else { return };
        self.pipeline = Pipeline::No;
        self.feed(Event::Written(vec![written_image(firmware)]));
    }
}

pub fn written_image(firmware: super::Firmware) -> otandem_core::machine::WrittenImage {
    otandem_core::machine::WrittenImage { sha256: firmware.digest(), size: 100, file_sha256: None, md5: None }
}
