//! Where images are made, and kept.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::chain::{Content, Kernels};
use crate::debian::Kernel;
use crate::disk::{self, Filled, assemble, layout};
use crate::error::file;
use crate::ext4::{self, Use};
use crate::guest::{Parts, noise, ram_disk};
use crate::{Chain, Device, Disk, Firmware, ImageError, Partition, Root, fat, files, packed, tools};

/// Names cargo's target folder.
const TARGET: &str = "CARGO_TARGET_DIR";

/// Makes slot images and disks, and keeps what it made.
#[derive(Debug)]
pub struct Workshop {
    cache: Cache,
    kernel: Kernel,
    chain: Chain,
}

/// An image for one slot of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotImage {
    /// The slot: `rootfs`, and for systemd-boot also `kernel` and `initrd`.
    pub slot: &'static str,
    /// The raw image. It belongs to the cache: read it, copy it, do not write it.
    pub path: PathBuf,
    /// Its SHA-256 in hex.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
    /// The same in at least four independent Zstandard frames.
    pub packed: PathBuf,
    /// SHA-256 of the packed file.
    pub packed_sha256: String,
    /// Size of the packed file.
    pub packed_size: u64,
}

/// All images of one set: what an update installs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// As in `/etc/os-release`.
    pub version: String,
    /// `rootfs` first.
    pub slots: Vec<SlotImage>,
}

impl Release {
    /// The root file system.
    #[must_use]
    pub fn rootfs(&self) -> &SlotImage {
        &self.slots[0]
    }
}

impl Workshop {
    /// A workshop for a chain that keeps what it makes below `folder`; gets the kernel there when it is not there yet.
    ///
    /// # Errors
    /// [`ImageError::Missing`] with all that is not on this machine, [`ImageError::Kernel`].
    pub fn open(chain: Chain, folder: &Path) -> Result<Self, ImageError> {
        let needs: Vec<_> = tools::ALWAYS.iter().chain(chain.needs()).copied().collect();
        tools::check(&needs)?;
        let cache = Cache::open(folder)?;
        let kernel = kernel(&cache, folder)?;
        Ok(Self { cache, kernel, chain })
    }

    /// As [`Workshop::open`], in cargo's target folder, shared by everything that is built there.
    ///
    /// # Errors
    /// Those of [`Workshop::open`].
    pub fn in_target(chain: Chain) -> Result<Self, ImageError> {
        Self::open(chain, &Self::cache()?)
    }

    /// The folder of virtual devices in cargo's target folder: that of `CARGO_TARGET_DIR`, else the one in which the
    /// running program lies.
    ///
    /// # Errors
    /// The running program is in no such folder.
    pub fn target() -> Result<PathBuf, ImageError> {
        target().map(|folder| folder.join("images"))
    }

    fn cache() -> Result<PathBuf, ImageError> {
        Ok(Self::target()?.join("cache"))
    }

    /// The images of a set.
    ///
    /// # Errors
    /// [`ImageError::TooSmall`] when the content does not fit into `slot_size` bytes, else what a tool says.
    pub fn release(&self, root: &Root, slot_size: u64) -> Result<Release, ImageError> {
        self.images(&root.parts(self.chain, &self.kernel)?, &root.version, slot_size)
    }

    fn images(&self, parts: &Parts, version: &str, slot_size: u64) -> Result<Release, ImageError> {
        if slot_size == 0 || !slot_size.is_multiple_of(1 << 20) {
            return Err(ImageError::Recipe(format!("a slot of {slot_size} bytes: use whole MiB")));
        }
        let content = if parts.root_is_noise { "noise".into() } else { parts.root.digest() };
        let rootfs = self.image("rootfs", &[&content, &slot_size.to_string()], |out| {
            if parts.root_is_noise {
                let size = usize::try_from(slot_size).unwrap_or(usize::MAX);
                return fs::write(out, noise(size)).map_err(file("write", out));
            }
            ext4::make(&parts.root, Use::Slot, "root", slot_size, out)
        })?;
        let mut slots = vec![rootfs];
        if !self.chain.kernel_in_root() {
            for (slot, bytes) in [("kernel", &parts.kernel), ("initrd", &parts.initrd)] {
                let write = |out: &Path| fs::write(out, bytes).map_err(file("write", out));
                slots.push(self.image(slot, &[&files::digest_of(bytes)], write)?);
            }
        }
        Ok(Release { version: version.to_owned(), slots })
    }

    /// One image, from the cache or made by `make`, raw and packed.
    fn image(
        &self,
        slot: &'static str,
        inputs: &[&str],
        make: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<SlotImage, ImageError> {
        let mut all = vec!["image", slot];
        all.extend(inputs);
        let place = self.cache.get(&all, |place| {
            let raw = place.join("image");
            make(&raw)?;
            let bytes = fs::read(&raw).map_err(file("read", &raw))?;
            let packed = packed::pack(&bytes)?;
            let summary = format!(
                "{} {} {} {}\n",
                files::digest_of(&bytes),
                bytes.len(),
                files::digest_of(&packed),
                packed.len()
            );
            for (name, bytes) in [("image.zst", &packed[..]), ("summary", summary.as_bytes())] {
                let path = place.join(name);
                fs::write(&path, bytes).map_err(file("write", &path))?;
            }
            Ok(())
        })?;
        let path = place.join("summary");
        let summary = fs::read_to_string(&path).map_err(file("read", &path))?;
        let words: Vec<&str> = summary.split_whitespace().collect();
        let [sha256, size, packed_sha256, packed_size] = words[..] else {
            return Err(ImageError::Recipe(format!(
                "{}: not what was written there; delete it",
                path.display()
            )));
        };
        let number = |text: &str| text.parse().unwrap_or(0);
        Ok(SlotImage {
            slot,
            path: place.join("image"),
            sha256: sha256.to_owned(),
            size: number(size),
            packed: place.join("image.zst"),
            packed_sha256: packed_sha256.to_owned(),
            packed_size: number(packed_size),
        })
    }

    /// A device in `folder` (created, what is there is replaced): its disk and, with UEFI, its variables, both its own
    /// to write.
    ///
    /// # Errors
    /// Something does not fit, is not there, or a tool failed.
    pub fn disk(&self, device: &Device, folder: &Path) -> Result<Disk, ImageError> {
        if device.chain != self.chain {
            let (theirs, ours) = (device.chain.name(), self.chain.name());
            return Err(ImageError::Recipe(format!("a device with {theirs} in the workshop for {ours}")));
        }
        fs::create_dir_all(folder).map_err(file("create", folder))?;
        // What differs from device to device is not kept: it would only fill the cache.
        let data = folder.join("data.tmp");
        ext4::make(&device.data_tree(), Use::Data, "data", device.data_size, &data)?;
        let mut filled = self.partitions(device)?;
        filled.push(Filled::linux("data", device.data_size, data.clone()));
        assemble(&filled, &folder.join("disk.img"))?;
        fs::remove_file(&data).map_err(file("remove", &data))?;
        let disk = self.at(device, folder)?;
        fresh_variables(&disk)?;
        Ok(disk)
    }

    /// A device in `folder` whose disk was made elsewhere, with these partitions and this factory image: a copy of it, the
    /// data partition made anew with the device's data. For disks that the builders of a distribution make.
    ///
    /// # Errors
    /// A partition that the chain has is not on the disk, or what a tool or file says.
    pub fn adopt(&self, device: &Device, made: &Path, folder: &Path) -> Result<Disk, ImageError> {
        fs::create_dir_all(folder).map_err(file("create", folder))?;
        let image = folder.join("disk.img");
        files::copy_sparse(made, &image)?;
        let boot = self.chain.boot_sizes().into_iter().map(|(name, _)| name);
        let names: Vec<_> = boot.chain(["root-a", "root-b", "data"]).collect();
        let disk = self.standing(folder, disk::read_layout(&image, &names)?)?;
        let missing = || ImageError::Recipe(format!("{}: no partition data", made.display()));
        let place = disk.partition("data").ok_or_else(missing)?;
        let data = folder.join("data.tmp");
        ext4::make(&device.data_tree(), Use::Data, "data", place.size, &data)?;
        files::overwrite(&data, &image, place.start)?;
        fs::remove_file(&data).map_err(file("remove", &data))?;
        fresh_variables(&disk)?;
        Ok(disk)
    }

    /// The device that [`Workshop::disk`] made in `folder` before, as it is now.
    ///
    /// # Errors
    /// [`ImageError::File`] when it is not there.
    pub fn at(&self, device: &Device, folder: &Path) -> Result<Disk, ImageError> {
        let sizes = self.chain.boot_sizes().into_iter().chain([
            ("root-a", device.slot_size),
            ("root-b", device.slot_size),
            ("data", device.data_size),
        ]);
        self.standing(folder, layout(sizes).0)
    }

    /// What starts the disk of `folder`.
    fn standing(&self, folder: &Path, layout: Vec<Partition>) -> Result<Disk, ImageError> {
        let image = folder.join("disk.img");
        fs::metadata(&image).map_err(file("read", &image))?;
        let (firmware, machine) = match self.chain {
            Chain::UBoot => (Firmware::Bios("/usr/lib/u-boot/qemu-x86/u-boot.rom".into()), "pc"),
            Chain::Grub | Chain::SystemdBoot | Chain::SystemdBootShared => {
                let code = PathBuf::from("/usr/share/OVMF/OVMF_CODE_4M.fd");
                (Firmware::Ovmf { code, vars: folder.join("vars.fd") }, "q35")
            }
        };
        Ok(Disk { chain: self.chain, image, firmware, machine, layout })
    }

    /// Every partition but that of the data, with the file that fills it.
    fn partitions(&self, device: &Device) -> Result<Vec<Filled>, ImageError> {
        let a = device.factory.parts(self.chain, &self.kernel)?;
        let b = device.other.as_ref().map(|root| root.parts(self.chain, &self.kernel)).transpose()?;
        let b_version = device.other.as_ref().map_or(&device.factory.version, |root| &root.version);
        let b = b.as_ref().unwrap_or(&a);
        let kernels = [&a, b].map(|parts| Kernels { kernel: &parts.kernel, initrd: &parts.initrd });
        let mut filled = Vec::new();
        for part in self.chain.boot_parts(&kernels)? {
            let content = match &part.content {
                Content::Fat(_, label, tree) => format!("{label} {}", tree.digest()),
                Content::Raw(bytes) => files::digest_of(bytes),
            };
            let place = self.cache.get(&["boot", &part.size.to_string(), &content], |place| {
                let out = place.join("image");
                match &part.content {
                    Content::Fat(width, label, tree) => fat::make(tree, *width, label, part.size, &out),
                    Content::Raw(bytes) => fs::write(&out, bytes).map_err(file("write", &out)),
                }
            })?;
            let from = place.join("image");
            filled.push(Filled { name: part.name, kind: part.kind, size: part.size, from });
        }
        for (name, parts, version) in [("root-a", &a, &device.factory.version), ("root-b", b, b_version)] {
            let release = self.images(parts, version, device.slot_size)?;
            filled.push(Filled::linux(name, device.slot_size, release.rootfs().path.clone()));
        }
        Ok(filled)
    }
}

/// Variables of UEFI as the firmware begins with them.
fn fresh_variables(disk: &Disk) -> Result<(), ImageError> {
    if let Firmware::Ovmf { vars, .. } = &disk.firmware {
        let fresh = Path::new("/usr/share/OVMF/OVMF_VARS_4M.fd");
        fs::copy(fresh, vars).map_err(file("copy", fresh))?;
    }
    Ok(())
}

/// The kernel of all virtual devices, got when it is not there yet.
fn kernel(cache: &Cache, folder: &Path) -> Result<Kernel, ImageError> {
    let _guard = cache.lock("kernel")?;
    Kernel::get(&folder.join("kernel"))
}

/// The smallest guest, without any bootloader: the kernel of the virtual devices, in its place in the cache, and an
/// initial RAM file system of BusyBox (`/bin/busybox`), `modules` with what they need and in the order of
/// `/modules/order`, and `init` as its first program. It lies in `initrd`, which is made anew.
///
/// # Errors
/// [`ImageError::Missing`], [`ImageError::Kernel`], a module that is not there, a file that cannot be written.
pub fn bare_guest(init: &str, modules: &[&str], initrd: &Path) -> Result<PathBuf, ImageError> {
    tools::check(&[("apt-get", "apt"), ("dpkg-deb", "dpkg"), tools::BUSYBOX])?;
    let folder = Workshop::cache()?;
    let kernel = kernel(&Cache::open(&folder)?, &folder)?;
    fs::write(initrd, ram_disk(&kernel, init, modules, &["sh"])?).map_err(file("write", initrd))?;
    Ok(kernel.path())
}

/// Cargo's target folder.
fn target() -> Result<PathBuf, ImageError> {
    if let Some(path) = std::env::var_os(TARGET) {
        return Ok(path.into());
    }
    let own = std::env::current_exe().map_err(file("find", Path::new("this program")))?;
    // <target>/<profile>/program or <target>/<profile>/deps/test
    let mut folder = own.parent();
    if folder.is_some_and(|path| path.ends_with("deps")) {
        folder = folder.and_then(Path::parent);
    }
    let folder = folder.and_then(Path::parent);
    folder.map(Path::to_owned).ok_or_else(|| ImageError::Recipe(format!("{} is in no folder", own.display())))
}
