SUMMARY = "OTA A/B update agent"
DESCRIPTION = "Takes firmware jobs from the cloud, writes verified images into the slot set that does not run, has the \
bootloader try it once, and confirms or fails the job after the reboot."
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

require otandem-source.inc
require otandem-crates.inc

SRC_URI += "file://run-ptest"

inherit cargo features_check ptest systemd update-rc.d useradd

# The native and SDK forms look at documents and configurations on the build machine; they need no choice of a feature.
REQUIRED_DISTRO_FEATURES:class-target = "otandem"

# One for each feature of agent/daemon/Cargo.toml, under its name; tests/layer holds the two lists together.
PACKAGECONFIG ??= "jobs messages provisioning services subscribe commands gzip xz boot-custom boot-grub boot-systemd-boot boot-u-boot"
PACKAGECONFIG[session] = "--features session"
PACKAGECONFIG[jobs] = "--features jobs"
PACKAGECONFIG[messages] = "--features messages"
PACKAGECONFIG[provisioning] = "--features provisioning"
PACKAGECONFIG[services] = "--features services"
PACKAGECONFIG[subscribe] = "--features subscribe"
PACKAGECONFIG[commands] = "--features commands"
PACKAGECONFIG[gzip] = "--features gzip"
PACKAGECONFIG[xz] = "--features xz"
PACKAGECONFIG[boot-custom] = "--features boot-custom"
PACKAGECONFIG[boot-grub] = "--features boot-grub"
PACKAGECONFIG[boot-simulated] = "--features boot-simulated"
PACKAGECONFIG[boot-systemd-boot] = "--features boot-systemd-boot"
PACKAGECONFIG[boot-u-boot] = "--features boot-u-boot"

# A program of its own, for definitions of services that are more than a literal; where the checkout has it.
PACKAGECONFIG[js] = "--package otandem-js --bin otandem-js"

# scarthgap's cargo class does not hand PACKAGECONFIG to cargo; newer ones do.
OTANDEM_FEATURES = "${@'' if 'PACKAGECONFIG_CONFARGS' in (d.getVar('oe_cargo_build', False) or '') else '${PACKAGECONFIG_CONFARGS}'}"
CARGO_BUILD_FLAGS:append = " --package otandem --bin otandem --no-default-features ${OTANDEM_FEATURES}"

# BitBake strips by itself and keeps what it stripped.
export CARGO_PROFILE_RELEASE_STRIP = "false"

dist = "${S}/agent/dist"
otandem_libdir = "${nonarch_libdir}/otandem"
# Where the agent looks for it, whatever the distribution's libexecdir is.
otandem_libexecdir = "${prefix}/libexec/otandem"

do_install() {
	install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/otandem ${D}${bindir}/otandem
}

do_install:append:class-target() {
	install -D -m 0755 ${dist}/usr/lib/otandem/dead-man ${D}${otandem_libdir}/dead-man
	install -D -m 0644 ${dist}/etc/otandem/otandem.toml.example ${D}${docdir}/otandem/otandem.toml.example
	install -d -m 0755 ${D}${sysconfdir}/otandem/health.d ${D}${sysconfdir}/otandem/hooks.d
	if [ -d ${dist}/usr/bin ]; then
		cp -R --no-dereference --preserve=mode ${dist}/usr/bin/. ${D}${bindir}
	fi

	if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
		install -d ${D}${systemd_system_unitdir}
		install -m 0644 ${dist}/usr/lib/systemd/system/* ${D}${systemd_system_unitdir}
		install -D -m 0644 ${dist}/usr/lib/tmpfiles.d/otandem.conf ${D}${nonarch_libdir}/tmpfiles.d/otandem.conf
		install -D -m 0644 ${dist}/usr/lib/sysusers.d/otandem.conf ${D}${nonarch_libdir}/sysusers.d/otandem.conf
	fi
	if ${@bb.utils.contains('DISTRO_FEATURES', 'sysvinit', 'true', 'false', d)}; then
		install -D -m 0755 ${dist}/etc/init.d/otandem ${D}${sysconfdir}/init.d/otandem
	fi

	# No other mode is taken where jobs.strict-permissions is set.
	install -d -m 0700 ${D}${otandem_libdir}/handlers
	install -m 0700 ${S}/handlers/* ${D}${otandem_libdir}/handlers

	install -d ${D}${base_sbindir}
	ln -rs ${D}${bindir}/otandem ${D}${base_sbindir}/aws-iot-device-client

	if ${@bb.utils.contains('PACKAGECONFIG', 'js', 'true', 'false', d)}; then
		install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/otandem-js ${D}${otandem_libexecdir}/otandem-js
	fi
}

# ${PN}-js is made only where PACKAGECONFIG has js, which is what fills it.
PACKAGE_BEFORE_PN = "${PN}-trial ${PN}-handlers ${PN}-device-client ${PN}-js"

SUMMARY:${PN}-trial = "Resets a device whose new image gets no verdict in time"
SUMMARY:${PN}-handlers = "Programs that jobs call by name"
SUMMARY:${PN}-device-client = "The agent under the name of the AWS IoT Device Client"

SUMMARY:${PN}-js = "Runs definitions of services that are programs"

FILES:${PN}-trial = "${otandem_libdir}/dead-man ${systemd_system_unitdir}/otandem-*"
FILES:${PN}-handlers = "${otandem_libdir}/handlers"
FILES:${PN}-device-client = "${base_sbindir}/aws-iot-device-client"
FILES:${PN}-js = "${otandem_libexecdir}/otandem-js"
FILES:${PN} += "${nonarch_libdir}/tmpfiles.d ${nonarch_libdir}/sysusers.d"

# An update without the dead-man can hang for ever, and without a configuration there are none.
RDEPENDS:${PN}:append:class-target = " ${PN}-trial virtual-otandem-conf"
RRECOMMENDS:${PN}:append:class-target = " ca-certificates ${PN}-handlers"

RDEPENDS:${PN}-device-client = "${PN}"
RPROVIDES:${PN}-device-client = "aws-iot-device-client"
RCONFLICTS:${PN}-device-client = "aws-iot-device-client"
RREPLACES:${PN}-device-client = "aws-iot-device-client"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system otandem"

SYSTEMD_PACKAGES = "${PN} ${PN}-trial"
SYSTEMD_SERVICE:${PN} = "otandem.service"
SYSTEMD_SERVICE:${PN}-trial = "otandem-trial.timer"
SYSTEMD_AUTO_ENABLE:${PN}-trial = "enable"

INITSCRIPT_NAME = "otandem"
INITSCRIPT_PARAMS = "defaults 80 20"

do_install_ptest() {
	install -D -m 0644 ${dist}/etc/otandem/otandem.toml.example ${D}${PTEST_PATH}/otandem.toml.example
}

# For programs that call the agent by the name of another one. The package is made, and says so, as soon as agent/dist of the
# checkout has that name.
OTANDEM_CHARIOTD = "${@'chariotd' if os.path.lexists(d.getVar('OTANDEM_TOP') + '/agent/dist/usr/bin/chariotd') else ''}"
PACKAGE_BEFORE_PN += "${PN}-chariotd"
SUMMARY:${PN}-chariotd = "The agent under the name chariotd"
FILES:${PN}-chariotd = "${bindir}/chariotd"
RDEPENDS:${PN}-chariotd = "${PN}"
RPROVIDES:${PN}-chariotd = "${OTANDEM_CHARIOTD}"
RCONFLICTS:${PN}-chariotd = "${OTANDEM_CHARIOTD}"
RREPLACES:${PN}-chariotd = "${OTANDEM_CHARIOTD}"

BBCLASSEXTEND = "native nativesdk"
