//! General jobs as this device is configured: how documents are read, what conditions may ask for, how steps run.

use std::io::Read;
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};
use otandem_core::boot::SetId;
use otandem_core::jobs::conditions::Facts;
use otandem_core::jobs::document::OldSchema;
use otandem_core::jobs::intake::GeneralRules;
use otandem_device::jobs::{GRACE, HandlerUser, REBOOT_WAIT, Terms, place};

use crate::config::settings::DEFAULT_HANDLER_DIRECTORY;
use crate::config::{JobsSettings, Settings};

/// Bytes of the version file that are looked at.
const VERSION_FILE: u64 = 64 * 1024;
/// The file in the state directory by which a step says that it reboots the device.
const REBOOT_MARK: &str = "job-reboot";

/// Where a step says that it reboots the device: it must be there after the reboot.
pub fn reboot_mark(settings: &Settings) -> PathBuf {
    settings.state_dir.join(REBOOT_MARK)
}

/// How documents of the old schema are read here.
pub fn old_schema(settings: &Settings) -> OldSchema {
    settings.jobs.on().map(|jobs| jobs.old_schema).unwrap_or_default()
}

/// What is known of this device.
pub fn facts(settings: &Settings, thing: Option<&str>, booted: Option<SetId>) -> Facts {
    let mut facts = settings.jobs.on().map(|jobs| jobs.attributes.clone()).unwrap_or_default();
    let mut put = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            facts.insert(name.to_owned(), value);
        }
    };
    put("thingName", thing.map(str::to_owned));
    put("agentVersion", Some(env!("CARGO_PKG_VERSION").to_owned()));
    put("bootedSet", booted.map(|set| set.to_string()));
    let version = settings.updates.as_ref().ok().and_then(|u| image_version(&u.version_file, &u.version_key));
    put("imageVersion", version);
    facts
}

/// What the jobs of the cloud are measured by.
pub fn rules(settings: &Settings, thing: &str) -> GeneralRules {
    GeneralRules { old_schema: old_schema(settings), facts: facts(settings, Some(thing), None) }
}

/// `KEY=value` of a file like `/etc/os-release`.
fn image_version(file: &Path, key: &str) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(file).ok()?.take(VERSION_FILE).read_to_string(&mut text).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

/// How the steps of a job run. `None` for settings: as where nothing is configured.
pub fn terms(jobs: Option<&JobsSettings>, job: &str, thing: &str, reboot_mark: Option<PathBuf>) -> Terms {
    let handler_directory =
        jobs.map_or_else(|| DEFAULT_HANDLER_DIRECTORY.into(), |jobs| jobs.handler_directory.clone());
    let home = User::from_uid(geteuid()).ok().flatten().map(|user| user.dir);
    let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
    Terms {
        search: place::search(home.as_deref(), &cwd, &handler_directory),
        handler_directory,
        rule: jobs.map(|jobs| jobs.permissions).unwrap_or_default(),
        handler_user: jobs.map_or(HandlerUser::Agent, |jobs| jobs.handler_user),
        step_timeout: jobs.and_then(|jobs| jobs.handler_timeout),
        job_timeout: jobs.and_then(|jobs| jobs.job_timeout),
        grace: GRACE,
        cwd,
        job: job.to_owned(),
        thing: thing.to_owned(),
        reboot_mark,
        reboot_wait: REBOOT_WAIT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_image_is_read_as_os_release_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("os-release");
        std::fs::write(&file, "NAME=x\nVERSION_ID_OLD=1\nVERSION_ID=\"2.4\"\n").unwrap();
        assert_eq!(image_version(&file, "VERSION_ID"), Some("2.4".into()));
        assert_eq!(image_version(&file, "GONE"), None);
        assert_eq!(image_version(Path::new("/nonexistent"), "X"), None);
    }

    #[test]
    fn what_the_agent_knows_goes_before_what_is_configured() {
        let facts = facts(&Settings::default(), Some("t"), Some(SetId::B));
        assert_eq!((facts["thingName"].as_str(), facts["bootedSet"].as_str()), ("t", "B"));
        assert_eq!(facts["agentVersion"], env!("CARGO_PKG_VERSION"));
    }
}
