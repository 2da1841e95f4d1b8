"""Stands between the device and the image server: passes HTTP on, remembers it, and can cut a connection once."""

import dataclasses
import datetime
import socket
import struct
import threading
import time
import urllib.parse

LIMIT = 120  # seconds that one side may be silent
CHUNK = 64 * 1024
MAX_HEAD = 64 * 1024


@dataclasses.dataclass
class Exchange:
    """One request and what came of it."""

    path: str
    signature: str
    range: str
    status: int = 0
    body: int = 0
    cut: bool = False

    def __str__(self):
        end = ", cut" if self.cut else ""
        return f"GET {self.path} signed {self.signature[:8]} {self.range or 'whole'} -> {self.status}, {self.body} bytes{end}"


@dataclasses.dataclass
class Cut:
    """Pass `after` bytes of the first body that is longer, hold until its URL has expired, then cut the connection."""

    after: int
    done: bool = False


def expiry(query):
    """When a presigned URL expires, in seconds since the epoch."""
    made = datetime.datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    return made.timestamp() + int(query["X-Amz-Expires"][0])


class Relay:
    """A listener with one thread for each connection; a context manager."""

    def __init__(self, listen, server):
        self.server = server
        self.exchanges = []
        self.cut = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._listener = socket.create_server(listen)

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._closing.set()
        # Wakes the thread that waits in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def requests(self):
        """Every exchange so far."""
        with self._lock:
            return list(self.exchanges)

    def _accept(self):
        while not self._closing.is_set():
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(device,), daemon=True).start()

    def _serve(self, device):
        with device, socket.create_connection(self.server, LIMIT) as server:
            device.settimeout(LIMIT)
            try:
                with device.makefile("rb") as asks, server.makefile("rb") as answers:
                    while self._exchange(device, server, asks, answers):
                        pass
            except OSError:
                pass  # one side hung up: so does the other, by leaving here

    def _exchange(self, device, server, asks, answers):
        """One request and its answer; False when the connection is over."""
        request = read_head(asks)
        if not request:
            return False
        line, headers = parse_head(request)
        target = urllib.parse.urlsplit(line.split(" ")[1])
        query = urllib.parse.parse_qs(target.query)
        exchange = Exchange(target.path, query.get("X-Amz-Signature", [""])[0], headers.get("range", ""))
        with self._lock:
            self.exchanges.append(exchange)
        server.sendall(request)
        answer = read_head(answers)
        if not answer:
            return False
        line, headers = parse_head(answer)
        exchange.status = int(line.split(" ")[1])
        device.sendall(answer)
        left = int(headers.get("content-length", "0"))
        stop_at = self._takes_cut(left)
        while left > 0:
            if stop_at is not None and exchange.body >= stop_at:
                exchange.cut = True
                # Held until the URL is dead for sure: its time has a resolution of one second.
                self._closing.wait(max(0.0, expiry(query) + 1.5 - time.time()))
                reset(device)
                return False
            room = left if stop_at is None else min(left, stop_at - exchange.body)
            piece = answers.read1(min(CHUNK, room))
            if not piece:
                return False
            device.sendall(piece)
            exchange.body += len(piece)
            left -= len(piece)
        return headers.get("connection", "").lower() != "close"

    def _takes_cut(self, length):
        with self._lock:
            if self.cut is None or self.cut.done or length <= self.cut.after:
                return None
            self.cut.done = True
            return self.cut.after


def read_head(stream):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline(MAX_HEAD)
        if not line:
            return b""
        head += line
        if len(head) > MAX_HEAD:
            raise OSError("a head without end")
    return head


def parse_head(head):
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    return first, {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def reset(connection):
    """Ends a connection as a broken network does: with a reset, not with a goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
