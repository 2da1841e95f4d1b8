SUMMARY = "Lets the data partition grow over the whole disk on the first boot"
DESCRIPTION = "The disk image has a small data partition at its end; a device has a larger disk."
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${OTANDEM_LAYERDIR}/COPYING;md5=3b83ef96387f14655fc854ddc3c6bd57"

SRC_URI = "\
    file://grow-data \
    file://otandem-grow-data.service \
    file://otandem-grow-data.init \
"

# scarthgap has no UNPACKDIR and unpacks to WORKDIR.
OTANDEM_UNPACKED = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}"
S = "${OTANDEM_UNPACKED}/${BP}"
do_unpack[cleandirs] += "${S}"

inherit allarch features_check systemd update-rc.d

REQUIRED_DISTRO_FEATURES = "otandem"

do_install() {
	install -D -m 0755 ${OTANDEM_UNPACKED}/grow-data ${D}${nonarch_libdir}/otandem/grow-data
	if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
		install -D -m 0644 ${OTANDEM_UNPACKED}/otandem-grow-data.service ${D}${systemd_system_unitdir}/otandem-grow-data.service
	fi
	if ${@bb.utils.contains('DISTRO_FEATURES', 'sysvinit', 'true', 'false', d)}; then
		install -D -m 0755 ${OTANDEM_UNPACKED}/otandem-grow-data.init ${D}${sysconfdir}/init.d/otandem-grow-data
	fi
}

SYSTEMD_SERVICE:${PN} = "otandem-grow-data.service"
INITSCRIPT_NAME = "otandem-grow-data"
# After udev (04), before the file systems of fstab are mounted.
INITSCRIPT_PARAMS = "start 05 S ."

FILES:${PN} += "${nonarch_libdir}/otandem"
RDEPENDS:${PN} = "e2fsprogs-dumpe2fs e2fsprogs-e2fsck e2fsprogs-resize2fs util-linux-partx util-linux-sfdisk"
