"""Whether a disk that genimage makes and the device's configuration are of one mind, for builds without BitBake.

    python3 -m otandem.disk --layout genimage.cfg --config otandem.toml --root TARGET_DIR --image rootfs.ext4

Prints what the job document needs: `compatible` of the device and the bytes of a slot.
"""

import argparse
import os
import pathlib
import re
import sys
import tomllib

from .settings import MIB, PARTITIONS, VOLUMES, Mistake
from .update import fits

PLACE = "/dev/disk/by-partlabel/"


def partitions(text):
    """{name: bytes, 0 if the layout leaves them open} of each partition in the text of a genimage.cfg, in its order."""
    found = {}
    for name, body in re.findall(r"^\s*partition\s+(\S+)\s*\{([^}]*)\}", text, re.M):
        taken = re.search(r"^\s*size\s*=\s*\"?(\d+)([MG])\"?\s*$", body, re.M)
        found[name] = int(taken[1]) * MIB * (1024 if taken[2] == "G" else 1) if taken else 0
    return found


def check(layout, parts, config, told, root="/"):
    """Refuses what cannot work on the device; what names the files are for the sentences. (compatible, bytes of a slot)

    `parts` is what partitions() found, `told` the parsed configuration, `root` where the system of the image lies.
    """
    compatible = told.get("device", {}).get("compatible", "")
    if not compatible:
        raise Mistake(f"{config} has no compatible in [device]: set it to the name of your product.")
    kind = told.get("bootloader", {}).get("kind", "")
    if kind not in VOLUMES:
        raise Mistake(f'{config} has kind = "{kind}" in [bootloader]: set it to one of {", ".join(VOLUMES)}.')
    sizes = set()
    for name in PARTITIONS:
        place = told.get("slots", {}).get(name, {}).get("rootfs", "")
        if not isinstance(place, str) or not place.startswith(PLACE):
            raise Mistake(f'{config} has no rootfs in [slots.{name}]: set it to "{PLACE}{PARTITIONS[name]}".')
        partition = place.removeprefix(PLACE)
        if not parts.get(partition):
            raise Mistake(f"{layout} has no partition {partition} with a size: add it, [slots.{name}] of {config} names it.")
        sizes.add(parts[partition])
    if len(sizes) != 1:
        raise Mistake(f"{layout} has slots of different sizes: give both the same, every image has to fit into either.")
    for partition in (*VOLUMES[kind], "data"):
        if partition not in parts:
            raise Mistake(f"{layout} has no partition {partition}: add it, agent and bootloader need it.")
    if list(parts)[-1] != "data":
        raise Mistake(f"{layout} has {list(parts)[-1]} behind data: put data last, so that it can grow.")
    cloud = told.get("cloud", {})
    if cloud.get("endpoint") and not cloud.get("cert-store") and not (cloud.get("cert") and cloud.get("key")):
        raise Mistake(f'{config} has no key for the cloud: set cert-store in [cloud], for example to "/data/otandem/certs".')
    # What lies on the partition of the state comes with the device, the rest with the image.
    data = "/" + told.get("update", {}).get("state-dir", "/var/lib/otandem").split("/")[1] + "/"
    for key in ("ca", "cert", "key"):
        path = cloud.get(key, "")
        if path and not path.startswith(data) and not os.path.exists(root + path):
            raise Mistake(f"{config} has {key} = \"{path}\" in [cloud], and the image has no such file: install it or correct the path.")
    return compatible, sizes.pop()


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(prog="otandem.disk", description="a layout for genimage held to the device's configuration")
    for name in ("layout", "config", "root", "image"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args(arguments)
    layout, config = os.path.basename(given.layout), os.path.basename(given.config)
    try:
        parts = partitions(pathlib.Path(given.layout).read_text())
        compatible, room = check(layout, parts, config, tomllib.loads(pathlib.Path(given.config).read_text()), given.root)
        fits("rootfs", given.image, room, f"the size of both slots in {layout}")
    except tomllib.TOMLDecodeError as error:
        print(f"otandem.disk: {config} is no TOML: {error}", file=sys.stderr)
        return 1
    except (Mistake, OSError) as error:
        print(f"otandem.disk: {error}", file=sys.stderr)
        return 1
    print(compatible, room)
    return 0


if __name__ == "__main__":
    sys.exit(main())
