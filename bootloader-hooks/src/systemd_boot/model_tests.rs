use super::*;
use proptest::prelude::*;

const CONF: &str = "default otandem-*\ntimeout 0\neditor no\n";

/// An entry of ours: on the ESP for A, on XBOOTLDR for B.
fn file(name: &str, version: &str) -> EntryFile {
    let (set, partition) =
        if name.starts_with("otandem-a") { ("a", Partition::Esp) } else { ("b", Partition::Xbootldr) };
    let content = format!("title x\nsort-key otandem\nversion {version}\nlinux /otandem/{set}/vmlinuz\n");
    EntryFile { partition, name: name.into(), content: content.into() }
}

fn tried(decision: &Decision) -> Vec<&str> {
    decision.tried.iter().map(|t| t.name.as_str()).collect()
}

#[test]
fn the_newest_version_that_is_not_exhausted_is_booted() {
    for (a, b, booted, renamed) in [
        (("otandem-a.conf", "1"), ("otandem-b.conf", "2"), SetId::B, None),
        (("otandem-a.conf", "10"), ("otandem-b.conf", "9"), SetId::A, None),
        (("otandem-a.conf", "1"), ("otandem-b+1.conf", "2"), SetId::B, Some("otandem-b+0-1.conf")),
        (("otandem-a.conf", "1"), ("otandem-b+3.conf", "2"), SetId::B, Some("otandem-b+2-1.conf")),
        (("otandem-a.conf", "1"), ("otandem-b+0-1.conf", "2"), SetId::A, None),
        (("otandem-a.conf", "1"), ("otandem-b+0.conf", "~bad"), SetId::A, None),
        (("otandem-a.conf", "1"), ("otandem-b.conf", "~bad"), SetId::A, None),
        (("otandem-a+1-1.conf", "1"), ("otandem-b+0-1.conf", "2"), SetId::A, Some("otandem-a+0-2.conf")),
        (("otandem-a+0-1.conf", "1"), ("otandem-b+0-1.conf", "2"), SetId::B, Some("otandem-b+0-2.conf")),
    ] {
        let decision = decide(&[file(a.0, a.1), file(b.0, b.1)], CONF, None, |_| true);
        assert_eq!(decision.booted, Some(booted), "{a:?} {b:?}");
        assert_eq!(decision.renames.first().map(|r| r.to.as_str()), renamed, "{a:?} {b:?}");
    }
}

#[test]
fn a_kernel_that_cannot_be_loaded_costs_its_tries_and_then_the_other_set_boots() {
    let files = [file("otandem-a.conf", "1"), file("otandem-b+2.conf", "2")];
    let decision = decide(&files, CONF, None, |set| set == SetId::A);
    assert_eq!(tried(&decision), ["otandem-b+2.conf", "otandem-b+1-1.conf", "otandem-a.conf"]);
    assert_eq!(decision.booted, Some(SetId::A));
    let rename = &decision.renames[1];
    assert_eq!((rename.from.as_str(), rename.to.as_str()), ("otandem-b+1-1.conf", "otandem-b+0-2.conf"));
}

#[test]
fn what_fails_for_ever_ends() {
    let files = [file("otandem-a.conf", "1"), file("otandem-b+0-1.conf", "2")];
    assert_eq!(decide(&files, CONF, None, |_| false).booted, None);
    let exhausted = [file("otandem-a+0-1.conf", "1"), file("otandem-b+0-1.conf", "2")];
    assert_eq!(tried(&decide(&exhausted, CONF, None, |set| set == SetId::A)), ["otandem-b+0-1.conf"]);
    assert_eq!(decide(&[], CONF, None, |_| true), Decision::default());
}

/// Two thousand million resets in a row were followed one by one, with all that they left in memory.
#[test]
fn a_counter_that_nobody_lives_to_see_the_end_of_is_not_counted_down() {
    let decision = decide(&[file("otandem-a+2147483647.conf", "1")], "", None, |_| false);
    assert_eq!((decision.booted, decision.tried.len()), (None, MAX_RESETS));
}

#[test]
fn a_pattern_for_one_set_boots_it_however_exhausted() {
    let files = [file("otandem-a.conf", "1"), file("otandem-b+0-1.conf", "2")];
    let decision = decide(&files, "default otandem-b*\n", None, |_| true);
    assert_eq!(decision.booted, Some(SetId::B));
    assert_eq!(decision.renames[0].to, "otandem-b+0-2.conf");
}

#[test]
fn a_one_shot_holds_for_one_try_and_an_unknown_one_for_none() {
    let files = [file("otandem-a.conf", "2"), file("otandem-b.conf", "1")];
    for (oneshot, loadable, wanted) in [
        ("otandem-b.conf", true, vec!["otandem-b.conf"]),
        ("OTANDEM-B.CONF", true, vec!["otandem-b.conf"]),
        ("otandem-b.conf", false, vec!["otandem-b.conf", "otandem-a.conf"]),
        ("otandem-b+1.conf", true, vec!["otandem-a.conf"]),
        ("", true, vec!["otandem-a.conf"]),
    ] {
        let decision = decide(&files, CONF, Some(oneshot), |set| set == SetId::A || loadable);
        assert_eq!(tried(&decision), wanted, "{oneshot}");
    }
}

#[test]
fn the_variable_for_the_default_overrules_the_file() {
    let files = [file("otandem-a.conf", "2"), file("otandem-b.conf", "1")];
    for (default, booted) in [("otandem-b.conf", SetId::B), ("gone.conf", SetId::A)] {
        let variables = Variables { oneshot: None, default: Some(default) };
        let decision = decide_named(&BootNames::default(), &files, CONF, variables, |_| true);
        assert_eq!(decision.booted, Some(booted), "{default}");
    }
}

#[test]
fn what_is_no_entry_is_not_seen() {
    let mut empty = file("otandem-b.conf", "9");
    empty.content.clear();
    let hidden = [".otandem-b.conf", "auto-otandem-b.conf", "otandem-b.conf.old", "otandem-b.template"];
    let mut files = vec![file("otandem-a.conf", "1"), empty];
    files.extend(hidden.map(|name| EntryFile { name: name.into(), ..file("otandem-b.conf", "9") }));
    let decision = decide(&files, CONF, None, |_| true);
    assert_eq!(tried(&decision), ["otandem-a.conf"]);
}

#[test]
fn the_set_of_an_entry_is_what_its_kernel_is_told() {
    let mut crossed = file("otandem-b.conf", "9");
    crossed.content.extend(b"options quiet otandem.set=A root=PARTLABEL=root-a\n");
    let decision = decide(&[crossed], CONF, None, |_| true);
    assert_eq!(decision.booted, Some(SetId::A));
    let foreign = EntryFile { name: "debian.conf".into(), ..file("otandem-a.conf", "1") };
    let decision = decide(&[foreign], CONF, None, |_| true);
    assert_eq!((decision.tried.len(), decision.booted), (1, None));
}

#[test]
fn keyed_entries_come_before_others_and_names_decide_at_the_end() {
    let plain = |name: &str| EntryFile {
        partition: Partition::Esp,
        name: name.into(),
        content: b"linux /k\nversion 9\n".to_vec(),
    };
    let files = [plain("zz.conf"), file("otandem-a.conf", "1"), file("otandem-b.conf", "1"), plain("a.conf")];
    let order: Vec<usize> = listed(&files).iter().map(|l| l.file).collect();
    assert_eq!(order, [2, 1, 0, 3]);
}

proptest! {
    #[test]
    fn any_files_end_in_a_decision(
        files in prop::collection::vec(("otandem-[ab]([+][0-3](-[0-3])?)?.conf", "[0-9~]{0,3}", any::<bool>()), 0..6),
        noise: Vec<u8>,
        conf: String,
        oneshot in prop::option::of("otandem-[ab*](.conf)?"),
        loadable: [bool; 2],
    ) {
        let mut all: Vec<EntryFile> = Vec::new();
        for (name, version, real) in files {
            let new = file(&name, &version);
            if !all.iter().any(|f| f.name == new.name) {
                all.push(if real { new } else { EntryFile { content: noise.clone(), ..new } });
            }
        }
        let able = |set: SetId| loadable[usize::from(set == SetId::B)];
        let decision = decide(&all, &conf, oneshot.as_deref(), able);
        prop_assert!(decision.booted.is_none_or(able));
        prop_assert!(decision.tried.len() <= 40);
    }
}
