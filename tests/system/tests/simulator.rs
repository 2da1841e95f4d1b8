//! `otandem-simulator`: what scripts in other languages play the loader with.

use std::path::Path;
use std::process::{Command, Output};

use otandem_system_tests::{Health, Image};

fn simulator(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_otandem-simulator")).args(arguments).output().unwrap()
}

fn boot(folder: &Path) -> Output {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    simulator(&["boot", &path("boot"), "--slot-a", &path("a"), "--slot-b", &path("b")])
}

#[test]
fn boots_what_can_be_loaded_and_prints_it() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    let image = Image::plain("1", Health::Good, 8192);
    write("a", &image.bytes);
    write("b", &[0; 8192]);
    assert_eq!(String::from_utf8(boot(folder.path()).stdout).unwrap(), "A\n");
    write("a", &[0; 8192]);
    let nothing = boot(folder.path());
    assert!(!nothing.status.success() && nothing.stdout.is_empty());
    write("b", &image.bytes);
    assert_eq!(String::from_utf8(boot(folder.path()).stdout).unwrap(), "B\n");
    let directory = folder.path().join("boot");
    let directory = directory.to_str().unwrap();
    assert!(simulator(&["reset-env", directory]).status.success());
    let env = String::from_utf8(simulator(&["env", directory]).stdout).unwrap();
    assert_eq!(env, "BOOT_ORDER=A B\n", "as new: the tries of a set that has no counter are counted");
    assert_eq!(simulator(&["dance"]).status.code(), Some(64));
}
