//! `[services.NAME]`: shadows, the files of their services, and directories with updates of them.

use std::collections::{BTreeMap, BTreeSet};

use otandem_core::gather::Gather as _;
use otandem_core::shadow::is_shadow_name;
use otandem_core::shadow::merge::EmptyList;
use otandem_device::spool::Keep;

use super::check::Check;
use super::settings::{MessagesSettings, ServicesSettings, is_thing_name};
use super::{Area, fragments};

const AREA: Area = Area::Services;
/// Files that failed/ keeps, as chariotd does.
const KEEP_FAILED: u32 = 10;
/// Bytes of them together: each is small, or was refused because it is not.
const KEEP_FAILED_BYTES: u64 = 16 << 20;

impl Check<'_> {
    /// Those that say what to do; a table that says nothing of it is not in use (yet).
    pub(super) fn services(
        &mut self,
        all: BTreeMap<String, fragments::Services>,
        messages: &[MessagesSettings],
    ) -> Vec<ServicesSettings> {
        let mut taken: BTreeSet<_> = messages.iter().map(|one| one.directory.clone()).gather();
        let mut settings = vec![];
        for (name, f) in all {
            let one = self.service_table(name, f);
            if let Some(updates) = &one.updates
                && !taken.insert(updates.clone())
            {
                let key = format!("services.{}.updates", one.name);
                self.wrong(&key, "is the directory of another table too", AREA);
            }
            if one.directory.is_some() || one.updates.is_some() || one.default_shadow.is_some() {
                settings.push(one);
            }
        }
        settings
    }

    fn service_table(&mut self, name: String, f: fragments::Services) -> ServicesSettings {
        let key = |key: &str| format!("services.{name}.{key}");
        let thing = f.thing.filter(|thing| !thing.is_empty());
        if thing.as_deref().is_some_and(|thing| !is_thing_name(thing)) {
            self.wrong(&key("thing"), "1 to 128 of A-Z a-z 0-9 : _ - are allowed", AREA);
        }
        let shadow = f.shadow.filter(|shadow| !shadow.is_empty());
        if shadow.as_deref().is_some_and(|shadow| !is_shadow_name(shadow)) {
            self.wrong(&key("shadow"), "1 to 64 of A-Z a-z 0-9 $ : _ - are allowed", AREA);
        }
        let default_shadow = f.default_shadow.filter(|command| !command.is_empty());
        if default_shadow.as_deref().is_some_and(|command| command.contains('\0')) {
            self.wrong(&key("default-shadow"), "a command has no NUL in it", AREA);
        }
        let directory = f.directory.filter(|path| !path.as_os_str().is_empty());
        let updates = f.updates.filter(|path| !path.as_os_str().is_empty());
        ServicesSettings {
            thing,
            shadow,
            directory: self.some_absolute(&key("directory"), directory, AREA),
            updates: self.some_absolute(&key("updates"), updates, AREA),
            default_shadow,
            empty_list: if f.empty_list_deletes == Some(true) {
                EmptyList::Deletes
            } else {
                EmptyList::Value
            },
            keep: Keep { files: f.keep_failed.unwrap_or(KEEP_FAILED) as usize, bytes: KEEP_FAILED_BYTES },
            name,
        }
    }
}
