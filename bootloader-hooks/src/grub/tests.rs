use super::*;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Command;

use otandem_core::boot::{Booted, SetState};
use proptest::prelude::*;

use crate::booted::Claim;

const A: SetId = SetId::A;
const B: SetId = SetId::B;

fn seen(cmdline: &str) -> Seen {
    Seen { cmdline: cmdline.into(), boot_id: "this boot".into(), ..Seen::default() }
}

/// A block with these lines, as another tool would leave it.
fn block_of(lines: &str) -> Vec<u8> {
    let mut bytes = [block::SIGNATURE, lines.as_bytes()].concat();
    bytes.resize(block::SIZE, b'#');
    bytes
}

struct Device(tempfile::TempDir);

impl Device {
    fn with(bytes: &[u8]) -> Self {
        let device = Self(tempfile::tempdir().unwrap());
        std::fs::write(device.path(), bytes).unwrap();
        device
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("grubenv")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    fn grub(&self, cmdline: &str) -> Grub {
        Grub::open(self.path(), Config::default(), seen(cmdline)).unwrap()
    }

    /// One reset: what runs then.
    fn reset(&self) -> SetId {
        let decision = model::decide(&self.bytes(), |_| true);
        if let Some(block) = decision.writes {
            std::fs::write(self.path(), block).unwrap();
        }
        decision.booted.unwrap()
    }

    /// The same under a script that counts every boot, as RAUC's does.
    fn reset_counting_always(&self) -> SetId {
        let mut block = self.bytes();
        let variables = block::variables(&block);
        let names = BootNames::default();
        let order: Vec<SetId> = vars::words(vars::value(&variables, "ORDER").unwrap())
            .filter_map(|word| names.set(std::str::from_utf8(word).ok()?))
            .collect();
        let is = |name: String, wanted: &[u8]| vars::value(&variables, &name) == Some(wanted);
        for set in order {
            block = block::save(&block, format!("{set}_TRY").as_bytes(), b"1").unwrap();
            if is(format!("{set}_OK"), b"1") && is(format!("{set}_TRY"), b"0") {
                std::fs::write(self.path(), block).unwrap();
                return set;
            }
        }
        panic!("nothing left to boot");
    }

    fn facts(&self, running: SetId) -> Facts {
        self.grub(&format!("otandem.set={running}")).facts().unwrap()
    }

    fn states(&self, running: SetId) -> (Option<SetId>, SetState, SetState) {
        let facts = self.facts(running);
        (facts.primary, facts.a, facts.b)
    }

    fn running(&self, set: SetId) -> Grub {
        self.grub(&format!("otandem.set={set}"))
    }
}

const ORDINARY: &str = "ORDER=A B\nA_OK=1\nA_TRY=0\nB_OK=1\nB_TRY=0\nOTANDEM_TRIAL=\n";

#[test]
fn variables_mean_what_the_table_says() {
    use SetState::{Bad, Good, Tried, Untried};
    for (lines, primary, a, b) in [
        ("", Some(A), Good, Good),
        ("ORDER=B A\n", Some(B), Good, Good),
        ("ORDER=B A\nOTANDEM_TRIAL=B\n", Some(B), Good, Untried),
        ("ORDER=B A\nOTANDEM_TRIAL=B\nB_TRY=1\n", Some(A), Good, Tried),
        ("ORDER=B A\nOTANDEM_TRIAL=B\nB_OK=0\n", Some(A), Good, Bad),
        ("ORDER=A\nOTANDEM_TRIAL=B\n", Some(A), Good, Bad),
        ("ORDER=A B\nA_TRY=1\n", Some(B), Tried, Good),
        ("ORDER=A B\nA_TRY=\nB_TRY=00\n", None, Tried, Tried),
        ("ORDER=A B\nA_OK=yes\nB_OK=\n", None, Bad, Bad),
        ("ORDER=\n", None, Bad, Bad),
        ("ORDER=R B B\tA\nOTANDEM_TRIAL=R\n", Some(B), Good, Good),
        ("ORDER=B\nORDER=A\n", Some(A), Good, Bad),
        ("ORDER=AB BA\n", None, Bad, Bad),
    ] {
        let device = Device::with(&block_of(lines));
        assert_eq!(device.states(A), (primary, a, b), "{lines:?}");
        // The primary set is what the script loads first, too.
        let first = model::decide(&block_of(lines), |_| true).booted;
        assert_eq!(first, primary.or(Some(A)), "{lines:?}");
    }
}

#[test]
fn an_update_is_tried_once_and_stays_only_when_confirmed() {
    let device = Device::with(&block_of(ORDINARY));
    device.running(A).arm(B).unwrap();
    assert_eq!(device.states(A), (Some(B), SetState::Good, SetState::Untried));
    assert_eq!(device.reset(), B);
    assert_eq!(device.states(B), (Some(A), SetState::Good, SetState::Tried));
    assert_eq!(device.reset(), A);
    assert_eq!(device.states(A), (Some(A), SetState::Good, SetState::Tried));

    device.running(A).mark_bad(B).unwrap();
    device.running(A).arm(B).unwrap();
    assert_eq!(device.reset(), B);
    device.running(B).confirm(B).unwrap();
    assert_eq!(device.states(B), (Some(B), SetState::Good, SetState::Good));
    let confirmed = device.bytes();
    for _ in 0..20 {
        assert_eq!(device.reset(), B);
        device.running(B).keep(B).unwrap();
    }
    assert_eq!(device.bytes(), confirmed, "an ordinary boot writes nothing");
}

#[test]
fn a_set_whose_try_cannot_be_noted_is_not_booted_until_the_block_is_made_right() {
    for lines in ["OTANDEM_TRIAL=B\nORDER=B A\nB_TRY=0\nB_TRY=0\n", "ORDER=B A\nOTANDEM_TRIAL=B\nx"] {
        let device = Device::with(&block_of(lines));
        assert_eq!(device.reset(), A, "{lines:?}");
        device.running(A).arm(B).unwrap();
        assert_eq!(device.reset(), B, "{lines:?}");
        assert_eq!(device.reset(), A, "{lines:?}");
    }
}

#[test]
fn under_a_script_that_counts_every_boot_an_update_is_told_the_same() {
    let device = Device::with(&block_of(ORDINARY));
    for _ in 0..5 {
        assert_eq!(device.reset_counting_always(), A);
        assert_eq!(device.facts(A).a, SetState::Tried, "the next reset would pass over it");
        device.running(A).keep(A).unwrap();
        assert_eq!(device.states(A), (Some(A), SetState::Good, SetState::Good));
    }
    device.running(A).arm(B).unwrap();
    assert_eq!(device.states(A), (Some(B), SetState::Good, SetState::Untried));
    assert_eq!(device.reset_counting_always(), B);
    assert_eq!(device.reset_counting_always(), A);
    assert_eq!(device.facts(A).b, SetState::Tried);
    device.running(A).keep(A).unwrap();
    device.running(A).arm(B).unwrap();
    assert_eq!(device.reset_counting_always(), B);
    device.running(B).confirm(B).unwrap();
    assert_eq!(device.reset_counting_always(), B);
    device.running(B).keep(B).unwrap();
    assert_eq!(device.states(B), (Some(B), SetState::Good, SetState::Good));
}

#[test]
fn rolling_back_and_disarming_leave_the_other_set_first() {
    for act in [Grub::disarm as fn(&mut Grub, SetId) -> _, Grub::mark_bad] {
        let device = Device::with(&block_of(ORDINARY));
        device.running(A).arm(B).unwrap();
        act(&mut device.running(A), B).unwrap();
        assert_eq!(device.states(A), (Some(A), SetState::Good, SetState::Bad));
    }
    let device = Device::with(&block_of("ORDER=B A\nB_TRY=1\nOTANDEM_TRIAL=B\n"));
    device.running(B).mark_bad(B).unwrap();
    assert_eq!(device.states(B), (Some(A), SetState::Good, SetState::Bad));
}

#[test]
fn nothing_is_marked_bad_when_the_other_set_would_not_boot() {
    for lines in ["A_OK=0\n", "ORDER=B\n", "A_TRY=1\n"] {
        let device = Device::with(&block_of(lines));
        let refused = device.running(B).mark_bad(B);
        assert!(matches!(refused, Err(BootError::NoFallback { set: B })), "{refused:?}");
        assert_eq!(device.bytes(), block_of(lines));
    }
}

#[test]
fn acts_on_the_wrong_set_or_while_it_is_unknown_are_refused_and_write_nothing() {
    let device = Device::with(&block_of(ORDINARY));
    let mut grub = device.running(A);
    for refused in [grub.arm(A), grub.disarm(A)] {
        assert!(matches!(refused, Err(BootError::Running { set: A, .. })), "{refused:?}");
    }
    for refused in [grub.keep(B), grub.confirm(B)] {
        assert!(matches!(refused, Err(BootError::NotRunning { set: B, .. })), "{refused:?}");
    }
    let mut lost = device.grub("otandem.set=A otandem.set=B");
    assert_eq!(lost.facts().unwrap().booted, Booted::Unknown);
    for refused in [lost.arm(B), lost.keep(A), lost.disarm(B), lost.confirm(A), lost.mark_bad(B)] {
        assert!(matches!(refused, Err(BootError::BootedUnknown { .. })), "{refused:?}");
    }
    assert_eq!(device.bytes(), block_of(ORDINARY));
}

#[test]
fn a_broken_block_counts_as_the_defaults_says_why_and_is_made_anew_by_the_next_change() {
    let wrong = [b"# GRUB environment block\n".as_slice(), &[b'#'; 999]].concat();
    for (bytes, why) in [
        (&b""[..], "is empty"),
        (&block_of(ORDINARY)[..20], "does not begin"),
        (&[0; 1024], "does not begin"),
        (&wrong, "does not begin"),
    ] {
        let device = Device::with(bytes);
        assert_eq!(device.states(A), (Some(A), SetState::Good, SetState::Good));
        let view = device.running(A).view().unwrap();
        assert!(view.values[0].1.contains(why), "{view:?}");
        device.running(A).arm(B).unwrap();
        assert_eq!(device.bytes().len(), block::SIZE);
        assert_eq!(device.states(A), (Some(B), SetState::Good, SetState::Untried));
        assert_eq!(device.reset(), B);
    }
}

#[test]
fn a_block_of_another_size_is_read_as_grub_does_and_made_right_by_the_next_change() {
    let long = [block_of("ORDER=A B\nx=1\n"), b"\nORDER=B A\n".to_vec()].concat();
    for (bytes, primary) in [(&long[..], B), (&block_of("ORDER=B A\n")[..512], B)] {
        let device = Device::with(bytes);
        assert_eq!(device.facts(A).primary, Some(primary));
        assert!(device.running(A).view().unwrap().values[0].1.contains("in place of 1024"));
        device.running(A).confirm(A).unwrap();
        assert_eq!(device.bytes().len(), block::SIZE);
        assert_eq!(device.facts(A).primary, Some(A));
    }
}

#[test]
fn variables_of_others_stay_as_they_are_behind_ours() {
    let others = "menu=\\\\x\nlong=a b\\\nc\n";
    let device = Device::with(&block_of(&format!("saved_entry=1\n{ORDINARY}{others}")));
    device.running(A).arm(B).unwrap();
    let armed = device.bytes();
    device.running(A).disarm(B).unwrap();
    assert_eq!(device.bytes()[block::SECTOR..], armed[block::SECTOR..]);
    let text = String::from_utf8(armed.clone()).unwrap();
    assert!(text.contains(&format!("\nsaved_entry=1\n{others}##")), "{text}");
    let own = vars::own_names(&BootNames::default());
    let behind = block::variables(&armed).into_iter().filter(|v| own.iter().any(|n| n.as_bytes() == v.name));
    assert!(behind.map(|v| v.place.end).max().unwrap() <= block::SECTOR);
    let view = device.running(A).view().unwrap();
    assert!(view.values.contains(&("saved_entry".into(), "1".into())), "{view:?}");
}

#[test]
fn what_cannot_be_arranged_is_refused_and_nothing_is_written() {
    let full = block_of(&format!("x={}\n", "y".repeat(950)));
    let order = block_of(&format!("ORDER=A B {}\n", "R".repeat(450)));
    for (bytes, why) in [(&full, "remove some"), (&order, "shorten ORDER")] {
        let device = Device::with(bytes);
        let refused = device.running(A).arm(B).unwrap_err().to_string();
        assert!(refused.contains(why) && refused.contains("grubenv"), "{refused}");
        assert_eq!(&device.bytes(), bytes);
    }
}

#[test]
fn a_recovery_entry_in_the_order_stays_behind_the_sets() {
    let device = Device::with(&block_of("ORDER=A B R\n"));
    device.running(A).arm(B).unwrap();
    assert!(device.bytes().windows(12).any(|w| w == b"ORDER=B A R\n"));
}

#[test]
fn what_is_no_environment_file_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("real"), block_of("")).unwrap();
    std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (name, why) in
        [("missing", "create"), ("link", "symbolic link"), (".", "is a directory"), ("fifo", "no plain file")]
    {
        let refused = Grub::open(at(name), Config::default(), seen("")).unwrap_err().to_string();
        assert!(refused.contains(why), "{name}: {refused}");
    }
    let mut grub = Grub::open(at("real"), Config::default(), seen("otandem.set=A")).unwrap();
    std::fs::write(at("real"), vec![b'#'; 70_000]).unwrap();
    assert!(grub.facts().unwrap_err().to_string().contains("64 KiB"));
    assert!(grub.arm(B).unwrap_err().to_string().contains("64 KiB"));
    std::fs::remove_file(at("real")).unwrap();
    assert!(grub.facts().unwrap_err().to_string().contains("does not exist"));
}

#[test]
fn names_and_tries_that_grub_cannot_handle_are_refused() {
    let device = Device::with(&block_of(""));
    let open = |a: &str, b: &str, tries| {
        let config = Config { names: BootNames::new(a, b).unwrap(), trial_tries: Tries::new(tries).unwrap() };
        Grub::open(device.path(), config, seen(""))
    };
    assert!(open("system0", "_1", 1).is_ok());
    for name in ["a.b", "a-b", "0", "1st"] {
        assert!(open(name, "B", 1).unwrap_err().to_string().contains(name));
    }
    for tries in [2, 3] {
        assert!(open("A", "B", tries).unwrap_err().to_string().contains("use 1"));
    }
}

#[test]
fn writes_that_fail_end_short_or_lie_are_errors() {
    type Put = fn(&File, &[u8]) -> io::Result<usize>;
    let cases: [(Put, &str); 4] = [
        (|_, _| Err(io::Error::from_raw_os_error(5)), "Input/output error"),
        (|file, bytes| file.write_at(&bytes[..100], 0), "only 100 of 1024"),
        (|_, bytes| Ok(bytes.len()), "does not show what was written"),
        (
            |file, bytes| file.write_at(&bytes[..512], 0).map(|_| bytes.len()),
            "does not show what was written",
        ),
    ];
    for (put, why) in cases {
        let device = Device::with(&block_of(&format!("{}{ORDINARY}", "x=yyyyyyy\n".repeat(50))));
        let mut grub = device.running(A);
        grub.file.set_put(put);
        let error = grub.arm(B).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(error.contains("grubenv"), "{error}");
    }
}

#[test]
fn the_file_is_written_where_it_lies() {
    use std::os::unix::fs::MetadataExt;
    let device = Device::with(&block_of(ORDINARY));
    let inode = std::fs::metadata(device.path()).unwrap().ino();
    device.running(A).arm(B).unwrap();
    assert_eq!(std::fs::metadata(device.path()).unwrap().ino(), inode);
    assert_eq!(std::fs::read_dir(device.0.path()).unwrap().count(), 1);
}

#[test]
fn the_real_tool_reads_what_was_armed_and_what_it_sets_is_read() {
    let device = Device::with(&block_of("keep=me\n"));
    device.running(A).arm(B).unwrap();
    let tool = |args: &[&str]| Command::new("grub-editenv").arg(device.path()).args(args).output();
    let Ok(list) = tool(&["list"]) else {
        println!("skipped: grub-editenv is not installed (package grub-common)");
        return;
    };
    let text = String::from_utf8(list.stdout).unwrap();
    assert_eq!(text, "ORDER=B A\nA_OK=1\nA_TRY=0\nB_OK=1\nB_TRY=0\nOTANDEM_TRIAL=B\nkeep=me\n");
    assert!(tool(&["set", "ORDER=A B", "OTANDEM_TRIAL=", "B_OK=0"]).unwrap().status.success());
    assert_eq!(device.states(A), (Some(A), SetState::Good, SetState::Bad));
}

#[test]
fn the_view_shows_the_variables_in_their_order_and_what_stands_for_missing_ones() {
    let device = Device::with(&block_of("B_OK=0\nORDER=B\n"));
    let view = device.running(A).view().unwrap();
    assert!(view.loader.starts_with("GRUB, /"));
    let shown: Vec<_> = view.values.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(shown[0], "ORDER=B");
    assert_eq!(shown[1], "A_OK=(missing: grub.cfg takes \"1\")");
    assert_eq!(shown[3], "B_OK=0");
    assert!(shown.last().unwrap().contains("nothing is left to boot"), "{shown:?}");
}

#[test]
fn the_kernel_command_line_tells_the_running_set() {
    let says = |cmdline: &str| combine(&seen(cmdline).claims(&BootNames::default()) as &[Claim]).booted;
    assert_eq!(says("root=PARTLABEL=root-b otandem.set=B"), Booted::Set(B));
}

/// Any block that others, a tool of ours before, or chance may have left.
fn any_block() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        "ORDER=(A|B|R| ){0,5}\n",
        "[AB]_(OK|TRY)=[01]?\n",
        "OTANDEM_TRIAL=[ABR]?\n",
        "[a-z]{1,9}=[a-z]{0,30}\n",
    ];
    proptest::collection::vec(line, 0..14).prop_map(|lines| block_of(&lines.concat()))
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Arm,
    Keep,
    Disarm,
    Confirm,
    MarkBad(SetId),
}

fn apply(vars: &mut Vars, act: Act, running: SetId, names: &BootNames) {
    match act {
        Act::Arm => vars.arm(running.other(), names),
        Act::Keep => vars.keep(running, names),
        Act::Disarm => vars.disarm(running.other(), names),
        Act::Confirm => vars.confirm(running, names),
        Act::MarkBad(set) => vars.mark_bad(set, names),
    }
}

proptest! {
    /// Sector by sector, in any order: what is there after a cut boots what the old block or the new one boots, and the
    /// set that an update is about is never left untried and unlisted at once.
    #[test]
    fn a_cut_between_the_sectors_leaves_the_old_choice_or_the_new(
        before in any_block(),
        running in prop_oneof![Just(A), Just(B)],
        act in prop_oneof![
            Just(Act::Arm), Just(Act::Keep), Just(Act::Disarm), Just(Act::Confirm), Just(Act::MarkBad(A)), Just(Act::MarkBad(B))
        ],
    ) {
        let names = BootNames::default();
        let variables = block::variables(&before);
        let old = Vars::read(&variables, &names);
        let mut new = old.clone();
        apply(&mut new, act, running, &names);
        let arranged = old.encode(&before, &variables, &names).unwrap();
        let after = new.encode(&before, &variables, &names).unwrap();
        prop_assert_eq!(&arranged[block::SECTOR..], &after[block::SECTOR..]);
        prop_assert_eq!(Vars::read(&block::variables(&after), &names), new);
        // Arranging alone changes no decision, whole or with only its first sector written. (Where a variable of ours
        // stands twice, GRUB writes the first and reads the last: it cannot note a try, and arranging mends that.)
        let own = vars::own_names(&names);
        let twice = |name: &String| variables.iter().filter(|v| v.name == name.as_bytes()).count() > 1;
        let half = [&arranged[..block::SECTOR], &before[block::SECTOR..]].concat();
        for bytes in [&arranged, &half] {
            let booted = |bytes: &[u8]| model::decide(bytes, |_| true).booted;
            prop_assert!(own.iter().any(twice) || booted(bytes) == booted(&before));
        }
    }

    #[test]
    fn after_any_acts_the_facts_name_what_the_script_boots(
        before in any_block(),
        acts in proptest::collection::vec(prop_oneof![
            Just(Act::Arm), Just(Act::Keep), Just(Act::Disarm), Just(Act::Confirm), Just(Act::MarkBad(A))
        ], 0..5),
    ) {
        let names = BootNames::default();
        let mut block = before;
        for act in acts {
            let variables = block::variables(&block);
            let mut vars = Vars::read(&variables, &names);
            apply(&mut vars, act, A, &names);
            block = vars.encode(&block, &variables, &names).unwrap();
            let decision = model::decide(&block, |_| true);
            if let Some(primary) = vars.primary(&names) {
                prop_assert_eq!(decision.booted, Some(primary));
                prop_assert_eq!(decision.writes.is_some(), vars.state(primary, &names) == SetState::Untried);
            }
        }
    }
}
