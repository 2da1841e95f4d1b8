"""The files that a bootloader reads: entries, environments, and the FAT volumes that hold them."""

import os
import pathlib
import re
import shutil
import struct
import subprocess
import zlib

from .settings import MIB, Mistake

# Bytes of one copy of U-Boot's environment, and where the second one begins; as in fw_env.config.
ENV_SIZE, ENV_SECOND = 0x4000, 0x8000
# An entry of systemd-boot is changed in one write of a sector.
ENTRY = 512
# An archive without any file: for a boot script that loads an initial RAM file system where the kernel needs none.
EMPTY_INITRD = (b"070701" + b"0" * 32 + b"00000001" + b"0" * 48 + b"0000000b" + b"0" * 8 + b"TRAILER!!!\0").ljust(512, b"\0")


def entry(text, initrd, arguments):
    """An entry for systemd-boot out of its template, 512 bytes, with this end of the kernel's command line."""
    if not initrd:
        text = re.sub(r"^initrd .*\n", "", text, flags=re.M)
    text, changed = re.subn(r"^(options .* panic=\d+) .*$", lambda m: f"{m[1]} {arguments}".rstrip(), text, flags=re.M)
    if changed != 1:
        raise Mistake("the template of an entry has no line `options ... panic=N ...`: take it from bootloader-hooks.")
    text = text.rstrip("\n") + "\n"
    if len(text.encode()) > ENTRY:
        raise Mistake(f"OTANDEM_KERNEL_ARGS is too long: an entry of systemd-boot has {ENTRY} bytes.")
    return text.encode().ljust(ENTRY, b"\n")


def grub_cfg(text, initrd, arguments):
    """grub.cfg with this end of the kernel's command line."""
    text, changed = re.subn(
        r'^(set otandem_args="ro rootwait panic=\d+)[^"]*"$', lambda m: f'{m[1]} {arguments}"', text, flags=re.M
    )
    if changed != 1 or '"' in arguments or "$" in arguments:
        raise Mistake("OTANDEM_KERNEL_ARGS cannot be written into grub.cfg: it may have no quotes and no dollar signs.")
    return text if initrd else re.sub(r"^set otandem_initrd=.*$", "set otandem_initrd=", text, count=1, flags=re.M)


def boot_cmd(text, arguments):
    """U-Boot's script with this end of the kernel's command line."""
    if '"' in arguments or "'" in arguments:
        raise Mistake("OTANDEM_KERNEL_ARGS cannot be written into the boot script: it may have no quotes.")
    text, changed = re.subn(
        r'^setenv otandem_args ".*"$', lambda _: f'setenv otandem_args "{arguments}"', text, flags=re.M
    )
    if changed != 1:
        raise Mistake("the boot script has no single line `setenv otandem_args \"...\"`: begin with a copy of boot.cmd.")
    return text


def environment(text):
    """The partition with both copies of U-Boot's first environment (little endian), from lines NAME=VALUE."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    data = b"".join(line.encode() + b"\0" for line in lines) + b"\0"
    room = ENV_SIZE - 5
    if len(data) > room:
        raise Mistake(f"the first environment has {len(data)} bytes: it may have {room}.")
    data = data.ljust(room, b"\0")
    copy = struct.pack("<IB", zlib.crc32(data), 1) + data
    return (copy.ljust(ENV_SECOND, b"\0") + copy).ljust(MIB, b"\0")


def padded(source, target, size, slot):
    """A file that is overwritten in place by every update: its content, and zeros up to the size of the slot."""
    needed = os.path.getsize(source)
    if needed > size:
        raise Mistake(f"slot {slot} holds {size} bytes and {source} has {needed}: set OTANDEM_SLOT_{slot}[size] higher.")
    pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    os.truncate(target, size)


def boot_files(listing, deploy):
    """(source, target) for each file of IMAGE_BOOT_FILES, which has words SOURCE, SOURCE;TARGET and patterns."""
    found = []
    for word in (listing or "").split():
        source, _, target = word.partition(";")
        matches = sorted(pathlib.Path(deploy).glob(source)) if re.search(r"[*?[]", source) else [pathlib.Path(deploy, source)]
        for match in matches:
            folder = len(matches) > 1 or re.search(r"[*?[]", source) or target.endswith("/")
            name = os.path.join(target, match.name) if folder else (target or match.name)
            if not match.exists():
                raise Mistake(f"IMAGE_BOOT_FILES names {source}, which is not in {deploy}: build it or take it out.")
            found.append((str(match), name))
    return found


def fat(tree, image, size, bits, label):
    """A FAT volume with everything in the folder `tree`, without root and without mounting. Needs dosfstools and mtools."""
    tree = pathlib.Path(tree)
    taken = sum(file.stat().st_size for file in tree.rglob("*") if file.is_file())
    if taken > size - MIB:
        raise Mistake(f"the boot files need {taken} bytes: set OTANDEM_BOOT_SIZE higher than {size >> 20}M.")
    pathlib.Path(image).unlink(missing_ok=True)
    with open(image, "wb") as empty:
        empty.truncate(size)
    run = {"check": True, "env": {**os.environ, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C"}, "stdout": subprocess.DEVNULL}
    subprocess.run(["mkfs.vfat", "--invariant", "-F", str(bits), "-n", label, image], **run)
    # In the order of their names, so that the same files give the same volume.
    for file in sorted(tree.rglob("*")):
        name = "::/" + str(file.relative_to(tree))
        if file.is_dir():
            subprocess.run(["mmd", "-i", image, name], **run)
        else:
            subprocess.run(["mcopy", "-m", "-i", image, str(file), name], **run)
