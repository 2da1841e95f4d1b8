//! The models against a simple disk: an array.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::write_log::made::Log;

/// In sectors.
const DISK: u64 = 64;

struct Made {
    folder: TempDir,
    replay: Replay,
}

fn made(log: Log) -> Made {
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("base"), folder.path().join("log"));
    fs::write(&base, vec![0xBB; usize::try_from(DISK * SECTOR).unwrap()]).unwrap();
    fs::write(&path, log.bytes()).unwrap();
    let replay = Replay::open(&base, &path).unwrap();
    Made { folder, replay }
}

/// One byte for each sector; a sector that is not all of one byte fails.
fn sectors(state: &State<'_>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(state.size()).unwrap()];
    state.read(0, &mut bytes).unwrap();
    let sector = |sector: &[u8]| {
        assert!(sector.iter().all(|byte| *byte == sector[0]));
        sector[0]
    };
    bytes.chunks(512).map(sector).collect()
}

fn disk_of(replay: &Replay, after: u64, model: Model) -> Vec<u8> {
    sectors(&replay.walk().go_to(Cut { after, model, repeat: false }).unwrap())
}

/// Two writes, a flush, and three writes of which one overlaps.
fn example() -> Made {
    made(Log::new(3).write(0, 2, 1).write(2, 2, 2).flush().write(2, 1, 3).write(4, 4, 4).write(0, 1, 5))
}

#[test]
fn a_prefix_has_all_writes_before_the_cut_and_none_behind() {
    let made = example();
    assert_eq!(disk_of(&made.replay, 0, Model::Prefix)[..4], [0xBB; 4]);
    assert_eq!(disk_of(&made.replay, 2, Model::Prefix)[..5], [1, 1, 2, 2, 0xBB]);
    assert_eq!(disk_of(&made.replay, 6, Model::Prefix)[..9], [5, 1, 3, 2, 4, 4, 4, 4, 0xBB]);
}

#[test]
fn a_drop_keeps_what_was_flushed_and_nothing_else() {
    let made = example();
    assert_eq!(disk_of(&made.replay, 2, Model::DropSinceFlush)[..4], [0xBB; 4]);
    for after in 3..=6 {
        assert_eq!(disk_of(&made.replay, after, Model::DropSinceFlush)[..5], [1, 1, 2, 2, 0xBB], "{after}");
    }
}

#[test]
fn a_write_with_fua_survives_a_drop_of_those_around_it() {
    let log = Log::new(0).write(0, 1, 1).fua(1, 1, 2).write(2, 1, 3);
    let made = made(log);
    assert_eq!(disk_of(&made.replay, 3, Model::DropSinceFlush)[..3], [0xBB, 2, 0xBB]);
    for seed in 0..50 {
        assert_eq!(disk_of(&made.replay, 3, Model::ReorderSinceFlush { seed })[1], 2);
    }
}

#[test]
fn an_older_write_never_lands_on_a_later_one_with_fua() {
    let made = made(Log::new(0).write(0, 2, 1).fua(0, 1, 2));
    let states: Vec<_> = (0..50)
        .map(|seed| disk_of(&made.replay, 2, Model::ReorderSinceFlush { seed })[..2].to_vec())
        .collect();
    assert!(states.iter().all(|state| state[0] == 2), "{states:?}");
    assert!(states.contains(&vec![2, 0xBB]) && states.contains(&vec![2, 1]));
}

#[test]
fn reordering_reaches_each_subset_and_both_orders_and_leaves_flushed_writes_alone() {
    let made = example();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..400 {
        let disk = disk_of(&made.replay, 6, Model::ReorderSinceFlush { seed });
        assert_eq!((disk[1], disk[3]), (1, 2));
        seen.insert((disk[2], disk[4], disk[0]));
    }
    assert_eq!(seen.len(), 8, "{seen:?}");
    let overlapping = self::made(Log::new(0).write(0, 1, 1).write(0, 1, 2));
    let disks: std::collections::BTreeSet<u8> =
        (0..100).map(|seed| disk_of(&overlapping.replay, 2, Model::ReorderSinceFlush { seed })[0]).collect();
    assert_eq!(disks.into_iter().collect::<Vec<_>>(), [1, 2, 0xBB]);
}

#[test]
fn a_torn_write_has_its_first_or_its_last_sectors_only() {
    let made = example();
    let torn = |model| disk_of(&made.replay, 5, model)[2..8].to_vec();
    assert_eq!(torn(Model::TornFirst { sectors: 1 }), [3, 2, 4, 0xBB, 0xBB, 0xBB]);
    assert_eq!(torn(Model::TornFirst { sectors: 3 }), [3, 2, 4, 4, 4, 0xBB]);
    assert_eq!(torn(Model::TornLast { sectors: 1 }), [3, 2, 0xBB, 0xBB, 0xBB, 4]);
    assert_eq!(torn(Model::TornFirst { sectors: 0 }), torn(Model::TornLast { sectors: 0 }));
    assert_eq!(torn(Model::TornLast { sectors: 9 }), disk_of(&made.replay, 5, Model::Prefix)[2..8]);
}

#[test]
fn a_discard_reads_as_zeros() {
    let made = made(Log::new(0).write(0, 4, 1).discard(1, 2));
    assert_eq!(disk_of(&made.replay, 2, Model::Prefix)[..4], [1, 0, 0, 1]);
    assert_eq!(disk_of(&made.replay, 2, Model::TornLast { sectors: 1 })[..4], [1, 1, 0, 1]);
}

#[test]
fn the_list_has_each_state_once_and_says_which_drop_repeats_one() {
    let made = example();
    let cuts = made.replay.cuts(Models { drop: true, reorder: 0, torn: true });
    let of =
        |after| cuts.iter().filter(move |cut| cut.after == after).map(|cut| cut.model).collect::<Vec<_>>();
    assert_eq!(of(0), [Model::Prefix]);
    let halves = [Model::TornFirst { sectors: 1 }, Model::TornLast { sectors: 1 }];
    assert_eq!(of(1), [Model::Prefix, halves[0], halves[1]]);
    assert_eq!(of(3), [], "a flush alone changes nothing");
    assert_eq!(of(5).len(), 1 + 6, "prefix, 1, 2 and 3 of four sectors at both ends");
    let drops: Vec<_> = cuts.iter().filter(|cut| cut.model == Model::DropSinceFlush).collect();
    assert!(drops.iter().all(|cut| cut.repeat) && drops.iter().map(|cut| cut.after).eq([2, 6]), "{drops:?}");
    assert!(cuts.is_sorted_by_key(|cut| cut.after));
}

#[test]
fn of_all_orders_only_those_are_listed_that_make_other_disks() {
    for log in [
        Log::new(0).write(0, 1, 1).write(2, 1, 2).write(4, 1, 3),
        Log::new(0).write(0, 2, 1).write(1, 2, 2).write(0, 1, 3),
    ] {
        let made = self::made(log);
        let cuts = made.replay.cuts(Models { drop: true, reorder: 100, torn: false });
        let cuts: Vec<_> = cuts.into_iter().filter(|cut| !cut.repeat).collect();
        let disks: std::collections::BTreeSet<_> =
            cuts.iter().map(|cut| disk_of(&made.replay, cut.after, cut.model)).collect();
        assert_eq!(disks.len(), cuts.len(), "{cuts:?}");
        assert!(cuts.len() >= 8, "every subset of three writes: {cuts:?}");
    }
}

#[test]
fn a_sample_is_the_same_for_the_same_seed_and_has_no_repeats() {
    let made = example();
    let cuts = made.replay.cuts(Models::default());
    let some = sample(&cuts, 5, 7);
    assert_eq!(some, sample(&cuts, 5, 7));
    assert!(
        some.len() == 5 && some.iter().all(|cut| !cut.repeat) && some.windows(2).all(|two| two[0] < two[1])
    );
    assert_eq!(sample(&cuts, 1000, 7).len(), cuts.iter().filter(|cut| !cut.repeat).count());
}

#[test]
fn a_log_of_another_disk_and_a_cut_that_is_not_there_are_refused() {
    let made = example();
    let cut = Cut { after: 7, model: Model::Prefix, repeat: false };
    assert!(matches!(made.replay.walk().go_to(cut), Err(ReplayError::NoSuchCut { after: 7, entries: 6 })));
    let (base, log) = (made.folder.path().join("base"), made.folder.path().join("other"));
    fs::write(&log, Log::new(0).write(DISK, 1, 1).bytes()).unwrap();
    assert!(matches!(Replay::open(&base, &log), Err(ReplayError::OtherDisk { index: 0, .. })));
}

#[derive(Debug, Clone, Copy)]
enum Did {
    Write(u64, u64),
    Fua(u64, u64),
    Discard(u64, u64),
    Flush,
}

fn did() -> impl Strategy<Value = Did> {
    let place = || (0..DISK, 1..9_u64).prop_map(|(at, len)| (at, len.min(DISK - at)));
    prop_oneof![
        6 => place().prop_map(|(at, len)| Did::Write(at, len)),
        1 => place().prop_map(|(at, len)| Did::Fua(at, len)),
        1 => place().prop_map(|(at, len)| Did::Discard(at, len)),
        2 => Just(Did::Flush),
    ]
}

fn log_of(history: &[Did]) -> Log {
    history.iter().zip(1_u8..).fold(Log::new(0), |log, (did, fill)| match *did {
        Did::Write(at, len) => log.write(at, len, fill),
        Did::Fua(at, len) => log.fua(at, len, fill),
        Did::Discard(at, len) => log.discard(at, len),
        Did::Flush => log.flush(),
    })
}

/// The disk after some of a history, without writes for which `lost` is true.
fn written(history: &[Did], lost: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut disk = vec![0xBB; usize::try_from(DISK).unwrap()];
    for (n, (did, fill)) in history.iter().zip(1_u8..).enumerate() {
        let (at, len, fill) = match *did {
            Did::Write(at, len) | Did::Fua(at, len) => (at, len, fill),
            Did::Discard(at, len) => (at, len, 0),
            Did::Flush => continue,
        };
        if !lost(n) {
            disk[usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap()].fill(fill);
        }
    }
    disk
}

proptest! {
    #[test]
    fn a_walk_tells_what_changed_and_ends_where_an_array_does(
        history in prop::collection::vec(did(), 1..40),
        detours in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let made = made(log_of(&history));
        let mut cuts = made.replay.cuts(Models::default());
        let detours: Vec<Cut> = detours.iter().map(|at| *at.get(&cuts)).collect();
        cuts.extend(detours);
        let mut walk = made.replay.walk();
        let mut before = written(&[], |_| false);
        for cut in cuts {
            let after = usize::try_from(cut.after).unwrap();
            let flushed = history[..after].iter().rposition(|did| matches!(did, Did::Flush)).unwrap_or(0);
            let state = walk.go_to(cut).unwrap();
            let now = sectors(&state);
            for sector in 0..DISK {
                let at = usize::try_from(sector).unwrap();
                let told = state.changed().iter().any(|range| range.contains(&(sector * SECTOR)));
                prop_assert!(told || before[at] == now[at], "sector {sector} changed unsaid at {cut:?}");
            }
            match cut.model {
                Model::Prefix => prop_assert_eq!(&now, &written(&history[..after], |_| false)),
                Model::DropSinceFlush => {
                    let lost = |n| n >= flushed && !matches!(history[n], Did::Fua(..));
                    prop_assert_eq!(&now, &written(&history[..after], lost));
                }
                _ => {
                    // Whatever was not written since the last flush is as it was then.
                    let durable = written(&history[..flushed], |_| false);
                    let touched = |sector: u64| history[flushed..after].iter().any(|did| match *did {
                        Did::Write(at, len) | Did::Fua(at, len) | Did::Discard(at, len) =>
                            (at..at + len).contains(&sector),
                        Did::Flush => false,
                    });
                    for sector in (0..DISK).filter(|&sector| !touched(sector)) {
                        let at = usize::try_from(sector).unwrap();
                        prop_assert_eq!(now[at], durable[at]);
                    }
                }
            }
            before = now;
        }
    }

    #[test]
    fn a_state_made_into_a_file_is_the_state(history in prop::collection::vec(did(), 1..20), seed in any::<u64>()) {
        let made = made(log_of(&history));
        let cut = made.replay.last(Model::ReorderSinceFlush { seed });
        let path = made.folder.path().join("state");
        made.replay.materialize(cut, &path).unwrap();
        let mut walk = made.replay.walk();
        let state = walk.go_to(cut).unwrap();
        let mut bytes = vec![0; usize::try_from(state.size()).unwrap()];
        state.read(0, &mut bytes).unwrap();
        prop_assert!(fs::read(&path).unwrap() == bytes);
    }
}
