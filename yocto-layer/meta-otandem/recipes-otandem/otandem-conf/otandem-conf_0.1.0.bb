SUMMARY = "Configuration of the update agent, as far as all devices of a machine share it"
DESCRIPTION = "Written from the OTANDEM_ variables. A product that wants to write it itself has two ways: an otandem.toml \
in SRC_URI, by an append, or a recipe of its own that provides virtual-otandem-conf."
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${OTANDEM_LAYERDIR}/COPYING;md5=3b83ef96387f14655fc854ddc3c6bd57"

inherit features_check otandem-settings

REQUIRED_DISTRO_FEATURES = "otandem"
PACKAGE_ARCH = "${MACHINE_ARCH}"

RPROVIDES:${PN} += "virtual-otandem-conf"
INHIBIT_DEFAULT_DEPS = "1"

# scarthgap has no UNPACKDIR and unpacks to WORKDIR.
OTANDEM_UNPACKED = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}"
S = "${OTANDEM_UNPACKED}/${BP}"
do_unpack[cleandirs] += "${S}"

python () {
    try:
        otandem.settings.check(d.getVar, otandem_flag(d))
    except otandem.settings.Mistake as mistake:
        raise bb.parse.SkipRecipe(str(mistake))
}

do_compile[vardeps] += "${OTANDEM_VARIABLES}"
python do_compile() {
    import os
    path = d.expand('${B}/otandem.toml')
    own = d.expand('${OTANDEM_UNPACKED}/otandem.toml')
    if os.path.exists(own):
        with open(own) as file:
            text = file.read()
    else:
        text = otandem.settings.configuration(d.getVar, otandem_flag(d))
        if d.getVar('OTANDEM_COMPATIBLE').startswith(otandem.settings.EXAMPLE_COMPATIBLE):
            bb.warn('The device takes images of the example: set OTANDEM_COMPATIBLE to the name of your product.')
    with open(path, 'w') as file:
        file.write(text)
    with open(d.expand('${B}/ca.pem'), 'w') as file:
        file.write(otandem.settings.certificates('OTANDEM_CA', d.getVar('OTANDEM_CA')))
}
# What is in the file counts, not only its name.
do_compile[file-checksums] += "${@(d.getVar('OTANDEM_CA') or '') and d.getVar('OTANDEM_CA') + ':True'}"

# In /usr: what belongs to the image goes with the image, also where /etc is an overlay that outlives it.
do_install() {
	install -D -m 0644 ${B}/otandem.toml ${D}${nonarch_libdir}/otandem/otandem.toml
	if [ -s ${B}/ca.pem ]; then
		install -m 0644 ${B}/ca.pem ${D}${nonarch_libdir}/otandem/ca.pem
	fi
	if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
		install -d ${D}${systemd_system_unitdir}/otandem.service.d
		printf '[Unit]\nRequiresMountsFor=%s\n' "${OTANDEM_DATA}" \
			> ${D}${systemd_system_unitdir}/otandem.service.d/data.conf
	fi
}

FILES:${PN} = "${nonarch_libdir}/otandem ${systemd_system_unitdir}"
