"""A device in a folder: two slot sets that are files, the simulated boot loader, `otandem run`, and its supervisor.

The supervisor is what the hardware is: when the agent asks for a reboot it ends the process, lets the loader choose a
set and starts the agent again.
"""

import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import threading

import cloud
import table

# Longer than any agent needs to say goodbye.
GOODBYE = 10  # seconds
MAX_BOOTS = 12


def loader_step(programs, folder, slots):
    """One reset: the simulated loader picks a set by its environment; 'A' or 'B'."""
    command = [str(programs / "otandem-simulator"), "boot", str(folder),
               "--slot-a", str(slots["A"]), "--slot-b", str(slots["B"])]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    booted = done.stdout.strip()
    if booted not in slots:
        raise RuntimeError(f"{' '.join(command)}: printed {booted!r}, not the name of a set")
    return booted


HEALTH_CHECK = """#!/bin/sh
# What the running image says of itself: /etc/health in its file system. 100 is the code for "there is no hope".
root=$(readlink "{running}") || exit 1
case $(debugfs -R 'cat /etc/health' "$root" 2>/dev/null) in
  well) exit 0 ;;
  *) echo "the image says that it is ill" >&2; exit 100 ;;
esac
"""


class Device:
    """Made, started, updated, stopped; a context manager."""

    def __init__(self, folder, programs, identity, ca, factory_image, settings=None, wrapper=()):
        """`settings`: tables beside those that every device has. `wrapper`: a command that becomes the agent."""
        self.folder = folder / "device"
        self.programs = programs
        self.log = self.folder / "agent.log"
        self.slots = {"A": self.folder / "slots/a.img", "B": self.folder / "slots/b.img"}
        self.loader = self.folder / "loader"
        self.running = self.folder / "running"
        self.boots = []
        self.broken = ""
        self.reboot_pipe = self.folder / "reboot-wanted"
        self._wrapper = [str(word) for word in wrapper]
        self._agent = None
        self._thread = None
        self._make(identity, ca, factory_image, settings or {})

    def _make(self, identity, ca, factory_image, settings):
        for name in ("slots", "state", "run", "health.d", "hooks.d", "loader"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        shutil.copyfile(factory_image, self.slots["A"])
        # As large as A and empty: a slot that nothing was ever written to.
        with self.slots["B"].open("wb") as slot:
            slot.truncate(factory_image.stat().st_size)
        os.mkfifo(self.reboot_pipe, 0o600)
        reboot = self._script("reboot", f"#!/bin/sh\necho reboot >'{self.reboot_pipe}'\n")
        self._script("health.d/10-image", HEALTH_CHECK.format(running=self.running))
        self.config = self.folder / "otandem.toml"
        self.config.write_text(to_toml({**self._settings(identity, ca, reboot), **settings}))

    def _settings(self, identity, ca, reboot):
        return {
            "device": {"compatible": table.COMPATIBLE},
            "slots.A": {"index": 0, "rootfs": self.slots["A"]},
            "slots.B": {"index": 1, "rootfs": self.slots["B"]},
            "bootloader": {"kind": "simulated", "directory": self.loader},
            "update": {
                "state-dir": self.folder / "state",
                # The folder lies on the device of `/`, which the real thing may not do; here both sets do share it.
                "state-shared": False,
                "run-dir": self.folder / "run",
                "health-dir": self.folder / "health.d",
                "health-timeout": "30s",
                "hook-dir": self.folder / "hooks.d",
                "cloud-timeout": "1min",
                "reboot-command": [reboot],
            },
            # One without an identity says itself how it gets one.
            "cloud": identity and {
                "endpoint": cloud.MQTT[0], "port": cloud.MQTT[1], "thing-name": identity.thing, "ca": ca,
                "cert": identity.cert, "key": identity.key,
            },
            # Longer than a URL lives, so that the scenario of the expired URL has one cause and not two.
            "network": {"read-timeout": "3min"},
            "log": {"level": "debug", "target": "stderr"},
            "control": {"socket": self.folder / "run/control.sock", "group": "root"},
        }

    def _script(self, name, text):
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    # -- power ------------------------------------------------------------------------------------------------------
    def __enter__(self):
        self._pipe = os.open(self.reboot_pipe, os.O_RDWR | os.O_NONBLOCK)
        self._off_read, self._off = os.pipe()
        self._boot()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        os.write(self._off, b"x")
        self._thread.join()
        for descriptor in (self._pipe, self._off_read, self._off):
            os.close(descriptor)

    def _boot(self):
        booted = loader_step(self.programs, self.loader, self.slots)
        self.running.unlink(missing_ok=True)
        self.running.symlink_to(self.slots[booted])
        # Under /run, and so empty after every boot.
        shutil.rmtree(self.folder / "run")
        (self.folder / "run").mkdir(mode=0o700)
        environment = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "HOME": str(self.folder), "LANG": "C"}
        with self.log.open("ab") as log:
            log.write(f"---- boot {len(self.boots) + 1}: {booted}\n".encode())
            self._agent = subprocess.Popen(
                [*self._wrapper, str(self.programs / "otandem"), "--config", str(self.config), "run"], env=environment,
                cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                preexec_fn=cloud.die_with_parent)
        self.boots.append(booted)

    def _supervise(self):
        """Waits for a wish to reboot, for the agent's end and for the switch, whichever comes first."""
        try:
            while not self.broken and self._one_event():
                pass
        except Exception as error:  # told by the scenario, which would else wait for its limit
            self.broken = f"the device's supervisor: {error}"
        finally:
            cloud.stop(self._agent, GOODBYE)

    def _one_event(self):
        alive = os.pidfd_open(self._agent.pid)
        try:
            ready, _, _ = select.select([self._pipe, alive, self._off_read], [], [])
        finally:
            os.close(alive)
        if self._off_read in ready:
            return False
        if self._pipe in ready:
            os.read(self._pipe, 4096)
            cloud.stop(self._agent, GOODBYE)
            if len(self.boots) >= MAX_BOOTS:
                self.broken = f"more than {MAX_BOOTS} boots: {self.boots}"
            else:
                self._boot()
        else:
            code = self._agent.wait()
            how = signal.Signals(-code).name if code < 0 else f"status {code}"
            self.broken = f"the agent ended by itself with {how}: {self.last_words()}"
        return True

    # -- what can be seen -------------------------------------------------------------------------------------------
    def last_words(self):
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-30:])


def to_toml(tables):
    """Strings, paths, numbers, booleans and lists of them; JSON's strings are TOML's."""

    def value(thing):
        if isinstance(thing, list):
            return "[" + ", ".join(value(item) for item in thing) + "]"
        return json.dumps(str(thing) if isinstance(thing, pathlib.Path) else thing)

    parts = (f"[{name}]\n" + "".join(f"{key} = {value(v)}\n" for key, v in keys.items()) for name, keys in tables.items())
    return "\n".join(parts)
