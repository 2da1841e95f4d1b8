SUMMARY = "What the bootloader of a machine needs to choose between the slot sets"
DESCRIPTION = "Deploys the files of the boot volumes for the machine's bootloader, which an image that inherits \
otandem-image puts on its disk, and installs what the agent needs to speak to that bootloader."
SECTION = "bootloaders"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

OTANDEM_PARTS = "LICENSE bootloader-hooks"
require recipes-otandem/otandem/otandem-source.inc

inherit deploy features_check otandem-settings

REQUIRED_DISTRO_FEATURES = "otandem"
PACKAGE_ARCH = "${MACHINE_ARCH}"

hooks = "${S}/bootloader-hooks"

# U-Boot: the board part of the script. "virtual" is the one for QEMU; else a file in the place of boot.cmd, which a machine
# layer adds to SRC_URI: a copy of boot.cmd with its own lines between `# ==== board` and `# ==== selection`.
OTANDEM_UBOOT_SOURCE ?= "${hooks}/uboot/boot.cmd"
OTANDEM_UBOOT_BOARD ?= ""
OTANDEM_UBOOT_BOARD:qemux86-64 ?= "virtual"
OTANDEM_UBOOT_ARCH ?= "${@{'aarch64': 'arm64', 'x86_64': 'x86', 'i686': 'x86', 'riscv64': 'riscv'}.get(d.getVar('TARGET_ARCH'), d.getVar('TARGET_ARCH'))}"
# More variables of the first environment, NAME=VALUE separated by \n.
OTANDEM_UBOOT_ENV ?= ""
# Disk of the environment in /etc/fw_env.config; both copies lie on the partition uboot-env.
OTANDEM_UBOOT_ENV_DEVICE ?= "/dev/disk/by-partlabel/uboot-env"

DEPENDS += "${@{'grub': 'grub-native grub-efi', 'u-boot': 'u-boot-tools-native'}.get(d.getVar('OTANDEM_BOOTLOADER'), '')}"

# The list that README.md beside grub.cfg has; tests/layer holds the two together.
OTANDEM_GRUB_MODULES = "part_gpt fat ext2 normal linux loadenv test search search_fs_file regexp eval testspeed echo reboot halt sleep serial terminal configfile"
GRUB_PLATFORM = "${@{'x86_64': 'x86_64', 'aarch64': 'arm64', 'arm': 'arm', 'riscv64': 'riscv64'}.get(d.getVar('TARGET_ARCH'), 'i386')}-efi"
GRUB_MODULES_FROM ?= "${STAGING_LIBDIR}/grub/${GRUB_PLATFORM}"

python () {
    try:
        otandem.settings.known(d.getVar('OTANDEM_BOOTLOADER'))
    except otandem.settings.Mistake as mistake:
        raise bb.parse.SkipRecipe(str(mistake))
}

do_configure[noexec] = "1"
do_compile[cleandirs] = "${B}/volumes"
do_compile[vardeps] += "OTANDEM_KERNEL_ARGS OTANDEM_INITRD OTANDEM_BOOTLOADER"
B = "${WORKDIR}/build"

python do_compile() {
    import os
    hooks, out, kind = d.getVar('hooks'), d.expand('${B}/volumes'), d.getVar('OTANDEM_BOOTLOADER')
    arguments, initrd = d.getVar('OTANDEM_KERNEL_ARGS'), d.getVar('OTANDEM_INITRD')

    def read(name):
        with open(os.path.join(hooks, name)) as file:
            return file.read()

    def write(name, data):
        path = os.path.join(out, name)
        bb.utils.mkdirhier(os.path.dirname(path))
        with open(path, 'wb') as file:
            file.write(data.encode() if isinstance(data, str) else data)

    try:
        if kind == 'grub':
            write('esp/grub/grub.cfg', otandem.boot.grub_cfg(read('grub/grub.cfg'), initrd, arguments))
        elif kind == 'systemd-boot':
            write('esp/loader/loader.conf', read('systemd-boot/loader.conf'))
            write('esp/startup.nsh', read('systemd-boot/startup.nsh'))
            for name, volume in (('a', 'esp'), ('b', 'xbootldr')):
                data = otandem.boot.entry(read('systemd-boot/otandem-%s.template' % name), initrd, arguments)
                # A set that is not installed has no tries.
                spent = '+0' if name == 'b' and d.getVar('OTANDEM_SET_B') == 'empty' else ''
                write('%s/loader/entries/otandem-%s%s.conf' % (volume, name, spent), data)
                write('%s/loader/entries/otandem-%s.template' % (volume, name), data)
        else:
            # The board part of the virtual device is put in by make-boot-script, afterwards.
            with open(d.getVar('OTANDEM_UBOOT_SOURCE')) as file:
                text = file.read()
            write('../boot.cmd', otandem.boot.boot_cmd(text, arguments))
            virtual = otandem.boot.boot_cmd(read('uboot/virtual.cmd'), arguments)
            with open(os.path.join(hooks, 'uboot/virtual.cmd'), 'w') as file:
                file.write(virtual)
            more = (d.getVar('OTANDEM_UBOOT_ENV') or '').replace('\\n', '\n')
            write('uboot-env.bin', otandem.boot.environment(read('uboot/factory-env.txt') + '\n' + more))
    except otandem.settings.Mistake as mistake:
        bb.fatal(str(mistake))
    bb.build.exec_func('otandem_programs', d)
}

otandem_programs() {
	case "${OTANDEM_BOOTLOADER}" in
	grub)
		# early.cfg needs the shell of `normal`, so it lies in a memory disk and not in the image's own script.
		rm -rf ${B}/memdisk && install -D -m 0644 ${hooks}/grub/early.cfg ${B}/memdisk/boot/grub/grub.cfg
		tar --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C ${B}/memdisk -cf ${B}/memdisk.tar boot
		install -d ${B}/volumes/esp/EFI/BOOT
		grub-mkimage -d ${GRUB_MODULES_FROM} -O ${GRUB_PLATFORM} -p '(memdisk)/boot/grub' \
			-m ${B}/memdisk.tar -o ${B}/volumes/esp/EFI/BOOT/${EFI_BOOT_IMAGE} memdisk tar ${OTANDEM_GRUB_MODULES}
		grub-editenv ${B}/volumes/esp/grub/grubenv create
		;;
	u-boot)
		install -d ${B}/volumes/boot
		sh ${hooks}/uboot/make-boot-script ${@'--virtual' if d.getVar('OTANDEM_UBOOT_BOARD') == 'virtual' else ''} \
			--arch ${OTANDEM_UBOOT_ARCH} --source ${B}/boot.cmd ${B}/volumes/boot/boot.scr
		;;
	esac
}

do_install() {
	install -d ${D}${sysconfdir}
	case "${OTANDEM_BOOTLOADER}" in
	u-boot)
		{
			echo "# Both copies of U-Boot's environment; as the partition uboot-env is laid out in the factory."
			echo "${OTANDEM_UBOOT_ENV_DEVICE} 0x0 0x4000"
			echo "${OTANDEM_UBOOT_ENV_DEVICE} 0x8000 0x4000"
		} > ${D}${sysconfdir}/fw_env.config
		;;
	systemd-boot)
		# It would call an image good that is still on trial.
		if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
			install -d ${D}${sysconfdir}/systemd/system
			ln -sf /dev/null ${D}${sysconfdir}/systemd/system/systemd-bless-boot.service
		fi
		;;
	esac
}

do_deploy() {
	install -d ${DEPLOYDIR}/otandem-boot
	cp -R --no-dereference --preserve=mode,timestamps ${B}/volumes/. ${DEPLOYDIR}/otandem-boot
}
addtask deploy after do_compile before do_build

ALLOW_EMPTY:${PN} = "1"
# fsck for the volumes that are written to, and U-Boot's tools.
RDEPENDS:${PN} = "${@{'u-boot': 'libubootenv-bin'}.get(d.getVar('OTANDEM_BOOTLOADER'), 'dosfstools')}"
