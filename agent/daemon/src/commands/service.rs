//! `otandem service`: definitions of services, without a daemon.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::complain;
use crate::definitions::{Taken, as_json};
use crate::exit::Exit;
use crate::features;

/// `otandem service`
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Service {
    /// Print each definition of a directory as it is understood, as JSON; exit with 65 if one is wrong
    Check {
        /// Directory with definitions (*.toml, *.json, *.js)
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

pub(super) fn service(service: &Service) -> Exit {
    let Service::Check { directory } = service;
    match check(directory) {
        Ok(exit) => exit,
        Err((exit, why)) => complain(exit, &why),
    }
}

/// Good ones go to standard output, one a line; what is wrong goes to standard error.
fn check(directory: &Path) -> Result<Exit, (Exit, String)> {
    let (mut taken, mut exit) = (Taken::default(), Exit::Ok);
    for found in features::definitions(directory)? {
        let file = &found.name;
        let definition = match found.definition {
            Ok(definition) => definition,
            Err(why) => {
                exit = complain(Exit::Data, &format!("{file}: {why}"));
                continue;
            }
        };
        for key in &definition.unknown {
            complain(Exit::Ok, &format!("{file}: {key} is not known and has no effect"));
        }
        if let Err(why) = taken.take(file, definition.shadow.as_deref().unwrap_or_default(), &definition) {
            exit = complain(Exit::Data, &format!("{file}: {why}"));
        }
        let line = json!({ "file": file, "definition": as_json(&definition) });
        let written = writeln!(std::io::stdout(), "{line}");
        written.map_err(|e| (Exit::CannotCreate, format!("standard output: {e}")))?;
    }
    Ok(exit)
}
