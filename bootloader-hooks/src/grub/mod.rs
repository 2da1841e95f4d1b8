//! GRUB: the variables of its environment block, a file of 1024 bytes that `grub.cfg` reads at every boot.
//!
//! The variables are RAUC's, with one of ours beside them:
//!
//! | variable | value | without it |
//! |---|---|---|
//! | `ORDER` | boot names, the first one first | `A B` |
//! | `<name>_OK` | `1`: may be booted | `1` |
//! | `<name>_TRY` | `0`: may be tried | `0` |
//! | `OTANDEM_TRIAL` | boot name of the set on trial | none |
//!
//! RAUC's alone do not tell a confirmed set from an armed one, so that a script has to count every boot, and somebody has
//! to undo it. With ours the shipped `grub.cfg` counts (sets `<name>_TRY` to `1`) only what is on trial, and writes nothing
//! otherwise. It can count to one: GRUB's script language has no numbers.
//!
//! What the variables of one set mean:
//!
//! | listed and OK=1 | TRY | on trial | `SetState` | it is |
//! |---|---|---|---|---|
//! | no | any | any | Bad | not to be booted |
//! | yes | 0 | no | Good | confirmed, or the fallback |
//! | yes | 0 | yes | Untried | armed |
//! | yes | not 0 | yes | Tried | in its trial, or back from it |
//! | yes | not 0 | no | Tried | counted by a script that counts every boot, as RAUC's does |
//!
//! The last row under such a script: a confirmed set that runs has it from its start until [`BootControl::keep`]; the
//! next reset would pass over it, so it is not Good. A confirmed set that does not run has it when it did not get as far
//! as that: the update machine then takes it for exhausted and stays where it is. The verdict on an update only asks for
//! its target, which is on trial from [`BootControl::arm`] until its end, whatever the script: Untried and Tried mean the
//! same under both. Which set runs has no part in the table.
//!
//! A block that GRUB would not take (empty, short, another signature) counts as what `grub.cfg` does without one: both sets
//! good, A first. The next change makes a proper one.
//!
//! A change is one write in place, ours within the first sector. A block that others arranged is first arranged anew with
//! the values that it has, so that no torn write mixes old and new values.

pub mod block;
mod file;
pub mod model;
pub mod vars;

use std::path::PathBuf;

use otandem_core::boot::{Facts, SetId};

use crate::booted::{Seen, Verdict, combine};
use crate::{BootControl, BootError, BootNames, Config, Tries, View};
use block::Variable;
use file::EnvFile;
use vars::Vars;

/// GRUB, by its environment block.
#[derive(Debug)]
pub struct Grub {
    file: EnvFile,
    config: Config,
    seen: Seen,
}

/// The block as it was read.
struct Found {
    bytes: Vec<u8>,
    variables: Vec<Variable>,
    vars: Vars,
}

impl Grub {
    /// A back end on the file that `grub.cfg` reads; what the file holds does not matter yet.
    ///
    /// # Errors
    /// GRUB could not use such a file, such boot names, or that many trial boots.
    pub fn open(grubenv: PathBuf, config: Config, seen: Seen) -> Result<Self, BootError> {
        vars::check_names(&config.names)?;
        if config.trial_tries != Tries::ONE {
            let tries = config.trial_tries.get();
            let why = format!("trial-boots = {tries} is more than GRUB can count: use 1");
            return Err(BootError::Config(why));
        }
        Ok(Self { file: EnvFile::open(grubenv)?, config, seen })
    }

    fn names(&self) -> &BootNames {
        &self.config.names
    }

    fn booted(&self) -> Verdict {
        combine(&self.seen.claims(self.names()))
    }

    fn found(&self) -> Result<Found, BootError> {
        let bytes = self.file.read()?;
        let variables = block::variables(&bytes);
        let vars = Vars::read(&variables, self.names());
        Ok(Found { bytes, variables, vars })
    }

    fn encode(&self, vars: &Vars, found: &Found) -> Result<Vec<u8>, BootError> {
        let path = self.file.path().display();
        vars.encode(&found.bytes, &found.variables, self.names())
            .map_err(|e| BootError::Config(format!("grubenv {path} cannot be changed: {e}")))
    }

    /// Makes the change in one write, if there is anything to change, and reads it back.
    fn change(&self, change: impl FnOnce(&mut Vars, &BootNames)) -> Result<(), BootError> {
        let found = self.found()?;
        let mut wanted = found.vars.clone();
        change(&mut wanted, self.names());
        let block = self.encode(&wanted, &found)?;
        if block == found.bytes {
            return Ok(());
        }
        let arranged = self.encode(&found.vars, &found)?;
        if arranged != found.bytes && arranged != block && block::check(&found.bytes).is_ok() {
            self.write(&arranged)?;
        }
        self.write(&block)
    }

    fn write(&self, block: &[u8]) -> Result<(), BootError> {
        let found = self.file.write(block)?;
        if found == block {
            return Ok(());
        }
        let what = self.file.path().display().to_string();
        Err(BootError::ReadBack { what, wanted: self.text(block), found: self.text(&found) })
    }

    /// Our variables in a block, for a message.
    fn text(&self, bytes: &[u8]) -> String {
        if let Err(why) = block::check(bytes) {
            return format!("a file that {why}");
        }
        let variables = block::variables(bytes);
        let values = vars::own_names(self.names()).map(|name| {
            let value = vars::value(&variables, &name).map(printable);
            format!("{name}={}", value.unwrap_or_else(|| "(missing)".into()))
        });
        values.join(", ")
    }
}

/// Foreign bytes for a person.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl BootControl for Grub {
    fn facts(&mut self) -> Result<Facts, BootError> {
        let vars = self.found()?.vars;
        Ok(Facts {
            booted: self.booted().booted,
            boot_id: self.seen.boot_id.clone(),
            primary: vars.primary(self.names()),
            a: vars.state(SetId::A, self.names()),
            b: vars.state(SetId::B, self.names()),
        })
    }

    fn view(&mut self) -> Result<View, BootError> {
        let Found { bytes, variables, vars } = self.found()?;
        let path = self.file.path().display();
        let mut values = Vec::new();
        match block::check(&bytes) {
            Err(why) => values.push((path.to_string(), format!("{why}: grub.cfg goes by its defaults"))),
            Ok(()) if bytes.len() != block::SIZE => {
                let why = format!("has {} bytes in place of {}", bytes.len(), block::SIZE);
                values.push((path.to_string(), why));
            }
            Ok(()) => {}
        }
        for (name, default) in Vars::read(&[], self.names()).values(self.names()) {
            let stands = vars::value(&variables, &name).map(printable);
            let missing = || format!("(missing: grub.cfg takes {:?})", printable(&default));
            values.push((name.clone(), stands.unwrap_or_else(missing)));
        }
        let own = vars::own_names(self.names());
        let foreign = variables.iter().filter(|v| own.iter().all(|name| name.as_bytes() != v.name));
        values.extend(foreign.map(|v| (printable(&v.name), printable(&v.value))));
        if vars.primary(self.names()).is_none() {
            let last_resort = "nothing is left to boot: grub.cfg tries set A, then set B";
            values.push(("next".into(), last_resort.into()));
        }
        Ok(View { loader: format!("GRUB, {path}"), values })
    }

    fn arm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_not_run("arm", set)?;
        self.change(|vars, names| vars.arm(set, names))
    }

    fn keep(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_run("keep", set)?;
        self.change(|vars, names| vars.keep(set, names))
    }

    fn disarm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_not_run("disarm", set)?;
        self.change(|vars, names| vars.disarm(set, names))
    }

    fn confirm(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().must_run("confirm", set)?;
        self.change(|vars, names| vars.confirm(set, names))
    }

    fn mark_bad(&mut self, set: SetId) -> Result<(), BootError> {
        self.booted().running("mark bad")?;
        if !self.found()?.vars.bootable(set.other(), self.names()) {
            return Err(BootError::NoFallback { set });
        }
        self.change(|vars, names| vars.mark_bad(set, names))
    }
}

#[cfg(test)]
mod tests;
