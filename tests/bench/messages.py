#!/usr/bin/env python3
"""Measures messages from files: messages.py FOLDER COUNT RUNS PEER_BACKLOG AGENT [CHARIOTD]

A mosquitto on loopback with mutual TLS, a second plain listener for the subscriber that stamps each message as it arrives,
and programs that turn files into messages: AGENT (`otandem run`) and, if given, CHARIOTD, the folder of a chariotd with its
dependencies (started with node). Every load runs for one after the other, RUNS times. Writes FOLDER/messages.json, an object
per program: lists of what was measured, in milliseconds, messages per second, CPU seconds and KiB. PEER_BACKLOG is the number of files in
chariotd's backlog, which it sends at four a second.

Afterwards a table in Markdown, and a last line: idle PSS in KiB, and of start, latency, burst and backlog our figure beside
theirs (0 without CHARIOTD).
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

CONNECTS_WITHIN = 60.0
ARRIVES_WITHIN = 600.0
SETTLE = 8.0
SINGLES = 20
PAD = "x" * 64

AGENT_CONFIG = """
[device]
compatible = "bench"
[cloud]
endpoint = "localhost"
port = {port}
thing-name = "{client}"
ca = "{pki}/ca.pem"
cert = "{pki}/device.pem"
key = "{pki}/device.key"
publish-rate = 0
[update]
state-dir = "{folder}/state"
[control]
socket = "{folder}/control.sock"
group = "root"
[jobs]
enabled = false
[messages.bench]
directory = "{spool}"
rate = 0
"""


def fail(why):
    sys.exit(f"messages.py: {why}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def openssl(*arguments):
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    if done.returncode:
        fail(done.stderr)


def certificates(folder):
    """A root, a server and a device."""
    folder.mkdir()
    key = ["-newkey", "rsa:2048", "-nodes"]
    root = ["-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.pem"]
    openssl("req", "-x509", *key, *root, "-days", "30", "-subj", "/CN=bench root")
    for name, extension in (
        ("server", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ("device", "extendedKeyUsage=clientAuth"),
    ):
        (folder / f"{name}.ext").write_text(extension)
        openssl("req", *key, "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.csr", "-subj", f"/CN={name}")
        issuer = ["-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key", "-CAcreateserial"]
        files = ["-in", f"{folder}/{name}.csr", "-out", f"{folder}/{name}.pem", "-extfile", f"{folder}/{name}.ext"]
        openssl("x509", "-req", *files, *issuer, "-days", "30")
    for file in folder.iterdir():
        file.chmod(0o600 if file.name == "device.key" else 0o644)


class Broker:
    def __init__(self, folder):
        self.folder, self.tls, self.plain = folder, free_port(), free_port()
        self.log = folder / "broker.log"
        pki = folder / "pki"
        config = folder / "broker.conf"
        config.write_text(
            "per_listener_settings true\nmax_queued_messages 0\nlog_type all\n"
            f"listener {self.tls} 127.0.0.1\ncafile {pki}/ca.pem\ncertfile {pki}/server.pem\nkeyfile {pki}/server.key\n"
            f"require_certificate true\nallow_anonymous true\nlistener {self.plain} 127.0.0.1\nallow_anonymous true\n"
        )
        self.process = subprocess.Popen(["mosquitto", "-c", config], stdout=self.log.open("wb"), stderr=subprocess.STDOUT)
        begin = time.monotonic()
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.plain), 1).close()
            except OSError:
                if self.process.poll() is not None or time.monotonic() - begin > CONNECTS_WITHIN:
                    fail(f"no broker; see {self.log}")
                time.sleep(0.01)

    def has_seen(self, client):
        return f" as {client} " in self.log.read_text(errors="replace")

    def end(self):
        self.process.terminate()
        self.process.wait()


class Subscriber:
    """Numbers of the messages on a topic, and when each came first. It writes to a file, which is read where nothing is
    measured: reading along would take the processor from what is."""

    def __init__(self, broker, topic):
        self.at, self.order, self.again = {}, [], 0
        self.file = broker.folder / f"{topic.replace('/', '-')}.log"
        command = ["stdbuf", "-oL", "mosquitto_sub", "-p", str(broker.plain), "-q", "1", "-t", topic, "-F", "%U %p", "-d"]
        with self.file.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        self.until(lambda lines: any(line.startswith(b"Subscribed") for line in lines), "no subscription")

    def until(self, condition, failure):
        begin = time.monotonic()
        while not condition(self.file.read_bytes().split(b"\n")):
            if time.monotonic() - begin > ARRIVES_WITHIN:
                fail(f"{failure}; see {self.file}")
            time.sleep(0.02)

    def wait(self, count):
        """Until that many numbers are there."""
        # Each message is two lines, of which one tells of the packet.
        self.until(lambda lines: sum(b"{" in line for line in lines) >= count, f"not {count} messages")
        self.at, self.order, self.again = {}, [], 0
        for line in self.file.read_text().splitlines():
            stamp, _, body = line.partition(" ")
            if not body.startswith("{"):
                continue
            number = json.loads(body)["i"]
            if number in self.at:
                self.again += 1
            else:
                self.at[number] = float(stamp)
                self.order.append(number)

    def end(self):
        self.process.terminate()
        self.process.wait()


class Program:
    """One that turns files into messages."""

    def __init__(self, name, folder, broker, command):
        self.name, self.folder, self.broker, self.command = name, folder / name, broker, command
        self.folder.mkdir()
        self.starts = 0
        self.seen = {"start_ms": [], "idle_pss": [], "idle_rss": [], "latency_ms": [], "burst": [], "burst_cpu": [],
                     "backlog": [], "after_rss": [], "again": 0, "out_of_order": 0}

    def spool(self):
        spool = self.folder / f"spool{self.starts}"
        for part in ("tmp", "new", "failed"):
            (spool / part).mkdir(parents=True)
        return spool

    def start(self, spool):
        self.starts += 1
        client = f"{self.name}-{self.starts}"
        log = (self.folder / "log").open("ab")
        begin = time.time()
        process = subprocess.Popen(self.command(self.folder, client, spool), stdout=log, stderr=log)
        while not self.broker.has_seen(client):
            if process.poll() is not None or time.time() - begin > CONNECTS_WITHIN:
                fail(f"{self.name} does not connect; see {log.name}")
            time.sleep(0.002)
        return process, time.time(), (time.time() - begin) * 1000


def stop(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def memory(process, key):
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def cpu(process):
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write(spool, part, name, topic, number):
    body = {"topic": topic, "payload": {"i": number, "pad": PAD}, "qos": 1}
    (spool / part / name).write_text(json.dumps(body))


def connected(program, count):
    """Memory at rest, single messages, and a burst."""
    spool, seen, n = program.spool(), program.seen, program.starts
    process, _, milliseconds = program.start(spool)
    seen["start_ms"].append(milliseconds)
    time.sleep(SETTLE)
    seen["idle_pss"].append(memory(process, "Pss"))
    seen["idle_rss"].append(memory(process, "Rss"))
    subscriber = Subscriber(program.broker, f"{program.name}/{n}/single")
    for i in range(SINGLES):
        write(spool, "tmp", f"s{i:03}", f"{program.name}/{n}/single", i)
        begin = time.time()
        os.rename(spool / "tmp" / f"s{i:03}", spool / "new" / f"s{i:03}")
        subscriber.wait(i + 1)
        seen["latency_ms"].append((subscriber.at[i] - begin) * 1000)
        time.sleep(0.1)
    subscriber.end()
    subscriber = Subscriber(program.broker, f"{program.name}/{n}/burst")
    for i in range(count):
        write(spool, "tmp", f"b{i:06}", f"{program.name}/{n}/burst", i)
    used, begin = cpu(process), time.time()
    for i in range(count):
        os.rename(spool / "tmp" / f"b{i:06}", spool / "new" / f"b{i:06}")
    subscriber.wait(count)
    seen["burst"].append(count / (max(subscriber.at.values()) - begin))
    time.sleep(1)
    seen["burst_cpu"].append(cpu(process) - used)
    seen["after_rss"].append(memory(process, "Rss"))
    seen["again"] += subscriber.again
    seen["out_of_order"] += subscriber.order != sorted(subscriber.order)
    subscriber.end()
    stop(process)


def backlog(program, count):
    """What lay there before the start."""
    spool, topic = program.spool(), f"{program.name}/{program.starts}/backlog"
    subscriber = Subscriber(program.broker, topic)
    for i in range(count):
        write(spool, "new", f"k{i:06}", topic, i)
    process, begin, milliseconds = program.start(spool)
    program.seen["start_ms"].append(milliseconds)
    subscriber.wait(count)
    program.seen["backlog"].append(count / max(max(subscriber.at.values()) - begin, 1e-6))
    program.seen["again"] += subscriber.again
    subscriber.end()
    stop(process)


def main():
    folder, count, runs, peer_backlog, agent, *chariotd = sys.argv[1:]
    folder, count = Path(folder), int(count)
    certificates(folder / "pki")
    pki = folder / "pki"
    broker = Broker(folder)

    def ours(own, client, spool):
        config = own / "otandem.toml"
        config.write_text(AGENT_CONFIG.format(port=broker.tls, client=client, pki=pki, folder=own, spool=spool))
        return [agent, "--config", config, "run"]

    def theirs(own, client, spool):
        store = own / "store"
        if not store.exists():
            (store / "dev").mkdir(parents=True)
            (store / "endpoint.txt").write_text(f"localhost:{broker.tls}\n")
            (store / "dev/dev-certificate.pem.crt").write_bytes((pki / "device.pem").read_bytes())
            (store / "dev/dev-private.pem.key").write_bytes((pki / "device.key").read_bytes())
        node = ["node", "--no-deprecation", f"{chariotd[0]}/src/main.js"]
        return [*node, f"--clientid={client}", f"--cacert={pki}/ca.pem", f"--certstore={store}", f"--messages={spool}"]

    programs = [(Program("otandem", folder, broker, ours), count)]
    if chariotd:
        programs.append((Program("chariotd", folder, broker, theirs), int(peer_backlog)))
    try:
        for _ in range(int(runs)):
            for program, _ in programs:
                connected(program, count)
        for _ in range(int(runs)):
            for program, files in programs:
                backlog(program, files)
    finally:
        broker.end()
    lines = [json.dumps({"name": p.name, "files": count, "backlog_files": files, **p.seen}) for p, files in programs]
    (folder / "messages.json").write_text("\n".join(lines) + "\n")
    table(programs, count)


ROWS = (
    ("start to connected, ms", "start_ms", "{:.0f}"),
    ("idle, connected: PSS, KiB", "idle_pss", "{:.0f}"),
    ("the same: RSS, KiB", "idle_rss", "{:.0f}"),
    ("one file, from the move to the subscriber, ms", "latency_ms", "{:.2f}"),
    ("burst while connected, messages/s", "burst", "{:.0f}"),
    ("CPU seconds of the burst", "burst_cpu", "{:.2f}"),
    ("RSS after it, KiB", "after_rss", "{:.0f}"),
    ("what lay there at the start, messages/s", "backlog", "{:.1f}"),
)


def table(programs, count):
    print(f"| {count} files, medians | {' | '.join(p.name for p, _ in programs)} |\n|---|{'---|' * len(programs)}")
    for what, key, form in ROWS:
        cells = []
        for program, _ in programs:
            values = program.seen[key]
            middle, low, high = (form.format(v) for v in (statistics.median(values), min(values), max(values)))
            cells.append(f"{middle} ({low} to {high})")
        print(f"| {what} | {' | '.join(cells)} |")
    for what, key in (("came twice", "again"), ("bursts out of order", "out_of_order")):
        print(f"| {what} | {' | '.join(str(p.seen[key]) for p, _ in programs)} |")

    def beside(key):
        ours, *theirs = (statistics.median(p.seen[key]) for p, _ in programs)
        return ours / theirs[0] if theirs else 0

    keys = ("start_ms", "latency_ms", "burst", "backlog")
    pss = statistics.median(programs[0][0].seen["idle_pss"])
    print(f"{pss:.0f}", *(f"{beside(key):.3f}" for key in keys))


main()
