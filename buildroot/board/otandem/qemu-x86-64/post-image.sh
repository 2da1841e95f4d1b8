#!/bin/sh
# The disk image, the update image and its job document. What they are called is set in Buildroot's configuration (package
# otandem) or, for one build, in the environment: OTANDEM_IMAGE_VERSION, OTANDEM_IMAGE_URL, OTANDEM_IMAGE_S3_URL. For which
# devices they are says the configuration of the agent. Anything that cannot work stops the build, and leaves nothing of these.
set -eu

name=otandem-qemu-x86-64
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../../../.." && pwd)
hooks=$project/bootloader-hooks/grub

option() { sed -n "s/^BR2_PACKAGE_OTANDEM_IMAGE_$1=\"\(.*\)\"\$/\1/p" "$BR2_CONFIG"; }
layer() { PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$project/yocto-layer/meta-otandem/lib" python3 "$@"; }
version=${OTANDEM_IMAGE_VERSION:-$(option VERSION)}
url=${OTANDEM_IMAGE_URL:-$(option URL)}
s3_url=${OTANDEM_IMAGE_S3_URL:-$(option S3_URL)}

finished=
trap '[ -n "$finished" ] || rm -f "$BINARIES_DIR/disk.img" "$BINARIES_DIR/$name-$version-rootfs.zst" "$BINARIES_DIR/$name-$version.fota.json"' EXIT

found=$(layer -m otandem.disk --layout "$here/genimage.cfg" --config "$TARGET_DIR/usr/lib/otandem/otandem.toml" \
	--root "$TARGET_DIR" --image "$BINARIES_DIR/rootfs.ext4")
compatible=${found% *} slot_bytes=${found##* }

root=$BINARIES_DIR/otandem-esp
rm -rf "$root"
mkdir -p "$root/EFI/BOOT" "$root/grub"
install -m 0644 "$BINARIES_DIR/efi-part/EFI/BOOT/bootx64.efi" "$root/EFI/BOOT/bootx64.efi"
# The kernel has its drivers inside and needs no initial RAM file system.
sed 's/^set otandem_initrd=.*/set otandem_initrd=/' "$hooks/grub.cfg" >"$root/grub/grub.cfg"
layer -c 'import sys; from otandem import boot; sys.stdout.buffer.write(boot.grubenv())' >"$root/grub/grubenv"

work=$BUILD_DIR/genimage.tmp
rm -rf "$work"
genimage --rootpath "$root" --tmppath "$work" --inputpath "$BINARIES_DIR" --outputpath "$BINARIES_DIR" \
	--config "$here/genimage.cfg"

layer -m otandem.update \
	--slot "rootfs=$BINARIES_DIR/rootfs.ext4:$slot_bytes" --out "$BINARIES_DIR" --name "$name" \
	--version "$version" --compatible "$compatible" ${url:+--url "$url"} ${s3_url:+--s3-url "$s3_url"}
finished=yes
