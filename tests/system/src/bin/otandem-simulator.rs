//! `otandem-simulator`: plays the loader of the simulated bootloader from a command line, for scripts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use otandem_core::boot::SetId;
use otandem_system_tests::loader;

const USAGE: &str = "\
usage: otandem-simulator boot DIR --slot-a FILE... --slot-b FILE...   plays one reset; prints the set that boots
       otandem-simulator env DIR                                      prints the variables
       otandem-simulator reset-env DIR                                loses the variables";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["--help" | "-h"] => Ok(USAGE.to_owned()),
        ["boot", folder, slots @ ..] => boot(Path::new(folder), slots),
        ["env", folder] => loader::env_text(Path::new(folder)).map_err(|e| e.to_string()),
        ["reset-env", folder] => {
            loader::reset_env(Path::new(folder)).map(|()| "reset".to_owned()).map_err(|e| e.to_string())
        }
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(64)
        }
    }
}

fn boot(folder: &Path, slots: &[&str]) -> Result<String, String> {
    let mut sets: [Vec<PathBuf>; 2] = [vec![], vec![]];
    for pair in slots.chunks(2) {
        match *pair {
            ["--slot-a", file] => sets[0].push(file.into()),
            ["--slot-b", file] => sets[1].push(file.into()),
            _ => return Err(USAGE.to_owned()),
        }
    }
    if sets.iter().any(Vec::is_empty) {
        return Err(USAGE.to_owned());
    }
    let slots_of = |set| match set {
        SetId::A => sets[0].clone(),
        SetId::B => sets[1].clone(),
    };
    match loader::boot(folder, slots_of) {
        Ok(Some(set)) => Ok(set.name().to_owned()),
        Ok(None) => Err("nothing can be booted: neither set has an image".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
