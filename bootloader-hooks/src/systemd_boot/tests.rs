//! The back end on directories that lose their power, judged by the model of the loader.

mod cuts;

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::dir::Found;
use super::model::decide;
use super::*;
use crate::Tries as TrialTries;

const CONF: &str = "default otandem-*\n";

/// What a power cut leaves of the step in which it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    NotDone,
    Done,
    /// Of a rename, on a file system mounted with `dirsync`: the new name, of an empty file, and the old one.
    NewIsEmpty,
    /// Both names.
    Both,
    /// Without `dirsync`: neither.
    Neither,
    /// Of a content: that many bytes.
    Torn(usize),
}

const CUTS: [Cut; 8] = [
    Cut::NotDone,
    Cut::Done,
    Cut::NewIsEmpty,
    Cut::Both,
    Cut::Neither,
    Cut::Torn(60),
    Cut::Torn(100),
    Cut::Torn(200),
];

#[derive(Default)]
struct State {
    files: [Vec<Found>; 2],
    /// Step at which the power goes, and how.
    cut: Option<(usize, Cut)>,
    steps: usize,
    dead: bool,
    /// Directories that were written to.
    touched: [bool; 2],
}

impl State {
    /// Whether this step is done, and what is left of it if the power goes.
    fn step(&mut self, dir: usize) -> Result<Option<Cut>, BootError> {
        if self.dead {
            return Err(cut_off());
        }
        self.touched[dir] = true;
        self.steps += 1;
        let now = self.cut.filter(|(at, _)| *at + 1 == self.steps).map(|(_, cut)| cut);
        self.dead = now.is_some();
        Ok(now)
    }
}

fn cut_off() -> BootError {
    BootError::Io { action: "write", path: "/test".into(), source: std::io::Error::other("power cut") }
}

/// A directory in memory.
struct MemDir {
    disk: Arc<Mutex<State>>,
    dir: usize,
    path: PathBuf,
}

impl MemDir {
    fn with(&self, change: impl FnOnce(&mut Vec<Found>, Option<Cut>)) -> Result<(), BootError> {
        let mut disk = self.disk.lock().unwrap();
        let cut = disk.step(self.dir)?;
        if cut != Some(Cut::NotDone) {
            change(&mut disk.files[self.dir], cut);
        }
        cut.map_or(Ok(()), |_| Err(cut_off()))
    }
}

impl EntryDir for MemDir {
    fn path(&self) -> &Path {
        &self.path
    }

    fn list(&self) -> Result<Vec<Found>, BootError> {
        Ok(self.disk.lock().unwrap().files[self.dir].clone())
    }

    fn rewrite(&self, name: &str, content: &[u8; SECTOR]) -> Result<(), BootError> {
        self.with(|files, cut| {
            let file = files.iter_mut().find(|(n, _)| n == name).expect("there");
            let mut new = content.to_vec();
            if let Some(Cut::Torn(at)) = cut {
                new[at..].copy_from_slice(&file.1[at..]);
            }
            file.1 = new;
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), BootError> {
        self.with(|files, cut| {
            assert!(!files.iter().any(|(n, _)| n == to), "{to} is taken");
            let at = files.iter().position(|(n, _)| n == from).expect("there");
            let content = files[at].1.clone();
            match cut {
                Some(Cut::NewIsEmpty) => files.push((to.into(), Vec::new())),
                Some(Cut::Both) => files.push((to.into(), content)),
                Some(Cut::Neither) => drop(files.remove(at)),
                _ => files[at].0 = to.into(),
            }
        })
    }

    fn create(&self, name: &str, content: &[u8; SECTOR]) -> Result<(), BootError> {
        self.with(|files, cut| {
            assert!(!files.iter().any(|(n, _)| n == name), "{name} is taken");
            let content = if cut == Some(Cut::NewIsEmpty) { Vec::new() } else { content.to_vec() };
            files.push((name.into(), content));
        })
    }
}

fn content(set: SetId, version: &str) -> Vec<u8> {
    let root = set.name().to_lowercase();
    let text = format!(
        "title {set}\nsort-key otandem\nlinux /otandem/{root}/vmlinuz\noptions otandem.set={set} ro\n"
    );
    with_version(text.as_bytes(), version).unwrap().to_vec()
}

/// A device: two directories and variables.
struct Device {
    disk: Arc<Mutex<State>>,
    shared: bool,
    vars: tempfile::TempDir,
}

impl Device {
    /// Entries, given as name and version.
    fn new(shared: bool, a: &[(&str, &str)], b: &[(&str, &str)]) -> Self {
        let files = |set: SetId, list: &[(&str, &str)]| -> Vec<Found> {
            let template = (format!("otandem-{}.template", set.name().to_lowercase()), content(set, "1"));
            let files = list.iter().map(|(name, version)| ((*name).to_owned(), content(set, version)));
            files.chain([template]).collect()
        };
        let (a, b) = (files(SetId::A, a), files(SetId::B, b));
        let files = if shared { [[a, b].concat(), Vec::new()] } else { [a, b] };
        let disk = Arc::new(Mutex::new(State { files, ..State::default() }));
        Self { disk, shared, vars: tempfile::tempdir().unwrap() }
    }

    fn boot(&self, running: SetId, tries: u8) -> SystemdBoot {
        let dir = |dir: usize| {
            let dir = if self.shared { 0 } else { dir };
            Box::new(MemDir {
                disk: self.disk.clone(),
                dir,
                path: format!("/efi{dir}/loader/entries").into(),
            })
        };
        let seen = Seen { cmdline: format!("otandem.set={running}"), boot_id: "x".into(), ..Seen::default() };
        SystemdBoot {
            dirs: [dir(0), dir(1)],
            shared: self.shared,
            vars: EfiVars::new(self.vars.path().into()),
            config: Config { trial_tries: TrialTries::new(tries).unwrap(), ..Config::default() },
            seen,
        }
    }

    fn files(&self) -> Vec<EntryFile> {
        let disk = self.disk.lock().unwrap();
        let of = |dir: usize, partition| {
            disk.files[dir].iter().map(move |(name, content)| EntryFile {
                partition,
                name: name.clone(),
                content: content.clone(),
            })
        };
        of(0, Partition::Esp).chain(of(1, Partition::Xbootldr)).collect()
    }

    /// The loader: counts, and says what it boots.
    fn reset(&self, loadable: impl Fn(SetId) -> bool) -> Option<SetId> {
        let vars = EfiVars::new(self.vars.path().into());
        let oneshot = vars.read(ONE_SHOT).unwrap();
        vars.delete(ONE_SHOT).unwrap();
        let decision = decide(&self.files(), CONF, oneshot.as_deref(), loadable);
        let mut disk = self.disk.lock().unwrap();
        for rename in decision.renames {
            let dir = usize::from(rename.partition == Partition::Xbootldr);
            let file = disk.files[dir].iter_mut().find(|(name, _)| *name == rename.from).unwrap();
            file.0 = rename.to;
        }
        decision.booted
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.files().into_iter().map(|f| f.name).filter(|n| n.ends_with(".conf")).collect();
        names.sort();
        names
    }
}

fn confirmed() -> Device {
    Device::new(false, &[("otandem-a.conf", "7")], &[("otandem-b.conf", "6")])
}

const A: SetId = SetId::A;
const B: SetId = SetId::B;

#[test]
fn an_armed_set_is_tried_as_often_as_configured_and_then_the_old_one_runs() {
    for tries in 1..=3 {
        let device = confirmed();
        let mut boot = device.boot(A, tries);
        boot.mark_bad(B).unwrap();
        assert_eq!(boot.facts().unwrap().b, SetState::Bad);
        assert_eq!(device.names(), ["otandem-a.conf", "otandem-b+0.conf"]);
        boot.arm(B).unwrap();
        let facts = boot.facts().unwrap();
        assert_eq!((facts.primary, facts.a, facts.b), (Some(B), SetState::Good, SetState::Untried));
        for _ in 0..tries {
            assert_eq!(device.reset(|_| true), Some(B));
            assert_eq!(device.boot(B, tries).facts().unwrap().b, SetState::Tried);
        }
        assert_eq!(device.reset(|_| true), Some(A));
        let facts = device.boot(A, tries).facts().unwrap();
        assert_eq!((facts.primary, facts.b), (Some(A), SetState::Tried));
    }
}

#[test]
fn five_updates_in_a_row_each_confirmed_stay_and_a_downgrade_is_one_of_them() {
    let device = confirmed();
    for running in [A, B, A, B, A] {
        let target = running.other();
        let mut boot = device.boot(running, 1);
        boot.keep(running).unwrap();
        boot.mark_bad(target).unwrap();
        boot.arm(target).unwrap();
        assert_eq!(device.reset(|_| true), Some(target));
        let mut boot = device.boot(target, 1);
        boot.confirm(target).unwrap();
        for _ in 0..20 {
            assert_eq!(device.reset(|_| true), Some(target));
            boot.keep(target).unwrap();
        }
        let facts = boot.facts().unwrap();
        assert_eq!(
            (facts.primary, facts.state(running), facts.state(target)),
            (Some(target), SetState::Good, SetState::Good)
        );
    }
    assert_eq!(device.names(), ["otandem-a.conf", "otandem-b.conf"]);
}

#[test]
fn a_roll_back_from_the_running_trial_boots_the_old_set() {
    let device = confirmed();
    device.boot(A, 3).arm(B).unwrap();
    assert_eq!(device.reset(|_| true), Some(B));
    let mut boot = device.boot(B, 3);
    boot.mark_bad(B).unwrap();
    let facts = boot.facts().unwrap();
    assert_eq!((facts.primary, facts.a, facts.b), (Some(A), SetState::Good, SetState::Bad));
    assert_eq!(device.reset(|_| true), Some(A));
}

#[test]
fn a_disarmed_set_is_not_booted_even_by_a_one_shot_that_cannot_be_removed() {
    let device = confirmed();
    let mut boot = device.boot(A, 1);
    boot.arm(B).unwrap();
    let oneshot = boot.vars.read(ONE_SHOT).unwrap().unwrap();
    assert_eq!(oneshot, "otandem-b+1.conf");
    boot.disarm(B).unwrap();
    assert_eq!(boot.vars.read(ONE_SHOT).unwrap(), None);
    boot.vars.write(ONE_SHOT, &oneshot).unwrap();
    assert_eq!(boot.facts().unwrap().primary, Some(A));
    assert_eq!(device.reset(|_| true), Some(A));
}

#[test]
fn without_efi_variables_counting_does_it_and_the_view_says_so() {
    let device = confirmed();
    let mut boot = device.boot(A, 1);
    boot.vars = EfiVars::new("/nonexistent/efivars".into());
    boot.arm(B).unwrap();
    assert_eq!(boot.facts().unwrap().primary, Some(B));
    let view = boot.view().unwrap();
    assert!(view.values.iter().any(|(_, v)| v.contains("/nonexistent/efivars")), "{view:?}");
    assert!(view.values.iter().any(|(n, v)| n.ends_with("otandem-b+1.conf") && v == "version 8"), "{view:?}");
    assert_eq!(device.reset(|_| true), Some(B));
    assert_eq!(device.reset(|_| true), Some(A));
}

#[test]
fn what_is_right_already_is_not_written() {
    let device = confirmed();
    let mut boot = device.boot(A, 1);
    boot.keep(A).unwrap();
    boot.confirm(A).unwrap();
    assert_eq!(device.disk.lock().unwrap().steps, 0);
    boot.arm(B).unwrap();
    let steps = device.disk.lock().unwrap().steps;
    boot.arm(B).unwrap();
    assert_eq!(device.disk.lock().unwrap().steps, steps);
    assert!(!device.disk.lock().unwrap().touched[0], "the running set's directory is not written to");
}

#[test]
fn the_wrong_set_and_an_unknown_one_are_refused() {
    let device = confirmed();
    let mut boot = device.boot(A, 1);
    assert!(matches!(boot.arm(A), Err(BootError::Running { .. })));
    assert!(matches!(boot.disarm(A), Err(BootError::Running { .. })));
    assert!(matches!(boot.keep(B), Err(BootError::NotRunning { .. })));
    assert!(matches!(boot.confirm(B), Err(BootError::NotRunning { .. })));
    boot.mark_bad(B).unwrap();
    assert!(matches!(boot.mark_bad(A), Err(BootError::NoFallback { set: SetId::A })));
    boot.seen.cmdline.clear();
    assert!(matches!(boot.mark_bad(B), Err(BootError::BootedUnknown { .. })));
    assert_eq!(boot.facts().unwrap().booted, otandem_core::boot::Booted::Unknown);
}

#[test]
fn defaults_that_choose_one_set_for_ever_are_refused_before_anything_is_written() {
    for pattern in ["otandem-a.conf", "otandem-b*", "otandem-?.conf", "@saved"] {
        let device = confirmed();
        let mut boot = device.boot(A, 1);
        boot.vars.write(DEFAULT, pattern).unwrap();
        assert!(matches!(boot.arm(B), Err(BootError::Config(_))), "{pattern}");
        assert_eq!(device.disk.lock().unwrap().steps, 0);
    }
    let dir = tempfile::tempdir().unwrap();
    let entries = dir.path().join("loader/entries");
    std::fs::create_dir_all(&entries).unwrap();
    std::fs::write(dir.path().join("loader/loader.conf"), "default otandem-b*\n").unwrap();
    for set in SetId::BOTH {
        std::fs::write(
            entries.join(format!("otandem-{}.conf", set.name().to_lowercase())),
            content(set, "1"),
        )
        .unwrap();
    }
    let setup = Setup { entries: [entries.clone(), entries], efivars: "/nonexistent".into() };
    let seen = Seen { cmdline: "otandem.set=A".into(), ..Seen::default() };
    let mut boot = SystemdBoot::open(setup, Config::default(), seen).unwrap();
    let error = boot.arm(B).unwrap_err().to_string();
    assert!(error.contains("loader.conf: default otandem-b*"), "{error}");
    std::fs::write(dir.path().join("loader/loader.conf"), CONF).unwrap();
    boot.arm(B).unwrap();
    assert!(dir.path().join("loader/entries/otandem-b+1.conf").exists());
}

#[test]
fn paths_and_names_that_cannot_work_are_refused() {
    let config = |a, b| Config { names: crate::BootNames::new(a, b).unwrap(), ..Config::default() };
    let setup = Setup { entries: ["/a".into(), "/b".into()], efivars: "/e".into() };
    assert!(SystemdBoot::open(setup.clone(), config("sys", "SYS"), Seen::default()).is_err());
    assert!(SystemdBoot::open(setup.clone(), config("sysA", "sysB"), Seen::default()).is_ok());
    let relative = Setup { efivars: "e".into(), ..setup };
    assert!(SystemdBoot::open(relative, Config::default(), Seen::default()).is_err());
}

#[test]
fn a_lost_entry_is_made_from_its_template_and_without_one_the_error_names_it() {
    let device = Device::new(false, &[("otandem-a.conf", "7")], &[]);
    let mut boot = device.boot(A, 1);
    assert_eq!(boot.facts().unwrap().b, SetState::Bad);
    boot.mark_bad(B).unwrap();
    boot.arm(B).unwrap();
    assert_eq!(device.reset(|_| true), Some(B));
    device.disk.lock().unwrap().files[1].clear();
    let error = boot.arm(B).unwrap_err().to_string();
    assert!(error.contains("otandem-b.template"), "{error}");
    assert_eq!(device.reset(|_| true), Some(A));
}

#[test]
fn versions_of_other_kinds_are_outnumbered() {
    let device = Device::new(false, &[("otandem-a.conf", "6.1.0-13")], &[("otandem-b.conf", "v2")]);
    let mut boot = device.boot(A, 1);
    boot.arm(B).unwrap();
    assert_eq!(boot.own(B).unwrap()[0].version, "7");
    let device =
        Device::new(false, &[("otandem-a.conf", "99999999999999999999")], &[("otandem-b.conf", "1")]);
    assert!(matches!(device.boot(A, 1).arm(B), Err(BootError::Config(_))));
    assert_eq!(device.reset(|_| true), Some(A));
}

#[test]
fn the_shipped_files_are_ready_and_boot_set_a_first() {
    let shipped = [
        include_bytes!("../../systemd-boot/otandem-a.template"),
        include_bytes!("../../systemd-boot/otandem-b.template"),
    ];
    let device = Device::new(false, &[], &[]);
    for (dir, template) in shipped.iter().enumerate() {
        let version = Entry::parse(*template).version().to_owned();
        assert_eq!(with_version(*template, &version).as_ref(), Some(*template), "normal form, one sector");
        let name = ["otandem-a.conf", "otandem-b.conf"][dir];
        device.disk.lock().unwrap().files[dir] = vec![(name.into(), template.to_vec())];
    }
    let facts = device.boot(A, 1).facts().unwrap();
    assert_eq!((facts.primary, facts.a, facts.b), (Some(A), SetState::Good, SetState::Good));
    let conf = include_str!("../../systemd-boot/loader.conf");
    assert_eq!(model::default_pattern(conf).as_deref(), Some("otandem-*"));
    device.boot(A, 1).arm(B).unwrap();
    assert_eq!(device.reset(|_| true), Some(B));
}
