#!/bin/sh
# The disk image, the update image and its job document. What devices are told is set in the environment or here.
set -eu

version=${OTANDEM_VERSION:-1.0}
compatible=${OTANDEM_COMPATIBLE:-otandem-demo-qemu-x86-64}
# https://s3.REGION.amazonaws.com/BUCKET/FOLDER; without it the document has an example address.
s3_url=${OTANDEM_S3_URL:-}
slot_bytes=268435456

here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../../../.." && pwd)
hooks=$project/bootloader-hooks/grub

root=$BINARIES_DIR/otandem-esp
rm -rf "$root"
mkdir -p "$root/EFI/BOOT" "$root/grub"
install -m 0644 "$BINARIES_DIR/efi-part/EFI/BOOT/bootx64.efi" "$root/EFI/BOOT/bootx64.efi"
# The kernel has its drivers inside and needs no initial RAM file system.
sed 's/^set otandem_initrd=.*/set otandem_initrd=/' "$hooks/grub.cfg" >"$root/grub/grub.cfg"
layer() { PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$project/yocto-layer/meta-otandem/lib" python3 "$@"; }
layer -c 'import sys; from otandem import boot; sys.stdout.buffer.write(boot.grubenv())' >"$root/grub/grubenv"

work=$BUILD_DIR/genimage.tmp
rm -rf "$work"
genimage --rootpath "$root" --tmppath "$work" --inputpath "$BINARIES_DIR" --outputpath "$BINARIES_DIR" \
	--config "$here/genimage.cfg"

layer -m otandem.update \
	--slot "rootfs=$BINARIES_DIR/rootfs.ext4:$slot_bytes" --out "$BINARIES_DIR" --name otandem-qemu-x86-64 \
	--version "$version" --compatible "$compatible" ${s3_url:+--s3-url "$s3_url"}
