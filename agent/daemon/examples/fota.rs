//! A product's own program that drives an update step by step.
//!
//! ```sh
//! cargo run --example fota -- /etc/otandem/otandem.toml job.json
//! ```
//!
//! Prints what it does; leaves the new set armed, so that the next reset tries it. After that reset the new set makes
//! itself final with `fota::confirm`, or an agent does.

use std::process::ExitCode;

use otandem::config::{Settings, Sources};
use otandem::fota;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, document] = arguments.as_slice() else {
        eprintln!("usage: fota CONFIG DOCUMENT");
        return ExitCode::from(64);
    };
    match install(config, document) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("fota: {why}");
            ExitCode::FAILURE
        }
    }
}

fn install(config: &str, document: &str) -> Result<(), Box<dyn std::error::Error>> {
    let sources = Sources { explicit: Some(config.into()), ..Sources::default() };
    let (settings, _) = Settings::load(&sources)?;
    let document = std::fs::read_to_string(document)?;
    fota::update(&settings, &document)?;
    println!("downloaded and checked");
    fota::test(&settings, &document)?;
    println!("armed: the next reset tries it");
    Ok(())
}
