"""The update image, as independent frames of zstd, and the FOTA job document that installs it.

A device that loses power goes on with the frame it was at; plain `zstd -d` opens the whole.

    python3 -m otandem.update --slot rootfs=IMAGE --out FOLDER --name NAME --version V --compatible C [--s3-url URL]
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass

from .settings import EXAMPLE_URL, MIB, Mistake

# Raw bytes of a frame: what is written again at most after a power cut.
FRAME = 16 * MIB
# The largest window that a device accepts without configuration is 8 MiB, which is what level 19 uses.
LEVEL = 19


@dataclass(frozen=True)
class Packed:
    """What a job document says of one image: SHA-256 and bytes, of the raw image and of the file that is downloaded."""

    slot: str
    file: str
    sha256: str
    size: int
    file_sha256: str
    file_size: int


def _frame(zstd, level, data):
    command = [zstd, f"-{level}", "--check", "-q", "-c"]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def pack(slot, image, out, level=LEVEL, zstd="zstd", workers=None):
    """Writes `image` to `out` as frames and says what it is. The same image gives the same file."""
    workers = workers or os.cpu_count() or 1
    raw, packed, sizes = hashlib.sha256(), hashlib.sha256(), [0, 0]
    unfinished = pathlib.Path(f"{out}.tmp")
    with open(image, "rb") as source, open(unfinished, "wb") as target:
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            while True:
                # No more of them in memory than are worked on.
                chunks = [chunk for chunk in (source.read(FRAME) for _ in range(workers)) if chunk]
                if not chunks:
                    break
                for chunk, frame in zip(chunks, pool.map(lambda data: _frame(zstd, level, data), chunks), strict=True):
                    raw.update(chunk)
                    packed.update(frame)
                    sizes[0] += len(chunk)
                    sizes[1] += len(frame)
                    target.write(frame)
    if sizes[0] == 0:
        unfinished.unlink()
        raise Mistake(f"{image} is empty: there is nothing to put into slot {slot}.")
    # Nobody must meet half an update image.
    unfinished.rename(out)
    return Packed(slot, os.path.basename(out), raw.hexdigest(), sizes[0], packed.hexdigest(), sizes[1])


def address(file, url, s3_url):
    """Where a device downloads the file: the cloud replaces the form for S3 by a presigned URL."""
    if s3_url:
        return "${aws:iot:s3-presigned-url-v2:" + s3_url.rstrip("/") + "/" + file + "}"
    return (url or EXAMPLE_URL).rstrip("/") + "/" + file


def document(packed, version, compatible, url=None, s3_url=None):
    """The job document, ready to be uploaded."""
    images = [
        {
            "url": address(one.file, url, s3_url),
            "sha256": one.sha256,
            "size": one.size,
            "file-sha256": one.file_sha256,
            "file-size": one.file_size,
            "compression": "zstd",
            "version": version,
            "compatible": compatible,
            "slot": one.slot,
        }
        for one in packed
    ]
    if not images:
        raise Mistake("an update has at least one image: name the slots.")
    images = {"image": images[0]} if len(images) == 1 else {"images": images}
    return json.dumps({"operation": "fota", **images}, indent=2) + "\n"


def fits(slot, image, room, variable=None):
    """Refuses an image larger than the bytes that its slot holds; `room` 0 is no limit. `variable`: what to set instead."""
    taken = os.path.getsize(image)
    if room and taken > room:
        variable = variable or ("OTANDEM_SLOT_SIZE" if slot == "rootfs" else f"OTANDEM_SLOT_{slot}[size]")
        name = os.path.basename(image)
        raise Mistake(f"{name} has {taken} bytes and slot {slot} holds {room}: set {variable} higher or install less.")


def make(files, folder, name, version, compatible, url=None, s3_url=None, level=LEVEL, zstd="zstd"):
    """Update images and job document for {slot: (image, bytes it holds)} in `folder`; the names of what was written."""
    for slot, (image, room) in files.items():
        fits(slot, image, room)
    packed = []
    for slot, (image, _) in files.items():
        packed.append(pack(slot, image, os.path.join(folder, f"{name}-{version}-{slot}.zst"), level, zstd))
    job = os.path.join(folder, f"{name}-{version}.fota.json")
    pathlib.Path(job).write_text(document(packed, version, compatible, url, s3_url))
    return [one.file for one in packed] + [os.path.basename(job)]


def main(arguments=None):
    """The command line, for builds without BitBake."""
    parser = argparse.ArgumentParser(prog="otandem.update", description="update images and their FOTA job document")
    parser.add_argument("--slot", action="append", required=True, metavar="SLOT=IMAGE[:BYTES]", dest="slots")
    for name in ("out", "name", "version", "compatible"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--url", help="folder from which devices download")
    parser.add_argument("--s3-url", help="the same, in S3: the cloud makes presigned URLs of it")
    parser.add_argument("--level", type=int, default=LEVEL)
    parser.add_argument("--zstd", default="zstd", help="the program")
    given = parser.parse_args(arguments)
    files = {}
    for word in given.slots:
        slot, _, rest = word.partition("=")
        image, _, room = rest.rpartition(":") if rest.rpartition(":")[2].isdigit() else (rest, "", "0")
        if not slot or not image:
            parser.error(f"--slot {word}: give SLOT=IMAGE or SLOT=IMAGE:BYTES")
        files[slot] = (image, int(room))
    try:
        for slot, (image, room) in files.items():
            fits(slot, image, room, "the slot's size in the disk's layout, and :BYTES of --slot,")
        for name in make(files, given.out, given.name, given.version, given.compatible, given.url, given.s3_url,
                         given.level, given.zstd):
            print(name)
    except (Mistake, OSError, subprocess.CalledProcessError) as error:
        print(f"otandem.update: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
