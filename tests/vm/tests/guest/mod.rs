//! The smallest guest: the kernel of the virtual devices, started directly, and BusyBox in its initramfs.

use std::ffi::OsString;
use std::fs::File;
use std::process::Command;

use otandem_images::bare_guest;
use otandem_vm::{Definition, Vm, Workplace};

const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_net"];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /sbin
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod /modules/$module.ko || exec sleep 1000; done </modules/order
ip link set eth0 up
[ -b /dev/vda ] || exec sleep 1000
echo "GUEST-UP set=A version=1.0 boot_id=$(cat /proc/sys/kernel/random/boot_id) uptime=$(cut -d' ' -f1 /proc/uptime)"
while :; do setsid cttyhack sh; done
"#;

/// A device that is off, with an empty disk of so many bytes; or why there can be none.
pub fn device(name: &str, disk: u64) -> Result<Vm, String> {
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
    qemu.map_err(|e| format!("no qemu-system-x86_64 (Debian: qemu-system-x86): {e}"))?;
    let workplace = Workplace::new(name).map_err(|e| e.to_string())?;
    let (initrd, image) = (workplace.path().join("initrd"), workplace.path().join("disk"));
    let kernel = bare_guest(INIT, &MODULES, &initrd).map_err(|e| format!("the guest cannot be made: {e}"))?;
    let made = File::create(&image).and_then(|file| file.set_len(disk));
    made.map_err(|e| format!("the disk cannot be made: {e}"))?;
    let mut args: Vec<OsString> = ["-machine", "pc", "-kernel"].map(OsString::from).into();
    args.extend([kernel.into(), "-initrd".into(), initrd.into()]);
    args.extend(
        ["-append", "console=ttyS0 quiet no_timer_check loglevel=0 panic=3 rdinit=/init"].map(OsString::from),
    );
    Ok(Vm::new(workplace, Definition { args, disk: image, memory_mib: 256 }))
}
