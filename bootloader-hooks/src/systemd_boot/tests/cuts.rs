//! The power goes at every step of every call.

use super::*;

type Entries = &'static [(&'static str, &'static str)];
type Act = fn(&mut SystemdBoot) -> Result<(), BootError>;

/// Situations: entries of A and B, who runs, what is done, the set that then is booted, and whether A is the
/// fallback all the time.
const SITUATIONS: [(&str, Entries, Entries, SetId, Act, SetId, bool); 13] = [
    (
        "mark the old set bad",
        &[("otandem-a.conf", "7")],
        &[("otandem-b.conf", "6")],
        A,
        |b| b.mark_bad(B),
        A,
        true,
    ),
    (
        "mark a tried set bad",
        &[("otandem-a.conf", "7")],
        &[("otandem-b+0-1.conf", "8")],
        A,
        |b| b.mark_bad(B),
        A,
        true,
    ),
    ("arm a bad set", &[("otandem-a.conf", "7")], &[("otandem-b+0.conf", "~bad")], A, |b| b.arm(B), B, true),
    ("arm the old set", &[("otandem-a.conf", "7")], &[("otandem-b.conf", "6")], A, |b| b.arm(B), B, true),
    ("arm a higher set", &[("otandem-a.conf", "7")], &[("otandem-b.conf", "9")], A, |b| b.arm(B), B, true),
    (
        "arm what a cut left",
        &[("otandem-a.conf", "7")],
        &[("otandem-b+0.conf", "8"), ("otandem-b+1.conf", "8")],
        A,
        |b| b.arm(B),
        B,
        true,
    ),
    ("arm a lost set", &[("otandem-a.conf", "7")], &[], A, |b| b.arm(B), B, true),
    ("disarm", &[("otandem-a.conf", "7")], &[("otandem-b+1.conf", "8")], A, |b| b.disarm(B), A, true),
    ("confirm", &[("otandem-a.conf", "7")], &[("otandem-b+0-1.conf", "8")], B, |b| b.confirm(B), B, false),
    (
        "confirm with tries left",
        &[("otandem-a.conf", "7")],
        &[("otandem-b+1-1.conf", "8")],
        B,
        |b| b.confirm(B),
        B,
        false,
    ),
    (
        "confirm a lower one",
        &[("otandem-a.conf", "7")],
        &[("otandem-b+0-1.conf", "6")],
        B,
        |b| b.confirm(B),
        B,
        false,
    ),
    (
        "keep a counted one",
        &[("otandem-a.conf", "7")],
        &[("otandem-b+1-1.conf", "8")],
        B,
        |b| b.keep(B),
        B,
        false,
    ),
    ("roll back", &[("otandem-a.conf", "7")], &[("otandem-b+2-1.conf", "8")], B, |b| b.mark_bad(B), A, true),
];

#[test]
fn a_power_cut_at_any_step_boots_a_set_that_is_there_and_the_step_can_be_done_again() {
    let mut states = 0;
    for (what, a, b, running, act, booted, fallback) in SITUATIONS {
        for shared in [false, true] {
            let whole = Device::new(shared, a, b);
            act(&mut whole.boot(running, 1)).unwrap();
            assert_eq!(whole.reset(|_| true), Some(booted), "{what}");
            let steps = whole.disk.lock().unwrap().steps;
            assert!(steps > 0, "{what} does something");
            for (at, cut) in (0..steps).flat_map(|at| CUTS.map(|cut| (at, cut))) {
                let device = Device::new(shared, a, b);
                device.disk.lock().unwrap().cut = Some((at, cut));
                act(&mut device.boot(running, 1)).unwrap_err();
                let left = device.names();
                let case = format!("{what}, shared {shared}, {cut:?} at step {at}: {left:?}");
                let next = decide(&device.files(), CONF, None, |_| true).booted;
                assert!(next.is_some(), "{case}: nothing boots");
                // With B's kernel or slots gone (they are written once it is marked bad) it costs resets only.
                let falls_back = |files: &[EntryFile]| decide(files, CONF, None, |set| set == A).booted;
                if fallback && falls_back(&Device::new(shared, a, b).files()).is_some() {
                    assert_eq!(falls_back(&device.files()), Some(A), "{case}");
                }
                // Power is back; the update machine asks again.
                {
                    let mut disk = device.disk.lock().unwrap();
                    (disk.dead, disk.cut) = (false, None);
                }
                act(&mut device.boot(running, 1)).unwrap_or_else(|e| panic!("{case}: {e}"));
                assert_eq!(device.reset(|_| true), Some(booted), "{case}: and again");
                states += 1;
            }
        }
    }
    assert!(states > 300, "{states}");
}
