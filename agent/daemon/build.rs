//! Tells the program when it was built: a clock that shows less is not set. Reproducible builds set
//! `SOURCE_DATE_EPOCH`. And leaves out of releases what serves nobody on the device.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rerun-if-changed=build.rs");
    let epoch = env::var("SOURCE_DATE_EPOCH").ok().and_then(|s| s.parse::<u64>().ok());
    let built = epoch.or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs()));
    println!("cargo::rustc-env=OTANDEM_BUILT={}", built.unwrap_or(0));
    leave_out_unwind_tables();
    pack_relocations();
}

/// Releases abort on a panic, so their tables for unwinding serve nobody on the device; half a megabyte. Who wants
/// backtraces out of core dumps sets `OTANDEM_UNWIND_TABLES=keep`.
fn leave_out_unwind_tables() {
    println!("cargo::rerun-if-env-changed=OTANDEM_UNWIND_TABLES");
    println!("cargo::rerun-if-changed=release.ld");
    let is = |name, value| env::var(name).is_ok_and(|v: String| v == value);
    let has = |name, value| env::var(name).is_ok_and(|v: String| v.split(',').any(|word| word == value));
    // A static program registers its tables when it starts, and so cannot be linked without them.
    let linux = is("CARGO_CFG_TARGET_OS", "linux") && !has("CARGO_CFG_TARGET_FEATURE", "crt-static");
    if is("PROFILE", "release") && linux && !is("OTANDEM_UNWIND_TABLES", "keep") {
        let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bin=otandem=-Wl,-T,{root}/release.ld");
    }
}

/// The relocations of a position-independent program take 176 kB, which every start reads; packed 7 kB. The C library
/// must know of that: glibc 2.36 (2022). `OTANDEM_RELOCATIONS=plain` is for an older one.
fn pack_relocations() {
    println!("cargo::rerun-if-env-changed=OTANDEM_RELOCATIONS");
    let is = |name, value| env::var(name).is_ok_and(|v: String| v == value);
    let glibc = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if is("PROFILE", "release") && glibc && !is("OTANDEM_RELOCATIONS", "plain") {
        println!("cargo::rustc-link-arg-bin=otandem=-Wl,-z,pack-relative-relocs");
    }
}
