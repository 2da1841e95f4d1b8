//! What is fuzzed of the boot back ends: everything that they read which others may have written. As in `targets.rs`,
//! bytes in, and a target must not panic. `bootloader-hooks/tests/corpora.rs` replays the corpora.

use otandem_boot::counters::Env;
use otandem_boot::grub::{block, vars};
use otandem_boot::systemd_boot::model::{EntryFile, Partition};
use otandem_boot::uboot::model::{Contents, Form, Invalid};
use otandem_boot::uboot::{Copies, Place, parse_env_config, printed};
use otandem_boot::{BootNames, detect, grub, systemd_boot, uboot};
use otandem_core::boot::SetId;

/// What runs on one input.
pub type Target = fn(&[u8]);

/// Name and function of each target.
pub const ALL: [(&str, Target); 5] = [
    ("uboot_printed", uboot_printed),
    ("uboot_medium", uboot_medium),
    ("fw_env_config", fw_env_config),
    ("grubenv", grubenv),
    ("loader_entries", loader_entries),
];

/// Files in a directory of entries that are looked at: more only take time.
const MAX_FILES: usize = 16;

/// What `fw_printenv` printed.
pub fn uboot_printed(data: &[u8]) {
    let (text, names) = (String::from_utf8_lossy(data), BootNames::default());
    let [order, a, b] = ["BOOT_ORDER", "BOOT_A_LEFT", "BOOT_B_LEFT"].map(|name| printed(&text, name));
    for value in [order, a, b].into_iter().flatten() {
        assert!(!value.is_empty() && !value.contains('\n'), "a value that is no value");
    }
    let env = Env::from_values(order, [a, b], &names);
    if !env.order().is_empty() {
        assert_eq!(Env::parse(&env.format(&names), &names), Some(env));
    }
    // As the simulated loader reads its file.
    if let Some(env) = Env::parse(&text, &names) {
        assert_eq!(Env::parse(&env.format(&names), &names), Some(env));
    }
}

/// The medium of U-Boot's environment: as it is, and the lines of the input as variables of a whole copy.
pub fn uboot_medium(data: &[u8]) {
    for form in [Form::Single, Form::Redundant] {
        let _ = uboot::model::decode(data, form);
    }
    let half = data.len() / 2;
    for copies in [vec![(0, data.len())], vec![(0, half), (half as u64, data.len() - half)]] {
        let decision = uboot::model::decide(data, &copies, |_| true);
        assert!(decision.booted.is_some(), "two good sets, and none is booted");
    }
    let variable = |line: &[u8]| {
        let at = line.iter().position(|b| *b == b'=')?;
        Some((line[..at].to_vec(), line[at + 1..].to_vec()))
    };
    let variables = data.split(|b| *b == b'\n').filter_map(variable).collect();
    let Ok(copy) = uboot::model::encode(&Contents { flags: 1, variables }, 0x4000, Form::Single) else {
        return;
    };
    let read = uboot::model::decode(&copy, Form::Single);
    assert!(!matches!(read, Err(Invalid::Short | Invalid::Checksum)), "what was encoded is not whole");
    assert!(uboot::model::decide(&copy, &[(0, copy.len())], |_| true).booted.is_some());
}

/// `fw_env.config`.
pub fn fw_env_config(data: &[u8]) {
    let places: Vec<Place> = match parse_env_config(&String::from_utf8_lossy(data)) {
        Copies::Redundant(places) => places.into(),
        Copies::Single(place) => vec![place],
        Copies::Unclear(why) => {
            assert!(!why.is_empty() && !why.contains('\n'), "a reason of several lines");
            vec![]
        }
    };
    for place in places {
        let device = place.device.to_string_lossy();
        assert!(!device.is_empty() && !device.contains(|c: char| c.is_ascii_whitespace()), "{device:?}");
    }
}

/// `grubenv`.
pub fn grubenv(data: &[u8]) {
    let variables = block::variables(data);
    for variable in &variables {
        assert!(data.get(variable.place.clone()).is_some(), "a variable outside the file");
        assert!(!variable.name.contains(&b'='), "a name with a value in it");
    }
    let _ = vars::Vars::read(&variables, &BootNames::default());
    if let Some(saved) = block::save(data, b"B_TRY", b"1") {
        assert_eq!(saved.len(), data.len(), "GRUB never changes the size");
    }
    let ours = [("ORDER".to_owned(), data.to_vec()), ("A_OK".to_owned(), b"1".to_vec())];
    if let Ok(made) = block::encode(&ours, block::region([("A_OK", 1)]), data) {
        assert_eq!(made.len(), block::SIZE);
        assert_eq!(block::check(&made), Ok(()));
    }
    for (set, other) in [(SetId::A, SetId::B), (SetId::B, SetId::A)] {
        assert_eq!(grub::model::decide(data, |s| s == set).booted, Some(set), "{other} cannot be loaded");
    }
}

/// The files of `loader/entries`, with NUL bytes between names and contents; the first piece is `loader.conf`. And the
/// same bytes as a text in a variable of the firmware.
pub fn loader_entries(data: &[u8]) {
    let oneshot = detect::efi_text(data);
    let mut pieces = data.split(|b| *b == 0);
    let conf = String::from_utf8_lossy(pieces.next().unwrap_or_default()).into_owned();
    let mut files = Vec::new();
    while let (Some(name), Some(content)) = (pieces.next(), pieces.next()) {
        let partition = if files.len() % 2 == 0 { Partition::Esp } else { Partition::Xbootldr };
        let name = String::from_utf8_lossy(name).into_owned();
        files.push(EntryFile { partition, name, content: content.to_vec() });
        if files.len() == MAX_FILES {
            break;
        }
    }
    for oneshot in [None, oneshot.as_deref()] {
        for good in [None, Some(SetId::A), Some(SetId::B)] {
            let decision = systemd_boot::model::decide(&files, &conf, oneshot, |set| Some(set) == good);
            assert!(decision.booted.is_none() || decision.booted == good, "a bad set runs");
            assert!(decision.renames.len() <= decision.tried.len(), "renamed and not tried");
            for rename in &decision.renames {
                assert!(rename.to.contains('+') && rename.to.ends_with(".conf"), "{rename:?}");
            }
        }
    }
}
