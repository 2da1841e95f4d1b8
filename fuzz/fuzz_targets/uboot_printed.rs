#![no_main]
#[allow(dead_code)]
#[path = "../boot_targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::uboot_printed(data));
