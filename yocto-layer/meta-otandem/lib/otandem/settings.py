"""What an integrator sets: read, and judged in one sentence that names the variable."""

import pathlib
import re
from dataclasses import dataclass

BOOTLOADERS = ("u-boot", "grub", "systemd-boot")
# Where the slot sets lie; the boot scripts and the layouts have these names.
PARTITIONS = {"A": "root-a", "B": "root-b"}
# File systems that the boot scripts of a chain read the kernel from. systemd-boot reads no slot at all.
READABLE = {"u-boot": ("ext4",), "grub": ("ext4",)}
# Where the volumes of a chain are mounted that the agent writes to.
VOLUMES = {"u-boot": {}, "grub": {"esp": "/efi"}, "systemd-boot": {"esp": "/efi", "xbootldr": "/xbootldr"}}
# Values under which nothing should be shipped.
EXAMPLE_COMPATIBLE = "otandem-demo"
EXAMPLE_URL = "https://updates.example.com"
# Where the certificates of OTANDEM_CA lie on the device.
CA = "/usr/lib/otandem/ca.pem"
MIB = 1 << 20


class Mistake(ValueError):
    """Something that was set and cannot work, in one sentence that says what to set instead."""


@dataclass(frozen=True)
class Slot:
    """A slot of each set: `source` names the file that goes into it, `size` is what it holds at most, in bytes."""

    name: str
    source: str
    size: int


def size(variable, text):
    """Bytes of "512M", "64MiB" or "1G". Whole MiB: partitions are cut by it."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})([MG])(iB)?", (text or "").strip())
    if not found:
        raise Mistake(f'{variable} is "{text or ""}": set it to a size such as "512M" or "4G".')
    return int(found[1]) * MIB * (1024 if found[2] == "G" else 1)


def bootloader(machine_features, efi_provider, virtual_bootloader):
    """The boot chain that a machine's own settings speak of; empty if they speak of none that is known."""
    if "efi" in (machine_features or "").split():
        return {"grub-efi": "grub", "systemd-boot": "systemd-boot"}.get(efi_provider or "", "")
    return "u-boot" if re.match(r"(virtual/)?u-boot", virtual_bootloader or "") else ""


def known(kind):
    """The boot chain, or a mistake."""
    if kind not in BOOTLOADERS:
        raise Mistake(f'OTANDEM_BOOTLOADER is "{kind or ""}": set it to one of {", ".join(BOOTLOADERS)}.')
    return kind


def slots(get, flag):
    """The slots of a set, from the variables that `get(name)` and `flag(name, flag)` give."""
    kind = known(get("OTANDEM_BOOTLOADER"))
    names = (get("OTANDEM_SLOTS") or "").split()
    if not names:
        raise Mistake('OTANDEM_SLOTS is empty: set it to the slots of a set, such as "rootfs".')
    found = []
    for name in names:
        variable = f"OTANDEM_SLOT_{name}"
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", name):
            raise Mistake(f'OTANDEM_SLOTS names "{name}": use lower case letters, digits and "-".')
        source = flag(variable, "file") or ""
        if not source:
            raise Mistake(f"{variable}[file] is not set: set it to the file that goes into slot {name}.")
        found.append(Slot(name, source, size(f"{variable}[size]", flag(variable, "size"))))
    if len(set(names)) != len(names):
        raise Mistake("OTANDEM_SLOTS names a slot twice: name each once.")
    if "rootfs" not in names:
        raise Mistake("OTANDEM_SLOTS has no rootfs: add it, the layouts and the boot scripts need one.")
    kind_of_root = get("OTANDEM_ROOTFS_TYPE") or ""
    if kind in READABLE and kind_of_root not in READABLE[kind]:
        raise Mistake(
            f'OTANDEM_ROOTFS_TYPE is "{kind_of_root}": set it to {READABLE[kind][0]}, the boot script for {kind} reads the '
            "kernel from it."
        )
    needed = {"kernel"} if kind == "systemd-boot" else set()
    for name in sorted(needed - set(names)):
        raise Mistake(f"OTANDEM_SLOTS has no {name}: add it, systemd-boot reads it from its own volume.")
    if kind != "systemd-boot" and {"kernel", "initrd"} & set(names):
        raise Mistake(f"OTANDEM_SLOTS has a kernel or an initrd: take it out, with {kind} they lie inside rootfs.")
    return found


def check(get, flag):
    """Everything that can be judged before anything is built; the slots."""
    found = slots(get, flag)
    for variable in ("OTANDEM_BOOT_SIZE", "OTANDEM_DATA_SIZE"):
        size(variable, get(variable))
    if not (get("OTANDEM_DATA") or "").startswith("/"):
        raise Mistake('OTANDEM_DATA is no path: set it to where the data partition is mounted, such as "/data".')
    for variable in ("OTANDEM_COMPATIBLE", "OTANDEM_VERSION"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}", get(variable) or ""):
            raise Mistake(f'{variable} is "{get(variable) or ""}": set it to letters, digits and any of "._+~-".')
    if get("OTANDEM_URL") and get("OTANDEM_S3_URL"):
        raise Mistake("OTANDEM_URL and OTANDEM_S3_URL are both set: set the one from which devices download.")
    for variable in ("OTANDEM_URL", "OTANDEM_S3_URL"):
        if get(variable) and not re.fullmatch(r"https://[^\s/]+(/\S*)?", get(variable)):
            raise Mistake(f'{variable} is "{get(variable)}": set it to a folder that begins with "https://".')
    if get("OTANDEM_SET_B") not in ("copy", "empty"):
        raise Mistake('OTANDEM_SET_B is neither "copy" nor "empty": set it to what the factory writes into set B.')
    certificates("OTANDEM_CA", get("OTANDEM_CA"))
    return found


def certificates(variable, path):
    """The text of a PEM file that goes into every image; empty if none is named. Keys of devices never go that way."""
    if not path:
        return ""
    try:
        text = pathlib.Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        raise Mistake(f"{variable} names {path}, which cannot be read: set it to a file with CA certificates in PEM.") from None
    if "PRIVATE KEY-----" in text:
        raise Mistake(f"{variable} names {path}, which has a private key: set it to a file with CA certificates alone.")
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise Mistake(f"{variable} names {path}, which has no certificate: set it to a file with CA certificates in PEM.")
    return text


def layout(kind, variable, name, text):
    """Refuses a layout (`name`, with this text) that lacks a partition of which agent and bootloader speak."""
    found = re.findall(r"^part\b.*--part-name[ =](\S+)", text or "", re.M)
    raw = {"u-boot": ["boot", "uboot-env"]}.get(known(kind), [])
    for wanted in (*VOLUMES[kind], *raw, *PARTITIONS.values(), "data"):
        if wanted not in found:
            raise Mistake(f"{variable} is {name}, which has no partition {wanted}: set it to a layout with --part-name {wanted}.")


def configuration(get, flag):
    """The device's otandem.toml, as far as all devices of a machine share it."""
    kind, data = known(get("OTANDEM_BOOTLOADER")), get("OTANDEM_DATA").rstrip("/")
    lines = [
        "# Written by the recipe otandem-conf from the OTANDEM_ variables. What differs per device stands in device.toml",
        f"# of {data}/otandem.",
        "",
        "[device]",
        f'compatible = "{get("OTANDEM_COMPATIBLE")}"',
        "",
    ]
    for number, (name, partition) in enumerate(PARTITIONS.items()):
        lines += [f"[slots.{name}]", f"index = {number}"]
        for slot in slots(get, flag):
            lines.append(f"{slot.name} = {_place(slot.name, kind, name, partition)}")
        lines.append("")
    lines += ["[bootloader]", f'kind = "{kind}"']
    lines += {
        "u-boot": ['fw-env-config = "/etc/fw_env.config"'],
        "grub": ['grubenv = "/efi/grub/grubenv"'],
        "systemd-boot": ['entries-a = "/efi/loader/entries"', 'entries-b = "/xbootldr/loader/entries"'],
    }[kind]
    lines += ["", "[update]", f'state-dir = "{data}/otandem"']
    if get("OTANDEM_WATCHDOG"):
        lines.append(f'watchdog = "{get("OTANDEM_WATCHDOG")}"')
    if get("OTANDEM_ENDPOINT"):
        lines += ["", "[cloud]", f'endpoint = "{get("OTANDEM_ENDPOINT")}"', f'cert-store = "{data}/otandem/certs"']
        if get("OTANDEM_CA"):
            lines.append(f'ca = "{CA}"')
    return "\n".join(lines) + "\n"


def _place(slot, kind, name, partition):
    if slot == "rootfs":
        return f'"/dev/disk/by-partlabel/{partition}"'
    if slot in ("kernel", "initrd"):
        volume = list(VOLUMES[kind].values())["AB".index(name)]
        file = {"kernel": "vmlinuz", "initrd": "initrd"}[slot]
        return f'{{ path = "{volume}/otandem/{name.lower()}/{file}", in-place = true }}'
    return f'"/dev/disk/by-partlabel/{slot}-{name.lower()}"'


def fstab(kind, data):
    """The lines of /etc/fstab for what lies beside the slots. `dirsync`: a rename on FAT is two changes, in their order."""
    lines = [f"/dev/disk/by-partlabel/data {data} ext4 defaults,noatime,nosuid,nodev 0 2"]
    for volume, place in VOLUMES[known(kind)].items():
        lines.append(f"/dev/disk/by-partlabel/{volume} {place} vfat umask=0077,dirsync 0 2")
    return lines
