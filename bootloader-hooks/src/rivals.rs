//! Who else on this device calls a running set good.
//!
//! A set that somebody else confirms is not given up when its trial fails. Two services are known for it:
//! systemd-bless-boot, which renames the entry that systemd-boot counted, and rauc-mark-good, which fills RAUC's
//! counter. Where `boot-complete.target` waits for `otandem-settled.service`, those that wait for it come after the
//! verdict, and do no harm.

use std::path::Path;

use crate::detect::Kind;

const UNITS: [&str; 4] =
    ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
const RUNLEVELS: [&str; 4] = ["etc/rc2.d", "etc/rc3.d", "etc/rc5.d", "etc/rcS.d"];

/// One line for each service that would confirm a set of this bootloader before its trial is over; `root` is `/` but
/// for tests.
#[must_use]
pub fn rivals(root: &Path, kind: Kind) -> Vec<String> {
    let gated = wanted(root, "otandem-settled.service", "requires");
    let mut found = vec![];
    match kind {
        Kind::SystemdBoot => {
            // Started by a generator: whoever has the unit runs it.
            let unit = "systemd-bless-boot.service";
            if there(root, unit).is_some() && !gated {
                found.push(confirms(unit));
            }
        }
        Kind::UBoot | Kind::Grub | Kind::Custom => {
            let unit = "rauc-mark-good.service";
            let text =
                there(root, unit).filter(|_| wanted(root, unit, "wants") || wanted(root, unit, "requires"));
            if text.is_some_and(|text| !(gated && waits_for_the_end(&text))) {
                found.push(confirms(unit));
            }
            if started_by_init(root, "rauc-mark-good") {
                found.push(
                    "the init script rauc-mark-good calls every set good that boots: remove it from the run levels"
                        .into(),
                );
            }
        }
        Kind::Simulated => {}
    }
    found
}

fn confirms(unit: &str) -> String {
    format!("{unit} calls every set good that boots, also one on trial: run `systemctl mask {unit}`")
}

/// The text of a unit that can be started: the first file of its name in systemd's order, unless that masks it.
fn there(root: &Path, unit: &str) -> Option<String> {
    let path = UNITS.iter().map(|dir| root.join(dir).join(unit)).find(|p| p.symlink_metadata().is_ok())?;
    let masked = std::fs::read_link(&path).is_ok_and(|to| to == Path::new("/dev/null"));
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    (!masked && !text.is_empty()).then_some(text)
}

/// Some target pulls it in, by a link in its `.wants` or `.requires`.
fn wanted(root: &Path, unit: &str, how: &str) -> bool {
    let pulls = |dir: &Path| {
        let Ok(entries) = std::fs::read_dir(dir) else { return false };
        entries.flatten().map(|e| e.path()).any(|target| {
            target.extension().is_some_and(|e| e == how) && target.join(unit).symlink_metadata().is_ok()
        })
    };
    there(root, unit).is_some() && UNITS.iter().any(|dir| pulls(&root.join(dir)))
}

/// It starts after `boot-complete.target`.
fn waits_for_the_end(unit: &str) -> bool {
    unit.lines().any(|l| l.trim().starts_with("After=") && l.contains("boot-complete.target"))
}

/// `S99name` in a directory of links.
fn started_by_init(root: &Path, script: &str) -> bool {
    let starts = |name: &str| {
        name.strip_prefix('S')
            .is_some_and(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()) == script)
    };
    RUNLEVELS.iter().any(|dir| {
        let Ok(entries) = std::fs::read_dir(root.join(dir)) else { return false };
        entries.flatten().any(|e| e.file_name().to_str().is_some_and(starts))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const LIB: &str = "usr/lib/systemd/system";
    const ETC: &str = "etc/systemd/system";

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn put(&self, path: &str, text: &str) -> &Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        fn link(&self, path: &str, to: &str) -> &Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(to, path).unwrap();
            self
        }

        /// As the product ships and enables it.
        fn gate(&self) -> &Self {
            self.put(&format!("{LIB}/otandem-settled.service"), "[Unit]\n");
            self.link(&format!("{ETC}/boot-complete.target.requires/otandem-settled.service"), "/x")
        }

        fn rivals(&self, kind: Kind) -> Vec<String> {
            rivals(self.0.path(), kind)
        }
    }

    #[test]
    fn a_bare_system_has_none() {
        for kind in Kind::ALL {
            assert!(Root::new().rivals(kind).is_empty());
        }
    }

    #[test]
    fn systemd_bless_boot_confirms_unless_masked_or_gated() {
        let root = Root::new();
        root.put(&format!("{LIB}/systemd-bless-boot.service"), "[Unit]\nAfter=boot-complete.target\n");
        assert!(root.rivals(Kind::SystemdBoot)[0].contains("systemctl mask systemd-bless-boot.service"));
        assert!(root.rivals(Kind::Grub).is_empty(), "it renames entries of systemd-boot only");
        root.gate();
        assert!(root.rivals(Kind::SystemdBoot).is_empty());
        let masked = Root::new();
        masked.put(&format!("{LIB}/systemd-bless-boot.service"), "[Unit]\n");
        masked.link(&format!("{ETC}/systemd-bless-boot.service"), "/dev/null");
        assert!(masked.rivals(Kind::SystemdBoot).is_empty());
    }

    #[test]
    fn rauc_mark_good_confirms_where_it_is_enabled_and_does_not_wait() {
        for kind in [Kind::UBoot, Kind::Grub, Kind::Custom] {
            let root = Root::new();
            root.put(&format!("{LIB}/rauc-mark-good.service"), "[Service]\n");
            assert!(root.rivals(kind).is_empty(), "installed, not enabled");
            root.link(&format!("{ETC}/multi-user.target.wants/rauc-mark-good.service"), "/x");
            assert_eq!(root.rivals(kind).len(), 1);
            assert!(root.rivals(Kind::SystemdBoot).is_empty());
            root.gate();
            assert_eq!(root.rivals(kind).len(), 1, "it does not wait for boot-complete.target");
            root.put(&format!("{LIB}/rauc-mark-good.service"), "[Unit]\nAfter=boot-complete.target\n");
            assert!(root.rivals(kind).is_empty());
        }
    }

    #[test]
    fn rauc_mark_good_of_a_sysvinit_device_is_seen() {
        let root = Root::new();
        root.put("etc/rc3.d/S99other", "").put("etc/rc3.d/K99rauc-mark-good", "");
        assert!(root.rivals(Kind::UBoot).is_empty());
        root.link("etc/rc3.d/S99rauc-mark-good", "../init.d/rauc-mark-good");
        assert!(root.rivals(Kind::UBoot)[0].contains("run levels"));
    }
}
