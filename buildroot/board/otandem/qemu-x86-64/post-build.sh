#!/bin/sh
# Puts into the root file system what lies outside of packages: the kernel that GRUB reads from the slot, and the mounts.
set -eu

mkdir -p "$TARGET_DIR/boot" "$TARGET_DIR/data" "$TARGET_DIR/efi"
install -m 0644 "$BINARIES_DIR/bzImage" "$TARGET_DIR/boot/vmlinuz"
for line in \
	"/dev/disk/by-partlabel/data /data ext4 defaults,noatime,nosuid,nodev 0 2" \
	"/dev/disk/by-partlabel/esp /efi vfat umask=0077,dirsync 0 2"; do
	grep -qxF "$line" "$TARGET_DIR/etc/fstab" || echo "$line" >>"$TARGET_DIR/etc/fstab"
done
