# Raspberry Pi with U-Boot (RPI_USE_U_BOOT = "1"): the board part of the boot script. The firmware's files on the FAT come from
# the machine's own IMAGE_BOOT_FILES. Not tried on a board by us.
FILESEXTRAPATHS:prepend:rpi := "${THISDIR}/${PN}:"
SRC_URI:append:rpi = " file://rpi.cmd"
OTANDEM_UBOOT_SOURCE:rpi = "${B}/rpi-boot.cmd"

do_compile[prefuncs] += "${@'otandem_rpi_script' if 'rpi' in d.getVar('OVERRIDES').split(':') else ''}"
otandem_rpi_script() {
	board=${@(d.getVar('UNPACKDIR') or d.getVar('WORKDIR'))}/rpi.cmd
	install -d ${B}
	# The part between the two markers is replaced by that of the board.
	sed -e "/^# ==== board/,/^# ==== selection/{/^# ==== board/r $board
		/^# ==== selection/!d}" ${hooks}/uboot/boot.cmd > ${B}/rpi-boot.cmd
}
