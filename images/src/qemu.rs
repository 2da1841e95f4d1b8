//! How QEMU starts a disk: in one place, for a person's terminal and for the tests.

use std::ffi::OsString;
use std::path::Path;

use crate::{Disk, Firmware, ImageError, tools};

impl Disk {
    /// The kind of machine and what starts first, for who brings memory, disk, network and serial line himself.
    #[must_use]
    pub fn firmware_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["-machine".into(), self.machine.into()];
        match &self.firmware {
            Firmware::Bios(path) => {
                arguments.push("-bios".into());
                arguments.push(path.into());
            }
            Firmware::Ovmf { code, vars } => {
                for (options, path) in
                    [("if=pflash,format=raw,readonly=on", code), ("if=pflash,format=raw", vars)]
                {
                    arguments.push("-drive".into());
                    arguments.push(with_file(options, path));
                }
            }
        }
        arguments
    }

    /// Arguments of `qemu-system-x86_64` for everything but the disk and the serial line: machine, memory, firmware,
    /// network (`10.0.2.2` is this machine's loopback; the network device is called `n0`). Always emulated: a
    /// `/dev/kvm` that can be opened may still not run this kernel.
    #[must_use]
    pub fn machine_arguments(&self, memory_mib: u32) -> Vec<OsString> {
        let mut arguments = self.firmware_arguments();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        add(&["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "1"]);
        add(&["-m", &memory_mib.to_string(), "-nodefaults", "-display", "none"]);
        add(&["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="]);
        arguments
    }

    /// Arguments for the disk, as the block device `hd0`.
    #[must_use]
    pub fn drive_arguments(&self) -> Vec<OsString> {
        let drive = with_file("format=raw,if=none,id=hd0,cache=writeback", &self.image);
        vec!["-drive".into(), drive, "-device".into(), Self::DRIVE_DEVICE.into()]
    }

    /// The program that starts a disk.
    pub const PROGRAM: &'static str = "qemu-system-x86_64";

    /// That this machine can start a disk.
    ///
    /// # Errors
    /// [`ImageError::Missing`] with the package that has the program.
    pub fn can_start() -> Result<(), ImageError> {
        tools::check(&[(Self::PROGRAM, "qemu-system-x86")])
    }

    /// The device that takes the block device `hd0`, for who defines that block device otherwise.
    pub const DRIVE_DEVICE: &'static str = "virtio-blk-pci,drive=hd0,bootindex=0";

    /// All arguments, with the serial line on standard input and output; Ctrl-A X ends it.
    #[must_use]
    pub fn arguments(&self, memory_mib: u32) -> Vec<OsString> {
        let mut arguments = self.machine_arguments(memory_mib);
        arguments.extend(self.drive_arguments());
        arguments.extend(["-serial", "mon:stdio"].map(OsString::from));
        arguments
    }
}

/// In QEMU's option lists a comma in a value is written twice.
fn with_file(options: &str, path: &Path) -> OsString {
    let mut text = OsString::from(format!("{options},file="));
    match path.to_str() {
        Some(name) => text.push(name.replace(',', ",,")),
        None => text.push(path),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Chain;

    #[test]
    fn both_kinds_of_firmware_start_emulated_with_one_virtio_disk() {
        let bios = Firmware::Bios("/rom".into());
        let ovmf = Firmware::Ovmf { code: "/code".into(), vars: "/a,b".into() };
        for (firmware, expected) in [(bios, "-bios /rom"), (ovmf, "file=/a,,b")] {
            let disk = Disk {
                chain: Chain::Grub,
                image: "/disk".into(),
                firmware,
                machine: "q35",
                layout: Vec::new(),
            };
            let text = disk.arguments(256).join(" ".as_ref()).into_string().unwrap();
            assert!(
                text.contains(expected) && text.contains("-accel tcg") && !text.contains("kvm"),
                "{text}"
            );
            assert_eq!(text.matches("virtio-blk").count(), 1);
        }
    }
}
