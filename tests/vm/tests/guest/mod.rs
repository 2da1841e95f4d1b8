//! The smallest guest: the Debian cloud kernel, started directly, and busybox in its initramfs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use otandem_vm::vm::limits::workplace;
use otandem_vm::{Definition, Vm, Workplace};

/// In the order in which they need each other.
const MODULES: [&str; 9] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /sbin
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in MODULES; do insmod /modules/$module.ko || exec sleep 1000; done
ip link set eth0 up
[ -b /dev/vda ] || exec sleep 1000
echo "GUEST-UP set=A version=1.0 boot_id=$(cat /proc/sys/kernel/random/boot_id) uptime=$(cut -d' ' -f1 /proc/uptime)"
while :; do setsid cttyhack sh; done
"#;

/// A device that is off, with an empty disk of so many bytes; or why there can be none.
pub fn device(name: &str, disk: u64) -> Result<Vm, String> {
    for (program, package) in [("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static")] {
        find(program).ok_or(format!("no {program} (Debian: {package})"))?;
    }
    let kernel = kernel()?;
    let workplace = Workplace::new(name).map_err(|e| e.to_string())?;
    let (initrd, image) = (workplace.path().join("initrd"), workplace.path().join("disk"));
    let made = initramfs(&kernel, &initrd).and_then(|()| File::create(&image)?.set_len(disk));
    made.map_err(|e| format!("the guest cannot be made: {e}"))?;
    let mut args: Vec<OsString> = ["-machine", "pc", "-kernel"].map(OsString::from).into();
    args.extend([kernel.join("vmlinuz").into(), "-initrd".into(), initrd.into()]);
    args.extend(
        ["-append", "console=ttyS0 quiet no_timer_check loglevel=0 panic=3 rdinit=/init"].map(OsString::from),
    );
    Ok(Vm::new(workplace, Definition { args, disk: image, memory_mib: 256 }))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// `vmlinuz` and the modules in a folder: unpacked from the Debian package the first time, never installed.
fn kernel() -> Result<PathBuf, String> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = workplace().join("cloud-kernel");
    if folder.join("vmlinuz").is_file() {
        return Ok(folder);
    }
    let (apt, dpkg) = (find("apt-get"), find("dpkg-deb"));
    if apt.is_none() || dpkg.is_none() {
        return Err("no apt-get and dpkg-deb to get a kernel with".into());
    }
    fs::create_dir_all(workplace()).map_err(|e| e.to_string())?;
    let fetched = tempfile::tempdir_in(workplace()).map_err(|e| e.to_string())?;
    let script = r#"
        package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
        [ -n "$package" ] && timeout 300 apt-get -qq -o APT::Sandbox::User=root download "$package" &&
        dpkg-deb -x linux-image-*.deb . && mv boot/vmlinuz-* vmlinuz && mv lib/modules/*/kernel modules &&
        rm -r boot lib linux-image-*.deb"#;
    let run =
        Command::new("sh").args(["-c", script]).current_dir(fetched.path()).stdin(Stdio::null()).output();
    let run = run.map_err(|e| e.to_string())?;
    if !run.status.success() {
        return Err(format!("no Debian cloud kernel: {}", String::from_utf8_lossy(&run.stderr).trim()));
    }
    // Another test program may have been faster: then its kernel is as good.
    let _ = fs::rename(fetched.path(), &folder);
    if folder.join("vmlinuz").is_file() { Ok(folder) } else { Err("the kernel could not be kept".into()) }
}

fn initramfs(kernel: &Path, to: &Path) -> io::Result<()> {
    let names = MODULES.map(|module| module.rsplit('/').next().unwrap_or(module));
    let mut archive = Vec::new();
    for folder in ["bin", "modules"] {
        entry(&mut archive, folder, 0o040_755, &[])?;
    }
    entry(&mut archive, "init", 0o100_755, INIT.replace("MODULES", &names.join(" ")).as_bytes())?;
    let busybox = find("busybox").ok_or(io::ErrorKind::NotFound)?;
    entry(&mut archive, "bin/busybox", 0o100_755, &fs::read(busybox)?)?;
    for (module, name) in MODULES.iter().zip(names) {
        let content = fs::read(kernel.join("modules").join(format!("{module}.ko")))?;
        entry(&mut archive, &format!("modules/{name}.ko"), 0o100_644, &content)?;
    }
    entry(&mut archive, "TRAILER!!!", 0, &[])?;
    fs::write(to, archive)
}

/// One file of a cpio archive (newc): thirteen numbers in hex, name and content padded to four bytes.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let numbers = [archive.len(), mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    archive.write_all(b"070701")?;
    for number in numbers {
        write!(archive, "{number:08x}")?;
    }
    for part in [&[name.as_bytes(), &[0]].concat(), content] {
        archive.write_all(part)?;
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    Ok(())
}
