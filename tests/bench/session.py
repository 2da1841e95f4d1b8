#!/usr/bin/env python3
"""Measures `otandem run` in a session over mutual TLS with the lab: session.py AGENT LAB FOLDER CONFIG STARTS SAMPLES

Prints one line: the starts in milliseconds (from exec to the CONNECT that the lab accepts), comma separated; then, of the
last start, samples of PSS and RSS in KiB once it has settled. CONFIG is a configuration with the words @PORT@, @CA@, @CERT@
and @KEY@.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

THING = "bench-0001"
LIMIT = 20.0
SETTLE = 8.0
BETWEEN = 0.5


class Lab:
    def __init__(self, program, folder):
        command = [program, "--dir", folder, "--thing", THING]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.about = json.loads(self.process.stdout.readline())

    def counters(self):
        self.process.stdin.write(b"counters\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["result"]

    def connects(self):
        return self.counters()["connects"].get(THING, 0)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def start(agent, config, lab):
    """Starts the agent; gives it, and the milliseconds until the lab has accepted its CONNECT."""
    before = lab.connects()
    log = config.with_suffix(".log").open("ab")
    begin = time.monotonic()
    process = subprocess.Popen([agent, "--config", config, "run"], stdout=log, stderr=log)
    while lab.connects() == before:
        if process.poll() is not None or time.monotonic() - begin > LIMIT:
            sys.exit(f"the agent does not connect; see {log.name}")
        time.sleep(0.0005)
    return process, (time.monotonic() - begin) * 1000


def memory(process):
    """PSS and RSS in KiB."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    values = {key.rstrip(":"): int(value) for key, value, *_ in map(str.split, lines)}
    return values["Pss"], values["Rss"]


def main():
    agent, program, folder, template, starts, samples = sys.argv[1:]
    lab = Lab(program, folder)
    thing = lab.about["things"][0]
    words = {"@PORT@": lab.about["mqtt"]["port"], "@CA@": lab.about["ca"], "@CERT@": thing["cert"], "@KEY@": thing["key"]}
    text = Path(template).read_text()
    for word, value in words.items():
        text = text.replace(word, str(value))
    config = Path(folder) / "otandem.toml"
    config.write_text(text)
    taken = []
    for left in reversed(range(int(starts))):
        process, milliseconds = start(agent, config, lab)
        taken.append(milliseconds)
        # Let it get through the subscriptions and the question for jobs: what follows is what a device pays all day.
        time.sleep(SETTLE if left == 0 else 0.5)
        if left == 0:
            seen = [(time.sleep(BETWEEN), memory(process))[1] for _ in range(int(samples))]
        process.terminate()
        process.wait()
    told = lab.counters()
    lab.end()
    if told["violations"]:
        sys.exit("the lab closed the connection for a violation of the policy")
    print(",".join(f"{t:.1f}" for t in taken), ",".join(str(p) for p, _ in seen), ",".join(str(r) for _, r in seen))


main()
