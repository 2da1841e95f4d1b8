use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use proptest::prelude::*;

use super::super::queue::{Order, Queue};
use super::*;

fn at(millis: u64) -> Boottime {
    Boottime(Duration::from_millis(1_000_000 + millis))
}

fn place(name: &str) -> Place {
    Order::Lexical.place(name.into(), 0)
}

fn sender(concurrency: usize, rate: u32, retries: u32, names: &[&str]) -> Sender {
    let mut sender = Sender::new(Pace { concurrency, rate, retries });
    sender.scan();
    names.iter().for_each(|name| sender.seen(place(name)));
    sender.session(true);
    sender
}

/// Sends all that may be sent now.
fn send(sender: &mut Sender, now: Boottime) -> Vec<(u64, String)> {
    let mut sent = vec![];
    while let Some(place) = sender.next(now) {
        let name = place.name().to_str().unwrap().to_owned();
        sent.push((sender.sent(place, now), name));
    }
    sent
}

fn names(sent: &[(u64, String)]) -> Vec<&str> {
    sent.iter().map(|(_, name)| name.as_str()).collect()
}

#[test]
fn order_is_as_it_is_named() {
    let order = |order: Order| {
        let mut queue = Queue::new(10);
        queue.clear();
        for (name, modified) in [("b", 1), ("_x", 3), ("10", 4), ("9", 2), ("B", 5), ("é", 0)] {
            queue.put(order.place(name.into(), modified));
        }
        std::iter::from_fn(|| queue.take()).map(|p| p.name().to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(order(Order::Lexical), ["10", "9", "B", "_x", "b", "é"]);
    assert_eq!(order(Order::OldestFirst), ["é", "b", "9", "_x", "10", "B"]);
    assert_eq!(order(Order::NewestFirst), ["B", "10", "_x", "9", "b", "é"]);
}

#[test]
fn of_more_files_than_are_remembered_the_first_are_and_the_rest_is_found_later() {
    let mut queue = Queue::new(3);
    assert!(queue.wants_scan());
    queue.clear();
    assert!(!queue.wants_scan());
    for name in ["e", "a", "d", "c", "b"] {
        queue.put(place(name));
    }
    queue.offer(place("bb"));
    // Others, which are not remembered, come before it.
    queue.offer(place("z"));
    let taken: Vec<_> = std::iter::from_fn(|| queue.take()).map(|p| p.name().to_owned()).collect();
    assert_eq!(taken, ["a", "b", "bb"].map(OsString::from));
    assert!(queue.wants_scan());
}

#[test]
fn not_more_are_on_their_way_than_allowed_and_each_acknowledgement_makes_room() {
    let mut s = sender(2, 0, 2, &["a", "b", "c", "d"]);
    let sent = send(&mut s, at(0));
    assert_eq!(names(&sent), ["a", "b"]);
    assert_eq!(s.published(sent[1].0, at(1)).unwrap().name(), "b");
    assert_eq!(names(&send(&mut s, at(1))), ["c"]);
    assert_eq!(s.waiting(), 3);
}

#[test]
fn a_file_on_its_way_is_not_sent_twice() {
    let mut s = sender(3, 0, 2, &["a"]);
    let sent = send(&mut s, at(0));
    s.came(place("a"));
    s.scan();
    s.seen(place("a"));
    assert_eq!(names(&send(&mut s, at(1))), [] as [&str; 0]);
    // The same name moved in again while the first was on its way: the directory still has it afterwards.
    let place = s.published(sent[0].0, at(2)).unwrap();
    s.came(place);
    assert_eq!(names(&send(&mut s, at(2))), ["a"]);
}

#[test]
fn no_second_holds_many_more_than_the_rate_and_none_is_wasted() {
    let all: Vec<_> = (0..1000).map(|n| format!("{n:04}")).collect();
    let mut s = sender(10_000, 100, 2, &all.iter().map(String::as_str).collect::<Vec<_>>());
    let mut sent = vec![];
    for millis in 0..5000 {
        sent.extend(send(&mut s, at(millis)).iter().map(|_| millis));
    }
    assert!(sent.len() >= 500, "{}", sent.len());
    for window in 0..4000 {
        let count = sent.iter().filter(|t| (window..window + 1000).contains(*t)).count();
        assert!((100..=111).contains(&count), "{count} from {window} ms on");
    }
}

#[test]
fn offline_nothing_is_sent_and_what_was_on_its_way_goes_first_again() {
    let mut s = sender(2, 0, 0, &["a", "b", "c"]);
    let sent = send(&mut s, at(0));
    assert_eq!(s.lost(&[sent[0].0, sent[1].0], None, at(1)), Verdicts::default());
    s.session(false);
    assert_eq!((send(&mut s, at(2)).len(), s.next_wake()), (0, None));
    s.session(true);
    assert_eq!(names(&send(&mut s, at(3))), ["a", "b"]);
    // However often: being offline is nobody's fault.
    for n in 0..50 {
        let flying: Vec<u64> = s.flying.iter().map(|f| f.id).collect();
        assert_eq!(s.lost(&flying, None, at(n)).given_up, []);
        s.session(true);
        assert_eq!(names(&send(&mut s, at(n))), ["a", "b"]);
    }
}

#[test]
fn a_message_that_ends_sessions_is_given_up_and_others_go_on_meanwhile() {
    let mut s = sender(2, 0, 2, &["a", "poison", "z"]);
    let mut now = 0;
    let mut published = vec![];
    let given_up = 'given_up: loop {
        s.session(true);
        for _ in 0..10 {
            let flying = send(&mut s, at(now));
            let Some((poison, _)) = flying.iter().find(|(_, name)| name == "poison") else {
                for (id, name) in flying {
                    assert!(s.published(id, at(now)).is_some());
                    published.push(name);
                }
                now += 500;
                continue;
            };
            let before: Vec<_> = flying.iter().filter(|(id, _)| id < poison).cloned().collect();
            for (id, name) in before {
                assert!(s.published(id, at(now)).is_some());
                published.push(name);
            }
            let lost: Vec<u64> = s.flying.iter().map(|f| f.id).collect();
            let suspect = Some((*poison, "the broker closed the connection".to_owned()));
            let verdicts = s.lost(&lost, suspect.as_ref(), at(now));
            if let [(id, why)] = &verdicts.given_up[..] {
                assert_eq!(id, poison);
                break 'given_up why.clone();
            }
            break;
        }
        now += 500;
        assert!(now < 100_000);
    };
    assert_eq!(given_up, "the broker closed the connection; tried 3 times");
    assert_eq!(published, ["a", "z"]);
    assert_eq!((s.waiting(), s.tries.len()), (0, 0));
}

#[test]
fn a_message_is_only_late_when_later_ones_were_acknowledged() {
    let mut s = sender(2, 0, 1, &["a", "b", "c"]);
    let sent = send(&mut s, at(0));
    // A dead connection: the session finds out by itself.
    assert_eq!(s.tick(at(200_000)), Verdicts::default());
    assert!(s.tick(at(300_000)).reconnect);
    assert!(!s.tick(at(300_001)).reconnect, "once is enough");
    s.published(sent[1].0, at(300_002));
    assert_eq!(names(&send(&mut s, at(300_002))), ["c"]);
    assert_eq!(s.next_wake(), Some(at(60_000)));
    assert_eq!(s.tick(at(300_003)), Verdicts::default(), "one more try");
    let again = send(&mut s, at(301_004));
    assert_eq!(names(&again), ["a"]);
    let c = s.flying.front().unwrap().id;
    s.published(c, at(301_005));
    let verdicts = s.tick(at(361_005));
    assert_eq!(verdicts.given_up.len(), 1);
    assert!(verdicts.given_up[0].1.contains("did not acknowledge"), "{verdicts:?}");
    // Its acknowledgement comes after all: too late.
    assert_eq!(s.published(again[0].0, at(400_000)), None);
}

#[test]
fn a_file_that_cannot_be_read_now_is_tried_later_and_holds_up_nobody() {
    let mut s = sender(2, 0, 2, &["a", "b"]);
    let a = s.next(at(0)).unwrap();
    s.rest(a, at(0));
    assert_eq!(names(&send(&mut s, at(0))), ["b"]);
    assert_eq!(s.next_wake(), Some(at(60_000)));
    assert_eq!(names(&send(&mut s, at(60_000))), ["a"]);
}

proptest! {
    /// A directory in which anything may happen: nothing is sent twice at once, and in the end everything was sent.
    #[test]
    fn nothing_is_forgotten(steps in prop::collection::vec((0u8..6, 0usize..8), 0..200)) {
        let mut s = sender(3, 0, 1000, &[]);
        let mut there = BTreeSet::new();
        let mut flying: Vec<(u64, String)> = vec![];
        let mut now = 0;
        let all = |s: &mut Sender, there: &BTreeSet<String>| {
            s.scan();
            there.iter().for_each(|name| s.seen(place(name)));
        };
        for (what, n) in steps {
            now += 700;
            match what {
                0 | 1 => {
                    there.insert(format!("f{n}"));
                    s.came(place(&format!("f{n}")));
                }
                2 if !flying.is_empty() => {
                    let (id, name) = flying.remove(n % flying.len());
                    prop_assert!(s.published(id, at(now)).is_some());
                    there.remove(&name);
                }
                3 => {
                    let ids: Vec<u64> = flying.drain(..).map(|(id, _)| id).collect();
                    let suspect = ids.first().filter(|_| n % 2 == 0).map(|id| (*id, "x".to_owned()));
                    prop_assert_eq!(s.lost(&ids, suspect.as_ref(), at(now)).given_up, vec![]);
                    s.session(n % 3 != 0);
                }
                4 => all(&mut s, &there),
                _ => s.session(true),
            }
            flying.extend(send(&mut s, at(now)));
            let mut unique: Vec<_> = flying.iter().map(|(_, name)| name).collect();
            unique.sort();
            unique.dedup();
            prop_assert!(unique.len() == flying.len() && flying.len() <= 3, "{:?}", flying);
        }
        s.session(true);
        for _ in 0..100 {
            now += 60_000;
            flying.extend(send(&mut s, at(now)));
            for (id, name) in flying.drain(..) {
                s.published(id, at(now));
                there.remove(&name);
            }
        }
        prop_assert!(there.is_empty(), "{:?}", there);
        prop_assert_eq!(s.waiting(), 0);
    }
}
