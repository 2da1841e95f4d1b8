//! What the tables of the configuration come to: which shadows there are, and which services each of them has. What is
//! wrong with one definition is told and left out.

use std::collections::BTreeMap;

use otandem_core::services::definition::Definition;
use otandem_core::shadow::Name;

use crate::config::ServicesSettings;
use crate::definitions::{self, Taken};

/// Shadows together: five topics each, of the fifty that the broker allows in one session.
const MAX_SHADOWS: usize = 8;

/// One table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) settings: ServicesSettings,
    pub(super) thing: String,
    pub(super) shadows: Vec<(Name, Vec<Definition>)>,
    /// What is not served, and why.
    pub(super) problems: Vec<String>,
}

impl Table {
    /// Of what names no shadow: update files without a service, and a default.
    pub(super) fn home(&self) -> Name {
        Name { thing: self.thing.clone(), shadow: self.settings.shadow.clone() }
    }

    fn problem(&mut self, what: String) {
        tracing::warn!("services.{}: {what}", self.settings.name);
        self.problems.push(what);
    }
}

/// All of them. `own`: the device's own thing.
pub(super) fn load(all: Vec<ServicesSettings>, own: &str) -> Vec<Table> {
    let mut loader = Loader::default();
    all.into_iter().map(|settings| loader.table(settings, own)).collect()
}

#[derive(Default)]
struct Loader {
    taken: Taken,
    /// Which table a shadow belongs to.
    owners: BTreeMap<Name, String>,
}

impl Loader {
    fn table(&mut self, settings: ServicesSettings, own: &str) -> Table {
        let thing = settings.thing.clone().unwrap_or_else(|| own.to_owned());
        let mut table = Table { settings, thing, shadows: vec![], problems: vec![] };
        if table.settings.updates.is_some() || table.settings.default_shadow.is_some() {
            let home = table.home();
            if let Err(why) = self.shadow(&mut table, &home) {
                table.problem(why);
            }
        }
        let Some(directory) = table.settings.directory.clone() else { return table };
        match definitions::directory(&directory) {
            Err(why) => table.problem(why),
            Ok(found) => {
                for found in found {
                    let file = directory.join(&found.name).display().to_string();
                    let taken = found.definition.map_err(|e| e.to_string());
                    if let Err(why) = taken.and_then(|d| self.definition(&mut table, &file, d)) {
                        table.problem(format!("{file}: {why}"));
                    }
                }
            }
        }
        table
    }

    fn definition(&mut self, table: &mut Table, file: &str, definition: Definition) -> Result<(), String> {
        for key in &definition.unknown {
            tracing::warn!("{file}: {key} is not known and has no effect");
        }
        let mut name = table.home();
        if definition.shadow.is_some() {
            name.shadow.clone_from(&definition.shadow);
        }
        let at = self.shadow(table, &name)?;
        self.taken.take(file, &name.get(), &definition)?;
        table.shadows[at].1.push(definition);
        Ok(())
    }

    /// The place of a shadow in its table.
    fn shadow(&mut self, table: &mut Table, name: &Name) -> Result<usize, String> {
        if let Some(at) = table.shadows.iter().position(|(known, _)| known == name) {
            return Ok(at);
        }
        let shown = shown(name);
        if let Some(other) = self.owners.get(name) {
            return Err(format!("{shown} is that of services.{other} already; write both into one table"));
        }
        if self.owners.len() == MAX_SHADOWS {
            return Err(format!("{shown} is one too many: {MAX_SHADOWS} shadows are served"));
        }
        self.owners.insert(name.clone(), table.settings.name.clone());
        table.shadows.push((name.clone(), vec![]));
        Ok(table.shadows.len() - 1)
    }
}

/// For people.
pub(super) fn shown(name: &Name) -> String {
    match &name.shadow {
        None => format!("the shadow of {}", name.thing),
        Some(shadow) => format!("shadow {shadow:?} of {}", name.thing),
    }
}
