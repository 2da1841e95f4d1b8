# What a product sets, with defaults. Recipes and images that need any of it inherit this; set them in the distribution's,
# the machine's or the local configuration, so that image, configuration and boot files are of one mind.

# u-boot, grub or systemd-boot. Default: what the machine speaks of (MACHINE_FEATURES, EFI_PROVIDER, virtual/bootloader).
OTANDEM_BOOTLOADER ?= "${@otandem.settings.bootloader(d.getVar('MACHINE_FEATURES'), d.getVar('EFI_PROVIDER'), d.getVar('PREFERRED_PROVIDER_virtual/bootloader'))}"
# The name of the program that UEFI starts (EFI_BOOT_IMAGE).
require conf/image-uefi.conf

# A device takes images of its own kind alone.
OTANDEM_COMPATIBLE ?= "otandem-demo-${MACHINE}"
# Part of every file name, and shown in the cloud's console.
OTANDEM_VERSION ?= "${DISTRO_VERSION}"

# Slots of a set; with each the file that goes into it (in the image's or the machine's deploy folder) and its size.
OTANDEM_ROOTFS_TYPE ?= "ext4"
OTANDEM_SLOTS ?= "rootfs${@' kernel' if d.getVar('OTANDEM_BOOTLOADER') == 'systemd-boot' else ''}${@' initrd' if d.getVar('OTANDEM_BOOTLOADER') == 'systemd-boot' and d.getVar('OTANDEM_INITRD') else ''}"
OTANDEM_SLOT_SIZE ?= "512M"
OTANDEM_KERNEL_SIZE ?= "24M"
OTANDEM_INITRD_SIZE ?= "24M"
OTANDEM_SLOT_rootfs[file] ?= "${IMAGE_LINK_NAME}.${OTANDEM_ROOTFS_TYPE}"
OTANDEM_SLOT_rootfs[size] ?= "${OTANDEM_SLOT_SIZE}"
OTANDEM_SLOT_kernel[file] ?= "${KERNEL_IMAGETYPE}"
OTANDEM_SLOT_kernel[size] ?= "${OTANDEM_KERNEL_SIZE}"
OTANDEM_SLOT_initrd[file] ?= "${OTANDEM_INITRD}"
OTANDEM_SLOT_initrd[size] ?= "${OTANDEM_INITRD_SIZE}"

# What the factory writes into set B: the same image (a new device has a fallback at once), or nothing.
OTANDEM_SET_B ?= "copy"
# Each of the boot volumes; the data partition, which grows on the first boot, and where it is mounted.
OTANDEM_BOOT_SIZE ?= "96M"
OTANDEM_DATA_SIZE ?= "128M"
OTANDEM_DATA ?= "/data"

# Initial RAM file system in the machine's deploy folder; empty: the kernel mounts its root by itself.
OTANDEM_INITRD ?= "${@otandem_initrd(d)}"
# End of the kernel's command line. systemd must not mount boot volumes by itself: their places are in /etc/fstab.
OTANDEM_KERNEL_ARGS ?= "console=ttyS0 quiet systemd.gpt_auto=0"
# A watchdog that the update machine alone feeds during a trial, for example /dev/watchdog0.
OTANDEM_WATCHDOG ?= ""

# AWS IoT endpoint of the product; absent: offline devices.
OTANDEM_ENDPOINT ?= ""
# File on the build machine with the CA certificates of the endpoint, for every image; absent: the factory puts them on the
# data partition and names them in device.toml. Keys and certificates of devices never go into an image.
OTANDEM_CA ?= ""
# Folder from which devices download: one of the two. With S3 the cloud presigns each download.
#   OTANDEM_S3_URL = "https://s3.REGION.amazonaws.com/BUCKET/FOLDER"
OTANDEM_URL ?= ""
OTANDEM_S3_URL ?= ""
OTANDEM_ZSTD_LEVEL ?= "19"

OTANDEM_VARIABLES = "\
    OTANDEM_BOOTLOADER OTANDEM_COMPATIBLE OTANDEM_VERSION OTANDEM_ROOTFS_TYPE OTANDEM_SLOTS OTANDEM_SLOT_SIZE \
    OTANDEM_KERNEL_SIZE OTANDEM_INITRD_SIZE OTANDEM_SET_B OTANDEM_BOOT_SIZE OTANDEM_DATA_SIZE OTANDEM_DATA \
    OTANDEM_INITRD OTANDEM_KERNEL_ARGS OTANDEM_WATCHDOG OTANDEM_ENDPOINT OTANDEM_CA OTANDEM_URL OTANDEM_S3_URL OTANDEM_ZSTD_LEVEL \
"

def otandem_initrd(d):
    """What INITRAMFS_IMAGE deploys, unless it is inside the kernel."""
    image = d.getVar('INITRAMFS_IMAGE')
    if not image or bb.utils.to_boolean(d.getVar('INITRAMFS_IMAGE_BUNDLE')):
        return ''
    suffix = d.getVar('IMAGE_MACHINE_SUFFIX') or '-' + d.getVar('MACHINE')
    return '%s%s.%s' % (image, suffix, (d.getVar('INITRAMFS_FSTYPES') or 'cpio.gz').split()[0])

def otandem_flag(d):
    """Flags are not expanded by BitBake."""
    def flag(variable, name):
        return d.expand(d.getVarFlag(variable, name, False) or '')
    return flag
