#!/usr/bin/env python3
"""The agent against ministack: each scenario with what must be true at its end.

usage: scenarios.py --programs DIR [--full] [--only NAME]... [--keep]

  --programs DIR  holds `otandem` and `otandem-simulator`
  --full          also the scenarios that wait for a URL to expire (a minute each)
  --only NAME     peer, good, bad, claim, table, templates, shadows, expired
  --keep          leaves the folder with images, logs and configuration, and says where

Prints `ok  ...` or `FAIL ...` for each promise, `skip ...` for a row of a table that cannot be run here, `-- ...` for
what goes on. Exit status 0 if nothing failed.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import cloud  # noqa: E402
import console as operator_console  # noqa: E402
import device as devices  # noqa: E402
import peer as official  # noqa: E402
import relay as relays  # noqa: E402
import shadows  # noqa: E402
import table  # noqa: E402
import templates  # noqa: E402

MIB = 1 << 20
IMAGE_SIZE = 48 * MIB
# As large as the lab's images, which the sizes in the table go by.
SMALL_IMAGE = 4 * MIB
# Independent frames of this size, as the documentation tells to make images.
FRAME = 16 * MIB
JOB_LIMIT = 120  # seconds; a scenario takes five
URL_LIFE = 60  # seconds; the shortest that the service takes

# The last one only with --full.
NAMES = ("peer", "good", "bad", "claim", "table", "templates", "shadows", "expired")

counts = {"ok": 0, "FAIL": 0}


def promise(what, holds, seen=""):
    """One test: says it and counts it."""
    word = "ok" if holds else "FAIL"
    counts[word] += 1
    print(f"{word:3} {what}" + (f": {seen}" if seen != "" else ""), flush=True)


def note(text):
    print(f"-- {text}", flush=True)


def run(*command):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout


def sha256(path):
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(MIB), b""):
            digest.update(piece)
    return digest.hexdigest()


class Image:
    """A real ext4 file system, and its zstd file of independent frames."""

    def __init__(self, folder, version, health, size=IMAGE_SIZE, noise=20 * MIB):
        self.version, self.health = version, health
        tree = folder / f"tree-{version}"
        (tree / "etc").mkdir(parents=True)
        (tree / "etc/health").write_text(health + "\n")
        (tree / "etc/os-release").write_text(f"ID=test\nVERSION_ID={version}\n")
        # Bytes that do not compress, from a seed: so that there is something to download.
        filling = b"".join(hashlib.sha512(f"{version}/{n}".encode()).digest() for n in range(noise // 64))
        (tree / "firmware.bin").write_bytes(filling)
        self.raw = folder / f"{version}.img"
        with self.raw.open("wb") as file:
            file.truncate(size)
        run("mke2fs", "-q", "-t", "ext4", "-d", tree, "-L", f"v{version}", self.raw)
        shutil.rmtree(tree)
        self.packed = folder / f"{version}.img.zst"
        self._pack()
        self.size, self.digest = self.raw.stat().st_size, sha256(self.raw)
        self.packed_size, self.packed_digest = self.packed.stat().st_size, sha256(self.packed)

    def _pack(self):
        with self.raw.open("rb") as source, self.packed.open("wb") as packed:
            for frame in iter(lambda: source.read(FRAME), b""):
                packed.write(subprocess.run(["zstd", "-q", "-3", "-c"], input=frame, stdout=subprocess.PIPE, check=True).stdout)

    def document(self, url, set_index):
        return {"operation": "fota", "bc_idx": set_index, "image": {
            "url": url, "sha256": self.digest, "size": self.size, "compression": "zstd",
            "file-sha256": self.packed_digest, "file-size": self.packed_size, "version": self.version}}


class World:
    """The cloud, the operator and the image server's relay, shared by the scenarios."""

    def __init__(self, folder, programs, the_cloud, relay):
        self.folder, self.programs, self.cloud, self.relay = folder, programs, the_cloud, relay
        self.console = operator_console.Console(the_cloud.gateway)
        self.console.prepare_account()
        self._images = {}

    def image(self, version, health="well"):
        if version not in self._images:
            self._images[version] = Image(self.folder, version, health)
        return self._images[version]

    def job(self, name, thing, image, set_index, url_life=3600):
        url = self.console.upload(f"{thing}/{image.packed.name}", image.packed)
        self.console.create_job(name, thing, image.document(url, set_index), url_life)

    def device(self, thing, settings=None, wrapper=()):
        folder = self.folder / thing
        identity = self.console.add_device(thing, folder)
        factory = self.image("1.0").raw
        return devices.Device(folder, self.programs, identity, self.cloud.ca, factory, settings, wrapper)


# -- the scenarios --------------------------------------------------------------------------------------------------
def peer_takes_a_job_within_the_policy(world, full):
    """The cloud itself, with the official SDK as the device: a failure here is not the agent's."""
    identity = world.console.add_device("peer", world.folder / "peer")
    stranger = world.console.add_device("stranger", world.folder / "peer")
    image = world.image("2.0")
    with official.Peer(identity, world.cloud.ca) as device:
        promise("peer: the official SDK connects by mutual TLS with a certificate of this cloud", True)
        world.job("peer-1", identity.thing, image, 1, URL_LIFE)
        notice = device.notices.get(timeout=official.LIMIT)
        promise("peer: a new job is notified", notice.execution and notice.execution.job_id == "peer-1")
        execution = device.start_next()
        url = official.document_of(execution)["image"]["url"]
        made = time.time()
        promise("peer: the placeholder became a URL that the device can reach", url.startswith("http://localhost:"),
                url.split("?")[0])
        status, body = official.fetch(url, 100, 199)
        with image.packed.open("rb") as file:
            file.seek(100)
            promise("peer: a range of it is what was uploaded", (status, body) == (206, file.read(100)), status)
        promise("peer: without its signature it is refused", official.fetch(url.split("?")[0])[0] == 403)
        fresh = device.fresh_document(execution)["image"]["url"]
        promise("peer: an update that asks for the document gets a URL that works", official.fetch(fresh, 0, 9)[0] == 206)
        if full:
            peer_url_expires(device, execution, url, made)
        kind, got = device.update(execution, "SUCCEEDED", status_details={"reason": "peer"})
        promise("peer: SUCCEEDED is accepted", kind == "accepted")
        kind, got = device.update(execution, "FAILED")
        promise("peer: a second end is refused", kind == "rejected", got.code)
    promise("peer: the operator sees the end", world.console.execution("peer-1", "peer")["status"] == "SUCCEEDED")
    promise("peer: the job is complete", world.console.job_status("peer-1") == "COMPLETED")
    try:
        with official.Peer(stranger, world.cloud.ca, client_id=identity.thing):
            refused = False
    except Exception as error:  # whatever the SDK calls it
        refused = str(error) != ""
    promise("peer: a certificate cannot connect in another thing's name", refused)
    policy_is_enforced(world, stranger)


def policy_is_enforced(world, identity):
    """A topic that the policy does not name: no subscription."""
    from awscrt import mqtt
    with official.Peer(identity, world.cloud.ca) as device:
        try:
            future, _ = device.connection.subscribe(
                f"$aws/things/{identity.thing}/jobs/get/accepted", mqtt.QoS.AT_LEAST_ONCE, lambda **_: None)
            answer = future.result(official.LIMIT)
            refused = answer["qos"] is None
        except Exception as error:  # refused, or the connection was closed on it
            refused, answer = True, error
    promise("peer: a topic outside the device's policy is refused", refused, answer)


def peer_url_expires(device, execution, url, made):
    time.sleep(max(0.0, made + URL_LIFE + 2 - time.time()))
    promise("peer: after its time the URL is refused", official.fetch(url, 0, 9)[0] == 403)
    fresh = device.fresh_document(execution)["image"]["url"]
    promise("peer: a fresh one is not", official.fetch(fresh, 0, 9)[0] == 206)


def good_and_bad(world, wanted):
    """One device, two jobs: a good image, then one that says it is ill."""
    device = world.device("gateway")
    good = world.image("2.0")
    world.job("good", "gateway", good, 1)
    first = world.console.execution("good", "gateway")["status"]
    with device:
        seen, end = world.console.watch("good", "gateway", JOB_LIMIT, lambda: device.broken)
        way = [first, *(seen[1:] if seen[0] == first else seen)]
        promise("good: QUEUED -> IN_PROGRESS -> SUCCEEDED", way == ["QUEUED", "IN_PROGRESS", "SUCCEEDED"], " -> ".join(way))
        promise("good: one reboot, into B", device.boots == ["A", "B"], device.boots)
        promise("good: B holds the image, byte for byte", slot_holds(device.slots["B"], good))
        promise("good: the job is complete", world.console.job_status("good") == "COMPLETED")
        promise("good: the slot that runs was not touched", slot_holds(device.slots["A"], world.image("1.0")))
        whole = [e for e in world.relay.requests() if e.path.endswith("/2.0.img.zst") and "gateway" in e.path]
        promise("good: the image was fetched once", sum(e.body for e in whole) == good.packed_size, [str(e) for e in whole])
        if "bad" in wanted:
            bad_image_is_rolled_back(world, device, good)


def bad_image_is_rolled_back(world, device, good):
    bad = world.image("3.0", "ill")
    world.job("bad", "gateway", bad, 0)
    seen, end = world.console.watch("bad", "gateway", JOB_LIMIT, lambda: device.broken)
    promise("bad: ends FAILED", end["status"] == "FAILED", " -> ".join(seen))
    reason = end["statusDetails"].get("reason", "")
    promise("bad: the reason names the health check", "health" in reason.lower(), reason)
    promise("bad: tried A, went back to B", device.boots == ["A", "B", "A", "B"], device.boots)
    promise("bad: B is as it was", slot_holds(device.slots["B"], good))
    promise("bad: A was really written and tried", slot_holds(device.slots["A"], bad))


def claim_becomes_a_device(world):
    """A device with nothing but a claim: its own certificate, then a job. (This cloud makes certificates with their key
    alone: `create-from-csr` is held by the system tests.)"""
    thing, folder = "provisioned", world.folder / "provisioned"
    world.console.add_claim("gateways", folder / "claim")
    store, told = folder / "store", folder / "told.json"
    settings = {
        "cloud": {"endpoint": cloud.MQTT[0], "port": cloud.MQTT[1], "ca": world.cloud.ca, "cert-store": store},
        "provisioning": {"claim-store": folder / "claim", "template": "gateways", "key": "cloud", "outfile": told},
        "provisioning.parameters": {"SerialNumber": thing},
    }
    factory = world.image("1.0").raw
    device = devices.Device(folder, world.programs, None, world.cloud.ca, factory, settings)
    with device:
        owned = world.console.wait_thing(thing, JOB_LIMIT, lambda: device.broken)
        promise("claim: one certificate belongs to the thing", len(owned) == 1, len(owned))
        world.job("claimed", thing, world.image("2.0"), 1)
        seen, _ = world.console.watch("claimed", thing, JOB_LIMIT, lambda: device.broken)
        promise("claim: the device takes a job and succeeds", seen[-1] == "SUCCEEDED", " -> ".join(seen))
        own = owned[0].rsplit("/", 1)[1]
        preferred = store / "preferred"
        promise("claim: its certificate is the preferred one", preferred.readlink() == pathlib.Path(own))
        mode = (store / own / f"{own}-private.pem.key").stat().st_mode & 0o777
        promise("claim: nobody else can read its key", mode == 0o600, oct(mode))
        wanted = {"thing": thing, "configuration": {"site": "north"}}
        promise("claim: the template's configuration is told", json.loads(told.read_text()) == wanted)
        again = world.console.wait_thing(thing, JOB_LIMIT, lambda: device.broken)
        promise("claim: the reboot asked for no other one", again == owned, len(again))


def every_row_of_the_table(world):
    """What the lab's device refuses, this cloud's refuses too: same status, same reason, nothing changed."""
    wanted, unable = table.rows()
    for name, why in unable:
        print(f"skip table: {name}: {why.removeprefix('no: ')}", flush=True)
    image = Image(world.folder, "small", "well", SMALL_IMAGE, SMALL_IMAGE // 2)
    device = world.device("refuser")
    with device:
        for row in wanted:
            key = f"refuser/{row['name']}"
            body = table.served(row, image)
            if body is not None:
                world.console.put(key, body)
            document = table.document(row, image, world.console.placeholder(key))
            row_ends_as_it_says(world, device, row, document)
        promise("table: no row rebooted the device", device.boots == ["A"], device.boots)
        promise("table: the running slot is as it was", slot_holds(device.slots["A"], world.image("1.0")))
        world.job("after-the-table", "refuser", image, 1)
        _, end = world.console.watch("after-the-table", "refuser", JOB_LIMIT, lambda: device.broken)
        promise("table: the next good job is served", end["status"] == "SUCCEEDED", end["statusDetails"].get("reason"))


def row_ends_as_it_says(world, device, row, document):
    job = f"row-{row['name']}"
    try:
        world.console.create_job(job, "refuser", document)
        _, end = world.console.watch(job, "refuser", JOB_LIMIT, lambda: device.broken)
    except Exception as error:  # the other rows are still run
        promise(f"table: {row['name']} is {row['status']}", False, error)
        return
    reason = end["statusDetails"].get("reason", "")
    holds = end["status"] == row["status"] and row["reason"] in reason
    promise(f"table: {row['name']} is {row['status']}", holds, f"{end['status']}: {reason}")


def every_managed_template(world):
    """The console's templates by the handlers that are installed: what they did, as whom, and what the job says of it."""
    bench = templates.Bench(world.folder, "bench")
    device = world.device("templated", bench.settings(), bench.wrapper())
    bench.reboot_by(device.reboot_pipe)
    body = b"".join(hashlib.sha512(bytes([n])).digest() for n in range(256))
    world.console.put("templated/template.bin", body)
    urls = [world.console.placeholder(f"templated/{name}") for name in ("template.bin", "nothing.bin")]
    with device:
        for row in templates.TABLE["rows"]:
            why = templates.missing(row)
            if why:
                print(f"skip templates: {row['name']}: {why}", flush=True)
                continue
            try:
                template_does_as_it_says(world, device, bench, row, urls, body)
            except Exception as error:  # the other rows are still run
                promise(f"templates: {row['name']}", False, error)


def template_does_as_it_says(world, device, bench, row, urls, body):
    job, boots = f"template-{row['name']}", len(device.boots)
    bench.prepare(row)
    world.console.create_job(job, "templated", bench.document(row, *urls))
    seen, end = world.console.watch(job, "templated", JOB_LIMIT, lambda: device.broken)
    details = end["statusDetails"]
    wrong = bench.difference(row, body)
    if end["status"] != row["status"] or row["reason"] not in details.get("reason", ""):
        wrong = f"it ended {end['status']}"
    elif row.get("stderr", "") not in details.get("stderr", ""):
        wrong = "the cause is not in stderr"
    elif len(device.boots) - boots != (1 if row.get("reboots") else 0):
        wrong = f"booted {len(device.boots) - boots} times"
    promise(f"templates: {row['name']} is {row['status']}", not wrong, wrong and f"{wrong}; {seen} {details}")


def expired_url_costs_one_update(world):
    """The connection is held in the middle until the URL is dead, then cut."""
    device, image = world.device("patient"), world.image("2.0")
    world.relay.cut = relays.Cut(after=image.packed_size // 2)
    world.job("expired", "patient", image, 1, URL_LIFE)
    with device:
        seen, end = world.console.watch("expired", "patient", URL_LIFE + JOB_LIMIT, lambda: device.broken)
        promise("expired: ends SUCCEEDED", end["status"] == "SUCCEEDED", f"{' -> '.join(seen)} {end['statusDetails']}")
        promise("expired: B holds the image, byte for byte", slot_holds(device.slots["B"], image))
    exchanges = [e for e in world.relay.requests() if "patient" in e.path]
    for exchange in exchanges:
        note(exchange)
    promise("expired: cut, refused with 403, then resumed", [(e.status, e.cut) for e in exchanges]
            in ([(200, True), (403, False), (206, False)], [(206, True), (403, False), (206, False)]))
    if len(exchanges) == 3:
        cut, refused, resumed = exchanges
        first = int(resumed.range.removeprefix("bytes=").split("-")[0] or 0)
        promise("expired: the refused request was a range with the old signature",
                refused.range != "" and refused.signature == cut.signature)
        promise("expired: one fresh URL was enough", resumed.signature != cut.signature)
        promise("expired: no byte was fetched again", first == cut.body and first + resumed.body == image.packed_size,
                f"cut at {cut.body}, resumed at {first}")


def slot_holds(slot, image):
    """Whether the first bytes of the slot are the image."""
    digest, left = hashlib.sha256(), image.size
    with slot.open("rb") as file:
        while left > 0 and (piece := file.read(min(MIB, left))):
            digest.update(piece)
            left -= len(piece)
    return left == 0 and digest.hexdigest() == image.digest


# -- the run --------------------------------------------------------------------------------------------------------
def guarded(name, scenario, *arguments):
    """A scenario that breaks is one failed test; the others still run."""
    note(name)
    try:
        scenario(*arguments)
    except Exception as error:
        promise(name, False, f"{type(error).__name__}: {error}")
        traceback.print_exc()


def tidy(folder, keep):
    """After a failure the logs are told and stay; the images, which anyone can make again, do not."""
    if counts["FAIL"]:
        for log in sorted(folder.glob("*/device/agent.log")):
            note(f"the end of {log}:")
            print("\n".join(log.read_text(errors="replace").splitlines()[-60:]))
        if not keep:
            for image in folder.rglob("*.img*"):
                image.unlink()
    if keep or counts["FAIL"]:
        note(f"left in {folder}")
    else:
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description="The agent against ministack.")
    parser.add_argument("--programs", type=pathlib.Path, required=True)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    missing = cloud.missing_tools()
    if missing:
        print(f"FAIL missing: {', '.join(missing)}")
        return 1
    cloud.enter_network()
    # A time limit from outside ends us as an error does: with everything stopped that was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    wanted = set(options.only or NAMES[:-1])
    wanted |= {NAMES[-1]} if options.full and not options.only else set()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="otandem-ministack-"))
    note(f"in {folder}")
    begin = time.monotonic()
    try:
        with cloud.Cloud(folder) as the_cloud, relays.Relay(cloud.IMAGES, cloud.GATEWAY) as relay:
            note(f"ministack is ready after {time.monotonic() - begin:.1f} s")
            world = World(folder, options.programs.resolve(), the_cloud, relay)
            if "peer" in wanted:
                guarded("peer", peer_takes_a_job_within_the_policy, world, options.full)
            if wanted & {"good", "bad"}:
                guarded("good", good_and_bad, world, wanted)
            if "claim" in wanted:
                guarded("claim", claim_becomes_a_device, world)
            if "table" in wanted:
                guarded("table", every_row_of_the_table, world)
            if "templates" in wanted:
                guarded("templates", every_managed_template, world)
            if "shadows" in wanted:
                guarded("shadows", shadows.files_and_shadows, world, promise)
            if "expired" in wanted:
                guarded("expired", expired_url_costs_one_update, world)
    finally:
        tidy(folder, options.keep)
    note(f"{counts['ok']} ok, {counts['FAIL']} failed, {time.monotonic() - begin:.0f} s")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
