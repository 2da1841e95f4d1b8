"""ministack as a process in a network of its own."""

import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

REGION = "eu-central-1"
MQTT = ("localhost", 8883)
# What the device sees, and what presigned URLs are signed for; the relay listens here.
IMAGES = ("127.0.0.1", 4566)
# Where ministack itself listens.
GATEWAY = ("127.0.0.2", 4566)
START_LIMIT = 60  # seconds
STOP_LIMIT = 10
_INSIDE = "OTANDEM_TEST_NETWORK"


def enter_network():
    """Goes on in a network namespace with nothing but loopback; does not return the first time."""
    if os.environ.get(_INSIDE) == "1":
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    own = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    environment = {**os.environ, _INSIDE: "1"}
    command = [*own, sys.executable, *sys.argv]
    os.execvpe(command[0], command, environment)


def die_with_parent():
    """For `preexec_fn`: whatever ends this program ends what it started.

    The kernel means the thread that started it, so that thread has to stay as long as the process is wanted."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def stop(process, limit=STOP_LIMIT):
    """Ends a process that we started, first with a request."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Cloud:
    """ministack, from ready to stopped; a context manager."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder / "cloud"
        self.log = self.folder / "ministack.log"
        self.gateway = "http://%s:%d" % GATEWAY
        self.process = None

    def __enter__(self):
        self.folder.mkdir()
        program = pathlib.Path(sys.executable).parent / "ministack"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(program)], env=self._environment(), cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        self._wait_until_ready()
        self.ca = self.folder / "ca.pem"
        with urllib.request.urlopen(self.gateway + "/_ministack/iot/ca.pem", timeout=5) as answer:
            self.ca.write_bytes(answer.read())
        return self

    def __exit__(self, *_):
        stop(self.process)

    def _environment(self):
        return {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "TMPDIR": str(self.folder), "PYTHONUNBUFFERED": "1",
            "AUTH": "true", "MINISTACK_REGION": REGION, "MINISTACK_HOST": "localhost",
            "SERVICES": "iot,iot-data,iot-jobs-data,s3,sts,iam",
            "BIND_HOST": GATEWAY[0], "GATEWAY_PORT": str(GATEWAY[1]), "IOT_MTLS_PORT": str(MQTT[1]), "SFTP_ENABLED": "0",
            # It tidies containers up when it stops; those of this machine are not its business.
            "DOCKER_HOST": "unix://" + str(self.folder / "no-docker.sock"), "STATE_DIR": str(self.folder / "state"),
        }

    def _wait_until_ready(self):
        """Ready means: HTTP answers and the MQTT listener is bound; ministack tells both at one address."""
        end = time.monotonic() + START_LIMIT
        while True:
            try:
                with urllib.request.urlopen(self.gateway + "/_ministack/ready", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            if self.process.poll() is not None:
                raise RuntimeError(f"ministack ended with {self.process.returncode} at its start: {self.last_words()}")
            if time.monotonic() > end:
                stop(self.process)
                raise RuntimeError(f"ministack was not ready within {START_LIMIT} s: {self.last_words()}")
            # Between two probes of a port there is nothing else to wait for.
            time.sleep(0.05)

    def last_words(self):
        return self.log.read_text(errors="replace")[-2000:]


def missing_tools():
    return [tool for tool in ("ip", "unshare", "mke2fs", "debugfs", "zstd") if not shutil.which(tool)]
