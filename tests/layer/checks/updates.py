"""The update image and its job document, and the disk that becomes one device's own."""

import contextlib
import functools
import http.server
import io
import json
import os
import pathlib
import random
import subprocess
import tempfile
import threading
import tomllib

from otandem import update

from . import MIB, ROOT, agent, check, equal, need, refused


@check
def a_disk_becomes_one_devices_own_once():
    need("sfdisk", "mke2fs", "debugfs", "e2fsck")
    with tempfile.TemporaryDirectory() as folder:
        disk, cert, key = (pathlib.Path(folder, name) for name in ("a disk", "cert", "a key"))
        cert.write_text("-----BEGIN CERTIFICATE-----\n")
        key.write_text("-----BEGIN PRIVATE KEY-----\n")
        disk.touch()
        os.truncate(disk, 16 * MIB)
        table = "label: gpt\nstart=1MiB, size=2MiB, name=root-a\nstart=4MiB, size=8MiB, name=data\n"
        subprocess.run(["sfdisk", "-q", disk], input=table, text=True, check=True)

        def provision(*more, thing="gateway-0001"):
            command = [ROOT / "yocto-layer/provision", disk, thing, cert, key, *more]
            return subprocess.run(command, capture_output=True, text=True)

        assert "has no ext4" in provision().stderr, "a partition without a file system was taken"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-E", f"offset={4 * MIB}", disk, "8M"], check=True)
        assert "no thing name" in provision(thing='a"b').stderr, "a quote in a name was taken"
        assert "has no certificate" in provision(key).stderr, "a key was taken for a certificate"
        done = provision(cert)
        equal((done.returncode, done.stdout), (0, f"{disk} is gateway-0001\n"), done.stderr)
        assert "already" in provision().stderr, "the disk of a device was given to another one"
        data = pathlib.Path(folder, "data")
        data.write_bytes(disk.read_bytes()[4 * MIB : 12 * MIB])
        subprocess.run(["e2fsck", "-fn", data], check=True, capture_output=True)
        listed = subprocess.check_output(["debugfs", "-R", "ls -p /otandem/certs", data], stderr=subprocess.DEVNULL, text=True)
        found = {word.split("/")[5]: tuple(word.split("/")[2:5]) for word in listed.split("\n") if word.startswith("/")}
        equal(found["key.pem"], ("100600", "0", "0"), "mode and owner of the key")
        assert {"cert.pem", "ca.pem"} <= set(found), found
        told = subprocess.check_output(["debugfs", "-R", "cat /otandem/device.toml", data], stderr=subprocess.DEVNULL)
        equal(tomllib.loads(told.decode()), {"cloud": {"thing-name": "gateway-0001", "ca": "/data/otandem/certs/ca.pem"}}, "device.toml")


@check
def an_image_larger_than_its_slot_is_refused_before_anything_is_written():
    with tempfile.TemporaryDirectory() as folder:
        image, empty = pathlib.Path(folder, "image"), pathlib.Path(folder, "empty")
        image.write_bytes(b"x" * 100)
        empty.touch()
        refused("set OTANDEM_SLOT_SIZE higher", update.make, {"rootfs": (image, 99)}, folder, "x", "1", "acme")
        refused("set OTANDEM_SLOT_kernel[size] higher", update.make, {"kernel": (image, 99)}, folder, "x", "1", "acme")
        refused("is empty", update.make, {"rootfs": (empty, 99)}, folder, "x", "1", "acme")
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            line = f"--slot rootfs={image}:99 --out {folder} --name x --version 1 --compatible acme"
            equal(update.main(line.split()), 1, "exit status for builds without BitBake")
        assert "set the slot's size" in said.getvalue() and "OTANDEM" not in said.getvalue(), said.getvalue()
        equal(sorted(os.listdir(folder)), ["empty", "image"], "files")


@check
def the_agent_installs_the_update_image_by_its_job_document():
    need("zstd")
    with tempfile.TemporaryDirectory() as folder:
        out, device = pathlib.Path(folder, "out"), pathlib.Path(folder, "device")
        out.mkdir()
        (device / "boot").mkdir(parents=True)
        # More than a frame, and the last one not full.
        image = random.Random(7).randbytes(MIB) * 17 + b"end of the image" * 256
        pathlib.Path(folder, "image").write_bytes(image)
        for slot in "ab":
            (device / f"root-{slot}").write_bytes(b"otandem test image\n".ljust(24 * MIB, b"\0"))
        slots = ["--slot-a", device / "root-a", "--slot-b", device / "root-b"]
        simulator = agent().with_name("otandem-simulator")
        subprocess.run([simulator, "boot", device / "boot", *slots], check=True, stdout=subprocess.DEVNULL)
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=out)
        handler.func.log_message = lambda *_: None
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_address[1]}"
            made = update.make({"rootfs": (f"{folder}/image", 24 * MIB)}, out, "demo", "2.4.0", "acme-gateway", url, level=1)
            equal(subprocess.check_output(["zstd", "-dcq", out / made[0]]), image, "what plain zstd makes of it")
            config = device / "otandem.toml"
            config.write_text(DEVICE.replace("@", str(device)))
            command = [agent(), "--config", config, "fota", "update", out / made[-1]]
            run = subprocess.run(command, capture_output=True, text=True, timeout=120)
            server.shutdown()
        equal(run.returncode, 0, f"otandem fota update: {run.stdout}{run.stderr}")
        written = [(device / f"root-{slot}").read_bytes()[: len(image)] == image for slot in "ab"]
        equal(sum(written), 1, "sets that hold the image")


DEVICE = """
[device]
compatible = "acme-gateway"
[slots.A]
index = 0
rootfs = "@/root-a"
[slots.B]
index = 1
rootfs = "@/root-b"
[bootloader]
kind = "simulated"
directory = "@/boot"
[update]
state-dir = "@/state"
run-dir = "@/run"
state-shared = false
"""


@check
def job_documents_for_s3_have_the_clouds_placeholder():
    packed = [update.Packed(slot, f"demo-{slot}.zst", "0" * 64, 1, "1" * 64, 2) for slot in ("rootfs", "kernel")]
    document = json.loads(update.document(packed, "1", "acme", s3_url="https://s3.eu-west-1.amazonaws.com/bucket/folder/"))
    equal([one["slot"] for one in document["images"]], ["rootfs", "kernel"], "slots")
    equal(
        document["images"][0]["url"],
        "${aws:iot:s3-presigned-url-v2:https://s3.eu-west-1.amazonaws.com/bucket/folder/demo-rootfs.zst}",
        "address",
    )
    assert "image" in json.loads(update.document(packed[:1], "1", "acme")), "one image stands alone"
