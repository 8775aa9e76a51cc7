"""Wakes other processes by datagrams to sockets in a private runtime directory; carries no data, and delivery is not guaranteed.

The slow poll of a waiting process makes up for a lost wakeup. Sockets: `workers/<worker id>` for every worker,
`waiters/<job id>-<token>` for every call that waits for one job. The directory's path is short because a socket's path is
limited to about 100 bytes, and private because any program that can write to it can wake a worker.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

HAS_UNIX_SOCKETS = hasattr(socket, "AF_UNIX") and os.name == "posix"
POLL_S = 0.25  # how soon a change without a wakeup is noticed
TICK_NS = 20_000_000  # more than the resolution of a file system's times
LISTED_S = 0.05  # how long a listing of the workers' sockets is reused, so that a burst of jobs lists them once


def runtime_base() -> Path:
    """Return the folder that holds the runtime directories of all databases, by this process's environment."""
    import tempfile

    private = os.environ.get("XDG_RUNTIME_DIR")
    if private and os.path.isdir(private):
        return Path(private) / "gpuqueue"
    return Path(tempfile.gettempdir()) / f"gpuqueue-{own_uid()}"


def is_usable(base: str) -> bool:
    """Return whether this process can use the folder that another process of this user has chosen."""
    try:
        return os.stat(base).st_uid == own_uid() and os.access(base, os.W_OK | os.X_OK)
    except OSError:
        return False


def own_uid() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def runtime_dir(database: Path, base: Path | None = None) -> Path:
    """Create, if needed, the private directory for a database's sockets and liveness files, and return it.

    It is in XDG_RUNTIME_DIR or the temporary directory unless a `base` is given, named after the user and a hash of the
    database's path. Raises: PermissionError if another user owns it.
    """
    import hashlib

    base = base or runtime_base()
    path = base / hashlib.sha256(os.fsencode(os.path.realpath(database))).hexdigest()[:16]
    for folder in (base, path, path / "workers", path / "waiters"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.name == "posix" and folder.stat().st_uid != own_uid():
            raise PermissionError(f"{folder} belongs to another user; remove it or set XDG_RUNTIME_DIR")
    return path


class Wakeups:
    """Sends wakeups to the sockets of one database. Never blocks and never raises."""

    def __init__(self, directory: Path) -> None:
        self._folders = {group: os.path.join(directory, group) for group in ("workers", "waiters")}
        self._sockets: list[socket.socket] = []  # the first one sends; a forked child may use its parent's
        self._closed = False
        self._listed: dict[str, tuple[int, list[str]]] = {}
        self._workers: list[str] = []
        self._believed_until_s = 0.0

    def ring_workers(self) -> None:
        """Wake every worker, except perhaps one that started within the last LISTED_S, which relies on its own poll."""
        now_s = time.monotonic()
        if now_s >= self._believed_until_s:
            self._workers = self._names("workers")
            self._believed_until_s = now_s + LISTED_S
        for name in self._workers:
            self._send(os.path.join(self._folders["workers"], name))

    def ring_waiters(self, job_ids: Iterable[int]) -> None:
        """Wake the calls that wait for these jobs."""
        names = self._names("waiters")
        if names:
            keys = {str(job_id) for job_id in job_ids}
            for name in names:
                if name.partition("-")[0] in keys:
                    self._send(os.path.join(self._folders["waiters"], name))

    def close(self) -> None:
        """Close the sending socket; later calls wake nothing."""
        self._closed = True
        while self._sockets:
            self._sockets.pop().close()

    def _names(self, group: str) -> list[str]:
        if not HAS_UNIX_SOCKETS:
            return []
        folder = self._folders[group]
        try:
            changed_ns = os.stat(folder).st_mtime_ns
            listed = self._listed.get(group)
            if listed is None or listed[0] != changed_ns:
                # The time was read first: a socket added meanwhile changes it again, except within the same tick of the file
                # system's clock, so a listing is kept only if the last change is older than that.
                listed = (changed_ns, os.listdir(folder))
                if time.time_ns() - changed_ns > TICK_NS:
                    self._listed[group] = listed
        except OSError:
            return []
        return listed[1]

    def _send(self, path: str) -> None:
        try:
            (self._sockets[0] if self._sockets else self._open()).sendto(b"!", path)
        except ConnectionRefusedError:  # its owner died without removing it
            with contextlib.suppress(OSError):
                os.unlink(path)
        except OSError:  # gone, or its buffer is already full
            pass

    def _open(self) -> socket.socket:
        # Without a lock, which a signal handler might wait for forever: of threads that come together, each opens one.
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.setblocking(False)
        self._sockets.append(made)
        if self._closed:
            self.close()
        return made


class Listener:
    """One socket that receives wakeups; `wait` returns early on each. Without unix sockets it only polls."""

    def __init__(self, directory: Path, group: str, name: str) -> None:
        self._socket: socket.socket | None = None
        self._path = os.path.join(directory, group, name)
        if HAS_UNIX_SOCKETS:
            with contextlib.suppress(OSError):
                listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                try:
                    listening.bind(self._path)
                except OSError:
                    listening.close()
                    raise
                self._socket = listening

    @classmethod
    def for_job(cls, directory: Path, job_id: int) -> Listener:
        """Listen for one job's changes."""
        return cls(directory, "waiters", f"{job_id}-{os.urandom(4).hex()}")

    def wait(self, timeout_s: float) -> bool:
        """Wait for a wakeup, at most `timeout_s`; returns whether one arrived. Wakeups that arrive together count as one."""
        if self._socket is None:
            time.sleep(max(0.0, min(timeout_s, POLL_S / 10)))
            return True
        self._socket.settimeout(max(0.0, timeout_s))
        try:
            self._socket.recv(16)
        except OSError:  # no wakeup in time, or the socket was closed meanwhile
            return False
        _drain(self._socket)
        return True

    async def await_ring(self, timeout_s: float) -> bool:
        """Like `wait`, for a coroutine."""
        import asyncio  # imported here: it takes 25 ms, and a caller that only blocks does not need it

        if self._socket is None:
            await asyncio.sleep(max(0.0, min(timeout_s, POLL_S / 10)))
            return True
        self._socket.setblocking(False)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._socket, 16), max(0.0, timeout_s))
        except TimeoutError:
            return False
        _drain(self._socket)
        return True

    def ring(self) -> None:
        """Wake the thread of this process that waits here."""
        if self._socket is not None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(b"!", self._path)

    def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drain(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):
        listening.setblocking(False)
        while True:
            listening.recv(16)
