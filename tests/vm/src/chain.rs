//! What differs from boot chain to boot chain in a scenario: how the boot environment is lost, damaged and used up.
//!
//! Each is a command for the guest's shell, made of the bootloader's own tools or of plain writes to where the
//! bootloader keeps its choice.

use otandem_images::Chain;

/// What may have happened to the boot environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// As after a reset of it: no choice of ours is left.
    Lost,
    /// A write that was cut off: what is there makes no sense.
    Torn,
    /// Sound, but somebody else's.
    Foreign,
    /// Neither set has a try left.
    Exhausted,
}

impl Environment {
    /// The command that brings the boot environment of this chain into that state, on the disk when it returns.
    #[must_use]
    pub fn command(self, chain: Chain) -> String {
        let command = match chain {
            Chain::UBoot => self.u_boot(),
            Chain::Grub => self.grub(),
            Chain::SystemdBoot | Chain::SystemdBootShared => return self.systemd_boot(chain),
        };
        format!("{{ {command}; }} 2>/dev/null && sync")
    }

    /// What the loader says at the next boot when it has met that state; `None` where it says nothing.
    #[must_use]
    pub const fn sign(self, chain: Chain) -> Option<&'static str> {
        match (chain, self) {
            (Chain::UBoot, Self::Lost | Self::Torn) => Some("otandem: environment none"),
            (Chain::UBoot, Self::Foreign) => Some("order [system0 system1]"),
            (Chain::UBoot | Chain::Grub, Self::Exhausted) => Some("otandem: nothing left to boot"),
            _ => None,
        }
    }

    const fn u_boot(self) -> &'static str {
        match self {
            Self::Lost => {
                "dd if=/dev/zero of=/dev/disk/by-partlabel/uboot-env bs=64k count=1 conv=notrunc,fsync"
            }
            Self::Torn => {
                "for at in 1 65; do dd if=/dev/urandom of=/dev/disk/by-partlabel/uboot-env bs=512 seek=$at count=1 \
                 conv=notrunc,fsync; done"
            }
            Self::Foreign => {
                "printf 'BOOT_ORDER=system0 system1\\nBOOT_A_LEFT=\\nBOOT_B_LEFT=\\n' | fw_setenv -s -"
            }
            Self::Exhausted => "printf 'BOOT_A_LEFT=0\\nBOOT_B_LEFT=0\\n' | fw_setenv -s -",
        }
    }

    const fn grub(self) -> &'static str {
        match self {
            // As a tool leaves it that empties the file and is cut off.
            Self::Lost => ": >/efi/grub/grubenv",
            Self::Torn => "dd if=/dev/urandom of=/efi/grub/grubenv bs=512 count=1 conv=notrunc,fsync",
            Self::Foreign => {
                "rm /efi/grub/grubenv; grub-editenv /efi/grub/grubenv create; \
                 grub-editenv /efi/grub/grubenv set saved_entry=windows next_entry=memtest"
            }
            Self::Exhausted => "grub-editenv /efi/grub/grubenv set A_OK=1 A_TRY=1 B_OK=1 B_TRY=1 'ORDER=A B'",
        }
    }

    fn systemd_boot(self, chain: Chain) -> String {
        let folders = ["/efi", if chain == Chain::SystemdBoot { "/xbootldr" } else { "/efi" }];
        let sets = ["a", "b"].into_iter().zip(folders);
        let of_set = |(set, folder): (&str, &str)| {
            let go = format!("cd {folder}/loader/entries");
            let entry = format!("otandem-{set}");
            let clean = format!("rm -f {entry}.conf {entry}+*.conf");
            let fresh = format!("{go} && {clean} && cp {entry}.template {entry}.conf");
            match self {
                Self::Lost => fresh,
                // The running set's entry is whole: the loader could not start anything without one.
                Self::Torn if set == "a" => format!("{fresh} && cp {entry}.template {entry}+1.conf"),
                Self::Torn => format!("{fresh} && : >{entry}.conf"),
                Self::Foreign => format!("{fresh} && cp {entry}.template another-{set}.conf"),
                Self::Exhausted => format!("{fresh} && mv {entry}.conf {entry}+0-3.conf"),
            }
        };
        let commands: Vec<String> = sets.map(of_set).collect();
        format!("( {} ) && sync", commands.join(" && "))
    }
}

/// A program in place of `fw_setenv` that does this, and knows its version.
macro_rules! in_place_of_setenv {
    ($does:literal) => {
        concat!(
            "mkdir -p /run/sound /run/fake && cp /usr/bin/fw_setenv /run/sound/fw_setenv && ",
            "printf '#!/bin/sh\\n[ \"$1\" != -V ] || exec /run/sound/fw_setenv -V\\n",
            $does,
            "\\n' >/run/fake/fw_setenv && chmod 755 /run/fake/fw_setenv && ",
            "mount -o bind /run/fake/fw_setenv /usr/bin/fw_setenv"
        )
    };
}

/// The command after which nothing can be changed in the boot environment: the tool fails, or its place is read-only.
#[must_use]
pub const fn seal(chain: Chain) -> &'static str {
    match chain {
        Chain::UBoot => in_place_of_setenv!("echo Cannot write environment >&2\\nexit 1"),
        Chain::Grub => "mount -o remount,ro /efi",
        Chain::SystemdBoot | Chain::SystemdBootShared => {
            // The entries alone: kernel and initrd lie on the same file systems, and are written before.
            "for at in /efi/loader/entries /xbootldr/loader/entries; do [ ! -d $at ] || \
             { mount -o bind $at $at && mount -o remount,ro,bind $at; }; done"
        }
    }
}

/// The command after which the boot environment seems to take what it is told, and does not; `None` where writing needs
/// no tool that could lie.
#[must_use]
pub const fn lie(chain: Chain) -> Option<&'static str> {
    match chain {
        Chain::UBoot => Some(in_place_of_setenv!("cat >/dev/null\\nexit 0")),
        _ => None,
    }
}

/// Takes back [`seal`] and [`lie`].
#[must_use]
pub const fn unseal(chain: Chain) -> &'static str {
    match chain {
        Chain::UBoot => "umount /usr/bin/fw_setenv",
        Chain::Grub => "mount -o remount,rw /efi",
        Chain::SystemdBoot | Chain::SystemdBootShared => {
            "for at in /efi/loader/entries /xbootldr/loader/entries; do [ ! -d $at ] || umount $at; done"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn every_command_is_one_that_a_shell_understands() {
        use Environment::{Exhausted, Foreign, Lost, Torn};
        for chain in Chain::ALL {
            let mut commands = vec![seal(chain).to_owned(), unseal(chain).to_owned()];
            commands.extend(lie(chain).map(str::to_owned));
            commands.extend([Lost, Torn, Foreign, Exhausted].map(|how| how.command(chain)));
            for command in commands {
                let read = Command::new("sh").args(["-n", "-c", &command]).output().unwrap();
                assert!(read.status.success(), "{command}: {read:?}");
            }
        }
    }
}
