################################################################################
#
# otandem
#
################################################################################

OTANDEM_VERSION = 0.1.0
# The checkout that this tree lies in, with its crates in VENDOR: run
# "cargo vendor --locked VENDOR" there once (Buildroot vendors by itself only
# what it downloads).
OTANDEM_SITE = $(BR2_EXTERNAL_OTANDEM_PATH)/..
OTANDEM_SITE_METHOD = local
OTANDEM_LICENSE = Apache-2.0
OTANDEM_LICENSE_FILES = LICENSE
# What cargo and the tests leave in a checkout is no source. At its top alone:
# crates have folders of these names, too.
OTANDEM_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS = \
	--exclude /target --exclude /.venv --exclude /demo-out

OTANDEM_FEATURES = \
	$(if $(BR2_PACKAGE_OTANDEM_JOBS),jobs) \
	$(if $(BR2_PACKAGE_OTANDEM_MESSAGES),messages) \
	$(if $(BR2_PACKAGE_OTANDEM_PROVISIONING),provisioning) \
	$(if $(BR2_PACKAGE_OTANDEM_SERVICES),services) \
	$(if $(BR2_PACKAGE_OTANDEM_SUBSCRIBE),subscribe) \
	$(if $(BR2_PACKAGE_OTANDEM_COMMANDS),commands) \
	$(if $(BR2_PACKAGE_OTANDEM_GZIP),gzip) \
	$(if $(BR2_PACKAGE_OTANDEM_XZ),xz) \
	$(if $(BR2_PACKAGE_OTANDEM_BOOT_CUSTOM),boot-custom) \
	$(if $(BR2_PACKAGE_OTANDEM_BOOT_GRUB),boot-grub) \
	$(if $(BR2_PACKAGE_OTANDEM_BOOT_SYSTEMD_BOOT),boot-systemd-boot) \
	$(if $(BR2_PACKAGE_OTANDEM_BOOT_U_BOOT),boot-u-boot)

OTANDEM_CARGO_BUILD_OPTS = \
	--package otandem --bin otandem --no-default-features \
	--features "$(strip $(OTANDEM_FEATURES))" \
	$(if $(BR2_PACKAGE_OTANDEM_JS),--package otandem-js --bin otandem-js)

OTANDEM_DIST = $(@D)/agent/dist

define OTANDEM_VENDORED
	test -d $(@D)/VENDOR || { \
		echo "otandem: the crates are not there: run 'cargo vendor --locked VENDOR' in $(OTANDEM_SITE)" >&2; exit 1; }
	mkdir -p $(@D)/.cargo
	grep -q vendored-sources $(@D)/.cargo/config.toml || printf \
		'[source.crates-io]\nreplace-with = "vendored-sources"\n[source.vendored-sources]\ndirectory = "VENDOR"\n' \
		>> $(@D)/.cargo/config.toml
endef
OTANDEM_PRE_BUILD_HOOKS += OTANDEM_VENDORED

OTANDEM_BUILT = $(@D)/target/$(RUSTC_TARGET_NAME)/$(if $(BR2_ENABLE_DEBUG),debug,release)

OTANDEM_JS = $(if $(BR2_PACKAGE_OTANDEM_JS),\
	$(INSTALL) -D -m 0755 $(OTANDEM_BUILT)/otandem-js \
		$(TARGET_DIR)/usr/libexec/otandem/otandem-js)

OTANDEM_CHARIOTD = $(if $(BR2_PACKAGE_OTANDEM_CHARIOTD),\
	ln -sf otandem $(TARGET_DIR)/usr/bin/chariotd)

OTANDEM_DEVICE_CLIENT = $(if $(BR2_PACKAGE_OTANDEM_DEVICE_CLIENT),\
	mkdir -p $(TARGET_DIR)/usr/sbin && \
	ln -sf ../bin/otandem $(TARGET_DIR)/usr/sbin/aws-iot-device-client)

define OTANDEM_INSTALL_TARGET_CMDS
	$(INSTALL) -D -m 0755 $(OTANDEM_BUILT)/otandem \
		$(TARGET_DIR)/usr/bin/otandem
	$(INSTALL) -D -m 0755 $(OTANDEM_DIST)/usr/lib/otandem/dead-man \
		$(TARGET_DIR)/usr/lib/otandem/dead-man
	$(INSTALL) -D -m 0644 $(call qstrip,$(BR2_PACKAGE_OTANDEM_CONFIG)) \
		$(TARGET_DIR)/usr/lib/otandem/otandem.toml
	$(INSTALL) -d -m 0755 $(TARGET_DIR)/etc/otandem/health.d $(TARGET_DIR)/etc/otandem/hooks.d
	$(INSTALL) -d -m 0700 $(TARGET_DIR)/usr/lib/otandem/handlers
	$(INSTALL) -m 0700 $(@D)/handlers/* $(TARGET_DIR)/usr/lib/otandem/handlers
	$(OTANDEM_DEVICE_CLIENT)
	$(OTANDEM_JS)
	$(OTANDEM_CHARIOTD)
endef

define OTANDEM_INSTALL_INIT_SYSV
	$(INSTALL) -D -m 0755 $(OTANDEM_DIST)/etc/init.d/otandem \
		$(TARGET_DIR)/etc/init.d/S80otandem
endef

define OTANDEM_INSTALL_INIT_SYSTEMD
	$(INSTALL) -d -m 0755 $(TARGET_DIR)/usr/lib/systemd/system
	$(INSTALL) -m 0644 $(OTANDEM_DIST)/usr/lib/systemd/system/* \
		$(TARGET_DIR)/usr/lib/systemd/system
	$(INSTALL) -D -m 0644 $(OTANDEM_DIST)/usr/lib/tmpfiles.d/otandem.conf \
		$(TARGET_DIR)/usr/lib/tmpfiles.d/otandem.conf
endef

define OTANDEM_USERS
	- - otandem -1 - - - - -
endef

$(eval $(cargo-package))
