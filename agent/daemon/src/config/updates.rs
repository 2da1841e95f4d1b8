//! `[device]`, `[update]`, `[bootloader]` and `[slots]`: everything that an update depends on, and that makes updates refused where
//! it is wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use otandem_core::boot::SetId;
use otandem_core::gather::Gather as _;

use super::check::{Check, HOUR, MIN};
use super::fragments;
use super::settings::*;
use super::values::Bytes;
use super::{Area, Finding, Kind};

impl Check<'_> {
    pub(super) fn updates(
        &mut self,
        device: fragments::Device,
        f: fragments::Update,
        bootloader: fragments::Bootloader,
        a: fragments::Slots,
        b: fragments::Slots,
    ) -> Result<UpdateSettings, Finding> {
        let area = Area::Update;
        if f.without_slots == Some(true) && a.places.is_empty() && b.places.is_empty() {
            // As configured: no mistake that `config check` would have to name.
            let problem =
                "this device takes no firmware: update.without-slots is set, and no slots are named";
            return Err(Finding { kind: Kind::Idle, ..Finding::of("slots", problem, area) });
        }
        let (a, b) = self.sets(a, b);
        let boots_first = self.boots_first(f.boots_first, &a);
        let if_missing = self.if_missing(f.if_missing.unwrap_or_default(), &a);
        let trial_boots = f.trial_boots.unwrap_or(1);
        if !(1..=3).contains(&trial_boots) {
            self.wrong("update.trial-boots", "must be 1, 2 or 3", area);
        }
        let reboot_command = f.reboot_command.unwrap_or_else(|| vec!["/sbin/reboot".into()]);
        if !reboot_command.first().is_some_and(|p| p.starts_with('/')) {
            self.wrong("update.reboot-command", "must be a list that starts with an absolute path", area);
        }
        let memory = |value: Option<Bytes>, default: u64| value.map_or(default, |b| b.0);
        let settings = UpdateSettings {
            compatible: device.compatible.filter(|c| !c.is_empty()),
            version_file: device.version_file.unwrap_or_else(|| "/etc/os-release".into()),
            version_key: device.version_key.unwrap_or_else(|| "VERSION_ID".into()),
            bootloader: self.bootloader(bootloader),
            state_shared: f.state_shared.unwrap_or(true),
            health_dir: self.absolute("update.health-dir", f.health_dir, "/etc/otandem/health.d"),
            health_timeout: self.positive("update.health-timeout", f.health_timeout, 10 * MIN, area),
            health_check_timeout: self.positive(
                "update.health-check-timeout",
                f.health_check_timeout,
                MIN,
                area,
            ),
            require_cloud: f.require_cloud,
            cloud_timeout: self.positive("update.cloud-timeout", f.cloud_timeout, 30 * MIN, area),
            trial_boots,
            reboot_command,
            reboot_window: f.reboot_window.map(|w| w.0),
            retry_interval: self.positive("update.retry-interval", f.retry_interval, 15 * MIN, area),
            defer_limit: self.positive("update.defer-limit", f.defer_limit, 24 * HOUR, area),
            reboot_reserve: self.positive(
                "update.reboot-reserve",
                f.reboot_reserve,
                Duration::from_secs(300),
                area,
            ),
            hook_dir: self.absolute("update.hook-dir", f.hook_dir, "/etc/otandem/hooks.d"),
            hook_timeout: self.positive("update.hook-timeout", f.hook_timeout, MIN, area),
            rate_limit: f.rate_limit.map(|b| b.0).filter(|n| *n > 0),
            ca: self.some_absolute("update.ca", f.ca, area),
            read_back: f.read_back.unwrap_or(false),
            download_timeout: self.positive("update.download-timeout", f.download_timeout, 24 * HOUR, area),
            zstd_window: memory(f.zstd_window, 8 << 20),
            xz_memory: memory(f.xz_memory, 16 << 20),
            allow_other_disk: f.allow_other_disk.unwrap_or(false),
            if_missing,
            boots_first,
            watchdog: self.some_absolute("update.watchdog", f.watchdog, area),
            checkpoint_bytes: memory(f.checkpoint_bytes, 16 << 20),
            checkpoint_interval: f.checkpoint_interval.map_or(Duration::from_secs(2), |s| s.0),
            a,
            b,
        };
        self.first(area).map_or(Ok(settings), Err)
    }

    fn sets(&mut self, a: fragments::Slots, b: fragments::Slots) -> (SlotSet, SlotSet) {
        let set = |f: fragments::Slots, id: SetId| SlotSet {
            index: f.index.unwrap_or(u32::from(id == SetId::B)),
            boot_name: f.boot_name.unwrap_or_else(|| id.name().into()),
            in_place: f.places.iter().filter(|(_, p)| p.in_place).map(|(name, _)| name.clone()).gather(),
            slots: f.places.into_iter().map(|(name, place)| (name, place.path)).gather(),
        };
        let (a, b) = (set(a, SetId::A), set(b, SetId::B));
        let area = Area::Update;
        if a.slots.is_empty() && b.slots.is_empty() {
            self.wrong("slots", NO_SLOTS, area);
        } else if !a.slots.keys().eq(b.slots.keys()) {
            self.wrong("slots", "[slots.A] and [slots.B] must name the same slots", area);
        }
        if a.in_place != b.in_place {
            self.wrong("slots", "[slots.A] and [slots.B] must have the same slots in place", area);
        }
        if a.index == b.index {
            self.wrong("slots.B.index", "must differ from that of set A", area);
        }
        if a.boot_name == b.boot_name || a.boot_name.is_empty() || b.boot_name.is_empty() {
            self.wrong("slots.B.boot-name", "each set needs a name of its own", area);
        }
        let mut seen = BTreeMap::new();
        for (set, slots) in [("A", &a.slots), ("B", &b.slots)] {
            for (name, path) in slots {
                let key = format!("slots.{set}.{name}");
                if !is_slot_name(name) {
                    self.wrong(&key, "slot names are 1 to 32 of a-z 0-9 _ -", area);
                }
                if !path.is_absolute() {
                    self.wrong(&key, format!("{} is not an absolute path", path.display()), area);
                }
                if let Some(other) = seen.insert(path.clone(), key.clone()) {
                    self.wrong(&key, format!("is the same place as {other}"), area);
                }
            }
        }
        (a, b)
    }

    fn boots_first(&mut self, given: Option<String>, set: &SlotSet) -> String {
        let names = &set.slots;
        if let Some(name) = given.filter(|n| !n.is_empty()) {
            if !names.contains_key(&name) {
                self.wrong("update.boots-first", format!("{name:?} is not a configured slot"), Area::Update);
            }
            return name;
        }
        // A kernel partition is read before the root file system that it mounts.
        let usual = ["boot", "kernel", "rootfs"].into_iter().find(|n| names.contains_key(*n));
        usual.map(str::to_owned).or_else(|| names.keys().next().cloned()).unwrap_or_default()
    }

    fn if_missing(&mut self, given: BTreeMap<String, String>, set: &SlotSet) -> BTreeMap<String, IfMissing> {
        let mut out = BTreeMap::new();
        for (slot, what) in given {
            let key = format!("update.if-missing.{slot}");
            if !set.slots.contains_key(&slot) {
                self.wrong(&key, format!("{slot:?} is not a configured slot"), Area::Update);
            } else if what == "copy" {
                out.insert(slot, IfMissing::Copy);
            } else if what != "refuse" {
                self.wrong(&key, format!("{what:?}: use copy or refuse"), Area::Update);
            }
        }
        out
    }

    fn bootloader(&mut self, f: fragments::Bootloader) -> Bootloader {
        let area = Area::Update;
        let kind = match f.kind.as_deref() {
            None | Some("auto") => None,
            Some(name) => {
                let kind = BootKind::ALL.into_iter().find(|kind| kind.name() == name);
                if kind.is_none() {
                    let all = BootKind::ALL.map(BootKind::name).join(", ");
                    self.wrong("bootloader.kind", format!("{name:?}: use auto, {all}"), area);
                }
                kind
            }
        };
        self.keys_of_other_bootloaders(&f, kind);
        let mut path = |key: &str, path| self.some_absolute(&format!("bootloader.{key}"), path, area);
        let mut places = Places {
            program: path("program", f.program),
            directory: path("directory", f.directory),
            fw_env_config: path("fw-env-config", f.fw_env_config),
            fw_printenv: path("fw-printenv", f.fw_printenv),
            fw_setenv: path("fw-setenv", f.fw_setenv),
            grubenv: path("grubenv", f.grubenv),
            entries: [path("entries-a", f.entries_a), path("entries-b", f.entries_b)],
            ..Places::default()
        };
        places.timeout = self.positive("bootloader.timeout", f.timeout, places.timeout, area);
        match kind {
            Some(BootKind::Custom) if places.program.is_none() => {
                self.wrong("bootloader.program", "kind = \"custom\" needs the program to call", area);
            }
            Some(BootKind::Simulated) if places.directory.is_none() => {
                self.wrong("bootloader.directory", "kind = \"simulated\" needs a directory", area);
            }
            _ => {}
        }
        if places.entries.iter().flatten().count() == 1 {
            self.wrong("bootloader.entries-a", "give both of entries-a and entries-b, or none", area);
        }
        Bootloader { kind, places }
    }

    /// What is written there was meant to have an effect, and has none.
    fn keys_of_other_bootloaders(&mut self, f: &fragments::Bootloader, kind: Option<BootKind>) {
        use BootKind::{Custom, Grub, Simulated, SystemdBoot, UBoot};
        let keys: [(&str, bool, &[BootKind]); 9] = [
            ("program", f.program.is_some(), &[Custom]),
            ("directory", f.directory.is_some(), &[Simulated]),
            ("timeout", f.timeout.is_some(), &[UBoot, Custom]),
            ("fw-env-config", f.fw_env_config.is_some(), &[UBoot]),
            ("fw-printenv", f.fw_printenv.is_some(), &[UBoot]),
            ("fw-setenv", f.fw_setenv.is_some(), &[UBoot]),
            ("grubenv", f.grubenv.is_some(), &[Grub]),
            ("entries-a", f.entries_a.is_some(), &[SystemdBoot]),
            ("entries-b", f.entries_b.is_some(), &[SystemdBoot]),
        ];
        for (key, given, of) in keys {
            // With auto every bootloader that can be found is looked for, with its own keys.
            if given && !kind.map_or(of != [Simulated], |kind| of.contains(&kind)) {
                let of = of.iter().map(|k| k.name()).collect::<Vec<_>>().join(" and ");
                let kind = kind.map_or("auto", BootKind::name);
                let problem = format!("belongs to kind = {of}, and kind is {kind}: it has no effect");
                self.findings.push(Finding {
                    file: None,
                    key: format!("bootloader.{key}"),
                    problem,
                    kind: Kind::Idle,
                });
            }
        }
    }
}

fn is_slot_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}
