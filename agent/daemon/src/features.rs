//! What this build contains: the one place, beside the crate's root, that knows about cargo features.

use std::path::Path;
use std::sync::Arc;

use otandem_boot::booted::{Seen, Slot};
use otandem_boot::detect::{self, Places};
use otandem_boot::{BootControl, BootNames, Config, Tries};
use otandem_core::boot::SetId;
use otandem_core::formats::{ArrayStyle, Format};
use otandem_core::jobs::Identity;
use otandem_core::jobs::intake::JobRules;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::cloud::channel::{Ends, Topics};
use crate::cloud::tls::Clock;
use crate::cloud::wallet::Wallet;
use crate::config::{
    BootKind, Bootloader, CloudSettings, CommandsSettings, MessagesSettings, NetworkSettings,
    ServicesSettings, Settings, SubscribeSettings, UpdateSettings,
};
use crate::definitions::Found;
use crate::exit::Exit;
use crate::feature::Feature;
use crate::feature::jobs::Others;

/// The functions of this build, for `--version` and for errors that say what to build.
#[must_use]
pub fn list() -> Vec<&'static str> {
    let all = [
        ("commands", cfg!(feature = "commands")),
        ("jobs", cfg!(feature = "jobs")),
        ("messages", cfg!(feature = "messages")),
        ("provisioning", cfg!(feature = "provisioning")),
        ("services", cfg!(feature = "services")),
        ("subscribe", cfg!(feature = "subscribe")),
        ("gzip", cfg!(feature = "gzip")),
        ("xz", cfg!(feature = "xz")),
        ("boot-custom", cfg!(feature = "boot-custom")),
        ("boot-grub", cfg!(feature = "boot-grub")),
        ("boot-simulated", cfg!(feature = "boot-simulated")),
        ("boot-systemd-boot", cfg!(feature = "boot-systemd-boot")),
        ("boot-u-boot", cfg!(feature = "boot-u-boot")),
    ];
    all.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}

/// The root of the file system.
const ROOT: &str = "/";

/// The configured bootloader, or the one that is found.
///
/// # Errors
/// One line: none is found, this build does not have it, or it does not take its configuration.
pub fn boot_control(updates: &UpdateSettings) -> Result<(BootKind, Box<dyn BootControl>), String> {
    let names = BootNames::new(&updates.a.boot_name, &updates.b.boot_name).map_err(|e| e.to_string())?;
    let trial_tries = Tries::new(updates.trial_boots).map_err(|e| e.to_string())?;
    let config = Config { names, trial_tries };
    let Bootloader { kind, places } = &updates.bootloader;
    let kind = match kind {
        Some(kind) => *kind,
        None => find(places)?,
    };
    Ok((kind, back_end(kind, places, config, updates)?))
}

/// `bootloader.kind = "auto"`
fn find(places: &Places) -> Result<BootKind, String> {
    let cmdline = otandem_device::machine::cmdline().map_err(|e| e.to_string())?;
    let kind = detect::decide(&detect::signs(places, ROOT.as_ref(), &cmdline)).map_err(|e| e.to_string())?;
    tracing::info!("the bootloader is {kind}");
    Ok(kind)
}

fn back_end(
    kind: BootKind,
    places: &Places,
    config: Config,
    updates: &UpdateSettings,
) -> Result<Box<dyn BootControl>, String> {
    let seen = || Seen::on_this_machine(&slots(updates)).map_err(|e| e.to_string());
    let missing = |what: &str| format!("{kind}: {what}");
    match kind {
        #[cfg(feature = "boot-custom")]
        BootKind::Custom => {
            let program = places.program.clone().ok_or_else(|| missing("set bootloader.program"))?;
            let custom = otandem_boot::custom::Custom::new(program, config, seen()?);
            let mut custom = custom.map_err(|e| e.to_string())?;
            custom.set_time_limit(places.timeout);
            Ok(Box::new(custom))
        }
        #[cfg(feature = "boot-grub")]
        BootKind::Grub => {
            let block =
                places.grubenv(ROOT.as_ref()).ok_or_else(|| missing("no grubenv; set bootloader.grubenv"))?;
            let grub = otandem_boot::grub::Grub::open(block, config, seen()?);
            grub.map(|g| Box::new(g) as _).map_err(|e| e.to_string())
        }
        #[cfg(feature = "boot-systemd-boot")]
        BootKind::SystemdBoot => {
            let no_entries = || missing("no boot entries found; set bootloader.entries-a and entries-b");
            let entries = places.entries(ROOT.as_ref(), &config.names).ok_or_else(no_entries)?;
            let setup = otandem_boot::systemd_boot::Setup { entries, efivars: detect::EFIVARS.into() };
            let loader = otandem_boot::systemd_boot::SystemdBoot::open(setup, config, seen()?);
            loader.map(|l| Box::new(l) as _).map_err(|e| e.to_string())
        }
        #[cfg(feature = "boot-u-boot")]
        BootKind::UBoot => {
            let root = ROOT.as_ref();
            let tool = |found: Option<std::path::PathBuf>, name: &str| {
                found.ok_or_else(|| {
                    missing(&format!("no {name}; install libubootenv, or set bootloader.{name}"))
                })
            };
            let tools = otandem_boot::uboot::Tools {
                printenv: tool(places.fw_printenv(root), "fw-printenv")?,
                setenv: tool(places.fw_setenv(root), "fw-setenv")?,
                fw_env_config: places.fw_env_config(root),
                timeout: places.timeout,
            };
            let loader = otandem_boot::uboot::UBoot::open(tools, config, seen()?);
            loader.map(|l| Box::new(l) as _).map_err(|e| e.to_string())
        }
        #[cfg(feature = "boot-simulated")]
        BootKind::Simulated => {
            let directory = places.directory.as_ref().ok_or_else(|| missing("set bootloader.directory"))?;
            let simulated = otandem_boot::simulated::Simulated::open(directory, config);
            simulated.map(|s| Box::new(s) as _).map_err(|e| e.to_string())
        }
        #[allow(unreachable_patterns)] // with every back end built in
        other => {
            let _ = (config, places, seen, missing);
            Err(format!("this build has no {other} back end: build with --features boot-{other}"))
        }
    }
}

fn slots(updates: &UpdateSettings) -> Vec<Slot> {
    let of = |set: SetId| {
        let slots = updates.set(set).slots.iter();
        slots.map(move |(name, path)| Slot { set, name: name.clone(), path: path.clone() })
    };
    SetId::BOTH.into_iter().flat_map(of).collect()
}

/// Starts the cloud session; `None` where this build has none.
#[must_use]
#[cfg_attr(not(feature = "session"), allow(unused_variables, clippy::needless_pass_by_value))]
pub fn connect(
    cloud: &CloudSettings,
    network: &NetworkSettings,
    thing: &str,
    topics: Topics,
    wallet: Wallet,
    clock: Arc<Clock>,
) -> Option<Ends> {
    #[cfg(feature = "session")]
    {
        let id = cloud.client_id.clone().unwrap_or_else(|| thing.to_owned());
        let name = "cloud session";
        Some(crate::cloud::connect::start(name, cloud, network, id, topics, wallet, clock))
    }
    #[cfg(not(feature = "session"))]
    None
}

/// Jobs; `None` where this build has none.
#[must_use]
pub fn jobs(identity: Identity, rules: JobRules, others: Others) -> Option<Box<dyn Feature>> {
    if !cfg!(feature = "jobs") {
        return None;
    }
    Some(Box::new(crate::feature::jobs::Jobs::new(identity, rules, others, fastrand::u64(..))))
}

/// Files that become messages; `None` where this build has no such function.
#[must_use]
pub fn messages(directories: Vec<MessagesSettings>) -> Option<Box<dyn Feature>> {
    if !cfg!(feature = "messages") {
        tracing::error!("[messages] has no effect: build with --features messages");
        return None;
    }
    Some(Box::new(crate::feature::messages::Messages::new(directories)))
}

/// Messages of the cloud for files and programs; `None` where this build has no such function.
#[must_use]
pub fn subscribe(rules: Vec<SubscribeSettings>) -> Option<Box<dyn Feature>> {
    if !cfg!(feature = "subscribe") {
        tracing::error!("[subscribe] has no effect: build with --features subscribe");
        return None;
    }
    Some(Box::new(crate::feature::subscribe::Subscribe::new(rules)))
}

/// Files that are commands; `None` where this build has no such function.
#[must_use]
pub fn commands(settings: CommandsSettings) -> Option<Box<dyn Feature>> {
    if !cfg!(feature = "commands") {
        tracing::error!("[commands] has no effect: build with --features commands");
        return None;
    }
    Some(Box::new(crate::feature::commands::Commands::new(settings)))
}

/// Shadows, the files of their services and updates of them; `None` where this build has no such function. `thing`: the
/// device's own.
#[must_use]
pub fn shadows(tables: Vec<ServicesSettings>, thing: &str, state_dir: &Path) -> Option<Box<dyn Feature>> {
    if !cfg!(feature = "services") {
        tracing::error!("[services] has no effect: build with --features services");
        return None;
    }
    Some(Box::new(crate::feature::shadows::Shadows::new(tables, thing, state_dir)))
}

/// Certificates of the device's own; `None` where this build has no such function, or something that it needs is
/// missing. `thing`: the device's name, if it is known; `named` hears when a device without one has got it.
#[must_use]
#[cfg_attr(not(feature = "provisioning"), allow(unused_variables, clippy::needless_pass_by_value))]
pub fn provisioning(
    settings: &Settings,
    thing: Option<&str>,
    wallet: Wallet,
    clock: Arc<Clock>,
    named: Option<oneshot::Sender<()>>,
) -> Option<Box<dyn Feature>> {
    #[cfg(feature = "provisioning")]
    match crate::provision::Kit::new(settings, thing, clock) {
        Ok(kit) => {
            return Some(Box::new(crate::provision::worker::Provisioning::new(kit, wallet, named)));
        }
        Err(why) => tracing::error!("no certificate is asked for: {why}"),
    }
    #[cfg(not(feature = "provisioning"))]
    tracing::error!("[provisioning] has no effect: build with --features provisioning");
    None
}

/// What `otandem provision` does where no daemon runs.
///
/// # Errors
/// How the command ends, and one line.
#[cfg_attr(not(feature = "provisioning"), allow(unused_variables))]
pub fn provision(settings: &Settings) -> Result<Value, (Exit, String)> {
    #[cfg(feature = "provisioning")]
    return crate::provision::now::provision(settings);
    #[cfg(not(feature = "provisioning"))]
    return Err((Exit::Usage, "this build has no provisioning: build with --features provisioning".into()));
}

/// What `otandem convert` does.
///
/// # Errors
/// How the command ends, and one line: the text is wrong, or this build has no services.
pub fn convert(from: Format, to: Format, arrays: ArrayStyle, text: &[u8]) -> Result<Vec<u8>, (Exit, String)> {
    services_built()?;
    crate::formats::convert(from, to, arrays, text).map_err(|e| (Exit::Data, e.to_string()))
}

/// The definitions of services in a directory, for `otandem service check`.
///
/// # Errors
/// How the command ends, and one line: it cannot be read, or this build has no services.
pub fn definitions(directory: &Path) -> Result<Vec<Found>, (Exit, String)> {
    services_built()?;
    crate::definitions::directory(directory).map_err(|e| (Exit::NoInput, e))
}

fn services_built() -> Result<(), (Exit, String)> {
    let missing = "this build has no services: build with --features services";
    if cfg!(feature = "services") { Ok(()) } else { Err((Exit::Usage, missing.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn opened(dir: &Path, bootloader: &str) -> Result<BootKind, String> {
        let config = dir.join("otandem.toml");
        let slots = "[slots.A]\nrootfs = '/dev/a'\n[slots.B]\nrootfs = '/dev/b'\n";
        std::fs::write(&config, format!("{slots}[bootloader]\n{bootloader}\n")).unwrap();
        let (settings, findings) =
            Settings::load(&Sources { explicit: Some(config), ..Sources::default() }).unwrap();
        assert_eq!(findings, []);
        boot_control(&settings.updates.unwrap()).map(|(kind, _)| kind)
    }

    #[test]
    fn every_kind_is_opened_from_its_keys_or_says_how_to_build_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::create_dir(at("entries")).unwrap();
        std::fs::create_dir(at("simulated")).unwrap();
        std::fs::write(at("grubenv"), format!("{:#<1024}", "# GRUB Environment Block\n")).unwrap();
        let mut uboot = String::new();
        for key in ["fw-env-config", "fw-printenv", "fw-setenv"] {
            std::fs::write(at(key), "/dev/null 0 0x4000\n").unwrap();
            uboot += &format!("{key} = '{}'\n", at(key));
        }
        for (kind, keys) in [
            (BootKind::UBoot, uboot),
            (BootKind::Grub, format!("grubenv = '{}'", at("grubenv"))),
            (BootKind::SystemdBoot, format!("entries-a = '{0}'\nentries-b = '{0}'", at("entries"))),
            (BootKind::Custom, "program = '/bin/true'".into()),
            (BootKind::Simulated, format!("directory = '{}'", at("simulated"))),
        ] {
            let built = list().contains(&format!("boot-{kind}").as_str());
            match opened(dir.path(), &format!("kind = '{kind}'\n{keys}")) {
                Ok(opened) => assert!(built && opened == kind, "{kind}"),
                Err(why) if built => panic!("{kind}: {why}"),
                Err(why) => assert!(why.contains(&format!("--features boot-{kind}")), "{why}"),
            }
        }
    }
}
