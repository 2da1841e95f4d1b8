"""The table of refusals that the lab runs (tests/system/scenarios.json), on a cloud that we did not write.

A row is run as it is there: a good document, the row's merge patch, and what lies in the bucket instead of the image.
"""

import gzip
import hashlib
import json
import pathlib
import subprocess

TABLE = pathlib.Path(__file__).resolve().parent.parent / "system/scenarios.json"
MIB = 1 << 20
COMPATIBLE = "otandem-test"


def rows():
    """(rows to run, rows that cannot be run here with the reason)."""
    table = json.loads(TABLE.read_text())
    return ([row for row in table if row["ministack"] is True],
            [(row["name"], row["ministack"]) for row in table if row["ministack"] is not True])


def merge(target, patch):
    """A merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def document(row, image, url):
    """The job document of a row."""
    good = {"operation": "fota", "image": {
        "url": url, "sha256": image.digest, "size": image.size, "compression": "zstd", "version": row["name"],
        "compatible": COMPATIBLE}}
    return merge(good, row["document"])


def served(row, image):
    """What lies in the bucket for a row; nothing = no object."""
    raw, packed = image.raw.read_bytes(), image.packed.read_bytes()
    how = row.get("serve")
    if how == "missing":
        return None
    if how == "byte-wrong":
        half = len(packed) // 2
        return packed[:half] + bytes([packed[half] ^ 0xFF]) + packed[half + 1:]
    return {
        None: lambda: packed,
        "cut-short": lambda: zstd(raw[:len(raw) // 2]),
        "over-long": lambda: raw + b"\1" * 4096,
        "bomb": lambda: gzip.compress(bytes(256 * MIB), 9),
        "empty": lambda: b"",
        "noise": lambda: b"".join(hashlib.sha512(n.to_bytes(4, "big")).digest() for n in range(6250)),
        "large-window": lambda: zstd(raw, "--long=27"),
    }[how]()


def zstd(data, *options):
    """As a stream, so that the size is not known and the window is what the options say."""
    return subprocess.run(["zstd", "-q", "-3", *options, "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout
