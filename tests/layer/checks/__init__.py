"""What the checks of this folder share. Each module looks at one part of the layer; `check.py` beside it runs them."""

import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent.parent
LAYER = ROOT / "yocto-layer/meta-otandem"
BUILDROOT = ROOT / "buildroot"
sys.path.insert(0, str(LAYER / "lib"))

from otandem import settings  # noqa: E402

CHECKS = []
MIB = settings.MIB


class Skip(Exception):
    """Not on this machine, and why."""


def check(function):
    CHECKS.append(function)
    return function


def equal(found, wanted, what):
    if found != wanted:
        raise AssertionError(f"{what}: {found!r} instead of {wanted!r}")


def refused(part, function, *arguments):
    """The function ends in a mistake whose one sentence has this in it."""
    try:
        function(*arguments)
    except settings.Mistake as mistake:
        text = str(mistake)
        if part not in text:
            raise AssertionError(f"{text!r} does not speak of {part!r}") from mistake
        return
    raise AssertionError(f"nothing was refused where {part!r} is wrong")


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            raise Skip(f"no {program}")


def product(kind="grub", **changes):
    """Variables as otandem-settings.bbclass gives them, and changes: what `get` and `flag` of the layer are in BitBake."""
    systemd_boot = kind == "systemd-boot"
    values = {
        "OTANDEM_BOOTLOADER": kind,
        "OTANDEM_COMPATIBLE": "acme-gateway",
        "OTANDEM_VERSION": "2.4.0",
        "OTANDEM_ROOTFS_TYPE": "ext4",
        "OTANDEM_SLOTS": "rootfs kernel initrd" if systemd_boot else "rootfs",
        "OTANDEM_SLOT_rootfs[file]": "image.ext4",
        "OTANDEM_SLOT_rootfs[size]": "512M",
        "OTANDEM_SLOT_kernel[file]": "bzImage",
        "OTANDEM_SLOT_kernel[size]": "24M",
        "OTANDEM_SLOT_initrd[file]": "initrd",
        "OTANDEM_SLOT_initrd[size]": "24M",
        "OTANDEM_SET_B": "copy",
        "OTANDEM_BOOT_SIZE": "96M",
        "OTANDEM_DATA_SIZE": "128M",
        "OTANDEM_DATA": "/data",
        "OTANDEM_ENDPOINT": "abc123-ats.iot.eu-west-1.amazonaws.com",
    } | changes
    return values.get, lambda variable, flag: values.get(f"{variable}[{flag}]")


def agent():
    """The agent's program, from the build that the tests share."""
    return pathlib.Path(sys.argv[1])
