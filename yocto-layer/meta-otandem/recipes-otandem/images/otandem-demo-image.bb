SUMMARY = "A small system that takes updates"
DESCRIPTION = "Read-only root file system, two slot sets, state on the data partition."
LICENSE = "Apache-2.0"

inherit core-image otandem-image

IMAGE_FEATURES += "read-only-rootfs"
IMAGE_INSTALL = "packagegroup-core-boot ${CORE_IMAGE_EXTRA_INSTALL}"
