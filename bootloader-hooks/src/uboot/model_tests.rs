use std::path::Path;
use std::process::Command;

use super::*;
use proptest::prelude::*;

#[path = "qemu_tests.rs"]
mod qemu;

const SIZE: usize = 0x4000;
const SECOND: usize = 0x8000;
const COPIES: [(u64, usize); 2] = [(0, SIZE), (0x8000, SIZE)];

type Variables = Vec<(Vec<u8>, Vec<u8>)>;

fn variables(of: &[(&str, &str)]) -> Variables {
    of.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

fn env(order: &str, a: &str, b: &str) -> Variables {
    variables(&[("BOOT_A_LEFT", a), ("BOOT_B_LEFT", b), ("BOOT_ORDER", order)])
}

fn copy(flags: u8, variables: Variables) -> Vec<u8> {
    encode(&Contents { flags, variables }, SIZE, Form::Redundant).unwrap()
}

/// Both copies; one that is not given is empty.
fn area(first: Option<Vec<u8>>, second: Option<Vec<u8>>) -> Vec<u8> {
    let mut area = vec![0; SECOND + SIZE];
    for (at, copy) in [(0, first), (SECOND, second)] {
        area[at..at + SIZE].copy_from_slice(&copy.unwrap_or_else(|| vec![0; SIZE]));
    }
    area
}

fn decide_all(area: &[u8]) -> Decision {
    decide(area, &COPIES, |_| true)
}

fn after(area: &[u8], decision: &Decision) -> Vec<u8> {
    let mut area = area.to_vec();
    for (offset, bytes) in decision.writes.iter().flatten() {
        let offset = usize::try_from(*offset).unwrap();
        area[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    area
}

#[test]
fn the_checksum_is_the_usual_one() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
}

#[test]
fn a_confirmed_set_boots_without_a_write() {
    let decision = decide_all(&area(Some(copy(1, env("B A", "0", "3"))), None));
    assert_eq!(decision, Decision { tried: vec![SetId::B], booted: Some(SetId::B), writes: None });
}

#[test]
fn a_trial_is_counted_in_the_older_copy_before_it_boots() {
    let armed = area(Some(copy(255, env("B A", "3", "1"))), Some(copy(254, env("A", "3", "0"))));
    let decision = decide_all(&armed);
    assert_eq!(decision.booted, Some(SetId::B));
    assert_eq!(decision.writes, Some(vec![(0x8000, copy(0, env("B A", "3", "0")))]));
    assert_eq!(decide_all(&after(&armed, &decision)).booted, Some(SetId::A));
}

#[test]
fn an_empty_environment_gives_each_set_three_counted_tries() {
    let mut area = area(None, None);
    let mut booted = Vec::new();
    for _ in 0..8 {
        let decision = decide_all(&area);
        booted.extend(decision.booted);
        area = after(&area, &decision);
    }
    use SetId::{A, B};
    assert_eq!(booted, [A, A, A, B, B, B, A, A]);
}

#[test]
fn when_nothing_loads_nothing_is_written_for_ever() {
    let mut area = area(Some(copy(1, env("A B", "2", "x"))), None);
    for _ in 0..3 {
        area = after(&area, &decide(&area, &COPIES, |_| false));
    }
    let decision = decide(&area, &COPIES, |_| false);
    let tried = vec![SetId::A, SetId::B];
    assert_eq!(decision, Decision { tried, booted: None, writes: None });
}

#[test]
fn a_confirmed_set_that_does_not_load_gives_way_to_the_other_one() {
    let state = area(Some(copy(1, env("A B", "3", "2"))), None);
    let decision = decide(&state, &COPIES, |set| set == SetId::B);
    assert_eq!((decision.tried, decision.booted), (SetId::BOTH.to_vec(), Some(SetId::B)));
    assert_eq!(decision.writes, Some(vec![(0x8000, copy(2, env("A B", "3", "1")))]));
}

#[test]
fn an_area_that_is_cut_short_is_no_environment_and_a_trial_that_cannot_be_saved_is_left_to_the_last_round() {
    let copies_and_writes = [(0, &COPIES[..], 1), (SIZE + 1, &COPIES[1..], 1), (SIZE, &[], 0)];
    for (bytes, copies, writes) in copies_and_writes {
        let decision = decide(&vec![0; bytes], copies, |_| true);
        assert_eq!(decision.booted, Some(SetId::A));
        assert_eq!(decision.writes.map_or(0, |writes| writes.len()), writes);
    }
    assert_eq!(decide(&[0; 9], &[(u64::MAX, SIZE)], |_| false).booted, None);
}

fn any_variables() -> impl Strategy<Value = Variables> {
    let value = proptest::collection::vec(prop_oneof![Just(b' '), 0x21..=0x5b_u8, 0x5d..=0x7e_u8], 1..40);
    proptest::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_]{0,12}".prop_map(String::into_bytes), value, 1..20)
        .prop_map(|variables| variables.into_iter().collect())
}

/// The real programs on the area in this file.
fn tools(dir: &Path, lines: usize) -> Option<impl Fn(&str, &[&str]) -> (bool, String)> {
    if !Path::new("/usr/bin/fw_setenv").is_file() {
        println!("skipped: fw_setenv (libubootenv-tool) is not installed");
        return None;
    }
    let (config, area) = (dir.join("config"), dir.join("area"));
    let line = |at: usize| format!("{} {at:#x} {SIZE:#x}\n", area.display());
    std::fs::write(&config, [line(0), line(SECOND)][..lines].concat()).unwrap();
    Some(move |program: &str, args: &[&str]| {
        let output = Command::new(program).arg("-c").arg(&config).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(flags in any::<u8>(), variables in any_variables()) {
        let contents = Contents { flags, variables };
        let bytes = encode(&contents, SIZE, Form::Redundant).unwrap();
        prop_assert_eq!(decode(&bytes, Form::Redundant).unwrap(), contents.clone());
        let single = encode(&contents, SIZE, Form::Single).unwrap();
        prop_assert_eq!(decode(&single, Form::Single).unwrap(), Contents { flags: 0, ..contents.clone() });
        // Room for the shortest variable, and not for the end behind it.
        let error = encode(&contents, 8, Form::Single).unwrap_err();
        prop_assert!(error.needed > 8 && encode(&contents, error.needed, Form::Single).is_ok());
    }

    #[test]
    fn a_flipped_bit_is_found_anywhere_but_in_the_flags(at in 0..SIZE, bit in 0..8_u8, variables in any_variables()) {
        let mut bytes = copy(3, variables);
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(decode(&bytes, Form::Redundant).is_ok(), at == CRC);
    }

    #[test]
    fn any_data_behind_a_true_checksum_is_read_without_a_panic(
        data in proptest::collection::vec(prop_oneof![Just(0), Just(b'='), Just(b'\\'), any::<u8>()], 0..60)
    ) {
        let mut bytes = crc32(&data).to_le_bytes().to_vec();
        bytes.extend(&data);
        prop_assert!(decode(&bytes, Form::Single) != Err(Invalid::Checksum));
        let _ = decide(&bytes, &[(0, bytes.len())], |_| true);
        let _ = decode(&data, Form::Redundant);
    }

    #[test]
    fn whatever_is_stored_a_set_boots_and_one_that_is_not_confirmed_cannot_keep_the_device(
        order in prop_oneof!["[ AB]{0,5}", "[ -~]{0,12}"], a in "[0-3]|[ -~]{0,3}", b in "[0-3]|[ -~]{0,3}",
        flags in any::<u8>(),
    ) {
        let mut area = area(Some(copy(flags, env(&order, &a, &b))), None);
        let mut booted = Vec::new();
        for _ in 0..8 {
            let decision = decide_all(&area);
            booted.extend(decision.booted);
            area = after(&area, &decision);
        }
        prop_assert_eq!(booted.len(), 8);
        if a != "3" && b != "3" {
            prop_assert!(booted.contains(&SetId::A) && booted.contains(&SetId::B), "{:?}", booted);
        }
    }

    #[test]
    fn a_torn_count_leaves_the_old_environment_or_the_new_one(
        first in any::<u8>(), keep in proptest::collection::vec(any::<bool>(), SIZE / 512), new_first: bool,
    ) {
        let old = copy(first, env("B A", "3", "1"));
        let older = copy(first.wrapping_sub(1), env("A", "3", "0"));
        let state = if new_first { area(Some(old), Some(older)) } else { area(Some(older), Some(old)) };
        let decision = decide_all(&state);
        let whole = after(&state, &decision);
        let mut torn = state.clone();
        let (offset, bytes) = &decision.writes.clone().unwrap()[0];
        let offset = usize::try_from(*offset).unwrap();
        for (sector, _) in keep.iter().enumerate().filter(|(_, kept)| **kept) {
            let range = sector * 512..(sector + 1) * 512;
            torn[offset..][range.clone()].copy_from_slice(&bytes[range]);
        }
        let (next, if_old, if_new) = (decide_all(&torn), decide_all(&state), decide_all(&whole));
        prop_assert!(next.booted == if_old.booted || next.booted == if_new.booted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_real_printenv_reads_what_is_encoded_and_the_real_setenv_writes_what_is_decoded(
        of_first in any_variables(), of_second in any_variables(), flags in (any::<u8>(), any::<u8>()),
        valid in (any::<bool>(), any::<bool>()), add in "[A-Z]{9}", lines in 1..=2_usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let Some(tool) = tools(dir.path(), lines) else { return Ok(()) };
        let form = if lines == 2 { Form::Redundant } else { Form::Single };
        let make = |flags, variables: &Variables| {
            encode(&Contents { flags, variables: variables.clone() }, SIZE, form).unwrap()
        };
        let first = valid.0.then(|| make(flags.0, &of_first));
        let second = valid.1.then(|| make(flags.1, &of_second));
        let path = dir.path().join("area");
        std::fs::write(&path, area(first, second)).unwrap();
        let expected = match (valid.0, valid.1 && lines == 2) {
            (true, true) if newest(flags.0, flags.1) == 1 => Some(&of_second),
            (true, _) => Some(&of_first),
            (false, true) => Some(&of_second),
            (false, false) => None,
        };
        let (success, text) = tool("/usr/bin/fw_printenv", &[]);
        prop_assert_eq!(success, expected.is_some());
        let Some(expected) = expected else { return Ok(()) };
        let mut lines_found: Vec<&str> = text.lines().collect();
        lines_found.sort_unstable();
        let line = |(n, v): &(Vec<u8>, Vec<u8>)| String::from_utf8([n, b"=".as_slice(), v].concat()).unwrap();
        let mut wanted: Vec<String> = expected.iter().map(line).collect();
        wanted.sort_unstable();
        prop_assert_eq!(lines_found, wanted);

        prop_assert!(tool("/usr/bin/fw_setenv", &[&add, "x y"]).0);
        let found = std::fs::read(&path).unwrap();
        let read = |at: usize| decode(&found[at..at + SIZE], form).ok();
        let all: Vec<Contents> = [read(0), read(SECOND).filter(|_| lines == 2)].into_iter().flatten().collect();
        let newest = if all.len() == 2 { newest(all[0].flags, all[1].flags) } else { 0 };
        let mut now = all[newest].variables.clone();
        now.sort();
        let mut wanted = expected.clone();
        wanted.retain(|(name, _)| name != add.as_bytes());
        wanted.push((add.into_bytes(), b"x y".to_vec()));
        wanted.sort();
        prop_assert_eq!(now, wanted);
    }
}

#[test]
fn of_two_valid_copies_the_real_printenv_takes_the_same_one() {
    let dir = tempfile::tempdir().unwrap();
    let Some(tool) = tools(dir.path(), 2) else { return };
    for (first, second) in
        [(0, 255), (255, 0), (254, 255), (255, 254), (7, 7), (128, 127), (127, 128), (0, 1), (1, 0)]
    {
        let named = |name: &str, flags| Some(copy(flags, variables(&[("which", name)])));
        std::fs::write(dir.path().join("area"), area(named("0", first), named("1", second))).unwrap();
        let (_, text) = tool("/usr/bin/fw_printenv", &["-n", "which"]);
        assert_eq!(text.trim(), newest(first, second).to_string(), "flags {first} and {second}");
    }
}
