"""The disk layouts: partitions, names, and what a layout of the product's own must have."""

import json
import os
import re
import subprocess
import tempfile

from otandem import settings

from . import LAYER, MIB, check, equal, need, refused


def layout(kind, **more):
    """The partitions of a layout as (name, kind, size in MiB, options), its variables replaced as BitBake would."""
    variables = {
        "OTANDEM_WORK": "/w", "OTANDEM_BOOT_SIZE": "96M", "OTANDEM_SLOT_SIZE": "512M", "OTANDEM_DATA_SIZE": "128M",
        "OTANDEM_WKS_A": "--source rawcopy --sourceparams=file=/d/image.ext4", "OTANDEM_WKS_B": "--source empty",
    } | more
    text = (LAYER / f"files/wic/otandem-{kind}.wks.in").read_text()
    text = re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], text)
    parts, table = [], None
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["bootloader"]:
            table = words[words.index("--ptable") + 1]
        if words[:1] == ["part"]:
            options = dict(re.findall(r"--([a-z-]+)[ =]((?!--)\S+)", line))
            size = settings.size("--fixed-size", options["fixed-size"]) // MIB
            parts.append((options["part-name"], options.get("part-type", "").upper(), size, options))
    equal(table, "gpt", f"{kind}: partition table")
    return parts


@check
def layouts_have_two_equal_aligned_slots_and_data_last():
    for kind in settings.BOOTLOADERS:
        parts = layout(kind)
        names = [name for name, *_ in parts]
        sizes = {name: size for name, _, size, _ in parts}
        equal(len(set(names)), len(names), f"{kind}: names")
        equal(names[-3:], [*settings.PARTITIONS.values(), "data"], f"{kind}: the last partitions")
        equal(sizes["root-a"], sizes["root-b"], f"{kind}: sizes of the slots")
        assert set(settings.VOLUMES[kind]) <= set(names), f"{kind}: {names}"
        for name, _, _, options in parts:
            assert int(options["align"]) % 1024 == 0, f"{kind}: {name} is not aligned to 1 MiB"
            # A label would change the bytes of the slot, and with them the digest that a job names.
            assert "label" not in options, f"{kind}: {name} has a label"
    equal([name for name, *_ in layout("grub")].index("root-a") + 1, 2, "grub.cfg: number of root-a")
    kinds = {name: kind for name, kind, *_ in layout("systemd-boot")}
    equal(kinds["esp"], "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "type of the EFI system partition")
    equal(kinds["xbootldr"], "BC13C2FF-59E6-4262-A352-B275FD6F7172", "type of the extended boot partition")


@check
def layouts_make_a_disk_with_the_names_that_devices_use():
    need("sfdisk")
    for kind in settings.BOOTLOADERS:
        parts, at, lines = layout(kind, OTANDEM_SLOT_SIZE="64M"), 4, ["label: gpt"]
        for name, part_type, size, _ in parts:
            lines.append(f"start={at}MiB, size={size}MiB, name={name}" + (f", type={part_type}" if part_type else ""))
            at += -(-size // 4) * 4
        with tempfile.NamedTemporaryFile() as disk:
            os.truncate(disk.name, (at + 4) * MIB)
            subprocess.run(["sfdisk", "-q", disk.name], input="\n".join(lines), text=True, check=True)
            table = json.loads(subprocess.check_output(["sfdisk", "-J", disk.name]))["partitiontable"]["partitions"]
        equal([part["name"] for part in table], [name for name, *_ in parts], kind)


@check
def a_layout_without_a_partition_that_the_device_needs_is_refused():
    for kind in settings.BOOTLOADERS:
        text = (LAYER / f"files/wic/otandem-{kind}.wks.in").read_text()
        settings.layout(kind, "WKS_FILE", "ours", text)
        for name, *_ in layout(kind):
            without = re.sub(rf"^part .*--part-name {name} .*\n", "", text, flags=re.M)
            refused(f"WKS_FILE is mine.wks, which has no partition {name}:", settings.layout, kind, "WKS_FILE", "mine.wks", without)
